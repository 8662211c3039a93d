"""The audit's report on disk: ``audit.json`` with every figure, ``audit.md`` for a model card, ``audit.html`` with plots.

Markdown and page are two forms of the same sections.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmtools import plots
from rmtools.auditing.breakdowns import PromptAudit, WorstPrefix
from rmtools.auditing.cost_tables import cost_tables
from rmtools.auditing.figures import audit_plots
from rmtools.auditing.metrics import look
from rmtools.auditing.report import AuditReport, save_report
from rmtools.auditing.table import Line, digits, not_negative, sentences, table, whole
from rmtools.files import write_text
from rmtools.plots.page import Facts, Items, Lead, Plot, Section, Table, page
from rmtools.plots.page import markdown as sections_markdown
from rmtools.stats.bootstrap import Interval
from rmtools.stats.quantiles import FractionBound
from rmtools.summary import counted

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


def markdown(report: AuditReport) -> str:
    """Return the report, without plots and prompts, as Markdown that can be pasted into a model card."""
    return sections_markdown(_title(report), [s for s in sections(report, drawn=False) if s.title != PROMPTS])


def sections(report: AuditReport, *, drawn: bool = True) -> list[Section]:
    """Return the sections of the audit's page, all but the answer and the warnings folded; without plots unless ``drawn``."""
    in_words = tuple(("", text) for text in sentences(report.pairs, report.measured))
    pictures = figures(report) if drawn else ()
    found = [
        Section("", (*answer(report), *pictures[:1])),
        Section("Warnings", (warnings(report),)),
        Section("Every figure", (introduction(report), main_table(report), Items(in_words)), folded=True),
        Section("What it costs", tuple(_costs(report)), folded=True),
        Section("Plots", pictures[1:], folded=True),
        Section("Where the model is inconsistent", tuple(_inconsistencies(report)), folded=True),
        Section(PROMPTS, (_prompts_table(report.model.breakdowns.by_prompt),), folded=True),
        Section("How to read each line", (row_help(report),), folded=True),
        Section("Counts", (_counts_table(report),), folded=True),
        Section("Provenance", (provenance(report),), folded=True),
    ]
    return [section for section in found if section.blocks]


def answer(report: AuditReport) -> tuple[str | Lead | Facts, ...]:
    """Return what stands first: whose sampler it is not, the verdict, and its lines."""
    screen = report.first_screen()
    caveats = (*report.about_model, *(f"Warning: {text}." for text in report.of_another))
    facts = Facts(tuple((f.label, f.figure, f.remark, f.command) for f in screen.facts))
    return (*caveats, Lead(screen.verdict), facts, "Brackets are 95% intervals over prompts.")


def _title(report: AuditReport) -> str:
    return f"Audit of {report.provenance['checkpoint']}"


def introduction(report: AuditReport) -> str:
    """Return the sentence above the main table."""
    p = report.provenance
    size = f"{counted(p['n_trajectories'], 'solution')} of {counted(p['n_prompts'], 'prompt')}"
    return (
        f"How inconsistent the reward model is, and how many particles that costs. {size} of the task {p['task']} by the "
        f"policy {p['policy']}; the controls are scored on the same prefixes. Brackets are 95% intervals over prompts."
    )


def warnings(report: AuditReport) -> Items:
    """Return what a reader must know before trusting a figure."""
    return Items(tuple(("", text) for text in report.warnings) or (("", "none"),))


def row_help(report: AuditReport) -> Items:
    """Return the help of each row of the main table."""
    return Items(tuple((line.label, line.help) for line in _lines(report)))


def _lines(report: AuditReport) -> list[Line]:
    return table(report.models, report.provenance["delta_cv"], report.provenance["delta_tv"])


def main_table(report: AuditReport) -> Table:
    """Return the table with a column per model."""
    rows = ((line.label, *line.cells) for line in _lines(report))
    return _table(f"Audit, terminal {report.provenance['terminal']}; errors in nats", _columns(report), rows)


def _columns(report: AuditReport) -> tuple[str, ...]:
    return ("", *(m.role for m in report.models))


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
    found = audit_plots(report.models, report.provenance["delta_cv"])
    return tuple(Plot(plots.svg_text(p.draw()), p.caption, p.alternative) for p in found.values())


def _inconsistencies(report: AuditReport) -> Iterable[Table]:
    error, breakdowns = report.model.error, report.model.breakdowns
    if error.best is not None:
        yield _table(
            f"By depth ({'sampled, noise-corrected' if error.exact is None else 'enumerated'}; b in nats)",
            ("depth", "prefixes", "mean b", "RMS b", "mean (ρ − 1)²"),
            (
                (d.depth, d.n_prefixes, d.signed_mean, d.rms_corrected, _variance(d.squared_ratio_error))
                for d in error.best.by_depth
            ),
        )
        yield _table(
            "By value of the prefix, bins of equal mass (sampled)",
            ("V", "prefixes", "mean b", "mean (ρ − 1)²"),
            (
                (_range(b.low, b.high), b.n_prefixes, b.signed_mean, _variance(b.squared_ratio_error))
                for b in breakdowns.by_value
            ),
        )
    if error.binned is not None:
        yield _table(
            "Without children: mean ρ − 1 by depth and value",
            ("depth", "V", "prefixes", "mean ρ − 1"),
            (
                (
                    b.depth,
                    _range(*np.exp([b.lowest_log_value, b.highest_log_value])),
                    b.n_prefixes,
                    b.signed_mean,
                )
                for b in error.binned.bins
            ),
        )
    if breakdowns.worst:
        yield _table(
            "The worst prefixes: b, the value, the mean value one step later, and the next steps with their values",
            ("prompt and steps so far", "b", "V", "E V next", "next steps"),
            map(_worst, breakdowns.worst),
        )


