"""The quick start's recipe: what its stages leave behind, the summary and the page of it."""

import json
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from audit_example import T, assert_self_contained, example_report, visible

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "quickstart"))

import summary
from report import write_summary
from stages import Stage, run_stages
from summary import FILES, rms_ratios, summarise

from rmtools.auditing.page import write_report
from rmtools.codec import save_json, to_json
from rmtools.data.rollouts import SCHEMA_VERSION, RolloutMetadata
from rmtools.errors import UserError
from rmtools.files import write_json
from rmtools.lm.steps import StepSettings
from rmtools.stats.bootstrap import Interval
from rmtools.verify.language_model import PromptVerification, Verification
from rmtools.verify.law import LawCheck


@pytest.fixture(scope="module")
def report():
    return example_report()


def record(prompt, rewards, argmax, draw, ancestors):
    samples = [{"steps": ["u r1 \n"], "log_weight": -1.0, "log_value": -0.5, "reward": r} for r in rewards]
    return {
        "schema_version": 2,
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
        {
            "seed": 1,
            "attempts": 2,
            "well_formed": 0.99,
            "right_row": 0.995,
            "samples": 2048,
            "success": 0.05,
        },
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
    write_json(tmp_path / "samples/prompts.meta.json", {"schema_version": 1, "removed_prompts": 5})
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
        assert found["rms_log_bellman"][role] == to_json(m.error.exact.corrected.rms)
        assert found["rms_log_bellman_sampled"][role]["estimate"] == m.error.sampled.corrected.rms.estimate
        assert found["rms_log_bellman_sampled"][role]["resolved"] is m.error.sampled.resolved
    trained, constant = (m.error.exact.corrected.rms.estimate for m in report.models[:2])
    assert found["rms_ratio"]["trained_over_constant"] == pytest.approx(trained / constant)
    assert found["rms_ratio"]["at_most_0.6_of_constant"] is True
    assert found["rms_ratio"]["at_most_0.5_of_untrained"] is True
    assert found["uncovered"] == {"mean": 0.001, "largest": 0.02, "left_out": 3.0}


def test_a_corrected_mean_square_of_zero_or_less_passes_nothing():
    def summary(x):
        return {"corrected": {"mean_square": {"estimate": x}}}

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
    # Two attempts at the policy took 50 s.
    assert found["seconds, all stages, one attempt at the policy"]["value"] == 45.5
    assert ungated["seconds, all stages, one attempt at the policy"]["value"] == 70.5


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
    assert all(str(Interval(**i)) in words for i in shown)
    assert all(c["name"] in words for c in found["checks"])
    assert "rmtools audit <x>" in words
    assert html.count("<img ") == 8


@pytest.mark.parametrize("name", list(FILES))
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(UserError, match=re.escape(f"{run / name} is missing; fix: delete ") + ".*quickstart"):
        write_summary(run)
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("name", [name for name, version in FILES.items() if version is not None])
def test_files_of_another_release_are_refused(run, name):
    path = run / name
    path.write_text(re.sub(r'"schema_version": \d+', '"schema_version": 99', path.read_text(), count=1))
    with pytest.raises(UserError, match=f"{name}.* has schema version 99"):
        summarise(run)


def edit(path: Path, change):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("\n".join(json.dumps(line) for line in lines))


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda rows: rows.reverse(), "different prompts"),
        (lambda rows: rows[0].update(terminal="verifier"), "with the verifier at the end"),
        (
            lambda rows: rows[0].update(provenance={"model_fingerprint": "x", "policy_fingerprint": "p"}),
            "different weights",
        ),
        (lambda rows: rows[0].update(ancestors=[[1, 1]]), "resampled"),
        (lambda rows: rows[0]["samples"][0].pop("reward"), "no rewards"),
        (lambda rows: rows[0].update(ancestors=None), "several runs per prompt"),
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
    audit["models"][0]["error"]["exact"] = None
    write_json(run / "audit/audit.json", audit)
    with pytest.raises(UserError, match="exact ratios"):
        summarise(run)


def test_the_stages_name_what_exists(tmp_path):
    stages = runpy.run_path(str(Path(summary.__file__).parent), run_name="recipe")["stages"](tmp_path, 3)
    assert [s.name for s in stages][:2] == ["policy", "rollouts for training"]
    assert str(stages[-1].finished.relative_to(tmp_path)) == "summary.json"
    words = [w for stage in stages for w in stage.command if w.endswith((".py", ".yaml"))]
    assert len(words) == 5
    assert all(Path(w).is_file() for w in words)
    assert stages[4].command[-2:] == ["--seed", "3"]


def script(path, code):
    """A stage that runs ``code`` and leaves ``path``."""
    return Stage(path.stem, path, [sys.executable, "-c", f"{code}\nopen({str(path)!r}, 'w').write('x')"])


def test_finished_stages_are_kept_and_later_ones_follow_a_new_result(tmp_path, capfd):
    log = tmp_path / "stages.json"
    names = ("a", "b", "c")
    stages = [script(tmp_path / f"{name}.txt", f"print('ran {name}')") for name in names]

    def ran():
        run_stages(stages, log)
        return [line[4:] for line in capfd.readouterr().out.splitlines() if line.startswith("ran ")]

    assert ran() == ["a", "b", "c"]
    assert ran() == []
    stages[1].finished.unlink()
    assert ran() == ["b", "c"]
    stages[2] = script(tmp_path / "c.txt", "print('ran c again')")
    assert ran() == ["c again"]
    entries = json.loads(log.read_text())["stages"]
    assert [e["name"] for e in entries] == list(names)
    assert entries[2]["command"] == shlex.join(stages[2].command)
    assert all(e["seconds"] > 0 and e["peak_memory_gib"] > 0 for e in entries)


def test_a_stage_that_fails_ends_the_run(tmp_path):
    stages = [script(tmp_path / "a.txt", ""), script(tmp_path / "b.txt", "raise SystemExit(3)")]
    with pytest.raises(UserError, match=r"'b'.*exit code 3"):
        run_stages(stages, tmp_path / "stages.json")
    assert [s["name"] for s in json.loads((tmp_path / "stages.json").read_text())["stages"]] == ["a"]
