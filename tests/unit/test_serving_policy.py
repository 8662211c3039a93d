"""A policy behind a real server: what it draws, how it copes with servers of every kind, and a server that dies."""

import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from rmtools.cli.server import Server, connect_policy, summary
from rmtools.data.collect import Branching, Collector
from rmtools.data.tasks import Crossing
from rmtools.errors import UserError
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.particles.smc import smc
from rmtools.serving import retry
from rmtools.serving.endpoint import ServerSettings
from rmtools.serving.responses import Choice
from rmtools.serving.server import connect, distinct_seeds
from rmtools.serving.state import End, StepText, UnusableStepError, read_step


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def to(server, step_tokenizer):
    """Connect to the server of a kind: ``to(kind, **settings)``."""
    return lambda kind, steps=step_tokenizer, **more: connect(
        server.url(kind), steps, rng(), ServerSettings(**more)
    )


def start(policy, prompts):
    return policy.start([policy.steps.prompt_ids(p) for p in prompts])


def step_texts(policy, step):
    """The text of the step at every particle."""
    rows = [policy.steps.step_text([i for i in row if i >= 0]) for row in step.tokens.tolist()]
    return [rows[i] for i in step.node.tolist()]


@pytest.mark.parametrize(
    ("kind", "filters", "stops", "choices", "batches", "counts"),
    [
        ("vllm", "applied", "text", 16, True, "right"),
        ("reversed", "applied", "text", 16, True, "right"),
        ("trimmed", "applied", "field", 16, True, "right"),
        ("sglang", "applied", "text", 16, True, "right"),
        ("llama", "applied", "native", 8, True, "right"),
        ("oldllama", "ignored", "", 1, True, "right"),
        ("transformers", "ignored", "", 1, False, "right"),
        ("strict", "refused", "", 16, True, "right"),
        ("brittle", "applied", "", 16, True, "right"),
        ("unbatched", "applied", "text", 16, False, "right"),
    ],
)
def test_what_a_server_can_do_is_seen(server, to, kind, filters, stops, choices, batches, counts):
    """No seed is among the questions: the stand-in draws by a request's id without one."""
    seen = len(server.log())
    policy = to(kind, prompts_per_request=4, model="tiny")
    can = policy.template.can
    assert 3 < len(server.log()) - seen <= 40, "connecting costs too much"
    assert (can.filters, can.stops, can.choices, can.batches) == (filters, stops, choices, batches)
    assert (can.counts, can.seeds, can.tokenizer) == (counts, False, "same")
    assert can.logprobs == (kind == "vllm")
    assert policy.record()["stops"] == stops
    assert policy.record()["urls"] == [server.url(kind)]
    report = policy.report()
    assert report.startswith("tiny at http://127.0.0.1")
    assert "seeds are not sent" in report
    assert len(report.splitlines()) == 5
    assert ("up to 8 in one request" in report) == (kind == "llama")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fixed", "alike every time.*fixed seed.*greedy decoding"),
        ("greedy", "alike every time.*it is greedy.*do_sample"),
        ("clones", "alike every time.*`server_seed` sends one"),
        ("cached", "from a cache.*switch off the cache"),
        ("foreign", r"reads a sentence as 38 tokens.*another tokenizer.*`tokenizer`"),
    ],
)
def test_completions_that_are_no_draws_are_refused(to, kind, message):
    with pytest.raises(UserError, match=message):
        to(kind)


def test_a_server_that_draws_by_the_seed_alone_is_sent_seeds_on_demand(to):
    can = to("clones", seeds=True).template.can
    assert (can.seeds, can.choices, can.stops) == (True, 1, "text")


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        (
            "seedless",
            {"seeds": True},
            r"after a request with a seed \(.*500.*engine has stopped.*leave `server_seed` out",
        ),
        ("dying", {}, r"after a request with top_k, min_p and penalties \(.*503.*engine has stopped"),
    ],
)
def test_a_server_that_a_question_kills_is_not_waited_for(server, to, kind, asked, message):
    """The patience of 300 s is for servers that this process cannot have killed."""
    begun = time.monotonic()
    with pytest.raises(UserError, match=message):
        to(f"{kind}-1", **asked)
    assert time.monotonic() - begun < 5
    if kind == "seedless":
        assert to("seedless-2").template.can.choices == 16


