"""Batches sized from the memory there is, and what happens where it does not suffice."""

from types import SimpleNamespace

import pytest
import torch

from rmtools.lm import memory
from rmtools.lm.kv.cache import PrefixCache
from rmtools.lm.memory import (
    CPU_CACHE_BYTES,
    available_memory,
    cache_bytes,
    prompts_that_fit,
    require_memory,
    tokens_that_fit,
)
from rmtools.sampling.settings import settings_for
from rmtools.sampling.source import PARTICLES_PER_BATCH, Source

CPU = torch.device("cpu")


def shaped(layers, heads, size, dtype=torch.float32):
    config = SimpleNamespace(num_hidden_layers=layers, num_key_value_heads=heads, head_dim=size, vocab_size=9)
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config, dtype=dtype, device=CPU)


# 30 layers, 3 heads of keys of width 64, fp32: 2 x 30 x 3 x 64 x 4.
SMOLLM = shaped(30, 3, 64)


def test_bytes_of_a_token(policy):
    assert cache_bytes(SMOLLM) == 46_080
    assert cache_bytes(shaped(30, 3, 64, torch.bfloat16)) == 23_040
    assert cache_bytes(None) == 0
    state = policy.start([[4] * 9])
    assert state.cache.length.tolist() == [8]
    batch = state.cache.batches[0]
    held = 2 * sum(layer.keys.nbytes for layer in batch.cache.layers)
    assert held == 8 * cache_bytes(policy.model)


def test_few_prompts_of_a_real_model_and_many_of_a_small_one():
    one = SimpleNamespace(model=SMOLLM)
    assert prompts_that_fit([one], 100, 200, 8, CPU) == CPU_CACHE_BYTES // (8 * 300 * 46_080) == 7
    assert prompts_that_fit([one, one], 100, 200, 8, CPU) == 3
    assert prompts_that_fit([one], 100, 10**9, 1, CPU) == 1
    small = SimpleNamespace(model=shaped(2, 2, 16))
    assert prompts_that_fit([small], 54, 18, 1, CPU) > PARTICLES_PER_BATCH


def test_a_prompt_held_once_counts_once(monkeypatch):
    monkeypatch.setattr(memory, "can_share", lambda model: True)
    one = SimpleNamespace(model=SMOLLM)
    assert prompts_that_fit([one], 100, 200, 8, CPU) == CPU_CACHE_BYTES // ((100 + 8 * 200) * 46_080) == 10
    assert prompts_that_fit([one], 10, 290, 8, CPU) == 7  # too short to be parted


def test_a_small_machine_has_smaller_batches(monkeypatch):
    few = SimpleNamespace(total=1 << 31, available=1 << 30)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: few)
    one = SimpleNamespace(model=SMOLLM)
    assert prompts_that_fit([one], 100, 200, 1, CPU) == (1 << 28) // (300 * 46_080)


def test_tokens_read_at_a_time():
    assert tokens_that_fit(SMOLLM, 16_384) == CPU_CACHE_BYTES // 8 // 46_080
    assert tokens_that_fit(shaped(2, 2, 16), 16_384) == 16_384


def test_what_runs_together_holds_policy_and_value_model(policy, value, prompts, monkeypatch):
    settings = settings_for("smc", n_particles=8)
    source = Source(policy, value)
    assert source.prompts_per_batch(settings, prompts) == PARTICLES_PER_BATCH // 8
    longest = max(len(policy.steps.prompt_ids(p)) for p in prompts) + 3 * 6
    both = cache_bytes(policy.model) + cache_bytes(value.model)
    monkeypatch.setattr(memory, "CPU_CACHE_BYTES", 24 * longest * both)
    assert source.prompts_per_batch(settings, prompts) == 3
    monkeypatch.setattr(value, "solution_tokens", 6)
    assert source.prompts_per_batch(settings, prompts) == 3 * longest // (longest - 2 * 6)
    monkeypatch.setattr(memory, "CPU_CACHE_BYTES", 1)
    assert source.prompts_per_batch(settings, prompts) == 1


def test_a_limit_of_the_control_group_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = available_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available_memory() > machine / 2
    (tmp_path / "memory.max").write_text("5000\n")
    assert available_memory() == 4000


def test_memory_that_is_not_there_is_asked_for_in_vain(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 30)
    require_memory(1 << 29, CPU)
    require_memory(1 << 40, torch.device("meta"))
    with pytest.raises(MemoryError, match="1,073,741,824"):
        require_memory(1 << 30, CPU)


def test_growing_moves_what_others_share(policy):
    """A full buffer is replaced in place: the older holder sees the same tokens, and no second copy is kept."""
    cache = PrefixCache.empty(2, CPU)
    ids = torch.randint(4, 20, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        _, old = cache.forward(policy.model, ids[:, :8])
        before = [layer.keys.clone() for layer in old.batches[0].cache.layers]
        new = old
        for k in range(8, 40):
            logits, new = new.forward(policy.model, ids[:, k : k + 1])
        whole = policy.model(input_ids=ids).logits[:, -1:]
        # The older one appends something else, and neither sees the other's token.
        other, _ = old.forward(policy.model, ids[:, 20:21])
        alone = policy.model(input_ids=torch.cat([ids[:, :8], ids[:, 20:21]], 1)).logits[:, -1:]
    assert torch.allclose(logits, whole, atol=1e-5)
    assert torch.allclose(other, alone, atol=1e-5)
    for layer, keys in zip(old.batches[0].cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_a_full_buffer_is_shared_after_it_grew(policy):
    with torch.inference_mode():
        _, old = PrefixCache.empty(1, CPU).forward(policy.model, torch.full((1, 8), 4))
        layers = old.batches[0].cache.layers
        room = layers[0].buffer.keys.shape[2]
        _, full = old.forward(policy.model, torch.full((1, room - 8), 4))
        assert full.batches[0].cache.layers[0].buffer is layers[0].buffer
        _, more = full.forward(policy.model, torch.full((1, 1), 4))
    grown = [layer.buffer for layer in full.batches[0].cache.layers]
    assert [layer.buffer for layer in more.batches[0].cache.layers] == grown
    assert all(buffer.keys.shape[2] > room for buffer in grown)
