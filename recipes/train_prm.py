"""Train a process reward model on branching rollouts with a Bellman-consistent loss.

accelerate launch --config_file accelerate_config.yaml recipes/train_prm.py --config recipes/quickstart_prm.yaml

Every key of the YAML file is also a flag: those of transformers.TrainingArguments, of trl.ModelConfig (LoRA), and
of rmtools.train.config (target, divergence, td_lambda, ema_decay, floor, train_rollouts, eval_rollouts).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.cli.errors import exit_on_user_error
from rmtools.data.rollouts import read_rollouts
from rmtools.errors import UserError
from rmtools.files import claim_folder
from rmtools.lm.checkpoint import SETTINGS_FILE, new_token_classifier
from rmtools.lm.policy import load_tokenizer
from rmtools.lm.steps import StepTokenizer

if TYPE_CHECKING:
    from trl import ModelConfig

    from rmtools.train.config import DataArguments, PRMConfig


def arguments() -> "tuple[DataArguments, PRMConfig, ModelConfig]":
    """Parse flags and YAML; an unknown key of either is an error."""
    import yaml
    from trl import ModelConfig, TrlParser

    from rmtools.train.config import DataArguments, PRMConfig

    parser: Any = TrlParser([DataArguments, PRMConfig, ModelConfig])  # type: ignore[list-item]
    parser.error = refuse
    try:
        return parser.parse_args_and_config()
    except (ValueError, OSError, yaml.YAMLError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the training arguments are wrong: {error}", "see recipes/quickstart_prm.yaml for the keys"
        ) from error


def refuse(message: str) -> None:
    raise UserError(
        f"the training arguments are wrong: {message}", "see recipes/quickstart_prm.yaml for the keys"
    )


def main() -> None:
    data, config, model_args = arguments()
    from peft import get_peft_model
    from transformers import set_seed

    from rmtools.train.lora import lora_config, refuse_ignored
    from rmtools.train.save import save_checkpoint, settings_for
    from rmtools.train.trainer import PRMTrainer

    refuse_ignored(model_args)
    rows, metadata = read_rollouts(data.train_rollouts)
    held_out = read_rollouts(data.eval_rollouts)[0] if data.eval_rollouts else []
    out = claim_folder(Path(str(config.output_dir)), SETTINGS_FILE)
    policy = model_args.model_name_or_path or metadata.policy
    steps = StepTokenizer(load_tokenizer(policy), metadata.steps)
    set_seed(config.seed)  # the adapters draw their initial weights from the global generator
    model: Any = new_token_classifier(policy, config.seed)
    if model_args.use_peft:
        model = get_peft_model(model, lora_config(model_args))
    trainer = PRMTrainer(model, config, steps, rows, held_out)
    trainer.train()
    if trainer.is_world_process_zero():
        save_checkpoint(trainer, settings_for(policy, metadata, rows, trainer, data.train_rollouts), out)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
