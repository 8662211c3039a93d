"""Best-of-n: figures worked out by hand or by listing every subset, and what recordings are refused."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from rmtools.errors import UserError
from rmtools.evaluation.best_of_n import best_of, evaluate_best_of_n, instance_n, sizes, subsets_of, voted
from rmtools.evaluation.recorded import aggregate, read_recorded, root_values, rows_to_score, with_scores
from rmtools.evaluation.report import page_of, summary, write_evaluation
from rmtools.evaluation.shares import share_intervals
from rmtools.sampling.outputs import vote
from rmtools.stats.bootstrap import first_mean

CRUCIBLE = Path(__file__).parents[3] / "shared/data/crucible"
GONE = f"the recordings of {CRUCIBLE} are not here"


def trace(text, correct=False, **others):
    return {"text": text, "correct": correct, **others}


def recording(tmp_path, records, **meta):
    file = tmp_path / "recorded.json"
    file.write_text(json.dumps({"meta": meta, "records": records}))
    return file


@pytest.fixture
def two_problems(tmp_path):
    first = [
        trace("#### 4", True, prm_score=0.2, tokens=10),
        trace("#### 5", False, prm_score=0.9, tokens=20),
        trace("#### 4", True, prm_score=0.4, tokens=30),
    ]
    second = [
        trace("#### 7", False, prm_score=0.1, tokens=10),
        trace("no answer", False, prm_score=0.5, tokens=10),
        trace("#### 8", True, prm_score=0.8, tokens=10),
    ]
    records = [{"problem_id": "a", "traces": first}, {"problem_id": "b", "traces": second}]
    return recording(tmp_path, records, prm="a PRM", prm_aggregate="min")


def test_best_of_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(3)
    score, value = rng.integers(0, 4, 7).astype(float), rng.random(7)
    for n in range(1, 8):
        expected = []
        for chosen in itertools.combinations(range(7), n):
            own = list(chosen)
            best = [i for i in own if score[i] == score[own].max()]
            expected.append(value[best].mean())
        assert best_of(score, value, n) == pytest.approx(np.mean(expected), abs=1e-12)


def test_oracle_is_pass_at_n():
    right = np.array([1.0, 0, 0, 1, 0])
    for n in (1, 2, 3, 4):
        assert best_of(right, right, n) == pytest.approx(1 - math.comb(3, n) / math.comb(5, n))


def test_two_problems_by_hand(two_problems):
    found = evaluate_best_of_n(read_recorded(two_problems), np.random.default_rng(0))
    assert (found.n, found.n_problems, found.aggregate, found.verifier) == (3, 2, "min", "a PRM")
    # At n = 3 the best of a is wrong (.9), of b right (.8); 4 has most votes in a; 7 and 8 tie in b.
    assert found.best_of_n.estimate == pytest.approx(0.5)
    assert found.majority.estimate == pytest.approx((1 + 0.5) / 2)
    # Sums of scores: 4 has .6 and 5 has .9; 8 has .8 and 7 has .1.
    assert found.weighted_majority.estimate == pytest.approx(0.5)
    assert found.oracle.estimate == 1.0
    assert found.pass_at_1.estimate == pytest.approx((2 / 3 + 1 / 3) / 2)
    # At n = 2 in a: the pairs are won by 5, 4 and 5; in b by none, 8 and 8.
    assert found.best_of_n.curve[1].estimate == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert [c.generated_tokens for c in found.curve] == pytest.approx([15, 30, 45])
    assert found.gains["best_of_n - majority"].estimate == pytest.approx(-0.25)
    # N = ceil(log .1 / log(1/3)) = 3 and ceil(log .1 / log(2/3)) = 6, of which there are 3.
    hindsight = found.adaptive[-1]
    assert (hindsight.mean_n, hindsight.capped) == (3.0, 1)


def test_curve_over_n_is_in_the_file(two_problems, tmp_path):
    found = evaluate_best_of_n(read_recorded(two_problems), np.random.default_rng(0))
    write_evaluation(found, tmp_path / "out")
    values = json.loads((tmp_path / "out/evaluate.json").read_text())
    for name in ("best_of_n", "pass_at_1", "oracle"):
        assert values[name].keys() == {"estimate", "low", "high", "curve"}
        assert [point["n"] for point in values[name]["curve"]] == [1, 2, 3]
    assert [point["n"] for point in values["curve"]] == [1, 2, 3]
    page = (tmp_path / "out/evaluate.html").read_text()
    assert page_of(found).lead in page
    assert "<script" not in page
    assert "best of 3" in str(summary(found))


@pytest.mark.parametrize("weighted", [False, True])
def test_votes_agree_with_those_of_the_sampler(weighted):
    rng = np.random.default_rng(1)
    for _ in range(30):
        label = rng.integers(-1, 4, 6)
        weight = rng.random(6) + 0.01
        value = (label == 2).astype(float)
        used = weight if weighted else 1 + 1e-9 * weight  # the sampler breaks ties by weight
        winner = vote([None if a < 0 else str(a) for a in label], np.log(weight), by_weight=weighted)
        expected = 0.0 if winner is None else value[winner]
        assert voted(label, used, value, np.ones((1, 6))) == pytest.approx(expected)


def test_tied_answers_are_chosen_alike_and_flags_of_an_answer_are_averaged():
    label, value = np.array([0, 0, 1, 1, -1]), np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    assert voted(label, np.ones(5), value, np.ones((1, 5))) == pytest.approx((0.5 + 1) / 2)
    assert voted(np.array([-1, -1]), np.ones(2), np.ones(2), np.ones((1, 2))) == 0.0


def test_subsets():
    assert subsets_of(5, 2, np.random.default_rng(0)).shape == (10, 5)
    many = subsets_of(16, 8, np.random.default_rng(0))
    assert len(many) == 256
    assert set(many.sum(axis=1)) == {8.0}
    assert sizes(1) == [1]
    assert sizes(5) == [1, 2, 3, 4, 5]


def test_instance_adaptive_n():
    assert instance_n(np.array([0.5, 0.05, 0.0, 1.0, 0.9]), 0.95).tolist() == [5.0, 59.0, math.inf, 1.0, 2.0]


def test_aggregations_of_step_scores(tmp_path):
    assert aggregate([0.5, 1.0, 0.8]) == pytest.approx(
        {"last": 0.8, "min": 0.5, "product": 0.4, "mean": 2.3 / 3}
    )
    traces = [trace("a\n\nb", True, step_scores=[0.2, 0.9]), trace("c\n\nd", False, step_scores=[0.5, 0.5])]
    file = recording(tmp_path, [{"problem_id": "x", "traces": traces}])
    found = evaluate_best_of_n(read_recorded(file), np.random.default_rng(0))
    assert found.aggregate == "last"
    best = {a: c.best_of_n.estimate for a, c in found.aggregations.items()}
    # last .9 against .5, min .2 against .5, product .18 against .25, mean .55 against .5
    assert best == {"last": 1.0, "min": 0.0, "product": 0.0, "mean": 1.0}
    assert evaluate_best_of_n(read_recorded(file), np.random.default_rng(0), "min").best_of_n.estimate == 0.0


def test_scores_of_a_model_replace_those_of_the_file(tmp_path):
    records = [{"problem_id": "x", "problem": "1 + 1?", "traces": [trace("a\n\nb", True), trace("c", False)]}]
    samples = read_recorded(recording(tmp_path, records))
    rows = rows_to_score(samples, "\n")
    assert [(r.prompt, r.steps) for r in rows] == [("1 + 1?\n", ["a\n\n", "b\n"]), ("1 + 1?\n", ["c\n"])]
    p = [np.array([0.3, 0.5, 0.6]), np.zeros(0)]  # the second is too long
    scored = with_scores(samples, p, "a model")
    assert scored.problems[0].solutions[0].scores == pytest.approx(
        {"last": 0.6, "min": 0.5, "product": 0.3, "mean": 0.55}
    )
    assert scored.problems[0].solutions[1].scores["last"] == 0.0
    assert root_values(samples, p).tolist() == [0.3]


def test_interval_of_problems_that_agree_is_not_a_point():
    found = share_intervals({"all": (np.ones((10, 1)), first_mean)}, np.random.default_rng(0))["all"]
    assert found.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-4)
    assert found.high == 1.0


@pytest.mark.parametrize(("seed", "figures"), [(0, (0.5, 0.365625, 0.7)), (1, (0.525, 0.39375, 0.7))])
def test_published_recordings(seed, figures):
    if not CRUCIBLE.exists():
        pytest.skip(GONE)
    found = evaluate_best_of_n(
        read_recorded(CRUCIBLE / f"math500-bestofn-seed{seed}.json"), np.random.default_rng(0)
    )
    assert (found.best_of_n.estimate, found.pass_at_1.estimate, found.oracle.estimate) == pytest.approx(
        figures
    )
    assert found.aggregate == "mean"
    assert found.best_of_n.low < figures[0] < found.best_of_n.high


def broken(values, *path, put=None):
    """Return a copy of records with one value replaced, or taken away."""
    copy = json.loads(json.dumps(values))
    at = copy
    for key in path[:-1]:
        at = at[key]
    if put is None:
        del at[path[-1]]
    else:
        at[path[-1]] = put
    return copy


RECORDS = [
    {
        "problem_id": "a",
        "traces": [trace("#### 4", True, prm_score=0.2), trace("#### 5", False, prm_score=0.9)],
    }
]


STEPS = {"steps": ["a\n", "b"], "correct": True, "step_scores": [0.5]}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (broken(RECORDS, 0, "traces", 1, "prm_score"), "sample 1 of problem a has no prm_score"),
        (
            broken(RECORDS, 0, "traces", 1, "prm_score", put=1.5),
            r"record 0, field traces\[1\].prm_score: must be in \[0, 1\]",
        ),
        (broken(RECORDS, 0, "traces", put=[]), "problem a has no sample"),
        (broken(RECORDS, 0, "traces", 0, "correct"), "no right answer"),
        (broken(RECORDS, 0, "traces", 0, "text", put="  "), "is empty"),
        (broken(RECORDS, 0, "traces"), "its first row has the fields problem_id"),
        (
            broken(RECORDS, 0, "traces", 0, put=STEPS),
            r"field traces\[0\].step_scores: has 1 scores for 2 steps of problem a",
        ),
        ([], "holds no recorded samples"),
    ],
)
def test_bad_recordings(tmp_path, records, message):
    with pytest.raises(UserError, match=message):
        read_recorded(recording(tmp_path, records))


def test_a_recording_without_questions_cannot_be_scored(two_problems):
    with pytest.raises(UserError, match="does not say what problem a is"):
        rows_to_score(read_recorded(two_problems), "\n")


def test_an_aggregation_needs_scores_of_steps(two_problems):
    with pytest.raises(
        UserError, match="`aggregate` last needs scores of steps, and the recording has only min"
    ):
        evaluate_best_of_n(read_recorded(two_problems), np.random.default_rng(0), "last")


def sampled(**changes):
    sampler = {"algorithm": "importance", "resampling": "none", "pool_size": 1, "mh_steps": 0, "sweeps": 0}
    samples = [
        {
            "steps": ["a\n", "b\n"],
            "log_weight": -0.5,
            "log_value": math.log(0.7),
            "reward": 1.0,
            "answer": "b",
        },
        {"steps": ["c\n"], "log_weight": None, "log_value": None, "reward": 0.0, "answer": None},
    ]
    record = {
        "schema_version": 2,
        "sampler": sampler,
        "prompt": "q\n",
        "terminal": "model",
        "samples": samples,
    }
    return (
        record
        | {"cost": {"policy_tokens": 12.0, "value_tokens": 9.0, "flops": 4.0, "seconds": 1.5}}
        | changes
    )


def test_records_of_the_sampler(tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps(sampled()) + "\n")
    samples = read_recorded(file)
    assert samples.problems[0].solutions[0].scores == pytest.approx({"last": 0.7})
    assert samples.problems[0].solutions[1].scores == {"last": 0.0}
    assert (samples.problems[0].solutions[0].tokens, samples.value_tokens, samples.flops) == (6.0, 9.0, 4.0)
    found = evaluate_best_of_n(samples, np.random.default_rng(0))
    assert found.best_of_n.estimate == 1.0
    assert found.pass_at_1.estimate == 0.5
    assert [r.prompt for r in rows_to_score(samples, "!")] == ["q\n", "q\n"]  # seen by a model already


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampler": {"algorithm": "smc", "resampling": "systematic", "ess_threshold": 0.5}},
            "are not independent",
        ),
        ({"sampler": {"resampling": "none", "mh_steps": 2}}, "are not independent"),
        ({"samples": [{"steps": ["a"], "log_weight": 0.0, "log_value": -1.0}]}, "were not verified"),
        ({"schema_version": 1}, "no record of this release"),
    ],
)
def test_bad_records_of_the_sampler(tmp_path, changes, message):
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps(sampled(**changes)) + "\n")
    with pytest.raises(UserError, match=message):
        read_recorded(file)


def test_values_of_a_verifier_are_no_scores(tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps(sampled(terminal="verifier")) + "\n")
    found = evaluate_best_of_n(read_recorded(file), np.random.default_rng(0))
    assert found.best_of_n is None
    assert found.majority.estimate == 1.0


def test_rows_of_a_best_of_n_set(tmp_path):
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "2 + 2?", "answers": ["So.\n\n#### 4", "#### 5"], "label": [1, 0]}
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "label": [0, 1]}))
    found = read_recorded(file)
    assert [[(s.right, s.answer) for s in p.solutions] for p in found.problems] == [
        [(1.0, "4"), (0.0, "5")],
        [(0.0, "4"), (1.0, "5")],
    ]
    assert [p.prompt for p in found.problems] == ["2 + 2?", "2 + 2?"]
    assert found.problems[0].solutions[0].steps == ("So.\n\n", "#### 4")
    file.write_text(json.dumps({**row, "label": [1]}))
    with pytest.raises(UserError, match="field traces: is missing"):
        read_recorded(file)
