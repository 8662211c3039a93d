"""Spread of the influence H under the target, from rollouts: what total variation costs in particles.

The expected output of N particles differs from the target by E|H - E H| / (2 N) in total variation, to first
order (docs/equations.md section 5). A mean absolute value of noisy quantities is biased upward; the variance
of H is not, when every product is made of independent completions. Since the mean absolute deviation is at
most the standard deviation, the latter gives a count that is enough.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> potential = rng.choice([0.5, 1.5], size=4000)  # one step, V(s_0) = Z = 1: H = phi
>>> log_value = np.log(np.stack([np.ones(4000), potential], axis=1))
>>> result = influence_sd(log_value, potential, np.ones((4000, 1, 2)))
>>> round(result.mean, 1), round(result.sd.estimate, 1)  # under the target P(phi = 1.5) = 3/4
(1.2, 0.4)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.errors import UserError
from rmtools.stats.bootstrap import Estimator, Interval, jackknife, ratio_of_means, refuse_nan, root
from rmtools.stats.sigma2 import block_ends, check_trajectories, value_square_estimate

FEWEST_TRAJECTORIES = 6.0


@dataclass(frozen=True)
class InfluenceSD:
    """Spread of H under the target for one prompt, or pooled.

    Attributes
    ----------
    mean : float
        E H = sigma^2 + T, as estimated here.
    variance : Interval
        Var H, may be negative by noise: kept. One prompt: jackknifed, interval over its trajectories. Pooled:
        sum of Z_p^2 Var_p over sum of Z_p^2, the weights of the pooled sigma^2, interval over prompts.
    sd : Interval
        Its root; 0 for a negative variance. n_for_tv(sd, delta) particles are enough, to first order.
    mad_plug_in : float
        E|H - E H| with H estimated for each trajectory: biased upward by the noise of H.
    scaled_variance, z_square : float
        Jackknifed Z^2 Var H and unbiased Z^2 (their means if pooled): what pooling sums before it divides.
    effective_trajectories : float
        (sum phi)^2 / sum phi^2: how many trajectories carry the potential. Pooled: the mean over prompts with
        weights Z_p^2.
    n_prompts, n_trajectories : int
        Sizes of the sample.
    """

    mean: float
    variance: Interval
    sd: Interval
    mad_plug_in: float
    scaled_variance: float
    z_square: float
    effective_trajectories: float
    n_prompts: int
    n_trajectories: int

    @property
    def resolved(self) -> bool:
        """Whether enough trajectories carry the potential: with fewer the interval misses too often (docs/log.md)."""
        return self.effective_trajectories >= FEWEST_TRAJECTORIES


def influence_sd(
    log_value: np.ndarray,
    potential: np.ndarray,
    extra: np.ndarray,
    present: np.ndarray | None = None,
    ended: np.ndarray | None = None,
    times: Sequence[int] | None = None,
) -> InfluenceSD:
    """Estimate the spread of H under the target for one prompt from n trajectories.

    Parameters
    ----------
    log_value : np.ndarray
        (n, T + 1) nats, as `sigma2_parts`.
    potential : np.ndarray
        (n,) phi of each trajectory.
    extra : np.ndarray
        (n, T, R_extra) phi of completions drawn from prefix t = 0..T-1 besides the trajectory's own, at least
        two at each t >= 1 that has not ended (with `times`: at these t). Column 0 is not read.
    present : np.ndarray, optional
        (n, T, R_extra) bool; entries that are not present are not read.
    ended : np.ndarray, optional
        (n, T) bool: the prefix at t had ended, so that V* is phi and `extra` is not read.
    times : sequence of int, optional
        As in `sigma2_parts`: the blocks of a schedule have one h each.

    Raises
    ------
    UserError
        With shapes that do not fit, NaN, a value of zero, times that do not fit, fewer than two trajectories or extra
        completions.

    Notes
    -----
    Var H = sum over t, u of E[phi h_t h_u] / Z - (E H)^2, each product from phi and extra completions at s_t
    and s_u, two distinct ones where t = u. Source: docs/equations.md sections 5 and 10.
    """
    log_v, phi = check_trajectories(log_value, potential)
    starts, ends = block_ends(times, log_v.shape[1])
    mean, square = _completions(np.asarray(extra, dtype=np.float64), phi, log_v.shape, present, ended, ends)
    log_v, (mean, square) = np.take(log_v, starts, axis=1), (np.take(x, ends, axis=1) for x in (mean, square))
    top = log_v.max(axis=0)
    own = np.exp(log_v - top)  # a constant per depth cancels in h
    y, y_square = mean / own, square / own**2
    # phi y_t y_u of each trajectory, (n, T, T): linear in the completions at each of the two prefixes.
    products = phi[:, None, None] * y[:, :, None] * y[:, None, :]
    diagonal = np.arange(y.shape[1])
    products[:, diagonal, diagonal] = phi[:, None] * y_square
    terms = (phi, own, phi[:, None] * y, products)
    totals = tuple(term.sum(axis=0) for term in terms)
    n = len(phi)
    whole = _moments(*(total[None] / n for total in totals))
    left_out = _moments(*((total - term) / (n - 1) for total, term in zip(totals, terms, strict=True)))
    variance = jackknife(float(whole[1][0]), left_out[1])
    scaled = jackknife(float(whole[2][0]), left_out[2]).estimate if phi.any() else 0.0
    mad = _plug_in_mad(y, own, phi) if phi.any() else math.nan
    z_square = float(value_square_estimate(phi))
    carry = float(phi.sum() ** 2 / np.sum(phi**2)) if phi.any() else 0.0
    return InfluenceSD(float(whole[0][0]), variance, root(variance), mad, scaled, z_square, carry, 1, n)


def _plug_in_mad(y: np.ndarray, own: np.ndarray, phi: np.ndarray) -> float:
    """Mean |H - E H| under the weights phi, H from each trajectory's own noisy completions."""
    h = (y * own.mean(axis=0)).sum(axis=1) / phi.mean()
    return float(np.sum(phi * np.abs(h - np.sum(phi * h) / phi.sum())) / phi.sum())


