"""Whether a model reads tokens alike with a hole between them and without: one try with a text of a few tokens.

Some models take the number of a column for that of a token, whatever their position ids say, and no field of their
configuration tells.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.architectures import with_cache
from rmtools.lm.precision import input_device

BEFORE, AFTER = 3, 5
# Of what leaving out the tokens before the hole changes behind it. Rounding is a thousandth at most, in bfloat16 a hundredth;
# what counts columns is off by .4 and more.
MOST, MOST_IF_COARSE = 0.02, 0.2
# What a model may raise whose attention gets something else than it expects.
UNLIKE = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)

_tried: WeakKeyDictionary[torch.nn.Module, float] = WeakKeyDictionary()


def require_holes(model: Any) -> None:
    """Raise ``UserError`` if the model reads tokens otherwise when there is a hole between them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base not in _tried:
        _tried[base] = _moved(model)
    fine = getattr(base, "dtype", torch.float32) in (torch.float32, torch.float64)
    if _tried[base] > (MOST if fine else MOST_IF_COARSE):  # False also for NaN
        raise UserError(
            f"{type(base).__name__} counts columns where others follow position ids: prefixes of different length cannot be "
            "read together",
            "use a model that follows position ids, such as Llama, Qwen, Gemma or GPT-2",
        )


@torch.inference_mode()
def _moved(model: Any) -> float:
    """Return how far a hole moves what is read behind it, as a share of what leaving out the tokens before it does."""
    size = model.config.get_text_config().vocab_size
    device = input_device(model)
    # Special tokens come first or last.
    ids = (torch.arange(BEFORE + AFTER, device=device) * 7 + size // 2)[None] % size
    mask = torch.ones(1, BEFORE + 1 + AFTER, dtype=torch.long, device=device)
    try:
        whole = read(model, ids, 0)[0][..., BEFORE:, :]
        cache = read(model, ids[:, : BEFORE + 1], 0)[1]
        mask[:, BEFORE] = 0
        behind = read(model, ids[:, BEFORE:], BEFORE, cache, mask)[0]
        alone = read(model, ids[:, BEFORE:], BEFORE)[0]
        return float((whole - behind).norm() / (whole - alone).norm())
    except torch.OutOfMemoryError:
        raise
    except UNLIKE:  # the pass itself tells
        return 0.0


def read(
    model: Any, ids: Tensor, first: int, cache: Any = None, mask: Tensor | None = None
) -> tuple[Tensor, Any]:
    """Return the states (1, L, width) behind the last layer, or else logits, and the cache.

    ``ids`` (1, L) are at positions from ``first`` on; ``mask`` (1, W) is 0 at the columns that are holes.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config) if cache is None else cache
    positions = torch.arange(first, first + ids.shape[1], device=ids.device)[None]
    output = model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=mask,
        use_cache=True,
        output_hidden_states=True,
        **with_cache(model, cache),
    )
    # A new head may return the same for everything.
    states = getattr(output, "hidden_states", None)
    return (states[-1] if states else output.logits).float(), cache
