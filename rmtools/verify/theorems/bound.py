"""Thm 5.1: at its number of particles the output is within delta of the target; and how many would suffice.

The total variation at the bound is half the sum of |law - target| over the leaves of a small tree, from the weights of the
runs, with 4.5 standard errors added on every leaf: this upper estimate must be below delta. The smallest sufficient N
comes from the controlled estimate, whose witness is judged with it (`output_bias`).
"""

import itertools
import math

import numpy as np

from rmtools.core import FiniteModel, solve
from rmtools.exact.bounds import particle_bound
from rmtools.verify.theorems.case import Case, Figures
from rmtools.verify.theorems.instances import tree
from rmtools.verify.theorems.simulation import Bias, Setting, common_leaves, output_bias, target_law

NAME = "Thm 5.1"
ON = "random trees, T = 2, 3, 4, epsilon .02 and .1, delta .02 and .1; multinomial at every step"
MUST_SHOW = "TV <= delta at the bound; its factor over the smallest sufficient N"
DELTAS = (0.02, 0.1)
STEPS_AT_BOUND = 2e7


def cases(quick: bool) -> list[Case]:
    """Return one case per tree."""
    grid = list(itertools.product((2, 3, 4), (0.02, 0.1)))
    runs = 4_000 if quick else 20_000
    return [
        Case(f"T = {t}, epsilon = {eps}", measure, {"horizon": t, "eps": eps, "runs": runs}, 1e8)
        for t, eps in (grid[:3] if quick else grid)
    ]


def measure(horizon: int, eps: float, runs: int, rng: np.random.Generator) -> Figures:
    """Return TV at the bound and the smallest sufficient N of one tree, for every delta."""
    model = tree(horizon, 2, eps, 0.5, 10 + horizon)
    exact = solve(model)
    rows = []
    for delta in DELTAS:
        bound = int(np.ceil(particle_bound(exact.ratio_bound, horizon, exact.bellman_error, delta)))
        at_bound = int(np.clip(STEPS_AT_BOUND / (bound * horizon), 100, runs))
        at = leaf_bias(model, bound, at_bound, rng)
        upper = float((np.abs(at.plain) + 4.5 * at.plain_error).sum() / 2)
        enough, witness = smallest_sufficient(model, delta, bound, runs, rng)
        rows.append(
            {
                "delta": delta,
                "bound": bound,
                "tv_at_bound_at_most": upper,
                "smallest_n": enough,
                "predicted_n": exact.n_for_tv(delta),
                "factor": bound / enough,
                "witness": max(at.witness(common_leaves(model, bound * at_bound)), witness),
            }
        )
    return {
        "ratio_bound": exact.ratio_bound,
        "epsilon": exact.bellman_error,
        "rows": rows,
        "holds": all(r["tv_at_bound_at_most"] <= r["delta"] and r["witness"] <= 4.5 for r in rows),
    }


def leaf_bias(model: FiniteModel, n: int, runs: int, rng: np.random.Generator) -> Bias:
    """Return the bias of the output at N = n, leaf by leaf."""
    target = target_law(model)
    return output_bias(model, Setting(n), runs, np.eye(len(target)), target, rng)


def smallest_sufficient(
    model: FiniteModel, delta: float, bound: int, runs: int, rng: np.random.Generator
) -> tuple[int, float]:
    """Return the smallest N whose estimated TV is at most delta (doubling, then bisection), and its witness.

    Return `bound` and a witness of inf if no smaller N suffices: a sampler that does not converge must fail.
    """

    def enough(n: int) -> bool:
        found[n] = leaf_bias(model, n, runs, rng)
        return float(np.abs(found[n].controlled).sum() / 2) <= delta

    found: dict[int, Bias] = {}
    high = 1
    while not enough(high):
        if high >= bound:
            return bound, math.inf
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high, found[high].witness(common_leaves(model, high * runs))


def figures(found: list[Figures]) -> str:
    """Return the figures in a line."""
    rows = [row for case in found for row in case["rows"]]
    share = max(r["tv_at_bound_at_most"] / r["delta"] for r in rows)
    low, high = min(r["factor"] for r in rows), max(r["factor"] for r in rows)
    return f"TV at the bound at most {share:.2f} delta, noise included; {low:.0f} to {high:.0f} times what suffices"
