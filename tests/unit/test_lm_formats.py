"""Published PRMs: recognised from their files, and valued as bare transformers do, whole, step by step, and in ragged batches."""

import json

import numpy as np
import pytest
import torch
from assets import real_tokenizer
from published import as_qwen2, backbone, bare, base, head, logits, ratios, save, tokenizer_of

from rmtools.errors import UserError
from rmtools.lm.checkpoint import load_value_model
from rmtools.lm.classifier import without_renaming_notice
from rmtools.lm.formats import load as loading
from rmtools.lm.formats.described import mass_warning
from rmtools.lm.steps import EncodedTree, StepSettings, StepTokenizer
from rmtools.particles.tilt import Tilt

FLOOR = 0.01
SETTINGS = StepSettings("\n\n", 8)
RAGGED = [
    ("What is 3 + 4 · 5?", ["First, 4 · 5 = 20.", "So 3 + 20 = 23.\nThat is $x = 23$.", "#### 23"]),
    ("Ann has 7 apples.", ["She eats (1)", "\\[ 7 - 1 = 6 \\]"]),
    ("Compute 2^{10}, please, and show all of the steps that you need.", ["It is 1024"]),
]
# With the smallest of the real tokenizers, and, slowly, with those of the published models.
FAST = [
    "trl@mistral",
    "qwen-prm@mistral",
    "math-shepherd",
    "skywork@mistral",
    "openrlhf@llama2",
    "judge@mistral",
]
SLOW = ["trl", "qwen-prm", "rlhflow", "skywork", "openrlhf", "versaprm", "judge"]
READ_AT_STEPS = [*FAST, *(pytest.param(key, marks=pytest.mark.slow) for key in SLOW)]
CHILDREN = ["Another way.", "No"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a format's model, written once."""
    made = {}

    def of(key):
        if key not in made:
            made[key] = save(key, tmp_path_factory.mktemp(key) / "model")
        return made[key]

    return of


@pytest.fixture
def load(folder, monkeypatch):
    """Load a format's model, its tokenizer from memory: reading one from a file takes seconds."""

    def of(key, name=None, **more):
        monkeypatch.setattr(loading, "load_tokenizer", lambda path: tokenizer_of(key))
        return load_value_model(name or folder(key), steps=SETTINGS, **more)[0]

    return of


def advanced(value, at, state):
    """Values after one more step each, of rows that are given as a text or None, and the state."""
    ids = [[] if step is None else value.steps.step_ids(step + "\n\n") for step in at]
    width = max(map(len, ids))
    return value.advance(state, torch.tensor([i + [-1] * (width - len(i)) for i in ids]))


def delimited(steps):
    return [s + "\n\n" for s in steps]


def encoded(value, question, steps, children=()):
    return value.steps.encode(question, delimited(steps), [delimited(c) for c in children])


@pytest.mark.parametrize("key", READ_AT_STEPS)
def test_values_are_those_of_bare_transformers(load, key):
    """Whole, with children, step by step in a batch of uneven questions and steps: to 1e-5 of one plain pass each."""
    value = load(key, prm_format=base(key), root_value=0.25)
    assert value.first_steps is False
    expected = [bare(key, q, steps) for q, steps in RAGGED]
    assert [len(e) for e in expected] == [3, 2, 1]
    assert np.std(np.log([p for e in expected for p in e])) > 0.05  # the values differ

    def log_value(p):
        return Tilt(FLOOR).log_potential(np.asarray(p))

    trees = [encoded(value, q, steps, [CHILDREN] * len(steps)) for q, steps in RAGGED]
    for found, own, (q, steps) in zip(value.score(trees), expected, RAGGED, strict=True):
        np.testing.assert_allclose(found.log_value, log_value([0.25, *own]), atol=1e-5)
        t = len(steps) - 1
        others = [bare(key, q, [*steps[:t], c])[-1] for c in CHILDREN]
        np.testing.assert_allclose(found.children[t], log_value(others), atol=1e-5)

    state = value.start([value.steps.prompt_ids(q) for q, _ in RAGGED])
    np.testing.assert_allclose(state[0], log_value([0.25] * 3), atol=1e-6)
    state, rows = state[1], [0, 1, 2, 1]
    state = state.select(torch.tensor(rows))
    for t in range(3):
        found, state = advanced(value, [dict(enumerate(RAGGED[i][1])).get(t) for i in rows], state)
        for v, i in zip(found.tolist(), rows, strict=True):
            if t < len(expected[i]):
                assert v == pytest.approx(float(log_value(expected[i][t])), abs=1e-5)
            else:
                assert np.isnan(v)


def test_vgs_reads_the_text_of_the_policy_at_every_token(load):
    """Three labels, p of the second; the prompt alone has a value."""
    value = load("vgs@mistral", prm_format="vgs")
    first, last = head("vgs")
    q, steps = RAGGED[0]
    tree = encoded(value, q, steps)
    with torch.inference_mode():
        hidden = (
            as_qwen2(backbone("vgs@mistral"))
            .model(input_ids=torch.tensor(tree.ids[None]))
            .last_hidden_state[0]
        )
        p = torch.softmax(last(torch.relu(first(hidden[tree.reads]))).double(), -1)[:, 1]
    np.testing.assert_allclose(
        value.score([tree])[0].log_value, Tilt(FLOOR).log_potential(p.numpy()), atol=1e-5
    )


def test_implicit_is_the_scaled_log_ratio_of_two_models(load, folder, tmp_path):
    reference = save("implicit@mistral", tmp_path / "reference", seed=1)
    format_file = tmp_path / "eurus.json"
    format_file.write_text(json.dumps({"key": "implicit", "reference": str(reference), "beta": 0.05}))
    value = load("implicit@mistral", prm_format=str(format_file))
    assert not value.is_probability
    trees = [encoded(value, q, steps) for q, steps in RAGGED]
    with torch.inference_mode():
        expected = [ratios("implicit@mistral", q, steps) for q, steps in RAGGED]
    for found, own in zip(value.score(trees), expected, strict=True):
        np.testing.assert_allclose(found.log_value, 0.05 * np.asarray([0.0, *own]), atol=1e-5)
    _, state = value.start([value.steps.prompt_ids(q) for q, _ in RAGGED])
    for t in range(2):
        found, state = advanced(value, [dict(enumerate(s)).get(t) for _, s in RAGGED], state)
        for v, own in zip(found.tolist(), expected, strict=True):
            assert np.isnan(v) if t >= len(own) else v == pytest.approx(0.05 * own[t], abs=1e-5)


def test_the_mass_of_labels_is_that_of_the_whole_law(load):
    """Random weights expect no label: the mass is small, and a warning says so."""
    value = load("math-shepherd", prm_format="math-shepherd")
    q, steps = RAGGED[0]
    value.score([encoded(value, q, steps)])
    tokenizer = tokenizer_of("math-shepherd")
    ids = tokenizer(f"{q} " + "\n".join(f"{s} ки" for s in steps))["input_ids"]
    tag = tokenizer("ки", add_special_tokens=False)["input_ids"][-1]
    labels = [tokenizer(x, add_special_tokens=False)["input_ids"][-1] for x in "+-"]
    law = torch.softmax(logits("math-shepherd", ids).double(), -1)
    mass = [float(law[i, labels].sum()) for i, t in enumerate(ids) if t == tag]
    median, smallest = value.label_mass()
    assert (median, smallest) == (
        pytest.approx(np.median(mass), rel=1e-4),
        pytest.approx(min(mass), rel=1e-4),
    )
    assert f"{median:.3g}" in mass_warning(value)


@pytest.mark.parametrize("key", ["trl@mistral", "qwen-prm@mistral", "skywork@mistral", "vgs@mistral"])
def test_formats_with_a_head_are_recognised_from_the_files(load, key):
    value = load(key)
    assert value.convention.key == base(key)
    assert ("architecture" if base(key) == "trl" else "tensors") in value.told_by


def refusal(call, *said):
    with pytest.raises(UserError) as error:
        call()
    for text in said:
        assert text in str(error.value)
    return str(error.value)


def test_a_language_model_does_not_say_how_it_is_read(load):
    said = refusal(lambda: load("math-shepherd"), "its files do not say how it is read")
    for key in ("math-shepherd", "rlhflow", "openrlhf", "versaprm", "implicit", "judge"):
        assert key in said


def test_a_language_model_of_a_known_name_is_told_by_it(load, folder, tmp_path):
    link = tmp_path / "Math-Shepherd-Mistral-7b-PRM"
    link.symlink_to(folder("math-shepherd"))
    value = load("math-shepherd", link)
    assert (value.convention.key, "its name" in value.told_by) == ("math-shepherd", True)


@pytest.mark.parametrize(
    ("key", "labels", "needed"),
    [("trl", 3, "2"), ("trl", 1, "2"), ("qwen-prm", 3, "2"), ("skywork", 2, "1"), ("vgs", 4, "1 or 2 or 3")],
)
def test_a_wrong_number_of_labels_is_refused(load, tmp_path, key, labels, needed):
    last = {"trl": "score.", "qwen-prm": "score.2.", "skywork": "v_head.summary.", "vgs": "score.2."}[key]

    def more(tensors):
        changed = {n: torch.zeros(labels, *t.shape[1:]) for n, t in tensors.items() if n.startswith(last)}
        return tensors | changed

    saved = save(f"{key}@mistral", tmp_path / "model", tensors_of=more)
    refusal(lambda: load(f"{key}@mistral", saved, prm_format=key), f"{labels} label", f"needs {needed}")


def test_another_head_than_the_configuration_names_is_refused(load, tmp_path):
    def scalar(tensors):
        kept = {n: t for n, t in tensors.items() if not n.startswith("score.")}
        return kept | {"v_head.summary.weight": torch.zeros(1, 32)}

    saved = save("qwen-prm@mistral", tmp_path / "model", tensors_of=scalar)
    refusal(
        lambda: load("qwen-prm@mistral", saved), "names Qwen2ForProcessRewardModel", "v_head.summary.weight"
    )
    refusal(
        lambda: load("qwen-prm@mistral", saved, prm_format="qwen-prm"),
        "not of the format qwen-prm",
        "skywork",
    )


def test_a_tag_that_is_not_one_token_is_refused(load):
    """The tag of Qwen's models is one of their own special tokens, and SentencePiece writes four newlines as four."""
    refusal(lambda: load("vgs@mistral", prm_format="qwen-prm"), "is not one token", "'<extra_0>'")
    refusal(lambda: load("math-shepherd", prm_format="versaprm"), "is not one token")


def test_labels_that_share_their_first_token_are_refused(load, tmp_path):
    file = tmp_path / "judge.json"
    file.write_text(json.dumps({"key": "judge", "labels": ["Correct!", "Correct?"]}))
    refusal(lambda: load("judge@mistral", prm_format=str(file)), "begin with the same token", "Correct")
    file.write_text(json.dumps({"key": "judge", "lables": []}))
    refusal(lambda: load("judge@mistral", prm_format=str(file)), "lables")
    refusal(
        lambda: load("judge@mistral", prm_format="jugde"), "unknown `prm_format` 'jugde'", "math-shepherd"
    )


def test_a_ratio_needs_its_reference(load):
    refusal(lambda: load("implicit@mistral", prm_format="implicit"), "none is named", '"reference"')


@pytest.mark.slow
def test_an_adapter_of_trl_is_merged_into_its_base(load, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForTokenClassification

    whole = save("trl@mistral", tmp_path / "base")
    model = AutoModelForTokenClassification.from_pretrained(whole)
    torch.manual_seed(0)
    config = LoraConfig(task_type="TOKEN_CLS", init_lora_weights=False, modules_to_save=["score"])
    with without_renaming_notice():
        adapter = get_peft_model(model, config)
    adapter.save_pretrained(tmp_path / "adapter")
    value = load("trl@mistral", tmp_path / "adapter", prm_format="trl")
    ids = torch.arange(50, 70)[None]
    with torch.inference_mode():
        found, own = (m(input_ids=ids).logits for m in (value.model, adapter.eval()))
    np.testing.assert_allclose(found, own, atol=1e-5)


def test_a_missing_hub_model_is_named_offline():
    refusal(lambda: load_value_model("Qwen/Qwen2.5-Math-PRM-7B"), "is not cached", "Qwen/Qwen2.5-Math-PRM-7B")


def test_what_would_move_the_boundary_of_a_step_is_refused(load):
    value = load("math-shepherd", prm_format="math-shepherd")
    tree = value.steps.encode("Q?", ["One ки two.\n\n"])
    refusal(lambda: value.score([tree]), "holds 'ки'")
    # A policy of bytes that stops within a character.
    byte = value.steps.tokenizer.convert_tokens_to_ids("<0xD0>")
    cut = EncodedTree.of(value.steps.prompt_ids("Q?"), [[*value.steps.step_ids("One "), byte]])
    refusal(lambda: value.score([cut]), "within a character")


def test_text_is_rendered_again_for_a_policy_with_another_tokenizer(load):
    value = load("math-shepherd", prm_format="math-shepherd", root_value=0.5)
    other = StepTokenizer(real_tokenizer("gpt2"), SETTINGS)
    read = value.reading_of(other)
    q, steps = RAGGED[0]
    own = value.score([encoded(value, q, steps)])[0]
    again = read.score([encoded(read, q, steps)])[0]
    np.testing.assert_allclose(again.log_value, own.log_value, atol=1e-6)
