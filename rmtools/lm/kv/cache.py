"""Key-value caches of many prefixes of uneven length: appended to, forked, reindexed, joined and packed.

The prefixes lie in a few batches (`rmtools.lm.kv.batch`). A batch in which no row gets a token is not touched, one in which
most rows get none is split, and `PrefixCache.packed` puts rows of similar length together again: neither prefixes that have
finished their step nor the longest ones cost the others much.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from rmtools.lm.kv.batch import MaskedBatch, packed
from rmtools.lm.kv.parted import can_share
from rmtools.lm.kv.shared import LEAST_TOKENS, Shared, joined
from rmtools.lm.memory import out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# With the spare columns of rmtools.lm.kv.layer below 1.3 times what the tokens need.
MOST_WASTE = 1.15
MOST_BATCHES = 4
# What a pass costs beside its tokens, in tokens: the weights are read, and a GPU is idle with few.
PASS_TOKENS = {"cpu": 24, "gpu": 4096}
LOG = logging.getLogger("rmtools")

# What a batch became: logits, None if no row got a token; the batch; which prefixes its rows are.
_Forwarded = tuple[Tensor | None, MaskedBatch, Tensor]


@dataclass(frozen=True)
class PrefixCache:
    """B prefixes. Immutable: every operation returns a new one and keeps the old usable, unless that is in `sole` use.

    Attributes
    ----------
    batches : tuple of MaskedBatch
    rows : tuple of Tensor
        Which prefixes are in each batch, in the order of its rows; together 0 ... B - 1.
    sole : bool
        No one else uses these batches: `forward`, `select` and `packed` take them over, and free a layer when it is copied. This
        cache is not to be used after that; what they return is in sole use too.
    """

    batches: tuple[MaskedBatch, ...]
    rows: tuple[Tensor, ...]
    sole: bool = False

    @classmethod
    def empty(cls, size: int, device: torch.device) -> Self:
        """Return ``size`` prefixes without tokens."""
        return cls((MaskedBatch.empty(size, device),), (torch.arange(size, device=device),))

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    @cached_property
    def length(self) -> Tensor:
        """(B,) tokens of each prefix: the next position id."""
        if self._plain:
            return self.batches[0].length
        out = torch.empty(len(self), dtype=torch.long, device=self.rows[0].device)
        for batch, rows in zip(self.batches, self.rows, strict=True):
            out[rows] = batch.length
        return out

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values reserve, beginnings excepted."""
        return sum(batch.nbytes for batch in self.batches)

    def copied(self) -> "PrefixCache":
        """Return a copy in sole use."""
        batches = (
            batch.select(torch.arange(len(batch), device=batch.length.device)) for batch in self.batches
        )
        return PrefixCache(tuple(batches), self.rows, True)

    def sole_use(self, sole: bool) -> "PrefixCache":
        """Return these prefixes with `sole` set."""
        return self if sole == self.sole else replace(self, sole=sole)

    def _let_go(self, after: "PrefixCache") -> "PrefixCache":
        """Free the batches that ``after`` has not taken over, if no one else uses them; return it."""
        if self.sole:
            for batch in self.batches:
                if not any(batch is kept for kept in after.batches):
                    batch.free()
        return after

    @cached_property
    def _plain(self) -> bool:
        """One batch with the prefixes in order: nothing to gather or scatter."""
        return len(self.batches) == 1 and _is_identity(self.rows[0])

    def forward(
        self, model: "PreTrainedModel", ids: Tensor, present: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, "PrefixCache"]:
        """Append ``ids`` (B, L); return logits (B, L or 1, ·) and the new cache.

        Where ``present`` (B, L) bool is False, a prefix gets no token; logits of one that gets none have no meaning. With
        ``last_only`` a model that can do so returns the logits of the last column alone. A batch too large for the
        device's memory is halved, with one warning. Where few prefixes have long texts, columns are read in several passes.
        """
        if present is not None and not bool((some := present.any(0)).all()):
            # Columns that only prefixes which have ended had a token in; none at all is refused below.
            return self._without_empty(model, ids, present, some, last_only)
        cuts = [] if present is None else column_cuts(present)
        if present is not None and len(cuts) > 1:
            cache: PrefixCache = self
            found: list[Tensor] = []
            for start, end in itertools.pairwise([0, *cuts]):
                part, cache = cache._forward(model, ids[:, start:end], present[:, start:end], last_only)
                found.append(part)
            return found[-1] if last_only else torch.cat(found, dim=1), cache
        return self._forward(model, ids, present, last_only)

    def _without_empty(
        self, model: "PreTrainedModel", ids: Tensor, present: Tensor, some: Tensor, last_only: bool
    ) -> tuple[Tensor, "PrefixCache"]:
        if not bool(some.any()):
            raise ValueError("no prefix gets a token")
        found, cache = self.forward(model, ids[:, some], present[:, some], last_only)
        if last_only:
            return found, cache
        logits = found.new_zeros(*ids.shape, *found.shape[2:])
        logits[:, some] = found
        return logits, cache

    def _forward(
        self, model: "PreTrainedModel", ids: Tensor, present: Tensor | None, last_only: bool
    ) -> tuple[Tensor, "PrefixCache"]:
        if self._plain and present is None:
            return self._assembled(_forward(model, self.batches[0], self.rows[0], ids, None, last_only))
        done: list[_Forwarded] = []
        for batch, rows in zip(self.batches, self.rows, strict=True):
            for part, own, live in (
                [(batch, rows, True)] if present is None else _by_life(batch, rows, present, self.sole)
            ):
                if not live:
                    done.append((None, part, own))
                    continue
                new = None if present is None or bool(present[own].all()) else present[own]
                done += _forward(model, part, own, ids[own], new, last_only)
        return self._assembled(done)

    def _assembled(self, done: list[_Forwarded]) -> tuple[Tensor, "PrefixCache"]:
        cache = PrefixCache(
            tuple(batch for _, batch, _ in done), tuple(rows for _, _, rows in done), self.sole
        )
        self._let_go(cache)
        found = [(logits, rows) for logits, _, rows in done if logits is not None]
        if len(found) == 1 and cache._plain:
            return found[0][0], cache
        logits = found[0][0].new_zeros(len(self), *found[0][0].shape[1:])
        for part, rows in found:
            logits[rows] = part
        return logits, cache

    def select(self, rows: Tensor) -> "PrefixCache":
        """Return the prefixes ``rows`` (B',), repeated or dropped as the index says."""
        if len(rows) == len(self) and _is_identity(rows):
            return self
        if self._plain:
            return PrefixCache(
                (self.batches[0].select(rows, self.sole),),
                (torch.arange(len(rows), device=rows.device),),
                self.sole,
            )
        batches, chosen = [], []
        for batch, own in zip(self.batches, self.rows, strict=True):
            place = torch.full((len(self),), -1, dtype=torch.long, device=rows.device)
            place[own] = torch.arange(len(own), device=rows.device)
            at = place[rows]
            here = (at >= 0).nonzero()[:, 0]
            if len(here):
                whole = len(here) == len(own) and _is_identity(at[here])
                batches.append(batch if whole else batch.select(at[here], self.sole))
                chosen.append(here)
        new = PrefixCache(tuple(batches), tuple(chosen)) if batches else PrefixCache.empty(0, rows.device)
        return self._let_go(new.sole_use(self.sole))

    def join(self, other: "PrefixCache") -> "PrefixCache":
        """Return these prefixes followed by those of ``other``."""
        if not len(other) or not len(self):
            return self if len(self) else other
        shifted = tuple(rows + len(self) for rows in other.rows)
        return PrefixCache(self.batches + other.batches, self.rows + shifted, self.sole and other.sole)

    def as_beginnings(self, model: "PreTrainedModel") -> "PrefixCache":
        """Return the same prefixes, to be continued by many: their keys and values are held once from now on.

        As they are if they are short or the model's attention cannot be parted. This cache is not to be used again.
        """
        own = torch.cat([batch.mask.sum(1) for batch in self.batches])
        if float(own.float().mean()) < LEAST_TOKENS or not can_share(model):
            return self
        cache = self.packed()
        device = own.device
        owner = torch.empty(len(self), dtype=torch.long, device=device)
        owner[torch.cat(cache.rows)] = torch.arange(len(self), device=device)
        before = joined([(b.shared, torch.arange(len(b), device=device)) for b in cache.batches])
        shared = Shared(tuple(batch.as_group() for batch in cache.batches), owner, before)
        batch = replace(MaskedBatch.empty(len(self), device), length=self.length, shared=shared)
        return PrefixCache((batch,), (torch.arange(len(self), device=device),), self.sole)

    def packed(self) -> "PrefixCache":
        """Return the same prefixes in as few batches as hold them with little waste; itself if they already are."""
        if self._plain and self.batches[0].full:
            return self._without_unused()
        # What lies together has the same beginnings.
        kinds: dict[tuple[int, bool], list[int]] = {}
        for i, batch in enumerate(self.batches):
            key = 0 if batch.shared is None else id(batch.shared.groups)
            kinds.setdefault((key, batch.cache is None), []).append(i)
        batches: list[MaskedBatch] = []
        chosen: list[Tensor] = []
        for kind in kinds.values():
            held = [(self.batches[i], self.rows[i]) for i in kind]
            for batch, rows in self._packed(held) or held:
                batches.append(batch)
                chosen.append(rows)
        same = all(a is b for a, b in zip(batches, self.batches, strict=False))
        packed_ones = self if same else PrefixCache(tuple(batches), tuple(chosen), self.sole)
        return packed_ones._without_unused()

    def _packed(self, held: list[tuple[MaskedBatch, Tensor]]) -> list[tuple[MaskedBatch, Tensor]] | None:
        """Return some batches packed, and which prefixes are in them; None if they already are."""
        own = torch.zeros(len(self), dtype=torch.long, device=self.rows[0].device)
        for batch, rows in held:
            own[rows] = batch.mask.sum(1)
        members = torch.cat([rows for _, rows in held]).sort().values.cpu().numpy()
        lengths = own.cpu().numpy()[members]
        order = np.argsort(lengths, kind="stable")
        cuts = cut_by_length(lengths[order])
        taken = sum(len(batch) * batch.width for batch, _ in held)
        if len(held) <= len(cuts) and taken <= MOST_WASTE * lengths.sum():
            return None
        runs, chosen = [], []
        for run in np.split(members[order], cuts[:-1]):
            wanted = torch.zeros(len(self), dtype=torch.bool, device=own.device)
            wanted[torch.as_tensor(np.sort(run), device=wanted.device)] = True
            parts = [(batch, wanted[rows].nonzero()[:, 0], rows) for batch, rows in held]
            parts = [part for part in parts if len(part[1])]
            runs.append([(batch, at) for batch, at, _ in parts])
            chosen.append(torch.cat([rows[at] for _, at, rows in parts]))
        return list(zip(packed(runs, self.sole), chosen, strict=True))

    def _without_unused(self) -> "PrefixCache":
        """Let go of beginnings that no prefix has any more, if they are most of them."""
        found = [batch.shared for batch in self.batches if batch.shared is not None]
        one_set = len({id(shared.groups) for shared in found}) == 1
        if not len(self) or len(found) < len(self.batches) or not one_set:
            return self
        fewer = replace(found[0], owner=torch.cat([shared.owner for shared in found])).narrowed()
        if fewer.groups is found[0].groups:
            return self
        owners = fewer.owner.split([len(batch) for batch in self.batches])
        batches = [
            replace(batch, shared=replace(fewer, owner=owner))
            for batch, owner in zip(self.batches, owners, strict=True)
        ]
        return PrefixCache(tuple(batches), self.rows, self.sole)


