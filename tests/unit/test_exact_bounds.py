import math

import numpy as np
import pytest

from rmtools.core import FiniteModel, Tilt, implicit, persistent, perturb, product, random_tree, solve
from rmtools.errors import UserError
from rmtools.exact.bounds import (
    mh_steps_bound,
    mh_time_bound,
    no_reward_lower_bound,
    particle_bound,
    particles_for_cv,
    particles_for_tv,
    persistent_sigma2,
    pool_deviation,
    pool_size_bound,
    reward_lower_bound,
    sp_tv_bound,
)
from rmtools.exact.solution import guided_tv


def test_bounds_by_hand():
    assert particle_bound(2, 1, 0.5, 0.25) == pytest.approx(128, rel=1e-12)
    assert particle_bound(1, 3, 1.0, 0.5) == pytest.approx(3 * 2**12, rel=1e-12)
    assert sp_tv_bound(4, 0.05) == pytest.approx(0.4)
    assert [sp_tv_bound(0, 0.3), sp_tv_bound(10, 0.3)] == [0.0, 1.0]
    assert no_reward_lower_bound(8, 6) == pytest.approx(8**4)
    assert reward_lower_bound(1.0, 9) == pytest.approx(2**6)
    assert pool_size_bound(3, 1, 0.0, 0, 0.5, deviation=0.5) == pytest.approx(36 * math.log(4))
    # kappa = (3/2)^4 (1.5/.5)^2
    assert mh_steps_bound(2, 0.5, math.exp(-1), deviation=0.5) == pytest.approx(81 / 16 * 9)
    assert particles_for_tv(0.3, 0.05) == pytest.approx(3.0)
    assert particles_for_cv(2.0, 0.1) == pytest.approx(200.0)


def test_the_default_deviation_gives_the_paper_s_pool():
    for horizon in (1, 4, 32):
        expected = 8 * 4 * 1.1 * horizon**2 * math.log(2 * 11 * horizon / 0.05)
        assert pool_size_bound(4, horizon, 0.1, 10, 0.05) == pytest.approx(expected)
        assert 0 < pool_deviation(horizon) < 1


def test_time_is_pool_times_proposals_times_steps():
    steps = math.ceil(mh_steps_bound(4, 0.05, 0.1))
    pool = math.ceil(pool_size_bound(2, 4, 0.05, steps, 0.1))
    assert mh_time_bound(2, 4, 0.05, 0.1, 0.1) == 4 * pool * (steps + 1)
    # cubic up to logarithms for epsilon = c / T
    times = [mh_time_bound(2, t, 1 / t, 0.1, 0.1) / t**3 for t in (64, 256, 1024)]
    assert times[2] < 1.5 * times[0]


def test_linear_for_small_errors_and_exponential_for_constant_ones():
    assert particle_bound(2, 400, 1 / 400, 0.1) / particle_bound(2, 200, 1 / 200, 0.1) < 2.05
    assert particle_bound(2, 10_000, 0.5, 0.1) == math.inf
    assert mh_steps_bound(10_000, 0.5, 0.1) == mh_time_bound(2, 10_000, 0.5, 0.1, 0.1) == math.inf


def test_persistent_in_closed_form():
    for horizon, eps in ((2, 0.3), (7, 0.3), (64, 0.05)):
        assert persistent_sigma2(horizon, eps) == pytest.approx(
            solve(persistent(horizon, eps)).sigma2, rel=1e-10
        )
    big = 0.25 / math.tanh(math.log(1.2)) * 1.2**128
    assert persistent_sigma2(128, 0.2) == pytest.approx(big, rel=1e-6)
    assert persistent_sigma2(100, 0.01) <= 100 * math.sinh(0.5) ** 2
    assert persistent_sigma2(10_000, 0.5) == math.inf


