"""One policy for all horizons of a task, trained from scratch on demonstrations, and the gate that it has to pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import get_scheduler

from rmtools.data.prefix_curriculum import given_demonstrations
from rmtools.data.tasks import ExactTask
from rmtools.lm.generate import generate_once
from rmtools.lm.policy import load_policy
from rmtools.lm.steps import StepSettings
from rmtools.lm.tokenizers import word_tokenizer
from rmtools.training.small_models import small_gpt2

WELL_FORMED, RIGHT, STEP_SUCCESS = 0.98, 0.99, (0.75, 0.85)
# The first part of the demonstrations seldom fails: it teaches to read the prompt.
EARLY_CARE, CARE = 0.98, 0.5
POSITION_SD = 0.2


@dataclass(frozen=True)
class PolicySize:
    """A policy and its training: ``updates`` on about ``tokens`` tokens each; the part ``early`` of them is careful."""

    hidden: int = 64
    layers: int = 2
    updates: int = 2000
    tokens: int = 4000
    learning_rate: float = 3e-3
    early: float = 0.5


@dataclass(frozen=True)
class Gate:
    """What the policy does at one horizon, over solutions whose first steps are given right ones, so that every depth is seen.

    Attributes
    ----------
    well_formed : float
        Share of solutions in the task's format.
    right : float
        Share of steps, up to the first failure, that say what the prompt and the steps before imply.
    step_success : float
        Share of these steps that do not fail.
    """

    horizon: int
    solutions: int
    well_formed: float
    right: float
    step_success: float

    @property
    def passed(self) -> bool:
        """Whether the policy is fit to build on."""
        low, high = STEP_SUCCESS
        return self.well_formed >= WELL_FORMED and self.right >= RIGHT and low <= self.step_success <= high


def train_policy(
    tasks: Sequence[ExactTask],
    folder: Path,
    size: PolicySize,
    seed: int,
    progress: Callable[[int], object],
    device: str = "cpu",
) -> None:
    """Train a GPT-2 on demonstrations of all ``tasks`` (one of each horizon), and write it into ``folder``.

    An update reads demonstrations of one horizon, many of a short one. In the second part of the training up to all but one
    step are given and carry no loss: demonstrations that fail early teach nothing of late steps. ``progress`` is called
    with the number of updates done.
    """
    rng = np.random.default_rng([seed, 1])
    tokenizer = word_tokenizer(tasks[0].vocabulary())
    longest = _demonstrations(max(tasks, key=lambda t: t.horizon), 1, True, tokenizer, rng)[0]
    model = small_gpt2(tokenizer, size.hidden, size.layers, longest.shape[1] + 8, seed)
    _point_at_columns(
        model.transformer.wpe.weight, [t.horizon for t in tasks], _step_tokens(tasks[0], tokenizer), seed
    )
    model.to(torch.device(device))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), size.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_scheduler(
        "warmup_stable_decay",
        optimizer,
        num_warmup_steps=30,
        num_training_steps=size.updates,
        scheduler_specific_kwargs={"num_decay_steps": size.updates // 2},
    )
    # Every depth of a long horizon is a lookup of its own, and an update reads few long demonstrations.
    share = np.asarray([t.horizon for t in tasks]) ** 0.8
    for update in range(size.updates):
        task = tasks[rng.choice(len(tasks), p=share / share.sum())]
        early = update < size.early * size.updates
        ids, labels = _demonstrations(task, size.tokens, early, tokenizer, rng)
        model(input_ids=ids.to(device), labels=labels.to(device)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def _point_at_columns(positions: Tensor, horizons: Sequence[int], step: int, seed: int) -> None:
    """Draw the position embeddings (L, H) anew: half of that of a step is a code of the column that the step enters.

    Where the column of a step stands depends on depth and horizon. So one map learns all lookups; learned one by one, some
    of T = 32 were not after hours (docs/log.md). For horizons that double a position belongs to the steps of one T only.
    """
    half, generator = positions.shape[1] // 2, torch.Generator().manual_seed(seed)
    positions.copy_(POSITION_SD * torch.randn(positions.shape, generator=generator))
    for horizon in horizons:
        for t in range(1, horizon + 1):
            begins = step * (horizon + t)
            # The token before a step is read for its move, the move for the row that it leads to.
            positions[begins - 1 : begins + 1, half:] = positions[step * t, :half]


def _step_tokens(task: ExactTask, tokenizer: Any) -> int:
    return len(tokenizer(task.step_choices("", [])[0])["input_ids"])


def _demonstrations(
    task: ExactTask, tokens: int, early: bool, tokenizer: Any, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return ids and labels (B, L) of demonstrations of one horizon, which all have L tokens."""
    step = _step_tokens(task, tokenizer)
    ids: list[list[int]] = []
    free: list[int] = []
    while not ids or len(ids) * len(ids[0]) < tokens:
        given = 0 if early else int(rng.integers(task.horizon))
        care = [1.0] * given + [EARLY_CARE if early else CARE] * (task.horizon - given)
        prompt = task.prompts(1, rng)[0][0]
        steps = task.demonstration(prompt, care, rng)
        if given and not task.step_labels(prompt, steps[:given])[-1]:
            continue
        ids.append(tokenizer(prompt + "".join(steps))["input_ids"] + [tokenizer.eos_token_id])
        free.append(step * (task.horizon - given) + 1)
    whole = torch.tensor(ids)
    known = torch.arange(whole.shape[1]) < whole.shape[1] - torch.tensor(free)[:, None]
    return whole, whole.masked_fill(known, -100)


def measure_gate(task: ExactTask, folder: Path, solutions: int, rng: np.random.Generator) -> Gate:
    """Measure the trained policy on fresh prompts, with 0 to T - 1 given steps."""
    policy = load_policy(folder, StepSettings(task.delimiter, task.horizon))
    step = len(policy.steps.step_ids(task.step_choices("", [])[0]))
    well_formed, right, failed = [], [], []
    for given in range(task.horizon):
        rows = given_demonstrations(task, [given] * max(1, solutions // task.horizon), 1.0, rng)
        prompts = [r.prompt for r in rows]
        found, closed = generate_once(policy, prompts, step * (task.horizon - given) + 8, rng)
        for prompt, steps, over in zip(prompts, found, closed, strict=True):
            grid, known = _split(task, prompt, given)
            whole = [*known, *steps]
            labels = task.step_labels(grid, whole)[given:]
            live = 1 + next((t for t, label in enumerate(labels) if not label), len(labels) - 1)
            well_formed.append(over and task.well_formed(whole))
            right += task.right_steps(grid, whole)[given : given + live]
            failed += [not label for label in labels[:live]]
    shares = [float(np.mean(x)) for x in (well_formed, right, failed)]
    return Gate(task.horizon, len(well_formed), shares[0], shares[1], 1 - shares[2])


def _split(task: ExactTask, prompt: str, given: int) -> tuple[str, list[str]]:
    """Return the grid and the ``given`` steps that a prompt ends with."""
    lines = prompt.splitlines(keepends=True)
    return "".join(lines[: len(lines) - given]), lines[len(lines) - given :]
