"""The tables of a report below the first: by depth, value and prompt, the worst prefixes, what an answer costs."""

import math
from collections.abc import Mapping
from typing import Any

from rmtools.codec import from_json
from rmtools.plots.page import Items, Table
from rmtools.stats.bootstrap import Interval

Values = Mapping[str, Any]
PROMPTS_SHOWN, TEXT_SHOWN = 30, 220


def interval(value: Values | None) -> str:
    """Return an interval's text, a dash where there is none."""
    return "-" if value is None or value["estimate"] is None else str(from_json(Interval, value))


def rounded(value: float | None) -> str:
    """Return a number of three digits, a dash where there is none."""
    return "-" if value is None else f"{value:.3g}"


def cut(text: str) -> str:
    """Return the end of a long text: what stands right before the step in question."""
    flat = " ⏎ ".join(text.strip().splitlines())
    return flat if len(flat) <= TEXT_SHOWN else f"… {flat[-TEXT_SHOWN:]}"


def where(values: Values) -> list[Table | Items]:
    """Return where the audited model is inconsistent."""
    model = values["models"][0]
    found: list[Table | Items] = []
    summary = model["exact"] or model["bellman"]
    if summary:
        found.append(depth_table(summary, model["exact"] is not None))
        found.append(value_table(model["by_value"]))
    if model["flat"]:
        found.append(flat_table(model["flat"]))
    if model["worst"]:
        found.append(worst_table(model["worst"]))
    return found


def depth_table(summary: Values, exact: bool) -> Table:
    """Return the error by depth."""
    rows = tuple(
        (
            str(d["depth"]),
            str(d["n_prefixes"]),
            interval(d["signed_mean"]),
            interval(d["rms_corrected"]),
            interval(d["squared_ratio_error"]),
        )
        for d in summary["by_depth"]
    )
    source = "enumerated" if exact else "sampled, noise-corrected"
    return Table(
        f"By depth ({source}; b in nats)", ("depth", "prefixes", "mean b", "RMS b", "mean (ρ − 1)²"), rows
    )


def value_table(bins: list[Values]) -> Table:
    """Return the error by the value at the prefix."""
    rows = tuple(
        (
            f"{b['low']:.3g} to {b['high']:.3g}",
            str(b["n_prefixes"]),
            interval(b["signed_mean"]),
            interval(b["squared_ratio_error"]),
        )
        for b in bins
    )
    return Table(
        "By value of the prefix, bins of equal mass (sampled)",
        ("V", "prefixes", "mean b", "mean (ρ − 1)²"),
        rows,
    )


def flat_table(flat: Values) -> Table:
    """Return the signed errors that single steps identify."""
    rows = tuple(
        (
            str(b["depth"]),
            f"{math.exp(b['lowest_log_value']):.3g} to {math.exp(b['highest_log_value']):.3g}",
            str(b["n_prefixes"]),
            interval(b["signed_mean"]),
        )
        for b in flat["bins"]
    )
    return Table(
        "Without children: mean ρ − 1 by depth and value",
        ("depth", "V", "prefixes", "mean ρ − 1"),
        rows,
    )


def worst_table(worst: list[Values]) -> Table:
    """Return the worst prefixes as text, with their children and values."""
    rows = []
    for w in worst:
        error = f"{w['log_error']:+.2f}" + (f" ± {w['standard_error']:.2f}" if w["standard_error"] else "")
        children = "; ".join(
            f"{cut(c['text'])!r} {c['value']:.3g}{' (end)' if c['ended'] else ''}"
            + (f" ×{c['drawn']}" if c["drawn"] > 1 else "")
            for c in w["children"]
        )
        rows.append(
            (
                f"{cut(w['prompt'] + ''.join(w['steps']))}",
                error,
                f"{w['value']:.3g}",
                f"{w['value'] * w['ratio']:.3g}",
                f"{children} ({w['n_children']} drawn)",
            )
        )
    return Table(
        "The worst prefixes: b, the value, what the value should be by the next steps, and the next steps with their values",
        ("prompt and steps so far", "b", "V", "E V next", "next steps"),
        tuple(rows),
    )


def costs_table(values: Values) -> Table:
    """Return what one answer within the total variation asked for costs in each way."""
    delta = values["provenance"]["delta_tv"]
    columns = tuple(values["table"]["columns"])
    models = values["models"]

    def cells(name: str) -> tuple[str, ...]:
        return tuple("-" if m["other_ways"] is None else whole(m["other_ways"][name]) for m in models)

    def worst_case(name: str) -> tuple[str, ...]:
        return tuple("-" if m["paper"] is None else large(m["paper"][name]) for m in models)

    rows = (
        ("tokens of a solution", *cells("tokens_per_solution")),
        ("sampler: tokens", *cells("smc_tokens")),
        ("rejection: solutions", *cells("rejection_solutions")),
        ("rejection: tokens", *cells("rejection_tokens")),
        ("best-of-N: N (rough)", *cells("best_of_n_solutions")),
        ("best-of-N: tokens", *cells("best_of_n_tokens")),
        ("prompts without a right solution", *cells("prompts_without_success")),
        ("Algorithm 2: pool M (worst case)", *worst_case("pool_size")),
        ("Algorithm 2: proposals H (worst case)", *worst_case("mh_steps")),
    )
    return Table(
        f"One answer within a total variation of {delta:g}; means over prompts with weights Z², as σ² is pooled",
        ("", *columns),
        rows,
    )


def whole(value: Any) -> str:
    """Return a count, with its interval where it has one."""
    if value is None or (isinstance(value, Mapping) and value["estimate"] is None):
        return "-"
    if not isinstance(value, Mapping):
        return f"{value:,.0f}"
    ends = ", ".join("?" if value[e] is None else f"{value[e]:,.0f}" for e in ("low", "high"))
    return f"{value['estimate']:,.0f} [{ends}]"


def large(value: float | None) -> str:
    """Return a count that may be astronomical."""
    if value is None:
        return "beyond a float"
    return f"{value:,.0f}" if value < 1e7 else f"{value:.2g}"


def prompts_table(values: Values) -> Table:
    """Return the prompts that need the most particles, or have the largest error where particles are not known."""
    rows = sorted(values["models"][0]["by_prompt"], key=needs, reverse=True)[:PROMPTS_SHOWN]
    return Table(
        f"By prompt, the {len(rows)} that need most (intervals over a prompt's few trajectories are wide)",
        ("prompt", "right", "V(s0)", "Z", "mean b", "σ²", "N for CV", "N for TV"),
        tuple(
            (
                cut(p["prompt"])[:80],
                rounded(p["success"]),
                rounded(p["root_value"]),
                rounded(p["z"]),
                rounded(p["signed_mean"]),
                interval(p["sigma2"]),
                interval(p["n_for_cv"]),
                interval(p["n_for_tv"]),
            )
            for p in rows
        ),
    )


def needs(prompt: Values) -> tuple[bool, float, float]:
    """Return what prompts are ordered by; particles of those without a right solution are not known."""
    cost = prompt["sigma2"]
    return (
        prompt["success"] > 0,
        -math.inf if cost is None or cost["estimate"] is None else cost["estimate"],
        prompt["mean_square_corrected"] or 0.0,
    )
