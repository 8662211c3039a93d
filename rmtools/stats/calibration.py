"""Calibration of a predicted probability of success against outcomes: Brier, ECE, AUC, reliability curve.

Outcomes may be soft, anywhere in [0, 1]; weights are optional everywhere. These are global checks: a value
can be calibrated and still have a Bellman error at every prefix (docs/equations.md section 6).

>>> import numpy as np
>>> p, outcome = np.array([0.1, 0.4, 0.6, 0.9]), np.array([0, 1, 0, 1])
>>> round(brier(p, outcome), 6), round(expected_calibration_error(p, outcome, bins=2), 6), auc(p, outcome)
(0.185, 0.25, 0.75)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from rmtools.errors import UserError
from rmtools.particles.arguments import check_count
from rmtools.stats.bootstrap import (
    Estimator,
    Interval,
    cluster_sums,
    first_mean,
    labels_of,
    refuse_nan,
    weighted_mean,
)
from rmtools.stats.quantiles import equal_mass_bins


def _checked(
    p: np.ndarray, outcome: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p, y = np.asarray(p, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    w = np.ones(p.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if p.ndim != 1 or len(p) == 0 or y.shape != p.shape or w.shape != p.shape:
        raise UserError(
            f"p, outcome and weights have shapes {p.shape}, {y.shape} and {w.shape}",
            fix="pass (n,) each, n >= 1",
        )
    for name, array in (("p", p), ("outcome", y), ("weights", w)):
        refuse_nan(name, array)
        top = np.inf if name == "weights" else 1.0
        bad = (array < 0) | (array > top) | (array == np.inf)
        if bad.any():
            first = int(np.argmax(bad))
            raise UserError(
                f"{name}[{first}] is {array[first]}", fix=f"{name} must be finite, in [0, {top:g}]"
            )
    if w.sum() == 0:
        raise UserError("all weights are zero", fix="leave `weights` out for equal weights")
    return p, y, w


def brier(p: np.ndarray, outcome: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean squared difference of prediction and outcome.

    Parameters
    ----------
    p, outcome : np.ndarray
        (n,) each, in [0, 1].
    weights : np.ndarray, optional
        (n,) nonnegative.

    Raises
    ------
    UserError
        If an entry is NaN or out of range, or the shapes differ.
    """
    p, y, w = _checked(p, outcome, weights)
    return float(np.sum(w * (p - y) ** 2) / w.sum())


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Mean prediction and mean outcome in bins of equal mass; arrays (n_bins,), empty bins left out.

    Attributes
    ----------
    mean_p, mean_outcome : np.ndarray
        Weighted means in each bin.
    mass : np.ndarray
        Share of the weight, sums to 1.
    count : np.ndarray
        Number of predictions of positive weight.
    index : np.ndarray
        (n,) bin of each prediction, -1 for weight zero; not saved.
    """

    mean_p: np.ndarray
    mean_outcome: np.ndarray
    mass: np.ndarray
    count: np.ndarray
    index: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.intp), metadata={"saved": False})


def reliability_curve(
    p: np.ndarray, outcome: np.ndarray, bins: int = 10, weights: np.ndarray | None = None
) -> ReliabilityCurve:
    """Mean outcome against mean prediction in bins of equal mass.

    Equal predictions share a bin, so there are fewer than `bins` if many are equal.

    Parameters
    ----------
    p, outcome, weights : np.ndarray
        As `brier`.
    bins : int
        Number of bins asked for.

    Raises
    ------
    UserError
        As `brier`, or if `bins` is below 1.
    """
    p, y, w = _checked(p, outcome, weights)
    check_count("bins", bins)
    return _curve(p, y, w, bins)


def _curve(p: np.ndarray, y: np.ndarray, w: np.ndarray, bins: int) -> ReliabilityCurve:
    used = w > 0
    inside, n_bins = labels_of(equal_mass_bins(p[used], bins, w[used]), int(used.sum()))
    total = np.bincount(inside, w[used], n_bins)
    means = [np.bincount(inside, (w * array)[used], n_bins) / total for array in (p, y)]
    index = np.full(len(p), -1)
    index[used] = inside
    return ReliabilityCurve(means[0], means[1], total / w.sum(), np.bincount(inside), index)


def expected_calibration_error(
    p: np.ndarray, outcome: np.ndarray, bins: int = 10, weights: np.ndarray | None = None
) -> float:
    """Mean absolute difference of mean prediction and mean outcome over bins of equal mass (ECE).

    Biased upward by the noise of each bin's mean outcome, by about sqrt(y (1 - y) / n_bin). Arguments and errors as
    `reliability_curve`.
    """
    return _gap(reliability_curve(p, outcome, bins, weights))


def _gap(curve: ReliabilityCurve) -> float:
    return float(np.sum(curve.mass * np.abs(curve.mean_p - curve.mean_outcome)))


def auc(p: np.ndarray, outcome: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """Probability that a success has a higher prediction than a failure, ties counting one half.

    An outcome y in (0, 1) stands for a success of weight y and a failure of weight 1 - y. None without a success or
    without a failure. Arguments and errors as `brier`.
    """
    estimate = auc_interval(p, outcome, np.zeros(np.shape(p)), weights).estimate
    return None if math.isnan(estimate) else estimate


def _placements(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Share of failures below each prediction, of successes above it, ties one half; None without either."""
    good, bad = w * y, w * (1 - y)
    if good.sum() == 0 or bad.sum() == 0:
        return None, None
    _, where = np.unique(p, return_inverse=True)
    at_good, at_bad = np.bincount(where, good), np.bincount(where, bad)
    below = (np.cumsum(at_bad) - at_bad / 2) / bad.sum()
    above = 1 - (np.cumsum(at_good) - at_good / 2) / good.sum()
    return below[where], above[where]


