"""Checkpoints while training: resuming, the best of them, precision, what is saved, and the export."""

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_train_trainer import adapted, config, trainer_for

from rmtools.core.tilt import Tilt
from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import RolloutMetadata
from rmtools.errors import UserError
from rmtools.lm.checkpoint import (
    SETTINGS_FILE,
    CheckpointSettings,
    Float32Head,
    fingerprint,
    load_value_model,
    new_token_classifier,
)
from rmtools.lm.export import export_merged
from rmtools.lm.steps import StepSettings
from rmtools.lm.value import ValueModel
from rmtools.train.bootstrap import FILE
from rmtools.train.config import CHECKPOINTING
from rmtools.train.resume import (
    NEEDED_TO_RESUME,
    checkpoint_to_resume,
    remove_checkpoint,
    remove_checkpoints,
    require_same_training,
)
from rmtools.train.save import CARD_FILE, base_rate, card, settings_for


@pytest.fixture(scope="module")
def rollouts(policy, task, prompts):
    """The policy's own, with outcomes of both kinds in both halves: it seldom succeeds."""
    rng = np.random.default_rng(0)
    rows = Collector(policy, task, Branching(3, 3, 2), rng).collect(prompts)
    return [replace(r, reward=float(i % 3 == 0)) for i, r in enumerate(rows)]


@pytest.fixture
def remembered(policy_folder, settings, rollouts, tmp_path):
    metadata = RolloutMetadata(
        str(policy_folder), fingerprint(policy_folder), "crossing", 3, settings, 1.6, 5
    )
    return settings_for(str(policy_folder), "", metadata, rollouts, config(tmp_path), "rollouts")


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("full", "changes"),
    [
        (False, {"target": "td", "ema_decay": 0.9}),
        (True, {"target": "td_lambda", "ema_decay": 0.9}),
        (False, {"target": "mc", "divergence": "bce"}),
        (False, {"target": "td", "ema_decay": 0.0, "train_sampling_strategy": "random"}),
    ],
)
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered, full, changes
):
    """24 rows in batches of 4: the checkpoint after 7 steps lies in the second epoch."""
    values = {**changes, "max_steps": 14, "save_strategy": "steps", "save_steps": 7}

    def fresh(folder, **more):
        torch.manual_seed(3)
        model = new_token_classifier(str(policy_folder), 0) if full else adapted(policy_folder)
        return trainer_for(
            policy_folder,
            step_tokenizer,
            rollouts,
            folder,
            model=model,
            settings=remembered,
            **values,
            **more,
        )

    whole = fresh(tmp_path / "a")
    whole.train()
    checkpoint = tmp_path / "a" / "out" / "checkpoint-7"
    again = fresh(tmp_path / "b")
    again.train(resume_from_checkpoint=str(checkpoint))
    assert len(losses(whole)) == 14
    np.testing.assert_allclose(losses(again)[7:], losses(whole)[7:], rtol=1e-5)
    assert (checkpoint / FILE).exists() == (values["target"] != "mc" and values["ema_decay"] > 0)
    for name, weights in whole.bootstrap.weights.items() if whole.bootstrap else ():
        torch.testing.assert_close(again.bootstrap.weights[name], weights)


def test_a_resumed_run_without_its_copy_is_refused(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered
):
    values = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, settings=remembered, **values).train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    (checkpoint / FILE).unlink()
    again = trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, settings=remembered, **values)
    with pytest.raises(UserError, match=f"no readable {FILE}"):
        again.train(resume_from_checkpoint=str(checkpoint))


def stub_checkpoint(folder, n):
    """A whole checkpoint as far as resuming looks."""
    path = folder / f"checkpoint-{n}"
    path.mkdir()
    steps = StepSettings("\n", 3, 6)
    CheckpointSettings("", "", "", "", "", "crossing", 3, steps, 0.05, 1.0, 0, 0.3).save(path)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": n}))
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"a": torch.zeros(100)}, path / name)
    save_file({"a": torch.zeros(100)}, path / "adapter_model.safetensors")
    return path


