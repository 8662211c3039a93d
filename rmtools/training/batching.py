"""Batches of examples: the order of the rows, and their padding into model inputs.

The order is the same for the same seed and epoch, on every process, and after a resume.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from rmtools.lm.steps import EncodedTree
from rmtools.lm.tree_scoring import tree_batch
from rmtools.training.examples import Example

ORDERS = ("group_by_length", "random", "sequential")
# So many batches of rows are sorted together: enough for batches of similar lengths, few enough to keep them random.
BATCHES_PER_POOL = 50


class Rows(Dataset[Example]):
    """The N examples, and at index N one filler without loss: the shortest of them."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self.filler = replace(min(examples, key=lambda e: len(e.tree.ids)), counts=False)

    def __len__(self) -> int:
        """Return N."""
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        """Return an example or the filler."""
        return self.examples[index] if index < len(self.examples) else self.filler


class RowOrder(Sampler[int]):
    """Every row once per epoch, then as many fillers as give each process the same number of rows.

    Without fillers accelerate would repeat rows from the beginning of the epoch.

    Parameters
    ----------
    lengths : sequence of int
        (N,) tokens of each row; index N is the filler (:class:`Rows`).
    strategy : str
        One of `ORDERS`. ``group_by_length``: every run of ``batch`` rows has similar lengths, and the runs come in random
        order.
    batch : int
        Rows of one optimiser step, over all processes.
    multiple : int
        Rows of one forward pass, over all processes: fillers complete the last one.
    seed : int
    """

    def __init__(self, lengths: Sequence[int], strategy: str, batch: int, multiple: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.strategy = strategy
        self.batch = batch
        self.fillers = -len(self.lengths) % multiple
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which decides the order with the seed."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of rows, fillers included."""
        return len(self.lengths) + self.fillers

    def __iter__(self) -> Iterator[int]:
        """Yield every row once, then the fillers."""
        yield from (int(i) for i in self._order())
        yield from [len(self.lengths)] * self.fillers

    def _order(self) -> np.ndarray:
        if self.strategy == "sequential":
            return np.arange(len(self.lengths))
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths))
        return order if self.strategy == "random" else self._grouped(order, rng)

    def _grouped(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        pool = BATCHES_PER_POOL * self.batch
        runs: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            runs += [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        # A short last run stays last: it would shift the borders of all batches behind it.
        whole = [r for r in runs if len(r) == self.batch]
        rest = [r for r in runs if len(r) < self.batch]
        return np.concatenate([*(whole[k] for k in rng.permutation(len(whole))), *rest])


class Collator:
    """Pads examples into model inputs and index tensors.

    Parameters
    ----------
    pad_id : int
    dtype : torch.dtype
        Of the attention mask that a batch with children needs.
    children : {"none", "bootstrap", "all"}
        Which forward passes read the alternatives: none, that of bootstrap values, or both.
    """

    def __init__(self, pad_id: int, children: str = "all", dtype: torch.dtype = torch.float32) -> None:
        self.pad_id = pad_id
        self.children = children
        self.dtype = dtype

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return one padded batch of B trajectories of at most T steps.

        The keys: ``model`` (inputs of the forward pass), ``bootstrap`` (inputs for bootstrap values; None: the same),
        ``reads`` (B, T + 1), ``length``, ``complete``, ``counts`` and ``log_potential`` (B,), ``log_label`` (B, T),
        ``child_reads``, ``child_log_potential`` and ``child_log_count`` (B, T, C), ``completion_log_potential`` (B, T + 1, R).
        """
        trees, trunks = [e.tree for e in examples], [e.tree.trunk() for e in examples]
        branches = any(len(a.ids) > len(b.ids) for a, b in zip(trees, trunks, strict=True))
        horizon = max(e.length for e in examples)

        def table(of: Callable[[Example], Sequence[np.ndarray]], fill: float) -> Tensor:
            return ragged([of(e) if self.children != "none" else [] for e in examples], horizon, fill)

        reads = np.zeros((len(trees), horizon + 1), dtype=np.int64)
        for row, tree in zip(reads, trees, strict=True):
            row[: len(tree.reads)] = tree.reads
        return {
            "model": self._inputs(trees if self.children == "all" else trunks),
            "bootstrap": self._inputs(trees) if self.children == "bootstrap" and branches else None,
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
    """Return (B, depths, width) float32, padded with ``fill``."""
    if width is None:
        width = max((len(at) for row in branches for at in row), default=0)
    out = np.full((len(branches), depths, width), fill, dtype=np.float32)
    for i, row in enumerate(branches):
        for t, at in enumerate(row):
            out[i, t, : len(at)] = at
    return torch.from_numpy(out)
