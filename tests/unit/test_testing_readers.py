"""The contract of readers (rmtools.testing): every implementation keeps it, and every law is broken by one made for it."""

import copy
from dataclasses import replace

import pytest
from test_data_readers import ROWS
from test_data_readers_prm800k import PHASE2

from rmtools.data.readers import READERS
from rmtools.data.readers.outcomes import ASSISTANT
from rmtools.data.readers.row import Dropped, Options, public_format, rollout
from rmtools.lm.tokenizers import word_tokenizer
from rmtools.testing import check_reader

HELD = {
    "trl": ["One and one.", "Two."],
    "math-shepherd": ["She has 2.", "The answer is: 2"],
    "steps": ["a", "b"],
    "judged-steps": ["a", "b"],
    "versaprm": ["a", "b"],
    "openrlhf": ["Two.", "Three."],
    "math-aps": ["Two.", "Three."],
    "best-of-n": ["a", "b", "c"],
    "er-prm": ["Two.", "Three."],
    "rlhflow": ["Two.", "Three."],
    "processbench": ["a", "b\n\nc", "d"],
    "prmbench": ["a", "b", "c"],
    "rollouts": ["a", "b", "c"],
    "gsm8k": ["Half of 4 is", "1,002"],
    "gsm8k-solutions": ["It is 3.", "It is 2."],
    "omegaprm": ["a", "b", "e"],
    "prm800k": ["a", "b", "c"],
}


@pytest.mark.parametrize("name", [n for n in READERS if n != "vgs"])
def test_readers_keep_the_contract(name):
    row = PHASE2 if name == "prm800k" else ROWS[name]
    check_reader(READERS[name], [row, copy.deepcopy(row)], steps=[HELD[name]] * 2)


def test_the_reader_of_token_ids_keeps_the_contract(tmp_path):
    words = word_tokenizer(["How ", "many? ", f"{ASSISTANT} ", "Two ", "so ", "three ", "\n"])
    words.save_pretrained(tmp_path)
    ids = [
        words(text, add_special_tokens=False)["input_ids"]
        for text in (f"How many? {ASSISTANT} \nTwo \n", "so \n", "three \n")
    ]
    row = {"problem": "How many?", "roll_in_ids": [ids[0]] * 2, "roll_outs_ids": ids[1:], "labels": [1, 0]}
    check_reader(READERS["vgs"], [row], options=Options(tokenizer=str(tmp_path)))


def form(read):
    return public_format("mine", prompt=str, parts=list, right=bool)(read)


def right(row, options):
    yield rollout(options, row["prompt"].text(), row["parts"].texts(), reward=float(row["right"].flag()))


def loses(row, options):
    if row["right"].flag():
        yield from right(row, options)


def turns(row, options):
    yield from right(type(row)({**row.value, "parts": row.value["parts"][::-1]}), options)


def drops_one(row, options):
    yield from right(type(row)({**row.value, "parts": row.value["parts"][1:]}), options)


def eats(row, options):
    yield from right(row, options)
    row.value["parts"].pop()


def overrates(row, options):
    for found in right(row, options):
        yield replace(found, reward=7.0)


def crashes(row, options):
    yield rollout(options, row.value["prompt"], row["parts"].texts(), reward=float(row["right"].flag()))


def forgives(row, options):
    yield from right(type(row)({"right": True, **row.value}), options)


def counts(row, options, seen=[]):  # noqa: B006 - the fault
    seen.append(row)
    yield replace(next(right(row, options)), reference=str(len(seen)))


MINE = [
    {"prompt": "1 + 1?", "parts": ["One and one.", "Two."], "right": True},
    {"prompt": "1 + 2?", "parts": ["One and two.", "Four.", "No."], "right": False},
]


@pytest.mark.parametrize(
    ("read", "law"),
    [
        (loses, "never lost in silence"),
        (turns, "keep their order"),
        (drops_one, "keep their order"),
        (eats, "leaves its rows"),
        (overrates, "rollouts are valid"),
        (crashes, "refused with RowError, got KeyError"),
        (forgives, "refused with RowError, and was read"),
        (counts, "whatever was read before"),
    ],
)
def test_broken_readers_are_caught(read, law):
    steps = [row["parts"] for row in MINE]
    check_reader(form(right), MINE, steps=steps)
    with pytest.raises(AssertionError, match=law):
        check_reader(form(read), copy.deepcopy(MINE), steps=steps)


def test_what_is_dropped_may_be_said_and_what_is_kept_expected():
    def says(row, options):
        found = next(right(row, options))
        yield found if row["right"].flag() else Dropped("not right")

    def flips(row, options):
        found = next(right(row, options))
        yield replace(found, reward=1 - found.reward)

    check_reader(form(says), MINE, rewards=[[1.0], []])
    check_reader(form(right), MINE, rewards=[[1.0], [0.0]])
    for read in (says, flips):
        with pytest.raises(AssertionError, match="has rollouts of rewards"):
            check_reader(form(read), MINE, rewards=[[1.0], [0.0]])
