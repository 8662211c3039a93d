"""The law of the sampler's output against an enumerated target, measured without the bias that noise gives a distance.

A total variation of frequencies is never zero: its noise floor is that of as many exact draws. Two figures have no such
bias. Along a direction fixed beforehand the distance is linear in the law, and multiplied by 1 - Zhat/Z it has the same
mean and far less noise (docs/equations.md, section 5). Without a direction, one half of the runs chooses it and the other
half is measured along it: at most the total variation on average, never above it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtools.core import FiniteModel, solve
from rmtools.lm.enumerate import TabulatedModel
from rmtools.lm.particles import LMParticles, Reward
from rmtools.lm.policy import Policy
from rmtools.lm.protocol import Scorer
from rmtools.particles.smc import smc
from rmtools.verify.theorems.simulation import Setting

CANDIDATES_AT_ONCE = 40_000
Z_MAX = 4.5
# A standard error is to be believed where a thousand particles were seen: of a rare cell it is too small.
COMMON = 1000


@dataclass(frozen=True)
class Subject:
    """One prompt: particles that start there, where they end, and the exact law they should end with.

    Attributes
    ----------
    start : callable
        Number of replicates -> particles of shape (G, 1).
    cells : callable
        Ended particles (G, n) -> (G, n) index of each one's solution.
    target, policy : np.ndarray
        (K,) probabilities of the solutions under the target and under the policy.
    log_z : float
        Nats.
    model : FiniteModel
        The table, whose MAD(H) is the prediction; its states are the first cells.
    """

    start: Callable[[int], Any]
    cells: Callable[[Any], np.ndarray]
    target: np.ndarray
    policy: np.ndarray
    log_z: float
    model: FiniteModel


def on_table(table: TabulatedModel) -> Subject:
    """Return the prompt as a finite model: the policy's mass outside the table does not exist."""
    exact = solve(table.model)
    assert exact.target is not None
    policy = table.model.reach(table.model.horizon)
    return Subject(
        table.model.particles, lambda p: p.state, exact.target, policy, float(exact.log_z), table.model
    )


def on_language_model(policy: Policy, value: Scorer, table: TabulatedModel, reward: Reward) -> Subject:
    """Return the prompt as it is decoded; the last cell holds every solution that is not in the table.

    Those are malformed, or have a step rarer than the table's limit: their potential is taken to be the floor.
    """
    potential = np.append(np.exp(table.model.log_value[-1]), value.tilt.floor)
    mass = np.append(table.path_probability, table.uncovered)
    z = float(mass @ potential)
    where = {tuple(path): i for i, path in enumerate(table.paths)}

    def start(groups: int) -> LMParticles:
        return LMParticles.start(policy, value, [table.prompt] * groups, terminal="verifier", reward=reward)

    def cells(particles: LMParticles) -> np.ndarray:
        steps = particles.steps()
        known = {id(s): where.get(tuple(s), len(where)) for group in steps for s in group}
        return np.asarray([[known[id(s)] for s in group] for group in steps])

    return Subject(start, cells, mass * potential / z, mass, math.log(z), table.model)


