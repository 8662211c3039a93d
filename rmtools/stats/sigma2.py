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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.errors import UserError
from rmtools.exact.schedule import check_times
from rmtools.stats.bootstrap import Estimator, Interval, first_mean, jackknife, ratio_of_means, refuse_nan
from rmtools.stats.prefix_errors import pair_mean


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
        (...,); NaN if fewer than two are present. At a prefix that has ended use phi^2 instead.

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
    return pair_mean(phi, mask)


@dataclass(frozen=True, eq=False)
class Sigma2Parts:
    """Unbiased parts of sigma^2 for one prompt: sigma^2 = numerator / z_square - n_terms.

    Attributes
    ----------
    numerator, z_square : float
        A and Z^2, unbiased; z_square may be 0 or negative.
    n_terms : int
        T, or the blocks of a schedule.
    left_out_numerator, left_out_z_square : np.ndarray
        (n,) the same without each trajectory; NaN with n < 3.
    """

    numerator: float
    z_square: float
    n_terms: int
    left_out_numerator: np.ndarray
    left_out_z_square: np.ndarray

    @property
    def n(self) -> int:
        """Number of trajectories."""
        return len(self.left_out_numerator)


def sigma2_parts(
    log_value: np.ndarray,
    value_square: np.ndarray,
    potential: np.ndarray,
    times: Sequence[int] | None = None,
) -> Sigma2Parts:
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
    times : sequence of int, optional
        Increasing steps from 1 to T - 1 after which the particles are resampled; None is every step.

    Raises
    ------
    UserError
        With fewer than two trajectories, shapes that do not fit, NaN, a value of zero, or times that do not fit.

    Notes
    -----
    A = sum over t of the mean over i != j of V_i(s_{t-1}) (V*^2)_j(s_t) / V_j(s_{t-1}), with two times of resampling in a row
    for t - 1 and t if there are `times`. Source: docs/equations.md sections 5 and 10.
    """
    log_v, phi = check_trajectories(log_value, potential)
    square = np.asarray(value_square, dtype=np.float64)
    if square.shape != np.shape(log_value):
        raise UserError(f"value_square has shape {square.shape}", fix="pass (n, T + 1), like log_value")
    starts, ends = block_ends(times, log_v.shape[1])
    refuse_nan("value_square", square, np.isin(np.arange(square.shape[1]), ends)[None, :])
    log_v, square = np.take(log_v, starts, axis=1), np.take(square, ends, axis=1)
    n, n_terms = square.shape
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
        n_terms=n_terms,
        left_out_numerator=left_out,
        left_out_z_square=_pair_product(total - phi, total - phi, squares - phi**2, n - 1),
    )


def block_ends(times: Sequence[int] | None, horizon: int) -> tuple[list[int], list[int]]:
    """Return where the blocks between resamplings start and end, depths 0 ... T; None is a block per step."""
    inner = range(1, horizon) if times is None else check_times(times, horizon)
    return [0, *inner], [*inner, horizon]


def _pair_product(a: np.ndarray, b: np.ndarray, ab: np.ndarray, n: int) -> np.ndarray:
    """Mean of a_i b_j over i != j among n, from the sums of a, b and ab; NaN for n < 2."""
    mean: np.ndarray = (a * b - ab) / (n * (n - 1) if n > 1 else math.nan)
    return mean


def check_trajectories(log_value: np.ndarray, potential: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log V at 0..T-1 (n, T) and phi (n,); raise as `sigma2_parts`."""
    log_v, phi = np.asarray(log_value, dtype=np.float64), np.asarray(potential, dtype=np.float64)
    if phi.ndim != 1 or log_v.ndim != 2 or len(log_v) != len(phi):
        raise UserError(
            f"log_value and potential have shapes {log_v.shape} and {phi.shape}",
            fix="pass (n, T + 1) and (n,)",
        )
    if len(phi) < 2 or log_v.shape[1] < 2:
        raise UserError(
            f"{len(phi)} trajectories of {log_v.shape[1] - 1} steps: sigma^2 is made of pairs of them",
            fix="sample at least two trajectories of a prompt, better 64",
        )
    refuse_nan("log_value", log_v)
    refuse_nan("potential", phi)
    bad = ~np.isfinite(log_v[:, :-1])
    if bad.any():
        i, t = np.argwhere(bad)[0]
        raise UserError(
            f"log_value[{i}, {t}] is {log_v[i, t]}: a value of zero or infinity has no finite cost",
            fix="use a floor above 0",
        )
    return log_v[:, :-1], phi


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
        False if the interval of Z^2 reaches 0 or is not available.
    n_prompts, n_trajectories : int
        Sizes of the sample.
    """

    estimate: Interval
    ratio: float
    z_square: Interval
    resolved: bool
    n_prompts: int
    n_trajectories: int


def sigma2(parts: Sigma2Parts) -> Sigma2:
    """Estimate sigma^2 of one prompt, jackknifed over its trajectories.

    Below about 64 trajectories this is noisy: pool over prompts (`sigma2_estimator`). Source: docs/equations.md
    section 5.
    """
    ratio = parts.numerator / parts.z_square - parts.n_terms if parts.z_square else math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = parts.left_out_numerator / parts.left_out_z_square - parts.n_terms
    z_square = jackknife(parts.z_square, parts.left_out_z_square)
    return Sigma2(jackknife(ratio, left_out), ratio, z_square, _positive(z_square), 1, parts.n)


def _positive(z_square: Interval) -> bool:
    return z_square.low is not None and z_square.low > 0


def sigma2_estimator(parts: Sequence[Sigma2Parts]) -> Estimator[Sigma2]:
    """Pool sigma^2 over prompts: sum of Z_p^2 sigma_p^2 over sum of Z_p^2, each sum unbiased; one part per prompt.

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
    sums = np.array([(p.numerator - p.n_terms * p.z_square, p.z_square) for p in parts])

    def result(found: Mapping[str, Interval]) -> Sigma2:
        pooled, z_square = found["sigma2"], found["z_square"]
        n = sum(p.n for p in parts)
        return Sigma2(pooled, pooled.estimate, z_square, _positive(z_square), len(parts), n)

    return Estimator({"sigma2": (sums, ratio_of_means), "z_square": (sums[:, 1:], first_mean)}, result)


def n_for_cv(sigma2: float, delta: float) -> float:
    """Return the particles (not rounded) for a coefficient of variation `delta` > 0 of the estimate of Z.

    sigma^2 / delta^2, for the resampling that sigma^2 is of. Source: docs/equations.md sections 5 and 10.
    """
    return sigma2 / _check_delta(delta) ** 2


def n_for_tv(deviation: float, delta: float) -> float:
    """Return the particles (not rounded) for an expected output within `delta` > 0 of the target in total variation.

    deviation / (2 delta), for the resampling that H is of. `deviation` is the mean absolute deviation of H under the
    target, or its standard deviation for an upper bound. Source: docs/equations.md sections 5 and 10.
    """
    return deviation / (2 * _check_delta(delta))


def _check_delta(delta: float) -> float:
    if not delta > 0:
        raise UserError(
            f"`delta` must be positive, got {delta}: it is the accuracy asked for", fix="try 0.05"
        )
    return delta
