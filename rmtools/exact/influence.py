"""The influence H of a trajectory on the sampler's output, and its mean absolute deviation under the target.

With a pool of M candidates, h_t = Zhat_{t-1} / (V(s_{t-1}) Z) (V*(s_t) / M + (1 - 1/M) V*(s_{t-1})); H is the sum of h_t
over the steps. With multinomial resampling at every step, the expected output of N particles differs from the target by
E|H - E H| / (2 N) in total variation, to first order (docs/equations.md section 5). If only some steps are resampled, the
steps of a block between two resamplings have one h together (section 10).

>>> from rmtools.core import product, solve
>>> solve(product(horizon=3, ratio=2.0)).influence_mad()  # doctest: +ELLIPSIS
InfluenceMad(value=0.395061728395..., standard_error=0.0, method='dynamic programming')
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.exact.finite_model import FiniteModel
from rmtools.particles.arguments import check_count
from rmtools.particles.logspace import log_mean_columns, log_sum_exp

MAX_ATOMS = 200_000
MERGE_TOLERANCE = 1e-11


@dataclass(frozen=True)
class InfluenceMad:
    """E_target|H - E H|, its standard error (0 if exact) and how it was computed."""

    value: float
    standard_error: float
    method: str


def step_influence(
    model: FiniteModel, t: int, start: int, state: np.ndarray, log_twist: np.ndarray, pool_size: int
) -> np.ndarray:
    """Return h of the block that ends with the step from layer t, at `state` (n,) along each branch, (n, B_t).

    The block began at layer `start`; `log_twist` (n,) is -log V(s_start) and what `_twist_after` made of it. Zero where
    value and true value are zero.
    """
    log_z = model.log_true_value[0][0]
    own = model.log_true_value[t][state]
    child = model.gather(t, model.log_true_value[t + 1])[state]
    log_factor = log_sum_exp(model.log_reach[start] + model.log_value[start]) - log_z
    with np.errstate(invalid="ignore", over="ignore"):
        h = np.exp(log_factor + child + log_twist[:, None]) / pool_size
        if pool_size > 1:
            h += (1 - 1 / pool_size) * np.exp(log_factor + own + log_twist)[:, None]
    # NaN is 0 * inf, at a depth without positive values: nothing is lost only if the true value is zero as well.
    return np.where(np.isnan(h), np.where(child > -np.inf, np.inf, 0.0), h)


def _twist_after(
    model: FiniteModel, t: int, state: np.ndarray, log_twist: np.ndarray, pool_size: int
) -> np.ndarray:
    """Return the log twist along each branch after a step that is not resampled, (n, B_t) nats.

    A pool multiplies it by 1/M + (1 - 1/M) E_policy[V(s_{t+1})] / V(s_{t+1}). It is inf at a child of value zero: the
    sampler drops what follows.
    """
    child = model.gather(t, model.log_value[t + 1])
    change = np.zeros(child.shape)
    if pool_size > 1:
        mean = log_mean_columns(child, model.log_policy[t])
        shares = -np.log(pool_size), np.log1p(-1 / pool_size)
        ratio = mean[:, None] - np.where(child > -np.inf, child, 0.0)
        change = np.logaddexp(shares[0], shares[1] + ratio)
    change = np.where(child > -np.inf, change, np.inf)[state]
    return np.where(change == np.inf, np.inf, log_twist[:, None] + change)


def _blocks(model: FiniteModel, times: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """Yield for each step its layer t, the layer at which its block began, and whether it ends the block."""
    start = 0
    for t in range(model.horizon):
        ends = t + 1 in times or t + 1 == model.horizon
        yield t, start, ends
        start = t + 1 if ends else start


def leaf_influence(model: FiniteModel, pool_size: int, times: Sequence[int]) -> np.ndarray:
    """Return H of the trajectory to each final state of a tree, (S_T,); 0 at unreachable states."""
    total, log_twist = np.zeros(1), -model.log_value[0]
    for t, start, ends in _blocks(model, times):
        state = np.arange(len(total))
        if ends:
            step = total[:, None] + step_influence(model, t, start, state, log_twist, pool_size)
            total, log_twist = _at_children(model, t, step), -model.log_value[t + 1]
        else:
            log_twist = _at_children(model, t, _twist_after(model, t, state, log_twist, pool_size))
            total = _at_children(model, t, np.broadcast_to(total[:, None], model.policy[t].shape))
    total[model.log_reach[-1] == -np.inf] = 0.0
    return total


def _at_children(model: FiniteModel, t: int, edge: np.ndarray) -> np.ndarray:
    """Return the values (S_t, B_t) of a tree's edges at the states they lead to, (S_{t+1},); 0 at unreachable ones."""
    if model.children is None:
        return edge.ravel()
    layer = np.zeros(len(model.log_value[t + 1]))
    used = (model.policy[t] > 0) & (model.log_reach[t] > -np.inf)[:, None]
    layer[model.child(t)[used]] = edge[used]
    return layer


