"""What a step is, and that there is one way from text to token ids."""

import numpy as np
import pytest

from rmtools.codec import from_json, to_json
from rmtools.data.tasks import Crossing
from rmtools.errors import UserError
from rmtools.lm.policy import load_tokenizer
from rmtools.lm.step_ends import StepEnd
from rmtools.lm.steps import EncodedTree, StepSettings, StepTokenizer


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
        apart = step_tokenizer.prompt_ids(prompt) + [i for s in steps for i in step_tokenizer.step_ids(s)]
        assert tokenizer(prompt + "".join(steps))["input_ids"] == apart
        assert [step_tokenizer.step_text(step_tokenizer.step_ids(s)) for s in steps] == steps


@pytest.mark.parametrize(
    "merges", [[("\n", "b")], [("\n", "A")], [(" ", "\n"), (" \n", "2")], [("\n", "\n")]]
)
def test_a_step_that_ends_within_a_token_is_read_there_and_counted(merges):
    """The tokenizer merges the delimiter with what follows: the policy would have ended the step with that token."""
    prompt, solution = "p 1\n", ["a \n", "bb\n", "A2 \n", "2\n", "\nc\n"]
    text = "".join(solution)
    assert StepTokenizer(merging_tokenizer([]), StepSettings("\n", 8)).encode(prompt, solution).exact
    steps = StepTokenizer(merging_tokenizer(merges), StepSettings("\n", 8))
    tree = steps.encode(prompt, solution)
    assert steps.tokenizer.decode(tree.ids) == prompt + text
    assert not tree.exact
    # Character for character: a step's value is read at the token that holds the last character of the step.
    texts = [steps.step_text([i]) for i in tree.ids.tolist()]
    ends = np.cumsum([len(t) for t in texts])
    wanted = len(prompt) + np.cumsum([0, *map(len, solution)])
    assert tree.reads.tolist() == np.searchsorted(ends, wanted).tolist()


def test_steps_that_end_in_one_token_are_tokenised_by_themselves():
    steps = StepTokenizer(merging_tokenizer([("\n", "\n")]), StepSettings("\n", 4))
    tree = steps.encode("p", ["a\n", "\n"], [[], ["b\n"]])
    assert not tree.exact
    assert steps.tokenizer.decode(tree.ids) == "pa\n\nb\n"
    assert tree.reads.tolist() == [0, 2, 3]
    assert tree.child_reads[1].tolist() == [5]


@pytest.mark.parametrize("merge", [(".", "\n"), (" ", "\n"), ("\n", "\n")])
def test_a_tokenizer_that_merges_the_delimiter_with_what_precedes_it_is_not(merge):
    """The step's last token then holds more than the delimiter: it is the same token wherever the step stands."""
    steps = StepTokenizer(merging_tokenizer([merge]), StepSettings("\n", 4))
    prompt, solution = "What? \n", ["One. \n", "Two.\n", "Three"]
    tree = steps.encode(prompt, solution)
    assert tree.exact
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
    assert StepTokenizer(tokenizer, StepSettings("\n", 4)).encode(prompt, solution).exact
    blank = StepTokenizer(tokenizer, StepSettings("\n\n", 4))
    assert blank.encode("How many?\n\n", ["He has 3.\n\n", "She\nhas 4.\n\n"]).exact
    for text in ("3.\n\n", "3\n\n", "3 \n\n", "\n\n3.\n\n"):
        assert blank.closes(blank.step_ids(text))
        assert [blank.step_text(s) for s in blank.cut(blank.step_ids(text))] == [text]
    assert not blank.closes(blank.step_ids("3.\n"))
    assert not blank.closes(blank.step_ids("\n\n"))


def test_which_tokens_close_a_step():
    tokenizer = merging_tokenizer([(".", "\n"), ("\n", "\n"), ("\n", "b")])

    def closing(delimiter):
        found = StepTokenizer(tokenizer, StepSettings(delimiter, 4)).token_ends
        kinds = (found.closes, found.closes_begun, found.opens, found.completes)
        return [[tokenizer.decode([i]) for i in np.flatnonzero(x)] for x in kinds]

    assert closing("\n") == [[".\n"], ["\n", "\n\n", "\nb"], [], []]
    assert closing("\n\n") == [[], ["\n\n"], ["\n", ".\n", "\n\n"], ["\n", "\n\n", "\nb"]]
    assert closing("###") == [[], [], ["#"], ["#"]]


def reference_cut(pieces, delimiter):
    """Cut a sequence of token texts by the definition: at the first token after which the step holds a match."""
    steps, current = [], []
    for piece in pieces:
        current.append(piece)
        text = "".join(current)
        at = [i for i in range(len(text)) if text.startswith(delimiter, i)]
        if any(text[:i].strip() or not delimiter.isspace() for i in at):
            steps.append(current)
            current = []
    return [*steps, current] if current else steps


