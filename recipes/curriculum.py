"""Demonstrations from easy to hard, to train a verifier of silent failures: at first all steps but the last are given.

    python recipes/curriculum.py --policy runs/hard/policy --out runs/hard/rollouts

A failure that is not written into the text is credited to the right step only by chance; with all steps but the last given
there is one step to blame. A stage is OPTIMISER_STEPS:K-K':CARE: K to K' right steps are part of the prompt, the others are
demonstrations as careful as CARE, the outcome is all that is kept of them. The rows are written in the order of
training: train on them with `train_sampling_strategy: sequential` and the same batch size (recipes/hard_prm.yaml).
"""

import argparse
import re
from pathlib import Path

import numpy as np

from rmtools.cli.errors import exit_on_user_error
from rmtools.cli.progress import progress
from rmtools.data.given import given_demonstrations
from rmtools.data.rollouts import META_FILE, Rollout, RolloutMetadata, write_rollouts
from rmtools.data.tasks import load_exact_task
from rmtools.errors import UserError
from rmtools.files import claim_folder
from rmtools.lm.checkpoint import fingerprint
from rmtools.lm.steps import StepSettings

STAGE = re.compile(r"(\d+):(\d+)-(\d+):(0?\.\d+|1)")


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


def parsed(stages: str, horizon: int) -> list[tuple[int, int, int, float]]:
    """Return (optimiser steps, fewest, most given steps, care) of each stage."""
    found = []
    for stage in stages.split(","):
        parts = STAGE.fullmatch(stage)
        if not parts:
            raise UserError(
                f"the stage {stage!r} is not OPTIMISER_STEPS:K-K':CARE", "500:7-7:.5,600:0-0:.88, say"
            )
        steps, fewest, most = (int(x) for x in parts.groups()[:3])
        if not fewest <= most < horizon:
            raise UserError(
                f"the stage {stage!r} gives {fewest} to {most} of {horizon} steps", "give fewer than all"
            )
        found.append((steps, fewest, most, float(parts[4])))
    return found


def main() -> None:
    args = arguments()
    if args.batch < 1:
        raise UserError("batch must be at least 1")
    task, stages = load_exact_task(args.task, args.horizon), parsed(args.stages, args.horizon)
    claim_folder(args.out, META_FILE)
    rng = np.random.default_rng([args.seed, 7])
    rows: list[Rollout] = []
    with progress("stages", len(stages)) as tick:
        for steps, fewest, most, care in stages:
            given = rng.integers(fewest, most + 1, size=steps * args.batch)
            found = given_demonstrations(task, given.tolist(), care, rng)
            rate = np.mean([r.outcome for r in found])
            print(f"{steps} optimiser steps with {fewest} to {most} steps given: success {rate:.3f}")
            rows += found
            tick(1)
    settings = StepSettings(task.delimiter, args.horizon)
    weights = fingerprint(args.policy)
    metadata = RolloutMetadata(str(args.policy), weights, task.name, args.horizon, settings, 1.0, args.seed)
    write_rollouts(args.out, rows, metadata)
    print(f"{len(rows)} rows in {args.out}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
