"""The task protocols that rollouts, audits, the sampler and the recipes use, and what several tasks share."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from rmtools.errors import UserError


class Verifier(Protocol):
    """Judges finished solutions of a prompt, which end with the delimiter where the policy ended them with a token."""

    def reference(self, prompt: str) -> str | None:
        """Return the right answer of a prompt, or None if the task has none."""
        ...

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return the verifier's r in [0, 1] for a finished solution."""
        ...


class Task(Verifier, Protocol):
    """Prompts, a verifier for their solutions, and the number of steps of a solution."""

    @property
    def name(self) -> str:
        """Name, as `load_task` takes it."""
        ...

    @property
    def horizon(self) -> int:
        """Largest number of steps of a solution."""
        ...

    @property
    def delimiter(self) -> str:
        """Text that closes a step."""
        ...

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Draw ``n`` solvable prompts; also return the number of unsolvable ones that were drawn and left out."""
        ...

    def check_prompt(self, prompt: str) -> None:
        """Raise ``UserError`` if solutions of ``prompt`` cannot be verified."""
        ...

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return whether a finished solution is in the task's format, right or wrong."""
        ...

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str] | None:
        """Return every well-formed step, the same after any prefix of the task, or None if they cannot be listed."""
        ...


@runtime_checkable
class Referenced(Protocol):
    """A task that holds the right answers by prompt; the prompts file fills them in."""

    references: dict[str, str]


@runtime_checkable
class Answering(Protocol):
    """A task that reads the final answer of a solution: majorities count them."""

    def answer(self, prompt: str, steps: Sequence[str]) -> str | None:
        """Return the canonical final answer, or None if there is none."""
        ...


@runtime_checkable
class ExactTask(Task, Protocol):
    """A task that checks every step and draws demonstrations: a policy can be trained on it from scratch."""

    def right_steps(self, prompt: str, steps: Sequence[str]) -> list[bool]:
        """Return for each step whether it says what the prompt and the steps before it imply.

        This is not success: a step that reports a failure, in a format that can, is right.
        """
        ...

    def step_labels(self, prompt: str, steps: Sequence[str]) -> list[float]:
        """Return (T,) 1.0 while everything so far is right, 0.0 from the first failure on."""
        ...

    def demonstration(
        self, prompt: str, care: float | Sequence[float], rng: np.random.Generator
    ) -> list[str]:
        """Draw a well-formed solution whose chance of success grows with ``care`` in [0, 1], of all steps or of each."""
        ...

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str]:
        """Return every well-formed step, the same after any prefix of the task."""
        ...

    def vocabulary(self) -> list[str]:
        """Return the words of the task, each with its trailing space, and the newline."""
        ...


def check_horizon(horizon: int) -> None:
    """Raise ``UserError`` if a solution would have no step."""
    if horizon < 1:
        raise UserError(f"horizon must be at least 1, got {horizon}", "horizon=8, say")


def until_failure(good: Iterable[bool], n: int) -> list[float]:
    """Return ``n`` labels: 1.0 up to the first step that is not good or not judged, 0.0 from there.

    >>> until_failure([True, False, True], 4)
    [1.0, 0.0, 0.0, 0.0]
    """
    labels = list(itertools.accumulate(map(float, good), min))
    return labels + [0.0] * (n - len(labels))
