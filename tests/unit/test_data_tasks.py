"""The task ``crossing``, and tasks by name: by hand, and against brute force on random small grids."""

import hashlib
import itertools

import numpy as np
import pytest

from rmtools.data.tasks import Arithmetic, Crossing, load_exact_task, load_task
from rmtools.data.tasks.crossing import CHOICES, MOVES, ROWS, parse_grid
from rmtools.data.tasks.load import ANSWERS
from rmtools.errors import UserError

PROMPT = "r2 . \nc13 . \nc02 . \n"


def walk(prompt, moves):
    """The rows of a sequence of moves, or None where it leaves the grid or meets a block."""
    row, blocked = parse_grid(prompt)
    rows = []
    for move, bad in zip(moves, blocked, strict=True):
        row += MOVES[move]
        if not 0 <= row < ROWS or row in bad:
            return None
        rows.append(row)
    return rows


def test_parse_grid():
    assert parse_grid(PROMPT) == (2, ({1, 3}, {0, 2}))
    for wrong in ("", "2+2=\n", "r2 . \ncx . \n", "\n"):
        with pytest.raises(UserError, match=r"prompt.*crossing"):
            parse_grid(wrong)


@pytest.mark.parametrize(
    ("steps", "reward"),
    [
        (["s r2 \n", "d r1 \n"], 1.0),
        (["s r2 \n", "u r3 \n"], 1.0),
        (["s r2 \n", "s r2 \n"], 0.0),  # into a block, and says a row
        (["s r2 \n", "s x \n"], 0.0),  # into a block, and says so
        (["u x \n", "s x \n"], 0.0),
        (["u r4 \n", "d r3 \n"], 0.0),  # a wrong row
        (["s r2 \n"], 0.0),
        (["s r2 \n", "d r1 \n", "s r1 \n"], 0.0),
        ([], 0.0),
        (["s r2 \n", "d r1"], 0.0),
        (["s r2 \n", "d r1 \n<eos>"], 0.0),
        (["s r2 \n", "dr1 \n"], 0.0),
    ],
)
def test_reward_by_hand(steps, reward):
    assert Crossing(2).reward(PROMPT, steps) == reward


@pytest.mark.parametrize(
    ("steps", "right"),
    [
        (["u x \n", "s x \n"], [True, True]),
        (["u x \n", "u x \n"], [True, False]),
        (["s r2 \n", "s r2 \n"], [True, False]),
        (["u r4 \n", "d r3 \n"], [False, True]),  # counted once
        (["u \n", "d r1 \n"], [False, True]),
        (["q r2 \n"], [False]),
        ([], []),
        (["s r2 \n", "d r1 \n", "s r1 \n"], [True, True]),
    ],
)
def test_right_steps_by_hand(steps, right):
    assert Crossing(2).right_steps(PROMPT, steps) == right


def test_leaving_the_grid_is_never_right():
    assert Crossing(1).right_steps("r4 . \nc01 . \n", ["u r4 \n"]) == [False]
    assert Crossing(1).right_steps("r0 . \nc12 . \n", ["d x \n"]) == [False]


def test_solvable_and_reward_against_brute_force():
    task = Crossing(3)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(150):
        blocks = [rng.choice(ROWS, 2, replace=False) for _ in range(3)]
        prompt = f"r{rng.integers(ROWS)} . \n" + "".join(f"c{min(b)}{max(b)} . \n" for b in blocks)
        safe = {moves: rows for moves in itertools.product(MOVES, repeat=3) if (rows := walk(prompt, moves))}
        seen.add(bool(safe))
        assert task.solvable(prompt) == bool(safe)
        for moves in itertools.product(MOVES, repeat=3):
            rows = safe.get(moves)
            steps = [f"{m} r{r} \n" for m, r in zip(moves, rows or [2, 2, 2], strict=True)]
            assert task.reward(prompt, steps) == float(rows is not None)
    assert seen == {True, False}


def test_every_right_solution_is_a_safe_walk():
    """Over all 324 written solutions of random two-column grids."""
    task = Crossing(2)
    for prompt in task.prompts(10, np.random.default_rng(1))[0]:
        right = [s for s in itertools.product(CHOICES, repeat=2) if task.reward(prompt, s) == 1]
        safe = [m for m in itertools.product(MOVES, repeat=2) if walk(prompt, m)]
        assert sorted(tuple(x.split()[0] for x in s) for s in right) == sorted(safe)


@pytest.mark.parametrize("care", [0.0, 0.5, 1.0])
def test_demonstrations_write_what_happens(care):
    task = Crossing(5)
    rng = np.random.default_rng(3)
    rewards = []
    for prompt in task.prompts(200, rng)[0]:
        steps = task.demonstration(prompt, care, rng)
        assert task.well_formed(steps)
        assert all(task.right_steps(prompt, steps))
        failed = [s.endswith("x \n") for s in steps]
        assert failed == sorted(failed)
        assert task.reward(prompt, steps) == float(not any(failed))
        rewards.append(not any(failed))
    assert {0.0: 0 <= np.mean(rewards) < 0.2, 0.5: True, 1.0: np.mean(rewards) > 0.5}[care]


def test_prompts_are_solvable_counted_and_seeded():
    task = Crossing(6)
    found, removed = task.prompts(300, np.random.default_rng(0))
    assert all(task.solvable(p) for p in found)
    assert all(len(parse_grid(p)[1]) == 6 for p in found)
    assert removed > 0
    assert found == task.prompts(300, np.random.default_rng(0))[0]
    assert len(set(found)) > 290


def test_choices_and_vocabulary():
    task = Crossing(2)
    choices = task.step_choices(PROMPT, [])
    assert len(choices) == len(set(choices)) == 18
    assert all(task.well_formed([c, c]) for c in choices)
    assert len(task.vocabulary()) == 21


