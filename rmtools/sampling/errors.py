"""The Monte-Carlo error of what was drawn for a prompt: log Z-hat, and the share of every answer (docs/equations.md section 9).

It is the error under this policy, value model and floor, not the chance of an answer to be right.

>>> import numpy as np
>>> rows = answer_shares(["4", "5"] * 4, np.full(8, np.log(1 / 8)), np.zeros(4))
>>> [(row.answer, row.share, round(row.low, 3), round(row.high, 3)) for row in rows]
[('4', 0.5, 0.15, 0.85), ('5', 0.5, 0.15, 0.85)]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.particles.genealogy import Genealogy
from rmtools.particles.islands import (
    effective_number,
    log_z_error,
    share_of_sums,
    t_quantile,
)
from rmtools.particles.particle_gibbs import batches_of
from rmtools.particles.until import Until, independent_solutions
from rmtools.sampling.runs import PromptSamples


@dataclass(frozen=True)
class IslandError:
    """What the islands of one prompt say about log Z.

    Attributes
    ----------
    count, n_particles : int
        K islands of n particles; independent runs of a chain or a budget are islands too.
    log_z : list of float
        (K,) nats; -inf where the estimate is zero.
    effective : float
        Effective number of islands.
    log_z_se : float or None
        Nats. None where it is not resolved.
    log_z_interval : list of float or None
        Ends of the 95% interval of log Z.
    resampled, steps : list of int
        (K,) at how many of its own steps an island was resampled, and how many these are.
    """

    count: int
    n_particles: int
    log_z: list[float]
    effective: float
    log_z_se: float | None
    log_z_interval: list[float] | None
    resampled: list[int]
    steps: list[int]


@dataclass(frozen=True)
class GenealogyError:
    """The error of a single run with multinomial resampling, from its surviving ``families``.

    Attributes
    ----------
    families : int
    relative_variance : float or None
        Estimate of Var(Zhat) / Zhat^2, negative by chance; None where Zhat is zero.
    log_z_se : float or None
        Nats. None where it is not resolved.
    """

    families: int
    relative_variance: float | None
    log_z_se: float | None


@dataclass(frozen=True)
class AnswerShare:
    """The share of an answer under the target; ``answer`` None: of the solutions that come to no answer.

    Attributes
    ----------
    answer : str or None
    share : float
    se, low, high : float or None
        Standard error and ends of the 95% interval; None where they are not resolved.
    """

    answer: str | None
    share: float
    se: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class UntilKnown:
    """Why no more islands were added to a prompt; what is not listed is as in `rmtools.particles.until.Stop`.

    Attributes
    ----------
    figure, target
        What was to be known, and its largest standard error.
    error : float or None
        Monte-Carlo error under this policy, value model and floor, not the chance of an answer to be right. None where it is
        not resolved.
    exceeded : bool
        Whether the last islands took more than the budget.
    best_of_n : float or None
        N independent solutions of the policy whose weighted figure has the same standard error:
        `rmtools.particles.until.independent_solutions`. None where the error is not resolved.
    """

    stopped: str
    figure: str
    target: float
    error: float | None
    islands: int
    tokens: float
    token_budget: float
    exceeded: bool
    best_of_n: float | None


def until_known(
    drawn: PromptSamples, until: Until | None, answers: Sequence[str | None] | None
) -> UntilKnown | None:
    """Return why no more islands were added; None if their number was fixed."""
    stop = drawn.stop
    if stop is None or until is None:
        return None
    se, phi = log_z_error(drawn.island_log_z[None])[0], None
    if until.figure == "share":
        lead = leading(shares_of(drawn, answers) or [])
        if lead is not None:
            se = np.nan if lead.se is None else lead.se
            phi = np.array([answer == lead.answer for answer in answers or ()])
    same = np.nan
    if drawn.log_z is not None and np.isfinite(drawn.log_z) and not np.isnan(se):
        same = independent_solutions(np.exp(drawn.log_weight), drawn.log_value, drawn.log_z, se, phi)
    return UntilKnown(
        stopped=stop.stopped,
        figure=until.figure,
        target=until.target,
        error=known(stop.error),
        islands=stop.islands,
        tokens=stop.tokens,
        token_budget=stop.token_budget,
        exceeded=stop.exceeded,
        best_of_n=known(same),
    )


def leading(rows: Sequence[AnswerShare]) -> AnswerShare | None:
    """Return the answer of the largest share; that of no answer only where there is no other."""
    return next((row for row in rows if row.answer is not None), rows[0] if rows else None)


def island_error(drawn: PromptSamples) -> IslandError | None:
    """Return the error of log Z-hat; None where no Z is estimated (beam search, particle Gibbs)."""
    if drawn.log_z is None or not drawn.runs:
        return None
    log_z = drawn.island_log_z
    se, interval = known(log_z_error(log_z[None])[0]), None
    if se is not None:
        half = t_quantile(len(log_z)) * se
        interval = [drawn.log_z - half, drawn.log_z + half]
    return IslandError(
        count=len(log_z),
        n_particles=len(drawn.log_weight) // len(log_z),
        log_z=log_z.tolist(),
        effective=float(effective_number(log_z[None])[0]),
        log_z_se=se,
        log_z_interval=interval,
        resampled=[n for run in drawn.runs for n in run.island_resampled],
        steps=[n for run in drawn.runs for n in run.island_steps],
    )


def genealogy_error(drawn: PromptSamples) -> GenealogyError | None:
    """Return the error of a single run; None for several runs, islands and other schemes than multinomial."""
    found = single_genealogy(drawn)
    if found is None:
        return None
    return GenealogyError(int(found.families[0]), known(found.relative_variance[0]), known(found.log_z_se[0]))


def shares_of(drawn: PromptSamples, answers: Sequence[str | None] | None) -> list[AnswerShare] | None:
    """Return the shares of all answers; None without answers, and for beam search, which follows no law."""
    if answers is None or (drawn.log_z is None and drawn.kept is None):
        return None
    if drawn.kept is not None:  # sweeps of a chain: a batch of them counts as an island
        at = batches_of(len(answers))
        return answer_shares(
            [answers[i] for i in at.ravel()], np.full(at.size, -np.log(max(1, at.size))), np.zeros(len(at))
        )
    return answer_shares(answers, drawn.log_weight, drawn.island_log_z, single_genealogy(drawn))


def answer_shares(
    answers: Sequence[str | None],
    log_weight: np.ndarray,
    island_log_z: np.ndarray,
    tree: Genealogy | None = None,
) -> list[AnswerShare]:
    """Return the share of every answer of positive weight, the largest first.

    Parameters
    ----------
    answers : sequence of str or None
        (N,) in the order of the islands.
    log_weight : np.ndarray
        (N,) nats, normalised over all islands.
    island_log_z : np.ndarray
        (K,) nats.
    tree : Genealogy, optional
        Of a single run: it gives the standard errors.
    """
    weight, count = np.exp(log_weight), len(island_log_z)
    place = {answer: i for i, answer in enumerate(dict.fromkeys(answers))}
    label = np.array([place[a] for a in answers], dtype=np.intp)
    island = np.repeat(np.arange(count), len(weight) // count)
    of_island = np.bincount(label * count + island, weight, len(place) * count).reshape(-1, count)
    mass = np.broadcast_to(np.bincount(island, weight, count), of_island.shape)
    share = share_of_sums(of_island, mass, len(weight))
    se = share.se if tree is None else tree.shares_se(label)
    rows = zip(place, share.estimate, se, share.low, share.high, strict=True)
    found = [AnswerShare(answer, float(p), *map(known, rest)) for answer, p, *rest in rows if p > 0]
    return sorted(found, key=lambda row: -row.share)


def single_genealogy(drawn: PromptSamples) -> Genealogy | None:
    """Return the genealogy of a single run; None for several runs, or if the scheme has none."""
    return drawn.runs[0].tree if len(drawn.runs) == 1 else None


def known(x: float) -> float | None:
    """Return ``x``, None for NaN."""
    return None if np.isnan(x) else float(x)
