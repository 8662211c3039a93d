"""Arguments of the training recipe, as flags and in YAML: taken, or one line and exit code 2."""

import importlib.util
import json
from pathlib import Path

import pytest
from checks import check_error

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "train_prm.py"


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"colour": "red"}, [], ["colour"]),
        ({}, ["--colour", "red"], ["colour"]),
        ({"lora_dropout": 0.2, "attn_implementation": "eager"}, [], ["lora_dropout", "attn_impl", "lora_r"]),
        ({"dtype": "int8"}, [], ["int8", "float32, bfloat16, float16"]),
        ({}, ["--load_in_4bit", "true", "--use_peft", "false"], ["cannot be trained whole"]),
        ({}, ["--resume_from_checkpoint", "last"], ["no intact checkpoint to resume from", "save_strategy"]),
        ({"n_step": 0}, [], ["n_step"]),
        ({}, ["--td_lambda", "nan"], ["td_lambda is nan"]),
        ({"td_lambda": 1.1}, [], ["td_lambda"]),
        ({"bellman_residual": -1}, [], ["bellman_residual"]),
        ({"max_length": 3}, [], ["no row is left to train on", "row 0", "max_length"]),
        ({"target": "labels"}, [], ["row 0", "field labels", "target mc or td"]),
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
        ({}, ["--bf16", "true", "--use_cpu", "false"], ["bf16 needs a GPU", "leave bf16 out"]),
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
        ({}, ["--optim_args", "foo"], ["a training argument is refused"]),
        ({}, ["--optim", "foo"], ["foo"]),
        ({}, ["--optim", "galore_adamw"], ["galore"]),
        ({}, ["--report_to", "foo"], ["foo"]),
        ({}, ["--report_to", "wandb"], ["wandb"]),
        ({}, ["--dataloader_num_workers", -1], ["num_workers"]),
        ({}, ["--lora_r", 0], ["r"]),
        ({}, ["--lora_target_modules", "nothing"], ["target_modules"]),
        ({}, ["--lora_target_modules", "q_proj("], ["unterminated"]),
        ({}, ["--torch_compile", "true", "--torch_compile_backend", "foo"], ["foo", "inductor"]),
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
        ({"early_stopping_patience": 0}, [], ["early_stopping_patience is 0"]),
        (
            {"eval_rollouts": None, "eval_strategy": None},
            ["--early_stopping_patience", 2],
            ["no held-out", "eval_share"],
        ),
        (
            {"eval_strategy": "no"},
            ["--early_stopping_patience", 2],
            ["early_stopping_patience", "eval_strategy is no"],
        ),
        ({}, ["--early_stopping_patience", "two"], ["early_stopping_patience"]),
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
        ("lora_target_modules", ["q_proj", 3], "text"),
        ("lora_target_modules", [["q_proj"]], "text"),
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
    check_error(run("--config", path, script=RECIPE), "the key 1 is not text")


def test_one_module_gets_adapters_by_its_name(run, training, tmp_path):
    config = training(lora_target_modules=["q_proj"])
    assert run("--config", config, script=RECIPE).code == 0
    found = json.loads((tmp_path / "prm" / "adapter_config.json").read_text())
    assert found["target_modules"] == ["q_proj"]


def test_four_bits_where_their_package_is_missing(run, training, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest),
    )
    result = run("--config", training(), "--load_in_4bit", "true", script=RECIPE)
    check_error(result, "bitsandbytes", "pip install")


def test_compiling_without_a_compiler(run, training, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, *rest, **more: None)
    check_error(run("--config", training(), "--torch_compile", "true", script=RECIPE), "C++ compiler", "g++")


def test_a_residual_without_children(run, training, tmp_path, policy_folder, prompts_file):
    out = tmp_path / "single"
    options = ("--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3, "--trajectories", 1)
    assert run("rollout", *options, "--out", out).code == 0
    config = training(train_rollouts=str(out), bellman_residual=0.1)
    check_error(
        run("--config", config, script=RECIPE), "bellman_residual", "no children", "two or more children"
    )


def test_wrong_training_files(run, training, tmp_path):
    check_error(run("--config", tmp_path / "missing.yaml", script=RECIPE), "missing.yaml")
    path = training()
    path.write_text("max_steps: [")
    check_error(run("--config", path, script=RECIPE), "cannot be read")


def test_held_out_rollouts_that_share_prompts_are_refused(run, training, tmp_path):
    config = training(eval_rollouts=str(tmp_path / "rollouts"))
    check_error(run("--config", config, script=RECIPE), "held-out", "3 prompts")
