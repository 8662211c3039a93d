"""The command line in this process, and the files that it is run on."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from checks import Result

from rmtools.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, capsys):
    """``run("sample", "--model", folder)``: the command in this process."""

    def start(script):
        if script is None:
            main.run()
        runpy.run_path(str(script), run_name="__main__")
        raise SystemExit(0)

    def call(*arguments, script=None):
        monkeypatch.setattr(sys, "argv", [str(script or "rmtools"), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            start(script)
        return Result(end.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def prompts_file(tmp_path, prompts):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts[:3]))
    return path


@pytest.fixture
def checkpoint(value_folder, tmp_path):
    """A copy to break; beside the policy, so that its relative name still holds."""
    folder = value_folder.parent / f"copy-{tmp_path.name}"
    shutil.copytree(value_folder, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def training(run, tmp_path, policy_folder, prompts_file):
    """Rollouts, and a YAML file that trains on them: ``training(key=value)`` returns its path."""
    options = (
        "--policy",
        policy_folder,
        "--prompts",
        prompts_file,
        "--horizon",
        3,
        "--trajectories",
        3,
        "--children",
        3,
    )
    assert run("rollout", *options, "--out", tmp_path / "rollouts").code == 0
    others = ["2" if o is prompts_file else o for o in options]
    assert run("rollout", *others, "--seed", 9, "--out", tmp_path / "heldout").code == 0

    def write(**changes):
        values = {
            "train_rollouts": str(tmp_path / "rollouts"),
            "eval_rollouts": str(tmp_path / "heldout"),
            "output_dir": str(tmp_path / "prm"),
            "use_peft": True,
            "lora_r": 4,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "logging_steps": 1,
            **changes,
        }
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
        return path

    return write
