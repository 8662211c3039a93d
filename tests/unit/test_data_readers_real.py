"""The real files beside the project (../shared/data): every row is read, and the counts are the published ones."""

import json
from pathlib import Path

import pytest

from rmtools.data.readers import Tally, read_public

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data files are not at {DATA}")


def read(name, **how):
    tally = Tally()
    found = list(read_public(DATA / name, tally=tally, **how))
    assert not tally.dropped
    assert all(r.prompt.endswith("\n") and s.endswith("\n") and s.strip() for r in found for s in r.steps)
    return found, tally


def lines(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "rows"), [("train", 7473), ("test", 1319)])
def test_gsm8k(name, rows):
    found, tally = read(f"gsm8k/{name}.jsonl")
    assert (tally.format, tally.rows, len(found)) == ("gsm8k", rows, rows)
    for rollout, row in zip(found, lines(f"gsm8k/{name}.jsonl"), strict=True):
        assert "".join(rollout.steps).removesuffix("\n") == row["answer"].removesuffix("\n")
        assert rollout.prompt.removesuffix("\n") == row["question"].removesuffix("\n")
        assert rollout.steps[-1] == f"#### {rollout.reference}\n"
        assert rollout.reward == 1.0
    assert sum("<<" in s for r in found for s in r.steps) > rows


def test_gsm8k_model_solutions():
    found, tally = read("gsm8k/example_model_solutions.jsonl")
    assert (tally.format, tally.rows, len(found)) == ("gsm8k-solutions", 1319, 5276)
    assert len({r.prompt_id for r in found}) == 1319
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    pairs = [(row, row[m]) for row in lines("gsm8k/example_model_solutions.jsonl") for m in models]
    for rollout, (row, model) in zip(found, pairs, strict=True):
        assert "".join(rollout.steps).removesuffix("\n") == model["solution"].removesuffix("\n")
        assert rollout.reward == float(model["is_correct"])
        assert row["ground_truth"].endswith(f"A: {rollout.reference}")


def test_processbench():
    found, tally = read("processbench/gsm8k.json")
    assert (tally.format, len(found)) == ("processbench", 400)
    rows = json.loads((DATA / "processbench/gsm8k.json").read_text(encoding="utf-8"))
    right = 0
    for rollout, row in zip(found, rows, strict=True):
        assert [s.removesuffix("\n") for s in rollout.steps] == [s.removesuffix("\n") for s in row["steps"]]
        first = row["label"]
        right += first == -1
        assert rollout.labels.count(0.0) == (first >= 0)
        assert rollout.labels.count(1.0) == (first if first >= 0 else len(row["steps"]))
        assert first < 0 or rollout.labels[first] == 0.0
        assert rollout.reward == float(row["final_answer_correct"])
    assert right == 193
    assert sum(x is not None for r in found for x in r.labels) == 1568


def test_a_file_of_another_kind_is_not_guessed():
    with pytest.raises(
        ValueError, match="the format is not known: rows with the fields answer, level, problem"
    ):
        read("math500/test500.jsonl")