@pytest.mark.parametrize("delimiter", ["\n", "\n\n", "###", "ab", ". ", "#a#"])
def test_a_step_ends_with_the_first_token_after_which_its_text_holds_the_delimiter(delimiter):
    merges = [
        ("\n", "\n"),
        (".", "\n"),
        ("#", "#"),
        ("a", "b"),
        ("b", "a"),
        (" ", "a"),
        ("#", "a"),
        (".", " "),
    ]
    tokenizer = merging_tokenizer(merges)
    steps = StepTokenizer(tokenizer, StepSettings(delimiter, 10_000, 10_000))
    known = [i for i in range(len(tokenizer)) if set(tokenizer.decode([i])) <= set("\n.#ab ")]
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.choice(known, size=30).tolist()
        found = [[tokenizer.decode([i]) for i in s] for s in steps.cut(ids)]
        assert found == reference_cut([tokenizer.decode([i]) for i in ids], delimiter)


def test_sentences_and_numbers_of_tokens_end_steps_too():
    tokenizer = merging_tokenizer([(".", " "), (" ", "T"), ("!", "\n")])
    by_sentence = StepTokenizer(tokenizer, StepSettings("\n", 9, end="sentence"))
    ids = tokenizer("It is 3.14. So? Take it!\nDone.")["input_ids"]
    assert [tokenizer.decode(s) for s in by_sentence.cut(ids)] == [
        "It is 3.14. ",
        "So? T",
        "ake it!\n",
        "Done.",
    ]
    by_count = StepTokenizer(tokenizer, StepSettings("\n", 99, 4, end="tokens"))
    assert [len(s) for s in by_count.cut(ids)] == [4] * (len(ids) // 4) + [len(ids) % 4] * (len(ids) % 4 > 0)


def test_end_tokens_and_stop_texts_end_a_solution():
    tokenizer = merging_tokenizer([("Q", ":")])
    z = tokenizer("z")["input_ids"][0]
    steps = StepTokenizer(tokenizer, StepSettings("\n", 9, stop=("\nQ:", "END")), [z])
    assert set(steps.end_ids) == {tokenizer.eos_token_id, z}
    newline, *q = tokenizer("\nQ:")["input_ids"]
    assert steps.ends([5, z])
    assert steps.ends([tokenizer.eos_token_id])
    assert not steps.ends([5])
    assert steps.ends(q, before=[newline])
    assert not steps.ends(q)
    assert steps.ends(tokenizer("xENDx")["input_ids"])
    assert not steps.ends(tokenizer("EN")["input_ids"])


@pytest.mark.parametrize("delimiter", ["<eos>", "eos"])
def test_an_end_token_that_holds_the_delimiter_is_refused(delimiter):
    with pytest.raises(UserError, match="<eos>"):
        StepTokenizer(merging_tokenizer([]), StepSettings(delimiter, 4))
    StepTokenizer(merging_tokenizer([]), StepSettings(delimiter, 4, end="tokens"))


@pytest.mark.parametrize("stop", ["", "\n"])
def test_a_stop_text_that_begins_the_delimiter_is_refused(stop):
    with pytest.raises(UserError, match="stop text"):
        StepSettings("\n\n", 4, stop=(stop,))
    StepSettings("\n\n", 4, end="tokens", stop=("\n",))


def test_a_merge_across_the_end_of_the_prompt_does_not_occur_where_the_policy_goes_on():
    steps = StepTokenizer(merging_tokenizer([("q", "z")]), StepSettings("\n", 4))
    q, z, newline = (steps.tokenizer(c)["input_ids"][0] for c in "qz\n")
    assert steps.encode("abcq", ["z\n"]).ids[-3:].tolist() == [q, z, newline]


def test_an_alternative_is_tokenised_like_the_step_it_stands_beside():
    """ " \n" is one token at the end of a text and two before a word: the same for a step and its copy beside it."""
    from tokenizers import Regex, decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = merging_tokenizer([(" ", "\n"), (" ", "b")]).backend_tokenizer
    cut = pre_tokenizers.Split(Regex(r"\s+(?!\S)|\s?\S+|\s"), "isolated")
    backend.pre_tokenizer, backend.decoder = cut, decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")
    assert len(tokenizer("a \n")["input_ids"]) == 2 < len(tokenizer("a \nb")["input_ids"]) - 1
    steps = StepTokenizer(tokenizer, StepSettings("\n", 4))
    own = ["a \n", "a b \n", "a \n"]
    prompt, trunk, children = steps.encode("p\n", own, [[s, "bb \n"] for s in own]).parts()
    assert tokenizer("p\na \na b \na \nA")["input_ids"][:-1] == prompt + [i for s in trunk for i in s]
    assert [at[0] for at in children] == trunk


def test_a_tree_of_emitted_ids_is_kept_as_it_is(step_tokenizer):
    tree = EncodedTree.of([4, 5], [[6, 7], [8]], [[[9]], [[4, 5]]])
    assert tree.parts() == ([4, 5], [[6, 7], [8]], [[[9]], [[4, 5]]])


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
    ("text", "delimiter", "steps"),
    [
        ("", "\n", []),
        ("a", "\n", ["a"]),
        ("a\n", "\n", ["a\n"]),
        ("a\n\nb", "\n", ["a\n\n", "b"]),
        ("a\n  b", "\n", ["a\n", "  b"]),
        ("\n", "\n", ["\n"]),
        ("a\nb\n\n\nc", "\n\n", ["a\nb\n\n", "\nc"]),
        ("a;;b", ";", ["a;", ";", "b"]),
    ],
)
def test_the_text_of_a_solution_is_cut_into_steps(text, delimiter, steps):
    assert StepEnd(delimiter).split(text) == steps
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