def auc_interval(
    p: np.ndarray,
    outcome: np.ndarray,
    clusters: np.ndarray,
    weights: np.ndarray | None = None,
    level: float = 0.95,
) -> Interval:
    """AUC with its interval over clusters (Obuchowski, Biometrics 1997: clustered DeLong).

    Parameters
    ----------
    p, outcome, weights : np.ndarray
        As `brier`.
    clusters : np.ndarray
        (n,) labels, resampled as one.
    level : float
        Nominal coverage.

    Returns
    -------
    Interval
        On the logit scale, so within [0, 1]; ends None if the AUC does not exist, is 0 or 1, or with fewer
        than two clusters.

    Raises
    ------
    UserError
        As `brier`.
    """
    return _auc_interval(*_checked(p, outcome, weights), clusters, level)


def _auc_interval(
    p: np.ndarray, y: np.ndarray, w: np.ndarray, clusters: np.ndarray, level: float = 0.95
) -> Interval:
    below, above = _placements(p, y, w)
    if below is None or above is None:
        return Interval(math.nan, None, None)
    good, bad = w * y, w * (1 - y)
    estimate = float(np.sum(good * below) / good.sum())
    influence = good * (below - estimate) / good.sum() + bad * (above - estimate) / bad.sum()
    return _logit_interval(estimate, cluster_sums(influence, clusters)[:, 0], level)


def _logit_interval(estimate: float, influence: np.ndarray, level: float) -> Interval:
    """Interval on the logit scale from the influence (C,) of each cluster; without ends at 0 and 1."""
    if len(influence) < 2 or not 0 < estimate < 1:
        return Interval(estimate, None, None)
    variance = len(influence) / (len(influence) - 1) * float(influence @ influence)
    margin = NormalDist().inv_cdf((1 + level) / 2) * (math.sqrt(variance) / (estimate * (1 - estimate)))
    centre = math.log(estimate / (1 - estimate))
    low, high = (1 / (1 + math.exp(-(centre + sign * margin))) for sign in (-1, 1))
    return Interval(estimate, low, high)


