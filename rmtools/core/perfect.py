"""What a perfect value would cost in particles, from rollouts: a bracket around sigma^2 with V = V*.

With V = V* the mean value at every depth is Z, so Z^2 (sigma^2 + T) = Z sum over t of
E[V*(s_t)^2 / V*(s_{t-1})] (docs/equations.md section 5). No estimate from R completions is unbiased for
1 / V*. One over the mean of completions is too large on average (Jensen): an upper end. For any function g of
a step, E[A^2 / B] >= 2 c E[A g] - c^2 E[B g^2] with equality at c g = A / B: a lower end in which nothing is
divided. The model's own V(s_t) / V(s_{t-1}) is g, so that a perfect value makes the lower end exact.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> def prompt():  # two steps; the second is a coin with success probability 0.2 or 0.8, and V = V*
...     value, phi = rng.choice([0.2, 0.8], 8), rng.random((3, 8))
...     phi = np.where(phi < value, 1.0, 0.1)
...     log_value = np.log([np.full(8, 0.55), 0.1 + 0.9 * value, phi[0]]).T
...     return perfect_parts(log_value, phi[0], np.stack([phi[1:], phi[1:]]).transpose(2, 0, 1))
>>> result = perfect_sigma2([prompt() for _ in range(400)], rng)
>>> exact = (0.28**2 + 0.82**2) / 2 / 0.55**2 - 1 + 0.9**2 * 0.16 * (1 / 0.28 + 1 / 0.82) / 2 / 0.55
>>> round(exact, 2), result.lower.contains(exact), result.upper.estimate > exact
(0.81, True, True)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from rmtools.core.cv_cost import Sigma2Parts, check_trajectories, value_square_estimate
from rmtools.core.intervals import (
    Interval,
    as_dict,
    bootstrap_all,
    ratio_of_means,
    read_intervals,
    refuse_nan,
)
from rmtools.errors import UserError


@dataclass(frozen=True, eq=False)
class PerfectParts:
    """Parts of Z^2 (sigma^2 + T) of a perfect value for one prompt, each unbiased for what it names.

    Attributes
    ----------
    known : float
        The steps at which nothing is divided by an unknown V*: the first, and those of prefixes that ended.
    inverted : float
        Z sum over the other steps of E[V*(s_t)^2 / mean completion of s_{t-1}]: too large on average.
    cross, norm : np.ndarray
        (T - 1,) Z E[V*(s_t) g] and Z E[V*(s_{t-1}) g^2] over the prefixes s_{t-1} that have not ended, at
        t = 2..T.
    z_square : float
        Z^2.
    horizon : int
        T.
    """

    known: float
    inverted: float
    cross: np.ndarray
    norm: np.ndarray
    z_square: float
    horizon: int


def perfect_parts(
    log_value: np.ndarray,
    potential: np.ndarray,
    extra: np.ndarray,
    present: np.ndarray | None = None,
    ended: np.ndarray | None = None,
) -> PerfectParts:
    """Estimate the parts of the cost of a perfect value for one prompt from n trajectories.

    Parameters
    ----------
    log_value : np.ndarray
        (n, T + 1) nats, as `sigma2_parts`. They only choose g: any model's values give a valid lower end.
    potential : np.ndarray
        (n,) phi of each trajectory, above zero.
    extra : np.ndarray
        (n, T, R_extra) phi of completions drawn from prefix t = 0..T-1 besides the trajectory's own, above
        zero, at least one at each t >= 1 that has not ended. Column 0 is not read.
    present : np.ndarray, optional
        (n, T, R_extra) bool; entries that are not present are not read.
    ended : np.ndarray, optional
        (n, T) bool: the prefix at t had ended, so that V* is phi and `extra` is not read.

    Returns
    -------
    PerfectParts

    Raises
    ------
    UserError
        With shapes that do not fit, NaN, a value or potential of zero, fewer than two trajectories, or a
        prefix without extra completion.

    Notes
    -----
    Completions that stand for V*(s_{t-1}) are the extra ones, which know nothing of the step to s_t; V*(s_t)
    is made of the trajectory's own and the extra ones at s_t. Z times an expectation is made of pairs of
    distinct trajectories. Source: docs/equations.md section 5.
    """
    log_v, _, phi = check_trajectories(log_value, np.ones(np.shape(log_value)), potential)
    live = _live(ended, log_v.shape)
    mean_extra, own, square = _true_values(phi, extra, present, live)
    log_own = np.where(live, log_v, np.log(phi)[:, None])
    log_next = np.concatenate([log_own[:, 1:], np.log(phi)[:, None]], axis=1)
    step = np.exp(log_next - log_own)[:, 1:]
    # Prefixes 1..T-1, before the steps 2..T; `own` and `square` are at 1..T.
    before, divisor = live[:, 1:], mean_extra[:, 1:]
    return PerfectParts(
        known=float(square[:, 0].mean() + _times_z(phi, np.where(before, 0.0, phi[:, None])).sum()),
        inverted=float(_times_z(phi, np.where(before, square[:, 1:] / divisor, 0.0)).sum()),
        cross=_times_z(phi, np.where(before, own[:, 1:] * step, 0.0)),
        norm=_times_z(phi, np.where(before, divisor * step**2, 0.0)),
        z_square=float(value_square_estimate(phi)),
        horizon=log_v.shape[1],
    )


def _times_z(phi: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Z E[x] of each column of x (n, D), (D,): the mean of phi_i x_j over pairs i != j."""
    n = len(phi)
    return (phi.sum() * x.sum(axis=0) - phi @ x) / (n * (n - 1))


