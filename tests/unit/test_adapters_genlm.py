"""genlm-control: our values as its potentials, its potentials inside our sampler; run against the installed package."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from genlm.backend.llm import AsyncTransformer
from genlm.control import BoolFSA, PromptedLLM, direct_token_sampler
from genlm.control.potential import Potential

from rmtools.adapters.genlm import GenlmScorer, PolicyPotential, ValuePotential, token_vocabulary
from rmtools.core import solve
from rmtools.errors import UserError
from rmtools.lm.enumerate import tabulate
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.tokenizers import bpe_tokenizer
from rmtools.lm.value import ConstantValue, ValueModel
from rmtools.particles.smc import smc
from rmtools.particles.tilt import Tilt

PATH = ["u r3 \n", "s r2 \n", "d x \n"]


def wait(coroutine):
    return asyncio.run(coroutine)


def tokens(potential, steps, texts):
    by_id = {t.token_id: t for t in potential.vocab}
    return [by_id[i] for text in texts for i in steps.step_ids(text)]


def own(value, prompt, steps):
    return value.score([value.steps.encode(prompt, steps)])[0].log_value[-1]


@pytest.fixture(scope="module")
def cool(policy):
    """Cool enough that nearly all of its mass is in the table of well-formed solutions."""
    return Policy(policy.model, policy.steps, 0.5)


@pytest.fixture(scope="module")
def table(cool, task, prompts):
    constant = ConstantValue(0.5, cool.steps, Tilt(0.05))
    return tabulate(cool, constant, prompts[1], task.step_choices(prompts[1], []), task.reward, 0.0)


def test_a_beginning_is_worth_its_last_finished_step_and_a_whole_its_end(value, prompts):
    potential = ValuePotential(value, prompts[0])
    context = tokens(potential, value.steps, PATH[:2])
    at = [own(value, prompts[0], PATH[:k]) for k in range(3)]
    assert np.ptp(at) > 0.01
    found = wait(potential.batch_prefix([context[:k] for k in range(7)]))
    np.testing.assert_allclose(found, [at[0]] * 3 + [at[1]] * 3 + [at[2]], atol=1e-5)
    ends = [own(value, prompts[0], [*PATH[:1], "s <eos>"]), own(value, prompts[0], [*PATH[:2], "<eos>"])]
    np.testing.assert_allclose(wait(potential.batch_complete([context[:4], context])), ends, atol=1e-5)
    assert abs(ends[1] - at[2]) > 1e-3


def test_after_the_last_step_nothing_changes_the_value(value, prompts):
    potential = ValuePotential(value, prompts[0])
    whole = tokens(potential, value.steps, PATH)
    assert [potential.ended(whole[:k]) for k in (0, 8, 9)] == [False, False, True]
    want = own(value, prompts[0], PATH)
    more = [*whole, *whole[:4]]
    found = [wait(potential.prefix(whole)), wait(potential.complete(whole)), wait(potential.complete(more))]
    assert found == pytest.approx([want] * 3, abs=1e-5)
    assert (wait(potential.logw_next(more)).weights == 0).all()


def test_a_step_without_delimiter_ends_after_its_longest_length(value, prompts):
    """The policy's rule: 6 tokens here."""
    potential = ValuePotential(value, prompts[0])
    run_on = tokens(potential, value.steps, ["u s d u s d u "])
    want = [own(value, prompts[0], s) for s in ([], ["u s d u s d "])]
    found = wait(potential.batch_prefix([run_on[:5], run_on[:6], run_on]))
    np.testing.assert_allclose(found, [want[0], want[1], want[1]], atol=1e-5)
    # Any token ends the step there.
    assert (wait(potential.logw_next(run_on[:5])).weights != 0).all()


def test_the_verifier_values_what_has_ended(value, prompts, task):
    potential = ValuePotential(value, prompts[0], terminal="verifier", reward=lambda p, s: float(s == PATH))
    whole = tokens(potential, value.steps, PATH)
    asked = [
        wait(potential.prefix(whole)),
        wait(potential.complete(whole)),
        wait(potential.complete(whole[:6])),
    ]
    assert asked == pytest.approx([0.0, 0.0, np.log(value.tilt.floor)])
    assert wait(potential.prefix(whole[:6])) == pytest.approx(own(value, prompts[0], PATH[:2]), abs=1e-5)


def test_new_prefixes_are_scored_in_one_batch_and_old_ones_not_again(value, prompts, monkeypatch):
    potential = ValuePotential(value, prompts[0])
    context = tokens(potential, value.steps, PATH)
    calls, score = [], value.score
    monkeypatch.setattr(value, "score", lambda trees: calls.append(len(trees)) or score(trees))
    first = wait(potential.batch_prefix([context[:k] for k in range(10)]))
    assert calls == [4]
    np.testing.assert_array_equal(wait(potential.batch_prefix([context[:k] for k in range(10)])), first)
    assert calls == [4]


