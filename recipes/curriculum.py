r"""Demonstrations from easy to hard, to train a verifier of silent failures: at first all steps but the last are given.

    python recipes/curriculum.py --policy runs/hard/policy --out runs/hard/rollouts

A failure that is not written into the text is credited to the right step only by chance; with all steps but the last given
there is one step to blame. A stage is OPTIMISER_STEPS:K-K':CARE: K to K' right steps are part of the prompt, the others are
demonstrations as careful as CARE, the outcome is all that is kept of them. Without given steps a stage may keep more, at
its end: `:steps`, whether each step is right by itself, whatever came before, which is what a verifier of sums has to
learn first; `:prefixes`, whether all steps so far are right. With such a stage every row has labels, in the other
stages the outcome at each step: train on them with `target: labels`, otherwise with `target: mc`.

    python recipes/curriculum.py --task arithmetic-silent --policy runs/hard-sums/policy --out runs/hard-sums/rollouts \
        --stages 600:0-0:.5:steps,200:0-0:.7:prefixes,500:0-0:.88

The rows are written in the order of training: train on them with `train_sampling_strategy: sequential` and the same
batch size (recipes/hard_prm.yaml, recipes/hard_sums_prm.yaml).
"""

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rmtools.cli.errors import exit_on_user_error
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
    """Rows for so many optimiser steps, with ``fewest`` to ``most`` right steps given.

    ``labels`` is "steps", "prefixes" or, where the outcome is all there is, "".
    """

    steps: int
    fewest: int
    most: int
    care: float
    labels: str


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy", type=Path, required=True, help="whose weights the value model starts from"
    )
    parser.add_argument("--task", default="crossing-silent")
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument("--stages", default="300:6-7:.2,200:2-7:.5,900:0-0:.85", help="see above")
    parser.add_argument("--batch", type=int, default=64, help="rows of one optimiser step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def parsed(stages: str, horizon: int) -> list[Stage]:
    """Return the stages that the flag asks for; raises ``UserError`` that names the one which cannot be."""
    found = []
    for stage in stages.split(","):
        parts = STAGE.fullmatch(stage)
        if not parts:
            raise UserError(
                f"the stage {stage!r} is not OPTIMISER_STEPS:K-K':CARE, with :steps or :prefixes behind it or not",
                "500:7-7:.5,600:0-0:.88, say",
            )
        steps, fewest, most = (int(x) for x in parts.groups()[:3])
        if steps < 1:
            raise UserError(f"the stage {stage!r} has no optimiser steps", "leave it out, or give it some")
        if not fewest <= most < horizon:
            raise UserError(
                f"the stage {stage!r} gives {fewest} to {most} of {horizon} steps", "give fewer than all"
            )
        if parts[5] and most:
            raise UserError(
                f"the stage {stage!r} gives steps, and labels every one",
                f"write {steps}:0-0:{parts[4]}:{parts[5]}",
            )
        found.append(Stage(steps, fewest, most, float(parts[4]), parts[5] or ""))
    return found


def drawn(task: ExactTask, stage: Stage, batch: int, rng: np.random.Generator) -> list[Rollout]:
    """Draw the rows of one stage, without labels."""
    given = rng.integers(stage.fewest, stage.most + 1, size=stage.steps * batch)
    found = given_demonstrations(task, given.tolist(), stage.care, rng)
    rate = np.mean([r.outcome for r in found])
    print(
        f"{stage.steps} optimiser steps with {stage.fewest} to {stage.most} steps given: success {rate:.3f}"
    )
    return found


def labelled(task: ExactTask, row: Rollout, labels: str) -> Rollout:
    """Return the row with a label a step: right by itself, right up to there, or the outcome of all."""
    if labels == "steps":
        return replace(row, labels=[float(r) for r in task.right_steps(row.prompt, row.steps)])
    if labels == "prefixes":
        return replace(row, labels=list(task.step_labels(row.prompt, row.steps)))
    return replace(row, labels=[row.outcome] * len(row.steps))


def main() -> None:
    args = arguments()
    check_count("batch", args.batch, fix=64)
    check_seed(args.seed)
    task, stages = load_exact_task(args.task, args.horizon), parsed(args.stages, args.horizon)
    with_labels = any(stage.labels for stage in stages)
    if any(s.labels == "steps" for s in stages) and args.task != "arithmetic-silent":
        raise UserError(
            f"a stage of the task {args.task} cannot end in :steps",
            "only in arithmetic-silent does the right step not depend on those before",
        )
    n = sum(stage.steps for stage in stages) * args.batch
    if n > MOST_ROWS:
        raise UserError(
            f"the stages ask for {n} rows, more than {MOST_ROWS}", "lower their optimiser steps, or the batch"
        )
    settings = StepSettings(task.delimiter, args.horizon)
    load_policy(args.policy, settings)  # one that cannot be loaded is refused before anything is drawn
    claim_folder(args.out, META_FILE)
    rng = np.random.default_rng([args.seed, 7])
    rows: list[Rollout] = []
    with progress("stages", len(stages)) as tick:
        for stage in stages:
            found = drawn(task, stage, args.batch, rng)
            rows += [labelled(task, r, stage.labels) for r in found] if with_labels else found
            tick(1)
    weights = fingerprint(args.policy)
    metadata = RolloutMetadata(str(args.policy), weights, task.name, args.horizon, settings, 1.0, args.seed)
    write_rollouts(args.out, rows, metadata)
    print(f"{len(rows)} rows in {args.out}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
