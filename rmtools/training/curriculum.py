"""Demonstrations from easy to hard: stages that give right steps, and labels for the steps that follow."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rmtools.data.prefix_curriculum import given_demonstrations
from rmtools.data.rollouts import Rollout
from rmtools.data.tasks import ExactTask
from rmtools.errors import UserError

STAGE = re.compile(r"([0-9]{1,9}):([0-9]{1,9})-([0-9]{1,9}):(0?\.[0-9]+|1)(?::(steps|prefixes))?")
# All rows are in memory at once, a kilobyte each.
MOST_ROWS = 2_000_000


@dataclass(frozen=True)
class Stage:
    """Rows for ``steps`` optimiser steps, with ``fewest`` to ``most`` right steps given.

    ``care`` is that of the demonstrations; ``labels`` is "steps", "prefixes" or "" (outcomes only).
    """

    steps: int
    fewest: int
    most: int
    care: float
    labels: str


def parse_stages(text: str, task: ExactTask, horizon: int, batch: int) -> list[Stage]:
    """Read stages written ``OPTIMISER_STEPS:K-K':CARE[:steps|:prefixes],…``; raise ``UserError`` naming a wrong one."""
    found = []
    for stage in text.split(","):
        parts = STAGE.fullmatch(stage)
        if not parts:
            raise UserError(
                f"the stage {stage!r} is not OPTIMISER_STEPS:K-K':CARE, with or without :steps or :prefixes at its end",
                "write for example 500:7-7:.5,600:0-0:.88",
            )
        steps, fewest, most = (int(x) for x in parts.groups()[:3])
        for wrong, why, fix in (
            (steps < 1, "has no optimiser steps", "leave it out, or give it some"),
            (
                not fewest <= most < horizon,
                f"gives {fewest} to {most} of {horizon} steps",
                "give fewer than all",
            ),
            (
                parts[5] and most,
                "gives steps, and labels every one",
                f"write {steps}:0-0:{parts[4]}:{parts[5]}",
            ),
            (
                parts[5] == "steps" and task.name != "arithmetic-silent",
                f"ends in :steps, which the task {task.name} cannot have",
                "only in arithmetic-silent is the right step independent of those before",
            ),
        ):
            if wrong:
                raise UserError(f"the stage {stage!r} {why}", fix)
        found.append(Stage(steps, fewest, most, float(parts[4]), parts[5] or ""))
    n = sum(stage.steps for stage in found) * batch
    if n > MOST_ROWS:
        raise UserError(
            f"the stages ask for {n} rows, more than {MOST_ROWS}", "lower their optimiser steps, or the batch"
        )
    return found


def draw_curriculum(
    task: ExactTask,
    stages: Sequence[Stage],
    batch: int,
    rng: np.random.Generator,
    report: Callable[[Stage, float], object],
) -> list[Rollout]:
    """Draw the rows of all stages, in the order of training.

    If any stage has labels, all rows get labels; a stage without repeats the outcome at each step. ``batch`` is the rows
    of one optimiser step; ``report`` is called with every finished stage and its success rate.
    """
    labelled = any(stage.labels for stage in stages)
    rows: list[Rollout] = []
    for stage in stages:
        given = rng.integers(stage.fewest, stage.most + 1, size=stage.steps * batch)
        found = given_demonstrations(task, given.tolist(), stage.care, rng)
        rows += [_with_labels(task, row, stage.labels) for row in found] if labelled else found
        report(stage, float(np.mean([row.outcome for row in found])))
    return rows


def _with_labels(task: ExactTask, row: Rollout, labels: str) -> Rollout:
    if labels == "steps":
        return replace(row, labels=[float(r) for r in task.right_steps(row.prompt, row.steps)])
    if labels == "prefixes":
        return replace(row, labels=list(task.step_labels(row.prompt, row.steps)))
    return replace(row, labels=[row.outcome] * len(row.steps))
