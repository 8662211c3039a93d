import json
import math

import numpy as np
import pytest

from rmtools.codec import from_json, to_json
from rmtools.errors import UserError
from rmtools.stats.calibration import (
    CalibrationSummary,
    auc,
    auc_interval,
    brier,
    calibration_estimator,
    expected_calibration_error,
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