@pytest.mark.parametrize("horizon", [0, -1])
def test_horizons_are_checked(horizon):
    with pytest.raises(UserError, match=r"horizon.*at least 1"):
        Crossing(horizon)
    with pytest.raises(UserError, match=r"horizon.*at least 1"):
        load_task("crossing", horizon)


def test_tasks_by_name():
    assert load_task("crossing") == Crossing(8)
    assert load_task("crossing", 3) == Crossing(3)
    with pytest.raises(UserError, match="crossing, crossing-silent"):
        load_task("chess")


def test_every_task_by_name():
    for name, kind in (("crossing", Crossing), ("arithmetic", Arithmetic)):
        for silent in (False, True):
            task = load_task(name + "-silent" * silent, 5)
            assert task == load_exact_task(task.name, 5) == kind(5, silent=silent)
            assert task.name == name + "-silent" * silent
    defaults = {name: (load_task(name).horizon, load_task(name).delimiter) for name in ANSWERS}
    assert defaults == {"gsm8k": (16, "\n"), "math": (32, "\n\n"), "answers": (16, "\n")}
    assert load_task("math", 5, "\n").delimiter == "\n"
    assert load_task("crossing", None, "\n") == Crossing(8)
    with pytest.raises(UserError, match="newline"):
        load_task("crossing", None, "\n\n")
    with pytest.raises(UserError, match="crossing, crossing-silent"):
        load_exact_task("gsm8k")
    for name in ANSWERS:
        with pytest.raises(UserError, match=r"horizon.*at least 1"):
            load_task(name, 0)


@pytest.mark.parametrize(
    ("steps", "labels", "reward"),
    [
        (["s r2 \n", "d r1 \n"], [1.0, 1.0], 1.0),
        (["s r2 \n", "s r2 \n"], [1.0, 0.0], 0.0),  # onto a blocked row
        (["u r3 \n", "s r3 \n"], [0.0, 0.0], 0.0),  # a blocked row first: the walk goes on
        (["u r4 \n", "d r3 \n"], [0.0, 0.0], 0.0),  # a wrong row
        (["s r2 \n", "s x \n"], [1.0, 0.0], 0.0),  # no such step
        (["s r2 \n", "q\n"], [1.0, 0.0], 0.0),
        (["s r2 \n", "d r1 \n", "s r1 \n"], [1.0, 1.0, 0.0], 0.0),
        (["s r2 \n"], [1.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_silent_crossing_by_hand(steps, labels, reward):
    task = Crossing(2, silent=True)
    assert task.step_labels(PROMPT, steps) == labels
    assert task.reward(PROMPT, steps) == reward


def test_silence_changes_how_failures_read_and_nothing_else():
    loud, silent = Crossing(3), Crossing(3, silent=True)
    for prompt in loud.prompts(5, np.random.default_rng(2))[0]:
        for steps in itertools.product(CHOICES, repeat=3):
            reward = loud.reward(prompt, steps)
            assert silent.reward(prompt, steps) == reward
            assert reward == float(all(loud.step_labels(prompt, steps)))
    assert silent.step_choices("", []) == [c for c in CHOICES if "x" not in c]
    assert set(loud.vocabulary()) - set(silent.vocabulary()) == {"x "}
    with pytest.raises(UserError, match=r"2 columns.*crossing-silent.*3 steps"):
        silent.reward(PROMPT, [])


@pytest.mark.parametrize("care", [0.0, 0.5, 1.0])
def test_silent_demonstrations_walk_on(care):
    task = Crossing(5, silent=True)
    rng = np.random.default_rng(3)
    rewards = []
    for prompt in task.prompts(200, rng)[0]:
        steps = task.demonstration(prompt, care, rng)
        assert task.well_formed(steps)
        assert all(task.right_steps(prompt, steps))
        labels = task.step_labels(prompt, steps)
        assert labels == sorted(labels, reverse=True)
        moves = [s.split()[0] for s in steps]
        assert task.reward(prompt, steps) == labels[-1] == float(walk(prompt, moves) is not None)
        rewards.append(labels[-1])
    assert {0.0: 0 <= np.mean(rewards) < 0.2, 0.5: True, 1.0: np.mean(rewards) > 0.5}[care]


def test_labels_of_written_failures():
    assert Crossing(2).step_labels(PROMPT, ["s r2 \n", "s x \n"]) == [1.0, 0.0]
    assert Crossing(2).step_labels(PROMPT, ["u x \n", "s x \n"]) == [0.0, 0.0]


def test_demonstrations_of_the_quick_start_stay_the_same():
    """Its figures rest on them: prompts and demonstrations of a seed, as of the first release."""
    task, rng = Crossing(8), np.random.default_rng(0)
    prompts, _ = task.prompts(200, rng)
    text = "".join(p + "".join(task.demonstration(p, 0.35, rng)) for p in prompts)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("fe4494dc81fd7e24")


def test_answers_are_whole_solutions_failed_ones_too():
    task, silent = Crossing(2), Crossing(2, silent=True)
    for walk in (["s r2 \n", "d r1 \n"], ["u x \n", "s x \n"]):
        assert task.answer(PROMPT, walk) == "".join(walk)
    assert task.answer(PROMPT, ["s r2 \n"]) is None
    assert silent.answer(PROMPT, ["u r3 \n", "s r3 \n"]) == "u r3 \ns r3 \n"
    assert silent.answer(PROMPT, ["u x \n", "s x \n"]) is None
    sums = Arithmetic(2)
    assert sums.answer("", ["= 7 . \n", "= x . \n"]) == "= 7 . \n= x . \n"
    assert sums.answer("", ["= 7 . \n", "7"]) is None
