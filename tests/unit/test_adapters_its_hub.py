"""its_hub: our values inside its algorithms, its reward models inside our sampler; run against the installed package."""

import asyncio
import importlib
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from its_hub.api import AbstractProcessRewardModel, ChatMessage, ChatMessages
from its_hub.core.algorithms.beam_search import BeamSearch
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
from its_hub.core.lms.step_generation import StepGeneration

from rmtools.adapters.its_hub import ItsHubPolicy, ItsHubReward, ItsHubScorer
from rmtools.adapters.prefix_scoring import answer_text
from rmtools.errors import UserError
from rmtools.lm.enumerate import expand, tabulate
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.prompt_format import AskedFormat, PromptFormat
from rmtools.lm.value import ConstantValue
from rmtools.particles.smc import smc
from rmtools.particles.tilt import Tilt

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import law_vs_its_hub as toy

from rmtools.core import solve

ANSWERS = ["u r3 \n", "s r2 \nd x \n", "d r1 \nu x \ns x \n", "u r3 \ns r3 \n", ""]


def own(value, prompt, answer, floor):
    """p of an answer from the value model itself."""
    steps = [line + "\n" for line in answer.split("\n") if line]
    log_v = value.score([value.steps.encode(prompt, steps)])[0].log_value[-1]
    return (np.exp(log_v) - floor) / (1 - floor)


@pytest.fixture(scope="module")
def floor(value):
    return value.tilt.floor


def counted(value, monkeypatch):
    calls, score = [], value.score
    monkeypatch.setattr(value, "score", lambda trees: calls.append(len(trees)) or score(trees))
    return calls


def test_scores_are_the_value_models_own_in_order_and_in_one_batch(value, prompts, floor, monkeypatch):
    want = [own(value, prompts[0], a, floor) for a in ANSWERS]
    assert np.ptp(want) > 0.05
    calls = counted(value, monkeypatch)
    found = ItsHubReward(value, include_delimiter=True).score(prompts[0], ANSWERS)
    assert calls == [len(ANSWERS)]
    assert found == pytest.approx(want, abs=1e-5)
    assert all(type(p) is float and 0 <= p <= 1 for p in found)


def test_the_delimiter_that_its_hub_takes_off_is_put_back(value, prompts, floor):
    """Its step generation joins steps without the last delimiter; another text is another number."""
    stripped = [a.removesuffix("\n") for a in ANSWERS]
    steps = [a.splitlines() for a in ANSWERS[:-1]]
    sg = StepGeneration(max_steps=2, step_token="\n")
    assert [sg._post_process(s, stopped=True) for s in steps] == stripped[:-1]
    want = [own(value, prompts[0], a, floor) for a in ANSWERS]
    assert ItsHubReward(value).score(prompts[0], stripped) == pytest.approx(want, abs=1e-5)
    raw = ItsHubReward(value, include_delimiter=True).score(prompts[0], stripped)
    assert not np.allclose(raw[:-1], want[:-1], atol=1e-3)


def test_bare_strings_messages_and_batches_of_conversations(value, prompts, floor):
    reward = ItsHubReward(value)
    want = own(value, prompts[0], ANSWERS[0], floor)
    user = ChatMessage(role="user", content=prompts[0])
    for given in (prompts[0], [user], ChatMessages([user]), [{"role": "user", "content": prompts[0]}]):
        bare = reward.score(given, ANSWERS[0])
        assert type(bare) is float
        assert bare == pytest.approx(want, abs=1e-5)
        assert reward.score(given, [ANSWERS[0]]) == pytest.approx([want], abs=1e-5)
    both = [own(value, p, ANSWERS[1], floor) for p in prompts[:2]]
    assert abs(both[0] - both[1]) > 1e-3
    assert reward.score(list(prompts[:2]), [ANSWERS[1]] * 2) == pytest.approx(both, abs=1e-5)
    batch = [[ChatMessage(role="user", content=p)] for p in prompts[:2]]
    assert reward.score(batch, [ANSWERS[1]] * 2) == pytest.approx(both, abs=1e-5)
    assert reward.score(prompts[0], []) == []


