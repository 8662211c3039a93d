"""What solutions are sampled from: a policy, a value model, and the one place where particles over them are made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rmtools.lm.particles import LMParticles, Reward, Terminal
from rmtools.lm.protocol import StepPolicy
from rmtools.lm.value import Scorer
from rmtools.particles.protocol import SMCResult
from rmtools.sampling.counted import Counted, counted

Answer = Callable[[str, Sequence[str]], str | None]
Start = Callable[..., Any]
Watch = Callable[[Sequence[str], SMCResult[Any]], object]


@dataclass(frozen=True)
class Source:
    """A policy and a value model, with what judges their solutions.

    Parameters
    ----------
    policy, value
    reward : callable, optional
        The verifier: (prompt, steps) to r in [0, 1].
    answer : callable, optional
        (prompt, steps) to the answer a solution comes to, None where it comes to none.
    start : callable
        Makes the particles, as `LMParticles.start` does: another engine, or particles that tell what they do.
    watch : callable, optional
        Told the prompts and the result of every run of the sampler, before its caches go.
    """

    policy: StepPolicy
    value: Scorer
    reward: Reward | None = None
    answer: Answer | None = None
    start: Start = field(default=LMParticles.start)
    watch: Watch | None = None

    def root(self, prompts: Sequence[str], terminal: Terminal) -> Counted:
        """Return the root: one prefix a prompt; equal prompts are independent replicates."""
        return counted(self.start(self.policy, self.value, prompts, terminal=terminal, reward=self.reward))

    def told(self, prompts: Sequence[str], result: SMCResult[Counted]) -> SMCResult[Counted]:
        """Tell the watcher of a result over the particles that ``start`` made, and return it."""
        if self.watch is not None:
            self.watch(prompts, replace(result, particles=result.particles.inner))
        return result