def test_what_to_resume_from(tmp_path):
    """The newest whole checkpoint: one that a kill left half-written is passed over."""
    assert checkpoint_to_resume(None, tmp_path) is None
    assert checkpoint_to_resume("false", tmp_path) is None
    for named in ("last", str(tmp_path / "checkpoint-9")):
        with pytest.raises(UserError, match="no whole checkpoint to resume from"):
            checkpoint_to_resume(named, tmp_path)
    three, twelve, twenty = (stub_checkpoint(tmp_path, n) for n in (3, 12, 20))
    for name in NEEDED_TO_RESUME:
        (twenty / name).unlink()
        assert checkpoint_to_resume("last", tmp_path) == str(twelve)
    assert checkpoint_to_resume(str(three), tmp_path) == str(three)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("adapter_model.safetensors", None, "it has no weights"),
        ("adapter_model.safetensors", "", "adapter_model.safetensors is damaged"),
        ("trainer_state.json", "{}", "trainer_state.json names no global_step"),
        ("trainer_state.json", '{"global_step": "x"}', "trainer_state.json names no global_step"),
        (SETTINGS_FILE, "{}", "schema version None"),
        (FILE, None, f"it has no {FILE}"),
    ],
)
def test_more_that_a_checkpoint_lacks(tmp_path, caplog, name, text, why):
    """The copy's weights are missing only where the training has a copy."""
    older, newer = (stub_checkpoint(tmp_path, n) for n in (3, 4))
    for path in (older, newer):
        save_file({"a": torch.zeros(3)}, path / FILE)
    if text is None:
        (newer / name).unlink()
    else:
        (newer / name).write_text(text)
    assert checkpoint_to_resume("last", tmp_path, (FILE,)) == str(older)
    assert why in caplog.text
    assert (checkpoint_to_resume("last", tmp_path) == str(newer)) == (name == FILE)


def test_checkpoints_after_the_resumed_one_are_removed(tmp_path):
    """Of another schedule, say: a later resume must not find them."""
    for n in (2, 4, 10):
        stub_checkpoint(tmp_path, n)
    remove_checkpoints(tmp_path, str(tmp_path / "checkpoint-4"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    (tmp_path / "checkpoint-2-mine").mkdir()
    remove_checkpoints(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2-mine"]


@pytest.mark.parametrize("optimizer", ["optimizer.bin", "optimizer_0", "global_step3"])
def test_optimizers_of_other_engines_are_whole_too(tmp_path, optimizer):
    """FSDP and DeepSpeed write their own files."""
    path = stub_checkpoint(tmp_path, 3)
    (path / "optimizer.pt").rename(path / optimizer)
    assert checkpoint_to_resume("last", tmp_path) == str(path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    """One bit of the stored tensor."""
    data = bytearray(path.read_bytes())
    at = data.index(bytes(100))
    data[at + 50] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", SETTINGS_FILE]
)
@pytest.mark.parametrize("harm", [cut, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_passed_over_or_named(tmp_path, caplog, name, harm):
    older, newer = stub_checkpoint(tmp_path, 3), stub_checkpoint(tmp_path, 4)
    torch.save({"a": torch.zeros(100)}, newer / "rng_state.pth")
    if name.endswith(".json"):
        (newer / name).write_text('{"a": 1')
    else:
        harm(newer / name)
    assert checkpoint_to_resume("last", tmp_path) == str(older)
    assert name in caplog.text
    assert "passed over" in caplog.text
    with pytest.raises(UserError, match=f"checkpoint-4.*{name}"):
        checkpoint_to_resume(str(newer), tmp_path)


def test_a_resumed_run_that_had_all_its_steps_makes_no_more(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered
):
    values = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4, "ema_decay": 0.0}
    first, again = (
        trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, settings=remembered, **values)
        for _ in range(2)
    )
    first.train()
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert again.state.global_step == 4
    for one, two in zip(first.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_a_checkpoint_of_that_name_is_replaced_whole(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered
):
    """What was there before the run was resumed from an older one does not stay in part."""
    old = tmp_path / "out" / "checkpoint-2"
    old.mkdir(parents=True)
    (old / "stray").write_text("")
    values = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, settings=remembered, **values).train()
    assert (old / "trainer_state.json").exists()
    assert not (old / "stray").exists()


def test_a_disk_that_is_full_when_the_optimiser_is_saved(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered, monkeypatch
):
    """The checkpoint before stays, the half-written one goes."""
    values = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, settings=remembered, **values)
    save = trainer._save_optimizer_and_scheduler

    def full(folder):
        save(folder)
        if folder.endswith("checkpoint-4"):
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
            try:
                torch.save(torch.zeros(10**5), f"{folder}/optimizer.pt")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(UserError, match=r"cannot write .*checkpoint-4") as error:
        trainer.train()
    assert "checkpoints before it are unchanged" in error.value.fact
    out = tmp_path / "out"
    assert [p.name for p in out.iterdir()] == ["checkpoint-2"]
    assert checkpoint_to_resume("last", out) == str(out / "checkpoint-2")


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"data_seed": 7},
        {"per_device_train_batch_size": 8},
        {"gradient_accumulation_steps": 2},
        {"train_sampling_strategy": "random"},
        {"lr_scheduler_type": "cosine"},
        {"learning_rate": 2e-2},
        {"weight_decay": 0.1},
        {"max_length": 200},
        {"optim": "adafactor"},
        {"warmup_steps": 3},
    ],
)
def test_other_arguments_are_another_training(policy_folder, policy, settings, rollouts, tmp_path, changes):
    metadata = RolloutMetadata(str(policy_folder), "", "crossing", 3, settings, 1.6, 5)
    one, two = (
        settings_for(str(policy_folder), "", metadata, rollouts, config(tmp_path, **c), "r")
        for c in ({}, changes)
    )
    (name,) = changes
    shown = (
        "rows_per_step" if name in ("per_device_train_batch_size", "gradient_accumulation_steps") else name
    )
    one.save(tmp_path)
    require_same_training(str(tmp_path), one)
    with pytest.raises(UserError, match=rf"another training: {shown} \("):
        require_same_training(str(tmp_path), two)


