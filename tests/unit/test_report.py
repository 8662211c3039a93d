"""The reports of an audit and of a run, on a small run folder of the true schema."""

import json
import re
import shutil
from dataclasses import asdict
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from rmtools.auditing import AuditReport
from rmtools.auditing.model_audit import Asked, audit_model
from rmtools.auditing.page import write_report
from rmtools.auditing.row_help import READING, reading
from rmtools.codec import save_json
from rmtools.core import Tilt
from rmtools.data.rollouts import SCHEMA_VERSION, Child, Rollout, RolloutMetadata
from rmtools.data.scoring import ScoredRollouts
from rmtools.errors import UserError
from rmtools.files import write_json
from rmtools.lm.steps import StepSettings
from rmtools.plots.page import Items, Section, Table, page
from rmtools.stats.bootstrap import Interval
from rmtools.verify.language_model import PromptVerification, Verification
from rmtools.verify.law import LawCheck
from rmtools.verify.summary import STAGES, rms_ratios, summarise, write_summary

PROMPTS, PER_PROMPT, T, K = 8, 4, 3, 4
TILT = Tilt(0.05)


def rollouts(rng):
    def row(g, i):
        children = [
            [
                Child(f"{k}\n", t == T - 1, float(rng.random() < 0.4) if t == T - 1 else None)
                for k in range(K - 1)
            ]
            for t in range(T)
        ]
        completions = [[float(rng.random() < 0.4) for _ in range(2)] for _ in range(T)]
        return Rollout(f"p{g}", f"prompt {g}", [f"{i}\n"] * T, float(i % 2), children, completions)

    return [row(g, i) for g in range(PROMPTS) for i in range(PER_PROMPT)]


def scored(rows, rng, noise):
    """Values around the base rate with an error of about ``noise`` nats, the potential at the end."""
    n = len(rows)
    reward = np.asarray([r.reward for r in rows])
    own = [TILT.log_value(np.log(0.45) - noise * np.abs(rng.normal(size=T + 1))) for _ in rows]
    value = [v.copy() for v in own]
    for v, phi in zip(value, TILT.log_potential(reward), strict=True):
        v[-1] = phi
    parents = np.concatenate([v[:-1] for v in value])
    children = parents[:, None] + noise * rng.normal(size=(n * T, K))
    return ScoredRollouts(
        prompt=np.repeat(np.arange(PROMPTS), PER_PROMPT),
        log_value=value,
        own_log_value=own,
        reward=reward,
        prefix_trajectory=np.repeat(np.arange(n), T),
        prefix_depth=np.tile(np.arange(T), n),
        prefix_log_value=parents,
        child_log_value=children,
        child_present=np.ones((n * T, K), dtype=bool),
        horizon=T,
    )


@pytest.fixture(scope="module")
def report():
    rng = np.random.default_rng(3)
    rows = rollouts(rng)
    found = [
        audit_model(
            role,
            f"runs/{role}",
            rows,
            scored(rows, rng, noise),
            TILT,
            noise * rng.normal(size=len(rows) * T),
            Asked(0.25, 0.05, "verifier", 6.0),
            np.random.default_rng(k),
        )
        for k, (role, noise) in enumerate((("model", 0.1), ("constant", 0.5), ("untrained", 0.8)))
    ]
    provenance = {
        "checkpoint": "runs/<b>prm</b>",
        "policy": "runs/policy",
        "task": "crossing",
        "horizon": T,
        "terminal": "verifier",
        "n_prompts": PROMPTS,
        "n_trajectories": len(rows),
        "delta_cv": 0.25,
        "delta_tv": 0.05,
        "training": {"target": "td"},
    }
    return AuditReport(
        tuple(found),
        {},
        provenance,
        {"mean": 0.001, "largest": 0.02, "left_out": 3.0},
        ("mind the <script>gap</script> | end",),
    )


def record(prompt, rewards, argmax, draw, ancestors):
    samples = [{"steps": ["u r1 \n"], "log_weight": -1.0, "log_value": -0.5, "reward": r} for r in rewards]
    return {
        "provenance": {"model_fingerprint": "m", "policy_fingerprint": "p"},
        "prompt": prompt,
        "terminal": "model",
        "estimates": "log E",
        "log_z": None,
        "draw": draw,
        "argmax": argmax,
        "samples": samples,
        "ess": [2.0],
        "ancestors": [ancestors],
        "generated_tokens": 24.0,
    }


# By prompt: rewards of the two samples, the index of the argmax and of the draw.
BEST = [([1, 0], 0, 1), ([0, 0], 0, 0), ([0, 1], 0, 1), ([0, 0], 1, 1)]
SMC = [([1, 1], 0, 1), ([0, 1], 1, 0), ([0, 1], 1, 1), ([0, 0], 1, 1)]


