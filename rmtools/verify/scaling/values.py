"""Values that are looked up in tables: exact ones, and exact ones with a bias planted on purpose.

The planted bias is V(s_t) (1 + epsilon)^{+-min(t, T - t)}, its sign a property of the first step of target probability about 1/2:
a factor of depth alone is invisible to the sampler (docs/equations.md, section 7, family `persistent`).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.protocol import TreeValues, ValueState
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.value import RowState
from rmtools.particles.tilt import Tilt
from rmtools.verify.scaling.tables import Table

NOWHERE = -1


def exact_values(table: Table, tilt: Tilt) -> list[np.ndarray]:
    """Return log V*, T + 1 arrays (S_t,) nats: the potential is linear in the probability of a right solution."""
    return [tilt.log_potential(np.clip(p, 0.0, 1.0)) for p in table.probability]


def planted_values(table: Table, tilt: Tilt, epsilon: float) -> list[np.ndarray]:
    """Return log V* with the planted bias, T + 1 arrays (S_t,) nats; the first and the last are exact."""
    exact, sign = exact_values(table, tilt), _first_step_sign(table, tilt)
    slope = math.log1p(epsilon)
    horizon = table.horizon
    return [v + slope * min(t, horizon - t) * s for t, (v, s) in enumerate(zip(exact, sign, strict=True))]


def _first_step_sign(table: Table, tilt: Tilt) -> list[np.ndarray]:
    """Return T + 1 arrays (S_t,) of -1 or 1: whether the first step is in the class of target probability nearest 1/2."""
    first = exact_values(table, tilt)[1][table.children[0][0]]
    mass = table.rules[0][0] * np.exp(first)
    found = mass.nonzero()[0]
    share = dict(zip(found.tolist(), (mass[found] / mass.sum()).tolist(), strict=True))
    classes = itertools.chain.from_iterable(
        itertools.combinations(share, r) for r in range(1, len(share) + 1)
    )
    chosen = min(classes, key=lambda c: abs(sum(share[x] for x in c) - 0.5))
    sign = [np.zeros(1)]
    for t, (rule, child) in enumerate(zip(table.rules, table.children, strict=True)):
        after = np.zeros(int(child[rule > 0].max()) + 1)
        state, choice = rule.nonzero()
        after[child[state, choice]] = np.where(np.isin(choice, chosen), -1, 1) if t == 0 else sign[-1][state]
        sign.append(after)
    return sign


@dataclass(eq=False)
class TableValue:
    """A scorer that looks values up: of a prefix, that of its state in a table.

    A prefix that the tables do not have has the floor's value. ``log_values[p]`` are the T + 1 arrays (S_t,) nats of
    ``tables[p]``, ``choices`` the C steps that the tables list.
    """

    tables: Sequence[Table]
    log_values: Sequence[Sequence[np.ndarray]]
    choices: Sequence[str]
    steps: StepTokenizer
    tilt: Tilt
    name: str
    is_probability: bool = False

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Raise ``UserError``: whole trajectories are not scored."""
        raise UserError(f"{self.name} has values of growing prefixes only", "solve its tables instead")

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, RowState]:
        """Return the values (B,) nats of prompts given as token ids, and the state: (B,) nodes."""
        return self._read(np.asarray([self._nodes.roots[tuple(p)] for p in prompts]))

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, RowState]:
        """Return the values (B,) nats one step deeper where there is a new token (B, L; -1 = none), and the state."""
        assert isinstance(state, RowState)
        node = state.rows.numpy()
        distinct, which = torch.unique(tokens.cpu(), dim=0, return_inverse=True)
        known = self._nodes.choice
        # An ended prefix has no new token, and stays where it is: the last column of `after`.
        choice = np.asarray(
            [known.get(tuple(i for i in row if i >= 0), NOWHERE) for row in distinct.tolist()]
        )
        chosen = choice[which.numpy()]
        new = self._nodes.after[np.maximum(node, 0), chosen]
        return self._read(np.where((node == NOWHERE) | (chosen == NOWHERE), NOWHERE, new))

    def _read(self, node: np.ndarray) -> tuple[Tensor, RowState]:
        values = self._nodes.log_value[node]
        return torch.from_numpy(values), RowState(torch.from_numpy(node))

    @cached_property
    def _nodes(self) -> "_Nodes":
        choice = {tuple(self.steps.step_ids(c)): k for k, c in enumerate(self.choices)}
        values: list[np.ndarray] = []
        after, roots, at = [], {}, 0
        for table, logs in zip(self.tables, self.log_values, strict=True):
            roots[tuple(self.steps.prompt_ids(table.prompt))] = at
            for rule, child in zip(table.rules, table.children, strict=True):
                at += len(rule)
                after.append(np.where(rule > 0, child + at, NOWHERE))
            after.append(np.full((len(table.rewards), len(choice)), NOWHERE))
            at += len(table.rewards)
            values += logs
        floor = self.tilt.log_potential(np.zeros(1))
        moves = np.concatenate(after)
        own = np.arange(len(moves))[:, None]
        # The last entry, read at NOWHERE = -1, is the floor.
        return _Nodes(
            np.concatenate([moves, own], axis=1),
            np.concatenate([*values, floor]),
            roots,
            choice | {(): len(choice)},
        )


@dataclass(frozen=True)
class _Nodes:
    """The states of all tables in one numbering: ``after`` (S, C + 1), the last column for no step; ``log_value`` (S + 1,)."""

    after: np.ndarray
    log_value: np.ndarray
    roots: dict[tuple[int, ...], int]
    choice: dict[tuple[int, ...], int]
