"""What a value model costs in particles, from rollouts of the policy alone.

N particles with multinomial resampling at every step estimate Z with relative variance sigma^2 / N, and
sigma^2 + T = A / Z^2 where A sums, over the steps, products of expectations (docs/equations.md section 5).
Both A and Z^2 are estimated without bias from pairs of distinct trajectories and pairs of distinct
completions: no Monte-Carlo mean is ever squared. Their ratio is biased, so it is jackknifed, or numerators
and Z^2 are summed over prompts first.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> potential = rng.choice([0.5, 1.5], size=(400, 1))  # one step, V(s_0) = 1: sigma^2 is the variance of phi
>>> log_value = np.log(np.concatenate([np.ones((400, 1)), potential], axis=1))
>>> parts = sigma2_parts(log_value, np.exp(2 * log_value), potential[:, 0])
>>> round(sigma2(parts).estimate.estimate, 2), n_for_cv(0.25, delta=0.125)
(0.22, 16.0)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.errors import UserError
from rmtools.stats.bootstrap import (
    Interval,
    cluster_bootstrap,
    jackknife,
    ratio_of_means,
    refuse_nan,
)


def value_square_estimate(potentials: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
    """Estimate V*(s)^2 without bias from R completions of s: the mean of phi_i phi_j over pairs i != j.

    Parameters
    ----------
    potentials : np.ndarray
        (..., R) potentials phi of independent completions; a trajectory's own counts if it was not selected
        by outcome.
    present : np.ndarray, optional
        (..., R) bool; entries that are not present are not read.

    Returns
    -------
    np.ndarray
        (...,); NaN where fewer than two are present. At a prefix that has ended use phi^2 instead.

    Raises
    ------
    UserError
        If a potential that is present is NaN.

    Notes
    -----
    Source: docs/equations.md section 5.
    """
    phi = np.asarray(potentials, dtype=np.float64)
    mask = np.ones(phi.shape, dtype=bool) if present is None else np.asarray(present, dtype=bool)
    if phi.ndim == 0 or mask.shape != phi.shape:
        raise UserError(
            f"potentials have shape {phi.shape}, present {mask.shape}", fix="pass (..., R) for both"
        )
    refuse_nan("potentials", phi, mask)
    phi, count = np.where(mask, phi, 0.0), mask.sum(axis=-1)
    pairs = np.where(count > 1, count * (count - 1.0), np.nan)
    return (phi.sum(axis=-1) ** 2 - np.sum(phi**2, axis=-1)) / pairs


@dataclass(frozen=True, eq=False)
class Sigma2Parts:
    """Unbiased parts of sigma^2 for one prompt: sigma^2 = numerator / z_square - horizon.

    Attributes
    ----------
    numerator, z_square : float
        A and Z^2, unbiased; z_square may be 0 or negative.
    horizon : int
        T.
    left_out_numerator, left_out_z_square : np.ndarray
        (n,) the same without each trajectory; NaN with n < 3.
    """

    numerator: float
    z_square: float
    horizon: int
    left_out_numerator: np.ndarray
    left_out_z_square: np.ndarray

    @property
    def n(self) -> int:
        """Number of trajectories."""
        return len(self.left_out_numerator)


def sigma2_parts(log_value: np.ndarray, value_square: np.ndarray, potential: np.ndarray) -> Sigma2Parts:
    """Estimate the parts of sigma^2 for one prompt from n trajectories.

    A prefix that has ended is absorbing: trajectories of different lengths keep the last value, log phi, and
    V*^2 = phi^2 to the end.

    Parameters
    ----------
    log_value : np.ndarray
        (n, T + 1) nats, finite but for the last column, which is the log potential and is not read.
    value_square : np.ndarray
        (n, T + 1) unbiased estimates of V*^2 at each prefix (`value_square_estimate`); phi^2 at T and at
        ended prefixes. Column 0 is not read.
    potential : np.ndarray
        (n,) phi of each trajectory.

    Returns
    -------
    Sigma2Parts

    Raises
    ------
    UserError
        With fewer than two trajectories, shapes that do not fit, NaN, or a value of zero.

    Notes
    -----
    A = sum over t of the mean over i != j of V_i(s_{t-1}) (V*^2)_j(s_t) / V_j(s_{t-1}). Source:
    docs/equations.md section 5.
    """
    log_v, square, phi = check_trajectories(log_value, value_square, potential)
    n, horizon = len(phi), square.shape[1]
    # A is unchanged by a constant per depth: the largest value becomes 1.
    log_v = log_v - log_v.max(axis=0)
    own, ratio = np.exp(log_v), square * np.exp(-log_v)
    sums = (own.sum(axis=0), ratio.sum(axis=0), square.sum(axis=0))
    numerator = _pair_product(*sums, n).sum()
    left_out = _pair_product(sums[0] - own, sums[1] - ratio, sums[2] - square, n - 1).sum(axis=1)
    total, squares = phi.sum(), np.sum(phi**2)
    return Sigma2Parts(
        numerator=float(numerator),
        z_square=float((total**2 - squares) / (n * (n - 1))),
        horizon=horizon,
        left_out_numerator=left_out,
        left_out_z_square=_pair_product(total - phi, total - phi, squares - phi**2, n - 1),
    )


def _pair_product(a: np.ndarray, b: np.ndarray, ab: np.ndarray, n: int) -> np.ndarray:
    """Mean of a_i b_j over i != j among n, from the sums of a, b and ab; NaN for n < 2."""
    return (a * b - ab) / (n * (n - 1) if n > 1 else math.nan)


def check_trajectories(
    log_value: np.ndarray, value_square: np.ndarray, potential: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log V at 0..T-1 (n, T), V*^2 at 1..T (n, T) and phi (n,); raise as `sigma2_parts`."""
    log_v, square, phi = (np.asarray(a, dtype=np.float64) for a in (log_value, value_square, potential))
    if phi.ndim != 1 or log_v.ndim != 2 or log_v.shape != square.shape or len(log_v) != len(phi):
        raise UserError(
            f"log_value, value_square, potential have shapes {log_v.shape}, {square.shape}, {phi.shape}",
            fix="pass (n, T + 1), (n, T + 1) and (n,)",
        )
    if len(phi) < 2 or log_v.shape[1] < 2:
        raise UserError(
            f"{len(phi)} trajectories of {log_v.shape[1] - 1} steps: sigma^2 is made of pairs of them",
            fix="sample at least two trajectories of a prompt, better 64",
        )
    refuse_nan("log_value", log_v)
    refuse_nan("value_square", square, np.arange(square.shape[1])[None, :] > 0)
    refuse_nan("potential", phi)
    bad = ~np.isfinite(log_v[:, :-1])
    if bad.any():
        i, t = np.argwhere(bad)[0]
        raise UserError(
            f"log_value[{i}, {t}] is {log_v[i, t]}: a value of zero or infinity has no finite cost",
            fix="use a floor above 0",
        )
    return log_v[:, :-1], square[:, 1:], phi


