"""The answer checker on public data: real model rollouts with known outcomes, and references against themselves."""

import json
from pathlib import Path

import pytest

from rmtools.data.prompts import load_prompts
from rmtools.data.tasks import AnswerChecker, final_answer

DATA = Path(__file__).parents[3] / "shared" / "data"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the public data files are not at {DATA}")


def rows(name):
    return [json.loads(x) for x in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_verdicts_on_model_solutions():
    checker = AnswerChecker()
    found = [
        checker.right(final_answer(row["ground_truth"]), final_answer(row[m]["solution"]))
        == row[m]["is_correct"]
        for row in rows("gsm8k/example_model_solutions.jsonl")
        for m in MODELS
    ]
    assert len(found) == 5276
    assert all(found)  # at least 99% was asked for
    assert checker.timeouts == 0


@pytest.mark.parametrize(("name", "n"), [("train", 7473), ("test", 1319)])
def test_gsm8k_references(name, n):
    checker = AnswerChecker()
    prompts = load_prompts(DATA / f"gsm8k/{name}.jsonl")
    assert len(prompts) == n
    for row, prompt in zip(rows(f"gsm8k/{name}.jsonl"), prompts, strict=True):
        assert prompt.text == row["question"].strip() + "\n"
        assert checker.right(prompt.reference, final_answer(row["answer"]))


def test_math500_references():
    checker = AnswerChecker()
    prompts = load_prompts(DATA / "math500/test500.jsonl", "\n\n")
    assert len(prompts) == 500
    for row, prompt in zip(rows("math500/test500.jsonl"), prompts, strict=True):
        assert prompt.text == row["problem"].strip() + "\n\n"
        assert checker.right(prompt.reference, final_answer(row["solution"]))
