"""Runs of the sampler as texts and weights on the host, and how several runs of one prompt are pooled.

A run keeps texts, weights and history and frees the caches, so that a chain or a budget may hold many. Runs are
pooled by their estimates of Z: a particle of run r weighs Zhat_r times its weight in the run, as it would in one
sampler of independent islands (docs/equations.md section 4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtools.lm.particles import LMParticles
from rmtools.particles.genealogy import Genealogy
from rmtools.particles.islands import ByIsland
from rmtools.particles.logspace import log_mean_exp, log_normalise
from rmtools.particles.metropolis import metropolis
from rmtools.particles.protocol import SMCResult, Step
from rmtools.particles.until import Stop
from rmtools.sampling.source import Source
from rmtools.sampling.trace import Trace, Tracer


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the sampler on one prompt.

    Attributes
    ----------
    steps : list of list of str
        N solutions.
    log_weight, log_value : np.ndarray
        (N,) nats: normalised, all -inf where the estimate of Z is zero; the final values.
    log_z : float or None
        Nats. None if no Z is estimated.
    ess, ancestors : list
        By step: effective sample size; N indices.
    resampled : list of bool
        By step of its own: those at which it had a prefix of positive weight to extend.
    tokens : float
        Generated.
    trace : Trace or None
    value_tokens : float or None
        Read by the value model; None if the particles do not say it.
    by_island : ByIsland or None
        Of this run alone: (1, K) and (T, 1, K). None for a single run.
    tree : Genealogy or None
        Of this run alone; None with islands, and for schemes whose genealogy says nothing.
    """

    steps: list[list[str]]
    log_weight: np.ndarray
    log_value: np.ndarray
    log_z: float | None
    ess: list[float]
    ancestors: list[list[int]]
    resampled: list[bool]
    tokens: float
    trace: Trace | None = None
    value_tokens: float | None = None
    by_island: ByIsland | None = None
    tree: Genealogy | None = None

    @property
    def island_log_z(self) -> list[float]:
        """(K,) nats: the estimate of each island; of a single run its own."""
        if self.by_island is not None:
            return list(self.by_island.log_z[0])
        return [] if self.log_z is None else [self.log_z]

    @property
    def island_resampled(self) -> list[int]:
        """(K,) at how many of its own steps each island was resampled."""
        return [sum(self.resampled)] if self.by_island is None else _counts(self.by_island.resampled)

    @property
    def island_steps(self) -> list[int]:
        """(K,) number of own steps of each island."""
        return [len(self.resampled)] if self.by_island is None else _counts(self.by_island.live)


def _counts(x: np.ndarray) -> list[int]:
    return [int(n) for n in x.sum(axis=0)[0]]


class RunObserver:
    """Observe one run for G prompts: count their tokens, trace candidates if wanted, tell the source's own observer.

    Attributes
    ----------
    tokens : np.ndarray
        (G,) generated so far, those of dropped particles and unchosen candidates included.
    value_tokens : np.ndarray
        (G,) read by the value model so far: equal prefixes once, shared evenly among replicates of a prompt. NaN if the
        particles do not say it.
    tracer : Tracer or None
    """

    def __init__(self, source: Source, prompts: Sequence[str], tracer: Tracer | None = None) -> None:
        self.tokens, self.value_tokens = np.zeros(len(prompts)), np.zeros(len(prompts))
        place = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
        self._prompt = np.array([place[p] for p in prompts], dtype=np.intp)
        self.tracer = tracer
        self.only_looks = source.observe is None or getattr(source.observe, "only_looks", False)
        self._observe = source.observe

    def __call__(self, step: Step[Any]) -> None:
        """Add a step."""
        self.tokens += step.children.decoded - step.parents.decoded
        self.value_tokens += tokens_read(step.children, self._prompt)
        if self.tracer is not None:
            self.tracer(step)
        if self._observe is not None:
            self._observe(step)


