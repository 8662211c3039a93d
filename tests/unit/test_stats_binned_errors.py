import json
import math

import numpy as np
import pytest

from rmtools.codec import from_json, to_json
from rmtools.errors import UserError
from rmtools.stats.binned_errors import FlatSummary, flat_estimator
from rmtools.stats.bootstrap import Interval


def rows_of(first, ratios):
    """One-step trajectories: V(s_0) and V(s_1) / V(s_0)."""
    return [np.log([v, v * x]) for v, x in zip(first, ratios, strict=True)]


def test_bins_and_pairs_by_hand():
    """Two bins: errors 0.5 (a), 0.1, 0.3 (b) at V = 1, -0.4 (a), -0.2 (c) at V = 2."""
    rows = rows_of([1, 1, 1, 2, 2], [1.5, 1.1, 1.3, 0.6, 0.8])
    found = flat_estimator(rows, np.array([7, 3, 3, 7, 9]), n_bins=2).bootstrap(np.random.default_rng(0))
    assert [(b.depth, b.n_prefixes, b.n_prompts) for b in found.bins] == [(0, 3, 2), (0, 2, 2)]
    assert [b.signed_mean.estimate for b in found.bins] == pytest.approx([0.3, -0.3])
    assert [b.lowest_log_value for b in found.bins] == pytest.approx([0.0, math.log(2)])
    assert [b.highest_log_value for b in found.bins] == pytest.approx([0.0, math.log(2)])
    # Pairs of different prompts: (0.5 * 0.1 + 0.5 * 0.3) / 2 and 0.4 * 0.2.
    assert found.squared_ratio_error_at_least.estimate == pytest.approx((3 * 0.1 + 2 * 0.08) / 5)
    assert found.rms_ratio_error_at_least.estimate == pytest.approx(math.sqrt(0.092))
    assert found.signed_mean.estimate == pytest.approx(0.3 / 5)
    assert (found.n_prompts, found.n_prefixes, found.n_degenerate) == (3, 5, 0)
    assert (found.n_bins_left_out, found.n_prefixes_left_out) == (0, 0)


def test_depths_are_apart_and_a_bin_of_one_prompt_is_left_out_and_counted():
    rows = [np.log([1, 1.2]), np.log([1, 1.4, 0.7]), np.log([1, 1.0, 0.3, 0.9])]
    found = flat_estimator(rows, np.array([0, 1, 1]), n_bins=1).bootstrap(np.random.default_rng(0))
    assert [(b.depth, b.n_prefixes) for b in found.bins] == [(0, 3)]
    assert (found.n_bins_left_out, found.n_prefixes_left_out) == (2, 3)
    # The bins left out count as free of error, and stay in the mean.
    assert found.squared_ratio_error_at_least.estimate == pytest.approx(3 / 6 * 0.2 * 0.2)
    assert found.signed_mean.estimate == pytest.approx((0.2 + 0.4 + 0.0 - 0.5 - 0.7 + 2.0) / 6)


def test_values_of_zero_are_counted():
    rows = [
        np.array([0.0, -np.inf, -np.inf]),
        np.log([1, 1.5, 0.5]),
        np.log([1, 0.5, 0.5]),
        np.array([-800.0, 0]),
    ]
    found = flat_estimator(rows, np.arange(4), n_bins=1).bootstrap(np.random.default_rng(0))
    assert (found.n_prefixes, found.n_degenerate, found.n_prompts) == (7, 2, 4)
    assert found.signed_mean.estimate == pytest.approx((-1 + 0.5 - 0.5 - 2 / 3 + 0) / 5)
    assert found.bins[0].signed_mean.estimate == pytest.approx(-1 / 3)


def test_equal_values_share_a_bin_and_the_others_are_of_equal_mass():
    values = np.concatenate([np.ones(50), np.linspace(2, 3, 50)])
    found = flat_estimator(rows_of(values, np.ones(100)), np.arange(100), n_bins=4).bootstrap(
        np.random.default_rng(0)
    )
    assert [b.n_prefixes for b in found.bins] == [50, 25, 25]
    assert all(b.lowest_log_value <= b.highest_log_value for b in found.bins)
    assert found.bins[1].highest_log_value < found.bins[2].lowest_log_value
    assert found.squared_ratio_error_at_least == Interval(0.0, 0.0, 0.0)


def test_a_single_prompt_has_signed_errors_only():
    rows = rows_of([1, 1, 1], [1.1, 1.3, 0.9])
    found = flat_estimator(rows, np.zeros(3)).bootstrap(np.random.default_rng(0))
    assert found.signed_mean == Interval(pytest.approx(0.1), None, None)
    assert math.isnan(found.squared_ratio_error_at_least.estimate)
    assert math.isnan(found.rms_ratio_error_at_least.estimate)
    assert found.bins == ()
    again = from_json(FlatSummary, json.loads(json.dumps(to_json(found))))
    assert to_json(again) == to_json(found)


def test_a_negative_square_is_kept_and_has_root_zero():
    rows = rows_of([1, 1], [1.5, 0.5])
    found = flat_estimator(rows, np.arange(2)).bootstrap(np.random.default_rng(0))
    assert found.squared_ratio_error_at_least.estimate == pytest.approx(-0.25)
    assert found.rms_ratio_error_at_least.estimate == 0


def test_summary_survives_json_and_the_same_seed_repeats_it():
    rng = np.random.default_rng(1)
    rows = [np.log(rng.uniform(0.1, 1, rng.integers(2, 6))) for _ in range(60)]
    found = [flat_estimator(rows, np.arange(60) // 3).bootstrap(np.random.default_rng(2)) for _ in range(2)]
    assert found[0] == found[1]
    assert from_json(FlatSummary, json.loads(json.dumps(to_json(found[0])))) == found[0]
    assert len(found[0].bins) > 8
    for interval in (found[0].signed_mean, found[0].squared_ratio_error_at_least):
        assert interval.low < interval.estimate < interval.high


@pytest.mark.parametrize(
    ("rows", "prompt", "n_bins", "message"),
    [
        ([[0.0, np.nan]], [0], 4, "log_value\\[0\\]\\[1\\] is NaN"),
        ([[0.0, np.inf]], [0], 4, "holds \\+inf"),
        ([[[0.0]]], [0], 4, "has shape \\(1, 1\\)"),
        ([[]], [0], 4, "has shape \\(0,\\)"),
        ([[0.0]], [0], 4, "no prefix with a value above zero"),
        ([[-np.inf, 0.0]], [0], 4, "no prefix with a value above zero"),
        ([], [], 4, "no prefix with a value above zero"),
        ([[0.0, 0.0]], [0, 1], 4, "`prompt` has shape"),
        ([[0.0, 0.0]], [0], 0, "`n_bins` must be"),
    ],
)
def test_bad_input_is_refused(rows, prompt, n_bins, message):
    with pytest.raises(UserError, match=message):
        flat_estimator(rows, np.array(prompt), n_bins=n_bins).bootstrap(np.random.default_rng(0))
