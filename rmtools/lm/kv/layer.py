"""Keys and values of one layer in columns with room behind them, so that a token appended is a token written.

Concatenating instead copies the whole cache for every token. Whoever holds the last column may write behind it;
an older holder that appends as well gets a copy, so no one ever sees another's tokens.
"""

from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

# Of the columns in use: much where no row wastes any, little where rows are of different length.
LEAST_ROOM, ROOM_IF_FULL, ROOM_IF_RAGGED = 4, 1 / 4, 1 / 12


def with_room(width: int, share: float) -> int:
    """Return how many columns to reserve where ``width`` are in use, with ``share`` more."""
    return width + max(LEAST_ROOM, int(width * share))


class Store:
    """The memory of one layer: keys and values (B, heads, C, d), and how many columns hold tokens of someone."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        self.keys, self.values, self.filled = keys, values, filled

    @classmethod
    def like(cls, keys: Tensor, values: Tensor, rows: int, width: int, share: float) -> Self:
        """Return room for ``width`` filled columns and some more, of ``rows`` rows, as yet unwritten."""
        room = (rows, keys.shape[1], with_room(width, share))
        return cls(keys.new_empty(*room, keys.shape[3]), values.new_empty(*room, values.shape[3]), width)

    def takes(self, width: int, more: int) -> bool:
        """Whether ``more`` columns can be written behind ``width`` without anyone seeing it."""
        fits = self.filled == width and width + more <= self.keys.shape[2]
        return fits and (torch.is_inference_mode_enabled() or not self.keys.is_inference())


class ColumnLayer(DynamicLayer):
    """A layer of a transformers cache over a `Store`; ``keys`` and ``values`` are views of its first columns.

    ``share`` is the room to reserve when it grows, of the columns in use.
    """

    store: Store | None = None
    share = ROOM_IF_FULL
    keys: Any
    values: Any

    @classmethod
    def of(cls, store: Store) -> Self:
        """Return the layer that holds all filled columns of ``store``."""
        layer = cls()
        layer.lazy_initialization(store.keys, store.values)
        return layer._at(store, store.filled)

    def _at(self, store: Store, width: int) -> Self:
        self.store, self.keys, self.values = store, store.keys[:, :, :width], store.values[:, :, :width]
        return self

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, heads, L, d) behind those there are; return all of them."""
        if torch.is_grad_enabled() and key_states.requires_grad:
            # Writing in place would break the graph.
            self.store = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        width, more = self.get_seq_length(), key_states.shape[2]
        if self.store is None or not self.store.takes(width, more):
            store = Store.like(key_states, value_states, len(key_states), width + more, self.share)
            if width:
                store.keys[:, :, :width], store.values[:, :, :width] = self.keys, self.values
            self.store = store
        end = width + more
        self.store.keys[:, :, width:end], self.store.values[:, :, width:end] = key_states, value_states
        self.store.filled = end
        self._at(self.store, end)
        return self.keys, self.values

    def selected(self, rows: Tensor) -> "ColumnLayer":
        """Return rows ``rows`` (B',) in memory of their own."""
        width = self.keys.shape[2]
        store = Store.like(self.keys, self.values, len(rows), width, self.share)
        torch.index_select(self.keys, 0, rows, out=store.keys[:, :, :width])
        torch.index_select(self.values, 0, rows, out=store.values[:, :, :width])
        return ColumnLayer.of(store)

    @property
    def nbytes(self) -> int:
        """Bytes reserved, the room behind included."""
        if self.store is not None:
            return self.store.keys.nbytes + self.store.values.nbytes
        return 0 if not self.is_initialized else self.keys.nbytes + self.values.nbytes


def gathered(parts: list[tuple["ColumnLayer", Tensor, Tensor]], width: int) -> ColumnLayer:
    """Return one layer of ``width`` columns made of ``parts``: (layer, rows (B',), columns (B', width), right-aligned)."""
    first = parts[0][0]
    store = Store.like(
        first.keys, first.values, sum(len(rows) for _, rows, _ in parts), width, ROOM_IF_RAGGED
    )
    start = 0
    for layer, rows, columns in parts:
        end = start + len(rows)
        for into, source in ((store.keys, layer.keys), (store.values, layer.values)):
            at = columns[:, None, :, None].expand(-1, source.shape[1], -1, source.shape[3])
            into[start:end, :, :width] = source.index_select(0, rows).gather(2, at)
        start = end
    return ColumnLayer.of(store)
