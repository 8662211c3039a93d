"""Particles of one model beside those of another, of one sampler beside the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.stats.bootstrap import Interval
from rmtools.verify.scaling.baselines import Baseline
from rmtools.verify.scaling.points import Consistency, Point, Trial
from rmtools.verify.scaling.report.growth import Z95, Need, need_of, needs_of
from rmtools.verify.scaling.run import Scaling


@dataclass(frozen=True)
class Ratio:
    """N of a model over N of the exact value at one horizon; ``bound``: at least that, the model's N is censored."""

    model: str
    sampler: str
    horizon: int
    found: Interval
    bound: bool


def ratios_to_exact(points: Sequence[Point], model: str, sampler: str) -> list[Ratio]:
    """Return N of a model over that of the exact value, at every horizon where the latter is known."""
    exact = {n.horizon: n for n in needs_of(points, "exact", sampler) if n.source != "bound"}
    found = []
    for need in needs_of(points, model, sampler):
        if (other := exact.get(need.horizon)) is not None:
            middle, half = need.log_n - other.log_n, Z95 * math.hypot(need.sd, other.sd)
            bound = need.source == "bound"
            ends = (math.exp(middle - half), None if bound else math.exp(middle + half))
            found.append(Ratio(model, sampler, need.horizon, Interval(math.exp(middle), *ends), bound))
    return found


def variance_ratios(points: Sequence[Point], model: str, sampler: str) -> list[Ratio]:
    """Return N CV(Zhat)^2 of a model over that of the exact value, at every horizon where both have runs that large.

    Of the language models' runs with half of the N needed or more. It is not rounded by the steps of the search.
    """
    found = []
    own, exact = (
        {p.horizon: p for p in points if (p.model, p.sampler) == (m, sampler)} for m in (model, "exact")
    )
    for horizon in sorted(own.keys() & exact.keys()):
        pair = [_near_need(own[horizon]), _near_need(exact[horizon])]
        if all(pair):
            a, b = map(n_cv2, pair)
            sd = math.hypot(*(((x.high or x.estimate) / x.estimate - 1) / Z95 for x in (a, b)))
            ratio = a.estimate / b.estimate
            ends = ratio * math.exp(-Z95 * sd), ratio * math.exp(Z95 * sd)
            found.append(Ratio(model, sampler, horizon, Interval(ratio, *ends), False))
    return found


def _near_need(point: Point) -> list[Trial]:
    need = point.n_measured
    return [
        t
        for t in point.trials
        if need is not None and 2 * t.n_particles >= need and t.cv > 0 and t.cv_error > 0
    ]


def n_cv2(trials: Sequence[Trial]) -> Interval:
    """Return N CV(Zhat)^2, the mean over trials by the precision of each."""
    ratio = np.asarray([t.n_particles * t.cv**2 for t in trials])
    weight = np.asarray([(t.cv / max(2 * t.cv_error, 1e-12)) ** 2 for t in trials])
    middle, half = float(weight @ ratio / weight.sum()), Z95 / math.sqrt(float(weight.sum()))
    return Interval(middle, middle * (1 - half), middle * (1 + half))


def trigger_saving(points: Sequence[Point], model: str) -> list[tuple[int, float, bool]]:
    """Return (T, N at every step over N by default, whether the first is only a bound), where the second is known."""
    default = {p.horizon: need_of(p) for p in points if (p.model, p.sampler) == (model, "default")}
    found = []
    for need in needs_of(points, model, "every-step"):
        other = default.get(need.horizon)
        if other is not None and other.source != "bound":
            found.append((need.horizon, math.exp(need.log_n - other.log_n), need.source == "bound"))
    return found


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's correlation.

    >>> rank_correlation([1, 2, 3, 4], [1, 4, 9, 16])
    1.0
    """
    return round(float(np.corrcoef(_ranks(x), _ranks(y))[0, 1]), 12)


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Return ranks; of equal values the mean."""
    x = np.asarray(values)
    return (x[:, None] > x).sum(axis=1) + (x[:, None] == x).sum(axis=1) / 2


def budget_of(found: Scaling, point: Point) -> float:
    """Return c: T times the root mean square of b under the target, gauge-fixed; NaN if it is not known."""
    known = found.consistency.get(f"{point.model} at {point.horizon}")
    return math.nan if known is None else point.horizon * known.rms_gauge_fixed


def over_exact(found: Scaling, sampler: str) -> list[tuple[Point, float, Need, float]]:
    """Return (point, c, need, N of the exact value) of every model but the exact one."""
    exact = {p.horizon: need_of(p) for p in found.points if (p.model, p.sampler) == ("exact", sampler)}
    rows = []
    for p in found.points:
        other = exact.get(p.horizon)
        if p.sampler != sampler or p.model == "exact" or other is None or other.source == "bound":
            continue
        if math.isfinite(c := budget_of(found, p)):
            rows.append((p, c, need_of(p), other.n))
    return rows


def checkpoints(found: Scaling, horizon: int) -> list[tuple[int, Consistency]]:
    """Return (optimiser steps, `Consistency`) of the default model's checkpoints at one horizon, in order."""
    profile = found.profile
    when = {"early": profile.early, "late": profile.updates} | {str(k): k for k in profile.curve}
    rows = {
        k: found.consistency[f"default-{name} at {horizon}"]
        for name, k in when.items()
        if f"default-{name} at {horizon}" in found.consistency
    }
    return sorted(rows.items(), key=lambda row: row[0])


def tokens_needed(baseline: Baseline) -> float | None:
    """Return tokens of policy and value model of the least N that reaches the accuracy, on a prompt."""
    found = (t for t in baseline.trials if t.n_particles == baseline.n_for_success)
    return next((t.tokens + t.value_tokens for t in found), None)
