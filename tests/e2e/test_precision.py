"""``--dtype`` of the commands that load models: what they print and record."""

import json

import pytest
from checks import check_error

from rmtools.data.load import load_rollouts
from rmtools.jobs.job import read_plan


@pytest.fixture
def rollout(run, tmp_path, policy_folder, prompts_file):
    def call(*more):
        options = (
            "--policy",
            policy_folder,
            "--prompts",
            prompts_file,
            "--horizon",
            3,
            "--max-step-tokens",
            6,
        )
        return run("rollout", *options, "--trajectories", 2, "--children", 2, *more, "--out", tmp_path / "r")

    return call


def test_rollouts_say_in_which_precision_they_were_drawn(rollout, tmp_path):
    for more, dtype in (((), "float32"), (("--dtype", "bfloat16", "--overwrite"), "bfloat16")):
        result = rollout(*more)
        assert result.code == 0, result.err
        assert result.out.splitlines()[0] == f"policy in {dtype}, on cpu"
        assert load_rollouts(tmp_path / "r").metadata.dtype == dtype
        assert read_plan(tmp_path / "r")["dtype"] == dtype


def test_an_interrupted_run_is_not_resumed_in_another_precision(rollout):
    assert rollout("--dtype", "bfloat16").code == 0
    check_error(rollout("--dtype", "float32"), "bfloat16", "float32", "--overwrite")


def test_samples_say_in_which_precision_they_were_drawn(run, tmp_path, value_folder, prompts_file):
    out = tmp_path / "out.jsonl"
    options = ("--model", value_folder, "--prompts", prompts_file, "-n", 3, "--out", out)
    for more, dtype in (((), "float32"), (("--dtype", "bfloat16", "--overwrite"), "bfloat16")):
        result = run("sample", *options, *more)
        assert result.code == 0, result.err
        assert result.out.splitlines()[0] == f"policy in {dtype}, value model in {dtype}, on cpu"
        found = json.loads(out.read_text().splitlines()[0])["provenance"]
        assert (found["dtype"], found["model_dtype"]) == (dtype, dtype)


def test_an_audit_says_in_which_precision_values_were_read(rollout, run, tmp_path, value_folder, monkeypatch):
    monkeypatch.setattr("rmtools.auditing.page.figures", lambda report: ())
    assert rollout().code == 0
    folders = []
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        options = ("--model", value_folder, "--rollouts", tmp_path / "r", "--out", out)
        result = run("audit", *options, "--dtype", dtype)
        assert result.code == 0, result.err
        assert f"value model in {dtype}" in result.out.splitlines()[0]
        folders.append(json.loads((out / "audit.json").read_text()))
        found = folders[-1]["provenance"]
        assert (found["checkpoint_dtype"], found["dtype"]) == (dtype, "float32")
    one, two = (f["models"][0]["calibration"] for f in folders)
    assert one != two


def test_an_unknown_precision_is_refused(rollout):
    check_error(rollout("--dtype", "float8"), "--dtype", "bfloat16")


def test_training_in_bf16_on_a_cpu_keeps_the_base_in_float32_and_says_so(run, drawn_rollouts, tmp_path):
    options = ("--train_rollouts", drawn_rollouts / "rollouts", "--output_dir", tmp_path / "prm")
    result = run("train", *options, "--max_steps", 1, "--bf16", "true", "--use_cpu", "true")
    assert result.code == 0, result.err
    assert "weights of the base in float32, head in float32" in result.out.splitlines()[:2]
    found = json.loads((tmp_path / "prm" / "rmtools.json").read_text())["training"]["configuration"]
    assert (found["dtype"], found["mixed_precision"]) == ("float32", "bf16")
