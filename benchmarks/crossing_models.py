"""A policy and a value model of the task crossing at any horizon, made by the recipes and kept in a work folder.

What is there already is used: the folders ``policy-8`` and ``policy-16`` are those of `losses_on_crossing`.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import losses_on_crossing as losses
import numpy as np

if TYPE_CHECKING:
    from rmtools.data.tasks import Crossing
    from rmtools.lm.policy import Policy
    from rmtools.lm.value import ValueModel

RECIPES = Path(__file__).parents[1] / "recipes"
PROMPTS, TRAJECTORIES = 1024, 8


@dataclass(frozen=True)
class Models:
    """What is sampled, and the prompts that the value model was trained on."""

    task: "Crossing"
    policy: "Policy"
    value: "ValueModel"
    trained_on: frozenset[str]

    def held_out(self, n: int, seed: int) -> list[str]:
        """Return ``n`` different prompts that the value model was not trained on."""
        rng, found = np.random.default_rng(seed), dict[str, None]()
        while len(found) < n:
            drawn = self.task.prompts(n, rng)[0]
            found |= dict.fromkeys(p for p in drawn if p not in self.trained_on)
        return list(found)[:n]


def models(work: Path, horizon: int) -> Models:
    """Load the models of ``horizon``, training first what the work folder lacks."""
    import torch

    from rmtools.data.load import load_rollouts
    from rmtools.data.tasks import Crossing
    from rmtools.lm.checkpoint import load_value_model
    from rmtools.lm.policy import load_policy

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder, rollouts, model = (work / f"{kind}-{horizon}" for kind in ("policy", "rollouts", "value"))
    if not (folder / "gate.json").exists():
        losses.train_policy(folder, horizon)
    if not (rollouts / "metadata.json").exists():
        collect(folder, rollouts, horizon)
    if not (model / "rmtools.json").exists():
        train(rollouts, model)
    value, settings = load_value_model(model, device=torch.device("cpu"))
    policy = load_policy(settings.policy, settings.steps, device=torch.device("cpu"))
    return Models(Crossing(horizon), policy, value, frozenset(r.prompt for r in load_rollouts(rollouts)))


def collect(policy: Path, out: Path, horizon: int) -> None:
    """Draw the training rollouts, as the quick start does."""
    command = ["-m", "rmtools", "rollout", "--policy", policy, "--task", "crossing", "--horizon", horizon]
    command += ["--prompts", PROMPTS, "--trajectories", TRAJECTORIES, "--seed", 1, "--out", out]
    run([*command, "--overwrite"])


def train(rollouts: Path, out: Path) -> None:
    """Train the value model with the quick start's settings, which are the defaults: target, divergence, floor."""
    command = [RECIPES / "train_prm.py", "--config", RECIPES / "quickstart_prm.yaml", "--output_dir", out]
    run([*command, "--train_rollouts", rollouts, "--eval_rollouts", "", "--eval_strategy", "no"])


def run(command: list[object]) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=sys.stderr)