def mean_absolute_deviation(
    model: FiniteModel, pool_size: int, times: Sequence[int], n_draws: int, rng: np.random.Generator
) -> InfluenceMad:
    """Return E_target|H - E H|: exact on trees and if H takes few values, else from exact draws of the target."""
    if model.log_true_value[0][0] == -np.inf:
        return InfluenceMad(np.inf, 0.0, "no target: Z = 0")
    if model.is_tree:
        log_target = model.log_reach[-1] + model.log_true_value[-1] - model.log_true_value[0][0]
        return _exact_mad(leaf_influence(model, pool_size, times), np.exp(log_target), "enumeration")
    atoms = _influence_atoms(model, pool_size, times)
    if atoms is not None:
        return _exact_mad(*atoms, "dynamic programming")
    return _sampled_mad(model, pool_size, times, n_draws, rng)


def _exact_mad(h: np.ndarray, probability: np.ndarray, method: str) -> InfluenceMad:
    h, probability = h[probability > 0], probability[probability > 0]
    if np.isinf(h).any():
        return InfluenceMad(np.inf, 0.0, "H is infinite, or beyond a float, on a path that the target takes")
    return InfluenceMad(float(probability @ np.abs(h - probability @ h)), 0.0, method)


def _influence_atoms(
    model: FiniteModel, pool_size: int, times: Sequence[int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the values of H and their probabilities under the target, or None if there are more than `MAX_ATOMS`."""
    state, h, probability = np.zeros(1, dtype=np.intp), np.zeros(1), np.ones(1)
    log_twist = -model.log_value[0]
    for t, start, ends in _blocks(model, times):
        edge = probability[:, None] * model.target_policy[t][state]
        keep, child = edge > 0, model.child(t)[state]
        if ends:
            total = h[:, None] + step_influence(model, t, start, state, log_twist, pool_size)
            twist = -model.log_value[t + 1][child]
        else:
            total = np.broadcast_to(h[:, None], edge.shape)
            twist = _twist_after(model, t, state, log_twist, pool_size)
        if np.isinf(total[keep]).any() or (twist[keep] == np.inf).any():
            return np.array([np.inf]), np.ones(1)
        state, h, log_twist, probability = _merge(child[keep], total[keep], twist[keep], edge[keep])
        if len(state) > MAX_ATOMS:
            return None
    return h, probability


def _merge(
    state: np.ndarray, h: np.ndarray, log_twist: np.ndarray, probability: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Merge the atoms of one state whose values differ only by rounding."""
    order = np.lexsort((log_twist, h, state))
    state, h, log_twist, probability = (x[order] for x in (state, h, log_twist, probability))
    new = np.diff(state) != 0
    for x in (h, log_twist):
        new |= np.abs(np.diff(x)) > MERGE_TOLERANCE * np.maximum(1.0, np.abs(x[1:]))
    first = np.flatnonzero(np.concatenate([[True], new]))
    return state[first], h[first], log_twist[first], np.add.reduceat(probability, first)


def _sampled_mad(
    model: FiniteModel, pool_size: int, times: Sequence[int], n_draws: int, rng: np.random.Generator
) -> InfluenceMad:
    check_count("n_draws", n_draws, 2, "H takes too many values here to enumerate", fix=200_000)
    path = model.draw_target(n_draws, rng)
    h, log_twist = np.zeros(n_draws), np.repeat(-model.log_value[0], n_draws)
    for t, start, ends in _blocks(model, times):
        own, child = path[t].state[:, 0], path[t + 1].state[:, 0]
        branch = np.argmax((model.child(t)[own] == child[:, None]) & (model.policy[t][own] > 0), axis=1)
        if ends:
            h += _taken(step_influence(model, t, start, own, log_twist, pool_size), branch)
            log_twist = -model.log_value[t + 1][child]
        else:
            log_twist = _taken(_twist_after(model, t, own, log_twist, pool_size), branch)
    # E H is known exactly (sigma2 = E H minus the number of blocks): centring adds no noise.
    deviation = np.abs(h - _expected_influence(model, pool_size, times))
    error = float(np.std(deviation, ddof=1) / np.sqrt(n_draws))
    return InfluenceMad(float(deviation.mean()), error, f"{n_draws} exact draws")


def _taken(edge: np.ndarray, branch: np.ndarray) -> np.ndarray:
    taken: np.ndarray = edge[np.arange(len(edge)), branch]
    return taken


def _expected_influence(model: FiniteModel, pool_size: int, times: Sequence[int]) -> float:
    """Return E_target H; `log_twist` is here the log of its mean at each state, over the target's paths to it."""
    log_z, total, log_twist = model.log_true_value[0][0], 0.0, -model.log_value[0]
    for t, start, ends in _blocks(model, times):
        state, log_target = np.arange(len(log_twist)), model.log_reach[t] + model.log_true_value[t] - log_z
        if ends:
            step = step_influence(model, t, start, state, log_twist, pool_size)
            mean = np.sum(model.target_policy[t] * step, axis=1, initial=0.0)
            total += float(np.exp(log_target) @ np.where(log_target > -np.inf, mean, 0.0))
            log_twist = -model.log_value[t + 1]
            continue
        edge = _twist_after(model, t, state, log_twist, pool_size) + log_target[:, None]
        with np.errstate(divide="ignore"):
            edge = edge + np.log(model.target_policy[t])
        there = model.log_reach[t + 1] + model.log_true_value[t + 1] - log_z
        taken = (model.target_policy[t] > 0) & (log_target > -np.inf)[:, None]
        log_twist = model.scatter(t, np.where(taken, edge, -np.inf)) - np.where(there > -np.inf, there, 0.0)
    return total
