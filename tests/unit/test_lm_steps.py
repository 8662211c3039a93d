"""What a step is, and that there is one way from text to token ids."""

import numpy as np
import pytest

from rmtools.codec import from_json, to_json
from rmtools.data.tasks import Crossing
from rmtools.errors import UserError
from rmtools.lm.policy import load_tokenizer
from rmtools.lm.steps import StepSettings, StepTokenizer, split_steps


def merging_tokenizer(merges):
    """A character-level BPE with the given merges: the kind that may swallow a delimiter."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    characters = ["<eos>", *(chr(c) for c in range(32, 127)), "\n"]
    words = [*characters, *(a + b for a, b in merges)]
    bpe = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges))
    bpe.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>")


def test_word_tokenizer_is_lossless_on_its_task(tokenizer, task):
    rng = np.random.default_rng(0)
    for prompt in Crossing(6).prompts(50, rng)[0]:
        text = prompt + "".join(Crossing(6).demonstration(prompt, 0.5, rng))
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert len(ids) == 3 * (1 + 6 + 6)


def test_word_tokenizer_survives_saving(tokenizer, policy_folder, prompts):
    again = load_tokenizer(policy_folder)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert all(again.decode(again(p)["input_ids"]) == p for p in prompts)
    assert (again.eos_token_id, again.pad_token_id) == (2, 0)


def test_prompt_and_steps_apart_give_the_ids_of_the_joined_text(step_tokenizer, tokenizer, task, prompts):
    rng = np.random.default_rng(1)
    for prompt in prompts:
        steps = task.demonstration(prompt, 0.5, rng)
        step_tokenizer.check(prompt, steps)
        apart = step_tokenizer.prompt_ids(prompt) + [i for s in steps for i in step_tokenizer.step_ids(s)]
        assert tokenizer(prompt + "".join(steps))["input_ids"] == apart
        assert [step_tokenizer.step_text(step_tokenizer.step_ids(s)) for s in steps] == steps


@pytest.mark.parametrize("merges", [[("\n", "b")], [("\n", "A")], [(" ", "\n"), (" \n", "2")]])
def test_a_tokenizer_that_merges_the_delimiter_with_what_follows_is_refused(merges):
    settings = StepSettings("\n", 4)
    StepTokenizer(merging_tokenizer([]), settings)
    with pytest.raises(UserError, match=r"splits the delimiter '\\n' differently in context"):
        StepTokenizer(merging_tokenizer(merges), settings)


@pytest.mark.parametrize("merge", [(".", "\n"), (" ", "\n"), ("\n", "\n")])
def test_a_tokenizer_that_merges_the_delimiter_with_what_precedes_it_is_not(merge):
    """The step's last token then holds more than the delimiter: it is the same token wherever the step stands."""
    steps = StepTokenizer(merging_tokenizer([merge]), StepSettings("\n", 4))
    prompt, solution = "What? \n", ["One. \n", "Two.\n", "Three"]
    steps.check(prompt, solution)
    tree = steps.encode(prompt, solution)
    assert steps.tokenizer.decode(tree.ids) == prompt + "".join(solution)
    read = [steps.tokenizer.decode([i]) for i in tree.ids[tree.reads]]
    assert all(text.endswith("\n") for text in read[:-1])


