"""What solutions are sampled from: a policy and a value model, the particles made from them, and who observes their runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rmtools.lm.particles import LMParticles, Reward, Terminal
from rmtools.lm.protocol import Scorer, StepPolicy
from rmtools.particles.protocol import Observe, SMCResult

Answer = Callable[[str, Sequence[str]], str | None]
Start = Callable[..., Any]
Watch = Callable[[Sequence[str], SMCResult[Any]], object]


@dataclass(frozen=True)
class Source:
    """A policy and a value model, with what judges their solutions and what observes the sampler.

    Parameters
    ----------
    policy, value
    reward : callable, optional
        The verifier: (prompt, steps) to r in [0, 1].
    answer : callable, optional
        (prompt, steps) to the solution's answer, None if it has none.
    start : callable
        Makes the particles, as `LMParticles.start` does: with ``steps()`` and ``decoded``, (G,) tokens drawn so far.
    watch : callable, optional
        Called with the prompts and the result of every run of the sampler, before its caches are freed.
    observe : callable, optional
        Called with every `Step` of every run.
    traced : bool
        Keep the trace of every run.
    """

    policy: StepPolicy
    value: Scorer
    reward: Reward | None = None
    answer: Answer | None = None
    start: Start = field(default=LMParticles.start)
    watch: Watch | None = None
    observe: Observe[Any] | None = None
    traced: bool = False

    def root(self, prompts: Sequence[str], terminal: Terminal) -> Any:
        """Return the root: one prefix per prompt; equal prompts are independent replicates."""
        return self.start(self.policy, self.value, prompts, terminal=terminal, reward=self.reward)
