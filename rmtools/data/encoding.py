"""Token ids of rollouts: those that the policy emitted where a row keeps them, else those of the text."""

from collections.abc import Sequence

from rmtools.data.rollouts import Child, Rollout
from rmtools.lm.steps import EncodedTree, StepTokenizer

LOOKED_AT = 64


def keeps_ids_of(rows: Sequence[Rollout], steps: StepTokenizer) -> bool:
    """Return whether the rows keep the ids of this tokenizer: those of the first rows decode to their steps."""
    looked_at = rows[:LOOKED_AT]
    return bool(looked_at) and all(
        row.ids is not None
        and all(steps.step_text(i) == text for i, text in zip(row.ids, row.steps, strict=True))
        for row in looked_at
    )


def encode_row(
    row: Rollout,
    steps: StepTokenizer,
    children: Sequence[Sequence[Child]] = (),
    *,
    keep: int | None = None,
    emitted: bool = False,
) -> EncodedTree:
    """Encode a trajectory, or its first ``keep`` steps, with alternatives by depth.

    ``emitted`` says that ids in rows are those of ``steps``, see `keeps_ids_of`; a row without ids is read as text.
    """
    own = row.steps[:keep]
    if not emitted or row.ids is None:
        return steps.encode(row.prompt, own, [[c.text for c in at] for at in children])
    return EncodedTree.of(
        steps.prompt_ids(row.prompt),
        row.ids[:keep],
        [[steps.step_ids(c.text) if c.ids is None else c.ids for c in at] for at in children[: len(own)]],
    )


def is_own_step(row: Rollout, t: int, child: Child, *, emitted: bool = False) -> bool:
    """Return whether an alternative at depth ``t`` is the trajectory's own next step, to the token if those are known."""
    same_ids = not emitted or row.ids is None or child.ids is None or tuple(row.ids[t]) == child.ids
    return child.text == row.steps[t] and same_ids
