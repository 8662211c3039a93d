"""Intervals: clusters, the bootstrap, the jackknife and quantiles."""

import json
import math

import numpy as np
import pytest

from rmtools.codec import from_json, to_json
from rmtools.errors import UserError
from rmtools.stats.bootstrap import (
    Estimator,
    Interval,
    _moments,
    _standard_error,
    bootstrap,
    bootstrap_all,
    cluster_bootstrap,
    cluster_sums,
    first_mean,
    jackknife,
    ratio_of_means,
    root,
)
from rmtools.stats.quantiles import quantile_interval, weighted_quantile


def test_interval_basics():
    interval = Interval(1.0, 0.5, 2.5)
    assert interval.half_width == 1.0
    assert interval.contains(2.5)
    assert not interval.contains(2.6)
    assert from_json(Interval, json.loads(json.dumps(to_json(interval)))) == interval
    assert str(interval) == "1 [0.5, 2.5]"
    assert str(Interval(1.0, None, None)) == "1"
    assert Interval(1.0, None, None).half_width is None
    assert Interval(1.0, None, None).contains(99)
    assert to_json(Interval(math.nan, None, math.inf)) == {"estimate": None, "low": None, "high": None}
    assert root(Interval(-0.5, -1.0, 4.0)) == Interval(0.0, 0.0, 2.0)


def test_cluster_sums_in_order_of_label():
    sums = cluster_sums(np.array([[1.0, 1], [2, 1], [4, 1]]), np.array([5, -1, 5]))
    assert sums.tolist() == [[2, 1], [5, 2]]
    assert cluster_sums(np.array([1.0, 2.0]), np.array([0, 0])).tolist() == [[3.0]]
    with pytest.raises(UserError, match=r"values\[1\] is NaN"):
        cluster_sums(np.array([1.0, np.nan]), np.array([0, 1]))
    with pytest.raises(UserError, match="clusters"):
        cluster_sums(np.ones(2), np.zeros(3))


def test_cluster_bootstrap_edges():
    rng = np.random.default_rng(0)
    assert cluster_bootstrap(np.array([[2.0, 4.0]]), ratio_of_means, rng) == Interval(0.5, None, None)
    assert math.isnan(cluster_bootstrap(np.zeros((0, 2)), ratio_of_means, rng).estimate)
    assert math.isnan(cluster_bootstrap(np.zeros((5, 2)), ratio_of_means, rng).estimate)
    constant = cluster_bootstrap(np.ones((5, 2)), ratio_of_means, rng)
    assert constant == Interval(1.0, 1.0, 1.0)
    one_success = cluster_bootstrap(np.eye(30)[:, :1], lambda m: m[:, 0], rng)
    assert one_success.high is not None
    assert one_success.high < 1
    pair = cluster_bootstrap(np.array([[0.0], [1.0]]), lambda m: m[:, 0], rng)
    assert pair.low is not None
    assert pair.high is not None
    assert -1 < pair.low < 0.5 < pair.high < 2
    with pytest.raises(UserError, match=r"sums\[0, 1\] is NaN"):
        cluster_bootstrap(np.array([[1.0, np.nan]]), ratio_of_means, rng)
    with pytest.raises(UserError, match="n_resamples"):
        cluster_bootstrap(np.ones((5, 2)), ratio_of_means, rng, n_resamples=1)
    with pytest.raises(UserError, match="level"):
        cluster_bootstrap(np.ones((5, 2)), ratio_of_means, rng, level=95)
    with pytest.raises(UserError, match="studentised or percentile"):
        cluster_bootstrap(np.ones((5, 2)), ratio_of_means, rng, method="bca")
    assert bootstrap_all({}, rng) == {}


def test_estimators_of_as_many_clusters_are_resampled_with_the_same_weights():
    """One bootstrap of all gives each the intervals of a bootstrap of its own from the same generator."""
    x = np.random.default_rng(0).exponential(size=(40, 2))
    whole = Estimator({"mean": (x, ratio_of_means)}, lambda found: found["mean"])
    other = Estimator({"first": (x[:, :1], first_mean)}, lambda found: found["first"])
    few = Estimator({"mean": (x[:9], ratio_of_means)}, lambda found: found["mean"])
    found = bootstrap({"whole": whole, "other": other, "few": few, "none": None}, np.random.default_rng(1))
    assert found["whole"] == whole.bootstrap(np.random.default_rng(1))
    assert found["other"].low == pytest.approx(other.bootstrap(np.random.default_rng(1)).low, rel=1e-12)
    assert found["few"].estimate == few.bootstrap(np.random.default_rng(1)).estimate
    assert found["none"] is None


