"""The sampler on exact models: seeds fixed beforehand, asymmetric models, 4.5 standard errors, Z itself."""

from dataclasses import dataclass

import numpy as np
import pytest

from rmtools.core import (
    FiniteModel,
    Tilt,
    hidden_prefix,
    implicit,
    needle,
    persistent,
    perturb,
    product,
    random_tree,
    smc,
    solve,
)

SCHEMES = ["multinomial", "systematic", "stratified", "residual", "none"]
PAPER = {"resampling": "multinomial", "ess_threshold": 1}


def rng(seed):
    return np.random.default_rng(seed)


def models():
    return {
        "product": product(5, 3.0),
        "tree": random_tree(3, 3, 0.3, Tilt(0.05), rng(0)),
        "needle": needle(3, 2),
        "hidden_prefix": hidden_prefix(1, 3),
        "persistent": persistent(6, 0.3),
        "implicit": implicit(3, 2, rng(1)),
        "zeros": FiniteModel(
            [[[0.2, 0.5, 0.3]], rng(2).dirichlet(np.ones(2), 3)],
            [[0.0], [0.3, -0.2, 0.1], [0.0, -np.inf, 1.0, -1.0, -np.inf, -np.inf]],
        ),
        "chain": perturb(product(6, 0.4), 0.5, "random_signs", rng(3)),
    }


def assert_mean(sample, expected, axis=0):
    error = sample.std(axis=axis, ddof=1) / np.sqrt(sample.shape[axis])
    assert (np.abs(sample.mean(axis=axis) - expected) <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("n", "m", "threshold"), [(1, 3, 0.5), (12, 1, 0.5), (12, 1, 1), (7, 2, 0.9), (5, 3, 1)]
)
def test_estimate_of_z_is_unbiased(name, scheme, n, m, threshold):
    model = models()[name]
    runs = max(2000, int(400 * (solve(model).sigma2 + 1) / n))
    result = smc(model.particles(runs), n, m, scheme, threshold, rng(0))
    assert_mean(np.exp(result.log_z - solve(model).log_z), 1.0)


@dataclass(frozen=True)
class Stopping:
    """Prefixes that end at random: each step ends with probability .3 and multiplies the value by 2 or .7.

    Groups differ in their horizon. The value before the end is 1: all that is learnt comes at the end.
    """

    limit: np.ndarray  # (G, 1)
    depth: np.ndarray  # (G, n)
    done: np.ndarray
    product: np.ndarray

    @property
    def shape(self):
        return self.depth.shape

    @property
    def ended(self):
        return self.done

    def log_value(self):
        return np.where(self.done, np.log(self.product), 0.1 * self.depth)

    def extend(self, pool_size, rng):
        depth, done, value = (np.repeat(x, pool_size, axis=1) for x in (self.depth, self.done, self.product))
        goes_on = ~done
        depth = depth + goes_on
        value = np.where(goes_on, value * np.where(rng.random(done.shape) < 0.4, 2.0, 0.7), value)
        done = done | (rng.random(done.shape) < 0.3) | (depth >= self.limit)
        return Stopping(self.limit, depth, done, value)

    def select(self, index):
        depth, done, value = (np.take_along_axis(x, index, 1) for x in (self.depth, self.done, self.product))
        return Stopping(self.limit, depth, done, value)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("n", "m", "threshold"), [(1, 3, 0.5), (6, 1, 0.7), (6, 1, 1), (4, 2, 1)])
def test_unbiased_when_prefixes_and_groups_end_at_different_depths(scheme, n, m, threshold):
    limit = np.repeat([2, 5], 4000)[:, None]
    root = Stopping(limit, np.zeros((8000, 1), int), np.zeros((8000, 1), bool), np.ones((8000, 1)))
    result = smc(root, n, m, scheme, threshold, rng(0))
    mean = 0.4 * 2 + 0.6 * 0.7
    for group, horizon in enumerate((2, 5)):
        stop = np.array([0.3 * 0.7 ** (t - 1) for t in range(1, horizon)] + [0.7 ** (horizon - 1)])
        z = float(stop @ mean ** np.arange(1, horizon + 1))
        assert_mean(np.exp(result.log_z[group * 4000 : (group + 1) * 4000]), z)
    frozen = result.resampled[2:, :4000] | (result.log_increments[2:, :4000] != 0).any(axis=2)
    assert not frozen.any()


