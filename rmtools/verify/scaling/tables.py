"""A policy's prompts as finite models: every prefix a state, or prefixes with the same future merged into one.

`enumerate_states` gives every prefix that the policy reaches a state of its own: the table is exact. Where there are too many,
`merge_states` has one state for all prefixes of a depth that agree in the first step, the last step and whether every step so
far is right. The next step's law of a state, and each model's value there, are means over a few prefixes of it; how far that is
from the truth is measured where both tables exist (docs/scaling.md).
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rmtools.data.tasks import ExactTask
from rmtools.errors import UserError
from rmtools.exact.finite_model import FiniteModel
from rmtools.files import replacing
from rmtools.lm.enumerate import expand
from rmtools.lm.particles import to_numpy
from rmtools.lm.policy import Policy
from rmtools.lm.protocol import Scorer

PARTS = ("rule", "child", "state", "parent", "tokens")
# (the state before, the first choice, the choice, whether every step so far is right) to the key of the state after.
Key = Callable[[int, int, int, bool], Hashable]


@dataclass(frozen=True)
class Layer:
    """The R prefixes of one depth that are kept.

    Attributes
    ----------
    state : np.ndarray
        (R,) state of each.
    parent, tokens : Tensor
        (R,) the prefix of the depth before, and (R, L) the last step's token ids.
    """

    state: np.ndarray
    parent: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Table:
    """One prompt as a finite model without values.

    Attributes
    ----------
    prompt : str
    rules, children : list of np.ndarray
        T arrays (S_t, C): probabilities of the C listed steps, scaled to one, and the states of the next depth.
    rewards : np.ndarray
        (S_T,) of the verifier.
    uncovered : float
        Probability that a solution has a step that is not listed, or too improbable.
    layers : list of Layer
        T of them, of the depths 1 ... T.
    """

    prompt: str
    rules: list[np.ndarray]
    children: list[np.ndarray]
    rewards: np.ndarray
    uncovered: float
    layers: list[Layer]

    @property
    def horizon(self) -> int:
        """Number of steps T."""
        return len(self.rules)

    @cached_property
    def probability(self) -> list[np.ndarray]:
        """T + 1 arrays (S_t,): probability of a right solution from each state."""
        found = [self.rewards]
        for rule, child in zip(self.rules[::-1], self.children[::-1], strict=True):
            found.append((rule * found[-1][child]).sum(axis=1))
        return found[::-1]

    @property
    def success(self) -> float:
        """The policy's probability of a right solution."""
        return float(self.probability[0][0])

    def model(self, log_values: list[np.ndarray]) -> FiniteModel:
        """Return the finite model with T + 1 arrays (S_t,) nats."""
        return FiniteModel(self.rules, log_values, self.children)

    @torch.inference_mode()
    def log_values(self, value: Scorer) -> list[np.ndarray]:
        """Return T + 1 arrays (S_t,) nats: the log of the mean value of each state's prefixes, at the end the potential."""
        read, scored = value.start([value.steps.prompt_ids(self.prompt)])
        found = [to_numpy(read)]
        for layer in self.layers[:-1]:
            read, scored = value.advance(scored.select(layer.parent), layer.tokens)
            sums = np.bincount(layer.state, np.exp(to_numpy(read)))
            found.append(np.log(sums / np.bincount(layer.state)))
        return [*found, value.tilt.log_potential(self.rewards)]


def enumerate_states(policy: Policy, task: ExactTask, prompt: str, min_probability: float = 1e-4) -> Table:
    """Return the table with a state for every prefix whose steps are at least as probable as ``min_probability``.

    Raises ``UserError`` if a prefix has no such step among the listed ones.
    """
    return _build(
        policy, task, prompt, lambda before, _first, choice, _right: (before, choice), None, min_probability
    )


def merge_states(
    policy: Policy,
    task: ExactTask,
    prompt: str,
    kept: int,
    rng: np.random.Generator,
    min_probability: float = 1e-4,
) -> Table:
    """Return the table whose states merge prefixes with the same first step, last step and rightness so far.

    ``kept`` prefixes stand for each state, drawn among those found in proportion to their probability given the state before.
    """
    return _build(policy, task, prompt, lambda _before, *rest: rest, _Keep(kept, rng), min_probability)


@dataclass(frozen=True)
class _Keep:
    """Keeps ``most`` of the prefixes of each state."""

    most: int
    rng: np.random.Generator

    def __call__(self, state: np.ndarray, log_probability: np.ndarray) -> np.ndarray:
        """Return (R',) rows: the largest of log probability plus Gumbel noise, draws without replacement."""
        order = np.lexsort((-(log_probability + self.rng.gumbel(size=len(state))), state))
        rank = np.arange(len(order)) - np.searchsorted(state[order], state[order])
        return np.sort(order[rank < self.most])


