"""OmegaPRM trees (arXiv 2406.06592): nodes of {text, mc_value, children}, the root's text is the question.

Each root-to-leaf path is a trajectory. A node's ``mc_value`` (the share of completions from it that were right) is the
soft label of its step in the first path through it and null in the later ones: each value is one label. Nodes are not
made ``children`` of a rollout: a search chose them, so they are not exchangeable draws of the policy.
"""

from collections.abc import Iterator
from typing import Any

from rmtools.data.readers.row import (
    Dropped,
    Format,
    Options,
    Row,
    get,
    items,
    reference,
    rollout,
    text,
    unit,
)
from rmtools.data.rollouts import Rollout

Path = list[tuple[str, float | None]]


def omegaprm(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read one tree."""
    question = text(get(row, "text"), "text")
    children = items(get(row, "children"), "children")
    if row.get("mc_value") is not None:
        unit(row["mc_value"], "mc_value")
        yield Dropped("value of a prompt alone (a rollout labels steps)")
    if not children:
        yield Dropped("tree without any step")
    answer = reference(row.get("final_answer"))
    for path in paths(children, "children"):
        steps, values = [s for s, _ in path], [v for _, v in path]
        yield rollout(options, question, steps, labels=values, reference=answer)


def paths(nodes: list[Any], field: str) -> Iterator[Path]:
    """Yield the paths below, depth first; a node's value stands only in the first path through it."""
    for i, node in enumerate(nodes):
        where = f"{field}[{i}]"
        value = get(node, "mc_value")
        label = None if value is None else unit(value, f"{where}.mc_value")
        step = text(get(node, "text"), f"{where}.text")
        below = items(get(node, "children"), f"{where}.children")
        if not below:
            yield [(step, label)]
        for path in paths(below, f"{where}.children"):
            yield [(step, label), *path]
            label = None


FORMATS = {
    "omegaprm": Format({"text": str, "mc_value": (int, float, type(None)), "children": list}, omegaprm)
}
