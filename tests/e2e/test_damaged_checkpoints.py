"""Checkpoints that are damaged, incomplete or say wrong things of themselves: one line and exit code 2."""

import json

import pytest
from checks import check_error, sample


def test_missing_and_empty_checkpoints(run, tmp_path, prompts_file):
    (tmp_path / "empty").mkdir()
    for name, word in (("missing", "no such folder"), ("empty", "is empty")):
        for verb in (["sample", "--prompts", prompts_file], ["verify", "lm"], ["audit"]):
            check_error(run(*verb, "--model", tmp_path / name), word, name)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_checkpoint_without_its_head(run, checkpoint, prompts_file):
    from safetensors.torch import load_file, save_file

    file = checkpoint / "adapter_model.safetensors"
    tensors = {n: t for n, t in load_file(file).items() if ".score." not in n}
    save_file(tensors, file)
    check_error(sample(run, checkpoint, prompts_file), "without its head", "modules_to_save")
    file.write_bytes(b"not weights")
    check_error(sample(run, checkpoint, prompts_file), "cannot be read")
    file.unlink()
    check_error(sample(run, checkpoint, prompts_file), "has no weights")


@pytest.mark.parametrize(
    "key", ["floor", "steps", "policy", "temperature", "seed", "task", "horizon", "base_rate"]
)
def test_a_checkpoint_without_a_setting(run, checkpoint, prompts_file, key):
    path = checkpoint / "rmtools.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))
    check_error(sample(run, checkpoint, prompts_file), f"lacks {key}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, ["has no rmtools.json"]),
        ("{", ["not valid JSON"]),
        ("[]", ["rmtools.json is no JSON object"]),
        ({"schema_version": 9}, ["schema version 9"]),
        ({"steps": {"delimiter": "\n"}}, ["rmtools.json: steps lacks max_steps"]),
        ({"floor": 0.0}, ["floor"]),
        ({"floor": "low"}, ["floor"]),
        ({"colour": "red"}, ["rmtools.json: it has unknown fields: colour"]),
        ({"temperature": 0}, ["temperature"]),
        ({"seed": -1}, ["rmtools.json: seed must be at least 0 and below 2^32, got -1"]),
        ({"horizon": 0}, ["rmtools.json: horizon must be steps.max_steps"]),
        ({"policy": "nowhere/at/all"}, ["nowhere/at/all"]),
        ({"base": None}, ["base must be text, got None"]),
        ({"policy": ["a"]}, ["policy must be text"]),
        ({"seed": "x"}, ["seed must be an integer"]),
        ({"base_rate": None}, ["base_rate must be in [0, 1]"]),
        ({"base_rate": 1.5}, ["base_rate must be in [0, 1]"]),
        ({"horizon": "x"}, ["horizon must be an integer"]),
        ({"horizon": 2.5}, ["horizon must be an integer"]),
        ({"temperature": "x"}, ["temperature must be a number"]),
        ({"training": []}, ["training must be a mapping"]),
    ],
)
def test_a_checkpoint_with_wrong_settings(run, checkpoint, prompts_file, change, words):
    path = checkpoint / "rmtools.json"
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    check_error(sample(run, checkpoint, prompts_file), *words)


def cut_in_half(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize("verb", ["sample", "export"])
@pytest.mark.parametrize(
    "harm",
    [
        cut_in_half,
        lambda data: b"",
        lambda data: b"\xff\xfe\x00",
        lambda data: b"[]",
        lambda data: data.replace(b'"r": 4', b'"r": 5'),
        lambda data: data.replace(b"LORA", b"LURA"),
        lambda data: b"{}",
    ],
)
def test_a_damaged_adapter_configuration(run, checkpoint, prompts_file, tmp_path, verb, harm):
    path = checkpoint / "adapter_config.json"
    before = path.read_bytes()
    path.write_bytes(harm(before))
    assert path.read_bytes() != before
    if verb == "sample":
        result = sample(run, checkpoint, prompts_file)
    else:
        result = run("export", "--model", checkpoint, "--merge", "--out", tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
    check_error(result, str(checkpoint))


@pytest.mark.parametrize("verb", ["sample", "export"])
@pytest.mark.parametrize("fault", ["a layer is missing", "the head is NaN", "some adapters have no place"])
def test_an_adapter_that_is_not_whole(run, checkpoint, prompts_file, tmp_path, verb, fault):
    from safetensors.torch import load_file, save_file

    file = checkpoint / "adapter_model.safetensors"
    tensors = load_file(file)
    if fault == "a layer is missing":
        tensors = {n: t for n, t in tensors.items() if ".layers.1." not in n}
        words = ["lack", "layers.1."]
    elif fault == "some adapters have no place":
        config = checkpoint / "adapter_config.json"
        values = json.loads(config.read_text())
        config.write_text(json.dumps({**values, "target_modules": ["q_proj"]}))
        words = ["no place for", "lora_"]
    else:
        head = next(n for n in tensors if n.endswith("score.weight"))
        tensors[head][0, 0] = float("nan")
        words = ["not finite", "score"]
    save_file(tensors, file, metadata={"format": "pt"})
    if verb == "sample":
        result = sample(run, checkpoint, prompts_file)
    else:
        result = run("export", "--model", checkpoint, "--merge", "--out", tmp_path / "merged")
    check_error(result, *words)


@pytest.mark.parametrize(
    ("key", "value"), [("horizon", "x"), ("temperature", "a"), ("policy", 3), ("seed", None)]
)
def test_rollout_metadata_of_a_wrong_type(run, checkpoint, tmp_path, policy_folder, prompts_file, key, value):
    out = tmp_path / "rollouts"
    options = ("--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3, "--trajectories", 2)
    assert run("rollout", *options, "--out", out).code == 0
    path = out / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    result = run("audit", "--model", checkpoint, "--rollouts", out, "--out", tmp_path / "audit")
    check_error(result, f"metadata.json: {key} must be")
