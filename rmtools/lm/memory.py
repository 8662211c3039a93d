"""What to do where a device has too little memory: the same work in halves."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from rmtools.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
logger = logging.getLogger(__name__)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is short; a CPU's allocator has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def in_halves(work: Callable[[Sequence[T]], list[R]], items: Sequence[T], what: str, fix: str) -> list[R]:
    """Return ``work(items)``; where memory is short that of the halves, in order, with a warning.

    Raises
    ------
    UserError
        If a single item is too much; ``what`` names the items, ``fix`` says what makes them smaller.
    """
    try:
        return work(items)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if len(items) == 1:
            raise UserError(f"the device has too little memory for one {what}", fix) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning(
        "too little memory for %d %ss together: halved, so their draws are others", len(items), what
    )
    middle = len(items) // 2
    return [*in_halves(work, items[:middle], what, fix), *in_halves(work, items[middle:], what, fix)]
