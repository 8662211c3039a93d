"""The training recipe: a checkpoint, or one line and exit code 2."""

import json
import logging
import resource
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import check_error, check_late
from safetensors.torch import load_file, save_file

from rmtools.errors import UserError
from rmtools.training.resume import claim_output, held_output

ROOT = Path(__file__).parents[2]


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
    before = (tmp_path / "prm" / "adapter_model.safetensors").read_bytes()
    again = ("--config", training(), "--learning_rate", 0.01)
    check_error(run(*again, script=RECIPE), "holds an earlier training", "overwrite_output_dir to true")
    assert (tmp_path / "prm" / "adapter_model.safetensors").read_bytes() == before
    assert run(*again, "--overwrite_output_dir", "true", script=RECIPE).code == 0
    assert sorted(p.name for p in (tmp_path / "prm").iterdir()) == names
    assert (tmp_path / "prm" / "adapter_model.safetensors").read_bytes() != before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_base_is_not_written_over(run, training, policy_folder):
    before = sorted(p.name for p in policy_folder.iterdir())
    config = training(output_dir=str(policy_folder), overwrite_output_dir=True)
    check_error(run("--config", config, script=RECIPE), "lies in output_dir")
    assert sorted(p.name for p in policy_folder.iterdir()) == before


def test_a_package_that_warns_of_its_kernels_is_not_heard(run):
    assert run("--version").code == 0
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


def test_without_arguments_it_trains_on_the_quick_start_or_says_what_is_missing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_error(run(script=RECIPE), "runs/quickstart/rollouts/train", "is missing", "make quickstart")
    assert not list(tmp_path.iterdir())


def test_stopped_and_resumed_by_the_recipe(run, training, tmp_path):
    """A run of two steps, and one of four that goes on from it; the best of its checkpoints is the result."""
    config = training(
        save_strategy="steps", save_steps=1, max_steps=2, eval_steps=1, lr_scheduler_type="constant"
    )
    assert run("--config", config, script=RECIPE).code == 0
    flags = ("--max_steps", 4, "--resume_from_checkpoint", "last")
    result = run("--config", config, *flags, script=RECIPE)
    assert result.code == 0, result.err
    log = json.loads((tmp_path / "prm" / "training_log.json").read_text())
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "prm" / "rmtools.json").read_text())["training"]["global_steps"] == 4


def test_all_weights_over_an_adapter_leave_nothing_of_it(run, training, tmp_path):
    """Values are those of the model that was trained last; checkpoints of the first are not resumed."""
    saves = {"save_strategy": "steps", "save_steps": 1}
    assert run("--config", training(**saves), script=RECIPE).code == 0
    flags = ("--use_peft", "false", "--max_steps", 1, "--overwrite_output_dir", "true")
    assert run("--config", training(**saves), *flags, script=RECIPE).code == 0
    out = tmp_path / "prm"
    assert not list(out.glob("adapter*"))
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-1"]
    result = run("export", "--model", out, "--merge", "--out", tmp_path / "merged")
    assert result.code == 0, result.err
    one, two = (load_file(f / "model.safetensors") for f in (out, tmp_path / "merged"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("id2label", 3, "damaged"),
        ("dtype", "x", "damaged"),
        ("num_hidden_layers", 1, "has no place for"),
        ("num_hidden_layers", 9, "lack"),
    ],
)
def test_a_whole_model_with_a_damaged_configuration(run, training, tmp_path, key, value, word):
    assert run("--config", training(use_peft=False), script=RECIPE).code == 0
    path = tmp_path / "prm" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    result = run("export", "--model", tmp_path / "prm", "--merge", "--out", tmp_path / "merged")
    check_late(result, word, "prm")
    assert not (tmp_path / "merged").exists()


def test_a_run_that_fails_at_once_replaces_nothing(run, training, tmp_path):
    """Old checkpoints go when the new training has made a step, and not before."""
    config = training(save_strategy="steps", save_steps=1)
    assert run("--config", config, script=RECIPE).code == 0
    before = sorted(p.name for p in (tmp_path / "prm").iterdir())
    flags = ("--overwrite_output_dir", "true", "--optim_args", "foo")
    assert run("--config", config, *flags, script=RECIPE).code == 2
    assert sorted(p.name for p in (tmp_path / "prm").iterdir()) == before


