"""ESS-triggered resampling from rollouts: the schedule, sigma^2 and spread of H of it, on models where all are known."""

import itertools
import json
import math

import numpy as np
import pytest

from rmtools.codec import from_json, to_json
from rmtools.core import product, solve
from rmtools.errors import UserError
from rmtools.stats.influence import influence_sd
from rmtools.stats.schedule import (
    EstimatedSchedule,
    ScheduleCost,
    ScheduleParts,
    estimate_schedule,
    schedule_estimator,
    schedule_parts,
)
from rmtools.stats.sigma2 import sigma2_parts, value_square_estimate


def arrays(n, horizon, rng, n_extra=3):
    log_value = rng.normal(0, 1, (n, horizon + 1))
    phi, extra = np.exp(log_value[:, -1]), rng.exponential(size=(n, horizon, n_extra))
    square = value_square_estimate(
        np.concatenate([np.tile(phi[:, None, None], (1, horizon, 1)), extra], axis=2)
    )
    return log_value, np.concatenate([square, phi[:, None] ** 2], axis=1), phi, extra


@pytest.mark.parametrize("times", [(), (2,), (1, 4), (1, 2, 3, 4)])
def test_a_block_is_one_step(times):
    """Parts and spread are those of trajectories of which only the ends of the blocks were seen."""
    log_value, square, phi, extra = arrays(9, 5, np.random.default_rng(0))
    ended = np.sort(np.random.default_rng(1).random((9, 5)) < 0.1, axis=1)
    seen = [0, *times, 5]
    parts = sigma2_parts(log_value, square, phi, times)
    alone = sigma2_parts(log_value[:, seen], square[:, seen], phi)
    assert (parts.n_terms, parts.numerator, parts.z_square) == (
        len(times) + 1,
        alone.numerator,
        alone.z_square,
    )
    np.testing.assert_array_equal(parts.left_out_numerator, alone.left_out_numerator)
    log_v = log_value[:, seen[:-1]]
    pairs = sum(
        np.exp(log_v[i, k] - log_v[j, k]) * square[j, seen[k + 1]]
        for i, j in itertools.permutations(range(9), 2)
        for k in range(len(times) + 1)
    )
    assert parts.numerator == pytest.approx(pairs / (9 * 8), rel=1e-12)
    spread = influence_sd(log_value, phi, extra, None, ended, times)
    assert spread == influence_sd(log_value[:, seen], phi, extra[:, seen[:-1]], None, ended[:, seen[:-1]])
    every = sigma2_parts(log_value, square, phi)
    if len(times) == 4:
        assert every.numerator == parts.numerator
        assert influence_sd(log_value, phi, extra, None, ended) == spread


def test_what_a_schedule_does_not_read_may_be_missing():
    log_value, square, phi, extra = arrays(6, 4, np.random.default_rng(2))
    square[:, [1, 3]] = np.nan
    extra[:, [0, 1, 3]] = np.nan
    assert math.isfinite(sigma2_parts(log_value, square, phi, (2,)).numerator)
    assert math.isfinite(influence_sd(log_value, phi, extra, times=(2,)).mean)
    with pytest.raises(UserError, match=r"value_square\[0, 3\] is NaN"):
        sigma2_parts(log_value, square, phi, (2, 3))
    for times in ((0,), (4,), (3, 2), (1.0,)):
        with pytest.raises(UserError, match="increasing steps from 1 to 3"):
            sigma2_parts(log_value, square, phi, times)


def trajectories(model, n, rng):
    """n trajectories of the policy: log_value (n, T + 1), and V*^2 and V* at each prefix, exactly."""
    path = [model.particles(1).select(np.zeros((1, n), dtype=int))]
    while path[-1].depth < model.horizon:
        path.append(path[-1].extend(1, rng))
    log_value = np.stack([p.log_value()[0] for p in path], axis=1)
    true = np.stack([v[p.state[0]] for v, p in zip(model.log_true_value, path, strict=True)], axis=1)
    return log_value, np.exp(true)


def test_the_schedule_of_a_known_model():
    model = product(12, 4.0)
    limiting = solve(model).limiting_schedule(0.5)
    log_value, _ = trajectories(model, 20_000, np.random.default_rng(3))
    found = estimate_schedule(log_value)
    assert found.times == limiting.times
    np.testing.assert_allclose(found.ess, limiting.ess, rtol=0.05)
    np.testing.assert_allclose(found.decided_from, limiting.decided_from, rtol=0.5)
    assert max(found.decided_from) < math.inf
    few = estimate_schedule(log_value[:40])
    assert max(few.decided_from) == math.inf  # 40 trajectories do not tell .5 from .54
    assert estimate_schedule(log_value[:40], 0.0) == EstimatedSchedule(
        (), few_ess(log_value[:40]), (0.0,) * 11
    )
    assert estimate_schedule(log_value[:40], 1.0).times == tuple(range(1, 12))
    moved = log_value + np.random.default_rng(4).normal(0, 30, 13)
    np.testing.assert_allclose(estimate_schedule(moved).ess, found.ess, rtol=1e-9)


