"""What solutions are sampled from: a policy and a value model, the particles made from them, and who observes their runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rmtools.lm.memory import USUAL_TOKENS, prompts_that_fit
from rmtools.lm.particles import LMParticles, Reward, Terminal
from rmtools.lm.protocol import Scorer, StepPolicy
from rmtools.particles.protocol import Observe, SMCResult
from rmtools.sampling.settings import SamplerSettings

PARTICLES_PER_BATCH = 4096

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

    def prompts_per_batch(self, settings: SamplerSettings, prompts: Sequence[str]) -> int:
        """Return how many prompts run together: `PARTICLES_PER_BATCH`, fewer if their caches need more than there is room for."""
        wide = settings.n_particles * settings.pool_size
        if not any(hasattr(owner, "model") for owner in (self.policy, self.value)):
            return max(1, PARTICLES_PER_BATCH // wide)
        longest = max(len(self.policy.steps.prompt_ids(p)) for p in prompts)
        owners, new = [self.policy, self.value], self.usual_tokens
        fit = prompts_that_fit(owners, longest, new, wide, self.policy.device)
        return max(1, min(PARTICLES_PER_BATCH // wide, fit))

    @property
    def usual_tokens(self) -> int:
        """What nearly all solutions have at most: those that the value model was trained on, if that is known."""
        limits = self.policy.steps.settings
        usual = getattr(self.value, "solution_tokens", None) or USUAL_TOKENS
        return int(min(limits.max_steps * limits.max_step_tokens, usual))

    def root(self, prompts: Sequence[str], terminal: Terminal) -> Any:
        """Return the root: one prefix per prompt; equal prompts are independent replicates."""
        return self.start(self.policy, self.value, prompts, terminal=terminal, reward=self.reward)
