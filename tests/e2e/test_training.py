"""The training recipe: a checkpoint, or one line and exit code 2."""

import importlib.util
import json
import logging
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import check_error, check_late
from safetensors.torch import load_file, save_file

from rmtools.errors import UserError
from rmtools.train.resume import claim_output, held_output

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
    before = (tmp_path / "prm" / "adapter_model.safetensors").read_bytes()
    again = ("--config", training(), "--learning_rate", 0.01)
    check_error(run(*again, script=RECIPE), "holds an earlier training", "--overwrite_output_dir true")
    assert (tmp_path / "prm" / "adapter_model.safetensors").read_bytes() == before
    assert run(*again, "--overwrite_output_dir", "true", script=RECIPE).code == 0
    assert sorted(p.name for p in (tmp_path / "prm").iterdir()) == names
    assert (tmp_path / "prm" / "adapter_model.safetensors").read_bytes() != before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"colour": "red"}, [], ["colour"]),
        ({}, ["--colour", "red"], ["colour"]),
        ({"lora_dropout": 0.2, "attn_implementation": "eager"}, [], ["lora_dropout", "attn_impl", "lora_r"]),
        ({"dtype": "int8"}, [], ["int8", "float32, bfloat16, float16"]),
        ({}, ["--load_in_4bit", "true", "--use_peft", "false"], ["cannot be trained whole"]),
        ({}, ["--resume_from_checkpoint", "last"], ["no whole checkpoint to resume from", "save_strategy"]),
        ({"n_step": 0}, [], ["n_step"]),
        ({"bellman_residual": -1}, [], ["bellman_residual"]),
        ({"max_length": 3}, [], ["no row is left to train on", "row 0", "max_length"]),
        ({"target": "labels"}, [], ["row 0", "field labels", "--target mc or td"]),
        ({"metric_for_best_model": "accuracy"}, [], ["accuracy", "brier"]),
        ({"target": "gae"}, [], ["mc, td, td_lambda"]),
        ({"divergence": "kl"}, [], ["itakura_saito"]),
        ({"floor": 0}, [], ["floor"]),
        ({}, ["--max_steps", "many"], ["max_steps"]),
        ({"train_rollouts": "nowhere"}, [], ["there are no rollouts at nowhere"]),
        ({"eval_rollouts": "nowhere"}, [], ["there are no rollouts at nowhere"]),
        ({"train_rollouts": None}, [], ["there are no rollouts"]),
        ({"eval_rollouts": None}, [], ["eval"]),
        ({"model_name_or_path": "nowhere/at/all"}, [], ["nowhere/at/all"]),
        ({}, ["--config"], ["--config names no file"]),
        ({}, ["--max_steps", 0], ["max_steps is 0", "at least 1, or -1"]),
        ({"max_steps": -1}, ["--num_train_epochs", -1], ["num_train_epochs", "above 0"]),
        ({}, ["--max_grad_norm", -1], ["max_grad_norm"]),
        ({}, ["--weight_decay", "nan"], ["weight_decay is nan"]),
        ({}, ["--fp16", "true"], ["fp16 needs a GPU"]),
        ({"seed": 99999999999}, [], ["seed", "below 2^32"]),
        (
            {"eval_rollouts": None, "eval_strategy": "no", "metric_for_best_model": "foo"},
            [],
            ["metric_for_best_model"],
        ),
        ({"data_format": "trl"}, [], ["data_format is trl", "leave data_format out"]),
        ({"deepspeed": "nofile.json"}, [], ["there is no file nofile.json"]),
        ({}, ["--lr_scheduler_kwargs", '{"foo": 1}'], ["lr_scheduler_kwargs {'foo': 1}", "foo"]),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": float("nan")}},
            [],
            ["not finite"],
        ),
        ({}, ["--lr_scheduler_type", "warmup_stable_decay"], ["warmup_stable_decay", "num_decay_steps"]),
        (
            {"divergence": "contrastive", "per_device_train_batch_size": 1},
            [],
            ["per_device_train_batch_size", "contrastive"],
        ),
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 100},
            [],
            ["dataloader_drop_last drops all"],
        ),
        ({"neftune_noise_alpha": 5}, [], ["neftune_noise_alpha", "perturbs"]),
        ({"accelerator_config": {"split_batches": True}}, [], ["split_batches"]),
        ({"accelerator_config": {"foo": True}}, [], ["foo"]),
        ({"log_level": "foo"}, [], ["foo"]),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "brier", "eval_strategy": "no"},
            [],
            ["needs evaluations"],
        ),
    ],
)
def test_wrong_training_arguments(run, training, tmp_path, changes, flags, words):
    check_error(run("--config", training(**changes), *flags, script=RECIPE), *words)
    assert not list((tmp_path / "prm").glob("*"))


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("learning_rate", None, "a number"),
        ("learning_rate", [1], "a number"),
        ("learning_rate", True, "a number"),
        ("td_lambda", None, "a number"),
        ("max_steps", 2.5, "an integer"),
        ("gradient_accumulation_steps", 2.5, "an integer"),
        ("max_length", 20.5, "an integer"),
        ("lora_r", 2.5, "an integer"),
        ("seed", 1.5, "an integer"),
        ("seed", True, "an integer"),
        ("train_rollouts", 3, "text"),
        ("train_rollouts", ["ro"], "text"),
        ("output_dir", 3, "text"),
        ("model_name_or_path", 3, "text"),
        ("use_peft", "maybe", "true"),
        ("lora_target_modules", ["q_proj", 3], "a list of texts"),
        ("lora_target_modules", [["q_proj"]], "a list of texts"),
        ("lr_scheduler_type", 3, "text"),
        ("target", None, "text"),
        ("bf16", 3, "true or false"),
    ],
)
def test_values_of_a_wrong_type_in_the_configuration(run, training, tmp_path, key, value, kind):
    path = training()
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    check_error(run("--config", path, script=RECIPE), key, kind)
    assert not list((tmp_path / "prm").glob("*"))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00", "just words"])
