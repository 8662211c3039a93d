"""The ratio of two language models: equal to plain sequences, a martingale under the policy, and what it refuses."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rmtools.data.collect import Branching, Collector
from rmtools.data.scoring import score_rollouts
from rmtools.errors import UserError
from rmtools.lm.implicit import ImplicitValue, load_implicit, predecessors
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.tokenizers import word_tokenizer
from rmtools.particles.smc import smc
from rmtools.particles.tilt import Tilt

TILT = Tilt(0.05)
# (temperature of pi, temperature of pi_a)
TEMPERATURES = [(1.0, 1.0), (1.3, 1.0), (0.8, 1.5)]
RAGGED = [
    ("r2 . \nc13 . \nc02 . \n", ["u r3 \n", "s r3 \n", "d x \n"], [["d r1 \n", "s x \n"], [], ["u r4 \n"]]),
    ("r0 . \n", ["u \n"], [["s x x x \n", "\n"]]),
    ("r4 . \nc01 . \nc02 . \nc34 . \n", ["d r3 \n", "s r3 . . \n"], [[], ["d r2 \n"]]),
    ("r1 . \nc24 . \n", ["u r2 \n", "u r3 \n", "\n", "s \n"], []),
]


@pytest.fixture(scope="module")
def other_folder(policy_folder, tokenizer, tmp_path_factory):
    """Another policy: the same weights with noise of a fifth of their size."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * p.std() * torch.randn(p.shape, generator=generator)
    folder = tmp_path_factory.mktemp("models") / "other"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def at(policy, other_folder):
    """Return the scorer for a temperature of pi and of pi_a: ``at(1.3, 1.0)``."""
    loaded = load_implicit(other_folder, policy, TILT)

    def make(of_policy=1.0, of_target=1.0, steps=policy.steps):
        return ImplicitValue(
            Policy(loaded.target.model, steps, of_target, "other"),
            Policy(policy.model, steps, of_policy, "base"),
            TILT,
        )

    return make


@torch.inference_mode()
def plain(value, prompt, steps):
    """log V after ``steps``: both models on one sequence, without packing, padding or cache."""
    ids = value.steps.prompt_ids(prompt)
    n = len(ids)
    ids = ids + [i for s in steps for i in value.steps.step_ids(s)]
    total = 0.0
    for law, sign in ((value.target, 1), (value.policy, -1)):
        logits = law.model(input_ids=torch.tensor([ids])).logits[0].double() / law.temperature
        table = torch.log_softmax(logits, dim=-1)
        total += sign * sum(float(table[i - 1, ids[i]]) for i in range(n, len(ids)))
    return total


def encoded(value):
    return [value.steps.encode(*row) for row in RAGGED]


@pytest.mark.parametrize("temperatures", TEMPERATURES)
def test_tree_equals_plain_sequences(at, temperatures):
    value = at(*temperatures)
    scored = value.score(encoded(value))
    assert np.concatenate([v.log_value for v in scored]).std() > 0.1
    for (prompt, steps, children), found in zip(RAGGED, scored, strict=True):
        expected = [plain(value, prompt, steps[:t]) for t in range(len(steps) + 1)]
        assert found.log_value[0] == 0
        np.testing.assert_allclose(found.log_value, expected, atol=1e-4)
        for t in range(len(steps)):
            branch = children[t] if t < len(children) else []
            expected = [plain(value, prompt, [*steps[:t], c]) for c in branch]
            np.testing.assert_allclose(found.children[t], expected, atol=1e-4)


def test_temperature_is_that_of_the_policy(at):
    """The four temperatures give four values somewhere, or the test above could pass without any."""
    scored = [at(*t).score(encoded(at())) for t in [(1, 1), (1.3, 1), (1, 1.3), (1.3, 1.3)]]
    values = np.asarray([np.concatenate([v.log_value for v in trees]) for trees in scored])
    apart = np.abs(values[:, None] - values).max(axis=-1)
    assert np.min(apart[~np.eye(4, dtype=bool)]) > 0.01


def test_a_model_over_itself_is_one(at, policy):
    value = ImplicitValue(policy, policy, TILT)
    for found in value.score(encoded(value)):
        np.testing.assert_allclose(np.concatenate([found.log_value, *found.children]), 0, atol=1e-5)


@pytest.mark.parametrize("temperatures", TEMPERATURES[:2])
def test_tree_equals_incremental_reading(at, temperatures):
    value = at(*temperatures)
    scored = value.score(encoded(value))
    log_value, state = value.start([value.steps.prompt_ids(p) for p, _, _ in RAGGED])
    assert log_value.tolist() == [0.0] * len(RAGGED)
    for t in range(4):
        steps = [value.steps.step_ids(s[t]) if t < len(s) else [] for _, s, _ in RAGGED]
        block = torch.tensor([s + [-1] * (8 - len(s)) for s in steps])
        log_value, state = value.advance(state, block)
        for i, s in enumerate(steps):
            if s:
                assert abs(float(log_value[i]) - scored[i].log_value[t + 1]) < 1e-4
            else:
                assert np.isnan(float(log_value[i]))


