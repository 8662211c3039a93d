import itertools
import json
import math

import numpy as np
import pytest

from rmtools.codec import from_json, to_json
from rmtools.errors import UserError
from rmtools.stats.bellman_error import BellmanSummary, DepthSummary, bellman_estimator
from rmtools.stats.bootstrap import Interval
from rmtools.stats.path_errors import (
    GaugeFixed,
    PathSummary,
    gauge_fixed_estimator,
    path_estimator,
    path_sums,
    ratio_bound_quantiles,
)
from rmtools.stats.prefix_errors import exact_errors, prefix_errors, self_normalise
from rmtools.stats.quantiles import FractionBound, fraction_bound


def compositions(k, weights):
    """All ways K draws fall on the branches, with their probabilities: exhaustive over B^K ordered tuples."""
    weights = np.asarray(weights)
    for counts in itertools.product(range(k + 1), repeat=len(weights)):
        if sum(counts) == k:
            coefficient = math.factorial(k) / math.prod(math.factorial(c) for c in counts)
            yield np.repeat(np.arange(len(weights)), counts), coefficient * float(np.prod(weights**counts))


def enumerated(k, weights, child_log_value, log_value=0.0):
    rows = list(compositions(k, weights))
    children = np.asarray(child_log_value)[np.array([index for index, _ in rows])]
    return prefix_errors(np.full(len(rows), log_value), children), np.array([p for _, p in rows])


@pytest.mark.parametrize("k", [2, 4, 16])
def test_ratio_and_squared_error_are_unbiased_by_enumeration(k):
    policy, child = np.array([0.15, 0.6, 0.25]), np.log([0.05, 0.9, 2.5])
    rho = float(policy @ np.exp(child)) / 0.7
    errors, probability = enumerated(k, policy, child, math.log(0.7))
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    assert probability @ errors.ratio == pytest.approx(rho, abs=1e-12)
    assert probability @ errors.squared_error == pytest.approx((rho - 1) ** 2, abs=1e-11)
    assert errors.squared_error.min() < 0  # kept


def test_log_error_is_nearly_unbiased_and_the_plug_in_is_not():
    policy, child = np.array([0.3, 0.5, 0.2]), np.log([0.8, 1.0, 1.3])
    b = math.log(float(policy @ np.exp(child)))
    previous = None
    for k in (4, 8, 16):
        errors, p = enumerated(k, policy, child)
        bias, plug_in_bias = abs(p @ errors.log_error - b), abs(p @ errors.plug_in - b)
        square_bias = abs(p @ errors.log_error_square - b**2)
        assert bias < 0.05 * plug_in_bias
        assert square_bias < 0.1 * abs(p @ errors.plug_in**2 - b**2)
        # What is left is of second order in 1/K: halving 1/K divides it by about four.
        assert previous is None or 3 < previous / square_bias < 6
        previous = square_bias


@pytest.mark.parametrize(
    ("floor", "q", "expected"), [(0.05, 0.1, 0.36), (0.05, 0.05, 0.42), (0.01, 0.1, 0.92)]
)
def test_corrected_rms_of_a_perfect_value_with_rare_good_children(floor, q, expected):
    value = floor + (1 - floor) * q
    errors, p = enumerated(16, [q, 1 - q], np.log([1.0, floor]), math.log(value))
    assert math.sqrt(p @ errors.log_error_square) == pytest.approx(expected, abs=0.005)
    assert p @ errors.squared_error == pytest.approx(0, abs=1e-12)
    # K/2 is worse, so comparing the two shows it.
    assert p @ errors.half_log_error_square > 1.2 * (p @ errors.log_error_square)


def test_k_against_half_k_is_blind_to_very_rare_children_and_identical_ones_show_it():
    """f = .01, q = .02, perfect value: K = 4 and 8 agree on an error that is not there."""
    value, rng, label = 0.01 + 0.99 * 0.02, np.random.default_rng(1), np.arange(60)
    child = np.where(rng.random((60, 8)) < 0.02, 0.0, math.log(0.01))
    errors = prefix_errors(np.full(60, math.log(value)), child)
    summary = bellman_estimator(errors, label, label * 0, 4).bootstrap(rng, 200)
    assert summary.resolved
    assert summary.corrected.rms.estimate > 1
    assert summary.corrected.mean_square_identical.estimate > 0.5 * summary.corrected.mean_square.estimate
    assert summary.ratio_error.mean_square.contains(0)


