"""Prompts of the task crossing that are alike in difficulty, and whose first step leaves a choice.

Pooled variances weigh prompts by Z^2: with easy and hard ones together a few would carry every figure, the more so the longer
they are. Difficulty is the chance that uniformly random moves inside the grid avoid every blocked row, so it depends on the
prompt alone.
"""

import numpy as np

from rmtools.data.tasks.crossing import MOVES, ROWS, Crossing, parse_grid

CANDIDATES = 16


def random_success(prompt: str) -> float:
    r"""Return the chance of random moves.

    >>> random_success("r2 . \nc13 . \nc02 . \n"), random_success("r0 . \nc23 . \n")
    (0.2222222222222222, 1.0)
    """
    start, blocked = parse_grid(prompt)
    chance = np.zeros(ROWS)
    chance[start] = 1.0
    for rows in blocked:
        after = np.zeros(ROWS)
        for row in range(ROWS):
            inside = [row + m for m in MOVES.values() if 0 <= row + m < ROWS]
            for to in inside:
                after[to] += chance[row] / len(inside) * (to not in rows)
        chance = after
    return float(chance.sum())


def alike_prompts(task: Crossing, n: int, rng: np.random.Generator) -> list[str]:
    """Draw ``n`` different prompts: of `CANDIDATES` times as many those of difficulty nearest the median."""
    drawn = list(dict.fromkeys(task.prompts(CANDIDATES * n, rng)[0]))
    free = [p for p in drawn if _safe_first_moves(p) > 1]
    chance = np.log([random_success(p) for p in free])
    nearest = np.argsort(np.abs(chance - np.median(chance)), kind="stable")[:n]
    return [free[i] for i in np.sort(nearest)]


def _safe_first_moves(prompt: str) -> int:
    start, blocked = parse_grid(prompt)
    to = [start + m for m in MOVES.values()]
    return sum(0 <= row < ROWS and row not in blocked[0] for row in to)
