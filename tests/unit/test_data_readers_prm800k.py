"""PRM800K: every rating becomes one label; the trajectory follows what was chosen or written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtools.data.readers import READERS, Tally, read_public
from rmtools.data.readers.row import Dropped, Field, Options
from rmtools.errors import UserError


def completion(text, rating):
    return {"text": text, "rating": rating, "flagged": None}


def step(*completions, chosen=0, human=None):
    return {"completions": list(completions), "human_completion": human, "chosen_completion": chosen}


def solution(*steps):
    return {
        "labeler": "340d",
        "generation": 9,
        "is_quality_control_question": False,
        "question": {"problem": "Which?", "ground_truth_answer": "40", "pre_generated_steps": ["a"]},
        "label": {"steps": list(steps), "total_time": 1, "finish_reason": "found_error"},
    }


WRITTEN = {"text": "by hand", "rating": None, "source": "human", "flagged": False}
PHASE2 = solution(
    step(completion("a", 1)),
    step(completion("b", 0)),
    step(completion("c", -1), completion("d", 0), completion("e", None), completion("f", 1), chosen=None),
)


@pytest.fixture
def read(tmp_path):
    def start(*rows, neutral="positive", keep_excluded=False, **how):
        file = tmp_path / "phase2.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return list(read_public(file, options=Options(neutral=neutral, keep_excluded=keep_excluded), **how))

    return start


def test_alternatives_are_last_steps_of_their_own(read):
    tally = Tally()
    found = read(PHASE2, tally=tally)
    assert [(r.steps, r.labels) for r in found] == [
        (["a\n", "b\n", "c\n"], [1.0, 1.0, 0.0]),
        (["a\n", "b\n", "d\n"], [None, None, 1.0]),
        (["a\n", "b\n", "f\n"], [None, None, 1.0]),
    ]
    assert {(r.prompt, r.reference, r.reward) for r in found} == {("Which?\n", "40", None)}
    assert sum(tally.dropped.values()) == 1
    assert "alternative step without a label" in next(iter(tally.dropped))


@pytest.mark.parametrize(
    ("neutral", "labels", "rows"),
    [("positive", [1.0, 1.0, 0.0], 3), ("negative", [1.0, 0.0, 0.0], 3), ("skip", [1.0, None, 0.0], 2)],
)
def test_neutral_ratings(read, neutral, labels, rows):
    tally = Tally()
    found = read(PHASE2, neutral=neutral, tally=tally)
    assert found[0].labels == labels
    assert len(found) == rows
    assert sum(tally.dropped.values()) == 4 - rows


def test_alternatives_along_the_way_and_a_written_step(read):
    found = read(
        solution(
            step(completion("a", -1), completion("b", 1), chosen=1),
            step(completion("c", -1), completion("d", -1), chosen=None, human=WRITTEN),
            step(completion("e", None), chosen=0),
        ),
        solution(step(completion("c", -1), chosen=None, human="as the README shows it")),
    )
    assert [(r.steps, r.labels) for r in found] == [
        (["b\n", "by hand\n", "e\n"], [1.0, 1.0, None]),
        (["a\n"], [0.0]),
        (["b\n", "c\n"], [None, 0.0]),
        (["b\n", "d\n"], [None, 0.0]),
        (["as the README shows it\n"], [1.0]),
        (["c\n"], [0.0]),
    ]


def test_where_labelling_stopped(read):
    tally = Tally()
    nothing = {"completions": None, "human_completion": None, "chosen_completion": None}
    later = step(completion("x", 1), completion("y", None))
    found = read(solution(step(completion("a", 1)), nothing, later), solution(nothing), tally=tally)
    assert [(r.steps, r.labels) for r in found] == [(["a\n"], [1.0])]
    assert tally.dropped == {"rating after the trajectory stopped": 1, "solution without any step": 1}


STEPS = st.builds(
    lambda ratings, chosen, human: step(
        *(completion(f"s{i}", r) for i, r in enumerate(ratings)),
        chosen=chosen % len(ratings) if ratings and chosen is not None else None,
        human=WRITTEN if human else None,
    ),
    st.lists(st.sampled_from([-1, 0, 1, None]), max_size=4),
    st.none() | st.integers(0, 9),
    st.booleans(),
)


@given(st.lists(STEPS, max_size=5))
def test_no_rating_is_lost_or_counted_twice(steps):
    found = list(READERS["prm800k"].read(Field(solution(*steps)), Options()))
    labels = sum(x is not None for r in found if not isinstance(r, Dropped) for x in r.labels)
    late = sum(d.count for d in found if isinstance(d, Dropped) and d.reason.startswith("rating after"))
    ratings = written = 0
    going = True
    for s in steps:
        ratings += sum(c["rating"] is not None for c in s["completions"])
        by_hand = s["chosen_completion"] is None and s["human_completion"] is not None
        written += going and by_hand
        going &= s["chosen_completion"] is not None or by_hand
    assert labels + late == ratings + written


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            solution(step(completion("a", 2))),
            r"label.steps\[0\].completions\[0\].rating: must be -1, 0, 1 or null",
        ),
        (solution(step(completion("a", "1"))), "rating: must be"),
        (solution(step(completion("", 1))), r"completions\[0\].text: is empty"),
        (solution(step({"text": "a"})), "field .*rating: is missing"),
        (
            solution(step(completion("a", 1), chosen=1)),
            r"steps\[0\].chosen_completion: must be an integer from 0 to 0",
        ),
        (solution(step(chosen=0)), "chosen_completion: is 0, but there are no completions"),
        (solution(step(completion("a", 1), chosen=None, human={"rating": 1})), "text: is missing"),
        (solution(step(completion("a", 1), chosen=None, human=3)), "human_completion: must be a text, got 3"),
        (solution({"completions": []}), "chosen_completion: is missing"),
        (solution(None), "which is not an object"),
        ({"question": {"problem": "p"}, "label": {}}, "steps: is missing"),
        ({"question": {"problem": None}, "label": {"steps": []}}, "question.problem: must be a text"),
    ],
)
def test_bad_rows(read, row, words):
    with pytest.raises(UserError, match=rf"phase2.jsonl, line 2, .*{words}"):
        read(PHASE2, row, name="prm800k")


def labelled(**values):
    step = {
        "completions": [{"text": "a", "rating": 1, "flagged": None}],
        "human_completion": None,
        "chosen_completion": 0,
    }
    label = {"steps": [step], "finish_reason": values.pop("finish_reason", "solution")}
    return {"question": {"problem": "Q?", "ground_truth_answer": "2"}, "label": label, **values}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (labelled(is_quality_control_question=True), "quality-control question"),
        (labelled(is_initial_screening_question=True), "initial-screening question"),
        (labelled(finish_reason="bad_problem"), "bad problem"),
    ],
)
def test_rows_that_were_set_aside(read, row, reason):
    tally = Tally()
    kept = labelled(is_quality_control_question=False, finish_reason="give_up")
    assert len(read(kept, row, tally=tally)) == 1
    assert tally.dropped == {f"row set aside: {reason}": 1}
    assert len(read(kept, row, keep_excluded=True)) == 2


def test_numbers_as_tables_write_them(read):
    """pandas writes a column of integers with nulls as floats, null as NaN; `datasets` a list of objects as lists."""
    row = labelled()
    (expected,) = read(row)
    (step,) = row["label"]["steps"]
    for change in (
        {"chosen_completion": 0.0},
        {"completions": {"text": ["a"], "rating": [1.0], "flagged": [None]}},
    ):
        row["label"]["steps"] = [{**step, **change}]
        assert read(row) == [expected]
    row["label"]["steps"] = {name: [value] for name, value in step.items()}
    assert read(row) == [expected]
    row["label"]["steps"] = [{**step, "chosen_completion": float("nan")}]
    assert read(row) == [expected]
    row["label"]["steps"] = [{**step, "chosen_completion": 0.5}]
    with pytest.raises(UserError, match=r"must be an integer from 0 to 0, got 0\.5"):
        read(row)


def test_a_blank_alternative_is_dropped_and_counted(read):
    row, tally = labelled(), Tally()
    blank = {"text": " ", "rating": None, "flagged": None}
    (step,) = row["label"]["steps"]
    row["label"]["steps"] = [{**step, "completions": [blank, *step["completions"]], "chosen_completion": 1}]
    (found,) = read(row, tally=tally)
    assert (found.steps, found.labels) == (["a\n"], [1.0])
    assert tally.dropped == {"blank alternative that nobody chose": 1}
    row["label"]["steps"][0]["chosen_completion"] = 0
    with pytest.raises(UserError, match=r"completions\[0\].text: is empty"):
        read(row)
