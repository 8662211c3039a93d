"""A budget of tokens or seconds for one prompt: what was spent, and how many more runs it pays for.

A run is begun while the dearest one so far would still fit. So a budget is exceeded only by the first run, or by as much
as the last runs are dearer than all before them; `Spent.exceeded` says so.

>>> from rmtools.sampling.settings import SamplerSettings
>>> meter = Meter(SamplerSettings(4, max_tokens=100))
>>> meter.spend([30]), meter.affordable(), meter.spend([25, 35]), meter.affordable()
(None, 2, None, 0)
"""

import math
import time
from collections.abc import Callable, Sequence

from rmtools.sampling.runs import Spent
from rmtools.sampling.settings import SamplerSettings


class Meter:
    """Count what the runs of one prompt take.

    Parameters
    ----------
    settings : SamplerSettings
        With ``max_tokens``, ``max_seconds``, both or none.
    clock : callable
        Seconds; monotonic.
    """

    def __init__(self, settings: SamplerSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.clock = clock
        self.began = self.last = clock()
        self.tokens = 0.0
        self.runs = 0
        self.dearest = [0.0, 0.0]

    def spend(self, tokens: Sequence[float]) -> None:
        """Add finished runs: the tokens that each generated; they share the time since the last ones evenly."""
        now = self.clock()
        new = (max(tokens), (now - self.last) / len(tokens))
        self.dearest = [max(pair) for pair in zip(self.dearest, new, strict=True)]
        self.tokens, self.last, self.runs = self.tokens + sum(tokens), now, self.runs + len(tokens)

    def affordable(self) -> int:
        """Return how many runs like the dearest so far still fit; 0 if runs take nothing."""
        left = [
            math.inf if most is None else (most - used) / max(dearest, 1e-9)
            for most, used, dearest in zip(self._budget, self._used, self.dearest, strict=True)
        ]
        # A run that generates no token (its root has no value) would be repeated for ever.
        free = self.runs > 0 and self.dearest[0] == 0
        return 0 if free else max(0, math.floor(min(*left, 1e9)))

    def spent(self) -> Spent | None:
        """Return what was spent so far; None without a budget."""
        if not self.settings.budgeted:
            return None
        used = self._used
        over = any(most is not None and u > most for most, u in zip(self._budget, used, strict=True))
        return Spent(self.tokens, self.runs, over, used[1])

    @property
    def _budget(self) -> tuple[float | None, float | None]:
        return self.settings.max_tokens, self.settings.max_seconds

    @property
    def _used(self) -> tuple[float, float]:
        return self.tokens, self.last - self.began


def next_runs(affordable: int, before: int, most: int) -> int:
    """Return how many replicates to run next: at most half of what is affordable, twice as many as before, or ``most``.

    Half, because the next ones may be dearer; the last ones go one by one.
    """
    return min(2 * before, most, max(affordable // 2, min(affordable, 1)))