@pytest.mark.parametrize("kind", ["vllm", "trimmed", "sglang", "llama", "oldllama", "strict"])
def test_draws_are_counted_and_their_tokens_are_those_of_the_text(to, kind, prompts, generator):
    policy = to(kind)
    node = torch.tensor([0] * 20 + [1] * 3 + [0] * 5 + [2])
    before = start(policy, prompts[:4])
    step = policy.decode_step(before, node, generator(0))
    assert policy.draws == len(step.node) == 29
    assert step.parent[step.node].tolist() == node.tolist()
    assert set(step.parent.tolist()) == {0, 1, 2}
    texts = step_texts(policy, step)
    assert len(set(texts)) > 3
    for text, row in zip(texts, step.node.tolist(), strict=True):
        assert text.count("\n") == text.endswith("\n")
        assert step.state.texts[row] == before.texts[int(step.parent[row])] + text.removesuffix("<eos>")
        ids = policy.steps.prompt_ids(before.texts[int(step.parent[row])]) + policy.steps.step_ids(text)
        assert step.state.length[row] == len(ids)
        assert step.state.pending[row] == ids[-1]
    pairs = set(zip(step.parent.tolist(), map(tuple, step.tokens.tolist()), strict=True))
    assert len(pairs) == len(step.tokens), "an equal continuation is held twice"


def test_a_prefix_that_ended_gets_no_step(to, prompts, generator):
    policy = to("vllm")
    state = start(policy, prompts[:2])
    state = replace(state, ended=torch.tensor([True, False]))
    step = policy.decode_step(state, torch.tensor([0, 1, 0]), generator(0))
    assert policy.draws == 1
    assert step.node[0] == step.node[2]
    row = int(step.node[0])
    assert (step.tokens[row] == -1).all()
    assert step.state.ended[row]
    assert step.state.n_steps[row] == 0
    assert step.state.texts[row] == state.texts[0]
    assert step.state.pending[row] == state.pending[0]
    over = policy.decode_step(replace(state, ended=state.ended | True), torch.tensor([0, 1]), generator(0))
    assert over.tokens.tolist() == [[-1], [-1]]


def test_the_end_of_the_sequence_is_a_step_as_it_is_in_this_process(
    to, policy, tokenizer, prompts, generator
):
    """After three steps the policy mostly says that it is done: the row is the end token, the prefix has ended."""
    steps = StepTokenizer(tokenizer, StepSettings("\n", 8, 6))
    rows = {}
    for name, source in (("here", Policy(policy.model, steps)), ("there", to("vllm", steps))):
        state, node = start(source, prompts[:1]), torch.zeros(60, dtype=torch.long)
        for t in range(4):
            step = source.decode_step(state, node, generator(t))
            state, node = step.state, step.node
        done = [r for r, over in zip(step.tokens.tolist(), state.ended.tolist(), strict=True) if over]
        rows[name] = Counter(tuple(i for i in r if i >= 0) for r in done).most_common(1)[0][0]
        assert state.ended[node].float().mean() > 0.5
    assert rows["there"] == rows["here"] == (steps.eos_id,)


def test_steps_cut_at_the_length_limit_are_counted_and_go_on(to, tokenizer, prompts, generator):
    steps = StepTokenizer(tokenizer, StepSettings("\n", 4, 2))
    for kind in ("vllm", "strict"):
        policy = to(kind, steps)
        step = policy.decode_step(start(policy, prompts[:1]), torch.zeros(30, dtype=torch.long), generator(0))
        texts = step_texts(policy, step)
        cut = [t for t in texts if not steps.settings.rule.held_by(t) and not t.endswith("<eos>")]
        assert policy.truncated_steps == len(cut) > 15
        assert not step.state.ended[step.node].all()
        again = policy.decode_step(step.state, step.node, generator(1))
        # What was left of the line is blank: no step by itself, here as in this process.
        assert any(t.startswith("\n") and not t.endswith("\n") for t in step_texts(policy, again))


def test_the_same_seed_draws_the_same(to, prompts, generator):
    node = torch.arange(3).repeat_interleave(20)
    texts = []
    for seed, concurrency in ((0, 8), (0, 1), (1, 8)):
        policy = to("vllm", concurrency=concurrency, seeds=True)
        texts.append(
            step_texts(policy, policy.decode_step(start(policy, prompts[:3]), node, generator(seed)))
        )
    assert texts[0] == texts[1] != texts[2]


