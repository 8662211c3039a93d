"""What only a CUDA device shows: same values and draws as on the CPU, bf16, QLoRA, the launcher's engines.

Run with ``pytest -m gpu tests/gpu`` on a machine that has one; elsewhere everything here is skipped.
"""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import RolloutMetadata, read_rollouts, write_rollouts
from rmtools.data.scoring import score_rollouts
from rmtools.lm.checkpoint import fingerprint, load_value_model
from rmtools.lm.policy import load_policy
from rmtools.particles.tilt import Tilt
from rmtools.training.config import CHECKPOINTING, PRMConfig
from rmtools.training.lora import build_model
from rmtools.training.trainer import PRMTrainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "recipes" / "accelerate"


@pytest.fixture(scope="module")
def on_gpu(policy_folder, settings):
    return load_policy(policy_folder, settings)


@pytest.fixture(scope="module")
def rollouts(on_gpu, task, prompts):
    """Drawn on the device, with children."""
    assert on_gpu.device.type == "cuda"
    return Collector(on_gpu, task, Branching(4, 3), np.random.default_rng(0)).collect(prompts)


def flags(**changes):
    from trl import ModelConfig

    return ModelConfig(use_peft=True, lora_r=4, lora_alpha=8, **changes)


def train(model, steps, rows, held_out, folder, **changes):
    values = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "learning_rate": 2e-2,
        "report_to": "none",
        "disable_tqdm": True,
        "floor": 0.05,
        "seed": 0,
        "ema_decay": 0.5,
    }
    trainer = PRMTrainer(
        model,
        PRMConfig(**{**values, **changes}),
        rows,
        held_out or None,
        steps.tokenizer,
        steps=steps.settings,
    )
    trainer.train()
    return trainer, [row["loss"] for row in trainer.state.log_history if "loss" in row]


def values(value, rows):
    scored = score_rollouts(rows, value)
    return np.concatenate([*scored.own_log_value, scored.child_log_value[scored.child_present]])


def test_values_are_those_of_the_cpu(value_folder, rollouts):
    found = []
    for device in ("cpu", "cuda"):
        value, _ = load_value_model(value_folder, device=torch.device(device))
        assert value.device.type == device
        found.append(values(value, rollouts))
    assert found[0].std() > 0.1
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)


def test_draws_have_the_law_that_the_cpu_gives_them(on_gpu, policy, task, prompts):
    """First steps of one prompt against their enumerated probabilities: a chi-square test."""
    from rmtools.lm.enumerate import tabulate
    from rmtools.lm.value import ConstantValue

    prompt, n = prompts[0], 4000
    choices = task.step_choices(prompt, [])
    flat = ConstantValue(0.3, policy.steps, Tilt(0.05))
    table = tabulate(policy, flat, prompt, choices, task.reward)
    expected = dict.fromkeys(choices, 0.0)
    for path, p in zip(table.paths, table.path_probability, strict=True):
        expected[path[0]] += p * n
    rows = Collector(on_gpu, task, Branching(n), np.random.default_rng(1)).collect([prompt])
    counts = dict.fromkeys(choices, 0)
    for row in rows:
        if row.steps[0] in counts:
            counts[row.steps[0]] += 1
    kept = [c for c in choices if expected[c] >= 5]
    assert len(kept) >= 2
    statistic = sum((counts[c] - expected[c]) ** 2 / expected[c] for c in kept)
    assert statistic < 12 + 2 * len(kept)


@pytest.mark.parametrize("target", ["mc", "td", "td_lambda"])
def test_bf16_training_lowers_the_loss(policy_folder, step_tokenizer, rollouts, tmp_path, target):
    model = build_model(str(policy_folder), flags(dtype="bfloat16"), 0)
    trainer, losses = train(
        model,
        step_tokenizer,
        rollouts[:24],
        rollouts[24:],
        tmp_path / "out",
        target=target,
        divergence="bce",
        bf16=True,
        bellman_residual=0.1,
        eval_strategy="steps",
        eval_steps=12,
    )
    assert all(math.isfinite(x) for x in losses)
    if target == "mc":
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
    dtypes = {n.split(".")[-2]: p.dtype for n, p in trainer.model.named_parameters() if "score" in n}
    assert set(dtypes.values()) == {torch.float32}
    metrics = next(row for row in trainer.state.log_history if "eval_brier" in row)
    assert 0 <= metrics["eval_brier"] <= 1


