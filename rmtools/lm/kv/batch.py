"""A batch of prefixes of different length in one tensor: as many columns as the longest row needs, holes masked out.

A hole is a column that a row does not use. Attention masks it and no position id counts it, so every row's logits are
those of its own tokens alone.
"""

import copy
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rmtools.lm.architectures import require_forks, require_window, with_cache
from rmtools.lm.kv.holes import require_holes
from rmtools.lm.kv.shared import Group, Shared, beginnings, joined
from rmtools.lm.memory import require_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class MaskedBatch:
    """B prefixes in W columns. Immutable: an operation returns a new one and keeps the old usable, unless told to consume it.

    Attributes
    ----------
    cache : transformers.DynamicCache or None
        Keys and values, (B, heads, W, d) a layer; None before the first token.
    mask : Tensor
        (B, W) bool, False at holes.
    length : Tensor
        (B,) tokens of each prefix, beginnings included: the next position id.
    full : bool
        No holes anywhere: attention needs no mask.
    shared : Shared or None
        Beginnings whose keys and values are not among the columns.
    """

    cache: Any
    mask: Tensor
    length: Tensor
    full: bool = True
    shared: Shared | None = None

    @classmethod
    def empty(cls, size: int, device: torch.device) -> Self:
        """Return ``size`` prefixes without tokens."""
        return cls(
            None,
            torch.zeros(size, 0, dtype=torch.bool, device=device),
            torch.zeros(size, dtype=torch.long, device=device),
        )

    def __len__(self) -> int:
        return len(self.length)

    @property
    def width(self) -> int:
        """Columns in use."""
        return self.mask.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values of the columns reserve."""
        return (
            0 if self.cache is None else sum(layer.nbytes for layer in self.cache.layers if layer is not None)
        )

    def forward(
        self, model: "PreTrainedModel", ids: Tensor, present: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, "MaskedBatch"]:
        """Append ``ids`` (B, L); return logits (B, L or 1, ·) and the new batch.

        Where ``present`` (B, L) bool is False, a row gets no token. With ``last_only`` a model that can do so returns the
        logits of the last column alone.
        """
        from rmtools.lm.kv.layer import SPARE_IF_FULL, SPARE_IF_RAGGED

        new = torch.ones_like(ids, dtype=torch.bool) if present is None else present
        mask = torch.cat([self.mask, new], dim=1)
        begun = 0 if self.shared is None else self.shared.columns
        require_window(model.config, begun + mask.shape[1])
        full = self.full and present is None
        spare = SPARE_IF_FULL if full else SPARE_IF_RAGGED
        if self.cache is not None:
            self._reserve(ids.shape[1], spare)
        cache = _fork(self.cache) if self.cache is not None else _new_cache(model)
        for layer in cache.layers:
            layer.spare = spare
        positions = self.length[:, None] + (new.cumsum(1) - 1).clamp(min=0)
        options = {"logits_to_keep": 1} if last_only and _keeps_logits(model) else {}
        with attention(ids.device), beginnings(model, self.shared):
            output = model(
                input_ids=ids,
                position_ids=positions,
                use_cache=True,
                attention_mask=None if full else mask.long(),
                **with_cache(model, cache),
                **options,
            )
        return output.logits, MaskedBatch(cache, mask, self.length + new.sum(1), full, self.shared)

    def _reserve(self, more: int, spare: float) -> None:
        """Make room for ``more`` columns, a layer after the other: what was there is freed before the next one grows."""
        require_memory(int(self.nbytes * spare) // 2, self.length.device)
        for layer in self.cache.layers:
            layer.reserve(more, spare)

    def select(self, rows: Tensor, consume: bool = False) -> "MaskedBatch":
        """Return the prefixes ``rows`` (B',), repeated or dropped as the index says; ``consume`` as in `split`."""
        return self.split([rows], consume)[0]

    def split(self, parts: Sequence[Tensor], consume: bool = False) -> list["MaskedBatch"]:
        """Return a batch for each of ``parts``, rows (B',) of this one.

        With ``consume`` each layer is freed when it is copied: this batch is not to be used again.
        """
        caches: list[Any] = [None] * len(parts)
        if self.cache is not None:
            wanted = self.nbytes * sum(map(len, parts)) // max(1, len(self))
            require_memory(wanted - self.nbytes if consume else wanted, self.length.device)
            caches = [copy.copy(self.cache) for _ in parts]
            for cache in caches:
                cache.layers = []
            for i, layer in enumerate(self.cache.layers):
                for cache, rows in zip(caches, parts, strict=True):
                    cache.layers.append(layer.selected(rows))
                if consume:
                    self.cache.layers[i] = layer = None
        masks = [self.mask[rows] for rows in parts]
        return [
            MaskedBatch(
                cache,
                mask,
                self.length[rows],
                self.full or bool(mask.all()),
                None if self.shared is None else self.shared.select(rows),
            )
            for cache, mask, rows in zip(caches, masks, parts, strict=True)
        ]

    def as_group(self) -> Group:
        """Return the tokens of the columns as beginnings of others; this batch is not to be used again."""
        layers = []
        for i, layer in enumerate(self.cache.layers):
            layers.append((layer.keys.clone(), layer.values.clone()))
            self.cache.layers[i] = None
        return Group.of(layers, self.mask)

    def free(self) -> None:
        """Let go of keys and values: this batch is not to be used again."""
        if self.cache is not None:
            self.cache.layers[:] = [None] * len(self.cache.layers)


def packed(runs: Sequence[Sequence[tuple[MaskedBatch, Tensor]]], consume: bool = False) -> list[MaskedBatch]:
    """Return a batch for each of ``runs``: rows (B',) of each of its parts in this order, right-aligned, without spare holes.

    The parts have the same beginnings, if any. ``consume`` as in `MaskedBatch.split`.
    """
    parts = [part for run in runs for part in run]
    lengths = [torch.cat([batch.length[rows] for batch, rows in run]) for run in runs]
    shared = [joined([(batch.shared, rows) for batch, rows in run]) for run in runs]
    own = [torch.cat([batch.mask[rows].sum(1) for batch, rows in run]) for run in runs]
    widths = [int(length.max()) for length in own]
    columns = [
        [_right_columns(batch.mask[rows], width) for batch, rows in run]
        for run, width in zip(runs, widths, strict=True)
    ]
    sources = {id(batch): batch.cache for batch, _ in parts if batch.cache is not None}.values()
    caches: list[Any] = [None] * len(runs)
    if sources:
        from rmtools.lm.kv.layer import concatenated

        held = sum(batch.nbytes for batch in {id(b): b for b, _ in parts}.values())
        if not consume:
            require_memory(held, parts[0][1].device)
        first = next(iter(sources))
        caches = [copy.copy(first) if width else None for width in widths]
        for cache in caches:
            if cache is not None:
                cache.layers = []
        for i in range(len(first.layers)):
            for cache, run, kept, width in zip(caches, runs, columns, widths, strict=True):
                if cache is not None:
                    layers = [(b.cache.layers[i], rows, c) for (b, rows), c in zip(run, kept, strict=True)]
                    cache.layers.append(concatenated(layers, width))
                    del layers
            if consume:
                for source in sources:
                    source.layers[i] = None
    masks = [
        torch.arange(width, device=n.device)[None, :] >= width - n[:, None]
        for n, width in zip(own, widths, strict=True)
    ]
    return [
        MaskedBatch(cache, mask, length, bool(mask.all()), begun)
        for cache, mask, length, begun in zip(caches, masks, lengths, shared, strict=True)
    ]


def _right_columns(mask: Tensor, width: int) -> Tensor:
    """Return (B, width) the columns of each row's tokens in order, right-aligned; any columns stand left of them."""
    order = torch.argsort(mask.long(), dim=1, stable=True)
    if order.shape[1] >= width:
        return order[:, order.shape[1] - width :]
    return torch.nn.functional.pad(order, (width - order.shape[1], 0))


def _fork(cache: Any) -> Any:
    """Return a cache that shares the tensors of ``cache`` until either appends."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


def _new_cache(model: "PreTrainedModel") -> Any:
    """Return an empty cache for ``model``; raise ``UserError`` if it cannot be forked, or holes would count as tokens."""
    from transformers import DynamicCache

    from rmtools.lm.kv.layer import GrowingLayer

    require_forks(model.config)
    require_holes(model)
    cache = DynamicCache(config=model.config)
    if cache.layers:
        cache.layers = [GrowingLayer() for _ in cache.layers]
    else:
        cache.layer_class_to_replicate = GrowingLayer
    return cache


# cuDNN compiles its kernels anew for every shape, and here nearly every pass has another one.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which scaled dot-product attention on a GPU chooses among `BACKENDS`."""
    return sdpa_kernel(BACKENDS) if device.type == "cuda" else nullcontext()


def _keeps_logits(model: "PreTrainedModel") -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters
