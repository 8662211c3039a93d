"""Beginnings that many prefixes share, such as prompts: their keys and values are held and read once.

Attention over the tokens of a prefix is that over its beginning and that over its own tokens, put together by the sums of
their exponentials. A query meets the keys of its beginning beside the queries of all prefixes that have the same one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "rmtools_shared"
# Below it, a few more operations a layer take longer than reading the tokens again.
LEAST_TOKENS = 48


@dataclass(frozen=True, eq=False)
class Group:
    """P beginnings of similar length.

    Attributes
    ----------
    layers : list of (Tensor, Tensor)
        Keys and values (P, heads, T, d) of each layer.
    mask : Tensor
        (P, T) bool, False where a shorter one has no token.
    hidden : Tensor or None
        (P, 1, 1, T) added to the scores: 0, or the lowest number at holes; None without holes.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    hidden: Tensor | None

    @classmethod
    def of(cls, layers: list[tuple[Tensor, Tensor]], mask: Tensor) -> Self:
        """Return the beginnings with these keys and values."""
        hidden = None
        if not bool(mask.all()):
            zero = torch.zeros(mask.shape, dtype=layers[0][0].dtype, device=mask.device)
            hidden = zero.masked_fill(~mask, torch.finfo(zero.dtype).min)[:, None, None]
        return cls(layers, mask, hidden)

    def select(self, rows: Tensor) -> "Group":
        """Return a copy of some."""
        layers = [(k[rows.to(k.device)], v[rows.to(v.device)]) for k, v in self.layers]
        return Group.of(layers, self.mask[rows])


@dataclass(frozen=True)
class _Place:
    """Which prefixes (R,) begin with one of a group, and their places in a rectangle (P, most); None: all, in order."""

    rows: Tensor | None
    slot: Tensor | None
    most: int


