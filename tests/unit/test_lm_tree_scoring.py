"""Children read behind the cached trajectory have the logits of one packed sequence, however they are spread over rows."""

import numpy as np
import pytest
import torch

from rmtools.lm.packing import Row, row_inputs
from rmtools.lm.tree_scoring import child_rows, padded, row_mask, tree_logits

MOVES = ["u r1 \n", "s r2 \n", "d r3 \n", "u \n", "s x x \n", "d r0 . . . \n"]


def tree_of(value, lines, steps, children, seed):
    """A trajectory with ``children`` alternatives to every step."""
    rng = np.random.default_rng(seed)
    prompt = "".join(["r2 . \n", *["c13 . \n", "c02 . \n"][:lines]])
    drawn = [[MOVES[i] for i in rng.integers(len(MOVES), size=children)] for _ in range(steps)]
    return value.steps.encode(prompt, [MOVES[i] for i in rng.integers(len(MOVES), size=steps)], drawn)


@pytest.fixture(scope="module")
def trees(value):
    shapes = [(2, 4, 9), (0, 1, 30), (1, 3, 0), (1, 2, 1), (0, 4, 5)]
    return [tree_of(value, *shape, seed) for seed, shape in enumerate(shapes)]


@torch.inference_mode()
def test_the_logits_are_those_of_one_packed_sequence(value, trees):
    rows = [Row.of([tree]) for tree in trees]
    packed = value.model(**row_inputs(rows, 0, value.model.dtype)).logits
    for tree, row, a, b in zip(trees, rows, tree_logits(value.model, trees, 0), packed, strict=True):
        torch.testing.assert_close(a[: len(tree.ids)], b[row.places[0]], atol=1e-5, rtol=1e-5)


def test_rows_hold_whole_children_once_each(trees):
    for tree in trees:
        trunk, rows = int(tree.reads[-1]) + 1, child_rows(tree)
        places = np.concatenate([np.zeros(0, dtype=int), *rows])
        np.testing.assert_array_equal(np.sort(places), np.arange(trunk, len(tree.ids)))
        owners = [set(tree.segment[row].tolist()) for row in rows]
        assert sum(map(len, owners)) == tree.segment.max()


def test_rows_are_as_long_as_the_trajectory_and_about_even(trees):
    """More rows would copy the trajectory's keys more often, fewer would compare more children with one another."""
    several = [(t, rows) for t in trees if len(rows := child_rows(t)) > 1]
    assert several
    for tree, rows in several:
        trunk, longest = int(tree.reads[-1]) + 1, max(np.bincount(tree.segment)[1:])
        lengths = [len(row) for row in rows]
        assert len(rows) == (len(tree.ids) - trunk) // trunk
        assert max(lengths) - min(lengths) <= longest


def test_mask_by_hand(value):
    """One row: a child of two tokens at fork 1, one of one token at fork 2, behind three tokens and a pad."""
    tree = value.steps.encode("r2 . \n", ["\n", "\n"], [["u \n"], ["\n"]])
    trunk = int(tree.reads[-1]) + 1
    rows = [(0, np.arange(trunk, len(tree.ids)))]
    visible = row_mask([tree], rows, trunk + 1, torch.float32, torch.device("cpu"))[0, 0] == 0
    first, second = int(tree.reads[0]) + 1, int(tree.reads[1]) + 1
    expected = [
        [*(k < first for k in range(trunk + 1)), True, False, False],
        [*(k < first for k in range(trunk + 1)), True, True, False],
        [*(k < second for k in range(trunk + 1)), False, False, True],
    ]
    assert visible.tolist() == expected


def test_padded():
    rows = padded([np.array([1, 2]), np.array([3])], -1, torch.device("cpu"))
    assert rows.tolist() == [[1, 2], [3, -1]]
