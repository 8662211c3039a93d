"""Keys and values on a CPU: buffers of their own, whose memory the system gets back."""

import os
import sys
from pathlib import Path

import pytest
import torch

from rmtools.lm.kv import pages
from rmtools.lm.kv.cache import PrefixCache

mapped = pytest.mark.skipif(not pages.MAPPED, reason="no anonymous mappings here")


@mapped
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_do_not_touch_each_other(dtype, monkeypatch):
    """Of random sizes, dropped in random order; one that is too long for a chunk has its own."""
    monkeypatch.setattr(pages, "CHUNK_BYTES", 1 << 20)
    draws = torch.Generator().manual_seed(0)
    like, held = torch.zeros(1, dtype=dtype), {}
    for k in range(200):
        rows = int(torch.randint(1, 40, (), generator=draws))
        buffer = pages.new_buffer(like, rows, 3, 1 << 13)
        assert buffer.shape == (rows, 3, 1 << 13)
        assert buffer.dtype == dtype
        held[k] = buffer.fill_(k)
        if len(held) > 5:
            del held[list(held)[int(torch.randint(5, (), generator=draws))]]
        assert all(bool((b == i).all()) for i, b in held.items())


@mapped
def test_a_view_keeps_its_buffer():
    view = pages.new_buffer(torch.zeros(1), 1 << 16).fill_(7)[::2]
    again = pages.new_buffer(torch.zeros(1), 1 << 16).fill_(8)
    assert bool((view == 7).all())
    assert bool((again == 8).all())


@mapped
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_system_gets_the_memory_back():
    """Also while a neighbour in the same chunk lives, and the C library's free list plays no part."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    buffers = [pages.new_buffer(torch.zeros(1), 1 << 20).fill_(1) for _ in range(64)]
    assert resident() - before > 240 << 20
    del buffers[1:-1:2], buffers[::2]
    assert resident() - before < 100 << 20
    assert bool((buffers[0] == 1).all())


@mapped
@torch.inference_mode()
def test_logits_do_not_depend_on_where_the_buffers_are(policy, monkeypatch):
    ids = torch.randint(4, 20, (6, 12), generator=torch.Generator().manual_seed(0))

    def logits():
        cache = PrefixCache.empty(6, policy.device).forward(policy.model, ids)[1]
        for _ in range(20):
            cache = cache.select(torch.tensor([0, 0, 2, 5, 4, 3]))
            found, cache = cache.forward(policy.model, ids[:, :1])
        return found

    expected = logits()
    monkeypatch.setattr(pages, "LEAST_BYTES", 1)
    assert torch.equal(logits(), expected)


@mapped
def test_more_than_there_is():
    with pytest.raises(MemoryError):
        pages.new_buffer(torch.zeros(1), 1 << 50)
