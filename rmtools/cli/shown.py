"""What is shown while samples are drawn: the particles tell the live progress of every step, the file of every record."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rmtools.cli.live import Live, live_progress

if TYPE_CHECKING:
    from rmtools.particles.protocol import SMCResult


@dataclass(frozen=True, eq=False)
class Told:
    """Particles that tell of the tokens of every step; all else is that of ``inner``."""

    inner: Any
    tell: Callable[[int], object]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def extend(self, pool_size: int, rng: np.random.Generator) -> Self:
        """Draw ``pool_size`` next steps of every prefix, and tell."""
        child = self.inner.extend(pool_size, rng)
        self.tell(child.decoded - self.inner.decoded)
        return type(self)(child, self.tell)

    def select(self, index: np.ndarray) -> Self:
        """Return prefixes ``index`` (G, k) of each group."""
        return type(self)(self.inner.select(index), self.tell)

    def join(self, other: Self) -> Self:
        """Return these prefixes and, behind them in each group, those of ``other``."""
        return type(self)(self.inner.join(other.inner), self.tell)


class Shown:
    """The live progress of a run: `bar` is given to the file, `start` and `watch` to the sampler."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self.next_solved: int | None = None

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], object]]:
        """Show the progress of ``total`` prompts; yields what is told of every record."""
        with live_progress(label, total) as live:
            self._live = live
            try:
                yield lambda n: live.done(n, self.next_solved)
            finally:
                self._live, self.next_solved = None, None

    def start(self, policy: Any, value: Any, prompts: Sequence[str], **settings: Any) -> Told:
        """Return the root, which tells of its steps."""
        from rmtools.lm.particles import LMParticles

        return Told(LMParticles.start(policy, value, prompts, **settings), self._step)

    def watch(self, result: "SMCResult[Any]") -> None:
        """Take the effective sample size of a run's last step, a mean over its prompts."""
        if self._live is not None and len(result.ess):
            self._live.step(0, float(result.ess[-1].mean()))

    def _step(self, tokens: int) -> None:
        if self._live is not None:
            self._live.step(tokens)