def made(kind, value, policy, prompt, task):
    values = ValuePotential(value, prompt)
    return {
        "value": lambda: values,
        "verifier": lambda: ValuePotential(value, prompt, terminal="verifier", reward=task.reward),
        "policy": lambda: PolicyPotential(policy, prompt),
        "bytes": lambda: ValuePotential(value, prompt, over="bytes"),
        "product": lambda: PolicyPotential(policy, prompt) * values,
        "coerced": lambda: ValuePotential(value, prompt, over="bytes").coerce(values, f=b"".join),
    }[kind]()


@pytest.mark.parametrize("kind", ["value", "verifier", "policy", "bytes", "product", "coerced"])
def test_genlms_own_laws_of_a_potential_hold(kind, value, policy, prompts, task):
    """Next-token weights consistent with prefixes, autoregressive factorisation, batches as singles."""
    potential = made(kind, value, policy, prompts[2], task)
    text = "".join(PATH)
    if kind == "bytes":
        contexts = [list(text.encode()[:k]) for k in (0, 3, 6, 11, 17)]
    else:
        whole = tokens(potential, value.steps, PATH)
        contexts = [whole[:k] for k in (0, 1, 2, 5, 6, 8, 9)] + [
            tokens(potential, value.steps, ["u s d u s "])
        ]
    wait(potential.assert_contract(contexts, rtol=1e-5, atol=1e-5))


def test_those_laws_do_fail_where_a_potential_is_wrong(value, prompts):
    class Wrong(ValuePotential):
        async def _logw_next_dense(self, context):
            weights = await super()._logw_next_dense(context)
            weights.weights[0] += 0.01
            return weights

    with pytest.raises(AssertionError, match="not satisfied"):
        wait(Wrong(value, prompts[0]).assert_contract([[]], rtol=1e-5, atol=1e-5))


def test_bytes_are_read_as_their_text(value, prompts):
    of_tokens, of_bytes = ValuePotential(value, prompts[0]), ValuePotential(value, prompts[0], over="bytes")
    for texts in (PATH[:1], PATH[:2], PATH, [*PATH[:1], "s "]):
        context, raw = tokens(of_tokens, value.steps, texts), "".join(texts).encode()
        for ask in ("prefix", "complete"):
            want = wait(getattr(of_tokens, ask)(context))
            assert wait(getattr(of_bytes, ask)(raw)) == pytest.approx(want, abs=1e-5)
            assert wait(getattr(of_bytes, ask)(list(raw))) == pytest.approx(want, abs=1e-5)


def test_the_policys_weights_are_its_probabilities(policy, prompts):
    hot = Policy(policy.model, policy.steps, 1.7)
    potential = PolicyPotential(hot, prompts[0])
    context = tokens(potential, policy.steps, PATH[:2])
    ids = torch.tensor([policy.steps.prompt_ids(prompts[0]) + [t.token_id for t in context]])
    with torch.inference_mode():
        each = torch.log_softmax(policy.model(input_ids=ids).logits[0].double() / 1.7, -1)
    start = ids.shape[1] - len(context) - 1
    want = sum(float(each[start + i, t.token_id]) for i, t in enumerate(context))
    assert wait(potential.prefix(context)) == pytest.approx(want, abs=1e-5)
    end = float(each[-1, policy.steps.eos_id])
    assert wait(potential.complete(context)) == pytest.approx(want + end, abs=1e-5)
    weights = wait(potential.logw_next(context)).weights
    assert np.exp(weights).sum() == pytest.approx(1, abs=1e-5)
    assert weights[-1] == pytest.approx(end, abs=1e-5)


