"""The sampler over a language model on a CUDA device: its law, its streams, its values and its memory.

Run with ``pytest -m gpu tests/gpu`` on a machine that has one; elsewhere everything here is skipped.
"""

import logging

import numpy as np
import pytest
import torch

from rmtools.core import solve
from rmtools.lm.checkpoint import load_value_model
from rmtools.lm.enumerate import tabulate
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy, load_policy
from rmtools.particles.smc import smc

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def cool(policy_folder, settings):
    """On the device, and cool enough that nearly all of its mass is in a table."""
    warm = load_policy(policy_folder, settings)
    assert warm.device.type == "cuda"
    return Policy(warm.model, warm.steps, 0.5)


@pytest.fixture(scope="module")
def on_gpu(value_folder):
    return load_value_model(value_folder, device=torch.device("cuda"))[0]


def sampled(policy, value, task, prompts, n, seed, **settings):
    root = LMParticles.start(policy, value, prompts, terminal="verifier", reward=task.reward)
    return smc(root, n, rng=np.random.default_rng(seed), **settings)


@pytest.mark.parametrize("which", [1, 3])
def test_z_hat_is_unbiased_with_the_predicted_variance(cool, on_gpu, task, prompts, which):
    """2,000 runs of N = 64 in one batch, multinomial at every step: mean within 4.5 SE, N Var / Z^2 within 20%."""
    prompt, n, runs = prompts[which], 64, 2000
    table = tabulate(cool, on_gpu, prompt, task.step_choices(prompt, []), task.reward, 0.0)
    z = (1 - table.uncovered) * np.exp(solve(table.model).log_z) + table.uncovered * on_gpu.tilt.floor
    settings = {"resampling": "multinomial", "ess_threshold": 1.0}
    z_hat = np.exp(sampled(cool, on_gpu, task, [prompt] * runs, n, 31 + which, **settings).log_z)
    assert abs(z_hat.mean() - z) < 4.5 * z_hat.std(ddof=1) / np.sqrt(runs)
    assert n * z_hat.var(ddof=1) / z**2 == pytest.approx(solve(table.model).sigma2, rel=0.2)


def test_one_seed_gives_one_output(cool, on_gpu, task, prompts):
    one, same, other = (sampled(cool, on_gpu, task, prompts, 32, seed) for seed in (7, 7, 8))
    assert one.particles.steps() == same.particles.steps()
    np.testing.assert_array_equal(one.log_z, same.log_z)
    assert one.particles.steps() != other.particles.steps()


def test_values_along_a_run_are_those_of_whole_prefixes_on_the_cpu(cool, on_gpu, value_folder, prompts):
    """Caches that were forked, selected and packed against one pass over each text."""
    value = load_value_model(value_folder, device=torch.device("cpu"))[0]
    root = LMParticles.start(cool, on_gpu, prompts)
    particles = smc(root, 32, 1, "multinomial", 1.0, np.random.default_rng(3)).particles
    log_value = particles.log_value()
    for group, prompt in enumerate(prompts):
        for i, steps in enumerate(particles.steps()[group][:4]):
            ids = value.steps.prompt_ids(prompt) + [t for s in steps for t in value.steps.step_ids(s)]
            whole = value.start([ids])[0]
            assert float(log_value[group, i]) == pytest.approx(float(whole[0]), abs=1e-4)


def test_memory_that_does_not_suffice_halves_the_batch(cool, on_gpu, task, prompts, caplog, monkeypatch):
    """Passes over more than 40 prefixes ask for more than the card has: what is sampled is the same, in pieces."""
    expected = sampled(cool, on_gpu, task, prompts, 32, 5).particles.steps()
    monkeypatch.setattr("rmtools.lm.kv.cache._SAID", set())
    sizes = []

    def hungry(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 40:
            torch.empty(1 << 40, dtype=torch.uint8, device="cuda")

    hooks = [m.model.register_forward_pre_hook(hungry, with_kwargs=True) for m in (cool, on_gpu)]
    try:
        with caplog.at_level(logging.WARNING, "rmtools"):
            found = sampled(cool, on_gpu, task, prompts, 32, 5)
    finally:
        for hook in hooks:
            hook.remove()
    assert max(sizes) > 40
    assert found.particles.steps() == expected
    assert sum("halved" in r.message for r in caplog.records) == 1
