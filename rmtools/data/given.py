"""Rollouts whose first steps are given: a right solution's beginning becomes part of the prompt.

With all but the last step given, the outcome says whether one step was right: the easiest stage of a curriculum that
goes backwards through the solution.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import Rollout
from rmtools.data.tasks import ExactTask
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepTokenizer


class Continuation:
    """A task's verifier as seen behind given steps: prompts hold them, rewards are those of the whole solution.

    Parameters
    ----------
    task : ExactTask
    whole : dict
        From each extended prompt to the prompt itself and its given steps.
    """

    def __init__(self, task: ExactTask, whole: dict[str, tuple[str, list[str]]]) -> None:
        self.task, self.whole = task, whole

    def reference(self, prompt: str) -> str | None:
        """Return the reference of the prompt itself."""
        return self.task.reference(self.whole[prompt][0])

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return r of the given steps and ``steps``."""
        bare, given = self.whole[prompt]
        return self.task.reward(bare, [*given, *steps])


def collect_given(
    policy: Policy, task: ExactTask, given: Sequence[int], branching: Branching, rng: np.random.Generator
) -> list[Rollout]:
    """Return rollouts of fresh prompts, ``given[i]`` right steps of the i-th among its prompt.

    Parameters
    ----------
    policy : Policy
        Its horizon is the whole solution's.
    task : ExactTask
    given : sequence of int
        Of each prompt, below the horizon. Prompts whose drawn solution fails that early are left out.
    branching : Branching
    rng : np.random.Generator
    """
    prompts, _ = task.prompts(len(given), rng)
    right = [task.demonstration(p, 1.0, rng) for p in prompts]
    rows: list[Rollout] = []
    for k in sorted(set(given)):
        chosen = [
            i for i, n in enumerate(given) if n == k and all(task.step_labels(prompts[i], right[i][:k]))
        ]
        whole = {prompts[i] + "".join(right[i][:k]): (prompts[i], right[i][:k]) for i in chosen}
        steps = StepTokenizer(
            policy.steps.tokenizer, replace(policy.steps.settings, max_steps=task.horizon - k)
        )
        shorter = Policy(policy.model, steps, policy.temperature, policy.name)
        rows += Collector(shorter, Continuation(task, whole), branching, rng).collect(list(whole))
    return rows
