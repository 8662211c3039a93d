"""Thm 6.1: single-particle guided SMC in pools, and independent Metropolis-Hastings around it (Algorithm 2)."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from rmtools.core import FiniteModel, SMCResult, metropolis, smc, solve
from rmtools.exact.bounds import mh_steps_bound, pool_size_bound
from rmtools.exact.solution import guided_tv
from rmtools.verify.theorems.case import Case
from rmtools.verify.theorems.extended import detailed_balance, law_after
from rmtools.verify.theorems.models import one_sided, tree
from rmtools.verify.theorems.result import counted

NAME = "Thm 6.1"
ON = "Algorithm 2 on random trees that one guided particle misses, T <= 4, L <= 4; extended spaces of T = 2 and 3 enumerated"
MUST_SHOW = (
    "TV <= delta at the bounds' M and H; detailed balance to 1e-12 and the sampler's law as enumerated"
)
DELTA_TV, DELTA = 0.1, 0.05
# horizon, epsilon, floor, seed. The errors have one sign below each first branch: without Metropolis-Hastings no pool
# is large enough, and the policy by itself is no nearer: the proposals are what is checked.
TREES = ((2, 0.5, 0.3, 24), (3, 0.2, 0.3, 45), (3, 0.25, 0.3, 44), (4, 0.12, 0.3, 45))
CHAINS = 2_000
SPACES = ((2, 2, 2), (2, 2, 3), (3, 2, 2))


def cases(quick: bool) -> list[Case]:
    """Trees at their bounds, then enumerated spaces."""
    found = [
        Case(f"T = {t[0]}, tree {t[3]}", measure, {"shape": t, "chains": CHAINS}, 1e8 * t[0] ** 2)
        for t in (TREES[:1] if quick else TREES)
    ]
    for space in SPACES:
        label = f"extended space T = {space[0]}, B = {space[1]}, M = {space[2]}"
        found.append(Case(label, measure_balance, {"space": space}, 1e7))
    return found


def output_tv(model: FiniteModel, pool: int, mh_steps: int, chains: int, rng: np.random.Generator) -> float:
    """Return the total variation between the final states of ``chains`` chains and the target; noise adds to it."""
    target = solve(model).target
    assert target is not None
    counts = np.zeros(len(target))
    batch = max(1, min(chains, 2_000_000 // pool))
    for start in range(0, chains, batch):
        run = partial(one_particle, model, min(batch, chains - start), pool)
        state = metropolis(run, mh_steps, rng).collect(lambda particles: particles.state[:, 0])
        counts += np.bincount(state, minlength=len(target))
    return float(np.abs(counts / chains - target).sum() / 2)


def one_particle(model: FiniteModel, groups: int, pool: int, rng: np.random.Generator) -> SMCResult[Any]:
    """Run single-particle guided SMC."""
    return smc(model.particles(groups), 1, pool, "multinomial", 1.0, rng, history=False)


def measure(shape: tuple[int, float, float, int], chains: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return TV at the bounds of one tree, and the cheapest M and H that suffice."""
    horizon, eps, floor, seed = shape
    model = one_sided(tree(horizon, 2, 0.0, floor, seed), eps)
    exact = solve(model)
    steps = math.ceil(mh_steps_bound(horizon, exact.bellman_error, DELTA_TV))
    pool = math.ceil(pool_size_bound(exact.ratio_bound, horizon, exact.bellman_error, steps, DELTA))
    tv = output_tv(model, pool, steps, chains, rng)
    smallest_pool, smallest_steps = cheapest(model, 4 * chains, rng)
    return {
        "ratio_bound": exact.ratio_bound,
        "epsilon": exact.bellman_error,
        "pool": pool,
        "mh_steps": steps,
        "chains": chains,
        "tv": tv,
        "noise": float(np.sqrt(2 / np.pi) / 2 * np.sqrt(exact.target * (1 - exact.target) / chains).sum()),  # type: ignore[operator]
        "smallest_pool": smallest_pool,
        "smallest_mh_steps": smallest_steps,
        "factor": pool * (steps + 1) / (smallest_pool * (smallest_steps + 1)),
        "tv_guided": float(guided_tv(model)[-1]),
        "holds": tv <= DELTA_TV < guided_tv(model)[-1] and exact.ratio_bound <= 4 and smallest_steps > 0,
    }


def cheapest(model: FiniteModel, chains: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return M, a power of two, and H of least M (H + 1) whose TV is at most delta."""
    best = (1 << 20, 0)
    for pool in (1 << k for k in range(12)):
        for steps in range(64):
            if pool * (steps + 1) >= best[0] * (best[1] + 1):
                break
            if output_tv(model, pool, steps, chains, rng) <= DELTA_TV:
                best = (pool, steps)
                break
        if pool >= best[0] * (best[1] + 1):
            break
    return best


def measure_balance(space: tuple[int, int, int], rng: np.random.Generator) -> dict[str, Any]:
    """Return how far detailed balance is broken on an enumerated space, and whether the sampler has its law."""
    horizon, branching, pool = space
    model = tree(horizon, branching, 0.3, 0.1, 30)
    found = detailed_balance(model, pool)
    p_values = list(sampled_laws(model, pool, rng))
    return {
        **found,
        "p_values": p_values,
        "holds": max(found["balance"], found["marginal"], found["unbiased"]) <= 1e-12
        and min(p_values) >= 1e-4,
    }


def sampled_laws(model: FiniteModel, pool: int, rng: np.random.Generator) -> Iterator[float]:
    """Yield p-values of chi-square tests: final leaves after H = 0, 1, 3 proposals against the enumerated law."""
    from scipy.stats import chisquare

    chains = 100_000
    for steps in (0, 1, 3):
        expected = chains * law_after(model, pool, steps)
        run = partial(one_particle, model, chains, pool)
        state = metropolis(run, steps, rng).collect(lambda particles: particles.state[:, 0])
        yield float(chisquare(np.bincount(state, minlength=len(expected)), expected).pvalue)


def judge(found: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether all hold, and the figures in a line."""
    trees = [case for case in found if "tv" in case]
    balance = max(case["balance"] for case in found if "balance" in case)
    p = min(p for case in found if "balance" in case for p in case["p_values"])
    factors = [case["factor"] for case in trees]
    text = (
        f"TV at the bounds at most {max(case['tv'] for case in trees):.3f} (delta {DELTA_TV}); bounds {min(factors):.0f} to "
        f"{max(factors):.0f} times what suffices; detailed balance to {balance:.0e}, smallest p {p:.2g}; {counted(found)}"
    )
    return all(case["holds"] for case in found), text
