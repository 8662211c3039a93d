"""What `verify exact` writes, and how its run ends when something else fails."""

import dataclasses
import errno
import json
import os
import pathlib
import signal

import pytest

from rmtools.codec import load_json
from rmtools.errors import UserError
from rmtools.verify.theorems import CHECKS, Check, ExactVerification, case
from rmtools.verify.theorems.report import SCHEMA_VERSION, drawings, html, markdown, write_report
from rmtools.verify.theorems.runner import results


def curve(kind, level, measured):
    rows = [
        {"horizon": t, "predicted": 3.0**k, "measured": measured, "error": 0.1, "runs": 9}
        for k, t in enumerate((8, 16, 32, 64))
    ]
    return {
        "label": f"epsilon, {kind}",
        "kind": kind,
        "level": level,
        "rows": rows,
        "delta_cv": 0.2,
        "most_particles": 2_000,
        "slope": 1.0,
    }


@pytest.fixture
def verification():
    law = {"n": 40, "predicted": 0.1, "ratio": 1.0, "ratio_error": 0.1}
    slope = {"label": "systematic", "slope": -1.0, "rows": [{"n": 20, "tv": 0.1, "error": 0.01}]}
    cases = {
        "phase transition": [curve("none", 2, 5.0), curve("constant", 0.1, None), curve("scaled", 1, 2.0)],
        "output law": [{"label": "T = 3, pool 1", "pool": 1, "mad": 8.0, "rows": [law]}, slope],
        "variance": [
            {
                "label": "product, pool 1",
                "pool": 1,
                "sigma2": 2.0,
                "rows": [{"n": 9, "ratio": 1.0, "ratio_error": 0.1}],
            }
        ],
    }
    checks = [
        Check(c.NAME, c.ON, c.MUST_SHOW, "x | y", c.NAME != "variance", cases.get(c.NAME, []), 1.0)
        for c in CHECKS
    ]
    return ExactVerification(False, tuple(checks), True, 3, 12.0)


def test_a_report_says_what_fails_and_comes_back_from_json(verification, tmp_path):
    assert "FAILS  variance" in str(verification)
    assert "8 of 9 checks hold" in str(verification)
    text = markdown(verification)
    assert "1 do not hold: variance" in text
    assert all(line.replace("\\|", "").count("|") == 6 for line in text.splitlines() if line.startswith("|"))
    found = html(verification, [*drawings(verification).values()])
    assert "http://" not in found
    assert "https://" not in found
    write_report(verification, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {
        "exact.json",
        "exact.md",
        "exact.html",
        "phase_transition.svg",
        "output_law.svg",
        "variance.svg",
    }
    path = tmp_path / "out" / "exact.json"
    assert load_json(ExactVerification, path, "verification", SCHEMA_VERSION, "run it again") == verification


def test_a_figure_that_could_not_be_computed_does_not_stop_the_report(verification, tmp_path):
    law = next(check for check in verification.checks if check.name == "output law")
    law.cases[1] |= {"slope": float("nan"), "slope_error": float("inf")}
    write_report(verification, tmp_path)
    written = json.loads((tmp_path / "exact.json").read_text())
    slopes = [c for check in written["checks"] for c in check["cases"] if "slope_error" in c]
    assert [(c["slope"], c["slope_error"]) for c in slopes] == [(None, None)]


def killed(rng):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_and_not_a_hang():
    todo = {("x", name): case.Case(name, killed) for name in "ab"}
    with pytest.raises(UserError, match="killed"):
        list(results(todo, 0, 2))


def test_a_full_disk_leaves_the_last_report_whole(verification, tmp_path, monkeypatch):
    picture = {"variance": ("<svg/>", "a caption")}
    monkeypatch.setattr("rmtools.verify.theorems.report.drawings", lambda found: picture)
    write_report(verification, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write = pathlib.Path.write_text

    def full(self, text, **settings):
        if self.name == "exact.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, text, **settings)

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(UserError, match=r"No space left on device.*unchanged"):
        write_report(dataclasses.replace(verification, seed=9), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
