"""Read the rows to train on: rollouts of rmtools, or a file in a public stepwise format."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from rmtools.data.load import load_rollouts
from rmtools.data.rollouts import Rollout, RolloutMetadata, Rollouts
from rmtools.errors import UserError
from rmtools.training.config import DataArguments


def load_data(arguments: DataArguments) -> tuple[Rollouts, Rollouts | None]:
    """Return the training rows and the held-out ones, if any.

    Raises ``UserError`` if there are no rows, a row is wrong, or the arguments contradict each other.
    """
    found = load_rollouts(arguments.train_rollouts, arguments.data_format)
    if arguments.eval_rollouts and arguments.eval_share:
        raise UserError("eval_rollouts and eval_share both say what is held out", "name one of them")
    if arguments.eval_rollouts:
        return found, load_rollouts(arguments.eval_rollouts, arguments.data_format)
    rows, held_out = hold_out(found, arguments.eval_share)
    return replace(found, rows=rows), replace(found, rows=held_out) if held_out else None


def require_base(named: str | None, metadata: RolloutMetadata) -> str:
    """Return the model to start from: the named one, or the policy of the rollouts."""
    if not named and not metadata.policy:
        raise UserError(
            "the training data do not say which policy made them, and no model is named",
            "name the model to start from with model_name_or_path",
        )
    return named or metadata.policy


def hold_out(rows: Sequence[Rollout], share: float) -> tuple[list[Rollout], list[Rollout]]:
    """Split off the rows of about ``share`` of the prompts; a prompt's side does not depend on the other prompts.

    Raises ``UserError`` if ``share`` is not in [0, 1), or a part would be empty.
    """
    if not 0 <= share < 1:
        raise UserError(
            f"eval_share must be at least 0 and below 1, got {share}: it is a share of the prompts",
            "set eval_share: 0.1, say",
        )
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
