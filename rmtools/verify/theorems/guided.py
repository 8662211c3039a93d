"""Thm 4.3: one exactly guided particle is within 2 t epsilon of the depth's target. By enumeration, without sampling.

Half of the trees have errors of random signs, which cancel. The others have errors of one sign below each first branch,
which do not cancel and come much nearer to the bound.
"""

import numpy as np

from rmtools.core import FiniteModel, solve
from rmtools.exact.bounds import sp_tv_bound
from rmtools.exact.solution import guided_tv
from rmtools.verify.theorems.case import Case, Figures
from rmtools.verify.theorems.instances import one_sided, product_tree, tree

NAME = "Thm 4.3"
ON = "300 random trees, errors of random and of persistent sign; product, T = 8, ratio 3"
MUST_SHOW = "TV to the target of depth t <= 2 t epsilon everywhere; product: epsilon > 1/(2T) and TV = 0"
TREES = 300
ROUNDING = 1e-12


def cases(quick: bool) -> list[Case]:
    """Return one case with all trees, and the product."""
    return [Case("random trees", measure_trees), Case("product", measure_product)]


def measure_trees(rng: np.random.Generator) -> Figures:
    """Return how many depths of how many trees break the bound, and how near the nearest comes."""
    shares, violations = [], 0
    for seed in range(TREES):
        horizon, branching = int(rng.integers(2, 7)), int(rng.integers(2, 4))
        eps, floor = float(10 ** rng.uniform(-2.5, 0)), float(10 ** rng.uniform(-2, -0.3))
        model = tree(horizon, branching, eps, floor, seed)
        if seed % 2:
            model = one_sided(model, eps)
        share, broken = compare(model)
        shares.append(share)
        violations += broken
    return {
        "trees": TREES,
        "violations": violations,
        "largest_share_of_bound": max(shares),
        "median_share_of_bound": float(np.median(shares)),
        "holds": violations == 0,
    }


def compare(model: FiniteModel) -> tuple[float, int]:
    """Return the largest TV / bound over the depths where the bound is below 1, and how often TV exceeds it."""
    tv, eps = guided_tv(model), solve(model).bellman_error
    bound = np.array([sp_tv_bound(t, eps) for t in range(len(tv))])
    says = (bound > 0) & (bound < 1)
    return float(np.max(tv[says] / bound[says], initial=0.0)), int(np.sum(tv > bound + ROUNDING))


def measure_product(rng: np.random.Generator) -> Figures:
    """Return epsilon and TV on a model where the bound says nothing and the truth is zero."""
    model = product_tree(8, 3.0)
    tv, eps = float(guided_tv(model).max()), solve(model).bellman_error
    return {"epsilon": eps, "limit": 1 / 16, "tv": tv, "holds": eps > 1 / 16 and tv <= ROUNDING}


def figures(found: list[Figures]) -> str:
    """Return the figures in a line."""
    trees, product = found
    return (
        f"{trees['violations']} violations in {trees['trees']} trees, TV up to {trees['largest_share_of_bound']:.2f} of the "
        f"bound (median {trees['median_share_of_bound']:.2f}); product: epsilon {product['epsilon']:.2f}, "
        f"TV {product['tv']:.0e}"
    )
