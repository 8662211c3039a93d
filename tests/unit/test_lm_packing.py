"""A row of several trajectories holds every distinct prefix once, and each token sees its own prefix alone."""

import itertools

import numpy as np
import pytest
import torch
import transformers

from rmtools.lm.architectures import longest_shared_row
from rmtools.lm.packing import Row, distinct_tokens, row_inputs, share_rows
from rmtools.lm.steps import EncodedTree

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
    "num_labels": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": transformers.LlamaConfig(**SMALL),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "qwen3": transformers.Qwen3Config(**SMALL),
    "gemma2": transformers.Gemma2Config(**SMALL, sliding_window=64),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=None),
    "gpt2": transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=128, num_labels=2, pad_token_id=0
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**SMALL),
}


def tree(prompt, *steps, children=()):
    return EncodedTree.of(prompt, steps, children)


def random_trees(n, seed=0):
    """Trees of three prompts with a common beginning, with and without alternatives."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        steps = [
            [int(x) for x in rng.integers(3, 6, size=rng.integers(1, 5))] for _ in range(rng.integers(1, 5))
        ]
        children = [
            [[int(x) for x in rng.integers(3, 6, size=rng.integers(1, 4))] for _ in range(rng.integers(0, 3))]
            for _ in steps
        ]
        found.append(tree([1, 9, 8, 7, 10 + int(rng.integers(3))], *steps, children=children))
    return found


def test_a_row_by_hand():
    """a b | c d, a b | c e and its alternative f behind a b: five distinct prefixes and the fork."""
    row = Row.of([tree([1, 2], [3, 5], children=[[[6]]]), tree([1, 2], [3, 4])])
    assert row.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert row.positions.tolist() == [0, 1, 2, 3, 3, 2]
    assert row.ends.tolist() == [6, 6, 5, 4, 5, 6]
    assert [p.tolist() for p in row.places] == [[0, 1, 2, 4, 5], [0, 1, 2, 3]]
    mask = row_inputs([row], 0, torch.float32)["attention_mask"][0, 0]
    assert (mask == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_a_trajectory_alone_needs_no_mask():
    rows = [Row.of([tree([1, 2], [3, 5])]), Row.of([tree([1, 2], [3]), tree([1, 2], [3])])]
    assert row_inputs(rows, 0, torch.float32).keys() == {"input_ids"}


def test_prefixes_are_counted_once():
    """Against a set of all prefixes, and each token's place holds it."""
    trees = random_trees(40)
    row = Row.of(trees)
    prefixes = set()
    for one, places in zip(trees, row.places, strict=True):
        prompt, steps, children = one.parts()
        trunk = [*prompt, *itertools.chain(*steps)]
        paths = [trunk]
        for t, at in enumerate(children):
            paths += [trunk[: int(one.reads[t]) + 1] + child for child in at]
        prefixes |= {tuple(path[:n]) for path in paths for n in range(1, len(path) + 1)}
        np.testing.assert_array_equal(row.ids[places], one.ids)
        np.testing.assert_array_equal(row.positions[places], one.positions)
    assert len(row.ids) == len(prefixes) < sum(len(t.ids) for t in trees)
    trunks = [t.trunk() for t in trees]
    assert distinct_tokens(trunks) == len(Row.of(trunks).ids)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_shared_logits_are_those_of_each_path_alone(family):
    torch.manual_seed(0)
    model = transformers.AutoModelForTokenClassification.from_config(FAMILIES[family]).eval()
    assert longest_shared_row(model) >= 64
    trees = random_trees(12)
    rows = [list(range(7)), list(range(7, 12))]
    packed = [Row.of([trees[i] for i in row]) for row in rows]
    logits = model(**row_inputs(packed, 0, torch.float32)).logits
    for k, row in enumerate(rows):
        for i, places in zip(row, packed[k].places, strict=True):
            one, found = trees[i], logits[k, places]
            last = int(one.reads[-1])
            alone = model(input_ids=torch.from_numpy(one.ids[: last + 1])[None].long()).logits[0]
            torch.testing.assert_close(found[: last + 1], alone, atol=1e-5, rtol=1e-4)
            for end in np.concatenate(one.child_reads).tolist():
                path = [*one.ids[: one.fork[end]], *one.ids[last + 1 : end + 1]]
                alone = model(input_ids=torch.tensor([path])).logits[0, -1]
                torch.testing.assert_close(found[end], alone, atol=1e-5, rtol=1e-4)
                last = end


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (transformers.MistralConfig(**SMALL, sliding_window=20), 20),
        (
            transformers.FalconConfig(
                hidden_size=32, num_hidden_layers=1, num_attention_heads=2, alibi=True, num_labels=2
            ),
            0,
        ),
        (transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=2, num_labels=2), 0),
        (transformers.MptConfig(d_model=32, n_layers=1, n_heads=2, num_labels=2), 0),
    ],
)
def test_models_that_know_no_such_mask_share_nothing(config, longest):
    assert longest_shared_row(transformers.AutoModelForTokenClassification.from_config(config)) == longest


def test_rows_share_what_pays():
    """Solutions of one long prompt go into a row; unrelated ones of a length stay by themselves, in their order."""
    rng = np.random.default_rng(0)
    prompts = [list(rng.integers(3, 50, size=100)) for _ in range(3)]
    trees = [tree(prompts[i % 3], list(rng.integers(3, 50, size=10))) for i in range(12)]
    rows = share_rows(trees, pairs=10_000, most=10_000)
    assert sorted(sorted({i % 3 for i in row}) for row in rows) == [[0], [1], [2]]
    assert sorted(i for row in rows for i in row) == list(range(12))
    assert max(map(len, share_rows(trees, 10_000, most=125))) == 2  # 110 and 10 tokens
    assert share_rows(trees, 10_000, most=0) == [[i] for i in range(12)]
    short = [tree([5, 7], list(rng.integers(3, 50, size=10))) for _ in range(6)]
    assert share_rows(short, pairs=1, most=10_000) == [
        [i] for i in range(6)
    ]  # pairs are nearly all that costs
    unrelated = [tree(list(rng.integers(3, 50, size=100)), [3]) for _ in range(6)]
    assert share_rows(unrelated, 10_000, most=10_000) == [[i] for i in range(6)]


def test_ragged_rows_share_a_pass_without_pads():
    """One long row beside short ones: in a rectangle most tokens would be pads."""
    trees = [tree([5] * 200, [3]), *(tree([7, k], [3, 4]) for k in range(10, 20))]
    rows = share_rows(trees, pairs=10_000, most=10_000)
    assert len(rows) < len(trees)
    unrelated = [tree([5] * 200, [3]), *(tree([k, 8], [3, 4]) for k in range(10, 20))]
    assert len(share_rows(unrelated, pairs=10_000, most=10_000)) < len(unrelated)
    alone = [[i] for i in range(11)]
    assert share_rows(unrelated, 10_000, 10_000, padded=False) == alone
