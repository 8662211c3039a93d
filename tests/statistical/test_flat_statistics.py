"""Errors from flat trajectories against exact models: unbiased for the bins, below the mean square."""

import numpy as np
import pytest
from test_estimate_statistics import Z_MAX, Population, z_score

from rmtools.core import FiniteModel
from rmtools.stats.binned_errors import flat_estimator

TREE = Population(1, 3, np.random.default_rng(20), eps=0.8)


def flat(population, prompts, n, n_bins, rng, n_resamples=200):
    _, log_value, _, _, _ = population.audit(prompts, n, 2, 2, rng)
    label = np.repeat(np.arange(len(prompts)), n)
    rows = list(log_value.reshape(len(label), -1))
    return flat_estimator(rows, label, n_bins=n_bins).bootstrap(rng, n_resamples)


def exact_squares(population):
    """Mean of (rho - 1)^2, and of the squared mean of rho - 1 at each depth, of a single tree."""
    reach = [w[0] for w in population.reach[:-1]]
    error = [rho[0] - 1 for rho in population.rho]
    full = np.mean([(w * e**2).sum() for w, e in zip(reach, error, strict=True)])
    by_depth = np.mean([(w * e).sum() ** 2 for w, e in zip(reach, error, strict=True)])
    return float(full), float(by_depth)


def test_unbiased_for_the_square_of_a_bin_and_below_the_mean_square():
    """One bin a depth, on trajectories of one tree: the exact binned square is known."""
    full, by_depth = exact_squares(TREE)
    rng = np.random.default_rng(21)
    found = [flat(TREE, np.zeros(8, int), 2, 1, rng, 2) for _ in range(1200)]
    squares = [s.squared_ratio_error_at_least.estimate for s in found]
    assert abs(z_score(squares, by_depth)) < Z_MAX
    assert z_score(squares, full) < -Z_MAX
    # The square of the mean itself is too large.
    naive = [np.mean([b.signed_mean.estimate**2 for b in s.bins]) for s in found]
    assert z_score(naive, by_depth) > Z_MAX
    for t in range(TREE.horizon):
        exact = (TREE.reach[t][0] * (TREE.rho[t][0] - 1)).sum()
        assert abs(z_score([s.bins[t].signed_mean.estimate for s in found], exact)) < Z_MAX


@pytest.mark.slow
def test_equal_to_the_mean_square_where_the_error_is_a_function_of_the_bin():
    """With more bins than states, every state of the tree is its own bin."""
    full, _ = exact_squares(TREE)
    rng = np.random.default_rng(22)
    found = [flat(TREE, np.zeros(400, int), 1, 400, rng) for _ in range(300)]
    assert all(len(s.bins) == 7 for s in found)
    assert abs(z_score([s.squared_ratio_error_at_least.estimate for s in found], full)) < Z_MAX
    covered = np.mean([s.squared_ratio_error_at_least.contains(full) for s in found])
    assert 0.9 <= covered <= 0.985


def test_a_consistent_value_shows_nothing():
    model = FiniteModel(
        [np.array([[0.3, 0.7]]), np.array([[0.9, 0.1], [0.2, 0.8]])],
        [np.log([0.61]), np.log([0.28, 0.76]), np.log([0.2, 1.0, 0.2, 0.9])],
    )
    true = model.log_true_value
    rng, rows = np.random.default_rng(23), []
    for _ in range(300):
        first = int(rng.random() > 0.3)
        leaf = 2 * first + int(rng.random() > model.policy[1][first, 0])
        rows.append([true[0][0], true[1][first], true[2][leaf]])
    found = flat_estimator(rows, np.arange(300)).bootstrap(rng)
    values = [found.squared_ratio_error_at_least, found.signed_mean, *(b.signed_mean for b in found.bins)]
    assert all(v.contains(0.0) for v in values)


def test_intervals_cover_the_population():
    """Bins are cut anew in each sample: what they cover is the same bins on very many prompts."""
    population = Population(300, 3, np.random.default_rng(80), eps=0.5)
    rng = np.random.default_rng(24)
    many = flat(population, rng.integers(300, size=50000), 1, 4, rng)
    full = population.truth()["squared"]
    truth, signed = many.squared_ratio_error_at_least.estimate, many.signed_mean.estimate
    assert 0 < truth < full
    found = [flat(population, rng.integers(300, size=80), 3, 4, rng) for _ in range(200)]
    assert np.mean([s.squared_ratio_error_at_least.contains(truth) for s in found]) >= 0.88
    assert np.mean([s.signed_mean.contains(signed) for s in found]) >= 0.88
    assert z_score([s.squared_ratio_error_at_least.estimate for s in found], full) < -Z_MAX
    assert np.mean([s.squared_ratio_error_at_least.low <= full for s in found]) >= 0.97
