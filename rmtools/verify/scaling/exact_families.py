"""Two exact families beside the language models: one whose cost the ESS trigger removes, one whose cost no sampler avoids.

`persistent` has a bias of 5% at every step that is over at the end: by default the sampler does not resample by it.
`hidden_prefix` is the lower bound of Thm 4.1: until 2/3 of the steps are done no value tells the rewarded prefix from others.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from rmtools.exact.families import hidden_prefix, persistent
from rmtools.exact.finite_model import FiniteModel
from rmtools.exact.solution import solve
from rmtools.particles.tilt import Tilt
from rmtools.verify.scaling.measure import SAMPLERS, run_tables, search
from rmtools.verify.scaling.profile import DELTA_CV

PERSISTENT_EPSILON, HIDDEN_RATIO = 0.05, 2.0
# Equal models, that count as prompts.
COPIES = 32
UNUSED = Tilt(0.5)  # of rewards, which these models do not have

MODELS: Mapping[str, Callable[[int], FiniteModel]] = MappingProxyType(
    {
        "persistent": lambda horizon: persistent(horizon, PERSISTENT_EPSILON),
        "hidden_prefix": lambda horizon: hidden_prefix(horizon // 3, HIDDEN_RATIO),
    }
)
FAMILIES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"persistent": (16, 32, 64), "hidden_prefix": (6, 9, 12, 15)}
)


@dataclass(frozen=True)
class FamilyPoint:
    """An exact model under a sampler: sigma^2 of resampling at every step; N needed for the CV, None beyond the largest."""

    family: str
    horizon: int
    sampler: str
    sigma2: float
    n_measured: float | None
    low: float | None
    high: float | None
    n_largest: int


def measure_family(
    family: str, horizon: int, sampler: str, most: int, rng: np.random.Generator
) -> FamilyPoint:
    """Measure the particles that an exact model needs."""
    model = MODELS[family](horizon)
    sigma2 = solve(model).sigma2
    run = run_tables([model] * COPIES, UNUSED, SAMPLERS[sampler], rng)
    found = search(run, sigma2 / DELTA_CV**2, most, DELTA_CV, math.inf, rng)
    need, largest = found.n_for_cv, found.tried[0].n_particles
    if need is None:
        return FamilyPoint(family, horizon, sampler, sigma2, None, None, None, largest)
    return FamilyPoint(family, horizon, sampler, sigma2, need.estimate, need.low, need.high, largest)
