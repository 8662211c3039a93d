r"""Tasks with a final answer: ``gsm8k``, ``math`` and ``answers``, any JSONL with ``prompt`` and ``answer``.

The prompts file holds the right answers. A solution is right if its final answer (``extract.py``) equals the reference
(``checker.py``).

>>> task = AnswerTask({"6 * 7 = ?\n": "42"})
>>> task.reward("6 * 7 = ?\n", ["6 * 7 = <<6*7=42>>42\n", "#### 42"]), task.reward("6 * 7 = ?\n", ["A: 41"])
(1.0, 0.0)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rmtools.data.tasks.checker import AnswerChecker, spelled
from rmtools.data.tasks.extract import final_answer, marked_answer, visible
from rmtools.data.tasks.protocol import check_horizon
from rmtools.errors import UserError


@dataclass(frozen=True)
class AnswerTask:
    """Solutions are free text with a final answer.

    Parameters
    ----------
    references : dict of str to str
        The right answer of each prompt; ``rmtools.data.prompts`` adds those of a prompts file.
    name : str
    horizon : int
        Steps after which a solution is cut.
    delimiter : str
        Text that closes a step; also ends the prompts made from questions.
    checker : AnswerChecker
        Holds the time limit of an answer, and counts those that exceeded it (``checker.timeouts``).
    """

    references: dict[str, str] = field(default_factory=dict)
    name: str = "answers"
    horizon: int = 16
    delimiter: str = "\n"
    checker: AnswerChecker = field(default_factory=AnswerChecker, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_horizon(self.horizon)

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Raise ``UserError``: the prompts come from a file."""
        raise from_a_file(self.name)

    def check_prompt(self, prompt: str) -> None:
        """Raise ``UserError`` if the prompt has no reference answer."""
        if prompt not in self.references:
            raise UserError(
                f"the prompt {prompt[:40]!r} has no reference answer: the task {self.name} cannot verify its solutions",
                'give every row of the prompts file an "answer"',
            )

    def reference(self, prompt: str) -> str | None:
        """Return the right answer of a prompt, or None if it is not known."""
        return self.references.get(prompt)

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return whether the solution marks its final answer."""
        return marked_answer(visible("".join(steps))) is not None

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return 1.0 if the final answer is right, else 0.0; raise ``UserError`` for a prompt without reference."""
        self.check_prompt(prompt)
        return float(self.checker.right(self.references[prompt], final_answer("".join(steps))))

    def answer(self, prompt: str, steps: Sequence[str]) -> str | None:
        """Return the canonical final answer, or None if there is none: equal numbers and equal LaTeX are spelled alike."""
        return spelled(final_answer("".join(steps))) or None

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str] | None:
        """Return None: steps are free text."""
        return None


def from_a_file(name: str) -> UserError:
    """Return the error to raise if prompts are to be drawn from a task that cannot."""
    return UserError(f"the task {name} cannot draw prompts", "name a JSONL file of prompts")
