"""Checks of arguments that users pass: counts, numbers, seeds, generators.

>>> check_count("pool_size", 0)
Traceback (most recent call last):
...
rmtools.errors.UserError: `pool_size` must be an integer of at least 1, got 0; fix: pool_size=1
>>> check_number("eps", "0.1", 0, "it is a Bellman error")
Traceback (most recent call last):
...
rmtools.errors.UserError: `eps` must be a number of at least 0, got '0.1': it is a Bellman error
"""

import numpy as np

from rmtools.errors import UserError


def check_count(name: str, value: object, least: int = 1, why: str = "", fix: int | None = None) -> None:
    """Raise UserError unless `value` is an integer (no bool, no float) of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(
            f"`{name}` must be an integer of at least {least}, got {value!r}{_because(why)}",
            fix=f"{name}={least if fix is None else fix}",
        )


def check_number(name: str, value: object, least: float, why: str = "", fix: str = "") -> None:
    """Raise UserError unless `value` is a number (inf allowed, NaN not) of at least `least`."""
    if not is_number(value) or not value >= least:  # type: ignore[operator]
        raise UserError(
            f"`{name}` must be a number of at least {least:g}, got {value!r}{_because(why)}", fix=fix
        )


def check_positive(name: str, value: float) -> None:
    """Raise UserError unless `value` is finite and above zero."""
    if not 0 < value < np.inf:
        raise UserError(f"`{name}` must be finite and above 0, got {value!r}", fix="a positive number")


def check_seed(seed: object) -> None:
    """Raise UserError unless `seed` is an integer that numpy's and torch's global generators accept: 0 to 2**32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise UserError(f"`seed` must be an integer in 0 to {2**32 - 1}, got {seed!r}", fix="seed=0")


def check_callable(name: str, value: object) -> None:
    """Raise UserError unless `value` can be called or is None."""
    if value is not None and not callable(value):
        raise UserError(f"`{name}` must be a function, got {value!r}", fix=f"leave {name} out")


def check_bool(name: str, value: object) -> None:
    """Raise UserError unless `value` is True or False: other values are true or false by accident, "no" is true."""
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"`{name}` must be True or False, got {value!r}", fix=f"{name}=True or {name}=False")


def is_number(value: object) -> bool:
    """Whether `value` is a real scalar of Python or numpy; bools are not."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check_generator(rng: object) -> np.random.Generator:
    """Return `rng`, or raise UserError unless it is a numpy Generator."""
    if not isinstance(rng, np.random.Generator):
        raise UserError(
            f"`rng` must be a numpy Generator, got {type(rng).__name__}: every draw has an explicit source",
            fix="rng=np.random.default_rng(seed)",
        )
    return rng


def _because(why: str) -> str:
    return f": {why}" if why else ""
