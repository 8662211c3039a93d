"""Intervals over problems of shares, which lie in [0, 1].

>>> import numpy as np
>>> found = share_intervals({"right": (np.ones((20, 1)), first_mean)}, np.random.default_rng(0))["right"]
>>> found.estimate, round(found.low, 2), found.high
(1.0, 0.84, 1.0)
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from rmtools.particles.islands import wilson
from rmtools.stats.bootstrap import Interval, Statistic, bootstrap_all, first_mean

__all__ = ["differences", "first_mean", "share_intervals"]

Name = TypeVar("Name")


def share_intervals(
    problems: Mapping[Name, tuple[np.ndarray, Statistic]], rng: np.random.Generator
) -> dict[Name, Interval]:
    """Return 95% intervals of shares by resampling problems; arguments as `rmtools.stats.bootstrap.bootstrap_all`.

    Ends are kept in [0, 1]. If all problems agree on 0 or 1, resampling shows no spread: the ends are Wilson's, for as many draws
    as there are problems.
    """
    found = bootstrap_all(problems, rng)
    return {name: _share(found[name], len(sums)) for name, (sums, _) in problems.items()}


def _share(found: Interval, n: int) -> Interval:
    if found.low is None or found.high is None:
        return found
    if found.low == found.high and found.estimate in (0.0, 1.0):
        low, high = wilson(np.asarray(found.estimate), np.asarray(float(n)))
        return Interval(found.estimate, min(float(low), found.estimate), max(float(high), found.estimate))
    return Interval(found.estimate, max(found.low, 0.0), min(found.high, 1.0))


def differences(
    pairs: Mapping[Name, tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> dict[Name, Interval]:
    """Return mean differences of paired columns (P,), with intervals over problems."""
    return bootstrap_all({name: ((a - b)[:, None], first_mean) for name, (a, b) in pairs.items()}, rng)
