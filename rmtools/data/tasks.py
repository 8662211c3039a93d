r"""Tasks: prompts, a verifier for their solutions, and how many steps a solution has.

``crossing`` asks for a safe way through a grid of 5 rows. Each of ``horizon`` columns blocks two rows; the
prompt names the start row and then, a line per column, the blocked rows. A step is a move and the row it leads
to; on a blocked row the result is ``x`` and every later step reads ``s x``, so that a failure stays readable.

>>> task = Crossing(horizon=2)
>>> prompt = "r2 . \nc13 . \nc02 . \n"
>>> task.reward(prompt, ["s r2 \n", "d r1 \n"]), task.reward(prompt, ["u x \n", "s x \n"])
(1.0, 0.0)
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from rmtools.errors import UserError

MOVES = {"u": 1, "s": 0, "d": -1}
ROWS = 5
BLOCKS = [f"c{a}{b}" for a, b in itertools.combinations(range(ROWS), 2)]


class Task(Protocol):
    """What rollouts, audits and the sampler need to know of a task."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    @property
    def horizon(self) -> int:
        """Steps of a solution."""
        ...

    @property
    def delimiter(self) -> str:
        """Text that closes a step."""
        ...

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Draw ``n`` solvable prompts; also return how many drawn ones were unsolvable and left out."""
        ...

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return whether a finished solution is in the task's format, right or wrong."""
        ...

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return the verifier's r in [0, 1] for a finished solution."""
        ...

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str] | None:
        """Return every well-formed step, the same after any prefix of the task; None where they cannot be listed."""
        ...


@dataclass(frozen=True)
class Crossing:
    """The grid-crossing task (see the module's docstring).

    Parameters
    ----------
    horizon : int
        Number of columns, and so of steps.
    """

    horizon: int = 8
    name: str = field(default="crossing", init=False)
    delimiter: str = field(default="\n", init=False)

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise UserError(f"horizon must be at least 1, got {self.horizon}")

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Draw ``n`` uniform grids that have a safe path; also return how many had none."""
        found: list[str] = []
        removed = 0
        while len(found) < n:
            columns = rng.integers(len(BLOCKS), size=self.horizon)
            lines = [f"r{rng.integers(ROWS)} . \n", *(f"{BLOCKS[c]} . \n" for c in columns)]
            prompt = "".join(lines)
            if self.solvable(prompt):
                found.append(prompt)
            else:
                removed += 1
        return found, removed

    def solvable(self, prompt: str) -> bool:
        """Return whether any sequence of moves avoids every blocked row."""
        start, blocked = parse_grid(prompt)
        alive = {start}
        for rows in blocked:
            alive = {r + m for r in alive for m in MOVES.values() if 0 <= r + m < ROWS} - rows
        return bool(alive)

    def demonstration(self, prompt: str, care: float, rng: np.random.Generator) -> list[str]:
        """Draw a solution: with probability ``care`` a random safe move if there is one, else any move."""
        row, blocked = parse_grid(prompt)
        steps: list[str] = []
        alive = True
        for rows in blocked:
            if not alive:
                steps.append("s x \n")
                continue
            inside = [m for m in MOVES if 0 <= row + MOVES[m] < ROWS]
            safe = [m for m in inside if row + MOVES[m] not in rows]
            among = safe if safe and rng.random() < care else inside
            move = among[rng.integers(len(among))]
            steps.append(true_step(row, move, rows))
            row += MOVES[move]
            alive = row not in rows
        return steps

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return whether there are ``horizon`` steps, each a move and a row (or ``x``)."""
        return len(steps) == self.horizon and all(s in CHOICES for s in steps)

    def right_rows(self, prompt: str, steps: Sequence[str]) -> list[bool]:
        """Return for each step whether its resulting row (or ``x``) is what its move leads to.

        A wrong row is counted once: later steps are judged from the row that was written.
        """
        row, blocked = parse_grid(prompt)
        alive = True
        right: list[bool] = []
        for step, rows in zip(steps, blocked, strict=False):
            words = step.split()
            if len(words) != 2 or words[0] not in MOVES:
                right.append(False)
                continue
            expected = true_step(row, words[0], rows) if alive else "s x \n"
            right.append(step == expected)
            alive = alive and words[1] != "x"
            row = int(words[1][1:]) if words[1][1:].isdigit() else row
        return right

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return 1.0 for a complete path whose every row is right and none is blocked, else 0.0."""
        if (columns := len(parse_grid(prompt)[1])) != self.horizon:
            raise UserError(
                f"the prompt {prompt[:40]!r} has {columns} columns, the task crossing is set to {self.horizon} steps",
                f"pass --horizon {columns}, or prompts with {self.horizon} columns",
            )
        if not self.well_formed(steps) or any(s.endswith("x \n") for s in steps):
            return 0.0
        return float(all(self.right_rows(prompt, steps)))

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str] | None:
        """Return the 18 well-formed steps (3 moves times 5 rows or ``x``), whatever the prefix."""
        return list(CHOICES)

    def vocabulary(self) -> list[str]:
        """Return the words of the task, each with its trailing space, and the newline."""
        return [*(f"{w} " for w in (*MOVES, "x", ".", *(f"r{i}" for i in range(ROWS)), *BLOCKS)), "\n"]


CHOICES = tuple(f"{m} {r} \n" for m in MOVES for r in [*(f"r{i}" for i in range(ROWS)), "x"])


def true_step(row: int, move: str, blocked: set[int]) -> str:
    """Return the step that ``move`` from ``row`` into a column with ``blocked`` rows should read."""
    result = row + MOVES[move]
    if not 0 <= result < ROWS:
        return ""
    return f"{move} x \n" if result in blocked else f"{move} r{result} \n"


def parse_grid(prompt: str) -> tuple[int, list[set[int]]]:
    """Return the start row and the blocked rows of each column; raises ``UserError`` on another format."""
    lines = prompt.splitlines()
    try:
        start = int(lines[0].split()[0].removeprefix("r"))
        blocked = [{int(c) for c in line.split()[0].removeprefix("c")} for line in lines[1:]]
    except (IndexError, ValueError) as error:
        raise UserError(
            f"not a prompt of the task crossing: {prompt[:40]!r}",
            "prompts look like 'r2 . \\nc13 . \\n…', as `rmtools prompts --task crossing` writes them",
        ) from error
    return start, blocked


def load_task(name: str, horizon: int | None = None) -> Task:
    """Return the task called ``name``, with ``horizon`` steps where the task lets it be chosen."""
    if name == "crossing":
        return Crossing(8 if horizon is None else horizon)
    raise UserError(f"unknown task {name!r}", "the tasks are: crossing")
