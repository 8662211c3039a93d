"""Where training rows come from: rollouts of rmtools, or a file in a public stepwise format."""

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