def genlm_z(potential, critic, n, runs, seed):
    """Return estimates of Z by genlm's own sampler, multinomial resampling when ESS < N/2."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002, genlm resamples from the global generator

    async def every():
        sampler = direct_token_sampler(potential)
        return [
            await sampler.smc(n, 0.5, 20, critic=critic, terminate_when=critic.ended) for _ in range(runs)
        ]

    found = wait(every())
    assert all(len(c) <= 20 and c[-1] == critic.eos for s in found for c in s.contexts)
    return np.exp([s.log_ml for s in found])


@pytest.mark.slow
def test_genlms_sampler_with_our_potentials_estimates_the_enumerated_z(cool, value, task, table, prompts):
    assert table.uncovered < 1e-3
    tilt = value.tilt
    z = (1 - table.uncovered) * np.exp(solve(table.model).log_z) + table.uncovered * tilt.floor
    critic = ValuePotential(value, prompts[1], terminal="verifier", reward=task.reward)
    z_hat = genlm_z(PolicyPotential(cool, prompts[1]), critic, 64, 100, 1)
    assert abs(z_hat.mean() - z) < 4.5 * z_hat.std(ddof=1) / np.sqrt(len(z_hat)) < 0.12 * z


@pytest.mark.slow
def test_with_the_models_own_end_it_is_the_expected_last_value(cool, value, table, prompts):
    trees = [value.steps.encode(prompts[1], path) for path in table.paths]
    v = np.exp([found.log_value[-1] for found in value.score(trees)])
    z = float(table.path_probability @ v)
    assert v.std() > 0.01
    z_hat = genlm_z(PolicyPotential(cool, prompts[1]), ValuePotential(value, prompts[1]), 16, 40, 2)
    error = 4.5 * z_hat.std(ddof=1) / np.sqrt(len(z_hat)) + table.uncovered
    assert abs(z_hat.mean() - z) < error < 0.01 * z


@pytest.fixture(scope="module")
def bpe(task, prompts):
    """A policy and a value model of random weights over a byte-level tokenizer, whose bytes genlm knows."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

    rng = np.random.default_rng(0)
    texts = [p + "".join(task.demonstration(p, 0.6, rng)) for p in task.prompts(50, rng)[0]]
    tokenizer = bpe_tokenizer(texts, 290)
    tokenizer.add_tokens("\n")  # else its merges with what stands beside it
    steps = StepTokenizer(tokenizer, StepSettings("\n", task.horizon, 8))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.5,
    )
    torch.manual_seed(4)
    policy = Policy(LlamaForCausalLM(config), steps)
    return policy, ValueModel(LlamaForTokenClassification(config), steps, Tilt(0.05), "random")


def test_our_value_beside_genlms_own_language_model(bpe, prompts):
    """PromptedLLM over the same weights: the same tokens, the law of PolicyPotential, and a product that keeps the laws."""
    policy, value = bpe
    ids = policy.steps.prompt_ids(prompts[0])
    llm = PromptedLLM(AsyncTransformer(policy.model, policy.steps.tokenizer), prompt_ids=ids)
    assert llm.vocab == token_vocabulary(policy.steps)
    assert [bytes(a) for a in llm.vocab] == [bytes(b) for b in token_vocabulary(policy.steps)]
    context = llm.decode_tokens(policy.steps.step_ids("u r3 \n") + policy.steps.step_ids("s r"))
    ours = PolicyPotential(policy, prompts[0])
    for ask in ("prefix", "complete"):
        assert wait(getattr(ours, ask)(context)) == pytest.approx(wait(getattr(llm, ask)(context)), abs=1e-4)
    values = ValuePotential(value, prompts[0], llm.vocab)
    assert wait(values.prefix(context)) == pytest.approx(own(value, prompts[0], ["u r3 \n"]), abs=1e-5)
    closing = np.flatnonzero(wait(values.logw_next(context)).weights[:-1])
    assert 0 < len(closing) < 20
    assert all(bytes(llm.vocab[i]).endswith(b"\n") for i in closing)
    wait((llm * values).assert_contract([[], context[:2], context], rtol=1e-4, atol=1e-4))


def guided(policy, scorer, prompts, task, n, rng):
    root = LMParticles.start(policy, scorer, prompts, terminal="verifier", reward=task.reward)
    return smc(root, n, 1, "multinomial", 1.0, rng)


def test_there_and_back_our_value_guides_the_sampler_as_directly(policy, value, prompts, task):
    """GenlmScorer over ValuePotential: the same particles, values and Z as the value model itself, seed by seed."""
    around = GenlmScorer(lambda p: ValuePotential(value, p), value.steps, value.tilt)
    found = []
    for scorer in (value, around):
        root = LMParticles.start(policy, scorer, prompts[:3])
        found.append(smc(root, 16, 2, "systematic", 0.5, np.random.default_rng(5)))
    assert found[0].particles.steps() == found[1].particles.steps()
    np.testing.assert_allclose(found[1].log_z, found[0].log_z, atol=1e-5)
    np.testing.assert_allclose(found[1].log_increments, found[0].log_increments, atol=2e-5)


