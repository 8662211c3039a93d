import itertools

import numpy as np
import pytest

from rmtools.core import FiniteModel, FiniteParticles, Tilt, product, random_tree, smc, solve
from rmtools.errors import UserError
from rmtools.particles.particle_gibbs import log_z_bounds, particle_gibbs

GROUPS = 20_000


def two_steps():
    policy = [[[0.3, 0.7]], [[0.6, 0.4], [0.2, 0.8]]]
    return FiniteModel(policy, [np.log([1.5]), np.log([1.0, 3.0]), np.log([2.0, 0.5, 0.3, 4.0])])


def path_to(model, leaf, groups):
    horizon = model.horizon
    return [
        FiniteParticles(model, t, np.full((groups, 1), leaf >> (horizon - t))) for t in range(horizon + 1)
    ]


def frequencies(particles, n):
    return np.bincount(particles.state[:, 0], minlength=n) / len(particles.state)


def assert_law(seen, law, n):
    assert (np.abs(seen - law) <= 4.5 * np.sqrt(law * (1 - law) / n) + 1e-12).all()


def exact_kernel(model, leaf):
    """Law of the next leaf for N = 2, M = 1 on a two-step binary tree, by listing every random choice."""
    value = [np.exp(v) for v in model.log_value]
    reference, law = leaf >> 1, np.zeros(4)
    for b1, slot, b2 in itertools.product(range(2), range(2), range(2)):
        w = np.array([value[1][reference], value[1][b1]])
        p = model.policy[0][0, b1] * w[slot] / w.sum()  # slot 1 continues slot 0 or itself, slot 0 is pinned
        parent = (reference, b1)[slot]
        child = 2 * parent + b2
        p *= model.policy[1][parent, b2]
        u = np.array([value[2][leaf] / value[1][reference], value[2][child] / value[1][parent]])
        law[leaf] += p * u[0] / u.sum()
        law[child] += p * u[1] / u.sum()
    return law


@pytest.mark.parametrize("leaf", range(4))
def test_one_sweep_has_the_exact_kernel(leaf):
    model = two_steps()
    law = exact_kernel(model, leaf)
    result = particle_gibbs(
        model.particles(GROUPS), 2, 1, rng=np.random.default_rng(leaf), reference=path_to(model, leaf, GROUPS)
    )
    assert_law(frequencies(result.draws[0], 4), law, GROUPS)
    assert result.kept.mean() <= frequencies(result.draws[0], 4)[leaf]


def test_the_exact_kernel_leaves_the_target_invariant():
    model = two_steps()
    target = solve(model).target
    kernel = np.array([exact_kernel(model, leaf) for leaf in range(4)])
    np.testing.assert_allclose(kernel.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(target @ kernel, target, rtol=1e-12)


def test_the_reference_is_kept_as_often_as_it_should_be():
    # one step, four equal particles: the reference is one of four
    model = FiniteModel([[np.full(50, 0.02)]], [[0.0], np.zeros(50)])
    reference = [model.particles(GROUPS), FiniteParticles(model, 1, np.full((GROUPS, 1), 7))]
    result = particle_gibbs(model.particles(GROUPS), 4, 1, rng=np.random.default_rng(0), reference=reference)
    assert abs(result.kept.mean() - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / GROUPS)
    assert (result.draws[0].state[result.kept[0], 0] == 7).all()
    # with a pool of 3 of its own candidates, slot 0 still continues the reference
    pooled = particle_gibbs(
        model.particles(GROUPS), 4, 1, 3, rng=np.random.default_rng(1), reference=reference
    )
    assert abs(pooled.kept.mean() - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / GROUPS)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (5, 1), (2, 3), (4, 2)])