def test_an_unfinished_rollout_is_no_output_folder(run, training, tmp_path):
    out = tmp_path / "prm"
    (out / ".partial" / "0").mkdir(parents=True)
    (out / "plan.json").write_text("{}")
    check_error(run("--config", training(), script=RECIPE), "holds something else")
    assert sorted(p.name for p in out.iterdir()) == [".partial", "plan.json"]


def test_a_training_that_ended_meanwhile_is_not_replaced(tmp_path):
    """The folder was empty when it was claimed; under the lock it is looked at again."""
    out = tmp_path / "prm"
    claim_output(out, None, False)
    out.mkdir()
    (out / "rmtools.json").write_text("{}")
    with pytest.raises(UserError, match="earlier training"), held_output(out):
        pass
    assert [p.name for p in out.iterdir()] == ["rmtools.json"]


def test_a_checkpoint_without_some_of_its_tensors_is_not_resumed(run, training, tmp_path):
    config = training(save_strategy="steps", save_steps=1)
    assert run("--config", config, script=RECIPE).code == 0
    file = tmp_path / "prm" / "checkpoint-2" / "adapter_model.safetensors"
    tensors = load_file(file)
    for part in (".lora_A", "score"):
        dropped = next(n for n in tensors if part in n)
        save_file({n: t for n, t in tensors.items() if n != dropped}, file, metadata={"format": "pt"})
        flags = ("--resume_from_checkpoint", "last", "--max_steps", 3)
        check_late(run("--config", config, *flags, script=RECIPE), "checkpoint-2 are not those", dropped)


def test_an_output_folder_is_of_one_training_at_a_time(run, training, tmp_path):
    """One that another training holds is refused, one that a killed process left is not."""
    out = tmp_path / "prm"
    with held_output(out):
        (out / ".new.saving").mkdir()
        check_late(run("--config", training(), script=RECIPE), "another run is at work", out)
        assert (out / ".new.saving").exists()  # what the other one is writing
    (out / ".partial" / "0").mkdir(parents=True)
    (out / ".new.killed").mkdir()
    assert run("--config", training(), script=RECIPE).code == 0
    assert not list(out.glob(".*"))


