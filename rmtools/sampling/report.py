"""What is printed about samples: how often it resampled, errors, right solutions by output, what was lost, costs."""

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.lm.steps import MOST_CUT
from rmtools.particles.protocol import resampling_in_words
from rmtools.sampling.error_report import cost, errors, fold, of_prompt
from rmtools.stats.bootstrap import Interval, bootstrap_all, cluster_sums, ratio_of_means
from rmtools.summary import counted

Records = Sequence[dict[str, Any]]

OUTPUTS = {
    "draw": "follows the target's law",
    "argmax": "largest final value",
    "majority": "most frequent answer",
    "weighted_majority": "answer of largest weight",
}


def report(out: Path, typed: bool = False, wording: Callable[[str], str] = str) -> str:
    """Return the report of the file ``out``, after typed prompts with their solutions.

    Its lines are at most 80 characters wide, but for paths, prompts and solutions. ``wording`` makes of a line what the
    user reads: parameters stand in backquotes, or as ``name=4``.
    """
    with out.open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    first = records[0]
    lines = [
        f"terminal {first['terminal']}: log_z estimates {first['estimates']}",
        sampler(first["sampler"]),
        *resampling(records),
        *errors(records),
        *shares(records),
        *losses(records),
        *cost(records),
        *budgets(records),
    ]
    solutions = [solution(record) for record in records if typed]
    head = f"{counted(len(records), 'prompt')} in {out}"
    return "\n".join([head, *(fold(wording(line)) for line in lines), *solutions])


def solution(record: dict[str, Any]) -> str:
    """Return the prompt and, indented, the chosen solution of a record, then log Z-hat and the answers with their errors."""
    at = record["chosen"]
    text = "(nothing was chosen)" if at is None else "".join(record["samples"][at]["steps"])
    text = textwrap.indent(text.rstrip("\n"), "  ")
    return "\n".join([record["prompt"].rstrip("\n"), text, *of_prompt(record)])


def sampler(settings: dict[str, Any]) -> str:
    """Return the sampler in one line."""
    scheme = "" if settings["n_particles"] == 1 else f", resampling {settings['resampling']}"
    if scheme and settings["resampling"] not in ("none", "top_k"):
        scheme += f" at ESS <= {settings['ess_threshold']:g} N"
    budgeted = any(settings.get(name) is not None for name in ("max_tokens", "max_seconds", "until"))
    chains = (("mh_steps", "proposals"), ("sweeps", "sweeps"))
    chain = "".join(f", {settings[name]} {word}" for name, word in chains if settings[name] and not budgeted)
    return (
        f"sampler: {settings['algorithm']}, N = {settings['n_particles']}, M = {settings['pool_size']}"
        f"{scheme}{chain}"
    )


def resampling(records: Records) -> list[str]:
    """Return a line on how often the sampler resampled; nothing where its settings say it: beams, Gibbs, N = 1.

    Records of rmtools 0.1.0 do not say it.
    """
    settings = records[0]["sampler"]
    runs = [run for record in records for run in runs_of(record)]
    told = settings["resampling"] == "top_k" or settings["sweeps"] or settings["n_particles"] == 1
    if told or not all("resampled" in run for run in runs):
        return []
    steps = [step for run in runs for step in run["resampled"]]
    resampled, total = sum(steps), len(steps)
    if all("islands" in record for record in records):
        resampled, total = (sum(sum(r["islands"][key]) for r in records) for key in ("resampled", "steps"))
    return [f"resampled {resampling_in_words(resampled, total, settings['pool_size'])}"]


def runs_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the runs of a record; a single run's history stands in the record itself."""
    return [record] if record["runs"] is None else list(record["runs"])


def shares(records: Records) -> list[str]:
    """Return a line for every output; nothing without a verifier."""
    if any("reward" not in s for r in records for s in r["samples"]):
        return []
    chosen = records[0]["output"].replace("-", "_")
    beam = records[0]["sampler"]["resampling"] == "top_k"
    outputs = [output for output in OUTPUTS if output in records[0] and not (beam and output == "draw")]
    # A prompt without samples, or without anything to choose, is not solved.
    solved = {"all samples": [float(np.mean([s["reward"] for s in r["samples"]] or [0.0])) for r in records]}
    solved |= {output: [reward_of(r, output) for r in records] for output in outputs}
    return ["right solutions, 95% intervals over prompts, not over runs:"] + [
        f"  {name.replace('_', ' '):<18}{found.estimate:.3f} {ends(found)}"
        + (f"  {OUTPUTS[name]}" if name in OUTPUTS else "")
        + (" (put out)" if name == chosen else "")
        for name, found in intervals(records, solved).items()
    ]


