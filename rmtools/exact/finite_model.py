"""Finite models: trees and layered Markov chains given as arrays, and particles on them.

Layer t has S_t states; state s takes branch b with probability `policy[t][s, b]` to state `children[t][s, b]` of layer
t + 1. Every prefix ends at depth T. By default the children form the full tree, whose states are prefixes. A chain merges
prefixes with the same future, so T can be in the hundreds.

>>> import numpy as np
>>> policy = [np.array([[0.5, 0.5]]), np.array([[0.9, 0.1], [0.2, 0.8]])]
>>> log_value = [np.array([0.0]), np.log([1.0, 2.0]), np.log([1.0, 2.0, 3.0, 4.0])]
>>> model = FiniteModel(policy, log_value)
>>> model.horizon, model.is_tree, round(float(np.exp(model.log_true_value[0][0])), 6)
(2, True, 2.45)
>>> np.round(model.reach(2), 12).tolist()
[0.45, 0.05, 0.1, 0.4]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from rmtools.errors import UserError
from rmtools.particles.arguments import check_count, check_generator
from rmtools.particles.logspace import log_mean_columns

ROW_SUM_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class FiniteModel:
    """A policy, a value and a potential on a finite tree or layered chain.

    Parameters
    ----------
    policy : sequence of array_like
        `policy[t]`, (S_t, B_t) probabilities, t = 0 ... T - 1; each row sums to one; S_0 = 1.
    log_value : sequence of array_like
        `log_value[t]`, (S_t,) nats, t = 0 ... T; `log_value[T]` is the log potential. -inf is a value of
        zero.
    children : sequence of array_like, optional
        `children[t]`, (S_t, B_t) index of each child in layer t + 1; ignored where the policy is zero. Default: the
        full tree, child s * B_t + b.

    Raises
    ------
    UserError
        If shapes do not match, probabilities do not sum to one (the message says which row, and by how much), values
        are NaN or +inf, or children do not exist.

    Examples
    --------
    >>> import numpy as np
    >>> import rmtools as rm
    >>> model = rm.FiniteModel([[[0.5, 0.5]]], [np.zeros(1), np.log([1.0, 3.0])])
    >>> model.horizon, round(float(np.exp(rm.solve(model).log_z)), 6)
    (1, 2.0)
    """

    policy: Sequence[np.ndarray]
    log_value: Sequence[np.ndarray]
    children: Sequence[np.ndarray] | None = None

    def __init__(
        self,
        policy: Sequence[ArrayLike],
        log_value: Sequence[ArrayLike],
        children: Sequence[ArrayLike] | None = None,
    ) -> None:
        checked_policy = tuple(np.array(p, dtype=np.float64) for p in policy)
        checked_value = tuple(np.array(v, dtype=np.float64) for v in log_value)
        _check_layers(checked_policy, checked_value)
        for array in (*checked_policy, *checked_value):
            array.setflags(write=False)  # checks and cached results stay valid
        object.__setattr__(self, "policy", checked_policy)
        object.__setattr__(self, "log_value", checked_value)
        object.__setattr__(self, "children", _check_children(checked_policy, checked_value, children))

    def __repr__(self) -> str:
        return f"FiniteModel(horizon={self.horizon}, states={sum(map(len, self.log_value))})"

    @property
    def horizon(self) -> int:
        """T, the number of steps."""
        return len(self.policy)

    def child(self, t: int) -> np.ndarray:
        """Return the (S_t, B_t) index of each child in layer t + 1; 0 where the policy is zero on a chain."""
        if self.children is None:
            return np.arange(self.policy[t].size).reshape(self.policy[t].shape)
        return self.children[t]

    def gather(self, t: int, layer: np.ndarray) -> np.ndarray:
        """Return the (S_t, B_t) entries of `layer`, (S_{t+1},), at the children of layer t."""
        return layer.reshape(self.policy[t].shape) if self.children is None else layer[self.children[t]]

    @cached_property
    def log_policy(self) -> tuple[np.ndarray, ...]:
        """Log probabilities, (S_t, B_t) nats per layer."""
        with np.errstate(divide="ignore"):
            return tuple(np.log(p) for p in self.policy)

    @cached_property
    def log_reach(self) -> tuple[np.ndarray, ...]:
        """Log probability that a policy trajectory passes each state, (S_t,) nats, t = 0 ... T."""
        layers = [np.zeros(1)]
        for t in range(self.horizon):
            edge = layers[t][:, None] + self.log_policy[t]
            layers.append(self.scatter(t, edge))
        return tuple(layers)

    def scatter(self, t: int, edge: np.ndarray) -> np.ndarray:
        """Return log of the sum of exp(edge), (S_t, B_t), over the edges into each state of layer t + 1, (S_{t+1},) nats."""
        if self.children is None:
            return edge.ravel()
        child, flat = self.child(t).ravel(), edge.ravel()
        # One maximum per child: a rare state beside a likely one must not underflow.
        top = np.full(len(self.log_value[t + 1]), -np.inf)
        np.maximum.at(top, child, flat)
        shift = np.where(top == -np.inf, 0.0, top)
        with np.errstate(divide="ignore"):
            total: np.ndarray = (
                np.log(np.bincount(child, np.exp(flat - shift[child]), minlength=len(top))) + shift
            )
        return total

    def reach(self, t: int) -> np.ndarray:
        """Return the probability that a policy trajectory passes each state of layer t, (S_t,)."""
        probability: np.ndarray = np.exp(self.log_reach[t])
        return probability

    @cached_property
    def is_tree(self) -> bool:
        """Whether every reachable state has one parent, so that states are prefixes."""
        return self.children is None or all(self._one_way_in(t) for t in range(self.horizon))

    def _one_way_in(self, t: int) -> bool:
        used = (self.policy[t] > 0) & (self.log_reach[t] > -np.inf)[:, None]
        return int(np.bincount(self.child(t)[used], minlength=1).max(initial=0)) <= 1

    @cached_property
    def log_true_value(self) -> tuple[np.ndarray, ...]:
        """Log of V*, (S_t,) nats, t = 0 ... T, by backward recursion V*(s) = E_policy[V*(child)]."""
        layers = [self.log_value[-1]]
        for t in reversed(range(self.horizon)):
            layers.append(log_mean_columns(self.gather(t, layers[-1]), self.log_policy[t]))
        return tuple(reversed(layers))

    @cached_property
    def target_policy(self) -> tuple[np.ndarray, ...]:
        """(S_t, B_t) one-step law of the target, policy * V*(child) / V*(s); the policy where V* is zero."""
        layers = []
        for t in range(self.horizon):
            value = self.log_true_value[t][:, None]
            with np.errstate(invalid="ignore"):  # -inf - -inf, replaced
                twisted = np.exp(self.log_policy[t] + self.gather(t, self.log_true_value[t + 1]) - value)
            layers.append(np.where(value > -np.inf, twisted, self.policy[t]))
        return tuple(layers)

    def particles(self, groups: int) -> "FiniteParticles":
        """Return `groups` >= 1 replicates of the root, shape (groups, 1)."""
        check_count("groups", groups, fix=1000)
        return FiniteParticles(self, 0, np.zeros((groups, 1), dtype=np.intp))

    def draw_target(self, groups: int, rng: np.random.Generator) -> "tuple[FiniteParticles, ...]":
        """Draw `groups` trajectories exactly from the target: T + 1 particles of shape (groups, 1), the root first.

        Raises UserError if Z is zero: the target does not exist.
        """
        if self.log_true_value[0][0] == -np.inf:
            raise UserError(
                "the target does not exist: the potential is zero on every reachable leaf, so Z = 0"
            )
        check_generator(rng)
        path = [self.particles(groups)]
        for t in range(self.horizon):
            path.append(FiniteParticles(self, t + 1, self._target_tables[t].draw(path[-1].state, rng)))
        return tuple(path)

    @cached_property
    def _policy_tables(self) -> "tuple[_StepTable, ...]":
        return self._tables(self.policy)

    @cached_property
    def _target_tables(self) -> "tuple[_StepTable, ...]":
        return self._tables(self.target_policy)

    def _tables(self, policy: Sequence[np.ndarray]) -> "tuple[_StepTable, ...]":
        children = self.children if self.children is not None else [None] * self.horizon
        return tuple(_step_table(p, c) for p, c in zip(policy, children, strict=True))

    def expected_output_law(self, n_particles: int) -> np.ndarray:
        """Return the law of one weighted draw from `n_particles` particles over final states, (S_T,), in closed form.

        With two branches whose probability and value ratio do not depend on the state (the `product` family) steps are
        independent: the lineage of the output takes branch 1 with probability E[K x_1 / (K x_1 + (N - K) x_0)], K
        binomial. Holds for pool 1 and resampling at every step by any unbiased scheme. Raises UserError for any other
        model.
        """
        check_count("n_particles", n_particles, fix=16)
        law = np.ones(1)
        for t in range(self.horizon):
            p, log_ratio = self._common_step(t)
            ones = _one_step_law(n_particles, p, log_ratio)
            edge = law[:, None] * np.array([1 - ones, ones])
            law = np.zeros(len(self.log_value[t + 1]))
            np.add.at(law, self.child(t), edge)
        return law

    def _common_step(self, t: int) -> tuple[float, float]:
        """Return the probability of branch 1 and log(x_1 / x_0), the same for every reachable state of layer t."""
        reachable = self.log_reach[t] > -np.inf
        p = self.policy[t][reachable]
        value = self.gather(t, self.log_value[t + 1])[reachable]
        own = self.log_value[t][reachable]
        if p.shape[1] != 2 or not np.isfinite(value).all():
            raise UserError(
                f"no closed form: step {t} needs two branches of positive value", fix="use `product`"
            )
        increment = value - own[:, None]
        if np.ptp(p[:, 1]) > 1e-12 or np.ptp(increment, axis=0).max() > 1e-9:
            raise UserError(f"no closed form: step {t} depends on the state", fix="use `product`")
        return float(p[0, 1]), float(increment[0, 1] - increment[0, 0])


def _check_layers(policy: tuple[np.ndarray, ...], log_value: tuple[np.ndarray, ...]) -> None:
    """Raise UserError for wrong shapes, probabilities that do not sum to one, values of NaN or +inf."""
    if not policy or len(log_value) != len(policy) + 1:
        raise UserError(
            f"T >= 1 steps have T policies and T + 1 values, got {len(policy)} and {len(log_value)}",
            fix="log_value[0] is the root's, log_value[T] the log potential",
        )
    for t, (p, v) in enumerate(zip(policy, log_value, strict=False)):
        if p.ndim != 2 or v.shape != p.shape[:1] or p.shape[1] < 1:
            raise UserError(
                f"step {t}: policy has shape {p.shape} and log_value {v.shape}, expected (S, B) and (S,)",
                fix="one row of branch probabilities and one value per state",
            )
        _check_rows(t, p)
    if len(log_value[0]) != 1 or log_value[-1].ndim != 1:
        raise UserError(
            f"shapes of log_value[0] and log_value[T]: got {log_value[0].shape} and {log_value[-1].shape}",
            fix="one root state, and one log potential per final state",
        )
    for t, v in enumerate(log_value):
        bad = np.flatnonzero(~(v < np.inf))
        if len(bad):
            raise UserError(f"log_value[{t}][{bad[0]}] is {v[bad[0]]}: a value is finite or -inf for zero")


def _check_rows(t: int, p: np.ndarray) -> None:
    bad = np.argwhere(~((p >= 0) & (p <= 1 + ROW_SUM_TOLERANCE)))
    if len(bad):
        s, b = bad[0]
        raise UserError(f"policy[{t}][{s}, {b}] is {p[s, b]}: not a probability", fix="entries are in [0, 1]")
    excess = p.sum(axis=1) - 1
    worst = int(np.argmax(np.abs(excess)))
    if abs(excess[worst]) > ROW_SUM_TOLERANCE:
        raise UserError(
            f"policy[{t}][{worst}] sums to one plus {excess[worst]:.3g}",
            fix="divide each row by its sum",
        )


def _check_children(
    policy: tuple[np.ndarray, ...], log_value: tuple[np.ndarray, ...], children: Sequence[ArrayLike] | None
) -> tuple[np.ndarray, ...] | None:
    """Return child indices, 0 where the policy is zero, or None for the full tree; refuse wrong ones."""
    if children is None:
        for t, p in enumerate(policy):
            if p.size != len(log_value[t + 1]):
                raise UserError(
                    f"layer {t + 1} of a full tree has {p.size} states, got {len(log_value[t + 1])} values",
                    fix="pass `children` for a model that is not the full tree",
                )
        return None
    if len(children) != len(policy):
        raise UserError(f"`children` must have {len(policy)} layers, got {len(children)}", fix="one per step")
    checked = []
    for t, (p, c) in enumerate(zip(policy, children, strict=True)):
        given = np.asarray(c)
        if given.shape != p.shape or not np.issubdtype(given.dtype, np.integer):
            raise UserError(
                f"children[{t}] has shape {given.shape} and type {given.dtype}, expected {p.shape} integers",
                fix="one child index per state and branch",
            )
        index = np.where(p > 0, given, 0).astype(np.intp)
        if index.min() < 0 or index.max() >= len(log_value[t + 1]):
            s, b = np.argwhere((index < 0) | (index >= len(log_value[t + 1])))[0]
            raise UserError(
                f"children[{t}][{s}, {b}] is {given[s, b]}: layer {t + 1} has {len(log_value[t + 1])} states",
                fix="count states from 0",
            )
        checked.append(index)
    return tuple(checked)


@dataclass(frozen=True, eq=False)
class _StepTable:
    """The transitions of one layer, laid out for drawing many at once."""

    cumulative: tuple[np.ndarray, ...]  # B - 1 columns (S,)
    child: np.ndarray | None  # (S * B,); None on the full tree
    child_is_branch: bool  # the branch taken is the next state, whatever the state was

    def draw(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw states of the next layer, same shape as `state`."""
        if not self.cumulative:
            return state if self.child is None else self.child.take(state)
        uniform = rng.random(state.shape)
        branch = (uniform >= self.cumulative[0].take(state)).astype(np.intp)
        for column in self.cumulative[1:]:
            branch += uniform >= column.take(state)
        if self.child_is_branch:
            return branch
        branch += state * (len(self.cumulative) + 1)
        return branch if self.child is None else self.child.take(branch)