def test_the_same_rows_a_step_in_other_parts_are_the_same_training(
    policy_folder, settings, rollouts, tmp_path
):
    """And so is a longer one."""
    metadata = RolloutMetadata(str(policy_folder), "", "crossing", 3, settings, 1.6, 5)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 50}
    one, two = (
        settings_for(str(policy_folder), "", metadata, rollouts, config(tmp_path, **c), "r")
        for c in ({}, parts)
    )
    one.save(tmp_path)
    assert require_same_training(str(tmp_path), two) is None


def test_other_rows_and_another_base_are_another_training(
    policy_folder, settings, rollouts, tmp_path, remembered
):
    remembered.save(tmp_path)
    metadata = RolloutMetadata(
        str(policy_folder), fingerprint(policy_folder), "crossing", 3, settings, 1.6, 5
    )
    fewer = settings_for(str(policy_folder), "", metadata, rollouts[1:], config(tmp_path), "rollouts")
    with pytest.raises(UserError, match="rollouts_fingerprint"):
        require_same_training(str(tmp_path), fewer)
    with pytest.raises(UserError, match=r"base \(.* there, other now\)"):
        require_same_training(str(tmp_path), replace(remembered, base_fingerprint="other"))


def test_the_base_rate_is_that_of_the_outcomes_where_there_are_any(rollouts):
    labelled = [replace(r, labels=[1.0] * len(r.steps)) for r in rollouts]
    assert base_rate(labelled) == pytest.approx(np.mean([r.reward for r in rollouts]))
    assert base_rate([replace(r, reward=None) for r in labelled]) == 1.0


def test_the_card_has_the_last_metrics(remembered):
    log = [{"step": 1, "eval_brier": 0.4}, {"step": 2, "loss": 1.0}, {"step": 3, "eval_brier": 0.25}]
    described = replace(remembered, training={**remembered.training, "global_steps": 3})
    text = card(described, log)
    assert "after 3 optimiser steps" in text
    assert "| brier | 0.25 |" in text


