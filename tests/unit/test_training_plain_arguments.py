"""The trainer from plain arguments: names, rows in memory, any model; what it saves can be loaded and uploaded."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from test_training_trainer import config
from transformers import GenerationConfig, TrainerCallback

from rmtools.data.load import load_rollouts
from rmtools.data.rollouts import Rollout, RolloutMetadata, Rollouts, write_rollouts
from rmtools.errors import UserError
from rmtools.lm.checkpoint import fingerprint, load_value_model
from rmtools.lm.classifier import new_token_classifier
from rmtools.lm.policy import load_policy
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.steps import StepSettings
from rmtools.lm.value import ValueModel
from rmtools.training.trainer import PRMTrainer

TRL = [
    {
        "prompt": f"r{i % 5} . \nc{i % 3}{3 + i % 2} . \n",
        "completions": ["s r1 ", "u r2 "],
        "labels": [1.0, i / 9],
    }
    for i in range(9)
]


@pytest.fixture
def folder(policy_folder, rollouts, settings, tmp_path):
    weights = fingerprint(policy_folder)
    metadata = RolloutMetadata(str(policy_folder), weights, "crossing", 3, settings, 1.6, 5)
    write_rollouts(tmp_path / "rollouts", rollouts, metadata)
    return tmp_path / "rollouts"


def test_names_in_a_checkpoint_out(policy_folder, folder, rollouts, tmp_path):
    trainer = PRMTrainer(str(policy_folder), train_dataset=str(folder), args=config(tmp_path))
    trainer.train()
    trainer.save_model()
    value, found = load_value_model(tmp_path / "out")
    assert (found.task, found.temperature, found.steps.max_step_tokens) == ("crossing", 1.6, 6)
    assert Path(found.base).resolve() == Path(found.policy).resolve() == policy_folder.resolve()
    assert found.training["rollouts"] == str(folder)
    assert (tmp_path / "out" / "adapter_config.json").exists()
    tree = [trainer.steps.encode(rollouts[0].prompt, rollouts[0].steps)]
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=torch.as_tensor(tree[0].ids.astype(np.int64))[None]).logits
    p = float(torch.softmax(logits[0, -1], dim=-1)[1])
    assert np.exp(value.score(tree)[0].log_value[-1]) == pytest.approx(0.05 + 0.95 * p, rel=1e-4)


def test_the_end_tokens_and_the_law_of_the_policy_reach_the_checkpoint(policy_folder, rollouts, tmp_path):
    """Those of the base's generation settings, and what the rollouts were drawn with."""
    base = tmp_path / "base"
    shutil.copytree(policy_folder, base)
    GenerationConfig(eos_token_id=[2, 7]).save_pretrained(base)
    metadata = RolloutMetadata(
        str(base), "", "crossing", 3, StepSettings("\n", 3, 6), 0.8, 5, top_k=4, top_p=0.9, min_p=0.01
    )
    write_rollouts(tmp_path / "rollouts", rollouts, metadata)
    trainer = PRMTrainer(
        str(base), train_dataset=str(tmp_path / "rollouts"), args=config(tmp_path, max_steps=1)
    )
    trainer.train()
    trainer.save_model()
    value, found = load_value_model(tmp_path / "out")
    assert found.end_ids == [2, 7]
    assert value.steps.end_ids == load_policy(base, found.steps).steps.end_ids == (2, 7)
    assert found.law == SamplingLaw(0.8, 4, 0.9, 0.01)


