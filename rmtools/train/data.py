"""Where training rows come from: rollouts of rmtools, or a file in a public stepwise format."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rmtools.data.rollouts import META_FILE, Rollout, RolloutMetadata, read_rollouts
from rmtools.errors import UserError
from rmtools.lm.steps import StepSettings


def load_rows(path: str) -> tuple[list[Rollout], RolloutMetadata]:
    """Read a rollout folder, or a file in a public format, which is recognised by its fields.

    Raises
    ------
    UserError
        If it is neither, or a row is wrong (named).
    """
    if not path:
        raise UserError(
            "there are no rollouts to train on: train_rollouts is empty", "name them with --train_rollouts"
        )
    if (Path(path) / META_FILE).exists() or not Path(path).exists():
        return read_rollouts(path)
    from rmtools.data.readers import read_public

    rows = list(read_public(path))
    if not rows:
        raise UserError(f"{path} has no rows", "name a file with at least one")
    return rows, described(rows)


def described(rows: Sequence[Rollout]) -> RolloutMetadata:
    """Return the metadata of rows whose policy is not known."""
    horizon = max(len(r.steps) for r in rows)
    return RolloutMetadata(
        policy="",
        policy_fingerprint="",
        task="",
        horizon=horizon,
        steps=StepSettings("\n", horizon),
        temperature=None,
        seed=0,
    )


def require_base(named: str | None, metadata: RolloutMetadata) -> str:
    """Return the model to start from: the one that is named, or the policy of the rollouts."""
    if not named and not metadata.policy:
        raise UserError(
            "the training data do not say which policy made them, and no model is named",
            "name the model to start from with --model_name_or_path",
        )
    return named or metadata.policy


def hold_out(rows: Sequence[Rollout], share: float) -> tuple[list[Rollout], list[Rollout]]:
    """Split off the rows of about ``share`` of the prompts, the same whatever else is in ``rows``.

    Raises
    ------
    UserError
        If ``share`` is not in [0, 1), or a part would be empty.
    """
    if not 0 <= share < 1:
        raise UserError(f"eval_share is {share}", "it is a share of the prompts: at least 0, below 1")
    kept: list[Rollout] = []
    held_out: list[Rollout] = []
    for row in rows:
        place = int(hashlib.sha256(row.prompt.encode()).hexdigest()[-8:], 16) / 16**8
        (held_out if place < share else kept).append(row)
    if not kept or (share and not held_out):
        raise UserError(
            f"eval_share {share} of {len({r.prompt for r in rows})} prompts leaves none on one side",
            "choose another share, or name eval_rollouts",
        )
    return kept, held_out
