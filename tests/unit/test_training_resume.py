"""Going on with a training: from which checkpoint, with the same losses, and not with those of another."""

import json
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_training_checkpoints import losses
from test_training_trainer import adapted, config, trainer_for

from rmtools.data.rollouts import RolloutMetadata, Rollouts
from rmtools.errors import UserError
from rmtools.lm.checkpoint import SETTINGS_FILE, CheckpointSettings, fingerprint
from rmtools.lm.classifier import new_token_classifier
from rmtools.lm.steps import StepSettings
from rmtools.training.lora import build_model
from rmtools.training.provenance import checkpoint_settings, configuration_hash
from rmtools.training.resume import (
    NEEDED_TO_RESUME,
    checkpoint_to_resume,
    remove_checkpoint,
    remove_checkpoints,
    require_same_training,
)
from rmtools.training.target_network import TARGET_NETWORK_FILE


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
    assert (checkpoint / TARGET_NETWORK_FILE).exists() == (
        values["target"] != "mc" and values["ema_decay"] > 0
    )
    for name, weights in whole.target_network.weights.items() if whole.target_network else ():
        torch.testing.assert_close(again.target_network.weights[name], weights)


def test_a_resumed_run_without_its_copy_is_refused(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered
):
    values = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, settings=remembered, **values).train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    (checkpoint / TARGET_NETWORK_FILE).unlink()
    again = trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, settings=remembered, **values)
    with pytest.raises(UserError, match=f"no {TARGET_NETWORK_FILE}"):
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
        with pytest.raises(UserError, match="no intact checkpoint"):
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
        (SETTINGS_FILE, "{}", "no schema version"),
        (TARGET_NETWORK_FILE, None, f"it has no {TARGET_NETWORK_FILE}"),
    ],
)
def test_more_that_a_checkpoint_lacks(tmp_path, caplog, name, text, why):
    """The copy's weights are missing only where the training has a copy."""
    older, newer = (stub_checkpoint(tmp_path, n) for n in (3, 4))
    for path in (older, newer):
        save_file({"a": torch.zeros(3)}, path / TARGET_NETWORK_FILE)
    if text is None:
        (newer / name).unlink()
    else:
        (newer / name).write_text(text)
    assert checkpoint_to_resume("last", tmp_path, (TARGET_NETWORK_FILE,)) == str(older)
    assert why in caplog.text
    assert (checkpoint_to_resume("last", tmp_path) == str(newer)) == (name == TARGET_NETWORK_FILE)


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
    """What the same trainer wrote there before does not stay in part."""
    old = tmp_path / "out" / "checkpoint-2"
    values = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer = trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, settings=remembered, **values)
    trainer.train()
    (old / "stray").write_text("")
    trainer.train()
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
        checkpoint_settings(str(policy_folder), Rollouts(rollouts, metadata, "r"), config(tmp_path, **c))
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
        checkpoint_settings(str(policy_folder), Rollouts(rollouts, metadata, "r"), config(tmp_path, **c))
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
    fewer = checkpoint_settings(str(policy_folder), Rollouts(rollouts[1:], metadata), config(tmp_path))
    with pytest.raises(UserError, match="rollouts_fingerprint"):
        require_same_training(str(tmp_path), fewer)
    other = {**remembered.training["configuration"], "base": "other"}
    training = {
        **remembered.training,
        "configuration": other,
        "configuration_hash": configuration_hash(other),
    }
    with pytest.raises(UserError, match=r"base \(.* there, other now\)"):
        require_same_training(str(tmp_path), replace(remembered, training=training))


def test_a_checkpoint_is_no_whole_one_before_it_is_removed(tmp_path, monkeypatch):
    """A kill in between leaves half of it, without the file that says it is whole."""
    path = stub_checkpoint(tmp_path, 3)
    monkeypatch.setattr("shutil.rmtree", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(path)
    assert path.exists()
    with pytest.raises(UserError, match=r"trainer_state.json"):
        checkpoint_to_resume(str(path), tmp_path)


def test_what_means_the_same_is_the_same_training(policy_folder, settings, rollouts, tmp_path):
    from trl import ModelConfig

    metadata = RolloutMetadata(str(policy_folder), "", "crossing", 3, settings, 1.6, 5)

    def described(model, **changes):
        return checkpoint_settings(
            str(policy_folder),
            Rollouts(rollouts, metadata, "r"),
            config(tmp_path, **changes),
            build_model(str(policy_folder), ModelConfig(**model), 0),
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
        return checkpoint_settings(
            str(policy_folder),
            Rollouts(rollouts, metadata, "r"),
            config(tmp_path),
            build_model(str(policy_folder), model, 0),
        )

    described(first).save(tmp_path)
    require_same_training(str(tmp_path), described(first))
    for name, other in (
        ("lora_alpha", ModelConfig(use_peft=True, lora_r=4, lora_alpha=16)),
        ("use_peft", ModelConfig(use_peft=False, lora_r=4, lora_alpha=8)),
        ("dtype", ModelConfig(use_peft=True, lora_r=4, lora_alpha=8, dtype="bfloat16")),
    ):
        with pytest.raises(UserError, match=name):
            require_same_training(str(tmp_path), described(other))


def test_another_training_is_not_resumed(
    policy_folder, step_tokenizer, rollouts, tmp_path, remembered, settings
):
    values = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    trainer_for(policy_folder, step_tokenizer, rollouts, tmp_path, settings=remembered, **values).train()
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    require_same_training(checkpoint, remembered)
    metadata = RolloutMetadata(str(policy_folder), "", "crossing", 3, settings, 1.6, 5)

    def changed(**changes):
        return checkpoint_settings(
            str(policy_folder), Rollouts(rollouts, metadata, "r"), config(tmp_path, **changes)
        )

    with pytest.raises(UserError, match=r"another training: target \(td_lambda there, mc now\)"):
        require_same_training(checkpoint, changed(target="mc"))
    with pytest.raises(UserError, match=r"floor \(0.05 there, 0.1 now\)"):
        require_same_training(checkpoint, changed(floor=0.1))


def test_a_checkpoint_of_an_older_release_is_not_resumed(tmp_path, remembered):
    arguments = {k: v for k, v in remembered.training.items() if not k.startswith("configuration")}
    replace(remembered, training={**arguments, "arguments": {"seed": 0}}).save(tmp_path)
    with pytest.raises(UserError, match=r"rmtools 0\.1\.0"):
        require_same_training(str(tmp_path), remembered)


def test_arguments_of_another_transformers_do_not_matter(tmp_path, remembered):
    """One that this release does not know, and one that the other did not."""
    there = {k: v for k, v in remembered.training["configuration"].items() if k != "adam_beta2"}
    training = {"configuration": {**there, "new": 1}, "configuration_hash": "other"}
    replace(remembered, training={**remembered.training, **training}).save(tmp_path)
    assert require_same_training(str(tmp_path), remembered) is None


def test_no_secret_and_no_path_is_recorded(tmp_path, remembered):
    found = json.dumps(remembered.training["configuration"])
    assert "token" not in found
    assert str(tmp_path) not in found
