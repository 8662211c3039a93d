"""Formats with whole solutions whose outcome is known: gsm8k, gsm8k-solutions, rollouts."""

from collections.abc import Iterator
from typing import Any

from rmtools.data.readers.row import (
    Dropped,
    Format,
    Options,
    Row,
    RowError,
    get,
    items,
    reference,
    rollout,
    shown,
    text,
    texts,
    unit,
)
from rmtools.data.rollouts import Rollout
from rmtools.data.segment import segment


def cut(solution: str, options: Options, default: str) -> list[str]:
    """Return the steps of a whole solution."""
    return segment(solution, options.segment or default)


def gsm8k(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read a question of GSM8K (arXiv 2110.14168) with its reference solution, a right one by definition."""
    question, answer = text(get(row, "question"), "question"), text(get(row, "answer"), "answer")
    final = after(answer, "####", "answer")
    yield rollout(options, question, cut(answer, options, "newline"), reward=1.0, reference=final)


def gsm8k_solutions(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read a row of GSM8K's model solutions: one trajectory for each model, its outcome ``is_correct``."""
    question = text(get(row, "question"), "question")
    final = after(text(get(row, "ground_truth"), "ground_truth"), "A:", "ground_truth")
    models = [name for name, value in row.items() if isinstance(value, dict)]
    if not models:
        raise RowError("is_correct", "is in no field of the row: there is no model's solution")
    for name in models:
        right = get(row[name], "is_correct")
        if not isinstance(right, bool):
            raise RowError(f"{name}.is_correct", f"must be true or false, got {shown(right)}")
        solution = text(get(row[name], "solution"), f"{name}.solution")
        steps = cut(solution, options, "newline")
        yield rollout(options, question, steps, reward=float(right), reference=final)


def after(solution: str, mark: str, field: str) -> str:
    """Return what the last line says behind ``mark``: the final answer."""
    line = solution.rstrip().rsplit("\n", 1)[-1]
    if not line.startswith(mark) or not line.removeprefix(mark).strip():
        raise RowError(field, f"has no final answer behind {mark} in its last line {shown(line)}")
    return line.removeprefix(mark).strip()


def rollouts(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read several solutions of one prompt with their outcomes; ``steps``, where given, say how they are cut."""
    prompt = text(get(row, "prompt"), "prompt")
    outcomes = items(get(row, "correctness"), "correctness")
    if row.get("completions") is None and row.get("steps") is None:
        raise RowError("completions", "is missing, and so is steps")
    for i, outcome in enumerate(outcomes):
        steps = solution_steps(row, i, len(outcomes), options)
        reward = None if outcome is None else unit(outcome, f"correctness[{i}]")
        yield rollout(options, prompt, steps, reward=reward, reference=reference(row.get("reference")))
    if not outcomes:
        yield Dropped("prompt without any solution")


def solution_steps(row: Row, i: int, count: int, options: Options) -> list[str]:
    """Return the steps of solution ``i`` of ``count``: the given ones, or its text cut."""
    given = same_length(row, "steps", count)
    if given is not None and given[i] is not None:
        return texts(given[i], f"steps[{i}]")
    whole = same_length(row, "completions", count)
    if whole is None:
        raise RowError(f"steps[{i}]", "is null, and there are no completions to cut")
    return cut(text(whole[i], f"completions[{i}]"), options, "blank-line")


def same_length(row: Row, field: str, count: int) -> list[Any] | None:
    """Return a list with one item a solution, None where the row has none."""
    if row.get(field) is None:
        return None
    found = items(row[field], field)
    if len(found) != count:
        raise RowError(field, f"has {len(found)} items for {count} of correctness")
    return found


FORMATS = {
    "rollouts": Format({"prompt": str, "correctness": list}, rollouts),
    "gsm8k": Format({"question": str, "answer": str}, gsm8k),
    "gsm8k-solutions": Format({"question": str, "ground_truth": str}, gsm8k_solutions),
}
