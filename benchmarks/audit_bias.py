"""Whether the estimators of an audit have the exact value as their mean, and how biased the RMS of log rho is."""

import math
import sys
from typing import Any

import numpy as np
from audit_coverage import N_RESAMPLES, verdict
from audit_population import Population, Rollouts, draw_rollouts

from rmtools.stats.bellman_error import bellman_estimator
from rmtools.stats.prefix_errors import prefix_errors

Z_MAX = 4.5
COUNTS, RMS_COUNTS = (2, 4, 16), (2, 4, 8, 16, 32)
TRAJECTORIES = 6
# The audits whose RMS is averaged: as many prefixes as a quick audit has.
RMS_PROMPTS, RMS_TRAJECTORIES = 96, 4


def z_score(differences: np.ndarray) -> float:
    """Mean over its standard error, of independent values; 0 where all are 0 up to rounding."""
    if np.abs(differences).max() < 1e-12:
        return 0.0
    return float(differences.mean() / (differences.std(ddof=1) / math.sqrt(len(differences))))


def prefix_truth(population: Population, rollouts: Rollouts) -> tuple[np.ndarray, np.ndarray]:
    """Return exact b (G, n, T) and V*^2 (G, n, T + 1) at the prefixes of rollouts of a population of one prompt."""
    exact, path = population.exact[0], rollouts.path
    b = [layer[state] for layer, state in zip(exact.log_bellman_error, path[:-1], strict=True)]
    true = [layer[state] for layer, state in zip(exact.true_log_value, path, strict=True)]
    return np.stack(b, axis=-1), np.exp(2 * np.stack(true, axis=-1))


def bias_of(
    name: str, population: Population, count: int, groups: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the z-score of each estimator at K = R = ``count``, over independent groups of trajectories."""
    roots = population.roots(np.zeros(groups, dtype=np.intp))
    rollouts = draw_rollouts(roots, TRAJECTORIES, count, count, rng)
    log_value, child = rollouts.values(population.joined)
    b, true_square = prefix_truth(population, rollouts)
    errors = prefix_errors(log_value[..., :-1].ravel(), child.reshape(-1, count))
    parts = rollouts.parts(log_value)
    exact, horizon = population.exact[0], population.horizon
    z_square = math.exp(2 * exact.log_z)

    def per_group(difference: np.ndarray) -> np.ndarray:
        return difference.reshape(groups, -1).mean(axis=1)

    squares = rollouts.value_squares()[..., 1:-1] - true_square[..., 1:-1]
    scores = {
        "rho": z_score(per_group(errors.ratio - np.exp(b).ravel())),
        "(rho - 1)^2": z_score(per_group(errors.squared_error - np.expm1(b).ravel() ** 2)),
        "Z^2": z_score(np.array([p.z_square for p in parts]) - z_square),
        "numerator": z_score(np.array([p.numerator for p in parts]) - z_square * (exact.sigma2 + horizon)),
        "plug-in (rho - 1)^2": z_score(per_group((errors.ratio - 1) ** 2 - np.expm1(b).ravel() ** 2)),
    }
    if horizon > 1:
        scores["V*^2"] = z_score(per_group(squares))
    print(name, count, {k: round(s, 2) for k, s in scores.items()}, file=sys.stderr)
    return {"model": name, "count": count, "groups": groups, "z": scores}


def rms_bias(
    name: str, population: Population, count: int, audits: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the mean of the corrected RMS of log rho over audits, the truth, and how often it was 'not resolved'."""
    truth, horizon = population.truth["RMS b"], population.horizon
    found, plug_in, refused, held = [], [], 0, 0
    for _ in range(audits):
        drawn = rng.integers(len(population), size=RMS_PROMPTS)
        rollouts = draw_rollouts(population.roots(drawn), RMS_TRAJECTORIES, count, 2, rng)
        log_value, child = rollouts.values(population.joined)
        errors = prefix_errors(log_value[..., :-1].ravel(), child.reshape(-1, count))
        label = np.repeat(np.arange(RMS_PROMPTS), RMS_TRAJECTORIES * horizon)
        depth = np.zeros(len(label), dtype=np.intp)
        summary = bellman_estimator(errors, label, depth, horizon).bootstrap(rng, N_RESAMPLES)
        found.append(summary.corrected.rms.estimate)
        plug_in.append(summary.plug_in.rms.estimate)
        refused += not summary.resolved
        held += summary.corrected.rms.contains(truth)
    print(name, count, truth, np.mean(found), refused, file=sys.stderr)
    return {
        "model": name,
        "count": count,
        "truth": truth,
        "mean": float(np.mean(found)),
        "bias": float(np.mean(found) - truth),
        "plug_in_bias": float(np.mean(plug_in) - truth),
        "audits": audits,
        "not_resolved": refused,
        "covered": held / audits,
    }


def verdicts(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return whether every estimator is unbiased, and whether the plug-in is seen not to be."""
    unbiased = {
        f"{name} of {row['model']}, K = R = {row['count']}": z
        for row in scores
        for name, z in row["z"].items()
        if not name.startswith("plug-in")
    }
    outside = [f"{label}: z = {z:.2f}" for label, z in unbiased.items() if abs(z) >= Z_MAX]
    control = [
        f"{row['model']}: z = {row['z']['plug-in (rho - 1)^2']:.2f}"
        for row in scores
        if row["count"] == min(COUNTS) and row["z"]["plug-in (rho - 1)^2"] < Z_MAX
    ]
    largest = max(map(abs, unbiased.values()))
    return [
        verdict(f"|z| < {Z_MAX} of {len(unbiased)} means; largest {largest:.2f}", outside),
        verdict("negative control: the plug-in square at K = 2 is far from unbiased", control),
    ]


def score_table(scores: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of the z-scores."""
    names = ("rho", "(rho - 1)^2", "V*^2", "Z^2", "numerator", "plug-in (rho - 1)^2")
    rows = [
        [r["model"], str(r["count"]), *(f"{r['z'][n]:.2f}" if n in r["z"] else "-" for n in names)]
        for r in scores
    ]
    return ["model", "K = R", *names], rows


def rms_table(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of the bias of RMS b."""
    heads = [
        "model",
        "K",
        "true RMS b",
        "mean corrected",
        "bias",
        "bias of plug-in",
        "not resolved",
        "interval held",
    ]
    rows = [
        [
            r["model"],
            str(r["count"]),
            *(f"{r[key]:.3f}" for key in ("truth", "mean", "bias", "plug_in_bias")),
            f"{r['not_resolved']} of {r['audits']}",
            f"{r['covered']:.2f}",
        ]
        for r in found
    ]
    return heads, rows