def test_seeds_are_different(generator):
    seeds = distinct_seeds(20_000, generator(0))
    assert len(set(seeds)) == 20_000
    assert all(0 <= s < 2**31 for s in seeds)
    assert seeds == distinct_seeds(20_000, generator(0))


@pytest.mark.parametrize(
    ("kind", "wrongly", "truly"),
    [("oldllama", {"choices": 8}, {"choices": 1}), ("unbatched", {"batches": True}, {"batches": False})],
)
@pytest.mark.parametrize("together", [1, 4])
def test_a_server_that_can_do_less_than_it_seemed_is_asked_again(
    to, prompts, generator, kind, wrongly, truly, together
):
    """No draw of an answer that cannot be told apart is used, and none is missing."""
    policy = to(kind, prompts_per_request=together)
    policy.template = replace(policy.template, can=replace(policy.template.can, **wrongly))
    step = policy.decode_step(start(policy, prompts[:3]), torch.arange(3).repeat_interleave(12), generator(0))
    assert policy.draws == len(step.node) == 36
    assert torch.bincount(step.parent[step.node]).tolist() == [12] * 3
    if together > 1 or "choices" in wrongly:
        assert {name: getattr(policy.template.can, name) for name in truly} == truly


def test_several_prefixes_share_a_request_where_as_many_draws_are_wanted(to, prompts, generator):
    policy = to("vllm", prompts_per_request=4)
    node = torch.tensor([0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5 + [5] * 2 + [6])
    policy.decode_step(start(policy, prompts), node, generator(0))
    assert policy.requests == 4
    assert policy.draws == 28


def test_a_server_killed_and_restarted_loses_nothing(server, to, value, task, prompts, monkeypatch):
    """Killed in the middle of every seventh answer: every request used was answered whole once, and no other."""
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.1)
    policy = to("vllm", concurrency=4)
    policy.endpoint.urls[0] = server.url("mortal")
    seen = len(server.log())
    before = policy.endpoint.repeated
    live, decode = [], policy.decode_step

    def counted(state, node, generator):
        live.append(int((~state.ended[node]).sum()))
        return decode(state, node, generator)

    policy.decode_step = counted
    root = LMParticles.start(policy, value, prompts[:2], terminal="verifier", reward=task.reward)
    result = smc(root, 20, 1, "multinomial", 1.0, rng(1))
    answered = [(r.rpartition("-")[0], int(n)) for kind, r, n in server.log()[seen:] if kind == "mortal"]
    assert policy.endpoint.repeated > before, "it never died"
    assert len({r for r, _ in answered}) == len(answered) == policy.requests
    assert sum(n for _, n in answered) == policy.draws == sum(live) > 80
    assert np.isfinite(result.log_z).all()
    assert result.particles.ended.all()


def test_texts_and_values_agree(to, value, task, prompts):
    """What the value model read is the text that the server wrote: as if every prefix were scored alone."""
    policy = to("sglang")
    root = LMParticles.start(policy, value, prompts[:2], terminal="model")
    particles = root.extend(6, rng(0)).select(rng(1).integers(6, size=(2, 8))).extend(2, rng(2))
    for g, prompt in enumerate(prompts[:2]):
        for steps, found in zip(particles.steps()[g], particles.log_value()[g], strict=True):
            alone = value.score([value.steps.encode(prompt, steps)])[0].log_value[-1]
            assert found == pytest.approx(alone, abs=2e-5)


def test_rollouts_can_be_collected_from_a_server(to, task, prompts):
    policy = to("vllm")
    rows = Collector(policy, task, Branching(3, 2, 2), rng()).collect(prompts[:2])
    assert len(rows) == 6
    for row in rows:
        assert 1 <= len(row.steps) == len(row.children) == len(row.completions) <= task.horizon
        assert all(len(c) == 1 for c in row.children)


def test_a_prompt_without_room_is_refused(to, prompts):
    policy = to("vllm")
    assert policy.context == 64
    long = Crossing(30).prompts(1, rng())[0][0]
    with pytest.raises(UserError, match=r"prompt 0\b.*\b93\b.*\b64\b"):
        start(policy, [long])
    policy.context = None
    with pytest.raises(UserError, match=r"400.*context length is 64"):
        policy.decode_step(start(policy, [long]), torch.zeros(1, dtype=torch.long), torch.Generator())


