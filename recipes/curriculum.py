r"""Demonstrations from easy to hard, to train a verifier of silent failures: at first all steps but the last are given.

    python recipes/curriculum.py --policy runs/hard/policy --out runs/hard/rollouts

A failure that is not written into the text is credited to the right step only by chance; with all steps but the last given
there is one step to blame. A stage is OPTIMISER_STEPS:K-K':CARE: K to K' right steps are part of the prompt, the others are
demonstrations as careful as CARE, and only the outcome is kept. A stage without given steps may keep more: `:steps` at its
end keeps whether each step is right by itself, which a verifier of sums has to learn first; `:prefixes` keeps whether all
steps so far are right. With such a stage every row has labels, in the other stages the outcome at each step: train on them
with `target: labels`, otherwise with `target: mc`.

    python recipes/curriculum.py --task arithmetic-silent --policy runs/hard-sums/policy --out runs/hard-sums/rollouts \
        --stages 600:0-0:.5:steps,200:0-0:.7:prefixes,500:0-0:.88

The rows are written in the order of training: train on them with `train_sampling_strategy: sequential` and the same
batch size (recipes/hard_prm.yaml, recipes/hard_sums_prm.yaml).
"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rmtools.cli.errors import exit_on_user_error, with_dashes
from rmtools.cli.progress import progress
from rmtools.data.prefix_curriculum import given_demonstrations
from rmtools.data.rollouts import META_FILE, Rollout, RolloutMetadata, write_rollouts
from rmtools.data.tasks import ExactTask, load_exact_task
from rmtools.errors import UserError
from rmtools.files import claim_folder
from rmtools.lm.checkpoint import fingerprint
from rmtools.lm.policy import load_policy
from rmtools.lm.steps import StepSettings
from rmtools.particles.arguments import check_count, check_seed

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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, required=True, help="the model that training starts from")
    parser.add_argument("--task", default="crossing-silent")
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument("--stages", default="300:6-7:.2,200:2-7:.5,900:0-0:.85", help="see above")
    parser.add_argument("--batch", type=int, default=64, help="rows of one optimiser step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace rollouts that stand at --out")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    check_count("batch", args.batch, fix=64)
    check_seed(args.seed)
    claim_folder(args.out, META_FILE, holds="rollouts", overwrite=args.overwrite)
    task = load_exact_task(args.task, args.horizon)
    stages = parse_stages(args.stages, task, args.horizon, args.batch)
    settings = StepSettings(task.delimiter, args.horizon)
    load_policy(args.policy, settings)  # one that cannot be loaded is refused before anything is drawn
    with progress("stages", len(stages)) as tick:

        def report(stage: Stage, rate: float) -> None:
            tick(1)
            given = f"{stage.fewest} to {stage.most} steps given"
            print(f"{stage.steps} optimiser steps with {given}: success {rate:.3f}")

        rng = np.random.default_rng([args.seed, 7])
        rows = draw_curriculum(task, stages, args.batch, rng, report)
    weights = fingerprint(args.policy)
    metadata = RolloutMetadata(str(args.policy), weights, task.name, args.horizon, settings, 1.0, args.seed)
    write_rollouts(args.out, rows, metadata)
    print(f"{len(rows)} rows in {args.out}")


if __name__ == "__main__":
    with exit_on_user_error(with_dashes):
        main()
