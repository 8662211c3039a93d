"""The variance: N Var(Zhat / Z) -> sigma2, with pools sigma2_M (docs/equations.md, section 5)."""

import numpy as np

from rmtools.core import FiniteModel, persistent, product, solve
from rmtools.verify.theorems.case import Case, Figures
from rmtools.verify.theorems.instances import tree
from rmtools.verify.theorems.simulation import Setting, squared_deviation

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
    pairs = (
        [("random_tree", 2), ("persistent", 1)] if quick else [(x, m) for x in models() for m in (1, 2, 4)]
    )
    approach = () if quick else APPROACH
    return [
        Case(
            f"{name}, pool {m}",
            measure,
            {"name": name, "pool": m, "approach": approach},
            RUNS * 600 * m * 10.0,
        )
        for name, m in pairs
    ]


def measure(name: str, pool: int, approach: tuple[int, ...], rng: np.random.Generator) -> Figures:
    """Return N Var(Zhat / Z) / sigma2 at the judged N and at smaller ones."""
    model = models()[name]
    sigma2 = solve(model).sigma2_pool(pool)
    judged = int(np.ceil(max(400, 25 * sigma2)))
    rows = [row(model, Setting(n, pool), sigma2, RUNS_BELOW, rng) for n in approach]
    rows.append(row(model, Setting(judged, pool), sigma2, RUNS, rng))
    return {"sigma2": sigma2, "pool": pool, "rows": rows, "holds": abs(rows[-1]["ratio"] - 1) <= 0.05}


def row(model: FiniteModel, setting: Setting, sigma2: float, runs: int, rng: np.random.Generator) -> Figures:
    """Return the ratio at one N."""
    mean, error = squared_deviation(model, setting, runs, rng)
    scale = setting.n / sigma2
    return {"n": setting.n, "runs": runs, "ratio": mean * scale, "ratio_error": error * scale}


def figures(found: list[Figures]) -> str:
    """Return the figures in a line."""
    last = [case["rows"][-1] for case in found]
    low, high = min(r["ratio"] for r in last), max(r["ratio"] for r in last)
    error = max(r["ratio_error"] for r in last)
    return f"N Var / sigma2 {low:.3f} to {high:.3f} (standard error at most {error:.3f})"
