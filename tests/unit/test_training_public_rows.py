"""Rows of public files in `rmtools train`: the same choices as in `rmtools convert`."""

import json

import pytest

from rmtools.errors import UserError
from rmtools.training.config import DataArguments
from rmtools.training.run import load_data

ROW = {"q": "1 + 1?", "parts": ["One.", "Two."], "marks": ["+", "-"]}
MAP = "prompt=q,steps=parts,labels=marks"


def test_a_published_file_with_odd_rows(tmp_path, caplog):
    for split in ("train", "test"):
        lines = [json.dumps({**ROW, "q": f"{split} {i}?"}) for i in range(3)]
        (tmp_path / f"{split}.jsonl").write_text(
            "\n".join([*lines, "null", json.dumps({**ROW, "marks": ["+"]})])
        )
    given = {"train_rollouts": str(tmp_path), "map": MAP, "split": "train"}
    with pytest.raises(UserError, match="2 of the 5 rows read are bad: 1 is no object, 1 field marks"):
        load_data(DataArguments(**given))
    rows, held_out = load_data(DataArguments(**given, skip_bad=True, eval_split="test"))
    assert [r.prompt for r in rows] == ["train 0?\n", "train 1?\n", "train 2?\n"]
    assert [r.prompt for r in held_out] == ["test 0?\n", "test 1?\n", "test 2?\n"]
    assert "1: row breaks the format: is no object" in caplog.text
    with pytest.raises(UserError, match="eval_split and eval_share both"):
        load_data(DataArguments(**given, skip_bad=True, eval_split="test", eval_share=0.5))


def test_filters_and_steps(tmp_path):
    """Rows of prm800k that were set aside are left out; where the first step begins can be said."""
    step = {"completions": [{"text": "a", "rating": 0}], "human_completion": None, "chosen_completion": 0}
    rows = [
        {"question": {"problem": "Q?"}, "label": {"steps": [step], "finish_reason": f}}
        for f in ("solution", "bad_problem")
    ]
    file = tmp_path / "prm800k.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [r.labels for r in load_data(DataArguments(train_rollouts=str(file)))[0]] == [[1.0]]
    kept = DataArguments(train_rollouts=str(file), keep_excluded=True, neutral="negative")
    assert [r.labels for r in load_data(kept)[0]] == [[0.0], [0.0]]
    file.write_text(json.dumps({"input": "Q? step 1: a ки\nstep 2: b ки", "value": [1, 0]}))
    found = load_data(DataArguments(train_rollouts=str(file), first_step="step 1:"))[0]
    assert found[0].steps == ["step 1: a\n", "step 2: b\n"]
