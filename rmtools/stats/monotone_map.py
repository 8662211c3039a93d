"""Monotone maps of a probability, in log odds: Platt scaling or piecewise linear, one for all depths or one for each.

With x = logit p the map is q = sigmoid(b_t + sum_j s_tj r_j(x)): the ramp r_j(x) is the part of x between two knots, every
slope s_tj is at least 0, and t is the depth (steps taken). Without knots it is Platt scaling, sigmoid(b_t + s_t x) (Platt 1999).
A map keeps the order of any two prefixes of one depth, and is never 0 or 1.

>>> import numpy as np
>>> halved = MonotoneMap((0.0,), ((0.5,),))
>>> np.exp(halved(np.log([0.2, 0.5, 0.9]))).round(3).tolist()
[0.333, 0.5, 0.75]
>>> halved.platt
(0.5, 0.0)
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from rmtools.errors import UserError
from rmtools.stats.bootstrap import refuse_nan

MOST_LOG_ODDS = 30.0
"""Log odds are cut here on both sides, before the map and after it: p is known to 1e-13, and is never 0 or 1."""


@dataclass(frozen=True)
class MonotoneMap:
    """A monotone map of log p to log q, by depth.

    Attributes
    ----------
    intercepts : tuple of float
        (D,) b_t, nats; depths from D - 1 on have the last. D = 1: one map for all depths.
    slopes : tuple of tuple of float
        (D, K + 1) s_tj, at least 0, one for each interval between K knots.
    knots : tuple of float
        (K,) log odds, increasing; () for Platt scaling.

    Raises
    ------
    UserError
        If the shapes differ, a number is not finite, a slope is negative, or knots do not increase.
    """

    intercepts: tuple[float, ...]
    slopes: tuple[tuple[float, ...], ...]
    knots: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(s) for s in self.slopes}
        if (
            not self.intercepts
            or len(self.slopes) != len(self.intercepts)
            or lengths != {len(self.knots) + 1}
        ):
            raise UserError(
                f"a map has {len(self.intercepts)} intercepts and slopes for {len(self.slopes)} depths, of lengths "
                f"{sorted(lengths)}, with {len(self.knots)} knots",
                "give an intercept and a slope more than there are knots for each depth",
            )
        numbers = np.asarray(
            [*self.intercepts, *self.knots, *(x for s in self.slopes for x in s)], dtype=float
        )
        if not np.isfinite(numbers).all():
            raise UserError("a map holds numbers that are not finite", "fit it again")
        if min(x for s in self.slopes for x in s) < 0 or (np.diff(self.knots) <= 0).any():
            raise UserError(
                "a map is not monotone: slopes must be at least 0, and knots must increase", "fit it again"
            )

    @classmethod
    def identity(cls) -> Self:
        """Return the map that changes nothing."""
        return cls((0.0,), ((1.0,),))

    @property
    def by_depth(self) -> bool:
        """Whether it is another map at another depth."""
        return len(self.intercepts) > 1

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing."""
        return self.platt == (1.0, 0.0)

    @property
    def platt(self) -> tuple[float, float] | None:
        """Slope and intercept of a Platt scaling that is the same at every depth; None for another map."""
        return None if self.by_depth or self.knots else (self.slopes[0][0], self.intercepts[0])

    def __call__(self, log_p: ArrayLike, depth: ArrayLike = 0) -> np.ndarray:
        """Return log q (...) nats, below 0, of log p (...) nats at depths that broadcast with it.

        Raises
        ------
        UserError
            If an entry is NaN or above 0.
        """
        x = log_odds(log_p)
        at = np.minimum(np.broadcast_to(np.asarray(depth, dtype=np.int64), x.shape), len(self.intercepts) - 1)
        slopes, intercepts = np.asarray(self.slopes), np.asarray(self.intercepts)
        z = intercepts[at] + (ramps(x, self.knots) * slopes[at]).sum(axis=-1)
        found: np.ndarray = -np.logaddexp(0.0, -np.clip(z, -MOST_LOG_ODDS, MOST_LOG_ODDS))
        return found

    def __str__(self) -> str:
        if self.is_identity:
            return "identity"
        form = f"piecewise linear in log odds ({len(self.knots)} knots)" if self.knots else "Platt scaling"
        if self.platt is not None:
            form += f", logit q = {self.platt[0]:.3g} logit p {self.platt[1]:+.3g}"
        return f"{form}, one for each of {len(self.intercepts)} depths" if self.by_depth else form


def log_odds(log_p: ArrayLike) -> np.ndarray:
    """Return logit p (...) nats of log p (...), cut at `MOST_LOG_ODDS`; raise ``UserError`` for NaN and for p > 1.

    >>> log_odds([-np.inf, np.log(0.5), 0.0]).round(6).tolist()
    [-30.0, 0.0, 30.0]
    """
    x = np.asarray(log_p, dtype=np.float64)
    refuse_nan("log_p", x)
    if x.size and x.max() > 1e-5:
        raise UserError(f"a log probability is {x.max():g}", "log probabilities are at most 0")
    x = np.minimum(x, -np.exp(-MOST_LOG_ODDS))
    with np.errstate(over="ignore"):
        found: np.ndarray = np.clip(x - np.log(-np.expm1(x)), -MOST_LOG_ODDS, MOST_LOG_ODDS)
    return found


def ramps(x: np.ndarray, knots: ArrayLike) -> np.ndarray:
    """Return (..., K + 1): the parts of x (...) below the first of K knots, between two of them, above the last.

    >>> ramps(np.array([-1.0, 0.5, 3.0]), [0.0, 1.0]).tolist()
    [[-1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 1.0, 2.0]]
    """
    edges = np.asarray(knots, dtype=np.float64)
    if not len(edges):
        return x[..., None]
    first = np.minimum(x, edges[0])[..., None]
    rest = np.clip(x[..., None], edges, np.append(edges[1:], np.inf)) - edges
    return np.concatenate([first, rest], axis=-1)
