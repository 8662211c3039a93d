"""Caches with holes: every row's logits are those of its own tokens alone."""

import logging

import numpy as np
import pytest
import torch

from rmtools.lm.architectures import with_cache
from rmtools.lm.kv.cache import MOST_BATCHES, PASS_TOKENS, PrefixCache, column_cuts, cut_by_length
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
        if new == [None] * 3:
            with pytest.raises(ValueError, match="no prefix gets a token"):
                append(model, cache, new)
            continue
        logits, cache = append(model, cache, new)
        rows = [r if t is None else [*r, t] for r, t in zip(rows, new, strict=True)]
        check(model, logits, rows, [i for i, t in enumerate(new) if t is not None])
        assert cache.length.tolist() == [len(r) for r in rows]
        for batch in cache.batches:
            assert torch.equal(batch.mask.sum(1), batch.length)


def test_select_repeats_and_drops_and_packing_squeezes_holes(model):
    rows = [[4, 8, 9], [5], [7, 7, 7, 6, 5, 4], [9, 9]]
    _, cache = start(model, rows)
    for _ in range(6):  # six columns that two rows use
        _, cache = append(model, cache, [8, None, None, 9])
    rows[0], rows[3] = rows[0] + [8] * 6, rows[3] + [9] * 6
    index = [1, 2, 2, 1]
    chosen = cache.select(torch.tensor(index))
    rows = [rows[i] for i in index]
    squeezed = chosen.packed()
    assert sum(batch.width * len(batch) for batch in squeezed.batches) == 2 * 6 + 2 * 1
    assert squeezed.length.tolist() == [1, 6, 6, 1]
    assert all(batch.cache.layers[0].keys.shape[2] == batch.width for batch in squeezed.batches)
    assert squeezed.packed() is squeezed
    new = [4, 5, 6, 7]
    for at in (chosen, squeezed):
        logits, after = append(model, at, new)
        longer = [[*r, t] for r, t in zip(rows, new, strict=True)]
        check(model, logits, longer)
        logits, after = append(model, after, [None, 9, None, 9])
        check(model, logits, [[*r, 9] for r in longer], [1, 3])


def test_packing_away_the_last_hole_needs_no_mask(model):
    _, cache = start(model, [[4, 5, 6], [6, 7, 8], [5, 5, 5]])
    _, cache = append(model, cache, [8, None, 9])
    one = cache.select(torch.tensor([1, 1])).packed()
    assert [(batch.full, batch.width) for batch in one.batches] == [(True, 3)]
    logits, _ = append(model, one, [9, 10])
    check(model, logits, [[6, 7, 8, 9], [6, 7, 8, 10]])


def test_a_batch_where_most_rows_get_nothing_is_split(model):
    rows = [[4, 5], [6, 7, 8], [9], [10, 11]]
    _, cache = start(model, rows)
    logits, split = append(model, cache, [None, 12, None, None])
    assert sorted(len(batch) for batch in split.batches) == [1, 3]
    check(model, logits, [[], [6, 7, 8, 12]], [1])
    new = [13, 14, 15, 16]
    logits, after = append(model, split, new)
    rows[1] = [6, 7, 8, 12]
    rows = [[*r, t] for r, t in zip(rows, new, strict=True)]
    check(model, logits, rows)
    index = [3, 0, 0, 1]
    logits, _ = append(model, after.select(torch.tensor(index)), [17, 18, 19, 20])
    check(model, logits, [[*rows[i], t] for i, t in zip(index, [17, 18, 19, 20], strict=True)])


def test_batches_joined(model):
    _, one = start(model, [[4, 5], [6, 7, 8]])
    _, other = start(model, [[9]])
    both = one.join(other)
    assert len(both) == 3
    assert both.length.tolist() == [2, 3, 1]
    for at in (both, both.select(torch.tensor([0, 1, 2])), both.packed()):
        logits, _ = append(model, at, [10, 11, 12])
        check(model, logits, [[4, 5, 10], [6, 7, 8, 11], [9, 12]])
    assert one.join(other.select(torch.tensor([], dtype=torch.long))) is one


def test_runs_of_like_length():
    assert cut_by_length(np.array([5, 5, 5])) == [3]
    assert cut_by_length(np.array([1, 1, 10, 10])) == [2, 4]
    assert cut_by_length(np.array([1])) == [1]
    many = np.sort(np.random.default_rng(0).integers(1, 200, 1000))
    ends = cut_by_length(many)
    assert ends[-1] == 1000
    assert 2 <= len(ends) <= MOST_BATCHES