def test_a_tokenizer_that_cuts_text_as_qwen_and_llama_3_do(tmp_path):
    """Punctuation and the newlines behind it are one piece there, and ".\\n" becomes one token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    cut = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(cut), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    texts = ["He has 3 apples.\nShe has 4.\n\nSo 3 + 4 = 7.\n#### 7\n"] * 50
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>")
    assert ".\n" in {tokenizer.decode([i]) for i in tokenizer("apples.\nShe")["input_ids"]}
    prompt, solution = "How many? \n", ["He has 3.\n", "She has 4 \n", "So 7!\n", "#### 7"]
    StepTokenizer(tokenizer, StepSettings("\n", 4)).check(prompt, solution)
    blank = StepTokenizer(tokenizer, StepSettings("\n\n", 4))
    blank.check("How many?\n\n", ["He has 3.\n\n", "She\nhas 4.\n\n"])
    for text in ("3.\n\n", "3\n\n", "3 \n\n"):
        assert blank.ends_step(blank.step_ids(text))
        ends, may = blank.closing
        assert ends[blank.step_ids(text)[-1]] or may[blank.step_ids(text)[-1]]


def test_which_tokens_close_a_step():
    tokenizer = merging_tokenizer([(".", "\n"), ("\n", "\n")])

    def closing(delimiter):
        ends, may = StepTokenizer(tokenizer, StepSettings(delimiter, 4)).closing
        return [[tokenizer.decode([i]) for i in np.flatnonzero(x)] for x in (ends, may)]

    assert closing("\n") == [["\n", ".\n", "\n\n"], []]
    assert closing("\n\n") == [["\n\n"], ["\n", ".\n"]]


def test_a_merge_across_the_end_of_the_prompt_is_refused_when_it_occurs():
    steps = StepTokenizer(merging_tokenizer([("q", "z")]), StepSettings("\n", 4))
    steps.check("abc ", ["qz\n"])
    with pytest.raises(UserError, match="differently in context"):
        steps.check("abcq", ["z\n"])


def test_an_empty_step_and_an_empty_prompt_are_refused(step_tokenizer):
    with pytest.raises(UserError, match="a step is empty"):
        step_tokenizer.step_ids("")
    with pytest.raises(UserError, match="a prompt is empty"):
        step_tokenizer.prompt_ids("")
    with pytest.raises(UserError, match="a step is empty"):
        step_tokenizer.encode("r2 . \n", ["u r3 \n", ""])


def test_encode_by_hand(step_tokenizer):
    """Two steps of 3 and 2 tokens, an alternative to each, and a second alternative to the second."""
    prompt, steps = "r2 . \nc01 . \n", ["u r3 \n", "s \n"]
    children = [["d x \n"], ["u \n", "s r3 \n"]]
    tree = step_tokenizer.encode(prompt, steps, children)
    text = prompt + "".join(steps) + "".join(c for at in children for c in at)
    assert step_tokenizer.tokenizer.decode(tree.ids) == text
    assert tree.reads.tolist() == [5, 8, 10]
    assert [at.tolist() for at in tree.child_reads] == [[13], [15, 18]]
    assert tree.positions.tolist() == [*range(11), 6, 7, 8, 9, 10, 9, 10, 11]
    assert tree.segment.tolist() == [0] * 11 + [1] * 3 + [2] * 2 + [3] * 3
    assert tree.fork.tolist() == [*range(1, 12), 6, 6, 6, 9, 9, 9, 9, 9]


def test_encode_without_children_and_with_fewer_depths(step_tokenizer):
    prompt, steps = "r2 . \n", ["u r3 \n", "s r3 \n"]
    assert [at.tolist() for at in step_tokenizer.encode(prompt, steps).child_reads] == [[], []]
    tree = step_tokenizer.encode(prompt, steps, [["d r1 \n"]])
    assert [at.tolist() for at in tree.child_reads] == [[11], []]


def test_values_are_read_at_the_token_that_ends_the_step(step_tokenizer, prompts, task):
    """Not one position off: every read is the id of the delimiter."""
    steps = task.demonstration(prompts[0], 0.5, np.random.default_rng(0))
    tree = step_tokenizer.encode(prompts[0], steps, [["u x \n"]] * len(steps))
    at = np.concatenate([tree.reads, *tree.child_reads])
    assert (tree.ids[at] == step_tokenizer.step_ids("\n")[-1]).all()


@pytest.mark.parametrize(
    ("text", "steps"),
    [("", []), ("a", ["a"]), ("a\n", ["a\n"]), ("a\n\nb", ["a\n", "\n", "b"]), ("\n", ["\n"])],
)
def test_split_steps(text, steps):
    assert split_steps(text, "\n") == steps
    assert "".join(steps) == text


def test_settings_are_checked():
    for wrong in ({"delimiter": ""}, {"max_steps": 0}, {"max_steps": 1.5}, {"max_step_tokens": 0}):
        with pytest.raises(UserError):
            StepSettings(**{"delimiter": "\n", "max_steps": 4, **wrong})
    settings = StepSettings("\n", 4, 7)
    assert from_json(StepSettings, to_json(settings)) == settings
    for wrong, word in (
        ({"delimiter": "\n"}, "lacks max_steps"),
        ({"delimiter": "\n", "max_steps": 2, "colour": 1}, "unknown fields: colour"),
        (None, "must be a mapping"),
    ):
        with pytest.raises(UserError, match=word):
            from_json(StepSettings, wrong)
