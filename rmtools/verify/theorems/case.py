"""One case of a check: a measurement that runs on its own core.

Each case has its own generator, seeded by its label: neither the order nor the number of cases changes a figure.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Figures = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A function that another process can import, its arguments, and roughly its cost.

    Attributes
    ----------
    label : str
        Unique within the check; seeds the generator.
    run : callable
        ``run(rng=..., **arguments)`` returns JSON values, among them ``holds``.
    arguments : dict
    cost : float
        Particle-steps; only orders the work.
    """

    label: str
    run: Callable[..., Figures]
    arguments: Figures = field(default_factory=dict)
    cost: float = 0.0

    def measure(self, seed: int, check: str) -> Figures:
        """Return the figures of the case, and its label."""
        rng = np.random.default_rng([seed, zlib.crc32(f"{check}/{self.label}".encode())])
        return {"label": self.label, **self.run(rng=rng, **self.arguments)}