def test_a_checkpoint_is_no_whole_one_before_it_is_removed(tmp_path, monkeypatch):
    """A kill in between leaves half of it, without the file that says it is whole."""
    path = stub_checkpoint(tmp_path, 3)
    monkeypatch.setattr("shutil.rmtree", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(path)
    assert path.exists()
    with pytest.raises(UserError, match=r"it has no trainer_state.json"):
        checkpoint_to_resume(str(path), tmp_path)


def test_what_means_the_same_is_the_same_training(policy_folder, settings, rollouts, tmp_path):
    from trl import ModelConfig

    metadata = RolloutMetadata(str(policy_folder), "", "crossing", 3, settings, 1.6, 5)

    def described(model, **changes):
        return settings_for(
            str(policy_folder), "", metadata, rollouts, config(tmp_path, **changes), "r", ModelConfig(**model)
        )

    described({"use_peft": True}).save(tmp_path)
    for model, changes in (
        ({"lora_target_modules": "all-linear"}, {}),
        ({"lora_target_modules": []}, {}),
        ({"dtype": "auto"}, {}),
        ({"dtype": "float32"}, {}),
        ({"bnb_4bit_quant_type": "fp4"}, {}),
        ({}, {"data_seed": 0}),
        ({}, {"lr_scheduler_kwargs": {}}),
        ({}, {"n_step": 5}),
        ({}, {"pqm_margin": 1.0}),
    ):
        assert require_same_training(str(tmp_path), described({"use_peft": True, **model}, **changes)) is None
    described({"use_peft": False}).save(tmp_path)
    assert require_same_training(str(tmp_path), described({"use_peft": False, "lora_r": 8})) is None


def test_other_adapters_are_another_training(policy_folder, settings, rollouts, tmp_path):
    from trl import ModelConfig

    metadata = RolloutMetadata(str(policy_folder), "", "crossing", 3, settings, 1.6, 5)
    first = ModelConfig(use_peft=True, lora_r=4, lora_alpha=8)

    def described(model):
        return settings_for(str(policy_folder), "", metadata, rollouts, config(tmp_path), "r", model)

    described(first).save(tmp_path)
    require_same_training(str(tmp_path), described(first))
    for name, other in (
        ("lora_alpha", ModelConfig(use_peft=True, lora_r=4, lora_alpha=16)),
        ("use_peft", ModelConfig(use_peft=False, lora_r=4, lora_alpha=8)),
        ("dtype", ModelConfig(use_peft=True, lora_r=4, lora_alpha=8, dtype="bfloat16")),
    ):
        with pytest.raises(UserError, match=name):
            require_same_training(str(tmp_path), described(other))


def test_another_training_is_not_resumed(policy_folder, step_tokenizer, rollouts, tmp_path, remembered):
    values = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, settings=remembered, **values).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    require_same_training(checkpoint, remembered)
    other = replace(remembered, training={**remembered.training, "target": "mc"})
    with pytest.raises(UserError, match=r"another training: target \(td_lambda there, mc now\)"):
        require_same_training(checkpoint, other)
    with pytest.raises(UserError, match=r"floor \(0.05 there, 0.1 now\)"):
        require_same_training(checkpoint, replace(remembered, floor=0.1))


@pytest.mark.parametrize(
    ("metric", "greater"), [("rms_log_bellman", False), ("auc", True), ("last_auc", True)]
)
def test_the_best_checkpoint_is_what_is_saved(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered, metric, greater
):
    """The learning rate is so high that the metric goes up and down."""
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts[12:],
        tmp_path,
        rollouts[:12],
        settings=remembered,
        max_steps=6,
        learning_rate=0.3,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
    )
    trainer.train()
    seen = {
        row["step"]: row[f"eval_{metric}"] for row in trainer.state.log_history if f"eval_{metric}" in row
    }
    best = (max if greater else min)(seen.values())
    assert trainer.state.best_metric == best
    assert len(set(seen.values())) > 1
    assert trainer.evaluate()[f"eval_{metric}"] == pytest.approx(best, rel=1e-5)


def test_a_metric_that_the_held_out_rows_do_not_resolve(policy_folder, step_tokenizer, rollouts, tmp_path):
    """All held-out outcomes are equal: there is no AUC."""
    failed = [replace(r, reward=0.0) for r in rollouts[12:]]
    with pytest.raises(UserError, match=r"metric_for_best_model is auc.*brier, ece"):
        trainer_for(
            policy_folder,
            step_tokenizer,
            rollouts[:12],
            tmp_path,
            failed,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            metric_for_best_model="auc",
        )


