r"""Does the sampler over a language model draw from the target? Its output against enumeration, by real decoding.

    python benchmarks/lm_law.py --work runs/law --out docs/benchmarks/lm_law.json
    python benchmarks/lm_law.py --only gibbs --work runs/law --out docs/benchmarks/lm_law.json

Task crossing, T = 6, a policy and a value model made by the recipes (kept in the work folder). A prompt's live prefixes are
written out as a table, so that its target, Z, sigma^2 and MAD(H) are exact; every solution outside the table is one
cell more. What is sampled is the language model itself, tokens and caches and all; only the part named so runs on tables.
``--only`` measures the named parts again and keeps what the file has of the others. Beside the JSON a Markdown page and an SVG.
"""

import argparse
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lm_law_parts as parts
import numpy as np
from audit_coverage import verdict
from crossing_models import models
from lm_law_parts import Row
from lm_output import Z_MAX, Subject, on_language_model, on_table

from rmtools.codec import to_json
from rmtools.core import solve
from rmtools.files import read_json, write_json, write_text
from rmtools.plots.accuracy import sampler_law

HORIZON, RAREST = 6, 1e-4
# Cool enough that what the table leaves out is some thousandths of the mass.
TEMPERATURE = 0.75
Part = Callable[[Subject, int, np.random.Generator], Iterator[Row]]
# Part -> what measures it, runs or chains, whether on tables.
PARTS: dict[str, tuple[Part, int, bool]] = {
    "pools": (parts.pools, 6000, False),
    "metropolis": (parts.metropolis_chains, 20_000, False),
    "gibbs": (parts.gibbs, 8000, False),
    "gibbs-tables": (parts.gibbs, 20_000, True),
    "default": (parts.default_setting, 8000, False),
    "default-tables": (parts.default_setting, 40_000, True),
}


def subjects(work: Path, n_prompts: int, seed: int) -> Iterator[tuple[Row, Subject, Subject]]:
    """Yield what is told of each prompt, the language model there, and its table."""
    from rmtools.lm.enumerate import tabulate
    from rmtools.lm.policy import Policy

    found = models(work, HORIZON)
    policy = Policy(found.policy.model, found.policy.steps, TEMPERATURE, found.policy.name)
    for prompt in found.held_out(n_prompts, seed):
        choices = found.task.step_choices(prompt, [])
        table = tabulate(policy, found.value, prompt, choices, found.task.reward, RAREST)
        subject = on_language_model(policy, found.value, table, found.task.reward)
        exact = solve(table.model)
        told = {
            "prompt": prompt,
            "paths": len(table.paths),
            "uncovered": table.uncovered,
            "z": float(np.exp(subject.log_z)),
            "sigma2": exact.sigma2,
            "mad": [exact.influence_mad(m).value for m in parts.POOLS],
        }
        yield told, subject, on_table(table)