@dataclass(frozen=True)
class Runs:
    """Independent runs: Zhat / Z (R,), the weight of each cell (R, K), and one weighted draw (R,)."""

    ratio: np.ndarray
    laws: np.ndarray
    drawn: np.ndarray

    def bias(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return law minus target of every run, (R, K), and the same times 1 - Zhat/Z, which has the same mean."""
        plain = self.laws - target.astype(self.laws.dtype)
        return plain, plain * (1 - self.ratio[:, None]).astype(self.laws.dtype)


def run(subject: Subject, setting: Setting, runs: int, rng: np.random.Generator) -> Runs:
    """Run the sampler ``runs`` times; equal prompts are independent replicates in one batch."""
    found = list(batches(subject, setting, runs, rng))
    return Runs(*(np.concatenate(x) for x in zip(*found, strict=True)))


def batches(
    subject: Subject, setting: Setting, runs: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    n_cells = len(subject.target)
    size = max(1, CANDIDATES_AT_ONCE // (setting.n * setting.m))
    for start in range(0, runs, size):
        root = subject.start(min(size, runs - start))
        result = smc(
            root, setting.n, setting.m, setting.scheme, setting.threshold, rng, history=False, islands=1
        )
        cell, weights = subject.cells(result.particles), np.exp(result.log_weights)
        groups = np.arange(len(cell))
        flat = np.bincount((cell + n_cells * groups[:, None]).ravel(), weights.ravel(), len(groups) * n_cells)
        assert result.log_z is not None
        ratio = np.exp(result.log_z - subject.log_z)
        yield ratio, flat.reshape(-1, n_cells).astype(np.float32), cell[groups, result.draw(rng)]


def mean_and_error(x: np.ndarray) -> tuple[float, float]:
    """Return the mean of independent values and its standard error."""
    return float(x.mean(dtype=float)), float(x.std(ddof=1, dtype=float) / math.sqrt(len(x)))


def z_score(ratio: np.ndarray) -> float:
    """Return how many standard errors the mean of Zhat / Z is from 1."""
    mean, error = mean_and_error(ratio)
    return (mean - 1) / error


def split_tv(differences: np.ndarray) -> tuple[float, float]:
    """Return the total variation of the mean of ``differences`` (R, K) along the other half's signs, and its error."""
    halves = differences[::2], differences[1::2]
    found = []
    for chooses, measured in (halves, halves[::-1]):
        sign = np.sign(chooses.mean(0, dtype=float)).astype(differences.dtype)
        found.append(mean_and_error(0.5 * measured @ sign))
    (a, error_a), (b, error_b) = found
    return (a + b) / 2, math.hypot(error_a, error_b) / 2


def witness(found: Runs, subject: Subject, n: int) -> tuple[float, int]:
    """Return the largest |z| of E[(Zhat/Z) (law - target)] = 0 over the cells that are seen, and their number."""
    seen = np.minimum(subject.policy, subject.target) * n * len(found.ratio) >= COMMON
    weighted = (found.laws[:, seen] - subject.target[seen]) * found.ratio[:, None]
    error = weighted.std(0, ddof=1) / math.sqrt(len(weighted))
    return float(np.abs(weighted.mean(0) / error).max(initial=0)), int(seen.sum())


def frequencies(cells: np.ndarray, n_cells: int) -> np.ndarray:
    return np.bincount(cells, minlength=n_cells) / len(cells)


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).sum() / 2)


def noise_floor(target: np.ndarray, draws: int, rng: np.random.Generator, level: float = 0.999) -> np.ndarray:
    """Return mean and upper quantile of the total variation that frequencies of exact draws have, (2,)."""
    counts = rng.multinomial(draws, target / target.sum(), size=2000)
    distance = np.abs(counts / draws - target).sum(1) / 2
    return np.asarray([distance.mean(), np.quantile(distance, level)])


def influence_signs(subject: Subject, pool: int) -> tuple[np.ndarray, float]:
    """Return -sign(H - E H) of each cell (0 outside the table), along which the bias is MAD(H) / 2N, and MAD(H)."""
    exact = solve(subject.model)
    assert exact.target is not None
    h = exact.influence_pool(pool)
    signs = np.zeros(len(subject.target), dtype=np.float32)
    signs[: len(h)] = -np.sign(h - exact.target @ h)
    return signs, exact.influence_mad(pool).value


def exact_draws(root: Any, attempts: int, rng: np.random.Generator) -> tuple[Any, ...]:
    """Draw the target exactly, by rejection: solutions of the policy, each kept with probability its potential.

    Returns
    -------
    tuple of Particles
        The first solution kept in each group, (G, 1) at every depth from the root to the end.

    Raises
    ------
    ValueError
        If a group keeps none of its ``attempts``: leaving it out would not harm the law, but was not expected.
    """
    path = [root.select(np.zeros((root.shape[0], attempts), dtype=np.intp))]
    while not path[-1].ended.all():
        path.append(path[-1].extend(1, rng))
    kept = -rng.standard_exponential(path[-1].shape) < path[-1].log_value()
    if not kept.any(axis=1).all():
        raise ValueError(f"no solution of {attempts} was kept in a group")
    index = kept.argmax(axis=1)[:, None]
    return tuple(level.select(index) for level in path)
