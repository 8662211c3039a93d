"""Keep freed arrays for the next ones: a step of the sampler makes about twenty of the same size.

By default glibc returns freed arrays of more than 128 KiB to the system, and the next array pays a page fault for every
4 KiB of it: more than half of the sampler's time on a finite model (docs/log.md). Its threshold follows the largest block
freed so far, up to 32 MiB, so that freeing one such block, never written to, is all it takes. Up to 64 MiB of freed
memory then stay with the process. Elsewhere this does nothing.

>>> keep_freed_arrays()
"""

from functools import cache

import numpy as np

LARGEST_KEPT = 2**25 - 2**16  # bytes, just below the largest threshold glibc adapts to (mallopt(3))


@cache
def keep_freed_arrays() -> None:
    """Raise the size up to which freed arrays are kept, once a process."""
    np.empty(LARGEST_KEPT, dtype=np.uint8)
