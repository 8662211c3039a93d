"""Batches of rows of similar length: the same for the same seed and epoch, on every process, and after a resume."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# Rows that are sorted together: large enough that a batch is nearly level, small enough that batches stay random.
BATCHES_PER_POOL = 50


class LengthGrouped(Sampler[int]):
    """A random order in which every run of ``batch`` rows has similar lengths, and the runs come in random order.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each row.
    batch : int
        Rows of one optimiser step, over all processes.
    seed : int
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch = batch
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw another order for each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield every row once."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths))
        pool = BATCHES_PER_POOL * self.batch
        runs: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            runs += [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        # A short last run stays last: it would shift the borders of all batches behind it.
        whole = [r for r in runs if len(r) == self.batch]
        rest = [r for r in runs if len(r) < self.batch]
        yield from (int(i) for k in rng.permutation(len(whole)) for i in whole[k])
        yield from (int(i) for r in rest for i in r)
