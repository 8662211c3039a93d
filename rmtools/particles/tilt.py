"""The map from a probability of success to a positive value, and back.

A process reward model gives p(s), the probability that a solution continuing s will be right. A value must be positive
with bounded ratios: the potential of a reward r is f + (1 - f) r, and so the value of a prefix is V(s) = f + (1 - f) p(s)
(docs/equations.md section 2). For r in {0, 1} this is exp(r / lam) up to a constant, with f = exp(-1 / lam): the one
parameter is a floor on the probability, or a temperature. All in nats.

>>> tilt = Tilt(floor=0.1)
>>> [round(float(v), 6) for v in np.exp(tilt.log_potential([0.0, 0.5, 1.0]))]
[0.1, 0.55, 1.0]
>>> round(float(np.exp(tilt.log_probability(np.log(0.55)))), 6)
0.5
>>> round(Tilt.from_temperature(0.5).floor, 6), round(tilt.ratio_bound, 6)
(0.135335, 10.0)
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from rmtools.errors import UserError


@dataclass(frozen=True)
class Tilt:
    """The map p -> f + (1 - f) p between probabilities and values, carried as logs.

    Parameters
    ----------
    floor : float
        f in (0, 1): the value of certain failure. Choose it well below the success rate to favour success; f -> 0
        conditions on success.

    Raises
    ------
    UserError
        If `floor` is not strictly between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> import rmtools as rm
    >>> tilt = rm.Tilt(floor=0.1)
    >>> [round(float(v), 6) for v in np.exp(tilt.log_potential([0.0, 0.5, 1.0]))]
    [0.1, 0.55, 1.0]
    """

    floor: float

    def __post_init__(self) -> None:
        if not (isinstance(self.floor, int | float | np.floating) and 0.0 < self.floor < 1.0):
            raise UserError(
                f"tilt floor must be in (0, 1), got {self.floor!r}: it is the value of a failure",
                fix="choose a floor below the success rate, for example 0.01",
            )

    @classmethod
    def from_temperature(cls, temperature: float) -> Self:
        """Return the tilt with floor exp(-1 / temperature), the KL-regularised reading for r in {0, 1}.

        Raises UserError if `temperature` is not positive, or if the floor rounds to 0 or 1.
        """
        if not (math.isfinite(temperature) and temperature > 0):
            raise UserError(
                f"temperature must be positive and finite, got {temperature!r}: the floor is exp(-1 / it)",
                fix="0.2 gives a floor of 0.0067",
            )
        return cls(math.exp(-1.0 / temperature))

    @property
    def temperature(self) -> float:
        """The lam with floor = exp(-1 / lam)."""
        return -1.0 / math.log(self.floor)

    @property
    def ratio_bound(self) -> float:
        """1 / f, the bound on every ratio of two values (L of arXiv 2602.01381 Assumption 3.1)."""
        return 1.0 / self.floor

    def log_value(self, log_p: ArrayLike) -> np.ndarray:
        """Return log(f + (1 - f) p), in [log f, 0], for log probabilities.

        Parameters
        ----------
        log_p : array_like
            Log probabilities in nats, at most 0; -inf is p = 0. Shape and floating type are kept.

        Raises
        ------
        UserError
            If an entry is NaN or a probability exceeds 1.
        """
        log_p = _floating(log_p)
        _refuse(~(log_p <= _slack(log_p, 1.0)), log_p, "log probability must be at most 0 and not NaN")
        log_value: np.ndarray = np.logaddexp(
            log_p.dtype.type(math.log(self.floor)), math.log1p(-self.floor) + np.minimum(log_p, 0)
        )
        return log_value

    def log_potential(self, reward: ArrayLike) -> np.ndarray:
        """Return log(f + (1 - f) r), nats, for rewards in [0, 1]; raise UserError for any others."""
        reward = _floating(reward)
        _refuse(~((reward >= 0) & (reward <= 1)), reward, "reward must be in [0, 1]")
        with np.errstate(divide="ignore"):
            return self.log_value(np.log(reward))

    def log_probability(self, log_value: ArrayLike) -> np.ndarray:
        """Return the log probabilities, nats, of log values: the inverse of `log_value`.

        Parameters
        ----------
        log_value : array_like
            Log values in nats, in [log f, 0] up to rounding of their floating type. The floor gives -inf.

        Raises
        ------
        UserError
            If an entry is NaN, or below the floor or above 1 by more than rounding.
        """
        log_value = _floating(log_value)
        log_floor = math.log(self.floor)
        slack = _slack(log_value, log_floor)
        outside = ~((log_value >= log_floor - slack) & (log_value <= slack))
        _refuse(outside, log_value, f"log value must be in [{log_floor:.6g}, 0] for floor {self.floor:g}")
        excess = np.minimum(log_floor - np.minimum(log_value, 0), 0)
        with np.errstate(divide="ignore"):
            log_p: np.ndarray = log_value + np.log(-np.expm1(excess)) - math.log1p(-self.floor)
        log_p = np.minimum(log_p, 0)
        return log_p.astype(log_value.dtype, copy=False)


def _floating(x: ArrayLike) -> np.ndarray:
    x = np.asarray(x)
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)


def _slack(x: np.ndarray, scale: float) -> float:
    # A few units in the last place: what a float32 score loses when its log is taken.
    return 16 * float(np.finfo(x.dtype).eps) * max(1.0, abs(scale))


def _refuse(bad: np.ndarray, x: np.ndarray, fact: str) -> None:
    if np.any(bad):
        first = float(np.asarray(x)[bad].flat[0])
        raise UserError(
            f"{fact}, got {first!r} ({int(np.sum(bad))} of {np.size(x)} entries)",
            fix="check the source of these numbers",
        )
