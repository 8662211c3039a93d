"""Thm 6.1: single-particle guided SMC in pools, and independent Metropolis-Hastings around it (Algorithm 2).

On trees the output is measured at the bounds' M and H. On small models the extended space is enumerated, independently of
the sampler: a point is a run, that is at each step a pool of M branches and the candidate chosen. It is proposed with
probability q and has an estimate Zhat; the chain of accepted runs has the law q Zhat / Z, and the last state of a run is
a draw of the target (docs/equations.md, section 4).
"""

import itertools
import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from rmtools.core import FiniteModel, metropolis, solve
from rmtools.exact.bounds import mh_steps_bound, pool_size_bound
from rmtools.exact.solution import guided_tv
from rmtools.particles.metropolis import log_acceptance
from rmtools.verify.theorems.case import Case, Figures
from rmtools.verify.theorems.instances import one_sided, tree
from rmtools.verify.theorems.simulation import Setting, run, target_law

NAME = "Thm 6.1"
ON = "Algorithm 2 on random trees that one guided particle misses, T <= 4, L <= 4; extended spaces of T = 2 and 3 enumerated"
MUST_SHOW = (
    "TV <= delta at the bounds' M and H; detailed balance to 1e-12 and the sampler's law as enumerated"
)
DELTA_TV, DELTA = 0.1, 0.05
# horizon, epsilon, floor, seed. With errors of one sign below each first branch no pool is large enough without
# Metropolis-Hastings, and the policy itself is no nearer: the proposals are what is checked.
TREES = ((2, 0.5, 0.3, 24), (3, 0.2, 0.3, 45), (3, 0.25, 0.3, 44), (4, 0.12, 0.3, 45))
CHAINS = 2_000
SPACES = ((2, 2, 2), (2, 2, 3), (3, 2, 2))


def cases(quick: bool) -> list[Case]:
    """Return trees at their bounds, then enumerated spaces."""
    trees = [
        Case(f"T = {t[0]}, tree {t[3]}", measure, {"shape": t, "chains": CHAINS}, 1e8 * t[0] ** 2)
        for t in (TREES[:1] if quick else TREES)
    ]
    return trees + [
        Case(f"extended space T = {t}, B = {b}, M = {m}", measure_balance, {"space": (t, b, m)}, 1e7)
        for t, b, m in SPACES
    ]


def final_states(
    model: FiniteModel, pool: int, mh_steps: int, chains: int, rng: np.random.Generator
) -> np.ndarray:
    """Return how many of ``chains`` chains end in each final state, (S_T,)."""
    sampler = partial(run, model, Setting(1, pool), chains)
    state = metropolis(sampler, mh_steps, rng).collect(lambda particles: particles.state[:, 0])
    return np.bincount(state, minlength=len(model.log_value[-1]))


