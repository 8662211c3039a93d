"""Finite models on which the checks run."""

import numpy as np

from rmtools.core import (
    FiniteModel,
    Tilt,
    hidden_prefix,
    implicit,
    needle,
    persistent,
    product,
    random_tree,
)


def tree(horizon: int, branching: int, eps: float, floor: float, seed: int) -> FiniteModel:
    """Return the random tree of this seed."""
    return random_tree(horizon, branching, eps, Tilt(floor), np.random.default_rng(seed))


def small_families() -> dict[str, FiniteModel]:
    """Return one small instance per family; tens of thousands of runs resolve the variance of its estimates."""
    return {
        "product": product(5, 3.0),
        "random_tree": tree(3, 3, 0.3, 0.05, 0),
        "needle": needle(3, 2),
        "hidden_prefix": hidden_prefix(2, 2.0),
        "hidden_prefix codes": hidden_prefix(2, 1.5),
        "persistent": persistent(6, 0.3),
        "implicit": implicit(3, 2, np.random.default_rng(1)),
    }


def product_tree(horizon: int, ratio: float) -> FiniteModel:
    """Return the `product` family as a full tree, whose states are prefixes."""
    ones = [np.zeros(1)]
    for _ in range(horizon):
        ones.append((ones[-1][:, None] + np.array([0.0, 1.0])).ravel())
    policy = [np.full((len(x), 2), 0.5) for x in ones[:-1]]
    return FiniteModel(policy, [x * np.log(ratio) for x in ones])


def one_sided(model: FiniteModel, eps: float) -> FiniteModel:
    """Return a full tree's model with errors of one sign below each half of the first branches.

    V(s_t) = V*(s_t) (1 + eps)^(-+(T - t)) below the first or the second half: every step moves the value by 1 + eps away
    from the mean of its children, and the root is consistent. One guided particle then ends far from the target.
    """
    true, size = model.log_true_value, model.policy[0].shape[1]
    sign = np.where(np.arange(size) < size // 2, -1.0, 1.0)
    log_value = [model.log_value[0]]
    for t in range(1, model.horizon + 1):
        shift = np.repeat(sign, len(true[t]) // size) * (model.horizon - t) * np.log1p(eps)
        log_value.append(true[t] + shift)
    root = np.log(model.policy[0][0] @ np.exp(log_value[1]))
    return FiniteModel(model.policy, [np.array([root]), *log_value[1:]])
