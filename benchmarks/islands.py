"""Whether the errors that a run prints are its errors: islands, and the genealogy of one run, on exact models.

    python benchmarks/islands.py --runs 10000 --seed 0

Islands: every model x scheme x K x N with n = N / K of at least 32 is run many times with the default trigger (ESS < N/2).
Reported are the coverage of the 95% intervals of log Z and of two shares, the mean of se^2 on the scale of Zhat / Z against the
variance of Zhat / Z, and that variance against the one of a single run of N particles. Cells in which an island alone has a
relative variance V(n) of at most .3, and shares in [.04, .96], must hold; the others are reported. Genealogy: the mean of
Zhat^2 v against Var(Zhat), multinomial resampling.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.core import (
    FiniteModel,
    SMCResult,
    Tilt,
    hidden_prefix,
    implicit,
    needle,
    persistent,
    product,
    random_tree,
    smc,
    solve,
)

SCHEMES = ("systematic", "multinomial", "stratified")
SIZES = ((4, 128), (4, 256), (4, 512), (8, 256), (8, 512))  # K, N with N / K >= 32
LARGEST_V, SHARES = 0.3, (0.04, 0.96)
CELL, POOLED, SQUARES, LOSS = 0.90, (0.93, 0.98), 0.10, 0.10
Z_MAX = 4.5
PARTICLES_AT_ONCE = 400_000
SMALL = 1e-10  # a relative variance below it is rounding


def tree(horizon: int, branching: int, eps: float, floor: float, seed: int) -> FiniteModel:
    """Return the random tree of this seed."""
    return random_tree(horizon, branching, eps, Tilt(floor), np.random.default_rng(seed))


def models() -> dict[str, FiniteModel]:
    """Return the exact models, by name."""
    return {
        "product T = 8, r = 2": product(8, 2.0),
        "product T = 12, r = 1.5": product(12, 1.5),
        "product T = 6, r = 3": product(6, 3.0),
        "tree T = 6, B = 2": tree(6, 2, 0.3, 0.05, 0),
        "tree T = 5, B = 3": tree(5, 3, 0.5, 0.05, 1),
        "tree T = 8, B = 2": tree(8, 2, 0.2, 0.1, 2),
        "tree T = 8, B = 3": tree(8, 3, 0.3, 0.02, 3),
        "product T = 10, r = 5": product(10, 5.0),
        "product T = 12, r = 4": product(12, 4.0),
        "tree T = 8, B = 2, far": tree(8, 2, 0.8, 0.01, 4),
        "tree T = 9, B = 3, far": tree(9, 3, 1.5, 0.005, 8),
        "persistent T = 16, eps = .1": persistent(16, 0.1),
        "hidden prefix m = 2, r = 1.5": hidden_prefix(2, 1.5),
        "hidden prefix m = 2, r = 3": hidden_prefix(2, 3.0),
        "implicit T = 5, B = 2": implicit(5, 2, np.random.default_rng(1)),
        "implicit T = 3, B = 3": implicit(3, 3, np.random.default_rng(4)),
        "needle T = 3, B = 2": needle(3, 2),
    }


def answers(model: FiniteModel, rng: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """Return sets of final states (S,) bool, with their exact shares: near one half, and near one in ten."""
    target = model.reach(model.horizon) * np.exp(model.log_value[-1])
    target /= target.sum()
    found = []
    for wanted in (0.5, 0.1):
        chosen = np.zeros(len(target), dtype=bool)
        for state in rng.permutation(len(target)):
            if target[chosen].sum() + target[state] <= 1.1 * wanted:
                chosen[state] = True
        found.append((chosen, float(target[chosen].sum())))
    return found


def batches(
    model: FiniteModel, n: int, islands: int, scheme: str, threshold: float, runs: int, rng: Any, m: int = 1
) -> Iterator[SMCResult[Any]]:
    """Yield runs in batches that fit the caches of a core."""
    size = max(1, PARTICLES_AT_ONCE // (n * m))
    for start in range(0, runs, size):
        root = model.particles(min(size, runs - start))
        yield smc(root, n, m, scheme, threshold, rng, history=False, islands=islands)


def covered(low: np.ndarray, high: np.ndarray, truth: float) -> dict[str, float]:
    """Return coverage among the intervals that are resolved, and the share of these."""
    known = ~np.isnan(low)
    held = (low <= truth + 1e-12) & (truth - 1e-12 <= high)
    return {"coverage": float(held[known].mean()) if known.any() else np.nan, "resolved": float(known.mean())}


def cell(
    name: str, model: FiniteModel, scheme: str, islands: int, n: int, one_run: float, runs: int, seed: Any
) -> dict[str, Any]:
    """Return the figures of one cell."""
    log_z, sets = solve(model).log_z, answers(model, np.random.default_rng(7))
    each: list[np.ndarray] = []
    ends: list[tuple[np.ndarray, ...]] = []
    shares: list[list[Any]] = [[] for _ in sets]
    printed: list[np.ndarray] = []
    for result in batches(model, n, islands, scheme, 0.5, runs, np.random.default_rng(seed)):
        each.append(result.island_log_z - log_z)
        ends.append(result.log_z_interval())
        printed.append(result.log_z_se)
        for found, (chosen, _) in zip(shares, sets, strict=True):
            found.append(result.share(chosen[result.particles.state]))
    z = np.exp(np.concatenate(each))
    ratio, variance = z.mean(axis=1), float(z.mean(axis=1).var(ddof=1))
    squares = z.var(axis=1, ddof=1) / islands
    low, high = (np.concatenate(x) for x in zip(*ends, strict=True))
    se = np.concatenate(printed) * ratio
    rows = []
    for found, (_, p) in zip(shares, sets, strict=True):
        estimate, bottom, top, error = (np.concatenate(x) for x in zip(*found, strict=True))
        known = ~np.isnan(bottom)
        width = float(np.sqrt(np.mean(error[known] ** 2)) / estimate.std(ddof=1)) if known.any() else np.nan
        rows.append(
            {"p": p, **covered(bottom, top, p), "se_over_sd": width, "bias": float(estimate.mean() - p)}
        )
    return {
        "model": name,
        "scheme": scheme,
        "islands": islands,
        "n_particles": n,
        "runs": runs,
        "v_of_island": float(z.var(ddof=1)),
        "variance": variance,
        "bias_z": float((ratio.mean() - 1) / np.sqrt(variance / runs)) if variance > SMALL else 0.0,
        "se2_over_variance": float(squares.mean() / variance) if variance > SMALL else None,
        "printed_se2_over_variance": float(np.nanmean(se**2) / variance) if variance > SMALL else None,
        "loss": variance / one_run - 1 if min(variance, one_run) > SMALL else None,
        "log_z": covered(low, high, log_z),
        "shares": rows,
    }


def one_run_variance(model: FiniteModel, scheme: str, n: int, runs: int, seed: Any) -> float:
    """Return Var(Zhat / Z) of single runs of n particles."""
    log_z, rng = solve(model).log_z, np.random.default_rng(seed)
    found = [r.log_z - log_z for r in batches(model, n, 1, scheme, 0.5, runs, rng) if r.log_z is not None]
    return float(np.exp(np.concatenate(found)).var(ddof=1))


def island_cells(runs: int, seed: int) -> list[dict[str, Any]]:
    """Return every cell."""
    found = []
    for i, (name, model) in enumerate(models().items()):
        for j, scheme in enumerate(SCHEMES):
            single = {n: one_run_variance(model, scheme, n, runs, [seed, i, j, n]) for n in (128, 256, 512)}
            for islands, n in SIZES:
                row = cell(name, model, scheme, islands, n, single[n], runs, [seed, i, j, n, islands])
                found.append(row)
        print(f"{time.process_time():6.0f} s  {name}", file=sys.stderr, flush=True)
    return found


def genealogy_cells(runs: int, seed: int) -> list[dict[str, Any]]:
    """Return z-scores of the mean of Zhat^2 v - (Zhat - Z)^2, by model, N, pool and trigger."""
    found = []
    for i, name in enumerate(models()):
        model = models()[name]
        log_z = solve(model).log_z
        for n, m, threshold in (
            (8, 1, 1.0),
            (8, 1, 0.5),
            (8, 3, 1.0),
            (50, 1, 1.0),
            (50, 1, 0.5),
            (50, 2, 0.7),
        ):
            rng, parts = np.random.default_rng([seed, 99, i, n, m]), []
            for result in batches(model, n, 1, "multinomial", threshold, runs, rng, m):
                tree_of, ratio = result.genealogy(), np.exp(result.log_z - log_z)
                v = np.nan_to_num(tree_of.relative_variance)  # Zhat = 0 counts as 0
                se = tree_of.log_z_se
                held = np.abs(np.log(ratio)) <= 1.96 * se
                parts.append(np.stack([ratio**2 * v, (ratio - 1) ** 2, v <= 0, tree_of.families, se, held]))
            estimate, square, negative, families, se, held = np.concatenate(parts, axis=1)
            off, known = estimate - square, ~np.isnan(se)
            sd = off.std(ddof=1)
            found.append(
                {
                    "model": name,
                    "n_particles": n,
                    "pool_size": m,
                    "ess_threshold": threshold,
                    "runs": runs,
                    "estimate": float(estimate.mean()),
                    "variance": float(square.mean()),
                    "z": float(off.mean() / (sd / np.sqrt(runs))) if sd > SMALL else 0.0,
                    "not_positive": float(negative.mean()),
                    "families": float(families.mean()),
                    "resolved": float(known.mean()),
                    "coverage": float(held[known].mean()) if known.any() else np.nan,
                }
            )
    return found


def summary(cells: list[dict[str, Any]], trees: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the requirements, and whether each is met."""
    known = ("implicit", "needle")  # two-point laws and the like: reported, not judged
    judged = [c for c in cells if c["v_of_island"] <= LARGEST_V and c["variance"] > SMALL]
    judged = [c for c in judged if not c["model"].startswith(known)]
    log_z = {label(c): c["log_z"]["coverage"] for c in judged}
    shares = {
        f"{label(c)}, p = {s['p']:.2f}": s["coverage"]
        for c in judged
        for s in c["shares"]
        if SHARES[0] <= s["p"] <= SHARES[1]
    }
    squares = {label(c): c["se2_over_variance"] for c in judged}
    losses = np.array([c["loss"] for c in judged])
    rest = [c for c in cells if c not in judged]
    z = [abs(t["z"]) for t in trees]
    found: dict[str, Any] = {
        "cells": len(cells),
        "judged": len(judged),
        "models judged": len({c["model"] for c in judged}),
        "log Z coverage": spread(log_z),
        "share coverage": spread(shares),
        "se^2 over variance": spread(squares),
        "loss": {
            "median": float(np.median(losses)),
            "lowest": float(losses.min()),
            "highest": float(losses.max()),
        },
        "log Z coverage elsewhere": spread({label(c): c["log_z"]["coverage"] for c in rest}),
        "share coverage elsewhere": spread(
            {f"{label(c)}, p = {s['p']:.2f}": s["coverage"] for c in rest for s in c["shares"]}
        ),
        "genealogy": {"cells": len(z), "largest |z|": max(z)},
    }
    both = {**log_z, **shares}
    found["met"] = {
        "coverage of every cell": all(x >= CELL for x in both.values()),
        "coverage of log Z pooled": POOLED[0] <= found["log Z coverage"]["mean"] <= POOLED[1],
        "coverage of shares pooled": POOLED[0] <= found["share coverage"]["mean"] <= POOLED[1],
        "se^2": all(abs(x - 1) <= SQUARES for x in squares.values()),
        "loss": bool(np.median(losses) <= LOSS),
        "genealogy": max(z) <= Z_MAX,
    }
    return found


