"""ProcessBench, PRMBench and calibration: figures worked out by hand, and rows that are refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rmtools.data.rollouts import Rollout
from rmtools.errors import UserError
from rmtools.evaluation.calibration import design_effect, evaluate_calibration
from rmtools.evaluation.labelled import LabelledSteps, read_prmbench, read_processbench
from rmtools.evaluation.prmbench import confusion, evaluate_prmbench
from rmtools.evaluation.processbench import best_threshold, evaluate_processbench, first_below, guess_f1
from rmtools.evaluation.published import PROCESSBENCH
from rmtools.evaluation.report import page_of, summary, write_evaluation

DATA = Path(__file__).parents[3] / "shared/data/processbench/gsm8k.json"


def rng():
    return np.random.default_rng(0)


def labelled(n_steps, wrong, group="gsm8k", problem="a"):
    return LabelledSteps(Rollout(problem, "q\n", ["s\n"] * n_steps, None), tuple(wrong), group, problem)


# ProcessBench

FOUR = [
    labelled(3, [1], problem="a"),
    labelled(2, [0], problem="b"),
    labelled(2, [], problem="c"),
    labelled(3, [], problem="d"),
]
SCORES = [np.array(x) for x in ([0.8, 0.3, 0.9], [0.6, 0.2], [0.9, 0.7], [0.8, 0.45, 0.9])]


def test_first_error_by_hand():
    """At .5: right at 1; at 1 instead of 0; right; 1 instead of none: a = 1/2, b = 1/2."""
    assert [first_below(p, 0.5) for p in SCORES] == [1, 1, -1, 1]
    found = evaluate_processbench(FOUR, SCORES, rng())
    half = found.subsets["gsm8k"].at_half
    assert (half.erroneous.estimate, half.correct.estimate, half.f1.estimate) == (0.5, 0.5, 0.5)
    assert found.constant_f1 == 0.0
    # Up to .45 the first is found and both right ones pass: a = 1/2, b = 1, F1 = 2/3; from .6 on the second is found, too:
    # a = 1, but only .7 passes: b = 1/2 up to .7. Both have 2/3, and the lower one is taken: half-way from .3 to .45.
    assert found.threshold == pytest.approx(0.375)
    assert found.subsets["gsm8k"].at_chosen.f1.estimate == pytest.approx(2 / 3)
    assert found.average_at_chosen.estimate == pytest.approx(2 / 3)


def test_threshold_is_the_best_of_all():
    draw = np.random.default_rng(5)
    rows = [
        labelled(4, [int(k)] if k >= 0 else [], problem=str(i))
        for i, k in enumerate(draw.integers(-1, 4, 60))
    ]
    scores = [draw.random(4).round(2) for _ in rows]
    first = [row.wrong[0] if row.wrong else -1 for row in rows]

    def f1(threshold):
        hit = [first_below(p, threshold) == k for p, k in zip(scores, first, strict=True)]
        a, b = (
            np.mean([h for h, k in zip(hit, first, strict=True) if (k >= 0) == err]) for err in (True, False)
        )
        return 2 * a * b / (a + b) if a + b else 0.0

    best = best_threshold(scores, first)
    assert f1(best) == pytest.approx(max(f1(t) for t in np.arange(-0.005, 1.02, 0.005)))
    found = evaluate_processbench(rows, scores, rng())
    curve = found.curves["gsm8k"]
    for i in (0, 30, 50, 77, 100):
        assert curve.f1[i] == pytest.approx(f1(curve.threshold[i]))


def test_threshold_of_gsm8k_is_used_on_the_others():
    rows = [*FOUR, labelled(2, [1], "math", "e"), labelled(1, [], "math", "f")]
    found = evaluate_processbench(rows, [*SCORES, np.array([0.9, 0.4]), np.array([0.38])], rng())
    math_rows = found.subsets["math"]
    assert list(found.subsets) == ["gsm8k", "math"]
    assert math_rows.at_half.f1.estimate == 0.0  # .38 is called wrong
    assert math_rows.at_chosen.f1.estimate == 0.0  # .4 is called right
    assert found.average_at_chosen.estimate == pytest.approx(1 / 3)
    assert evaluate_processbench(rows[4:], [np.array([0.9, 0.4]), np.array([0.6])], rng()).threshold is None


def test_auc_is_over_judged_steps():
    # Wrong: .3 and .6; right: .8; .9 .7 .8 .45 .9 (what follows a first error is not judged).
    right = [0.8, 0.9, 0.7, 0.8, 0.45, 0.9]
    wins = sum((p > w) + (p == w) / 2 for p in right for w in (0.3, 0.6))
    assert evaluate_processbench(FOUR, SCORES, rng()).subsets["gsm8k"].auc.estimate == pytest.approx(
        wins / 12
    )


def test_guess():
    """One error in one of two steps: x says no error, (1 - x) / 2 finds it; the best x is found on a grid."""
    grid = np.linspace(0.001, 0.999, 999)
    expected = (2 * (1 - grid) / 2 * grid / ((1 - grid) / 2 + grid)).max()
    assert guess_f1([0, -1], [2, 3]) == pytest.approx(expected, abs=1e-5)
    assert guess_f1([-1], [2]) == 0.0


def test_rows_that_were_too_long_are_counted():
    found = evaluate_processbench([*FOUR, labelled(2, [], problem="e")], [*SCORES, np.zeros(0)], rng())
    assert (found.n, found.too_long) == (4, 1)
    assert ("left out", "1", "longer than the model's context", "") in page_of(found).facts


def test_published_averages():
    """The figures of the subsets have the averages that were published."""
    for p in PROCESSBENCH:
        assert p.average == pytest.approx(np.mean(p.f1), abs=0.051), p.model


def test_the_real_file():
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    rows = read_processbench([DATA])
    assert (len(rows), {r.group for r in rows}, sum(not r.wrong for r in rows)) == (400, {"gsm8k"}, 193)


ROW = {"id": "math-3", "problem": "1 + 1?", "steps": ["a", "b"], "final_answer_correct": True, "label": 1}


def written(tmp_path, *rows):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    return file


def test_a_row(tmp_path):
    (row,) = read_processbench([written(tmp_path, ROW)], "!")
    assert (row.group, row.wrong, row.rollout.prompt, row.rollout.steps) == (
        "math",
        (1,),
        "1 + 1?!",
        ["a!", "b!"],
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"label": 2}, "row 0, field label: must be an integer from -1 to 1, got 2"),
        (ROW | {"label": [0, 1, 1]}, "field label: must be an integer from -1 to 1"),
        (ROW | {"steps": []}, "field steps: there is no step"),
        (
            {"prompt": "a", "completions": ["b"], "labels": [True]},
            "is no row of processbench.* lacks problem",
        ),
        (3, "is no row of processbench"),
    ],
)
def test_bad_rows_of_processbench(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_processbench([written(tmp_path, row)])


def test_empty_files(tmp_path):
    with pytest.raises(UserError, match="holds no row"):
        read_processbench([written(tmp_path)])
    with pytest.raises(UserError, match="holds no row"):
        read_prmbench([written(tmp_path)])


# PRMBench


def test_confusion():
    row = labelled(4, [1, 3])
    assert confusion(row, np.array([0.9, 0.6, 0.2, 0.1])) == (1, 1, 1, 1)
    assert confusion(row, np.array([0.5, 0.49, 0.7, 0.0])) == (2, 0, 0, 2)


def test_prmbench_by_hand():
    rows = [
        labelled(3, [2], "circular", "a"),
        labelled(2, [0], "deception", "b"),
        labelled(2, [], "correct", "a"),
    ]
    found = evaluate_prmbench(
        rows, [np.array([0.9, 0.4, 0.8]), np.array([0.1, 0.6]), np.array([0.1, 0.1])], rng()
    )
    # Without the class correct: tp 2, fp 1, fn 1, tn 1. F1 = 4/6, negative 2/4.
    assert (found.total.n, found.total.n_right, found.total.n_wrong) == (2, 3, 2)
    assert found.total.f1.estimate == pytest.approx(4 / 6)
    assert found.total.negative_f1.estimate == pytest.approx(0.5)
    assert found.total.prm_score.estimate == pytest.approx((4 / 6 + 0.5) / 2)
    assert found.total.accuracy.estimate == pytest.approx(0.6)
    assert list(found.classes) == ["circular", "deception", "correct"]
    assert found.classes["deception"].prm_score.estimate == 1.0
    assert found.classes["correct"].f1.estimate == 0.0
    # Calling all right: F1 = 6/8, negative 0; all wrong: 0 and 4/7.
    assert (found.constant, found.never) == (pytest.approx(3 / 8), pytest.approx(2 / 7))


PRM_ROW = {
    "original_question": "q",
    "modified_question": "q'",
    "modified_process": ["a", "b"],
    "error_steps": [2],
    "classification": "circular",
}


def test_rows_of_prmbench(tmp_path):
    (row,) = read_prmbench([written(tmp_path, PRM_ROW)])
    assert (row.wrong, row.group, row.problem, row.rollout.prompt) == ((1,), "circular", "q", "q'\n")
    with pytest.raises(UserError, match=r"field error_steps\[0\]: must be an integer from 1 to 2, got 3"):
        read_prmbench([written(tmp_path, PRM_ROW | {"error_steps": [3]})])


# Calibration


def rollout(prompt, reward, n_steps=2, labels=None):
    return Rollout(prompt, f"{prompt}\n", ["s\n"] * n_steps, reward, labels=labels)


def test_calibration_by_hand():
    rows = [rollout("a", 1.0), rollout("a", 0.0), rollout("b", 1.0)]
    p = [np.array([0.5, 0.7, 0.9]), np.array([0.5, 0.2, 0.1]), np.array([0.6, 0.8, 1.0])]
    found = evaluate_calibration(rows, p, rng(), "m", "f")
    assert (found.outcomes, found.n_prompts, found.n_solutions, found.overall.n) == ("rewards", 2, 3, 9)
    squares = [0.25, 0.09, 0.01, 0.25, 0.04, 0.01, 0.16, 0.04, 0.0]
    assert found.overall.brier.estimate == pytest.approx(np.mean(squares))
    assert found.by_depth["1"].brier.estimate == pytest.approx((0.09 + 0.04 + 0.04) / 3)
    assert found.by_depth["1"].brier_constant == pytest.approx(2 / 9)
    # Depth 0: .5 and .6 against .5 of the failure, a tie and a win.
    assert found.by_depth["0"].auc.estimate == pytest.approx(0.75)
    assert found.by_depth["2"].auc.estimate == 1.0
    assert found.by_depth["1"].ece == pytest.approx((0.3 + 0.2 + 0.2) / 3)
    # One pair of the same prompt and depth that goes on: .7 against .2.
    assert found.auc_within.estimate == 1.0


def test_labels_are_judgements_of_steps():
    rows = [rollout("a", None, labels=[1.0, None]), rollout("b", None, labels=[0.0, 1.0])]
    found = evaluate_calibration(rows, [np.array([0.5, 0.8, 0.3]), np.array([0.5, 0.4, 0.9])], rng())
    assert (found.outcomes, found.overall.n) == ("step labels", 3)
    assert found.overall.brier.estimate == pytest.approx((0.04 + 0.16 + 0.01) / 3)


def test_nothing_to_compare():
    with pytest.raises(UserError, match="no prefix has both"):
        evaluate_calibration([rollout("a", 1.0)], [np.full(3, math.nan)], rng())


def test_design_effect_of_independent_values_is_1():
    values = np.random.default_rng(2).normal(size=4000)
    assert design_effect(values, np.arange(4000)) == pytest.approx(1.0, abs=1e-9)
    assert design_effect(np.repeat(values[:500], 8), np.repeat(np.arange(500), 8)) == pytest.approx(
        8, rel=0.01
    )
    assert math.isnan(design_effect(np.ones(4), np.arange(4)))


@pytest.mark.parametrize("kind", ["processbench", "prmbench", "calibration"])
def test_pages(tmp_path, kind):
    if kind == "processbench":
        found = evaluate_processbench(FOUR, SCORES, rng(), "a model", "rows.json")
    elif kind == "prmbench":
        found = evaluate_prmbench(FOUR, SCORES, rng(), "a model", "rows.json")
    else:
        rows = [rollout("a", 1.0), rollout("b", 0.0)]
        found = evaluate_calibration(
            rows, [np.array([0.5, 0.7, 0.9]), np.array([0.5, 0.2, 0.1])], rng(), "a model", "rows.json"
        )
    write_evaluation(found, tmp_path)
    values = json.loads((tmp_path / "evaluate.json").read_text())
    assert (values["kind"], values["schema_version"]) == (kind, 1)
    page = (tmp_path / "evaluate.html").read_text()
    assert "a model" in page
    assert page_of(found).lead[:20] in (tmp_path / "evaluate.md").read_text().replace("\\", "")
    assert len(str(summary(found)).splitlines()) >= 5