def test_a_configuration_that_is_none(run, tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    check_error(run("--config", path, script=RECIPE), "the configuration", str(path))


def test_what_the_configuration_may_say_in_several_ways(run, training):
    """Integers for numbers, 3e-3 (text to YAML), true for the newest checkpoint."""
    path = training(save_strategy="steps", save_steps=1)
    path.write_text(path.read_text().replace("}", ', "learning_rate": "3e-3", "weight_decay": 0}'))
    result = run("--config", path, script=RECIPE)
    assert result.code == 0, result.err
    path.write_text(path.read_text().replace("}", ', "resume_from_checkpoint": true}'))
    result = run("--config", path, "--max_steps", 3, script=RECIPE)
    assert result.code == 0, result.err


def test_keys_that_are_no_text(run, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("1: 2")
    check_error(run("--config", path, script=RECIPE), "the key 1 is no text")


def test_one_module_gets_adapters_by_its_name(run, training, tmp_path):
    config = training(lora_target_modules=["q_proj"])
    assert run("--config", config, script=RECIPE).code == 0
    found = json.loads((tmp_path / "prm" / "adapter_config.json").read_text())
    assert found["target_modules"] == ["q_proj"]


def test_the_base_is_not_written_over(run, training, policy_folder):
    before = sorted(p.name for p in policy_folder.iterdir())
    config = training(output_dir=str(policy_folder), overwrite_output_dir=True)
    check_error(run("--config", config, script=RECIPE), "lies in output_dir")
    assert sorted(p.name for p in policy_folder.iterdir()) == before


def test_four_bits_where_their_package_is_missing(run, training, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest),
    )
    result = run("--config", training(), "--load_in_4bit", "true", script=RECIPE)
    check_error(result, "bitsandbytes", "pip install")


def test_a_package_that_warns_of_its_kernels_is_not_heard(run):
    assert run("--version").code == 0
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


def test_a_residual_without_children(run, training, tmp_path, policy_folder, prompts_file):
    out = tmp_path / "single"
    options = ("--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3, "--trajectories", 1)
    assert run("rollout", *options, "--out", out).code == 0
    config = training(train_rollouts=str(out), bellman_residual=0.1)
    check_error(run("--config", config, script=RECIPE), "bellman_residual", "no children", "--children 2")


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
    (out / "rmtools.json").write_text("{}")
    with pytest.raises(UserError, match="holds an earlier training"), held_output(out):
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
    """One that another process holds is refused, one that a killed process left is not."""
    out = tmp_path / "prm"
    with held_output(out):
        (out / ".new.saving").mkdir()
        code = "import sys; sys.argv = sys.argv[1:]; import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
        command = [sys.executable, "-c", code, str(RECIPE), "--config", str(training())]
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.returncode == 2
        assert "another run is at work on the training" in found.stderr
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
        run("--config", training(**values, model_name_or_path=None), script=RECIPE), "--model_name_or_path"
    )
    values["target"] = "td"
    named = training(**values, model_name_or_path=str(policy_folder), overwrite_output_dir=True)
    check_error(run("--config", named, script=RECIPE), "row 0", "field reward", "--target labels")


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
            wrong[0][2:].replace("-", "_"),
        )
        assert not list(tmp_path.glob("b/*"))
    check_error(run("--rollouts", tmp_path, "--out", tmp_path / "b", script=script), "no rollouts")


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
        run("export", "--model", tmp_path / "nowhere", "--merge", "--out", tmp_path / "b"), "no checkpoint"
    )
    assert not (tmp_path / "b").exists()


def test_wrong_training_files(run, training, tmp_path):
    check_error(run("--config", tmp_path / "missing.yaml", script=RECIPE), "missing.yaml")
    path = training()
    path.write_text("max_steps: [")
    check_error(run("--config", path, script=RECIPE), "cannot be read")


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