def test_prefix_errors_by_hand():
    errors = prefix_errors(np.log([0.5]), np.log([[0.25, 0.75, 0.5, 1.0]]))  # x = .5, 1.5, 1, 2
    mean, variance = 1.25, 1.25 / 3
    assert errors.count.tolist() == [4]
    assert errors.ratio[0] == pytest.approx(mean, abs=1e-12)
    assert errors.squared_error[0] == pytest.approx((1.0**2 - 1.5) / 12, abs=1e-12)
    assert errors.plug_in[0] == pytest.approx(math.log(mean), abs=1e-12)
    assert errors.log_error[0] == pytest.approx(math.log(mean) + variance / (8 * mean**2), abs=1e-12)
    assert errors.log_error_noise[0] == pytest.approx(variance / (4 * mean**2), abs=1e-12)
    square = errors.log_error[0] ** 2 - errors.log_error_noise[0]
    assert errors.log_error_square[0] == pytest.approx(square, abs=1e-15)
    halves = [prefix_errors(np.log([0.5]), np.log(x)) for x in ([[0.25, 0.75]], [[0.5, 1.0]])]
    expected = np.mean([half.log_error_square[0] for half in halves])
    assert errors.half_log_error_square[0] == pytest.approx(expected, abs=1e-12)
    assert errors.resolved.all()
    assert not errors.identical.any()
    assert not errors.degenerate.any()


def test_masked_children_are_not_read():
    child = np.log([[0.25, 0.75, 0.5, 1.0, 2.0]])
    present = np.array([[True, False, True, True, True]])
    child[0, 1] = np.nan
    masked, plain = (
        prefix_errors(np.array([0.1]), child, present),
        prefix_errors(np.array([0.1]), child[:, [0, 2, 3, 4]]),
    )
    for name in ("count", "ratio", "squared_error", "log_error", "log_error_noise", "half_log_error_square"):
        np.testing.assert_allclose(getattr(masked, name), getattr(plain, name), rtol=1e-14)


def test_few_identical_and_zero_children_are_flagged_and_do_not_poison():
    log_value = np.array([0.0, 0.0, -1.0, -np.inf, 0.0, 0.0])
    child = np.zeros((6, 4))
    child[2] = -1.0  # identical, exactly consistent
    child[4] = -np.inf  # all children have value zero
    child[5] = [-0.5, 0.5, -np.inf, 0.1]
    present = np.ones((6, 4), dtype=bool)
    present[0], present[1] = False, [True, False, False, False]
    errors = prefix_errors(log_value, child, present)
    assert errors.count.tolist() == [0, 1, 4, 4, 4, 4]
    assert errors.resolved.tolist() == [False, False, True, False, False, True]
    assert errors.degenerate.tolist() == [False, False, False, True, True, False]
    assert errors.identical.tolist() == [False, False, True, True, True, False]
    assert errors.log_error[2] == 0
    assert errors.log_error_noise[2] == 0
    assert errors.ratio[4] == 0
    assert errors.squared_error[4] == 1
    assert np.isnan(errors.ratio[[0, 3]]).all()
    arange = np.arange(6)
    summary = bellman_estimator(errors, arange, arange * 0, 4).bootstrap(np.random.default_rng(0), 50)
    assert (summary.counts.n_resolved, summary.counts.n_degenerate, summary.counts.n_identical) == (2, 2, 3)
    assert math.isfinite(summary.corrected.rms.estimate)
    assert math.isfinite(summary.ratio_error.mean_square.estimate)
    json.dumps(to_json(summary), allow_nan=False)


def test_extreme_values_neither_overflow_nor_lose_the_error():
    for shift in (-1000.0, 1000.0):
        child = np.array([[0.1, -0.2, 0.3, 0.05]])
        plain = prefix_errors(np.zeros(1), child)
        moved = prefix_errors(np.zeros(1), child + shift)
        assert moved.log_error[0] == pytest.approx(plain.log_error[0] + shift, abs=1e-9)
        assert moved.log_error_noise[0] == pytest.approx(plain.log_error_noise[0], rel=1e-9)


