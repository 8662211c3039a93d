"""Key-value caches of many prefixes of uneven length: appended to, forked, reindexed, packed, and put side by side.

The prefixes lie in a few blocks (`rmtools.lm.kv.batch`). A block in which no row gets a token is not touched, one in
which most rows do not is split, and `packed` lays rows of like length together again: so neither prefixes that have
finished their step nor the longest ones cost the others much.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from rmtools.lm.kv.batch import Block, merged

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# With the room of rmtools.lm.kv.layer under 1.3 times what the tokens need.
MOST_WASTE = 1.15
MOST_BLOCKS = 4
LOG = logging.getLogger("rmtools")


@dataclass(frozen=True)
class PrefixCache:
    """A batch of B prefixes. Immutable: every operation returns a new one and keeps the old usable.

    Attributes
    ----------
    blocks : tuple of Block
    rows : tuple of Tensor
        Which prefixes are in each block, (B_b,) in the order of its rows; together 0 ... B - 1.
    """

    blocks: tuple[Block, ...]
    rows: tuple[Tensor, ...]

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> Self:
        """Return ``batch`` prefixes without tokens."""
        return cls((Block.empty(batch, device),), (torch.arange(batch, device=device),))

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    @cached_property
    def length(self) -> Tensor:
        """(B,) tokens of each prefix: the next position id."""
        if self._plain:
            return self.blocks[0].length
        out = torch.empty(len(self), dtype=torch.long, device=self.rows[0].device)
        for block, rows in zip(self.blocks, self.rows, strict=True):
            out[rows] = block.length
        return out

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values reserve."""
        return sum(block.nbytes for block in self.blocks)

    @cached_property
    def _plain(self) -> bool:
        """One block with the prefixes in order: nothing is to be gathered or scattered."""
        return len(self.blocks) == 1 and is_identity(self.rows[0])

    def forward(
        self, model: "PreTrainedModel", ids: Tensor, present: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, "PrefixCache"]:
        """Append ``ids`` (B, L), where ``present`` (B, L) bool is False nothing; return logits and the new cache.

        Logits are (B, L, ·), with ``last_only`` those of the last column alone; of a prefix that gets nothing they have no
        meaning. Where the device has too little memory for a block it is halved, and that is said once.
        """
        if self._plain and present is None:
            done = attempt(model, self.blocks[0], self.rows[0], ids, None, last_only)
            return self._put_together(done)
        done = []
        for block, rows in zip(self.blocks, self.rows, strict=True):
            done += part_forward(model, block, rows, ids, present, last_only)
        return self._put_together(done)

    def _put_together(self, done: list[tuple[Tensor | None, Block, Tensor]]) -> tuple[Tensor, "PrefixCache"]:
        cache = PrefixCache(tuple(block for _, block, _ in done), tuple(rows for _, _, rows in done))
        found = [(logits, rows) for logits, _, rows in done if logits is not None]
        if not found:
            raise ValueError("no prefix gets a token")
        if len(found) == 1 and cache._plain:
            return found[0][0], cache
        logits = found[0][0].new_zeros(len(self), *found[0][0].shape[1:])
        for part, rows in found:
            logits[rows] = part
        return logits, cache

    def select(self, rows: Tensor) -> "PrefixCache":
        """Return the prefixes ``rows`` (B',), repeated or dropped as the index says."""
        if len(rows) == len(self) and is_identity(rows):
            return self
        if self._plain:
            return PrefixCache((self.blocks[0].select(rows),), (torch.arange(len(rows), device=rows.device),))
        blocks, chosen = [], []
        for block, own in zip(self.blocks, self.rows, strict=True):
            place = torch.full((len(self),), -1, dtype=torch.long, device=rows.device)
            place[own] = torch.arange(len(own), device=rows.device)
            at = place[rows]
            here = (at >= 0).nonzero()[:, 0]
            if len(here):
                blocks.append(
                    block if len(here) == len(own) and is_identity(at[here]) else block.select(at[here])
                )
                chosen.append(here)
        return PrefixCache(tuple(blocks), tuple(chosen)) if blocks else PrefixCache.empty(0, rows.device)

    def join(self, other: "PrefixCache") -> "PrefixCache":
        """Return these prefixes and, behind them, those of ``other``."""
        if not len(other) or not len(self):
            return self if len(self) else other
        shifted = tuple(rows + len(self) for rows in other.rows)
        return PrefixCache(self.blocks + other.blocks, self.rows + shifted)

    def packed(self) -> "PrefixCache":
        """Return the same prefixes in as few blocks as hold them with little waste; itself where that is so."""
        if self._plain and self.blocks[0].full:
            return self
        lengths = self.length.cpu().numpy()
        order = np.argsort(lengths, kind="stable")
        cuts = cut_by_length(lengths[order])
        taken = sum(len(block) * block.width for block in self.blocks)
        if len(self.blocks) <= len(cuts) and taken <= MOST_WASTE * lengths.sum():
            return self
        runs = [np.sort(run) for run in np.split(order, cuts[:-1])]
        return self._laid_out([torch.as_tensor(run, device=self.rows[0].device) for run in runs])

    def _laid_out(self, runs: list[Tensor]) -> "PrefixCache":
        """Return the prefixes with a block for each of ``runs`` (which together are all of them)."""
        blocks, order = [], []
        for run in runs:
            wanted = torch.zeros(len(self), dtype=torch.bool, device=run.device)
            wanted[run] = True
            parts = [
                (b, wanted[rows].nonzero()[:, 0], rows)
                for b, rows in zip(self.blocks, self.rows, strict=True)
            ]
            parts = [part for part in parts if len(part[1])]
            blocks.append(merged([(b, at) for b, at, _ in parts]))
            order.append(torch.cat([rows[at] for _, at, rows in parts]))
        return PrefixCache(tuple(blocks), tuple(order))