def _moments(
    z: np.ndarray, own: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E H, Var H, Z^2 Var H (B,) from (B,) Z, (B, T) mean V, (B, T) mean phi y, (B, T, T) mean phi y y."""
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.einsum("bt,bt->b", own, first) / z**2
        variance = np.einsum("bt,btu,bu->b", own, second, own) / z**3 - expected**2
        return expected, variance, z**2 * variance


def _completions(
    extra: np.ndarray,
    phi: np.ndarray,
    shape: tuple[int, ...],
    present: np.ndarray | None,
    ended: np.ndarray | None,
    read: list[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased V*(s_t) and V*(s_t)^2 at the depths `read`, (n, T + 1) each; phi and phi^2 at T and where ended."""
    mask = np.ones(extra.shape, dtype=bool) if present is None else np.asarray(present, dtype=bool)
    over = np.zeros(shape, dtype=bool) if ended is None else np.asarray(ended, dtype=bool)
    if extra.ndim != 3 or extra.shape[:2] != shape or mask.shape != extra.shape or over.shape != shape:
        raise UserError(
            f"extra, present and ended have shapes {extra.shape}, {mask.shape} and {over.shape}",
            fix=f"pass {(*shape, 'R_extra')}, the same, and {shape}",
        )
    needed = ~over & np.isin(np.arange(shape[1]), read)
    count = mask.sum(axis=2)
    short = np.argwhere(needed & (count < 2))
    if len(short):
        i, t = short[0]
        raise UserError(
            f"trajectory {i} has {count[i, t]} extra completions at prefix {t}: the variance of H takes two",
            fix="collect at least 2 completions per prefix, or pass `ended` for prefixes that have ended",
        )
    refuse_nan("extra", extra, mask & needed[:, :, None])
    used = np.where(mask & needed[:, :, None], extra, 0.0)
    mean = used.sum(axis=2) / np.maximum(count, 1)
    square = value_square_estimate(used, mask)
    at_end = np.concatenate([~needed, np.ones((len(phi), 1), dtype=bool)], axis=1)
    padded = [np.concatenate([a, a[:, :1]], axis=1) for a in (mean, square)]
    return np.where(at_end, phi[:, None], padded[0]), np.where(at_end, phi[:, None] ** 2, padded[1])


def influence_estimator(prompts: Sequence[InfluenceSD]) -> Estimator[InfluenceSD]:
    """Pool the spread of H over prompts with weights Z_p^2, as sigma^2 is pooled.

    Its root bounds the mean deviation of H with the same weights. The plain mean of Var_p is ruled by prompts
    that are hardly ever solved: its interval covered .82 to .91 where this one covered .92 to .955. A prompt
    without any success has weight 0. With a single success, or two trajectories, a prompt has no jackknife and
    enters uncorrected.

    Raises
    ------
    UserError
        If no prompt has a finite `scaled_variance`.
    """
    usable = [p for p in prompts if math.isfinite(p.scaled_variance)]
    if not usable:
        raise UserError("no prompt has a variance of H", fix="sample at least 3 trajectories of each prompt")
    sums = np.array([(p.scaled_variance, p.z_square) for p in usable])
    weight = sums[:, 1]

    def result(found: Mapping[str, Interval]) -> InfluenceSD:
        scaled, z_square = (float(x) for x in sums.mean(axis=0))
        return InfluenceSD(
            mean=_weighted([p.mean for p in usable], weight),
            variance=found["variance"],
            sd=root(found["variance"]),
            mad_plug_in=_weighted([p.mad_plug_in for p in usable], weight),
            scaled_variance=scaled,
            z_square=z_square,
            effective_trajectories=_weighted([p.effective_trajectories for p in usable], weight),
            n_prompts=len(usable),
            n_trajectories=sum(p.n_trajectories for p in usable),
        )

    return Estimator({"variance": (sums, ratio_of_means)}, result)


def _weighted(values: Sequence[float], weights: np.ndarray) -> float:
    """Weighted mean; a NaN of weight 0 (a prompt without success) does not count."""
    total = weights.sum()
    return float(np.sum(np.where(weights == 0, 0.0, values) * weights) / total) if total > 0 else math.nan
