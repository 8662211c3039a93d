"""Training on two processes (gloo) is training on one with the same batch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import RolloutMetadata, write_rollouts
from rmtools.lm.checkpoint import fingerprint

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipes" / "accelerate" / "two_cpu_processes.yaml"


@pytest.fixture
def data(policy, policy_folder, task, settings, prompts, tmp_path):
    """Rollouts of six prompts to train on and of two others to evaluate on."""
    for name, chosen in (("train", prompts[:6]), ("heldout", prompts[6:])):
        rows = Collector(policy, task, Branching(4, 3), np.random.default_rng(0)).collect(chosen)
        metadata = RolloutMetadata(
            str(policy_folder), fingerprint(policy_folder), "crossing", 3, settings, 1.0, 0
        )
        write_rollouts(tmp_path / name, rows, metadata)
    return tmp_path


def train(data, out, launch, batch, **more):
    flags = {  # not use_cpu: accelerate's configuration says it
        "train_rollouts": data / "train",
        "eval_rollouts": data / "heldout",
        "output_dir": out,
        "per_device_train_batch_size": batch,
        "max_steps": 5,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "learning_rate": 0.02,
        "report_to": "none",
        "lora_r": 4,
        **more,
    }
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *launch,
        str(ROOT / "recipes" / "train_prm.py"),
    ]
    done = subprocess.run(
        [*command, *(str(x) for k, v in flags.items() for x in (f"--{k}", v))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "training_log.json").read_text())


def test_two_processes_are_one_with_twice_the_batch(data):
    two = train(data, data / "two", ["--config_file", str(CONFIG)], 4)
    one = train(data, data / "one", ["--num_processes", "1", "--cpu"], 8)
    losses = [[row["loss"] for row in log if "loss" in row] for log in (one, two)]
    assert len(losses[0]) == 5
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    metrics = [next(row for row in log if "eval_brier" in row) for log in (one, two)]
    for name in ("eval_brier", "eval_rms_log_bellman", "eval_constant_brier"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], rel=1e-3)


@pytest.mark.parametrize("order", ["group_by_length", "random"])
def test_an_epoch_that_ends_in_a_short_batch_too(data, order):
    """24 rows in optimiser steps of 10, for two epochs: the last of each has 4 rows, all on the first of the processes."""
    more = {"max_steps": -1, "num_train_epochs": 2, "eval_steps": 6, "train_sampling_strategy": order}
    two = train(data, data / "two", ["--config_file", str(CONFIG)], 5, **more)
    one = train(data, data / "one", ["--num_processes", "1", "--cpu"], 10, **more)
    losses = [[row["loss"] for row in log if "loss" in row] for log in (one, two)]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_the_configurations_are_ones_that_accelerate_reads():
    """Those for several GPUs are not run here: their keys and names are checked."""
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
    assert len(files) == 4
    for file in files:
        found = load_config_from_file(str(file))
        assert found.distributed_type.value == yaml.safe_load(file.read_text())["distributed_type"]
