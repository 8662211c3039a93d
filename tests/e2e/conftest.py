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