def test_a_checkpoint_while_training_is_a_checkpoint(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered
):
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts,
        tmp_path,
        settings=remembered,
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    folder = tmp_path / "out" / "checkpoint-2"
    _, settings = load_value_model(folder)
    assert settings.training["global_steps"] == 2
    assert not (folder / "training_args.bin").exists()


def test_the_model_card_has_the_figures(policy_folder, step_tokenizer, rollouts, tmp_path, remembered):
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts[:12],
        tmp_path,
        rollouts[12:],
        settings=remembered,
        eval_strategy="steps",
        eval_steps=3,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "prm"))
    card = (tmp_path / "prm" / CARD_FILE).read_text()
    figures = next(row for row in trainer.state.log_history if "eval_brier" in row)
    for name in ("brier", "ece", "rms_log_bellman", "t_rms_log_bellman", "constant_rms_log_bellman"):
        assert f"| {name} | {figures[f'eval_{name}']:.4g} |" in card
    assert str(tmp_path) not in card
    assert "`td_lambda`" in card
    written = json.loads((tmp_path / "prm" / SETTINGS_FILE).read_text())
    assert {"target", "divergence", "rollouts_fingerprint", "versions", "global_steps"} <= set(
        written["training"]
    )


def test_a_hub_model_is_identified_by_its_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--model"
    (folder / "snapshots" / "abc123").mkdir(parents=True)
    (folder / "snapshots" / "abc123" / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc123")
    assert fingerprint("some/model") == "abc123"
    assert fingerprint("some/other") == ""
    assert fingerprint("no model: at all") == ""
    assert fingerprint(tmp_path) == ""


# Precision and memory


def test_the_head_stays_in_fp32_under_bf16(policy_folder, step_tokenizer, rollouts, tmp_path):
    """Under autocast a plain head returns bf16 logits: three digits, where log values near the floor need six."""
    model = adapted(policy_folder)
    trainer = trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, model=model, bf16=True)
    seen, inner = [], model.base_model.model
    for module in (inner.score, inner.model.layers[0].mlp.down_proj):
        module.register_forward_hook(lambda m, i, out: seen.append((type(m).__name__, out.dtype)))
    trainer.train()
    assert len(losses(trainer)) == 3
    assert np.isfinite(losses(trainer)).all()
    assert {dtype for name, dtype in seen if name == "ModulesToSaveWrapper"} == {torch.float32}
    assert {dtype for name, dtype in seen if name == "Linear"} == {torch.bfloat16}


def test_a_head_loaded_in_bf16_computes_in_fp32(policy_folder):
    model = new_token_classifier(str(policy_folder), 0, dtype=torch.bfloat16)
    assert isinstance(model.score, Float32Head)
    assert model.score.weight.dtype == torch.float32
    assert next(model.model.parameters()).dtype == torch.bfloat16
    assert model(input_ids=torch.arange(4, 12)[None]).logits.dtype == torch.float32


@pytest.mark.parametrize("full", [False, True])
def test_activation_checkpointing_changes_memory_not_losses(
    policy_folder, step_tokenizer, rollouts, tmp_path, full
):
    found = []
    for on in (False, True):
        torch.manual_seed(3)
        model = new_token_classifier(str(policy_folder), 0) if full else adapted(policy_folder)
        trainer = trainer_for(
            policy_folder, step_tokenizer, rollouts, tmp_path, model=model, **{CHECKPOINTING: on}
        )
        trainer.train()
        found.append(losses(trainer))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_full_fine_tuning_moves_every_weight(policy_folder, step_tokenizer, rollouts, tmp_path, remembered):
    model = new_token_classifier(str(policy_folder), 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, model=model, settings=remembered)
    trainer.train()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if "embed" not in n)
    trainer.save_model(str(tmp_path / "prm"))
    again, _ = load_value_model(tmp_path / "prm")
    tree = [step_tokenizer.encode(r.prompt, r.steps) for r in rollouts[:3]]
    for a, b in zip(
        again.score(tree), ValueModel(model, step_tokenizer, Tilt(0.05)).score(tree), strict=True
    ):
        np.testing.assert_allclose(a.log_value, b.log_value, atol=1e-5)


