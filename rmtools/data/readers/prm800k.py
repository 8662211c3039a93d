"""PRM800K (arXiv 2305.20050): people rated alternative next steps along one solution.

The trajectory follows the chosen completions (or the one a person wrote, a right step by the instructions). Every
other rated completion is a labelled last step of its own: a trajectory that shares the steps before it, whose labels
are null there, because the first trajectory has them. So each rating is one label, neither lost nor counted twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rmtools.data.readers.row import (
    Dropped,
    Format,
    Options,
    Row,
    RowError,
    get,
    index,
    items,
    reference,
    rollout,
    shown,
    text,
)
from rmtools.data.rollouts import Rollout

NEUTRAL = {"positive": 1.0, "negative": 0.0, "skip": None}
"""What a rating of 0 is: right but of no help. The paper scores it positive, trl's conversion made it negative."""


@dataclass
class Walk:
    """The trajectory so far, and what branched off it."""

    steps: list[str] = field(default_factory=list)
    labels: list[float | None] = field(default_factory=list)
    branches: list[tuple[list[str], float | None]] = field(default_factory=list)


def prm800k(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read one labelled solution."""
    question = get(row, "question")
    prompt = text(get(question, "problem"), "question.problem")
    answer = reference(question.get("ground_truth_answer"))
    walk = Walk()
    rated = items(get(get(row, "label"), "steps"), "label.steps")
    for t, step in enumerate(rated):
        if not follow(walk, step, f"label.steps[{t}]", options):
            yield from left_out(rated[t + 1 :])
            break
    if not walk.steps:
        yield Dropped("solution without any step")
        return
    yield rollout(options, prompt, walk.steps, labels=walk.labels, reference=answer)
    for steps, label in walk.branches:
        if label is None:
            yield Dropped("alternative step without a label (unrated, or neutral with --neutral skip)")
        else:
            judged = [None] * (len(steps) - 1) + [label]
            yield rollout(options, prompt, steps, labels=judged, reference=answer)


def follow(walk: Walk, step: Any, where: str, options: Options) -> bool:
    """Take one step of the trajectory; return whether it goes on after it.

    Where labelling stopped, no completion is chosen: the first is then the trajectory's last step.
    """
    found = [
        (
            text(get(c, "text"), f"{where}.completions[{i}].text"),
            rating(c, f"{where}.completions[{i}]", options),
        )
        for i, c in enumerate(items(get(step, "completions") or [], f"{where}.completions"))
    ]
    chosen, human = get(step, "chosen_completion"), written(step, where)
    if chosen is not None and not found:
        raise RowError(f"{where}.chosen_completion", f"is {shown(chosen)}, but there are no completions")
    if chosen is not None:
        taken = found.pop(index(chosen, f"{where}.chosen_completion", 0, len(found) - 1))
    elif human is not None:
        taken = human, 1.0
    elif found:
        taken = found.pop(0)
    else:
        return False
    walk.branches += [([*walk.steps, other], label) for other, label in found]
    walk.steps.append(taken[0])
    walk.labels.append(taken[1])
    return chosen is not None or human is not None


def rating(completion: Row, where: str, options: Options) -> float | None:
    """Return the label of a completion: null where it was not rated, or is neutral and neutral is skipped."""
    value = get(completion, "rating")
    if value is None:
        return None
    if value not in (-1, 0, 1):
        raise RowError(f"{where}.rating", f"must be -1, 0, 1 or null, got {shown(value)}")
    return NEUTRAL[options.neutral] if value == 0 else float(value == 1)


def written(step: Row, where: str) -> str | None:
    """Return the step that a person wrote: a text or, in the published files, an object with one."""
    value = step.get("human_completion")
    name = f"{where}.human_completion"
    if isinstance(value, dict):
        return text(get(value, "text"), f"{name}.text")
    return None if value is None else text(value, name)


def left_out(rest: list[Any]) -> Iterator[Dropped]:
    """Say how many ratings follow where nothing was chosen: the steps before them are not known."""
    count = sum(
        c.get("rating") is not None
        for step in rest
        if isinstance(step, dict)
        for c in step.get("completions") or []
        if isinstance(c, dict)
    )
    if count:
        yield Dropped("rating after the trajectory stopped", count)


FORMATS = {"prm800k": Format({"question": dict, "label": dict}, prm800k)}
