"""Roll-ins and roll-outs of value-guided search: token ids, read with a tokenizer made here."""

import json

import numpy as np
import pytest

from rmtools.adapters.prefix_scoring import advance_prefixes, answer_text, score_trees, start_prefixes
from rmtools.auditing import audit
from rmtools.core import Tilt
from rmtools.data.load import load_rollouts
from rmtools.data.readers import Options, read_public
from rmtools.data.readers.outcomes import ASSISTANT
from rmtools.data.rollouts import Child
from rmtools.errors import UserError
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.tokenizers import bpe_tokenizer, word_tokenizer

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


class ByWords:
    """A reward model without weights: .5 but for solutions that end with a word it knows."""

    name, is_probability = "by words", True

    def __init__(self, steps):
        self.steps, self.tilt = steps, Tilt(0.01)

    def log_values(self, prompts, prefixes):
        texts = (answer_text(self.steps, steps).split() for steps in prefixes)
        return np.log([{"Two": 0.9, "three": 0.6}.get((words or [""])[-1], 0.5) for words in texts])

    def score(self, trees, progress=None):
        return score_trees(trees, self.steps, self.log_values, progress)

    def start(self, prompts):
        return start_prefixes(prompts, self.steps, self.log_values)

    def advance(self, state, tokens):
        return advance_prefixes(state, tokens, self.log_values)


def test_an_audit_of_public_data_has_a_bellman_error(row, tmp_path):
    """Ratios 1.8, 1.2 and 1.2 at every branched prefix: the mean of (r_i - 1)(r_j - 1) over pairs is .12."""
    tokenizer = bpe_tokenizer([f"How {ASSISTANT} so Two three"], 300)
    tokenizer.save_pretrained(tmp_path / "closed")

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    outs = [[*ids(f"{word} \n\nso "), tokenizer.eos_token_id] for word in ("Two", "three", "three")]
    given = []
    for i in range(6):
        head = [tokenizer.bos_token_id, *ids("How " * (i + 1) + f"{ASSISTANT}so \n\n")]
        given.append({**row, "roll_in_ids": [head] * 3, "roll_outs_ids": outs, "labels": [i % 2, 0, 2]})
    options = Options(tokenizer=str(tmp_path / "closed"))
    rollouts = load_rollouts(given, "vgs", options=options)
    assert (len(rollouts), [len(at) for at in rollouts[0].children]) == (6, [0, 2, 0])
    report = audit(rollouts, ByWords(StepTokenizer(tokenizer, StepSettings("\n", 3))))
    sampled = report.model.error.sampled
    assert sampled.counts.n_resolved == 6
    assert sampled.ratio_error.mean_square.estimate == pytest.approx(0.12)