def measure(part: str, on: Sequence[tuple[Subject, Subject]], seed: int) -> list[Row]:
    """Return the rows of a part, prompt by prompt."""
    function, count, tabled = PARTS[part]
    rows = []
    for k, pair in enumerate(on, 1):
        rng = np.random.default_rng([seed, k, zlib.crc32(part.encode())])
        start = time.monotonic()
        for row in function(pair[tabled], count, rng):
            rows.append({"prompt": k, **row})
            print(part, {key: short(x) for key, x in rows[-1].items()}, file=sys.stderr, flush=True)
        print(f"{part}, prompt {k}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return rows


def short(x: Any) -> Any:
    return float(f"{x:.4g}") if isinstance(x, float) else x


def of_prompt(rows: Sequence[Row], k: int) -> list[Row]:
    return [r for r in rows if r["prompt"] == k]


def verdicts(found: dict[str, list[Row]]) -> list[Row]:
    """Return each requirement of the parts that were measured."""
    out = []
    if "pools" in found:
        text = f"multinomial, pools {parts.POOLS}: within {parts.WITHIN} of MAD(H)/2N where N >= {parts.FIRST_ORDER} sigma^2; "
        text += "frequencies of the output no further from the target than that and 99.9% of exact draws"
        out.append(verdict(text, parts.pools_exceptions(found["pools"])))
    if "metropolis" in found:
        text = "Metropolis-Hastings: distance non-increasing in H up to noise, below the unwrapped run's from H = 1"
        out.append(verdict(text, parts.metropolis_exceptions(found["metropolis"])))
    for part in ("gibbs", "gibbs-tables"):
        if part in found:
            text = f"{part}: from an exact draw every sweep keeps the target (p >= {parts.SMALLEST_P:g}); a biased start is seen"
            out.append(verdict(text, parts.gibbs_exceptions(found[part])))
    for part in ("default", "default-tables"):
        if part in found:
            out.append(slope_verdict(part, found[part]))
    if {"default", "default-tables"} <= set(found):
        out.append(agreement(found["default"], found["default-tables"]))
    rows = [r for part in ("pools", "default", "default-tables") for r in found.get(part, [])]
    z = [f"{parts.name(r)}: z = {r['z']:.2f}" for r in rows if abs(r["z"]) > Z_MAX]
    largest = max((abs(r["z"]) for r in rows), default=0.0)
    out.append(
        verdict(
            f"mean of Zhat within {Z_MAX} standard errors of Z, {len(rows)} settings; largest {largest:.2f}",
            z,
        )
    )
    seen = [f"{parts.name(r)}: |z| = {r['witness']:.2f}" for r in rows if r["witness"] > Z_MAX]
    cells, largest = (
        sum(r["witness_cells"] for r in rows),
        max((r["witness"] for r in rows), default=0.0),
    )
    text = f"E[Zhat law] = Z target, cell by cell: |z| <= {Z_MAX}, {cells} cells; largest {largest:.2f}"
    return [*out, verdict(text, seen)]


def slope_verdict(part: str, rows: list[Row]) -> Row:
    """Return whether the distance of every prompt falls as 1/N."""
    out, said, before = [], [], []
    for k in dict.fromkeys(r["prompt"] for r in rows):
        value, error = parts.slope(of_prompt(rows, k))
        said.append(f"{value:.3f} +- {error:.3f}")
        before.append(f"{parts.slope(of_prompt(rows, k), *parts.BEFORE)[0]:.2f}")
        if not abs(value + 1) <= parts.SLOPE_WITHIN:
            out.append(f"prompt {k}: slope {value:.3f}, standard error {error:.3f}")
    text = f"{part}: slope -1 +- {parts.SLOPE_WITHIN} over N = {parts.FITTED_FROM} to {max(parts.DEFAULT_SIZES)}: "
    text += f"{', '.join(said)} (over N = {parts.BEFORE[0]} to {parts.BEFORE[1]}, not judged: {', '.join(before)})"
    return verdict(text, out)


def agreement(decoded: list[Row], tabled: list[Row]) -> Row:
    """Return whether the language model and its table are as far from their targets at every N."""
    out = []
    for a, b in zip(decoded, tabled, strict=True):
        if abs(a["tv"] - b["tv"]) > Z_MAX * np.hypot(a["tv_error"], b["tv_error"]):
            out.append(f"{parts.name(a)}: {a['tv']:.4g} decoded, {b['tv']:.4g} on the table")
    return verdict("default setting: decoding and table agree at every N within 4.5 standard errors", out)


def table(heads: Sequence[str], rows: list[list[str]]) -> list[str]:
    lines = ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def pm(value: float, error: float) -> str:
    return f"{value:.4f} ± {error:.4f}"


def markdown(values: Row) -> str:
    """Return the page of what was measured."""
    lines = ["# The law of the sampler over a language model", "", f"`{values['command']}`. {TEXT}", ""]
    for v in values["requirements"]:
        lines.append(f"- {'met' if v['met'] else '**not met**'}: {v['requirement']}")
        lines += [f"  - {exception}" for exception in v["exceptions"]]
    lines += ["", "![distance from the target](lm_law.svg)"]
    heads = ["prompt", "paths", "mass outside the table", "Z", "σ²", "MAD(H), pool 1, 2, 4"]
    rows = [
        [
            str(k),
            str(p["paths"]),
            f"{p['uncovered']:.4f}",
            f"{p['z']:.4f}",
            f"{p['sigma2']:.2f}",
            ", ".join(f"{x:.3f}" for x in p["mad"]),
        ]
        for k, p in enumerate(values["prompts"], 1)
    ]
    lines += table(heads, rows)
    for part, found in values["parts"].items():
        lines += ["", f"## {part}"]
        lines += table(*PAGES[part.removesuffix("-tables")](found))
    return "\n".join(lines) + "\n"


def distance_rows(found: list[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["prompt", "M", "N", "runs", "TV, halves", "TV along H", "MAD(H)/2N", "ratio"]
    heads += ["TV of frequencies", "exact draws: mean, 99.9%", "Ẑ/Z", "z"]
    rows = []
    for r in found:
        signed = r.get("signed")
        along = ["-"] * 3
        if signed is not None:
            ratio = f"{signed / r['predicted']:.3f} ± {r['signed_error'] / r['predicted']:.3f}"
            along = [
                pm(signed, r["signed_error"]),
                f"{r['predicted']:.4f}",
                ratio if r["judged"] else f"({ratio})",
            ]
        rows.append(
            [
                *map(str, (r["prompt"], r["m"], r["n"], r["runs"])),
                pm(r["tv"], r["tv_error"]),
                *along,
                f"{r['tv_frequencies']:.4f}",
                f"{r['floor']:.4f}, {r['floor_high']:.4f}",
                f"{r['mean_ratio']:.4f}",
                f"{r['z']:.2f}",
            ]
        )
    return heads, rows


def metropolis_rows(found: list[Row]) -> tuple[list[str], list[list[str]]]:
    heads = [
        "prompt",
        "sampler",
        "H",
        "chains",
        "TV, halves",
        "TV of frequencies",
        "exact draws: mean, 99.9%",
    ]
    return heads, [
        [
            *map(str, (r["prompt"], r["sampler"], r["mh_steps"], r["chains"])),
            pm(r["tv"], r["tv_error"]),
            f"{r['tv_frequencies']:.4f}",
            f"{r['floor']:.4f}, {r['floor_high']:.4f}",
        ]
        for r in found
    ]


def gibbs_rows(found: list[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["prompt", "chain", "sweep", "chains", "cells", "chi-square", "p"]
    return heads, [
        [
            *map(str, (r["prompt"], r["sampler"], r["sweep"])),
            *(f"{r[key]:.0f}" for key in ("samples", "cells", "statistic")),
            f"{r['p_value']:.2g}",
        ]
        for r in found
    ]


PAGES = {
    "pools": distance_rows,
    "default": distance_rows,
    "metropolis": metropolis_rows,
    "gibbs": gibbs_rows,
}
TEXT = (
    f"Task crossing, T = {HORIZON}, temperature {TEMPERATURE}, terminal the verifier's potential. Particles are decoded by the "
    "language model (parts named -tables: drawn from the table). TV: total variation between the expected output and the target. "
    "'Halves': half of the runs choose the signs, the other half is measured, times 1 − Ẑ/Z, which keeps the mean and takes the "
    "noise (docs/equations.md, section 5); for chains without that factor. 'Along H': the signs of H − E H, for which MAD(H)/2N "
    "is predicted. 'Of frequencies': one weighted draw a run, counted; beside it what as many exact draws give. In brackets: N "
    f"too small for a prediction of first order (N < {parts.FIRST_ORDER} σ²). After ± standard errors. Gibbs: chi-square of the "
    "cells, sweep 0 the exact draws themselves; the sweeps of a chain are not independent of each other."
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/law"), help="models are kept here")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; .md and .svg beside it")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    told = list(subjects(args.work, args.prompts, args.seed))
    settings = {"seed": args.seed, "prompts": to_json([t for t, _, _ in told])}
    found = {}
    if set(args.only) < set(PARTS) and args.out.exists():
        before = read_json(args.out, "the figures of the other parts")
        if {key: before[key] for key in settings} != settings:
            sys.exit(
                f"{args.out} is of other prompts, models or seeds: measure all parts, or name another file"
            )
        found = before["parts"]
    on = [(decoded, tabled) for _, decoded, tabled in told]
    for part in args.only:
        found[part] = measure(part, on, args.seed)
        save(args, settings, {part: found[part] for part in PARTS if part in found})


def save(args: argparse.Namespace, settings: Row, found: dict[str, list[Row]]) -> None:
    command = f"python benchmarks/lm_law.py --prompts {args.prompts} --seed {args.seed}"
    values = to_json({"command": command, **settings, "requirements": verdicts(found), "parts": found})
    write_json(args.out, values)
    write_text(args.out.with_suffix(".md"), markdown(values))
    write_text(args.out.with_suffix(".svg"), sampler_law(values["parts"]))
    print(f"written: {args.out}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
