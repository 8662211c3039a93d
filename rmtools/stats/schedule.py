"""What ESS-triggered multinomial resampling costs in particles, from rollouts of the policy alone.

As the number of particles grows, a sampler that resamples when ESS <= threshold * N does so at fixed times, its limiting
schedule (docs/equations.md section 10). The values along the policy's trajectories tell these times, prompt by prompt, and
sigma^2 and the spread of H are then sums over the blocks between them, estimated as at every step. A finite sampler keeps the
schedule only where every step is decided; elsewhere run it and measure.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> bits = rng.integers(2, size=(400, 8)).cumsum(axis=1)
>>> log_value = np.log(4.0) * np.concatenate([np.zeros((400, 1)), bits], axis=1)  # V(prefix) = 4^(its ones)
>>> found = estimate_schedule(log_value, ess_threshold=0.5)
>>> found.times, round(found.ess[2], 2)
((3, 6), 0.42)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.errors import UserError
from rmtools.exact.schedule import DECIDED_AT, LEAST_ESS, check_threshold, ess_limit, is_due, n_decided
from rmtools.particles.logspace import log_mean_exp
from rmtools.stats.bootstrap import Estimator, Interval, refuse_nan
from rmtools.stats.influence import InfluenceSD, influence_estimator, influence_sd
from rmtools.stats.sigma2 import Sigma2, Sigma2Parts, n_for_cv, n_for_tv, sigma2_estimator, sigma2_parts


@dataclass(frozen=True)
class EstimatedSchedule:
    """The limiting schedule of one prompt, from rollouts.

    Attributes
    ----------
    times : tuple of int
        Steps after which many particles are resampled.
    ess : tuple of float
        (T - 1,) estimated limit of ESS / N after steps 1 ... T - 1; NaN once all trajectories have ended.
    decided_from : tuple of float
        (T - 1,) the N above which a sampler takes the same decision; inf if the trajectories do not tell which one that is
        (three standard errors), 0 where nothing is to decide.
    """

    times: tuple[int, ...]
    ess: tuple[float, ...]
    decided_from: tuple[float, ...]


def estimate_schedule(
    log_value: np.ndarray, ess_threshold: float = 0.5, ended: np.ndarray | None = None
) -> EstimatedSchedule:
    """Estimate the limiting schedule of one prompt from n trajectories of the policy.

    Parameters
    ----------
    log_value : np.ndarray
        (n, T + 1) nats, as `sigma2_parts`; the last column is not read.
    ess_threshold : float
        Resampling is due when ESS <= `ess_threshold` * N.
    ended : np.ndarray, optional
        (n, T) bool: the prefix at t had ended. A sampler whose particles have all ended does not resample.

    Raises
    ------
    UserError
        With fewer than two trajectories, NaN or a value of zero, shapes that do not fit, or a threshold outside [0, 1].

    Notes
    -----
    ESS / N after t, last resampled after r, is the mean over i != j of V_i(s_t) V_j(s_t) over that of V_i(s_r) (V_j(s_t)^2 /
    V_j(s_r)): numerator and denominator are unbiased. Source: docs/equations.md section 10.
    """
    check_threshold(ess_threshold)
    log_v = np.asarray(log_value, dtype=np.float64)
    if log_v.ndim != 2 or len(log_v) < 2 or log_v.shape[1] < 2:
        raise UserError(
            f"log_value has shape {log_v.shape}", fix="pass (n, T + 1), at least two trajectories"
        )
    log_v = log_v[:, :-1]
    refuse_nan("log_value", log_v)
    if not np.isfinite(log_v).all():
        raise UserError("log_value holds a value of zero or infinity", fix="use a floor above 0")
    over = np.zeros(log_v.shape, dtype=bool) if ended is None else np.asarray(ended, dtype=bool)
    if over.shape != log_v.shape:
        raise UserError(f"ended has shape {over.shape}", fix=f"pass {log_v.shape}")
    last, times, limits, decided_from = 0, [], [], []
    for t in range(1, log_v.shape[1]):
        if over[:, t].all():
            limits.append(math.nan)
            decided_from.append(0.0)
            continue
        ess, error, sd = _ess(log_v[:, last], log_v[:, t])
        told = ess_threshold in (0.0, 1.0) or abs(ess - ess_threshold) > DECIDED_AT * error
        limits.append(ess)
        decided_from.append(n_decided(ess, sd, ess_threshold) if told else math.inf)
        if is_due(ess, ess_threshold):
            times.append(t)
            last = t
    return EstimatedSchedule(tuple(times), tuple(limits), tuple(decided_from))


def _ess(log_start: np.ndarray, log_now: np.ndarray) -> tuple[float, float, float]:
    """Estimate the limit of ESS / N, its standard error, and the sd that `ess_limit` gives, from values (n,) nats."""
    log_start, log_now = log_start - log_start.max(), log_now - log_now.max()
    log_square = 2 * log_now - log_start
    start, now, square = np.exp(log_start), np.exp(log_now), np.exp(log_square - log_square.max())
    # Both sums over pairs, over the sum of all products of V_i(s_r) and V_j(s_t)^2 / V_j(s_r).
    scale = math.exp(-log_square.max()) / float(start.sum() * square.sum())
    total, own = scale * float(now.sum()) ** 2, scale * float(np.sum(now**2))
    # One trajectory can carry all of the sums: they then have no pairs.
    ess = max((total - own) / (1 - own) if own < 1 - 1e-12 else min(total, 1.0), LEAST_ESS)
    spread = 2 * now / now.mean() - start / start.mean() - square / square.mean()
    error = ess * float(spread.std(ddof=1)) / math.sqrt(len(now))
    moments = [log_mean_exp(k * log_now + (1 - k) * log_start) - math.log(start.mean()) for k in (1, 2, 3, 4)]
    return ess, error, ess_limit(np.array(moments))[1]


@dataclass(frozen=True, eq=False)
class ScheduleParts:
    """The limiting schedule of one prompt, the parts of its sigma^2, and its spread of H (None without completions)."""

    schedule: EstimatedSchedule
    sigma2: Sigma2Parts
    influence: InfluenceSD | None


def schedule_parts(
    log_value: np.ndarray,
    value_square: np.ndarray,
    potential: np.ndarray,
    ess_threshold: float = 0.5,
    extra: np.ndarray | None = None,
    present: np.ndarray | None = None,
    ended: np.ndarray | None = None,
) -> ScheduleParts:
    """Estimate schedule, sigma^2 and spread of H of one prompt, all from the same n trajectories.

    Parameters and errors as `estimate_schedule`, `sigma2_parts` and `influence_sd`; the spread needs `extra`.
    """
    schedule = estimate_schedule(log_value, ess_threshold, ended)
    parts = sigma2_parts(log_value, value_square, potential, schedule.times)
    influence = None
    if extra is not None:
        influence = influence_sd(log_value, potential, extra, present, ended, schedule.times)
    return ScheduleParts(schedule, parts, influence)


@dataclass(frozen=True)
class ScheduleCost:
    """Cost of ESS-triggered multinomial resampling, pooled over prompts, each with its own limiting schedule.

    Attributes
    ----------
    ess_threshold : float
        Resampling is due when ESS <= `ess_threshold` * N.
    sigma2 : Sigma2
        Pooled as `sigma2_estimator` does.
    influence : InfluenceSD or None
        Spread of H, pooled; None without extra completions.
    times : tuple of tuple of int
        Per prompt, the steps after which it is resampled.
    decided_from : tuple of float
        Per prompt, the N above which every step is decided; inf if the trajectories do not tell the schedule.
    z_square : tuple of float
        Per prompt, its weight in sigma^2: Z^2, 0 where its estimate is negative.
    """

    ess_threshold: float
    sigma2: Sigma2
    influence: InfluenceSD | None
    times: tuple[tuple[int, ...], ...]
    decided_from: tuple[float, ...]
    z_square: tuple[float, ...]

    def n_for_cv(self, delta: float) -> Interval:
        """Return the particles (not rounded) for a coefficient of variation `delta` > 0 of the estimate of Z."""
        return self.sigma2.estimate.map(lambda s: n_for_cv(s, delta))

    def n_for_tv(self, delta: float) -> Interval | None:
        """Return the particles (not rounded, an upper bound) for a total variation `delta` > 0; None without `influence`."""
        return None if self.influence is None else self.influence.sd.map(lambda s: n_for_tv(s, delta))

    def decided(self, n_particles: float) -> bool:
        """Return whether every step of every prompt is decided at this N; if not, a pilot run is the prediction.

        With islands N is the number of particles of one island.
        """
        return all(n_particles > least for least in self.decided_from)

    def decided_share(self, n_particles: float) -> float:
        """Return the share of the pooled weight that prompts with every step decided at this N have."""
        kept = [w for w, least in zip(self.z_square, self.decided_from, strict=True) if n_particles > least]
        total = sum(self.z_square)
        return sum(kept) / total if total > 0 else math.nan


def schedule_estimator(parts: Sequence[ScheduleParts], ess_threshold: float) -> Estimator[ScheduleCost]:
    """Pool the cost over prompts, with intervals over prompts; raise UserError if there is no prompt.

    Notes
    -----
    Source: docs/equations.md sections 5 and 10. `ess_threshold` is that of the parts.
    """
    variance = sigma2_estimator([p.sigma2 for p in parts])
    influences = [p.influence for p in parts if p.influence is not None]
    usable = len(influences) == len(parts) and any(math.isfinite(x.scaled_variance) for x in influences)
    spread = influence_estimator(influences) if usable else None

    def result(found: Mapping[str, Interval]) -> ScheduleCost:
        return ScheduleCost(
            ess_threshold=ess_threshold,
            sigma2=variance.result(found),
            influence=None if spread is None else spread.result(found),
            times=tuple(p.schedule.times for p in parts),
            decided_from=tuple(max(p.schedule.decided_from, default=0.0) for p in parts),
            z_square=tuple(max(p.sigma2.z_square, 0.0) for p in parts),
        )

    return Estimator({**variance.sums, **({} if spread is None else spread.sums)}, result)
