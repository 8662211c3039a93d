"""One measurement of a check, and the draws it makes of the sampler.

A check is a list of cases that know nothing of each other, so that they run on all cores; each has its own
generator, seeded by its label, so that neither their order nor their number changes a figure.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmtools.core import FiniteModel, SMCResult, smc

PARTICLES_AT_ONCE = 200_000  # larger arrays leave the cache: half the speed at a million


@dataclass(frozen=True)
class Case:
    """A function of a module (so that another process can find it), its arguments, and roughly its cost.

    Attributes
    ----------
    label : str
        Unique within the check; seeds the generator.
    run : callable
        ``run(rng=..., **arguments) -> dict`` of JSON values.
    arguments : dict
    cost : float
        Particle-steps; only orders the work.
    """

    label: str
    run: Callable[..., dict[str, Any]]
    arguments: dict[str, Any] = field(default_factory=dict)
    cost: float = 0.0

    def measure(self, seed: int, check: str) -> dict[str, Any]:
        """Return the figures of the case and its label."""
        rng = np.random.default_rng([seed, zlib.crc32(f"{check}/{self.label}".encode())])
        return {"label": self.label, **self.run(rng=rng, **self.arguments)}


@dataclass(frozen=True)
class Setting:
    """Settings of the sampler; the default is what the predictions are about, N aside."""

    n: int
    m: int = 1
    scheme: str = "multinomial"
    threshold: float = 1.0


def draws(
    model: FiniteModel, setting: Setting, runs: int, rng: np.random.Generator
) -> Iterator[SMCResult[Any]]:
    """Yield independent runs of the sampler, ``runs`` groups in all, a batch at a time."""
    size = max(1, PARTICLES_AT_ONCE // (setting.n * setting.m))
    for start in range(0, runs, size):
        yield smc(
            model.particles(min(size, runs - start)),
            setting.n,
            setting.m,
            setting.scheme,
            setting.threshold,
            rng,
            history=False,
        )


def z_ratios(model: FiniteModel, setting: Setting, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Return Zhat / Z of independent runs, (runs,)."""
    log_z = model.log_true_value[0][0]
    found = [result.log_z for result in draws(model, setting, runs, rng)]
    return np.exp(np.concatenate([x for x in found if x is not None]) - log_z)


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


def mean_and_error(sums: np.ndarray, squares: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return means and their standard errors from sums and sums of squares of n independent values."""
    mean = sums / n
    variance = np.maximum(squares / n - mean**2, 0.0) * n / max(n - 1, 1)
    return mean, np.sqrt(variance / n)


@dataclass(frozen=True)
class Bias:
    """Expected output minus target along some directions: mean and standard error, plain and controlled, (K,)."""

    plain: np.ndarray
    plain_error: np.ndarray
    controlled: np.ndarray
    controlled_error: np.ndarray
    difference: np.ndarray  # of the two: the mean of (Zhat / Z) D, zero for an unbiased sampler
    difference_error: np.ndarray

    def witness(self, of: np.ndarray) -> float:
        """Return the largest |z| of the difference over the directions ``of``, (K,) bool; rounding counts 0."""
        real = of & (np.abs(self.difference) > 1e-12)
        z = self.difference[real] / np.maximum(self.difference_error[real], 1e-300)
        return float(np.abs(z).max(initial=0.0))


def common_leaves(model: FiniteModel, draws: int) -> np.ndarray:
    """Return which final states ``draws`` particles visit and weigh a thousand times, (S_T,) bool.

    A standard error is to be believed only there: of a leaf that is hardly ever seen it is too small.
    """
    target = np.exp(model.log_reach[-1] + model.log_true_value[-1] - model.log_true_value[0][0])
    return np.minimum(model.reach(model.horizon), target) * draws >= 1000


def output_bias(
    model: FiniteModel,
    setting: Setting,
    runs: int,
    directions: np.ndarray,
    target: np.ndarray,
    rng: np.random.Generator,
) -> Bias:
    """Estimate E[law of the output] - target along ``directions``, (S_T, K).

    With D the law minus the target, E[(Zhat / Z) D] = 0 because weighted sums are unbiased for every N. So
    (1 - Zhat / Z) D has the mean of D and, being a product of two terms of order N^-1/2, a standard deviation
    of the order of that mean: it is the ``controlled`` estimate. It is worth nothing where the sampler is biased, so
    whoever judges it must judge the ``witness`` as well.
    """
    sums = np.zeros((6, directions.shape[1]))
    for ratio, law in output_laws(model, setting, runs, rng):
        plain = (law - target) @ directions
        controlled = (1 - ratio)[:, None] * plain
        for k, x in enumerate((plain, controlled, plain - controlled)):
            sums[2 * k : 2 * k + 2] += [x.sum(0), (x**2).sum(0)]
    return Bias(*(x for k in range(3) for x in mean_and_error(sums[2 * k], sums[2 * k + 1], runs)))
