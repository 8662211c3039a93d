"""The numbers that the claims stand or fall by, beside what was asked before the run (docs/scaling.md)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.particles.islands import wilson
from rmtools.stats.bootstrap import Interval
from rmtools.verify.scaling.measure import SAMPLERS
from rmtools.verify.scaling.points import Point, Variance
from rmtools.verify.scaling.profile import BELLMAN, DELTA_CV, MODELS, TRAINED
from rmtools.verify.scaling.report.comparisons import (
    Ratio,
    n_cv2,
    rank_correlation,
    ratios_to_exact,
    variance_ratios,
)
from rmtools.verify.scaling.report.growth import (
    FEWEST_HORIZONS,
    FROM,
    Z95,
    Growth,
    Need,
    growth_of,
    line,
    needs_of,
    power,
    predicted,
)
from rmtools.verify.scaling.run import Scaling

# What was asked.
SLOPE_WITHIN, MOST_POWER, MOST_POWER_END = 0.1, 1.5, 1.75
FACTOR, LEAST_SHARE, LEAST_PREDICTED, LEAST_RANKS = 2.0, 0.9, 64, 0.95
MOST_RATIO, LONGEST_RATIO, SIGMA2_WITHIN = 1.5, 16, 0.1


@dataclass(frozen=True)
class Claim:
    """A claim with what was found.

    Attributes
    ----------
    name, short, quantity, asked : str
        What is claimed, the same in two or three words, the figure that decides, and what it was asked to be.
    found : Interval or None
        The figure; None if there are too few points.
    holds : bool or None
        None if it cannot be told.
    detail : str
        Which points, and what was left out.
    if_not : str
        What it means if it fails.
    wanted : tuple of float
        The least and the largest estimate that was asked for.
    """

    name: str
    short: str
    quantity: str
    asked: str
    found: Interval | None
    holds: bool | None
    detail: str
    if_not: str
    wanted: tuple[float, float]

    @property
    def verdict(self) -> str:
        """One word or two."""
        return {True: "holds", False: "fails", None: "not resolved"}[self.holds]

    @property
    def margin(self) -> str:
        """How near a claim that fails is to what was asked; empty if its interval is clear of it."""
        if self.holds is not False or self.found is None:
            return ""
        least, most = self.wanted
        low, high = (math.inf if end is None else end for end in (self.found.low, self.found.high))
        if least <= self.found.estimate <= most:
            return "The estimate is what was asked, its interval is too wide."
        reached = high >= least if self.found.estimate < least else low <= most
        return "The interval reaches what was asked: more runs or horizons would decide." if reached else ""


@dataclass(frozen=True)
class Conclusions:
    """What follows from the points."""

    claims: tuple[Claim, ...]
    growth: tuple[Growth, ...]
    ratios: tuple[Ratio, ...]
    finer: tuple[Ratio, ...]

    @property
    def failed(self) -> list[Claim]:
        """Claims that do not hold."""
        return [c for c in self.claims if c.holds is False]


def conclusions(found: Scaling) -> Conclusions:
    """Judge every claim."""
    ratios = tuple(r for s in SAMPLERS for m in TRAINED for r in ratios_to_exact(found.points, m, s))
    finer = tuple(r for s in SAMPLERS for m in TRAINED for r in variance_ratios(found.points, m, s))
    claims = (
        constant_grows_as_success(found),
        *(trained_is_polynomial(found.points, s) for s in SAMPLERS),
        planted_grows_faster(found.points),
        predictions_within_a_factor(found.points),
        predictions_in_order(found.points),
        *(bellman_near_exact(ratios, finer, found, s) for s in SAMPLERS),
        constant_has_sigma2(found.variances),
    )
    growth = tuple(growth_of(found.points, m, s) for s in SAMPLERS for m in MODELS)
    return Conclusions(claims, growth, ratios, finer)


def constant_grows_as_success(found: Scaling) -> Claim:
    """Compare the slope of log(1 + N delta^2) on T, of the constant under the default sampler, with that of log(1/p(T))."""
    success = {h.horizon: h.success for h in found.horizons}
    needs = needs_of(found.points, "constant", "default")
    known = [n for n in needs if n.source != "bound"]
    ratio, text = None, f"T = {_horizons(known)}"
    if len(known) > 1:
        t, relative = [n.horizon for n in known], [n.n * DELTA_CV**2 for n in known]
        sd = [n.sd * r / (1 + r) for n, r in zip(known, relative, strict=True)]
        slope = line(t, [math.log1p(r) for r in relative], sd).slope
        expected = line(t, [-math.log(success[x]) for x in t], [0.0] * len(t)).slope.estimate
        ratio = slope.map(lambda x: x / expected)
        text += f": slopes {slope.estimate:.3f} and {expected:.3f} per step"
        text += _from_variances(found, [n.horizon for n in needs], success)
    return Claim(
        "Without a reward model cost grows as 1/p(T)",
        "no reward model",
        "slope of log(1 + N δ²) on T over that of log(1/p(T)), constant, default sampler",
        f"1 ± {SLOPE_WITHIN}",
        ratio,
        None if ratio is None else abs(ratio.estimate - 1) <= SLOPE_WITHIN,
        text + _left_out(needs, known),
        "Without a reward model the cost grows "
        + ("slower" if ratio is not None and ratio.estimate < 1 else "faster")
        + " with T than 1/p(T) does.",
        (1 - SLOPE_WITHIN, 1 + SLOPE_WITHIN),
    )


def _from_variances(found: Scaling, horizons: Sequence[int], success: Mapping[int, float]) -> str:
    """Return the same ratio of slopes from N CV(Zhat)^2 of all runs: without resampling it is the same at every N."""
    trials = {p.horizon: p.trials for p in found.points if (p.model, p.sampler) == ("constant", "default")}
    if not all(trials[t] and all(x.cv > 0 for x in trials[t]) for t in horizons):
        return ""
    relative = [n_cv2(trials[t]) for t in horizons]
    sd = [((r.high or r.estimate) - r.estimate) / Z95 / (1 + r.estimate) for r in relative]
    slope = line(horizons, [math.log1p(r.estimate) for r in relative], sd).slope
    expected = line(horizons, [-math.log(success[t]) for t in horizons], sd).slope.estimate
    ratio = slope.map(lambda x: x / expected)
    return f"; from N CV(Ẑ)² of all its runs the ratio is {ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def best_trained(points: Sequence[Point], sampler: str) -> str | None:
    """Return the trained model with the least mean log N from T = 4 on; a censored point counts with its largest N."""
    costs = {}
    for model in TRAINED:
        needs = needs_of(points, model, sampler, FROM)
        if needs:
            costs[model] = float(np.mean([n.log_n for n in needs]))
    return min(costs, key=costs.__getitem__, default=None)


def trained_is_polynomial(points: Sequence[Point], sampler: str) -> Claim:
    """Judge the slope of log N on log T of the best trained model."""
    model = best_trained(points, sampler)
    needs = [] if model is None else needs_of(points, model, sampler, FROM)
    slope = power(needs)
    holds: bool | None = None
    text = "too few horizons"
    if slope is not None:
        found, bounded = slope
        holds = found.estimate <= MOST_POWER and (found.high or math.inf) <= MOST_POWER_END
        if (bounded and found.estimate <= MOST_POWER) or len(needs) < FEWEST_HORIZONS:
            holds = None
        text = f"{model}, T = {_horizons(needs)}" + (
            "; at least that, a point is censored" if bounded else ""
        )
    return Claim(
        f"A trained model buys polynomial cost, {sampler}",
        f"trained, {sampler}",
        "slope of log N on log T, best trained model",
        f"≤ {MOST_POWER}, end ≤ {MOST_POWER_END}",
        None if slope is None else slope[0],
        holds,
        text,
        f"No model trained here is shown to need only T^{MOST_POWER} particles: the polynomial cost is not confirmed.",
        (-math.inf, MOST_POWER),
    )


def planted_grows_faster(points: Sequence[Point]) -> Claim:
    """Compare slopes of log N on T of the planted and of the exact value at every step."""
    both = {m: needs_of(points, m, "every-step", FROM) for m in ("planted", "exact")}
    shared = {n.horizon for n in both["exact"] if n.source != "bound"}
    # A bound at the longest horizon keeps the slope of the planted model a lower bound.
    shared &= {
        n.horizon for n in both["planted"] if n.source != "bound" or n.horizon == max(shared, default=0)
    }
    used = {m: [n for n in needs if n.horizon in shared] for m, needs in both.items()}
    difference, bounded = None, any(n.source == "bound" for n in used["planted"])
    if len(shared) > 1:
        pairs = list(zip(used["planted"], used["exact"], strict=True))
        difference = line(
            [p.horizon for p, _ in pairs],
            [p.log_n - e.log_n for p, e in pairs],
            [math.hypot(p.sd, e.sd) for p, e in pairs],
        ).slope
    holds = None
    if difference is not None and difference.low is not None and len(shared) >= FEWEST_HORIZONS:
        holds = True if difference.low > 0 else False if difference.estimate <= 0 and not bounded else None
    return Claim(
        "A small persistent error costs exponentially, every-step",
        "persistent bias",
        "slope of log N on T of the planted value, less that of the exact value",
        "> 0",
        difference,
        holds,
        f"T = {', '.join(map(str, sorted(shared)))}"
        + ("; at least that, a point is censored" if bounded else ""),
        "The planted bias costs no more as T grows than the exact value does.",
        (0.0, math.inf),
    )


def _compared(points: Sequence[Point]) -> tuple[list[tuple[Point, float]], int]:
    """Return points with a prediction and N of runs, inf where it is beyond twice the prediction; and how many were left out."""
    found = []
    for p in points:
        if not math.isfinite(predicted(p)) or predicted(p) <= 0:
            continue
        if p.n_measured is not None:
            found.append((p, p.n_measured))
        elif p.n_largest > FACTOR * predicted(p):
            found.append((p, math.inf))
    return found, len(points) - len(found)


def predictions_within_a_factor(points: Sequence[Point]) -> Claim:
    """Judge the share of points whose measured N is within a factor of the prediction."""
    compared, left = _compared(points)
    large = [(p, n) for p, n in compared if predicted(p) >= LEAST_PREDICTED]
    good = [p for p, n in large if 1 / FACTOR <= n / predicted(p) <= FACTOR]
    share, text = None, "no point with so large a prediction"
    if large:
        low, high = wilson(np.asarray([len(good) / len(large)]), np.asarray([len(large)]))
        share = Interval(len(good) / len(large), float(low[0]), float(high[0]))
        parts = [(s, [p for p, _ in large if p.sampler == s]) for s in SAMPLERS]
        text = ", ".join(f"{sum(p in good for p in own)} of {len(own)} {s}" for s, own in parts)
        text += f"; {left} points have no prediction, or end at the budget" if left else ""
    return Claim(
        "The theory predicts the number",
        "prediction within ×2",
        f"share of points with N within a factor of {FACTOR:g} of a prediction of at least {LEAST_PREDICTED}",
        f"≥ {LEAST_SHARE}",
        share,
        None if share is None else share.estimate >= LEAST_SHARE,
        text,
        "The predictions are off by more than a factor of 2 for more than one point in ten: they are no number to rely on here.",
        (LEAST_SHARE, 1.0),
    )


def predictions_in_order(points: Sequence[Point]) -> Claim:
    """Judge the rank correlation of measured and predicted N; an N beyond twice the prediction counts with the largest tried."""
    compared, left = _compared(points)
    found = None
    if len(compared) > 3:
        measured = [min(n, float(p.n_largest)) for p, n in compared]
        rho = rank_correlation([predicted(p) for p, _ in compared], measured)
        # Fisher's transform; 1.03 is for ranks.
        middle, half = math.atanh(min(rho, 1 - 1e-9)), Z95 * 1.03 / math.sqrt(len(compared) - 3)
        found = Interval(rho, math.tanh(middle - half), math.tanh(middle + half))
    return Claim(
        "The theory ranks reward models and horizons",
        "rank correlation",
        "Spearman's correlation of N measured with N predicted",
        f"≥ {LEAST_RANKS}",
        found,
        None if found is None else found.estimate >= LEAST_RANKS,
        f"{len(compared)} points" + (f", {left} left out" if left else ""),
        "The predictions do not order reward models and horizons as the measurements do.",
        (LEAST_RANKS, 1.0),
    )


def bellman_near_exact(
    ratios: Sequence[Ratio], finer: Sequence[Ratio], found: Scaling, sampler: str
) -> Claim:
    """Judge the largest ratio of the Bellman-trained model to the exact value."""
    asked = [h.horizon for h in found.horizons if h.horizon <= LONGEST_RATIO]
    own = [r for r in ratios if (r.model, r.sampler) == (BELLMAN, sampler) and r.horizon in asked]
    worst = max(own, key=lambda r: r.found.estimate, default=None)
    holds: bool | None = None
    if worst is not None:
        complete = len(own) == len(asked) and not any(r.bound for r in own)
        holds = False if worst.found.estimate > MOST_RATIO else True if complete else None
    shown = (f"{'≥ ' if r.bound else ''}{r.found.estimate:.2g} at T = {r.horizon}" for r in own)
    return Claim(
        f"A Bellman-trained model is nearly as good as the exact value, {sampler}",
        f"near exact, {sampler}",
        f"largest ratio of N of {BELLMAN} to N of the exact value, T up to {LONGEST_RATIO}",
        f"≤ {MOST_RATIO}",
        None if worst is None else worst.found,
        holds,
        (", ".join(shown) or "N of the exact value is not known") + _in_runs(finer, sampler, asked),
        f"The error that training leaves costs more than {MOST_RATIO} times the particles of the exact value.",
        (0.0, MOST_RATIO),
    )


def _in_runs(finer: Sequence[Ratio], sampler: str, horizons: Sequence[int]) -> str:
    """Return the ratios that no step of the search rounds."""
    own = [r for r in finer if (r.model, r.sampler) == (BELLMAN, sampler) and r.horizon in horizons]
    shown = (
        f"{r.found.estimate:.2f} [{r.found.low:.2f}, {r.found.high:.2f}] at T = {r.horizon}" for r in own
    )
    return "; from N CV(Ẑ)² of the runs " + ", ".join(shown) if own else ""


def constant_has_sigma2(variances: Sequence[Variance]) -> Claim:
    """Judge the ratio that is furthest from 1."""
    worst = max(variances, key=lambda v: abs(v.relative.estimate - 1), default=None)
    shown = (
        f"{v.relative.estimate:.2f} [{v.relative.low:.2f}, {v.relative.high:.2f}] at T = {v.horizon}"
        + (" on tables" if v.source == "tables" else "")
        for v in variances
    )
    return Claim(
        "The constant's variance at every step is σ²(T)",
        "constant's variance",
        "N CV(Ẑ)² over σ², the T where it is furthest from 1",
        f"1 ± {SIGMA2_WITHIN}, every T",
        None if worst is None else worst.relative,
        None if worst is None else abs(worst.relative.estimate - 1) <= SIGMA2_WITHIN,
        ", ".join(shown) or "no runs",
        f"At some T the variance measured is not within {SIGMA2_WITHIN:.0%} of σ².",
        (1 - SIGMA2_WITHIN, 1 + SIGMA2_WITHIN),
    )


def _horizons(needs: Sequence[Need]) -> str:
    return ", ".join(str(n.horizon) for n in needs) or "none"


def _left_out(needs: Sequence[Need], known: Sequence[Need]) -> str:
    left = [str(n.horizon) for n in needs if n not in known]
    return f"; T = {', '.join(left)} censored, left out" if left else ""
