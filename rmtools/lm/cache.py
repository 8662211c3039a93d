"""Key-value caches of ragged prefixes: appended to, forked, reindexed, and compacted.

A column of the cache that a row does not use is a hole: masked out of attention, and counted by no position
id. So rows of different lengths share one tensor and every row's logits are those of its own tokens alone.
"""

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PrefixCache:
    """A batch of B prefixes in W columns. Immutable: every operation returns a new one and keeps the old usable.

    Attributes
    ----------
    cache : transformers.DynamicCache or None
        Keys and values, (B, heads, W, d) a layer; None before the first token.
    mask : Tensor
        (B, W) bool, False at holes.
    length : Tensor
        (B,) tokens of each prefix: the next position id.
    full : bool
        No holes anywhere: attention needs no mask.
    """

    cache: Any
    mask: Tensor
    length: Tensor
    full: bool = True

    @classmethod
    def empty(cls, batch: int, device: torch.device) -> Self:
        """Return ``batch`` prefixes without tokens."""
        return cls(
            None,
            torch.zeros(batch, 0, dtype=torch.bool, device=device),
            torch.zeros(batch, dtype=torch.long, device=device),
        )

    def forward(
        self, model: "PreTrainedModel", ids: Tensor, present: Tensor | None = None
    ) -> tuple[Tensor, "PrefixCache"]:
        """Append ``ids`` (B, L), where ``present`` (B, L) bool is False nothing; return logits (B, L, ·) and the new cache."""
        from transformers import DynamicCache

        cache = fork(self.cache) if self.cache is not None else DynamicCache(config=model.config)
        new = torch.ones_like(ids, dtype=torch.bool) if present is None else present
        mask = torch.cat([self.mask, new], dim=1)
        full = self.full and present is None
        positions = self.length[:, None] + (new.cumsum(1) - 1).clamp(min=0)
        output = model(
            input_ids=ids,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            attention_mask=None if full else mask.long(),
        )
        return output.logits, PrefixCache(cache, mask, self.length + new.sum(1), full)

    def select(self, rows: Tensor) -> "PrefixCache":
        """Return the prefixes ``rows`` (B',), repeated or dropped as the index says; holes are squeezed out if many."""
        if len(rows) == len(self.length) and bool(
            (rows == torch.arange(len(rows), device=rows.device)).all()
        ):
            return self
        cache = None
        if self.cache is not None:
            cache = fork(self.cache)
            for layer in cache.layers:
                layer.keys, layer.values = (
                    layer.keys.index_select(0, rows),
                    layer.values.index_select(0, rows),
                )
        return replace(self, cache=cache, mask=self.mask[rows], length=self.length[rows])._compact()

    def _compact(self) -> "PrefixCache":
        """Drop holes once they are over a quarter of the columns that the longest prefix needs."""
        width = int(self.length.max()) if len(self.length) and not self.full else self.mask.shape[1]
        if self.full or self.mask.shape[1] <= 1.25 * width:
            return self
        order = torch.argsort(self.mask.long(), dim=1, stable=True)[:, -width:]
        cache = fork(self.cache)
        for layer in cache.layers:
            at = order[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.gather(2, at), layer.values.gather(2, at)
        mask = self.mask.gather(1, order)
        return replace(self, cache=cache, mask=mask, full=bool(mask.all()))


def fork(cache: Any) -> Any:
    """Return a cache that shares the tensors of ``cache``: appending makes new ones, so neither sees the other."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new
