"""Step labels of the tasks that check every step."""

import itertools
from collections.abc import Iterable


def until_failure(good: Iterable[bool], n: int) -> list[float]:
    """Return ``n`` labels: 1.0 up to the first step that is not good or not judged, 0.0 from there.

    >>> until_failure([True, False, True], 4)
    [1.0, 0.0, 0.0, 0.0]
    """
    labels = list(itertools.accumulate(map(float, good), min))
    return labels + [0.0] * (n - len(labels))