def test_async_scores_are_the_same_and_several_may_wait(value, prompts):
    reward = ItsHubReward(value)

    async def every():
        return await asyncio.gather(*(reward.ascore(p, ANSWERS) for p in prompts))

    assert asyncio.run(every()) == [reward.score(p, ANSWERS) for p in prompts]
    assert asyncio.run(reward.ascore(prompts[0], ANSWERS[0])) == reward.score(prompts[0], ANSWERS[0])


def test_ratio_scores_have_the_incremental_weight_as_odds(value, prompts):
    p = np.asarray(ItsHubReward(value, scores="ratio").score(prompts[0], ANSWERS))
    log_v = [
        v.log_value
        for v in value.score([value.steps.encode(prompts[0], a.splitlines(True)) for a in ANSWERS])
    ]
    want = [np.exp(v[-1] - v[-2]) for v in log_v[:-1]]
    np.testing.assert_allclose(p[:-1] / (1 - p[:-1]), want, rtol=1e-5)
    assert p[-1] == 0.5


def test_a_chat_of_several_messages_takes_a_template(value, prompts):
    chat = [ChatMessage(role="system", content="be brief"), ChatMessage(role="user", content=prompts[0])]
    with pytest.raises(UserError, match=r"2 messages.*template"):
        ItsHubReward(value).score(chat, ANSWERS)
    found = ItsHubReward(value, template=lambda c: c[-1].content).score(chat, ANSWERS)
    assert found == ItsHubReward(value).score(prompts[0], ANSWERS)


def test_a_checkpoint_of_chats_renders_what_it_is_asked(value, chat_tokenizer, monkeypatch):
    """The value model's own tokenizer does not know the marks: what is rendered is looked at, not its score."""
    monkeypatch.setattr(value, "prompt_format", AskedFormat("chat", "u .").resolve(chat_tokenizer))
    monkeypatch.setattr(value.steps, "tokenizer", chat_tokenizer)
    reward = ItsHubReward(value)
    text = "<bos><|system|>u . \n<|user|>r1 . \n<|assistant|>"
    asked = [ChatMessage(role="user", content="r1 . ")]
    assert reward._prompts([asked, "r1 . \n", text], 3) == [text] * 3
    shown = [*asked, ChatMessage(role="assistant", content="d r1"), *asked]
    told = "<bos><|system|>u . \n<|user|>r1 . \n<|assistant|>d r1 \n<|user|>r1 . \n<|assistant|>"
    assert reward._prompts(shown, 1) == [told]
    monkeypatch.setattr(value, "prompt_format", PromptFormat(few_shot=(("q\n", "s"),)))
    assert ItsHubReward(value)._prompts(["r1 .\n", "q\ns\n\nr1 .\n"], 2) == ["q\ns\n\nr1 .\n"] * 2


def test_what_cannot_be_scored_is_refused(value, prompts):
    with pytest.raises(
        UserError, match=r"4 steps, the value model's horizon is 3.*max_steps=2.*step_token='\\n'"
    ):
        ItsHubReward(value).score(prompts[0], ["u r3 \n" * 4])
    with pytest.raises(UserError, match=r"2 conversations.*3 answers"):
        ItsHubReward(value).score(list(prompts[:2]), ANSWERS[:3])
    with pytest.raises(UserError, match="'odds'"):
        ItsHubReward(value, scores="odds")
    with pytest.raises(UserError, match=r"probability.*ratio"):
        ItsHubReward(SimpleNamespace(is_probability=False, name="a ratio"))


def steps_of_its_hub(task):
    return StepGeneration(max_steps=task.horizon - 1, step_token="\n")


