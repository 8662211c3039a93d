import json
import math

import numpy as np
import pytest

from rmtools.codec import from_json, to_json
from rmtools.errors import UserError
from rmtools.stats.bootstrap import Interval
from rmtools.stats.calibration import (
    CalibrationSummary,
    auc,
    auc_interval,
    auc_within,
    brier,
    calibration_estimator,
    expected_calibration_error,
    ranking_note,
    ranks,
    reliability_curve,
)

P = np.array([0.1, 0.4, 0.35, 0.8])
Y = np.array([0.0, 0.0, 1.0, 1.0])


def test_brier_by_hand():
    assert brier(P, Y) == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4, abs=1e-15)
    assert brier(P, Y, np.array([1.0, 0, 0, 3])) == pytest.approx((0.01 + 0.12) / 4, abs=1e-15)
    assert brier(np.array([0.5]), np.array([0.25])) == 0.0625  # soft outcome


def test_auc_by_hand():
    assert auc(P, Y) == 0.75
    assert auc(np.array([0.5, 0.5]), np.array([0, 1])) == 0.5
    assert auc(1 - P, Y) == 0.25
    assert auc(P, np.ones(4)) is None
    assert auc(P, np.zeros(4)) is None
    assert auc(P, Y, np.array([1.0, 1, 0, 1])) == 1.0


def test_auc_equals_the_pair_count():
    rng = np.random.default_rng(0)
    p, y, w = rng.integers(0, 9, 60) / 8, rng.integers(0, 2, 60), rng.random(60)
    better = (p[:, None] > p[None]) + 0.5 * (p[:, None] == p[None])
    pair = (w * y)[:, None] * (w * (1 - y))[None]
    assert auc(p, y, w) == pytest.approx((better * pair).sum() / pair.sum(), rel=1e-12)


def test_auc_of_a_soft_outcome_is_that_of_its_two_halves():
    soft = auc(np.array([0.2, 0.7]), np.array([0.25, 1.0]))
    hard = auc(np.array([0.2, 0.2, 0.7]), np.array([1, 0, 1]), np.array([0.25, 0.75, 1.0]))
    assert soft == pytest.approx(hard, abs=1e-15)


def test_reliability_bins_of_equal_mass():
    p = np.linspace(0, 1, 100)
    curve = reliability_curve(p, p**2, bins=4)
    assert curve.count.tolist() == [25] * 4
    np.testing.assert_allclose(curve.mass, 0.25)
    np.testing.assert_allclose(curve.mean_p, p.reshape(4, 25).mean(axis=1))
    np.testing.assert_allclose(curve.mean_outcome, (p**2).reshape(4, 25).mean(axis=1))
    assert expected_calibration_error(p, p**2, bins=4) == pytest.approx(
        np.mean((p - p**2).reshape(4, 25).mean(axis=1)), rel=1e-12
    )


def test_equal_predictions_share_a_bin():
    curve = reliability_curve(np.full(50, 0.3), np.arange(50) % 2, bins=10)
    assert curve.count.tolist() == [50]
    assert expected_calibration_error(np.full(50, 0.3), np.arange(50) % 2) == pytest.approx(0.2)


def test_weight_zero_is_absence():
    rng = np.random.default_rng(1)
    p, y = rng.random(40), rng.integers(0, 2, 40)
    w = np.where(np.arange(40) < 30, 1.0, 0.0)
    weighted, plain = reliability_curve(p, y, 5, w), reliability_curve(p[:30], y[:30], 5)
    np.testing.assert_allclose(weighted.mean_outcome, plain.mean_outcome)
    assert weighted.count.tolist() == plain.count.tolist()
    assert (weighted.index[30:] == -1).all()
    assert brier(p, y, w) == pytest.approx(brier(p[:30], y[:30]))
    assert auc(p, y, w) == pytest.approx(auc(p[:30], y[:30]))


