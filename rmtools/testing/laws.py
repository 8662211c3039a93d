"""What every contract says of a law: it holds, or where it does not."""

from typing import Any

import numpy as np


def require(holds: object, law: str) -> None:
    """Raise ``AssertionError`` unless ``holds``, also under ``python -O``."""
    if not holds:
        raise AssertionError(law)


def require_all(holds: np.ndarray, law: str) -> None:
    """Raise ``AssertionError`` with the first index where ``holds`` is False."""
    if not holds.all():
        raise AssertionError(f"{law}, first at index {np.argwhere(~holds)[0].tolist()}")


def near(found: Any, expected: Any, tolerance: float) -> np.ndarray:
    """Return where two arrays are equal, infinities and NaN included, or differ by at most ``tolerance``."""
    return np.isclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


def require_close(found: Any, expected: Any, tolerance: float, law: str) -> None:
    """Raise ``AssertionError`` with both arrays unless they are near."""
    require_all(near(found, expected, tolerance), f"{law}: {found} against {expected}")
