"""What a perfect value would cost in particles, from rollouts: a bracket around sigma^2 with V = V*.

Its ends are made of `perfect_parts`, summed over prompts; the model's own sigma^2 over them says how many times
the particles of a perfect value the model needs (docs/equations.md section 5).

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> def prompt():  # two steps; the second succeeds with probability 0.2 or 0.8, and the model knows which
...     p = rng.choice([0.2, 0.8], 8)
...     phi = np.where(rng.random((5, 8)) < p, 1.0, 0.1)
...     log_value = np.log([np.full(8, 0.55), 0.1 + 0.9 * p, phi[0]]).T
...     return perfect_parts(log_value, phi[0], np.stack([phi[1:], phi[1:]]).transpose(2, 0, 1))
>>> result = perfect_sigma2([prompt() for _ in range(400)], rng)
>>> exact = (0.28**2 + 0.82**2) / 2 / 0.55**2 - 1 + 0.9**2 * 0.16 * (1 / 0.28 + 1 / 0.82) / 2 / 0.55
>>> round(exact, 2), result.lower.contains(exact), result.upper.contains(exact)
(0.81, True, True)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from rmtools.errors import UserError
from rmtools.stats.bootstrap import Interval, as_dict, bootstrap_all, ratio_of_means, read_intervals
from rmtools.stats.perfect_ends import perfect_ends
from rmtools.stats.perfect_parts import PerfectParts, perfect_parts
from rmtools.stats.sigma2 import Sigma2Parts

__all__ = ["CostRatio", "PerfectParts", "PerfectSigma2", "cost_ratio", "perfect_parts", "perfect_sigma2"]


@dataclass(frozen=True)
class PerfectSigma2:
    """Bracket of the pooled sigma^2 of a perfect value, intervals over prompts.

    Attributes
    ----------
    lower : Interval
        Expected to be at most sigma^2; close to it where V* is close to a function of depth and the model's value.
    upper : Interval
        Expected to be at least sigma^2. With fewer than 3 extra completions, or a model far from V*, it is too
        large by about the sum over steps of Var(phi given s) / (R_extra V*(s)^2).
    n_prompts : int
        What it was made of.
    """

    lower: Interval
    upper: Interval
    n_prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Return a dict fit for JSON."""
        return as_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(**read_intervals(values))


def perfect_sigma2(
    parts: Sequence[PerfectParts],
    rng: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
    n_bins: int = 4,
) -> PerfectSigma2:
    """Bracket sigma^2 of a perfect value, pooled over prompts with weights Z_p^2 as sigma^2 is pooled.

    Parameters
    ----------
    parts : sequence of PerfectParts
        One per prompt.
    rng : np.random.Generator
        Source of the resamples of prompts.
    n_resamples : int
        Number of resamples.
    level : float
        Nominal coverage of each interval.
    n_bins : int
        Bins of the model's value at each depth (`perfect_ends`).

    Returns
    -------
    PerfectSigma2

    Raises
    ------
    UserError
        If there is no prompt, or `n_bins` is below 1.

    Notes
    -----
    Each prompt's ends rest on choices made on all other prompts: with choices that suit its own noise, the
    lower end would be too high and the upper end too low. Any choice that a prompt has no influence on gives a
    bound in expectation, so the interval treats it as given. Source: docs/equations.md section 5.
    """
    lower, upper = perfect_ends(parts, n_bins)
    z_square = np.array([p.z_square for p in parts])
    problems = {
        name: (np.stack([excess, z_square], axis=1), ratio_of_means)
        for name, excess in (("lower", lower), ("upper", upper))
    }
    found = bootstrap_all(problems, rng, n_resamples, level)
    return PerfectSigma2(found["lower"], found["upper"], len(parts))


@dataclass(frozen=True)
class CostRatio:
    """What the model's errors cost: sigma^2 of the model over sigma^2 of a perfect value, as a bracket.

    Attributes
    ----------
    at_least, at_most : Interval
        Over the upper and over the lower end of `PerfectSigma2`. NaN where that end or the model's sigma^2 is
        not above 0, no `high` where the interval of that end reaches 0, no interval where the model's does.
        Below 1 is possible: V* is close to the cheapest value, not the cheapest.
    n_prompts : int
        What it was made of.
    """

    at_least: Interval
    at_most: Interval
    n_prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Return a dict fit for JSON."""
        return as_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(**read_intervals(values))


def cost_ratio(
    model: Sequence[Sigma2Parts],
    perfect: Sequence[PerfectParts],
    rng: np.random.Generator,
    n_resamples: int = 2000,
    level: float = 0.95,
    n_bins: int = 4,
) -> CostRatio:
    """Bracket how many times the particles of a perfect value the model needs, pooled over prompts.

    Parameters
    ----------
    model : sequence of Sigma2Parts
        One per prompt, from `sigma2_parts`.
    perfect : sequence of PerfectParts
        Of the same prompts in the same order, so that both are resampled together.
    rng : np.random.Generator
        Source of the resamples of prompts.
    n_resamples : int
        Number of resamples.
    level : float
        Nominal coverage of each interval.
    n_bins : int
        Bins of the model's value at each depth (`perfect_ends`).

    Returns
    -------
    CostRatio

    Raises
    ------
    UserError
        If there is no prompt, the numbers of prompts differ, or `n_bins` is below 1.

    Notes
    -----
    Source: docs/equations.md section 5.
    """
    if len(model) != len(perfect):
        raise UserError(
            f"{len(model)} prompts of the model and {len(perfect)} of the perfect value",
            fix="pass the parts of the same prompts in the same order",
        )
    cost = np.array([p.numerator - p.horizon * p.z_square for p in model])
    ends = dict(zip(("at_most", "at_least"), perfect_ends(perfect, n_bins), strict=True))
    # The model's cost is the less noisy of the two: it divides, and the share is inverted.
    problems = {name: (np.stack([end, cost], axis=1), ratio_of_means) for name, end in ends.items()}
    problems["model"] = (cost[:, None], lambda means: means[:, 0])
    found = bootstrap_all(problems, rng, n_resamples, level)
    ratios = {name: _inverted(found[name], found["model"]) for name in ends}
    return CostRatio(**ratios, n_prompts=len(perfect))


def _inverted(share: Interval, model: Interval) -> Interval:
    """Return one over the share as far as it and the model's cost can be told from 0."""
    if not (share.estimate > 0 and model.estimate > 0):
        return Interval(math.nan, None, None)
    known = model.low is not None and model.low > 0
    low, high = (
        1 / end if known and end is not None and end > 0 else None for end in (share.high, share.low)
    )
    return Interval(1 / share.estimate, low, high)
