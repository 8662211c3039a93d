"""Memory of keys and values on a CPU, which is the system's again as soon as a tensor is dropped.

The C library keeps what is freed, in holes that the next buffer, a column wider, does not fit into: a sampler took up to three
times what it held. Here buffers are cut one behind the other from mapped chunks, no address is used twice, and the pages of
one that dies are given back.
"""

import ctypes
import math
import mmap
import threading
import weakref
from contextlib import suppress

from torch import Tensor, frombuffer

# Smaller ones are the C library's.
LEAST_BYTES = 1 << 16
CHUNK_BYTES = 1 << 25
MAPPED = hasattr(mmap, "MADV_DONTNEED") and hasattr(mmap, "MAP_ANONYMOUS")


class Chunk:
    """Mapped memory; its first ``used`` bytes have been given out."""

    def __init__(self, nbytes: int) -> None:
        try:
            self.pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"{nbytes:,} bytes are wanted: {error}") from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Small pages cost five times as much time at the first touch as copying them does.
            with suppress(OSError):
                self.pages.madvise(mmap.MADV_HUGEPAGE)
        self.used = 0

    def take(self, nbytes: int) -> ctypes.Array[ctypes.c_char] | None:
        """Return the next ``nbytes``; None if the rest is shorter."""
        start, whole = self.used, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if start + whole > len(self.pages):
            return None
        self.used += whole
        piece = (ctypes.c_char * nbytes).from_buffer(self.pages, start)
        weakref.finalize(piece, self.pages.madvise, mmap.MADV_DONTNEED, start, whole).atexit = False
        return piece


_lock = threading.Lock()
_chunks: list[Chunk] = []  # the one that is cut from, if any


def new_buffer(like: Tensor, *shape: int) -> Tensor:
    """Return a tensor of the type of ``like``, contents undefined.

    Raises ``MemoryError``, or torch's own error, if there is no room.
    """
    nbytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or nbytes < LEAST_BYTES or not MAPPED:
        return like.new_empty(*shape)
    with _lock:
        piece = _chunks[0].take(nbytes) if _chunks else None
        if piece is None:
            _chunks[:] = [Chunk(max(CHUNK_BYTES, nbytes + mmap.PAGESIZE))]
            piece = _chunks[0].take(nbytes)
    assert piece is not None
    return frombuffer(piece, dtype=like.dtype).view(shape)
