r"""Success against generated tokens: what a value model is worth in each sampler, on held-out prompts of crossing.

    python benchmarks/accuracy_at_tokens.py --work runs/accuracy --out docs/benchmarks/accuracy_at_tokens.json

T = 8 and 16, policies of `losses_on_crossing`, value models by the recipe (kept in the work folder), prompts that were not
trained on. The final weight is the model's own last value, which is what there is without a verifier, or the verifier's.
One run of each sampler a prompt and budget; intervals resample prompts. Beside the JSON a Markdown page and an SVG. A
horizon that the file has already, with the same arguments, is not run again.
"""

import argparse
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from accuracy_samplers import BEAM, BEST, BUDGETS, CHAIN, MAJORITY, PLAIN, SMC, TERMINALS, Bench, Point
from crossing_models import models

from rmtools.codec import to_json
from rmtools.files import read_json, write_json, write_text
from rmtools.plots.accuracy import success_at_tokens
from rmtools.stats.bootstrap import Interval, cluster_bootstrap

Row = dict[str, Any]
HORIZONS = (8, 16)
RIVALS = (BEST, MAJORITY, BEAM, CHAIN)


def interval(per_prompt: np.ndarray, rng: np.random.Generator) -> Interval:
    """Return the mean over prompts with its 95% interval; exact binomial where all prompts agree on 0 or 1."""
    from scipy.stats import binomtest

    if np.ptp(per_prompt) == 0 and per_prompt[0] in (0.0, 1.0):
        n = len(per_prompt)
        exact = binomtest(int(per_prompt.sum()), n).proportion_ci(0.95)
        return Interval(float(per_prompt[0]), float(exact.low), float(exact.high))
    return cluster_bootstrap(per_prompt[:, None], lambda m: m[:, 0], rng)


def measure(work: Path, horizon: int, n_prompts: int, seed: int) -> Row:
    """Return every point of a horizon."""
    found = models(work, horizon)
    bench = Bench(found, found.held_out(n_prompts, seed))
    points: list[Point] = []
    for budget in BUDGETS:
        start = time.monotonic()
        points += bench.independent(budget, generator(seed, horizon, budget, "independent"))
        for run in (bench.resampled, bench.beam, bench.chain):
            for terminal in TERMINALS:
                points += run(
                    terminal, budget, generator(seed, horizon, budget, f"{run.__name__} {terminal}")
                )
        print(
            f"T = {horizon}, N = {budget}: {time.monotonic() - start:.0f} s",
            {f"{p.sampler} ({p.terminal})": round(p.success.mean(), 3) for p in points if p.budget == budget},
            file=sys.stderr,
            flush=True,
        )
    # One sample's success is the mean over independent samples, so the largest budget knows it best.
    points = [p for p in points if p.sampler != PLAIN or p.budget == BUDGETS[-1]]
    rng = generator(seed, horizon, 0, "intervals")
    return {
        "horizon": horizon,
        "points": [described(p, rng) for p in points],
        "ahead": differences(points, rng),
    }


def generator(seed: int, horizon: int, budget: int, what: str) -> np.random.Generator:
    return np.random.default_rng([seed, horizon, budget, zlib.crc32(what.encode())])


def described(p: Point, rng: np.random.Generator) -> Row:
    return {
        "sampler": p.sampler,
        "terminal": p.terminal,
        "budget": 1 if p.sampler == PLAIN else p.budget,
        "prompts": len(p.success),
        "success": interval(p.success, rng),
        "nominal_tokens": p.nominal,
        "distinct_tokens": p.distinct,
    }


def differences(points: list[Point], rng: np.random.Generator) -> list[Row]:
    """Return by how much SMC (argmax) is ahead of its rivals at each budget, on the same prompts."""
    at = {(p.sampler, p.terminal, p.budget): p.success for p in points}
    return [
        {
            "terminal": terminal,
            "budget": budget,
            "rival": rival,
            "difference": interval(
                at[SMC, terminal, budget] - np.asarray(at[rival, terminal, budget], dtype=float), rng
            ),
        }
        for terminal in TERMINALS
        for budget in BUDGETS
        for rival in RIVALS
    ]


def not_ahead(horizons: list[Row]) -> list[str]:
    """Return where SMC (argmax) does not win: the interval of the difference is not above zero."""
    out = []
    for h in horizons:
        for terminal in TERMINALS:
            for rival in RIVALS:
                rows = [
                    r
                    for r in h["ahead"]
                    if (r["terminal"], r["rival"]) == (terminal, rival) and not (r["difference"]["low"] > 0)
                ]
                if rows:
                    said = ", ".join(f"N = {r['budget']}: {signed(r['difference'])}" for r in rows)
                    out.append(f"T = {h['horizon']}, final weight {terminal}, against {rival}: {said}")
    return out


