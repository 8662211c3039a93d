"""What is printed of a file of samples: the shares of right solutions by way of choosing, and what was lost or cut."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.stats.bootstrap import Interval, bootstrap_all, cluster_sums, ratio_of_means

Records = Sequence[dict[str, Any]]

WAYS = {
    "draw": "one weighted draw: the only one that follows the target's law",
    "argmax": "the largest final value",
    "majority": "the most frequent answer",
    "weighted_majority": "the answer with the largest weight",
}


def report(out: Path) -> str:
    """Return the report of the file ``out``."""
    with out.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    first = records[0]
    return "\n".join(
        [
            f"{len(records)} prompts in {out} (terminal {first['terminal']}, log_z estimates {first['estimates']})",
            sampler(first["sampler"]),
            *shares(records),
            *losses(records),
        ]
    )


def sampler(settings: dict[str, Any]) -> str:
    """Return the sampler in one line."""
    scheme = "" if settings["n_particles"] == 1 else f", resampling {settings['resampling']}"
    if scheme and settings["resampling"] not in ("none", "top_k"):
        scheme += f" at ESS <= {settings['ess_threshold']:g} N"
    chain = "".join(
        f", {settings[name]} {word}"
        for name, word in (("mh_steps", "proposals"), ("sweeps", "sweeps"))
        if settings[name] and settings["max_tokens"] is None and settings["max_seconds"] is None
    )
    return (
        f"sampler: {settings['algorithm']}, N = {settings['n_particles']}, M = {settings['pool_size']}"
        f"{scheme}{chain}"
    )


def shares(records: Records) -> list[str]:
    """Return a line for every way of choosing; none without a verifier."""
    if any("reward" not in s for r in records for s in r["samples"]):
        return []
    chosen = records[0]["output"].replace("-", "_")
    # Nothing was put out where there is nothing to choose: that prompt is not solved.
    solved = {"all samples": [mean_reward(r) for r in records]}
    beam = records[0]["sampler"]["resampling"] == "top_k"
    ways = [way for way in WAYS if way in records[0] and not (beam and way == "draw")]
    solved |= {way: [reward_of(r, way) for r in records] for way in ways}
    found = intervals(records, solved)
    return ["right solutions, 95% intervals over prompts:"] + [
        f"  {name.replace('_', ' '):<18}{found[name].estimate:.3f} {ends(found[name])}"
        + (f"  {WAYS[name]}" if name in WAYS else "")
        + (" (put out)" if name == chosen else "")
        for name in found
    ]


def mean_reward(record: dict[str, Any]) -> float:
    """Return the mean reward of all samples."""
    return float(np.mean([s["reward"] for s in record["samples"]])) if record["samples"] else 0.0


def reward_of(record: dict[str, Any], way: str) -> float:
    """Return the reward of the sample chosen by ``way``, 0 where there is none."""
    return 0.0 if record[way] is None else float(record["samples"][record[way]]["reward"])


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
    """Return 0 or 1 with the exact 95% bound (Clopper-Pearson) where all n prompts agree: resampling would see no doubt."""
    low = 0.025 ** (1 / n)
    return Interval(1.0, low, 1.0) if values[0] else Interval(0.0, 0.0, 1 - low)


def ends(interval: Interval) -> str:
    """Return the ends of an interval."""
    low, high = ("?" if e is None else f"{e:.3f}" for e in (interval.low, interval.high))
    return f"[{low}, {high}]"


def losses(records: Records) -> list[str]:
    """Return lines on cut steps, prompts without weight, answers, and what budgets went into."""
    cut, steps = (sum(r[name] for r in records) for name in ("cut_steps", "n_steps"))
    tokens = sum(r["generated_tokens"] for r in records)
    lines = [
        f"{tokens:.0f} tokens generated; {cut} of {steps} steps were cut at max_step_tokens or at the end of the context"
    ]
    dead = sum(all(s["log_weight"] is None for s in r["samples"]) for r in records)
    if dead:
        lines.append(
            f"{dead} of {len(records)} prompts have no sample of positive weight: their log_z and draw are null"
        )
    empty = sum(r["chosen"] is None for r in records) - dead
    if empty:
        lines.append(f"{empty} of {len(records)} prompts put out nothing: no sample comes to an answer")
    return lines + budgets(records)


def budgets(records: Records) -> list[str]:
    """Return what budgets went into."""
    spent = [r["budget"] for r in records if r["budget"] is not None]
    if not spent:
        return []
    runs, tokens = (float(np.mean([b[name] for b in spent])) for name in ("runs", "tokens"))
    lines = [f"budget: {runs:.1f} runs and {tokens:.0f} tokens a prompt on average"]
    over = [b for b in spent if b["exceeded"]]
    if over:
        single = sum(b["runs"] == 1 for b in over)
        most = max(b["tokens"] for b in over)
        lines.append(
            f"the budget was exceeded at {len(over)} of {len(spent)} prompts, up to {most:.0f} tokens: by the run in hand; "
            f"at {single} of them a single run takes more than the budget"
        )
    return lines
