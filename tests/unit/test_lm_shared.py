"""Beginnings held once: logits are those of every prefix alone, whatever is selected, packed, joined or dropped."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers

from rmtools.lm.kv.cache import PrefixCache, begun
from rmtools.lm.kv.parted import can_share
from rmtools.lm.kv.shared import Group, Shared, attend
from rmtools.lm.policy import left_padded

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Heads that share keys; scores bent; keys and queries normed; positions that are learned; one matrix for all three.
SHARING = {
    "llama": transformers.LlamaConfig(**SMALL),
    "gemma2": transformers.Gemma2Config(**SMALL, head_dim=8, attn_logit_softcapping=2.0),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=8),
    "gpt2": transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "phi3": transformers.Phi3Config(**SMALL),
}
# Distances added to the scores; an attention of its own; sums with one term more; a cache of what keys are made from, of keys to
# be repeated, of values for both of two maps; layers that read the keys of others.
WHOLE = {
    "bloom": transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4),
    "gpt_neo": transformers.GPTNeoConfig(
        vocab_size=50,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global"], 2]],
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_oss": transformers.GptOssConfig(
        **SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=64
    ),
    "deepseek_v3": transformers.DeepseekV3Config(
        **SMALL | {"num_key_value_heads": 4},
        **{
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        **{"first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    ),
    "jetmoe": transformers.JetMoeConfig(
        **{k: v for k, v in SMALL.items() if k != "num_attention_heads"}, kv_channels=8, num_local_experts=2
    ),
    "diffllama": transformers.DiffLlamaConfig(**SMALL),
    "gemma4": transformers.Gemma4TextConfig(
        **SMALL | {"num_hidden_layers": 4},
        **{"head_dim": 8, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8},
        **{"vocab_size_per_layer_input": 50, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
}
LENGTHS = (9, 9, 8, 40, 9)  # two groups: the long one apart, and one with a hole


def random_model(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model.to(dtype)


@pytest.fixture(autouse=True)
def short_ones_too(monkeypatch):
    monkeypatch.setattr("rmtools.lm.kv.cache.LEAST_TOKENS", 1)


def texts(rng, lengths):
    return [[int(x) for x in rng.integers(3, 50, n)] for n in lengths]


def start(model, prompts):
    ids, present = left_padded(prompts, 0, model.device)
    cache = PrefixCache.empty(len(prompts), model.device)
    return cache.forward(model, ids, None if bool(present.all()) else present)[1].as_beginnings(model)


def append(model, cache, new):
    """Return the logits of each row's last new token, None without one, and the cache."""
    width = max(map(len, new))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in new])
    present = torch.tensor([[k < len(row) for k in range(width)] for row in new])
    logits, cache = cache.forward(model, ids, None if bool(present.all()) else present)
    return [logits[i, len(row) - 1] if row else None for i, row in enumerate(new)], cache


def far_from_alone(model, whole, found):
    """Return the largest difference of logits from those of the whole prefixes, of their largest."""
    far = 0.0
    for row, at in zip(whole, found, strict=True):
        if at is not None:
            alone = model(input_ids=torch.tensor([row])).logits[0, -1]
            far = max(far, float((alone - at).abs().max() / alone.abs().max()))
    return far


@torch.inference_mode()
@pytest.mark.parametrize("name", SHARING)
def test_logits_are_those_of_every_prefix_alone(name):
    model, rng = random_model(SHARING[name]), np.random.default_rng(0)
    prompts = texts(rng, LENGTHS)
    owners = [0, 1, 1, 0, 3, 4, 4, 4, 2, 0]
    cache = start(model, prompts)
    assert [len(group.mask) for group in cache.batches[0].shared.groups] == [4, 1]
    cache = cache.select(torch.tensor(owners))
    whole = [list(prompts[i]) for i in owners]
    for k in range(4):
        new = texts(rng, rng.integers(0, 6, len(whole)))
        whole = [a + b for a, b in zip(whole, new, strict=True)]
        found, cache = append(model, cache, new)
        assert far_from_alone(model, whole, found) < 1e-5
        assert cache.length.tolist() == [len(row) for row in whole]
        keep = [i for i in range(len(whole)) if (i + k) % 4]
        whole = [whole[i] for i in keep]
        cache = cache.select(torch.tensor(keep)).packed()
    assert model.config._attn_implementation == "sdpa" or name == "gemma2"