def test_auc_interval_of_independent_rows_is_delong():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 400)
    p = 1 / (1 + np.exp(-(rng.normal(size=400) + y)))
    interval = auc_interval(p, y, np.arange(400))
    estimate = auc(p, y)
    win = (p[y == 1][:, None] > p[y == 0][None]).astype(float)
    n1, n0 = win.shape
    delong = math.sqrt(win.mean(axis=1).var(ddof=1) / n1 + win.mean(axis=0).var(ddof=1) / n0)
    assert interval.estimate == estimate
    assert interval.half_width == pytest.approx(1.96 * delong, rel=0.03)
    doubled = auc_interval(np.tile(p, 2), np.tile(y, 2), np.tile(np.arange(400), 2))
    assert doubled.half_width == pytest.approx(
        interval.half_width, rel=1e-9
    )  # copies in a cluster say nothing new
    assert auc_interval(p, y, np.zeros(400)).low is None
    assert math.isnan(auc_interval(p, y * 0, np.arange(400)).estimate)


def test_calibration_summary_round_trips():
    rng = np.random.default_rng(3)
    p = rng.random(300)
    y = (rng.random(300) < p).astype(float)
    summary = calibration_estimator(p, y, np.arange(300) // 3).bootstrap(rng, 200)
    assert summary.n_prompts == 100
    assert summary.brier.estimate == pytest.approx(brier(p, y))
    assert summary.brier_constant == pytest.approx(y.mean() * (1 - y.mean()))
    assert summary.mean_p.estimate == pytest.approx(p.mean())
    assert summary.ece == expected_calibration_error(p, y)
    assert len(summary.curve_outcome) == len(summary.curve.mass) == 10
    assert summary.curve_outcome[3].estimate == pytest.approx(summary.curve.mean_outcome[3])
    text = json.dumps(to_json(summary), allow_nan=False)
    assert to_json(from_json(CalibrationSummary, json.loads(text))) == json.loads(text)


def test_all_outcomes_equal_is_no_error():
    summary = calibration_estimator(P, np.ones(4), np.arange(4)).bootstrap(np.random.default_rng(4), 50)
    assert math.isnan(summary.auc.estimate)
    assert summary.brier_constant == 0
    json.dumps(to_json(summary), allow_nan=False)


def test_bad_input_is_named():
    with pytest.raises(UserError, match=r"p\[1\] is NaN"):
        brier(np.array([0.1, np.nan]), np.zeros(2))
    with pytest.raises(UserError, match=r"p\[0\] is 1.5"):
        auc(np.array([1.5]), np.zeros(1))
    with pytest.raises(UserError, match=r"outcome\[1\] is -1"):
        brier(np.zeros(2), np.array([0.0, -1]))
    with pytest.raises(UserError, match=r"weights\[0\] is inf"):
        brier(np.zeros(1), np.zeros(1), np.array([np.inf]))
    with pytest.raises(UserError, match="weights"):
        brier(np.zeros(1), np.zeros(1), np.zeros(1))
    with pytest.raises(UserError, match="shapes"):
        brier(np.zeros(2), np.zeros(3))
    with pytest.raises(UserError, match="shapes"):
        brier(np.zeros(0), np.zeros(0))
    with pytest.raises(UserError, match="bins"):
        reliability_curve(P, Y, bins=0)


def pairs_by_loop(score, outcome, prompt, depth):
    wins = pairs = 0.0
    for i in range(len(score)):
        for j in range(len(score)):
            if i != j and prompt[i] == prompt[j] and depth[i] == depth[j]:
                weight = outcome[i] * (1 - outcome[j])
                wins += weight * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
                pairs += weight
    return wins / pairs if pairs else math.nan


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_auc_within_equals_the_pair_count(seed, soft):
    rng = np.random.default_rng(seed)
    score, prompt, depth = rng.integers(-5, 5, 80) / 3, rng.integers(0, 6, 80) - 2, rng.integers(1, 4, 80)
    outcome = rng.random(80) if soft else rng.integers(0, 2, 80)
    found = auc_within(score, outcome, prompt, depth)
    assert found.estimate == pytest.approx(pairs_by_loop(score, outcome, prompt, depth), abs=1e-12)
    assert found.low < found.estimate < found.high


def test_auc_within_by_hand():
    """Prompt 0 wins its only pair and ties another; prompt 1 loses one; depth 2 has no pair."""
    score = np.array([0.9, 0.1, 0.9, 0.2, 0.3, 7.0])
    outcome, prompt = np.array([1, 0, 0, 1, 0, 1]), np.array([0, 0, 0, 1, 1, 1])
    depth = np.array([1, 1, 1, 1, 1, 2])
    found = auc_within(score, outcome, prompt, depth)
    assert found.estimate == 0.5
    sums = (np.array([1.5, 0]) - 0.5 * np.array([2, 1])) / 3
    error = math.sqrt(2 * float(sums @ sums)) / 0.25
    assert found.high == pytest.approx(1 / (1 + math.exp(-1.959963984540054 * error)), abs=1e-12)
    assert found.low == pytest.approx(1 - found.high, abs=1e-12)


def test_auc_within_of_values_of_prompt_and_depth_is_a_guess():
    rng = np.random.default_rng(0)
    prompt, depth, y = np.repeat(np.arange(20), 6), np.tile([1, 2, 3], 40), rng.integers(0, 2, 120)
    by_place = auc_within(prompt + depth / 7, y, prompt, depth)
    assert (by_place.estimate, by_place.low, by_place.high) == (0.5, 0.5, 0.5)
    assert ranks(by_place) is False


def test_auc_within_without_a_pair_does_not_exist():
    none = auc_within(np.array([0.1, 0.9]), np.array([0, 1]), np.array([0, 1]), np.array([1, 1]))
    soft = auc_within(np.array([0.1]), np.array([0.3]), np.array([0]), np.array([1]))
    empty = auc_within(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0))
    for found in (none, soft, empty):
        assert math.isnan(found.estimate)
        assert (found.low, found.high) == (None, None)
        assert ranks(found) is None
    one = auc_within(np.array([0.1, 0.9, 0.5]), np.array([0, 1, 1]), np.zeros(3), np.ones(3))
    assert (one.estimate, one.low) == (1.0, None)
    with pytest.raises(UserError, match="infinite"):
        auc_within(np.array([-np.inf]), np.zeros(1), np.zeros(1), np.zeros(1))


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.51, 0.9, True), (0.4, 0.6, False), (0.5, 0.5, False), (0.3, 0.8, None)]
)
def test_whether_a_value_ranks(low, high, expected):
    assert ranks(Interval((low + high) / 2, low, high)) is expected


def test_the_interval_of_auc_within_covers_the_truth():
    """Scores of successes are higher by one standard deviation, and prompts differ: AUC is Phi(1 / sqrt 2)."""
    rng, truth, held = np.random.default_rng(6), 0.7602499389065233, 0
    prompt = np.repeat(np.arange(60), 8)
    for _ in range(200):
        y = (rng.random(480) < rng.random(60)[prompt]).astype(float)
        score = rng.normal(size=480) + y + 3 * rng.normal(size=60)[prompt]
        held += auc_within(score, y, prompt, np.ones(480)).contains(truth)
    assert 178 <= held <= 199


def test_what_is_said_of_consistency_without_ranking():
    flat, good, unknown = Interval(0.5, 0.45, 0.55), Interval(0.7, 0.6, 0.8), Interval(0.6, 0.3, 0.8)
    assert "no better than by a guess" in ranking_note(flat, 0.7, 1.2)
    assert "not known" in ranking_note(unknown, 0.7, 1.2)
    assert "not known" in ranking_note(Interval(math.nan, None, None), 0.7, 1.2)
    assert ranking_note(good, 0.7, 1.2) is None
    assert ranking_note(flat, 1.2, 0.7) is None
    assert ranking_note(flat, math.nan, 0.7) is None
