"""What is printed about the Monte-Carlo error of samples: islands, log Z-hat, shares of answers; and about their cost.

A figure is given as estimate ± standard error [95% interval], or as the median over prompts with its range. Settings are
named as parameters, which the command line turns into its flags.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmtools.particles.islands import Z_95
from rmtools.summary import counted

WIDTH = 80
SHOWN = 3  # answers of a prompt
LOW_VALUE = 0.1  # of a solution: a better one, of V up to 1, would weigh ten times as much
AGREED = 1e-12  # se of a share on which all islands agree
SMALL_V = 0.3  # relative variance of an island, up to which the errors are measured to hold (benchmarks/islands.py, until.py)
MEANING = [
    "± and [ ]: Monte-Carlo error under this policy, PRM and floor,",
    "  not the chance of being right",
]
Records = Sequence[dict[str, Any]]


def fold(line: str) -> str:
    """Return ``line`` in lines of 80 characters at most, the further ones indented; words and paths stay whole."""
    indent = " " * (2 + len(line) - len(line.lstrip(" ")))
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def errors(records: Records) -> list[str]:
    """Return lines on the errors of log Z-hat and of the leading answers; which settings would give one where none is."""
    settings = records[0]["sampler"]
    if "islands" not in records[0] or settings["resampling"] == "top_k":  # records of 0.1.0; no law
        return []
    found, stops = [*island_line(records), *error_lines(records), *unseen(records)], until_lines(records)
    if not any("±" in line for line in found):
        found += advice(records)
    return [*found, *stops, *(MEANING if any("±" in line for line in [*found, *stops]) else [])]


def island_line(records: Records) -> list[str]:
    """Return a line on islands and families; nothing for single runs of other schemes than multinomial."""
    islands, trees = ([r[name] for r in records if r[name] is not None] for name in ("islands", "genealogy"))
    lines = []
    if islands and max(i["count"] for i in islands) > 1:
        count = median([i["count"] for i in islands])
        effective = median([i["effective"] for i in islands])
        lines = [f"islands: {count} x {islands[0]['n_particles']} particles, effective number {effective}"]
    if trees:
        lines += [f"surviving families: {median([t['families'] for t in trees])}"]
    return lines


def error_lines(records: Records) -> list[str]:
    """Return the figures with their errors; nothing where no record has one."""
    lines = []
    log_z = [(r["log_z"], log_z_se(r), (r["islands"] or {}).get("log_z_interval")) for r in records]
    if any(se is not None for _, se, _ in log_z):
        lines.append("  log Z-hat       " + figures(log_z, digits=3))
    leading = [
        next((s for s in r["shares"] if s["answer"] is not None), r["shares"][0])
        for r in records
        if r["shares"]
    ]
    shares = [(s["share"], *share_error(s)) for s in leading]
    if any(se is not None for _, se, _ in shares):
        lines.append("  leading answer  " + figures(shares, digits=2))
        silent = sum(s["answer"] is None for s in leading)
        if silent:
            lines.append(f"    no solution has an answer at {counted(silent, 'prompt')}: their share is 1")
    elif records[0]["shares"] is None and lines:
        lines.append("  no shares: the task does not say what an answer is")
    elif lines and leading:
        lines.append("  no share: no answer occurs on two islands")
    return lines


def share_error(row: dict[str, Any]) -> tuple[float | None, list[float] | None]:
    """Return the standard error of a share and its interval; from the interval where all islands agree, which is no proof."""
    if row["low"] is None:
        return row["se"], None
    if row["se"] <= AGREED:
        return (row["high"] - row["low"]) / 2 / Z_95, [row["low"], row["high"]]
    return row["se"], [row["low"], row["high"]]


def unseen(records: Records) -> list[str]:
    """Return a line on prompts whose solutions all have the same low value: a rare good one may be missing, and se is blind."""
    bad = 0
    for record in records:
        values = [s["log_value"] for s in record["samples"] if s["log_weight"] is not None]
        known = log_z_se(record) is not None and bool(values)
        bad += known and max(values) < np.log(LOW_VALUE) and max(values) - min(values) < np.log(2)
    if not bad:
        return []
    where = f"all solutions of {counted(bad, 'prompt')} are worth the same, V < {LOW_VALUE:g}"
    return [f"  {where}: a rare better one raises Z, which this ± does not count"]


NAMES = {"share": "the leading answer's share", "logz": "log Z-hat", "cv": "Z-hat (relative)"}


def until_lines(records: Records) -> list[str]:
    """Return lines on where prompts stopped, what they reached, and what best-of-N would need; nothing without `until`."""
    found = [r["until"] for r in records if r.get("until") is not None]
    if not found:
        return []
    settings, target = records[0]["sampler"], found[0]["target"]
    lines = [f"until {NAMES[found[0]['figure']]} is known to ± {target:g}: {budget_line(settings)}"]
    for reason in dict.fromkeys(u["stopped"] for u in found):
        own = [u for u in found if u["stopped"] == reason]
        islands, tokens = (counts([u[name] for u in own]) for name in ("islands", "tokens"))
        lines.append(f"  {reason} at {len(own)} of {counted(len(found), 'prompt')}")
        lines += [f"    islands {islands}, tokens {tokens}", *missed(own)]
    over = [u["tokens"] - u["token_budget"] for u in found if u["exceeded"]]
    if over:
        lines.append(
            f"  the budget was exceeded at {counted(len(over), 'prompt')}, by {max(over):,.0f} tokens at most"
        )
    apart = sum(island_variance(r["islands"]) > SMALL_V for r in records if r.get("until") is not None)
    if apart:
        lines.append(
            f"  islands differ (V(n) > {SMALL_V:g}) at {counted(apart, 'prompt')}: their ± may be too small; raise `n_particles`"
        )
    same = [u for u in found if u["best_of_n"] is not None]
    if same:
        lines.append(
            f"  best-of-N, prompt by prompt, for the same ±: N {counts([u['best_of_n'] for u in same])}"
        )
        lines.append(f"    here: N {counts([u['islands'] * settings['n_particles'] for u in same])}")
    return lines


def island_variance(islands: dict[str, Any]) -> float:
    """Return the relative variance of one island's Z-hat; 0 where all are zero."""
    count, effective = islands["count"], islands["effective"]
    return float((count / effective - 1) * count / (count - 1)) if effective else 0.0


