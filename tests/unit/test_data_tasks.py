"""The task ``crossing``: by hand, and against brute force on random small grids."""

import itertools

import numpy as np
import pytest

from rmtools.data.prompts import parse_line, prompts_from, read_prompts, write_prompts
from rmtools.data.tasks import CHOICES, MOVES, ROWS, Crossing, load_task, parse_grid
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
    assert parse_grid(PROMPT) == (2, [{1, 3}, {0, 2}])
    for wrong in ("", "2+2=\n", "r2 . \ncx . \n", "\n"):
        with pytest.raises(UserError, match="not a prompt of the task crossing"):
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
def test_right_rows_by_hand(steps, right):
    assert Crossing(2).right_rows(PROMPT, steps) == right


def test_leaving_the_grid_is_never_right():
    assert Crossing(1).right_rows("r4 . \nc01 . \n", ["u r4 \n"]) == [False]
    assert Crossing(1).right_rows("r0 . \nc12 . \n", ["d x \n"]) == [False]


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
        assert all(task.right_rows(prompt, steps))
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
    with pytest.raises(UserError, match="horizon must be at least 1"):
        Crossing(horizon)
    with pytest.raises(UserError, match="horizon must be at least 1"):
        load_task("crossing", horizon)


def test_tasks_by_name():
    assert load_task("crossing") == Crossing(8)
    assert load_task("crossing", 3) == Crossing(3)
    with pytest.raises(UserError, match="the tasks are: crossing"):
        load_task("chess")


def test_prompts_file_round_trip(tmp_path):
    found = Crossing(4).prompts(5, np.random.default_rng(0))[0]
    write_prompts(tmp_path / "p.jsonl", found)
    assert read_prompts(tmp_path / "p.jsonl") == found
    assert prompts_from(str(tmp_path / "p.jsonl"), Crossing(4), np.random.default_rng(0)) == (found, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_number_draws_prompts():
    found, removed = prompts_from("7", Crossing(4), np.random.default_rng(0))
    assert (found, removed) == Crossing(4).prompts(7, np.random.default_rng(0))
    for wrong in ("0", "-3"):
        with pytest.raises(UserError, match="at least 1"):
            prompts_from(wrong, Crossing(4), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not valid JSON"),
        ('{"prompt": "a"}\n\n\n[1]\n', "line 4 has no text"),
        ('{"text": "a"}\n', "line 1 has no text field"),
        ('{"prompt": 3}\n', "line 1 has no text field"),
        ('{"prompt": ""}\n', "line 1 has no text field"),
        ("", "is empty"),
        ("\n  \n", "is empty"),
    ],
)
def test_broken_prompts_files(tmp_path, text, why):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=why):
        read_prompts(path)


def test_a_line_separator_inside_a_prompt_does_not_shift_lines(tmp_path):
    """JSON allows U+2028 in a string: only newlines end a line."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\u2028b"}\n{"prompt": "c"}\n', encoding="utf-8")
    assert read_prompts(path) == ["a\u2028b", "c"]


def test_unreadable_prompts_files(tmp_path):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read_prompts(path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "latin.jsonl")
    with pytest.raises(UserError, match="line 9"):
        parse_line("f", 9, "{")