def test_trees_are_scored_as_the_value_model_scores_them(value, prompts):
    trees = [
        value.steps.encode(prompts[0], PATH, [["u x \n"], [], ["s r1 \n", "u r3 \n"]]),
        value.steps.encode(prompts[1], PATH[:1]),
        value.steps.encode(prompts[1], []),
    ]
    told = []
    found = GenlmScorer(lambda p: ValuePotential(value, p), value.steps, value.tilt).score(trees, told.append)
    for mine, want in zip(found, value.score(trees), strict=True):
        np.testing.assert_allclose(mine.log_value, want.log_value, atol=1e-5)
        assert [len(c) for c in mine.children] == [len(c) for c in want.children]
        for a, b in zip(mine.children, want.children, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert told == [3]


def test_a_grammar_of_genlm_inside_our_sampler(cool, value, prompts, task, table):
    """Never down: only such paths survive, and Z-hat is unbiased for the policy's mass on them. 1,500 replicates."""
    grammar = BoolFSA.from_regex(r"([us] (r[0-4]|x) \n)*")
    scorer = GenlmScorer(grammar, cool.steps, value.tilt)
    prompt = prompts[1]
    # A broken beginning is worth nothing, at the end as well: the model's own terminal.
    root = LMParticles.start(cool, scorer, [prompt] * 1500)
    result = smc(root, 6, 1, "multinomial", 1.0, np.random.default_rng(3))
    alive = result.log_weights > -np.inf
    assert alive.any()
    assert not alive.all()
    steps = np.asarray(result.particles.steps(), dtype=object)[alive]
    assert all(s == "<eos>" or s[0] in "us" for path in steps for s in path)
    allowed = np.asarray([all(s[0] in "us" for s in path) for path in table.paths])
    z = float(table.path_probability[allowed].sum())
    assert 0.02 < z < 0.9
    z_hat = np.exp(result.log_z)
    assert abs(z_hat.mean() - z) < 4.5 * z_hat.std(ddof=1) / np.sqrt(1500) + table.uncovered


class Fixed(Potential):
    """Gives one weight to everything, over an alphabet."""

    def __init__(self, weight, vocabulary):
        self.weight = weight
        super().__init__(vocabulary)

    async def prefix(self, context):
        return self.weight

    async def complete(self, context):
        return self.weight


def test_what_a_scorer_reads(value, prompts):
    ids = [value.steps.prompt_ids(prompts[0])]
    seen = []

    class Listening(Fixed):
        async def prefix(self, context):
            seen.append(context)
            return 0.0

    step = torch.tensor([value.steps.step_ids("u r3 \n")])
    alphabets = {
        "bytes": list(range(256)),
        "characters": list("ur3 \n"),
        "tokens": token_vocabulary(value.steps),
    }
    for alphabet in alphabets.values():
        scorer = GenlmScorer(Listening(0.0, alphabet), value.steps, value.tilt)
        _, state = scorer.start(ids)
        scorer.advance(state, step)
    asked = [s for s in seen if len(s)]
    assert bytes(asked[0]) == b"u r3 \n"
    assert asked[1] == list("u r3 \n")
    assert [t.token_id for t in asked[2]] == step[0].tolist()
    words = GenlmScorer(
        Listening(0.0, ["up", "down"]), value.steps, value.tilt, context=lambda text, ids: ["up"] * len(ids)
    )
    words.advance(words.start(ids)[1], step)
    assert seen[-1] == ["up"] * 3


def test_what_cannot_be_used_is_refused(value, prompts):
    ids = [value.steps.prompt_ids(prompts[0])]

    def scorer(weight, vocabulary=tuple(range(256))):
        return GenlmScorer(Fixed(weight, list(vocabulary)), value.steps, value.tilt)

    with pytest.raises(UserError, match="empty sequence"):
        scorer(-np.inf).start(ids)
    for bad in (np.nan, np.inf):
        with pytest.raises(UserError, match="no log weights"):
            scorer(bad).start(ids)
    with pytest.raises(UserError, match=r"Atomic\(str\).*context="):
        scorer(0.0, ["up", "down"]).start(ids)
    few = scorer(0.0, token_vocabulary(value.steps)[:3])
    with pytest.raises(UserError, match="know token"):
        few.advance(few.start(ids)[1], torch.tensor([value.steps.step_ids("u r3 \n")]))
    with pytest.raises(UserError, match="over='bytes'"):
        ValuePotential(value, prompts[0], [b"a", b"b"])
    with_end = token_vocabulary(SimpleNamespace(eos_id=-1, tokenizer=value.steps.tokenizer))
    with pytest.raises(UserError, match="'<eos>'"):
        ValuePotential(value, prompts[0], with_end)
    with pytest.raises(UserError, match="over 'words'"):
        ValuePotential(value, prompts[0], over="words")
    with pytest.raises(UserError, match="verifier"):
        ValuePotential(value, prompts[0], terminal="verifier")
    with pytest.raises(UserError, match="vocabulary"):
        ValuePotential(value, prompts[0], token_vocabulary(value.steps), over="bytes")
    with pytest.raises(ValueError, match="non-empty"):
        wait(ValuePotential(value, prompts[0]).batch_prefix([]))


def test_a_scorer_works_where_an_event_loop_runs(value, prompts):
    scorer = GenlmScorer(lambda p: ValuePotential(value, p), value.steps, value.tilt)

    async def inside():
        return scorer.start([value.steps.prompt_ids(prompts[0])])[0]

    assert float(wait(inside())[0]) == pytest.approx(own(value, prompts[0], []), abs=1e-5)