@torch.inference_mode()
@pytest.mark.parametrize("rest", [(3, 1, 1), (30, 60, 9)])
def test_what_all_prompts_begin_with_is_read_once(rest, monkeypatch):
    monkeypatch.setattr("rmtools.lm.kv.cache.LEAST_TOKENS", 8)
    model, rng = random_model(SHARING["qwen3"]), np.random.default_rng(0)
    front = texts(rng, (20,))[0]
    prompts = [[*front, 3 + i, *tail] for i, tail in enumerate(texts(rng, rest))]
    cache, common = begun(model, prompts, model.device)
    assert common == 20
    assert cache.batches[0].shared.groups[0].mask.shape == (1, 20)
    found, cache = append(model, cache, [p[common:] for p in prompts])
    assert far_from_alone(model, prompts, found) < 1e-5
    cache = cache.as_beginnings(model)
    levels = 1 if max(rest) < 8 else 2
    assert (cache.batches[0].shared.before is not None) == (levels == 2)
    owners = [2, 0, 0, 1, 2]
    cache = cache.select(torch.tensor(owners))
    new = texts(rng, (2, 4, 1, 1, 3))
    whole = [prompts[i] + tail for i, tail in zip(owners, new, strict=True)]
    found, cache = append(model, cache, new)
    assert far_from_alone(model, whole, found) < 1e-5
    # Two of three prompts are left behind.
    cache = cache.select(torch.tensor([0, 4])).packed()
    found, _ = append(model, cache, [[5, 6], [7]])
    assert far_from_alone(model, [whole[0] + [5, 6], whole[4] + [7]], found) < 1e-5


@torch.inference_mode()
def test_layers_that_read_the_keys_of_others_are_forked_joined_and_packed():
    model, rng = random_model(WHOLE["gemma4"]), np.random.default_rng(0)
    prompts = texts(rng, (9, 3))
    rows = [prompts[i] for i in (1, 0, 1)]
    _, cache = append(model, start(model, prompts).select(torch.tensor([1, 0, 1])), [[4], [5, 6, 7], []])
    cache = cache.packed().join(cache.copied()).sole_use(True).packed()
    whole = [rows[i] + new for i, new in enumerate([[4], [5, 6, 7], []])] * 2
    found, _ = append(model, cache, [[8], [9]] * 3)
    assert far_from_alone(model, [[*row, 8 + i % 2] for i, row in enumerate(whole)], found) < 1e-5


def test_rows_that_begin_alike_for_a_moment_only_begin_with_nothing():
    model = random_model(SHARING["llama"])
    for rows in ([[4, 5, 6], [5, 5, 6]], [[4], [4, 5]], [[4, 5, 6]]):
        cache, common = begun(model, rows, model.device)
        assert common == 0
        assert len(cache) == len(rows)


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_parted_is_kept_whole(name):
    model, rng = random_model(WHOLE[name]), np.random.default_rng(0)
    assert not can_share(model)
    with torch.inference_mode():
        cache = start(model, texts(rng, (7, 7)))
    assert cache.batches[0].shared is None
    assert cache.batches[0].width == 7


@torch.inference_mode()
def test_no_column_of_a_beginning_is_copied():
    model, rng = random_model(SHARING["llama"]), np.random.default_rng(0)
    cache = start(model, texts(rng, (30, 30)))
    groups = cache.batches[0].shared.groups
    _, cache = append(model, cache.select(torch.tensor([0] * 8 + [1] * 8)), texts(rng, [3] * 16))
    assert [batch.width for batch in cache.batches] == [3]
    assert cache.batches[0].shared.groups is groups
    assert all(len(keys) == 2 and keys.shape[2] == 30 for keys, _ in groups[0].layers)


