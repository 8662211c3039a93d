"""Populations of exact models, branching rollouts drawn from them, and what an audit of them should find.

All prompts of a population are one finite model whose first step picks the prompt, so that the rollouts of any number of
prompts are drawn at once. Value models on one population differ in their log values alone: rollouts are shared by them.
Notation: docs/equations.md sections 1, 5 and 6; nats.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rmtools.core import solve
from rmtools.exact.families import perturb
from rmtools.exact.finite_model import FiniteModel, FiniteParticles
from rmtools.exact.solution import ExactResult
from rmtools.stats.influence import InfluenceSD, influence_sd
from rmtools.stats.sigma2 import Sigma2Parts, sigma2_parts, value_square_estimate

ValueKind = Callable[[FiniteModel, np.random.Generator], FiniteModel]


@dataclass(frozen=True, eq=False)
class Population:
    """Finite models of one horizon, one a prompt, each drawn with equal probability."""

    models: tuple[FiniteModel, ...]

    @property
    def horizon(self) -> int:
        """T."""
        return self.models[0].horizon

    def __len__(self) -> int:
        return len(self.models)

    @cached_property
    def joined(self) -> FiniteModel:
        """One model of horizon T + 1: its first step picks the prompt, layer t + 1 holds depth t of all prompts."""
        size = len(self.models)
        policy, children = [np.full((1, size), 1 / size)], [np.arange(size)[None]]
        for t in range(self.horizon):
            width = max(m.policy[t].shape[1] for m in self.models)
            policy.append(np.concatenate([_widened(m.policy[t], width) for m in self.models]))
            links = [
                _widened(m.child(t), width) + offset
                for m, offset in zip(self.models, self.offsets(t + 1), strict=True)
            ]
            children.append(np.concatenate(links))
        depths = range(self.horizon + 1)
        values = [np.zeros(1), *(np.concatenate([m.log_value[t] for m in self.models]) for t in depths)]
        return FiniteModel(policy, values, children)

    def offsets(self, t: int) -> np.ndarray:
        """(P,) where each prompt's states of depth t begin in the joined model."""
        sizes = [len(m.log_value[t]) for m in self.models]
        return np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def roots(self, prompts: np.ndarray) -> FiniteParticles:
        """Return the prompts (G,) as G groups of one prefix."""
        return FiniteParticles(self.joined, 1, np.asarray(prompts, dtype=np.intp)[:, None])

    @cached_property
    def exact(self) -> tuple[ExactResult, ...]:
        """Exact figures of each prompt."""
        return tuple(solve(m) for m in self.models)

    @cached_property
    def z(self) -> np.ndarray:
        """(P,) exact Z."""
        return np.exp([e.log_z for e in self.exact])

    def valued(self, kind: ValueKind, rng: np.random.Generator) -> "Population":
        """Return the same prompts with another value."""
        return Population(tuple(kind(m, rng) for m in self.models))

    def pooled(self, by_prompt: Sequence[float]) -> float:
        """Return the mean over prompts with weights Z^2, as costs are pooled."""
        return float(np.sum(self.z**2 * by_prompt) / np.sum(self.z**2))

    @cached_property
    def truth(self) -> dict[str, float]:
        """What an audit estimates: means over the on-policy prefixes of all prompts, costs weighted by Z^2."""
        pairs = list(zip(self.models, self.exact, strict=True))
        return {
            "squared ratio error": float(np.mean([_mean_square(m, e, np.expm1) for m, e in pairs])),
            "Z": float(self.z.mean()),
            "sigma^2": self.pooled([e.sigma2 for e in self.exact]),
            "SD of H": float(np.sqrt(self.pooled([influence_variance(e) for e in self.exact]))),
            "RMS b": float(np.sqrt(np.mean([_mean_square(m, e, np.abs) for m, e in pairs]))),
        }


def _widened(array: np.ndarray, width: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])))


