"""What the cost of a perfect value is made of, for one prompt, from rollouts (docs/equations.md section 5).

sigma^2 with V = V* divides by V*(s_{t-1}), and no estimate from R completions is unbiased for 1 / B with
B = V*(s). Expanded around h = c / V(s) of any model, for even m,

    1 / B = h sum over k < m of (1 - B h)^k + (1 - B h)^m / B,

where the sum is a polynomial of B, unbiased from products of distinct completions, and the remainder is not
negative. Without it: at most 1 / B. With 1 / B in it replaced by one over the mean of yet other completions,
which is too large on average (Jensen): at least 1 / B. Both hold for every c and every model; a model within
20% of V* leaves .2^m of what m = 0 leaves.

>>> import numpy as np
>>> phi = np.array([0.5, 1.5])  # one step: nothing is divided, and Z^2 (sigma^2 + 1) = E[phi^2]
>>> parts = perfect_parts(np.log([[1.0, 0.5], [1.0, 1.5]]), phi, np.ones((2, 1, 1)))
>>> parts.known, parts.z_square, parts.moments.shape
(1.25, 0.75, (4, 2, 0))
"""

from dataclasses import dataclass

import numpy as np

from rmtools.errors import UserError
from rmtools.stats.bootstrap import refuse_nan
from rmtools.stats.sigma2 import check_trajectories, value_square_estimate


@dataclass(frozen=True, eq=False)
class PerfectParts:
    """Parts of Z^2 (sigma^2 + T) of a perfect value for one prompt, each unbiased for what it names.

    With A = V*(s_t), B = V*(s_{t-1}), V the model's value at s_{t-1}, and J one over the mean of completions of
    s_{t-1} that are in nothing else. Arrays hold what each of n trajectories adds at t = 2..T; their sums over
    trajectories have the expectations named, taken over prefixes s_{t-1} that have not ended.

    Attributes
    ----------
    known : float
        The steps at which nothing is divided by an unknown V*: the first, and those of prefixes that ended.
    log_value : np.ndarray
        (n, T - 1) log V, nats; NaN where s_{t-1} had ended.
    moments : np.ndarray
        (4, n, T - 1) Z E[A^2 B^k / V^{k+1}], k = 0..3; NaN with fewer than k extra completions.
    inverse : np.ndarray
        (n, T - 1) Z E[A^2 J], J of all extra completions.
    remainder : np.ndarray
        (3, n, T - 1) Z E[A^2 J B^k / V^k], k = 0..2, J of all extra completions but two; NaN with fewer than 3.
    z_square : float
        Z^2.
    horizon : int
        T.
    largest : float
        Largest potential that was read.
    """

    known: float
    log_value: np.ndarray
    moments: np.ndarray
    inverse: np.ndarray
    remainder: np.ndarray
    z_square: float
    horizon: int
    largest: float


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
        (n, T + 1) nats, as `sigma2_parts`. They only say where 1 / V* is expanded: any model will do, and the
        more V* is a function of depth and V, the closer the ends.
    potential : np.ndarray
        (n,) phi of each trajectory, above zero.
    extra : np.ndarray
        (n, T, R_extra) phi of completions drawn from prefix t = 0..T-1 besides the trajectory's own, above
        zero, at least one at each t >= 1 that has not ended, better 3. Column 0 is not read.
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
    B is made of extra completions of s_{t-1} alone, which know nothing of the step to s_t; A^2 of pairs of
    completions of s_t, the trajectory's own among them; Z times an expectation of pairs of distinct
    trajectories. Source: docs/equations.md section 5.
    """
    log_v, _, phi = check_trajectories(log_value, np.ones(np.shape(log_value)), potential)
    live = _live(ended, log_v.shape)
    extra, mask = _completions(phi, extra, present, live)
    square = _next_square(phi, extra, mask, live)
    before = live[:, 1:]  # the prefixes 1..T-1, from which the steps 2..T are taken
    # Weighed like this, a sum over trajectories is Z E[x]: the mean of phi_i x_j over pairs i != j.
    times_z = ((phi.sum() - phi) / (len(phi) * (len(phi) - 1)))[:, None]

    def added(factor: np.ndarray) -> np.ndarray:
        return np.where(before, times_z * square[:, 1:] * factor, 0.0)

    value = np.where(before, np.exp(log_v[:, 1:]), 1.0)
    extra, mask = extra[:, 1:], mask[:, 1:]
    ratio = extra / value[:, :, None]
    count = np.maximum(mask.sum(axis=2), 1)
    return PerfectParts(
        known=float(square[:, 0].mean() + np.where(before, 0.0, times_z * phi[:, None]).sum()),
        log_value=np.where(before, log_v[:, 1:], np.nan),
        moments=np.stack([added(mean / value) for mean in _product_means(ratio, count)]),
        inverse=added(count / np.where(before, extra.sum(axis=2), 1.0)),
        remainder=np.stack([added(mean) for mean in _jensen_means(extra, ratio, mask, count)]),
        z_square=float(value_square_estimate(phi)),
        horizon=log_v.shape[1],
        largest=float(max(phi.max(), extra.max(initial=0.0))),
    )


def _product_means(ratio: np.ndarray, count: np.ndarray) -> list[np.ndarray]:
    """Means of products of k = 0..3 distinct entries along the last axis, absent ones 0; NaN with too few."""
    first, second, third = (np.sum(ratio**k, axis=2) for k in (1, 2, 3))
    pairs = np.where(count > 1, count * (count - 1.0), np.nan)
    triples = np.where(count > 2, pairs * (count - 2.0), np.nan)
    return [
        np.ones(count.shape),
        first / count,
        (first**2 - second) / pairs,
        (first**3 - 3 * first * second + 2 * third) / triples,
    ]


def _jensen_means(
    extra: np.ndarray, ratio: np.ndarray, mask: np.ndarray, count: np.ndarray
) -> list[np.ndarray]:
    """Means over pairs of completions of 1, x and x x' over the mean of all others; NaN with fewer than 3."""
    total, n = extra.sum(axis=2)[:, :, None, None], count[:, :, None, None]
    rest = total - extra[:, :, :, None] - extra[:, :, None, :]
    used = mask[:, :, :, None] & mask[:, :, None, :] & ~np.eye(extra.shape[2], dtype=bool) & (n > 2)
    inverse = np.where(used, n - 2, 0) / np.where(used, rest, 1.0)
    pairs = np.where(count > 2, count * (count - 1.0), np.nan)
    return [
        inverse.sum(axis=(2, 3)) / pairs,
        np.einsum("itab,ita->it", inverse, ratio) / pairs,
        np.einsum("itab,ita,itb->it", inverse, ratio, ratio) / pairs,
    ]


