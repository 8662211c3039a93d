"""Which precision weights are loaded in, quantised weights, weights that are pickled, heads of another size."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM

from rmtools.cli.device import device_for
from rmtools.errors import UserError
from rmtools.lm.checkpoint import fingerprint, load_value_model
from rmtools.lm.classifier import new_token_classifier
from rmtools.lm.export import export_merged
from rmtools.lm.policy import Policy, load_policy
from rmtools.lm.precision import is_spread, precision_of, spread
from rmtools.lm.value import ValueModel

CPU = torch.device("cpu")


@pytest.fixture
def bf16_folder(policy_folder, tmp_path) -> Path:
    """The policy with its files in bf16, as most models are stored."""
    folder = tmp_path / "policy_bf16"
    AutoModelForCausalLM.from_pretrained(policy_folder, dtype=torch.bfloat16).save_pretrained(folder)
    for file in policy_folder.glob("*token*"):
        shutil.copy(file, folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    return folder


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_a_policy_has_the_precision_asked_for(bf16_folder, policy_folder, settings, dtype, expected):
    for folder in (bf16_folder, policy_folder):
        found = load_policy(folder, settings, device=CPU, dtype=dtype)
        assert {p.dtype for p in found.model.parameters()} == {expected}
        assert precision_of(found) == str(expected).removeprefix("torch.")


def test_a_value_model_in_bf16_keeps_its_head_in_fp32(value_folder, value, prompts, tmp_path):
    """Whether its adapter is merged when it is loaded or was merged on disk; log values agree to the rounding of bf16."""
    export_merged(value_folder, tmp_path / "merged")
    trees = [value.steps.encode(p, ["s r2 \n", "s c13 \n"]) for p in prompts[:4]]
    exact = np.concatenate([t.log_value for t in value.score(trees)])
    for folder in (value_folder, tmp_path / "merged"):
        found, _ = load_value_model(folder, device=CPU, dtype="bfloat16")
        others = {p.dtype for n, p in found.model.named_parameters() if not n.startswith("score.")}
        assert others == {torch.bfloat16}
        assert torch.equal(found.model.score.weight, value.model.score.weight)
        assert found.model.score.weight.dtype == torch.float32
        rounded = np.concatenate([t.log_value for t in found.score(trees)])
        assert rounded.dtype == np.float64
        assert 0 < np.abs(rounded - exact).max() < 0.3


def test_an_adapter_beside_a_policy_has_its_precision(value_folder, policy_folder, settings):
    policy = load_policy(policy_folder, settings, device=CPU, dtype="bfloat16")
    found, _ = load_value_model(value_folder, beside=policy)
    assert precision_of(found) == "bfloat16"
    assert found.model.score.modules_to_save["default"].weight.dtype == torch.float32


def test_an_unknown_precision_is_refused_with_the_choices(policy_folder, value_folder, settings):
    for load in (
        lambda: load_policy(policy_folder, settings, dtype="float8"),
        lambda: load_value_model(value_folder, dtype="float8"),
    ):
        with pytest.raises(UserError, match="auto, float32, bfloat16"):
            load()


def test_a_model_dispatched_by_a_device_map_is_sampled_and_scored(
    policy, value, policy_folder, value_folder, settings, generator, prompts
):
    """Inputs go where the embeddings are, and accelerate's hooks change neither steps nor values."""

    def spread(model):
        parts = [n for n, _ in model.named_parameters()]
        places = {n.rpartition(".")[0]: "cpu" for n in parts}
        return dispatch_model(model, places, main_device="cpu", force_hooks=True)

    dispatched = spread(load_policy(policy_folder, settings, device=CPU).model)
    assert hasattr(dispatched.model.layers[1].mlp.up_proj, "_hf_hook")
    drawn = []
    for model in (policy.model, dispatched):
        found = Policy(model, policy.steps)
        assert found.device == CPU
        state = found.start([policy.steps.prompt_ids(p) for p in prompts])
        drawn.append(found.decode_step(state, torch.arange(len(prompts)), generator(0)).tokens)
    assert torch.equal(*drawn)
    trees = [value.steps.encode(p, ["s r2 \n"]) for p in prompts]
    scorer = ValueModel(spread(load_value_model(value_folder, device=CPU)[0].model), value.steps, value.tilt)
    assert scorer.device == CPU
    for one, two in zip(value.score(trees), scorer.score(trees), strict=True):
        np.testing.assert_array_equal(one.log_value, two.log_value)


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_weights_have_a_fingerprint(policy_folder, settings, tmp_path, shards):
    """In one file or several; other weights have another one, and a file beside safetensors that is not read has none."""
    folder = shutil.copytree(policy_folder, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    weights = AutoModelForCausalLM.from_pretrained(policy_folder, dtype=torch.float32).state_dict()
    names = list(weights)
    files = ["pytorch_model.bin"]
    if shards == 2:
        files = [f"pytorch_model-{i:05d}-of-00002.bin" for i in (1, 2)]
        where = {n: files[i % 2] for i, n in enumerate(names)}
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for i, file in enumerate(files):
        torch.save({n: weights[n] for n in names[i::shards]}, folder / file)
    loaded = load_policy(folder, settings, device=CPU)
    assert torch.equal(loaded.model.lm_head.weight, weights["lm_head.weight"])
    first = fingerprint(folder)
    assert first
    last = {n: weights[n] for n in names[shards - 1 :: shards]}
    torch.save({n: w + 1 for n, w in last.items()}, folder / files[-1])
    assert fingerprint(folder) not in ("", first)
    shutil.copy(policy_folder / "model.safetensors", folder)
    assert fingerprint(folder) == fingerprint(policy_folder)


def test_a_base_whose_weights_do_not_fit_its_configuration_is_refused(policy_folder, tmp_path):
    folder = shutil.copytree(policy_folder, tmp_path / "policy")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vocab_size": 30}))
    with pytest.raises(UserError, match="embed_tokens"):
        new_token_classifier(str(folder), 0)


@pytest.fixture(scope="module")
def any_processor():
    """4 bits computed alike on every processor: on some the library packs weights, to bfloat16 and not of narrow models."""
    import bitsandbytes.nn.modules

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
        yield


@pytest.fixture(scope="module")
def quantised(policy_folder, rollouts, tmp_path_factory, any_processor):
    """A checkpoint trained for a few steps on a base in 4 bits, and log values of the model in memory."""
    from trl import ModelConfig

    from rmtools.training.config import PRMConfig
    from rmtools.training.lora import build_model
    from rmtools.training.trainer import PRMTrainer

    folder = tmp_path_factory.mktemp("quantised") / "prm"
    arguments = ModelConfig(use_peft=True, load_in_4bit=True, lora_r=4)
    model = build_model(str(policy_folder), arguments, 0)
    config = PRMConfig(str(folder), max_steps=4, learning_rate=0.02, use_cpu=True, report_to="none")
    trainer = PRMTrainer(model, config, rollouts)
    trainer.train()
    trainer.save_model()
    trained = ValueModel(trainer.model, trainer.steps, trainer.tilt)
    return folder, log_values(trained, rollouts)


def log_values(value, rollouts):
    trees = [value.steps.encode(r.prompt, r.steps) for r in rollouts[:16]]
    return np.concatenate([t.log_value for t in value.score(trees)])


def test_a_checkpoint_on_a_quantised_base_is_read_on_it(quantised, rollouts, policy, tmp_path):
    """Loaded, beside the policy, and merged it has the values it was trained with; on the whole base it has others."""
    quantised_folder, own = quantised
    value, settings = load_value_model(quantised_folder, device=CPU)
    assert settings.base_quantization["load_in_4bit"] is True
    assert precision_of(value) == "bitsandbytes 4 bit, float32"
    np.testing.assert_allclose(log_values(value, rollouts), own, atol=1e-5)
    beside, _ = load_value_model(quantised_folder, beside=policy, device=CPU)
    np.testing.assert_array_equal(log_values(beside, rollouts), log_values(value, rollouts))
    export_merged(quantised_folder, tmp_path / "merged")
    whole, _ = load_value_model(tmp_path / "merged", device=CPU)
    assert precision_of(whole) == "float32"
    np.testing.assert_allclose(log_values(whole, rollouts), own, atol=1e-4)
    file = tmp_path / "unquantised"
    shutil.copytree(quantised_folder, file)
    found = json.loads((file / "rmtools.json").read_text())
    found["base"], found["policy"] = settings.base, settings.policy
    found["base_quantization"] = {}
    (file / "rmtools.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="load_in_4bit"):
        load_value_model(file)
    found["training"]["configuration"]["load_in_4bit"] = "False"
    (file / "rmtools.json").write_text(json.dumps(found))
    other, _ = load_value_model(file, device=CPU)
    assert np.abs(log_values(other, rollouts) - own).max() > 1e-2


def test_a_quantised_base_needs_its_library(quantised, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest),
    )
    with pytest.raises(UserError, match="bitsandbytes is not installed") as caught:
        load_value_model(quantised[0])
    assert "pip install" in caught.value.fix


# Several devices


def test_spread_on_a_cpu_gives_the_same_steps_and_values(
    policy, policy_folder, value_folder, settings, generator, prompts
):
    drawn, values = [], []
    for device in (CPU, "spread"):
        found = load_policy(policy_folder, settings, device=device)
        scorer = load_value_model(value_folder, device=device, beside=found)[0]
        assert found.device == scorer.device == CPU
        state = found.start([policy.steps.prompt_ids(p) for p in prompts])
        drawn.append(found.decode_step(state, torch.arange(len(prompts)), generator(0)).tokens)
        trees = [scorer.steps.encode(p, ["s r2 \n"]) for p in prompts]
        values.append(np.concatenate([t.log_value for t in scorer.score(trees)]))
    assert torch.equal(*drawn)
    np.testing.assert_allclose(values[1], values[0], atol=1e-5)


@pytest.mark.parametrize(
    ("places", "refused"),
    [({"model": 0, "lm_head": 1}, False), ({"model": 0, "lm_head": "cpu"}, True), ({"": "disk"}, True)],
)
def test_a_model_is_spread_over_gpus_and_never_into_the_memory_of_the_cpu(
    policy_folder, settings, monkeypatch, places, refused
):
    model, seen = load_policy(policy_folder, settings, device=CPU).model, []
    monkeypatch.setattr("accelerate.utils.infer_auto_device_map", lambda *a, **k: places)
    monkeypatch.setattr(
        "accelerate.big_modeling.dispatch_model",
        lambda m, where, skip_keys: seen.append((where, skip_keys)) or m,
    )
    if refused:
        with pytest.raises(UserError, match="no room"):
            spread(model)
        return
    assert spread(model) is model
    assert [(where, list(keys)) for where, keys in seen] == [(places, ["past_key_values"])]
    model.hf_device_map = places
    assert is_spread(model)


def test_several_processes_do_not_spread_each(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes"):
        device_for("spread")
