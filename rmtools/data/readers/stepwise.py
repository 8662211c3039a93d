"""Formats with a list of steps and something said of each: trl, processbench, prmbench, rlhflow."""

from collections.abc import Iterator
from typing import Any

from rmtools.data.readers.question import split_question
from rmtools.data.readers.row import (
    Dropped,
    Format,
    Options,
    Row,
    RowError,
    get,
    index,
    items,
    labels,
    rollout,
    shown,
    text,
    texts,
)
from rmtools.data.rollouts import Rollout

SIGNS = {"+": 1.0, "-": 0.0}
"""The labels of rlhflow and math-shepherd."""


def trl(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read a row of trl's stepwise supervision: prompt, completions, labels (hard, soft or null)."""
    prompt, steps = text(get(row, "prompt"), "prompt"), texts(get(row, "completions"), "completions")
    yield rollout(options, prompt, steps, labels=labels(get(row, "labels"), "labels", steps))


def processbench(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read a row of ProcessBench (arXiv 2412.06559): steps after the first wrong one are not judged there."""
    steps = texts(get(row, "steps"), "steps")
    first = index(get(row, "label"), "label", -1, len(steps) - 1)
    right = get(row, "final_answer_correct")
    if not isinstance(right, bool):
        raise RowError("final_answer_correct", f"must be true or false, got {shown(right)}")
    judged: list[float | None] = [1.0] * len(steps)
    if first >= 0:
        judged = [1.0] * first + [0.0] + [None] * (len(steps) - first - 1)
    yield rollout(options, text(get(row, "problem"), "problem"), steps, reward=float(right), labels=judged)


def prmbench(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read the modified process of a row of PRMBench (arXiv 2501.03124); its error steps are counted from 1."""
    question = text(get(row, "modified_question"), "modified_question")
    steps = texts(get(row, "modified_process"), "modified_process")
    wrong = {
        index(x, f"error_steps[{i}]", 1, len(steps))
        for i, x in enumerate(items(get(row, "error_steps"), "error_steps"))
    }
    yield rollout(options, question, steps, labels=[float(t not in wrong) for t in range(1, len(steps) + 1)])


def rlhflow(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read a conversation of RLHFlow: a user turn is a step (the first: question and step), the answer + or -."""
    turns = items(get(row, "conversations"), "conversations")
    if not turns or len(turns) % 2:
        raise RowError(
            "conversations", f"has {len(turns)} turns: it must alternate user (step) and assistant (+ or -)"
        )
    said = [turn(x, t, ("user", "assistant")[t % 2]) for t, x in enumerate(turns)]
    for t, sign in enumerate(said[1::2]):
        if sign.strip() not in SIGNS:
            raise RowError(f"conversations[{2 * t + 1}].content", f"must be + or -, got {shown(sign)}")
    question, first = split_question(said[0], "conversations[0].content", options)
    judged = [SIGNS[s.strip()] for s in said[1::2]]
    yield rollout(options, question, [first, *said[2::2]], labels=judged)


def turn(value: Any, t: int, role: str) -> str:
    """Return what is said in turn ``t``, which must be ``role``'s."""
    field = f"conversations[{t}]"
    if get(value, "role") != role:
        raise RowError(f"{field}.role", f"must be {role}, got {shown(value['role'])}")
    return text(get(value, "content"), f"{field}.content")


FORMATS = {
    "trl": Format({"prompt": str, "completions": list, "labels": list}, trl),
    "rlhflow": Format({"conversations": list}, rlhflow),
    "processbench": Format(
        {"problem": str, "steps": list, "final_answer_correct": bool, "label": int}, processbench
    ),
    "prmbench": Format({"modified_question": str, "modified_process": list, "error_steps": list}, prmbench),
}
