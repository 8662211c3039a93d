"""Training that begins from a published PRM: its head kept where it has two labels, and what is said where it has not."""

import json
import shutil

import numpy as np
import pytest
import torch
from published import backbone, head, hidden, save, tokenizer_of
from safetensors.torch import load_file, save_file
from test_training_trainer import config

from rmtools.auditing import audit
from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import RolloutMetadata, Rollouts
from rmtools.errors import UserError
from rmtools.lm.checkpoint import CheckpointSettings, fingerprint, load_value_model
from rmtools.lm.classifier import new_token_classifier
from rmtools.lm.export import export_merged, serving_notes
from rmtools.lm.formats.beginning import beginning
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.value import ValueModel
from rmtools.particles.tilt import Tilt
from rmtools.training.lora import build_model
from rmtools.training.trainer import PRMTrainer

TILT = Tilt(0.05)
LAW = {"max_steps": 30, "per_device_train_batch_size": 16, "floor": 0.02, "learning_rate": 5e-3}
QUESTION, STEPS = (
    "What is 3 + 4 · 5?",
    ["First, 4 · 5 = 20.\n\n", "So 3 + 20 = 23.\nThat is x.\n\n", "#### 23"],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a format's model, written once."""
    made = {}

    def of(key):
        if key not in made:
            made[key] = save(key, tmp_path_factory.mktemp("prm") / key.partition("@")[0])
        return made[key]

    return of


def published_p(key, ids):
    """p of a published head at every token (L,), by bare modules."""
    layers = head(key)
    with torch.inference_mode():
        found = hidden(key, ids)
        for i, layer in enumerate(layers):
            found = layer(torch.relu(found) if i else found)
    return torch.softmax(found.double(), -1)[:, 1].numpy()


@pytest.mark.parametrize("key", ["trl@mistral", "qwen-prm@mistral"])
@pytest.mark.parametrize("adapter", [True, False])
def test_a_head_of_two_labels_is_kept(folder, key, adapter):
    """Before the first update the values at the ends of prompt and steps are those of the published head, to 1e-5."""
    from trl import ModelConfig

    model = build_model(str(folder(key)), ModelConfig(use_peft=adapter), seed=3)
    steps = StepTokenizer(tokenizer_of(key), StepSettings("\n\n", 8))
    tree = steps.encode(QUESTION, STEPS)
    found = ValueModel(model, steps, TILT).score([tree])[0].log_value
    p = published_p(key, tree.ids.tolist())[tree.reads]
    assert np.std(np.log(p)) > 0.02
    np.testing.assert_allclose(found, TILT.log_potential(p), atol=1e-5)
    begun = beginning(str(folder(key)))
    assert (begun.format, begun.head) == (key.partition("@")[0], "kept")
    assert "head of two labels is kept" in begun.sentence
    assert "not as the format" in begun.sentence
    trained = {n for n, w in model.named_parameters() if w.requires_grad}
    assert any("score" in n for n in trained)
    assert not any("lora" in n and "score" in n for n in trained)


@pytest.mark.parametrize(
    ("names", "swapped"), [(("correct", "incorrect"), True), (("LABEL_0", "LABEL_1"), False)]
)
def test_labels_are_read_in_their_order(tmp_path, names, swapped):
    """A head whose configuration names the good label first is read, audited and trained with its labels exchanged."""
    saved = save("trl@mistral", tmp_path / "prm", id2label={str(i): n for i, n in enumerate(names)})
    steps = StepTokenizer(tokenizer_of("trl@mistral"), StepSettings("\n\n", 8))
    tree = steps.encode(QUESTION, STEPS)
    p = published_p("trl@mistral", tree.ids.tolist())[tree.reads]
    found = ValueModel(new_token_classifier(str(saved), 0), steps, TILT).score([tree])[0].log_value
    np.testing.assert_allclose(found, TILT.log_potential(1 - p if swapped else p), atol=1e-5)


def test_a_published_model_is_audited_in_the_order_of_its_labels(tmp_path, monkeypatch):
    from rmtools.lm.formats import load as loading

    monkeypatch.setattr(loading, "load_tokenizer", lambda path: tokenizer_of("trl@mistral"))
    found = []
    for names in (("bad", "good"), ("good", "bad")):
        saved = save("trl@mistral", tmp_path / names[0], id2label=dict(zip("01", names, strict=True)))
        value, _ = load_value_model(saved, steps=StepSettings("\n\n", 8), floor=0.05, root_value=0.5)
        (values,) = value.score([value.steps.encode(QUESTION, STEPS)])
        found.append(np.exp(TILT.log_probability(values.log_value[1:])))
    np.testing.assert_allclose(found[0], 1 - found[1], atol=1e-5)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("skywork@mistral", "head of 1 label,"),
        ("vgs@mistral", "head of two layers and 3 labels"),
        ("math-shepherd", "values are read from label tokens"),
    ],
)
def test_of_other_formats_the_weights_under_the_head_are_kept(folder, tmp_path, key, words):
    """And a head is drawn: the same for the same seed. Also if a wrapper's prefix stands before the names of the weights."""
    saved = folder(key)
    if key == "math-shepherd":
        saved = tmp_path / "math-shepherd-mistral-7b-prm"
        saved.symlink_to(folder(key))
    begun = beginning(str(saved))
    assert (begun.format, begun.head) == (key.partition("@")[0], "new")
    assert words in begun.sentence
    assert "a new head is drawn" in begun.sentence
    one, same, other = (new_token_classifier(str(saved), seed) for seed in (0, 0, 1))
    assert torch.equal(one.score.weight, same.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)
    assert one.score.weight.shape[0] == 2
    ids = torch.arange(5, 15)[None]
    expected = hidden(key, ids[0].tolist())
    with torch.inference_mode():
        torch.testing.assert_close(one.model(input_ids=ids).last_hidden_state[0], expected, atol=1e-5, rtol=0)