def part_forward(
    model: "PreTrainedModel", block: Block, rows: Tensor, ids: Tensor, present: Tensor | None, last_only: bool
) -> list[tuple[Tensor | None, Block, Tensor]]:
    """Append to one block; return (logits or None, block, rows) of what it became."""
    if present is None:
        return attempt(model, block, rows, ids[rows], None, last_only)
    new = present[rows]
    some = new.any(1)
    n = int(some.sum())
    if n == 0:
        return [(None, block, rows)]
    if n > len(rows) // 2 or block.cache is None:
        return attempt(model, block, rows, ids[rows], None if bool(new.all()) else new, last_only)
    live, still = some.nonzero()[:, 0], (~some).nonzero()[:, 0]
    new = new[live]
    going = attempt(
        model, block.select(live), rows[live], ids[rows[live]], None if bool(new.all()) else new, last_only
    )
    return [*going, (None, block.select(still), rows[still])]


def attempt(
    model: "PreTrainedModel",
    block: Block,
    rows: Tensor,
    ids: Tensor,
    present: Tensor | None,
    last_only: bool,
) -> list[tuple[Tensor | None, Block, Tensor]]:
    """Append to a block, in halves where memory does not suffice."""
    try:
        logits, after = block.forward(model, ids, present, last_only)
        return [(logits, after, rows)]
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or len(rows) < 2:
            raise
    say_halved(len(rows))
    if ids.is_cuda:
        torch.cuda.empty_cache()
    done = []
    for half in torch.arange(len(rows), device=rows.device).chunk(2):
        part = None if present is None else present[half]
        done += attempt(model, block.select(half), rows[half], ids[half], part, last_only)
    return done


def is_out_of_memory(error: Exception) -> bool:
    """Whether ``error`` says that the device, or the CPU, has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


_SAID: set[str] = set()


def say_halved(rows: int) -> None:
    """Log once that a batch was too large for the memory."""
    if "halved" not in _SAID:
        _SAID.add("halved")
        LOG.warning("too little memory for %d prefixes in one pass: halved, as often as it takes", rows)


def is_identity(rows: Tensor) -> bool:
    """Whether ``rows`` is 0, 1, 2, ..."""
    return bool((rows == torch.arange(len(rows), device=rows.device)).all())


def cut_by_length(lengths: np.ndarray) -> list[int]:
    """Return the ends of the fewest runs of sorted ``lengths`` (B,) whose rectangles waste little, at most `MOST_BLOCKS`.

    Runs are cut at a few places only (quantiles), chosen together for the least area.
    """
    n = len(lengths)
    places = np.unique(np.linspace(0, n, num=min(n, 16) + 1).astype(int)).tolist()
    # The least area of the first `end` rows in the runs so far, and where these end.
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(min(MOST_BLOCKS, len(places) - 1)):
        best = {
            end: min(
                (area + (end - start) * int(lengths[end - 1]), [*ends, end])
                for start, (area, ends) in best.items()
                if start < end
            )
            for end in places
            if end > min(best)
        }
        if best[n][0] <= MOST_WASTE * lengths.sum():
            break
    return best[n][1]
