"""ESS-triggered resampling: N Var(Zhat / Z) -> sigma2 of the limiting schedule (docs/equations.md, section 10).

Multinomial resampling when ESS <= N / 2, at an N at which every step is decided. On each model both sigma2 at every step and
sigma2 without resampling lie outside of the limit that is judged: a sampler with another trigger fails.
"""

import numpy as np

from rmtools.core import FiniteModel, product, solve
from rmtools.verify.theorems.case import Case, Figures
from rmtools.verify.theorems.instances import tree
from rmtools.verify.theorems.simulation import Setting, run, squared_deviation

NAME = "schedule"
ON = "random trees with large errors, product; multinomial at ESS <= N/2; pools 1, 2, 4; every step decided at N"
MUST_SHOW = "|N Var(Zhat/Z) / sigma2 - 1| <= .05 + 4.5 SE at N = 10,000; resampled at the limiting times"
N, THRESHOLD = 10_000, 0.5
RUNS, QUICK_RUNS, HISTORIES = 2_000, 400, 100
SCHEDULED = 0.99


def models() -> dict[str, FiniteModel]:
    """Return the models by name."""
    return {
        "product": product(12, 4.0),
        "product, ratio 5": product(12, 5.0),
        "tree T = 6": tree(6, 2, 1.0, 0.005, 7),
        "tree T = 8": tree(8, 3, 1.5, 0.01, 6),
        "large errors": tree(8, 2, 2.0, 0.01, 0),
        "pools help": tree(8, 3, 1.0, 0.005, 6),
    }


CASES = (
    ("tree T = 6", 1),
    ("large errors", 2),
    ("product", 1),
    ("product, ratio 5", 2),
    ("tree T = 8", 1),
    ("large errors", 1),
    ("pools help", 4),
)


def cases(quick: bool) -> list[Case]:
    """Return the cases; quick: the first."""
    runs = QUICK_RUNS if quick else RUNS
    return [
        Case(f"{name}, pool {m}", measure, {"name": name, "pool": m, "runs": runs}, runs * N * m * 8.0)
        for name, m in (CASES[:1] if quick else CASES)
    ]


def measure(name: str, pool: int, runs: int, rng: np.random.Generator) -> Figures:
    """Return N Var(Zhat / Z) / sigma2 of one model, and the share of steps at which the sampler keeps the schedule."""
    model = models()[name]
    exact = solve(model)
    limiting = exact.limiting_schedule(THRESHOLD, pool)
    setting = Setting(N, pool, "multinomial", THRESHOLD)
    mean, error = (x * N / limiting.sigma2 for x in squared_deviation(model, setting, runs, rng))
    scheduled = np.isin(np.arange(1, model.horizon + 1), limiting.times)
    kept = float((run(model, setting, HISTORIES, rng).resampled == scheduled[:, None]).mean())
    limit = 0.05 + 4.5 * error
    others = [exact.sigma2_pool(pool) / limiting.sigma2, exact.sigma2_schedule((), pool) / limiting.sigma2]
    telling = limiting.decided(N) and all(abs(other - 1) > limit for other in others)
    return {
        "pool": pool,
        "n": N,
        "times": list(limiting.times),
        "sigma2": limiting.sigma2,
        "decided_from": max(limiting.decided_from),
        "every_step": others[0],
        "never": others[1],
        "runs": runs,
        "ratio": mean,
        "ratio_error": error,
        "kept": kept,
        "holds": telling and abs(mean - 1) <= limit and kept >= SCHEDULED,
    }


def figures(found: list[Figures]) -> str:
    """Return the figures in a line."""
    low, high = min(case["ratio"] for case in found), max(case["ratio"] for case in found)
    error, kept = max(case["ratio_error"] for case in found), min(case["kept"] for case in found)
    return f"N Var / sigma2 {low:.3f} to {high:.3f} (standard error at most {error:.3f}); schedule kept at {kept:.1%} of steps"
