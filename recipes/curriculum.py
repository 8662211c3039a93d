"""Rollouts from easy to hard: the policy completes solutions whose first steps are given, at first all but the last.

    python recipes/curriculum.py --policy runs/hard/policy --task arithmetic-silent --out runs/hard/rollouts

A failure that is not written into the text is credited to the right step only by chance; with all steps but the last given
there is one step to blame. Each stage is OPTIMISER_STEPS:K or OPTIMISER_STEPS:K-K', with K given steps (drawn from K to K') of
a right solution as part of the prompt. The rows are written in the order of training, each as often as it is to be seen:
train on them with `train_sampling_strategy: sequential` and the same batch size (recipes/hard_prm.yaml).
"""

import argparse
from pathlib import Path

import numpy as np

from rmtools.cli.errors import exit_on_user_error
from rmtools.cli.progress import progress
from rmtools.data.collect import Branching
from rmtools.data.given import collect_given
from rmtools.data.rollouts import META_FILE, Rollout, RolloutMetadata, write_rollouts
from rmtools.data.tasks import load_exact_task
from rmtools.errors import UserError
from rmtools.files import claim_folder
from rmtools.lm.checkpoint import fingerprint
from rmtools.lm.policy import load_policy
from rmtools.lm.steps import StepSettings


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--task", default="arithmetic-silent")
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument("--stages", default="500:7,300:5-7,300:2-7,600:0", help="see above")
    parser.add_argument("--batch", type=int, default=64, help="rows of one optimiser step")
    parser.add_argument("--prompts", type=int, default=2048, help="of each stage")
    parser.add_argument("--trajectories", type=int, default=4, help="of each prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def parsed(stages: str, horizon: int) -> list[tuple[int, int, int]]:
    """Return (optimiser steps, fewest, most given steps) of each stage."""
    found = []
    for stage in stages.split(","):
        steps, _, given = stage.partition(":")
        fewest, _, most = given.partition("-")
        if not (steps.isdigit() and fewest.isdigit() and (most or fewest).isdigit()):
            raise UserError(
                f"the stage {stage!r} is not OPTIMISER_STEPS:K or OPTIMISER_STEPS:K-K'", "500:7,300:0, say"
            )
        found.append((int(steps), int(fewest), int(most or fewest)))
        if not 0 <= found[-1][1] <= found[-1][2] < horizon:
            raise UserError(
                f"the stage {stage!r} gives {given} of {horizon} steps", "give at least 0 and fewer than all"
            )
    return found


def repeated(rows: list[Rollout], n: int, rng: np.random.Generator) -> list[Rollout]:
    """Return ``n`` rows: all of them in a random order, then again in another."""
    order = [rng.permutation(len(rows)) for _ in range(-(-n // len(rows)))]
    return [rows[i] for i in np.concatenate(order)[:n]]


def main() -> None:
    args = arguments()
    if min(args.batch, args.prompts, args.trajectories) < 1:
        raise UserError("batch, prompts and trajectories must be at least 1")
    task, stages = load_exact_task(args.task, args.horizon), parsed(args.stages, args.horizon)
    policy = load_policy(args.policy, StepSettings(task.delimiter, args.horizon))
    claim_folder(args.out, META_FILE)
    rng = np.random.default_rng([args.seed, 7])
    rows: list[Rollout] = []
    with progress("stages", len(stages)) as tick:
        for steps, fewest, most in stages:
            given = rng.integers(fewest, most + 1, size=args.prompts)
            found = collect_given(policy, task, given.tolist(), Branching(args.trajectories), rng)
            rate = np.mean([r.outcome for r in found])
            print(f"{steps} optimiser steps with {fewest} to {most} steps given: success {rate:.3f}")
            rows += repeated(found, steps * args.batch, rng)
            tick(1)
    weights = fingerprint(args.policy)
    metadata = RolloutMetadata(
        str(args.policy),
        weights,
        task.name,
        args.horizon,
        policy.steps.settings,
        policy.temperature,
        args.seed,
    )
    write_rollouts(args.out, rows, metadata)
    print(f"{len(rows)} rows in {args.out}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
