"""What solutions are sampled from: a policy and a value model, and the particles made from them.

The particles of the sampler count the tokens generated for each prompt, report every step to whoever shows progress, and
remember their candidates where a trace is wanted. They draw nothing themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from rmtools.lm.particles import LMParticles, Reward, Terminal
from rmtools.lm.protocol import Scorer, StepPolicy
from rmtools.particles.protocol import SMCResult
from rmtools.sampling.trace import Candidates

Answer = Callable[[str, Sequence[str]], str | None]
Start = Callable[..., Any]
Watch = Callable[[Sequence[str], SMCResult[Any]], object]
OnStep = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class SampledParticles:
    """Particles of a language model with what is kept beside them.

    Attributes
    ----------
    inner : Any
        `LMParticles`, or what another engine makes in its place.
    tokens : np.ndarray
        (G,) generated since the root, those of dropped particles and unchosen candidates included.
    on_step : callable, optional
        Called with the tokens of every step, all prompts together.
    candidates : Candidates, optional
        What a trace is made of.
    """

    inner: Any
    tokens: np.ndarray
    on_step: OnStep | None = None
    candidates: Candidates | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(G, n)."""
        groups, n = self.inner.shape
        return groups, n

    @property
    def ended(self) -> np.ndarray:
        """(G, n) bool."""
        found: np.ndarray = self.inner.ended
        return found

    def log_value(self) -> np.ndarray:
        """(G, n) nats."""
        found: np.ndarray = self.inner.log_value()
        return found

    def extend(self, pool_size: int, rng: np.random.Generator) -> Self:
        """Draw ``pool_size`` next steps of every prefix, and count them."""
        child = self.inner.extend(pool_size, rng)
        if self.on_step is not None:
            self.on_step(child.decoded - self.inner.decoded)
        tokens = self.tokens + newest_tokens(child, self.inner.decoded)
        candidates = None if self.candidates is None else self.candidates.extended(child, pool_size)
        return replace(self, inner=child, tokens=tokens, candidates=candidates)

    def select(self, index: np.ndarray) -> Self:
        """Return prefixes ``index`` (G, k) of each group; what was generated stays generated."""
        candidates = None if self.candidates is None else self.candidates.selected(index)
        return replace(self, inner=self.inner.select(index), candidates=candidates)

    def steps(self) -> list[list[list[str]]]:
        """Return the text of every prefix's steps: G lists of n lists of steps."""
        found: list[list[list[str]]] = self.inner.steps()
        return found


class JoinableParticles(SampledParticles):
    """The same over particles that can be put side by side, as conditional runs need; these have no trace."""

    def join(self, other: SampledParticles) -> Self:
        """Return these prefixes and those of ``other``, whose tokens were counted where it was drawn."""
        return replace(self, inner=self.inner.join(other.inner))


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
        Makes the particles, as `LMParticles.start` does.
    watch : callable, optional
        Called with the prompts and the result of every run of the sampler, before its caches are freed.
    on_step : callable, optional
        Called with the tokens generated in every step of the sampler.
    traced : bool
        Keep the trace of every run.
    """

    policy: StepPolicy
    value: Scorer
    reward: Reward | None = None
    answer: Answer | None = None
    start: Start = field(default=LMParticles.start)
    watch: Watch | None = None
    on_step: OnStep | None = None
    traced: bool = False

    def root(self, prompts: Sequence[str], terminal: Terminal) -> SampledParticles:
        """Return the root: one prefix a prompt; equal prompts are independent replicates."""
        root = self.start(self.policy, self.value, prompts, terminal=terminal, reward=self.reward)
        kind = JoinableParticles if hasattr(root, "join") else SampledParticles
        candidates = Candidates.start(root, prompts) if self.traced else None
        return kind(root, np.zeros(root.shape[0]), self.on_step, candidates)

    def watched(
        self, prompts: Sequence[str], result: SMCResult[SampledParticles]
    ) -> SMCResult[SampledParticles]:
        """Show a result to the watcher, over the particles that ``start`` made, and return it."""
        if self.watch is not None:
            self.watch(prompts, replace(result, particles=result.particles.inner))
        return result


def newest_tokens(particles: Any, before: int) -> np.ndarray:
    """Return the tokens (G,) of the newest step of particles just extended.

    Engines without token ids (``blocks``, and ``node``: which row is whose) know only what they ``decoded`` since
    ``before``: it is shared out evenly.
    """
    groups, n = particles.shape
    blocks = getattr(particles, "blocks", None)
    if not blocks:
        return np.full(groups, (particles.decoded - before) / groups)
    lengths = (blocks[-1] >= 0).sum(1)
    each: np.ndarray = lengths[particles.node].cpu().numpy()
    return each.reshape(groups, n).sum(axis=1).astype(float)