def weighted_law(result, n_states):
    """Law of one weighted draw in every run, (runs, n_states)."""
    runs = result.log_weights.shape[0]
    cell = result.particles.state + n_states * np.arange(runs)[:, None]
    return np.bincount(cell.ravel(), np.exp(result.log_weights).ravel(), runs * n_states).reshape(
        runs, n_states
    )


@pytest.mark.parametrize("pool_size", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_bias_of_the_output_is_mad_over_2n(pool_size, seed):
    model = random_tree(4, 2, 0.4, Tilt(0.03), rng(seed))
    exact = solve(model)
    h, n = exact.influence_pool(pool_size), 60
    result = smc(model.particles(20_000), n, pool_size, **PAPER, rng=rng(seed + 10))
    # signed by the predicted bias, so that sampling noise does not add up as it would in sum |law - target|
    sign = np.sign(h - exact.target @ h)
    sample = -0.5 * (weighted_law(result, 16) - exact.target) @ sign
    predicted = exact.influence_mad(pool_size).value / (2 * n)
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    assert abs(sample.mean() - predicted) <= 0.15 * predicted + 4.5 * error
    assert sample.mean() > 4.5 * error  # the bias itself is resolved


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual"])
@pytest.mark.parametrize("threshold", [0.5, 1])
def test_other_schemes_have_a_bias_that_vanishes(scheme, threshold):
    model = random_tree(4, 2, 0.4, Tilt(0.03), rng(0))
    exact = solve(model)
    result = smc(model.particles(3000), 500, 1, scheme, threshold, rng(20), islands=1)
    law = weighted_law(result, 16)
    error = law.std(axis=0, ddof=1) / np.sqrt(len(law))
    assert (np.abs(law.mean(axis=0) - exact.target) <= 4.5 * error + exact.n_for_tv(0.5) / 500).all()


@pytest.mark.parametrize(
    ("model", "n", "pool_size"),
    [
        (random_tree(4, 3, 0.3, Tilt(0.05), rng(4)), 200, 1),
        (random_tree(4, 3, 0.3, Tilt(0.05), rng(4)), 200, 3),
        (product(6, 3.0), 200, 1),
        (product(6, 3.0), 100, 2),
        (persistent(8, 0.3), 400, 1),
        (persistent(8, 0.3), 200, 2),
    ],
)
def test_variance_is_sigma2_over_n(model, n, pool_size):
    exact = solve(model)
    result = smc(model.particles(6000), n, pool_size, **PAPER, rng=rng(5), islands=1)
    square = (np.exp(result.log_z - exact.log_z) - 1) ** 2 * n
    predicted = exact.sigma2_pool(pool_size)
    error = square.std(ddof=1) / np.sqrt(len(square))
    assert abs(square.mean() - predicted) <= 4.5 * error + 0.03 * predicted


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("scheme", ["multinomial", "systematic", "residual"])
def test_output_law_of_the_product_family_in_closed_form(n, scheme):
    model = product(5, 3.0)
    result = smc(model.particles(20_000), n, 1, scheme, 1, rng(6))
    assert_mean(weighted_law(result, 6), model.expected_output_law(n))


def test_a_drawn_particle_has_the_weighted_law():
    model = random_tree(3, 2, 0.3, Tilt(0.05), rng(0))
    result = smc(model.particles(20_000), 5, rng=rng(7))
    drawn = np.take_along_axis(result.particles.state, result.draw(rng(8))[:, None], 1)
    assert_mean(np.eye(8)[drawn[:, 0]], weighted_law(result, 8).mean(axis=0))


def test_the_groups_are_independent():
    result = smc(product(5, 3.0).particles(4000), 6, rng=rng(9))
    z = np.exp(result.log_z - 5 * np.log(2.0)) - 1
    neighbours = z[:-1] * z[1:]
    assert abs(neighbours.mean()) <= 4.5 * neighbours.std() / np.sqrt(len(neighbours))
