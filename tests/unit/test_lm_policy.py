"""Stepwise decoding: the law of the drawn steps is the model's own, token by token."""

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from assets import save_model, tiny_model
from scipy import stats

from rmtools.errors import UserError
from rmtools.lm.policy import Policy, load_policy, require_vocabulary
from rmtools.lm.precision import best_device
from rmtools.lm.sampling_law import search_words
from rmtools.lm.steps import StepSettings, StepTokenizer


@torch.inference_mode()
def log_probability(policy, prefix, tokens):
    """log pi(tokens | prefix) by teacher forcing, one sequence, no cache."""
    logits = policy.model(input_ids=torch.tensor([[*prefix, *tokens]])).logits[0].double()
    table = torch.log_softmax(logits / policy.temperature, dim=-1)
    return float(sum(table[len(prefix) - 1 + i, t] for i, t in enumerate(tokens)))


def drawn(decoded):
    """The step of every particle, as a tuple of token ids."""
    rows = [tuple(t for t in row if t >= 0) for row in decoded.tokens.tolist()]
    return [rows[i] for i in decoded.node.tolist()]


def start(policy, prompts):
    return policy.start([policy.steps.prompt_ids(p) for p in prompts])


def chi_square(observed, expected):
    """p-value; cells with an expected count under 5 are pooled."""
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    small = expected < 5
    o, e = [*observed[~small], observed[small].sum()], [*expected[~small], expected[small].sum()]
    if e[-1] == 0:
        assert o[-1] == 0
        o, e = o[:-1], e[:-1]
    return stats.chisquare(o, np.asarray(e) * sum(o) / sum(e)).pvalue


def law_p_value(policy, prefix, steps, task):
    """Chi-square of ``steps`` against teacher forcing: a cell a well-formed step, and one for all others."""
    cells = [tuple(policy.steps.step_ids(c)) for c in task.step_choices("", [])]
    p = [np.exp(log_probability(policy, prefix, c)) for c in cells]
    observed = [steps.count(c) for c in cells]
    return chi_square([*observed, len(steps) - sum(observed)], len(steps) * np.asarray([*p, 1 - sum(p)]))


class Scripted(torch.nn.Module):
    """A model whose next token is a function of the last one: what is decoded is known."""

    def __init__(self, model, following, vocabulary=None):
        super().__init__()
        self.vocabulary = vocabulary or model.config.vocab_size
        self.model = model
        self.following = following
        self.config = model.config
        self.device = model.device

    def forward(self, input_ids, **kwargs):
        self.model(
            input_ids=input_ids.clamp(max=self.model.config.vocab_size - 1), **kwargs
        )  # fills the cache
        logits = torch.full((*input_ids.shape, self.vocabulary), -30.0)
        for i, row in enumerate(input_ids.tolist()):
            for j, token in enumerate(row):
                logits[i, j, self.following.get(token, 8)] = 30.0
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_frequencies_are_the_teacher_forced_probabilities(policy, prompts, task, generator, temperature):
    warm = Policy(policy.model, policy.steps, temperature)
    prompt = prompts[0]
    state = start(warm, [prompt])
    n = 6000
    steps = drawn(warm.decode_step(state, torch.zeros(n, dtype=torch.long), generator(3)))
    assert law_p_value(warm, warm.steps.prompt_ids(prompt), steps, task) > 1e-3


