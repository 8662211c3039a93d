"""Bounds of arXiv 2602.01381, and the predictions to use instead.

The bounds are worst cases: on benign models the smallest sufficient number of particles is 10^3 to 10^8 times below
`particle_bound`. Use the predictions `particles_for_tv` and `particles_for_cv`, which take the model's own sigma2 and
MAD(H) (docs/equations.md sections 3 and 5). Here epsilon is the Bellman error, L the ratio bound, T the horizon. Every
function raises UserError if an argument is out of range.

>>> round(particle_bound(ratio_bound=2.0, horizon=8, bellman_error=0.05, delta=0.1))
19870
>>> from rmtools.core import persistent, solve
>>> exact = solve(persistent(horizon=8, eps=0.05))
>>> round(particles_for_cv(exact.sigma2, delta=0.1), 1), round(particles_for_tv(exact.influence_mad().value, 0.1), 2)
(10.6, 3.96)
"""

import math
from dataclasses import dataclass

from rmtools.errors import UserError
from rmtools.particles.arguments import check_count, check_number, is_number

SIGMA2_ROUNDING = 1e-6  # sigma2 of a consistent value may round to just below 0


def particle_bound(ratio_bound: float, horizon: int, bellman_error: float, delta: float) -> float:
    """Return the particles that suffice for an expected output within `delta` of the target in total variation.

    L^6 T (1 + epsilon)^(6 (T - 1)) / (2 delta), for pool 1 and multinomial resampling at every step; not rounded, inf
    beyond the largest float.

    Parameters
    ----------
    ratio_bound : float
        L >= 1, bound on the ratio of the values at two ends of a step (Assumption 3.1).
    horizon : int
        T >= 1, number of steps.
    bellman_error : float
        epsilon >= 0, sup norm, on every prefix of positive probability (Assumption 3.2).
    delta : float
        Total variation allowed, in (0, 1).

    Notes
    -----
    Source: arXiv 2602.01381 Thm 5.1; linear in T for epsilon = O(1/T) (Cor. 5.2).
    """
    _check(ratio_bound, horizon, bellman_error, delta=delta)
    return _exp(
        6 * math.log(ratio_bound)
        + math.log(horizon / (2 * delta))
        + 6 * (horizon - 1) * math.log1p(bellman_error)
    )


def sp_tv_bound(depth: int, bellman_error: float) -> float:
    """Bound the total variation between one exactly guided particle at `depth` t and the depth's target by 2 t epsilon.

    At most 1, where the bound says nothing. The particle steps by policy * V(child) / E_policy[V(child)], without
    resampling or correction. The target at depth t is policy * V_t, normalised (at t = T, the target), as in
    `rmtools.exact.solution.guided_tv`. Source: arXiv 2602.01381 Thm 4.3, under Assumption 3.2.
    """
    check_count("depth", depth, 0, "it is a number of steps", fix=4)
    _check(1.0, 1, bellman_error)
    return min(1.0, 2 * depth * bellman_error)


def no_reward_lower_bound(ratio_bound: float, horizon: int) -> float:
    """Return the order of the calls that any sampler needs without intermediate rewards: L^(2 T / 3).

    Holds for samplers that do not guess prefixes they have not been shown; the constant is not known. Source: arXiv
    2602.01381 Thm 4.1, attained on `hidden_prefix(m, ratio=L)`.
    """
    _check(ratio_bound, horizon, 0.0)
    return _exp(2 * horizon / 3 * math.log(ratio_bound))


def reward_lower_bound(bellman_error: float, horizon: int) -> float:
    """Return the order of the calls that any sampler needs with Bellman error epsilon: (1 + epsilon)^(2 T / 3).

    As `no_reward_lower_bound`: exponential in T unless epsilon = O(1/T). Source: arXiv 2602.01381 Thm 4.2, attained on
    `hidden_prefix(m, ratio=1 + epsilon)`.
    """
    _check(1.0, horizon, bellman_error)
    return _exp(2 * horizon / 3 * math.log1p(bellman_error))


