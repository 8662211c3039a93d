"""Resampling at some steps only: sigma2 of a schedule, and the schedule that an ESS threshold has in the limit of many particles.

Steps between two resamplings act as one: the variance has a term per block of a schedule (docs/equations.md section 10).
With multinomial resampling triggered by the effective sample size, ESS / N after each step tends to a number, so a large
sampler resamples at fixed times: the limiting schedule. All logs in nats; 0 / 0 = 0.

>>> from rmtools.core import product, solve
>>> exact = solve(product(horizon=12, ratio=4.0))
>>> limiting = exact.limiting_schedule(ess_threshold=0.5)
>>> limiting.times, round(limiting.sigma2, 2), round(exact.sigma2, 2), round(exact.sigma2_schedule(()), 2)
((3, 6, 9), 6.06, 4.32, 39.04)
>>> limiting.decided(300), limiting.decided(400)
(False, True)
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.errors import UserError
from rmtools.exact.finite_model import FiniteModel
from rmtools.particles.arguments import check_count, is_number
from rmtools.particles.logspace import log_mean_columns, log_sum_exp
from rmtools.summary import Summary

# A step counts as decided if the limit is this many standard deviations of ESS / N away from the threshold.
DECIDED_AT = 3.0
LEAST_ESS = 1e-300  # 0 is kept for weights that are all zero, which are not resampled


@dataclass(frozen=True)
class LimitingSchedule:
    """When many particles with multinomial resampling resample, and how sure that is for fewer.

    Attributes
    ----------
    times : tuple of int
        Steps, from 1 to T - 1, after which the particles are resampled; the last step T never is.
    sigma2 : float
        lim N Var(Zhat / Z).
    ess_threshold : float
        Resampling is due when ESS <= `ess_threshold` * N.
    ess : tuple of float
        (T - 1,) limit of ESS / N after steps 1 ... T - 1, before resampling.
    decided_from : tuple of float
        (T - 1,) the N above which the finite sampler takes the same decision at this step: three standard deviations of
        ESS / N are then less than its distance from the threshold; inf for a tie, 0 with thresholds 0 and 1.
    """

    times: tuple[int, ...]
    sigma2: float
    ess_threshold: float
    ess: tuple[float, ...]
    decided_from: tuple[float, ...]

    def decided(self, n_particles: float) -> bool:
        """Return whether every step is decided at this N; if not, sigma2 may be far off: measure the variance.

        With islands N is the number of particles of one island.
        """
        return all(n_particles > least for least in self.decided_from)

    def summary(self) -> Summary:
        """Return the times, sigma2, and the step that is decided last."""
        steps = len(self.ess) + 1
        figures = {
            "resampled after": ", ".join(map(str, self.times)) or "no step",
            "sigma2": f"{self.sigma2:.4g}",
        }
        if self.ess:
            last = int(np.argmax(self.decided_from))
            figures["nearest"] = f"step {last + 1}: ESS / N = {self.ess[last]:.4g} in the limit"
            figures["decided"] = f"above N = {self.decided_from[last]:.4g}"
        return Summary(f"limiting schedule, ESS <= {self.ess_threshold:g} N: T = {steps}", figures)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary().html()


def check_times(schedule: Sequence[int], horizon: int) -> tuple[int, ...]:
    """Return the times as integers, or raise UserError unless they increase and lie in 1 ... T - 1."""
    times = tuple(schedule) if isinstance(schedule, Sequence | np.ndarray) else (None,)
    good = all(isinstance(t, int | np.integer) and not isinstance(t, bool) for t in times)
    if (
        not good
        or any(not 1 <= t < horizon for t in times)
        or any(a >= b for a, b in itertools.pairwise(times))
    ):
        raise UserError(
            f"`schedule` must be increasing steps from 1 to {horizon - 1}, got {schedule!r}",
            fix="the last step is never resampled; () is importance sampling, None every step, "
            "solve(model).limiting_schedule(0.5).times an ESS threshold's",
        )
    return tuple(int(t) for t in times)


def check_threshold(ess_threshold: float) -> None:
    """Raise UserError unless the threshold is in [0, 1]."""
    if not is_number(ess_threshold) or not 0 <= ess_threshold <= 1:
        raise UserError(
            f"`ess_threshold` must be in [0, 1], got {ess_threshold!r}: it is a fraction of the particles",
            fix="0.5 is the sampler's default",
        )


def every_step(model: FiniteModel) -> tuple[int, ...]:
    """Return 1 ... T - 1."""
    return tuple(range(1, model.horizon))


def log_block_terms(model: FiniteModel, times: Sequence[int], pool_size: int) -> np.ndarray:
    """Return log(1 + what each block between resamplings adds to sigma2), (K + 1,) nats.

    inf if Z = 0, or if a reachable prefix of value zero leads to the target: the sampler drops it, and Zhat is biased.
    """
    true, log_z = model.log_true_value, model.log_true_value[0][0]
    if log_z == -np.inf or _loses_target(model):
        return np.full(len(times) + 1, np.inf)
    terms = []
    for start, end in itertools.pairwise((0, *times, model.horizon)):
        weight = _after_resampling(model, start)
        for t in range(start, end - 1):
            weight = _moment_after(model, t, weight, 2, pool_size)
        t = end - 1
        second = log_mean_columns(2 * model.gather(t, true[end]), model.log_policy[t])
        if pool_size > 1:
            shares = math.log(pool_size), math.log1p(-1 / pool_size)
            second = np.logaddexp(second - shares[0], 2 * true[t] + shares[1])
        alive = weight > -np.inf
        term = log_sum_exp(weight[alive] + second[alive] - 2 * model.log_value[t][alive])
        terms.append(term + 2 * (_log_mean_value(model, start) - log_z))
    return np.array(terms)


def limiting_schedule(model: FiniteModel, ess_threshold: float, pool_size: int) -> LimitingSchedule:
    """Return the limiting schedule of one threshold; raise UserError for one outside [0, 1]."""
    check_count("pool_size", pool_size)
    check_threshold(ess_threshold)
    times: list[int] = []
    limits, decided_from = [], []
    moments = [_after_resampling(model, 0)] * 4
    for t in range(model.horizon - 1):
        moments = [_moment_after(model, t, m, k, pool_size) for k, m in enumerate(moments, start=1)]
        ess, sd = ess_limit(np.array([log_sum_exp(m) for m in moments]))
        limits.append(ess)
        decided_from.append(n_decided(ess, sd, ess_threshold))
        if is_due(ess, ess_threshold):
            times.append(t + 1)
            moments = [_after_resampling(model, t + 1)] * 4
    terms = log_block_terms(model, times, pool_size)
    with np.errstate(over="ignore"):
        sigma2 = float(np.sum(np.expm1(terms)))
    return LimitingSchedule(tuple(times), sigma2, float(ess_threshold), tuple(limits), tuple(decided_from))


def is_due(ess: float, ess_threshold: float) -> bool:
    """Return whether a sampler whose ESS / N is `ess` resamples; thresholds 0 and 1 do not depend on rounding."""
    if ess_threshold in (0.0, 1.0) or ess == 0:  # no particle of positive value is left
        return ess_threshold == 1.0 and ess > 0
    return ess <= ess_threshold


def ess_limit(log_moments: np.ndarray) -> tuple[float, float]:
    """Return the limit of ESS / N and the standard deviation of its relative error times the root of N.

    From log E[w^k], k = 1 ... 4, of the weights since the last resampling, nats: m_1^2 / m_2, and the standard deviation of
    2 w / m_1 - w^2 / m_2 (delta method). Zero and inf if all weights are zero.
    """
    first, second, third, fourth = (float(x) for x in log_moments)
    if first == -math.inf:
        return 0.0, math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        parts = np.exp([second - 2 * first, third - first - second, fourth - 2 * second])
        variance = float(4 * parts[0] - 4 * parts[1] + parts[2] - 1)
    ess = max(math.exp(2 * first - second), LEAST_ESS)
    return ess, math.sqrt(max(variance, 0.0)) if variance < math.inf else math.inf


def n_decided(ess: float, sd: float, ess_threshold: float) -> float:
    """Return the N above which |ess - threshold| > 3 ess sd / root(N); 0 where the decision does not depend on the ESS."""
    if ess_threshold in (0.0, 1.0) or ess == 0:
        return 0.0
    distance = abs(ess - ess_threshold)
    return (DECIDED_AT * ess * sd / distance) ** 2 if distance > 0 else math.inf


def _log_mean_value(model: FiniteModel, t: int) -> float:
    """Return log Zhat_t = log E_policy[V(s_t)]."""
    return float(log_sum_exp(model.log_reach[t] + model.log_value[t]))


def _after_resampling(model: FiniteModel, t: int) -> np.ndarray:
    """Return the log law of the particles just resampled after step t, (S_t,) nats: policy times value, normalised."""
    total = _log_mean_value(model, t)
    law: np.ndarray = model.log_reach[t] + model.log_value[t] - (total if total > -math.inf else 0.0)
    return law


def _moment_after(
    model: FiniteModel, t: int, log_moment: np.ndarray, power: int, pool_size: int
) -> np.ndarray:
    """Return log E[w^power; s_{t+1}], (S_{t+1},) nats, from that at s_t, (S_t,); w is the weight since the last resampling.

    The step multiplies w by the mean of M values over V(s_t), and candidate c is taken with probability V(c) over their sum:
    E[mean^(power - 1) V(c) / M; c taken], expanded over how many of the factors are c itself.
    """
    alive = log_moment > -np.inf
    own = np.where(alive, model.log_value[t], 0.0)
    change = np.where(alive[:, None], model.gather(t, model.log_value[t + 1]) - own[:, None], -np.inf)
    zero = change == -np.inf
    change = np.where(zero, 0.0, change)
    if pool_size == 1:
        mean_power = (power - 1) * change
    else:
        others = _sums_of_others(np.where(zero, -np.inf, change), model.log_policy[t], power - 1, pool_size)
        parts = [
            math.log(math.comb(power - 1, n)) + (power - 1 - n) * change + rest[:, None]
            for n, rest in enumerate(others)
        ]
        mean_power = np.logaddexp.reduce(parts) - (power - 1) * math.log(pool_size)
    edge = log_moment[:, None] + model.log_policy[t] + change + mean_power
    return model.scatter(t, np.where(zero, -np.inf, edge))


def _sums_of_others(
    change: np.ndarray, log_policy: np.ndarray, highest: int, pool_size: int
) -> Iterator[np.ndarray]:
    """Yield log E[(x_1 + ... + x_{M-1})^n], (S,) nats, for n = 0 ... highest <= 3: the M - 1 other candidates of a pool."""
    m = [log_mean_columns(k * change, log_policy) for k in range(1, highest + 1)]
    with np.errstate(divide="ignore"):
        count = np.log(np.cumprod([max(pool_size - k, 0) for k in (1, 2, 3)]))
    yield np.zeros(len(change))
    if highest >= 1:
        yield count[0] + m[0]
    if highest >= 2:
        yield np.logaddexp(count[0] + m[1], count[1] + 2 * m[0])
    if highest >= 3:
        mixed = math.log(3) + count[1] + m[1] + m[0]
        yield np.logaddexp(np.logaddexp(count[0] + m[2], mixed), count[2] + 3 * m[0])


def _loses_target(model: FiniteModel) -> bool:
    """Return whether a reachable prefix of value zero leads to the target."""
    layers = zip(model.log_reach[:-1], model.log_value[:-1], model.log_true_value[:-1], strict=True)
    return any(bool(((r > -np.inf) & (v == -np.inf) & (true > -np.inf)).any()) for r, v, true in layers)