def test_bootstrap_is_close_to_the_normal_interval_for_many_even_clusters():
    rng = np.random.default_rng(1)
    x = rng.normal(3, 2, size=(2000, 1))
    for method in ("studentised", "percentile"):
        interval = cluster_bootstrap(x, lambda m: m[:, 0], rng, method=method)
        assert interval.half_width == pytest.approx(1.96 * x.std() / math.sqrt(2000), rel=0.08)
        assert interval.estimate == pytest.approx(x.mean())


SKEWED = np.random.default_rng(3).exponential(size=(40, 2)) @ np.array([[1.0, 0.9], [0.0, 0.4]]) + 1


@pytest.mark.parametrize(
    ("statistic", "linear"),
    [
        # var(a - b) = var a + var b - 2 cov(a, b), and likewise for the linear part of a ratio and of a product
        (lambda m: m[:, 0] - m[:, 1], lambda a, b: (1.0, -1.0)),
        (ratio_of_means, lambda a, b: (1 / b, -a / b**2)),
        (lambda m: m[:, 0] * m[:, 1], lambda a, b: (b, a)),
    ],
)
def test_the_standard_error_counts_the_covariance_of_two_means_twice(statistic, linear):
    x, n = SKEWED, len(SKEWED)
    covariance = np.cov(x.T)
    assert covariance[0, 1] > 0.5 * math.sqrt(covariance[0, 0] * covariance[1, 1])
    g, h = linear(*x.mean(axis=0))
    exact = g**2 * covariance[0, 0] + h**2 * covariance[1, 1] + 2 * g * h * covariance[0, 1]
    moments = _moments(x).mean(axis=0)[None]
    found = _standard_error(moments, x.mean(axis=0), x.std(axis=0), statistic, n)
    assert found[0] == pytest.approx(math.sqrt(exact / n), rel=1e-6)


def test_the_interval_of_a_difference_of_two_means_is_that_of_the_mean_difference():
    """A constant factor in every standard error cancels in the interval; a covariance that is wrong does not."""
    two = cluster_bootstrap(SKEWED, lambda m: m[:, 0] - m[:, 1], np.random.default_rng(4))
    one = cluster_bootstrap(SKEWED[:, :1] - SKEWED[:, 1:], first_mean, np.random.default_rng(4))
    assert (two.low, two.high) == (pytest.approx(one.low, rel=1e-6), pytest.approx(one.high, rel=1e-6))


def test_bootstrap_does_not_depend_on_chunks(monkeypatch):
    x = np.random.default_rng(1).exponential(size=(50, 1))
    whole = cluster_bootstrap(x, lambda m: m[:, 0], np.random.default_rng(2))
    monkeypatch.setattr("rmtools.stats.bootstrap._CHUNK", 777)
    pieces = cluster_bootstrap(x, lambda m: m[:, 0], np.random.default_rng(2))
    assert pieces.low == pytest.approx(whole.low, rel=1e-12)
    assert pieces.high == pytest.approx(whole.high, rel=1e-12)


def test_jackknife_of_a_mean_is_the_t_interval():
    x = np.array([1.0, 2.0, 4.0, 9.0])
    interval = jackknife(float(x.mean()), (x.sum() - x) / 3)
    assert interval.estimate == pytest.approx(4.0, abs=1e-12)
    assert interval.half_width == pytest.approx(3.182446305284263 * x.std(ddof=1) / 2, rel=1e-9)
    assert jackknife(1.0, np.array([1.0, np.nan, 2.0])).low is None


def test_weighted_quantiles():
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.0])
    assert weighted_quantile(values, weights, np.array([0.5, 0.51, 0.75, 1.0])).tolist() == [1, 2, 2, 3]
    interval = quantile_interval(np.arange(1000.0), np.arange(1000), 0.5)
    assert interval.estimate == 499
    assert interval.low == pytest.approx(468, abs=1)
    assert interval.high == pytest.approx(530, abs=1)
    assert quantile_interval(np.arange(10.0), np.arange(10), 0.95).high is None
    assert math.isnan(quantile_interval(np.zeros(0), np.zeros(0), 0.5).estimate)