def test_exact_draws_stay_exact(n, m):
    model = random_tree(3, 2, 0.6, Tilt(0.05), np.random.default_rng(n))
    path = model.draw_target(GROUPS, np.random.default_rng(1))
    result = particle_gibbs(path[0], n, 2, m, rng=np.random.default_rng(2), reference=path)
    for draw in result.draws:
        assert_law(frequencies(draw, 8), solve(model).target, GROUPS)
    for t in range(3):
        assert (result.path[t + 1].state // 2 == result.path[t].state).all()
    moved = ~result.kept[0]
    assert 0.05 < moved.mean() < 1
    # an exact draw as reference makes 1 / Zhat unbiased for 1 / Z
    ratio = np.exp(solve(model).log_z - result.log_z[0])
    assert abs(ratio.mean() - 1) <= 4.5 * ratio.std() / np.sqrt(GROUPS)


def test_chains_forget_a_bad_start():
    model = random_tree(3, 2, 0.6, Tilt(0.05), np.random.default_rng(3))
    worst = int(np.argmin(solve(model).target))
    result = particle_gibbs(
        model.particles(GROUPS), 6, 12, rng=np.random.default_rng(4), reference=path_to(model, worst, GROUPS)
    )
    assert_law(frequencies(result.draws[-1], 8), solve(model).target, GROUPS)
    fresh = particle_gibbs(model.particles(GROUPS), 6, 12, rng=np.random.default_rng(5))
    assert_law(frequencies(fresh.draws[-1], 8), solve(model).target, GROUPS)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (8, 1), (8, 2)])
def test_log_z_is_bracketed(n, m):
    model = product(5, 4.0)
    path = model.draw_target(GROUPS, np.random.default_rng(6))
    bounds = log_z_bounds(path, n, m, np.random.default_rng(7))
    (low, low_error), (high, high_error) = bounds.means()
    log_z = solve(model).log_z
    assert low - 4.5 * low_error < log_z < high + 4.5 * high_error
    assert high - low > 4.5 * (low_error + high_error)
    ratio = np.exp(log_z - bounds.upper)
    assert abs(ratio.mean() - 1) <= 4.5 * ratio.std() / np.sqrt(GROUPS)
    ratio = np.exp(bounds.lower - log_z)
    assert abs(ratio.mean() - 1) <= 4.5 * ratio.std() / np.sqrt(GROUPS)


def test_bounds_close_with_more_particles():
    model = random_tree(4, 2, 0.4, Tilt(0.05), np.random.default_rng(8))
    gaps = []
    for n in (4, 16, 64):
        rng = np.random.default_rng(n)
        bounds = log_z_bounds(model.draw_target(GROUPS, rng), n, 1, rng)
        (low, low_error), (high, high_error) = bounds.means()
        gaps.append(high - low)
    # each side is off by sigma2 / 2N to first order
    assert abs(gaps[2] - solve(model).sigma2 / 64) <= 4.5 * np.hypot(low_error, high_error)
    assert gaps[0] > gaps[1] > gaps[2]


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"resampling": "systematic"}, "independent draws"),
        ({"resampling": "top_k"}, "multinomial"),
        ({"n_particles": 1}, "at least 2"),
        ({"sweeps": 0}, "sweeps"),
        ({"rng": None}, "rng"),
        ({"pool_size": 0}, "pool_size"),
    ],
)
def test_refusals(settings, fact):
    settings = {"n_particles": 4, "sweeps": 2, "rng": np.random.default_rng(0), **settings}
    with pytest.raises(UserError, match=fact):
        particle_gibbs(product(3, 2.0).particles(2), **settings)


def test_bad_references():
    model = FiniteModel([[[0.5, 0.5]]], [[0.0], [0.0, -np.inf]])
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="must have ended"):
        particle_gibbs(model.particles(1), 2, 1, rng=rng, reference=[model.particles(1)])
    dead = [model.particles(1), FiniteParticles(model, 1, np.array([[1]]))]
    with pytest.raises(UserError, match="value zero"):
        log_z_bounds(dead, 2, rng=rng)
    none = FiniteModel([[[0.5, 0.5]]], [[0.0], [-np.inf, -np.inf]])
    with pytest.raises(UserError, match="first run"):
        particle_gibbs(none.particles(1), 2, 1, rng=rng)
    assert smc(none.particles(1), 2, rng=rng).log_z == -np.inf
