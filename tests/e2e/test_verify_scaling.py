"""`rmtools verify scaling`: every stage once, resumed, and refused where its folder was changed."""

import json
import math
from dataclasses import replace

import pytest

from rmtools.verify.scaling import QUICK, baselines, jobs, points, policy, report
from rmtools.verify.scaling import run as stages
from rmtools.verify.scaling.policy import PolicySize


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Patch a size of seconds, of a policy that need not pass the gate; return the folder."""
    size = replace(
        QUICK,
        horizons=(2,),
        enumerated=2,
        prompts=4,
        policy=PolicySize(hidden=32, layers=1, updates=100, tokens=300),
        rollout_prompts=4,
        trajectories=2,
        updates=4,
        early=2,
        curve=(1,),
        most_tokens=8000,
        most_on_tables=64,
        baseline_tokens=2000,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmtools.verify.scaling.QUICK", size)
        patch.setattr(policy, "RIGHT", 0.0)
        patch.setattr(policy, "WELL_FORMED", 0.0)
        patch.setattr(policy, "STEP_SUCCESS", (0.0, 1.0))
        patch.setattr(jobs, "MODELS", ("constant", "default-early", "exact"))
        patch.setattr(stages, "GATE_SOLUTIONS", 8)
        patch.setattr(points, "PARTICLE_STEPS", 1.0)
        patch.setattr(baselines, "METHODS", {m: baselines.METHODS[m] for m in ("rejection", "smc")})
        yield tmp_path_factory.mktemp("scaling") / "out"


def scaling(folder, *more):
    return ["verify", "scaling", "--quick", "--out", str(folder), "--workers", "1", "--device", "cpu", *more]


def test_all_stages(tiny, run):
    done = run(*scaling(tiny))
    assert done.code == 0, done.err
    found = json.loads((tiny / "scaling.json").read_text())
    assert "scaling.html" in done.out
    assert "<svg" in (tiny / "scaling.svg").read_text()
    page = (tiny / "scaling.html").read_text()
    assert "rmtools verify scaling --quick --seed 0" in page
    measured = found["points"]
    assert {(p["model"], p["sampler"]) for p in measured} == {
        (m, s) for m in ("constant", "default-early", "exact") for s in ("every-step", "default")
    }
    assert all(p["n_predicted"] > 0 for p in measured if p["sampler"] == "every-step")
    for p in measured:
        assert p["censored"] == (p["n_measured"] is None)
        assert p["trials"][0]["n_particles"] == p["n_largest"]
    by = {(p["model"], p["sampler"]): p for p in measured}
    assert by["constant", "default"]["resampled"] == 0
    assert by["constant", "every-step"]["resampled"] == 1
    exact = found["consistency"]["exact at 2"]
    assert exact["rms_policy"] < 1e-6
    assert exact["sigma2"] == pytest.approx(exact["sigma2_perfect"])
    assert "default-1 at 2" in found["consistency"]
    variance = found["variances"][0]
    assert (variance["source"], variance["runs"]) == ("runs", 16)
    assert variance["n_particles"] == math.ceil(25 * variance["sigma2"])
    assert variance["relative"]["low"] < 1.5
    assert variance["relative"]["high"] > 0.7
    audits = {a["model"]: a for a in found["audits"]}
    assert set(audits) == {"mc-early", "mc-late", "default-early", "default-late"}
    b = audits["default-early"]["rms"]["estimate"]
    assert b == pytest.approx(found["consistency"]["default-early at 2"]["rms_policy"], rel=0.5)


def test_a_second_run_repeats_nothing_and_a_lost_point_is_made_alone(tiny, run, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda *args: None)
    assert run(*scaling(tiny)).code == 0  # of another process, where tests are spread
    before = json.loads((tiny / "stages.json").read_text())
    assert run(*scaling(tiny)).code == 0
    assert json.loads((tiny / "stages.json").read_text()) == before
    lost = "points/2-exact-default.json"
    entry = before["stages"].pop(lost)
    (tiny / "stages.json").write_text(json.dumps(before))
    point = json.loads((tiny / lost).read_text())
    assert run(*scaling(tiny)).code == 0
    again = json.loads((tiny / "stages.json").read_text())["stages"]
    assert again.keys() == {*before["stages"], lost}
    new = json.loads((tiny / lost).read_text())
    # Its draws are its own: the same figures, whatever was run before.
    assert {k: v for k, v in new.items() if k != "seconds"} == {
        k: v for k, v in point.items() if k != "seconds"
    }
    assert entry["seconds"] >= 0


def test_what_was_changed_or_is_of_another_size_is_refused(tiny, run):
    assert run(*scaling(tiny)).code == 0
    other = run(*scaling(tiny, "--seed", "3"))
    assert other.code == 2
    assert "another configuration" in other.err
    (tiny / "policy" / "gate.json").write_text("[]")
    edited = run(*scaling(tiny))
    assert edited.code == 2
    assert "policy" in edited.err


def test_too_small_a_budget_is_said_before_anything_is_trained(tmp_path, run):
    small = run(*scaling(tmp_path / "out", "--token-budget", "50"))
    assert small.code == 2
    assert "T = 2" in small.err
    assert "--token-budget" in small.err
    assert not (tmp_path / "out" / "policy").exists()
    both = run("verify", "scaling", "--quick", "--full")
    assert both.code == 2