def begun(
    model: "PreTrainedModel", rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[PrefixCache, int]:
    """Return what all ``rows`` (B lists of token ids) begin with, read once, as B prefixes; and how many tokens that is.

    None, and empty prefixes, if it is short or the model's attention cannot be parted. A token at least is left of every row.
    """
    most = min(map(len, rows)) - 1
    same = (len({row[k] for row in rows}) == 1 for k in range(most))
    common = next((k for k, equal in enumerate(same) if not equal), most)
    if len(rows) < 2 or common < LEAST_TOKENS or not can_share(model):
        return PrefixCache.empty(len(rows), device), 0
    ids = torch.tensor([list(rows[0][:common])], device=device)
    _, cache = PrefixCache.empty(1, device).forward(model, ids, last_only=True)
    everywhere = torch.zeros(len(rows), dtype=torch.long, device=device)
    return cache.as_beginnings(model).select(everywhere), common


def _by_life(
    batch: MaskedBatch, rows: Tensor, present: Tensor, consume: bool
) -> list[tuple[MaskedBatch, Tensor, bool]]:
    """Return batches, the prefixes in them, and whether they get a token: those without one are split off if they are most."""
    some = present[rows].any(1)
    n = int(some.sum())
    if n == 0 or n > len(rows) // 2 or batch.cache is None:
        return [(batch, rows, n > 0)]
    live, waiting = some.nonzero()[:, 0], (~some).nonzero()[:, 0]
    one, other = batch.split([live, waiting], consume)
    return [(one, rows[live], True), (other, rows[waiting], False)]


def _forward(
    model: "PreTrainedModel",
    batch: MaskedBatch,
    rows: Tensor,
    ids: Tensor,
    present: Tensor | None,
    last_only: bool,
) -> list[_Forwarded]:
    """Append to a batch, in halves if memory does not suffice."""
    try:
        logits, after = batch.forward(model, ids, present, last_only)
        return [(logits, after, rows)]
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error) or len(rows) < 2:
            raise
    _warn_once(len(rows))
    if ids.is_cuda:
        torch.cuda.empty_cache()
    done: list[_Forwarded] = []
    for half in torch.arange(len(rows), device=rows.device).chunk(2):
        part = None if present is None else present[half]
        done += _forward(model, batch.select(half), rows[half], ids[half], part, last_only)
    return done


