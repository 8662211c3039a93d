"""The audit's report on disk: ``audit.json`` with every figure, ``audit.md`` for a model card, ``audit.html`` with plots.

Markdown and page are made from the JSON values alone, so that they can say nothing that is not in the file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmtools import plots
from rmtools.auditing.details import costs_table, prompts_table, where
from rmtools.auditing.report import JSON_FILE, SCHEMA_VERSION, AuditReport
from rmtools.auditing.row_help import reading
from rmtools.auditing.table import sentences, table
from rmtools.codec import VERSION, to_json
from rmtools.files import write_json, write_text
from rmtools.plots.page import Items, Plot, Section, Table, page

Values = Mapping[str, Any]

MARKDOWN_FILE, PAGE_FILE = "audit.md", "audit.html"


def write_report(report: AuditReport, out: Path) -> None:
    """Write ``audit.json``, ``audit.md`` and ``audit.html`` into the folder ``out``, each in one rename.

    Raises
    ------
    UserError
        If the folder cannot be written; what stood there before is kept.
    """
    values = report_values(report)
    write_json(Path(out) / JSON_FILE, values)
    write_text(Path(out) / MARKDOWN_FILE, markdown(values))
    write_text(Path(out) / PAGE_FILE, page(title(values), sections(values)))


def report_values(report: AuditReport) -> dict[str, Any]:
    """Return the content of ``audit.json``: the report's values, and the table as a person reads it."""
    p = report.provenance
    lines = {
        "columns": [m.role for m in report.models],
        "rows": [
            {"label": label, "cells": cells}
            for label, cells in table(report.models, p["delta_cv"], p["delta_tv"])
        ],
        "sentences": sentences(report.model, report.pairs, report.measured),
    }
    return {VERSION: SCHEMA_VERSION, **to_json(report), "table": lines}


def title(values: Values) -> str:
    """Return the report's title."""
    return f"Audit of {values['provenance']['checkpoint']}"


def introduction(values: Values) -> str:
    """Return what was audited, in two sentences."""
    p = values["provenance"]
    return (
        f"How inconsistent the reward model is, and how many particles that costs. {p['n_trajectories']} solutions of "
        f"{p['n_prompts']} prompts of the task {p['task']} by the policy {p['policy']}; the controls are scored on "
        f"the same prefixes. Brackets are 95% intervals over prompts."
    )


def readings(values: Values) -> tuple[tuple[str, str], ...]:
    """Return each line's label and how to read it."""
    return tuple((row["label"], reading(row["label"])) for row in values["table"]["rows"])


def main_table(values: Values) -> Table:
    """Return the ten-line table."""
    table = values["table"]
    rows = tuple((row["label"], *row["cells"]) for row in table["rows"])
    return Table(
        f"Audit, terminal {values['provenance']['terminal']}; errors in nats", ("", *table["columns"]), rows
    )


def counts_table(values: Values) -> Table:
    """Return what was counted rather than dropped, and what can be said of all prompts."""
    lines = (
        ("prefixes", "n_prefixes"),
        ("with two children or more", "n_resolved"),
        ("with a value of zero", "n_degenerate"),
        ("whose children all have one value", "n_identical"),
    )
    summaries = [m["bellman"] for m in values["models"]]
    rows = [(label, *("-" if s is None else str(s[key]) for s in summaries)) for label, key in lines]
    for label, key in (
        ("largest |b| of a prompt", "prompt_max_bound"),
        ("mean |b| of a prompt", "prompt_mean_bound"),
    ):
        rows.append((label, *("-" if s is None else bound_text(s[key]) for s in summaries)))
    return Table(
        "Counts, and what holds without assumptions (observed |b|, sampling noise included)",
        ("", *values["table"]["columns"]),
        tuple(rows),
    )


def bound_text(bound: Values) -> str:
    """Return the distribution-free statement, or how many prompts it takes."""
    if bound["error"] is None:
        return f"needs {bound['n_needed']} prompts, has {bound['n']}"
    return f"≤ {bound['error']:.3g} for {bound['fraction']:.0%} of prompts (confidence {bound['confidence']:.0%})"


