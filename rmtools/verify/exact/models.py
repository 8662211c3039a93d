"""The finite models that the checks run on."""

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
    """One small instance of each family: their estimates have a variance that tens of thousands of runs resolve."""
    return {
        "product": product(5, 3.0),
        "random_tree": tree(3, 3, 0.3, 0.05, 0),
        "needle": needle(3, 2),
        "hidden_prefix": hidden_prefix(1, 3.0),
        "hidden_prefix codes": hidden_prefix(1, 1.5),
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