def signed(i: Row) -> str:
    return f"{i['estimate']:+.3f} [{i['low']:+.3f}, {i['high']:+.3f}]"


def shown(i: Row) -> str:
    return f"{i['estimate']:.3f} [{i['low']:.3f}, {i['high']:.3f}]"


TEXT = (
    "Share of held-out prompts of crossing answered right. At a budget of N every sampler draws N candidates of every step: "
    "nominal tokens are those of all candidates (`LMParticles.decoded`), what a sampler without prefix sharing would generate, "
    "and the axis of the picture; distinct tokens count what particles share once, as it is decoded once. Best-of-N, beam "
    "and 'SMC, argmax' answer the particle of largest final value; 'one draw' is a draw by weight; majorities pool the "
    "weights of equal solutions (crossing has no shorter answer to vote on). Beam: N/4 beams, 4 candidates each. SP-gSMC + MH: "
    "one particle, pool M, H + 1 runs, M(H + 1) = N; the state of the chain. SMC is in its default setting. Plain: one sample. "
    "Intervals: 95%, over prompts. What a number of particles promises is the error of sampling (lm_law.md): the law of one draw "
    "tends to the target's; success is reported, not promised. The target itself is not always right: with floor f an exact draw "
    "by the verifier's weight is right with probability p / (p + f (1 - p)) where the policy is with probability p (f = .01: .88 "
    "at p = .07, .76 at p = .03), so no number of particles brings one draw, or a chain, to 1. Beams that are equal are kept as "
    "often as they were drawn: see in the distinct tokens how few different ones there are."
)


def markdown(values: Row) -> str:
    lines = ["# Accuracy at equal tokens", "", f"`{values['command']}`. {TEXT}", ""]
    lines += [
        "![success against tokens](accuracy_at_tokens.svg)",
        "",
        "## Where SMC (argmax) does not win",
        "",
    ]
    lines += [f"- {line}" for line in values["not_ahead"]] or ["- nowhere: every interval is above zero"]
    heads = ["T", "final weight", "sampler", "N", "success", "nominal tokens", "distinct tokens"]
    rows = [
        [
            str(h["horizon"]),
            p["terminal"],
            p["sampler"],
            str(p["budget"]),
            shown(p["success"]),
            f"{p['nominal_tokens']:.0f}",
            f"{p['distinct_tokens']:.0f}",
        ]
        for h in values["horizons"]
        for p in sorted(h["points"], key=lambda p: p["terminal"])
    ]
    lines += ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    heads = ["T", "final weight", "N", *(f"SMC (argmax) minus {rival}" for rival in RIVALS)]
    lines += ["", "## By how much SMC (argmax) is ahead, on the same prompts", ""]
    lines += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for h in values["horizons"]:
        by = {(r["terminal"], r["budget"], r["rival"]): signed(r["difference"]) for r in h["ahead"]}
        for terminal in TERMINALS:
            for budget in BUDGETS:
                cells = [by[terminal, budget, rival] for rival in RIVALS]
                lines.append(f"| {' | '.join([str(h['horizon']), terminal, str(budget), *cells])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="models are kept here")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; .md and .svg beside it")
    parser.add_argument("--horizons", type=int, nargs="+", default=list(HORIZONS))
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    command = f"python benchmarks/accuracy_at_tokens.py --prompts {args.prompts} --seed {args.seed}"
    before = read_json(args.out, "the figures of the other horizons") if args.out.exists() else {}
    done = {h["horizon"]: h for h in before.get("horizons", []) if before["command"] == command}
    for horizon in args.horizons:
        if horizon not in done:
            done[horizon] = to_json(measure(args.work, horizon, args.prompts, args.seed))
            save(args.out, command, [done[t] for t in sorted(done)])
    save(args.out, command, [done[t] for t in sorted(done)])


def save(out: Path, command: str, horizons: list[Row]) -> None:
    values = {"command": command, "not_ahead": not_ahead(horizons), "horizons": horizons}
    write_json(out, values)
    write_text(out.with_suffix(".md"), markdown(values))
    write_text(out.with_suffix(".svg"), success_at_tokens(horizons))
    print(f"written: {out}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
