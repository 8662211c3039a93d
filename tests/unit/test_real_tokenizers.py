"""Steps on published tokenizers: texts come back, values are read where steps end, whole scoring equals incremental."""

import random
import unicodedata

import numpy as np
import pytest
import torch
from assets import NAMES, real_tokenizer, tiny_model

from rmtools.lm.classifier import new_token_classifier
from rmtools.lm.steps import EncodedTree, StepSettings, StepTokenizer
from rmtools.lm.tree_scoring import padded
from rmtools.lm.value import ValueModel
from rmtools.particles.tilt import Tilt

PIECES = [
    *("\n", "\n\n", "\n\n\n", " ", "  ", "    ", "\t", "\r\n", " \n", "\n ", "\u00a0", "\u200b"),
    *(".", "!", "?", "…", ",", "=", "+", "-", "#### ", "\\boxed{", "}", "$x^2$", "1,000", "3.5", "12", "%"),
    *(
        "a",
        "The",
        " and",
        "'s",
        "don't",
        "Step 1:",
        "é",
        "e\u0301",
        "ﬁ",
        "漢字",
        "🙂",
        "“",
        "▁",
        "_",
        "<|",
        "|>",
    ),
]


def nasty(rng, most):
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, most)))


def read_back(name, text):
    """The text as the tokenizer's decoder writes it: SentencePiece's ▁ is a space, Qwen composes accents."""
    if name in ("llama2", "mistral", "gemma3"):
        return text.replace("▁", " ")
    return unicodedata.normalize("NFC", text) if name == "qwen3" else text


@pytest.mark.parametrize("delimiter", ["\n", "\n\n"])
@pytest.mark.parametrize("name", NAMES)
def test_texts_come_back_and_values_are_read_where_steps_end(name, delimiter):
    """1,000 random texts for each delimiter; most are cut exactly, and those that are not are marked."""
    rng = random.Random(0)
    steps = StepTokenizer(real_tokenizer(name), StepSettings(delimiter, 64))
    inexact = 0
    for k in range(1000):
        prompt = f"Q: {nasty(rng, 6)}\n"
        cut = steps.settings.rule.split(nasty(rng, 20) + ("a." + delimiter) * (k % 3))
        tree = steps.encode(prompt, cut)
        own = tree.parts()[1]
        assert steps.step_text([i for s in own for i in s]) == read_back(name, "".join(cut))
        inexact += not tree.exact
        if tree.exact:
            assert [steps.step_text(s) for s in own] == [read_back(name, s) for s in cut]
    assert inexact < (100 if delimiter == "\n" else 500)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_policy_emits_is_cut_where_its_text_is(name):
    """Random ids, the worst a policy can emit: a step ends with the first token after which its text holds the delimiter.

    Without halves of characters: a decoder of bytes swallows a newline behind one, here it ends the step.
    """
    tokenizer, rng = real_tokenizer(name), np.random.default_rng(1)
    steps = StepTokenizer(tokenizer, StepSettings("\n", 10_000, 10_000))
    with_newline = np.flatnonzero(steps.token_ends.closes | steps.token_ends.closes_begun)
    whole = [i for i, text in enumerate(steps.token_texts) if "\ufffd" not in text and i not in steps.end_ids]
    for _ in range(40):
        ids = np.where(rng.random(60) < 0.2, rng.choice(with_newline, 60), rng.choice(whole, 60))
        found = steps.cut(ids.tolist())
        for step in found[:-1]:
            begun = [steps.step_text(step[:k]) for k in range(1, len(step) + 1)]
            closed = [
                "\n" in text.lstrip("\n\r \t\x0b\x0c\u00a0\u2028\u2029\x1c\x1d\x1e\x1f\x85") for text in begun
            ]
            assert closed == [False] * (len(step) - 1) + [True], begun


@pytest.mark.parametrize("name", NAMES)
def test_whole_scoring_equals_incremental(name, tmp_path):
    """Ragged texts with alternatives, read as text and as emitted ids."""
    rng = random.Random(2)
    # transformers has no token classifier with a head called score of these: their tokenizers under another architecture.
    words = {"gpt2": 50257, "gemma3": 262_208}
    tiny = tiny_model("smollm2", 3, vocab_size=words[name]) if name in words else tiny_model(name, 3)
    tiny.save_pretrained(tmp_path)
    model = new_token_classifier(str(tmp_path), seed=0)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    steps = StepTokenizer(real_tokenizer(name), StepSettings("\n", 64))
    value = ValueModel(model.eval(), steps, Tilt(0.01))
    texts = [[f"{nasty(rng, 4).strip()}x\n" for _ in range(rng.randint(1, 4))] for _ in range(8)]
    trees = [
        steps.encode(f"Q{k}: {nasty(rng, 5)}\n", own, [[f"so {nasty(rng, 3)}y\n"] for _ in own])
        for k, own in enumerate(texts)
    ]
    trees.append(
        EncodedTree.of(steps.prompt_ids("Q"), [[300, 301], [7000], [302]], [[[299]], [], [[77, 78]]])
    )
    scored = value.score(trees)
    for tree, found in zip(trees, scored, strict=True):
        prompt, own, children = tree.parts()
        at, state = value.start([prompt])
        values, branches = [float(at[0])], []
        for t, step in enumerate(own):
            for child in children[t]:
                branches.append(float(value.advance(state, padded([child], -1, value.device))[0][0]))
            at, state = value.advance(state, padded([step], -1, value.device))
            values.append(float(at[0]))
        np.testing.assert_allclose(found.log_value, values, rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.concatenate(found.children), branches, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "gpt2"])
def test_a_rendered_prompt_has_its_special_tokens_once(name):
    tokenizer = real_tokenizer(name)
    steps = StepTokenizer(tokenizer, StepSettings("\n", 4))
    turns = [{"role": "user", "content": "What is 3 + 4?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    wanted = tokenizer.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert steps.prompt_ids(text) == list(wanted)
    if tokenizer.bos_token_id is not None:
        assert steps.prompt_ids(text).count(tokenizer.bos_token_id) == text.count(tokenizer.bos_token)


def test_a_tokenizer_that_appends_the_end_does_not_end_a_prompt_with_it():
    import copy

    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(real_tokenizer("qwen3"))
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    plain = StepTokenizer(real_tokenizer("qwen3"), StepSettings("\n", 4))
    appends = StepTokenizer(tokenizer, StepSettings("\n", 4))
    assert tokenizer("What?\n")["input_ids"][-1] == tokenizer.eos_token_id
    for prompt in ("What?\n", f"What?{end}\n", f"What?{end}"):
        assert appends.prompt_ids(prompt) == plain.prompt_ids(prompt)
    one, two = (s.encode("What?\n", ["So 7.\n", "Yes."]) for s in (appends, plain))
    assert one.ids.tolist() == two.ids.tolist()
