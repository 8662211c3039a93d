"""The verbs of the command line, run from start to end: what is written is whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checks import Result, check_error, without_seconds

from rmtools.data.rollouts import read_rollouts

ROOT = Path(__file__).parents[2]


# Start-up, as separate processes


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


def test_help_loads_nothing_that_takes_long():
    code = """
import atexit, sys
heavy = {"torch", "transformers", "datasets", "trl", "peft", "scipy", "matplotlib"}
atexit.register(lambda: print("loaded:", heavy & sys.modules.keys()))
from rmtools.cli.main import run
run()
"""
    done = python("-c", code, "--help")
    assert done.returncode == 0
    for verb in ("prompts", "rollout", "audit", "sample", "verify"):
        assert verb in done.stdout
    assert "loaded: set()" in done.stdout


def test_errors_of_a_real_process(tmp_path, prompts_file):
    """The line, the code and silence on standard output, seen from outside."""
    done = python(
        "-m", "rmtools.cli.main", "sample", "--model", str(tmp_path / "none"), "--prompts", str(prompts_file)
    )
    assert done.stdout == ""
    check_error(Result(done.returncode, done.stdout, done.stderr), "there is no model at", "none")


@pytest.mark.parametrize(
    "verb", [[], ["prompts"], ["rollout"], ["audit"], ["sample"], ["verify"], ["verify", "lm"]]
)
def test_every_verb_has_help(run, verb):
    result = run(*verb, "--help")
    assert result.code == 0
    assert "Usage" in result.out


def test_no_verb_is_help_and_version(run):
    from rmtools import __version__

    assert "Usage" in run().out
    result = run("--version")
    assert (result.code, result.out.strip()) == (0, __version__)


# A run of the verbs


def test_prompts_rollout_sample(run, tmp_path, policy_folder, value_folder, task):
    result = run("prompts", "-n", 4, "--horizon", 3, "--out", tmp_path / "p.jsonl", "--seed", 3)
    assert result.code == 0
    assert "4 prompts" in result.out
    rows = [json.loads(x) for x in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert all(task.solvable(r["prompt"]) for r in rows)

    options = (
        "--policy",
        policy_folder,
        "--prompts",
        tmp_path / "p.jsonl",
        "--horizon",
        3,
        "--trajectories",
        3,
        "--children",
        2,
        "--completions",
        2,
        "--temperature",
        1.2,
        "--max-step-tokens",
        6,
        "--seed",
        4,
    )
    for name in ("one", "two"):
        assert run("rollout", *options, "--out", tmp_path / name).code == 0
    found, metadata = read_rollouts(tmp_path / "one")
    assert found == read_rollouts(tmp_path / "two")[0]
    assert [r.prompt for r in found] == [r["prompt"] for r in rows for _ in range(3)]
    assert (metadata.horizon, metadata.temperature, metadata.seed) == (3, 1.2, 4)
    assert metadata.generated_tokens > 0
    assert metadata.policy_fingerprint

    for name in ("a", "b"):
        result = run(
            "sample",
            "--model",
            value_folder,
            "--prompts",
            tmp_path / "p.jsonl",
            "-n",
            5,
            "--out",
            tmp_path / f"{name}.jsonl",
            "--terminal",
            "verifier",
        )
        assert result.code == 0, result.err
    assert without_seconds(tmp_path / "a.jsonl") == without_seconds(tmp_path / "b.jsonl")
    records = [json.loads(x) for x in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in records] == [r["prompt"] for r in rows]
    assert all(len(r["samples"]) == 5 for r in records)


def test_verify_on_a_tiny_model(run, tmp_path, value_folder, prompts_file):
    result = run(
        "verify",
        "lm",
        "--model",
        value_folder,
        "--prompts",
        prompts_file,
        "--n-prompts",
        1,
        "--runs",
        50,
        "--out",
        tmp_path / "v",
    )
    assert result.code == 0, result.err
    assert "pooled: predicted" in result.out
    assert json.loads((tmp_path / "v" / "verify.json").read_text())["prompts"][0]["runs"] == 50


def test_audit_of_a_tiny_model(run, tmp_path, value_folder, prompts_file):
    """One command writes the three files; the model stands beside its two controls."""
    options = ("--trajectories", 6, "--children", 4, "--completions", 3, "--out", tmp_path / "audit")
    result = run("audit", "--model", value_folder, "--prompts", prompts_file, *options)
    assert result.code == 0, result.err
    names = {p.name for p in (tmp_path / "audit").iterdir()}
    assert {"audit.json", "audit.md", "audit.html", "rollouts"} <= names
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert [m["role"] for m in found["models"]] == ["model", "constant", "position only", "untrained"]
    assert found["provenance"]["terminal"] == "verifier"
    assert not [n for n in names if n.startswith(".")]


def test_verify_exact_with_two_checks(run, tmp_path, monkeypatch, verified):
    """Files and exit codes; all checks run as a command of their own."""
    result = run("verify", "exact", "--quick", "--workers", 1, "--out", tmp_path / "v")
    assert result.code == 0, result.err
    assert "2 of 2 checks hold" in result.out
    assert (tmp_path / "v" / "exact.html").is_file()
    again = run("verify", "exact", "--quick", "--json", "--workers", 2, "--out", tmp_path / "v")
    assert again.code == 0, again.err
    assert json.loads(again.out)["holds"]
    first = json.loads((tmp_path / "v" / "exact.json").read_text())["checks"]
    assert [c["found"] for c in first] == [c["found"] for c in json.loads(again.out)["checks"]]


def test_verify_exact_fails_with_exit_code_1(run, tmp_path, monkeypatch, verified):
    from rmtools.verify.theorems import guided

    monkeypatch.setattr(guided, "sp_tv_bound", lambda depth, eps: 0.0)
    result = run("verify", "exact", "--quick", "--workers", 1, "--out", tmp_path / "v")
    assert result.code == 1
    assert "FAILS  Thm 4.3" in result.out
    assert not json.loads((tmp_path / "v" / "exact.json").read_text())["holds"]


@pytest.fixture
def verified(monkeypatch):
    """Two checks of eight, and a report without the others' plots."""
    from rmtools.verify.theorems import bound, guided, report, runner

    monkeypatch.setattr(runner, "CHECKS", (guided, bound))
    monkeypatch.setattr(report, "drawings", lambda found: {"plot": ("<svg></svg>", "a caption")})


def test_audit_of_rollouts_that_branch_at_some_depths(
    run, tmp_path, value_folder, policy_folder, prompts_file
):
    """The Bellman error is there; sigma^2, which needs completions at every depth, is not."""
    options = ("--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3, "--trajectories", 12)
    branches = (
        "--children",
        4,
        "--completions",
        3,
        "--depths",
        1,
        "--format",
        "jsonl",
        "--max-step-tokens",
        6,
    )
    assert run("rollout", *options, *branches, "--out", tmp_path / "r").code == 0
    result = run("audit", "--model", value_folder, "--rollouts", tmp_path / "r", "--out", tmp_path / "audit")
    assert result.code == 0, result.err
    model = json.loads((tmp_path / "audit" / "audit.json").read_text())["models"][0]
    assert model["error"]["sampled"]["corrected"]["rms"]["estimate"] >= 0
    assert model["cost"]["sigma2"] is None


def test_an_interrupt_says_so(run, monkeypatch):
    """typer turns it into an exit code and says nothing."""
    monkeypatch.setattr("rmtools.cli.main.app", lambda standalone_mode: 130)
    result = run("sample")
    assert result.code == 130
    assert result.err == "rmtools: interrupted; nothing half-written was kept\n"
