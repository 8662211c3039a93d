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

from rmtools.lm.packing import Row, distinct_tokens, row_inputs, share_rows
from rmtools.lm.steps import EncodedTree
from rmtools.training.examples import Example

ORDERS = ("group_by_prompt", "group_by_length", "random", "sequential")
# So many batches of rows are sorted together: enough for batches of similar lengths, few enough to keep them random.
BATCHES_PER_POOL = 50


def prompts_of(examples: Sequence[Example]) -> list[int]:
    """Return (N,) which prompt each example continues, numbered in order of appearance."""
    known: dict[bytes, int] = {}
    return [known.setdefault(e.tree.ids[: int(e.tree.reads[0]) + 1].tobytes(), len(known)) for e in examples]


def chosen_order(examples: Sequence[Example], longest: int) -> str:
    """Return the order of rows that suits them: by prompt where the rows of a prompt share most of their tokens.

    Rows of a prompt are alike: a batch of them says less than one of as many prompts. A third of the tokens makes up for it.
    """
    if not longest:
        return "group_by_length"
    groups: dict[int, list[EncodedTree]] = {}
    for prompt, e in zip(prompts_of(examples), examples, strict=True):
        groups.setdefault(prompt, []).append(e.tree)
    distinct = sum(map(distinct_tokens, groups.values()))
    return "group_by_prompt" if 3 * distinct <= sum(len(e.tree.ids) for e in examples) else "group_by_length"


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
    lengths, prompts : sequence of int
        (N,) tokens of each row, and which prompt it continues; index N is the filler (:class:`Rows`).
    strategy : str
        One of `ORDERS`. ``group_by_length``: every run of ``batch`` rows has similar lengths, and the runs come in random
        order. ``group_by_prompt``: the prompts come in random order, each with all of its rows.
    batch : int
        Rows of one optimiser step, over all processes.
    multiple : int
        Rows of one forward pass, over all processes: fillers complete the last one.
    seed : int
    """

    def __init__(
        self,
        lengths: Sequence[int],
        prompts: Sequence[int],
        strategy: str,
        batch: int,
        multiple: int,
        seed: int,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.prompts = np.asarray(prompts)
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
        if self.strategy == "group_by_prompt":
            turn = rng.permutation(self.prompts.max() + 1)
            return order[np.argsort(turn[self.prompts[order]], kind="stable")]
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
    """Packs examples into model inputs and index tensors; rows that begin alike share the tokens (`rmtools.lm.packing`).

    Parameters
    ----------
    pad_id : int
    children : {"none", "bootstrap", "all"}
        Which forward passes read the alternatives: none, that of bootstrap values, or both.
    dtype : torch.dtype
        Of the attention mask that a batch with forks needs.
    pairs, longest : int
        As for `rmtools.lm.packing.share_rows`; with 0, the default, every example is read by itself.
    max_tokens : int or None
        Most tokens, pads included, of the forward pass of several examples; for :meth:`passes`.
    """

    def __init__(
        self,
        pad_id: int,
        children: str = "all",
        dtype: torch.dtype = torch.float32,
        pairs: int = 1,
        longest: int = 0,
        max_tokens: int | None = None,
    ) -> None:
        self.pad_id = pad_id
        self.children = children
        self.dtype = dtype
        self.pairs = pairs
        self.longest = longest
        self.max_tokens = max_tokens

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return one padded batch of B trajectories of at most T steps.

        The keys: ``model`` (inputs of the forward pass) and ``reads`` (B, T + 1) and ``child_reads`` (B, T, C), places among
        all its tokens, one row after the other (-1: not read); ``bootstrap`` (the same three for bootstrap values; None:
        these); ``length``, ``complete``, ``counts`` and ``log_potential`` (B,), ``log_label`` (B, T), ``child_log_potential``
        and ``child_log_count`` (B, T, C), ``completion_log_potential`` (B, T + 1, R).
        """
        return self._batch(examples, self._shared(examples))

    def passes(self, examples: Sequence[Example]) -> dict[str, list[dict[str, Any]]]:
        """Return the batches of examples that are read one after the other, each of at most `max_tokens` if it holds several."""
        rows = self._shared(examples)
        if self.max_tokens is None:
            return {"passes": [self._batch(examples, rows)]}
        sizes = [distinct_tokens([self._tree(examples[i]) for i in row]) for row in rows]
        cuts: list[list[list[int]]] = []
        for k in sorted(range(len(rows)), key=sizes.__getitem__):
            if cuts and (len(cuts[-1]) + 1) * sizes[k] <= self.max_tokens:
                cuts[-1].append(rows[k])
            else:
                cuts.append([rows[k]])
        found = []
        for cut in cuts:
            chosen = sorted(i for row in cut for i in row)
            place = {i: k for k, i in enumerate(chosen)}
            found.append(self._batch([examples[i] for i in chosen], [[place[i] for i in row] for row in cut]))
        return {"passes": found}

    def _tree(self, example: Example) -> EncodedTree:
        """Return what the larger forward pass reads of an example."""
        return example.tree if self.children != "none" else example.tree.trunk()

    def _shared(self, examples: Sequence[Example]) -> list[list[int]]:
        most = self.longest if self.max_tokens is None else min(self.longest, self.max_tokens)
        return share_rows([self._tree(e) for e in examples], self.pairs, most)

    def _batch(self, examples: Sequence[Example], rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return the batch in which the examples of each of ``rows`` share a row."""
        trees, trunks = [e.tree for e in examples], [e.tree.trunk() for e in examples]
        branches = any(len(a.ids) > len(b.ids) for a, b in zip(trees, trunks, strict=True))
        horizon = max(e.length for e in examples)
        depths = horizon if self.children != "none" else 0

        def table(of: Callable[[Example], Sequence[np.ndarray]], fill: float) -> Tensor:
            return ragged([of(e)[:depths] for e in examples], horizon, fill)

        def inputs(read: Sequence[EncodedTree]) -> dict[str, Any]:
            packed = [Row.of([read[i] for i in row]) for row in rows]
            width = max(len(row.ids) for row in packed)
            places = {
                i: k * width + place
                for k, (row, found) in enumerate(zip(rows, packed, strict=True))
                for i, place in zip(row, found.places, strict=True)
            }
            reads = np.zeros((len(read), horizon + 1), dtype=np.int64)
            for i, tree in enumerate(read):
                reads[i, : len(tree.reads)] = places[i][tree.reads]
            children = [
                [_placed(at, places[i]) for at in e.child_reads[:depths]] for i, e in enumerate(examples)
            ]
            return {
                "model": row_inputs(packed, self.pad_id, self.dtype),
                "reads": torch.from_numpy(reads),
                "child_reads": ragged(children, horizon, -1).long(),
            }

        return {
            **inputs(trees if self.children == "all" else trunks),
            "bootstrap": inputs(trees) if self.children == "bootstrap" and branches else None,
            "length": torch.tensor([e.length for e in examples]),
            "complete": torch.tensor([e.complete for e in examples]),
            "counts": torch.tensor([e.counts for e in examples]),
            "log_potential": torch.tensor([e.log_potential for e in examples], dtype=torch.float32),
            "log_label": ragged([[e.log_label] for e in examples], 1, math.nan, horizon)[:, 0],
            "child_log_potential": table(lambda e: e.child_log_potential, math.nan),
            "child_log_count": table(lambda e: e.child_log_count, -math.inf),
            "completion_log_potential": ragged(
                [e.completion_log_potential for e in examples], horizon + 1, -math.inf
            ),
        }


def _placed(at: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return where the tokens ``at`` of a tree are; -1 for one that ended (-1) or is not read."""
    read = (at >= 0) & (at < len(places))
    return np.where(read, places[np.where(read, at, 0)], -1)


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
