"""Repeated runs of the sampler on a finite model: estimates of Z, laws of the output, and their bias."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtools.core import FiniteModel, SMCResult, smc

PARTICLES_AT_ONCE = 200_000  # larger arrays leave the cache: half the speed at a million


@dataclass(frozen=True)
class Setting:
    """Settings of the sampler; the defaults are those of the predictions."""

    n: int
    m: int = 1
    scheme: str = "multinomial"
    threshold: float = 1.0


def draws(
    model: FiniteModel, setting: Setting, runs: int, rng: np.random.Generator
) -> Iterator[SMCResult[Any]]:
    """Yield batches of independent runs of the sampler, ``runs`` groups in all."""
    size = max(1, PARTICLES_AT_ONCE // (setting.n * setting.m))
    for start in range(0, runs, size):
        yield run(model, setting, min(size, runs - start), rng)


def run(model: FiniteModel, setting: Setting, groups: int, rng: np.random.Generator) -> SMCResult[Any]:
    """Return one batch of runs, without their history."""
    root = model.particles(groups)
    return smc(root, setting.n, setting.m, setting.scheme, setting.threshold, rng, history=False, islands=1)


def share_resampled(model: FiniteModel, setting: Setting, groups: int, rng: np.random.Generator) -> float:
    """Return the share of steps, the last one excluded, at which a group is resampled."""
    return float(run(model, setting, groups, rng).resampled[:-1].mean())


def z_ratios(model: FiniteModel, setting: Setting, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Return Zhat / Z of independent runs, (runs,)."""
    log_z = [result.log_z for result in draws(model, setting, runs, rng)]
    return np.exp(np.concatenate([x for x in log_z if x is not None]) - model.log_true_value[0][0])


def squared_deviation(
    model: FiniteModel, setting: Setting, runs: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the mean of (Zhat / Z - 1)^2 and its standard error; Z is known, so no mean is estimated."""
    square = (z_ratios(model, setting, runs, rng) - 1) ** 2
    return float(square.mean()), float(square.std(ddof=1) / np.sqrt(runs))


def output_laws(
    model: FiniteModel, setting: Setting, runs: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of (Zhat / Z, (G,); weight on each final state, (G, S_T))."""
    n_states = len(model.log_value[-1])
    for result in draws(model, setting, runs, rng):
        weights = np.exp(result.log_weights)
        cell = result.particles.state + np.arange(len(weights))[:, None] * n_states
        law = np.bincount(cell.ravel(), weights.ravel(), minlength=len(weights) * n_states)
        assert result.log_z is not None
        yield np.exp(result.log_z - model.log_true_value[0][0]), law.reshape(len(weights), n_states)


def target_law(model: FiniteModel) -> np.ndarray:
    """Return the probability of each final state under the target, (S_T,)."""
    return np.exp(model.log_reach[-1] + model.log_true_value[-1] - model.log_true_value[0][0])


@dataclass(frozen=True)
class Bias:
    """Expected output minus target along some directions: mean and standard error, plain and controlled, (K,)."""

    plain: np.ndarray
    plain_error: np.ndarray
    controlled: np.ndarray
    controlled_error: np.ndarray
    difference: np.ndarray  # plain - controlled: the mean of (Zhat / Z) D, zero for an unbiased sampler
    difference_error: np.ndarray

    def witness(self, of: np.ndarray) -> float:
        """Return the largest |z| of the difference over the directions ``of``, (K,) bool; rounding counts as 0."""
        real = of & (np.abs(self.difference) > 1e-12)
        z = self.difference[real] / np.maximum(self.difference_error[real], 1e-300)
        return float(np.abs(z).max(initial=0.0))


def common_leaves(model: FiniteModel, draws: int) -> np.ndarray:
    """Return the final states that ``draws`` particles visit and weigh a thousand times, (S_T,) bool.

    Elsewhere a standard error is not reliable: for a leaf that is hardly ever seen it is too small.
    """
    return np.minimum(model.reach(model.horizon), target_law(model)) * draws >= 1000


def output_bias(
    model: FiniteModel,
    setting: Setting,
    runs: int,
    directions: np.ndarray,
    target: np.ndarray,
    rng: np.random.Generator,
) -> Bias:
    """Estimate E[law of the output] - target along ``directions``, (S_T, K).

    Let D be the law minus the target. Weighted sums are unbiased for every N, so E[(Zhat / Z) D] = 0. Hence (1 - Zhat / Z)
    D, the ``controlled`` estimate, has the mean of D, which is of order 1/N. It is a product of two terms of order N^-1/2, so
    its standard deviation is of order 1/N too; that of D is of order N^-1/2. The estimate is meaningless if the sampler is
    biased: judge the ``witness`` with it.
    """
    sums = np.zeros((6, directions.shape[1]))
    for ratio, law in output_laws(model, setting, runs, rng):
        plain = (law - target) @ directions
        controlled = (1 - ratio)[:, None] * plain
        for k, x in enumerate((plain, controlled, plain - controlled)):
            sums[2 * k : 2 * k + 2] += [x.sum(0), (x**2).sum(0)]
    return Bias(*(x for k in range(3) for x in _mean_and_error(sums[2 * k], sums[2 * k + 1], runs)))


def _mean_and_error(sums: np.ndarray, squares: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    mean = sums / n
    variance = np.maximum(squares / n - mean**2, 0.0) * n / max(n - 1, 1)
    return mean, np.sqrt(variance / n)
