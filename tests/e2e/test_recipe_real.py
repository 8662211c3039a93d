"""The recipes of the real model: from a model's name to an audited value model, and samplers compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from assets import fixed_law_model, save_model

RECIPES = Path(__file__).parents[2] / "recipes" / "real"
SMALL = {
    **{
        "PROMPTS": "2",
        "TRAJECTORIES": "2",
        "HELDOUT_PROMPTS": "2",
        "HELDOUT_TRAJECTORIES": "2",
    },
    **{"COMPARED_PROMPTS": "2", "N": "4"},
}


def bash(script, *arguments, **variables):
    environment = {**os.environ, "PYTHON": sys.executable, **SMALL, **variables}
    command = ["bash", str(RECIPES / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        *[
            ("run.sh", a)
            for a in ((), ("model",), ("", "counting"), ("model", "chess"), ("model", "counting", "x"))
        ],
        *[("compare.sh", a) for a in ((), ("chess",), ("counting", "x"))],
    ],
)
def test_wrong_arguments(tmp_path, script, arguments):
    found = bash(script, *arguments, OUT=str(tmp_path / "out"))
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("usage: ")
    assert "counting, gsm8k" in found.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(tmp_path):
    out = tmp_path / "out"
    found = bash("compare.sh", "counting", OUT=str(out))
    assert found.returncode == 2
    assert f"{out}/prm" in found.stderr
    assert "run.sh" in found.stderr
    found = bash("run.sh", "model", "gsm8k", OUT=str(out), GSM8K=str(tmp_path))
    assert found.returncode == 2
    assert f"{tmp_path}/train.jsonl" in found.stderr
    assert not out.exists()


# Stands for python: writes its arguments to calls.txt, and the file by which the recipe knows that a stage is done.
STUB = """#!/bin/bash
[ "$1" = -m ] && echo "$3" >>calls.txt
case "$*" in
*" train "*) [ -n "$BROKEN" ] && exit 3; mkdir -p out/prm && touch out/prm/rmtools.json ;;
*" audit "*) mkdir -p out/prm/audit && touch out/prm/audit/audit.json ;;
esac
"""


def test_finished_stages_are_kept_and_a_failure_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stub = tmp_path / "stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    settings = {"PYTHON": str(stub), "OUT": "out"}
    calls = tmp_path / "calls.txt"
    assert bash("run.sh", "model", "counting", **settings, BROKEN="1").returncode == 3
    assert calls.read_text().split() == ["rollout", "rollout", "train"]
    assert bash("run.sh", "model", "counting", **settings).returncode == 0
    assert calls.read_text().split()[3:] == ["rollout", "rollout", "train", "audit"]
    found = bash("run.sh", "model", "counting", **settings)
    assert found.stdout.count("kept: ") == 2
    assert calls.read_text().split()[7:] == [
        "rollout",
        "rollout",
    ]  # the command itself keeps what it finished


@pytest.mark.slow
def test_a_model_through_the_chain(tmp_path):
    model = tmp_path / "model"
    save_model(fixed_law_model("smollm2", {"1": 0.4, "\n": 0.3, "<|im_end|>": 0.3}), "smollm2", model)
    out = tmp_path / "out"
    first = bash("run.sh", model, "counting", OUT=str(out))
    assert first.returncode == 0, first.stderr
    assert json.loads((out / "prm/audit/audit.json").read_text())["provenance"]["n_trajectories"] == 4
    compared = bash("compare.sh", "counting", OUT=str(out))
    assert compared.returncode == 0, compared.stderr
    rows = [
        line.split(" | ")
        for line in (out / "compare/table.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    methods = [row[0].removeprefix("| ") for row in rows[2:]]
    assert methods == [
        *("one sample", "SMC, N = 4: draw", "SMC, N = 4: argmax", "SMC, N = 4: weighted majority", "beam"),
        *("best of 4", "weighted majority of 4", "majority of 4", "majority of 8"),
    ]
    assert all(float(row[1].split()[0]) == 0 for row in rows[2:])  # noise counts nothing
    tokens = {m: [float(x) for x in row[2:5]] for m, row in zip(methods, rows[2:], strict=True)}
    assert all(abs(a + b - c) <= 1 for a, b, c in tokens.values())
    assert tokens["majority of 8"][1] == 0 < tokens["best of 4"][1]
