"""Train a process reward model: branching rollouts or any public stepwise format in, a value model out.

accelerate launch recipes/train_prm.py                 # after `make quickstart`: its configuration
accelerate launch recipes/train_prm.py --config my.yaml --target mc --divergence bce

Every key of the YAML file is also a flag: those of transformers.TrainingArguments, of trl.ModelConfig (LoRA is the
default, --use_peft false trains all weights), and of rmtools.training.config (target, divergence, train_rollouts, …).
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.cli.errors import exit_on_user_error
from rmtools.errors import UserError
from rmtools.lm.policy import load_tokenizer
from rmtools.lm.steps import StepTokenizer

if TYPE_CHECKING:
    from trl import ModelConfig

    from rmtools.training.config import DataArguments, PRMConfig

DEFAULT_CONFIG = "recipes/quickstart_prm.yaml"


def arguments(given: list[str]) -> "tuple[DataArguments, PRMConfig, ModelConfig]":
    """Parse flags and YAML; an unknown key of either is an error."""
    import yaml
    from trl import ModelConfig, TrlParser

    from rmtools.training.config import DataArguments, PRMConfig
    from rmtools.training.yaml_types import check_yaml

    parts: list[Any] = [DataArguments, PRMConfig, ModelConfig]
    parser: Any = TrlParser(parts)
    parser.set_defaults(use_peft=True)
    parser.error = refuse
    if not given:
        given = ["--config", default_config()]
    if "--config" in given:
        if given[-1] == "--config":
            refuse("--config names no file")
        check_yaml(given[given.index("--config") + 1], parts)
    try:
        return parser.parse_args_and_config(given)
    except UserError:
        raise
    except (ValueError, OSError, ImportError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        # What the libraries make of values that their types do not exclude.
        raise UserError(
            f"the training arguments are wrong: {error}", f"see {DEFAULT_CONFIG} for the keys"
        ) from error


def refuse(message: str) -> None:
    raise UserError(f"the training arguments are wrong: {message}", f"see {DEFAULT_CONFIG} for the keys")


def default_config() -> str:
    """Return the quick start's configuration, if the quick start has left what it trains on."""
    import yaml

    config = Path(__file__).parents[1] / DEFAULT_CONFIG
    named = yaml.safe_load(config.read_text())
    missing = [named[k] for k in ("train_rollouts", "eval_rollouts") if not Path(named[k]).is_dir()]
    if missing:
        raise UserError(
            f"without arguments this trains on the quick start's rollouts, and {' and '.join(missing)} is missing here",
            "run `make quickstart` first, from the project's root; or name your data with --train_rollouts",
        )
    return str(config)


def main() -> None:
    data, config, model_args = arguments(sys.argv[1:])
    from transformers import set_seed

    from rmtools.training.config import CHECKPOINTING
    from rmtools.training.errors import refused_by_libraries
    from rmtools.training.lora import build_model, refuse_ignored, revision
    from rmtools.training.provenance import settings_for
    from rmtools.training.resume import (
        PruneCheckpoints,
        checkpoint_to_resume,
        claim_output,
        held_output,
        require_outside,
        require_same_training,
    )
    from rmtools.training.rows import hold_out, load_rows, require_base
    from rmtools.training.target_network import FILE as TARGET_NETWORK_FILE
    from rmtools.training.trainer import PRMTrainer

    refuse_ignored(model_args)
    rows, metadata = load_rows(data.train_rollouts, data.data_format)
    if data.eval_rollouts and data.eval_share:
        raise UserError("eval_rollouts and eval_share both say what is held out", "name one of them")
    if data.eval_rollouts:
        held_out = load_rows(data.eval_rollouts, data.data_format)[0]
    else:
        rows, held_out = hold_out(rows, data.eval_share)
    base = require_base(model_args.model_name_or_path, metadata)
    out = Path(str(config.output_dir))
    needed = (TARGET_NETWORK_FILE,) if config.objective().bootstraps and config.ema_decay > 0 else ()
    resume = checkpoint_to_resume(config.resume_from_checkpoint, out, needed)
    require_outside(out, (base, data.train_rollouts, data.eval_rollouts))
    claim_output(out, resume, config.overwrite_output_dir)
    steps = StepTokenizer(load_tokenizer(base), metadata.steps)
    set_seed(config.seed)  # the adapters draw their initial weights from the global generator
    with refused_by_libraries():
        model = build_model(base, model_args, config.seed, bool(getattr(config, CHECKPOINTING)))
    named = data.train_rollouts
    settings = settings_for(base, revision(model_args), metadata, rows, config, named, model_args)
    if resume:
        require_same_training(resume, settings)
    overwrite = config.overwrite_output_dir
    with refused_by_libraries(), held_output(out, resume, overwrite):
        trainer = PRMTrainer(model, config, steps, rows, held_out, settings)
        if overwrite or resume:
            trainer.add_callback(PruneCheckpoints(out, None if overwrite else resume))
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model(str(out))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
