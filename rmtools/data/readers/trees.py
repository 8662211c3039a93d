"""Formats of steps with alternatives: PRM800K's rated completions, OmegaPRM's search trees.

The alternatives are not made ``children`` of a rollout: they were chosen, by people or a search, so they are not
exchangeable draws of the policy. Each becomes a labelled step of a trajectory that shares the steps before it; a label
stands in the first trajectory through its step and is null in the others, so it is neither lost nor counted twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from rmtools.data.readers.row import (
    NEUTRAL,
    Dropped,
    Field,
    Found,
    Options,
    is_null,
    public_format,
    rollout,
    shown,
)

Labelled = tuple[str, float | None]


@dataclass
class _Walk:
    """The trajectory so far, and what branched off it."""

    steps: list[str] = field(default_factory=list)
    labels: list[float | None] = field(default_factory=list)
    branches: list[tuple[list[str], float | None]] = field(default_factory=list)
    blank: int = 0


EXCLUDED = {
    "is_quality_control_question": "quality-control question",
    "is_initial_screening_question": "initial-screening question",
}
"""Flags of rows that prm800k's authors set aside."""


@public_format("prm800k", dotted={"question.problem": str, "label.steps": (list, dict)})
def prm800k(row: Field, options: Options) -> Found:
    """Read one labelled solution of PRM800K (arXiv 2305.20050).

    The trajectory follows the chosen completions (or the one a person wrote, a right step by the instructions). Every
    other rated completion is a labelled last step of another trajectory. Rows of quality control or initial screening and
    bad problems are left out unless ``options.keep_excluded``.
    """
    question = row["question"]
    if not options.keep_excluded:
        set_aside = [what for flag, what in EXCLUDED.items() if row.has(flag) and row[flag].value]
        bad = row["label"].has("finish_reason") and row["label"]["finish_reason"].value == "bad_problem"
        if set_aside or bad:
            yield Dropped(f"row set aside: {[*set_aside, 'bad problem'][0]}")
            return
    prompt, answer = question["problem"].text(), question.reference("ground_truth_answer")
    walk, rated = _Walk(), row["label"]["steps"].records()
    for t, step in enumerate(rated):
        if not _follow(walk, step, options):
            yield from _left_out(rated[t + 1 :])
            break
    if not walk.steps:
        yield Dropped("solution without any step")
        return
    yield rollout(options, prompt, walk.steps, labels=walk.labels, reference=answer)
    if walk.blank:
        yield Dropped("blank alternative that nobody chose", walk.blank)
    for steps, label in walk.branches:
        if label is None:
            yield Dropped("alternative step without a label (unrated, or neutral and skipped)")
        else:
            labels = [None] * (len(steps) - 1) + [label]
            yield rollout(options, prompt, steps, labels=labels, reference=answer)


def _follow(walk: _Walk, step: Field, options: Options) -> bool:
    """Take one step of the trajectory; return whether another follows.

    Where labelling stopped, no completion is chosen: the first is then the trajectory's last step.
    """
    step["completions"]  # must be there, but may be null
    completions = step["completions"].records() if step.has("completions") else []
    chosen, human = step["chosen_completion"], _written(step)
    if step.has("chosen_completion") and not completions:
        raise chosen.wrong(f"is {shown(chosen.value)}, but there are no completions")
    index = chosen.index(0, len(completions) - 1) if step.has("chosen_completion") else None
    found: list[Labelled] = []
    taken: Labelled | None = None
    for i, completion in enumerate(completions):
        text = completion["text"]
        if i != index and isinstance(text.value, str) and not text.value.strip():
            walk.blank += 1
            continue
        labelled = text.text(), _rating(completion["rating"], options)
        if i == index:
            taken = labelled
        else:
            found.append(labelled)
    if taken is None and human is not None:
        taken = human, 1.0
    elif taken is None and found:
        taken = found.pop(0)
    elif taken is None:
        return False
    walk.branches += [([*walk.steps, other], label) for other, label in found]
    walk.steps.append(taken[0])
    walk.labels.append(taken[1])
    return index is not None or human is not None


def _rating(rating: Field, options: Options) -> float | None:
    """Return the label of a completion; None if it was not rated, or is neutral and neutral is skipped."""
    if is_null(rating.value):
        return None
    if rating.value not in (-1, 0, 1):
        raise rating.wrong(f"must be -1, 0, 1 or null, got {shown(rating.value)}")
    return NEUTRAL[options.neutral] if rating.value == 0 else float(rating.value == 1)


def _written(step: Field) -> str | None:
    """Return the step that a person wrote: a text or, in the published files, an object with one."""
    if not step.has("human_completion"):
        return None
    human = step["human_completion"]
    return (human["text"] if isinstance(human.value, dict) else human).text()


def _left_out(rest: list[Field]) -> Iterator[Dropped]:
    """Count the ratings that follow where nothing was chosen: the steps before them are not known."""
    steps = [step["completions"].records() for step in rest if step.has("completions")]
    if count := sum(completion.has("rating") for step in steps for completion in step):
        yield Dropped("rating after the trajectory stopped", count)


IN_RUN = {name: f"reasoning_steps.{name}" for name in ("text", "mc_value", "children")}
"""Where the tree stands in the files that OmegaPRM's code writes."""


@public_format("omegaprm", IN_RUN, text=str, mc_value=(int, float, type(None)), children=(list, dict))
def omegaprm(row: Field, options: Options) -> Found:
    """Read one tree of OmegaPRM (arXiv 2406.06592): nodes of {text, mc_value, children}; the root's text is the question.

    Each root-to-leaf path is a trajectory. A node's ``mc_value``, the share of completions from it that were right, is
    the soft label of its step.
    """
    question, children = row["text"].text(), row["children"].records()
    if row.has("mc_value"):
        row["mc_value"].unit()
        yield Dropped("value of a prompt alone (a rollout labels steps)")
    if not children:
        yield Dropped("tree without any step")
    answer = row.reference("final_answer")
    for path in _paths(children):
        steps, values = [s for s, _ in path], [v for _, v in path]
        yield rollout(options, question, steps, labels=values, reference=answer)


def _paths(nodes: list[Field]) -> Iterator[list[Labelled]]:
    """Yield the paths below, depth first; a node's value stands only in the first path through it."""
    for node in nodes:
        label, step, below = node["mc_value"].unit_or_null(), node["text"].text(), node["children"].records()
        if not below:
            yield [(step, label)]
        for path in _paths(below):
            yield [(step, label), *path]
            label = None