def _range(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"


def _worst(w: WorstPrefix) -> Sequence[object]:
    noise = f" ± {w.standard_error:.2f}" if w.standard_error else ""
    children = "; ".join(
        f"{_cut(c.text)!r} {c.value:.3g}{' (end)' if c.ended else ''}{f' ×{c.drawn}' if c.drawn > 1 else ''}"
        for c in w.children
    )
    place = _cut(w.prompt + "".join(w.steps))
    return (
        place,
        f"{w.log_error:+.2f}{noise}",
        w.value,
        w.value * w.ratio,
        f"{children} ({w.n_children} drawn)",
    )


def _costs(report: AuditReport) -> Iterable[Table]:
    yield from cost_tables(report)
    yield _table(
        "Worst cases, and what the rollouts leave open",
        _columns(report),
        _by_model(
            report,
            _whole,
            {
                "tokens of a solution": "cost/alternatives/tokens_per_solution",
                "prompts without a right solution": "cost/alternatives/prompts_without_success",
                "Algorithm 2: pool M (worst case)": "cost/paper/pool_size",
                "Algorithm 2: proposals H (worst case)": "cost/paper/mh_steps",
            },
        ),
    )


def _counts_table(report: AuditReport) -> Table:
    return _table(
        "Counts, and what holds without assumptions (observed |b|, sampling noise included)",
        _columns(report),
        _by_model(
            report,
            _cell,
            {
                "prefixes": "error/sampled/counts/n_prefixes",
                "with two children or more": "error/sampled/counts/n_resolved",
                "with a value of zero": "error/sampled/counts/n_degenerate",
                "whose children all have one value": "error/sampled/counts/n_identical",
                "largest |b| of a prompt": "error/sampled/prompt_bounds/largest",
                "mean |b| of a prompt": "error/sampled/prompt_bounds/mean",
            },
        ),
    )


def _by_model(
    report: AuditReport, show: Callable[[Any], str], rows: Mapping[str, str]
) -> Iterable[tuple[str, ...]]:
    """Return a row per label and path of a figure, a cell per model."""
    return ((label, *(show(look(m, path)) for m in report.models)) for label, path in rows.items())


def _prompts_table(prompts: tuple[PromptAudit, ...]) -> Table:
    rows = [
        (
            *(_cut(p.prompt)[:80], p.success, p.root_value, p.z, p.signed_mean, _variance(p.sigma2)),
            *(_whole(p.n_for_cv), _whole(p.n_for_tv)),
        )
        for p in sorted(prompts, key=_needs, reverse=True)[:PROMPTS_SHOWN]
    ]
    return _table(
        f"The {len(rows)} prompts that need most particles (intervals over a prompt's few trajectories are wide)",
        ("prompt", "right", "V(s0)", "Z", "mean b", "σ²", "N for CV", "N for TV"),
        rows,
    )


def _variance(found: Interval | None) -> str:
    return NONE if found is None or math.isnan(found.estimate) else not_negative(found)


def _needs(prompt: PromptAudit) -> tuple[bool, float, float]:
    """Order prompts by sigma^2, by error where it is unknown; last those without a right solution."""
    cost, error = prompt.sigma2, prompt.mean_square_corrected
    return (
        prompt.success > 0,
        -math.inf if cost is None or math.isnan(cost.estimate) else cost.estimate,
        0.0 if math.isnan(error) else error,
    )


def _table(caption: str, columns: tuple[str, ...], rows: Iterable[Sequence[object]]) -> Table:
    """Write the cells: intervals and numbers to three digits, what is missing as a dash."""
    return Table(caption, columns, tuple(tuple(map(_cell, row)) for row in rows))


def _cell(value: Any) -> str:
    if isinstance(value, FractionBound):
        if value.error is None:
            return f"needs {value.n_needed} prompts, has {value.n}"
        return f"≤ {value.error:.3g} for {value.fraction:.0%} of prompts (confidence {value.confidence:.0%})"
    number = value.estimate if isinstance(value, Interval) else value
    return NONE if number is None or number != number else digits(value)


def _whole(value: Any) -> str:
    """Return a count, with its interval if it has one."""
    if isinstance(value, Interval) and math.isfinite(value.estimate):
        return whole(value, lambda n: f"{n:,.0f}")
    if value is None or isinstance(value, Interval):
        return NONE
    return f"{value:,.0f}" if value < 1e7 else f"{value:.2g}"


def _cut(text: str) -> str:
    """Return the end of a long text: the part right before the step in question."""
    flat = " ⏎ ".join(text.strip().splitlines())
    return flat if len(flat) <= TEXT_SHOWN else f"… {flat[-TEXT_SHOWN:]}"
