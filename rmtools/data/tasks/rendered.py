r"""A task behind rendered prompts: particles, rollouts and audits hold the text that models see, a task reads the question.

>>> from rmtools.data.tasks.answers import AnswerTask
>>> task = rendered_task(AnswerTask({"6 * 7?\n": "42"}), {"<user>6 * 7?<assistant>": "6 * 7?\n"})
>>> task.reward("<user>6 * 7?<assistant>", ["A: 42"]), task.reference("<user>6 * 7?<assistant>")
(1.0, '42')
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtools.data.tasks.protocol import Answering, Task


@dataclass(frozen=True)
class RenderedTask:
    """A task that is asked about the question of each prompt; a prompt without one is its own question.

    Parameters
    ----------
    task : Task
    questions : mapping of str to str
        Question by rendered prompt.
    """

    task: Task
    questions: Mapping[str, str]

    def question(self, prompt: str) -> str:
        """Return the question of a prompt."""
        return self.questions.get(prompt, prompt)

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name

    @property
    def horizon(self) -> int:
        """Largest number of steps of a solution."""
        return self.task.horizon

    @property
    def delimiter(self) -> str:
        """Text that closes a step."""
        return self.task.delimiter

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Draw questions, as the task does."""
        return self.task.prompts(n, rng)

    def check_prompt(self, prompt: str) -> None:
        """Raise ``UserError`` if solutions of the question cannot be verified."""
        self.task.check_prompt(self.question(prompt))

    def reference(self, prompt: str) -> str | None:
        """Return the right answer, or None if the task has none."""
        return self.task.reference(self.question(prompt))

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return the verifier's r in [0, 1] for a finished solution of the question."""
        return self.task.reward(self.question(prompt), steps)

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return whether a finished solution is in the task's format."""
        return self.task.well_formed(steps)

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str] | None:
        """Return every well-formed step, or None if they cannot be listed."""
        return self.task.step_choices(self.question(prompt), steps)


@dataclass(frozen=True)
class _AnsweringTask(RenderedTask):
    """The same of a task that reads final answers."""

    def answer(self, prompt: str, steps: Sequence[str]) -> str | None:
        """Return the canonical final answer, or None if there is none."""
        task: Any = self.task
        found: str | None = task.answer(self.question(prompt), steps)
        return found


def rendered_task(task: Task, questions: Mapping[str, str]) -> Task:
    """Return a task that is asked about ``questions``; the task itself if every prompt is its own question."""
    if all(prompt == question for prompt, question in questions.items()):
        return task
    found: Any = task  # a type checker would forget that it is a task
    if isinstance(found, Answering):
        return _AnsweringTask(task, questions)
    return RenderedTask(task, questions)
