"""From rollouts to one padded batch: every prefix of a trajectory and its children in one forward pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.core.tilt import Tilt
from rmtools.data.rollouts import Rollout
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.value import tree_batch


@dataclass(frozen=True)
class Example:
    """A trajectory as the trainer sees it: token ids, and log potentials in nats."""

    tree: EncodedTree
    log_potential: float
    child_log_potential: list[np.ndarray]
    completion_log_potential: list[np.ndarray]


def example(row: Rollout, steps: StepTokenizer, tilt: Tilt) -> Example:
    """Encode a rollout; a child that has not ended has potential NaN (its value is bootstrapped)."""
    texts = [[c.text for c in at] for at in row.children]
    rewards = [np.asarray([math.nan if not c.ended else c.reward for c in at]) for at in row.children]
    ended = [np.where(np.isnan(r), math.nan, tilt.log_potential(np.nan_to_num(r))) for r in rewards]
    more = [tilt.log_potential(np.asarray(at, dtype=float)) for at in row.completions]
    return Example(
        steps.encode(row.prompt, row.steps, texts),
        float(tilt.log_potential(np.asarray(row.outcome))),
        ended,
        more,
    )


class Collator:
    """Pads examples into model inputs and index tensors.

    Parameters
    ----------
    pad_id : int
    dtype : torch.dtype
        Of the attention mask, built where a batch has children.
    """

    def __init__(self, pad_id: int, dtype: torch.dtype = torch.float32) -> None:
        self.pad_id = pad_id
        self.dtype = dtype

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return one padded batch.

        The keys: ``model`` (its inputs), ``reads`` (B, T + 1), ``length`` (B,), ``log_potential`` (B,), ``child_reads``
        and ``child_log_potential`` (B, T, C), ``completion_log_potential`` (B, T + 1, R).
        """
        trees = [e.tree for e in examples]
        horizon = max(len(t.reads) - 1 for t in trees)
        reads = np.zeros((len(trees), horizon + 1), dtype=np.int64)
        for row, tree in zip(reads, trees, strict=True):
            row[: len(tree.reads)] = tree.reads
        return {
            "model": tree_batch(trees, self.pad_id, torch.device("cpu"), self.dtype),
            "reads": torch.from_numpy(reads),
            "length": torch.tensor([len(t.reads) - 1 for t in trees]),
            "log_potential": torch.tensor([e.log_potential for e in examples], dtype=torch.float32),
            "child_reads": ragged([t.child_reads for t in trees], horizon, -1).long(),
            "child_log_potential": ragged([e.child_log_potential for e in examples], horizon, math.nan),
            "completion_log_potential": ragged(
                [e.completion_log_potential for e in examples], horizon + 1, -math.inf
            ),
        }


def ragged(branches: Sequence[Sequence[np.ndarray]], depths: int, fill: float) -> Tensor:
    """Return (B, depths, width) float32 with ``fill`` where a prefix has fewer branches."""
    width = max((len(at) for row in branches for at in row), default=0)
    out = np.full((len(branches), depths, width), fill, dtype=np.float32)
    for i, row in enumerate(branches):
        for t, at in enumerate(row):
            out[i, t, : len(at)] = at
    return torch.from_numpy(out)