def test_weights_in_a_wrapper_are_found_and_missing_ones_refused(tmp_path):
    def wrapped(tensors):
        return {n if n.startswith("v_head") else f"pretrained_model.{n}": t for n, t in tensors.items()}

    saved = save("skywork@mistral", tmp_path / "wrapped", tensors_of=wrapped)
    own = dict(new_token_classifier(str(saved), 0).model.named_parameters())
    theirs = dict(backbone("skywork@mistral").model.named_parameters())
    assert torch.equal(own["embed_tokens.weight"], theirs["embed_tokens.weight"])

    def other(tensors):
        return {n.replace("model.", "transformer."): t for n, t in tensors.items()}

    saved = save("skywork@mistral", tmp_path / "other", tensors_of=other)
    with pytest.raises(UserError, match=r"the weights of .* lack .*random values"):
        new_token_classifier(str(saved), 0)


@pytest.mark.parametrize("labels", [1, 3])
def test_a_linear_head_of_another_number_of_labels(tmp_path, labels):
    def more(tensors):
        own = {n: torch.zeros(labels, *t.shape[1:]) for n, t in tensors.items() if n.startswith("score.")}
        return tensors | own

    saved = save("trl@mistral", tmp_path / "prm", tensors_of=more)
    begun = beginning(str(saved))
    assert begun.head == "new"
    assert f"head of {labels} label" in begun.sentence
    one, other = (new_token_classifier(str(saved), seed) for seed in (0, 1))
    assert one.score.weight.shape[0] == 2
    assert not torch.equal(one.score.weight, other.score.weight)


def test_another_head_than_the_configuration_names_is_refused(tmp_path):
    from trl import ModelConfig

    def none(tensors):
        return {n: t for n, t in tensors.items() if not n.startswith("score.")}

    saved = save("trl@mistral", tmp_path / "prm", tensors_of=none)
    with pytest.raises(UserError, match="names LlamaForTokenClassification, that is a linear head") as error:
        build_model(str(saved), ModelConfig(), 0)
    assert error.value.fix


