"""Rollouts of the policy at all horizons, and reward models trained on them by the public face."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback

import rmtools as rm
from rmtools.data.prefix_curriculum import given_demonstrations
from rmtools.data.rollouts import write_rollouts
from rmtools.data.tasks import ExactTask
from rmtools.files import write_json
from rmtools.seeds import generator

LOG_FILE = "training_log.json"
# Shares of a solution that are given: without them no rollout of a long horizon would succeed, or fail late.
GIVEN = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Continued:
    """``task`` from prefixes with ``given`` right steps: prompts are grids followed by these steps."""

    task: ExactTask
    given: int

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name

    @property
    def horizon(self) -> int:
        """Steps that are left."""
        return self.task.horizon - self.given

    @property
    def delimiter(self) -> str:
        """That of the task."""
        return self.task.delimiter

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Draw ``n`` prompts whose given steps are random right ones."""
        return [r.prompt for r in given_demonstrations(self.task, [self.given] * n, 1.0, rng)], 0

    def split(self, prompt: str) -> tuple[str, list[str]]:
        """Return the prompt of the task, and the given steps."""
        lines = prompt.splitlines(keepends=True)
        at = len(lines) - self.given
        return "".join(lines[:at]), lines[at:]

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return the verifier's r of the given steps and ``steps``."""
        grid, known = self.split(prompt)
        return self.task.reward(grid, [*known, *steps])

    def reference(self, prompt: str) -> None:
        """Return None: of several right answers none is the reference."""

    def check_prompt(self, prompt: str) -> None:
        """Raise ``UserError`` if the grid is none of the task."""
        self.task.check_prompt(self.split(prompt)[0])

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return whether a solution has the steps that are left, each one of the task's."""
        return len(steps) == self.horizon and set(steps) <= set(self.task.step_choices("", []))

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str]:
        """Return those of the task."""
        return self.task.step_choices(prompt, steps)


def collect(
    policy: Path,
    tasks: Sequence[ExactTask],
    prompts: int,
    trajectories: int,
    seed: int,
    out: Path,
    device: str,
    progress: Callable[[str, int], AbstractContextManager[Callable[[int], object]]],
) -> None:
    """Write rollouts of all ``tasks``, for every share of `GIVEN` of each from ``prompts`` prompts, into ``out``."""
    parts = [
        Continued(task, given) for task in tasks for given in sorted({int(g * task.horizon) for g in GIVEN})
    ]
    found: list[rm.Rollouts] = []
    with progress("rollouts", len(parts)) as tick:
        for part in parts:
            rng = generator(f"scaling rollouts {part.task.horizon} {part.given}", seed)
            own = part.prompts(prompts, rng)[0]
            steps = rm.StepSettings(part.delimiter, part.horizon)
            loaded = rm.load_policy(policy, steps, device=torch.device(device))
            found.append(rm.collect_rollouts(loaded, own, task=part, trajectories=trajectories, seed=seed))
            tick(1)
    longest = max(found, key=lambda rows: rows.metadata.steps.max_steps)
    write_rollouts(out, [row for rows in found for row in rows], longest.metadata)


@dataclass(frozen=True)
class Training:
    """A training of ``updates`` optimiser steps, with a checkpoint after each of ``checkpoints``."""

    updates: int
    checkpoints: tuple[int, ...]
    floor: float
    seed: int
    device: str


class _Watch(TrainerCallback):
    """Asks for the checkpoints, and reports every optimiser step."""

    def __init__(self, steps: Sequence[int], progress: Callable[[int], object]) -> None:
        self.steps = frozenset(steps)
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_save = state.global_step in self.steps
        self.progress(1)
        return control


def train(
    policy: Path,
    rollouts: Path,
    out: Path,
    size: Training,
    progress: Callable[[int], object],
    loss: Mapping[str, Any],
) -> None:
    """Train all weights of a value model that starts from the policy; ``loss``: target and divergence, else the defaults.

    The log of the training is written beside the model, into `LOG_FILE`.
    """
    config = rm.PRMConfig(
        output_dir=str(out),
        max_steps=size.updates,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=30,
        weight_decay=0.0,
        logging_steps=25,
        disable_tqdm=True,
        floor=size.floor,
        seed=size.seed,
        report_to="none",
        save_only_model=True,
        use_cpu=size.device == "cpu",
        train_sampling_strategy="group_by_length",
        **loss,
    )
    trainer = rm.PRMTrainer(
        policy,
        config,
        rm.load_rollouts(rollouts),
        peft_config=None,
        callbacks=[_Watch(size.checkpoints, progress)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    write_json(out / LOG_FILE, [row for row in trainer.state.log_history if "loss" in row])
