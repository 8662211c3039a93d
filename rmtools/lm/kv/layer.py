"""Keys and values of one layer in a buffer with spare columns, so that appending a token writes one token.

Concatenating, as transformers does, copies the whole cache for every token. Here whoever holds the last column may write
behind it; an older holder that appends too gets a copy, so no one ever sees another's tokens.
"""

from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from rmtools.lm.kv.pages import new_buffer

# Spare columns, as a share of those in use: more if no row wastes any, few if rows differ in length.
LEAST_SPARE, SPARE_IF_FULL, SPARE_IF_RAGGED = 4, 1 / 4, 1 / 12


class Buffer:
    """Keys and values (B, heads, C, d) of one layer, of which the first ``filled`` columns hold someone's tokens."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        self.keys, self.values, self.filled = keys, values, filled

    @classmethod
    def like(cls, keys: Tensor, values: Tensor, rows: int, width: int, spare: float) -> Self:
        """Return a buffer of ``rows`` rows with ``width`` filled columns, not yet written, and spare ones behind."""
        columns = width + max(LEAST_SPARE, int(width * spare))
        shape = (rows, keys.shape[1], columns)
        return cls(
            new_buffer(keys, *shape, keys.shape[3]), new_buffer(values, *shape, values.shape[3]), width
        )

    def takes(self, width: int, more: int) -> bool:
        """Whether ``more`` columns can be written behind ``width`` without anyone seeing it."""
        fits = self.filled == width and width + more <= self.keys.shape[2]
        return fits and (torch.is_inference_mode_enabled() or not self.keys.is_inference())


class GrowingLayer(DynamicLayer):
    """A layer of a transformers cache whose ``keys`` and ``values`` are views of a buffer's first columns.

    ``spare`` is the share of columns to reserve when it grows. A layer that reads another's keys and values never holds any.
    """

    buffer: Buffer | None = None
    spare = SPARE_IF_FULL
    keys: Any
    values: Any

    @classmethod
    def of(cls, buffer: Buffer, spare: float) -> Self:
        """Return the layer that holds all filled columns of ``buffer``."""
        layer = cls()
        layer.spare = spare
        layer.lazy_initialization(buffer.keys, buffer.values)
        layer._view(buffer)
        return layer

    def _view(self, buffer: Buffer) -> None:
        self.buffer, end = buffer, buffer.filled
        self.keys, self.values = buffer.keys[:, :, :end], buffer.values[:, :, :end]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, heads, L, d); return all of them."""
        if torch.is_grad_enabled() and key_states.requires_grad:
            # Writing in place would break the graph.
            self.buffer = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        width, more = self.get_seq_length(), key_states.shape[2]
        buffer, end = self.buffer, width + more
        if buffer is None or not buffer.takes(width, more):
            buffer = Buffer.like(key_states, value_states, len(key_states), end, self.spare)
            if width:
                buffer.keys[:, :, :width], buffer.values[:, :, :width] = self.keys, self.values
        buffer.keys[:, :, width:end], buffer.values[:, :, width:end] = key_states, value_states
        buffer.filled = end
        self._view(buffer)
        return self.keys, self.values

    def reserve(self, more: int, spare: float) -> None:
        """Move to a larger buffer if this one is full; the contents stay."""
        width, buffer = self.get_seq_length(), self.buffer
        if buffer is None or buffer.filled != width or width + more <= buffer.keys.shape[2]:
            return
        larger = Buffer.like(buffer.keys, buffer.values, len(buffer.keys), width + more, spare)
        larger.keys[:, :, :width], larger.values[:, :, :width] = self.keys, self.values
        larger.filled = width
        self._view(larger)

    def selected(self, rows: Tensor) -> "GrowingLayer":
        """Return rows ``rows`` (B',) in a buffer of their own, on the layer's device."""
        if not self.is_initialized:
            return GrowingLayer()
        rows = rows.to(self.keys.device)
        width = self.keys.shape[2]
        buffer = Buffer.like(self.keys, self.values, len(rows), width, self.spare)
        torch.index_select(self.keys, 0, rows, out=buffer.keys[:, :, :width])
        torch.index_select(self.values, 0, rows, out=buffer.values[:, :, :width])
        return GrowingLayer.of(buffer, self.spare)

    @property
    def nbytes(self) -> int:
        """Bytes reserved, spare columns included."""
        if self.buffer is not None:
            return self.buffer.keys.nbytes + self.buffer.values.nbytes
        return 0 if not self.is_initialized else self.keys.nbytes + self.values.nbytes


def concatenated(parts: list[tuple[GrowingLayer, Tensor, Tensor]], width: int) -> GrowingLayer:
    """Return one layer made of rows (B',) of each part, of which it keeps columns (B', width), right-aligned."""
    first = parts[0][0]
    if not first.is_initialized:
        return GrowingLayer()
    n = sum(len(rows) for _, rows, _ in parts)
    buffer = Buffer.like(first.keys, first.values, n, width, SPARE_IF_RAGGED)
    start = 0
    for layer, rows, columns in parts:
        end = start + len(rows)
        rows, columns = rows.to(layer.keys.device), columns.to(layer.keys.device)
        for into, source in ((buffer.keys, layer.keys), (buffer.values, layer.values)):
            at = columns[:, None, :, None].expand(-1, source.shape[1], -1, source.shape[3])
            into[start:end, :, :width] = source.index_select(0, rows).gather(2, at)
        start = end
    return GrowingLayer.of(buffer, SPARE_IF_RAGGED)
