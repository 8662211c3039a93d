"""Schedules of resampling on exact models, against hand computation and enumeration in the linear domain."""

import itertools
import math

import numpy as np
import pytest

from rmtools.core import FiniteModel, Tilt, persistent, perturb, product, random_tree, smc, solve
from rmtools.errors import UserError
from rmtools.exact import influence as influence_module
from rmtools.verify.theorems.algorithm2 import enumerate_runs


def close(actual, expected, rtol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-12)


@pytest.fixture
def two_steps():
    # Z = 33/20; V* at depth 1 = (3/2, 9/5); the weights V_1 / V_0 are 1/2 and 3/2
    policy = [[[0.5, 0.5]], [[0.5, 0.5], [0.2, 0.8]]]
    return FiniteModel(policy, [np.log([2.0]), np.log([1.0, 3.0]), np.log([2.0, 1.0, 5.0, 1.0])])


def noisy_tree(seed, horizon=4, branching=3, floor=0.05):
    rng = np.random.default_rng(seed)
    model = random_tree(horizon, branching, 0.0, Tilt(floor), rng)
    inner = [v + rng.normal(0, 1.0, len(v)) for v in model.log_value[:-1]]
    return FiniteModel(model.policy, [*inner, model.log_value[-1]])


def schedules(horizon):
    return [s for k in range(horizon) for s in itertools.combinations(range(1, horizon), k)]


def test_two_steps_by_hand(two_steps):
    exact = solve(two_steps)
    z2 = (33 / 20) ** 2
    second = 0.25 * 4 + 0.25 + 0.1 * 25 + 0.4
    close(exact.sigma2_schedule(()), second / z2 - 1)
    target = np.array([0.5, 0.25, 0.5, 0.4]) * 20 / 33
    h = np.array([2, 1, 5, 1]) * 20 / 33
    mad = target @ np.abs(h - target @ h)
    close(exact.influence_mad(schedule=()).value, mad)
    close(exact.n_for_tv(0.01, schedule=()), mad / 0.02)
    close(exact.n_for_cv(0.1, schedule=()), (second / z2 - 1) / 0.01)
    # ESS / N = 1 / (5/4); 2 w - w^2 / (5/4) is 4/5 or 6/5, of standard deviation 1/5
    late, early = exact.limiting_schedule(0.5), exact.limiting_schedule(0.9)
    assert (late.times, early.times) == ((), (1,))
    close([*late.ess, *early.ess], [0.8, 0.8])
    close([*late.decided_from, *early.decided_from], [(3 * 0.8 * 0.2 / 0.3) ** 2, (3 * 0.8 * 0.2 / 0.1) ** 2])
    assert (late.decided(2), late.decided(3), early.decided(23), early.decided(24)) == (False, True) * 2
    close([late.sigma2, early.sigma2], [second / z2 - 1, exact.sigma2])
    assert "above N = 23.04" in str(early)


@pytest.mark.parametrize("pool_size", [1, 2, 5])
@pytest.mark.parametrize(
    "make", [lambda: noisy_tree(0), lambda: persistent(33, 0.2), lambda: product(16, 3.0)]
)
def test_every_step_is_what_it_was(make, pool_size):
    model = make()
    exact, every = solve(model), range(1, model.horizon)
    close(exact.sigma2_schedule(every, pool_size), exact.sigma2_pool(pool_size))
    assert exact.influence_mad(pool_size, schedule=every) == exact.influence_mad(pool_size)
    limiting = exact.limiting_schedule(1.0, pool_size)
    assert limiting.times == tuple(every)
    assert limiting.decided(1)
    assert exact.limiting_schedule(0.0, pool_size).times == ()
    assert exact.limiting_schedule(0.0, pool_size).decided(1)


def paths(model, depth):
    """Probability, and the states at depths 0 ... depth, of every path of positive probability."""
    found = [(1.0, [0])]
    for t in range(depth):
        found = [
            (p * model.policy[t][s[-1], b], [*s, model.child(t)[s[-1], b]])
            for p, s in found
            for b in range(model.policy[t].shape[1])
            if model.policy[t][s[-1], b] > 0
        ]
    return found


def listed_sigma2(model, times):
    """Sum of Zhat_r E[V*(s_u)^2 / V(s_r)] / Z^2 - 1 over the blocks, from every path."""
    value, true = [np.exp(v) for v in model.log_value], [np.exp(v) for v in model.log_true_value]
    total = 0.0
    for r, u in itertools.pairwise((0, *times, model.horizon)):
        mean_value = sum(p * value[r][s[r]] for p, s in paths(model, u))
        square = sum(p * true[u][s[u]] ** 2 / value[r][s[r]] for p, s in paths(model, u) if true[u][s[u]] > 0)
        total += mean_value * square / true[0][0] ** 2 - 1
    return total


@pytest.mark.parametrize("seed", range(3))
def test_sigma2_by_listing_every_path(seed):
    model = noisy_tree(seed, horizon=4, branching=2 + seed % 2)
    exact = solve(model)
    potential, z = np.exp(model.log_value[-1]), math.exp(exact.log_z)
    close(exact.sigma2_schedule(()), model.reach(model.horizon) @ (potential / z - 1) ** 2)  # best of N
    for times in schedules(model.horizon):
        close(exact.sigma2_schedule(times), listed_sigma2(model, times))


@pytest.mark.parametrize(("horizon", "branching", "pool_size"), [(2, 2, 2), (2, 2, 3), (3, 2, 2), (2, 3, 2)])
def test_importance_sampling_with_pools_by_listing_every_run(horizon, branching, pool_size):
    """One particle is never resampled, so that its variance is sigma2 of the empty schedule, exactly."""
    model = noisy_tree(7, horizon, branching)
    exact = solve(model)
    q, z_hat, leaf = enumerate_runs(model, pool_size)
    square = q * (z_hat / math.exp(exact.log_z)) ** 2
    close(exact.sigma2_schedule((), pool_size), square.sum() - 1)
    h = influence_module.leaf_influence(model, pool_size, ())
    close(exact.target * h, np.bincount(leaf, square, minlength=len(h)))
    # the weights of the run cut one step short are what the ESS is made of
    short = FiniteModel(model.policy[:-1], model.log_value[:-1])
    q, z_hat, _ = enumerate_runs(short, pool_size)
    w = z_hat / math.exp(model.log_value[0][0])
    m = [q @ w**k for k in (1, 2, 3, 4)]
    relative = 2 * w / m[0] - w**2 / m[1]
    sd = math.sqrt(q @ relative**2 - (q @ relative) ** 2)
    limiting = exact.limiting_schedule(1e-9, pool_size)
    ess = m[0] ** 2 / m[1]
    close([limiting.ess[-1], limiting.decided_from[-1]], [ess, (3 * ess * sd / (ess - 1e-9)) ** 2], rtol=1e-9)


def test_a_block_of_pools_is_importance_sampling_from_its_start():
    """The terms of a schedule with pools, each from runs listed below every prefix that its block starts at."""
    model, pool_size, r = noisy_tree(5, 3, 2), 2, 1
    exact = solve(model)
    value, true = [np.exp(v) for v in model.log_value], [np.exp(v) for v in model.log_true_value]
    first = FiniteModel(model.policy[:1], [model.log_value[0], model.log_true_value[1]])
    expected = solve(first).sigma2_schedule((), pool_size)
    for s in range(2):
        leaves = slice(4 * s, 4 * s + 4)
        below = FiniteModel(
            [model.policy[1][s : s + 1], model.policy[2][2 * s : 2 * s + 2]],
            [
                model.log_value[1][s : s + 1],
                model.log_value[2][2 * s : 2 * s + 2],
                model.log_value[3][leaves],
            ],
        )
        q, z_hat, _ = enumerate_runs(below, pool_size)
        expected += (
            model.reach(r)[s] / value[r][s] * (q @ z_hat**2) * (model.reach(r) @ value[r]) / true[0][0] ** 2
        )
    close(exact.sigma2_schedule((r,), pool_size), expected - 1)


@pytest.mark.parametrize("pool_size", [1, 3])
def test_influence_of_a_schedule(monkeypatch, pool_size):
    """E H is sigma2 plus the number of blocks, on trees, atoms and draws; a chain and its tree have one MAD."""
    chain = perturb(product(5, 3.0), 0.5, "random_signs", np.random.default_rng(1))
    ones = [np.array([bin(s).count("1") for s in range(2**t)]) for t in range(6)]
    values = [v[n] for v, n in zip(chain.log_value, ones, strict=True)]
    tree = FiniteModel([np.full((2**t, 2), 0.5) for t in range(5)], values)
    for times in ((), (2,), (1, 4), (3, 4)):
        exact = solve(tree)
        h = influence_module.leaf_influence(tree, pool_size, times)
        expected = exact.sigma2_schedule(times, pool_size) + len(times) + 1
        close(exact.target @ h, expected)
        close(solve(chain).sigma2_schedule(times, pool_size) + len(times) + 1, expected)
        close(influence_module._expected_influence(chain, pool_size, times), expected)
        close(influence_module._expected_influence(tree, pool_size, times), expected)
        mad = solve(chain).influence_mad(pool_size, schedule=times)
        close(mad.value, exact.influence_mad(pool_size, schedule=times).value, rtol=1e-10)
        with monkeypatch.context() as patch:
            patch.setattr(influence_module, "MAX_ATOMS", 1)
            drawn = solve(chain).influence_mad(pool_size, 20_000, seed=3, schedule=times)
        assert drawn.standard_error > 0
        assert abs(drawn.value - mad.value) <= 4.5 * drawn.standard_error


