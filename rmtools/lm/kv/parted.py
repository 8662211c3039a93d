"""Whether a model's attention can be done in two parts: one look at it, then one try.

Many models keep in their cache what they attend to, but not all: some expand it first, repeat it, or add something to the
scores. A model is tried once, with a text of a few tokens, in one part and in two.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from rmtools.lm.architectures import longest_shared_row
from rmtools.lm.kv.holes import UNLIKE, read
from rmtools.lm.kv.shared import Group, Shared, beginnings
from rmtools.lm.precision import input_device, is_spread

TOKENS = 12
# Of what the first half of the text changes in its second. In parts it is rounded otherwise; what is not attention in parts is
# off by about all of it.
TOLERANCE, TOLERANCE_IF_COARSE = 1e-3, 0.25

_tried: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def can_share(model: Any) -> bool:
    """Return whether the model's attention can be done in two parts."""
    base = model
    if hasattr(model, "get_base_model"):  # of adapters, whose own forward passes everything on
        base = model.get_base_model()
    interface = getattr(base, "_can_set_attn_implementation", None)
    if interface is None or not interface() or not longest_shared_row(model) or is_spread(model):
        return False
    # A layer with sinks adds a term to its sums.
    if any(name.endswith(".sinks") for name, _ in base.named_parameters()):
        return False
    if base not in _tried:
        _tried[base] = _agrees(model)
    return _tried[base]


@torch.inference_mode()
def _agrees(model: Any) -> bool:
    """Return whether a text's second half is read behind its first as it is in the whole text."""
    size = model.config.get_text_config().vocab_size
    # Special tokens come first or last.
    ids = (torch.arange(TOKENS, device=input_device(model)) * 7 + size // 2)[None] % size
    half = TOKENS // 2
    try:
        whole = read(model, ids, 0)[0][:, half:]
        layers = read(model, ids[:, :half], 0)[1].layers
        group = Group.of(
            [(x.keys, x.values) for x in layers], torch.ones_like(ids[:, :half], dtype=torch.bool)
        )
        with beginnings(model, Shared((group,), torch.zeros_like(ids[0, :1]))):
            parted = read(model, ids[:, half:], half)[0]
        alone = read(model, ids[:, half:], half)[0]
        most = TOLERANCE if model.dtype in (torch.float32, torch.float64) else TOLERANCE_IF_COARSE
        return bool((whole - parted).norm() < most * (whole - alone).norm())  # False also for NaN
    except torch.OutOfMemoryError:
        raise
    except UNLIKE:
        return False
