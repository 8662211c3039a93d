"""Particles predicted by the limiting schedule against particles needed: multinomial resampling when ESS < N/2.

    python benchmarks/schedule_prediction.py --work runs/losses --out docs/benchmarks/schedule_prediction.json

Predicted from exact tables and from 12,288 trajectories in all; needed is the smallest N such that it and every larger N tried
reach the coefficient of variation, searched down from 4 times the prediction. Models: random trees, and the task crossing
written out as tables at T = 8 and 16 (kept in the work folder; a policy that is not there is trained), with values from
perfect to constant. Single prompts at which every step is decided at the predicted N are judged, with needs of 64 or more;
all prompts of a kind pooled, each with a schedule of its own, and prompts that are not decided are printed beside them.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from audit_coverage import verdict
from audit_crossing import tabulated
from audit_population import Population, draw_rollouts, random_trees
from audit_statistics import qualities

from rmtools.codec import to_json
from rmtools.exact.schedule import LimitingSchedule
from rmtools.files import write_json, write_text
from rmtools.particles.smc import smc
from rmtools.stats.schedule import ScheduleCost, schedule_estimator, schedule_parts
from rmtools.verify.theorems.simulation import PARTICLES_AT_ONCE

THRESHOLD, TRAJECTORIES, COMPLETIONS = 0.5, 12_288, 4
CLOSE, LEAST_NEED = (0.8, 1.25), 64
# Runs of the sampler at an N: few where the CV is clearly reached or missed, up to the last where it is near the goal.
RUNS, CLEAR = (250, 500, 1_000, 2_000, 4_000), 4.0
# Steps between the N that are tried: wide far above the prediction, narrow near it.
WIDE, NARROW, NEAR = 1.25, 1.04, 1.35
MOST = 4.0


@dataclass(frozen=True)
class Kind:
    """Prompts of one kind, the coefficient of variation asked for, and how many single prompts of each value are taken."""

    name: str
    population: Population
    delta: float
    decided: int
    undecided: int


def kinds(work: Path, seed: int) -> Iterator[Kind]:
    """Yield the three kinds of models."""
    yield Kind("trees", random_trees(24, 8, 2, 0.02, np.random.default_rng([seed, 5])), 0.05, 2, 1)
    yield Kind("crossing-8", tabulated(work, 8, 24, 1), 0.1, 2, 0)
    yield Kind("crossing-16", tabulated(work, 16, 6, 1), 0.1, 4, 0)


def limits(population: Population) -> list[LimitingSchedule]:
    """Return the limiting schedule of every prompt."""
    return [exact.limiting_schedule(THRESHOLD) for exact in population.exact]


def chosen(kind: Kind, population: Population) -> Iterator[tuple[str, Population]]:
    """Yield all prompts together, then the first single ones with every step decided at the predicted N, then others.

    Prompts that are resampled come first, the others are importance sampling.
    """
    yield "all prompts", population
    found = limits(population)
    for wanted, count in ((True, kind.decided), (False, kind.undecided)):
        fit = [
            i
            for i, its in enumerate(found)
            if its.decided(its.sigma2 / kind.delta**2) == wanted and its.sigma2 / kind.delta**2 >= LEAST_NEED
        ]
        fit.sort(key=lambda i: not found[i].times)
        for i in fit[:count]:
            yield f"prompt {i}", Population(population.models[i : i + 1])


def cv_square(population: Population, n: int, goal: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return the pooled CV^2 of Zhat with N = n over ``goal``, and its standard error; more runs where it is near 1."""
    weight = population.z**2 / np.sum(population.z**2)
    squares = np.zeros((0, len(population)))
    for total in RUNS:
        runs = max(-(-total // len(population)), 20)
        squares = np.concatenate([squares, _squares(population, n, runs - len(squares), rng)])
        mean = float(weight @ squares.mean(axis=0)) / goal
        error = float(np.sqrt(weight**2 @ squares.var(axis=0, ddof=1) / len(squares))) / goal
        if abs(mean - 1) > CLEAR * error:
            break
    return mean, error


def _squares(population: Population, n: int, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Return (Zhat / Z - 1)^2 of independent runs, (runs, P)."""
    prompt = np.tile(np.arange(len(population)), runs)
    size, found = max(1, PARTICLES_AT_ONCE // n), []
    for start in range(0, len(prompt), size):
        batch = prompt[start : start + size]
        result = smc(population.roots(batch), n, 1, "multinomial", THRESHOLD, rng, history=False, islands=1)
        assert result.log_z is not None
        found.append((np.exp(result.log_z) / population.z[batch] - 1) ** 2)
    return np.concatenate(found).reshape(runs, len(population)) if found else np.zeros((0, len(population)))


def needed(population: Population, predicted: float, delta: float, seed: int) -> tuple[int, list[Any]]:
    """Return the smallest N such that it and every larger N tried reach ``delta``, and what was tried: (N, CV^2 / delta^2).

    Above 4 times the prediction nothing is tried unless that fails: then N is doubled first.
    """
    tried: list[Any] = []

    def reaches(n: int) -> bool:
        mean, error = cv_square(population, n, delta**2, np.random.default_rng([seed, n]))
        tried.append([n, mean, error])
        return mean <= 1

    n = max(1, round(MOST * predicted))
    while not reaches(n):
        n *= 2
    while n > 1:
        lower = min(n - 1, round(n / (WIDE if n > NEAR * predicted else NARROW)))
        if not reaches(lower):
            break
        n = lower
    return n, tried


def from_rollouts(population: Population, rng: np.random.Generator) -> ScheduleCost:
    """Return the cost estimated from fresh rollouts, as many of each prompt."""
    n = TRAJECTORIES // len(population)
    rollouts = draw_rollouts(population.roots(np.arange(len(population))), n, 2, COMPLETIONS, rng)
    rows = zip(
        rollouts.values(population.joined)[0], rollouts.value_squares(), rollouts.potential, strict=True
    )
    parts = [schedule_parts(*row, THRESHOLD) for row in rows]
    return schedule_estimator(parts, THRESHOLD).bootstrap(rng, 1000)


def compare(kind: Kind, value: str, which: str, population: Population, seed: int) -> dict[str, Any]:
    """Return predicted and needed particles of one model."""
    found = limits(population)
    sigma2 = population.pooled([its.sigma2 for its in found])
    predicted = sigma2 / kind.delta**2
    need, tried = needed(population, predicted, kind.delta, seed)
    audit = from_rollouts(population, np.random.default_rng([seed, 7]))
    audited = audit.n_for_cv(kind.delta)
    weight = population.z**2 / np.sum(population.z**2)
    least = [max(its.decided_from) for its in found]
    row = {
        "kind": kind.name,
        "value": value,
        "prompts": len(population),
        "which": which,
        "delta_cv": kind.delta,
        "sigma2": sigma2,
        "sigma2_every_step": population.truth["sigma^2"],
        "sigma2_never": population.pooled([e.sigma2_schedule(()) for e in population.exact]),
        "times": [list(its.times) for its in found] if len(found) == 1 else None,
        "predicted": predicted,
        "predicted_rollouts": audited.estimate,
        "predicted_rollouts_interval": [audited.low, audited.high],
        "needed": need,
        "exact": predicted / need,
        "rollouts": audited.estimate / need,
        "decided": all(need > x for x in least),
        "decided_share": float(weight[need > np.array(least)].sum()),
        "decided_rollouts": audit.decided(need),
        "decided_share_rollouts": audit.decided_share(need),
        "counted": need >= LEAST_NEED,
        "tried": tried,
    }
    shown = ("kind", "value", "which", "predicted", "needed", "exact", "rollouts", "decided", "decided_share")
    print({key: row[key] for key in shown}, file=sys.stderr, flush=True)
    return row


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the requirement by kind and by where the prediction is from, and how it does where it is not promised."""
    out = []
    for kind in dict.fromkeys(r["kind"] for r in rows):
        judged = distinct([r for r in rows if r["kind"] == kind and r["decided"] and r["counted"]])
        resampled = sum(abs(r["sigma2"] - r["sigma2_never"]) > 1e-9 for r in judged)
        for key, label in (("exact", "exact tables"), ("rollouts", f"{TRAJECTORIES:,} trajectories")):
            outside = [f"{r['value']}, {r['which']}: {r[key]:.2f}" for r in judged if not near(r[key])]
            text = (
                f"{kind}, {label}: predicted / needed within [{CLOSE[0]}, {CLOSE[1]}] where every step is decided at the need, "
                f"{len(judged)} models, {resampled} of them resampled: {spread(judged, key)}"
            )
            out.append(verdict(text, outside))
    return out


def distinct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row of those that are one model: without resampling a prompt's cost does not depend on its values."""
    return list({(r["which"], round(r["sigma2"], 9)): r for r in reversed(rows)}.values())[::-1]


def near(ratio: float) -> bool:
    """Return whether a ratio is close to one."""
    return CLOSE[0] <= ratio <= CLOSE[1]


def spread(rows: list[dict[str, Any]], key: str) -> str:
    """Return the range of a ratio."""
    values = [r[key] for r in rows]
    return f"{min(values):.2f} to {max(values):.2f}" if values else "none"


def markdown(values: dict[str, Any]) -> str:
    """Return the page."""
    rows = values["models"]
    lines = [
        "# Particles by the limiting schedule",
        "",
        f"`{values['command']}`. Multinomial resampling when ESS < N/2 (docs/equations.md section 10). Needed: the smallest "
        "N such that it and every larger N tried reach the coefficient of variation, searched down from 4 times the "
        f"prediction; under {LEAST_NEED} not counted. Rollouts: {TRAJECTORIES:,} trajectories in all, R = {COMPLETIONS}. "
        "*decided*: every step of every prompt is decided at the need by the exact tables (in brackets: the share of the "
        "weight Z² that such prompts have); there the prediction is judged. Elsewhere a pilot run is the prediction.",
        "",
    ]
    for v in values["requirements"]:
        lines.append(f"- {'met' if v['met'] else '**not met**'}: {v['requirement']}")
        lines += [f"  - {exception}" for exception in v["exceptions"]]
    others = [r for r in rows if not r["decided"] and r["counted"]]
    lines.append(
        f"- not judged, {len(others)} models with an undecided step: {spread(others, 'exact')} from tables, "
        f"{spread(others, 'rollouts')} from rollouts; {sum(near(r['exact']) for r in others)} and "
        f"{sum(near(r['rollouts']) for r in others)} within [{CLOSE[0]}, {CLOSE[1]}]"
    )
    heads = ["kind", "value", "which", "CV", "σ² limiting", "every step", "never", "needed", "exact / needed"]
    heads += ["rollouts / needed", "decided", "by rollouts"]
    lines += ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for r in rows:
        sigma2 = (f"{r[key]:.3g}" for key in ("sigma2", "sigma2_every_step", "sigma2_never"))
        need = f"{r['needed']}" if r["counted"] else f"({r['needed']})"
        flags = [
            f"{'yes' if r[f'decided{end}'] else 'no'} ({r[f'decided_share{end}']:.2f})"
            for end in ("", "_rollouts")
        ]
        cells = [r["kind"], r["value"], r["which"], f"{r['delta_cv']:g}", *sigma2, need]
        cells += [f"{r['exact']:.2f}", f"{r['rollouts']:.2f}", *flags]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; a .md beside it")
    parser.add_argument("--work", type=Path, default=Path("runs/losses"), help="policies and tables")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = []
    for kind in kinds(args.work, args.seed):
        for k, (value, make) in enumerate(qualities(kind.population).items()):
            valued = kind.population.valued(make, np.random.default_rng([args.seed, 6, k]))
            for which, population in chosen(kind, valued):
                rows.append(compare(kind, value, which, population, args.seed))
    command = f"python benchmarks/schedule_prediction.py --seed {args.seed}"
    values = to_json({"command": command, "requirements": verdicts(rows), "models": rows})
    write_json(args.out, values)
    write_text(args.out.with_suffix(".md"), markdown(values))
    print(markdown(values))


if __name__ == "__main__":
    main()