def test_incremental_reading_of_children(at):
    """Fork a prefix for its children: the trajectory's state is not touched."""
    value = at(1.3)
    prompt, steps, children = RAGGED[0]
    found = value.score([value.steps.encode(*RAGGED[0])])[0]
    _, state = value.start([value.steps.prompt_ids(prompt)])
    block = torch.tensor([value.steps.step_ids(c) for c in children[0]])
    forked, _ = value.advance(state.select(torch.tensor([0, 0])), block)
    np.testing.assert_allclose(forked, found.children[0], atol=1e-4)
    own, _ = value.advance(state, torch.tensor([value.steps.step_ids(steps[0])]))
    assert abs(float(own[0]) - found.log_value[1]) < 1e-4


def test_small_batches_and_progress(at, monkeypatch):
    value = at()
    scored = value.score(encoded(value))
    # Both limits in turn: tokens, and the logits of this vocabulary.
    vocabulary = value.policy.model.config.vocab_size
    for name, limit in (("TOKENS_PER_BATCH", 30), ("LOGITS_PER_BATCH", 30 * vocabulary)):
        with monkeypatch.context() as patch:
            patch.setattr(f"rmtools.lm.implicit.{name}", limit)
            told = []
            again = value.score(encoded(value), progress=told.append)
            assert sum(told) == len(RAGGED)
            assert len(told) > 1
        for a, b in zip(again, scored, strict=True):
            np.testing.assert_allclose(a.log_value, b.log_value, atol=1e-5)


def test_predecessors_by_hand(at):
    tree = at().steps.encode("r0 . \n", ["u \n"], [["s x \n", "\n"]])
    # Trunk: r0 . \n u \n (0 to 4); children fork behind token 2: s x \n (5 to 7) and \n (8).
    assert tree.ids.shape == (9,)
    assert predecessors(tree).tolist() == [-1, 0, 1, 2, 3, 2, 5, 6, 2]


@torch.inference_mode()
@pytest.mark.parametrize("temperatures", TEMPERATURES)
def test_bellman_error_is_zero_over_every_token_sequence(at, prompts, temperatures, tokenizer):
    """Steps of at most two tokens, all of them: those that end at the first and every continuation of the others."""
    value = at(*temperatures, StepTokenizer(tokenizer, StepSettings("\n", 3, 2)))
    _, state = value.start([value.steps.prompt_ids(prompts[0])])
    size = value.policy.model.config.vocab_size
    ends = [i for i in range(size) if value.steps.closes([i]) or i == value.steps.eos_id]
    steps = [(i, -1) for i in ends]
    steps += [(i, j) for i, j in itertools.product(range(size), repeat=2) if i not in ends]
    for _ in range(2):
        log_p = np.zeros(len(steps))
        cache, law, pending = state.policy, value.policy, state.pending
        rows = torch.zeros(len(steps), dtype=torch.long)
        tokens = torch.tensor(steps)
        for k, column in enumerate(tokens.T):
            fed = pending[rows][:, None] if k == 0 else tokens[:, :1]
            logits, cache = (cache.select(rows) if k == 0 else cache).forward(law.model, fed)
            table = torch.log_softmax(logits[:, -1].double() / law.temperature, -1)
            drawn = table.gather(1, column.clamp(min=0)[:, None])[:, 0]
            log_p += torch.where(column >= 0, drawn, 0.0).numpy()
        assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-5)
        child, after = value.advance(state.select(rows), tokens)
        assert np.std(child.numpy()) > 0.1
        ratio = np.exp(log_p + child.numpy() - float(state.log_value[0])).sum()
        assert ratio == pytest.approx(1, abs=1e-4)
        # The second prefix is one of likely children, not the root.
        state = after.select(torch.tensor([int(np.argmax(log_p))]))


def test_sampled_children_have_mean_one(at, task, prompts):
    """End to end as the audit does it: children drawn as text, scored as packed trees, terminal the model's."""
    value = at(1.3)
    rows = Collector(value.policy, task, Branching(1, 401), np.random.default_rng(5)).collect(prompts[:2])
    z = {}
    for name, scorer in (("right", value), ("at another temperature", at(2.0))):
        scored = score_rollouts(rows, scorer, "model")
        x = np.exp(scored.child_log_value - scored.prefix_log_value[:, None])
        assert x.shape[1] == 401
        z[name] = (x.mean(1) - 1) / (x.std(1, ddof=1) / np.sqrt(x.shape[1]))
    assert np.all(np.abs(z["right"]) < 4.5), z
    # The same children under the ratio to another law: the test can tell.
    assert np.all(z["at another temperature"] > 4.5)


def test_the_sampler_runs_on_it(at, prompts):
    """Steps are drawn from pi; E of the estimate of Z is V(s_0) = 1."""
    value = at(1.3)
    root = LMParticles.start(value.policy, value, [prompts[0]] * 300)
    result = smc(root, 8, resampling="multinomial", ess_threshold=1, rng=np.random.default_rng(1))
    z = np.exp(result.log_z)
    assert z.std() > 0.01
    assert abs(z.mean() - 1) < 4.5 * z.std(ddof=1) / np.sqrt(len(z))