def pool_deviation(horizon: int) -> float:
    """Return the relative deviation of a pool's mean that `pool_size_bound` allows by default: sqrt(3/8) / T.

    With it the pool bound is the paper's 8 L (1 + epsilon) T^2 log(...).
    """
    _check(1.0, horizon, 0.0)
    return math.sqrt(3 / 8) / horizon


def pool_size_bound(
    ratio_bound: float,
    horizon: int,
    bellman_error: float,
    mh_steps: int,
    delta: float,
    deviation: float | None = None,
) -> float:
    """Return the pool M that keeps every pool mean of every run within a relative `deviation`.

    M = 3 L (1 + epsilon) / xi^2 * log(2 T (H + 1) / delta), not rounded: the multiplicative Chernoff bound for M draws
    in [0, L] (values over the parent's) with mean at least 1 / (1 + epsilon), over the T steps of the first run and of H
    proposals.

    Parameters
    ----------
    ratio_bound, horizon, bellman_error
        L, T and epsilon as in `particle_bound`.
    mh_steps : int
        H >= 0, number of proposals.
    delta : float
        Probability in (0, 1) that some pool mean deviates by more.
    deviation : float, optional
        xi in (0, 1); default `pool_deviation(horizon)`.

    Notes
    -----
    Source: arXiv 2602.01381 Thm 6.1 (good event); the constant is derived in docs/equations.md section 3.
    """
    _check(ratio_bound, horizon, bellman_error, delta=delta)
    check_count("mh_steps", mh_steps, 0, "it is a number of proposals", fix=8)
    xi = _deviation(deviation, horizon)
    return 3 * ratio_bound * (1 + bellman_error) / xi**2 * math.log(2 * horizon * (mh_steps + 1) / delta)


def mh_steps_bound(
    horizon: int, bellman_error: float, delta_tv: float, deviation: float | None = None
) -> float:
    """Return the proposals H after which Algorithm 2 is within `delta_tv` of the target, if no pool mean deviates.

    H = kappa log(1 / delta_tv), not rounded, inf beyond the largest float: the estimates of Z then lie in a range of
    ratio kappa = (1 + epsilon)^(2 T) ((1 + xi) / (1 - xi))^T, and independence Metropolis-Hastings has total variation
    at most (1 - 1 / kappa)^H.

    Parameters
    ----------
    horizon, bellman_error
        T and epsilon as in `particle_bound`.
    delta_tv : float
        Total variation allowed, in (0, 1).
    deviation : float, optional
        xi in (0, 1), as passed to `pool_size_bound`.

    Notes
    -----
    Source: arXiv 2602.01381 Thm 6.1; the constant is derived in docs/equations.md section 3.
    """
    _check(1.0, horizon, bellman_error, delta=delta_tv)
    xi = _deviation(deviation, horizon)
    log_kappa = horizon * (2 * math.log1p(bellman_error) + math.log1p(xi) - math.log1p(-xi))
    return _exp(log_kappa + math.log(math.log(1 / delta_tv)))


def mh_time_bound(
    ratio_bound: float,
    horizon: int,
    bellman_error: float,
    delta: float,
    delta_tv: float,
    deviation: float | None = None,
) -> float:
    """Return the candidates that Algorithm 2 draws at the bounds: T M (H + 1), M and H rounded up.

    Of order L T^3 log(1 / delta) log(1 / delta_tv) up to logarithms for epsilon = O(1/T). Arguments as in
    `pool_size_bound` and `mh_steps_bound`. Source: arXiv 2602.01381 Thm 6.1.
    """
    steps = mh_steps_bound(horizon, bellman_error, delta_tv, deviation)
    if math.isinf(steps):
        return math.inf
    proposals = math.ceil(steps)
    pool = pool_size_bound(ratio_bound, horizon, bellman_error, proposals, delta, deviation)
    return math.inf if math.isinf(pool) else horizon * float(math.ceil(pool)) * (proposals + 1)


def particles_for_tv(influence_mad: float, delta: float) -> float:
    """Predict the particles for an expected output within `delta`, in (0, 1), of the target: MAD(H) / (2 delta).

    Not rounded. First order in 1/N, for the multinomial resampling that H is of (docs/equations.md sections 5 and 10).
    """
    _check(1.0, 1, 0.0, delta=delta)
    check_number("influence_mad", influence_mad, 0, "it is a mean absolute deviation")
    return influence_mad / (2 * delta)