@pytest.fixture(scope="module")
def audited(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    write_report(report, folder)
    return folder


@pytest.fixture
def run(tmp_path, audited):
    write_json(
        tmp_path / "policy/gate.json",
        {"well_formed": 0.99, "right_row": 0.995, "samples": 2048, "success": 0.05},
    )
    for k, name in enumerate(("train", "heldout", "audit")):
        meta = RolloutMetadata(
            "policy",
            "abc",
            "crossing",
            T,
            StepSettings("\n", T),
            1.0,
            0,
            removed_prompts=k,
            generated_tokens=100,
        )
        write_json(
            tmp_path / f"rollouts/{name}/metadata.json", {"schema_version": SCHEMA_VERSION, **asdict(meta)}
        )
    log = [
        {"loss": 1.5, "step": 25, "epoch": 0.1},
        {"loss": 1.2, "step": 50, "epoch": 0.2},
        {"eval_rms_log_bellman": 0.0, "eval_mean_square_log_bellman": -0.1, "eval_brier": 0.05, "step": 50},
        {"train_runtime": 3.0, "step": 50},
    ]
    write_json(tmp_path / "prm/training_log.json", log)
    shutil.copytree(audited, tmp_path / "audit")
    for name, rows, kept in (("best_of_n", BEST, [0, 1]), ("smc", SMC, [0, 0])):
        lines = [
            json.dumps(record(f"p{i}", [float(x) for x in r], a, d, kept)) for i, (r, a, d) in enumerate(rows)
        ]
        (tmp_path / "samples").mkdir(exist_ok=True)
        (tmp_path / f"samples/{name}.jsonl").write_text("\n".join(lines) + "\n")
    write_json(tmp_path / "samples/prompts.meta.json", {"removed_prompts": 5})
    measured = Interval(4.4, 3.0, 6.0)
    prompts = [
        PromptVerification(f"p{i}", 64, 200, 0.1, 1e-4, 3.0 + i, measured, 1.01, 0.01) for i in range(8)
    ]
    ratio = Interval(1.1, 0.75, 1.5)
    tests = [{"samples": 4096.0, "cells": 9.0, "statistic": 8.0, "p_value": p} for p in (0.43, 0.2)]
    law = LawCheck(2048, 256, 0.99, 0.985, 12, 3, tests)
    verification = Verification(prompts, 2, 4.0, measured, ratio, law, {})
    save_json(tmp_path / "verify/verify.json", verification, 1)
    stages = [
        {
            "name": "policy",
            "command": "python recipes/train_policy.py",
            "seconds": 50.0,
            "peak_memory_gib": 0.5,
        },
        {"name": "audit", "command": "rmtools audit <x>", "seconds": 20.5, "peak_memory_gib": 0.75},
    ]
    write_json(tmp_path / "stages.json", {"stages": stages})
    return tmp_path


# Lines that these rollouts have no figure for: children, no tables, four prefixes a prompt and depth.
NOT_HERE = (
    "RMS b, gauge-fixed",
    "mean (rho - 1)^2, at least",
    "sigma^2, enumerated",
    "sigma^2 of a perfect value, enumerated",
    "particles of a perfect value times",
)


def visible(html):
    """The words of a page, without tags."""
    return unescape(re.sub(r"<[^>]+>", " ", html))


def assert_self_contained(html):
    assert not re.search(r"<(script|link(?! rel=\"icon\" href=\"data:)|iframe|object)\b", html)
    addresses = re.findall(r"(?:src|href|srcset|action)\s*=\s*[\"']?([^\"'> ]+)", html)
    assert addresses
    assert all(a.startswith("data:") for a in addresses)
    assert "url(" not in html
    assert "@import" not in html
    assert 'name="viewport"' in html


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
        assert cells["RMS b, enumerated"][i] == str(Interval.from_dict(m["exact"]["rms_corrected"]))
        assert cells["RMS b, sampled, plug-in"][i] == str(Interval.from_dict(m["bellman"]["rms_plug_in"]))
        assert cells["c = T RMS b"][i] == str(Interval.from_dict(m["exact"]["c"]))
        assert cells["sigma^2, pooled"][i].startswith(str(Interval.from_dict(m["sigma2"]["estimate"])))
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


def test_summary_has_the_hand_computed_figures(run):
    found = summarise(run)
    assert found["success"]["plain"]["estimate"] == pytest.approx(2 / 8)
    assert found["success"]["best_of_n"]["estimate"] == pytest.approx(1 / 4)
    assert found["success"]["smc"]["estimate"] == pytest.approx(3 / 4)
    assert found["success_weighted_draw"]["best_of_n"]["estimate"] == pytest.approx(1 / 4)
    assert found["success_weighted_draw"]["smc"]["estimate"] == pytest.approx(2 / 4)
    assert found["success_any_of_n"]["estimate"] == pytest.approx(2 / 4)
    assert found["smc_over_best_of_n"]["estimate"] == pytest.approx(3.0)
    for rate in found["success"].values():
        assert 0 <= rate["low"] <= rate["estimate"] <= rate["high"] <= 1
    assert found["generated_tokens"] == {"best_of_n": 96.0, "smc": 96.0}
    assert (found["n_prompts"], found["n_particles"]) == (4, 2)
    assert found["removed_prompts"] == {"train": 0, "heldout": 1, "audit": 2, "sampling": 5}
    assert found["sigma2"] == {
        "predicted": {"estimate": 4.0, "low": 4.0, "high": 4.0},
        "measured": {"estimate": 4.4, "low": 3.0, "high": 6.0},
    }
    assert found["seconds"] == {"policy": 50.0, "audit": 20.5, "total": 70.5}
    assert found["peak_memory_gib"] == 0.75


def test_summary_takes_the_bellman_error_from_enumeration(run, report):
    found = summarise(run)
    for m, role in zip(report.models, ("trained", "constant", "untrained"), strict=True):
        assert found["rms_log_bellman"][role] == m.exact.rms_corrected.to_dict()
        assert found["rms_log_bellman_sampled"][role]["estimate"] == m.bellman.rms_corrected.estimate
        assert found["rms_log_bellman_sampled"][role]["resolved"] is m.bellman.resolved
    trained, constant = (m.exact.rms_corrected.estimate for m in report.models[:2])
    assert found["rms_ratio"]["trained_over_constant"] == pytest.approx(trained / constant)
    assert found["rms_ratio"]["at_most_0.6_of_constant"] is True
    assert found["rms_ratio"]["at_most_0.5_of_untrained"] is True
    assert found["uncovered"] == {"mean": 0.001, "largest": 0.02, "left_out": 3.0}


def test_a_corrected_mean_square_of_zero_or_less_passes_nothing():
    def summary(x):
        return {"mean_square_corrected": {"estimate": x}}

    for trained, constant in ((-0.1, 0.4), (0.0, 0.4), (None, 0.4), (0.1, -0.4)):
        found = rms_ratios(
            {"trained": summary(trained), "constant": summary(constant), "untrained": summary(0.4)}
        )
        assert found["trained_over_constant"] is None


def test_checks_name_value_limit_and_outcome(run):
    found = {c["name"]: c for c in summarise(run)["checks"]}
    assert found["held-out prompts sampled"] == {
        "name": "held-out prompts sampled",
        "value": 4,
        "limit": "at least 200",
        "holds": False,
    }
    assert found["policy: success of plain sampling"]["limit"] == "between 0.03 and 0.1"
    assert found["success, SMC over best-of-n, both argmax"]["holds"]
    write_json(run / "policy/gate.json", {})
    ungated = {c["name"]: c for c in summarise(run)["checks"]}
    assert not ungated["policy: well-formed share"]["holds"]


def test_the_page_of_a_run_shows_the_summary(run):
    found = write_summary(run)
    assert json.loads((run / "summary.json").read_text()) == found
    html = (run / "report.html").read_text()
    assert_self_contained(html)
    words = visible(html)
    shown = [
        *found["success"].values(),
        *found["success_weighted_draw"].values(),
        *found["rms_log_bellman"].values(),
        found["smc_over_best_of_n"],
        found["sigma2"]["measured"],
        found["sigma2_ratio"],
    ]
    assert all(str(Interval.from_dict(i)) in words for i in shown)
    assert all(c["name"] in words for c in found["checks"])
    assert "rmtools audit <x>" in words
    assert html.count("<img ") == 8


@pytest.mark.parametrize("name", list(STAGES))
def test_a_missing_file_names_the_stage_that_makes_it(run, name):
    (run / name).unlink()
    with pytest.raises(UserError, match=re.escape(f"{run / name} is missing: the stage `{STAGES[name][0]}`")):
        write_summary(run)
    assert not (run / "summary.json").exists()


def edit(path: Path, change):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("\n".join(json.dumps(line) for line in lines))


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda rows: rows.reverse(), "different prompts"),
        (lambda rows: rows[0].update(terminal="verifier"), "verifier at the end"),
        (
            lambda rows: rows[0].update(provenance={"model_fingerprint": "x", "policy_fingerprint": "p"}),
            "different weights",
        ),
        (lambda rows: rows[0].update(ancestors=[[1, 1]]), "resampled"),
        (lambda rows: rows[0]["samples"][0].pop("reward"), "no rewards"),
        (lambda rows: rows[0].pop("argmax"), "'argmax'"),
        (lambda rows: rows[0]["samples"].pop(), "different numbers of samples"),
    ],
)
def test_samples_that_cannot_be_compared_are_refused(run, change, fact):
    edit(run / "samples/best_of_n.jsonl", change)
    with pytest.raises(UserError, match=fact):
        summarise(run)


def test_a_broken_line_and_an_audit_without_enumeration_are_named(run):
    path = run / "samples/smc.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(UserError, match="line 5"):
        summarise(run)
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True)[:4]))
    audit = json.loads((run / "audit/audit.json").read_text())
    audit["models"][0]["exact"] = None
    write_json(run / "audit/audit.json", audit)
    with pytest.raises(UserError, match="exact ratios"):
        summarise(run)
