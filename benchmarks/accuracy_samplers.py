"""The samplers that `accuracy_at_tokens` compares: what each answers, and the tokens it takes.

Every sampler is a setting of the one in rmtools.core (docs/equations.md, section 4). At a budget of N all of them draw N
candidates of every step of a prompt's solution. Nominal tokens count each particle's own; distinct ones count a token that
several particles share once, as it is decoded once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from crossing_models import Models

from rmtools.core import SMCResult, metropolis
from rmtools.lm.particles import LMParticles, Terminal
from rmtools.particles.protocol import Step
from rmtools.particles.smc import smc

BUDGETS = (4, 16, 64)
# N -> pool M and runs H + 1 of single-particle guided SMC with Metropolis-Hastings, M (H + 1) = N.
CHAINS = {4: (2, 2), 16: (4, 4), 64: (8, 8)}
BRANCHES = 4  # candidates of each of the N / 4 beams
PARTICLES_AT_ONCE = 4096
TERMINALS: tuple[Terminal, ...] = ("model", "verifier")
PLAIN, BEST, MAJORITY, BEAM = "plain", "best-of-N", "weighted majority", "beam"
SMC, SMC_DRAW, SMC_MAJORITY, CHAIN = "SMC, argmax", "SMC, one draw", "SMC, majority", "SP-gSMC + MH"
Reading = tuple[str, Terminal]


@dataclass
class Tally:
    """Tokens of all prompts together, an observer of `smc`."""

    nominal: int = 0
    distinct: int = 0

    def __call__(self, step: Step[LMParticles]) -> None:
        """Count a step of the sampler."""
        self.nominal += int((step.children.decoded - step.parents.decoded).sum())
        self.distinct += distinct_tokens(step.children)


def distinct_tokens(particles: LMParticles) -> int:
    """Return how many tokens of the last step are left when beginnings that are equal are counted once."""
    before = [b.cpu().numpy() for b in particles.blocks[:-1]]
    key = np.unique(np.column_stack([particles.prompt, *before]), axis=0, return_inverse=True)[1].ravel()
    count = 0
    for token in particles.blocks[-1].cpu().numpy().T:
        pairs = np.unique(np.column_stack([key, token]), axis=0, return_inverse=True)
        count += int((pairs[0][:, 1] >= 0).sum())
        key = pairs[1].ravel()
    return count


@dataclass
class Point:
    """One sampler at one budget: success of every prompt (P,), and tokens a prompt."""

    sampler: str
    terminal: Terminal
    budget: int
    success: np.ndarray
    nominal: float
    distinct: float


@dataclass
class Bench:
    """Models and held-out prompts; ``rewards`` remembers what the verifier said."""

    models: Models
    prompts: Sequence[str]
    rewards: dict[tuple[str, ...], float] = field(default_factory=dict)

    def batches(self, size: int) -> list[Sequence[str]]:
        size = max(1, PARTICLES_AT_ONCE // size)
        return [self.prompts[i : i + size] for i in range(0, len(self.prompts), size)]

    def root(self, prompts: Sequence[str], terminal: Terminal) -> LMParticles:
        m = self.models
        reward = m.task.reward if terminal == "verifier" else None
        return LMParticles.start(m.policy, m.value, prompts, terminal=terminal, reward=reward)

    def right(self, prompts: Sequence[str], particles: LMParticles) -> np.ndarray:
        """Return the reward of every particle, (G, n)."""
        return np.asarray(
            [[self.reward(p, s) for s in group] for p, group in zip(prompts, particles.steps(), strict=True)]
        )

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        key = (prompt, *steps)
        if key not in self.rewards:
            self.rewards[key] = self.models.task.reward(prompt, steps)
        return self.rewards[key]

    def points(
        self, budget: int, size: int, run: Callable[[Sequence[str], Tally], dict[Reading, np.ndarray]]
    ) -> list[Point]:
        """Return a point for every answer that ``run`` reads off its batches, whose tokens they share."""
        tally, found = Tally(), list[dict[Reading, np.ndarray]]()
        for prompts in self.batches(size):
            found.append(run(prompts, tally))
        per_prompt = (tally.nominal / len(self.prompts), tally.distinct / len(self.prompts))
        return [
            Point(name, terminal, budget, np.concatenate([f[name, terminal] for f in found]), *per_prompt)
            for name, terminal in found[0]
        ]

    def independent(self, budget: int, rng: np.random.Generator) -> list[Point]:
        """Plain samples, best-of-N and weighted majority: readings of the same N samples for either final weight."""

        def run(prompts: Sequence[str], tally: Tally) -> dict[Reading, np.ndarray]:
            result = smc(
                self.root(prompts, "model"), budget, 1, "none", 0.0, rng, history=False, observe=tally
            )
            steps, right = result.particles.steps(), self.right(prompts, result.particles)
            # Nothing was resampled, so the weights are the final values.
            final = {
                "model": result.particles.log_value(),
                "verifier": self.models.value.tilt.log_potential(right),
            }
            found: dict[Reading, np.ndarray] = {}
            for terminal in TERMINALS:
                found[PLAIN, terminal] = right.mean(1)
                found[BEST, terminal] = at(right, final[terminal].argmax(1))
                found[MAJORITY, terminal] = at(right, majority(final[terminal], steps))
            return found

        out = self.points(budget, budget, run)
        for point in out:
            if point.sampler == PLAIN:
                point.nominal, point.distinct = point.nominal / budget, point.nominal / budget
        return out

    def resampled(self, terminal: Terminal, budget: int, rng: np.random.Generator) -> list[Point]:
        """SMC in its default setting, read in three ways."""

        def run(prompts: Sequence[str], tally: Tally) -> dict[Reading, np.ndarray]:
            result = smc(
                self.root(prompts, terminal), budget, rng=rng, history=False, observe=tally, islands=1
            )
            right = self.right(prompts, result.particles)
            chosen = {
                SMC: result.particles.log_value().argmax(1),
                SMC_DRAW: result.draw(rng),
                SMC_MAJORITY: majority(result.log_weights, result.particles.steps()),
            }
            return {(name, terminal): at(right, index) for name, index in chosen.items()}

        return self.points(budget, budget, run)

    def beam(self, terminal: Terminal, budget: int, rng: np.random.Generator) -> list[Point]:
        """Step-level beam search: N / 4 beams, 4 candidates of each."""

        def run(prompts: Sequence[str], tally: Tally) -> dict[Reading, np.ndarray]:
            root = self.root(prompts, terminal)
            result = smc(root, budget // BRANCHES, BRANCHES, "top_k", rng=rng, history=False, observe=tally)
            right = self.right(prompts, result.particles)
            return {(BEAM, terminal): at(right, result.particles.log_value().argmax(1))}

        return self.points(budget, budget, run)

    def chain(self, terminal: Terminal, budget: int, rng: np.random.Generator) -> list[Point]:
        """Single-particle guided SMC with a pool of M, the state after H proposals."""
        pool, runs = CHAINS[budget]

        def run(prompts: Sequence[str], tally: Tally) -> dict[Reading, np.ndarray]:
            def once(rng: np.random.Generator) -> SMCResult[Any]:
                return smc(self.root(prompts, terminal), 1, pool, rng=rng, history=False, observe=tally)

            chains = metropolis(once, runs - 1, rng)
            right = chains.collect(lambda particles: self.right(prompts, particles))
            return {(CHAIN, terminal): right[:, 0]}

        return self.points(budget, pool, run)


def at(right: np.ndarray, index: np.ndarray) -> np.ndarray:
    return right[np.arange(len(right)), index]


def majority(log_weights: np.ndarray, solutions: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """Return a particle (G,) of the solution whose copies weigh most together: crossing has no shorter answer."""
    weights, found = np.exp(log_weights - log_weights.max(axis=1, keepdims=True)), []
    for own, group in zip(weights, solutions, strict=True):
        total: dict[tuple[str, ...], float] = {}
        for weight, steps in zip(own, group, strict=True):
            total[tuple(steps)] = total.get(tuple(steps), 0.0) + weight
        best = max(total, key=total.__getitem__)
        found.append(next(i for i, steps in enumerate(group) if tuple(steps) == best))
    return np.asarray(found)
