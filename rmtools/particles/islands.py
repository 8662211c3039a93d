"""Islands: K independent runs of n = N / K particles in one call of the sampler, and the error they give.

Islands are pooled with weights Zhat_k. The spread of Zhat_k between islands gives a standard error of log Z and an interval
for the share of an answer, whatever the resampling scheme (docs/equations.md section 9). All figures are Monte-Carlo errors
under this policy, value and tilt; they say nothing about whether an answer is right.

>>> import numpy as np
>>> default_islands(64), default_islands(128), default_islands(256), default_islands(300), default_islands(250)
(1, 4, 8, 4, 1)
>>> log_z = np.log([[1.0, 1.2, 0.8, 1.0]])
>>> round(float(log_z_error(log_z)[0]), 4), round(float(effective_number(log_z)[0]), 3)
(0.0816, 3.922)
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from rmtools.errors import UserError
from rmtools.particles.arguments import check_count
from rmtools.particles.logspace import log_mean_exp, shift_of

DEFAULTS = ((256, 8), (128, 4))  # from N particles on, K islands
FEWEST = 3  # islands with a positive estimate, below which no error is resolved
LARGEST_ERROR = 0.5  # of log Z, nats: the delta method says nothing beyond
Z_95 = 1.959963984540054


def default_islands(n_particles: int) -> int:
    """Return K for `n_particles`: 1 below 128, 4 from 128 on, 8 from 256 on; the next smaller one if it does not divide N."""
    return next((k for least, k in DEFAULTS if n_particles >= least and n_particles % k == 0), 1)


def resolve_islands(islands: int | None, n_particles: int, resampling: str) -> int:
    """Return K, the default for None; raise UserError if it does not divide N, or the scheme follows no law."""
    if islands is None:
        return 1 if resampling == "top_k" else default_islands(n_particles)
    check_count("islands", islands, fix=4)
    if islands > 1 and resampling == "top_k":
        raise UserError(
            f"`islands` {islands} do not go with `resampling` top_k: keeping the best follows no law and estimates no Z "
            "to pool by",
            fix="islands=1",
        )
    if n_particles % islands:
        nearest = max(1, round(n_particles / islands)) * islands
        raise UserError(
            f"`islands` {islands} do not divide `n_particles` {n_particles}: all islands have the same number of particles",
            fix=f"`n_particles` {nearest}",
        )
    return int(islands)


@dataclass(frozen=True)
class IslandView:
    """Particles (G, N) seen as G * K groups of N / K: island k holds slots k N / K to (k + 1) N / K - 1.

    The prefixes stay together, so equal prefixes of all islands of a group share what the particles share.
    """

    whole: Any
    count: int

    @property
    def shape(self) -> tuple[int, int]:
        """The pair (G * K, n)."""
        groups, n = self.whole.shape
        return groups * self.count, n // self.count

    @property
    def ended(self) -> np.ndarray:
        """(G * K, n) bool."""
        ended: np.ndarray = self.whole.ended.reshape(self.shape)
        return ended

    def log_value(self) -> np.ndarray:
        """Return (G * K, n) log values in nats."""
        value: np.ndarray = self.whole.log_value().reshape(self.shape)
        return value

    def extend(self, pool_size: int, rng: np.random.Generator) -> "IslandView":
        """Return the children, (G * K, n * pool_size)."""
        return replace(self, whole=self.whole.extend(pool_size, rng))

    def select(self, index: np.ndarray) -> "IslandView":
        """Return the prefixes at `index`, (G * K, k) integers into n."""
        return replace(self, whole=self.whole.select(joined_index(index, self.count, self.shape[1])))

    def copied(self) -> "IslandView":
        """Return the prefixes in memory of their own."""
        return replace(self, whole=self.whole.copied())

    def kept(self) -> "IslandView":
        """Return the prefixes with memory that stays."""
        return replace(self, whole=self.whole.kept())


def joined_index(index: np.ndarray, islands: int, n: int) -> np.ndarray:
    """Return indices (..., G * K, k) into the n of each island as indices (..., G, K * k) into the K n of its group."""
    *first, rows, k = index.shape
    split = index.reshape(*first, rows // islands, islands, k)
    joined: np.ndarray = split + (np.arange(islands) * n).astype(index.dtype)[:, None]
    return joined.reshape(*first, rows // islands, islands * k)


@dataclass(frozen=True, eq=False)
class ByIsland:
    """What the islands of G groups did, one by one.

    Attributes
    ----------
    log_z : np.ndarray
        (G, K) nats: log of the unbiased estimate of each island; -inf where it is zero.
    ess : np.ndarray
        (T, G, K) effective sample size, out of n = N / K.
    resampled, live : np.ndarray
        (T, G, K) bool.
    """

    log_z: np.ndarray
    ess: np.ndarray
    resampled: np.ndarray
    live: np.ndarray

    def of_group(self, group: int) -> "ByIsland":
        """Return one group, (1, K) and (T, 1, K)."""
        at = slice(group, group + 1)
        return ByIsland(self.log_z[at], self.ess[:, at], self.resampled[:, at], self.live[:, at])


class Share(NamedTuple):
    """The share of an answer under the target, one per group, with a 95% interval.

    Attributes
    ----------
    estimate : np.ndarray
        (G,) weighted share; NaN in a group whose estimate of Z is zero.
    low, high : np.ndarray
        (G,) ends of the interval; NaN where it is not resolved: fewer than 3 islands have a positive estimate of Z, or
        the answer occurs in fewer than two.
    se : np.ndarray
        (G,) standard error by the jackknife over islands, 0 where all agree; NaN where not resolved.
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    se: np.ndarray


