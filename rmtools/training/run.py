"""One training from its arguments: rows, model, output folder, trainer."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rmtools.errors import UserError
from rmtools.files import left_as_found
from rmtools.training.config import CHECKPOINTING, DataArguments, PRMConfig
from rmtools.training.lora import build_model, check_model_arguments
from rmtools.training.resume import (
    PruneCheckpoints,
    checkpoint_to_resume,
    claim_output,
    held_output,
    require_outside,
)
from rmtools.training.rows import load_data, require_base
from rmtools.training.target_network import TARGET_NETWORK_FILE
from rmtools.training.trainer import PRMTrainer

if TYPE_CHECKING:
    from trl import ModelConfig


def train(data: DataArguments, config: PRMConfig, model_arguments: "ModelConfig") -> PRMTrainer:
    """Train a value model, resume or replace an earlier training, and write the result to ``output_dir``.

    Returns the trainer, with the trained model and its log.

    Parameters
    ----------
    data : DataArguments
    config : PRMConfig
    model_arguments : trl.ModelConfig
        The model to start from (default: the policy of the rollouts), precision, adapters.

    Raises
    ------
    UserError
        If arguments, rows or folders do not fit, before anything is trained; later if the loss or the gradients are
        not finite, or memory or disk are full.
    """
    check_model_arguments(model_arguments)
    rows, held_out = load_data(data)
    base = require_base(model_arguments.model_name_or_path, rows.metadata)
    out, overwrite = Path(str(config.output_dir)), config.overwrite_output_dir
    needed = (TARGET_NETWORK_FILE,) if config.objective().bootstraps and config.ema_decay > 0 else ()
    resume = checkpoint_to_resume(config.resume_from_checkpoint, out, needed)
    require_outside(out, (base, data.train_rollouts, data.eval_rollouts))
    claim_output(out, resume, overwrite)
    with left_as_found(out):
        model = build_model(base, model_arguments, config.seed, bool(getattr(config, CHECKPOINTING)))
        with held_output(out, resume, overwrite):
            trainer = PRMTrainer(model, config, rows, held_out)
            if overwrite or resume:
                trainer.add_callback(PruneCheckpoints(out, None if overwrite else resume))
            with _out_of_memory():
                trainer.train(resume_from_checkpoint=resume)
            trainer.save_model()
    return trainer


@contextlib.contextmanager
def _out_of_memory() -> Iterator[None]:
    """Raise ``UserError`` if a device is out of memory; pass every other error."""
    try:
        yield
    except RuntimeError as error:
        # A CPU's allocator has no exception of its own.
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(
            "the device is out of memory",
            f"lower per_device_train_batch_size or max_length, or set {CHECKPOINTING}: true",
        ) from error