@dataclass(frozen=True, eq=False)
class Shared:
    """What B prefixes begin with.

    Attributes
    ----------
    groups : tuple of Group
        The P beginnings, numbered through.
    owner : Tensor
        (B,) which of them each prefix has.
    before : Shared or None
        What the P beginnings begin with themselves.
    """

    groups: tuple[Group, ...]
    owner: Tensor
    before: "Shared | None" = None

    def select(self, rows: Tensor) -> "Shared":
        """Return those of the prefixes ``rows`` (B',)."""
        return replace(self, owner=self.owner[rows])

    @property
    def columns(self) -> int:
        """Tokens of the longest beginning, at most."""
        own = max(group.mask.shape[1] for group in self.groups)
        return own if self.before is None else own + self.before.columns

    @cached_property
    def _above(self) -> "Shared | None":
        """What comes before each prefix's beginning."""
        return None if self.before is None else self.before.select(self.owner)

    @cached_property
    def places(self) -> list[_Place]:
        """Where the prefixes are in the rectangle of each group."""
        found, first = [], 0
        for group in self.groups:
            n = len(group.mask)
            rows = ((self.owner >= first) & (self.owner < first + n)).nonzero()[:, 0]
            own = self.owner[rows] - first
            counts = torch.bincount(own, minlength=n)
            most = int(counts.max())
            order = torch.argsort(own, stable=True)
            rank = torch.empty_like(own)
            rank[order] = torch.arange(len(own), device=own.device) - (counts.cumsum(0) - counts)[own[order]]
            slot = own * most + rank
            whole = len(rows) == len(self.owner) == n * most and bool((slot == rows).all())
            found.append(_Place(None, None, most) if whole else _Place(rows, slot, most))
            first += n
        return found

    def attend(
        self, layer: int, query: Tensor, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        """Return what queries (B, H, L, d) find in their beginnings, (B, H, L, d), and the logs of their sums (B, H, L, 1)."""
        found = self._attend(layer, query, scaling, softcap)
        if self._above is None:
            return found
        return together(found, self._above.attend(layer, query, scaling, softcap))

    def _attend(
        self, layer: int, query: Tensor, scaling: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        out = sums = None
        for group, place in zip(self.groups, self.places, strict=True):
            if not place.most:
                continue
            keys, values = group.layers[layer]
            heads, n, (_, all_heads, length, d) = keys.shape[1], len(keys), query.shape
            mine = query if place.rows is None else _spread(query, place, n)
            # Heads that share keys, prefixes that share a beginning, and tokens of a step are queries to the same keys.
            each = all_heads // heads
            asked = mine.view(n, place.most, heads, each, length, d).transpose(1, 2).reshape(n, heads, -1, d)
            read, log_sum = attend(asked, keys, values, scaling, softcap, group.hidden)
            read, log_sum = (
                x.view(n, heads, place.most, each, length, -1)
                .transpose(1, 2)
                .reshape(n * place.most, all_heads, length, -1)
                for x in (read, log_sum)
            )
            if place.rows is None:
                return read, log_sum
            read, log_sum = read[place.slot], log_sum[place.slot]
            if out is None or sums is None:
                out, sums = (x.new_empty(len(query), *x.shape[1:]) for x in (read, log_sum))
            out[place.rows], sums[place.rows] = read, log_sum
        assert out is not None
        assert sums is not None
        return out, sums

    def narrowed(self) -> "Shared":
        """Return these beginnings without those that no prefix has, if more than half are such."""
        used, owner = torch.unique(self.owner, return_inverse=True)
        before = None if self.before is None else self.before.select(used).narrowed()
        if 2 * len(used) > sum(len(group.mask) for group in self.groups):
            return self
        groups, first = [], 0
        for group in self.groups:
            n = len(group.mask)
            here = used[(used >= first) & (used < first + n)] - first
            if len(here):
                groups.append(group.select(here))
            first += n
        return Shared(tuple(groups), owner, before)


def _spread(query: Tensor, place: _Place, n: int) -> Tensor:
    """Return the queries of some prefixes at their slots of a rectangle of n beginnings, zeros elsewhere."""
    into = query.new_zeros(n * place.most, *query.shape[1:])
    assert place.rows is not None
    into[place.slot] = query[place.rows]
    return into


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    softcap: float | None,
    hidden: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the attention of queries (B, H, Q, d) to keys (B, H, T, d), and the logs of the sums of exponentials (B, H, Q, 1).

    ``hidden`` is added to the scores (B, H, Q, T). Without gradients: scores of long steps are too large for copies.
    """
    if query.dtype == torch.float16:  # whose largest number a score may exceed before it is scaled
        query, scaling = query * scaling, 1.0
    scores = (query @ keys.transpose(2, 3)).mul_(scaling)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores = scores.float()
    if hidden is not None:  # finite even where all keys are hidden
        scores.add_(hidden)
    log_sum = scores.logsumexp(-1, keepdim=True)
    return scores.sub_(log_sum).exp_().to(values.dtype) @ values, log_sum


def together(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the attention to the keys of both, and the logs of its sums, from what `attend` returned for each."""
    share = torch.sigmoid(one[1] - other[1]).to(one[0].dtype)
    return torch.lerp(other[0], one[0], share), torch.logaddexp(one[1], other[1])


_now: ContextVar[Shared] = ContextVar("shared")
# Of configurations, by id: models may have one together.
_locks: dict[int, Any] = {}


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend to the beginnings and to the prefixes' own tokens (B, heads, W, d): an attention of transformers' interface."""
    shared = _now.get(None)
    if shared is None:
        raise RuntimeError(
            "two threads use one model at once, and one of them reads texts behind their beginnings"
        )
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    n, heads, length, _ = query.shape
    each = heads // key.shape[1]
    asked = query.reshape(n, key.shape[1], each * length, -1)
    hidden = None if attention_mask is None else attention_mask[:, :, :, : key.shape[2]].repeat(1, 1, each, 1)
    own, own_sum = attend(asked, key, value, scaling, softcap, hidden)
    behind = own.reshape(n, heads, length, -1), own_sum.reshape(n, heads, length, 1)
    begun = shared.attend(int(module.layer_idx), query, scaling, softcap)  # type: ignore[arg-type]
    return together(behind, begun)[0].transpose(1, 2).contiguous(), None


@contextmanager
def beginnings(model: "PreTrainedModel", shared: Shared | None) -> Iterator[None]:
    """Let the model read tokens behind what they ``shared``, one thread after the other: its configuration says so meanwhile."""
    config = model.config.get_text_config()
    with _locks.setdefault(id(config), RLock()):
        if shared is None:
            yield
            return
        _register()
        before, token = config._attn_implementation, _now.set(shared)
        config._attn_implementation = NAME
        try:
            yield
        finally:
            config._attn_implementation = before
            _now.reset(token)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, eager_mask)


def joined(parts: Sequence[tuple[Shared | None, Tensor]]) -> Shared | None:
    """Return the beginnings of the rows (B',) of several batches that have the same groups, in this order."""
    owners = [shared.owner[rows] for shared, rows in parts if shared is not None]
    first = parts[0][0]
    return None if first is None else replace(first, owner=torch.cat(owners))
