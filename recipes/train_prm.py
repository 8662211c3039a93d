"""Train a process reward model: branching rollouts or any public stepwise format in, a value model out.

accelerate launch recipes/train_prm.py                 # after `make quickstart`: its configuration
accelerate launch recipes/train_prm.py --config my.yaml --target mc --divergence bce

With arguments it is `rmtools train`, whose --help lists them: as flags, or as keys of the YAML file.
"""

import sys
from pathlib import Path

import yaml

from rmtools.cli.errors import exit_on_user_error
from rmtools.cli.train import train
from rmtools.errors import UserError


def quickstart_config() -> str:
    """Return the quick start's configuration, if the quick start has made the rollouts that it names."""
    config = Path(__file__).with_name("quickstart_prm.yaml")
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
        train(sys.argv[1:] or ["--config", quickstart_config()])
