r"""Do the audit's estimators keep their promises? Intervals, biases, predictions and ranks on exact models.

    python benchmarks/audit_statistics.py bias --out docs/benchmarks/audit_bias.json
    python benchmarks/audit_statistics.py coverage --work runs/losses --out docs/benchmarks/audit_coverage.json
    python benchmarks/audit_statistics.py prediction --work runs/losses --out docs/benchmarks/audit_prediction.json
    python benchmarks/audit_statistics.py ranking --work runs/losses --out docs/benchmarks/audit_ranking.json

Truth is by dynamic programming: on random trees, and on the task crossing written out as tables (its policies lie in the
work folder, or are trained there). Beside the JSON a Markdown table of the same name. Requirements that are not met are
listed with their figures; the exit status does not depend on them.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import audit_bias as bias
import audit_coverage as coverage
import audit_prediction as prediction
import numpy as np
from audit_coverage import Design
from audit_crossing import FLOOR, base_rate, tabulated, trained
from audit_population import (
    Population,
    ValueKind,
    constant,
    flattened,
    noisy,
    perfect,
    perturbed,
    random_trees,
    rare_children,
    uneven,
)
from audit_prediction import Effort

from rmtools.codec import to_json
from rmtools.files import write_json, write_text

TREES, TABLES = 200, 100
EASE, ERROR = "Z", "squared ratio error"
Case = tuple[str, Population, Design, tuple[str, ...]]
Table = tuple[list[str], list[list[str]]]


def tree_populations(rng: np.random.Generator) -> Iterator[Case]:
    """Yield populations of trees, an audit's design, and in what the prompts differ much."""
    trees = random_trees(TREES, 4, 3, 0.1, rng).valued(perturbed(0.3, "random_signs"), rng)
    yield "trees, random signs .3", trees, Design(60, 8, 16, 4), (EASE,)
    trees = random_trees(TREES, 5, 2, 0.1, rng).valued(uneven(0.3), rng)
    yield "trees, uneven noise .3", trees, Design(96, 4, 16, 3), (EASE, ERROR)
    trees = random_trees(TREES, 6, 2, 0.05, rng).valued(perturbed(0.2, "persistent"), rng)
    yield "trees, persistent .2", trees, Design(40, 16, 8, 3), (EASE,)
    trees = random_trees(TREES, 3, 4, 0.1, rng)
    trees = trees.valued(constant(base_rate(trees)), rng)
    yield "trees, constant", trees, Design(60, 24, 32, 8), (EASE, ERROR)


def crossing_populations(work: Path, rng: np.random.Generator) -> Iterator[Case]:
    """Yield the same for tabulated prompts of crossing."""
    tables = tabulated(work, 8, TABLES, 0)
    yield "crossing, noise .3", tables.valued(noisy(0.3), rng), Design(60, 16, 16, 4), (ERROR,)
    yield "crossing, uneven noise .3", tables.valued(uneven(0.3), rng), Design(96, 24, 16, 4), (ERROR,)
    yield "crossing, flattened .5", tables.valued(flattened(0.5), rng), Design(60, 64, 8, 4), ()
    yield (
        "crossing, constant",
        tables.valued(constant(base_rate(tables)), rng),
        Design(96, 24, 16, 4),
        (),
    )


def run_coverage(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]], list[Table]]:
    rng = np.random.default_rng([args.seed, 1])
    populations = tree_populations(rng)
    found = [coverage.coverage_of(*case, args.audits, rng) for case in populations]
    if not args.trees_only:
        found += [
            coverage.coverage_of(*case, args.audits, rng) for case in crossing_populations(args.work, rng)
        ]
    return {"cells": found}, coverage.verdicts(found), [coverage.table(found)]


def single_models(args: argparse.Namespace, rng: np.random.Generator) -> Iterator[tuple[str, Population]]:
    """Yield single prompts: a tree with errors of several kinds, rare good children, a table of crossing."""
    tree = random_trees(1, 4, 3, 0.05, rng)
    yield "tree, random signs .3", tree.valued(perturbed(0.3, "random_signs"), rng)
    yield "tree, noise .5", tree.valued(noisy(0.5), rng)
    yield "tree, constant", tree.valued(constant(base_rate(tree)), rng)
    for floor, q in ((0.05, 0.1), (0.05, 0.05), (0.01, 0.1)):
        yield f"perfect, f = {floor}, q = {q}", rare_children(floor, q)
    if not args.trees_only:
        one = Population(tabulated(args.work, 8, TABLES, 0).models[:1])
        yield "crossing prompt, noise .3", one.valued(noisy(0.3), rng)
        yield "crossing prompt, perfect", one


def run_bias(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]], list[Table]]:
    rng = np.random.default_rng([args.seed, 2])
    scores, rms = [], []
    for name, population in single_models(args, rng):
        scores += [bias.bias_of(name, population, k, args.groups, rng) for k in bias.COUNTS]
        rms += [bias.rms_bias(name, population, k, args.audits, rng) for k in bias.RMS_COUNTS]
    tables = [bias.score_table(scores), bias.rms_table(rms)]
    return {"scores": scores, "rms": rms}, bias.verdicts(scores), tables


