"""The audit's report on disk: ``audit.json`` with every figure, ``audit.md`` for a model card, ``audit.html`` with plots.

Markdown and page are two forms of the same sections.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rmtools import plots
from rmtools.auditing.breakdowns import PromptAudit, ValueBin, WorstPrefix
from rmtools.auditing.report import AuditReport, save_report
from rmtools.auditing.table import Line, sentences, table
from rmtools.codec import to_json
from rmtools.files import write_text
from rmtools.plots.page import Items, Plot, Section, Table, page
from rmtools.stats.bellman_error import BellmanSummary
from rmtools.stats.binned_errors import FlatSummary
from rmtools.stats.bootstrap import Interval
from rmtools.stats.quantiles import FractionBound

MARKDOWN_FILE, PAGE_FILE = "audit.md", "audit.html"
PROMPTS_SHOWN, TEXT_SHOWN = 30, 220
NONE, PROMPTS = "-", "By prompt"


def write_report(report: AuditReport, out: Path) -> None:
    """Write ``audit.json``, ``audit.md`` and ``audit.html`` into the folder ``out``, each in one rename.

    Raises
    ------
    UserError
        If the folder cannot be written; what stood there before is kept.
    """
    save_report(report, out)
    write_text(Path(out) / MARKDOWN_FILE, markdown(report))
    write_text(Path(out) / PAGE_FILE, page(_title(report), sections(report)))


def sections(report: AuditReport, *, drawn: bool = True) -> list[Section]:
    """Return the sections of the audit's page; without its plots unless ``drawn``."""
    in_words = tuple(("", text) for text in sentences(report.model, report.pairs, report.measured))
    return [
        Section(
            "The audit",
            (introduction(report), main_table(report), *([Items(in_words)] if in_words else [])),
        ),
        Section("Warnings", (warnings(report),)),
        Section("Plots", figures(report) if drawn else ()),
        Section("Where the model is inconsistent", _inconsistencies(report)),
        Section("What it costs", (_costs_table(report),)),
        Section(PROMPTS, (_prompts_table(report.model.breakdowns.by_prompt),)),
        Section("How to read each line", (row_help(report),)),
        Section("Counts", (_counts_table(report),)),
        Section("Provenance", (provenance(report),)),
    ]


