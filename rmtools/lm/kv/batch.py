"""A rectangle of prefixes: as many rows as it has, as many columns as its longest row needs, holes masked out.

A column that a row does not use is a hole: masked out of attention, and counted by no position id. So rows of
different lengths share one tensor and every row's logits are those of its own tokens alone.
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

from rmtools.lm.architectures import require_forks, require_window

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Block:
    """B prefixes in W columns. Immutable: every operation returns a new one and keeps the old usable.

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

    def __len__(self) -> int:
        return len(self.length)

    @property
    def width(self) -> int:
        """Columns in use."""
        return self.mask.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values reserve."""
        return 0 if self.cache is None else sum(layer.nbytes for layer in self.cache.layers)

    def forward(
        self, model: "PreTrainedModel", ids: Tensor, present: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, "Block"]:
        """Append ``ids`` (B, L), where ``present`` (B, L) bool is False nothing; return logits (B, L or 1, ·) and the new block.

        With ``last_only`` only the logits of the last column are wanted (where the model can leave the others out).
        """
        from rmtools.lm.kv.layer import ROOM_IF_FULL, ROOM_IF_RAGGED

        cache = fork(self.cache) if self.cache is not None else new_cache(model)
        new = torch.ones_like(ids, dtype=torch.bool) if present is None else present
        mask = torch.cat([self.mask, new], dim=1)
        require_window(model.config, mask.shape[1])
        full = self.full and present is None
        for layer in cache.layers:
            layer.share = ROOM_IF_FULL if full else ROOM_IF_RAGGED
        positions = self.length[:, None] + (new.cumsum(1) - 1).clamp(min=0)
        wanted = {"logits_to_keep": 1} if last_only and keeps_logits(model) else {}
        with attention(ids.device):
            output = model(
                input_ids=ids,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                attention_mask=None if full else mask.long(),
                **wanted,
            )
        return output.logits, Block(cache, mask, self.length + new.sum(1), full)

    def select(self, rows: Tensor) -> "Block":
        """Return the prefixes ``rows`` (B',), repeated or dropped as the index says."""
        cache = None
        if self.cache is not None:
            cache = copy.copy(self.cache)
            cache.layers = [layer.selected(rows) for layer in self.cache.layers]
        mask = self.mask[rows]
        return Block(cache, mask, self.length[rows], self.full or bool(mask.all()))


def merged(parts: Sequence[tuple[Block, Tensor]]) -> Block:
    """Return one block without needless columns: rows (B',) of each of ``parts``, tokens to the right, in this order."""
    length = torch.cat([block.length[rows] for block, rows in parts])
    width = int(length.max())
    columns = [right_columns(block.mask[rows], width) for block, rows in parts]
    cache = None
    if parts[0][0].cache is not None and width:
        from rmtools.lm.kv.layer import gathered

        cache = copy.copy(parts[0][0].cache)
        cache.layers = [
            gathered(
                [(b.cache.layers[i], rows, c) for (b, rows), c in zip(parts, columns, strict=True)], width
            )
            for i in range(len(cache.layers))
        ]
    behind = torch.arange(width, device=length.device)[None, :]
    mask = behind >= width - length[:, None]
    return Block(cache, mask, length, bool(mask.all()))


def right_columns(mask: Tensor, width: int) -> Tensor:
    """Return (B, width) the columns of each row's tokens in order, on the right; what stands left of them is any column."""
    order = torch.argsort(mask.long(), dim=1, stable=True)
    if order.shape[1] >= width:
        return order[:, order.shape[1] - width :]
    return torch.nn.functional.pad(order, (width - order.shape[1], 0))


def fork(cache: Any) -> Any:
    """Return a cache that shares the tensors of ``cache``: what is appended to one is not seen by the other."""
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


def new_cache(model: "PreTrainedModel") -> Any:
    """Return an empty cache for ``model``; raises ``UserError`` where it cannot be forked."""
    from transformers import DynamicCache

    from rmtools.lm.kv.layer import ColumnLayer

    require_forks(model.config)
    cache = DynamicCache(config=model.config)
    if cache.layers:
        cache.layers = [ColumnLayer() for _ in cache.layers]
    else:
        cache.layer_class_to_replicate = ColumnLayer
    return cache


# cuDNN's kernels are compiled anew for every shape, and here nearly every pass has one of its own.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which scaled dot-product attention chooses among `BACKENDS`; a CPU has but its own."""
    return sdpa_kernel(BACKENDS) if device.type == "cuda" else nullcontext()


def keeps_logits(model: "PreTrainedModel") -> bool:
    """Whether the model can leave out the logits of all but the last token."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
