"""Demonstrations whose first steps are given: the beginning of a right solution becomes part of the prompt.

With all but the last step given, the outcome says whether one step was right: the easiest stage of a curriculum that
moves backwards through the solution.
"""

from collections.abc import Sequence

import numpy as np

from rmtools.data.collect import prompt_id
from rmtools.data.rollouts import Rollout
from rmtools.data.tasks import ExactTask


def given_demonstrations(
    task: ExactTask, given: Sequence[int], care: float, rng: np.random.Generator
) -> list[Rollout]:
    """Return one demonstration per entry of ``given``, of a fresh prompt with that many right steps appended.

    Parameters
    ----------
    task : ExactTask
    given : sequence of int
        Below the horizon. A prompt whose right beginning runs into a dead end is drawn again.
    care : float
        Care of the steps that are not given, see `ExactTask.demonstration`.
    rng : np.random.Generator
    """
    rows: list[Rollout] = []
    for k in given:
        right = False
        while not right:
            prompt = task.prompts(1, rng)[0][0]
            steps = task.demonstration(prompt, [1.0] * k + [care] * (task.horizon - k), rng)
            right = all(task.step_labels(prompt, steps[:k]))
        known = prompt + "".join(steps[:k])
        rows.append(Rollout(prompt_id(known), known, steps[k:], task.reward(prompt, steps)))
    return rows
