"""The law of what comes through a real server: steps against the policy's own probabilities, Z-hat against Z."""

import numpy as np
import pytest

from rmtools.core import solve
from rmtools.data.collect import Branching, Collector
from rmtools.lm.enumerate import tabulate
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.particles.smc import smc
from rmtools.serving.endpoint import ServerSettings
from rmtools.serving.server import connect
from rmtools.verify.law import chi_square


@pytest.fixture(scope="module")
def table(policy, value, task, prompts):
    """One prompt's solutions with their probabilities under the policy in this process."""
    return tabulate(policy, value, prompts[2], task.step_choices(prompts[2], []), task.reward, 1e-5)


def paths_through(policy, value, task, prompt, n):
    root = LMParticles.start(policy, value, [prompt], terminal="verifier", reward=task.reward)
    return [tuple(p) for p in smc(root, n, 1, "none", 0.0, np.random.default_rng(1)).particles.steps()[0]]


def p_value(paths, table):
    counts = np.asarray([paths.count(tuple(p)) for p in table.paths], dtype=float)
    p = np.append(table.path_probability, 1 - table.path_probability.sum())
    test = chi_square(np.append(counts, len(paths) - counts.sum()), len(paths) * p)
    assert test["cells"] > 20
    return test["p_value"]


# Stop strings kept; named but trimmed; neither, so that completions are cut here; told elsewhere; one choice a request; batches.
@pytest.mark.parametrize(
    ("kind", "batch"),
    [("vllm", 1), ("trimmed", 1), ("strict", 1), ("llama", 1), ("oldllama", 8), ("reversed", 8)],
)
def test_paths_have_the_enumerated_law(server, value, task, prompts, table, kind, batch):
    """Three steps in a row, 1,000 or 2,000 trajectories; the chance of a right one failing is 1e-5."""
    source = connect(
        server.url(kind), value.steps, np.random.default_rng(0), ServerSettings(prompts_per_request=batch)
    )
    n = 1000 if kind == "oldllama" else 2000
    paths = paths_through(source, value, task, prompts[2], n)
    assert len(paths) == n
    assert p_value(paths, table) > 1e-5


@pytest.mark.parametrize("kind", ["vllm", "llama", "oldllama"])
def test_rollouts_have_the_enumerated_law(server, value, task, prompts, table, kind):
    """Whole solutions in one request, and the completions behind the prompt: chi-square, and the mean reward within 4.5 SE."""
    source = connect(server.url(kind), value.steps, np.random.default_rng(0))
    n = 600 if kind == "oldllama" else 2000
    rows = Collector(source, task, Branching(n), np.random.default_rng(5)).collect([prompts[2]])
    assert p_value([tuple(r.steps) for r in rows], table) > 1e-5
    assert source.requests == -(-n // source.template.can.choices)
    mean = float(table.path_probability @ table.rewards)
    few = Collector(source, task, Branching(n // 20, 2, 3, 1), np.random.default_rng(6))
    rewards = np.asarray([x for r in few.collect([prompts[2]]) for x in r.completions[0]])
    se = np.sqrt(mean * (1 - mean) / len(rewards))
    assert abs(rewards.mean() - mean) < 4.5 * se + table.uncovered


@pytest.mark.slow
def test_another_temperature_has_another_law(server, value, task, prompts, table):
    """What the test above would say of a server that draws at temperature 1.2: it can fail."""
    hot = connect(server.url("vllm"), value.steps, np.random.default_rng(0), ServerSettings(temperature=1.2))
    assert p_value(paths_through(hot, value, task, prompts[2], 2000), table) < 1e-6


@pytest.mark.parametrize(("kind", "batch"), [("vllm", 1), ("reversed", 16)])
def test_z_hat_is_unbiased(server, policy, value, task, prompts, kind, batch):
    """SMC through the server, multinomial at every step: the mean of 1,200 runs within 4.5 SE of the enumerated Z."""
    prompt, runs = prompts[1], 1200
    cool = Policy(policy.model, policy.steps, 0.5)
    table = tabulate(cool, value, prompt, task.step_choices(prompt, []), task.reward, 0.0)
    assert table.uncovered < 1e-3
    z = (1 - table.uncovered) * np.exp(solve(table.model).log_z) + table.uncovered * value.tilt.floor
    source = connect(
        server.url(kind),
        value.steps,
        np.random.default_rng(0),
        ServerSettings(temperature=0.5, prompts_per_request=batch),
    )
    root = LMParticles.start(source, value, [prompt] * runs, terminal="verifier", reward=task.reward)
    z_hat = np.exp(smc(root, 4, 1, "multinomial", 1.0, np.random.default_rng(2)).log_z)
    assert z_hat.std() > 0.1 * z
    assert abs(z_hat.mean() - z) < 4.5 * z_hat.std(ddof=1) / np.sqrt(runs)


def test_equal_prefixes_draw_independently(server, policy, step_tokenizer, prompts, generator):
    """Pairs at one prefix agree as often as independent draws do; so do pairs at two equal ones."""
    import torch

    source = connect(server.url("vllm"), step_tokenizer, np.random.default_rng(0))
    ids = step_tokenizer.prompt_ids(prompts[0])
    n = 2400
    step = source.decode_step(source.start([ids, ids]), torch.arange(2).repeat_interleave(n), generator(3))
    texts = np.asarray(
        [step_tokenizer.step_text([i for i in row if i >= 0]) for row in step.tokens.tolist()]
    )[step.node.numpy()]
    one, two = texts[:n], texts[n:]
    _, counts = np.unique(texts, return_counts=True)
    agree = ((counts / (2 * n)) ** 2).sum()
    assert 0.02 < agree < 0.8
    for a, b in ((one, two), (one[::2], one[1::2]), (one[: n // 2], one[n // 2 :]), (two[1:], one[:-1])):
        se = np.sqrt(agree * (1 - agree) / len(a))
        assert abs(np.mean(a == b) - agree) < 4.5 * se