@torch.inference_mode()
def test_beginnings_that_no_prefix_has_are_let_go():
    model, rng = random_model(SHARING["llama"]), np.random.default_rng(0)
    prompts = texts(rng, LENGTHS)
    cache = start(model, prompts)
    _, cache = append(model, cache, texts(rng, [2] * 5))
    still = cache.select(torch.tensor([0, 1, 3])).packed()
    assert len(still.batches[0].shared.groups) == 2  # most are in use
    few = cache.select(torch.tensor([3, 1])).packed()
    assert [group.mask.sum(1).tolist() for group in few.batches[0].shared.groups] == [[9], [40]]
    assert few.length.tolist() == [42, 11]
    new = texts(rng, [3, 4])
    before = [prompts[3], prompts[1]]
    found, few = append(model, few, new)
    assert [len(b) + 2 + len(n) for b, n in zip(before, new, strict=True)] == few.length.tolist()
    alone, _ = append(model, cache.select(torch.tensor([3, 1])), new)
    for a, b in zip(found, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_prefixes_of_different_beginnings_are_joined_and_packed():
    model, rng = random_model(SHARING["llama"]), np.random.default_rng(0)
    one, other = texts(rng, (6, 8)), texts(rng, (12,))
    a, b = start(model, one), start(model, other)
    _, a = append(model, a, [[4, 5], [6]])
    cache = a.join(b).packed()  # `b` has no token of its own yet
    new = texts(rng, (2, 3, 1))
    whole = [x + y + z for x, y, z in zip([*one, *other], [[4, 5], [6], []], new, strict=True)]
    found, cache = append(model, cache, new)
    assert far_from_alone(model, whole, found) < 1e-5
    cache = cache.packed().select(torch.tensor([2, 0, 2]))
    whole = [whole[2] + [7], whole[0] + [8, 9], whole[2] + [3]]
    found, _ = append(model, cache, [[7], [8, 9], [3]])
    assert far_from_alone(model, whole, found) < 1e-5


@torch.inference_mode()
def test_a_cache_in_sole_use_frees_its_own_columns_alone():
    model, rng = random_model(SHARING["llama"]), np.random.default_rng(0)
    root = start(model, texts(rng, (6, 6)))
    rows = torch.tensor([0, 0, 1, 1])
    new = texts(rng, (3, 1, 2, 5))
    first, once = append(model, root.select(rows).copied(), new)
    again, _ = append(model, root.select(rows), new)
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert once.sole


@torch.inference_mode()
def test_in_bfloat16_no_farther_from_float32_than_attention_in_one_part():
    rng = np.random.default_rng(0)
    exact, model = random_model(SHARING["llama"]), random_model(SHARING["llama"], torch.bfloat16)
    prompts, new = texts(rng, (40, 40, 25)), texts(rng, (5, 5, 5))
    found, _ = append(model, start(model, prompts), new)
    whole = [a + b for a, b in zip(prompts, new, strict=True)]
    apart = far_from_alone(exact, whole, [x.float() for x in found])
    at_once = far_from_alone(
        exact, whole, [model(input_ids=torch.tensor([row])).logits[0, -1].float() for row in whole]
    )
    assert apart < 1.5 * at_once + 0.01


@torch.inference_mode()
def test_in_float16_a_row_without_a_token_of_its_own_is_no_nan():
    """Its queries meet hidden keys alone, at scores that float16 adds to the least number as infinity."""
    model, rng = random_model(SHARING["llama"], torch.float16), np.random.default_rng(1)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight *= 8
        layer.self_attn.k_proj.weight *= 8
    _, cache = append(model, start(model, texts(rng, (20, 20, 15))), [[4, 5], [], [6]])
    found, _ = append(model, cache, [[4], [7, 8], [9, 4, 3]])
    assert all(bool(torch.isfinite(at).all()) for at in found)


@torch.inference_mode()
def test_threads_that_use_one_model_wait_for_each_other():
    model, rng = random_model(SHARING["llama"]), np.random.default_rng(0)
    cache = start(model, texts(rng, (9, 9)))
    new = texts(rng, (2, 2))
    expected, _ = append(model, cache, new)

    def again(k):
        with torch.inference_mode():
            if k % 2:  # without beginnings
                return append(model, PrefixCache.empty(2, model.device), new)[0]
            return append(model, cache, new)[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(again, range(40)))
    for at in found[::2]:
        torch.testing.assert_close(at, expected)
    for at in found[1::2]:
        torch.testing.assert_close(at, found[1])
    assert model.config._attn_implementation == "sdpa"


@torch.inference_mode()
def test_a_pass_that_fails_leaves_the_attention_as_it_was():
    model, rng = random_model(SHARING["llama"]), np.random.default_rng(0)
    cache = start(model, texts(rng, (9, 9)))
    with pytest.raises(IndexError):
        append(model, cache, [[99], [99]])  # no such embedding
    assert model.config._attn_implementation == "sdpa"


def test_attention_in_parts_by_hand():
    """One query at three keys, of which one is in the beginning: the weights are 1/2, 1/4, 1/4."""
    query = torch.ones(1, 1, 1, 1)
    begun = torch.tensor([[[[np.log(2.0)]]]], dtype=torch.float32)
    own = torch.zeros(1, 1, 2, 1)
    values = torch.tensor([[[[1.0]]]]), torch.tensor([[[[10.0], [20.0]]]])
    group = Group.of([(begun, values[0])], torch.ones(1, 1, dtype=torch.bool))
    found, log_sum = Shared((group,), torch.tensor([0])).attend(0, query, 1.0, None)
    rest, log_rest = attend(query, own, values[1], 1.0, None, None)
    assert float(log_sum) == pytest.approx(np.log(2.0))
    assert float(log_rest) == pytest.approx(np.log(2.0))
    assert float(torch.lerp(found, rest, torch.sigmoid(log_rest - log_sum))) == pytest.approx(0.5 + 2.5 + 5.0)
