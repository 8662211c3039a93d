"""Paired differences against exact models: right on average, covering, and narrower than apart."""

import copy

import numpy as np
import pytest
from test_estimate_statistics import Z_MAX, Population, value_squares, z_score

from rmtools.stats.bellman_error import bellman_estimator
from rmtools.stats.paired import ModelEstimates, paired_estimator
from rmtools.stats.prefix_errors import prefix_errors
from rmtools.stats.sigma2 import sigma2_estimator, sigma2_parts

K = 8


def other_model(population, rng):
    """The same trees under a second model: noisier values inside, the potentials as they are."""
    other = copy.copy(population)
    other.log_value = [v + 0.1 * rng.normal(size=v.shape) for v in population.log_value[:-1]]
    other.log_value.append(population.log_value[-1])
    other.rho = [
        (p * np.exp(other.children(t, other.log_value[t + 1]) - other.log_value[t][..., None])).sum(-1)
        for t, p in enumerate(other.policy)
    ]
    other._solve()
    return other


def estimates(population, draws):
    """What one model says on drawn states: prefixes and children, predictions, costs."""
    prompt, path, kids, extra, phi = draws
    values = [v[prompt, s] for v, s in zip(population.log_value, path, strict=True)]
    log_value = np.stack(values, axis=-1)
    child = [population.log_value[t + 1][prompt[..., None], at].reshape(-1, K) for t, at in enumerate(kids)]
    errors = prefix_errors(np.concatenate([v.ravel() for v in values[:-1]]), np.concatenate(child))
    square = value_squares(extra, phi)
    cost = [sigma2_parts(*row) for row in zip(log_value, square, phi, strict=True)]
    return ModelEstimates(errors, predicted(values[1].ravel()), cost)


def predicted(log_value):
    return np.exp(log_value).clip(0, 1)


def draw(population, prompts, n, r, rng):
    """States of an audit, for any model of the same trees."""
    prompt = np.repeat(prompts[:, None], n, axis=1)
    path = [np.zeros_like(prompt)]
    for t in range(population.horizon):
        path.append(population.step(t, prompt, path[t], rng))
    kids, extra = [], []
    for t in range(population.horizon):
        many = [np.repeat(path[t][..., None], m, axis=-1) for m in (K - 1, r - 1)]
        further = population.step(t, prompt[..., None], many[0], rng)
        kids.append(np.concatenate([path[t + 1][..., None], further], axis=-1))
        extra.append(population.complete(t, prompt[..., None], many[1], rng))
    phi = population.true[-1][prompt, path[-1]]
    return prompt, path, kids, np.stack(extra, axis=2), phi


def truths(population):
    """Exact figures, and the mean of p^2 - 2 p V* at depth 1: the part of the Brier score that is the model's."""
    signed = [
        (w * np.log(rho)).sum(1).mean() for w, rho in zip(population.reach, population.rho, strict=False)
    ]
    p = predicted(population.log_value[1])
    exact = population.truth()
    return {
        "squared_ratio_error": exact["squared"],
        "signed_mean": np.mean(signed),
        "brier": (population.reach[1] * (p**2 - 2 * p * population.true[1])).sum(1).mean(),
        "sigma2": exact["sigma2"],
    }


@pytest.mark.slow
def test_differences_are_right_on_average_and_cover_and_pairing_pays():
    one = Population(300, 3, np.random.default_rng(80))
    two = other_model(one, np.random.default_rng(81))
    exact = {name: value - truths(two)[name] for name, value in truths(one).items()}
    rng, size, n = np.random.default_rng(82), 60, 6
    prompt = np.repeat(np.arange(size), n)
    label, found, narrower = np.tile(prompt, one.horizon), [], []
    for replicate in range(200):
        draws = draw(one, rng.integers(300, size=size), n, 3, rng)
        a, b = (estimates(model, draws) for model in (one, two))
        phi = draws[-1].ravel()
        found.append(paired_estimator(a, b, label, phi, prompt).bootstrap(rng, 300))
        if replicate < 20:
            narrower.append(shares(found[-1], (a, b), label, rng))
    for name, truth in exact.items():
        covered = np.mean([getattr(f, name).contains(truth) for f in found])
        assert 0.9 <= covered <= 0.99, (name, covered)
    for name in ("squared_ratio_error", "brier"):  # unbiased, whatever the number of children
        assert abs(z_score([getattr(f, name).estimate for f in found], exact[name])) < Z_MAX
    assert np.all(np.median(narrower, axis=0) < 0.7)


def shares(paired, models, label, rng):
    """Half widths of the paired intervals over those of two intervals that know nothing of each other."""
    apart = []
    for m in models:
        summary = bellman_estimator(m.errors, label, label * 0, 3).bootstrap(rng, 300)
        cost = sigma2_estimator(m.cost).bootstrap(rng, 300).estimate
        apart.append([x.half_width for x in (summary.ratio_error.mean_square, summary.signed_mean, cost)])
    together = [x.half_width for x in (paired.squared_ratio_error, paired.signed_mean, paired.sigma2)]
    return np.array(together) / np.hypot(*apart)