def test_every_kind_of_rows_is_the_same_training(policy_folder, rollouts, folder, tmp_path):
    rows = [asdict(r) for r in rollouts]
    kinds = (rollouts, rows, datasets.Dataset.from_list(rows), folder)
    made = [PRMTrainer(policy_folder, config(tmp_path, target="mc"), kind) for kind in kinds]
    assert len({t.settings.training["rollouts_fingerprint"] for t in made}) == 1
    for other in made[1:]:
        for a, b in zip(made[0].model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_rows_of_trl(policy_folder, tmp_path):
    args = config(tmp_path, target="labels", divergence="bce")
    trainer = PRMTrainer(str(policy_folder), train_dataset=TRL[:6], eval_dataset=TRL[6:], args=args)
    assert args.eval_strategy == "epoch"
    trainer.train()
    assert any("eval_label_brier" in row for row in trainer.state.log_history)
    assert trainer.evaluate(TRL[6:8])["eval_label_brier"] >= 0
    trainer.save_model()
    found = load_value_model(tmp_path / "out")[1]
    assert (found.task, found.steps) == ("", StepSettings("\n", 2))


def test_rows_with_labels_only_choose_the_target(policy_folder, tmp_path, caplog):
    trainer = PRMTrainer(policy_folder, config(tmp_path), TRL)
    training = trainer.settings.training
    assert (training["target"], training["divergence"]) == ("labels", "bce")
    assert training["configuration"]["target"] == "labels"
    assert "td_lambda" not in training["configuration"]
    assert not trainer.objective.bootstraps
    assert trainer.target_network is None
    assert len([r for r in caplog.records if "target is labels" in r.message]) == 1
    named = config(tmp_path, target="labels", divergence="bce")
    assert PRMTrainer(policy_folder, named, TRL).settings.training == training


def test_a_training_that_fails_leaves_no_empty_folder(policy_folder, tmp_path):
    class Fails(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise ZeroDivisionError

    trainer = PRMTrainer(policy_folder, config(tmp_path), TRL, callbacks=[Fails()])
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert not (tmp_path / "out").exists()


def test_a_target_or_divergence_that_was_set_is_kept(policy_folder, tmp_path):
    args = config(tmp_path, divergence="mse")
    args.resolve_target(load_rollouts(TRL))
    assert (args.target, args.divergence) == ("labels", "mse")
    with pytest.raises(UserError, match="reward"):
        PRMTrainer(policy_folder, config(tmp_path, target="td_lambda"), TRL)
    mixed = [*load_rollouts(TRL), Rollout("a", "r0 . \n", ["s r0 \n"], 1.0)]
    with pytest.raises(UserError, match="reward"):
        PRMTrainer(policy_folder, config(tmp_path), mixed)


def test_all_weights_an_adapter_of_ones_own_and_a_built_model(policy_folder, rollouts, tmp_path):
    from peft import LoraConfig

    def trainable(model, **more):
        made = PRMTrainer(model, config(tmp_path), rollouts, **more).model
        return {n for n, p in made.named_parameters() if p.requires_grad}, made

    whole, _ = trainable(policy_folder, peft_config=None)
    assert not any("lora" in n for n in whole)
    built, _ = trainable(new_token_classifier(str(policy_folder), 0))
    assert built == whole
    mine, model = trainable(policy_folder, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    assert all("score.modules_to_save" in n or "q_proj.lora" in n for n in mine)
    assert model.peft_config["default"].r == 2
    assert trainable(model)[0] == mine


def test_arguments_are_optional(policy_folder, rollouts, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = replace(settings, max_steps=4)
    trainer = PRMTrainer(policy_folder, train_dataset=rollouts, steps=changed)
    assert trainer.args.output_dir == "policy-prm"
    assert (trainer.settings.steps, trainer.settings.horizon) == (changed, 4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "no"),
        ({"eval_strategy": "steps"}, "steps"),
        ({"save_strategy": "epoch"}, "no"),
        (
            {"save_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "brier"},
            "epoch",
        ),
    ],
)
def test_when_it_evaluates_without_held_out_rows_in_sight(tmp_path, changes, expected):
    assert config(tmp_path, **changes).eval_strategy == expected


def test_logging_more_often_does_not_evaluate_more_often(tmp_path):
    found = config(tmp_path, logging_steps=None)
    assert (found.logging_steps, found.eval_steps) == (10, 500)


def test_it_resumes_its_newest_checkpoint_and_no_other_training(policy_folder, folder, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    PRMTrainer(policy_folder, config(tmp_path, **saves), folder).train()
    more = config(tmp_path, **{**saves, "max_steps": 3})
    trainer = PRMTrainer(policy_folder, more, folder)
    trainer.train(resume_from_checkpoint=True)
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [1, 2, 3]
    with pytest.raises(UserError, match=r"another training: floor"):
        PRMTrainer(policy_folder, config(tmp_path, floor=0.1, **saves), folder).train(
            resume_from_checkpoint=True
        )


def trained(model, rows, tmp_path, **changes):
    trainer = PRMTrainer(model, config(tmp_path, **changes), rows)
    trainer.train()
    return trainer


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("finished", ["saved", "checkpoint", "something else"])
@pytest.mark.parametrize("act", ["train", "save_model", "push_to_hub"])
def test_another_training_is_not_replaced_silently(
    policy_folder, folder, tmp_path, finished, act, monkeypatch
):
    """By no way to write into the folder, whatever of a training stands there."""
    monkeypatch.setattr("transformers.trainer.hf_api", None)  # refused before the hub is called
    out = tmp_path / "out"
    if finished == "something else":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        saves = {"save_strategy": "steps", "save_steps": 1} if finished == "checkpoint" else {}
        first = trained(policy_folder, folder, tmp_path, **saves)
        if finished == "saved":
            first.save_model()
    before = files(out)
    trainer = PRMTrainer(policy_folder, config(tmp_path), folder)
    with pytest.raises(UserError) as error:
        getattr(trainer, act)()
    assert str(out) in error.value.fact
    assert finished == "something else" or "overwrite_output_dir" in error.value.fix
    assert files(out) == before
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "rmtools.json").exists()


def test_a_trainer_replaces_what_it_wrote_itself(policy_folder, folder, tmp_path):
    trainer = trained(policy_folder, folder, tmp_path, save_strategy="steps", save_steps=1)
    trainer.save_model()
    one = files(tmp_path / "out")
    trainer.train()
    trainer.save_model()
    assert files(tmp_path / "out").keys() == one.keys()
    PRMTrainer(policy_folder, config(tmp_path), folder).evaluate(TRL)  # writes nothing


def test_overwriting_removes_the_checkpoints_of_the_earlier_training(policy_folder, folder, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 1}
    trained(policy_folder, folder, tmp_path, **saves, max_steps=3).save_model()
    trainer = trained(policy_folder, folder, tmp_path, **saves, max_steps=2, overwrite_output_dir=True)
    trainer.save_model()
    assert {p.name for p in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    last = config(tmp_path, **saves, max_steps=3, resume_from_checkpoint="last")
    resumed = PRMTrainer(policy_folder, last, folder)
    resumed.train()
    resumed.save_model()
    assert [row["step"] for row in resumed.state.log_history if "loss" in row] == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "nowhere/at-all"}, ["nowhere/at-all"]),
        ({"train_dataset": None}, ["no rollouts to train on"]),
        ({"train_dataset": []}, ["is empty"]),
        ({"train_dataset": [{"prompt": "p", "completions": ["a"]}]}, ["completions, prompt", "labels"]),
        (
            {"train_dataset": [{"prompt": "p", "steps": ["a"], "reward": 1.0, "schema_version": 1}]},
            ["version 1"],
        ),
        ({"eval_dataset": TRL[:2]}, ["2 prompts"]),
        ({"eval_dataset": []}, ["is empty"]),
        ({"peft_config": "qlora"}, ["`peft_config`"]),
        ({"model": None}, ["`model`"]),
        ({"args": {"max_steps": 2}}, ["`args`", "dict"]),
    ],
)
def test_bad_input(policy_folder, tmp_path, changes, words):
    given = {
        "model": policy_folder,
        "train_dataset": TRL,
        "args": config(tmp_path, target="labels"),
        **changes,
    }
    with pytest.raises(UserError) as error:
        PRMTrainer(**given)
    assert all(word in error.value.fact for word in words), error.value
    assert error.value.fix
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_trained(policy_folder, value_folder, rollouts, tmp_path):
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    def refused(model, **more):
        with pytest.raises(UserError) as error:
            PRMTrainer(model, config(tmp_path), rollouts, **more)
        return str(error.value)

    assert str(policy_folder) in refused(value_folder)  # an adapter: its base is named
    assert "score" in refused(AutoModelForCausalLM.from_pretrained(policy_folder))
    assert "lora_dropout" in refused(policy_folder, peft_config=LoraConfig(lora_dropout=0.1))
    nameless = new_token_classifier(str(policy_folder), 0)
    nameless.config._name_or_path = nameless.name_or_path = ""
    assert "has no name" in refused(nameless, peft_config=LoraConfig(), processing_class=object())
    assert "processing_class" in refused(nameless)