def qualities(population: Population) -> dict[str, ValueKind]:
    """Return value models from perfect to useless."""
    return {
        "perfect": perfect,
        "noise .2": noisy(0.2),
        "noise .6": noisy(0.6),
        "random signs .3": perturbed(0.3, "random_signs"),
        "persistent .2": perturbed(0.2, "persistent"),
        "flattened .5": flattened(0.5),
        "constant": constant(base_rate(population)),
    }


def run_prediction(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]], list[Table]]:
    rng = np.random.default_rng([args.seed, 3])
    # Runs of each prompt: some 10,000 in all, so that a needed N is known to about 2%.
    work: list[tuple[str, Callable[[], Population], Effort]] = [
        (
            "trees",
            lambda: random_trees(24, 6, 2, 0.02, rng),
            Effort(0.1, 0.01, (1536, 12288), 400, args.seed),
        ),
    ]
    if not args.trees_only:
        for horizon, prompts, runs in ((8, 24, 300), (16, 6, 500)):
            make = lambda horizon=horizon, prompts=prompts: tabulated(args.work, horizon, prompts, 1)  # noqa: E731
            work.append((f"crossing-{horizon}", make, Effort(0.2, 0.02, (1536, 12288), runs, args.seed)))
    rows = []
    for kind, make, effort in work:
        population = make()
        for name, value in qualities(population).items():
            valued = population.valued(value, rng)
            rows.append(prediction.compare(kind, name, valued, effort, rng))
    return {"models": rows}, prediction.prediction_verdicts(rows), [prediction.prediction_table(rows)]


def run_ranking(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]], list[Table]]:
    rng = np.random.default_rng([args.seed, 4])
    effort = Effort(0.2, 0.02, (1536, 12288), 1000, args.seed)
    models = list(trained(args.work, 8))
    rows = prediction.rank(models, effort, rng)
    repeats = prediction.repeated_ranks(models, rows, effort, rng)
    tables = [prediction.ranking_table(rows), prediction.repeats_table(repeats)]
    return {"models": rows, "repeats": repeats}, prediction.ranking_verdicts(rows), tables


COMMANDS = {"coverage": run_coverage, "bias": run_bias, "prediction": run_prediction, "ranking": run_ranking}
TEXT = {
    "coverage": "Share of audits on fresh rollouts whose nominal 95% interval held the truth of the population its prompts were "
    "drawn from, with replacement. SD of H is what n_for_tv is made of. In brackets what is not judged: RMS b "
    "and SD of H where the audit itself calls them not resolved in more than a tenth of the cases, and the negative controls.",
    "bias": "z-scores of the mean over independent groups of 6 trajectories against the exact value; then the corrected RMS of "
    "log ρ, averaged over audits of 96 × 4 trajectories, and how many of the audits called it not resolved.",
    "prediction": "The smallest N that reaches the accuracy, by bisection on what runs of the sampler show (multinomial "
    "resampling at every step), beside the prediction, from two audits: 1,536 and 12,288 trajectories in all. "
    "Accuracies: CV .1 and TV .01 on trees, .2 and .02 on crossing. "
    "All are pooled over prompts with weights Z². SD(H) from rollouts is an upper bound "
    "of MAD(H). The default setting is systematic resampling when ESS < N/2.",
    "ranking": "Value models of one policy, different losses and numbers of optimiser steps, all audited on the same rollouts "
    "(1,536 and 12,288 trajectories); "
    f"N needed for a coefficient of variation of .2, by bisection. T = 8, floor {FLOOR}.",
}


def markdown(command: str, values: dict[str, Any], tables: list[Table]) -> str:
    """Return the page: what it is, what was required, the tables."""
    lines = [f"# Statistics of the audit: {command}", "", f"`{values['command']}`. {TEXT[command]}", ""]
    for v in values["requirements"]:
        lines.append(f"- {'met' if v['met'] else '**not met**'}: {v['requirement']}")
        lines += [f"  - {exception}" for exception in v["exceptions"]]
    for heads, rows in tables:
        lines += ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(COMMANDS))
    parser.add_argument(
        "--out", type=Path, required=True, help="the JSON file; a .md of the same name beside it"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/losses"), help="policies and tables are kept here"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--audits", type=int, default=0, help="audits a configuration; 300 (coverage), 100 (bias)"
    )
    parser.add_argument("--groups", type=int, default=4000, help="independent groups of trajectories (bias)")
    parser.add_argument("--trees-only", action="store_true", help="leave crossing out (not for ranking)")
    args = parser.parse_args()
    args.audits = args.audits or {"coverage": 300}.get(args.what, 100)
    found, verdicts, tables = COMMANDS[args.what](args)
    command = f"python benchmarks/audit_statistics.py {args.what} --seed {args.seed}"
    values = to_json({"command": command, "requirements": verdicts, **found})
    write_json(args.out, values)
    text = markdown(args.what, values, tables)
    write_text(args.out.with_suffix(".md"), text)
    print(text)
    print(f"written: {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