def markdown(report: AuditReport) -> str:
    """Return the report, without plots and prompts, as Markdown that can be pasted into a model card."""
    parts = [f"## {_escape(_title(report))}"]
    for section in sections(report, drawn=False):
        blocks = [_block_markdown(block) for block in section.blocks]
        if any(blocks) and section.title != PROMPTS:
            parts += [f"### {_escape(section.title)}", *blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block_markdown(block: str | Table | Plot | Items) -> str:
    if isinstance(block, Plot):
        return ""
    if isinstance(block, str):
        return _escape(block)
    if isinstance(block, Items):
        return "\n".join(f"- {f'**{_escape(a)}**: ' if a else ''}{_escape(b)}" for a, b in block.entries)
    lines = [block.columns, tuple("---" for _ in block.columns), *block.rows]
    return "\n".join(
        [f"{_escape(block.caption)}\n", *(f"| {' | '.join(_escape(c) for c in row)} |" for row in lines)]
    )


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is, also inside a table."""
    for mark in "\\|*_<>[]`":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def _title(report: AuditReport) -> str:
    return f"Audit of {report.provenance['checkpoint']}"


def introduction(report: AuditReport) -> str:
    """Return the sentence above the main table."""
    p = report.provenance
    return (
        f"How inconsistent the reward model is, and how many particles that costs. {p['n_trajectories']} solutions of "
        f"{p['n_prompts']} prompts of the task {p['task']} by the policy {p['policy']}; the controls are scored on the same "
        "prefixes. Brackets are 95% intervals over prompts."
    )


def warnings(report: AuditReport) -> Items:
    """Return what a reader must know before trusting a figure."""
    return Items(tuple(("", text) for text in report.warnings) or (("", "none"),))


def row_help(report: AuditReport) -> Items:
    """Return the help of each row of the main table."""
    return Items(tuple((line.label, line.help) for line in _lines(report)))


def _lines(report: AuditReport) -> list[Line]:
    return table(report.models, report.provenance["delta_cv"], report.provenance["delta_tv"])


def _columns(report: AuditReport) -> tuple[str, ...]:
    return ("", *(m.role for m in report.models))


def main_table(report: AuditReport) -> Table:
    """Return the table with a column per model."""
    rows = tuple((line.label, *line.cells) for line in _lines(report))
    caption = f"Audit, terminal {report.provenance['terminal']}; errors in nats"
    return Table(caption, _columns(report), rows)


def provenance(report: AuditReport) -> Items:
    """Return where the audit comes from."""
    entries = dict(report.provenance)
    if report.uncovered is not None:
        outside = report.uncovered
        entries["probability outside the enumerated steps, mean / largest; prefixes left out for it"] = (
            f"{outside['mean']:.2g} / {outside['largest']:.2g}; {outside['left_out']:.0f}"
        )
    return Items(
        tuple(
            (name.replace("_", " "), text if isinstance(text, str) else json.dumps(text, ensure_ascii=False))
            for name, text in entries.items()
        )
    )


def figures(report: AuditReport) -> tuple[Plot, ...]:
    """Return the plots that these rollouts have figures for."""
    models, delta = to_json(report.models), report.provenance["delta_cv"]
    branching = [m for m in models if m["error"]["sampled"]]
    roles = ", ".join(plots.style_of(m["role"])[0] for m in models)
    found = []
    if branching:
        found = [
            Plot(
                plots.bellman_by_depth(branching),
                "RMS log Bellman error by depth, 95% intervals over prompts. A consistent model is at 0 everywhere.",
                f"Bellman error by depth of {roles}",
            ),
            Plot(
                plots.error_sizes(branching),
                "Size of the error over prefixes, and added up along solutions.",
                f"Quantiles of the Bellman error and path sums of {roles}",
            ),
            Plot(
                plots.distributions(branching),
                "Distribution of b over prefixes, and of its sums along solutions: cumulative shares. Right of 0 the value is "
                "too low for what follows, left of 0 too high.",
                f"Distribution of the Bellman error of {roles}",
            ),
        ]
    if models[0]["calibration"]["prefixes"]:
        found.append(
            Plot(
                plots.reliability(models),
                "Reliability: share of right solutions against the predicted probability, in bins of equal mass; bars are "
                "95% intervals over prompts.",
                "Reliability curve of the trained model",
            )
        )
    particles = plots.particles_for_accuracy(models, delta)
    if particles is not None:
        found.append(
            Plot(
                particles,
                f"Particles against accuracy, N = σ²/δ²; the grey line is the table's δ = {delta:g}. Bands are 95% intervals.",
                f"Particles against accuracy of {roles}",
            )
        )
    return tuple(found)


def _inconsistencies(report: AuditReport) -> tuple[Table, ...]:
    error, breakdowns = report.model.error, report.model.breakdowns
    found = []
    if error.best is not None:
        source = "enumerated" if error.exact is not None else "sampled, noise-corrected"
        found += [_depth_table(error.best, source), _value_table(breakdowns.by_value)]
    if error.binned is not None:
        found.append(_binned_table(error.binned))
    if breakdowns.worst:
        found.append(_worst_table(breakdowns.worst))
    return tuple(found)


def _table(caption: str, columns: tuple[str, ...], rows: Iterable[Sequence[object]]) -> Table:
    """Write the cells: intervals and numbers to three digits, what is missing as a dash."""
    return Table(caption, columns, tuple(tuple(map(_cell, row)) for row in rows))


def _depth_table(summary: BellmanSummary, source: str) -> Table:
    return _table(
        f"By depth ({source}; b in nats)",
        ("depth", "prefixes", "mean b", "RMS b", "mean (ρ − 1)²"),
        [
            (d.depth, d.n_prefixes, d.signed_mean, d.rms_corrected, d.squared_ratio_error)
            for d in summary.by_depth
        ],
    )


def _value_table(bins: tuple[ValueBin, ...]) -> Table:
    return _table(
        "By value of the prefix, bins of equal mass (sampled)",
        ("V", "prefixes", "mean b", "mean (ρ − 1)²"),
        [(f"{b.low:.3g} to {b.high:.3g}", b.n_prefixes, b.signed_mean, b.squared_ratio_error) for b in bins],
    )


def _binned_table(binned: FlatSummary) -> Table:
    rows = []
    for b in binned.bins:
        low, high = math.exp(b.lowest_log_value), math.exp(b.highest_log_value)
        rows.append((b.depth, f"{low:.3g} to {high:.3g}", b.n_prefixes, b.signed_mean))
    caption = "Without children: mean ρ − 1 by depth and value"
    return _table(caption, ("depth", "V", "prefixes", "mean ρ − 1"), rows)


def _worst_table(worst: tuple[WorstPrefix, ...]) -> Table:
    rows = []
    for w in worst:
        noise = f" ± {w.standard_error:.2f}" if w.standard_error else ""
        children = "; ".join(
            f"{_cut(c.text)!r} {c.value:.3g}{' (end)' if c.ended else ''}{f' ×{c.drawn}' if c.drawn > 1 else ''}"
            for c in w.children
        )
        rows.append(
            (
                _cut(w.prompt + "".join(w.steps)),
                f"{w.log_error:+.2f}{noise}",
                f"{w.value:.3g}",
                f"{w.value * w.ratio:.3g}",
                f"{children} ({w.n_children} drawn)",
            )
        )
    caption = "The worst prefixes: b, the value, the mean value one step later, and the next steps with their values"
    return Table(caption, ("prompt and steps so far", "b", "V", "E V next", "next steps"), tuple(rows))


def _costs_table(report: AuditReport) -> Table:
    alternatives = [m.cost.alternatives for m in report.models]
    worst_case = [m.cost.paper for m in report.models]
    rows = [
        *_fields(
            alternatives,
            _whole,
            ("tokens of a solution", "tokens_per_solution"),
            ("sampler: tokens", "smc_tokens"),
            ("rejection: solutions", "rejection_solutions"),
            ("rejection: tokens", "rejection_tokens"),
            ("best-of-N: N (rough)", "best_of_n_solutions"),
            ("best-of-N: tokens", "best_of_n_tokens"),
            ("prompts without a right solution", "prompts_without_success"),
        ),
        *_fields(
            worst_case,
            _large,
            ("Algorithm 2: pool M (worst case)", "pool_size"),
            ("Algorithm 2: proposals H (worst case)", "mh_steps"),
        ),
    ]
    delta = report.provenance["delta_tv"]
    caption = f"One answer within a total variation of {delta:g}; means over prompts with weights Z², as σ² is pooled"
    return Table(caption, _columns(report), tuple(rows))


def _fields(
    found: Sequence[object], show: Callable[[Any], str], *rows: tuple[str, str]
) -> list[tuple[str, ...]]:
    """Return a row per label and field, a cell per model; a dash for models without the group of figures."""
    return [
        (label, *(NONE if group is None else show(getattr(group, name)) for group in found))
        for label, name in rows
    ]


def _prompts_table(prompts: tuple[PromptAudit, ...]) -> Table:
    rows = [
        (
            *(_cut(p.prompt)[:80], p.success, p.root_value, p.z, p.signed_mean, p.sigma2),
            *(_whole(p.n_for_cv), _whole(p.n_for_tv)),
        )
        for p in sorted(prompts, key=_needs, reverse=True)[:PROMPTS_SHOWN]
    ]
    return _table(
        f"The {len(rows)} prompts that need most particles (intervals over a prompt's few trajectories are wide)",
        ("prompt", "right", "V(s0)", "Z", "mean b", "σ²", "N for CV", "N for TV"),
        rows,
    )


def _needs(prompt: PromptAudit) -> tuple[bool, float, float]:
    """Order prompts by sigma^2, by error where it is unknown; last come those without a right solution."""
    cost, error = prompt.sigma2, prompt.mean_square_corrected
    return (
        prompt.success > 0,
        -math.inf if cost is None or math.isnan(cost.estimate) else cost.estimate,
        0.0 if math.isnan(error) else error,
    )


def _counts_table(report: AuditReport) -> Table:
    summaries = [m.error.sampled for m in report.models]
    rows = [
        *_fields(
            [s and s.counts for s in summaries],
            str,
            ("prefixes", "n_prefixes"),
            ("with two children or more", "n_resolved"),
            ("with a value of zero", "n_degenerate"),
            ("whose children all have one value", "n_identical"),
        ),
        *_fields(
            [s and s.prompt_bounds for s in summaries],
            _bound,
            ("largest |b| of a prompt", "largest"),
            ("mean |b| of a prompt", "mean"),
        ),
    ]
    caption = "Counts, and what holds without assumptions (observed |b|, sampling noise included)"
    return Table(caption, _columns(report), tuple(rows))


def _bound(bound: FractionBound) -> str:
    if bound.error is None:
        return f"needs {bound.n_needed} prompts, has {bound.n}"
    return f"≤ {bound.error:.3g} for {bound.fraction:.0%} of prompts (confidence {bound.confidence:.0%})"


def _cell(value: object) -> str:
    number = value.estimate if isinstance(value, Interval) else value
    if number is None or (isinstance(number, float) and math.isnan(number)):
        return NONE
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _whole(value: Any) -> str:
    """Return a count, with its interval if it has one."""
    if not isinstance(value, Interval):
        return NONE if value is None else f"{value:,.0f}"
    if not math.isfinite(value.estimate):
        return NONE
    ends = ", ".join(
        "?" if e is None or not math.isfinite(e) else f"{e:,.0f}" for e in (value.low, value.high)
    )
    return f"{value.estimate:,.0f} [{ends}]"


def _large(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "beyond a float"
    return f"{value:,.0f}" if value < 1e7 else f"{value:.2g}"


def _cut(text: str) -> str:
    """Return the end of a long text: the part right before the step in question."""
    flat = " ⏎ ".join(text.strip().splitlines())
    return flat if len(flat) <= TEXT_SHOWN else f"… {flat[-TEXT_SHOWN:]}"