def auc_within(
    score: np.ndarray, outcome: np.ndarray, prompt: np.ndarray, depth: np.ndarray, level: float = 0.95
) -> Interval:
    """AUC over pairs of prefixes of one prompt and one depth: what resampling has to choose between.

    The AUC over all prefixes also rewards telling easy prompts from hard ones and late prefixes from early ones, which
    moves no particle. Here a value that depends on prompt and depth only has exactly .5. Pass prefixes of 1 to T - 1
    steps: the bare prompt is one and the same prefix, and a finished solution is easier and worth its reward.

    Parameters
    ----------
    score : np.ndarray
        (n,) values in any increasing scale, such as log values; finite.
    outcome : np.ndarray
        (n,) in [0, 1]; y in (0, 1) is a success of weight y and a failure of weight 1 - y, which make no pair.
    prompt, depth : np.ndarray
        (n,) labels; prompts are the clusters of the interval.
    level : float
        Nominal coverage.

    Returns
    -------
    Interval
        Wins over pairs, ties one half, every pair weighs the same; ends by the delta method on the logit scale. NaN
        without a pair; ends None if the estimate is 0 or 1, or with fewer than two prompts that have pairs.

    Raises
    ------
    UserError
        If an entry is NaN, infinite or out of range, or the shapes differ.
    """
    x = np.asarray(score, dtype=np.float64)
    if x.size == 0:
        return Interval(math.nan, None, None)
    refuse_nan("score", x)
    order = np.unique(x, return_inverse=True)[1]
    if not np.isfinite(x).all():
        raise UserError("a score is infinite", fix="scores must be finite")
    # Ranks from 0 to 1 pass the check of a probability; only their order matters.
    _, y, _ = _checked(order / max(len(x), 1), outcome, None)
    prompts, n_prompts = labels_of(prompt, len(x))
    depths, n_depths = labels_of(depth, len(x), "depth")
    group = np.unique(prompts * n_depths + depths, return_inverse=True)[1]
    cells, cell = np.unique(group * len(x) + order, return_inverse=True)
    at_good, at_bad, of = np.bincount(cell, y), np.bincount(cell, 1 - y), cells // len(x)
    below = np.cumsum(at_bad) - at_bad
    below -= below[np.searchsorted(of, of)]
    prompt_of = np.zeros(int(group.max()) + 1, dtype=np.intp)
    prompt_of[group] = prompts
    own = np.bincount(prompts, y * (1 - y), n_prompts)
    wins = np.bincount(prompt_of[of], at_good * (below + at_bad / 2), n_prompts) - own / 2
    both = np.bincount(group, y) * np.bincount(group, 1 - y)
    pairs = np.bincount(prompt_of, both, n_prompts) - own
    known = pairs > 1e-12
    if not known.any():
        return Interval(math.nan, None, None)
    wins, pairs = wins[known], pairs[known]
    estimate = float(wins.sum() / pairs.sum())
    return _logit_interval(estimate, (wins - estimate * pairs) / pairs.sum(), level)


# An AUC within prompt and depth from which a value is worth resampling by.
USEFUL_AUC = 0.65


def ranks(within: Interval) -> bool | None:
    """Return whether the AUC within prompt and depth is above .5, a guess.

    None if that is not known: there is no interval, or it holds both .5 and `USEFUL_AUC`.
    """
    if math.isnan(within.estimate) or within.low is None or within.high is None:
        return None
    if within.low > 0.5:
        return True
    return False if within.high < USEFUL_AUC else None