def tokens_read(children: Any, prompt: np.ndarray) -> np.ndarray:
    """Return the tokens (G,) that the value model read in the last step, NaN unless the particles are `LMParticles`.

    ``prompt`` (G,) is the number of each group's prompt among the distinct ones.
    """
    if not isinstance(children, LMParticles):
        return np.full(len(prompt), np.nan)
    read = (children.blocks[-1] >= 0).sum(dim=1)
    if children.setup.terminal == "verifier":  # ended prefixes are worth their reward, and are not read
        read = read * (children.slot >= 0)
    total = np.bincount(children.prompt, read.cpu().numpy(), prompt.max() + 1)
    shared: np.ndarray = (total / np.bincount(prompt))[prompt]
    return shared


def runs_of(result: SMCResult[Any], seen: RunObserver, sampler: Mapping[str, Any]) -> list[Run]:
    """Return one run per group of a result; the ``sampler``'s settings go into the trace."""
    value, texts = result.particles.log_value(), result.particles.steps()
    islands, tree = result.by_island, None if result.family is None else result.genealogy()
    traces: Sequence[Trace | None] = [None] * len(texts)
    if seen.tracer is not None:
        traces = seen.tracer.traces(result, sampler)
    return [
        Run(
            texts[g],
            result.log_weights[g],
            value[g],
            None if result.log_z is None else float(result.log_z[g]),
            result.ess[:, g].tolist(),
            result.ancestors[:, g].tolist(),
            result.resampled[result.live[:, g], g].tolist(),
            float(seen.tokens[g]),
            trace,
            None if np.isnan(seen.value_tokens[g]) else float(seen.value_tokens[g]),
            None if islands is None else islands.of_group(g),
            None if tree is None else tree.of_group(g),
        )
        for g, trace in enumerate(traces)
    ]


@dataclass(frozen=True, eq=False)
class Spent:
    """What was spent of the budget of one prompt.

    Attributes
    ----------
    tokens : float
    runs : int
        Whole runs, proposals and sweeps included.
    exceeded : bool
        Whether the last runs took more than the budget.
    seconds : float
    """

    tokens: float
    runs: int
    exceeded: bool
    seconds: float


@dataclass(frozen=True, eq=False)
class PromptSamples:
    """All that was drawn for one prompt.

    Attributes
    ----------
    steps : list of list of str
        K solutions.
    log_weight, log_value : np.ndarray
        (K,) nats: normalised over all of them, all -inf where every run's estimate of Z is zero; the final values.
    log_z : float or None
        Nats; of several runs the log of the mean of their estimates. None if no Z is estimated.
    draw : int or None
        The one solution that follows the target's law; None if nothing can be drawn.
    runs : tuple of Run
        Empty for particle Gibbs.
    tokens : float
        Generated.
    accepted : list of bool or None
        For Metropolis-Hastings, by proposal.
    kept : list of bool or None
        For particle Gibbs, by sweep: the draw is the one before it.
    spent : Spent or None
        With a budget.
    value_tokens : float or None
        Read by the value model; None if the particles do not say it.
    stop : Stop or None
        Where and why islands were no longer added; None if their number was fixed.
    """

    steps: list[list[str]]
    log_weight: np.ndarray
    log_value: np.ndarray
    log_z: float | None
    draw: int | None
    runs: tuple[Run, ...]
    tokens: float
    accepted: list[bool] | None = None
    kept: list[bool] | None = None
    spent: Spent | None = None
    value_tokens: float | None = None
    stop: Stop | None = None

    @property
    def island_log_z(self) -> np.ndarray:
        """(K,) nats: the estimates of the islands of all runs, in order."""
        return np.asarray([z for run in self.runs for z in run.island_log_z], dtype=float)


