"""Laws of what `rmtools sample` puts out: chains, pooled budgets and batches against exact finite models."""

import numpy as np
import pytest

from rmtools.core import smc, solve
from rmtools.exact.families import random_tree
from rmtools.lm.particles import LMParticles
from rmtools.sampling.algorithms import draw_batch
from rmtools.sampling.sample_prompts import SamplerSettings, sample_prompts, settings_for

REPLICATES = 4000


@pytest.fixture(scope="module")
def model():
    """27 solutions, values that are wrong by half at every step, some solutions worth 20 times others."""
    return random_tree(3, 3, 0.5, 0.05, np.random.default_rng(5))


def target(model):
    found = solve(model)
    log_p = model.log_reach[-1] + model.log_value[-1] - found.log_z
    return np.exp(log_p)


def z_scores(states, p, bias=0.0):
    """|frequency - p| beyond the bias, in standard errors, by state."""
    n = len(states)
    frequency = np.bincount(states, minlength=len(p)) / n
    return np.maximum(np.abs(frequency - p) - bias, 0) / np.sqrt(p * (1 - p) / n)


def drawn_states(on_finite_model, model, settings, seed):
    source = on_finite_model(model)
    found = draw_batch(source, ["p"] * REPLICATES, settings, np.random.default_rng(seed))
    return np.asarray([int(d.steps[d.draw][0]) for d in found]), found


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings_for("mh", pool_size=4, mh_steps=40), marks=pytest.mark.slow),
        pytest.param(settings_for("mh", n_particles=4, pool_size=1, mh_steps=40), marks=pytest.mark.slow),
        pytest.param(settings_for("best-of-n", n_particles=2, mh_steps=60), marks=pytest.mark.slow),
        settings_for("gibbs", n_particles=4, sweeps=30),
        settings_for("gibbs", n_particles=2, pool_size=3, sweeps=30),
    ],
)
def test_the_state_of_a_long_chain_follows_the_target(on_finite_model, model, settings):
    p = target(model)
    states, found = drawn_states(on_finite_model, model, settings, 1)
    assert z_scores(states, p).max() < 4.5
    if settings.chain:
        assert {len(d.accepted) for d in found} == {settings.mh_steps}
        # Consecutive states differ by whole runs: some proposals are taken, some are not.
        rate = np.mean([np.mean(d.accepted) for d in found])
        assert 0.2 < rate < 0.99


def test_one_run_of_few_particles_does_not(on_finite_model, model):
    """What the tests above would say of a sampler that is off."""
    states, _ = drawn_states(on_finite_model, model, SamplerSettings(1, 2), 2)
    assert z_scores(states, target(model)).max() > 6


def test_runs_within_a_budget_are_one_sampler_of_many_islands(on_finite_model, model):
    """40 runs of 4 particles: Z unbiased; the draw within MAD(H) / 2NR of the target, far closer than one run's."""
    settings = settings_for("smc", n_particles=4, resampling="multinomial", ess_threshold=1, max_tokens=480)
    source, n = on_finite_model(model), 1500
    found = draw_batch(source, ["p"] * n, settings, np.random.default_rng(3))
    assert {d.spent.runs for d in found} == {40}
    z_hat = np.exp([d.log_z for d in found]) / np.exp(solve(model).log_z)
    assert abs(z_hat.mean() - 1) < 4.5 * z_hat.std(ddof=1) / np.sqrt(n)
    p, states = target(model), np.asarray([int(d.steps[d.draw][0]) for d in found])
    bias = solve(model).influence_mad().value / (2 * 4 * 40)
    assert z_scores(states, p, bias).max() < 4.5
    one = smc(model.particles(n * 40), 4, 1, "multinomial", 1, np.random.default_rng(4))
    picked = one.particles.state[np.arange(n * 40), one.draw(np.random.default_rng(5))]
    assert z_scores(picked, p, bias).max() > 6


def frequencies(records, prompt):
    """Draws of ``prompt``: counts of its solutions, and how many there are."""
    counts: dict[str, int] = {}
    texts = ["".join(r["samples"][r["draw"]]["steps"]) for r in records if r["prompt"] == prompt]
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    return counts, len(texts)


@pytest.mark.slow
def test_the_batch_does_not_change_a_prompts_law(policy, value, prompts, task):
    """2,000 draws of a prompt among replicates of itself and as many among other prompts: every solution within 4.5 SE."""
    prompt, n = prompts[1], 2000
    settings = SamplerSettings(4, 2)
    alone = list(sample_prompts(policy, value, [prompt] * n, settings, np.random.default_rng(1)))
    # Another place and other neighbours every time, longer and shorter steps among them.
    rng = np.random.default_rng(2)
    mixed = [p for _ in range(n) for p in rng.permutation([prompt, *rng.choice(prompts[2:], 2)]).tolist()]
    among = list(sample_prompts(policy, value, mixed, settings, np.random.default_rng(3)))
    (one, n_one), (two, n_two) = frequencies(alone, prompt), frequencies(among, prompt)
    assert n_one == n_two == n
    tested = 0
    for text in set(one) | set(two):
        total = one.get(text, 0) + two.get(text, 0)
        p = total / (2 * n)
        if total >= 20:
            tested += 1
            assert abs(one.get(text, 0) - two.get(text, 0)) < 4.5 * np.sqrt(2 * n * p * (1 - p)), text
    assert tested > 5
    z = [[np.exp(r["log_z"]) for r in records if r["prompt"] == prompt] for records in (alone, among)]
    spread = np.sqrt(sum(np.var(x, ddof=1) / n for x in z))
    assert abs(np.mean(z[0]) - np.mean(z[1])) < 4.5 * spread


def test_the_batch_does_not_change_a_texts_value(policy, value, prompts, task):
    """The same solutions scored alone, and in the batch of other prompts in which they were drawn: within 1e-5."""
    particles = LMParticles.start(policy, value, prompts)
    for seed in range(task.horizon):
        particles = particles.extend(3 if seed < 2 else 1, np.random.default_rng(seed))
    texts, found = particles.steps(), particles.log_value()
    trees = [value.steps.encode(p, s) for p, group in zip(prompts, texts, strict=True) for s in group]
    alone = np.asarray([value.score([tree])[0].log_value[-1] for tree in trees])
    together = np.asarray([v.log_value[-1] for v in value.score(trees)])
    assert np.ptp(alone) > 0.01  # a thousand times the tolerance
    np.testing.assert_allclose(found.ravel(), alone, atol=1e-5)
    np.testing.assert_allclose(together, alone, atol=1e-5)