def test_the_second_step_is_drawn_given_the_first(policy, prompts, task, generator):
    ids = policy.steps.prompt_ids(prompts[1])
    first = policy.decode_step(start(policy, [prompts[1]]), torch.zeros(40, dtype=torch.long), generator(0))
    begun = drawn(first)
    second = drawn(policy.decode_step(first.state, first.node.repeat_interleave(200), generator(1)))
    found = {}
    for a in set(begun):
        rows = [s for i, s in enumerate(second) if begun[i // 200] == a]
        if len(rows) >= 600 and policy.steps.eos_id not in a:
            found[a] = law_p_value(policy, [*ids, *a], rows, task)
    assert len(found) >= 2
    assert min(found.values()) > 1e-3


def test_shared_prefixes_have_the_law_of_separate_rows(policy, prompts, generator):
    """One prefix held once for n particles, and n rows of it: the same law of the step."""
    n = 3000
    shared = drawn(
        policy.decode_step(start(policy, [prompts[0]]), torch.zeros(n, dtype=torch.long), generator(5))
    )
    separate = drawn(policy.decode_step(start(policy, [prompts[0]] * n), torch.arange(n), generator(6)))
    kinds = sorted(set(shared) | set(separate))
    table = np.asarray([[s.count(k) for k in kinds] for s in (shared, separate)], float)
    common = table.sum(0) >= 10
    table = np.concatenate([table[:, common], table[:, ~common].sum(1, keepdims=True)], axis=1)
    assert len(kinds) > 5
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_particles_of_one_prefix_are_independent(policy, prompts, generator):
    """Pairs of neighbours agree as often as two independent draws do."""
    n = 4000
    steps = drawn(
        policy.decode_step(start(policy, [prompts[0]]), torch.zeros(2 * n, dtype=torch.long), generator(8))
    )
    agree = np.mean([a == b for a, b in zip(steps[::2], steps[1::2], strict=True)])
    p = np.asarray([steps.count(k) for k in set(steps)]) / (2 * n)
    expected = (p**2).sum()
    assert abs(agree - expected) < 4.5 * np.sqrt(expected * (1 - expected) / n)


def test_same_seed_same_steps(policy, prompts, generator):
    node = torch.arange(2).repeat_interleave(50)
    state = start(policy, prompts[:2])
    one, two, other = (drawn(policy.decode_step(state, node, generator(s))) for s in (4, 4, 5))
    assert one == two
    assert one != other


def test_bookkeeping_of_a_step(policy, prompts, generator):
    """Parents, nodes, lengths and pending tokens agree with the tokens."""
    state = start(policy, prompts[:3])
    node = torch.tensor([2, 0, 1, 2, 2, 0])
    step = policy.decode_step(state, node, generator(0))
    assert step.parent[step.node].tolist() == node.tolist()
    rows = [tuple(r) for r in step.tokens.tolist()]
    assert len(set(zip(step.parent.tolist(), rows, strict=True))) == len(rows)
    length = (step.tokens >= 0).sum(1)
    assert step.state.pending.tolist() == [
        r[n - 1] for r, n in zip(step.tokens.tolist(), length, strict=True)
    ]
    assert (step.state.cache.length == state.cache.length[step.parent] + length).all()
    assert (step.state.n_steps == 1).all()


def test_ended_prefixes_emit_nothing(policy, prompts, generator):
    state = start(policy, prompts[:2])
    node = torch.arange(2).repeat_interleave(20)
    for seed in range(policy.steps.settings.max_steps):
        step = policy.decode_step(state, node, generator(seed))
        state, node = step.state, step.node
    assert bool(state.ended.all())
    again = policy.decode_step(state, node, generator(9))
    assert (again.tokens == -1).all()
    assert again.state.n_steps.tolist() == state.n_steps.tolist()
    assert again.state.pending.tolist() == state.pending.tolist()
    assert again.state.cache.length.tolist() == state.cache.length.tolist()


def test_one_ended_prefix_beside_a_live_one(policy, prompts, generator):
    """The live one's law does not change; the ended one stays as it is."""
    ids = policy.steps.prompt_ids(prompts[0])
    state = start(policy, prompts[:2])
    ended = type(state)(state.cache, state.pending, state.n_steps, torch.tensor([False, True]), state.tail)
    step = policy.decode_step(ended, torch.tensor([0] * 3000 + [1] * 5), generator(2))
    steps = drawn(step)
    assert steps[3000:] == [()] * 5
    assert step.state.ended[step.node[3000:]].all()
    top = max(set(steps[:3000]), key=steps.count)
    p = np.exp(log_probability(policy, ids, top))
    assert abs(steps[:3000].count(top) - 3000 * p) < 4.5 * np.sqrt(3000 * p * (1 - p))


def test_a_step_is_closed_at_the_token_limit_and_goes_on(policy, prompts, generator):
    """A model that never emits the delimiter: steps of exactly the limit, not ended before the last."""
    steps = StepTokenizer(policy.steps.tokenizer, StepSettings("\n", 3, max_step_tokens=4))
    endless = Policy(Scripted(policy.model, {}), steps)
    state, node = start(endless, prompts[:1]), torch.zeros(2, dtype=torch.long)
    for t in range(3):
        assert not bool(state.ended.any())
        step = endless.decode_step(state, node, generator(t))
        assert step.tokens.tolist() == [[8, 8, 8, 8]]
        state, node = step.state, step.node
    assert bool(state.ended.all())


def test_an_end_token_inside_a_step_ends_the_solution(policy, prompts, generator):
    eos = policy.steps.eos_id
    (newline,) = policy.steps.step_ids("\n")
    stops = Policy(Scripted(policy.model, {newline: 4, 4: eos}), policy.steps)
    step = stops.decode_step(start(stops, prompts[:1]), torch.zeros(3, dtype=torch.long), generator(0))
    assert step.tokens.tolist() == [[4, eos]]
    assert bool(step.state.ended.all())
    assert step.state.n_steps.tolist() == [1]


def test_a_prefix_at_the_end_of_the_context_ends(policy, prompts, generator):
    """The model takes 64 tokens: decoding stops there, inside a step, and nothing is fed beyond."""
    steps = StepTokenizer(policy.steps.tokenizer, StepSettings("\n", 50, max_step_tokens=40))
    endless = Policy(Scripted(policy.model, {}), steps)
    state, node = start(endless, prompts[:1]), torch.zeros(1, dtype=torch.long)
    for t in range(4):
        step = endless.decode_step(state, node, generator(t))
        state, node = step.state, step.node
        if bool(state.ended.all()):
            break
    assert bool(state.ended.all())
    assert int(state.n_steps[0]) == 2
    assert int(state.cache.length[0]) + 1 == endless.context == 64


def test_a_delimiter_of_two_tokens(policy, prompts, generator):
    """Only both tokens in order close a step."""
    steps = StepTokenizer(policy.steps.tokenizer, StepSettings("x \n", 2, max_step_tokens=9))
    x, newline = steps.step_ids("x \n")
    (other,) = steps.step_ids("u ")
    follow = {newline: other, other: x, x: newline}
    two = Policy(Scripted(policy.model, follow), steps)
    step = two.decode_step(start(two, prompts[:1]), torch.zeros(1, dtype=torch.long), generator(0))
    assert step.tokens.tolist() == [[other, x, newline]]
    lone = Policy(Scripted(policy.model, {newline: other, other: newline}), steps)
    step = lone.decode_step(start(lone, prompts[:1]), torch.zeros(1, dtype=torch.long), generator(0))
    assert step.tokens.shape == (1, 9)


def test_a_token_that_holds_the_delimiter_and_more_closes_a_step(policy, generator):
    """As ".\n" is one token in Qwen's and Llama 3's vocabularies."""
    from test_lm_steps import merging_tokenizer

    tokenizer = merging_tokenizer([(".", "\n"), ("\n", "\n")])
    steps = StepTokenizer(tokenizer, StepSettings("\n", 2, max_step_tokens=9))
    stop, a = tokenizer.convert_tokens_to_ids([".\n", "a"])
    scripted = Policy(Scripted(policy.model, {stop: a, a: stop}, len(tokenizer)), steps)
    state = scripted.start([steps.prompt_ids("b.\n")])
    step = scripted.decode_step(state, torch.zeros(1, dtype=torch.long), generator(0))
    assert step.tokens.tolist() == [[a, stop]]
    assert steps.step_text(step.tokens[0].tolist()) == "a.\n"
    assert steps.encode("b.\n", ["a.\n"]).exact


def test_prompts_longer_than_the_context_are_refused(policy):
    with pytest.raises(UserError, match=r"prompt 1\b.*\b64\b.*\b64\b"):
        policy.start([[4] * 10, [4] * 64])
    policy.start([[4] * 63])


@pytest.mark.parametrize(("word", "logit"), [(0, torch.nan), (-1, torch.nan), (5, torch.inf)])
def test_one_logit_that_is_no_number_raises(policy, prompts, generator, word, logit):
    class Broken(Scripted):
        def forward(self, input_ids, **kwargs):
            out = super().forward(input_ids, **kwargs)
            out.logits[..., word] = logit
            return out

    broken = Policy(Broken(policy.model, {}), policy.steps)
    with pytest.raises(ValueError, match=r"policy.*NaN"):
        broken.decode_step(start(policy, prompts[:1]), torch.zeros(3, dtype=torch.long), generator(0))


def test_nan_logits_raise(policy, prompts, generator):
    class Broken(Scripted):
        def forward(self, input_ids, **kwargs):
            out = super().forward(input_ids, **kwargs)
            return SimpleNamespace(logits=out.logits * torch.nan)

    broken = Policy(Broken(policy.model, {}), policy.steps)
    with pytest.raises(ValueError, match=r"policy.*NaN"):
        broken.decode_step(start(policy, prompts[:1]), torch.zeros(1, dtype=torch.long), generator(0))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_without_a_law_is_refused(policy, temperature):
    with pytest.raises(UserError, match=r"`temperature`.*1e-6 to 1e6"):
        Policy(policy.model, policy.steps, temperature)


def test_loading_what_is_no_model(tmp_path, policy_folder, settings, tokenizer):
    with pytest.raises(UserError, match="no model"):
        load_policy(tmp_path, settings)
    with pytest.raises(UserError, match="no such folder"):
        load_policy(tmp_path / "missing" / "model", settings)
    folder = tmp_path / "no_weights"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text((policy_folder / "config.json").read_text())
    with pytest.raises(UserError, match="no model"):
        load_policy(folder, settings)
    assert best_device().type in ("cpu", "cuda")


def test_a_word_is_drawn_by_its_probability(generator):
    """The search and the race have the same law, and neither draws a word of probability zero."""
    p = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    node = torch.tensor([0, 1]).repeat(20_000)
    drawn = search_words(p, node, generator(0))
    assert (drawn[1::2] == 4).all()
    counts = torch.bincount(drawn[::2], minlength=6).double().numpy()
    assert counts[[0, 2, 5]].sum() == 0
    assert stats.chisquare(counts[[1, 3, 4]], 20_000 * np.array([0.5, 0.2, 0.3])).pvalue > 1e-4


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_words_that_exist(generator, monkeypatch, uniform):
    """Words of probability zero before the first and behind the last are not drawn, whatever the rows sum to."""
    rows = torch.rand(200, 7, generator=torch.Generator().manual_seed(0))
    p = torch.nn.functional.pad(rows, (2, 2))
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), uniform, dtype=torch.float64))
    drawn = search_words(p, torch.arange(200), generator(0))
    assert (drawn == (2 if uniform == 0 else 8)).all()