def test_its_particle_filter_runs_on_our_value_model(policy, value, prompts, task, floor):
    random.seed(0)
    pf = ParticleFiltering(steps_of_its_hub(task), ItsHubReward(value), final_response_selection="sample")
    found = pf.infer(
        ItsHubPolicy(policy, np.random.default_rng(0)), prompts[1], 6, return_response_only=False
    )
    assert found.steps_used_lst == [task.horizon] * 6
    answers = [r["content"] for r in found.responses]
    p = np.asarray([own(value, prompts[1], a + "\n", floor) for a in answers])
    np.testing.assert_allclose(found.log_weights_lst, np.log(p / (1 - p)), atol=1e-4)
    assert found.the_one == found.responses[found.selected_index]


def test_its_filter_draws_steps_of_our_policy_by_the_policys_own_law(policy, prompts, task):
    """Frequencies of the first step over 4,000 conversations against enumeration, and of a second step after it."""
    served, n = ItsHubPolicy(policy, np.random.default_rng(2)), 4000
    choices = task.step_choices(prompts[1], [])
    for before in ("", "s r2 \n"):
        chat = [ChatMessage(role="user", content=prompts[1])]
        chat += [ChatMessage(role="assistant", content=before)] if before else []
        found = asyncio.run(served.agenerate([chat] * n, stop="\n"))
        assert asyncio.run(served.agenerate(chat, stop="\n"))["role"] == "assistant"
        ids = [policy.steps.step_ids(c) for c in choices]
        grown = expand(policy, policy.start([policy.steps.prompt_ids(prompts[1] + before)]), ids, 1e-6)
        law = np.zeros(len(choices))
        law[grown.choice.numpy()] = np.exp(grown.log_probability.numpy())
        drawn = np.asarray([sum(r["content"] + "\n" == c for r in found) for c in choices]) / n
        assert (np.abs(drawn - law) < 4.5 * np.sqrt(law * (1 - law) / n) + 1e-4).all()
    with pytest.raises(UserError, match="step_token"):
        asyncio.run(served.agenerate([chat], stop="."))


def test_its_beam_search_keeps_what_our_value_model_prefers(policy, value, prompts, task, floor):
    beam, different = BeamSearch(steps_of_its_hub(task), ItsHubReward(value), beam_width=2), 0
    for prompt in prompts[:3]:
        found = beam.infer(
            ItsHubPolicy(policy, np.random.default_rng(1)), prompt, 8, return_response_only=False
        )
        want = [own(value, prompt, r["content"] + "\n", floor) for r in found.responses]
        assert found.scores == pytest.approx(want, abs=1e-5)
        assert found.scores[found.selected_index] == max(found.scores)
        different += len({round(s, 6) for s in found.scores}) > 1
    assert different


def test_the_toys_filter_draws_from_our_target_by_ratio_scores_and_from_its_own_law_by_probabilities():
    """its_hub's filter on the benchmark's three-step tree, 400 runs of 64 particles.

    By ratio scores the signed distance to the target is MAD(H)/2N plus noise; by the values themselves the output is
    near the law of the odds, far from the target.
    """
    _, model, _ = toy.median_toy()
    n, runs, leaves, target = 64, 400, len(model.log_value[-1]), toy.target_of(model)
    direction, _, mad = toy.signed_direction(model, 1)
    laws = toy.run_its_hub(model, n, runs, 7, ratio=True).law("uniform", leaves)
    along = (laws - target) @ direction[:, 0]
    assert abs(along.mean() - mad / (2 * n)) < 4.5 * along.std(ddof=1) / np.sqrt(runs)
    assert toy.distance(laws, target)["tv"] < 0.05
    plain = toy.run_its_hub(model, n, runs, 8)
    assert toy.distance(plain.law("sample", leaves), target)["low"] > 0.6
    once = toy.distance(plain.law("uniform", leaves), toy.limit_law(model, 1))
    assert once["tv"] < 0.1 < toy.distance(plain.law("uniform", leaves), target)["tv"]