def reward_of(record: dict[str, Any], output: str) -> float:
    """Return the reward of the sample that ``output`` chooses, 0 if it chooses nothing."""
    return 0.0 if record[output] is None else float(record["samples"][record[output]]["reward"])


def intervals(records: Records, values: dict[str, list[float]]) -> dict[str, Interval]:
    """Return the mean of each, with an interval over prompts; a prompt that occurs twice is one cluster."""
    _, prompt = np.unique([r["prompt"] for r in records], return_inverse=True)
    ones = np.ones(len(records))
    sums = {name: cluster_sums(np.stack([x, ones], 1), prompt) for name, x in values.items()}
    found = bootstrap_all({k: (s, ratio_of_means) for k, s in sums.items()}, np.random.default_rng(0))
    clipped = {k: v.map(lambda x: min(max(x, 0.0), 1.0)) for k, v in found.items()}
    n = int(prompt.max()) + 1
    return {k: unanimous(x, n) if set(x) in ({0.0}, {1.0}) else clipped[k] for k, x in values.items()}


def unanimous(values: Sequence[float], n: int) -> Interval:
    """Return 0 or 1 with the exact 95% bound (Clopper-Pearson) if all n prompts agree: resampling would see no doubt."""
    low = 0.025 ** (1 / n)
    return Interval(1.0, low, 1.0) if values[0] else Interval(0.0, 0.0, 1 - low)


def ends(interval: Interval) -> str:
    """Return the ends of an interval."""
    low, high = ("?" if e is None else f"{e:.3f}" for e in (interval.low, interval.high))
    return f"[{low}, {high}]"


def losses(records: Records) -> list[str]:
    """Return lines on cut steps, prompts without weight, and prompts without an answer."""
    cut, steps, tokens = (
        sum(r[name] for r in records) for name in ("cut_steps", "n_steps", "generated_tokens")
    )
    lines = [f"{cut} of {steps} steps were cut at max_step_tokens or at the end of the context"]
    if "cost" not in records[0]:
        lines.insert(0, f"{tokens:.0f} tokens generated")
    dead = sum(all(s["log_weight"] is None for s in r["samples"]) for r in records)
    if dead:
        lines.append(
            f"{dead} of {len(records)} prompts have no sample of positive weight: their log_z and draw are null"
        )
    empty = sum(r["chosen"] is None for r in records) - dead
    if empty:
        lines.append(f"{empty} of {len(records)} prompts put out nothing: no sample has an answer")
    return lines


def warning_of_cut(out: Path, most: int, context: int | None) -> str:
    """Return a warning if many steps in the file ``out`` were cut, at ``most`` tokens or where the ``context`` ended; or ""."""
    with out.open(encoding="utf-8") as file:
        counts = [(r["cut_steps"], r["n_steps"]) for r in map(json.loads, file)]
    cut, steps = (sum(column) for column in zip(*counts, strict=True))
    if cut <= MOST_CUT * steps:
        return ""
    return (
        f"warning: {cut / steps:.1%} of the steps were cut at {most} tokens, or at the end of the context "
        f"({context or 'not known'}), before they ended: train on rollouts with a larger limit or another kind of steps, "
        "or use shorter prompts or a model with more context"
    )


def budgets(records: Records) -> list[str]:
    """Return lines on what was spent; nothing without a budget."""
    spent = [r["budget"] for r in records if r["budget"] is not None]
    if not spent:
        return []
    runs, tokens = (float(np.mean([b[name] for b in spent])) for name in ("runs", "tokens"))
    lines = [f"budget: {runs:.1f} runs and {tokens:.0f} tokens a prompt on average"]
    over = [b for b in spent if b["exceeded"]]
    if over:
        single = sum(b["runs"] == 1 for b in over)
        most = max(b["tokens"] for b in over)
        lines += [
            f"the budget was exceeded at {len(over)} of {len(spent)} prompts, up to {most:.0f} tokens, by the last runs",
            f"at {single} of them a single run takes more than the budget",
        ]
    return lines
