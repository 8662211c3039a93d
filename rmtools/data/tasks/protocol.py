"""What rollouts, audits, the sampler and the recipes need to know of a task."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


class Verifier(Protocol):
    """What says how right a finished solution of a prompt is."""

    def reference(self, prompt: str) -> str | None:
        """Return the right answer of a prompt; None where the task has no such thing."""
        ...

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return the verifier's r in [0, 1] for a finished solution."""
        ...


class Task(Verifier, Protocol):
    """Prompts, a verifier for their solutions, and how many steps a solution has."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    @property
    def horizon(self) -> int:
        """Steps of a solution, at most."""
        ...

    @property
    def delimiter(self) -> str:
        """Text that closes a step."""
        ...

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Draw ``n`` solvable prompts; also return how many drawn ones were unsolvable and left out."""
        ...

    def check_prompt(self, prompt: str) -> None:
        """Raise ``UserError`` where solutions of ``prompt`` cannot be verified."""
        ...

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return whether a finished solution is in the task's format, right or wrong."""
        ...

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str] | None:
        """Return every well-formed step, the same after any prefix of the task; None where they cannot be listed."""
        ...


@runtime_checkable
class Referenced(Protocol):
    """A task that is told the right answers, by prompt; the prompts file brings them."""

    references: dict[str, str]


@runtime_checkable
class Answering(Protocol):
    """A task that says which answer a solution comes to: majorities count them."""

    def answer(self, prompt: str, steps: Sequence[str]) -> str | None:
        """Return the answer, the same text for the same one; None where the solution comes to none."""
        ...


@runtime_checkable
class ExactTask(Task, Protocol):
    """A task that checks every step and can show how it is done: a policy is trained on it from nothing."""

    def right_steps(self, prompt: str, steps: Sequence[str]) -> list[bool]:
        """Return for each step whether it says what the prompt and the steps before it imply.

        Not whether it succeeds: owning up to a failure, where the format has a way to, is right.
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