def _live(ended: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """(n, T) bool: prefixes that have not ended; the prompt itself never has."""
    over = np.zeros(shape, dtype=bool) if ended is None else np.asarray(ended, dtype=bool)
    if over.shape != shape:
        raise UserError(f"ended has shape {over.shape}", fix=f"pass {shape}")
    live = ~over
    live[:, 0] = True
    return live


def _true_values(
    phi: np.ndarray, extra: np.ndarray, present: np.ndarray | None, live: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean extra completion at 0..T-1 (1 where not read), unbiased V* and V*^2 at 1..T; (n, T) each."""
    extra = np.asarray(extra, dtype=np.float64)
    mask = np.ones(extra.shape, dtype=bool) if present is None else np.asarray(present, dtype=bool)
    if extra.ndim != 3 or extra.shape[:2] != live.shape or mask.shape != extra.shape:
        raise UserError(
            f"extra and present have shapes {extra.shape} and {mask.shape}",
            fix=f"pass {(*live.shape, 'R_extra')} for both",
        )
    read = live.copy()
    read[:, 0] = False
    mask = mask & read[:, :, None]
    count = mask.sum(axis=2)
    short = np.argwhere(read & (count == 0))
    if len(short):
        i, t = short[0]
        raise UserError(
            f"trajectory {i} has no extra completion at prefix {t}: its true value cannot be bracketed",
            fix="collect at least 1 completion per prefix, or pass `ended` where it has ended",
        )
    _check_positive(phi, extra, mask)
    completions = np.concatenate([np.broadcast_to(phi[:, None, None], (*live.shape, 1)), extra], axis=2)
    counted = np.concatenate([np.ones((*live.shape, 1), dtype=bool), mask], axis=2)
    total = np.where(mask, extra, 0.0).sum(axis=2)
    at_end = np.concatenate([~live[:, 1:], np.ones((len(phi), 1), dtype=bool)], axis=1)
    estimates = ((phi[:, None] + total) / (1 + count), value_square_estimate(completions, counted))
    shifted = [np.concatenate([a[:, 1:], a[:, :1]], axis=1) for a in estimates]
    mean_extra = np.where(read, total / np.maximum(count, 1), 1.0)
    own, square = (np.where(at_end, phi[:, None] ** k, a) for k, a in zip((1, 2), shifted, strict=True))
    return mean_extra, own, square


def _check_positive(phi: np.ndarray, extra: np.ndarray, mask: np.ndarray) -> None:
    refuse_nan("extra", extra, mask)
    for name, bad, array in (("potential", phi <= 0, phi), ("extra", mask & (extra <= 0), extra)):
        if bad.any():
            place = np.argwhere(bad)[0]
            raise UserError(
                f"{name}{place.tolist()} is {array[tuple(place)]}: one over a true value must be finite",
                fix="use a floor above 0",
            )


@dataclass(frozen=True)
class PerfectSigma2:
    """Bracket of the pooled sigma^2 of a perfect value, intervals over prompts.

    Attributes
    ----------
    lower : Interval
        Expected to be at most sigma^2, and equal to it where the model's steps V(s_t) / V(s_{t-1}) are those of
        V*, up to one factor per depth.
    upper : Interval
        Expected to be at least sigma^2. Its excess falls as 1 / R_extra: each term is too large by about
        Var(phi given s) / (R_extra V*(s)^2).
    n_prompts : int
        What it was made of.
    """

    lower: Interval
    upper: Interval
    n_prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Return a dict fit for JSON."""
        return as_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(**read_intervals(values))


def perfect_sigma2(
    parts: Sequence[PerfectParts], rng: np.random.Generator, n_resamples: int = 2000, level: float = 0.95
) -> PerfectSigma2:
    """Bracket sigma^2 of a perfect value, pooled over prompts with weights Z_p^2 as sigma^2 is pooled.

    Parameters
    ----------
    parts : sequence of PerfectParts
        One per prompt.
    rng : np.random.Generator
        Source of the resamples of prompts.
    n_resamples : int
        Number of resamples.
    level : float
        Nominal coverage of each interval.

    Returns
    -------
    PerfectSigma2

    Raises
    ------
    UserError
        If there is no prompt.

    Notes
    -----
    The best c of each depth is cross / norm, summed over prompts. Put in, it would square a noisy mean and push
    the lower end up. Each prompt is weighed with the c of all others instead, on which it has no influence:
    for any such c the expectation is a lower bound. Since c is a maximum, its noise moves the result to second
    order only, and the interval may treat it as given. A prompt without others has c = 1, the best c of a
    perfect value. Source: docs/equations.md section 5.
    """
    lower, upper = _excess(parts)
    z_square = np.array([p.z_square for p in parts])
    problems = {
        name: (np.stack([excess, z_square], axis=1), ratio_of_means)
        for name, excess in (("lower", lower), ("upper", upper))
    }
    found = bootstrap_all(problems, rng, n_resamples, level)
    return PerfectSigma2(found["lower"], found["upper"], len(parts))


def _excess(parts: Sequence[PerfectParts]) -> tuple[np.ndarray, np.ndarray]:
    """Z_p^2 sigma_p^2 of a perfect value by each prompt's lower and upper parts, (C,) each."""
    if not parts:
        raise UserError("there is no prompt to pool over", fix="pass the parts of at least one prompt")
    depths = max(p.horizon for p in parts) - 1
    cross, norm = (
        np.stack([np.pad(row, (0, depths - len(row))) for row in rows])
        for rows in ([p.cross for p in parts], [p.norm for p in parts])
    )
    base = np.array([p.known - p.horizon * p.z_square for p in parts])
    others = _others(norm)
    c = np.where(others > 0, _others(cross) / np.where(others > 0, others, 1.0), 1.0)
    lower = base + np.sum(2 * c * cross - c**2 * norm, axis=1)
    return lower, base + np.array([p.inverted for p in parts])


def _others(x: np.ndarray) -> np.ndarray:
    """Sum of all rows but each one, (C, D); without subtraction, which could lose a small rest."""
    none = np.zeros((1, x.shape[1]))
    before = np.concatenate([none, np.cumsum(x[:-1], axis=0)])
    after = np.concatenate([np.cumsum(x[:0:-1], axis=0)[::-1], none])
    return before + after


@dataclass(frozen=True)
class CostRatio:
    """What the model's errors cost: sigma^2 of the model over sigma^2 of a perfect value, as a bracket.

    Attributes
    ----------
    at_least, at_most : Interval
        Over the upper and over the lower end of `PerfectSigma2`. NaN where that end is not above 0; no `high`
        where its interval reaches 0. Below 1 is possible: V* is close to the cheapest value, not the cheapest.
    n_prompts : int
        What it was made of.
    """

    at_least: Interval
    at_most: Interval
    n_prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Return a dict fit for JSON."""
        return as_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(**read_intervals(values))


def cost_ratio(
    model: Sequence[Sigma2Parts],
    perfect: Sequence[PerfectParts],
    rng: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> CostRatio:
    """Bracket how many times the particles of a perfect value the model needs, pooled over prompts.

    Parameters
    ----------
    model : sequence of Sigma2Parts
        One per prompt, from `sigma2_parts`.
    perfect : sequence of PerfectParts
        Of the same prompts in the same order, so that both are resampled together.
    rng : np.random.Generator
        Source of the resamples of prompts.
    n_resamples : int
        Number of resamples.
    level : float
        Nominal coverage of each interval.

    Returns
    -------
    CostRatio

    Raises
    ------
    UserError
        If there is no prompt, or the numbers of prompts differ.

    Notes
    -----
    Source: docs/equations.md section 5.
    """
    if len(model) != len(perfect):
        raise UserError(
            f"{len(model)} prompts of the model and {len(perfect)} of the perfect value",
            fix="pass the parts of the same prompts in the same order",
        )
    lower, upper = _excess(perfect)
    cost = np.array([p.numerator - p.horizon * p.z_square for p in model])
    ends = {"at_least": upper, "at_most": lower}
    problems = {name: (np.stack([cost, end], axis=1), ratio_of_means) for name, end in ends.items()}
    problems |= {f"{name} end": (end[:, None], _first_mean) for name, end in ends.items()}
    found = bootstrap_all(problems, rng, n_resamples, level)
    ratios = {name: _resolved(found[name], found[f"{name} end"]) for name in ends}
    return CostRatio(**ratios, n_prompts=len(perfect))


def _first_mean(means: np.ndarray) -> np.ndarray:
    return means[:, 0]


def _resolved(ratio: Interval, divisor: Interval) -> Interval:
    """Return the ratio as far as its divisor can be told from 0."""
    if not divisor.estimate > 0:
        return Interval(math.nan, None, None)
    if divisor.low is None or divisor.low <= 0:
        return Interval(ratio.estimate, ratio.low, None)
    return ratio