@torch.inference_mode()
def _build(
    policy: Policy, task: ExactTask, prompt: str, key: Key, keep: _Keep | None, min_probability: float
) -> Table:
    choices = task.step_choices(prompt, [])
    ids = [policy.steps.step_ids(c) for c in choices]
    prefixes = policy.start([policy.steps.prompt_ids(prompt)])
    state, states = np.zeros(1, dtype=int), _States([[]], [-1], [True])
    rules, children, layers = [], [], []
    reach: np.ndarray = np.ones(1)
    for _ in range(task.horizon):
        grown = expand(policy, prefixes, ids, min_probability)
        parent, choice = grown.parent.cpu().numpy(), grown.choice.cpu().numpy()
        law = np.zeros((len(states.steps), len(choices)))
        np.add.at(law, (state[parent], choice), np.exp(grown.log_probability.cpu().numpy()))
        law /= np.bincount(state)[:, None]
        mass = law.sum(axis=1)
        if not mass.all():
            raise UserError(
                "a prefix has no listed step above min_probability: the policy is not on its format",
                "use a policy trained on the task, or lower its temperature",
            )
        child, states = states.after(task, prompt, law, choices, key)
        rules.append(law / mass[:, None])
        children.append(child)
        reach = np.bincount(child.ravel(), (reach[:, None] * law).ravel(), len(states.steps))
        found = child[state[parent], choice]
        rows = np.arange(len(found)) if keep is None else keep(found, grown.log_probability.cpu().numpy())
        state = found[rows]
        chosen = torch.as_tensor(rows, device=policy.device)
        layers.append(Layer(state, grown.parent[chosen], grown.tokens[chosen]))
        prefixes = grown.state.select(chosen)
    rewards = np.asarray([task.reward(prompt, steps) for steps in states.steps])
    return Table(prompt, rules, children, rewards, float(1 - reach.sum()), layers)


@dataclass(frozen=True)
class _States:
    """The states of one depth: steps of a prefix of each, its first choice (-1 = none), and whether all are right."""

    steps: list[list[str]]
    first: list[int]
    right: list[bool]

    def after(
        self, task: ExactTask, prompt: str, law: np.ndarray, choices: Sequence[str], key: Key
    ) -> tuple[np.ndarray, "_States"]:
        """Return (S, C) states of the next depth that steps of positive probability lead to, and these states."""
        child = np.zeros(law.shape, dtype=np.int64)
        index: dict[Hashable, int] = {}
        found = _States([], [], [])
        for s, c in zip(*np.nonzero(law), strict=True):
            steps = [*self.steps[s], choices[c]]
            right = self.right[s] and bool(task.step_labels(prompt, steps)[-1])
            first = self.first[s] if self.first[s] >= 0 else int(c)
            at = index.setdefault(key(int(s), first, int(c), right), len(index))
            child[s, c] = at
            if at == len(found.steps):
                found.steps.append(steps)
                found.first.append(first)
                found.right.append(right)
        return child, found


def save_tables(file: Path, tables: Sequence[Table]) -> None:
    """Write tables."""
    arrays: dict[str, np.ndarray] = {"prompts": np.asarray([t.prompt for t in tables])}
    arrays["uncovered"] = np.asarray([t.uncovered for t in tables])
    for p, table in enumerate(tables):
        arrays[f"{p} rewards"] = table.rewards
        for t, (rule, child, layer) in enumerate(zip(table.rules, table.children, table.layers, strict=True)):
            parts = {"rule": rule, "child": child, "state": layer.state}
            parts |= {"parent": layer.parent.cpu().numpy(), "tokens": layer.tokens.cpu().numpy()}
            arrays |= {f"{p} {t} {name}": part for name, part in parts.items()}
    with replacing(file) as path, path.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def load_tables(file: Path) -> list[Table]:
    """Read what `save_tables` wrote."""
    with np.load(file) as kept:
        arrays = dict(kept)
    found = []
    for p, prompt in enumerate(arrays["prompts"].tolist()):
        horizon = next(t for t in itertools.count() if f"{p} {t} rule" not in arrays)
        at = [{name: arrays[f"{p} {t} {name}"] for name in PARTS} for t in range(horizon)]
        layers = [Layer(a["state"], torch.from_numpy(a["parent"]), torch.from_numpy(a["tokens"])) for a in at]
        rules, children = [a["rule"] for a in at], [a["child"] for a in at]
        found.append(
            Table(prompt, rules, children, arrays[f"{p} rewards"], float(arrays["uncovered"][p]), layers)
        )
    return found
