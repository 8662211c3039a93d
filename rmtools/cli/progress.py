"""Progress of long work on standard error: a bar for anything countable, and live figures while sampling.

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

from rmtools.jobs.processes import this_process

EVERY = 30.0  # seconds between lines if no terminal shows a bar
WINDOW = 20.0  # seconds over which the speed is taken


@contextlib.contextmanager
def progress(
    label: str, total: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], object]]:
    """Show a bar, without a terminal a line every half minute; yield a function to call with the number newly done."""
    done, last = 0, clock()
    with bar(label, total) as update:

        def tick(n: int) -> None:
            nonlocal done, last
            done += n
            update(done, "")
            if clock() - last >= EVERY and not sys.stderr.isatty():
                last = clock()
                print(f"{label}: {done} of {total}", file=sys.stderr, flush=True)

        yield tick


@contextlib.contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int, str], object]]:
    """Show a bar; yield a function to call with the number of items done, and a text to put behind the bar."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    title, figures = TextColumn("{task.description}"), TextColumn("{task.fields[figures]}")
    times = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(title, BarColumn(), *times, figures, console=Console(stderr=True)) as shown:
        task = shown.add_task(label, total=total, figures="")
        yield lambda done, figures: shown.update(task, completed=done, figures=figures)


class Live:
    """Live figures of sampling: prompts done, tokens a second, the last effective sample size, prompts solved.

    ``show`` is called with this object after every change; ``solved`` is None without a verifier.
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
        """Add ``tokens`` newly generated, and take the ESS (particles, a mean over prompts) if there is one."""
        self.tokens += int(tokens)
        self.ess = self.ess if ess is None else float(ess)
        now = self._clock()
        self._seen.append((now, self.tokens))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW:
            self._seen.popleft()
        self._show(self)

    def done(self, prompts: int, solved: int | None = None) -> None:
        """Add ``prompts`` newly done, ``solved`` of them right; None without a verifier."""
        self.finished += int(prompts)
        if solved is not None:
            self.solved = (self.solved or 0) + int(solved)
        self._show(self)

    @property
    def speed(self) -> float | None:
        """Tokens a second over the last seconds; None before the first step."""
        (then, before), (now, after) = self._seen[0], self._seen[-1]
        return (after - before) / (now - then) if now > then else None

    def figures(self) -> str:
        """Return speed, ESS and solved prompts in a few words; what is unknown is left out."""
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
    """Show how sampling goes: a bar on a terminal, else a line every half minute and one at the end; yield the figures.

    ``quiet`` shows nothing; by default only the main one of several processes shows something.
    """
    last = clock()

    def line_now_and_then(live: Live) -> None:
        nonlocal last
        if clock() - last >= EVERY:
            last = clock()
            print(live, file=sys.stderr, flush=True)

    if not this_process().main if quiet is None else quiet:
        yield Live(title, total, clock=clock)
    elif sys.stderr.isatty():
        with bar(title, total) as update:
            yield Live(title, total, lambda live: update(live.finished, live.figures()), clock)
    else:
        live = Live(title, total, line_now_and_then, clock)
        yield live
        print(live, file=sys.stderr, flush=True)
