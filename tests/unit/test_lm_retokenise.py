"""A value model whose tokenizer is another: it reads the text of what the policy emits, or refuses."""

import copy

import numpy as np
import pytest
import torch

from rmtools.errors import UserError
from rmtools.lm.particles import LMParticles
from rmtools.lm.retokenise import Retokenised, prompt_text, shared_tokens
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.tokenizers import word_tokenizer
from rmtools.lm.value import ConstantValue, ValueModel
from rmtools.particles.smc import smc


@pytest.fixture
def foreign(value, task):
    """``value`` with a vocabulary in another order: its tokenizer, and its embeddings, so the same function of text."""
    tokenizer = word_tokenizer(task.vocabulary()[::-1])
    old, new = value.steps.tokenizer.get_vocab(), tokenizer.get_vocab()
    assert old != new
    assert set(old) == set(new)
    model = copy.deepcopy(value.model)
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        for word, i in new.items():
            weight[i] = value.model.get_input_embeddings().weight[old[word]]
    return ValueModel(model, StepTokenizer(tokenizer, value.steps.settings), value.tilt, "foreign")


@pytest.mark.parametrize("terminal", ["model", "verifier"])
def test_values_are_those_of_the_model_read_directly(policy, value, foreign, task, prompts, terminal):
    """Through a whole run with resampling: the same draws, and values within 1e-6 of the model's own."""
    runs = []
    for scorer in (value, foreign):
        root = LMParticles.start(policy, scorer, prompts[:3], terminal=terminal, reward=task.reward)
        runs.append(smc(root, 12, 2, "systematic", 0.7, np.random.default_rng(3)))
    assert isinstance(runs[1].particles.setup.value, Retokenised)
    assert runs[0].particles.setup.value is value
    assert runs[0].particles.steps() == runs[1].particles.steps()
    np.testing.assert_allclose(
        runs[1].particles.log_value(), runs[0].particles.log_value(), rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(runs[1].log_z, runs[0].log_z, rtol=0, atol=1e-6)
    if terminal == "model":
        for g, prompt in enumerate(prompts[:3]):
            for steps, found in zip(
                runs[1].particles.steps()[g], runs[1].particles.log_value()[g], strict=True
            ):
                tree = foreign.steps.encode(prompt, steps)
                # Incremental against in one pass: fp32 tells them apart at 1e-5.
                assert found == pytest.approx(foreign.score([tree])[0].log_value[-1], abs=2e-5)


def test_start_and_advance_are_those_of_the_model_itself(policy, foreign, task, prompts):
    """Ragged rows, rows without a step, and a step that is the end of the sequence."""
    scorer = shared_tokens(policy, foreign)
    found, state = scorer.start([policy.steps.prompt_ids(p) for p in prompts[:4]])
    expected, own = foreign.start([foreign.steps.prompt_ids(p) for p in prompts[:4]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    rows = ["u r3 \n", "", "u r3 r3 \n", "d x \n<eos>"]
    values = []
    for reader, read in ((scorer, state), (foreign, own)):
        ids = [reader.steps.step_ids(r) if r else [] for r in rows]
        values.append(reader.advance(read, torch.tensor([i + [-1] * (5 - len(i)) for i in ids]))[0])
    assert torch.isnan(values[0][1])
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-6, equal_nan=True)
    assert (values[0] - expected)[[0, 2, 3]].abs().min() > 1e-4


def test_trees_are_scored_as_the_model_itself_scores_them(policy, value, foreign, task, prompts):
    """Trajectories with alternatives at every depth, and the end of the sequence among their steps."""
    rng = np.random.default_rng(5)
    scorer = shared_tokens(policy, foreign)
    trees, own = [], []
    for prompt in prompts[:4]:
        steps = task.demonstration(prompt, 0.5, rng)
        steps = [*steps[:-1], steps[-1] + "<eos>"]
        children = [["u r1 \n", "s x \n<eos>"], [], ["d r0 \n"]]
        trees.append(policy.steps.encode(prompt, steps, children))
        own.append(foreign.steps.encode(prompt, steps, children))
    told = []
    found, expected = scorer.score(trees, told.append), foreign.score(own)
    direct = value.score(trees)
    assert sum(told) == 4
    for a, b, c in zip(found, expected, direct, strict=True):
        np.testing.assert_allclose(a.log_value, b.log_value, rtol=0, atol=1e-6)
        np.testing.assert_allclose(a.log_value, c.log_value, rtol=0, atol=1e-6)
        for x, y in zip(a.children, b.children, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
        assert [len(x) for x in a.children] == [2, 0, 1]


def test_what_is_shared_is_left_alone(policy, value, foreign):
    assert shared_tokens(policy, value) is value
    scorer = shared_tokens(policy, foreign)
    assert scorer.steps is policy.steps
    assert (scorer.name, scorer.tilt, scorer.is_probability) == ("foreign", foreign.tilt, True)


def test_the_length_limit_may_differ_where_tokens_do(policy, foreign):
    """It counts tokens, of which a step has other numbers in other tokenizers."""
    longer = StepTokenizer(foreign.steps.tokenizer, StepSettings("\n", 3, 64))
    assert isinstance(shared_tokens(policy, ConstantValue(0.5, longer, foreign.tilt)), Retokenised)


@pytest.mark.parametrize("other", [StepSettings("\n", 9, 6), StepSettings(" \n", 3, 6)])
def test_other_steps_are_refused(policy, foreign, other):
    steps = StepTokenizer.__new__(StepTokenizer)
    steps.tokenizer, steps.settings = foreign.steps.tokenizer, other
    with pytest.raises(
        UserError, match=r"different step settings.*; fix: load the policy with the checkpoint's"
    ):
        shared_tokens(policy, ConstantValue(0.5, steps, foreign.tilt))


def test_steps_are_read_by_themselves_whatever_the_tokenizer_joins(policy, value):
    """The value model's tokenizer joins the delimiter to what follows: whole or step by step, the ids are the same."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    characters = ["<eos>", *(chr(c) for c in range(32, 127)), "\n"]
    bpe = Tokenizer(models.BPE({w: i for i, w in enumerate([*characters, "\ns"])}, [("\n", "s")]))
    bpe.decoder = decoders.Fuse()
    joins = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")
    steps = StepTokenizer(joins, value.steps.settings)
    read = shared_tokens(policy, ConstantValue(0.5, steps, value.tilt))
    own = ["u r3 \n", "s r3 \n"]
    assert joins("".join(own))["input_ids"] != [i for s in own for i in steps.step_ids(s)]
    tree = read._tree(policy.steps.encode("r2 . \n", own, [["s r3 \n"]]))
    assert tree.parts()[1] == [steps.step_ids(s) for s in own]
    assert [read._step_ids(tuple(policy.steps.step_ids(s))) for s in own] == tree.parts()[1]


def test_an_end_that_cannot_be_written_is_refused(policy, foreign):
    foreign.steps.tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"foreign.*end-of-sequence"):
        shared_tokens(policy, foreign)


def test_a_prompt_that_the_value_model_does_not_know_is_refused(policy, foreign, task):
    words = [w for w in task.vocabulary() if not w.startswith("c0")]
    steps = StepTokenizer(word_tokenizer(words), policy.steps.settings)
    scorer = shared_tokens(policy, ConstantValue(0.5, steps, foreign.tilt))
    scorer.start([policy.steps.prompt_ids("r2 . \nc23 . \n")])
    with pytest.raises(UserError, match="the tokenizer does not know 1 of the 6 tokens of the prompt"):
        scorer.start([policy.steps.prompt_ids("r2 . \nc01 . \n")])


def test_the_text_of_a_prompt(policy, prompts, tokenizer):
    """Without what the tokenizer puts in front of it, which the next one would put there again."""
    from tokenizers.processors import TemplateProcessing

    assert [prompt_text(policy.steps, policy.steps.prompt_ids(p)) for p in prompts] == prompts
    begun = word_tokenizer([w for w in tokenizer.get_vocab() if not w.startswith("<")])
    begun.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", begun.bos_token_id)]
    )
    steps = StepTokenizer(begun, policy.steps.settings)
    ids = steps.prompt_ids(prompts[0])
    assert ids[0] == begun.bos_token_id
    assert prompt_text(steps, ids) == prompts[0]
    assert steps.prompt_ids("<bos>" + prompts[0]) == ids
    for wrong in ([begun.bos_token_id, begun.unk_token_id], ids[1:]):
        with pytest.raises(UserError, match="the text of a prompt cannot be told from its tokens"):
            prompt_text(steps, wrong)


def test_the_end_is_read_again_in_the_words_of_the_value_model(policy, foreign):
    """Its end-of-sequence token is written otherwise: the policy's would be unknown to it."""
    tokenizer = copy.deepcopy(foreign.steps.tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    steps = StepTokenizer(tokenizer, foreign.steps.settings)
    assert steps.eos_id != foreign.steps.eos_id
    scorer = shared_tokens(policy, ConstantValue(0.5, steps, foreign.tilt))
    assert isinstance(scorer, Retokenised)
    ids = (*policy.steps.step_ids("s "), policy.steps.eos_id)
    assert scorer._step_ids(ids) == [*steps.step_ids("s "), steps.eos_id]