def test_an_adapter_on_a_base_stored_in_bf16_reloads_to_its_own_values(
    policy_folder, step_tokenizer, rollouts, tmp_path, settings
):
    """Training is in fp32 unless asked otherwise, whatever the files hold: loading has to be, too."""
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(policy_folder, dtype=torch.bfloat16).save_pretrained(base)
    step_tokenizer.tokenizer.save_pretrained(base)
    metadata = RolloutMetadata(str(base), fingerprint(base), "crossing", 3, settings, 1.0, 5)
    remembered = settings_for(str(base), "", metadata, rollouts, config(tmp_path), "rollouts")
    trainer = trainer_for(
        base, step_tokenizer, rollouts, tmp_path, settings=remembered, learning_rate=0.05, max_steps=6
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "prm"))
    export_merged(tmp_path / "prm", tmp_path / "merged")
    trees = [step_tokenizer.encode(r.prompt, r.steps) for r in rollouts[:4]]
    live = ValueModel(trainer.model, step_tokenizer, Tilt(0.05)).score(trees)
    for folder in ("prm", "merged"):
        for a, b in zip(live, load_value_model(tmp_path / folder)[0].score(trees), strict=True):
            np.testing.assert_allclose(b.log_value, a.log_value, atol=1e-5)


@pytest.mark.parametrize("kind", ["Phi", "Phi3", "Starcoder2"])
def test_dropout_is_off_under_every_name(tmp_path, kind):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "residual_dropout", "embedding_dropout"), 0.3)
    made = getattr(transformers, f"{kind}Config")(
        vocab_size=32, num_key_value_heads=2, pad_token_id=0, eos_token_id=2, bos_token_id=1, **sizes, **drops
    )
    getattr(transformers, f"{kind}ForCausalLM")(made).save_pretrained(tmp_path / kind)
    model = new_token_classifier(str(tmp_path / kind), 0).train()
    ids = torch.arange(4, 12)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


# Export

PLAIN = """
import sys, torch
from transformers import AutoModelForTokenClassification, AutoTokenizer
model, tokenizer = (c.from_pretrained(sys.argv[1]) for c in (AutoModelForTokenClassification, AutoTokenizer))
assert not {"rmtools", "peft"} & set(sys.modules)
ids = tokenizer(sys.argv[2], return_tensors="pt")
print(*torch.softmax(model.eval()(**ids).logits.double(), -1)[0, :, 1].tolist())
"""


def test_adapter_merged_and_plain_values_agree(policy_folder, step_tokenizer, rollouts, tmp_path, remembered):
    trainer = trainer_for(
        policy_folder,
        step_tokenizer,
        rollouts,
        tmp_path,
        settings=remembered,
        learning_rate=0.05,
        max_steps=6,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "prm"))
    export_merged(tmp_path / "prm", tmp_path / "merged")
    trees = [step_tokenizer.encode(r.prompt, r.steps) for r in rollouts[:4]]
    live = ValueModel(trainer.model, step_tokenizer, Tilt(0.05)).score(trees)
    reloaded = load_value_model(tmp_path / "prm")[0].score(trees)
    merged = load_value_model(tmp_path / "merged")[0].score(trees)
    for a, b, c in zip(live, reloaded, merged, strict=True):
        np.testing.assert_allclose(b.log_value, a.log_value, atol=1e-5)
        np.testing.assert_allclose(c.log_value, a.log_value, atol=1e-5)
    assert not np.allclose(live[0].log_value, live[0].log_value[0])
    row = rollouts[0]
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "merged"), row.prompt + "".join(row.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    p = np.asarray([float(x) for x in done.stdout.split()])[trees[0].reads]
    np.testing.assert_allclose(np.log(0.05 + 0.95 * p), live[0].log_value, atol=1e-5)


def test_export_over_something_else_is_refused(value_folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        export_merged(value_folder, tmp_path)
    with pytest.raises(UserError, match="is the checkpoint itself"):
        export_merged(value_folder, value_folder)
    shutil.copytree(value_folder, tmp_path / "trained")
    with pytest.raises(UserError, match="holds something else"):
        export_merged(value_folder, tmp_path / "trained")
    shutil.rmtree(tmp_path / "trained")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
