"""Read the rows to train on: rollouts of rmtools, or a file in a public stepwise format."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from rmtools.data.rollouts import META_FILE, Rollout, RolloutMetadata, read_rollouts
from rmtools.data.shards import DATA, PLAN_FILE
from rmtools.errors import UserError
from rmtools.lm.steps import StepSettings
from rmtools.training.config import DataArguments

logger = logging.getLogger(__name__)


def load_data(arguments: DataArguments) -> tuple[list[Rollout], list[Rollout], RolloutMetadata]:
    """Return the training rows, the held-out rows (may be none), and the metadata of the training rows.

    Raises ``UserError`` if there are no rows, a row is wrong, or the arguments contradict each other.
    """
    rows, metadata = load_rows(arguments.train_rollouts, arguments.data_format)
    if not arguments.eval_rollouts:
        return *hold_out(rows, arguments.eval_share), metadata
    if arguments.eval_share:
        raise UserError("eval_rollouts and eval_share both say what is held out", "name one of them")
    return rows, load_rows(arguments.eval_rollouts, arguments.data_format)[0], metadata


def load_rows(path: str, name: str = "") -> tuple[list[Rollout], RolloutMetadata]:
    """Read a rollout folder, or a file in the public format ``name`` (default: found from its fields).

    Rows that cannot be used, such as those without any label, are counted in a warning. Raises ``UserError`` if it is
    neither, or a row is wrong (named).
    """
    if not path:
        raise UserError("there are no rollouts to train on: train_rollouts is empty", "set train_rollouts")
    folder = Path(path)
    if not folder.exists() or any((folder / file).exists() for file in (META_FILE, PLAN_FILE, DATA)):
        if name and folder.exists():
            raise UserError(
                f"data_format is {name}, but {path} holds rollouts of rmtools", "leave data_format out"
            )
        return read_rollouts(path)
    from rmtools.data.readers import Tally, read_public

    tally = Tally()
    rows = list(read_public(path, name or None, tally=tally))
    left_out = "; ".join(f"{n}: {reason}" for reason, n in tally.dropped.most_common())
    if not rows:
        raise UserError(
            f"{path} gives no row to train on ({left_out or 'it is empty'})", "name a file with at least one"
        )
    if left_out:
        logger.warning("%s (%s): left out %s", path, tally.format, left_out)
    return rows, metadata_without_policy(rows)


def metadata_without_policy(rows: Sequence[Rollout]) -> RolloutMetadata:
    """Return the metadata of rows whose policy is not known."""
    horizon = max(len(r.steps) for r in rows)
    return RolloutMetadata("", "", "", horizon, StepSettings("\n", horizon), temperature=None, seed=0)


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