def test_the_limit_law_is_that_of_its_filter():
    """Uniform tree with values between .2 and .6, where N = 128 is near the limit: every leaf within 4.5 SE and .3 / N."""
    leaves, n, runs = toy.BRANCHING**toy.HORIZON, 128, 300
    value = [np.linspace(0.2, 0.6, leaves)]
    while len(value[0]) > 1:
        value.insert(0, value[0].reshape(-1, toy.BRANCHING).mean(axis=1))
    policy = [np.full((len(v), toy.BRANCHING), 1 / toy.BRANCHING) for v in value[:-1]]
    model = toy.FiniteModel(policy, [np.log(v) for v in value])
    found = toy.run_its_hub(model, n, runs, 9)
    for selection, last in (("uniform", 1), ("sample", 2)):
        laws = found.law(selection, leaves)
        gap, se = laws.mean(axis=0) - toy.limit_law(model, last), laws.std(axis=0, ddof=1) / np.sqrt(runs)
        assert (np.abs(gap) < 4.5 * se + 0.3 / n).all()
        for other in (toy.limit_law(model, 3 - last), toy.target_of(model)):
            assert (np.abs(laws.mean(axis=0) - other) > 4.5 * se + 0.3 / n).any()


class Heuristic(AbstractProcessRewardModel):
    """A reward model that reads text alone, and starts an event loop of its own as its_hub's vLLM model does."""

    def __init__(self):
        self.seen = []

    def score(self, prompt_or_messages, steps):
        return asyncio.run(self.ascore(prompt_or_messages, steps))

    async def ascore(self, prompt_or_messages, steps):
        self.seen.append((prompt_or_messages, list(steps)))
        return [0.02 if "x" in s else 0.3 + 0.2 * s.count("r") for s in steps]


@pytest.fixture
def heuristic(step_tokenizer):
    return ItsHubScorer(Heuristic(), step_tokenizer, Tilt(0.05))


def test_scores_of_trees_are_those_of_the_joined_texts(heuristic, step_tokenizer, prompts):
    steps, children = ["u r3 \n", "s x \n"], [["s r2 \n"], ["d r4 \n", "u x \n"]]
    trees = [step_tokenizer.encode(p, steps, children) for p in prompts[:2]] + [
        step_tokenizer.encode(prompts[0], [])
    ]
    told = []
    found = heuristic.score(trees, told.append)
    p = [[0.3, 0.5, 0.02], [[0.5], [0.7, 0.02]]]
    for tree in found[:2]:
        np.testing.assert_allclose(np.exp(tree.log_value), 0.05 + 0.95 * np.asarray(p[0]))
        for values, want in zip(tree.children, p[1], strict=True):
            np.testing.assert_allclose(np.exp(values), 0.05 + 0.95 * np.asarray(want))
    assert np.exp(found[2].log_value) == pytest.approx([0.05 + 0.95 * 0.3])
    assert told == [3]
    asked = dict(heuristic.reward.seen)
    assert list(asked) == list(prompts[:2])
    assert asked[prompts[1]] == ["", "u r3 ", "u r3 \ns x ", "s r2 ", "u r3 \nd r4 ", "u r3 \nu x "]


def test_delimiters_root_and_end_of_sequence(step_tokenizer, prompts):
    reward = Heuristic()
    scorer = ItsHubScorer(reward, step_tokenizer, Tilt(0.05), include_delimiter=True, root=0.25)
    ids = step_tokenizer.prompt_ids(prompts[0])
    values, state = scorer.start([ids, ids])
    assert np.exp(values.numpy()) == pytest.approx([0.05 + 0.95 * 0.25] * 2)
    assert reward.seen == []
    new = [step_tokenizer.step_ids("u r3 \n"), [step_tokenizer.eos_id]]
    tokens = torch.tensor([new[0], new[1] + [-1, -1]])
    values, state = scorer.advance(state, tokens)
    # A step that is the end of the sequence adds nothing to the text, which is still empty.
    assert reward.seen == [(prompts[0], ["u r3 \n"])]
    assert np.exp(values.numpy()) == pytest.approx([0.05 + 0.95 * 0.5, 0.05 + 0.95 * 0.25])
    values, state = scorer.advance(state.select(torch.tensor([0, 0])), torch.tensor([[-1, -1, -1], new[0]]))
    assert np.isnan(values.numpy()[0])
    answers = [answer_text(scorer.steps, s) for s in state.steps]
    assert answers == ["u r3 \n", "u r3 \nu r3 \n"]


