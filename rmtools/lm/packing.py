"""Trajectories that begin alike, read together: every distinct prefix once.

Trajectories of a prompt repeat its tokens, and few-shot prompts those of their examples. A row holds the distinct prefixes of
some trajectories and of their alternative next steps, one token each, in depth-first order: token i is seen by the tokens
i, ..., end_i - 1, which continue it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.lm.steps import EncodedTree
from rmtools.lm.tree_scoring import padded

CPU = torch.device("cpu")
# So many pairs of a row's tokens take as long as a token, times the model's width: 3.4 measured with 135M weights on a CPU,
# forward and backward; by operations it would be 6.
PAIRS_PER_TOKEN = 3


@dataclass(frozen=True)
class Row:
    """The distinct prefixes of some trees.

    Attributes
    ----------
    ids, positions, ends : np.ndarray
        (L,) the last token of each prefix, its position id, and the end of those that see it.
    places : list of np.ndarray
        Per tree, where each of its tokens is in the row.
    """

    ids: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    places: list[np.ndarray]

    @property
    def plain(self) -> bool:
        """Whether every token sees all before it: a causal mask alone is right."""
        return bool((self.ends == len(self.ends)).all())

    @classmethod
    def of(cls, trees: Sequence[EncodedTree]) -> "Row":
        """Return the row of ``trees``, at least one."""
        paths = [path for tree in trees for path in _paths(tree)]
        nodes = [np.zeros(0, dtype=np.int64)] * len(paths)
        ids, positions, ends = (np.zeros(sum(map(len, paths)), dtype=np.int64) for _ in range(3))
        size, before, here = 0, ids[:0], ids[:0]  # tokens and places of the path before
        for i in in_order(paths):
            path = paths[i]
            shared = common(path, before)
            ends[here[shared:]] = size
            new = np.arange(size, size + len(path) - shared)
            ids[new], positions[new] = path[shared:], np.arange(shared, len(path))
            before, here, size = path, np.concatenate([here[:shared], new]), size + len(new)
            nodes[i] = here
        ends[here] = size
        places, at = [], iter(nodes)
        for tree in trees:
            found = [next(at)]
            for end in (end for ends_of in tree.child_reads for end in ends_of.tolist()):
                found.append(next(at)[tree.fork[end] :])
            places.append(np.concatenate(found))
        return cls(ids[:size], positions[:size], ends[:size], places)


def _paths(tree: EncodedTree) -> list[np.ndarray]:
    """Return the tokens of the trajectory, and those up to the end of each alternative, in order of depth."""
    last = int(tree.reads[-1])
    trunk = tree.ids[: last + 1]
    found = [trunk]
    for end in (end for ends in tree.child_reads for end in ends.tolist()):
        found.append(np.concatenate([trunk[: tree.fork[end]], tree.ids[last + 1 : end + 1]]))
        last = end
    return found


def common(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many tokens two sequences begin with together."""
    n = min(len(one), len(other))
    differ = one[:n] != other[:n]
    return int(differ.argmax()) if differ.any() else n


def in_order(paths: Sequence[np.ndarray]) -> list[int]:
    """Return the indices of ``paths`` in lexicographic order: each then shares most with the one before it."""

    def compare(i: int, j: int) -> int:
        one, other = paths[i], paths[j]
        n = common(one, other)
        if n == min(len(one), len(other)):
            return len(one) - len(other)
        return int(one[n]) - int(other[n])

    return sorted(range(len(paths)), key=cmp_to_key(compare))


def distinct_tokens(trees: Sequence[EncodedTree]) -> int:
    """Return how many tokens ``trees`` need in one row; of alternatives only those shared by trajectories are counted once."""
    return sum(_new_tokens(trees)[0])


def _new_tokens(trees: Sequence[EncodedTree]) -> tuple[list[int], list[int]]:
    """Return, in lexicographic order, what each tree adds to a row with the one before it; and that order."""
    trunks = [tree.ids[: int(tree.reads[-1]) + 1] for tree in trees]
    order = in_order(trunks)
    shared = [0, *(common(trunks[a], trunks[b]) for a, b in itertools.pairwise(order))]
    return [len(trees[i].ids) - s for i, s in zip(order, shared, strict=True)], order


def pairs_per_token(config: Any) -> int:
    """Return how many pairs of a row's tokens cost a model as much as a token."""
    return PAIRS_PER_TOKEN * int(config.get_text_config().hidden_size)


def share_rows(trees: Sequence[EncodedTree], pairs: int, most: int, padded: bool = True) -> list[list[int]]:
    """Return which trees to read in one row, each by itself where sharing saves nothing.

    Parameters
    ----------
    trees : sequence of EncodedTree
    pairs : int
        How many pairs of a row's tokens cost as much as a token: a row of L tokens costs L + L^2 / pairs.
    most : int
        Tokens of a row of several trees.
    padded : bool
        Whether all rows are read in one pass, as long as the longest.
    """
    new, order = _new_tokens(trees)
    sizes = [len(trees[i].ids) for i in order]
    best, least = [[i] for i in range(len(trees))], _cost(sizes, pairs, padded)
    room = max(sizes)
    while room < 2 * sum(new):
        room *= 2
        rows: list[list[int]] = []
        lengths: list[int] = []
        for i, size, more in zip(order, sizes, new, strict=True):
            if rows and lengths[-1] + more <= min(room, most):
                rows[-1].append(i)
                lengths[-1] += more
            else:
                rows.append([i])
                lengths.append(size)
        cost = _cost(lengths, pairs, padded)
        if cost < least:
            best, least = rows, cost
    return best


def _cost(lengths: Sequence[int], pairs: int, padded: bool) -> float:
    each = [max(lengths)] * len(lengths) if padded else lengths
    return sum(n + n**2 / pairs for n in each)


def row_inputs(
    rows: Sequence[Row], pad_id: int, dtype: torch.dtype, device: torch.device = CPU
) -> dict[str, Tensor]:
    """Right-pad ``rows`` into model inputs (G, L); a 4-d attention mask is built only if a row has a fork.

    Pads stand behind everything that is read: with a causal mask no token that is read sees them.
    """
    inputs = {"input_ids": padded([r.ids for r in rows], pad_id, device)}
    if not all(row.plain for row in rows):
        inputs["position_ids"] = padded([r.positions for r in rows], 0, device)
        ends = padded([r.ends for r in rows], 0, device)
        index = torch.arange(ends.shape[1], device=device)
        sees = (index[:, None] >= index) & (index[:, None] < ends[:, None])
        sees |= index[:, None] == index  # a pad, too: the softmax of a row that sees nothing is NaN
        zero = torch.zeros((), dtype=dtype, device=device)
        inputs["attention_mask"] = torch.where(sees, zero, torch.finfo(dtype).min)[:, None]
    return inputs