def ranking_note(
    within: Interval, error: float, reference: float, name: str = "the constant's"
) -> str | None:
    """Return what to say of a value that is more consistent than a reference and does not rank; None if nothing.

    Parameters
    ----------
    within : Interval
        AUC within prompt and depth.
    error, reference : float
        RMS log Bellman error in nats of the value, and of the reference.
    name : str
        Whose error the reference is.
    """
    ranking = ranks(within)
    if not error < reference or ranking:
        return None
    fact = f"the RMS log Bellman error is better than {name} ({error:.3g} against {reference:.3g} nats), but"
    if ranking is None:
        shown = "there is no such pair" if math.isnan(within.estimate) else f"AUC {within}"
        return (
            f"{fact} it is not known whether prefixes of one prompt and depth are ranked right ({shown}): use more prompts "
            "that have both right and wrong solutions"
        )
    return (
        f"{fact} prefixes of one prompt and depth are ranked no better than by a guess (AUC {within}; .5 is a guess), so that "
        "resampling by these values gains nothing: train longer or on more prompts, try target mc or another learning "
        "rate, and choose checkpoints by auc_within or brier"
    )


@dataclass(frozen=True, eq=False)
class CalibrationSummary:
    """Calibration of p against outcomes, intervals over prompts.

    Attributes
    ----------
    n, n_prompts : int
        Number of predictions and of prompts.
    mean_p, mean_outcome : Interval
        Their difference is the bias in the large.
    brier : Interval
        Mean squared error.
    brier_constant : float
        Brier score of the mean outcome as the only prediction: what a useful model must beat.
    ece : float
        Expected calibration error over 10 bins of equal mass; biased upward by noise, so without an interval.
    auc : Interval
        NaN without a success or without a failure.
    curve : ReliabilityCurve
        The bins.
    curve_outcome : tuple of Interval
        Mean outcome of each bin, bins held fixed.
    """

    n: int
    n_prompts: int
    mean_p: Interval
    mean_outcome: Interval
    brier: Interval
    brier_constant: float
    ece: float
    auc: Interval
    curve: ReliabilityCurve
    curve_outcome: tuple[Interval, ...]


def calibration_estimator(
    p: np.ndarray,
    outcome: np.ndarray,
    prompt: np.ndarray,
    weights: np.ndarray | None = None,
    bins: int = 10,
) -> Estimator[CalibrationSummary]:
    """Brier, ECE, AUC and reliability of p.

    Parameters
    ----------
    p, outcome, weights, bins
        As `reliability_curve`.
    prompt : np.ndarray
        (n,) labels, resampled as one.

    Raises
    ------
    UserError
        As `reliability_curve`.
    """
    p, y, w = _checked(p, outcome, weights)
    check_count("bins", bins)
    curve = _curve(p, y, w, bins)
    problems = {
        name: weighted_mean(value, prompt, w)
        for name, value in {"p": p, "outcome": y, "brier": (p - y) ** 2}.items()
    }
    for k in range(len(curve.mass)):
        problems[f"bin {k}"] = weighted_mean(y, prompt, w * (curve.index == k))

    def result(found: Mapping[str, Interval]) -> CalibrationSummary:
        return CalibrationSummary(
            n=len(p),
            n_prompts=len(np.unique(prompt)),
            mean_p=found["p"],
            mean_outcome=found["outcome"],
            brier=found["brier"],
            brier_constant=float(np.average((y - np.average(y, weights=w)) ** 2, weights=w)),
            ece=_gap(curve),
            auc=_auc_interval(p, y, w, prompt),
            curve=curve,
            curve_outcome=tuple(found[f"bin {k}"] for k in range(len(curve.mass))),
        )

    return Estimator(problems, result)


@dataclass(frozen=True)
class ZCheck:
    """Z (mean potential of the trajectories), V(s_0), and V(s_0) minus Z, paired: 0 for a calibrated root."""

    z: Interval
    root_value: Interval
    difference: Interval


def z_check(z: np.ndarray, root_value: np.ndarray) -> Estimator[ZCheck]:
    """Compare (P,) mean potentials and root values of the prompts."""
    columns = {"z": z, "root_value": root_value, "difference": root_value - z}
    return Estimator({k: (v[:, None], first_mean) for k, v in columns.items()}, lambda found: ZCheck(**found))
