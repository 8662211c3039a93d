"""How the particles needed grow with the horizon: log N of each point with its error, and lines through them.

A need is known from runs of the language models, from runs on the tables, or only as a bound: at least the largest N tried. The
error of log N is normal with the standard deviation of the point's interval, which is at least as wide as the steps of the
search: a factor of sqrt(2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rmtools.stats.bootstrap import Interval
from rmtools.verify.scaling.points import Point, Trial

Z95 = 1.959964
# Below this horizon N is a handful, and its growth is that of the constants.
FROM = 4
# Fewer cannot tell a power from an exponential.
FEWEST_HORIZONS = 3
GRID = math.log(2) / 2


@dataclass(frozen=True)
class Need:
    """Particles needed at a horizon: log N, its standard deviation, and what it is from: runs, tables, or bound (at least N)."""

    horizon: int
    log_n: float
    sd: float
    source: str

    @property
    def n(self) -> float:
        """N."""
        return math.exp(self.log_n)


def need_of(point: Point) -> Need:
    """Return the particles that a point needs."""
    if point.n_measured is not None:
        n, trials, source = point.n_measured, point.trials, "runs"
    elif point.n_on_tables is not None:
        n, trials, source = point.n_on_tables, point.trials_on_tables, "tables"
    else:
        tried = [point.n_largest, *(t.n_particles for t in point.trials_on_tables)]
        n, trials, source = float(max(tried)), [], "bound"
    step = _step(n, trials)
    half = step
    if source == "runs":
        low = math.log(n) - step if point.low is None else math.log(max(point.low, 1.0))
        # An end that is not available lies beyond the largest N.
        high = math.log(max(point.n_largest, n)) + GRID if point.high is None else math.log(point.high)
        half = max((high - low) / 2, step)
    return Need(point.horizon, math.log(n), half / Z95, source)


def predicted(point: Point) -> float:
    """Return N predicted; NaN if the pilot did not resolve it."""
    return math.nan if point.n_predicted is None else point.n_predicted


def _step(n: float, trials: Sequence[Trial]) -> float:
    """Return the log of the ratio of N to the next smaller N tried, at least of a step of the search."""
    below = [t.n_particles for t in trials if t.n_particles < n]
    return max(GRID, math.log(n / max(below)) if below else 0.0)


def needs_of(points: Sequence[Point], model: str, sampler: str, least: int = 0) -> list[Need]:
    """Return the needs of a model under a sampler, from horizon ``least`` on, by horizon."""
    found = [need_of(p) for p in points if p.model == model and p.sampler == sampler and p.horizon >= least]
    return sorted(found, key=lambda need: need.horizon)


@dataclass(frozen=True)
class Line:
    """A line by least squares: its slope, and the root mean square of what is left."""

    slope: Interval
    residual: float


def line(x: Sequence[float], y: Sequence[float], sd: Sequence[float]) -> Line:
    """Fit a line through two points or more; the interval of the slope is from the errors ``sd`` of ``y``."""
    at, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    pull = (at - at.mean()) / np.sum((at - at.mean()) ** 2)
    slope = float(pull @ values)
    half = Z95 * float(np.sqrt(np.sum((pull * np.asarray(sd)) ** 2)))
    left = values - values.mean() - slope * (at - at.mean())
    return Line(Interval(slope, slope - half, slope + half), float(np.sqrt(np.mean(left**2))))


@dataclass(frozen=True)
class Growth:
    """Growth of a model's N under a sampler: exponential or polynomial.

    Attributes
    ----------
    horizons : tuple of int
        With a known N, from 4 on if these are three or more.
    bounds : int
        Further horizons, of which only a bound is known; they are in no line.
    exponential, polynomial : Line or None
        Log N on T, and on log T; None with fewer than three horizons.
    shape : str
        Which of the two is nearer to the points; not resolved with fewer than three horizons from 4 on.
    """

    model: str
    sampler: str
    horizons: tuple[int, ...]
    bounds: int
    exponential: Line | None
    polynomial: Line | None
    shape: str


def growth_of(points: Sequence[Point], model: str, sampler: str) -> Growth:
    """Fit both laws.

    A bound counts with its value where that already makes the exponential nearer: a larger N would, too. Where it makes the
    polynomial nearer nothing is resolved.
    """
    found = needs_of(points, model, sampler)
    known = [n for n in found if n.source != "bound"]
    late = [n for n in known if n.horizon >= FROM]
    used = late if len(late) >= FEWEST_HORIZONS else known
    exponential, polynomial = _both(used)
    shape = "not resolved" if len(late) < FEWEST_HORIZONS else _nearer(exponential, polynomial)
    bounds = [n for n in found if n.source == "bound"]
    if bounds and shape != "not resolved":
        last = all(n.horizon > used[-1].horizon and n.log_n > used[-1].log_n for n in bounds)
        with_bounds = _nearer(*_both([*used, *bounds])) if last else ""
        shape = with_bounds if with_bounds == "exponential" else "not resolved"
    return Growth(model, sampler, tuple(n.horizon for n in used), len(bounds), exponential, polynomial, shape)


def _both(needs: Sequence[Need]) -> tuple[Line | None, Line | None]:
    """Return the lines of log N on T and on log T."""
    if len(needs) < FEWEST_HORIZONS:
        return None, None
    t, y, sd = [n.horizon for n in needs], [n.log_n for n in needs], [n.sd for n in needs]
    return line(t, y, sd), line([math.log(x) for x in t], y, sd)


def _nearer(exponential: Line | None, polynomial: Line | None) -> str:
    if exponential is None or polynomial is None:
        return "not resolved"
    return "exponential" if exponential.residual < polynomial.residual else "polynomial"


def power(needs: Sequence[Need]) -> tuple[Interval, bool] | None:
    """Return the slope of log N on log T, and whether it is only a lower bound; None with fewer than two horizons.

    A horizon of which only a bound is known counts with the bound where a larger N would raise the slope; the slope is then at
    least the estimate, and has no upper end. Where a larger N would lower the slope it is left out.
    """
    centre = np.mean([math.log(n.horizon) for n in needs]) if needs else 0.0
    used = [n for n in needs if n.source != "bound" or math.log(n.horizon) > centre]
    if len(used) < 2:
        return None
    found = line([math.log(n.horizon) for n in used], [n.log_n for n in used], [n.sd for n in used])
    bounded = any(n.source == "bound" for n in used)
    return (replace(found.slope, high=None) if bounded else found.slope), bounded
