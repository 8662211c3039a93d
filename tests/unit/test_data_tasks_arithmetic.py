"""The task ``arithmetic``: by hand, and against Python's own sums."""

import itertools

import numpy as np
import pytest

from rmtools.data.tasks import Arithmetic
from rmtools.data.tasks.arithmetic import parse_worksheet
from rmtools.errors import UserError
from rmtools.lm.tokenizers import word_tokenizer

PROMPT = "3 + 4 \n2 - 5 \n"


def test_parse_worksheet():
    assert parse_worksheet(PROMPT) == (7, 7)
    assert parse_worksheet("9 + 9 \n") == (8,)
    for wrong in ("", "\n", "3+4\n", "3 + 4 \n2 - 5 ", "3 + 4 \nx\n", "3 + 14 \n", "3 * 4 \n", "٣ + 4 \n"):
        with pytest.raises(UserError, match=r"prompt.*arithmetic"):
            parse_worksheet(wrong)


@pytest.mark.parametrize(
    ("steps", "right", "labels", "silent_right"),
    [
        (["= 7 . \n", "= 7 . \n"], [True, True], [1, 1], [True, True]),
        (["= 7 . \n", "= 6 . \n"], [True, False], [1, 0], [True, False]),
        (["= 6 . \n", "= 7 . \n"], [False, True], [0, 0], [False, True]),
        (["= x . \n", "= x . \n"], [True, True], [0, 0], [False, False]),
        (["= x . \n", "= 7 . \n"], [True, False], [0, 0], [False, True]),
        (["= 7 . \n", "= x . \n"], [True, True], [1, 0], [True, False]),
        (["= 7 . \n", "= 7 ."], [True, False], [1, 0], [True, False]),
        (["= 7 . \n"], [True], [1], [True]),
        (["= 7 . \n"] * 3, [True, True], [1, 1, 0], [True, True]),
        ([], [], [], []),
    ],
)
def test_steps_by_hand(steps, right, labels, silent_right):
    loud, silent = Arithmetic(2), Arithmetic(2, silent=True)
    assert loud.right_steps(PROMPT, steps) == right
    assert silent.right_steps(PROMPT, steps) == silent_right
    for task in (loud, silent):
        assert task.step_labels(PROMPT, steps) == labels
        assert task.reward(PROMPT, steps) == float(labels == [1, 1])


@pytest.mark.parametrize("silent", [False, True])
def test_one_solution_of_all_is_right(silent):
    task = Arithmetic(3, silent)
    for prompt in task.prompts(20, np.random.default_rng(0))[0]:
        problems = [line.split() for line in prompt.splitlines()]
        sums = [(int(a) + int(sign + b)) % 10 for a, sign, b in problems]
        every = itertools.product(task.step_choices(prompt, []), repeat=3)
        right = [steps for steps in every if task.reward(prompt, steps) == 1]
        assert right == [tuple(f"= {x} . \n" for x in sums)]
        assert task.reference(prompt) == "".join(right[0])


def test_demonstrations():
    rng = np.random.default_rng(1)
    loud, silent = Arithmetic(4), Arithmetic(4, silent=True)
    prompts, removed = loud.prompts(2000, rng)
    assert removed == 0
    written = [loud.demonstration(p, 0.8, rng) for p in prompts]
    for prompt, steps in zip(prompts, written, strict=True):
        assert loud.well_formed(steps)
        assert all(loud.right_steps(prompt, steps))
    unwritten = [silent.demonstration(p, 0.8, rng) for p in prompts]
    assert all(silent.well_formed(s) for s in unwritten)
    right = np.array([silent.right_steps(p, s) for p, s in zip(prompts, unwritten, strict=True)])
    assert abs(right.mean() - 0.8) < 4.5 * 0.4 / np.sqrt(right.size)
    for task, found in ((loud, written), (silent, unwritten)):
        reward = np.mean([task.reward(p, s) for p, s in zip(prompts, found, strict=True)])
        assert abs(reward - 0.8**4) < 4.5 * 0.5 / np.sqrt(2000)
    assert loud.demonstration(prompts[0], 1.0, rng) == silent.demonstration(prompts[0], 1.0, rng)
    assert loud.demonstration(prompts[0], 0.0, rng) == ["= x . \n"] * 4


def test_wrong_digits_are_uniform():
    task, rng = Arithmetic(1, silent=True), np.random.default_rng(2)
    found = [int(task.demonstration("3 + 4 \n", 0.0, rng)[0].split()[1]) for _ in range(9000)]
    counts = np.bincount(found, minlength=10)
    assert counts[7] == 0
    assert all(abs(c - 1000) < 4.5 * np.sqrt(1000) for c in np.delete(counts, 7))


@pytest.mark.parametrize("silent", [False, True])
def test_lines_are_four_words(silent):
    task = Arithmetic(5, silent)
    tokenizer = word_tokenizer(task.vocabulary())
    rng = np.random.default_rng(0)
    prompt = task.prompts(1, rng)[0][0]
    steps = task.demonstration(prompt, 0.5, rng)
    for text in (prompt, *steps, *task.step_choices(prompt, [])):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == 4 * text.count("\n")
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert ("x " in task.vocabulary()) is not silent


def test_prompts_are_seeded_and_checked():
    task = Arithmetic(6)
    found = task.prompts(300, np.random.default_rng(0))[0]
    assert found == task.prompts(300, np.random.default_rng(0))[0]
    assert len(set(found)) == 300
    with pytest.raises(UserError, match=r"2 problems.*arithmetic.*6 steps"):
        task.reward(PROMPT, [])
    with pytest.raises(UserError, match=r"horizon.*at least 1"):
        Arithmetic(0)