def _live(ended: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """(n, T) bool: prefixes that have not ended; the prompt itself never has."""
    over = np.zeros(shape, dtype=bool) if ended is None else np.asarray(ended, dtype=bool)
    if over.shape != shape:
        raise UserError(f"ended has shape {over.shape}", fix=f"pass {shape}")
    live = ~over
    live[:, 0] = True
    return live


def _completions(
    phi: np.ndarray, extra: np.ndarray, present: np.ndarray | None, live: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the extra completions that are read, 0 elsewhere, and which these are; (n, T, R) each."""
    extra = np.asarray(extra, dtype=np.float64)
    mask = np.ones(extra.shape, dtype=bool) if present is None else np.asarray(present, dtype=bool)
    if extra.ndim != 3 or extra.shape[:2] != live.shape or mask.shape != extra.shape:
        raise UserError(
            f"extra and present have shapes {extra.shape} and {mask.shape}",
            fix=f"pass {(*live.shape, 'R_extra')} for both",
        )
    read = live & (np.arange(live.shape[1]) > 0)
    mask = mask & read[:, :, None]
    short = np.argwhere(read & ~mask.any(axis=2))
    if len(short):
        i, t = short[0]
        raise UserError(
            f"trajectory {i} has no extra completion at prefix {t}: its true value cannot be bracketed",
            fix="collect at least 1 completion per prefix, or pass `ended` where it has ended",
        )
    refuse_nan("extra", extra, mask)
    for name, array, bad in (("potential", phi, phi <= 0), ("extra", extra, mask & (extra <= 0))):
        if bad.any():
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            raise UserError(
                f"{name}{list(place)} is {array[place]}: one over a true value must be finite",
                fix="use a floor above 0",
            )
    return np.where(mask, extra, 0.0), mask


def _next_square(phi: np.ndarray, extra: np.ndarray, mask: np.ndarray, live: np.ndarray) -> np.ndarray:
    """Unbiased V*^2 at t = 1..T, (n, T); phi^2 at T and where ended."""
    own = np.broadcast_to(phi[:, None, None], (*live.shape, 1))
    square = value_square_estimate(
        np.concatenate([own, extra], axis=2), np.concatenate([np.ones_like(own, dtype=bool), mask], axis=2)
    )
    inner = np.where(live, square, phi[:, None] ** 2)[:, 1:]
    return np.concatenate([inner, phi[:, None] ** 2], axis=1)
