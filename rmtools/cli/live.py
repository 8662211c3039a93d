"""Live progress of sampling: prompts done, tokens a second, effective sample size, prompts solved.

>>> with live_progress("sampling", 8, quiet=True) as live:
...     live.step(tokens=640, ess=11.5)
...     live.done(prompts=2, solved=1)
>>> live.finished, live.solved
(2, 1)
"""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

from rmtools.cli.progress import bar
from rmtools.jobs.processes import this_process

EVERY = 30.0  # seconds between lines where no terminal shows a bar
WINDOW = 20.0  # seconds over which the speed is taken


class Live:
    """What is known of sampling that is going on.

    Parameters
    ----------
    title : str
    total : int
        Prompts to sample.
    show : callable, optional
        Told this object whenever something is new.
    clock : callable
        Seconds.

    Attributes
    ----------
    tokens : int
        Generated so far.
    ess : float or None
        Of the last step that told it, particles.
    finished, solved : int
        Prompts. ``solved`` is None where nobody judges.
    """

    def __init__(
        self,
        title: str,
        total: int,
        show: "Callable[[Live], object]" = lambda live: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total = title, total
        self.tokens, self.finished = 0, 0
        self.ess: float | None = None
        self.solved: int | None = None
        self._show, self._clock = show, clock
        self._seen = deque([(clock(), 0)])

    def step(self, tokens: int, ess: float | None = None) -> None:
        """Take note of ``tokens`` newly generated, and of the ESS (particles, a mean over prompts) where there is one."""
        self.tokens += int(tokens)
        if ess is not None:
            self.ess = float(ess)
        now = self._clock()
        self._seen.append((now, self.tokens))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW:
            self._seen.popleft()
        self._show(self)

    def done(self, prompts: int, solved: int | None = None) -> None:
        """Take note of ``prompts`` newly done, ``solved`` of them right; None where nobody judges."""
        self.finished += int(prompts)
        if solved is not None:
            self.solved = (self.solved or 0) + int(solved)
        self._show(self)

    @property
    def speed(self) -> float | None:
        """Tokens a second of the last seconds; None before the first step."""
        (then, before), (now, after) = self._seen[0], self._seen[-1]
        return (after - before) / (now - then) if now > then else None

    def figures(self) -> str:
        """Return speed, ESS and solved prompts in a few words; what is not known is left out."""
        parts = [] if self.speed is None else [f"{self.speed:,.0f} tokens/s"]
        parts += [] if self.ess is None else [f"ESS {self.ess:.1f}"]
        parts += [] if self.solved is None else [f"{self.solved} of {self.finished} solved"]
        return ", ".join(parts)

    def __str__(self) -> str:
        figures = self.figures()
        return f"{self.title}: {self.finished} of {self.total} prompts" + (f", {figures}" if figures else "")


@contextlib.contextmanager
def live_progress(
    title: str, total: int, quiet: bool | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Live]:
    """Show on standard error how sampling goes: a bar on a terminal, else a line every half minute and one at the end.

    Parameters
    ----------
    title : str
    total : int
        Prompts.
    quiet : bool, optional
        Show nothing. Default: all but the main one of several processes are quiet.
    clock : callable
        Seconds.

    Yields
    ------
    Live
        Told by ``step(tokens, ess)`` and ``done(prompts, solved)``.
    """
    if not this_process().main if quiet is None else quiet:
        yield Live(title, total, clock=clock)
    elif sys.stderr.isatty():
        with bar(title, total) as update:
            yield Live(title, total, lambda live: update(live.finished, live.figures()), clock)
    else:
        lines = Lines(clock)
        live = Live(title, total, lines, clock)
        yield live
        lines.write(live)


class Lines:
    """Writes a line now and then."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.last = clock, clock()

    def __call__(self, live: Live) -> None:
        """Write the line if the last one is long ago."""
        if self.clock() - self.last >= EVERY:
            self.write(live)

    def write(self, live: Live) -> None:
        """Write the line."""
        self.last = self.clock()
        print(live, file=sys.stderr, flush=True)
