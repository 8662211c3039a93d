r"""The task ``arithmetic``: a worksheet of ``horizon`` independent sums of single digits, modulo 10.

A prompt has one line per problem, a step is the line with its result. Both have four words, so that a step finds its
problem at a constant offset. A failed step reads ``= x . ``, and so does every later step; in ``arithmetic-silent`` it
is a wrong digit, and the later steps are not affected.

>>> prompt = "3 + 4 \n2 - 5 \n"
>>> task = Arithmetic(horizon=2)
>>> task.reward(prompt, ["= 7 . \n", "= 7 . \n"]), task.reward(prompt, ["= x . \n", "= x . \n"])
(1.0, 0.0)
>>> task.step_labels(prompt, ["= 7 . \n", "= 3 . \n"])
[1.0, 0.0]
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rmtools.data.tasks.protocol import check_horizon, until_failure
from rmtools.errors import UserError

SIGNS = {"+": 1, "-": -1}
PROBLEM = re.compile(r"([0-9]) ([+-]) ([0-9]) ")
FAILED = "= x . \n"


@dataclass(frozen=True)
class Arithmetic:
    """The worksheet task (see the module's docstring).

    Parameters
    ----------
    horizon : int
        Number of problems, and so of steps.
    silent : bool
        Whether a failure is a wrong digit instead of ``x``.
    """

    horizon: int = 8
    silent: bool = False
    delimiter: str = field(default="\n", init=False)

    def __post_init__(self) -> None:
        check_horizon(self.horizon)

    @property
    def name(self) -> str:
        """Name, as `load_task` takes it."""
        return "arithmetic-silent" if self.silent else "arithmetic"

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Draw ``n`` uniform worksheets; every worksheet is solvable."""
        digits = rng.integers(10, size=(n, self.horizon, 2))
        signs = rng.integers(2, size=(n, self.horizon))
        found = [
            "".join(f"{a} {'+-'[s]} {b} \n" for (a, b), s in zip(pairs, row, strict=True))
            for pairs, row in zip(digits, signs, strict=True)
        ]
        return found, 0

    def check_prompt(self, prompt: str) -> None:
        """Raise ``UserError`` if ``prompt`` is no worksheet of ``horizon`` problems."""
        if (problems := len(parse_worksheet(prompt))) != self.horizon:
            raise UserError(
                f"the prompt {prompt[:40]!r} has {problems} problems, the task {self.name} is set to {self.horizon} steps",
                f"set `horizon` to {problems}, or pass prompts with {self.horizon} problems",
            )

    def reference(self, prompt: str) -> str:
        """Return the right solution."""
        return "".join(result_step(result) for result in parse_worksheet(prompt))

    def demonstration(
        self, prompt: str, care: float | Sequence[float], rng: np.random.Generator
    ) -> list[str]:
        """Draw a solution: a step is right with probability ``care`` (of each), else it fails (any wrong digit, or ``x``)."""
        careful = np.broadcast_to(np.asarray(care), self.horizon)
        steps: list[str] = []
        for chance, result in zip(careful, parse_worksheet(prompt), strict=True):
            if FAILED in steps:
                steps.append(FAILED)
            elif rng.random() < chance:
                steps.append(result_step(result))
            else:
                steps.append(result_step((result + 1 + int(rng.integers(9))) % 10) if self.silent else FAILED)
        return steps

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return whether there are ``horizon`` steps, each with one digit (or, unless silent, ``x``)."""
        choices = self._choices
        return len(steps) == self.horizon and all(s in choices for s in steps)

    def answer(self, prompt: str, steps: Sequence[str]) -> str | None:
        """Return the written results, also failed ones: a vote that read the failures would be a verifier."""
        return "".join(steps) if self.well_formed(steps) else None

    def right_steps(self, prompt: str, steps: Sequence[str]) -> list[bool]:
        """Return for each step whether its digit is the result; unless silent, ``x`` always is, and nothing else after it."""
        right: list[bool] = []
        failed = False
        for step, result in zip(steps, parse_worksheet(prompt), strict=False):
            failed = failed or (step == FAILED and not self.silent)
            right.append(step == (FAILED if failed else result_step(result)))
        return right

    def step_labels(self, prompt: str, steps: Sequence[str]) -> list[float]:
        """Return for each step 1.0 while every digit so far is the result, else 0.0."""
        due = map(result_step, parse_worksheet(prompt))
        return until_failure((s == d for s, d in zip(steps, due, strict=False)), len(steps))

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return 1.0 if all ``horizon`` digits are right, else 0.0."""
        self.check_prompt(prompt)
        return float(len(steps) == self.horizon and all(self.step_labels(prompt, steps)))

    @property
    def _choices(self) -> list[str]:
        return [*map(result_step, range(10)), *([] if self.silent else [FAILED])]

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str]:
        """Return the well-formed steps (10 digits and, unless silent, ``x``), whatever the prefix."""
        return self._choices

    def vocabulary(self) -> list[str]:
        """Return the words of the task, each with its trailing space, and the newline."""
        failure = [] if self.silent else ["x"]
        return [*(f"{w} " for w in (*range(10), *SIGNS, "=", ".", *failure)), "\n"]


def result_step(result: int) -> str:
    """Return the step that writes ``result``."""
    return f"= {result} . \n"


@functools.lru_cache(maxsize=1024)
def parse_worksheet(prompt: str) -> tuple[int, ...]:
    """Return the result of each problem; raises ``UserError`` on another format."""
    *lines, rest = prompt.split("\n")
    problems = [PROBLEM.fullmatch(line) for line in lines]
    results = tuple((int(p[1]) + SIGNS[p[2]] * int(p[3])) % 10 for p in problems if p)
    if rest or not results or len(results) < len(problems):
        raise UserError(
            f"not a prompt of the task arithmetic: {prompt[:40]!r}",
            "prompts look like '3 + 4 \\n2 - 5 \\n…', as `rmtools prompts` writes them",
        )
    return results
