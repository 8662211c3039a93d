"""The order of the rows: the same for the same seed and epoch, on every process, and after a resume."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset, Sampler

from rmtools.training.examples import Example

ORDERS = ("group_by_length", "random", "sequential")
# Rows that are sorted together: large enough that a batch is nearly level, small enough that batches stay random.
BATCHES_PER_POOL = 50


class Rows(Dataset[Example]):
    """The examples, and one more: the shortest of them as a filler, on which nothing is trained.

    Parameters
    ----------
    examples : sequence of Example
        N; index N is the filler.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        shortest = min(examples, key=lambda e: len(e.tree.ids))
        self.filler = replace(shortest, counts=False)

    def __len__(self) -> int:
        """Return the number of examples, the filler not among them."""
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        """Return an example, or for index N the filler."""
        return self.examples[index] if index < len(self.examples) else self.filler


class RowOrder(Sampler[int]):
    """Every row once an epoch, and behind them as many fillers as the processes need to get as many rows each.

    Without fillers accelerate would give rows of the epoch's beginning a second time.

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
        """Draw another order for each epoch."""
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
