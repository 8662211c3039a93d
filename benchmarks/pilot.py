"""Particles predicted by a pilot against particles needed: the default sampler, in islands of the same n.

    python benchmarks/pilot.py --work runs/losses --out docs/benchmarks/pilot.json

A pilot runs islands of n particles (systematic resampling when ESS < N/2) on every prompt and predicts K islands for a
coefficient of variation. K independent islands have a relative variance of V(n) / K exactly, for every K: the smallest N that,
with every larger one, reaches the accuracy is n V(n) / delta^2 in whole islands, with V(n) from many more islands and the exact
Z. That this is so is measured: the CV^2 of K pooled islands at the need.

Models: finite models of a single prompt, random trees, and the task crossing written out as tables at T = 8 and 16 (kept in the
work folder), with values from perfect to constant. Needs under 64 particles, and under the 4 islands that a pilot never goes
below, are printed, not judged. Coverage: intervals of pilots on prompts drawn from 200 trees.
"""

import argparse
import os
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from audit_coverage import verdict
from audit_population import Population, constant, noisy, perturbed, random_trees
from audit_statistics import qualities
from schedule_prediction import Kind, kinds, near

from rmtools.codec import to_json
from rmtools.exact import families
from rmtools.files import write_json, write_text
from rmtools.particles.smc import smc
from rmtools.stats.pilot import FEWEST_ISLANDS, Pilot, PilotSampler, pilot

LEAST_NEED, SHARE = 64, 0.9
DELTAS = {"single prompt": 0.05, "trees": 0.02, "crossing-8": 0.05, "crossing-16": 0.05}
# Islands behind the V(n) that is needed, in all, by n; pilots of a model besides the judged one.
BANK, REPEATS = {16: 100_000, 64: 30_000}, {16: 40, 64: 10}
AT_ONCE = 1 << 18
COVERED, INTERVALS, POPULATION = (0.9, 0.98), 200, 60


def models(work: Path, seed: int) -> Iterator[tuple[Kind, str, Population]]:
    """Yield finite models of a single prompt each, then trees and tables with every value, all prompts pooled."""
    rng = np.random.default_rng([seed, 10])
    single = {
        "product(16, 3)": families.product(16, 3.0),
        "product(32, 2)": families.product(32, 2.0),
        "persistent(32, .1)": families.persistent(32, 0.1),
        "random_tree(6, 3, .3)": families.random_tree(6, 3, 0.3, 0.05, rng),
        "random_tree(8, 2, .6)": families.random_tree(8, 2, 0.6, 0.01, rng),
        "implicit(4, 3)": families.implicit(4, 3, rng),
        "needle(4, 3)": families.needle(4, 3),
    }
    for name, model in single.items():
        population = Population((model,))
        yield Kind("single prompt", population, DELTAS["single prompt"], 0, 0), name, population
    for kind in kinds(work, seed):
        for k, (value, make) in enumerate(qualities(kind.population).items()):
            valued = kind.population.valued(make, np.random.default_rng([seed, 6, k]))
            yield replace(kind, delta=DELTAS[kind.name]), value, valued


