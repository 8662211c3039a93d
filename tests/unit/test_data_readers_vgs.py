"""Roll-ins and roll-outs of value-guided search: token ids, read with a tokenizer made here."""

import json

import pytest

from rmtools.data.readers import Options, read_public
from rmtools.data.readers.outcomes import ASSISTANT
from rmtools.data.rollouts import Child
from rmtools.errors import UserError
from rmtools.lm.tokenizers import word_tokenizer

WORDS = ["How ", "many? ", f"{ASSISTANT} ", "<think> ", "Two ", "so ", "three ", "\n"]


@pytest.fixture
def tokenizer(tmp_path):
    made = word_tokenizer(WORDS)
    made.save_pretrained(tmp_path / "tokenizer")
    return made


@pytest.fixture
def row(tokenizer):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    head = [tokenizer.bos_token_id, *ids(f"How many? {ASSISTANT} <think> \n")]
    return {
        "message_id": "m",
        "problem": "How many?",
        "answer": "2",
        "processed_answer": "2",
        "reward": [1, 0, 0],
        "roll_in_ids": [[*head, *ids("Two \n\nso ")]] * 3,
        "roll_outs_ids": [[*ids(s), tokenizer.eos_token_id] for s in ("Two ", "\n\nthree ", "Two so ")],
        "labels": [1, 0, 2],
    }


@pytest.fixture
def read(tmp_path):
    def start(row, **how):
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps(row))
        return list(read_public(file, "vgs", Options(**how)))

    return start


def test_pairs_with_one_roll_in_are_continuations_of_one_prefix(read, row, tmp_path):
    """The first is the trajectory; the others are children and completions where the roll-in ends, which ends a step."""
    (found,) = read(row, tokenizer=str(tmp_path / "tokenizer"))
    assert found.prompt == f"How many? {ASSISTANT}\n"
    assert (found.steps, found.reward) == ([" <think> \nTwo \n\n", "so ", "Two <eos>\n"], 1.0)
    assert found.children == [
        [],
        [],
        [Child("\n\nthree <eos>\n", True, 0.0), Child("Two so <eos>\n", True, 0.0)],
    ]
    assert found.completions == [[], [], [0.0, 0.0]]
    assert (found.reference, found.labels) == ("2", None)


def test_distinct_roll_ins_are_rows_of_their_own(read, row, tokenizer, tmp_path):
    longer = [*row["roll_in_ids"][0], *tokenizer("three \n\n", add_special_tokens=False)["input_ids"]]
    heads = [row["roll_in_ids"][0], longer, row["roll_in_ids"][0]]
    first, second = read({**row, "roll_in_ids": heads}, tokenizer=str(tmp_path / "tokenizer"))
    assert [len(at) for at in first.children] == [0, 0, 1]
    assert (second.children, second.completions, second.reward) == ([], [], 0.0)
    assert second.steps == [" <think> \nTwo \n\n", "so three \n\n", "\n\nthree <eos>\n"]


def test_roll_ins_without_text_branch_at_the_prompt(read, row, tokenizer, tmp_path):
    head = [
        tokenizer.bos_token_id,
        *tokenizer(f"How many? {ASSISTANT} ", add_special_tokens=False)["input_ids"],
    ]
    (found,) = read({**row, "roll_in_ids": [head] * 3}, tokenizer=str(tmp_path / "tokenizer"))
    assert found.steps == [" Two <eos>\n"]
    assert [c.text for c in found.children[0]] == [" \n\nthree <eos>\n", " Two so <eos>\n"]


def test_bad_rows(read, row, tmp_path):
    folder = str(tmp_path / "tokenizer")
    for change, words in (
        ({"labels": [1, 0]}, "labels: has 2 for 3 roll-ins and 3 roll-outs"),
        ({"labels": [1, 0, 3]}, r"labels\[2\]: must be an integer from 0 to 2"),
        ({"roll_in_ids": [["a"]] * 3}, r"roll_in_ids\[0\]\[0\]: must be a token id"),
        ({"roll_in_ids": [[7]] * 3}, "wrong tokenizer"),
        ({"roll_outs_ids": None}, "roll_outs_ids: must be a list"),
    ):
        with pytest.raises(UserError, match=words):
            read({**row, **change}, tokenizer=folder)


def test_without_a_tokenizer(read, row):
    with pytest.raises(UserError, match="no tokenizer"):
        read(row)
    with pytest.raises(UserError, match="/nowhere"):
        read(row, tokenizer="/nowhere")
