"""The contract of tasks (rmtools.testing): every implementation keeps it, and every law is broken by one made for it."""

import numpy as np
import pytest

from rmtools.data.tasks import AnswerChecker, AnswerTask, CallableTask, Crossing, load_task
from rmtools.errors import UserError
from rmtools.testing import check_task


def rng(seed=0):
    return np.random.default_rng(seed)


# One worker for all tasks: starting it takes seconds.
CHECKER = AnswerChecker()
LAST_LINE = CallableTask(
    lambda prompt, steps, reference: float(steps[-1].strip() == reference),
    references={"2+2=\n": "4", "1+1=\n": "2"},
)


@pytest.mark.parametrize("name", ["crossing", "crossing-silent", "arithmetic", "arithmetic-silent"])
def test_exact_tasks_keep_the_contract(name):
    check_task(load_task(name, 4), rng())


@pytest.mark.parametrize("name", ["gsm8k", "math", "answers"])
def test_tasks_with_answers_keep_the_contract(name):
    usual = load_task(name)
    task = AnswerTask(
        {"6 * 7 = ?\n": "42", "1 / 2 = ?\n": r"\frac{1}{2}"}, name, usual.horizon, usual.delimiter, CHECKER
    )
    check_task(task, rng(), prompts=list(task.references))


def test_a_task_of_ones_own_keeps_the_contract():
    right = {p: [f"{answer}\n"] for p, answer in LAST_LINE.references.items()}
    check_task(LAST_LINE, rng(), prompts=list(right), solutions=right)
    with pytest.raises(AssertionError, match="a right solution"):
        check_task(LAST_LINE, rng(), prompts=list(right), solutions={"1+1=\n": ["3\n"]})


class OfNumpy(Crossing):
    def well_formed(self, steps):
        return np.bool_(super().well_formed(steps))


def test_a_bool_of_numpy_is_a_bool():
    check_task(OfNumpy(4), rng())


class Stingy(Crossing):
    def reward(self, prompt, steps):
        return 0.0


class Agreeing(Crossing):
    def right_steps(self, prompt, steps):
        return [True] * len(steps)


class Vague(Crossing):
    def well_formed(self, steps):
        return int(super().well_formed(steps))


class Generous(Crossing):
    def reward(self, prompt, steps):
        return 2 * super().reward(prompt, steps)


class Moody(Crossing):
    mood = rng(0)

    def reward(self, prompt, steps):
        return float(self.mood.integers(2))


class Picky(Crossing):
    def check_prompt(self, prompt):
        raise UserError("no", "none")


class Few(Crossing):
    def prompts(self, n, rng):
        return super().prompts(n - 1, rng)


class Endless(Crossing):
    def step_choices(self, prompt, steps):
        return [c.strip() for c in super().step_choices(prompt, steps)]


class Nonsense(Crossing):
    def step_choices(self, prompt, steps):
        return ["a step \n"]


class Careless(Crossing):
    def demonstration(self, prompt, care, rng):
        return [*super().demonstration(prompt, care, rng), "u r4 \n"]


class Blind(Crossing):
    def right_steps(self, prompt, steps):
        return [False] * len(steps)

    def reward(self, prompt, steps):
        return Crossing(self.horizon).reward(prompt, steps)


class OwnPrompts(Crossing):
    dice = rng(0)

    def prompts(self, n, rng):
        return super().prompts(n, self.dice)


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (Generous, r"rewards are in \[0, 1\]"),
        (Moody, "deterministic"),
        (Picky, "prompts can be verified"),
        (Few, "gives n texts"),
        (Endless, "its one delimiter"),
        (Nonsense, "listed steps are well-formed"),
        (Careless, "a demonstration is well-formed"),
        (Blind, "has right steps only"),
        (Stingy, "some careful demonstration"),
        (Agreeing, "not listed"),
        (Vague, "gives a bool"),
        (OwnPrompts, "drawings of prompts"),
    ],
)
def test_broken_tasks_are_caught(kind, law):
    with pytest.raises(AssertionError, match=law):
        check_task(kind(4), rng())