def _step_table(policy: np.ndarray, children: np.ndarray | None) -> _StepTable:
    cumulative = np.cumsum(policy, axis=1)
    cumulative /= cumulative[:, -1:]
    columns = tuple(np.ascontiguousarray(cumulative[:, b]) for b in range(policy.shape[1] - 1))
    if children is None:
        return _StepTable(columns, None, False)
    is_branch = bool(np.all((children == np.arange(policy.shape[1])) | (policy == 0)))
    return _StepTable(columns, np.ascontiguousarray(children).ravel(), is_branch)


@dataclass(frozen=True, eq=False)
class FiniteParticles:
    """`Particles` on a finite model: (G, n) states of one layer."""

    model: FiniteModel
    depth: int
    state: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """The pair (G, n)."""
        n_groups, n = self.state.shape
        return n_groups, n

    @property
    def ended(self) -> np.ndarray:
        """(G, n) bool: all at depth T, none before it."""
        return np.full(self.state.shape, self.depth == self.model.horizon)

    def log_value(self) -> np.ndarray:
        """Return (G, n) log values, nats."""
        return self.model.log_value[self.depth].take(self.state)

    def extend(self, pool_size: int, rng: np.random.Generator) -> "FiniteParticles":
        """Return (G, n * pool_size) states of the next layer; copies at depth T."""
        state = self.state if pool_size == 1 else np.repeat(self.state, pool_size, axis=1)
        if self.depth == self.model.horizon:
            return FiniteParticles(self.model, self.depth, state)
        table = self.model._policy_tables[self.depth]
        return FiniteParticles(self.model, self.depth + 1, table.draw(state, rng))

    def select(self, index: np.ndarray) -> "FiniteParticles":
        """Return the (G, k) states at `index`."""
        offset = np.arange(len(self.state))[:, None] * self.state.shape[1]
        return FiniteParticles(self.model, self.depth, self.state.ravel().take(index + offset))

    def join(self, other: "FiniteParticles") -> "FiniteParticles":
        """Return (G, n + k) states: these, then those of `other`, of the same depth and number of groups."""
        if other.depth != self.depth or len(other.state) != len(self.state):
            raise UserError(
                f"cannot join {other.shape} prefixes of depth {other.depth} to {self.shape} of depth {self.depth}",
                fix="a reference has one prefix per group at every depth, the root first",
            )
        return FiniteParticles(self.model, self.depth, np.concatenate([self.state, other.state], axis=1))


def _one_step_law(n: int, p: float, log_ratio: float) -> float:
    from scipy.special import gammaln  # here, because importing scipy takes longer than the rest of the core

    k = np.arange(n + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_pmf = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        log_pmf += np.where(k > 0, k * np.log(p), 0.0) + np.where(k < n, (n - k) * np.log1p(-p), 0.0)
        share = np.where(k == n, 1.0, k / (k + (n - k) * np.exp(-log_ratio)))
    return float(np.sum(np.exp(log_pmf) * share))