def output_tv(model: FiniteModel, pool: int, mh_steps: int, chains: int, rng: np.random.Generator) -> float:
    """Return the total variation between the final states of ``chains`` chains and the target, noise included."""
    batch = max(1, min(chains, 2_000_000 // pool))
    sizes = [min(batch, chains - start) for start in range(0, chains, batch)]
    counts = sum(final_states(model, pool, mh_steps, size, rng) for size in sizes)
    return float(np.abs(counts / chains - target_law(model)).sum() / 2)


def measure(shape: tuple[int, float, float, int], chains: int, rng: np.random.Generator) -> Figures:
    """Return TV at the bounds of one tree, and the cheapest M and H that suffice."""
    horizon, eps, floor, seed = shape
    model = one_sided(tree(horizon, 2, 0.0, floor, seed), eps)
    exact, target, tv_guided = solve(model), target_law(model), float(guided_tv(model)[-1])
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
        "noise": float(np.sqrt(2 / np.pi) / 2 * np.sqrt(target * (1 - target) / chains).sum()),
        "smallest_pool": smallest_pool,
        "smallest_mh_steps": smallest_steps,
        "factor": pool * (steps + 1) / (smallest_pool * (smallest_steps + 1)),
        "tv_guided": tv_guided,
        "holds": tv <= DELTA_TV < tv_guided and exact.ratio_bound <= 4 and smallest_steps > 0,
    }


def cheapest(model: FiniteModel, chains: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return M, a power of two, and H of smallest M (H + 1) whose TV is at most delta."""
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


def measure_balance(space: tuple[int, int, int], rng: np.random.Generator) -> Figures:
    """Return the violation of detailed balance on an enumerated space, and whether the sampler has its law."""
    horizon, branching, pool = space
    model = tree(horizon, branching, 0.3, 0.1, 30)
    found = detailed_balance(model, pool)
    p_values = list(sampled_laws(model, pool, rng))
    exact = max(found["balance"], found["marginal"], found["unbiased"]) <= 1e-12
    return {**found, "p_values": p_values, "holds": exact and min(p_values) >= 1e-4}


def sampled_laws(model: FiniteModel, pool: int, rng: np.random.Generator) -> Iterator[float]:
    """Yield p-values of chi-square tests: final leaves after H = 0, 1, 3 proposals against the enumerated law."""
    from scipy.stats import chisquare

    chains = 100_000
    for steps in (0, 1, 3):
        counts = final_states(model, pool, steps, chains, rng)
        yield float(chisquare(counts, chains * law_after(model, pool, steps)).pvalue)


def enumerate_runs(model: FiniteModel, pool: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return proposal probability, Zhat and final leaf of every run, (R,) each."""
    runs = [(1.0, float(np.exp(model.log_value[0][0])), 0)]
    for t in range(model.horizon):
        value = np.exp(model.log_value[t])
        below = np.exp(model.gather(t, model.log_value[t + 1]))
        child, policy = model.child(t), model.policy[t]
        runs = [
            (
                q * float(np.prod(policy[s, list(c)])) * below[s, c[k]] / below[s, list(c)].sum(),
                z * below[s, list(c)].mean() / value[s],
                int(child[s, c[k]]),
            )
            for q, z, s in runs
            for c in itertools.product(range(policy.shape[1]), repeat=pool)
            for k in range(pool)
        ]
    q, z, leaf = (np.array(column) for column in zip(*runs, strict=True))
    return q, z, leaf


def transition(q: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the matrix of the chain, (R, R): propose by q, accept as `metropolis` does."""
    log_z = np.log(z)
    kernel = q[None, :] * np.exp(log_acceptance(log_z[:, None], log_z[None, :]))
    np.fill_diagonal(kernel, 0.0)
    np.fill_diagonal(kernel, 1 - kernel.sum(axis=1))
    return kernel


def detailed_balance(model: FiniteModel, pool: int) -> Figures:
    """Return the largest violation of detailed balance, of the leaves' law, and of E[Zhat] = Z; relative to 1."""
    q, z, leaf = enumerate_runs(model, pool)
    target, total = target_law(model), float(np.exp(model.log_true_value[0][0]))
    stationary = q * z / total
    flow = stationary[:, None] * transition(q, z)
    leaves = np.bincount(leaf, stationary, minlength=len(target))
    return {
        "runs": len(q),
        "balance": float(np.abs(flow - flow.T).max()),
        "marginal": float(np.abs(leaves - target).max()),
        "unbiased": abs(float(q @ z) / total - 1),
    }


def law_after(model: FiniteModel, pool: int, mh_steps: int) -> np.ndarray:
    """Return the law of the final leaf after ``mh_steps`` proposals, (S_T,)."""
    q, z, leaf = enumerate_runs(model, pool)
    law = q @ np.linalg.matrix_power(transition(q, z), mh_steps)
    return np.bincount(leaf, law, minlength=len(model.log_value[-1]))


def figures(found: list[Figures]) -> str:
    """Return the figures in a line."""
    trees = [case for case in found if "tv" in case]
    balance = max(case["balance"] for case in found if "balance" in case)
    p = min(p for case in found if "balance" in case for p in case["p_values"])
    factors = [case["factor"] for case in trees]
    return (
        f"TV at the bounds at most {max(case['tv'] for case in trees):.3f} (delta {DELTA_TV}); bounds {min(factors):.0f} to "
        f"{max(factors):.0f} times what suffices; detailed balance to {balance:.0e}, smallest p {p:.2g}"
    )
