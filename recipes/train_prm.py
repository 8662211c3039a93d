"""Train a process reward model: branching rollouts or any public stepwise format in, a value model out.

accelerate launch recipes/train_prm.py                 # after `make quickstart`: its configuration
accelerate launch recipes/train_prm.py --config my.yaml --target mc --divergence bce

Every key of the YAML file is also a flag: those of transformers.TrainingArguments, of trl.ModelConfig (LoRA is the
default, --use_peft false trains all weights), and of rmtools.training.config (target, divergence, train_rollouts, …).
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rmtools.cli.errors import exit_on_user_error
from rmtools.errors import UserError

if TYPE_CHECKING:
    from trl import ModelConfig

    from rmtools.training.config import DataArguments, PRMConfig

DEFAULT_CONFIG = "recipes/quickstart_prm.yaml"


def arguments(given: list[str]) -> "tuple[DataArguments, PRMConfig, ModelConfig]":
    """Parse flags and YAML; an unknown key of either is an error."""
    from trl import ModelConfig, TrlParser

    from rmtools.training.config import DataArguments, PRMConfig, check_yaml

    parts: list[Any] = [DataArguments, PRMConfig, ModelConfig]
    parser: Any = TrlParser(parts)
    parser.set_defaults(use_peft=True)
    parser.error = refuse
    if "--config" in given:
        if given[-1] == "--config":
            refuse("--config names no file")
        check_yaml(given[given.index("--config") + 1], parts)
    try:
        return parser.parse_args_and_config(given)
    except UserError:
        raise
    except (ValueError, OSError) as error:  # trl's: unknown keys, values that its own checks refuse
        refuse(str(error))
        raise


def refuse(message: str) -> None:
    raise UserError(f"the training arguments are wrong: {message}", f"see {DEFAULT_CONFIG} for the keys")


def default_config() -> str:
    """Return the quick start's configuration, if the quick start has made the rollouts that it names."""
    config = Path(__file__).parents[1] / DEFAULT_CONFIG
    named = yaml.safe_load(config.read_text())
    missing = [named[k] for k in ("train_rollouts", "eval_rollouts") if not Path(named[k]).is_dir()]
    if missing:
        raise UserError(
            f"without arguments this trains on the quick start's rollouts, and {' and '.join(missing)} is missing here",
            "run `make quickstart` first, from the project's root; or name your data with --train_rollouts",
        )
    return str(config)


if __name__ == "__main__":
    with exit_on_user_error():
        parsed = arguments(sys.argv[1:] or ["--config", default_config()])
        from rmtools.training.run import train

        train(*parsed)
