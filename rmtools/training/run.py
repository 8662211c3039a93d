"""One training from its arguments: rows, model, output folder, trainer."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import set_seed

from rmtools.errors import UserError
from rmtools.files import left_as_found
from rmtools.lm.policy import load_tokenizer
from rmtools.lm.steps import StepTokenizer
from rmtools.training.config import CHECKPOINTING, DataArguments, PRMConfig
from rmtools.training.lora import build_model, check_model_arguments
from rmtools.training.provenance import checkpoint_settings
from rmtools.training.resume import (
    PruneCheckpoints,
    checkpoint_to_resume,
    claim_output,
    held_output,
    require_outside,
    require_same_training,
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
    rows, held_out, metadata = load_data(data)
    base = require_base(model_arguments.model_name_or_path, metadata)
    out, overwrite = Path(str(config.output_dir)), config.overwrite_output_dir
    needed = (TARGET_NETWORK_FILE,) if config.objective().bootstraps and config.ema_decay > 0 else ()
    resume = checkpoint_to_resume(config.resume_from_checkpoint, out, needed)
    require_outside(out, (base, data.train_rollouts, data.eval_rollouts))
    claim_output(out, resume, overwrite)
    steps = StepTokenizer(load_tokenizer(base), metadata.steps)
    set_seed(config.seed)  # the adapters draw their initial weights from the global generator
    with left_as_found(out), _out_of_memory():
        model = build_model(base, model_arguments, config.seed, bool(getattr(config, CHECKPOINTING)))
        settings = checkpoint_settings(base, metadata, rows, config, data.train_rollouts, model_arguments)
        if resume:
            require_same_training(resume, settings)
        with held_output(out, resume, overwrite):
            trainer = PRMTrainer(model, config, steps, rows, held_out, settings)
            if overwrite or resume:
                trainer.add_callback(PruneCheckpoints(out, None if overwrite else resume))
            trainer.train(resume_from_checkpoint=resume)
            trainer.save_model(str(out))
    return trainer


@contextlib.contextmanager
def _out_of_memory() -> Iterator[None]:
    """Raise ``UserError`` if a device is out of memory; pass every other error."""
    try:
        yield
    except RuntimeError as error:
        # torch.OutOfMemoryError on an accelerator; a plain RuntimeError on a CPU.
        known = ("out of memory", "not enough memory", "can't allocate memory")
        if not any(words in str(error).lower() for words in known):
            raise
        raise UserError(
            "the device is out of memory",
            f"lower per_device_train_batch_size or max_length, or set {CHECKPOINTING}: true",
        ) from error
