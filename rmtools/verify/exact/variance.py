"""The variance: N Var(Zhat / Z) -> sigma2, with pools sigma2_M (docs/equations.md, section 5)."""

from typing import Any

import numpy as np

from rmtools.core import FiniteModel, persistent, product
from rmtools.verify.exact.case import Case, Setting, z_ratios
from rmtools.verify.exact.models import tree
from rmtools.verify.exact.result import counted

NAME = "variance"
ON = "random tree, persistent, product; multinomial at every step; pools 1, 2, 4"
MUST_SHOW = "N Var(Zhat/Z) / sigma2 within 5% at N >= max(400, 25 sigma2), at least 40,000 runs"
RUNS = 40_000
APPROACH = (10, 25, 50, 100, 200)


def models() -> dict[str, FiniteModel]:
    """Return the models by name."""
    return {
        "random_tree": tree(5, 3, 0.2, 0.05, 3),
        "persistent": persistent(12, 0.15),
        "product": product(8, 3.0),
    }


def cases(quick: bool) -> list[Case]:
    """Every model with every pool; quick: pool 2 of the tree only."""
    wanted = [
        (name, m)
        for name in models()
        for m in (1, 2, 4)
        if not quick or m == 1 or (name, m) == ("random_tree", 2)
    ]
    return [
        Case(
            f"{name}, pool {m}",
            measure,
            {"name": name, "pool": m, "approach": () if quick else APPROACH},
            RUNS * 600 * m * 10.0,
        )
        for name, m in wanted
    ]


def measure(name: str, pool: int, approach: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
    """Return N Var(Zhat / Z) / sigma2 at the N that is judged and at smaller ones."""
    model = models()[name]
    sigma2 = model.exact().sigma2_pool(pool)
    judged = int(np.ceil(max(400, 25 * sigma2)))
    rows = [row(model, pool, n, sigma2, rng) for n in (*approach, judged)]
    return {"sigma2": sigma2, "pool": pool, "rows": rows, "holds": abs(rows[-1]["ratio"] - 1) <= 0.05}


def row(model: FiniteModel, pool: int, n: int, sigma2: float, rng: np.random.Generator) -> dict[str, Any]:
    """Return the ratio at N = n; Z is known, so the variance is taken about it."""
    square = (z_ratios(model, Setting(n, pool), RUNS, rng) - 1) ** 2
    scale = n / sigma2
    return {
        "n": n,
        "runs": RUNS,
        "ratio": float(square.mean() * scale),
        "ratio_error": float(square.std(ddof=1) / np.sqrt(RUNS) * scale),
    }


def judge(found: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether all hold, and the figures in a line."""
    last = [case["rows"][-1] for case in found]
    low, high = min(r["ratio"] for r in last), max(r["ratio"] for r in last)
    error = max(r["ratio_error"] for r in last)
    text = f"N Var / sigma2 {low:.3f} to {high:.3f} (standard error at most {error:.3f}); {counted(found)}"
    return all(case["holds"] for case in found), text
