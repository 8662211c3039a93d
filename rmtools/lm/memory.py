"""Memory: how many prompts fit, whether an allocation does, and the same work in halves where it does not."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch

from rmtools.errors import UserError
from rmtools.lm.kv.parted import can_share
from rmtools.lm.kv.shared import LEAST_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Keys and values of a batch on a CPU. More sequences at a time than this holds of a small model are not decoded faster.
CPU_CACHE_BYTES = 3 << 28
# Tokens of a solution that batches are sized for, if the settings allow more: most solutions of grade-school problems have fewer.
USUAL_TOKENS = 256
# Numbers kept for the backward pass by a layer, per token and column of its width: 49 measured with adapters on all linear
# layers of 135M weights (3.4 MB a token).
KEPT_PER_COLUMN = 50
# Left to everything else on the machine.
RESERVE_BYTES = 1 << 28
CGROUP = Path("/sys/fs/cgroup")

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


def cache_bytes(model: "PreTrainedModel | None") -> int:
    """Return the bytes of one token's keys and values; 0 without a model in this process."""
    if model is None:
        return 0
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def prompts_that_fit(owners: Sequence[Any], prompt: int, new: int, width: int, device: torch.device) -> int:
    """Return how many prompts to hold at a time for the models of ``owners`` (policy, value model), at least 1.

    Each of ``prompt`` tokens, and ``width`` sequences behind it of ``new`` tokens; models that can hold a prompt once do. On a
    CPU their caches fit into `CPU_CACHE_BYTES`, or an eighth of a small machine's memory, on a GPU into half of what the weights
    leave: they are copied where prefixes fork. The same at every start on the same machine.
    """
    models = [m for m in (getattr(owner, "model", None) for owner in owners) if m is not None]
    bytes_each = 0
    for m in models:
        once = prompt >= LEAST_TOKENS and can_share(m)
        bytes_each += cache_bytes(m) * (prompt + width * new if once else width * (prompt + new))
    if device.type != "cuda":
        room = min(CPU_CACHE_BYTES, psutil.virtual_memory().total // 8)
    else:
        # Beside the caches: logits, probabilities and sums of one token, in fp32.
        bytes_each = 2 * bytes_each + width * sum(
            4 * 4 * m.config.get_text_config().vocab_size for m in models
        )
        weights = sum(p.numel() * p.element_size() for m in models for p in m.parameters())
        room = (torch.cuda.get_device_properties(device).total_memory - weights) // 2
    return max(1, room // max(1, bytes_each))


def tokens_that_fit(model: "PreTrainedModel", most: int) -> int:
    """Return how many tokens to read at a time, at most ``most``; on a CPU caches of an eighth of `CPU_CACHE_BYTES`."""
    if model.device.type != "cpu":
        return most
    return max(1, min(most, CPU_CACHE_BYTES // 8 // max(1, cache_bytes(model))))


def tokens_to_train(model: Any, device: torch.device) -> int:
    """Return how many tokens to read at a time while the activations of every layer are kept for the backward pass.

    They fit into half of what the weights leave on a GPU, a quarter of a CPU's memory: the same at every start on a machine.
    """
    config = model.config.get_text_config()
    each = KEPT_PER_COLUMN * config.num_hidden_layers * config.hidden_size * model.dtype.itemsize
    if device.type == "cuda":
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        room = (torch.cuda.get_device_properties(device).total_memory - weights) // 2
    else:
        room = psutil.virtual_memory().total // 4
    return max(1, int(room // each))


def available_memory() -> int:
    """Return the bytes that this process may still take: what the machine has, and what the limit of its control group leaves."""
    found = int(psutil.virtual_memory().available)
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or one without a limit
        return found
    return min(found, limit - used)


def require_memory(nbytes: int, device: torch.device) -> None:
    """Raise ``MemoryError`` if a CPU has not ``nbytes`` left: the system would kill the process instead of refusing them."""
    if device.type == "cpu" and nbytes > RESERVE_BYTES and nbytes > available_memory() - RESERVE_BYTES:
        raise MemoryError(f"{nbytes:,} bytes are wanted, {available_memory():,} are available")