def test_values_of_zero():
    """What the value drops costs nothing where the true value is zero too, and everything elsewhere."""
    policy = [np.full((1, 2), 0.5), np.full((2, 2), 0.5), np.full((4, 2), 0.5)]
    with np.errstate(divide="ignore"):
        inner = [np.zeros(1), np.log([0.0, 1.0]), np.log([0.0, 0.0, 2.0, 1.0])]
        dead = FiniteModel(policy, [*inner, np.log([0.0, 0, 0, 0, 1, 2, 3, 4])])
        lost = FiniteModel(policy, [*inner, np.log([0.0, 0, 0, 5, 1, 2, 3, 4])])
        nothing = FiniteModel(policy, [*inner, np.full(8, -np.inf)])
    for times in schedules(3):
        close(solve(dead).sigma2_schedule(times), listed_sigma2(dead, times))
        for pool_size in (1, 2):
            assert np.isfinite(solve(dead).sigma2_schedule(times, pool_size))
            assert np.isfinite(solve(dead).influence_mad(pool_size, schedule=times).value)
            assert solve(lost).sigma2_schedule(times, pool_size) == math.inf
            assert solve(lost).influence_mad(pool_size, schedule=times).value == math.inf
            assert solve(nothing).sigma2_schedule(times, pool_size) == math.inf
    # two candidates of value 0 or 1: their mean is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4
    close(solve(dead).limiting_schedule(0.5, 2).ess[0], (1 / 2) ** 2 / (3 / 8))
    assert solve(lost).limiting_schedule(0.7).sigma2 == math.inf
    assert solve(nothing).limiting_schedule(0.7, 2).sigma2 == math.inf


def test_what_has_ended_costs_nothing_more():
    """A model whose prefixes end after three steps and wait two more has the variance of the one without waiting."""
    model = noisy_tree(2, horizon=3)
    waiting = FiniteModel(
        [*model.policy, *(np.ones((27, 1)) for _ in range(2))], [*model.log_value, *[model.log_value[-1]] * 2]
    )
    for pool_size in (1, 2):
        for times in schedules(3):
            expected = solve(model).sigma2_schedule(times, pool_size)
            for later in ((), (3,), (4,), (3, 4)):
                close(solve(waiting).sigma2_schedule((*times, *later), pool_size), expected)


def test_a_large_sampler_keeps_the_limiting_schedule():
    model = product(12, 4.0)
    limiting = solve(model).limiting_schedule(0.5)
    assert limiting.times == (3, 6, 9)
    assert limiting.decided(2000)
    found = smc(model.particles(300), 2000, 1, "multinomial", 0.5, np.random.default_rng(0), islands=1)
    resampled = np.isin(np.arange(1, 13), limiting.times)
    assert (found.resampled == resampled[:, None]).mean() > 0.998
    np.testing.assert_allclose(found.ess[:-1].mean(axis=1) / 2000, limiting.ess, rtol=0.01)
    # up to the first resampling the particles are independent, and decided_from tells the spread of ESS / N
    sd = np.sqrt(np.array(limiting.decided_from[:3]) / 2000) * np.abs(np.array(limiting.ess[:3]) - 0.5) / 3
    np.testing.assert_allclose(found.ess[:3].std(axis=1) / 2000, sd, rtol=0.2)


@pytest.mark.parametrize("schedule", [(0,), (4,), (2, 2), (3, 1), (1.5,), (True,), 2, "12", None])
def test_times_that_make_no_schedule(schedule):
    exact = solve(noisy_tree(0))
    with pytest.raises(UserError, match="`schedule` must be increasing steps from 1 to 3"):
        exact.sigma2_schedule(schedule)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, 16, math.nan, "0.5", True])
def test_thresholds_out_of_range(threshold):
    with pytest.raises(UserError, match="`ess_threshold` must be in"):
        solve(noisy_tree(0)).limiting_schedule(threshold)


def test_one_step_has_nothing_to_decide():
    exact = solve(FiniteModel([[[0.25, 0.75]]], [[0.0], np.log([4.0, 1.0])]))
    limiting = exact.limiting_schedule()
    assert (limiting.times, limiting.ess, limiting.decided(1)) == ((), (), True)
    close(limiting.sigma2, exact.sigma2)