def missed(own: Records) -> list[str]:
    """Return what prompts reached that stopped before their figure was known."""
    own = [u for u in own if u["error"] is None or u["error"] > u["target"]]
    reached = [u for u in own if u["error"] is not None]
    lines = []
    if reached:
        tokens = max(u["tokens"] * (u["error"] / u["target"]) ** 2 for u in reached)
        most = float(f"{tokens:.2g}")
        lines = [f"    reached ± {median([u['error'] for u in reached])}; token_budget={most:.0f} may do"]
    if len(reached) < len(own):
        why = "fewer than 3 islands with Z-hat > 0, or "
        why += "no answer on two of them" if own[0]["figure"] == "share" else "an error above .5"
        lines.append(f"    not resolved at {len(own) - len(reached)} of them: {why}")
    return lines


def counts(values: Sequence[float]) -> str:
    """Return the one whole number, or the median and the range."""
    middle, least, most = (f"{f(values):,.0f}" for f in (np.median, min, max))
    return middle if least == most else f"{middle} (median; {least} to {most})"


def budget_line(settings: dict[str, Any]) -> str:
    """Return which islands are added and how many tokens a prompt may take."""
    budget = (
        "as many tokens as 128 islands take"
        if settings["max_tokens"] is None
        else f"{settings['max_tokens']} tokens"
    )
    return f"islands of {settings['n_particles']}, 8 at first, within {budget} (`token_budget`)"


def until_in_words(records: Records) -> str:
    """Return how many prompts stopped where; "" without `until`."""
    reasons = [r["until"]["stopped"] for r in records if r.get("until") is not None]
    return ", ".join(f"{reason} at {reasons.count(reason)}" for reason in dict.fromkeys(reasons))