def test_the_base_is_not_saved_over(policy_folder, tmp_path):
    with pytest.raises(UserError, match="output_dir"):
        PRMTrainer(policy_folder, config(tmp_path, output_dir=str(policy_folder), target="labels"), TRL)


def test_evaluating_without_held_out_rows(policy_folder, rollouts, tmp_path):
    with pytest.raises(UserError, match="eval_dataset"):
        PRMTrainer(policy_folder, config(tmp_path), rollouts).evaluate()


def test_upload(policy_folder, rollouts, settings, tmp_path, monkeypatch, caplog):
    """A stand-in of the hub's client receives weights, settings and our card."""
    seen = {}

    class Client:
        def create_repo(self, name, **kwargs):
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, *, repo_id, folder_path, ignore_patterns, **kwargs):
            seen[repo_id] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir() if p.is_file()}
            return "done"

    monkeypatch.setattr("transformers.trainer.hf_api", Client)
    metadata = RolloutMetadata(str(policy_folder), "", "crossing", 3, settings, 1.6, 5)
    trainer = PRMTrainer(policy_folder, config(tmp_path), Rollouts(rollouts, metadata))
    trainer.train()
    assert trainer.push_to_hub() == "done"
    files = seen["me/out"]
    assert {"adapter_model.safetensors", "adapter_config.json", "rmtools.json", "README.md"} <= files.keys()
    assert "training_args.bin" not in files
    assert b"process-reward-model" in files["README.md"]
    assert json.loads(files["rmtools.json"])["training"]["global_steps"] == 3
    assert "--merge" in caplog.text  # its base is a folder of this machine


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # peft asks the real hub
def test_training_on_a_model_of_the_hub(hub, policy_folder, rollouts, settings, tmp_path):
    """The checkpoint records the commit that training started from, under names that others can load."""
    commit = hub.put("org/policy", policy_folder)
    metadata = RolloutMetadata(f"org/policy@{commit}", commit, "crossing", 3, settings, 1.0, 5)
    trainer = PRMTrainer("org/policy", config(tmp_path), Rollouts(rollouts, metadata))
    trainer.train()
    trainer.save_model()
    hub.put("org/policy", tmp_path / "out")
    value, found = load_value_model(tmp_path / "out")
    assert (found.base, found.base_revision, found.base_fingerprint) == ("org/policy", commit, commit)
    assert (found.policy, found.policy_fingerprint) == (f"org/policy@{commit}", commit)
    assert "base_model: org/policy" in (tmp_path / "out" / "README.md").read_text()
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "org/policy"
    tree = [trainer.steps.encode(r.prompt, r.steps) for r in rollouts[:2]]
    mine = ValueModel(trainer.model.eval(), trainer.steps, value.tilt).score(tree)
    for a, b in zip(mine, value.score(tree), strict=True):
        np.testing.assert_allclose(a.log_value, b.log_value, atol=1e-5)


