"""A stop text ends a solution with the first token after which its text holds one, over however many steps that text lies.

On published tokenizers, with a policy that draws every token from one law: whole solutions, steps one by one, particles that
are resampled and joined, and rollouts all end where the text of the whole solution says.
"""

import functools

import numpy as np
import pytest
import torch
from assets import fixed_law_model, real_tokenizer, token_id

from rmtools.adapters.cutting import cut_bytes, cut_tokens
from rmtools.data.collect import Branching, Collector
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.value import ConstantValue
from rmtools.particles.tilt import Tilt

NAMES = ("llama2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("smollm2", "llama3_1", "qwen3")))
N = 40
SETTINGS = {
    "begins before the last token of a step": StepSettings("\n", 5, 8, stop=("Q\nA", "\nQA")),
    "holds the delimiter": StepSettings("\n\n", 5, 8, stop=("\n\nQA", "A\n\nQ")),
    "cut twice": StepSettings("\n", 9, 2, "tokens", ("Q\nAQ", "AQQA")),
    "steps of one token": StepSettings("\n", 14, 1, "tokens", ("Q\nA", "QQA")),
    "steps cut at the limit": StepSettings("\n", 8, 2, stop=("AQQA", "Q\nQ")),
}


@functools.cache
def model_of(name):
    """Letters, newlines and a rare end: their texts are tokens on all of these tokenizers."""
    tokenizer = real_tokenizer(name)
    law = {"\n": 0.3, "Q": 0.32, "A": 0.32, " x": 0.04}
    if name == "llama2":
        law["▁x"] = law.pop(" x")
    return fixed_law_model(
        name, {token_id(tokenizer, t): p for t, p in law.items()} | {tokenizer.eos_token_id: 0.02}
    )


@functools.cache
def texts_of(name):
    return StepTokenizer(real_tokenizer(name), StepSettings("\n", 1)).token_texts


def steps_of(name, settings):
    steps = StepTokenizer(real_tokenizer(name), settings)
    steps.token_texts = texts_of(name)
    return steps


def policy_of(name, settings):
    return Policy(model_of(name), steps_of(name, settings))


def where_it_stops(steps, ids):
    """Number of tokens after which the text of a solution holds a stop text; None if it never does."""

    def held(k):
        text = steps.step_text(ids[:k])
        return any(text.find(stop) >= 0 for stop in steps.settings.stop)

    return next((k for k in range(1, len(ids) + 1) if held(k)), None) if held(len(ids)) else None


def check(steps, solutions, least=4):
    """Each ends where its text says; at ``least`` so many stop texts began before the last token of the step before."""
    spanning = 0
    for solution in solutions:
        ids = [i for step in solution for i in step]
        at = where_it_stops(steps, ids)
        if at is None:
            assert ids[-1] in steps.end_ids or len(solution) == steps.settings.max_steps
        else:
            assert at == len(ids)
            near = solution[-2][-1:] + solution[-1] if len(solution) > 1 else solution[-1]
            spanning += where_it_stops(steps, near) is None
        assert steps.cut([*ids, ids[0], ids[-1]])[: len(solution)] == solution
        found = cut_tokens(steps, [*ids, ids[0]])
        assert [list(s) for s in found.steps] == solution
        assert found.full
    assert spanning >= least


def of_particles(particles):
    """Token ids of the steps of every particle."""
    rows = [
        [[i for i in block[u].tolist() if i >= 0] for block in particles.blocks]
        for u in range(len(particles.values))
    ]
    return [[step for step in rows[u] if step] for u in particles.node.tolist()]


class Nothing:
    """A verifier that knows nothing."""

    name, delimiter, horizon = "nothing", "\n", 9

    def reward(self, prompt, steps):
        return 0.0

    def reference(self, prompt):
        return None


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_solutions_end_where_the_whole_text_says(name, kind):
    policy = policy_of(name, SETTINGS[kind])
    steps = policy.steps
    state = policy.start([steps.prompt_ids("Q\nA\n\nQ")])  # the prompt's own text does not count
    node = torch.zeros(N, dtype=torch.long)
    check(steps, policy.decode_solutions(state, node, torch.Generator().manual_seed(0)))

    one_by_one, generator = [[] for _ in node], torch.Generator().manual_seed(1)
    while not bool(state.ended[node].all()):
        # Solutions are finished from the middle as well, and the next step is drawn from a state in another order.
        if max(map(len, one_by_one)) == 2:
            rest = policy.decode_solutions(state, node, torch.Generator().manual_seed(2))
            check(steps, [[*old, *new] for old, new in zip(one_by_one, rest, strict=True)], 1)
        step = policy.decode_step(state, node, generator)
        for own, u in zip(one_by_one, step.node.tolist(), strict=True):
            own += [row] if (row := [i for i in step.tokens[u].tolist() if i >= 0]) else []
        order = torch.arange(len(step.parent)).flip(0)
        state = (
            step.state.select(order[:1]).join(step.state.select(order[1:])) if len(order) > 1 else step.state
        )
        node = len(order) - 1 - step.node
    check(steps, one_by_one)


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_particles_and_rollouts_end_there_too(name, kind):
    """Their cut steps are those of the limit alone."""
    policy = policy_of(name, SETTINGS[kind])
    steps, rng = policy.steps, np.random.default_rng(3)
    particles = LMParticles.start(policy, ConstantValue(0.5, steps, Tilt(0.01)), ["Q\nA"] * 2)
    ended = []
    while not particles.ended.all():
        particles = particles.extend(N if particles.shape[1] == 1 else 1, rng)
        ended += [s for s, e in zip(of_particles(particles), particles.ended.ravel(), strict=True) if e]
        n = particles.shape[1]
        index = np.sort(rng.integers(n, size=(2, n)), axis=1)
        particles = particles.select(index[:, : n // 2]).join(particles.select(index[:, n // 2 :]))
    check(steps, ended)

    collector = Collector(policy, Nothing(), Branching(12, 2, 1), np.random.default_rng(4))
    rows = collector.collect(["Q\nA", "A"])
    check(steps, [r.ids for r in rows], 1)
    offered = [(r.ids[:t], c) for r in rows for t, own in enumerate(r.children) for c in own]
    for before, child in offered:
        ids = [i for step in [*before, child.ids] for i in step]
        over = where_it_stops(steps, ids) is not None or ids[-1] in steps.end_ids
        assert child.ended == (over or len(before) + 1 == steps.settings.max_steps)
    drawn = [s for r in rows for s in (r.ids[: t + 1] for t in range(len(r.ids)))]
    drawn += [[*before, list(c.ids)] for before, c in offered]
    assert collector.tally.truncated == sum(is_cut(steps, s) for s in drawn)
    assert collector.tally.steps == len(drawn)

    once = LMParticles.start(policy, ConstantValue(0.5, steps, Tilt(0.01)), ["Q\nA"]).extend(N, rng)
    for _ in range(2):
        once = once.extend(1, rng)
    seen = [s[: t + 1] for s in of_particles(once) for t in range(len(s))]
    assert once.cut == sum(is_cut(steps, s) for s in seen)


def is_cut(steps, solution):
    """Whether the last step of a solution has ended at the limit of its length alone."""
    settings, step = steps.settings, solution[-1]
    ids = [i for s in solution for i in s]
    over = ids[-1] in steps.end_ids or where_it_stops(steps, ids) is not None
    return not over and settings.end != "tokens" and not settings.rule.held_by(steps.step_text(step))


@pytest.mark.parametrize("name", NAMES)
def test_characters_of_many_bytes(name):
    """On Llama 2 an emoji is four tokens, and a decoder of bytes reads none of a run that begins within one."""
    stop = "🙂\n🙂Q"
    steps = steps_of(name, StepSettings("\n", 9, stop=(stop,)))
    for text in ("🙂🙂🙂\n🙂Qx\nA", "a\né🙂\n🙂Q", "漢🙂🙂🙂🙂🙂🙂🙂\n🙂Q", "🙂\n🙂\n🙂\n🙂A🙂\n🙂Q"):
        ids = steps.step_ids(text)
        found, over = steps.finished(ids)
        flat = [i for s in found for i in s]
        assert over
        assert flat == ids[: where_it_stops(steps, ids)]
    assert not steps.finished(steps.step_ids("🙂\n🙂🙂Q\n"))[1]


def test_bytes_end_behind_the_stop_text():
    steps = steps_of("smollm2", StepSettings("\n", 4, stop=("Q\nA",)))
    found = cut_bytes(steps, b"one\ntwo Q\nAnd more\n")
    assert [steps.step_text(s) for s in found.steps] == ["one\n", "two Q\n", "A"]
    assert found.full
    going_on = cut_bytes(steps, b"one\ntwo Q\n")
    assert (len(going_on.steps), going_on.full, going_on.rest) == (2, False, b"")


def test_without_stop_texts_one_token_is_kept():
    policy = policy_of("smollm2", StepSettings("\n", 4))
    state = policy.start([policy.steps.prompt_ids("Q")])
    assert state.tail.tolist() == [[-1]]
    after = policy.decode_step(
        state, torch.zeros(9, dtype=torch.long), torch.Generator().manual_seed(0)
    ).state
    assert torch.equal(after.tail[:, 0], after.pending)
