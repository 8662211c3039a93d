"""ESS-triggered resampling: N Var(Zhat / Z) -> sigma2 and TV -> MAD(H) / 2N of the limiting schedule.

docs/equations.md, section 10.

Multinomial resampling when ESS <= N / 2, at an N at which every step is decided. On each model both sigma2 at every step and
sigma2 without resampling lie outside of the limit that is judged: a sampler with another trigger fails. The total variation
is measured along the signs of H, as in the check of the output law.
"""

import numpy as np

from rmtools.core import FiniteModel, product, solve
from rmtools.exact.influence import leaf_influence
from rmtools.verify.theorems.case import Case, Figures
from rmtools.verify.theorems.instances import tree
from rmtools.verify.theorems.simulation import Setting, output_bias, run, squared_deviation

NAME = "schedule"
ON = "random trees with large errors, product; multinomial at ESS <= N/2; pools 1, 2, 4; every step decided at N"
MUST_SHOW = (
    "|N Var(Zhat/Z) / sigma2 - 1| <= .05 + 4.5 SE at N = 10,000; resampled at the limiting times; signed TV within 15% of "
    "MAD(H)/2N"
)
N, THRESHOLD = 10_000, 0.5
RUNS, QUICK_RUNS, HISTORIES = 2_000, 400, 100
SCHEDULED = 0.99
# Pools, N and runs of the total variation.
TV_TREE, TV_CASES, TV_QUICK_RUNS = (
    "tree T = 6",
    ((1, 500, 30_000), (2, 1_200, 12_000), (4, 1_000, 10_000)),
    10_000,
)


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
    """Return the variances, then the total variations; quick: the first of each."""
    runs = QUICK_RUNS if quick else RUNS
    found = [
        Case(f"{name}, pool {m}", measure, {"name": name, "pool": m, "runs": runs}, runs * N * m * 8.0)
        for name, m in (CASES[:1] if quick else CASES)
    ]
    for m, n, full in TV_CASES[:1] if quick else TV_CASES:
        arguments = {"pool": m, "n": n, "runs": TV_QUICK_RUNS if quick else full}
        found.append(Case(f"{TV_TREE}, pool {m}, TV", measure_tv, arguments, arguments["runs"] * n * m * 6.0))
    return found


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


def measure_tv(pool: int, n: int, runs: int, rng: np.random.Generator) -> Figures:
    """Return measured over predicted total variation of one pool."""
    model = models()[TV_TREE]
    exact = solve(model)
    assert exact.target is not None
    limiting = exact.limiting_schedule(THRESHOLD, pool)
    h = leaf_influence(model, pool, limiting.times)
    direction = -0.5 * np.sign(h - exact.target @ h)[:, None]
    bias = output_bias(model, Setting(n, pool, "multinomial", THRESHOLD), runs, direction, exact.target, rng)
    predicted = exact.influence_mad(pool, schedule=limiting.times).value / (2 * n)
    ratio, error = float(bias.controlled[0]) / predicted, float(bias.controlled_error[0]) / predicted
    witness = bias.witness(np.array([True]))
    return {
        "pool": pool,
        "n": n,
        "times": list(limiting.times),
        "decided_from": max(limiting.decided_from),
        "runs": runs,
        "tv": predicted,
        "tv_ratio": ratio,
        "tv_ratio_error": error,
        "witness": witness,
        "holds": limiting.decided(n) and abs(ratio - 1) <= 0.15 and error <= 0.03 and witness <= 4.5,
    }


def figures(found: list[Figures]) -> str:
    """Return the figures in a line."""
    variances, laws = ([case for case in found if key in case] for key in ("ratio", "tv_ratio"))
    low, high = min(case["ratio"] for case in variances), max(case["ratio"] for case in variances)
    error, kept = max(case["ratio_error"] for case in variances), min(case["kept"] for case in variances)
    tv = [case["tv_ratio"] for case in laws]
    return (
        f"N Var / sigma2 {low:.3f} to {high:.3f} (standard error at most {error:.3f}); schedule kept at {kept:.1%} of steps; "
        f"measured / MAD(H)/2N {min(tv):.3f} to {max(tv):.3f}"
    )
