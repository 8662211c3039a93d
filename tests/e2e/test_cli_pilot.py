"""``rmtools audit --pilot``: where it runs, what it writes, what it refuses."""

import json

import pytest
from checks import check_error

BRANCHES = ("--trajectories", 4, "--children", 2, "--completions", 2)


@pytest.fixture
def options(run, tmp_path, monkeypatch, checkpoint, policy_folder, prompts_file):
    """Model and rollouts, and no plots."""
    monkeypatch.setattr("rmtools.auditing.page.figures", lambda report: ())
    monkeypatch.setattr("rmtools.stats.pilot.RUNS", 16)
    drawn = ("--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3, "--max-step-tokens", 6)
    assert run("rollout", *drawn, *BRANCHES, "--out", tmp_path / "r").code == 0
    return "--model", checkpoint, "--rollouts", tmp_path / "r"


def cost_of(folder):
    return json.loads((folder / "audit.json").read_text())["models"][0]["cost"]


def test_the_sampler_of_a_pilot(run, tmp_path, options):
    sampler = ("-n", 8, "--islands", 2, "--resampling", "stratified", "--ess-threshold", 0.7)
    limits = ("--fail-above", "pilot_n_for_cv=1e9", "--fail-above", "pilot_relative_variance=1e-9")
    result = run("audit", *options, *sampler, *limits, "--out", tmp_path / "a")
    assert result.code == 1
    assert "not met: pilot_relative_variance is" in result.out
    assert "pilot_n_for_cv is" not in result.out
    pilot = cost_of(tmp_path / "a")["pilot"]
    assert pilot["sampler"] == {
        "n_particles": 4,
        "pool_size": 1,
        "resampling": "stratified",
        "ess_threshold": 0.7,
        "terminal": "model",
    }
    assert pilot["resolved"]
    assert pilot["tokens"] > 4
    result = run("audit", *options, *sampler, "--terminal", "verifier", "--out", tmp_path / "b")
    assert result.code == 0, result.err
    assert cost_of(tmp_path / "b")["pilot"]["sampler"]["terminal"] == "verifier"


def test_audits_without_a_pilot(run, tmp_path, options, checkpoint):
    result = run("audit", *options, "--no-pilot", "--out", tmp_path / "a")
    assert result.code == 0, result.err
    assert cost_of(tmp_path / "a")["pilot"] is None
    settings = json.loads((checkpoint / "rmtools.json").read_text())
    (checkpoint / "rmtools.json").write_text(json.dumps({**settings, "policy": "nowhere"}))
    result = run("audit", *options, "--out", tmp_path / "b")
    assert result.code == 0, result.err
    assert "no pilot: " in result.out
    assert cost_of(tmp_path / "b")["pilot"] is None
    check_error(run("audit", *options, "--pilot", "--out", tmp_path / "c"), "a pilot needs the policy")


def test_what_is_refused(run, tmp_path, checkpoint):
    for more, words in (
        (("--no-pilot", "-n", 8), ("--no-pilot", "--n-particles")),
        (("-n", 10, "--islands", 4), ("--islands",)),
        (("--resampling", "top_k"), ("estimates no Z",)),
        (("--ess-threshold", 2), ("--ess-threshold",)),
    ):
        check_error(run("audit", "--model", checkpoint, *more, "--out", tmp_path / "a"), *words)
        assert not (tmp_path / "a").exists()
