"""The error of one run from its genealogy: which particles of the first generation still have offspring.

For multinomial resampling, with any trigger and any pool, and for no resampling at all. For other schemes the estimate is
wrong, in either direction (docs/equations.md section 9; Lee & Whiteley 2018, arXiv 1509.00394; Chan & Lai 2013).

>>> import numpy as np
>>> log_weights = np.log(np.full((1, 4), 0.25))
>>> found = genealogy(np.array([[0, 0, 1, 3]]), log_weights, resamplings=np.array([1]))
>>> found.families.tolist(), round(float(found.relative_variance[0]), 4), found.log_z_se.tolist()
([3], -0.1111, [nan])
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Genealogy:
    """The families of G runs, and the error they give.

    Attributes
    ----------
    family : np.ndarray
        (G, N) int: the particle of the first generation that each final particle descends from.
    weights : np.ndarray
        (G, N) normalised.
    inflation : np.ndarray
        (G,) (N / (N - 1))^(R + 1) after R resamplings; inf for a single particle.
    """

    family: np.ndarray
    weights: np.ndarray
    inflation: np.ndarray

    def of_group(self, group: int) -> "Genealogy":
        """Return one group, (1, N)."""
        at = slice(group, group + 1)
        return Genealogy(self.family[at], self.weights[at], self.inflation[at])

    @property
    def families(self) -> np.ndarray:
        """(G,) number of families of positive weight. With few of them every error here is too small."""
        number: np.ndarray = np.count_nonzero(self._sums(self.weights), axis=1)
        return number

    @property
    def relative_variance(self) -> np.ndarray:
        """(G,) v: Zhat^2 v is an unbiased estimate of Var(Zhat), so v may be negative; NaN where Zhat is zero."""
        with np.errstate(invalid="ignore"):
            v = 1 - self.inflation * (1 - np.square(self._sums(self.weights)).sum(axis=1))
        usable = (self.weights.sum(axis=1) > 0) & np.isfinite(self.inflation)
        return np.where(usable, v, np.nan)

    @property
    def log_z_se(self) -> np.ndarray:
        """(G,) standard error of log Zhat, nats; NaN where it is not resolved: v <= 0, or above 0.5."""
        v = self.relative_variance
        return np.sqrt(np.where((v > 0) & (v <= 0.25), v, np.nan))

    def share_se(self, phi: np.ndarray) -> np.ndarray:
        """Return the standard error (G,) of the weighted mean of `phi`, (G, N); NaN where Zhat is zero."""
        phi = np.asarray(phi, dtype=float)
        mean = (self.weights * phi).sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            variance = self.inflation * np.square(self._sums(self.weights * (phi - mean))).sum(axis=1)
        return np.where(self.weights.sum(axis=1) > 0, np.sqrt(variance), np.nan)

    def shares_se(self, label: np.ndarray) -> np.ndarray:
        """Return the standard errors (A,) of the shares of all answers of one group, `label` (N,) in 0 to A - 1."""
        weight, own = self.weights[0], self._sums(self.weights)[0]
        share = np.bincount(label, weights=weight)
        pair, place = np.unique(label * len(own) + self.family[0], return_inverse=True)
        answer, family = np.divmod(pair, len(own))
        of_pair = np.bincount(place, weights=weight)
        # sum_b (A_b - p S_b)^2, over the families b
        square = np.bincount(answer, weights=of_pair * (of_pair - 2 * share[answer] * own[family]))
        variance = np.maximum(square + share**2 * np.square(own).sum(), 0.0)
        se: np.ndarray = np.sqrt(self.inflation[0] * variance)
        return se

    def _sums(self, x: np.ndarray) -> np.ndarray:
        """Return the sums (G, N) of x (G, N) by family."""
        groups, n = x.shape
        place = (self.family + np.arange(groups)[:, None] * n).ravel()
        return np.bincount(place, weights=x.ravel(), minlength=groups * n).reshape(groups, n)


def genealogy(family: np.ndarray, log_weights: np.ndarray, resamplings: np.ndarray) -> Genealogy:
    """Return the genealogy of runs with `family` (G, N), normalised `log_weights` (G, N) and R = `resamplings` (G,)."""
    n = family.shape[1]
    ratio = n / (n - 1) if n > 1 else np.inf
    return Genealogy(family, np.exp(log_weights), ratio ** (np.asarray(resamplings, dtype=float) + 1))
