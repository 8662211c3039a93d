"""Steps and solutions as a server tells them, against the rule that ends them here: scripted answers, no model."""

from collections import Counter

import numpy as np
import pytest
import torch
from stand_in import choice, serving

from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.serving.capabilities import Capabilities, RequestTemplate
from rmtools.serving.endpoint import Endpoint, ServerSettings
from rmtools.serving.responses import Choice, read_answer
from rmtools.serving.server import ServerPolicy
from rmtools.serving.state import End, StepText, read_step, read_text, solution_steps

PROMPT = "r2 . \n"


@pytest.fixture
def steps(tokenizer):
    """``steps(**settings)``: the tokenizer of whole words, steps as set."""
    return lambda **more: StepTokenizer(
        tokenizer, StepSettings(**({"delimiter": "\n", "max_steps": 3, "max_step_tokens": 6} | more))
    )


def test_a_blank_line_is_no_step(steps):
    own = steps()
    blank = read_step(Choice("\n", "stop", "\n"), own, ("\n",))
    assert blank == StepText("\n", End.NONE)
    trimmed = read_step(Choice("", "stop", "\n"), own, ("\n",))
    assert trimmed == blank
    line = read_step(Choice("u r3 ", "stop", "\n"), own, ("\n",), begun="\n")
    assert line == StepText("\nu r3 \n", End.DELIMITER)
    assert read_step(Choice("", "stop"), own, ("\n",), begun="\n") == StepText("\n", End.EOS)
    # Cut here: the whole text decides.
    assert read_step(Choice("\nu r3 \nd ", "length"), own, ()) == StepText("\nu r3 \n", End.DELIMITER)


def test_texts_that_end_a_solution(steps):
    own = steps(stop=("u r1", "r3 \nd"))
    sent = ("\n", "u r1", "r3 \nd")
    assert read_step(Choice("d u ", "stop", "u r1"), own, sent) == StepText("d u u r1", End.STOP)
    assert read_step(Choice("d u r1 s", "length"), own, ()) == StepText("d u r1", End.STOP)
    # It begins in the step before.
    assert read_step(Choice("d r2 ", "length"), own, (), solution="u r3 \n") == StepText("d", End.STOP)
    # Behind the end of the step it belongs to the next one.
    assert read_step(Choice("s r2 \nu r1 ", "length"), own, ()) == StepText("s r2 \n", End.DELIMITER)


def test_sentences_and_pieces_of_k_tokens(steps):
    sentence = steps(end="sentence")
    assert read_step(Choice("r2 . u r3 ", "length"), sentence, ()) == StepText("r2 . ", End.DELIMITER)
    assert read_step(Choice("u \nr3", "stop"), sentence, ()) == StepText("u \nr3", End.EOS)
    pieces = steps(end="tokens")
    assert read_step(Choice("u r3 \nd ", "length"), pieces, ()) == StepText("u r3 \nd ", End.LENGTH)


def test_a_solution_is_cut_into_the_steps_that_would_have_been_drawn(steps):
    own = steps()
    line = [StepText("u r3 \n", End.DELIMITER), StepText("d r2 \n", End.DELIMITER)]
    assert solution_steps(own, StepText("u r3 \nd r2 \n", End.EOS), 3) == [*line, StepText("", End.EOS)]
    assert solution_steps(own, StepText("u r3 \nd r2 \n", End.EOS), 2) == line
    assert solution_steps(own, StepText("u r3 \nd r2 ", End.EOS), 3) == [line[0], StepText("d r2 ", End.EOS)]
    assert solution_steps(own, StepText("\nu r3 \nd r2 ", End.LENGTH), 3) == [
        StepText("\nu r3 \n", End.DELIMITER),
        StepText("d r2 ", End.LENGTH),
    ]
    assert solution_steps(own, StepText("u u u u u u d r2 \n", End.EOS), 3) == [
        StepText("u u u u u u ", End.LENGTH),
        StepText("d r2 \n", End.DELIMITER),
        StepText("", End.EOS),
    ]
    assert solution_steps(own, StepText("", End.EOS), 1) == [StepText("", End.EOS)]
    stop = steps(stop=("r1",))
    text = read_text(Choice("u r3 \nd r1 \ns", "length"), stop, ())
    assert solution_steps(stop, text, 3) == [line[0], StepText("d r1", End.STOP)]


def served(server, own, can):
    source = Endpoint(server.url, np.random.default_rng(0), ServerSettings(concurrency=4))
    stops = (own.settings.delimiter, *own.settings.stop)
    return ServerPolicy(source, RequestTemplate("tiny", 1.0, stops, special=False, can=can), own, 64)


