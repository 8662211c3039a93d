"""The cost in particles as measured by running the sampler: N Var(Z_hat) / Z^2 over independent runs.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> log_z = np.log(rng.gamma(50.0, 1 / 50.0, (400, 2)))  # relative variance 1/50
>>> result = measured_sigma2(log_z, np.array([100, 100]), None, rng)
>>> result.pooled.contains(2.0), result.n_runs
(True, 400)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rmtools.errors import UserError
from rmtools.stats.bootstrap import Interval, Statistic, bootstrap_all, ratio_of_means, refuse_nan


@dataclass(frozen=True)
class MeasuredSigma2:
    """N Var(Z_hat) / Z^2 by prompt and pooled, intervals over runs.

    Attributes
    ----------
    by_prompt : tuple of Interval
        One per prompt; NaN if every run estimated Z = 0.
    pooled : Interval
        Sum of N_p Var(Z_hat_p) over sum of Z_p^2.
    n_runs : int
        Number of runs of each prompt.
    """

    by_prompt: tuple[Interval, ...]
    pooled: Interval
    n_runs: int


def measured_sigma2(
    log_z: np.ndarray,
    n_particles: ArrayLike,
    z: ArrayLike | None,
    rng: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> MeasuredSigma2:
    """Measure sigma^2 from independent runs of the sampler.

    Parameters
    ----------
    log_z : np.ndarray
        (runs, P) log Z_hat in nats; -inf if a run estimated zero. Runs are independent of each other.
    n_particles : array_like
        (P,) or one number: N of each prompt.
    z : array_like, optional
        (P,) exact Z; without it Z^2 is estimated from the runs, without bias.
    rng : np.random.Generator
        Source of the resamples of runs.
    n_resamples : int
        Number of resamples.
    level : float
        Nominal coverage.

    Raises
    ------
    UserError
        With fewer than two runs, NaN or +inf, or N or Z that is not positive.

    Notes
    -----
    A run is resampled with all of its prompts, so the pooled interval also holds if the prompts of one run
    share random numbers. Source: docs/equations.md section 5.
    """
    log_z = np.asarray(log_z, dtype=np.float64)
    if log_z.ndim != 2 or len(log_z) < 2:
        raise UserError(f"log_z has shape {log_z.shape}: a variance takes two runs", fix="pass (runs, P)")
    refuse_nan("log_z", log_z)
    n_runs, n_prompts = log_z.shape
    n = _positive("n_particles", n_particles, n_prompts)
    # One scale for all prompts, which cancels in every ratio.
    scale = max(float(log_z.max()), -700.0)
    if scale == np.inf:
        raise UserError("log_z holds +inf", fix="check the values behind it")
    draws = np.exp(log_z - scale)
    mean = draws.mean(axis=0)
    variance = n * (draws - mean) ** 2 * n_runs / (n_runs - 1)
    if z is None:
        # Linear in the runs around the mean; the sample's own variance is taken off: mean^2 overstates Z^2.
        z_square = 2 * mean * draws - mean**2 - draws.var(axis=0, ddof=1) / n_runs
    else:
        exact = np.exp(2 * (np.log(_positive("z", z, n_prompts)) - scale))
        z_square = np.broadcast_to(exact, draws.shape)
    problems: dict[str, tuple[np.ndarray, Statistic]] = {
        str(p): (np.stack([variance[:, p], z_square[:, p]], axis=1), ratio_of_means) for p in range(n_prompts)
    }
    pooled = np.stack([variance.sum(axis=1), z_square.sum(axis=1)], axis=1)
    problems["pooled"] = (pooled, ratio_of_means)
    found = bootstrap_all(problems, rng, n_resamples, level)
    return MeasuredSigma2(tuple(found[str(p)] for p in range(n_prompts)), found["pooled"], n_runs)


def _positive(name: str, values: ArrayLike, n_prompts: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in ((), (n_prompts,)):
        raise UserError(
            f"`{name}` has shape {array.shape} for {n_prompts} prompts", fix="pass one per prompt"
        )
    bad = ~((array > 0) & (array < np.inf))
    if bad.any():
        raise UserError(f"`{name}` must be positive and finite, got {array[bad].ravel()[0]}")
    return np.broadcast_to(array, (n_prompts,))