# Early stopping, and the metric of the best checkpoint


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("epoch", "epoch", 500)),
        ({"eval_steps": 20}, ("steps", "steps", 20)),
        ({"eval_strategy": "steps", "logging_steps": 7}, ("steps", "steps", 7)),
        ({"save_strategy": "steps", "save_steps": 8, "eval_steps": 4}, ("steps", "steps", 8)),
        ({"save_strategy": "best"}, ("epoch", "best", 500)),
    ],
)
def test_early_stopping_evaluates_and_saves(tmp_path, changes, expected):
    found = config(tmp_path, early_stopping_patience=2, **changes)
    assert (found.eval_strategy, found.save_strategy, found.save_steps) == expected
    assert found.load_best_model_at_end
    assert (found.metric_for_best_model, found.greater_is_better) == ("auc_within", True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"early_stopping_patience": 0}, "early_stopping_patience is 0"),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, "early_stopping_patience needs evaluations"),
        ({"early_stopping_patience": 2, "metric_for_best_model": "mean_log_bellman"}, "is signed"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs evaluations"),
        ({"max_steps": "5"}, "max_steps is '5'"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"learning_rate": True}, "learning_rate is True"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"floor": "low"}, "floor is 'low'"),
        ({"td_lambda": [0.5]}, "td_lambda"),
        ({"bf16": "yes"}, "bf16 is 'yes'"),
        ({"n_step": None}, "n_step is None"),
        ({"early_stopping_patience": 1.5}, "early_stopping_patience is 1.5"),
    ],
)
def test_values_that_a_training_refuses(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        config(tmp_path, **changes)


def test_numbers_of_numpy_and_whole_numbers_are_numbers(tmp_path):
    found = config(tmp_path, learning_rate=1, max_steps=np.int64(5), td_lambda=np.float64(0.25))
    assert (found.learning_rate, found.max_steps, found.td_lambda) == (1, 5, 0.25)


def test_the_learning_rate_is_that_of_the_model_unless_it_is_given(tmp_path):
    """5e-4 for adapters at width 576; a quarter of the width doubles it, and all weights want a tenth."""

    def rate(width, given=None, **adapters):
        found = config(tmp_path, learning_rate=given)
        inner = SimpleNamespace(hidden_size=width)
        found.resolve_learning_rate(
            SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: inner), **adapters)
        )
        return found.learning_rate

    assert [rate(w, peft_config={}) for w in (144, 576, 2304)] == [1e-3, 5e-4, 2.5e-4]
    assert rate(576) == 5e-5
    assert rate(576, given=3e-3, peft_config={}) == 3e-3


def test_resuming_with_another_floor_names_the_one_to_pass(policy_folder, folder, tmp_path):
    """As of a training that was begun when the floor was .01 whatever the success rate: here one row in all is right."""
    given = load_rollouts(folder)
    rows = replace(given, rows=[replace(r, reward=float(i == 0)) for i, r in enumerate(given)])
    saves = {"save_strategy": "steps", "save_steps": 1}

    def trained(**changes):
        PRMTrainer(policy_folder, train_dataset=rows, args=config(tmp_path, **saves, **changes)).train()

    trained(max_steps=1, floor=0.01)
    with pytest.raises(UserError) as error:
        trained(max_steps=2, floor=None, resume_from_checkpoint="last")
    assert "floor (0.01 there" in error.value.fact
    assert "floor 0.01" in error.value.fix
    trained(max_steps=2, floor=0.01, resume_from_checkpoint="last")
