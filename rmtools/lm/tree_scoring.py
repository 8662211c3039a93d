"""Reading trajectories with their alternative next steps ("children") in few tokens.

`tree_logits` reads each trajectory once, then its children behind the cached keys and values. In one row
(`rmtools.lm.packing`) every token is compared with every other, and most pairs are children that must not see one another.
Spread over a few rows of about the trajectory's length, the pairs are several times fewer, and the keys and values at most
about twice those of the one row.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rmtools.lm.architectures import with_cache
from rmtools.lm.kv.batch import MaskedBatch, attention
from rmtools.lm.precision import input_device
from rmtools.lm.steps import EncodedTree

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def padded(rows: Sequence[Sequence[int] | np.ndarray], fill: int, device: torch.device) -> Tensor:
    """Right-pad ``rows`` to (B, L) integers."""
    out = np.full((len(rows), max(len(r) for r in rows)), fill, dtype=np.int64)
    for into, row in zip(out, rows, strict=True):
        into[: len(row)] = row
    return torch.from_numpy(out).to(device)


def batches_by_length(trees: Sequence[EncodedTree], budget: int) -> list[list[int]]:
    """Return the indices of ``trees``, by length, in batches of at most ``budget`` padded tokens."""
    batches: list[list[int]] = []
    for i in sorted(range(len(trees)), key=lambda i: len(trees[i].ids)):
        if batches and (len(batches[-1]) + 1) * len(trees[i].ids) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def tree_logits(model: "PreTrainedModel", trees: Sequence[EncodedTree], pad_id: int) -> Tensor:
    """Return the logits (B, L, 2) of every token of B ``trees``, at least one with a child, in the order of their ids.

    The model has full attention (``require_full_attention``). Beyond a tree's last token logits have no meaning.
    """
    device = input_device(model)
    length = [int(t.reads[-1]) + 1 for t in trees]
    trunks = padded([t.ids[:n] for t, n in zip(trees, length, strict=True)], pad_id, device)
    # Pads stand behind everything that is read, and no child's fork reaches them.
    first, read = MaskedBatch.empty(len(trees), device).forward(model, trunks)
    rows = [(i, at) for i, tree in enumerate(trees) for at in child_rows(tree)]
    owner = torch.tensor([i for i, _ in rows], device=device)
    with attention(device):
        second = model(
            input_ids=padded([trees[i].ids[at] for i, at in rows], pad_id, device),
            position_ids=padded([trees[i].positions[at] for i, at in rows], 0, device),
            use_cache=True,
            **with_cache(model, read.select(owner, consume=True).cache),
            attention_mask=row_mask(trees, rows, trunks.shape[1], model.dtype, device),
        ).logits
    logits = first.new_zeros(len(trees), max(len(t.ids) for t in trees), first.shape[-1])
    logits[:, : first.shape[1]] = first
    place = padded([at for _, at in rows], -1, device)
    row, column = (place >= 0).nonzero(as_tuple=True)
    logits[owner[row], place[row, column]] = second[row, column]
    return logits


def child_rows(tree: EncodedTree) -> list[np.ndarray]:
    """Return rows of whole children, each as indices into the tree's tokens, of about the trajectory's length."""
    trunk = int(tree.reads[-1]) + 1
    segment = tree.segment[trunk:]
    size = np.bincount(segment)[1:].tolist()
    n = min(len(size), max(1, len(segment) // trunk))
    row = np.zeros(len(size) + 1, dtype=np.int64)
    filled = [0] * n
    for child in sorted(range(len(size)), key=size.__getitem__, reverse=True):
        k = filled.index(min(filled))
        row[child + 1] = k
        filled[k] += size[child]
    owner = row[segment]
    return [np.flatnonzero(owner == k) + trunk for k in range(n)]


def row_mask(
    trees: Sequence[EncodedTree],
    rows: Sequence[tuple[int, np.ndarray]],
    trunk: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return the additive mask (R, 1, L, trunk + L): the trajectory up to a child's fork, and the child up to itself."""
    segment = padded([trees[i].segment[at] for i, at in rows], -1, device)
    fork = padded([trees[i].fork[at] for i, at in rows], 0, device)
    index = torch.arange(segment.shape[1], device=device)
    visible = torch.cat(
        [
            torch.arange(trunk, device=device)[None, None] < fork[:, :, None],
            (segment[:, :, None] == segment[:, None, :]) & (index[:, None] >= index),
        ],
        dim=2,
    )
    mask = torch.full(visible.shape, torch.finfo(dtype).min, dtype=dtype, device=device)
    return mask.masked_fill_(visible, 0.0)[:, None]