def test_a_ratio_is_no_probability(at, value):
    assert at().is_probability is False
    assert value.is_probability is True


def test_other_tokenizer_is_refused(policy, settings, task):
    words = task.vocabulary()
    other = StepTokenizer(word_tokenizer(words[::-1]), settings)
    with pytest.raises(UserError, match=r"different tokenizers \(.* with another id\)"):
        ImplicitValue(Policy(policy.model, other, name="reversed"), policy, TILT)
    other = StepTokenizer(word_tokenizer([*words, "more "]), settings)
    with pytest.raises(UserError, match="different tokenizers"):
        ImplicitValue(Policy(policy.model, other, name="longer"), policy, TILT)


class Spoiled(torch.nn.Module):
    """A model with ``logit`` written over what follows a token."""

    def __init__(self, model, token, logit):
        super().__init__()
        self.inner, self.token, self.logit = model, token, logit
        self.device, self.dtype, self.config = model.device, model.dtype, model.config

    def forward(self, input_ids, **inputs):
        logits = self.inner(input_ids=input_ids, **inputs).logits.clone()
        logits[input_ids == self.token] = self.logit
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("which", ["target", "policy"])
def test_nan_names_model_and_prefix(at, which):
    value = at()
    token = value.steps.tokenizer.convert_tokens_to_ids("r4 ")
    broken = Policy(Spoiled(getattr(value, which).model, token, torch.nan), value.steps, name="broken")
    laws = {"target": value.target, "policy": value.policy} | {which: broken}
    value = ImplicitValue(laws["target"], laws["policy"], TILT)
    with pytest.raises(UserError, match=r"broken.*alternative to step 3 of trajectory 0"):
        value.score(encoded(value)[:1])
    prompt, steps = "r1 . \n", ["u r2 \n", "u r4 \n"]
    with pytest.raises(UserError, match=r"broken.*step 2 of trajectory 1"):
        value.score([value.steps.encode("r1 . \n", ["\n"]), value.steps.encode(prompt, steps)])
    _, state = value.start([value.steps.prompt_ids(prompt)] * 2)
    block = torch.tensor([value.steps.step_ids(s) for s in steps])
    with pytest.raises(UserError, match="prefix 1 of 2"):
        value.advance(state, block)


def test_what_the_policy_cannot_write_is_refused(at):
    value = at()
    token = value.steps.tokenizer.convert_tokens_to_ids("r4 ")
    model = Spoiled(value.policy.model, token, -torch.inf)
    model.logit = torch.full((value.policy.model.config.vocab_size,), -torch.inf)
    model.logit[0] = 0.0
    strict = ImplicitValue(value.target, Policy(model, value.steps, name="strict"), TILT)
    with pytest.raises(UserError, match=r"strict.*step 1 of trajectory 0"):
        strict.score([value.steps.encode("r1 . \n", ["u r4 \n"])])
    _, state = strict.start([value.steps.prompt_ids("r1 . \n")])
    with pytest.raises(UserError, match="prefix 0 of 1"):
        strict.advance(state, torch.tensor([value.steps.step_ids("u r4 \n")]))
    # The other way round it is a value of zero.
    reverse = ImplicitValue(Policy(model, value.steps, name="strict"), value.policy, TILT)
    found = reverse.score([value.steps.encode("r1 . \n", ["u r4 \n", "\n"], [["u \n"]])])[0]
    assert found.log_value.tolist()[1:] == [-np.inf, -np.inf]
    assert np.isfinite(found.children[0]).all()


def test_embeddings_beyond_the_tokenizer(at, policy_folder, tokenizer, settings):
    """Padded embeddings: the target's law is taken over what the policy can write, and what it lacks has value zero."""
    from transformers import AutoModelForCausalLM

    wide = AutoModelForCausalLM.from_pretrained(policy_folder)
    torch.manual_seed(0)
    wide.resize_token_embeddings(len(tokenizer) + 6, mean_resizing=False)
    steps = StepTokenizer(tokenizer, settings)
    plain_model = at().policy.model
    value = ImplicitValue(Policy(wide, steps, name="wide"), Policy(plain_model, steps), TILT)
    for found in value.score(encoded(value)):
        np.testing.assert_allclose(found.log_value, 0, atol=1e-4)
    value = ImplicitValue(Policy(plain_model, steps), Policy(wide, steps, name="wide"), TILT)
    _, state = value.start([steps.prompt_ids("r1 . \n")] * 2)
    close = steps.step_ids("\n")[0]
    log_value, state = value.advance(state, torch.tensor([[len(tokenizer) + 2, close], [close, -1]]))
    assert log_value[0] == -torch.inf
    assert 0 < float(log_value[1]) < 20
    log_value, _ = value.advance(state, torch.tensor([[close], [close]]))
    assert log_value[0] == -torch.inf
    assert np.isfinite(float(log_value[1]))