def provenance(values: Values) -> tuple[tuple[str, str], ...]:
    """Return name and text of every entry of the provenance."""
    entries = dict(values["provenance"])
    if values["uncovered"]:
        outside = values["uncovered"]
        entries["probability outside the enumerated steps, mean / largest; prefixes left out for it"] = (
            f"{outside['mean']:.2g} / {outside['largest']:.2g}; {outside['left_out']:.0f}"
        )
    return tuple(
        (name.replace("_", " "), text if isinstance(text, str) else json.dumps(text, ensure_ascii=False))
        for name, text in entries.items()
    )


def warnings(values: Values) -> tuple[tuple[str, str], ...]:
    """Return the warnings as items of a list."""
    return tuple(("", text) for text in values["warnings"]) or (("", "none"),)


def figures(values: Values) -> tuple[Plot, ...]:
    """Return the plots of an audit: those that its rollouts have figures for."""
    models, delta = values["models"], values["provenance"]["delta_cv"]
    branching = [m for m in models if m["bellman"]]
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
                "How large the error is, over prefixes and added up along solutions.",
                f"Quantiles of the Bellman error and path sums of {roles}",
            ),
            Plot(
                plots.distributions(branching),
                "Distribution of b over prefixes, and of its sums along solutions: cumulative shares. Right of 0 the value is "
                "too low for what follows, left of 0 too high.",
                f"Distribution of the Bellman error of {roles}",
            ),
        ]
    if models[0]["calibration"]:
        found.append(
            Plot(
                plots.reliability(models),
                "Reliability: share of right solutions against the predicted probability, in "
                "bins of equal mass; bars are 95% intervals over prompts.",
                "Reliability curve of the trained model",
            )
        )
    particles = plots.particles_for_accuracy(models, delta)
    if particles is not None:
        found.append(
            Plot(
                particles,
                f"Particles against accuracy, N = σ²/δ²; the grey line is the table's δ = {delta:g}. "
                "Bands are 95% intervals.",
                f"Particles against accuracy of {roles}",
            )
        )
    return tuple(found)


def sections(values: Values) -> list[Section]:
    """Return the sections of the audit's page."""
    in_words = tuple(("", text) for text in values["table"]["sentences"])
    return [
        Section(
            "The audit",
            (introduction(values), main_table(values), *([Items(in_words)] if in_words else [])),
        ),
        Section("Warnings", (Items(warnings(values)),)),
        Section("Plots", figures(values)),
        Section("Where the model is inconsistent", tuple(where(values))),
        Section("What it costs", (costs_table(values), prompts_table(values))),
        Section("How to read each line", (Items(readings(values)),)),
        Section("Counts", (counts_table(values),)),
        Section("Provenance", (Items(provenance(values)),)),
    ]


def markdown(values: Values) -> str:
    """Return the report as Markdown that can be pasted into a model card."""
    blocks = [b for b in where(values) if isinstance(b, Table)]
    parts = [
        f"## {escape(title(values))}",
        escape(introduction(values)),
        markdown_table(main_table(values)),
        "\n".join(f"- {escape(text)}" for text in values["table"]["sentences"]),
        "### Warnings",
        "\n".join(f"- {escape(text)}" for _, text in warnings(values)),
        "### Where the model is inconsistent",
        *map(markdown_table, blocks),
        "### What it costs",
        markdown_table(costs_table(values)),
        "### How to read each line",
        "\n".join(f"- **{escape(a)}**: {escape(b)}" for a, b in readings(values)),
        "### Counts",
        markdown_table(counts_table(values)),
        "### Provenance",
        "\n".join(f"- {escape(a)}: `{b.replace('`', chr(39))}`" for a, b in provenance(values)),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def markdown_table(table: Table) -> str:
    """Return a table in GitHub's Markdown, below its caption."""
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return f"{escape(table.caption)}\n\n" + "\n".join(
        f"| {' | '.join(escape(c) for c in row)} |" for row in lines
    )


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, also inside a table."""
    for mark in "\\|*_<>[]`":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
