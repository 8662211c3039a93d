"""How often the 95% intervals of an audit hold the truth of the population its prompts are drawn from."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from audit_population import Population, Rollouts, draw_rollouts

from rmtools.stats.bellman_error import bellman_estimator
from rmtools.stats.bootstrap import Interval, cluster_bootstrap
from rmtools.stats.influence import influence_estimator
from rmtools.stats.prefix_errors import prefix_errors
from rmtools.stats.sigma2 import sigma2_estimator

CELL, POOLED = (0.91, 0.985), (0.93, 0.97)
CONTROL_BELOW = 0.85
RESOLVED_AT_LEAST = 0.9
N_RESAMPLES = 1000
# Thousands of clusters, all but normal: fewer resamples tell where the interval ends.
N_RESAMPLES_CONTROL = 200
CONTROLS = {"squared ratio error": "squared ratio error, by prefix", "Z": "Z, by trajectory"}


@dataclass(frozen=True)
class Design:
    """How an audit is drawn: prompts with replacement, n trajectories each, K children, R completions."""

    prompts: int
    n: int
    k: int
    r: int

    def __str__(self) -> str:
        return f"{self.prompts} prompts, n = {self.n}, K = {self.k}, R = {self.r}"


def one_audit(population: Population, design: Design, rng: np.random.Generator) -> dict[str, Any]:
    """Return the intervals of an audit on fresh rollouts, the controls', and whether RMS b was called resolved."""
    drawn = rng.integers(len(population), size=design.prompts)
    rollouts = draw_rollouts(population.roots(drawn), design.n, design.k, design.r, rng)
    return intervals(rollouts, population, rng)


def intervals(rollouts: Rollouts, population: Population, rng: np.random.Generator) -> dict[str, Any]:
    """Return the intervals of the population's value on given rollouts."""
    horizon, (n_groups, n) = population.horizon, rollouts.potential.shape
    log_value, child = rollouts.values(population.joined)
    spread = influence_estimator(rollouts.spreads(log_value)).bootstrap(rng, N_RESAMPLES)
    errors = prefix_errors(log_value[..., :-1].ravel(), child.reshape(n_groups * n * horizon, -1))
    label = np.repeat(np.arange(n_groups), n * horizon)
    # Depths are taken together: nothing is asked of a single one.
    summary = bellman_estimator(errors, label, np.zeros_like(label), horizon).bootstrap(rng, N_RESAMPLES)
    return {
        "squared ratio error": summary.ratio_error.mean_square,
        "Z": mean_interval(rollouts.potential.mean(axis=1), N_RESAMPLES, rng),
        "sigma^2": sigma2_estimator(rollouts.parts(log_value)).bootstrap(rng, N_RESAMPLES).estimate,
        "SD of H": spread.sd,
        "RMS b": summary.corrected.rms,
        CONTROLS["squared ratio error"]: mean_interval(errors.squared_error, N_RESAMPLES_CONTROL, rng),
        CONTROLS["Z"]: mean_interval(rollouts.potential.ravel(), N_RESAMPLES_CONTROL, rng),
        "resolved": {"RMS b": summary.resolved, "SD of H": spread.resolved},
    }


def mean_interval(values: np.ndarray, n_resamples: int, rng: np.random.Generator) -> Interval:
    """Interval of a mean, each value a cluster of its own."""
    return cluster_bootstrap(values[:, None], lambda means: means[:, 0], rng, n_resamples)


def coverage_of(
    name: str,
    population: Population,
    design: Design,
    differs: tuple[str, ...],
    audits: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return how often each interval held the truth, over ``audits`` audits.

    ``differs`` names the figures that differ so much between prompts that their negative control must fail.
    """
    truth = population.truth
    names = [*truth, *CONTROLS.values()]
    target = {**truth, **{CONTROLS[key]: truth[key] for key in CONTROLS}}
    hits, estimates, resolved = {key: np.zeros(audits) for key in names}, {key: [] for key in names}, []
    for i in range(audits):
        found = one_audit(population, design, rng)
        for key in names:
            hits[key][i] = found[key].contains(target[key])
            estimates[key].append(found[key].estimate)
        resolved.append(found["resolved"])
    share = {key: float(np.mean([r[key] for r in resolved])) for key in ("RMS b", "SD of H")}
    cells = {
        key: {
            "truth": target[key],
            "mean_estimate": float(np.mean(estimates[key])),
            "sd_of_estimates": float(np.std(estimates[key], ddof=1)),
            "coverage": float(hits[key].mean()),
            "judged": key not in CONTROLS.values() and share.get(key, 1.0) >= RESOLVED_AT_LEAST,
        }
        for key in names
    }
    print(name, design, {k: round(c["coverage"], 3) for k, c in cells.items()}, share, file=sys.stderr)
    return {
        "population": name,
        "size": len(population),
        "horizon": population.horizon,
        "differs": list(differs),
        "design": str(design),
        "audits": audits,
        "resolved": share,
        "cells": cells,
    }


def verdicts(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each requirement, whether it was met, and by how much not."""
    judged = [(row, key, cell) for row in found for key, cell in row["cells"].items() if cell["judged"]]
    outside = [
        f"{key} on {row['population']}: {cell['coverage']:.3f}"
        for row, key, cell in judged
        if not CELL[0] <= cell["coverage"] <= CELL[1]
    ]
    pooled = float(np.mean([cell["coverage"] for _, _, cell in judged]))
    # Where prompts are alike, trajectories and prefixes are all but independent, and the wrong interval is right.
    controls = [
        f"{CONTROLS[key]} on {row['population']}: {row['cells'][CONTROLS[key]]['coverage']:.3f}"
        for row in found
        for key in row["differs"]
        if row["cells"][CONTROLS[key]]["coverage"] >= CONTROL_BELOW
    ]
    return [
        verdict(f"each of {len(judged)} cells within [{CELL[0]}, {CELL[1]}]", outside),
        verdict(
            f"pooled over cells within [{POOLED[0]}, {POOLED[1]}]: {pooled:.3f}",
            [] if POOLED[0] <= pooled <= POOLED[1] else [f"{pooled:.3f}"],
        ),
        verdict(
            f"negative controls cover less than {CONTROL_BELOW}: trajectories as clusters for Z, prefixes as clusters for the "
            "squared error, each where prompts differ much in it",
            controls,
        ),
    ]


def verdict(requirement: str, exceptions: list[str]) -> dict[str, Any]:
    """Return a requirement with what does not meet it."""
    return {"requirement": requirement, "met": not exceptions, "exceptions": exceptions}


def shown(cell: dict[str, Any]) -> str:
    """Return a cell's text, in brackets where it is not judged."""
    return f"{cell['coverage']:.3f}" if cell["judged"] else f"({cell['coverage']:.3f})"


def table(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of the printed table."""
    names = list(found[0]["cells"])
    heads = ["population", "audit", *names, "called resolved: RMS b, SD of H"]
    rows = [
        [
            f"{row['population']} ({row['size']} prompts, T = {row['horizon']})",
            row["design"],
            *(shown(row["cells"][n]) for n in names),
            ", ".join(f"{share:.2f}" for share in row["resolved"].values()),
        ]
        for row in found
    ]
    return heads, rows
