"""How much work a slow machine does in five minutes: what an interruption may lose."""

import sys
from collections.abc import Sequence
from typing import Any

import torch

# Weights times tokens a second: one core draws and reads 22 tokens with two models of 135 million weights, and draws 49 with one.
SLOW_CORE = 6e9
MOST_SECONDS = 300


def prompts_in_time(owners: Sequence[Any], tokens: int, batch: int, device: torch.device) -> int:
    """Return how many prompts a slow core finishes in `MOST_SECONDS` with the models of ``owners`` (policy, value model).

    Each has ``tokens`` tokens, all its solutions together; whole batches of ``batch`` prompts if there is time for one, at least
    1 prompt. Counted from the weights, so the same at every start. No limit on a GPU, or without a model in this process.
    """
    models = [m for m in (getattr(owner, "model", None) for owner in owners) if m is not None]
    weights = sum(p.numel() for m in models for p in m.parameters())
    if device.type == "cuda" or not weights:
        return sys.maxsize
    found = max(1, int(MOST_SECONDS * SLOW_CORE / (weights * tokens)))
    return found if found < batch else found // batch * batch
