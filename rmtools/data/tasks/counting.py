r"""The task ``counting``: how many things are in a box, one addition a line; a small language model can do it, and often fails.

The prompt names ``horizon`` kinds of things, one to five of each. A step adds the next number to the total so far; the last one
says the total. Right is exactly this solution, so what is wrong can be read in the line where it happens: a number that is
not the next one, a total that is not that of the line before, a wrong sum, an end too early. A failed line does not end a
solution. Policies learn the format from examples in front of the prompt: ``examples()``, which
``recipes/real/counting.jsonl`` holds as a file.

>>> task = Counting(horizon=3)
>>> prompt = "A box holds 2 eggs, 1 book and 4 shells. How many things are in the box?\n"
>>> task.reference(prompt)
'2 + 1 = 3\n3 + 4 = 7\nTotal: 7\n'
>>> steps = ["2 + 1 = 3\n", "3 + 4 = 8\n", "Total: 8<|im_end|>"]
>>> task.step_labels(prompt, steps), task.answer(prompt, steps)
([1.0, 0.0, 0.0], '8')
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rmtools.data.tasks.extract import END_OF_SEQUENCE
from rmtools.data.tasks.protocol import until_failure
from rmtools.errors import UserError

# Things, all of them regular in the plural.
THINGS = """apple ball banana bean book button cake candle cap card coin cookie cup doll egg flower fork hat jar key lemon letter
marble nut onion pear pen pin plate plum ring rock shell spoon stamp sticker stone ticket toy"""
KINDS = tuple(THINGS.split())
MOST = 5  # of a kind
PROMPT = re.compile(r"A box holds (\d[^.\n]*)\. How many things are in the box\?\s*")
STEP = re.compile(r"\d+ \+ \d+ = \d+")
TOTAL = re.compile(r"Total: (\d+)")


@dataclass(frozen=True)
class Counting:
    """The task of counting the things in a box (see the module's docstring).

    Parameters
    ----------
    horizon : int
        Number of kinds, and so of steps: additions and the total; 2 to 39.
    """

    horizon: int = 4
    delimiter: str = field(default="\n", init=False)
    name: str = field(default="counting", init=False)

    def __post_init__(self) -> None:
        if not 2 <= self.horizon <= len(KINDS):
            raise UserError(
                f"horizon must be in 2 to {len(KINDS)} for the task counting, got {self.horizon}",
                "horizon=4, say",
            )

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Draw ``n`` boxes: distinct kinds, uniform numbers; every box can be counted."""
        return [self._prompt(rng) for _ in range(n)], 0

    def _prompt(self, rng: np.random.Generator) -> str:
        numbers = rng.integers(1, MOST + 1, self.horizon)
        kinds = rng.choice(KINDS, self.horizon, replace=False)
        *first, last = (f"{n} {kind}{'s' * int(n > 1)}" for n, kind in zip(numbers, kinds, strict=True))
        return f"A box holds {', '.join(first)} and {last}. How many things are in the box?\n"

    def examples(self, n: int = 4) -> list[tuple[str, str]]:
        """Return ``n`` prompts and their right solutions, always the same, to stand in front of a prompt."""
        prompts, _ = self.prompts(n, np.random.default_rng(12345))
        return [(prompt, self.reference(prompt)) for prompt in prompts]

    def check_prompt(self, prompt: str) -> None:
        """Raise ``UserError`` if ``prompt`` is no box of ``horizon`` kinds."""
        if (kinds := len(parse_box(prompt))) != self.horizon:
            raise UserError(
                f"the prompt {prompt[:60]!r} has {kinds} kinds of things, the task counting is set to {self.horizon} steps",
                f"set `horizon` to {kinds}, or pass prompts with {self.horizon} kinds",
            )

    def reference(self, prompt: str) -> str:
        """Return the right solution."""
        total, *numbers = parse_box(prompt)
        lines = []
        for number in numbers:
            lines.append(f"{total} + {number} = {total + number}\n")
            total += number
        return "".join([*lines, f"Total: {total}\n"])

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return whether there are ``horizon`` steps, additions and a total, right or wrong."""
        *additions, total = map(_line, steps or [""])
        return (
            len(steps) == self.horizon
            and all(map(STEP.fullmatch, additions))
            and bool(TOTAL.fullmatch(total))
        )

    def answer(self, prompt: str, steps: Sequence[str]) -> str | None:
        """Return the total that the last step says, or None if the solution is malformed."""
        found = TOTAL.fullmatch(_line(steps[-1])) if self.well_formed(steps) else None
        return str(int(found[1])) if found else None

    def step_labels(self, prompt: str, steps: Sequence[str]) -> list[float]:
        """Return for each step 1.0 while every line so far is the right one, else 0.0."""
        due = self.reference(prompt).splitlines()
        return until_failure((_line(s) == d for s, d in zip(steps, due, strict=False)), len(steps))

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return 1.0 if all ``horizon`` lines are right, else 0.0; the last may end as the policy ends."""
        self.check_prompt(prompt)
        return float(len(steps) == self.horizon and all(self.step_labels(prompt, steps)))

    def step_choices(self, prompt: str, steps: Sequence[str]) -> None:
        """Return None: steps are free text."""
        return


def _line(step: str) -> str:
    """Return a step without the newline, or the end-of-sequence token, that closes it."""
    return END_OF_SEQUENCE.sub("", step).removesuffix("\n")


@functools.lru_cache(maxsize=1024)
def parse_box(prompt: str) -> tuple[int, ...]:
    """Return the numbers of things; raises ``UserError`` on another format."""
    found = PROMPT.fullmatch(prompt)
    numbers = tuple(int(n) for n in re.findall(r"\d+", found[1])) if found else ()
    if len(numbers) < 2:
        raise UserError(
            f"not a prompt of the task counting: {prompt[:60]!r}",
            "prompts look like 'A box holds 2 eggs and 1 book. How many things are in the box?\\n', as `prompts` draws them",
        )
    return numbers
