"""What a user chooses about a published PRM: floor, the value of a prompt alone, and how steps make a prefix's value."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.particles.tilt import Tilt

AGGREGATES = ("last", "product", "min", "mean")
FIRST_STEPS = "first-steps"
# Before the policy's first steps are known; a sampler's weights do not depend on it.
UNKNOWN_ROOT = 0.5


@dataclass(frozen=True)
class Reading:
    """How the p of steps become the value of a prefix.

    Attributes
    ----------
    floor : float
        Of the tilt.
    root_value : str or float
        Value of a prompt alone, where the format has none: ``first-steps``, the mean over the policy's first steps, or a
        probability.
    aggregate : {"last", "product", "min", "mean"}
        What makes a prefix's p of the p of its steps.
    """

    floor: float = 0.01
    root_value: str | float = FIRST_STEPS
    aggregate: str = "last"

    def __post_init__(self) -> None:
        Tilt(self.floor)
        if self.aggregate not in AGGREGATES:
            raise UserError(
                f"unknown `aggregate` {self.aggregate!r}", f"choose one of: {', '.join(AGGREGATES)}"
            )
        root = self.root_value
        number = isinstance(root, int | float) and not isinstance(root, bool)
        if root != FIRST_STEPS and not (number and 0 <= float(root) <= 1):
            raise UserError(
                f"`root_value` must be {FIRST_STEPS!r} or a probability in [0, 1], got {root!r}",
                f"root_value={FIRST_STEPS!r}, or root_value=0.5",
            )

    @property
    def start(self) -> float:
        """The aggregate over no steps."""
        return -math.inf if self.aggregate == "mean" else 0.0

    def added(self, total: Any, log_p: Any) -> Any:
        """Return the aggregate of steps after one more with ``log_p``, nats; of arrays or of tensors."""
        module: Any = torch if isinstance(log_p, Tensor) else np
        if self.aggregate == "product":
            return total + log_p
        if self.aggregate == "min":
            return module.minimum(total, log_p)
        return module.logaddexp(total, log_p) if self.aggregate == "mean" else log_p

    def log_value(self, total: Any, depth: Any, *, tilted: bool = True) -> np.ndarray:
        """Return log V (...) nats of aggregates over ``depth`` steps, at least 1; log p if not ``tilted``."""
        log_p = np.asarray(total, dtype=np.float64)
        if self.aggregate == "mean":
            log_p = log_p - np.log(depth)
        if not tilted:
            return log_p
        low = math.log(self.floor)
        found: np.ndarray = np.clip(np.logaddexp(low, math.log1p(-self.floor) + log_p), low, 0.0)
        return found

    def log_values(self, log_p: np.ndarray, *, tilted: bool = True) -> np.ndarray:
        """Return log V (T,) nats after each of T steps with ``log_p`` (T,), or log p."""
        totals = np.empty(len(log_p))
        total = self.start
        for t, step in enumerate(log_p):
            total = totals[t] = self.added(total, step)
        return self.log_value(totals, np.arange(1, len(log_p) + 1), tilted=tilted)

    @property
    def root(self) -> float:
        """The log value of the prompt alone, nats, for formats that are read behind steps only."""
        given = UNKNOWN_ROOT if isinstance(self.root_value, str) else self.root_value
        return float(Tilt(self.floor).log_potential(given))
