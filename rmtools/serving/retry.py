"""When a failed request is sent again: one policy for every request to a server.

- Retried is what waiting may mend (:class:`rmtools.serving.errors.PassingError`): nobody listens, the connection
  breaks, the time limit, 408, 409, 425, 429, 5xx, and an answer that cannot be read.
- Delays double from ``FIRST_DELAY`` up to ``LONGEST_DELAY``, times a jitter from .5 to 1.5. They are never shorter than
  the server's ``Retry-After``.
- A request is given up when the next attempt would start more than ``patience`` seconds after its first failure.
- At the first contact with a server a failure rather means a wrong address: only a busy server is waited for, and a
  broken connection, which may have been a kept one, is tried twice more. A server that answered before, or failed otherwise,
  is not waited for at all while it is probed: a request of ours may have stopped its engine.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from rmtools.serving.errors import PassingError

T = TypeVar("T")

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
BROKEN_AT_FIRST = 2


class RetryPolicy:
    """Send requests again until they are answered.

    Parameters
    ----------
    patience : float
        Seconds after the first failure of a request; 0 gives up at once.
    rng : np.random.Generator
        Draws the jitter.
    """

    def __init__(self, patience: float, rng: np.random.Generator) -> None:
        self.patience = patience
        self._rng, self._lock = rng, threading.Lock()

    def call(
        self,
        send: Callable[[int], T],
        retrying: Callable[[PassingError], None],
        stop: threading.Event,
        *,
        first: bool,
        suspect: bool = False,
    ) -> T:
        """Return the result of ``send(attempt)``, attempt 0, 1, …; call ``retrying`` before each further attempt.

        Raises ``UserError`` where patience runs out or ``stop`` is set. ``first`` marks the first contact, ``suspect`` that a
        request of this process may have stopped the server.
        """
        deadline, attempt = None, 0
        while True:
            try:
                return send(attempt)
            except PassingError as failure:
                deadline = deadline or time.monotonic() + self.patience
                delay = self.delay(attempt, failure.wait)
                loads = failure.busy and not suspect
                broke = failure.kind == "broken" and attempt < BROKEN_AT_FIRST
                may_pass = failure.kind == "limited" or loads or broke
                suspect = suspect or not failure.busy
                if (first and not may_pass) or time.monotonic() + delay > deadline:
                    raise failure.error from None
                retrying(failure)
                if stop.wait(delay):
                    raise failure.error from None
                attempt += 1

    def delay(self, attempt: int, asked: float) -> float:
        """Return the seconds before the next attempt; ``asked`` is what the server asked for."""
        with self._lock:
            jitter = float(self._rng.uniform(0.5, 1.5))
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(attempt, 16)) * jitter
        return max(delay, asked + 0.1 * delay if asked else 0.0)
