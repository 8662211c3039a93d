"""The bracket of the cost of a perfect value against exact models: ends that hold, and are close."""

import numpy as np
import pytest
from test_estimate_statistics import BRANCHES, Z_MAX, Population, all_parts, z_score

from rmtools.core import solve
from rmtools.exact.families import random_tree
from rmtools.particles.tilt import Tilt
from rmtools.stats.perfect_value import cost_ratio, perfect_parts, perfect_sigma2


def truth(population):
    """Pooled sigma^2 of V = V*, by enumeration."""
    total, weight = 0.0, population.z**2
    for t in range(population.horizon):
        after = population.children(t, population.true[t + 1])
        second = (population.policy[t] * after**2).sum(-1)
        total += population.z * (population.reach[t] * second / population.true[t]).sum(1)
    return float((total - population.horizon * weight).sum() / weight.sum())


def brackets(population, n_prompts, n, r, replicates, rng):
    """Brackets and ratios over replicates of an audit, as lists."""
    found = []
    for _ in range(replicates):
        prompts = rng.integers(population.size, size=n_prompts)
        _, log_value, _, extra, phi = population.audit(prompts, n, 2, r, rng)
        parts = [perfect_parts(*row) for row in zip(log_value, phi, extra, strict=True)]
        ratio = cost_ratio(all_parts(log_value, extra, phi), parts, rng, 200)
        found.append((perfect_sigma2(parts, rng, 200), ratio))
    return found


def test_parts_are_unbiased_at_every_depth_of_a_tree():
    tree = Population(1, 4, np.random.default_rng(20), eps=0.5)
    _, log_value, _, extra, phi = tree.audit(np.zeros(3000, int), 4, 2, 5, np.random.default_rng(21))
    parts = [perfect_parts(*row) for row in zip(log_value, phi, extra, strict=True)]
    assert abs(z_score([p.known for p in parts], (tree.policy[0][0, 0] * tree.true[1][0] ** 2).sum())) < Z_MAX
    for t in range(1, tree.horizon):
        after = tree.true[t + 1].reshape(-1, BRANCHES)
        second = tree.reach[t][0] * (tree.policy[t][0] * after**2).sum(-1)
        true, value = tree.true[t][0], np.exp(tree.log_value[t][0])
        for k in range(4):
            exact = tree.z[0] * (second * true**k / value ** (k + 1)).sum()
            assert abs(z_score([p.moments[k, :, t - 1].sum() for p in parts], exact)) < Z_MAX
        # One over a mean is too large on average, never too small; alone or times what is not negative.
        exact = tree.z[0] * (second / true).sum()
        assert z_score([p.inverse[:, t - 1].sum() for p in parts], exact) > -Z_MAX
        exact = tree.z[0] * (second * (1 - true / value) ** 2 / true).sum()
        rest = [p.remainder[:, :, t - 1].sum(axis=1) @ [1, -2, 1] for p in parts]
        assert z_score(rest, exact) > -Z_MAX


@pytest.mark.parametrize(("eps", "r"), [(0.3, 2), (0.3, 6), (0.8, 4)])
def test_ends_hold_and_are_close_where_completions_are_three_or_more(eps, r):
    population = Population(300, 4, np.random.default_rng(80), eps=eps)
    exact = truth(population)
    found = brackets(population, 60, 6, r, 80, np.random.default_rng(81 + r))
    lower, upper = ([getattr(b, name).estimate for b, _ in found] for name in ("lower", "upper"))
    assert z_score(lower, exact) < Z_MAX
    assert z_score(upper, exact) > -Z_MAX
    assert np.mean([b.lower.low <= exact for b, _ in found]) >= 0.9
    assert np.mean([b.upper.high >= exact for b, _ in found]) >= 0.9
    ratio = population.truth()["sigma2"] / exact
    assert np.mean([c.at_least.low is None or c.at_least.low <= ratio for _, c in found]) >= 0.9
    assert np.mean([c.at_most.high is None or c.at_most.high >= ratio for _, c in found]) >= 0.9
    if r > 4:
        assert np.mean(lower) > 0.75 * exact
        assert np.mean(upper) < 1.25 * exact
    if r == 2:  # one extra completion: far apart, and said so
        assert np.mean(lower) < 0.7 * exact
        assert np.mean(upper) > 2 * exact


def test_a_perfect_value_has_its_own_cost_at_both_ends():
    population = Population(300, 4, np.random.default_rng(80))
    population.log_value = [np.log(v) for v in population.true]
    exact = truth(population)
    found = brackets(population, 100, 6, 6, 80, np.random.default_rng(82))
    for name in ("lower", "upper"):
        assert abs(z_score([getattr(b, name).estimate for b, _ in found], exact)) < Z_MAX
    assert np.mean([c.at_least.low is None or c.at_least.low <= 1 for _, c in found]) >= 0.9
    assert np.mean([c.at_most.high is None or c.at_most.high >= 1 for _, c in found]) >= 0.9


def test_bracket_agrees_with_the_finite_model():
    model = random_tree(4, 3, 0.3, Tilt(0.1), np.random.default_rng(50))
    exact, rng, shape = solve(model), np.random.default_rng(51), (60, 100)
    layers = [model.particles(1)]
    for t in range(model.horizon):
        layers.append(layers[-1].extend(shape[0] * shape[1] if t == 0 else 1, rng))
    log_value = np.stack([np.broadcast_to(p.log_value()[0], 6000) for p in layers], axis=1)
    phi = np.exp(layers[-1].log_value()[0])
    extra = np.ones((6000, model.horizon, 5))
    for t in range(1, model.horizon):
        for r in range(extra.shape[2]):
            again = layers[t]
            for _ in range(t, model.horizon):
                again = again.extend(1, rng)
            extra[:, t, r] = np.exp(again.log_value()[0])
    rows = [a.reshape(*shape, *a.shape[1:]) for a in (log_value, phi, extra)]
    found = perfect_sigma2([perfect_parts(*row) for row in zip(*rows, strict=True)], rng)
    assert found.lower.contains(exact.sigma2_true_value)
    assert found.upper.contains(exact.sigma2_true_value)
    assert found.lower.half_width < 0.2 * exact.sigma2_true_value
    assert found.lower.estimate < found.upper.estimate < exact.sigma2