def too_much_for_the_card():
    raise torch.OutOfMemoryError("too much")


@pytest.mark.parametrize("too_much", [too_much_for_the_card, lambda: torch.empty(1 << 60, dtype=torch.uint8)])
def test_memory_that_does_not_suffice_halves_the_batch(model, caplog, monkeypatch, too_much):
    """The same logits in pieces, and it is said once; the second is a true failure of the CPU's allocator."""
    rows = [[4, 5, 8], [6, 7, 8], [9, 10, 11], [5, 5, 5], [6, 6, 6]]
    expected, plain = start(model, rows)

    class Small:
        config, device, calls = model.config, model.device, 0

        def forward(self, input_ids, **inputs):
            raise NotImplementedError

        def __call__(self, input_ids, **inputs):
            if len(input_ids) > 2:
                too_much()
            return model(input_ids=input_ids, **inputs)

    monkeypatch.setattr("rmtools.lm.kv.cache._warned", [])
    with caplog.at_level(logging.WARNING, "rmtools"):
        logits, cache = start(Small(), rows)
        after, _ = append(Small(), cache, [4, 5, 6, 7, 8])
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(after, append(model, plain, [4, 5, 6, 7, 8])[0])
    assert [r.message for r in caplog.records] == [
        "too little memory for 5 prefixes in one pass: halved, as often as needed"
    ]

    class Tiny(Small):
        def __call__(self, input_ids, **inputs):
            too_much()

    with pytest.raises((torch.OutOfMemoryError, RuntimeError), match=r"too much|allocate"):
        start(Tiny(), rows)


def test_selecting_everything_in_order_changes_nothing(model):
    _, cache = start(model, [[4, 5], [6, 7]])
    assert cache.select(torch.tensor([0, 1])) is cache


def test_forks_are_independent(model):
    """Extending one fork changes neither the other nor the original."""
    rows = [[4, 5, 8], [6, 7]]
    _, root = start(model, rows)
    before = [layer.keys.clone() for layer in root.batches[0].cache.layers]
    one = root.select(torch.tensor([0, 0, 1]))
    _, two = append(model, root, [9, 10])
    logits, _ = append(model, one, [11, 12, 13])
    check(model, logits, [[4, 5, 8, 11], [4, 5, 8, 12], [6, 7, 13]])
    logits, _ = append(model, two, [14, 15])
    check(model, logits, [[4, 5, 8, 9, 14], [6, 7, 10, 15]])
    logits, _ = append(model, root, [16, 17])
    check(model, logits, [[4, 5, 8, 16], [6, 7, 17]])
    # Nor did what the original wrote just now: the room behind it is the first fork's.
    logits, _ = append(model, two, [18, 19])
    check(model, logits, [[4, 5, 8, 9, 18], [6, 7, 10, 19]])
    assert all(
        torch.equal(b, layer.keys) for b, layer in zip(before, root.batches[0].cache.layers, strict=True)
    )
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


@torch.inference_mode()
def test_a_cache_in_sole_use_gives_the_same_and_is_freed(policy):
    """Selecting, packing and appending with and without freeing the source; the source has no layer left."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 20, (6, 12), generator=rng)
    present = torch.arange(12)[None] < torch.tensor([12, 3, 12, 5, 2, 9])[:, None]
    token = torch.randint(4, 20, (6, 1), generator=rng)

    def made():
        return PrefixCache.empty(6, policy.device).forward(policy.model, ids, present)[1]

    for change in (
        lambda cache: cache.select(torch.tensor([5, 0, 0, 3, 1, 2])),
        lambda cache: cache.select(torch.tensor([1, 3])),
        lambda cache: cache.packed(),
        lambda cache: cache.packed().select(torch.tensor([4, 4, 3, 2, 1, 0])),
        lambda cache: cache.packed().forward(policy.model, token)[1],
        lambda cache: cache.forward(policy.model, token, torch.arange(6)[:, None] < 2)[1],
    ):
        kept, source = made(), made().sole_use(True)
        one, other = change(kept), change(source)
        assert other.sole
        assert not one.sole
        expected, _ = one.forward(policy.model, token[: len(one)])
        found, _ = other.forward(policy.model, token[: len(one)])
        assert torch.equal(found, expected)
        assert source.nbytes == 0 < one.nbytes
        # The other one is as it was.
        again, _ = change(kept).forward(policy.model, token[: len(one)])
        assert torch.equal(again, expected)


def test_the_cache_is_passed_by_the_name_that_the_model_gives_it():
    """`cache` since transformers 5.24, `past_key_values` before; peft's models pass on what they are given."""

    class Before:
        def forward(self, input_ids, past_key_values=None): ...

    class Now:
        def forward(self, input_ids, cache=None): ...

    class Adapter:
        def __init__(self, base):
            self.get_base_model = lambda: base

        def forward(self, *args, **kwargs): ...

    assert with_cache(Before(), 1) == with_cache(Adapter(Before()), 1) == {"past_key_values": 1}
    assert with_cache(Now(), 1) == with_cache(Adapter(Now()), 1) == {"cache": 1}