def particles_for_cv(sigma2: float, delta: float) -> float:
    """Predict the particles for an estimate of Z of relative standard error `delta` > 0: sigma2 / delta^2.

    Not rounded. First order in 1/N, for the multinomial resampling that sigma2 is of (docs/equations.md sections 5 and 10);
    accurate from about 25 sigma2 particles on, with ESS-triggered resampling once every step is decided.
    """
    check_number("sigma2", sigma2, -SIGMA2_ROUNDING, "it is a variance")
    if not is_number(delta) or not delta > 0:
        raise UserError(f"`delta` must be positive, got {delta!r}: it is a relative error", fix="delta=0.1")
    return sigma2 / delta / delta


def persistent_sigma2(horizon: int, eps: float) -> float:
    """Return sigma2 of the family `persistent`: sum over t of sinh(min(t - 1, T - t + 1) log(1 + eps))^2.

    Close to coth(log(1 + eps)) (1 + eps)^T / 4 for constant eps and even T, at most T sinh(c / 2)^2 for eps = c / T
    (docs/equations.md section 7). `horizon` >= 2, `eps` >= 0.
    """
    check_count("horizon", horizon, 2, "the error grows and shrinks again", fix=8)
    check_number("eps", eps, 0, "it is a Bellman error", fix="eps=0.1")
    log_ratio = math.log1p(eps)
    if horizon / 2 * log_ratio > 300:
        return math.inf
    return sum(math.sinh(min(t - 1, horizon - t + 1) * log_ratio) ** 2 for t in range(1, horizon + 1))


def _check(ratio_bound: float, horizon: int, bellman_error: float, delta: float = 0.5) -> None:
    check_number("ratio_bound", ratio_bound, 1, "it bounds a ratio and its inverse")
    check_count("horizon", horizon, 1, "it is a number of steps", fix=8)
    check_number("bellman_error", bellman_error, 0, "it is a sup norm")
    if not is_number(delta) or not 0 < delta < 1:
        raise UserError(f"a tolerance must be in (0, 1), got {delta!r}: it is a probability", fix="0.05")


def _deviation(deviation: float | None, horizon: int) -> float:
    if deviation is None:
        return pool_deviation(horizon)
    if not is_number(deviation) or not 0 < deviation < 1:
        raise UserError(
            f"`deviation` must be in (0, 1), got {deviation!r}: it is relative to the mean", fix="0.1"
        )
    return deviation


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


@dataclass(frozen=True)
class PaperCounts:
    """Counts of the worst-case theorems at the largest observed L and epsilon, which may be larger elsewhere.

    Thm 5.1 gives the particles for the requested TV, Thm 6.1 M and H of Algorithm 2 (None if they overflow a float). Sampled
    errors are reduced by two standard errors.
    """

    ratio_bound: float
    bellman_error: float
    log10_particles: float
    pool_size: float | None
    mh_steps: float | None


def paper_counts(ratio_bound: float, largest_log_error: float, horizon: int, delta_tv: float) -> PaperCounts:
    """Return the counts of Thm 5.1 and 6.1 for the largest ratio of two values a step apart and the largest |b|, nats."""
    bound, error = max(ratio_bound, 1.0), math.expm1(min(largest_log_error, 500.0))
    log_count = (
        6 * math.log(bound) + math.log(horizon / (2 * delta_tv)) + 6 * (horizon - 1) * math.log1p(error)
    )
    # Half of delta_tv is left to each of the two failures of Algorithm 2.
    proposals = mh_steps_bound(horizon, error, delta_tv / 2)
    known = math.isfinite(proposals)
    pool = pool_size_bound(bound, horizon, error, math.ceil(proposals), delta_tv / 2) if known else math.inf
    return PaperCounts(
        bound,
        error,
        log_count / math.log(10),
        pool if math.isfinite(pool) else None,
        proposals if known else None,
    )
