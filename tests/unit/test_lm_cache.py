"""Caches with holes: every row's logits are those of its own tokens alone."""

import pytest
import torch

from rmtools.lm.cache import PrefixCache
from rmtools.lm.policy import left_padded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(policy):
    return policy.model


@torch.inference_mode()
def alone(model, ids):
    """Logits after the last token of ``ids``, without any cache or mask."""
    return model(input_ids=torch.tensor([ids])).logits[0, -1]


@torch.inference_mode()
def append(model, cache, rows):
    """Append one token a row, None where a row gets none."""
    ids = torch.tensor([[0 if t is None else t] for t in rows])
    present = torch.tensor([[t is not None] for t in rows])
    return cache.forward(model, ids, None if bool(present.all()) else present)


def check(model, logits, rows, which=None):
    for i in range(len(rows)) if which is None else which:
        expected = alone(model, rows[i])
        assert torch.isfinite(logits[i, -1]).all()
        torch.testing.assert_close(logits[i, -1], expected, atol=1e-5, rtol=1e-5)


def start(model, rows):
    ids, present = left_padded(rows, 0, CPU)
    with torch.inference_mode():
        return PrefixCache.empty(len(rows), CPU).forward(model, ids, None if bool(present.all()) else present)


def test_left_padding_by_hand():
    ids, present = left_padded([[5, 6, 7], [8]], 0, CPU)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert present.tolist() == [[True] * 3, [False, False, True]]
    assert left_padded([[], []], 0, CPU)[0].shape == (2, 0)


def test_prompts_of_different_length(model):
    rows = [[4, 8, 9, 10, 24], [7], [5, 6], [4, 8, 24, 13, 8, 24, 6]]
    logits, cache = start(model, rows)
    check(model, logits, rows)
    assert cache.length.tolist() == [5, 1, 2, 7]
    logits, cache = append(model, cache, [4, 5, 6, 7])
    rows = [[*r, t] for r, t in zip(rows, [4, 5, 6, 7], strict=True)]
    check(model, logits, rows)


def test_holes_do_not_count(model):
    rows = [[4, 8, 9], [5, 6], [7, 7, 7]]
    _, cache = start(model, rows)
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        new = [
            int(torch.randint(4, 25, (1,), generator=generator))
            if torch.rand(1, generator=generator) < 0.5
            else None
            for _ in rows
        ]
        logits, cache = append(model, cache, new)
        rows = [r if t is None else [*r, t] for r, t in zip(rows, new, strict=True)]
        check(model, logits, rows, [i for i, t in enumerate(new) if t is not None])
        assert cache.length.tolist() == [len(r) for r in rows]
        assert cache.mask.sum(1).tolist() == [len(r) for r in rows]


def test_select_repeats_drops_and_squeezes_holes(model):
    rows = [[4, 8, 9], [5], [7, 7, 7, 6, 5, 4]]
    _, cache = start(model, rows)
    for _ in range(6):  # six columns that only the first row uses
        _, cache = append(model, cache, [8, None, None])
    rows[0] = rows[0] + [8] * 6
    width = cache.mask.shape[1]
    index = [1, 2, 2, 1]
    squeezed = cache.select(torch.tensor(index))
    assert squeezed.mask.shape[1] < width
    assert squeezed.mask.shape[1] == squeezed.cache.layers[0].keys.shape[2] == 6
    rows = [rows[i] for i in index]
    new = [4, 5, 6, 7]
    logits, squeezed = append(model, squeezed, new)
    rows = [[*r, t] for r, t in zip(rows, new, strict=True)]
    check(model, logits, rows)
    logits, squeezed = append(model, squeezed, [None, 9, None, 9])
    check(model, logits, [[*r, 9] for r in rows], [1, 3])


def test_squeezing_out_the_last_hole_needs_no_mask(model):
    _, cache = start(model, [[4, 5], [6, 7]])
    for _ in range(4):
        _, cache = append(model, cache, [8, None])
    one = cache.select(torch.tensor([1, 1]))
    assert one.full
    assert one.mask.shape == (2, 2)
    logits, _ = append(model, one, [9, 10])
    check(model, logits, [[6, 7, 9], [6, 7, 10]])


def test_selecting_everything_in_order_changes_nothing(model):
    _, cache = start(model, [[4, 5], [6, 7]])
    assert cache.select(torch.tensor([0, 1])) is cache


def test_forks_are_independent(model):
    """Extending one fork changes neither the other nor the original."""
    rows = [[4, 5, 8], [6, 7]]
    _, root = start(model, rows)
    before = [layer.keys.clone() for layer in root.cache.layers]
    one = root.select(torch.tensor([0, 0, 1]))
    _, two = append(model, root, [9, 10])
    logits, _ = append(model, one, [11, 12, 13])
    check(model, logits, [[4, 5, 8, 11], [4, 5, 8, 12], [6, 7, 13]])
    logits, _ = append(model, two, [14, 15])
    check(model, logits, [[4, 5, 8, 9, 14], [6, 7, 10, 15]])
    logits, _ = append(model, root, [16, 17])
    check(model, logits, [[4, 5, 8, 16], [6, 7, 17]])
    assert all(torch.equal(b, layer.keys) for b, layer in zip(before, root.cache.layers, strict=True))
    assert root.length.tolist() == [3, 2]


def test_several_tokens_at_once(model):
    """A block with holes anywhere in it is read like its tokens one by one."""
    rows = [[4, 5, 8], [6, 7]]
    _, cache = start(model, rows)
    block = torch.tensor([[9, 10, 0, 11], [12, 0, 0, 13]])
    present = torch.tensor([[True, True, False, True], [True, False, False, True]])
    with torch.inference_mode():
        logits, cache = cache.forward(model, block, present)
    check(model, logits, [[4, 5, 8, 9, 10, 11], [6, 7, 12, 13]])
    assert cache.length.tolist() == [6, 4]
