"""The variance: N Var(Zhat / Z) -> sigma2, with pools sigma2_M (docs/equations.md, section 5)."""

from typing import Any

import numpy as np

from rmtools.core import FiniteModel, persistent, product, solve
from rmtools.verify.theorems.case import Case, Setting, z_ratios
from rmtools.verify.theorems.models import tree
from rmtools.verify.theorems.result import counted

NAME = "variance"
ON = "random tree, persistent, product; multinomial at every step; pools 1, 2, 4"
MUST_SHOW = "N Var(Zhat/Z) / sigma2 within 5% at N >= max(400, 25 sigma2), at least 40,000 runs"
RUNS, RUNS_BELOW = 40_000, 10_000
APPROACH = (10, 25, 50, 100, 200)


def models() -> dict[str, FiniteModel]:
    """Return the models by name."""
    return {
        "random_tree": tree(4, 3, 0.2, 0.05, 3),
        "persistent": persistent(8, 0.3),
        "product": product(5, 3.0),
    }


def cases(quick: bool) -> list[Case]:
    """Return every model with every pool; quick: two of them."""
    few = [("random_tree", 2), ("persistent", 1)]
    wanted = few if quick else [(name, m) for name in models() for m in (1, 2, 4)]
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
    sigma2 = solve(model).sigma2_pool(pool)
    judged = int(np.ceil(max(400, 25 * sigma2)))
    rows = [row(model, pool, n, sigma2, RUNS_BELOW, rng) for n in approach]
    rows.append(row(model, pool, judged, sigma2, RUNS, rng))
    return {"sigma2": sigma2, "pool": pool, "rows": rows, "holds": abs(rows[-1]["ratio"] - 1) <= 0.05}


def row(
    model: FiniteModel, pool: int, n: int, sigma2: float, runs: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the ratio at N = n; Z is known, so the variance is taken about it."""
    square = (z_ratios(model, Setting(n, pool), runs, rng) - 1) ** 2
    scale = n / sigma2
    return {
        "n": n,
        "runs": runs,
        "ratio": float(square.mean() * scale),
        "ratio_error": float(square.std(ddof=1) / np.sqrt(runs) * scale),
    }


def judge(found: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether all hold, and the figures in a line."""
    last = [case["rows"][-1] for case in found]
    low, high = min(r["ratio"] for r in last), max(r["ratio"] for r in last)
    error = max(r["ratio_error"] for r in last)
    text = f"N Var / sigma2 {low:.3f} to {high:.3f} (standard error at most {error:.3f}); {counted(found)}"
    return all(case["holds"] for case in found), text
