"""What the error costs: particles for an accuracy, pooled and by prompt, exact where solutions are enumerated, and measured.

docs/equations.md, section 5. Intervals are 95% over prompts; those of one prompt are over its trajectories.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.arrays import PromptArrays, extra_completions
from rmtools.stats.bootstrap import Estimator, Interval
from rmtools.stats.influence import InfluenceSD, influence_estimator, influence_sd
from rmtools.stats.sigma2 import Sigma2Parts, sigma2_estimator, sigma2_parts

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