def log_z(population: Population, sampler: PilotSampler, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Return Zhat / Z of independent islands, (P, runs)."""
    prompt, found = np.repeat(np.arange(len(population)), runs), []
    size = max(1, AT_ONCE // sampler.n_particles)
    for start in range(0, len(prompt), size):
        own = prompt[start : start + size]
        result = smc(population.roots(own), sampler.n_particles, rng=rng, history=False, islands=1)
        assert result.log_z is not None
        found.append(np.exp(result.log_z) / population.z[own])
    return np.concatenate(found).reshape(len(population), runs)


def pooled_square(population: Population, ratio: np.ndarray) -> tuple[float, float]:
    """Return the pooled mean of (Zhat / Z - 1)^2, (P, runs), and its standard error."""
    weight = population.z**2 / np.sum(population.z**2)
    squares = (ratio - 1) ** 2
    error = np.sqrt(weight**2 @ squares.var(axis=1, ddof=1) / squares.shape[1])
    return float(weight @ squares.mean(axis=1)), float(error)


def run(population: Population, sampler: PilotSampler, delta: float, rng: np.random.Generator) -> Pilot:
    """Return a pilot on every prompt."""
    return pilot(population.roots, len(population), sampler, delta, rng)


def compare(kind: Kind, value: str, population: Population, n: int, seed: int) -> dict[str, Any]:
    """Return predicted and needed particles of one model."""
    sampler, rng = PilotSampler(n), np.random.default_rng([seed, 11, n, zlib.crc32(value.encode())])
    judged = run(
        population, sampler, kind.delta, np.random.default_rng([seed, 12, n, zlib.crc32(value.encode())])
    )
    bank = log_z(population, sampler, BANK[n] // len(population), rng)
    variance, error = pooled_square(population, bank)
    islands = max(1, int(np.ceil(variance / kind.delta**2)))
    groups = bank.shape[1] // islands
    pooled = bank[:, : groups * islands].reshape(len(bank), groups, islands).mean(axis=2)
    at_need = pooled_square(population, pooled) if groups > 1 else (np.nan, np.nan)
    again = [run(population, sampler, kind.delta, rng) for _ in range(REPEATS[n])]
    estimates = np.array([p.uncut.estimate for p in again])
    row = {
        "kind": kind.name,
        "value": value,
        "prompts": len(population),
        "n": n,
        "delta_cv": kind.delta,
        "relative_variance": variance,
        "relative_variance_error": error,
        "needed": n * islands,
        "cv2_at_need": [x / kind.delta**2 for x in at_need],
        "pilot_runs": judged.runs,
        "pilot_relative_error": judged.relative_error,
        "pilot_reached": judged.reached,
        "carrying": judged.carrying,
        "pilot": judged.n_for_cv,
        "islands_for_cv": judged.islands_for_cv,
        "predicted": None if judged.islands_for_cv is None else n * judged.islands_for_cv,
        "ratio": None if judged.islands_for_cv is None else judged.islands_for_cv / islands,
        "repeats_mean": float(estimates.mean() / variance),
        "repeats_error": float(estimates.std(ddof=1) / np.sqrt(len(estimates)) / variance),
        "repeats_sd": float(estimates.std(ddof=1) / variance),
        "repeats_near": float(np.mean([near(x) for x in estimates / variance])),
        "counted": n * islands >= LEAST_NEED and islands >= FEWEST_ISLANDS,
    }
    shown = (
        "kind",
        "value",
        "n",
        "relative_variance",
        "needed",
        "ratio",
        "repeats_sd",
        "repeats_near",
        "pilot_runs",
    )
    print({key: row[key] for key in shown}, file=sys.stderr, flush=True)
    return row


def coverage(seed: int) -> list[dict[str, Any]]:
    """Return how often the interval of a pilot on prompts of a large population contains the population's V(n)."""
    rng = np.random.default_rng([seed, 13])
    trees, found = random_trees(200, 6, 2, 0.05, rng), []
    for name, kind in (
        ("noise .6", noisy(0.6)),
        ("random signs .3", perturbed(0.3, "random_signs")),
        ("constant", constant(0.4)),
    ):
        population, sampler = trees.valued(kind, rng), PilotSampler()
        truth, _ = pooled_square(population, log_z(population, sampler, 1000, rng))
        hits = []
        for _ in range(INTERVALS):
            chosen = rng.integers(len(population), size=POPULATION)
            made = pilot(lambda i, p=population, c=chosen: p.roots(c[i]), POPULATION, sampler, 0.1, rng)
            hits.append(made.uncut.contains(truth))
        found.append({"value": name, "relative_variance": truth, "coverage": float(np.mean(hits))})
        print(found[-1], file=sys.stderr, flush=True)
    return found


def verdicts(rows: list[dict[str, Any]], covered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each requirement, whether it was met, and the models outside."""
    out = []
    groups = {
        "finite": ("single prompt", "trees"),
        "crossing-8": ("crossing-8",),
        "crossing-16": ("crossing-16",),
    }
    for kind, parts in groups.items():
        judged = [r for r in rows if r["kind"] in parts and r["counted"]]
        good = [r for r in judged if r["ratio"] is not None and near(r["ratio"])]
        outside = [f"{r['value']}, n = {r['n']}: {r['ratio'] or np.nan:.2f}" for r in judged if r not in good]
        text = f"{kind}: pilot over need within [0.8, 1.25] for 9 of 10 models: {len(good)} of {len(judged)}"
        found = verdict(text, outside)
        out.append({**found, "met": len(judged) >= 6 and len(good) >= SHARE * len(judged)})
    pooled = float(np.mean([c["coverage"] for c in covered]))
    text = (
        f"intervals over prompts cover V(n) in [{COVERED[0]}, {COVERED[1]}] of pilots, pooled: {pooled:.3f}"
    )
    return [*out, {"requirement": text, "met": COVERED[0] <= pooled <= COVERED[1], "exceptions": []}]


def markdown(values: dict[str, Any]) -> str:
    """Return the page."""
    lines = [
        "# Particles by a pilot",
        "",
        f"`{values['command']}`, {values['seconds']:.0f} s. The default sampler in islands of n particles; needed: n V(n)/delta² "
        "in whole islands, V(n) from many islands and the exact Z; *CV² at the need*: that of so many pooled islands over "
        "delta², measured. *mean*, *SD* and *near*: of further pilots' V(n) over the true one, and how many of them are within "
        f"[0.8, 1.25]. Needs under {LEAST_NEED} or {FEWEST_ISLANDS} islands in brackets, not judged.",
        "",
    ]
    for v in values["requirements"]:
        lines.append(f"- {'met' if v['met'] else '**not met**'}: {v['requirement']}")
        lines += [f"  - {exception}" for exception in v["exceptions"]]
    heads = [
        "kind",
        "value",
        "n",
        "CV",
        "V(n)",
        "needed",
        "CV² at the need",
        "pilot",
        "pilot / needed",
        "islands a prompt",
    ]
    heads += ["prompts carrying it", "mean", "SD", "near"]
    lines += ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for r in values["models"]:
        at, error = r["cv2_at_need"]
        cells = [r["kind"], r["value"], str(r["n"]), f"{r['delta_cv']:g}", f"{r['relative_variance']:.3g}"]
        cells += [f"{r['needed']}" if r["counted"] else f"({r['needed']})", f"{at:.2f} ± {error:.2f}"]
        cells += [
            f"{r['predicted']}",
            f"{r['ratio'] or np.nan:.2f}",
            str(r["pilot_runs"]),
            f"{r['carrying']:.1f}",
        ]
        cells += [
            f"{r['repeats_mean']:.2f} ± {r['repeats_error']:.2f}",
            f"{r['repeats_sd']:.2f}",
            f"{r['repeats_near']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| intervals of 60 prompts | V(16) | coverage |", "| --- | --- | --- |"]
    lines += [
        f"| {c['value']} | {c['relative_variance']:.3g} | {c['coverage']:.3f} |" for c in values["coverage"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; a .md beside it")
    parser.add_argument("--work", type=Path, default=Path("runs/losses"), help="policies and tables")
    parser.add_argument("--n", type=int, nargs="+", default=list(BANK), choices=list(BANK))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began, rows = time.process_time(), []
    for kind, value, population in models(args.work, args.seed):
        rows += [compare(kind, value, population, n, args.seed) for n in args.n]
    covered = coverage(args.seed)
    values = to_json(
        {
            "command": f"python benchmarks/pilot.py --seed {args.seed}",
            "seconds": time.process_time() - began,
            "requirements": verdicts(rows, covered),
            "models": rows,
            "coverage": covered,
        }
    )
    write_json(args.out, values)
    write_text(args.out.with_suffix(".md"), markdown(values))
    print(markdown(values))


if __name__ == "__main__":
    main()