_warned: list[int] = []


def _warn_once(rows: int) -> None:
    if not _warned:
        _warned.append(rows)
        LOG.warning("too little memory for %d prefixes in one pass: halved, as often as needed", rows)


def _is_identity(rows: Tensor) -> bool:
    """Whether ``rows`` is 0, 1, 2, ..."""
    return bool((rows == torch.arange(len(rows), device=rows.device)).all())


def column_cuts(present: Tensor) -> list[int]:
    """Return the ends of runs of the columns of ``present`` (B, L) that are read fastest one after the other.

    A pass takes as long as `PASS_TOKENS` more tokens; prefixes without a token are left out of it if they are most.
    """
    n, width = present.shape
    if width == 1:
        return [1]
    counts = present.sum(0).cpu().numpy()
    counts = np.where(counts > n // 2, n, counts)
    changes = np.flatnonzero(np.diff(counts)) + 1
    some = np.unique(np.linspace(0, len(changes) - 1, num=min(len(changes), 16)).astype(int))
    places = [0, *changes[some].tolist(), width]
    more = PASS_TOKENS["cpu" if present.device.type == "cpu" else "gpu"]
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for k, end in enumerate(places[1:], start=1):
        best[end] = min(
            (best[start][0] + more + (end - start) * int(counts[start:end].max()), [*best[start][1], end])
            for start in places[:k]
        )
    return best[width][1]


def cut_by_length(lengths: np.ndarray) -> list[int]:
    """Return the ends of the fewest runs of sorted ``lengths`` (B,) whose rectangles waste little, at most `MOST_BATCHES`.

    Runs are cut at quantiles only, chosen together for the least area.
    """
    n = len(lengths)
    places = np.unique(np.linspace(0, n, num=min(n, 16) + 1).astype(int)).tolist()
    # The least area of the first `end` rows in the runs so far, and where these end.
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for _ in range(min(MOST_BATCHES, len(places) - 1)):
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
