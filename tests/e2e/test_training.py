"""The training recipe: a checkpoint, or one line and exit code 2."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from checks import check_error

ROOT = Path(__file__).parents[2]


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


RECIPE = ROOT / "recipes" / "train_prm.py"


def test_training_then_sampling(run, training, tmp_path, prompts_file):
    result = run("--config", training(), script=RECIPE)
    assert result.code == 0, result.err
    result = run(
        "sample",
        "--model",
        tmp_path / "prm",
        "--prompts",
        prompts_file,
        "-n",
        2,
        "--out",
        tmp_path / "s.jsonl",
    )
    assert result.code == 0, result.err
    log = json.loads((tmp_path / "prm" / "training_log.json").read_text())
    assert np.isfinite([row["loss"] for row in log if "loss" in row]).all()
    assert any("eval_rms_log_bellman" in row for row in log)
    names = sorted(p.name for p in (tmp_path / "prm").iterdir())
    assert run("--config", training(), script=RECIPE).code == 0  # again, over its own result
    assert sorted(p.name for p in (tmp_path / "prm").iterdir()) == names
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"colour": "red"}, [], ["colour"]),
        ({}, ["--colour", "red"], ["colour"]),
        ({"save_strategy": "steps"}, [], ["save_strategy", "resumed"]),
        ({"lora_dropout": 0.2, "dtype": "bfloat16"}, [], ["lora_dropout", "dtype", "lora_r"]),
        ({}, ["--load_in_4bit", "true"], ["load_in_4bit"]),
        ({"target": "gae"}, [], ["mc, td, td_lambda"]),
        ({"divergence": "kl"}, [], ["itakura_saito"]),
        ({"floor": 0}, [], ["floor"]),
        ({}, ["--max_steps", "many"], ["max_steps"]),
        ({"train_rollouts": "nowhere"}, [], ["there are no rollouts at nowhere"]),
        ({"eval_rollouts": "nowhere"}, [], ["there are no rollouts at nowhere"]),
        ({"train_rollouts": None}, [], ["there are no rollouts"]),
        ({"eval_rollouts": None}, [], ["eval"]),
        ({"model_name_or_path": "nowhere/at/all"}, [], ["nowhere/at/all"]),
    ],
)
def test_wrong_training_arguments(run, training, tmp_path, changes, flags, words):
    check_error(run("--config", training(**changes), *flags, script=RECIPE), *words)
    assert not list((tmp_path / "prm").glob("*"))


def test_wrong_training_files(run, training, tmp_path):
    check_error(run("--config", tmp_path / "missing.yaml", script=RECIPE), "missing.yaml")
    path = training()
    path.write_text("max_steps: [")
    check_error(run("--config", path, script=RECIPE), "training arguments are wrong")


def test_training_into_a_folder_of_something_else(run, training, tmp_path):
    (tmp_path / "prm").mkdir()
    (tmp_path / "prm" / "notes.txt").write_text("mine")
    check_error(run("--config", training(), script=RECIPE), "holds something else")
    assert [p.name for p in (tmp_path / "prm").iterdir()] == ["notes.txt"]


def test_disk_full_while_saving_a_checkpoint(run, training, tmp_path):
    """Files may not grow beyond 8 KB: the weights cannot be written, nothing of the checkpoint is left."""
    config, (soft, hard) = training(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        result = run("--config", config, script=RECIPE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_error(result, "cannot write", "unchanged")
    assert not list((tmp_path / "prm").glob("*"))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_held_out_rollouts_that_share_prompts_are_refused(run, training, tmp_path):
    config = training(eval_rollouts=str(tmp_path / "rollouts"))
    check_error(run("--config", config, script=RECIPE), "held-out", "3 prompts")