@dataclass(frozen=True)
class Sigma2:
    """sigma^2 of one prompt or of several pooled, from rollouts.

    Attributes
    ----------
    estimate : Interval
        sigma^2. One prompt: jackknifed ratio, interval over its trajectories. Pooled: sum of A_p - T_p Z_p^2
        over sum of Z_p^2, interval over prompts. May be negative by noise: it is kept.
    ratio : float
        The ratio without jackknife.
    z_square : Interval
        Z^2, or its mean over prompts.
    resolved : bool
        False where the interval of Z^2 reaches 0 or is not available.
    n_prompts, n_trajectories : int
        What it was made of.
    """

    estimate: Interval
    ratio: float
    z_square: Interval
    resolved: bool
    n_prompts: int
    n_trajectories: int


def sigma2(parts: Sigma2Parts) -> Sigma2:
    """sigma^2 of one prompt, jackknifed over its trajectories.

    Parameters
    ----------
    parts : Sigma2Parts
        From `sigma2_parts`.

    Notes
    -----
    Below about 64 trajectories this is noisy: pool over prompts (`pooled_sigma2`). Source: docs/equations.md
    section 5.
    """
    ratio = _divide(parts.numerator, parts.z_square) - parts.horizon
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = parts.left_out_numerator / parts.left_out_z_square - parts.horizon
    z_square = jackknife(parts.z_square, parts.left_out_z_square)
    return Sigma2(jackknife(ratio, left_out), ratio, z_square, _positive(z_square), 1, parts.n)


def _divide(a: float, b: float) -> float:
    return a / b if b else math.nan


def _positive(z_square: Interval) -> bool:
    return z_square.low is not None and z_square.low > 0


def pooled_sigma2(
    parts: Sequence[Sigma2Parts], rng: np.random.Generator, n_resamples: int = 2000, level: float = 0.95
) -> Sigma2:
    """sigma^2 pooled over prompts: sum of Z_p^2 sigma_p^2 over sum of Z_p^2, each sum unbiased.

    Parameters
    ----------
    parts : sequence of Sigma2Parts
        One per prompt.
    rng : np.random.Generator
        Source of the resamples of prompts.
    n_resamples : int
        Number of resamples.
    level : float
        Nominal coverage.

    Raises
    ------
    UserError
        If there is no prompt.

    Notes
    -----
    Source: docs/equations.md section 5.
    """
    if not parts:
        raise UserError(
            "there is no prompt to pool sigma^2 over", fix="pass the parts of at least one prompt"
        )
    sums = np.array([(p.numerator - p.horizon * p.z_square, p.z_square) for p in parts])
    estimate = cluster_bootstrap(sums, ratio_of_means, rng, n_resamples, level)
    z_square = cluster_bootstrap(sums[:, 1:], lambda means: means[:, 0], rng, n_resamples, level)
    n = sum(p.n for p in parts)
    return Sigma2(estimate, estimate.estimate, z_square, _positive(z_square), len(parts), n)


def n_for_cv(sigma2: float, delta: float) -> float:
    """Particles at which the coefficient of variation of the estimate of Z is delta; not rounded.

    Parameters
    ----------
    sigma2 : float
        Cost sigma^2.
    delta : float
        Coefficient of variation asked for, > 0.

    Raises
    ------
    UserError
        If delta is not positive.

    Notes
    -----
    sigma^2 / delta^2, for multinomial resampling at every step. Source: docs/equations.md section 5.
    """
    return sigma2 / check_delta(delta) ** 2


def n_for_tv(deviation: float, delta: float) -> float:
    """Particles at which the expected output is within delta of the target in total variation; not rounded.

    Parameters
    ----------
    deviation : float
        Mean absolute deviation of H under the target, or its standard deviation for an upper bound.
    delta : float
        Total variation asked for, > 0.

    Raises
    ------
    UserError
        If delta is not positive.

    Notes
    -----
    deviation / (2 delta), for multinomial resampling at every step. Source: docs/equations.md section 5.
    """
    return deviation / (2 * check_delta(delta))


def check_delta(delta: float) -> float:
    """Return delta; raise UserError unless it is positive."""
    if not delta > 0:
        raise UserError(
            f"`delta` must be positive, got {delta}: it is the accuracy asked for", fix="try 0.05"
        )
    return delta
