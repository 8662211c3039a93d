"""Quantiles with intervals over clusters, and distribution-free statements from order statistics.

>>> import numpy as np
>>> bound = fraction_bound(np.arange(100.0))
>>> bound.error, bound.rank, bound.n_needed
(95.0, 96, 29)
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from rmtools.errors import UserError
from rmtools.stats.bootstrap import Interval, cluster_sums, refuse_nan


def weighted_quantile(values: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Smallest value at which the weighted distribution function reaches each level, (L,)."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    # A level of 0.5 of total weight 3 x 0.1 must not miss its value by one rounding.
    place = np.searchsorted(cumulative, np.asarray(levels) * cumulative[-1] * (1 - 1e-12))
    reached: np.ndarray = values[order][np.minimum(place, len(values) - 1)]
    return reached


def equal_mass_bins(values: np.ndarray, n_bins: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the bin 0..n_bins-1 of each value (n,), bins of equal mass; equal values share one."""
    _, group = np.unique(values, return_inverse=True)
    mass = np.bincount(group, weights)
    # The middle of a group of equal values decides its bin.
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    bins: np.ndarray = np.minimum((middle * n_bins).astype(np.intp), n_bins - 1)[group]
    return bins


def quantile_interval(
    values: np.ndarray,
    clusters: np.ndarray,
    q: float,
    weights: np.ndarray | None = None,
    level: float = 0.95,
) -> Interval:
    """Weighted quantile with Woodruff's interval over clusters.

    Parameters
    ----------
    values, clusters, weights : np.ndarray
        (P,) each; weights are nonnegative, equal by default.
    q : float
        Level of the quantile, in (0, 1).
    level : float
        Nominal coverage.

    Returns
    -------
    Interval
        An end is None if it lies beyond the sample, both with fewer than two clusters.

    Notes
    -----
    The cluster standard error of the distribution function at the estimate, inverted (Woodruff, JASA 1952).
    """
    refuse_nan("values", values)
    w = np.ones(len(values)) if weights is None else weights
    if len(values) == 0 or w.sum() == 0:
        return Interval(math.nan, None, None)
    estimate = float(weighted_quantile(values, w, np.array([q]))[0])
    # At an atom, or at the largest value, one side alone would show no spread at all.
    error = max(_share_error(w * side, w, clusters) for side in (values <= estimate, values < estimate))
    if math.isnan(error):
        return Interval(estimate, None, None)
    margin = NormalDist().inv_cdf((1 + level) / 2) * error
    low, high = weighted_quantile(values, w, np.clip([q - margin, q + margin], 0, 1))
    return Interval(estimate, float(low) if q > margin else None, float(high) if q + margin < 1 else None)


def _share_error(part: np.ndarray, whole: np.ndarray, clusters: np.ndarray) -> float:
    """Cluster standard error of sum(part) / sum(whole); NaN with fewer than two clusters."""
    sums = cluster_sums(np.stack([part, whole], axis=1), clusters)
    n, total = len(sums), sums.sum(axis=0)
    residual = sums[:, 0] - total[0] / total[1] * sums[:, 1]
    return math.sqrt(n / (n - 1) * float(residual @ residual)) / total[1] if n > 1 else math.nan


@dataclass(frozen=True)
class FractionBound:
    """With `confidence`, at least `fraction` of the population has an observed error of at most `error`.

    Attributes
    ----------
    error : float or None
        None if the sample is too small; `n_needed` prompts suffice.
    confidence, fraction : float
        1 - alpha and 1 - q.
    n, rank, n_needed : int
        Sample size, the order statistic used (1 = smallest, 0 = none), the smallest sample that allows one.
    """

    error: float | None
    confidence: float
    fraction: float
    n: int
    rank: int
    n_needed: int


def fraction_bound(per_prompt_error: np.ndarray, alpha: float = 0.05, q: float = 0.1) -> FractionBound:
    """Distribution-free bound by an order statistic; observed errors, noise included.

    Parameters
    ----------
    per_prompt_error : np.ndarray
        (n,) one error per independently drawn prompt (the max or the mean over its steps).
    alpha, q : float
        1 - alpha is the confidence, 1 - q the share of prompts; both in (0, 1).

    Raises
    ------
    UserError
        If an error is NaN or alpha or q is out of range.

    Notes
    -----
    P(F(X_(k)) >= 1 - q) >= P(Bin(n, 1 - q) <= k - 1); docs/equations.md section 6 ("sup").
    """
    from scipy.special import bdtr

    errors = np.sort(np.asarray(per_prompt_error, dtype=np.float64).ravel())
    refuse_nan("per_prompt_error", errors)
    if not (0 < alpha < 1 and 0 < q < 1):
        raise UserError(f"alpha and q must be in (0, 1), got {alpha} and {q}", fix="0.05 and 0.1 are usual")
    n = len(errors)
    enough = np.flatnonzero(bdtr(np.arange(n), n, 1 - q) >= 1 - alpha)
    rank = int(enough[0]) + 1 if len(enough) else 0
    needed = math.ceil(math.log(alpha) / math.log1p(-q) - 1e-12)
    return FractionBound(float(errors[rank - 1]) if rank else None, 1 - alpha, 1 - q, n, rank, needed)
