"""`rmtools train`: the recipe's command, its help, its data, and the nearest name of what it does not know."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from checks import check_error

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "train_prm.py"
ROWS = [
    {"prompt": f"r{i % 5} . \nc{a}{b} . \n", "completions": ["s r1 ", "u r2 "], "labels": [1.0, i / 30]}
    for i, (a, b) in enumerate([(a, b) for a in range(4) for b in range(a + 1, 5)] * 3)
]


def test_the_command_is_the_recipe(run, training, tmp_path):
    config = training()
    assert run("--config", config, script=RECIPE).code == 0
    flags = ("--max-steps", 2, "--num_train_epochs", 1.0, "--output_dir", tmp_path / "two")
    result = run("train", "--config", config, *flags)
    assert result.code == 0, result.err
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("prm", "two")]
    assert weights[0] == weights[1]


def test_help_shows_our_arguments_and_all_of_them_when_asked(run):
    result = run("train", "--help")
    assert result.code == 0
    for name in ("--train_rollouts", "--divergence", "--model_name_or_path", "--learning_rate"):
        assert name in result.out
    assert "--adam_beta1" not in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines())
    everything = run("train", "--help-all").out
    assert "--adam_beta1" in everything
    assert everything.index("--train_rollouts") < everything.index("--adam_beta1")


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_waits_for_nothing_it_does_not_need(run, flag):
    """peft and what it imports are most of what transformers loads with its arguments; the text is the same."""
    code = """
import atexit, sys
unneeded = {"peft", "bitsandbytes", "datasets", "scipy", "trl.trainer.sft_trainer", "transformers.modeling_utils"}
atexit.register(lambda: print(unneeded & {name for name, module in sys.modules.items() if module}, file=sys.stderr))
from rmtools.cli.main import run
run()
"""
    command = [sys.executable, "-c", code, "train", flag]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr == "set()\n"
    assert done.stdout == run("train", flag).out
    assert sys.modules.get("peft", True)  # hidden from that process alone


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train_rolouts", "x"], ["train_rolouts", "nearest is --train_rollouts"]),
        (["--learning-rat3", 1], ["learning_rat3", "--learning_rate"]),
        (["--td_lambda=many"], ["td_lambda"]),
        (["--max_steps", 1], ["no rollouts"]),
        (["--train_rollouts", "some/rows"], ["some/rows", "owner/name"]),
    ],
)
def test_wrong_flags(run, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    check_error(run("train", *flags), *words)
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_names_the_nearest(run, training):
    check_error(run("train", "--config", training(divergance="bce")), "divergance", "--divergence")


def test_a_share_is_evaluated_and_the_first_step_logged(run, tmp_path, policy_folder, monkeypatch):
    """Without a word on evaluation or logging; the rows are a stand-in for a data set of the hub."""
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_list(ROWS)
    )
    monkeypatch.chdir(tmp_path)
    flags = {
        "train_rollouts": "some/rows:test",
        "eval_share": 0.3,
        "target": "labels",
        "divergence": "bce",
        "model_name_or_path": policy_folder,
        "output_dir": "prm",
        "num_train_epochs": 2,
        "use_cpu": "true",
        "disable_tqdm": "true",
        "dataloader_pin_memory": "false",
    }
    result = run("train", *(x for name, value in flags.items() for x in (f"--{name}", value)))
    assert result.code == 0, result.err
    log = json.loads((tmp_path / "prm" / "training_log.json").read_text())
    assert len([row for row in log if "eval_label_brier" in row]) == 2
    assert next(row["step"] for row in log if "loss" in row) == 1
    assert (
        json.loads((tmp_path / "prm" / "rmtools.json").read_text())["training"]["rollouts"]
        == "some/rows:test"
    )


def test_away_from_the_clone(training, tmp_path):
    """The package alone is enough: no file of the clone is read."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "rmtools").symlink_to(ROOT / "rmtools")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-m", "rmtools", "train", "--config", str(training(max_steps=1))]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "prm" / "rmtools.json").exists()