def test_a_step_goes_on_behind_a_blank_line(steps):
    """Half of the first answers are blank lines: these draws go on, with the tokens they have left, and none is lost."""
    own, can = steps(), Capabilities({"top_k": -1}, stops="text", choices=8, counts="none")

    def write(body, name):
        if body["prompt"] == PROMPT:
            return [choice("\n" if i % 2 else "u r3 \n", stop_reason="\n") for i in range(body["n"])]
        assert body["prompt"] == PROMPT + "\n"
        assert body["max_tokens"] == 5
        return [choice("d r2 \n", stop_reason="\n")] * body["n"]

    with serving(write) as server:
        policy = served(server, own, can)
        state = policy.start([own.prompt_ids(PROMPT)])
        step = policy.decode_step(state, torch.zeros(12, dtype=torch.long), torch.Generator())
        texts = Counter(step.state.texts[i] for i in step.node.tolist())
        assert texts == {PROMPT + "u r3 \n": 6, PROMPT + "\nd r2 \n": 6}
        assert policy.draws == 12
        assert sorted(b["n"] for b in server.bodies) == [4, 6, 8]
        assert not any("seed" in b for b in server.bodies)
        policy.close()


def test_all_solutions_of_a_prefix_are_one_request(steps):
    """Two draws end, two are at the limit and go on by themselves; what stands behind the third step is dropped."""
    own, can = steps(max_step_tokens=4), Capabilities({}, stops="field", choices=8, counts="none")

    def write(body, name):
        assert "stop" not in body
        if body["prompt"] == PROMPT:
            assert (body["n"], body["max_tokens"]) == (4, 12)
            return [
                choice("u r3 \n"),
                choice("d r2 \ns "),
                choice("u u ", "length"),
                choice("u \n" * 4, "length"),
            ]
        assert (body["prompt"], body["n"], body["max_tokens"]) == (PROMPT + "u u ", 1, 10)
        return [choice("\n")]

    with serving(write) as server:
        policy = served(server, own, can)
        state = policy.start([own.prompt_ids(PROMPT)])
        found = policy.decode_solutions(state, torch.zeros(4, dtype=torch.long), torch.Generator())
        texts = [[own.step_text(ids) for ids in steps] for steps in found]
        assert texts == [
            ["u r3 \n", "<eos>"],
            ["d r2 \n", "s <eos>"],
            ["u u \n", "<eos>"],
            ["u \n"] * 3,
        ]
        assert (policy.draws, policy.requests, policy.truncated_steps) == (9, 2, 0)
        policy.close()


def test_what_llama_cpp_says_at_its_own_endpoint():
    parts = [
        {"index": i, "content": text, "stop_type": kind, "stopping_word": word, "tokens_predicted": 3}
        for i, text, kind, word in ((1, "a", "eos", ""), (0, "b", "word", "\n"), (2, "c", "limit", ""))
    ]
    found = read_answer(parts)
    assert [(c.text, c.finish_reason, c.matched) for c in found.choices] == [
        ("b", "stop", "\n"),
        ("a", "stop", None),
        ("c", "length", None),
    ]
    assert (found.indexed, found.tokens) == (True, 9)
    assert read_answer(parts[0]).choices[0].text == "a"
    chat = {"content": [{"id": 1, "token": "a", "logprob": -0.5}]}
    assert Choice("a", logprobs=chat).has_logprobs
    assert Choice("a", logprobs={"token_logprobs": [None, -0.5]}).has_logprobs
    assert not Choice("a").has_logprobs


def test_tokens_are_counted_here_where_the_server_is_seen_to_miscount(steps, caplog):
    own, can = steps(), Capabilities({}, stops="text", choices=8, counts="right")

    def write(body, name):
        return [choice("u u u u u u ", "length")] * body["n"]

    with serving(write) as server:
        policy = served(server, own, can)
        state = policy.start([own.prompt_ids(PROMPT)])
        policy.decode_step(state, torch.zeros(4, dtype=torch.long), torch.Generator())
        assert policy.generated_tokens == 24
        assert not caplog.messages
        server.write = lambda body, name: [choice("u u u u u \n", "length")] * body["n"]
        policy.decode_step(state, torch.zeros(2, dtype=torch.long), torch.Generator())
        assert policy.generated_tokens == 24 + 2 * 6
        assert any("miscounts" in m for m in caplog.messages)
        policy.close()


def test_two_servers_can_do_what_both_can():
    one = Capabilities({"top_k": -1}, "applied", "text", 16, True, False, True, "right", "same")
    two = Capabilities({"top_k": -1}, "applied", "native", 8, True, False, False, "right", "same")
    assert one.both(one) == one
    assert one.both(two) == Capabilities({}, "applied", "", 8, True, False, False, "right", "same")