def test_bad_values_are_named():
    with pytest.raises(UserError, match=r"log_value\[1\] is NaN"):
        prefix_errors(np.array([0.0, np.nan]), np.zeros((2, 3)))
    with pytest.raises(UserError, match=r"child_log_value\[0, 2\] is NaN"):
        prefix_errors(np.zeros(1), np.array([[0.0, 0.0, np.nan]]))
    with pytest.raises(UserError, match=r"child_log_value\[0, 1\] is \+inf"):
        prefix_errors(np.zeros(1), np.array([[0.0, np.inf]]))
    with pytest.raises(UserError, match="shape"):
        prefix_errors(np.zeros(2), np.zeros((3, 2)))
    with pytest.raises(UserError, match="present"):
        prefix_errors(np.zeros(3), np.zeros((3, 2)), np.ones((3, 1), dtype=bool))
    with pytest.raises(UserError, match=r"log_ratio\[0\] is NaN"):
        exact_errors(np.array([np.nan]))
    good = exact_errors(np.zeros(2))
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="no prefixes"):
        bellman_estimator(exact_errors(np.zeros(0)), np.zeros(0), np.zeros(0), 1).bootstrap(rng)
    with pytest.raises(UserError, match="prompt"):
        bellman_estimator(good, np.zeros(3), np.zeros(2), 1).bootstrap(rng)
    with pytest.raises(UserError, match=r"weights\[1\] is -1"):
        bellman_estimator(good, np.zeros(2), np.zeros(2), 1, np.array([1.0, -1.0])).bootstrap(rng)
    with pytest.raises(UserError, match="weights"):
        bellman_estimator(good, np.zeros(2), np.zeros(2), 1, np.ones(3)).bootstrap(rng)


def test_exact_summary_by_hand():
    b = np.array([0.1, -0.3, 0.2, 0.4])
    prompt, depth = np.array([7, 7, 3, 3]), np.array([0, 1, 0, 1])
    w = np.array([1.0, 1.0, 2.0, 0.0])
    summary = bellman_estimator(exact_errors(b), prompt, depth, 2, w).bootstrap(np.random.default_rng(0), 100)
    assert summary.exact
    assert summary.resolved
    assert summary.signed_mean.estimate == pytest.approx((0.1 - 0.3 + 0.4) / 4, abs=1e-12)
    mean_square = (0.01 + 0.09 + 2 * 0.04) / 4
    assert summary.corrected.mean_square.estimate == pytest.approx(mean_square, abs=1e-12)
    assert summary.corrected.rms.estimate == summary.plug_in.rms.estimate
    assert summary.corrected.rms.estimate == pytest.approx(math.sqrt(mean_square), abs=1e-12)
    assert summary.corrected.c.estimate == pytest.approx(2 * math.sqrt(mean_square), abs=1e-12)
    squared = float(w @ np.expm1(b) ** 2) / 4
    assert summary.ratio_error.mean_square.estimate == pytest.approx(squared, abs=1e-12)
    assert summary.counts.effective_sample_size == pytest.approx(16 / 6, abs=1e-12)
    assert summary.plug_in.largest == pytest.approx(0.3)  # .4 has weight zero
    assert summary.plug_in.quantiles["0.5"].estimate == pytest.approx(0.2)
    assert [d.depth for d in summary.by_depth] == [0, 1]
    assert summary.by_depth[0].signed_mean.estimate == pytest.approx((0.1 + 0.4) / 3, abs=1e-12)
    assert summary.by_depth[1].rms_corrected.estimate == pytest.approx(0.3, abs=1e-12)
    assert summary.prompt_bounds.largest.error is None
    assert summary.prompt_bounds.largest.n_needed == 29


def test_summary_with_known_noise_matches_its_definition():
    rng = np.random.default_rng(3)
    prompt, depth = np.repeat(np.arange(40), 5), np.tile(np.arange(5), 40)
    errors = prefix_errors(rng.normal(size=200), rng.normal(size=(200, 8)))
    summary = bellman_estimator(errors, prompt, depth, 5).bootstrap(rng, 200)
    assert summary.corrected.mean_square.estimate == pytest.approx(errors.log_error_square.mean(), rel=1e-12)
    assert summary.plug_in.rms.estimate == pytest.approx(math.sqrt(np.mean(errors.plug_in**2)), rel=1e-12)
    half = errors.half_log_error_square
    assert summary.half_children.rms.estimate == pytest.approx(math.sqrt(half.mean()), rel=1e-12)
    assert summary.half_children.difference.estimate == pytest.approx(
        np.mean(half - errors.log_error_square), rel=1e-9
    )
    assert summary.ratio_error.rms.estimate == pytest.approx(
        math.sqrt(max(summary.ratio_error.mean_square.estimate, 0)), rel=1e-12
    )
    low, high = summary.corrected.rms.low, summary.corrected.rms.high
    assert low is not None
    assert high is not None
    assert low < summary.corrected.rms.estimate < high
    assert summary.plug_in.largest == np.abs(errors.plug_in).max()
    assert summary.prompt_bounds.largest.error is not None
    assert summary.prompt_bounds.mean.error is not None
    assert summary.prompt_bounds.mean.error < summary.prompt_bounds.largest.error