def _mean_square(
    model: FiniteModel, exact: ExactResult, function: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Mean of function(b)^2 over depths and the policy's prefixes."""
    squares = [
        np.sum(np.where(model.reach(t) > 0, model.reach(t) * function(b) ** 2, 0.0))
        for t, b in enumerate(exact.log_bellman_error)
    ]
    return float(np.mean(squares))


def influence_variance(exact: ExactResult) -> float:
    """Variance of H under the target of a tree."""
    assert exact.target is not None
    assert exact.influence is not None
    mean = exact.target @ exact.influence
    return float(exact.target @ (exact.influence - mean) ** 2)


def random_trees(
    size: int, horizon: int, branching: int, floor: float, rng: np.random.Generator
) -> Population:
    """Trees with perfect values, of prompts that differ in how easy they are."""
    models = []
    for _ in range(size):
        policy = [rng.dirichlet(np.full(branching, 2.0), size=branching**t) for t in range(horizon)]
        easy = rng.beta(1, 1.5)
        reward = rng.beta(2 * easy + 0.05, 2 * (1 - easy) + 0.05, size=branching**horizon)
        empty = [np.zeros(len(p)) for p in policy]
        models.append(perfect(FiniteModel(policy, [*empty, np.log(floor + (1 - floor) * reward)]), rng))
    return Population(tuple(models))


def rare_children(floor: float, q: float) -> Population:
    """One step that succeeds with probability q, the value perfect: b = 0, and hard to see from a few children."""
    value = [np.log([floor + (1 - floor) * q]), np.log([floor, 1.0])]
    return Population((FiniteModel([np.array([[1 - q, q]])], value),))


def with_values(model: FiniteModel, inner: Sequence[np.ndarray]) -> FiniteModel:
    """Return the model with other log values at depths 0 ... T - 1."""
    return FiniteModel(model.policy, [*inner, model.log_value[-1]], model.children)


def perfect(model: FiniteModel, rng: np.random.Generator) -> FiniteModel:
    """Value V*."""
    return with_values(model, model.log_true_value[:-1])


def noisy(sd: float) -> ValueKind:
    """Value V* times an independent lognormal factor at every prefix, ``sd`` in nats."""
    return lambda model, rng: with_values(
        model, [v + sd * rng.normal(size=len(v)) for v in model.log_true_value[:-1]]
    )


def uneven(sd: float) -> ValueKind:
    """As `noisy`, the size of the error drawn for each prompt: its standard deviation is uniform on [0, 2 ``sd``]."""
    return lambda model, rng: noisy(2 * sd * rng.random())(model, rng)


def flattened(power: float) -> ValueKind:
    """Value V* to the power ``power``: below 1 too timid, above too bold."""
    return lambda model, rng: with_values(model, [power * v for v in model.log_true_value[:-1]])


def constant(value: float) -> ValueKind:
    """One value everywhere, the base rate say."""
    return lambda model, rng: with_values(
        model, [np.full(len(v), np.log(value)) for v in model.log_value[:-1]]
    )


def perturbed(eps: float, kind: str) -> ValueKind:
    """Value of Bellman error exactly ``eps`` (`rmtools.core.perturb`)."""
    return lambda model, rng: perturb(model, eps, kind, rng)


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Trajectories of G groups with children and completions at every prefix, as states of a model.

    Attributes
    ----------
    first : int
        Layer of the roots.
    path : tuple of np.ndarray
        T + 1 arrays (G, n).
    children : tuple of np.ndarray
        T arrays (G, n, K), the trajectory's own next state first.
    extra : np.ndarray
        (G, n, T, R - 1) potentials of completions besides the trajectory's own.
    potential : np.ndarray
        (G, n).
    """

    first: int
    path: tuple[np.ndarray, ...]
    children: tuple[np.ndarray, ...]
    extra: np.ndarray
    potential: np.ndarray

    def values(self, model: FiniteModel) -> tuple[np.ndarray, np.ndarray]:
        """Return ``model``'s log values at the prefixes (G, n, T + 1) and the children (G, n, T, K)."""
        layers = model.log_value[self.first :]
        own = [layer[state] for layer, state in zip(layers, self.path, strict=True)]
        child = [layer[state] for layer, state in zip(layers[1:], self.children, strict=True)]
        return np.stack(own, axis=-1), np.stack(child, axis=2)

    def value_squares(self) -> np.ndarray:
        """(G, n, T + 1) unbiased estimates of V*^2, completions and the trajectory's own together."""
        own = np.broadcast_to(self.potential[..., None, None], (*self.extra.shape[:3], 1))
        inner = value_square_estimate(np.concatenate([own, self.extra], axis=-1))
        return np.concatenate([inner, self.potential[..., None] ** 2], axis=-1)

    def parts(self, log_value: np.ndarray) -> list[Sigma2Parts]:
        """Return the parts of sigma^2 of each group."""
        rows = zip(log_value, self.value_squares(), self.potential, strict=True)
        return [sigma2_parts(*row) for row in rows]

    def spreads(self, log_value: np.ndarray) -> list[InfluenceSD]:
        """Return the spread of H of each group."""
        return [influence_sd(*row) for row in zip(log_value, self.potential, self.extra, strict=True)]


def draw_rollouts(
    roots: FiniteParticles, n: int, n_children: int, n_completions: int, rng: np.random.Generator
) -> Rollouts:
    """Draw n trajectories from each of G roots, with K children and R completions at every prefix.

    Own next steps and own outcomes are counted in K and R, as an audit does.
    """
    n_groups = len(roots.state)
    path = [roots.select(np.zeros((n_groups, n), dtype=np.intp))]
    while path[-1].depth < roots.model.horizon:
        path.append(path[-1].extend(1, rng))
    children, extra = [], []
    for at, after in itertools.pairwise(path):
        others = at.extend(n_children - 1, rng).state.reshape(n_groups, n, n_children - 1)
        children.append(np.concatenate([after.state[..., None], others], axis=-1))
        ends = at.extend(n_completions - 1, rng)
        while ends.depth < roots.model.horizon:
            ends = ends.extend(1, rng)
        extra.append(np.exp(ends.log_value()).reshape(n_groups, n, n_completions - 1))
    return Rollouts(
        first=roots.depth,
        path=tuple(p.state for p in path),
        children=tuple(children),
        extra=np.stack(extra, axis=2),
        potential=np.exp(path[-1].log_value()),
    )
