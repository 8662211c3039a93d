"""How many requests a server gets at a time: a window for each server, which adapts to what the server can take.

Additive increase, multiplicative decrease, as TCP does it: the window grows with every answer, faster until the server
was first too busy; it is halved when the server says so (429, 503), does not answer in time, or needs more than a quarter
of the time limit. Of several servers the one with the fewest requests outstanding gets the next one. A server that failed
is left alone for some seconds, unless all others failed too.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

FIRST_WINDOW = 16
# Seconds for which a server that failed gets no requests while another one answers.
REST = 5.0


@dataclass
class Window:
    """The requests of one server.

    Attributes
    ----------
    most : int
        Largest number in flight.
    size : float
        How many may be in flight now.
    in_flight, answered : int
    """

    most: int
    size: float = 0.0
    in_flight: int = 0
    answered: int = 0
    _threshold: float = field(default=0.0, repr=False)
    _halved: float = field(default=-1.0, repr=False)
    _resting: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self.size, self._threshold = float(min(self.most, FIRST_WINDOW)), float(self.most)

    def rests(self, now: float) -> bool:
        """Return whether it failed a moment ago."""
        return now < self._resting

    def grow(self) -> None:
        """Take note of an answer."""
        self.answered += 1
        self._resting = 0.0
        step = 1.0 if self.size < self._threshold else 1.0 / self.size
        self.size = min(float(self.most), self.size + step)

    def halve(self, sent: float, now: float) -> None:
        """Take note that the server was too busy for a request that was ``sent`` then: once for all sent before a halving."""
        if sent > self._halved:
            self.size = self._threshold = max(1.0, self.size / 2)
            self._halved = now

    def rest(self, now: float) -> None:
        """Take note that the server failed."""
        self._resting = now + REST


class Windows:
    """The windows of one or several servers; ``most`` requests in flight at each."""

    def __init__(self, servers: int, most: int) -> None:
        self.each = [Window(most) for _ in range(servers)]
        self._free = threading.Condition()

    def enter(self, stop: threading.Event) -> int:
        """Wait for room, and return the server for the next request; -1 if ``stop`` is set meanwhile."""
        with self._free:
            while (chosen := self._least(time.monotonic())) < 0:
                if stop.is_set():
                    return -1
                self._free.wait(0.2)
            self.each[chosen].in_flight += 1
            return chosen

    def _least(self, now: float) -> int:
        awake: Sequence[int] = [i for i, w in enumerate(self.each) if not w.rests(now)]
        room = [i for i in awake or range(len(self.each)) if self.each[i].in_flight < int(self.each[i].size)]
        return min(room, key=lambda i: self.each[i].in_flight, default=-1)

    def leave(self, server: int, sent: float, *, answered: bool, busy: bool, failed: bool) -> None:
        """Take note of how a request ended that was ``sent`` then."""
        with self._free:
            window, now = self.each[server], time.monotonic()
            window.in_flight -= 1
            if busy:
                window.halve(sent, now)
            elif answered:
                window.grow()
            if failed:
                window.rest(now)
            self._free.notify_all()