def log_z_se(record: dict[str, Any]) -> float | None:
    """Return the standard error of log Z-hat, from islands or the genealogy; None where not resolved."""
    of = record["genealogy"] or record["islands"]
    return None if of is None else of["log_z_se"]


def figures(found: Sequence[tuple[float | None, float | None, list[float] | None]], digits: int) -> str:
    """Return the one estimate with error and interval; of several prompts the medians, and how many are not resolved."""
    known = [(x, se) for x, se, _ in found if x is not None and se is not None]
    if len(found) == 1:
        (x, se), interval = known[0], found[0][2]
        ends = "" if interval is None else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
        return f"{x:.{digits}f} ± {se:.{digits}f}{ends}"
    middle = [float(np.median(values)) for values in zip(*known, strict=True)]
    rest = len(found) - len(known)
    lost = f"; not resolved at {rest}" if rest else ""
    return (
        f"{middle[0]:.{digits}f} ± {middle[1]:.{digits}f} (medians of {counted(len(known), 'prompt')}{lost})"
    )


def advice(records: Records) -> list[str]:
    """Return a line that says which settings give an error, or why none is resolved."""
    settings = records[0]["sampler"]
    if settings["sweeps"] or (records[0]["chain"] is not None and "kept" in records[0]["chain"]):
        if len(records[0]["samples"]) < 20:
            return ["no error: fewer than 20 sweeps; sweeps=20 gives one"]
        return ["no error: no answer occurs in two batches of sweeps"]
    count = max((r["islands"]["count"] for r in records if r["islands"]), default=1)
    if count >= 3:
        return ["no error is resolved: it is above .5, or fewer than 3 islands have Z-hat > 0"]
    if settings["n_particles"] == 1:
        return ["no error from a single run: mh_steps=8 gives one, its runs are islands"]
    n = max(128, -(-settings["n_particles"] // 4) * 4)
    several = "a single run" if count == 1 else "two islands"
    return [f"no error from {several}: n_particles={n} islands=4 gives one"]


def of_prompt(record: dict[str, Any]) -> list[str]:
    """Return lines on log Z-hat and the answers of one prompt, the largest shares first."""
    if "islands" not in record:
        return []
    lines = []
    if record["log_z"] is not None:
        found = (record["log_z"], log_z_se(record), (record["islands"] or {}).get("log_z_interval"))
        lines = ["log Z-hat " + (f"{found[0]:.3f}" if found[1] is None else figures([found], 3))]
    rows = record["shares"] or []
    for row in rows[:SHOWN]:
        se, interval = share_error(row)
        share = f"{row['share']:.2f}"
        if se is not None:
            share = figures([(row["share"], se, interval)], 2)
        name = "(no answer)" if row["answer"] is None else " ".join(row["answer"].split())
        room = WIDTH - 4 - len(share)
        lines.append(f"{share}  {name if len(name) <= room else name[: room - 1] + '…'}")
    if len(rows) > SHOWN:
        lines.append(f"{len(rows) - SHOWN} more answers")
    return [f"  {line}" for line in lines]


def cost(records: Records) -> list[str]:
    """Return lines on tokens, FLOPs and seconds of all prompts."""
    if "cost" not in records[0]:
        return []
    costs = [r["cost"] for r in records]
    read = None if any(c["value_tokens"] is None for c in costs) else sum(c["value_tokens"] for c in costs)
    tokens = f"{sum(c['policy_tokens'] for c in costs):.0f} tokens of the policy"
    tokens += "" if read is None else f", {read:.0f} of the value model"
    known = all(c["flops"] is not None for c in costs)
    flops = f"{sum(c['flops'] for c in costs):.2g} FLOPs, " if known else ""
    return [f"cost: {tokens}", f"  {flops}{sum(c['seconds'] for c in costs):.3g} s"]


def median(values: Sequence[float]) -> str:
    """Return the one value, or the median and the range."""
    if min(values) == max(values):
        return f"{values[0]:.3g}"
    return f"{np.median(values):.3g} (median; {min(values):.3g} to {max(values):.3g})"