def test_summary_round_trips_through_json():
    rng = np.random.default_rng(4)
    errors = prefix_errors(rng.normal(size=60), rng.normal(size=(60, 4)))
    summary = bellman_estimator(errors, np.arange(60) // 3, np.arange(60) % 3, 3).bootstrap(rng, 100)
    text = json.dumps(to_json(summary), allow_nan=False)
    again = from_json(BellmanSummary, json.loads(text))
    assert again == summary
    assert json.dumps(to_json(again)) == text
    assert isinstance(again.by_depth[0], DepthSummary)
    assert isinstance(again.prompt_bounds.largest, FractionBound)


def test_one_prompt_has_estimates_without_intervals():
    errors = prefix_errors(np.zeros(6), np.random.default_rng(0).normal(size=(6, 4)))
    summary = bellman_estimator(errors, np.zeros(6), np.arange(6), 6).bootstrap(np.random.default_rng(0))
    assert summary.corrected.rms.low is None
    assert summary.corrected.rms.high is None
    assert math.isfinite(summary.corrected.rms.estimate)
    assert not summary.resolved
    assert summary.plug_in.quantiles["0.9"].low is None


def test_one_child_everywhere_resolves_nothing_and_says_so():
    errors = prefix_errors(np.zeros(6), np.random.default_rng(0).normal(size=(6, 1)))
    summary = bellman_estimator(errors, np.arange(6), np.arange(6) * 0, 6).bootstrap(np.random.default_rng(0))
    assert summary.counts.n_resolved == 0
    assert not summary.resolved
    assert math.isnan(summary.corrected.rms.estimate)
    assert math.isnan(summary.plug_in.largest)
    again = from_json(BellmanSummary, json.loads(json.dumps(to_json(summary), allow_nan=False)))
    assert math.isnan(again.plug_in.largest)
    assert math.isnan(again.corrected.rms.estimate)


def test_same_seed_same_summary():
    errors = prefix_errors(np.zeros(60), np.random.default_rng(0).normal(size=(60, 4)))
    label = np.arange(60)
    first, second = (
        bellman_estimator(errors, label, label % 3, 3).bootstrap(np.random.default_rng(5), 100) for _ in "ab"
    )
    assert first == second


def test_fraction_bound_by_hand():
    assert fraction_bound(np.arange(28.0)).error is None
    smallest = fraction_bound(np.arange(29.0))  # .9^29 = .0471 <= .05 < .9^28
    assert smallest.error == 28
    assert smallest.rank == 29 == smallest.n_needed
    assert (smallest.confidence, smallest.fraction) == (0.95, 0.9)
    assert (
        fraction_bound(np.array([3.0, 1.0]), alpha=0.5, q=0.5).error == 3.0
    )  # P(Bin(2, .5) <= 1) = .75, <= 0: .25
    assert fraction_bound(np.zeros(0)).error is None
    assert from_json(FractionBound, json.loads(json.dumps(to_json(smallest)))) == smallest
    with pytest.raises(UserError, match="alpha"):
        fraction_bound(np.zeros(3), alpha=0)
    with pytest.raises(UserError, match="NaN"):
        fraction_bound(np.array([np.nan]))


def test_path_sums_by_hand():
    errors = exact_errors(np.array([0.1, 0.2, -0.4, 0.3]))
    sums = path_sums(errors, np.array([9, 2, 9, 9]))
    assert sums.trajectory.tolist() == [2, 9]
    assert sums.steps.tolist() == [1, 3]
    np.testing.assert_allclose(sums.total, [0.2, 0.0], atol=1e-15)
    rng = np.random.default_rng(0)
    summary = path_estimator(sums, np.array([0, 1])).bootstrap(rng, 100)
    assert summary.mean.estimate == pytest.approx(0.1)
    assert summary.n_trajectories == 2
    assert summary.rms_corrected.estimate == pytest.approx(0.2 / math.sqrt(2))
    assert from_json(PathSummary, json.loads(json.dumps(to_json(summary)))) == summary
    unresolved = prefix_errors(np.zeros(2), np.zeros((2, 2)), np.array([[True, True], [True, False]]))
    short = path_estimator(path_sums(unresolved, np.array([0, 1])), np.array([0, 1])).bootstrap(rng, 20)
    assert short.n_unresolved == 1
    assert short.mean.estimate == 0.0


def test_path_sums_of_noisy_errors_subtract_their_noise():
    rng = np.random.default_rng(0)
    errors = prefix_errors(np.zeros(12), 0.3 * rng.normal(size=(12, 6)))
    trajectory = np.arange(12) // 4
    sums = path_sums(errors, trajectory)
    np.testing.assert_allclose(sums.total, errors.log_error.reshape(3, 4).sum(axis=1))
    np.testing.assert_allclose(sums.noise, errors.log_error_noise.reshape(3, 4).sum(axis=1))
    summary = path_estimator(sums, np.arange(3)).bootstrap(rng, 20)
    assert summary.mean_square_corrected.estimate == pytest.approx(np.mean(sums.total**2 - sums.noise))


def test_ratio_bound_by_hand():
    bound = ratio_bound_quantiles(
        np.log([1.0, 2.0]), np.log([[2.0, 0.25], [2.0, 1.0]]), levels=(0.5, 1.0), prompt=np.array([0, 1])
    )
    assert bound.quantiles["0.5"].estimate == pytest.approx(2)
    assert bound.largest == pytest.approx(4)
    assert (bound.n, bound.n_zero) == (4, 0)
    with_zero = ratio_bound_quantiles(np.zeros(1), np.array([[-np.inf, 0.0]]))
    assert (with_zero.n, with_zero.n_zero, with_zero.largest) == (2, 1, 1.0)
    assert with_zero.quantiles["0.99"] == Interval(1.0, None, None)
    empty = ratio_bound_quantiles(np.zeros(1), np.full((1, 1), -np.inf))
    json.dumps(to_json(empty), allow_nan=False)
    assert empty.n_zero == 1


def test_gauge_fixed_removes_a_constant_per_prompt_and_depth():
    rng = np.random.default_rng(0)
    prompt, depth = np.repeat(np.arange(6), 20), np.tile(np.repeat([0, 1], 10), 6)
    b = rng.normal(size=120)
    shifted = b + rng.normal(size=(6, 2))[prompt, depth]
    results = [
        gauge_fixed_estimator(exact_errors(x), prompt, depth).bootstrap(np.random.default_rng(1), 50)
        for x in (b, shifted)
    ]
    assert results[0].rms.estimate == pytest.approx(results[1].rms.estimate, rel=1e-10)
    expected = b.reshape(6, 2, 10).var(axis=2, ddof=1).mean()
    assert results[0].mean_square.estimate == pytest.approx(expected, rel=1e-12)
    assert (results[0].n_cells, results[0].n_short) == (12, 0)
    short = gauge_fixed_estimator(exact_errors(b[:15]), prompt[:15], depth[:15]).bootstrap(rng, 50)
    assert (short.n_cells, short.n_short) == (1, 1)
    assert from_json(GaugeFixed, json.loads(json.dumps(to_json(results[0])))) == results[0]


def test_self_normalise_within_cells():
    prompt, depth = np.array([0, 0, 1, 1, 1]), np.zeros(5, dtype=int)
    log_weights = np.log([1.0, 3.0, 5.0, 5.0, 2.0])
    w = self_normalise(log_weights, prompt, depth)
    np.testing.assert_allclose(w, [0.5, 1.5, 1.25, 1.25, 0.5])
    np.testing.assert_allclose(self_normalise(log_weights + np.array([9, 9, 0, 0, 0]), prompt, depth), w)
    np.testing.assert_allclose(self_normalise(log_weights), np.exp(log_weights) * 5 / 16)
    assert self_normalise(np.array([-np.inf, 0.0]), np.array([0, 1])).tolist() == [0, 1]
    with pytest.raises(UserError, match=r"log_weights\[0\] is NaN"):
        self_normalise(np.array([np.nan]))
    with pytest.raises(UserError, match=r"log_weights\[1\] is \+inf"):
        self_normalise(np.array([0.0, np.inf]))
