"""One training from its arguments: rows, held-out part, model, output folder, trainer."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.data.load import load_rollouts
from rmtools.data.readers.row import Options, parse_map
from rmtools.data.rollouts import Rollout, RolloutMetadata, Rollouts
from rmtools.errors import UserError
from rmtools.files import left_as_found, require_writable
from rmtools.lm.hub import split_name
from rmtools.lm.memory import out_of_memory
from rmtools.training.config import CHECKPOINTING, DataArguments, PRMConfig
from rmtools.training.lora import build_model, check_model_arguments
from rmtools.training.resume import (
    checkpoint_to_resume,
    claim_output,
    held_output,
    require_outside,
)
from rmtools.training.target_network import TARGET_NETWORK_FILE
from rmtools.training.trainer import PRMTrainer, check_rows

if TYPE_CHECKING:
    from trl import ModelConfig


def train(
    data: DataArguments,
    config: PRMConfig,
    model_arguments: "ModelConfig",
    on_model: Callable[[Any], object] | None = None,
) -> PRMTrainer:
    """Train a value model, resume or replace an earlier training, and write the result to ``output_dir``.

    Returns the trainer, with the trained model and its log.

    Parameters
    ----------
    data : DataArguments
    config : PRMConfig
    model_arguments : trl.ModelConfig
        The model to start from (default: the policy of the rollouts), precision, adapters.
    on_model : callable, optional
        Called with the model before it is trained.

    Raises
    ------
    UserError
        If arguments, rows or folders do not fit, before anything is trained; later if the loss or the gradients are
        not finite, or memory or disk are full.
    """
    check_model_arguments(model_arguments)
    require_writable(Path(str(config.output_dir)))
    rows, held_out = load_data(data)
    config.resolve_target(rows)
    check_rows(config, rows, held_out)
    base = require_base(model_arguments, rows.metadata)
    out, overwrite = Path(str(config.output_dir)), config.overwrite_output_dir
    needed = (TARGET_NETWORK_FILE,) if config.objective().bootstraps and config.ema_decay > 0 else ()
    resume = checkpoint_to_resume(config.resume_from_checkpoint, out, needed)
    require_outside(out, (base, data.train_rollouts, data.eval_rollouts))
    claim_output(out, resume, overwrite)
    with left_as_found(out):
        model = build_model(base, model_arguments, config.seed, bool(getattr(config, CHECKPOINTING)))
        if on_model is not None:
            config.resolve_floor(rows)
            config.resolve_learning_rate(model)
            on_model(model)
        with held_output(out, resume, overwrite):
            trainer = PRMTrainer(model, config, rows, held_out)
            with _out_of_memory():
                trainer.train(resume_from_checkpoint=resume)
            trainer.save_model()
    return trainer


def load_data(arguments: DataArguments) -> tuple[Rollouts, Rollouts | None]:
    """Return the training rows and the held-out ones, if any.

    Raises ``UserError`` if there are no rows, a row is wrong, or the arguments contradict each other.
    """
    options = Options(
        neutral=arguments.neutral,
        segment=arguments.segment,
        first_step=arguments.first_step,
        map=parse_map(arguments.map),
        keep_excluded=arguments.keep_excluded,
        inner_delimiter=arguments.inner_delimiter,
    )
    read = functools.partial(
        load_rollouts, data_format=arguments.data_format, skip_bad=arguments.skip_bad, options=options
    )
    found = read(arguments.train_rollouts, split=arguments.split)
    apart = arguments.eval_rollouts or (arguments.eval_split and arguments.train_rollouts)
    if apart and arguments.eval_share:
        named = "eval_rollouts" if arguments.eval_rollouts else "eval_split"
        raise UserError(f"{named} and eval_share both say what is held out", "name one of them")
    if apart:
        return found, read(apart, split=arguments.eval_split)
    rows, held_out = hold_out(found, arguments.eval_share)
    return replace(found, rows=rows), replace(found, rows=held_out) if held_out else None


def require_base(arguments: "ModelConfig", metadata: RolloutMetadata) -> str:
    """Return the model to start from, with its revision: the named one, or the policy of the rollouts.

    Raises ``UserError`` if neither is known, or ``model_revision`` names another revision than the model's name, or one of
    a folder.
    """
    named, revision = arguments.model_name_or_path or metadata.policy, arguments.model_revision
    if metadata.server and not arguments.model_name_or_path:
        raise UserError(
            f"the rollouts were drawn from a server ({metadata.policy}), which gives no weights to start from",
            "name the model with model_name_or_path, best the one that was served",
        )
    if not named:
        raise UserError(
            "the training data do not say which policy made them, and no model is named",
            "name the model to start from with model_name_or_path",
        )
    if revision in (None, "", "main"):
        return named
    repository, own = split_name(named)
    if Path(named).is_dir():
        raise UserError(
            f"model_revision is {revision}, but {named} is a folder: only a hub model has revisions",
            "leave model_revision out",
        )
    if own not in ("", revision):
        raise UserError(
            f"the model to start from is {named}, and model_revision names another revision: {revision}",
            f"leave model_revision out, or set model_name_or_path to {repository}",
        )
    return f"{repository}@{revision}"


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


@contextlib.contextmanager
def _out_of_memory() -> Iterator[None]:
    """Raise ``UserError`` if a device is out of memory; pass every other error."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            "the device is out of memory",
            f"lower max_tokens_per_batch or max_length, or set {CHECKPOINTING}: true",
        ) from error
