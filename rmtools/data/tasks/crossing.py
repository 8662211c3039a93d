r"""The task ``crossing``: a safe way through a grid of 5 rows.

Each of ``horizon`` columns blocks two rows; the prompt names the start row and then, a line per column, the
blocked rows. A step is a move and the row it leads to; on a blocked row the result is ``x`` and every later
step reads ``s x``, so that a failure stays readable. In ``crossing-silent`` a blocked row is written like any other and
the walk continues from there: only the prompt shows the failure.

>>> prompt = "r2 . \nc13 . \nc02 . \n"
>>> task = Crossing(horizon=2)
>>> task.reward(prompt, ["s r2 \n", "d r1 \n"]), task.reward(prompt, ["u x \n", "s x \n"])
(1.0, 0.0)
>>> Crossing(horizon=2, silent=True).step_labels(prompt, ["s r2 \n", "s r2 \n"])
[1.0, 0.0]
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rmtools.data.tasks.protocol import check_horizon, until_failure
from rmtools.errors import UserError

MOVES = {"u": 1, "s": 0, "d": -1}
ROWS = 5
BLOCKS = [f"c{a}{b}" for a, b in itertools.combinations(range(ROWS), 2)]
CHOICES = tuple(f"{m} {r} \n" for m in MOVES for r in [*(f"r{i}" for i in range(ROWS)), "x"])
SILENT_CHOICES = tuple(c for c in CHOICES if "x" not in c)


@dataclass(frozen=True)
class Crossing:
    """The grid-crossing task (see the module's docstring).

    Parameters
    ----------
    horizon : int
        Number of columns, and so of steps.
    silent : bool
        Whether a step onto a blocked row reads like any other.
    """

    horizon: int = 8
    silent: bool = False
    delimiter: str = field(default="\n", init=False)

    def __post_init__(self) -> None:
        check_horizon(self.horizon)

    @property
    def name(self) -> str:
        """Name, as `load_task` takes it."""
        return "crossing-silent" if self.silent else "crossing"

    def prompts(self, n: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Draw ``n`` uniform grids with a safe path; also return the number of grids without one."""
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

    def check_prompt(self, prompt: str) -> None:
        """Raise ``UserError`` if ``prompt`` is no grid of ``horizon`` columns."""
        columns = len(parse_grid(prompt)[1])
        if not columns:
            raise UserError(
                f"the prompt {prompt[:40]!r} has no columns: a column is one line, below the line of the start row",
                "prompts look like 'r2 . \\nc13 . \\n…', as `rmtools prompts` writes them",
            )
        if columns != self.horizon:
            raise UserError(
                f"the prompt {prompt[:40]!r} has {columns} columns, the task {self.name} is set to {self.horizon} steps",
                f"pass prompts with {self.horizon} columns, or a model and a task of {columns} steps",
            )

    def reference(self, prompt: str) -> None:
        """Return None: many paths are right."""

    def demonstration(
        self, prompt: str, care: float | Sequence[float], rng: np.random.Generator
    ) -> list[str]:
        """Draw a solution: with probability ``care`` (of each step) a random safe move if there is one, else any move."""
        careful = np.broadcast_to(np.asarray(care), self.horizon)
        row, blocked = parse_grid(prompt)
        steps: list[str] = []
        alive = True
        for chance, rows in zip(careful, blocked, strict=True):
            if not alive:
                steps.append("s x \n")
                continue
            inside = [m for m in MOVES if 0 <= row + MOVES[m] < ROWS]
            safe = [m for m in inside if row + MOVES[m] not in rows]
            among = safe if safe and rng.random() < chance else inside
            move = among[rng.integers(len(among))]
            steps.append(true_step(row, move, self._shown(rows)))
            row += MOVES[move]
            alive = row not in self._shown(rows)
        return steps

    def _shown(self, rows: frozenset[int]) -> frozenset[int]:
        """Return the blocked rows that a step shows as ``x``."""
        return frozenset() if self.silent else rows

    def well_formed(self, steps: Sequence[str]) -> bool:
        """Return whether there are ``horizon`` steps, each a move and a row (or, unless silent, ``x``)."""
        return len(steps) == self.horizon and all(s in self._choices for s in steps)

    def answer(self, prompt: str, steps: Sequence[str]) -> str | None:
        """Return the written walk, also a failed one: a vote that read the failures would be a verifier."""
        return "".join(steps) if self.well_formed(steps) else None

    def right_steps(self, prompt: str, steps: Sequence[str]) -> list[bool]:
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
            expected = true_step(row, words[0], self._shown(rows)) if alive else "s x \n"
            right.append(step == expected)
            alive = alive and (self.silent or words[1] != "x")
            row = int(words[1][1:]) if words[1][1:].isdigit() else row
        return right

    def step_labels(self, prompt: str, steps: Sequence[str]) -> list[float]:
        """Return for each step 1.0 while every row so far is right and none is blocked, else 0.0."""
        blocked = parse_grid(prompt)[1]
        safe = [
            right and step.split()[1] not in {"x", *(f"r{i}" for i in rows)}
            for step, rows, right in zip(steps, blocked, self.right_steps(prompt, steps), strict=False)
        ]
        return until_failure(safe, len(steps))

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return 1.0 for a complete path whose every row is right and none is blocked, else 0.0."""
        self.check_prompt(prompt)
        return float(self.well_formed(steps) and all(self.step_labels(prompt, steps)))

    @property
    def _choices(self) -> tuple[str, ...]:
        return SILENT_CHOICES if self.silent else CHOICES

    def step_choices(self, prompt: str, steps: Sequence[str]) -> list[str]:
        """Return the well-formed steps (3 moves times 5 rows and, unless silent, ``x``), whatever the prefix."""
        return list(self._choices)

    def vocabulary(self) -> list[str]:
        """Return the words of the task, each with its trailing space, and the newline."""
        failure = [] if self.silent else ["x"]
        words = (*MOVES, *failure, ".", *(f"r{i}" for i in range(ROWS)), *BLOCKS)
        return [*(f"{w} " for w in words), "\n"]


def true_step(row: int, move: str, blocked: frozenset[int]) -> str:
    """Return the step that ``move`` from ``row`` into a column with ``blocked`` rows should read."""
    result = row + MOVES[move]
    if not 0 <= result < ROWS:
        return ""
    return f"{move} x \n" if result in blocked else f"{move} r{result} \n"


@functools.lru_cache(maxsize=1024)
def parse_grid(prompt: str) -> tuple[int, tuple[frozenset[int], ...]]:
    """Return the start row and the blocked rows of each column; raises ``UserError`` on another format."""
    lines = prompt.splitlines()
    try:
        start = int(lines[0].split()[0].removeprefix("r"))
        blocked = tuple(frozenset(map(int, line.split()[0].removeprefix("c"))) for line in lines[1:])
    except (IndexError, ValueError) as error:
        raise UserError(
            f"not a prompt of the task crossing: {prompt[:40]!r}",
            "prompts look like 'r2 . \\nc13 . \\n…', as `rmtools prompts` writes them",
        ) from error
    return start, blocked
