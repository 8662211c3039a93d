"""From examples to one padded batch: every prefix of a trajectory and its children in one forward pass."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.lm.steps import EncodedTree
from rmtools.lm.tree_scoring import tree_batch
from rmtools.training.examples import Example


class Collator:
    """Pads examples into model inputs and index tensors.

    Parameters
    ----------
    pad_id : int
    dtype : torch.dtype
        Of the attention mask, built where a batch has children.
    children : {"none", "copy", "all"}
        Which forward passes the alternatives are in: none, that of the copy which gives targets, or both.
    """

    def __init__(self, pad_id: int, children: str = "all", dtype: torch.dtype = torch.float32) -> None:
        self.pad_id = pad_id
        self.children = children
        self.dtype = dtype

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return one padded batch of B trajectories of at most T steps.

        The keys: ``model`` (inputs of the forward pass) and ``copy`` (of the copy's; None where they are the same),
        ``reads`` (B, T + 1), ``length``, ``complete``, ``counts`` and ``log_potential`` (B,), ``log_label`` (B, T),
        ``child_reads``, ``child_log_potential`` and ``child_log_count`` (B, T, C), ``completion_log_potential`` (B, T + 1, R).
        """
        trees, trunks = [e.tree for e in examples], [e.tree.trunk() for e in examples]
        apart = self.children == "copy" and any(
            len(a.ids) > len(b.ids) for a, b in zip(trees, trunks, strict=True)
        )
        horizon = max(e.length for e in examples)

        def table(of: Callable[[Example], Sequence[np.ndarray]], fill: float) -> Tensor:
            return ragged([of(e) if self.children != "none" else [] for e in examples], horizon, fill)

        reads = np.zeros((len(trees), horizon + 1), dtype=np.int64)
        for row, tree in zip(reads, trees, strict=True):
            row[: len(tree.reads)] = tree.reads
        return {
            "model": self._inputs(trees if self.children == "all" else trunks),
            "copy": self._inputs(trees) if apart else None,
            "reads": torch.from_numpy(reads),
            "length": torch.tensor([e.length for e in examples]),
            "complete": torch.tensor([e.complete for e in examples]),
            "counts": torch.tensor([e.counts for e in examples]),
            "log_potential": torch.tensor([e.log_potential for e in examples], dtype=torch.float32),
            "log_label": ragged([[e.log_label] for e in examples], 1, math.nan, horizon)[:, 0],
            "child_reads": table(lambda e: e.child_reads, -1).long(),
            "child_log_potential": table(lambda e: e.child_log_potential, math.nan),
            "child_log_count": table(lambda e: e.child_log_count, -math.inf),
            "completion_log_potential": ragged(
                [e.completion_log_potential for e in examples], horizon + 1, -math.inf
            ),
        }

    def _inputs(self, trees: Sequence[EncodedTree]) -> dict[str, Tensor]:
        return tree_batch(trees, self.pad_id, torch.device("cpu"), self.dtype)


def ragged(
    branches: Sequence[Sequence[np.ndarray]], depths: int, fill: float, width: int | None = None
) -> Tensor:
    """Return (B, depths, width) float32 with ``fill`` where a prefix has fewer branches."""
    if width is None:
        width = max((len(at) for row in branches for at in row), default=0)
    out = np.full((len(branches), depths, width), fill, dtype=np.float32)
    for i, row in enumerate(branches):
        for t, at in enumerate(row):
            out[i, t, : len(at)] = at
    return torch.from_numpy(out)
