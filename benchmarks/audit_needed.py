"""The particles a sampler needs: the smallest N at which a measured error is small enough, by bisection.

Prompts of a population run together. Costs are pooled with weights Z^2: the squared coefficient of variation is
sum Var(Zhat_p) / sum Z_p^2, the total variation a mean with weights Z_p^2. Total variation is measured along
-sign(H - E H) / 2, linear in the output's law and so without a noise bias, with the control of
`rmtools.verify.theorems.simulation.output_bias`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from audit_population import Population

from rmtools.particles.smc import smc
from rmtools.verify.theorems.simulation import PARTICLES_AT_ONCE, Setting

# The bracket at which bisection ends; the rest is a straight line in logs.
BRACKET = 1.1
PILOT = 32


@dataclass(frozen=True)
class Accuracy:
    """What N particles reach: coefficient of variation of Zhat and total variation, pooled; standard errors."""

    cv: float
    cv_error: float
    tv: float
    tv_error: float


@dataclass(frozen=True, eq=False)
class Sampler:
    """Runs of the sampler on all prompts of a population; what was measured at an N is kept."""

    population: Population
    scheme: str
    threshold: float
    runs: int
    seed: int
    known: dict[int, Accuracy] = field(default_factory=dict)

    def at(self, n: int) -> Accuracy:
        """Return what N particles reach."""
        if n not in self.known:
            self.known[n] = self._measure(Setting(n, 1, self.scheme, self.threshold))
        return self.known[n]

    @cached_property
    def direction(self) -> tuple[np.ndarray, np.ndarray]:
        """-sign(H - E H) / 2 at each final state of the joined model, and its mean under each prompt's target."""
        layers, means = [], []
        for exact in self.population.exact:
            assert exact.target is not None
            assert exact.influence is not None
            f = -0.5 * np.sign(exact.influence - exact.target @ exact.influence)
            layers.append(f)
            means.append(exact.target @ f)
        return np.concatenate(layers), np.array(means)

    def _measure(self, setting: Setting) -> Accuracy:
        population, (f, mean) = self.population, self.direction
        prompt = np.tile(np.arange(len(population)), self.runs)
        rng = np.random.default_rng([self.seed, setting.n])
        size = max(1, PARTICLES_AT_ONCE // setting.n)
        ratio, off = [], []
        for start in range(0, len(prompt), size):
            batch = prompt[start : start + size]
            found = smc(
                population.roots(batch),
                setting.n,
                1,
                setting.scheme,
                setting.threshold,
                rng,
                history=False,
                islands=1,
            )
            assert found.log_z is not None
            ratio.append(np.exp(found.log_z) / population.z[batch])
            off.append((np.exp(found.log_weights) * f[found.particles.state]).sum(axis=1) - mean[batch])
        return self._pooled(*(np.concatenate(x).reshape(self.runs, -1) for x in (ratio, off)))

    def _pooled(self, ratio: np.ndarray, off: np.ndarray) -> Accuracy:
        """Pool (runs, P) ratios Zhat / Z and deviations of the law."""
        weight = self.population.z**2 / np.sum(self.population.z**2)
        squares = ((ratio - 1) ** 2) @ weight
        tv = ((1 - ratio) * off) @ weight
        cv = float(np.sqrt(squares.mean()))
        errors = [float(x.std(ddof=1) / np.sqrt(self.runs)) for x in (squares, tv)]
        return Accuracy(cv, errors[0] / (2 * cv), float(tv.mean()), errors[1])


def smallest(measure: Callable[[int], float], goal: float, order: float) -> float:
    """Return the smallest N with measure(N) <= goal, not rounded; measure falls about as N^-``order``.

    A pilot says where to look; the ends are moved until they hold the goal, then bisected in log N.
    """
    guess = PILOT * (measure(PILOT) / goal) ** (1 / order)
    low, high = (max(1, round(guess * x)) for x in (0.8, 1.25))
    while low > 1 and measure(low) <= goal:
        low, high = max(1, low // 2), low
    while measure(high) > goal:
        low, high = high, 2 * high
    while high > BRACKET * low and high - low > 1:
        middle = round(np.sqrt(low * high))
        low, high = (middle, high) if measure(middle) > goal else (low, middle)
    if measure(low) <= goal:
        return float(low)
    ends = np.log([measure(low), max(measure(high), 1e-12)])
    share = (ends[0] - np.log(goal)) / (ends[0] - ends[1])
    return float(low * (high / low) ** share)