def pooled_all(
    runs: Sequence[Sequence[Run]], rng: np.random.Generator, chain: bool = False, spent: Spent | None = None
) -> list[PromptSamples]:
    """Pool the runs of each of several prompts; all have the same number of runs and the same N.

    Parameters
    ----------
    runs : sequence of sequence of Run
        By prompt, in order, independent.
    rng : np.random.Generator
        Source of the draws.
    chain : bool
        Draw the last state of the Metropolis-Hastings chain that takes the runs as proposals, instead of one weighted
        draw from all of them.
    spent : Spent, optional
        Budget of one prompt.
    """
    states = chain_states(runs, rng) if chain else [None] * len(runs)
    return [pooled(own, rng, state, spent) for own, state in zip(runs, states, strict=True)]


def pooled(
    runs: Sequence[Run],
    rng: np.random.Generator,
    state: tuple[int, list[bool]] | None = None,
    spent: Spent | None = None,
) -> PromptSamples:
    """Pool the ``runs`` of one prompt.

    Parameters
    ----------
    runs : sequence of Run
        One run; or several, independent, in order, each with an estimate of Z.
    rng : np.random.Generator
        Source of the draw.
    state : (int, list of bool), optional
        The particle, among all runs, in which a chain ended, and what it accepted. Default: one weighted draw.
    spent : Spent, optional
    """
    log_z = None if runs[0].log_z is None else np.asarray([r.log_z for r in runs], dtype=float)
    log_weight = _pool_weights([r.log_weight for r in runs], log_z)
    # Gumbel-max: a categorical draw that never leaves the log domain.
    draw = int(np.argmax(log_weight + rng.gumbel(size=len(log_weight)))) if state is None else state[0]
    drawable = log_z is not None and bool((log_weight > -np.inf).any())
    return PromptSamples(
        steps=[s for r in runs for s in r.steps],
        log_weight=log_weight,
        log_value=np.concatenate([r.log_value for r in runs]),
        log_z=None if log_z is None else float(log_mean_exp(log_z[None])[0]),
        draw=draw if drawable else None,
        runs=tuple(runs),
        tokens=sum(r.tokens for r in runs),
        accepted=None if state is None else state[1],
        spent=spent,
        value_tokens=total_read([r.value_tokens for r in runs]),
    )


def total_read(tokens: Sequence[float | None]) -> float | None:
    """Return the sum, None if a part is not known."""
    read = [n for n in tokens if n is not None]
    return sum(read) if len(read) == len(tokens) else None


def _pool_weights(log_weights: Sequence[np.ndarray], log_z: np.ndarray | None) -> np.ndarray:
    """Return the normalised log weights (K,) of the particles of all runs; all -inf if no run has any weight."""
    if log_z is None or len(log_z) == 1:
        return np.concatenate(log_weights)
    each = np.concatenate([w + z for w, z in zip(log_weights, log_z, strict=True)])
    return log_normalise(each[None])[0]


def chain_states(runs: Sequence[Sequence[Run]], rng: np.random.Generator) -> list[tuple[int, list[bool]]]:
    """Return by prompt the particle, among all its runs, in which its chain ends, and what was accepted.

    The proposals are independent of the chain, so they may be drawn before it runs.
    """
    proposals = iter(zip(*runs, strict=True))

    def replay(_: np.random.Generator) -> SMCResult[Any]:
        of_all = next(proposals)
        none = np.zeros((0, len(of_all)))
        log_weights = np.stack([r.log_weight for r in of_all])
        log_z = np.asarray([r.log_z for r in of_all], dtype=float)
        return SMCResult(None, log_weights, log_z, none, none, none, none, none, 1)

    found = metropolis(replay, len(runs[0]) - 1, rng)
    states = []
    for g, own in enumerate(runs):
        accepted = found.accepted[:, g]
        held = int(np.flatnonzero(accepted)[-1]) + 1 if accepted.any() else 0
        states.append((held * len(own[0].log_weight) + int(found.index[g]), accepted.tolist()))
    return states
