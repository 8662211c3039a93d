"""What an audit knows exactly, where the task lists its steps: Bellman ratios, and solutions written out as tables."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.tabulated import MOST_PROMPTS, enumerations

if TYPE_CHECKING:
    from rmtools.auditing.models import Subject
    from rmtools.data.exact import ExactRatios
    from rmtools.data.rollouts import Rollout, RolloutMetadata
    from rmtools.data.tasks import Task
    from rmtools.lm.enumerate.tables import Enumeration
    from rmtools.lm.policy import Policy
    from rmtools.lm.value import Scorer

Progress = Callable[[str, int], Any]


def same_ids(
    rows: "Sequence[Rollout]", policy: "Policy | None", task: "Task | None", scorer: "Scorer"
) -> bool:
    """Return whether ``scorer`` reads the policy's tokens: only then can it be asked while they are enumerated."""
    if policy is None or task is None:
        return False
    prompts = list(dict.fromkeys(r.prompt for r in rows))
    choices = task.step_choices(prompts[0], []) or []
    return all(scorer.steps.prompt_ids(p) == policy.steps.prompt_ids(p) for p in prompts) and all(
        scorer.steps.step_ids(c) == policy.steps.step_ids(c) for c in choices
    )


def enumerated(
    rows: "Sequence[Rollout]",
    metadata: "RolloutMetadata | None",
    subjects: "Sequence[Subject]",
    policy: "Policy | None",
    task: "Task | None",
    progress: Progress,
) -> "ExactRatios | None":
    """Return the exact Bellman ratios of the subjects that can be asked for any prefix.

    None where the steps cannot be listed, every terminal is a model's, or the policy is not that of the rollouts.
    """
    if policy is None or task is None or metadata is None or not subjects:
        return None
    from rmtools.data.exact import exact_ratios
    from rmtools.lm.checkpoint import fingerprint

    if not task.step_choices(rows[0].prompt, []):
        return None
    # Ratios under another policy than the rollouts' would stand beside sampled ones as if they were the same.
    same_weights = fingerprint(policy.name) == metadata.policy_fingerprint
    if not same_weights or policy.temperature != metadata.temperature:
        return None
    scorers = [s.scorer for s in subjects]
    with progress("enumerating one-step children", len(rows)) as tick:
        return exact_ratios(policy, scorers, rows, task, progress=tick)


def tables_of(
    rows: "Sequence[Rollout]", policy: "Policy | None", task: "Task | None", progress: Progress
) -> "list[Enumeration]":
    """Return the prompts written out as tables, as many as is cheap."""
    assert policy is not None
    assert task is not None
    prompts = list(dict.fromkeys(r.prompt for r in rows))
    with progress("enumerating solutions", min(len(prompts), MOST_PROMPTS)) as tick:
        return enumerations(policy, task, prompts, tick)


def exact_of(
    ratios: "ExactRatios | None", subject: "Subject", subjects: "Sequence[Subject]"
) -> np.ndarray | None:
    """Return the enumerated b of ``subject``, None where there is none."""
    if ratios is None or subject not in subjects:
        return None
    place = [s.role for s in subjects].index(subject.role)
    return np.concatenate(ratios.log_error[place])


def coverage(ratios: "ExactRatios") -> dict[str, float]:
    """Return mean and largest probability outside the listed steps, and the prefixes left out for it."""
    return {
        "mean": float(ratios.uncovered.mean()),
        "largest": float(ratios.uncovered.max()),
        "left_out": float((ratios.uncovered > 0.5).sum()),
    }
