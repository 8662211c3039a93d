"""The influence H of a trajectory on the sampler's output, and its mean absolute deviation under the target.

With a pool of M candidates, h_t = Zhat_{t-1} / (V(s_{t-1}) Z) (V*(s_t) / M + (1 - 1/M) V*(s_{t-1})); H is the sum of h_t
over the steps. With multinomial resampling at every step, the expected output of N particles differs from the target by
E|H - E H| / (2 N) in total variation, to first order (docs/equations.md section 5).

>>> from rmtools.core import product, solve
>>> solve(product(horizon=3, ratio=2.0)).influence_mad()  # doctest: +ELLIPSIS
InfluenceMad(value=0.395061728395..., standard_error=0.0, method='dynamic programming')
"""

from dataclasses import dataclass

import numpy as np

from rmtools.exact.finite_model import FiniteModel
from rmtools.particles.arguments import check_count
from rmtools.particles.logspace import log_sum_exp

MAX_ATOMS = 200_000
MERGE_TOLERANCE = 1e-11


@dataclass(frozen=True)
class InfluenceMad:
    """E_target|H - E H|, its standard error (0 if exact) and how it was computed."""

    value: float
    standard_error: float
    method: str


def step_influence(model: FiniteModel, t: int, pool_size: int = 1) -> np.ndarray:
    """Return h of the step from layer t along each branch, (S_t, B_t); 0 where the value is zero."""
    log_z = model.log_true_value[0][0]
    own, child = model.log_true_value[t], model.gather(t, model.log_true_value[t + 1])
    log_factor = log_sum_exp(model.log_reach[t] + model.log_value[t]) - log_z
    with np.errstate(invalid="ignore", over="ignore"):
        h = np.exp(log_factor + child - model.log_value[t][:, None]) / pool_size
        if pool_size > 1:
            h += (1 - 1 / pool_size) * np.exp(log_factor + own - model.log_value[t])[:, None]
    # NaN is 0 * inf, at a depth without positive values: nothing is lost only if the true value is zero as well.
    return np.where(np.isnan(h), np.where(child > -np.inf, np.inf, 0.0), h)


def leaf_influence(model: FiniteModel, pool_size: int) -> np.ndarray:
    """Return H of the trajectory to each final state of a tree, (S_T,); 0 at unreachable states."""
    total = np.zeros(1)
    for t in range(model.horizon):
        step = total[:, None] + step_influence(model, t, pool_size)
        if model.children is None:
            total = step.ravel()
        else:
            total = np.zeros(len(model.log_value[t + 1]))
            used = (model.policy[t] > 0) & (model.log_reach[t] > -np.inf)[:, None]
            total[model.child(t)[used]] = step[used]
    total[model.log_reach[-1] == -np.inf] = 0.0
    return total


def mean_absolute_deviation(
    model: FiniteModel, pool_size: int, n_draws: int, rng: np.random.Generator
) -> InfluenceMad:
    """Return E_target|H - E H|: exact on trees and if H takes few values, else from exact draws of the target."""
    if model.log_true_value[0][0] == -np.inf:
        return InfluenceMad(np.inf, 0.0, "no target: Z = 0")
    if model.is_tree:
        log_target = model.log_reach[-1] + model.log_true_value[-1] - model.log_true_value[0][0]
        return _exact_mad(leaf_influence(model, pool_size), np.exp(log_target), "enumeration")
    atoms = _influence_atoms(model, pool_size)
    if atoms is not None:
        return _exact_mad(*atoms, "dynamic programming")
    return _sampled_mad(model, pool_size, n_draws, rng)


def _exact_mad(h: np.ndarray, probability: np.ndarray, method: str) -> InfluenceMad:
    h, probability = h[probability > 0], probability[probability > 0]
    if np.isinf(h).any():
        return InfluenceMad(np.inf, 0.0, "H is infinite, or beyond a float, on a path that the target takes")
    return InfluenceMad(float(probability @ np.abs(h - probability @ h)), 0.0, method)


def _influence_atoms(model: FiniteModel, pool_size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the values of H and their probabilities under the target, or None if there are more than `MAX_ATOMS`."""
    state, h, probability = np.zeros(1, dtype=np.intp), np.zeros(1), np.ones(1)
    for t in range(model.horizon):
        edge = probability[:, None] * model.target_policy[t][state]
        total = h[:, None] + step_influence(model, t, pool_size)[state]
        keep = edge > 0
        if np.isinf(total[keep]).any():
            return np.array([np.inf]), np.ones(1)
        state, h, probability = _merge(model.child(t)[state][keep], total[keep], edge[keep])
        if len(state) > MAX_ATOMS:
            return None
    return h, probability


def _merge(
    state: np.ndarray, h: np.ndarray, probability: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge the atoms of one state whose values differ only by rounding."""
    order = np.lexsort((h, state))
    state, h, probability = state[order], h[order], probability[order]
    gap = np.diff(h) > MERGE_TOLERANCE * np.maximum(1.0, np.abs(h[1:]))
    first = np.flatnonzero(np.concatenate([[True], gap | (np.diff(state) != 0)]))
    return state[first], h[first], np.add.reduceat(probability, first)


def _sampled_mad(model: FiniteModel, pool_size: int, n_draws: int, rng: np.random.Generator) -> InfluenceMad:
    check_count("n_draws", n_draws, 2, "H takes too many values here to enumerate", fix=200_000)
    path = model.draw_target(n_draws, rng)
    h = np.zeros(n_draws)
    for t in range(model.horizon):
        own, child = path[t].state[:, 0], path[t + 1].state[:, 0]
        branch = np.argmax((model.child(t)[own] == child[:, None]) & (model.policy[t][own] > 0), axis=1)
        h += step_influence(model, t, pool_size)[own, branch]
    # E H is known exactly (sigma2 = E H - T): centring adds no noise.
    deviation = np.abs(h - _expected_influence(model, pool_size))
    error = float(np.std(deviation, ddof=1) / np.sqrt(n_draws))
    return InfluenceMad(float(deviation.mean()), error, f"{n_draws} exact draws")


def _expected_influence(model: FiniteModel, pool_size: int) -> float:
    log_z, total = model.log_true_value[0][0], 0.0
    for t in range(model.horizon):
        log_target = model.log_reach[t] + model.log_true_value[t] - log_z
        mean = np.sum(model.target_policy[t] * step_influence(model, t, pool_size), axis=1, initial=0.0)
        total += float(np.exp(log_target) @ np.where(log_target > -np.inf, mean, 0.0))
    return total
