"""Prompts files: what is read, what is refused, and how answers reach the task."""

import json

import numpy as np
import pytest

from rmtools.data.prompts import (
    Prompt,
    check_prompts,
    enter_prompts,
    load_prompts,
    prompts_from,
    prompts_text,
    read_prompt,
)
from rmtools.data.tasks import AnswerTask, CallableTask, Crossing, load_task
from rmtools.errors import UserError
from rmtools.lm.prompt_format import AskedFormat


def texts(path, task=None):
    """Return the prompts of a file as they stand, with their answers in ``task``."""
    given = load_prompts(path, "\n" if task is None else task.delimiter)
    return enter_prompts(given, task, AskedFormat(), None, source=str(path))[0]


def test_prompts_file_round_trip(tmp_path):
    found = Crossing(4).prompts(5, np.random.default_rng(0))[0]
    (tmp_path / "p.jsonl").write_text(prompts_text(found))
    assert texts(tmp_path / "p.jsonl") == found
    given, removed = prompts_from(str(tmp_path / "p.jsonl"), Crossing(4), np.random.default_rng(0))
    assert ([p.text for p in given], removed) == (found, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_number_draws_prompts():
    found, removed = prompts_from("7", Crossing(4), np.random.default_rng(0))
    assert ([p.text for p in found], removed) == Crossing(4).prompts(7, np.random.default_rng(0))
    for wrong in ("0", "-3"):
        with pytest.raises(UserError, match="at least 1"):
            prompts_from(wrong, Crossing(4), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "line 2 is not valid JSON"),
        ('{"prompt": "a"}\n\n\n[1]\n', "line 4 has no text"),
        ('{"prompt": "\\ud800"}\n', "line 1 is not valid JSON.*half a surrogate pair"),
        ("[" * 100_000, "line 1 is not valid JSON"),
        ('{"prompt": "a", "answer": ' + "1" * 5000 + "}", "line 1 is not valid JSON.*digits"),
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
        texts(path)


def test_a_line_separator_inside_a_prompt_does_not_shift_lines(tmp_path):
    """JSON allows U+2028 in a string: only newlines end a line."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\u2028b"}\n{"prompt": "c"}\n', encoding="utf-8")
    assert texts(path) == ["a\u2028b", "c"]


def test_unreadable_prompts_files(tmp_path):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            texts(path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(UserError, match="cannot be read"):
        texts(tmp_path / "latin.jsonl")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "6*7="}, Prompt("6*7=")),
        ({"prompt": "6*7=", "answer": None}, Prompt("6*7=")),
        ({"prompt": "6*7=", "answer": " 42 "}, Prompt("6*7=", "42")),
        ({"prompt": "6*7=", "answer": 42}, Prompt("6*7=", "42")),
        ({"prompt_id": "a", "prompt": "6*7=", "answer": 0.5}, Prompt("6*7=", "0.5")),
        ({"question": "6*7? ", "answer": "It is <<6*7=42>>42\n#### 42"}, Prompt("6*7?|", "42")),
        ({"problem": "6*7?", "solution": "\\boxed{42}", "answer": "\\frac12"}, Prompt("6*7?|", "\\frac12")),
        ({"prompt": "p", "question": "q", "answer": "1"}, Prompt("p", "1")),
        ({"prompt": None, "messages": None, "question": "q"}, Prompt("q|")),
        ({"problem": "6*7?", "solution": "It is \\boxed{\\frac{84}{2}}."}, Prompt("6*7?|", "\\frac{84}{2}")),
        ({"problem": "6*7?", "solution": "It is 42."}, Prompt("6*7?|")),
        ({"prompt": "p", "reward_model": {"style": "rule", "ground_truth": 42}}, Prompt("p", "42")),
    ],
)
def test_rows(row, prompt):
    assert read_prompt(row, "f, line 1", "|") == prompt


@pytest.mark.parametrize("answer", [True, [42], {"value": 42}])
def test_answers_of_another_kind(answer):
    with pytest.raises(UserError, match='f, line 3: the field "answer" is no text or number'):
        read_prompt({"prompt": "a", "answer": answer}, "f, line 3")


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n', encoding="utf-8-sig")
    assert texts(path) == ["a"]


def test_the_task_is_told_the_answers(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "6*7?", "answer": "42"}\n{"question": "why?"}\n')
    for task in (load_task("gsm8k"), CallableTask(lambda p, s, reference: 1.0)):
        assert texts(path, task) == ["6*7?\n", "why?\n"]
        assert task.reference("6*7?\n") == "42"
        assert task.reference("why?\n") is None
    assert texts(path, load_task("math")) == ["6*7?\n\n", "why?\n\n"]
    assert texts(path, Crossing(2)) == ["6*7?\n", "why?\n"]


def test_two_answers_to_one_prompt(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "a", "answer": 1}\n{"prompt": "a"}\n')
    assert texts(path, AnswerTask()) == ["a", "a", "a"]
    path.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "a", "answer": "2"}\n')
    with pytest.raises(UserError, match="prompt 'a': '1' and '2'"):
        texts(path, AnswerTask())


def test_prompts_are_checked_before_any_work(policy, prompts):
    check_prompts(prompts, Crossing(3), policy)
    with pytest.raises(UserError, match="reference answer"):
        check_prompts(prompts, AnswerTask({prompts[0]: "1"}), policy)

    def broken(prompt, steps, reference):
        raise AssertionError

    check_prompts(prompts, CallableTask(broken), policy)  # only finished solutions are its business


def test_prompts_in_tables_and_arrays(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": "6*7?", "answer": "#### 42"}, {"question": "why?", "answer": None}]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    said = [{"prompt": [{"role": "user", "content": "6*7?"}], "reward_model": {"ground_truth": "42"}}]
    pq.write_table(pa.Table.from_pylist(said), tmp_path / "verl.parquet")
    for name in ("p.json", "p.parquet"):
        assert load_prompts(tmp_path / name) == [Prompt("6*7?\n", "42"), Prompt("why?\n")]
    assert load_prompts(tmp_path / "verl.parquet") == [Prompt("6*7?\n", "42", (("user", "6*7?"),))]
    (tmp_path / "bad.json").write_text(json.dumps([rows[0], {"text": "a"}]))
    with pytest.raises(UserError, match=r"bad.json, row 1 has no text field"):
        load_prompts(tmp_path / "bad.json")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:100])
    with pytest.raises(UserError, match=r"cut.parquet cannot be read"):
        load_prompts(tmp_path / "cut.parquet")


def test_prompts_of_compressed_files_and_of_the_hub(tmp_path, monkeypatch):
    import gzip

    import datasets

    line = {"question": "1+1?", "answer": "It is 2\n#### 2"}
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(json.dumps(line).encode()))
    datasets.Dataset.from_list([line]).to_csv(tmp_path / "p.csv")
    asked = []

    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([line])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("p.jsonl.gz", "p.csv", "openai/gsm8k/main:test"):
        assert load_prompts(name) == [Prompt("1+1?\n", "2")]
    assert asked == [("openai/gsm8k", "main", "test")]