def test_values_that_differ_by_hundreds_of_nats():
    far = np.array([[0.0, 0.0, 0.0, 0.0], [0.0, -900.0, -900.0, 0.0], [0.0, -900.0, 900.0, 0.0]])
    found = estimate_schedule(far)
    assert found.times == (1, 2)
    assert np.isfinite(found.ess).all()
    assert estimate_schedule(far[:2]).times == (1,)  # nothing changes after it


def few_ess(log_value):
    """ESS / N never resampled, from every pair."""
    v, n = np.exp(log_value), len(log_value)
    pairs = list(itertools.permutations(range(n), 2))
    return tuple(
        pytest.approx(
            sum(v[i, t] * v[j, t] for i, j in pairs) / sum(v[i, 0] * v[j, t] ** 2 / v[j, 0] for i, j in pairs)
        )
        for t in range(1, v.shape[1] - 1)
    )


def test_the_error_of_the_schedule_is_the_spread_over_samples():
    """A step is told from the threshold at three standard errors: that is about what 300 samples spread."""
    model, rng = product(4, 4.0), np.random.default_rng(5)
    samples = [trajectories(model, 100, rng)[0] for _ in range(300)]
    ess = np.array([estimate_schedule(x, 0.0).ess[2] for x in samples])
    assert abs(ess.mean() / (12.5 / 17) ** 3 - 1) < 0.03
    told = [
        np.mean(
            [estimate_schedule(x, ess.mean() - k * ess.std()).decided_from[2] < math.inf for x in samples]
        )
        for k in (0.0, 3.0, 6.0)
    ]
    assert told[0] < 0.05
    assert 0.3 < told[1] < 0.7
    assert told[2] > 0.95


def test_nothing_is_resampled_after_the_end():
    log_value, *_ = arrays(30, 5, np.random.default_rng(6))
    ended = np.zeros((30, 5), dtype=bool)
    ended[:, 3:] = True
    found = estimate_schedule(log_value, 1.0, ended)
    assert (found.times, found.decided_from[2:]) == ((1, 2), (0.0, 0.0))
    assert np.isnan(found.ess[2:]).all()
    ended[0, 3] = False
    assert estimate_schedule(log_value, 1.0, ended).times == (1, 2, 3)
    assert estimate_schedule(np.zeros((2, 2))).times == ()


def test_pooled_cost_of_known_models():
    """Each of 60 prompts has its own schedule; sigma^2, particles and flags against the exact ones."""
    rng, prompts, exact = np.random.default_rng(7), [], []
    for k in range(60):
        model = product(6, (4.0, 2.0)[k % 2])
        log_value, true = trajectories(model, 300, rng)
        extra = np.repeat(true[:, :-1, None], 2, axis=2)
        prompts.append(schedule_parts(log_value, true**2, true[:, -1], 0.5, extra))
        exact.append((math.exp(2 * solve(model).log_z), solve(model).limiting_schedule(0.5)))
    found = schedule_estimator(prompts, 0.5).bootstrap(np.random.default_rng(8))
    z_square = sum(w for w, _ in exact)
    truth = sum(w * limiting.sigma2 for w, limiting in exact) / z_square
    half = found.sigma2.estimate.half_width
    assert abs(found.sigma2.estimate.estimate - truth) <= 4.5 * half / 1.96
    assert half < 0.2 * truth
    assert found.n_for_cv(0.1).estimate == pytest.approx(100 * found.sigma2.estimate.estimate)
    assert found.n_for_tv(0.1).estimate == pytest.approx(5 * found.influence.sd.estimate)
    assert np.mean([t == its.times for t, (_, its) in zip(found.times, exact, strict=True)]) > 0.5
    assert not found.decided(1e9)  # at 300 trajectories some prompt's schedule is not told
    assert 0 < found.decided_share(1e9) < 1
    assert found.decided_share(0) == 0
    again = from_json(ScheduleCost, json.loads(json.dumps(to_json(found), allow_nan=False)))
    assert (again.sigma2, again.times, again.decided(1e9)) == (found.sigma2, found.times, False)
    plain = [ScheduleParts(p.schedule, p.sigma2, None) for p in prompts]
    without = schedule_estimator(plain, 0.5).bootstrap(np.random.default_rng(8))
    assert without.influence is None
    assert without.n_for_tv(0.1) is None
    assert without.sigma2.estimate.estimate == found.sigma2.estimate.estimate


def test_bad_input():
    with pytest.raises(UserError, match="at least two trajectories"):
        estimate_schedule(np.zeros((1, 4)))
    with pytest.raises(UserError, match="zero or infinity"):
        estimate_schedule(np.full((3, 4), -np.inf))
    with pytest.raises(UserError, match=r"log_value\[0, 1\] is NaN"):
        estimate_schedule(np.array([[0.0, np.nan, 0.0]] * 3))
    with pytest.raises(UserError, match="`ess_threshold` must be in"):
        estimate_schedule(np.zeros((3, 4)), 1.5)
    with pytest.raises(UserError, match="ended has shape"):
        estimate_schedule(np.zeros((3, 4)), 0.5, np.zeros((3, 4), dtype=bool))
    with pytest.raises(UserError, match="no prompt"):
        schedule_estimator([], 0.5)
