"""What an audit knows exactly where the task lists its steps: Bellman ratios, and costs from prompts written out as tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.cost import ESS_THRESHOLD, Tabulated, limiting_cost
from rmtools.core import FiniteModel, solve
from rmtools.stats.bootstrap import Estimator, Interval, ratio_of_means
from rmtools.stats.schedule import ScheduleCost
from rmtools.stats.sigma2 import Sigma2

if TYPE_CHECKING:
    from rmtools.auditing.load_models import AuditedModel
    from rmtools.data.rollouts import Rollout, RolloutMetadata
    from rmtools.data.tasks import Task
    from rmtools.lm.enumerate import Enumeration, ExactRatios
    from rmtools.lm.policy import Policy
    from rmtools.lm.protocol import Scorer, StepPolicy

Progress = Callable[[str, int], Any]
MIN_PROBABILITY, MOST_PROMPTS, MOST_PATHS = 3e-3, 24, 50_000


@dataclass(frozen=True)
class EnumeratedRollouts:
    """The prefixes of an audit's rollouts, enumerated under their policy.

    ``roles`` are the models and controls that were enumerated, ``ratios`` theirs in this order, ``tables`` the first prompts,
    written out.
    """

    roles: list[str]
    ratios: "ExactRatios"
    tables: "list[Enumeration]"

    def log_errors(self, model: "AuditedModel") -> np.ndarray | None:
        """Return b = log rho of ``model`` at every prefix, nats, flat; None if it was not enumerated."""
        if model.subject.role not in self.roles:
            return None
        return np.concatenate(self.ratios.log_error[self.roles.index(model.subject.role)])

    def cost(self, model: "AuditedModel", delta_cv: float, delta_tv: float) -> Estimator[Tabulated] | None:
        """Return the estimator of the exact costs of ``model``; None if it was not enumerated or has none to tell."""
        known = model.subject.role in self.roles and model.tabulated
        return tabulated(self.tables, model.scorer, delta_cv, delta_tv) if known else None

    def coverage(self) -> dict[str, float]:
        """Return mean and largest probability outside the listed steps, and how many prefixes were left out for it."""
        uncovered = self.ratios.uncovered
        return {
            "mean": float(uncovered.mean()),
            "largest": float(uncovered.max()),
            "left_out": float((uncovered > 0.5).sum()),
        }


def enumerate_rollouts(
    rows: "Sequence[Rollout]",
    metadata: "RolloutMetadata | None",
    models: "Sequence[AuditedModel]",
    policy: "StepPolicy | None",
    task: "Task | None",
    progress: Progress,
) -> EnumeratedRollouts | None:
    """Enumerate the next steps at every prefix of ``rows``, and the first prompts whole.

    Returns None if the steps cannot be listed, the policy is not the one that drew the rollouts, or no model can be
    enumerated (it needs a value at any prefix, the verifier's end, and the policy's tokens).
    """
    from rmtools.lm.policy import Policy

    # Steps are enumerated from the logits of a policy in this process.
    if not isinstance(policy, Policy) or task is None or metadata is None:
        return None
    from rmtools.data.prompts import task_of_rows
    from rmtools.lm.checkpoint import has_fingerprint
    from rmtools.lm.enumerate import enumerate_prefixes, exact_ratios

    task = task_of_rows(task, rows)
    choices = task.step_choices(rows[0].prompt, [])
    prompts = list(dict.fromkeys(r.prompt for r in rows))
    if not choices:
        return None
    listed = [s for s in models if s.enumerable and _reads_tokens(s.scorer, policy, prompts, choices)]
    # Ratios under another policy than the rollouts' would stand beside sampled ones as if they were the same.
    same_weights = has_fingerprint(policy.name, metadata.policy_fingerprint)
    if not listed or not same_weights or policy.law != metadata.law:
        return None
    solutions = [(r.prompt, r.steps) for r in rows]
    with progress("enumerating one-step children", len(rows)) as tick:
        scorers = [s.scorer for s in listed]
        ratios = exact_ratios(policy, scorers, solutions, choices, task.reward, progress=tick)
    tables: list[Enumeration] = []
    with progress("enumerating solutions", min(len(prompts), MOST_PROMPTS)) as tick:
        for prompt in prompts[:MOST_PROMPTS]:
            tables.append(enumerate_prefixes(policy, prompt, choices, task.reward, MIN_PROBABILITY))
            tick(1)
            if sum(len(table.paths) for table in tables) > MOST_PATHS:
                break
    return EnumeratedRollouts([s.subject.role for s in listed], ratios, tables)


def _reads_tokens(scorer: "Scorer", policy: "Policy", prompts: Sequence[str], choices: Sequence[str]) -> bool:
    """Return whether ``scorer`` reads the policy's token ids."""
    return all(scorer.steps.prompt_ids(p) == policy.steps.prompt_ids(p) for p in prompts) and all(
        scorer.steps.step_ids(c) == policy.steps.step_ids(c) for c in choices
    )


def tabulated(
    tables: "Sequence[Enumeration]", scorer: "Scorer", delta_cv: float, delta_tv: float
) -> Estimator[Tabulated]:
    """Return the exact costs of ``scorer`` on ``tables``, pooled: sum of Z^2 sigma^2 over sum of Z^2."""
    rows, schedules = [], []
    for table in tables:
        model = table.score(scorer).model
        exact = solve(model)
        z_square, its = np.exp(2 * exact.log_z), exact.limiting_schedule(ESS_THRESHOLD)
        schedules.append(its)
        costs = (exact.sigma2, exact.sigma2_true_value, exact.influence_mad().value, its.sigma2)
        others = (exact.influence_mad(schedule=its.times).value, _perfect(model), exact.sigma2_schedule(()))
        rows.append(z_square * np.array([*costs, *others, 1.0]))
    cost, perfect, mad, triggered, triggered_mad, perfect_triggered, independent, z_square = np.asarray(
        rows
    ).T
    columns = {
        "sigma2": (cost, z_square),
        "perfect": (perfect, z_square),
        "ratio": (cost, perfect),
        "mad": (mad, z_square),
        "triggered": (triggered, z_square),
        "triggered_mad": (triggered_mad, z_square),
        "perfect_limiting": (perfect_triggered, z_square),
        "limiting_ratio": (triggered, perfect_triggered),
        "best_of_n": (independent, z_square),
    }
    problems = {name: (np.stack(both, axis=1), ratio_of_means) for name, both in columns.items()}
    outside = max(t.uncovered for t in tables)

    def result(found: Mapping[str, Interval]) -> Tabulated:
        kept, n = dict(found), len(tables)
        sigma2, spread = kept.pop("triggered"), kept.pop("triggered_mad")
        pooled = ScheduleCost(
            ESS_THRESHOLD,
            Sigma2(sigma2, sigma2.estimate, Interval(float(z_square.mean()), None, None), True, n, 0),
            influence=None,
            times=tuple(its.times for its in schedules),
            decided_from=tuple(max(its.decided_from, default=0.0) for its in schedules),
            z_square=tuple(z_square.tolist()),
        )
        limiting = limiting_cost(pooled, spread, delta_cv, delta_tv)
        return Tabulated(**kept, n_prompts=n, uncovered=outside, limiting=limiting)

    return Estimator(problems, result)


def _perfect(model: FiniteModel) -> float:
    """Return sigma^2 of the true value with ESS-triggered resampling, at its own limiting schedule."""
    values = [*model.log_true_value[:-1], model.log_value[-1]]
    return solve(FiniteModel(model.policy, values, model.children)).limiting_schedule(ESS_THRESHOLD).sigma2