def test_what_is_pending_is_the_last_token_of_the_step(policy, prompts, generator):
    """Also of prefixes whose step was complete while others, parted later, went on."""
    hot = Policy(policy.model, policy.steps, 1.5)
    node = torch.arange(2).repeat_interleave(400)
    step = hot.decode_step(start(hot, prompts[:2]), node, generator(3))
    lengths = (step.tokens >= 0).sum(1)
    assert len(set(lengths.tolist())) > 1
    last = step.tokens.gather(1, lengths[:, None] - 1)[:, 0]
    torch.testing.assert_close(step.state.pending, last)


@pytest.mark.parametrize("change", [{"hidden_size": "x"}, {"num_attention_heads": 0}, {"dtype": "foo"}])
def test_a_configuration_with_impossible_values_is_refused(policy_folder, settings, tmp_path, change):
    folder = shutil.copytree(policy_folder, tmp_path / "policy")
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match="no model"):
        load_policy(folder, settings)


@pytest.mark.slow
def test_a_tokenizer_with_special_tokens_that_the_model_does_not_know(tmp_path):
    """As Gemma 3's language models, whose tokenizer has a token for pictures; a prompt that holds it is refused."""
    save_model(tiny_model("gemma3"), "gemma3", tmp_path)
    policy = load_policy(tmp_path, StepSettings("\n", 2))
    picture = "<image_soft_token>"
    assert policy.steps.prompt_ids(picture)[-1] == policy.model.get_input_embeddings().num_embeddings
    policy.check_length([policy.steps.prompt_ids("3 + 4?")])
    with pytest.raises(UserError, match=picture):
        policy.check_length(
            [policy.steps.prompt_ids("3 + 4?"), policy.steps.prompt_ids(f"What is {picture}?")]
        )


def test_words_without_an_embedding_are_refused(policy, tokenizer):
    config = copy.deepcopy(policy.model.config)
    config.vocab_size = len(tokenizer) - 1
    with pytest.raises(UserError, match="embeddings"):
        require_vocabulary(tokenizer, config, "x")
