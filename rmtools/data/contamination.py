r"""Prompts that training and evaluation share, by hashes that a checkpoint keeps: exact, and with white space normalised.

>>> from rmtools.data.rollouts import Rollout
>>> seen = [Rollout("a", "1 + 1?\n", ["2\n"], 1.0), Rollout("b", "2 + 2?\n", ["4\n"], 1.0)]
>>> audited = [Rollout("a", "1 + 1?\n", ["3\n"], 0.0), Rollout("c", "2  + 2?", ["4\n"], 1.0), Rollout("d", "5?", ["5"], 1.0)]
>>> shared_prompts(audited, prompt_hashes(seen))
SharedPrompts(exact=1, normalised=2, prompts=3)
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rmtools.data.rollouts import Rollout

DIGITS = 12
"""Of a hash: among a million prompts two different ones share it with a chance of .2%."""


class SharedPrompts(NamedTuple):
    """How many of the distinct ``prompts`` were seen: to the letter, and up to white space (those to the letter included)."""

    exact: int
    normalised: int
    prompts: int


def prompt_hashes(rows: Sequence[Rollout]) -> dict[str, list[str]]:
    """Return the hashes of the distinct questions of rows, sorted: ``exact`` and ``normalised``."""
    questions = _questions(rows)
    return {
        "exact": sorted({_hash(q) for q in questions}),
        "normalised": sorted({_hash(_normalised(q)) for q in questions}),
    }


def shared_prompts(rows: Sequence[Rollout], known: Mapping[str, Sequence[str]]) -> SharedPrompts:
    """Return how many distinct questions of rows are among those whose hashes are ``known``."""
    questions, exact, normalised = _questions(rows), set(known["exact"]), set(known["normalised"])
    return SharedPrompts(
        sum(_hash(q) in exact for q in questions),
        sum(_hash(_normalised(q)) in normalised for q in questions),
        len(questions),
    )


def _questions(rows: Sequence[Rollout]) -> set[str]:
    """Return the distinct questions: what a prompt format adds is the same for all."""
    return {row.question or row.prompt for row in rows}


def _normalised(text: str) -> str:
    return " ".join(text.split())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
