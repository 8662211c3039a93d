"""Runs of the sampler brought home to the host, and what several runs of one prompt amount to together.

A run keeps texts, weights and history and lets the caches go, so that a chain or a budget may hold many. Runs are
pooled by their estimates of Z: a particle of run r weighs Zhat_r times its weight in the run, which is what one
sampler of independent islands would give it (docs/equations.md section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtools.particles.logspace import log_mean_exp, log_normalise
from rmtools.particles.metropolis import metropolis
from rmtools.particles.protocol import SMCResult
from rmtools.sampling.counted import Counted

NO_WEIGHT = -np.inf


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
        Nats. None where no Z is estimated.
    ess, ancestors : list
        By step: effective sample size; N indices.
    tokens : float
        Generated.
    """

    steps: list[list[str]]
    log_weight: np.ndarray
    log_value: np.ndarray
    log_z: float | None
    ess: list[float]
    ancestors: list[list[int]]
    tokens: float


def runs_of(result: SMCResult[Counted]) -> list[Run]:
    """Return one run per group of a result."""
    particles = result.particles
    groups = particles.shape[0]
    value, texts = particles.log_value(), particles.steps()
    return [
        Run(
            texts[g],
            result.log_weights[g],
            value[g],
            None if result.log_z is None else float(result.log_z[g]),
            [float(e) for e in result.ess[:, g]],
            result.ancestors[:, g].tolist(),
            float(particles.tokens[g]),
        )
        for g in range(groups)
    ]


@dataclass(frozen=True, eq=False)
class Spent:
    """What a budget went into.

    Attributes
    ----------
    tokens, seconds : float
        Of one prompt.
    runs : int
        Whole runs, proposals and sweeps counted.
    exceeded : bool
        The run in hand went beyond the budget.
    """

    tokens: float
    seconds: float
    runs: int
    exceeded: bool


@dataclass(frozen=True, eq=False)
class Drawn:
    """All that was drawn for one prompt.

    Attributes
    ----------
    steps : list of list of str
        K solutions.
    log_weight, log_value : np.ndarray
        (K,) nats: normalised over all of them, all -inf where every run's estimate of Z is zero; the final values.
    log_z : float or None
        Nats; of several runs the log of the mean of their estimates. None where no Z is estimated.
    draw : int or None
        The one solution that follows the target's law; None where there is none to draw.
    runs : tuple of Run
        Empty for particle Gibbs.
    tokens : float
    accepted : list of bool or None
        Of Metropolis-Hastings, by proposal.
    kept : list of bool or None
        Of particle Gibbs, by sweep: the draw is the one before it.
    spent : Spent or None
        Of a budget.
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


def pooled_all(
    runs: Sequence[Sequence[Run]], rng: np.random.Generator, chain: bool = False, spent: Spent | None = None
) -> list[Drawn]:
    """Return what the runs of each of several prompts amount to; all have the same number of runs, of the same N.

    Parameters
    ----------
    runs : sequence of sequence of Run
        By prompt, in order, independent.
    rng : np.random.Generator
        Source of the draws.
    chain : bool
        A draw is the last state of the Metropolis-Hastings chain that takes the runs as proposals. Else it is one
        weighted draw from all of them.
    spent : Spent, optional
        Of one prompt.
    """
    if not chain:
        return [pooled(of_prompt, rng, spent=spent) for of_prompt in runs]
    return [
        pooled(of_prompt, rng, state, spent)
        for of_prompt, state in zip(runs, chain_states(runs, rng), strict=True)
    ]


def pooled(
    runs: Sequence[Run],
    rng: np.random.Generator,
    state: tuple[int, list[bool]] | None = None,
    spent: Spent | None = None,
) -> Drawn:
    """Return what ``runs`` of one prompt amount to.

    Parameters
    ----------
    runs : sequence of Run
        One run; or several, independent, in order, each with an estimate of Z.
    rng : np.random.Generator
        Source of the draw.
    state : (int, list of bool), optional
        Of a chain: which particle of all runs it is at, and what it accepted. Without one, one weighted draw.
    spent : Spent, optional
    """
    log_z = None if runs[0].log_z is None else np.asarray([r.log_z for r in runs], dtype=float)
    log_weight = pool_weights([r.log_weight for r in runs], log_z)
    if state is None:
        # Gumbel-max: a categorical draw that never leaves the log domain.
        state = int(np.argmax(log_weight + rng.gumbel(size=len(log_weight)))), []
        accepted = None
    else:
        accepted = state[1]
    drawable = log_z is not None and bool((log_weight > NO_WEIGHT).any())
    return Drawn(
        steps=[s for r in runs for s in r.steps],
        log_weight=log_weight,
        log_value=np.concatenate([r.log_value for r in runs]),
        log_z=None if log_z is None else float(log_mean_exp(log_z[None])[0]),
        draw=state[0] if drawable else None,
        runs=tuple(runs),
        tokens=sum(r.tokens for r in runs),
        accepted=accepted,
        spent=spent,
    )


def pool_weights(log_weights: Sequence[np.ndarray], log_z: np.ndarray | None) -> np.ndarray:
    """Return the normalised log weights (K,) of the particles of all runs; all -inf where no run has any weight."""
    if log_z is None or len(log_z) == 1:
        return np.concatenate(log_weights)
    each = np.concatenate([w + z for w, z in zip(log_weights, log_z, strict=True)])
    return log_normalise(each[None])[0]


def chain_states(runs: Sequence[Sequence[Run]], rng: np.random.Generator) -> list[tuple[int, list[bool]]]:
    """Return by prompt the place among all its particles of the last state of its chain, and what was accepted.

    The proposals are independent of the chain, so they may be drawn before it is.
    """
    given = iter(zip(*runs, strict=True))

    def replay(_: np.random.Generator) -> SMCResult[Any]:
        of_all = next(given)
        none = np.zeros((0, len(of_all)))
        log_weights = np.stack([r.log_weight for r in of_all])
        log_z = np.asarray([r.log_z for r in of_all], dtype=float)
        return SMCResult(None, log_weights, log_z, none, none, none, none)

    found = metropolis(replay, len(runs[0]) - 1, rng)
    states = []
    for g, own in enumerate(runs):
        accepted = found.accepted[:, g]
        held = int(np.flatnonzero(accepted)[-1]) + 1 if accepted.any() else 0
        states.append((held * len(own[0].log_weight) + int(found.index[g]), accepted.tolist()))
    return states
