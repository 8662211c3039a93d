"""Choose one of the solutions drawn for a prompt: one weighted draw, the argmax, or the most frequent answer.

Only the draw follows the target's law. The argmax is the largest final value (the verifier's potential or the model's own
last value, by `terminal`), not the largest weight, which resampling evens out. Solutions of weight zero are never chosen.

>>> import numpy as np
>>> vote(["4", "5", "5", None], np.log([0.5, 0.2, 0.2, 0.1]), by_weight=False)
1
>>> vote(["4", "5", "5", None], np.log([0.5, 0.2, 0.2, 0.1]), by_weight=True)
0
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmtools.sampling.runs import PromptSamples


def choices(drawn: PromptSamples, answers: Sequence[str | None] | None) -> dict[str, int | None]:
    """Return the index that every output chooses, None if it chooses nothing; the majorities only with ``answers``."""
    found = {"draw": drawn.draw, "argmax": argmax(drawn)}
    if answers is not None:
        found["majority"] = vote(answers, drawn.log_weight, by_weight=False)
        found["weighted_majority"] = vote(answers, drawn.log_weight, by_weight=True)
    return found


def argmax(drawn: PromptSamples) -> int | None:
    """Return the index of the largest final value, the first of equals; None without a solution of positive value."""
    possible = np.where(drawn.log_weight > -np.inf, drawn.log_value, -np.inf)
    return int(possible.argmax()) if len(possible) and possible.max() > -np.inf else None


def vote(answers: Sequence[str | None], log_weight: np.ndarray, by_weight: bool) -> int | None:
    """Return the heaviest solution of the answer with the most votes; None without an answer.

    Parameters
    ----------
    answers : sequence of str or None
        (K,) of each solution; None does not vote, nor does a solution of weight zero.
    log_weight : np.ndarray
        (K,) nats.
    by_weight : bool
        Count weights, not heads. Ties go to the larger weight, then to the first.
    """
    weight = np.exp(log_weight)
    members: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        if answer is not None and log_weight[i] > -np.inf:
            members.setdefault(answer, []).append(i)
    if not members:
        return None

    def votes(own: Sequence[int]) -> tuple[Any, ...]:
        total = float(weight[list(own)].sum())
        return (total,) if by_weight else (len(own), total)

    # max keeps the first of equals, and answers stand in the order of their first solution.
    winner = max(members.values(), key=votes)
    return max(winner, key=lambda i: weight[i])
