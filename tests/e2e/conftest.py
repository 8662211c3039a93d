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


def exit_code(arguments, script=None):
    """Run ``rmtools`` or a script in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script or "rmtools"), *map(str, arguments)])
        try:
            if script is None:
                main.run()
            else:
                runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            return end.code or 0
    return 0


@pytest.fixture(scope="session")
def command():
    """``command(("sample", "--model", folder))``: the exit code, for files that several tests share."""
    return exit_code


@pytest.fixture
def run(capsys):
    """``run("sample", "--model", folder)``: the command in this process."""

    def call(*arguments, script=None):
        capsys.readouterr()
        return Result(exit_code(arguments, script), *capsys.readouterr())

    return call


@pytest.fixture(autouse=True)
def short_pilots(monkeypatch):
    """Audit with the fewest islands."""
    monkeypatch.setattr("rmtools.stats.pilot.RUNS", 3)
    monkeypatch.setattr("rmtools.stats.pilot.ENOUGH", 1)
    monkeypatch.setattr("rmtools.stats.pilot.MOST_RUNS", 0)


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


@pytest.fixture(scope="session")
def drawn_rollouts(tmp_path_factory, policy_folder, prompts):
    """A folder with ``rollouts`` and ``heldout``, written by the command once for all tests that train: copy, do not change."""
    folder = tmp_path_factory.mktemp("drawn")
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts[:3]))
    sizes = ("--horizon", 3, "--trajectories", 3, "--children", 3)
    for name, given in (("rollouts", file), ("heldout", 2)):
        words = ("--policy", policy_folder, "--prompts", given, *sizes, "--seed", 9 * (name == "heldout"))
        assert exit_code(("rollout", *words, "--out", folder / name)) == 0
    return folder


@pytest.fixture
def training(tmp_path, drawn_rollouts):
    """Rollouts, and a YAML file that trains on them: ``training(key=value)`` returns its path."""
    for name in ("rollouts", "heldout"):
        shutil.copytree(drawn_rollouts / name, tmp_path / name)

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