def test_an_adapter_of_another_trainer_names_what_to_do(folder, tmp_path):
    from trl import ModelConfig

    saved = tmp_path / "adapter"
    saved.mkdir()
    (saved / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(UserError, match="its base is org/base") as error:
        build_model(str(saved), ModelConfig(), 0)
    assert "merge_and_unload" in error.value.fix


def as_published(policy_folder, out, layers, distort=None):
    """The policy's weights under a head of one layer or two, in the layout of a published PRM; ``distort`` its tensors."""
    shutil.copytree(policy_folder, out)
    tensors = load_file(out / "model.safetensors")
    torch.manual_seed(5)
    width = tensors["model.norm.weight"].shape[0]
    names = ("score.0", "score.2") if layers == 2 else ("score",)
    shapes = [(width, width), (width, 2)] if layers == 2 else [(width, 2)]
    for name, shape in zip(names, shapes, strict=True):
        layer = torch.nn.Linear(*shape)
        torch.nn.init.normal_(layer.weight, std=0.2)
        tensors |= {f"{name}.{n}": w.detach() for n, w in layer.state_dict().items()}
    if layers == 1:
        tensors.pop("lm_head.weight")
    save_file(distort(tensors) if distort else tensors, out / "model.safetensors", metadata={"format": "pt"})
    file = out / "config.json"
    kind = "LlamaForProcessRewardModel" if layers == 2 else "LlamaForTokenClassification"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": [kind]}))
    return out


@pytest.mark.parametrize("peft_config", ["lora", None])
def test_a_head_of_two_layers_is_trained_saved_and_loaded(
    policy_folder, rollouts, step_tokenizer, tmp_path, peft_config, caplog
):
    """Adapter or all weights; the checkpoint says where it began; the control is the published model; an export keeps it."""
    prm = as_published(policy_folder, tmp_path / "prm", 2)
    trees = [step_tokenizer.encode(r.prompt, r.steps) for r in rollouts[:3]]
    trainer = PRMTrainer(prm, config(tmp_path, max_steps=2), rollouts, peft_config=peft_config)
    assert "head of two labels is kept" in caplog.text
    scorer = ValueModel(trainer.model, step_tokenizer, TILT)
    before = [v.log_value for v in scorer.score(trees)]
    trainer.train()
    trainer.save_model()
    after = [v.log_value for v in scorer.score(trees)]
    assert np.abs(np.concatenate(before) - np.concatenate(after)).max() > 1e-4

    def agrees(loaded, expected):
        for a, b in zip(loaded.score(trees), expected, strict=True):
            np.testing.assert_allclose(a.log_value, b, atol=1e-5)

    out = tmp_path / "out"
    agrees(load_value_model(out)[0], after)
    control, settings = load_value_model(out, untrained=True)
    agrees(control, before)
    assert "before training" in control.name
    begun = settings.training["began_from"]
    assert (begun["format"], begun["head"]) == ("qwen-prm", "kept")
    card = (out / "README.md").read_text()
    assert "format qwen-prm" in card
    assert "head of two labels is kept" in card
    merged = export_merged(out, tmp_path / "merged")
    agrees(load_value_model(merged)[0], after)
    assert "two layers" in serving_notes(CheckpointSettings.load(merged), merged)
    assert beginning(str(merged)).format == "rmtools"
    again = new_token_classifier(str(merged), 9)
    agrees(ValueModel(again, step_tokenizer, TILT), after)


def test_a_language_model_is_said_to_be_one(policy_folder, remembered):
    assert beginning(str(policy_folder)).sentence == "It begins from a language model: a new head is drawn."
    assert remembered.training["began_from"]["head"] == "new"


def test_training_on_from_a_distorted_model(policy, policy_folder, task, settings, tmp_path):
    """Few updates on the user's rollouts lower the loss, and the enumerated Bellman error."""
    warm = Policy(policy.model, policy.steps, 1.0, str(policy_folder))
    rng = np.random.default_rng(4)
    rows = Collector(warm, task, Branching(4, 2), rng).collect(task.prompts(12, rng)[0])
    metadata = RolloutMetadata(
        str(policy_folder), fingerprint(policy_folder), "crossing", 3, settings, 1.0, len(rows)
    )
    given = Rollouts(rows, metadata, "rollouts")
    first = PRMTrainer(policy_folder, config(tmp_path, output_dir=str(tmp_path / "first"), **LAW), given)
    first.train()
    first.save_model()
    # A whole model in trl's layout, its log odds stretched and moved.
    prm = export_merged(tmp_path / "first", tmp_path / "distorted")
    (prm / "rmtools.json").unlink()
    file = prm / "config.json"
    names = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))
    tensors = load_file(prm / "model.safetensors")
    tensors["score.weight"] *= 2
    tensors["score.bias"] += torch.tensor([0.0, 1.5])
    save_file(tensors, prm / "model.safetensors", metadata={"format": "pt"})
    assert beginning(str(prm)).format == "trl"

    trainer = PRMTrainer(prm, config(tmp_path, **LAW), given)

    def error():
        scorer = ValueModel(trainer.model, policy.steps, trainer.tilt)
        found = audit((rows, metadata), scorer, controls=False, policy=warm, task=task).model.error
        return found.exact.corrected.rms.estimate

    before = error()
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert error() < 0.8 * before