@torch.inference_mode()
def test_rows_of_uneven_length_keep_few_spare_columns(policy):
    """Through packing, selection and growth: no more than a twelfth, or four."""
    ids = torch.randint(4, 20, (6, 48), generator=torch.Generator().manual_seed(0))
    present = torch.arange(48)[None] < torch.tensor([48, 46, 45, 48, 44, 47])[:, None]
    cache = PrefixCache.empty(6, policy.device).forward(policy.model, ids, present)[1].packed()
    for _ in range(2):
        for now in (
            cache,
            cache.select(torch.tensor([0, 0, 2, 4])),
            cache.select(torch.tensor([3, 1])).packed(),
        ):
            for batch in now.batches:
                room = {layer.buffer.keys.shape[2] for layer in batch.cache.layers}
                assert max(room) <= batch.width + max(4, batch.width // 12)
        cache = cache.forward(policy.model, ids[:, :6])[1]


def columns(lengths, left=False):
    width = max(lengths)
    found = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    return found.flip(1) if left else found


@pytest.mark.parametrize(
    ("lengths", "cuts"),
    [
        ([1, 1, 0], [1]),
        ([5, 5, 5], [5]),
        ([8] * 10 + [60], [8, 60]),  # 88 and 52 tokens in two passes, not 660 in one
        ([8] * 10 + [10], [10]),  # 22 tokens saved are no pass
        ([60] * 10 + [8], [60]),  # most have tokens everywhere
        ([4] * 20 + [40] * 6 + [100], [4, 40, 100]),
    ],
)
def test_columns_of_few_are_read_apart(lengths, cuts):
    assert PASS_TOKENS["cpu"] == 24
    assert column_cuts(columns(lengths)) == cuts
    width = max(lengths)
    assert column_cuts(columns(lengths, left=True)) == [*(width - c for c in reversed(cuts[:-1])), width]


@torch.inference_mode()
def test_reading_in_several_passes_gives_the_same_logits(model, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [[4], [5, 6], [7]]
    new = [[int(x) for x in rng.integers(3, 20, n)] for n in (2, 30, 1, 2, 0, 12, 1)]
    present = columns([len(row) for row in new])
    ids = torch.tensor([row + [0] * (present.shape[1] - len(row)) for row in new])
    _, cache = start(model, rows)
    cache = cache.select(torch.tensor([0, 1, 2, 0, 1, 2, 0]))
    assert len(column_cuts(present)) > 1
    parts, after = cache.forward(model, ids, present)
    monkeypatch.setattr("rmtools.lm.kv.cache.PASS_TOKENS", {"cpu": 10**6})
    once, whole = cache.forward(model, ids, present)
    torch.testing.assert_close(parts[present], once[present], rtol=1e-5, atol=1e-5)
    assert after.length.tolist() == whole.length.tolist()
    chosen, _ = cache.copied().forward(model, ids, present)
    torch.testing.assert_close(chosen[present], once[present], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("empty", [[-1] * 60, [2, -1], [0, 4]])
def test_columns_in_which_nobody_has_a_token_are_skipped(model, empty):
    # The longest prefix of a batch ends, and is dropped: its columns stay.
    _, cache = start(model, [[4], [5, 6], [7]])
    ids = torch.tensor([[8, 9, 10], [11, 12, 0], [13, 0, 0]])
    present = columns([3, 2, 1])
    alone, after = cache.forward(model, ids, present)
    for at in empty:
        at = ids.shape[1] if at < 0 else at
        ids, present = (
            torch.cat([x[:, :at], torch.zeros_like(x[:, :1]), x[:, at:]], 1) for x in (ids, present)
        )
    wide, cache = cache.forward(model, ids, present)
    torch.testing.assert_close(wide[present], alone[columns([3, 2, 1])], rtol=1e-5, atol=1e-5)
    assert wide.shape[:2] == ids.shape
    assert cache.length.tolist() == after.length.tolist()
    with pytest.raises(ValueError, match="no prefix"):
        cache.forward(model, ids, torch.zeros_like(present))