def test_a_prefix_that_fills_the_context_has_ended(to, tokenizer, generator):
    """Prompt of 57 tokens, context of 64: two steps of three tokens, and one token more at most."""
    policy = to("vllm", StepTokenizer(tokenizer, StepSettings("\n", 30, 6)))
    state, node = start(policy, Crossing(18).prompts(1, rng())[0]), torch.zeros(8, dtype=torch.long)
    for t in range(7):
        step = policy.decode_step(state, node, generator(t))
        state, node = step.state, step.node
        assert (state.length <= 64).all()
    assert state.ended.all()
    assert (state.length == 64).any()


def test_a_prompt_with_unknown_words_is_refused(to):
    with pytest.raises(UserError, match="text of a prompt"):
        start(to("vllm"), ["r2 . \nhello \n"])


def test_a_step_that_the_tokenizer_cannot_read_is_refused(to, task, settings, prompts):
    from rmtools.lm.tokenizers import word_tokenizer

    words = [w for w in task.vocabulary() if w not in ("u ", "s ")]
    policy = to("vllm")
    policy.steps = StepTokenizer(word_tokenizer(words), settings)
    with pytest.raises(UserError, match="tokenizer"):
        policy.decode_step(start(policy, prompts[:1]), torch.zeros(20, dtype=torch.long), torch.Generator())


def test_what_ended_a_step(step_tokenizer):
    def read(text, finish="stop", matched=None, stops=True):
        return read_step(Choice(text, finish, matched), step_tokenizer, ("\n",) if stops else ())

    line = StepText("u r3 \n", End.DELIMITER)
    assert read("u r3 \n") == read("u r3 ", matched="\n") == read("u r3 \nd r2", "length") == line
    assert read("u r3 ", "stop_sequence") == line
    assert read("u r3 \n", "length") == line
    assert (
        read("u r3 ") == read("u r3 ", matched=2) == read("u r3 ", "eos_token") == StepText("u r3 ", End.EOS)
    )
    # Not asked for: a stop string that is named nevertheless is none of ours.
    assert read("u r3 ", matched="\n", stops=False) == StepText("u r3 ", End.EOS)
    assert read("u r3 <eos>", "length") == StepText("u r3 ", End.EOS)
    assert read("") == read("<eos>") == StepText("", End.EOS)
    assert read("u r3", "length") == StepText("u r3", End.LENGTH)
    for text, finish in (("", "length"), ("u ", "content_filter"), ("u ", "None"), ("u ", "abort")):
        with pytest.raises(UnusableStepError):
            read(text, finish)


def test_a_filtered_completion_is_no_draw(to, prompts, generator):
    policy = to("filtered")
    policy.template = replace(policy.template, can=replace(policy.template.can, stops=""))
    policy.steps = StepTokenizer(policy.steps.tokenizer, StepSettings("\n", 3, 1))
    with pytest.raises(UserError, match="content_filter"):
        policy.decode_step(start(policy, prompts[:1]), torch.zeros(8, dtype=torch.long), generator(0))


@pytest.mark.parametrize("kind", ["talkative", "uncounted"])
def test_a_server_that_does_not_keep_to_max_tokens_is_refused(to, prompts, generator, kind):
    policy = to(kind)
    with pytest.raises(UserError, match=r"more than the 6\b"):
        policy.decode_step(start(policy, prompts[:1]), torch.zeros(4, dtype=torch.long), generator(0))


def test_what_the_command_line_connects_with(server, step_tokenizer, prompts, generator):
    options = Server((server.url("several"),), "large", 16, 1)
    policy = connect_policy(options, step_tokenizer, SamplingLaw(0.7), seed=3)
    assert (policy.temperature, policy.template.model, policy.device.type) == (0.7, "large", "cpu")
    policy.decode_step(start(policy, prompts[:1]), torch.zeros(20, dtype=torch.long), generator(0))
    assert "20 steps in 2 requests, " in summary(policy)
    assert f"{policy.generated_tokens} tokens, {policy.truncated_steps} steps cut at the l" in summary(policy)
    assert summary(policy).endswith("0 requests sent again")
    with pytest.raises(UserError, match=r"temperature.*got 0"):
        connect_policy(options, step_tokenizer, SamplingLaw(0.0), seed=0)
    with pytest.raises(UserError, match=r"top_p 0\.9.*--server"):
        connect_policy(options, step_tokenizer, SamplingLaw(1.0, top_p=0.9), seed=0)
