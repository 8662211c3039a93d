"""What the error costs: particles for an accuracy, pooled and by prompt, exact where solutions are enumerated, and measured.

docs/equations.md, sections 5 and 10. Intervals are 95% over prompts; those of one prompt are over its trajectories.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.arrays import PromptArrays, extra_completions
from rmtools.stats.bootstrap import Estimator, Interval
from rmtools.stats.influence import InfluenceSD, influence_estimator, influence_sd
from rmtools.stats.schedule import ScheduleCost, ScheduleParts, schedule_estimator, schedule_parts
from rmtools.stats.sigma2 import Sigma2, Sigma2Parts, n_for_cv, n_for_tv, sigma2_estimator, sigma2_parts

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollout

# The sampler's default threshold.
ESS_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class CostEstimates:
    """Parts of sigma^2 (none without extra completions) and spreads of H (none with fewer than two) by prompt.

    ``scheduled`` are those of multinomial resampling when ESS <= `ESS_THRESHOLD` * N.
    """

    parts: tuple[Sigma2Parts, ...] = ()
    influences: tuple[InfluenceSD, ...] = ()
    scheduled: tuple[ScheduleParts, ...] = ()

    def pooled(self) -> dict[str, Estimator[Any] | None]:
        """Return the estimators of the pooled figures; None if the rollouts do not resolve them."""
        usable = any(np.isfinite(s.variance.estimate) for s in self.influences)
        return {
            "sigma2": sigma2_estimator(self.parts) if self.parts else None,
            "influence": influence_estimator(self.influences) if usable else None,
        }

    def limiting(self) -> Estimator[ScheduleCost] | None:
        """Return the estimator of the pooled cost of ESS-triggered resampling; None if the rollouts do not tell it."""
        return schedule_estimator(self.scheduled, ESS_THRESHOLD) if self.scheduled else None


def cost_estimates(rows: "Sequence[Rollout]", arrays: Sequence[PromptArrays]) -> CostEstimates:
    """Return what the rollouts resolve of sigma^2 and of the spread of H."""
    extra, fewest = extra_completions(rows), min(len(a.potential) for a in arrays)
    single = all(len(r.steps) == 1 for r in rows)
    # If all outcomes are equal, the cost of the other outcome was never observed.
    alike = len({float(x) for a in arrays for x in a.potential}) == 1
    if fewest < 2 or alike or not (single or extra >= 1):
        return CostEstimates()
    parts = tuple(sigma2_parts(a.log_value, a.value_square, a.potential) for a in arrays)
    spread = extra >= 2 and fewest >= 3
    influences = (
        tuple(influence_sd(a.log_value, a.potential, a.extra, a.present, a.ended) for a in arrays)
        if spread
        else ()
    )
    scheduled = tuple(
        schedule_parts(
            *(a.log_value, a.value_square, a.potential, ESS_THRESHOLD),
            *(a.extra if spread else None, a.present, a.ended),
        )
        for a in arrays
    )
    return CostEstimates(parts, influences, scheduled)


def best_of_n_cost(terminals: Sequence[np.ndarray]) -> Estimator[Sigma2] | None:
    """Estimate sigma^2 of importance sampling from the policy, best-of-N: the relative variance of the ``terminals``.

    These are the final values of each prompt's trajectories, P arrays (n,). None with a prompt of one trajectory, or if all are
    equal. It is sigma^2 of the schedule without resampling (docs/equations.md section 10), whatever the values between.
    """
    if min(map(len, terminals)) < 2 or len({float(x) for phi in terminals for x in phi}) == 1:
        return None
    return sigma2_estimator(
        [sigma2_parts(np.zeros((len(v), 2)), np.stack([v, v**2], axis=1), v, ()) for v in terminals]
    )


def particles(
    spread: Interval | None, needed: Callable[[float, float], float], delta: float
) -> Interval | None:
    """Return the particles ``needed`` (`n_for_cv`, `n_for_tv`), at least 1; None if the spread is not above its noise."""
    if spread is None or not spread.estimate > 0:
        return None
    return spread.map(lambda s: max(needed(max(s, 0.0), delta), 1.0))


@dataclass(frozen=True)
class LimitingCost:
    """Particles with multinomial resampling when ESS <= ``ess_threshold`` * N, each prompt by its limiting schedule.

    For systematic resampling with this threshold, the sampler's default, they are an upper reference.

    Attributes
    ----------
    sigma2 : Interval
        Pooled over prompts, as at every step.
    resolved : bool
        False if the interval of Z^2 reaches 0.
    n_for_cv, n_for_tv : Interval or None
        Particles for the accuracies of `AuditOptions`; None if not above noise. The latter is from SD(H), an upper bound, and
        from MAD(H) if solutions are enumerated.
    decided : bool
        Whether every step of every prompt is decided at ``n_for_cv``; if not, a pilot run of the sampler is the prediction.
    decided_share : float
        Share of the weight Z^2 of prompts with every step decided there; NaN without ``n_for_cv``.
    times : tuple of tuple of int
        Per prompt, the steps after which it is resampled.
    """

    ess_threshold: float
    sigma2: Interval
    resolved: bool
    n_for_cv: Interval | None
    n_for_tv: Interval | None
    decided: bool
    decided_share: float
    times: tuple[tuple[int, ...], ...]


def limiting_cost(
    found: ScheduleCost, spread: Interval | None, delta_cv: float, delta_tv: float
) -> LimitingCost:
    """Return the particles for both accuracies; ``spread`` is SD(H) or MAD(H)."""
    n_cv = particles(found.sigma2.estimate, n_for_cv, delta_cv)
    n_tv = particles(spread, n_for_tv, delta_tv)
    return LimitingCost(
        ess_threshold=found.ess_threshold,
        sigma2=found.sigma2.estimate,
        resolved=found.sigma2.resolved,
        n_for_cv=n_cv,
        n_for_tv=n_tv,
        decided=n_cv is not None and found.decided(n_cv.estimate),
        decided_share=math.nan if n_cv is None else found.decided_share(n_cv.estimate),
        times=found.times,
    )


@dataclass(frozen=True)
class Tabulated:
    """Exact costs pooled over prompts, intervals over prompts.

    ``sigma2`` of the model, ``perfect`` of the true value, and their ``ratio``, what the model's error costs; ``mad`` is the
    mean absolute deviation of the model's H, ``uncovered`` the largest probability outside a table. ``limiting`` is the cost with
    ESS-triggered resampling, ``perfect_limiting`` and ``limiting_ratio`` as above with it, ``best_of_n`` the sigma^2 without any
    resampling, of independent solutions; None in audits before 0.2.0.
    """

    sigma2: Interval
    perfect: Interval
    ratio: Interval
    mad: Interval
    n_prompts: int
    uncovered: float
    limiting: LimitingCost | None = None
    perfect_limiting: Interval | None = None
    limiting_ratio: Interval | None = None
    best_of_n: Interval | None = None


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
