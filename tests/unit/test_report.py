"""The report of an audit on disk: JSON, Markdown and page."""

import json
import re

import pytest
from audit_example import assert_self_contained, example_report, visible

from rmtools.auditing.page import write_report
from rmtools.auditing.row_help import READING, reading
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
    "sigma^2 of a perfect value, enumerated",
    "particles of a perfect value times",
)


def test_every_cell_of_the_audit_is_in_the_json(audited):
    values = json.loads((audited / "audit.json").read_text())
    html, text = (audited / "audit.html").read_text(), (audited / "audit.md").read_text()
    assert_self_contained(html)
    words = visible(html)
    for row in values["table"]["rows"]:
        assert reading(row["label"])
        assert row["label"] in words
        assert all(cell in words for cell in row["cells"])
    cells = {row["label"]: row["cells"] for row in values["table"]["rows"]}
    for i, m in enumerate(values["models"]):
        assert cells["RMS b, enumerated"][i] == str(from_json(Interval, m["exact"]["rms_corrected"]))
        assert cells["RMS b, sampled, plug-in"][i] == str(from_json(Interval, m["bellman"]["rms_plug_in"]))
        assert cells["c = T RMS b"][i] == str(from_json(Interval, m["exact"]["c"]))
        assert cells["sigma^2, pooled"][i].startswith(str(from_json(Interval, m["sigma2"]["estimate"])))
        assert (
            f"{m['calibration']['ece']:.3g} / {m['calibration']['auc']['estimate']:.3g}"
            == cells["ECE / AUC"][i]
        )
    assert len(cells) == 17
    missing = [start for start in READING if not any(label.startswith(start) for label in cells)]
    assert missing == list(NOT_HERE)
    tables = [t for t in text.split("\n\n") if t.startswith("|")]
    widths = [{len(re.findall(r"(?<!\\)\|", line)) for line in t.splitlines()} for t in tables]
    assert widths[0] == {5}
    assert all(len(w) == 1 for w in widths)


def test_texts_are_escaped(audited):
    html, text = (audited / "audit.html").read_text(), (audited / "audit.md").read_text()
    assert "<b>" not in html
    assert "&lt;b&gt;prm" in html
    assert "mind the &lt;script&gt;gap" in html
    assert "<script>" not in text.replace("\\<script\\>", "")
    nasty = '"><img src=http://x onerror=y>'
    blocks = (nasty, Table(nasty, (nasty,), ((nasty,),)), Items(((nasty, nasty),)))
    assert nasty not in page(nasty, [Section(nasty, blocks)])
