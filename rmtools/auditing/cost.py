"""What the error costs: particles for an accuracy, pooled and by prompt, and what rejection and best-of-N cost instead.

docs/equations.md, section 5. Intervals are 95% over prompts; those of one prompt are over its trajectories.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.arrays import PromptArrays, extra_completions
from rmtools.stats.bootstrap import Estimator, Interval, Statistic, first_mean, ratio_of_means
from rmtools.stats.influence import InfluenceSD, influence_estimator, influence_sd
from rmtools.stats.sigma2 import Sigma2Parts, sigma2_estimator, sigma2_parts, value_square_estimate

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollout


@dataclass(frozen=True, eq=False)
class CostEstimates:
    """Parts of sigma^2 (none without extra completions) and spreads of H (none with fewer than two) by prompt."""

    parts: tuple[Sigma2Parts, ...] = ()
    influences: tuple[InfluenceSD, ...] = ()

    def pooled(self) -> dict[str, Estimator[Any] | None]:
        """Return the estimators of the pooled figures; None if the rollouts do not resolve them."""
        usable = any(np.isfinite(s.variance.estimate) for s in self.influences)
        return {
            "sigma2": sigma2_estimator(self.parts) if self.parts else None,
            "influence": influence_estimator(self.influences) if usable else None,
        }


def cost_estimates(rows: "Sequence[Rollout]", arrays: Sequence[PromptArrays]) -> CostEstimates:
    """Return what the rollouts resolve of sigma^2 and of the spread of H."""
    extra, fewest = extra_completions(rows), min(len(a.potential) for a in arrays)
    single = all(len(r.steps) == 1 for r in rows)
    # If all outcomes are equal, the cost of the other outcome was never observed.
    alike = len({float(x) for a in arrays for x in a.potential}) == 1
    if fewest < 2 or alike or not (single or extra >= 1):
        return CostEstimates()
    parts = tuple(sigma2_parts(a.log_value, a.value_square, a.potential) for a in arrays)
    influences = (
        tuple(influence_sd(a.log_value, a.potential, a.extra, a.present, a.ended) for a in arrays)
        if extra >= 2 and fewest >= 3
        else ()
    )
    return CostEstimates(parts, influences)


def particles(
    spread: Interval | None, needed: Callable[[float, float], float], delta: float
) -> Interval | None:
    """Return the particles ``needed`` (`n_for_cv`, `n_for_tv`), at least 1; None if the spread is not above its noise."""
    if spread is None or not spread.estimate > 0:
        return None
    return spread.map(lambda s: max(needed(max(s, 0.0), delta), 1.0))


@dataclass(frozen=True)
class AlternativeCosts:
    """Cost of one answer within the requested total variation: sampler, rejection, best-of-N; tokens are generated ones.

    All are means over prompts with weights Z^2, as sigma^2 is pooled: prompts that are often solved count most, those
    without any right trajectory hardly, and their cost is unknown. Rejection accepts a solution with probability phi, after
    1 / Z solutions on average: exact draws from the target; None if a prompt has a single trajectory. Best-of-N needs a
    verifier to pick the right one: N is where one of N is right as often as a draw from the target, less the TV. It plugs in
    each prompt's share of right solutions, rough if there are few; None unless rewards are 0 or 1.
    """

    tokens_per_solution: float
    smc_tokens: Interval | None
    rejection_solutions: Interval | None
    rejection_tokens: Interval | None
    best_of_n_solutions: Interval | None
    best_of_n_tokens: Interval | None
    prompts_without_success: int


def alternative_costs(
    rewards: Sequence[np.ndarray],
    potentials: Sequence[np.ndarray],
    tokens: float,
    delta_tv: float,
) -> Estimator[AlternativeCosts]:
    """Estimate what rejection and best-of-N cost from rewards and potentials, P arrays (n,); the sampler's tokens are None."""
    success = np.asarray([r.mean() for r in rewards])
    z = np.asarray([phi.mean() for phi in potentials])
    sums: dict[str, tuple[np.ndarray, Statistic]] = {}
    if min(len(phi) for phi in potentials) > 1:
        weight = np.asarray([float(value_square_estimate(phi)) for phi in potentials])
        sums["rejection"] = (np.stack([z, weight], axis=1), ratio_of_means)
        if all(np.isin(r, (0.0, 1.0)).all() for r in rewards) and success.any():
            columns = np.stack([weight * best_of_n(success, z, delta_tv), weight], axis=1)[success > 0]
            sums["best"] = (columns, ratio_of_means)

    def result(found: Mapping[str, Interval]) -> AlternativeCosts:
        rejection, best = found.get("rejection"), found.get("best")
        return AlternativeCosts(
            tokens_per_solution=tokens,
            smc_tokens=None,
            rejection_solutions=rejection,
            rejection_tokens=rejection and rejection.map(lambda n: n * tokens),
            best_of_n_solutions=best,
            best_of_n_tokens=best and best.map(lambda n: n * tokens),
            prompts_without_success=int((success == 0).sum()),
        )

    return Estimator(sums, result)


def best_of_n(success: np.ndarray, z: np.ndarray, delta_tv: float) -> np.ndarray:
    """Return N (P,) at which one of N is right as often as a draw from the target less ``delta_tv``; inf without success."""
    failing = np.minimum(1 - success / z + delta_tv, 1.0)  # a draw from the target fails with 1 - success / z
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.log(failing) / np.log1p(-success)
    return np.where(success == 0, np.inf, np.maximum(np.nan_to_num(n, nan=1.0), 1.0))


@dataclass(frozen=True)
class Tabulated:
    """Exact costs pooled over prompts, intervals over prompts.

    ``sigma2`` of the model, ``perfect`` of the true value, and their ``ratio``, what the model's error costs; ``mad`` is the
    mean absolute deviation of the model's H, ``uncovered`` the largest probability outside a table.
    """

    sigma2: Interval
    perfect: Interval
    ratio: Interval
    mad: Interval
    n_prompts: int
    uncovered: float


@dataclass(frozen=True)
class MeasuredAccuracy:
    """Accuracy of the sampler at ``n_particles``, measured with multinomial resampling at every step.

    ``cv`` is the relative standard error of Z, ``delta_cv`` what was predicted; pooled over prompts as sigma^2 is, 95% over
    ``runs`` independent runs on each prompt. ``success`` is the share of right solutions in the expected output,
    ``target_success`` in the target (runs weighted by their Z-hat): the total variation is at least their difference.
    """

    n_particles: int
    runs: int
    prompts: int
    delta_cv: float
    cv: Interval
    success: float
    target_success: float
    success_difference: Interval


@dataclass(frozen=True)
class PaperCounts:
    """Counts of the paper's worst-case theorems at the largest observed L and epsilon, which may be larger elsewhere.

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
    from rmtools.exact.bounds import mh_steps_bound, pool_size_bound

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


@dataclass(frozen=True)
class ZCheck:
    """Z (mean potential of the trajectories), V(s_0), and V(s_0) minus Z, paired: 0 for a calibrated root."""

    z: Interval
    root_value: Interval
    difference: Interval


def z_check(z: np.ndarray, root_value: np.ndarray) -> Estimator[ZCheck]:
    """Compare (P,) mean potentials and root values of the prompts."""
    columns = {"z": z, "root_value": root_value, "difference": root_value - z}
    return Estimator({k: (v[:, None], first_mean) for k, v in columns.items()}, lambda found: ZCheck(**found))