def label(c: dict[str, Any]) -> str:
    """Return the name of a cell."""
    return f"{c['model']}, {c['scheme']}, {c['islands']} x {c['n_particles'] // c['islands']}"


def spread(values: dict[str, float]) -> dict[str, Any]:
    """Return mean, extremes and the three lowest by name; cells without an interval are counted apart."""
    known = {k: v for k, v in values.items() if v is not None and not np.isnan(v)}
    lowest = dict(sorted(known.items(), key=lambda kv: kv[1])[:3])
    return {
        "mean": float(np.mean(list(known.values()))),
        "lowest": min(known.values()),
        "highest": max(known.values()),
        "lowest cells": lowest,
        "without": len(values) - len(known),
    }


def rounded(x: Any) -> Any:
    """Return JSON values with numbers of four figures; NaN is null."""
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    if isinstance(x, list):
        return [rounded(v) for v in x]
    if isinstance(x, float):
        return None if np.isnan(x) else float(f"{x:.4g}")
    return x


def main() -> int:
    """Measure, print the summary and write the JSON; 1 if a requirement is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--genealogy-runs", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/islands.json"))
    args = parser.parse_args()
    cells = island_cells(args.runs, args.seed)
    trees = genealogy_cells(args.genealogy_runs, args.seed)
    found = summary(cells, trees)
    print(json.dumps(found, indent=1))
    options = f"--runs {args.runs} --genealogy-runs {args.genealogy_runs} --seed {args.seed}"
    report = {"command": f"python benchmarks/islands.py {options}", "summary": found}
    rows = ",\n".join(json.dumps(rounded(row)) for row in cells)
    lines = ",\n".join(json.dumps(rounded(row)) for row in trees)
    text = json.dumps(rounded(report), indent=1).removesuffix("\n}")
    args.out.write_text(
        f'{text},\n"cells": [\n{rows}\n],\n"genealogy": [\n{lines}\n]\n}}\n', encoding="utf-8"
    )
    return 0 if all(found["met"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