@pytest.mark.parametrize("bad", [[0.5], [0.5, float("nan")], [0.5, 1.2], [-0.1, 0.5]])
def test_scores_that_are_no_probabilities_are_refused(step_tokenizer, prompts, bad):
    class Bad(Heuristic):
        def score(self, prompt_or_messages, steps):
            return bad

    with pytest.raises(UserError, match=r"Bad gave .* for 2 answers"):
        ItsHubScorer(Bad(), step_tokenizer, Tilt(0.05)).score(
            [step_tokenizer.encode(prompts[0], ["u r3 \n"])]
        )
    with pytest.raises(UserError, match=r"root.*got 2"):
        ItsHubScorer(Bad(), step_tokenizer, Tilt(0.05), root=2)


def test_there_and_back_our_value_model_guides_the_sampler_as_directly(policy, value, prompts, task):
    """ItsHubScorer over ItsHubReward: the same particles, values and Z as the value model itself, seed by seed."""
    around = ItsHubScorer(ItsHubReward(value), value.steps, value.tilt)
    found = []
    for scorer in (value, around):
        root = LMParticles.start(policy, scorer, prompts[:3], terminal="verifier", reward=task.reward)
        found.append(smc(root, 16, 2, "systematic", 0.5, np.random.default_rng(5)))
    assert found[0].particles.steps() == found[1].particles.steps()
    np.testing.assert_allclose(found[1].log_z, found[0].log_z, atol=1e-5)
    np.testing.assert_allclose(found[1].log_increments, found[0].log_increments, atol=2e-5)


def test_its_reward_model_inside_our_sampler_estimates_z(policy, heuristic, prompts, task):
    """2,000 replicates of 8 particles, also from within a running event loop: mean of Z-hat against enumeration."""
    cool, prompt = Policy(policy.model, policy.steps, 0.5), prompts[1]
    table = tabulate(
        cool,
        ConstantValue(0.5, policy.steps, heuristic.tilt),
        prompt,
        task.step_choices(prompt, []),
        task.reward,
        0.0,
    )
    z = (1 - table.uncovered) * np.exp(solve(table.model).log_z) + table.uncovered * heuristic.tilt.floor
    root = LMParticles.start(cool, heuristic, [prompt] * 2000, terminal="verifier", reward=task.reward)

    async def inside():
        return smc(root, 8, 1, "multinomial", 1.0, np.random.default_rng(6))

    z_hat = np.exp(asyncio.run(inside()).log_z)
    assert z_hat.std() > 0.05 * z
    assert abs(z_hat.mean() - z) < 4.5 * z_hat.std(ddof=1) / np.sqrt(2000)


def in_a_fresh_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_the_package_is_imported_only_by_its_module():
    code = "import rmtools.adapters, sys; print(sorted({'its_hub', 'genlm', 'torch'} & set(sys.modules)))"
    assert in_a_fresh_process(code).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "package", "extra"), [("its_hub", "its_hub", "its-hub"), ("genlm", "genlm", "genlm")]
)
def test_without_the_package_the_fix_is_named(module, package, extra, monkeypatch):
    for name in [package, *(x for x in sys.modules if x.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"rmtools.adapters.{module}", raising=False)
    with pytest.raises(UserError, match=re.escape(f"pip install 'rmtools[{extra}]'")):
        importlib.import_module(f"rmtools.adapters.{module}")
