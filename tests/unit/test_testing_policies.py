"""The contract of policies (rmtools.testing): every implementation keeps it, and every law is broken by one made for it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from rmtools.lm.policy import Policy
from rmtools.serving.endpoint import ServerSettings
from rmtools.serving.server import connect
from rmtools.testing import check_policy


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def remote(server, step_tokenizer):
    policy = connect(server.url("vllm"), step_tokenizer, rng(), ServerSettings())
    yield policy
    policy.close()


def test_policies_keep_the_contract(policy, remote, prompts):
    check_policy(policy, prompts[:3])
    check_policy(remote, prompts[:3])
    check_policy(Policy(policy.model, policy.steps), prompts[:1])


class Wrong:
    """A policy; ``change(decoded, state, node)`` breaks one law."""

    def __init__(self, policy, change):
        self.policy, self.change = policy, change
        self.steps, self.temperature, self.name = policy.steps, policy.temperature, policy.name
        self.device = policy.device

    def check_length(self, prompts):
        self.policy.check_length(prompts)

    def start(self, prompts):
        return self.policy.start(prompts)

    def decode_step(self, state, node, generator):
        return self.change(self.policy.decode_step(state, node, generator), state, node)


def revived(step, state, node):
    return replace(step, state=replace(step.state, ended=step.state.ended & False))


def reborn(step, state, node):
    """Only prefixes that had ended before live again."""
    return replace(step, state=replace(step.state, ended=step.state.ended & ~state.ended[step.parent]))


def undivided(step, state, node):
    """Every particle keeps a prefix of its own."""
    u = step.node
    return replace(
        step,
        tokens=step.tokens[u],
        state=step.state.select(u),
        parent=step.parent[u],
        node=torch.arange(len(u)),
    )


def overrun(step, state, node):
    """The step has the delimiter twice."""
    tokens = torch.cat([step.tokens, step.state.pending[:, None]], 1)
    tokens[step.tokens[:, -1] < 0, -1] = -1
    return replace(step, tokens=tokens)


def shuffled(step, state, node):
    return replace(step, node=step.node.flip(0))


def stale(step, state, node):
    return replace(step, state=replace(step.state, pending=step.state.pending * 0))


def cut_short(step, state, node):
    """Longer steps lose their last token."""
    last = (step.tokens >= 0).sum(1) - 1
    tokens = step.tokens.clone()
    rows = torch.arange(len(last))[last > 0]
    tokens[rows, last[rows]] = -1
    before = tokens.gather(1, (last - 1).clamp(min=0)[:, None])[:, 0]
    pending = torch.where(last > 0, before, step.state.pending)
    return replace(step, tokens=tokens, state=replace(step.state, pending=pending))


def renamed_end(step, state, node):
    """An ended prefix gets another pending token."""
    pending = torch.where(state.ended[step.parent], step.state.pending + 1, step.state.pending)
    return replace(step, state=replace(step.state, pending=pending))


@dataclass(frozen=True)
class SortsCache:
    """A state whose ``select`` sorts the rows of the cache and gives the right ``pending`` and ``ended``."""

    inner: object
    pending = property(lambda self: self.inner.pending)
    ended = property(lambda self: self.inner.ended)

    def select(self, rows):
        cache = self.inner.cache.select(rows.sort().values)
        return SortsCache(replace(self.inner.select(rows), cache=cache))

    def join(self, other):
        return SortsCache(self.inner.join(other.inner))


class Caching:
    """A policy with states of ``SortsCache``; with ``mixed``, the states it decodes hold another's cache instead."""

    def __init__(self, policy, mixed):
        self.policy, self.mixed = policy, mixed
        self.steps, self.temperature, self.name = policy.steps, policy.temperature, policy.name
        self.device, self.check_length = policy.device, policy.check_length

    def start(self, prompts):
        state = self.policy.start(prompts)
        return state if self.mixed else SortsCache(state)

    def decode_step(self, state, node, generator):
        step = self.policy.decode_step(state if self.mixed else state.inner, node, generator)
        if not self.mixed:
            return replace(step, state=SortsCache(step.state))
        cache = step.state.cache.select(torch.arange(len(step.parent)).flip(0))
        return replace(step, state=replace(step.state, cache=cache))


@pytest.mark.parametrize(("mixed", "law"), [(False, "reindex all"), (True, "has read its prefixes")])
def test_a_policy_that_mixes_up_its_cache_is_caught(mixed, law, policy, prompts):
    with pytest.raises(AssertionError, match=law):
        check_policy(Caching(policy, mixed), prompts[:3])


def mutating(step, state, node):
    with torch.inference_mode():
        state.ended.fill_(True)
    return step


def fresh(step, state, node):
    """Another draw than the generator's: a node that is still some particle's."""
    fresh.calls += 1
    return (
        step
        if fresh.calls % 2
        else fresh.policy.decode_step(state, node, torch.Generator().manual_seed(fresh.calls))
    )


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (revived, "absorbing|end a prefix"),
        (reborn, "absorbing and gets no token"),
        (undivided, "held twice"),
        (overrun, "first delimiter|max_step_tokens"),
        (shuffled, "where each particle was"),
        (stale, "pending is the last token"),
        (cut_short, "a step ends with the delimiter"),
        (renamed_end, "keeps its pending"),
        (mutating, "decode_step changed its state"),
        (fresh, "one seed differ"),
    ],
)
def test_broken_policies_are_caught(change, law, policy, prompts):
    fresh.policy, fresh.calls = policy, 0
    with pytest.raises(AssertionError, match=law):
        check_policy(Wrong(policy, change), prompts[:3])
