"""Demonstrations whose first steps are given: rewards are those of the whole solution, the given steps are right."""

import numpy as np
import pytest

from rmtools.data.prefix_curriculum import given_demonstrations
from rmtools.data.tasks import load_exact_task


@pytest.mark.parametrize("name", ["crossing-silent", "arithmetic-silent", "crossing", "arithmetic"])
def test_rewards_are_of_the_whole_solution(name):
    task = load_exact_task(name, 5)
    given = [0, 2, 4] * 40
    rows = given_demonstrations(task, given, 0.6, np.random.default_rng(0))
    lines = len(task.prompts(1, np.random.default_rng(0))[0][0].splitlines())
    for k, row in zip(given, rows, strict=True):
        whole = row.prompt.splitlines(keepends=True)
        prompt, first = "".join(whole[:lines]), whole[lines:]
        assert len(first) == k
        assert len(row.steps) == 5 - k
        assert all(task.step_labels(prompt, first))
        assert row.reward == task.reward(prompt, [*first, *row.steps])
    by_given = [np.mean([r.reward for r, g in zip(rows, given, strict=True) if g == k]) for k in (0, 2, 4)]
    assert by_given[0] < by_given[2]


@pytest.mark.parametrize("name", ["crossing-silent", "arithmetic-silent"])
def test_care_of_each_step(name):
    task = load_exact_task(name, 4)
    rng = np.random.default_rng(1)
    failed = np.zeros(4)
    for prompt in task.prompts(200, rng)[0]:
        steps = task.demonstration(prompt, [1.0, 1.0, 0.0, 1.0], rng)
        labels = task.step_labels(prompt, steps)
        failed[labels.index(0.0) if 0.0 in labels else 3] += 1
    assert failed[2] > 60
    assert failed[0] == 0 or name == "crossing-silent"  # a careful walk may still end up enclosed
    assert failed[0] < 20
