"""What the model and a perfect value cost, exactly: prompts whose solutions can be enumerated, written out as tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rmtools.core import solve
from rmtools.stats.bootstrap import (
    Interval,
    Statistic,
    as_dict,
    bootstrap_all,
    ratio_of_means,
    read_intervals,
)

if TYPE_CHECKING:
    from rmtools.data.tasks import Task
    from rmtools.lm.enumerate.tables import Enumeration
    from rmtools.lm.policy import Policy
    from rmtools.lm.value import Scorer

MIN_PROBABILITY, MOST_PROMPTS, MOST_PATHS = 3e-3, 24, 50_000


@dataclass(frozen=True)
class Tabulated:
    """Exact costs pooled over prompts, intervals over prompts.

    Attributes
    ----------
    sigma2, perfect : Interval
        Pooled sigma^2 of the model and of the true value.
    ratio : Interval
        Of the two: what the model's error costs.
    mad : Interval
        Mean absolute deviation of H of the model, pooled with the same weights.
    n_prompts : int
    uncovered : float
        Largest probability outside a table.
    """

    sigma2: Interval
    perfect: Interval
    ratio: Interval
    mad: Interval
    n_prompts: int
    uncovered: float

    def to_dict(self) -> dict[str, Any]:
        """Return a dict fit for JSON."""
        return as_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(**read_intervals(values))


def enumerations(
    policy: "Policy",
    task: "Task",
    prompts: Sequence[str],
    progress: Callable[[int], object] | None = None,
) -> "list[Enumeration]":
    """Enumerate the first prompts, until there are enough of them or too many paths in one."""
    from rmtools.lm.enumerate.tables import enumerate_prefixes

    found: list[Enumeration] = []
    for prompt in prompts[:MOST_PROMPTS]:
        choices = task.step_choices(prompt, []) or []
        found.append(enumerate_prefixes(policy, prompt, choices, task.reward, MIN_PROBABILITY))
        if progress is not None:
            progress(1)
        if sum(len(e.paths) for e in found) > MOST_PATHS:
            break
    return found


def tabulated(tables: "Sequence[Enumeration]", scorer: "Scorer", rng: np.random.Generator) -> Tabulated:
    """Return the exact costs of ``scorer`` on ``tables``, pooled: sum of Z^2 sigma^2 over sum of Z^2."""
    rows = []
    for table in tables:
        exact = solve(table.score(scorer).model)
        z_square = np.exp(2 * exact.log_z)
        costs = (exact.sigma2, exact.sigma2_true_value, exact.influence_mad().value, 1.0)
        rows.append([z_square * c for c in costs])
    cost, perfect, mad, z_square = np.asarray(rows).T
    problems: dict[str, tuple[np.ndarray, Statistic]] = {
        name: (np.stack(columns, axis=1), ratio_of_means)
        for name, columns in (
            ("sigma2", (cost, z_square)),
            ("perfect", (perfect, z_square)),
            ("ratio", (cost, perfect)),
            ("mad", (mad, z_square)),
        )
    }
    return Tabulated(
        **bootstrap_all(problems, rng, 2000),
        n_prompts=len(tables),
        uncovered=max(t.uncovered for t in tables),
    )
