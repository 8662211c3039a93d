"""The results in a checkpoint's model card, as training and the audit write them."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD_FILE = "README.md"


def model_index(metrics: Mapping[str, float | None], split: str) -> "list[EvalResult]":
    """Return ``metrics`` of the rollouts ``split`` as entries of ``model-index``, without missing and infinite ones."""
    from huggingface_hub import EvalResult

    return [
        EvalResult("token-classification", "rollouts", "branching rollouts", name, value, dataset_split=split)
        for name, value in metrics.items()
        if value is not None and math.isfinite(value)
    ]