def log_z_error(log_z: np.ndarray) -> np.ndarray:
    """Return the standard error (G,) of the log of the mean of Zhat_k, `log_z` (G, K) nats, by the delta method.

    NaN where it is not resolved: above 0.5, or fewer than 3 islands have a positive estimate. Islands with an estimate of
    zero count in K.
    """
    count = log_z.shape[1]
    if count < FEWEST:
        return np.full(len(log_z), np.nan)
    z = np.exp(log_z - shift_of(log_z))
    mean = z.mean(axis=1)
    resolved = np.count_nonzero(z, axis=1) >= FEWEST
    se = z.std(axis=1, ddof=1) / np.sqrt(count) / np.where(resolved, mean, np.nan)
    return np.where(se <= LARGEST_ERROR, se, np.nan)


def effective_number(log_z: np.ndarray) -> np.ndarray:
    """Return (sum Zhat)^2 / sum Zhat^2 (G,) of `log_z` (G, K) nats: K where all are equal, 0 where all are zero."""
    z = np.exp(log_z - shift_of(log_z))
    total, squares = z.sum(axis=1), np.einsum("gk,gk->g", z, z)
    number: np.ndarray = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
    return number


def t_quantile(islands: int) -> float:
    """Return the 97.5% quantile of Student's t with K - 1 degrees of freedom."""
    from scipy.special import stdtrit  # here: it takes longer to import than the sampler

    return float(stdtrit(islands - 1, 0.975))


def pooled_share(phi: np.ndarray, log_weights: np.ndarray, log_z: np.ndarray) -> Share:
    """Return the share of an answer in the pooled population.

    Parameters
    ----------
    phi : np.ndarray
        (G, N) in [0, 1]: 1 where the particle has the answer.
    log_weights : np.ndarray
        (G, N) nats, pooled and normalised.
    log_z : np.ndarray
        (G, K) nats, of each island.

    Notes
    -----
    Source: docs/equations.md section 9. Jackknife over islands; Wilson's interval for n_eff =
    min(N / 2, p (1 - p) / se^2 (1.96 / t)^2) draws: islands that agree are no proof. With N in place of N / 2 a share of .09 on
    4 islands of 32 was covered in .88 instead of .91 (docs/log.md).
    """
    weight = np.exp(log_weights).reshape(*log_z.shape, -1)
    phi = np.asarray(phi, dtype=float).reshape(weight.shape)
    return share_of_sums((weight * phi).sum(axis=2), weight.sum(axis=2), log_weights.shape[1])


def share_of_sums(of_island: np.ndarray, mass: np.ndarray, n_particles: int) -> Share:
    """Return `pooled_share` from the weight of an answer on each island, (G, K), and of all answers, (G, K)."""
    (groups, count), total = of_island.shape, mass.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = np.clip(of_island.sum(axis=1) / total, 0.0, 1.0)
        resolved = (np.count_nonzero(mass > 0, axis=1) >= FEWEST) & (
            np.count_nonzero(of_island > 0, axis=1) >= 2
        )
        if count < FEWEST or not resolved.any():
            none = np.full(groups, np.nan)
            return Share(estimate, none, none, none)
        left = (of_island.sum(axis=1, keepdims=True) - of_island) / (total[:, None] - mass)
        spread = np.square(left - left.mean(axis=1, keepdims=True)).sum(axis=1)
        se = np.sqrt((count - 1) / count * spread)
        noise = estimate * (1 - estimate)
        n_eff = np.fmin(n_particles / 2, noise / se**2 * (Z_95 / t_quantile(count)) ** 2)
        low, high = wilson(estimate, n_eff)
    return Share(estimate, *(np.where(resolved, x, np.nan) for x in (low, high, se)))


def wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of Wilson's 95% interval for a share of `n` draws (n > 0, not necessarily whole)."""
    square = Z_95**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = Z_95 / (1 + square / n) * np.sqrt(share * (1 - share) / n + square / (4 * n**2))
    return np.clip(middle - half, 0.0, 1.0), np.clip(middle + half, 0.0, 1.0)


def pooled_log_z(log_z: np.ndarray) -> np.ndarray:
    """Return log of the mean of Zhat_k, (G,) nats, of `log_z` (G, K)."""
    return log_z[:, 0] if log_z.shape[1] == 1 else log_mean_exp(log_z)
