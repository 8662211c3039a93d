"""The task ``counting``: by hand, and drawn boxes against their own numbers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rmtools.data.tasks import Counting, load_task
from rmtools.data.tasks.counting import KINDS, parse_box
from rmtools.errors import UserError
from rmtools.testing import check_task

PROMPT = "A box holds 2 eggs, 1 book and 4 shells. How many things are in the box?\n"


@pytest.mark.parametrize(
    ("steps", "labels", "answer"),
    [
        (["2 + 1 = 3\n", "3 + 4 = 7\n", "Total: 7\n"], [1, 1, 1], "7"),
        (["2 + 1 = 3\n", "3 + 4 = 7\n", "Total: 7"], [1, 1, 1], "7"),
        (["2 + 1 = 3\n", "3 + 4 = 7\n", "Total: 7<|im_end|>"], [1, 1, 1], "7"),  # in place of the newline
        (["2 + 1 = 3\n", "3 + 4 = 7\n", "Total: 7</s>"], [1, 1, 1], "7"),
        (["2 + 1 = 3\n", "3 + 4 = 7<|im_end|>"], [1, 1], None),
        (["2 + 1 = 4\n", "4 + 4 = 8\n", "Total: 8"], [0, 0, 0], "8"),  # a wrong sum
        (
            ["2 + 4 = 6\n", "6 + 1 = 7\n", "Total: 7"],
            [0, 0, 0],
            "7",
        ),  # not the next number, though the total is right
        (["2 + 1 = 3\n", "2 + 4 = 6\n", "Total: 6"], [1, 0, 0], "6"),  # not the total of the line before
        (["2 + 1 = 3\n", "3 + 4 = 7\n", "Total: 3"], [1, 1, 0], "3"),
        (["2 + 1 = 3\n", "3 + 4 = 7\n", "Total: 07"], [1, 1, 0], "7"),
        (["2 + 1 = 3\n", "So 3 + 4 = 7\n", "Total: 7"], [1, 0, 0], None),
        (["2 + 1 = 3\n", "Total: 3\n"], [1, 0], None),
        (["2 + 1 = 3\n", "3 + 4 = 7\n", "Total: 7\n", "7\n"], [1, 1, 1, 0], None),
        (["2 + 1 = 3\n\n", "3 + 4 = 7\n", "Total: 7"], [0, 0, 0], None),
        (["2 + 1 = 3\n", "Total: 3\n", "Total: 3\n"], [1, 0, 0], None),
        ([], [], None),
    ],
)
def test_solutions_by_hand(steps, labels, answer):
    task = Counting(3)
    assert task.step_labels(PROMPT, steps) == labels
    assert task.reward(PROMPT, steps) == float(labels == [1, 1, 1])
    assert task.answer(PROMPT, steps) == answer
    assert task.well_formed(steps) == (answer is not None)


def test_drawn_boxes():
    task = Counting(4)
    prompts, left_out = task.prompts(300, np.random.default_rng(0))
    assert left_out == 0
    assert len(set(prompts)) == 300
    seen = set()
    for prompt in prompts:
        numbers = parse_box(prompt)
        seen |= set(numbers)
        words = re.findall(r"\d (\w+)", prompt)
        assert len(set(words)) == len(numbers) == 4
        assert all(
            word.removesuffix("s") in KINDS and word.endswith("s") == (n > 1)
            for n, word in zip(numbers, words, strict=True)
        )
        solution = task.reference(prompt).splitlines(keepends=True)
        assert task.reward(prompt, solution) == 1
        assert task.answer(prompt, solution) == str(sum(numbers))
    assert seen == {1, 2, 3, 4, 5}


def test_the_contract_of_tasks():
    right = ["2 + 1 = 3\n", "3 + 4 = 7\n", "Total: 7\n"]
    check_task(Counting(3), np.random.default_rng(0), solutions={PROMPT: right})


def test_examples_are_right_and_always_the_same():
    task = Counting(5)
    assert len(task.examples(3)) == 3
    assert task.examples() == Counting(5).examples()
    for prompt, solution in task.examples():
        assert task.reward(prompt, solution.splitlines(keepends=True)) == 1


def test_the_file_of_examples_holds_them():
    file = Path(__file__).parents[2] / "recipes" / "real" / "counting.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(row["prompt"], row["solution"]) for row in rows] == Counting().examples()


@pytest.mark.parametrize("prompt", ["", "2 + 1\n", "A box holds 2 eggs. How many things are in the box?\n"])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(UserError, match="not a prompt of the task counting"):
        Counting(2).check_prompt(prompt)


def test_horizon_and_delimiter_must_fit():
    with pytest.raises(UserError, match="`horizon` to 3"):
        Counting(4).check_prompt(PROMPT)
    for horizon in (1, len(KINDS) + 1):
        with pytest.raises(UserError, match="horizon"):
            Counting(horizon)
    assert load_task("counting") == Counting(4)
    with pytest.raises(UserError, match="newline"):
        load_task("counting", delimiter="\n\n")