def test_weights_of_bf16_without_autocast(policy_folder, step_tokenizer, rollouts, tmp_path):
    """The tree mask has to be of the weights' type there."""
    model = build_model(str(policy_folder), flags(dtype="bfloat16"), 0)
    _, losses = train(model, step_tokenizer, rollouts[:24], [], tmp_path / "out", bellman_residual=0.1)
    assert all(math.isfinite(x) for x in losses)


def test_activation_checkpointing_changes_no_loss(policy_folder, step_tokenizer, rollouts, tmp_path):
    losses = []
    for on in (False, True):
        torch.manual_seed(0)  # the adapters draw their first weights from the global generator
        model = build_model(str(policy_folder), flags(), 0)
        losses.append(
            train(
                model,
                step_tokenizer,
                rollouts[:24],
                [],
                tmp_path / str(on),
                max_steps=3,
                bellman_residual=0.1,
                **{CHECKPOINTING: on},
            )[1]
        )
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_qlora(policy_folder, step_tokenizer, rollouts, tmp_path):
    model = build_model(str(policy_folder), flags(load_in_4bit=True), 0)
    trainer, losses = train(
        model, step_tokenizer, rollouts[:24], [], tmp_path / "out", target="mc", divergence="bce", bf16=True
    )
    kinds = {type(m).__name__ for m in trainer.model.modules()}
    assert "Linear4bit" in kinds
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def run_recipe(data, out, launch, **changes):
    told = {
        "model_name_or_path": data / "policy",
        "train_rollouts": data / "train",
        "eval_rollouts": data / "heldout",
        "output_dir": out,
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "learning_rate": 0.01,
        "report_to": "none",
        "target": "mc",
        "divergence": "bce",
        "eval_strategy": "steps",
        "eval_steps": 6,
        "bf16": "true",
        "lora_r": 4,
        **changes,
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch]
    command += [str(ROOT / "recipes" / "train_prm.py")]
    command += [str(x) for k, v in told.items() for x in (f"--{k}", v)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "training_log.json").read_text())


@pytest.fixture(scope="module")
def data(policy_folder, rollouts, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched")
    (folder / "policy").symlink_to(policy_folder)
    known = RolloutMetadata(str(policy_folder), fingerprint(policy_folder), "crossing", 3, settings, 1.0, 0)
    held = {r.prompt_id for r in rollouts[-8:]}
    write_rollouts(folder / "train", [r for r in rollouts if r.prompt_id not in held], known)
    write_rollouts(folder / "heldout", [r for r in rollouts if r.prompt_id in held], known)
    return folder


PLAIN = ["--num_processes", "1", "--mixed_precision", "bf16"]


@pytest.fixture(scope="module", params=["true", "false"], ids=["lora", "full"])
def plain(request, data):
    """A run without any engine: its losses, its checkpoint, and the flag it was given."""
    out = data / f"plain-{request.param}"
    return run_recipe(data, out, PLAIN, use_peft=request.param), out, request.param


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed_zero2", "ddp"])
def test_the_given_configurations_train(data, plain, tmp_path, engine):
    """Each of recipes/accelerate on a world of one: the losses of a plain run, and a checkpoint that loads."""
    if engine.startswith("deepspeed") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed")
    launch = ["--config_file", str(CONFIGURATIONS / f"{engine}.yaml"), "--num_processes", "1"]
    found = run_recipe(data, tmp_path, launch, use_peft=plain[2])
    losses = [[row["loss"] for row in log if "loss" in row] for log in (found, plain[0])]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)
    rows = read_rollouts(data / "heldout")[0]
    one, two = (values(load_value_model(folder)[0], rows) for folder in (tmp_path, plain[1]))
    assert one.std() > 0
    assert np.corrcoef(one, two)[0, 1] > 0.98
