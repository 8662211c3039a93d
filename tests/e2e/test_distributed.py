"""Training on two processes (gloo) is training on one with the same batch."""

import json
import multiprocessing
import os
import runpy
import socket
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
RECIPE = ROOT / "recipes" / "train_prm.py"
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


def words(data, out, batch, **more):
    """The recipe's flags."""
    flags = {  # not use_cpu: the launcher says it
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
    return [str(x) for k, v in flags.items() for x in (f"--{k}", v)]


def read_log(out):
    log = json.loads((out / "training_log.json").read_text())
    return log, [row["loss"] for row in log if "loss" in row]


@pytest.fixture
def alone(run, data):
    """``alone(batch, **flags)``: the log and losses of one process, this one."""

    def train(batch, **more):
        result = run(*words(data, data / "one", batch, use_cpu="true", **more), script=RECIPE)
        assert result.code == 0, result.err
        return read_log(data / "one")

    return train


def launched(data, batch, **more):
    """Two processes, through accelerate and its configuration."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), str(RECIPE)]
    done = subprocess.run(
        [*launch, *words(data, data / "two", batch, **more)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return read_log(data / "two")


def rank_of_two(rank, port, given):
    """Run the recipe as the launcher's process of this rank does; torch is imported already."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = [str(RECIPE), *given]
    runpy.run_path(str(RECIPE), run_name="__main__")


def forked(data, batch, **more):
    """Two processes forked from this one: as `launched`, in a fifth of the time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = words(data, data / "two", batch, **more)
    fork = multiprocessing.get_context("fork").Process
    processes = [fork(target=rank_of_two, args=(rank, port, given)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return read_log(data / "two")


def test_two_processes_are_one_with_twice_the_batch(data, alone):
    logs, losses = zip(launched(data, 4), alone(8), strict=True)
    assert len(losses[1]) == 5
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    two, one = (next(row for row in log if "eval_brier" in row) for log in logs)
    for name in ("eval_brier", "eval_rms_log_bellman", "eval_constant_brier"):
        assert two[name] == pytest.approx(one[name], rel=1e-3)


@pytest.mark.parametrize(
    ("order", "passes"),
    [("group_by_length", {}), ("random", {}), ("group_by_prompt", {"max_tokens_per_batch": 50})],
)
def test_an_epoch_that_ends_in_a_short_batch_too(data, alone, order, passes):
    """24 rows in optimiser steps of 10, for two epochs: the last of each has 4 rows, all on the first of the processes.

    Nor do passes of few tokens change anything, of which the processes need different numbers.
    """
    more = {"max_steps": -1, "num_train_epochs": 2, "eval_steps": 6, "train_sampling_strategy": order}
    (_, two), (_, one) = forked(data, 5, **more, **passes), alone(10, **more)
    assert len(one) == 6
    np.testing.assert_allclose(two, one, rtol=1e-4)


def test_the_configurations_are_ones_that_accelerate_reads():
    """Those for several GPUs are not run here: their keys and names are checked."""
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
    assert len(files) == 4
    for file in files:
        found = load_config_from_file(str(file))
        assert found.distributed_type.value == yaml.safe_load(file.read_text())["distributed_type"]