def test_guided_particle_by_hand():
    # guided: 1/4 and 3/4 at depth 1, as the values there ask, then 2/3 | 1/3 and 5/9 | 4/9
    model = FiniteModel(
        [[[0.5, 0.5]], [[0.5, 0.5], [0.2, 0.8]]], [[0.0], np.log([1.0, 3.0]), np.log([2.0, 1.0, 5.0, 1.0])]
    )
    target = np.array([0.5, 0.25, 0.5, 0.4]) / 1.65
    guided = np.array([0.25 * 2 / 3, 0.25 / 3, 0.75 * 5 / 9, 0.75 * 4 / 9])
    np.testing.assert_allclose(guided_tv(model), [0, 0, 0.5 * np.abs(target - guided).sum()], atol=1e-12)


def test_the_single_particle_bound_holds():
    rng = np.random.default_rng(0)
    for k in range(100):
        model = random_tree(int(rng.integers(1, 6)), 2, rng.uniform(0, 0.4), Tilt(0.02), rng)
        model = perturb(model, rng.uniform(0, 0.4), ["random_signs", "terminal"][k % 2], rng)
        eps = solve(model).bellman_error
        bounds = [sp_tv_bound(t, eps) for t in range(model.horizon + 1)]
        assert (guided_tv(model) <= np.array(bounds) + 1e-12).all()


def drift(horizon, eps):
    """Two classes drawn at the first step; the value then moves by 1 + eps a step, always the same way."""
    sign = np.log1p(eps) * np.array([-1.0, 1.0])
    return FiniteModel(
        [[[0.5, 0.5]], *[np.ones((2, 1))] * (horizon - 1)],
        [np.zeros(1), *(sign * t for t in range(horizon))],
    )


def test_the_final_target_s_prefix_law_is_further_than_the_bound():
    model = drift(10, 0.1)
    exact = solve(model)
    assert exact.bellman_error == pytest.approx(0.1)
    guided = np.array([0.5, 0.5])
    final = model.reach(1) * np.exp(exact.true_log_value[1] - exact.log_z)
    assert np.abs(guided - final).sum() / 2 == pytest.approx(0.3476, abs=1e-4)
    assert sp_tv_bound(1, 0.1) == pytest.approx(0.2)
    sharper = [math.tanh(t * math.log(1.1) / 2) for t in range(11)]
    assert (guided_tv(model) <= np.array(sharper) + 1e-12).all()
    assert guided_tv(model)[-1] == pytest.approx(0.3476, abs=1e-4)


def test_the_single_particle_bound_is_not_tight():
    # product: epsilon > 1 / (2 T), yet one guided particle is exact
    ones = [np.array([bin(s).count("1") for s in range(2**t)]) for t in range(6)]
    tree = FiniteModel([np.full((2**t, 2), 0.5) for t in range(5)], [n * np.log(3.0) for n in ones])
    assert sp_tv_bound(5, solve(tree).bellman_error) == 1.0
    np.testing.assert_allclose(guided_tv(tree), 0, atol=1e-12)
    np.testing.assert_allclose(guided_tv(implicit(4, 3, np.random.default_rng(0))), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "fact"),
    [
        (lambda: particle_bound(0.9, 4, 0.1, 0.1), "ratio_bound"),
        (lambda: particle_bound(2, 0, 0.1, 0.1), "horizon"),
        (lambda: particle_bound(2, 4, -0.1, 0.1), "bellman_error"),
        (lambda: particle_bound(2, 4, math.nan, 0.1), "bellman_error"),
        (lambda: particle_bound(2, 4, 0.1, 1.0), "tolerance"),
        (lambda: sp_tv_bound(-1, 0.1), "depth"),
        (lambda: pool_size_bound(2, 4, 0.1, -1, 0.1), "mh_steps"),
        (lambda: pool_size_bound(2, 4, 0.1, 3, 0.1, deviation=1.0), "deviation"),
        (lambda: mh_steps_bound(4, 0.1, 0.0), "tolerance"),
        (lambda: particles_for_tv(-1.0, 0.1), "influence_mad"),
        (lambda: particles_for_cv(1.0, 0.0), "relative error"),
        (lambda: persistent_sigma2(1, 0.1), "at least 2"),
        (lambda: guided_tv(product(3, 2.0)), "needs a tree"),
    ],
)
def test_conditions_are_checked(call, fact):
    with pytest.raises(UserError, match=fact):
        call()