def test_resuming_and_replacing_contradict(run, training, tmp_path):
    config = training(save_strategy="steps", save_steps=1)
    assert run("--config", config, script=RECIPE).code == 0
    flags = ("--resume_from_checkpoint", "last", "--overwrite_output_dir", "true")
    check_error(run("--config", config, *flags, script=RECIPE), "would remove it", "one of them")
    (tmp_path / "prm" / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    more = ("--resume_from_checkpoint", "last", "--max_steps", 3)
    assert run("--config", config, *more, "--lora_alpha", 99, script=RECIPE).code == 2
    assert run("--config", config, *more, script=RECIPE).code == 0


def test_rows_of_trl_train_unchanged(run, training, tmp_path, policy_folder):
    """Soft labels, no outcome, no policy named in them; held-out prompts split off; then audited as far as it goes."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"r{i % 5} . \nc{a}{b} . \n",
            "completions": ["s r1 ", "u r2 "][: 1 + i % 2],
            "labels": rng.random(1 + i % 2).round(2).tolist(),
        }
        for i, (a, b) in enumerate([(a, b) for a in range(4) for b in range(a + 1, 5)] * 3)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    values = {"train_rollouts": str(path), "eval_rollouts": None, "eval_share": 0.3, "target": "labels"}
    config = training(**values, divergence="bce", model_name_or_path=str(policy_folder))
    result = run("--config", config, script=RECIPE)
    assert result.code == 0, result.err
    log = json.loads((tmp_path / "prm" / "training_log.json").read_text())
    metrics = next(row for row in log if "eval_label_brier" in row)
    assert metrics["eval_constant_label_brier"] > 0
    assert "eval_brier" not in metrics
    settings = json.loads((tmp_path / "prm" / "rmtools.json").read_text())
    assert settings["base_rate"] == pytest.approx(0.5, abs=0.15)
    check_error(
        run("--config", training(**values, model_name_or_path=None), script=RECIPE), "model_name_or_path"
    )
    values["target"] = "td"
    named = training(**values, model_name_or_path=str(policy_folder), overwrite_output_dir=True)
    check_error(run("--config", named, script=RECIPE), "row 0", "field reward", "target labels")


def test_a_backbone_from_scratch(run, tmp_path, policy_folder, prompts_file):
    rollouts = tmp_path / "text"
    options = ("--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3, "--trajectories", 2)
    assert run("rollout", *options, "--out", rollouts).code == 0
    script = ROOT / "recipes" / "train_backbone.py"
    small = ("--hidden", 16, "--layers", 1, "--steps", 2, "--batch", 2, "--vocabulary", 300)
    result = run("--rollouts", rollouts, "--out", tmp_path / "backbone", *small, script=script)
    assert result.code == 0, result.err
    assert (tmp_path / "backbone" / "tokenizer.json").exists()
    for wrong in (
        ("--vocabulary", 299),
        ("--layers", 0),
        ("--seed", -1),
        ("--hidden", 20),
        ("--learning-rate", "nan"),
    ):
        check_error(
            run("--rollouts", rollouts, "--out", tmp_path / "b", *small, *wrong, script=script),
            wrong[0][2:],
        )
        assert not list(tmp_path.glob("b/*"))
    check_error(run("--rollouts", tmp_path, "--out", tmp_path / "b", script=script), "no rollouts")


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_bug_of_ours_keeps_its_traceback(run, training, monkeypatch, error):
    """A shape error in the forward pass, or a wrong value in the loss, is no refusal of an argument."""
    from transformers import LlamaForTokenClassification

    from rmtools.training.objective import Objective

    def wrong(*args, **kwargs):
        if error is ValueError:
            raise ValueError("a bug")
        return torch.zeros(2, 3) @ torch.zeros(2, 3)

    config = training(eval_strategy="no")
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--config", str(config)])
    owner, name = (Objective, "loss") if error is ValueError else (LlamaForTokenClassification, "forward")
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(error, match=r"a bug|shapes cannot be multiplied") as raised:
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert not isinstance(raised.value, UserError)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")],
)
def test_memory_that_runs_out_is_one_line(run, training, monkeypatch, error):
    from rmtools.training.trainer import PRMTrainer

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(PRMTrainer, "compute_loss", full)
    check_late(run("--config", training(), script=RECIPE), "out of memory", "max_tokens_per_batch")


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_loss_that_blows_up_ends_the_run(run, training, tmp_path, decay):
    config = training(
        learning_rate=1e30, max_grad_norm=0, max_steps=5, ema_decay=decay, eval_strategy="no", logging_steps=9
    )
    check_error(run("--config", config, script=RECIPE), "learning")
    assert not list((tmp_path / "prm").glob("*"))


def test_a_reward_model_is_no_policy(run, value_folder, tmp_path):
    result = run("rollout", "--policy", value_folder, "--prompts", 2, "--horizon", 3, "--out", tmp_path / "r")
    check_error(result, "is a reward model or an adapter, not a policy")
    assert not (tmp_path / "r").exists()


def test_export(run, value_folder, tmp_path):
    out = tmp_path / "merged"
    result = run("export", "--model", value_folder, "--merge", "--out", out)
    assert result.code == 0, result.err
    assert "AutoModelForTokenClassification" in result.out
    assert {"config.json", "model.safetensors", "tokenizer.json", "rmtools.json"} <= {
        p.name for p in out.iterdir()
    }
    check_error(run("export", "--model", value_folder, "--out", tmp_path / "b"), "--merge")
    check_error(
        run("export", "--model", tmp_path / "nowhere", "--merge", "--out", tmp_path / "b"), "no model at"
    )
    assert not (tmp_path / "b").exists()


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
