"""The report of an audit on disk: JSON, Markdown and page."""

import json
import re

import pytest
from audit_example import assert_self_contained, example_report, visible

from rmtools.auditing.page import write_report
from rmtools.auditing.table import ROWS, as_text, table
from rmtools.codec import from_json
from rmtools.plots.page import Items, Section, Table, page
from rmtools.stats.bootstrap import Interval


@pytest.fixture(scope="module")
def report():
    return example_report()


@pytest.fixture(scope="module")
def audited(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    write_report(report, folder)
    return folder


# Lines that these rollouts have no figure for: children, no tables, four prefixes a prompt and depth.
NOT_HERE = (
    "RMS b, gauge-fixed",
    "mean (rho - 1)^2, at least",
    "sigma^2, enumerated",
    "sigma^2 of a perfect value",
    "sigma^2 over a perfect value's",
)


def test_every_cell_of_the_audit_is_on_the_page_and_in_the_json(report, audited):
    values = json.loads((audited / "audit.json").read_text())
    html, text = (audited / "audit.html").read_text(), (audited / "audit.md").read_text()
    assert_self_contained(html)
    words = visible(html)
    lines = table(report.models, 0.25, 0.05)
    for line in lines:
        assert all(part in words for part in (line.label, line.help, *line.cells))
    cells = {line.label: line.cells for line in lines}
    for i, m in enumerate(values["models"]):
        error, calibration = m["error"], m["calibration"]["prefixes"]
        assert cells["RMS b, enumerated"][i] == interval(error["exact"]["corrected"]["rms"])
        assert cells["RMS b, sampled, plug-in"][i] == interval(error["sampled"]["plug_in"]["rms"])
        assert cells["c = T RMS b"][i] == interval(error["exact"]["corrected"]["c"])
        assert cells["sigma^2, pooled"][i].startswith(interval(m["cost"]["sigma2"]["estimate"]))
        shown = f"{calibration['ece']:.3g} / {calibration['auc']['estimate']:.3g}"
        assert cells["ECE / AUC"][i] == shown
    labels = [row.label.format(delta_cv=0.25, delta_tv=0.05) for row in ROWS]
    assert [label for label in labels if label not in cells] == list(NOT_HERE)
    assert list(cells) == [label for label in labels if label in cells]
    tables = [t for t in text.split("\n\n") if t.startswith("|")]
    widths = [{len(re.findall(r"(?<!\\)\|", line)) for line in t.splitlines()} for t in tables]
    assert widths[:2] == [{4}, {5}]
    assert all(len(w) == 1 for w in widths)


def interval(values):
    return str(from_json(Interval, values))


def test_models_that_do_not_fit_into_80_columns_stand_below(report):
    models = report.models * 3
    text = as_text(models, 0.25, 0.05)
    assert max(map(len, text.splitlines())) <= 80
    blocks = text.split("\n\n")
    assert len(blocks) > 1
    rows = len(table(models, 0.25, 0.05)) + 1
    assert all(len(block.splitlines()) >= rows for block in blocks)
    shown = " ".join(block.splitlines()[0] for block in blocks).split()
    assert shown == [m.role for m in models]


def test_three_controls_stand_side_by_side(report):
    model = report.model
    assert len(as_text([model] * 4, 0.25, 0.05).split("\n\n")) == 2


def test_texts_are_escaped(audited):
    html, text = (audited / "audit.html").read_text(), (audited / "audit.md").read_text()
    assert "<b>" not in html
    assert "&lt;b&gt;prm" in html
    assert "mind the &lt;script&gt;gap" in html
    assert "<script>" not in text.replace("\\<script\\>", "")
    nasty = '"><img src=http://x onerror=y>'
    blocks = (nasty, Table(nasty, (nasty,), ((nasty,),)), Items(((nasty, nasty),)))
    assert nasty not in page(nasty, [Section(nasty, blocks)])
