"""The trace changes no draw, and everything the sampler did can be worked out again from it by hand."""

import copy
import pickle

import numpy as np
import pytest
from traced_words import (
    Words,
    check_tree,
    check_weights,
    replayed,
    rng,
    run,
    words,
)

from rmtools.core import random_tree, smc
from rmtools.lm.particles import LMParticles
from rmtools.particles.metropolis import metropolis
from rmtools.particles.particle_gibbs import log_z_bounds, particle_gibbs
from rmtools.particles.tilt import Tilt
from rmtools.sampling.trace import Traced, trace_records

SETTINGS = [
    (16, 1, "systematic", 0.5),
    (8, 3, "multinomial", 1.0),
    (6, 2, "none", 0.5),
    (5, 4, "top_k", 0.5),
    (1, 4, "systematic", 0.5),
]


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize("terminal", ["model", "verifier"])
def test_a_language_model_is_retold(policy, value, prompts, task, how, terminal):
    at = [*prompts[:3], prompts[0]]
    root = LMParticles.start(policy, value, at, terminal=terminal, reward=task.reward)
    result, records = run(root, at, how)
    texts = result.particles.steps()
    for g, record in enumerate(records):
        check_tree(record)
        assert record["prompt"] == at[g]
        assert replayed(record) == texts[g]
        assert record["rewards"] == [task.reward(at[g], s) for s in texts[g]]
        assert record["argmax"] == result.particles.log_value()[g].argmax()
        assert record["sampler"]["resampling"] == how[2]
        if how[2] == "top_k":
            assert record["log_z"] is None
        else:
            check_weights(record, result, g)


@pytest.mark.parametrize("how", SETTINGS)
def test_no_draw_changes(policy, value, prompts, task, how):
    n, m, scheme, threshold = how
    root = LMParticles.start(policy, value, prompts[:3], terminal="verifier", reward=task.reward)
    plain = smc(root, n, m, scheme, threshold, rng(1))
    traced = smc(Traced.start(root, prompts[:3]), n, m, scheme, threshold, rng(1))
    assert traced.particles.steps() == plain.particles.steps()
    assert traced.particles.decoded == plain.particles.decoded > 0
    for name in ("log_weights", "log_z", "ess", "log_increments", "ancestors", "resampled"):
        np.testing.assert_array_equal(getattr(traced, name), getattr(plain, name))


@pytest.mark.parametrize("how", SETTINGS)
def test_groups_that_stop_early(how):
    """Prompts of 5, 2 and 4 steps at most, and words that end one sooner: nothing is told after a group's last step."""
    root, prompts = words()
    result, records = run(root, prompts, how, seed=5)
    for g, record in enumerate(records):
        check_tree(record)
        assert replayed(record) == result.particles.steps()[g]
        assert len(record["steps"]) == max(
            len(x) for level in result.particles.levels for x in paths(result, level, g)
        )
        assert record["rewards"] is None
        if how[2] != "top_k":
            check_weights(record, result, g)
    assert len(records[1]["steps"]) <= 2
    waiting = any(x["ended"] and x["copies"] for r in records for s in r["steps"][:-1] for x in s["nodes"])
    assert waiting == (how[0] > 1)


def paths(result, level, g):
    return [result.particles.tree.path(int(i)) for i in level.candidates[g]]


def test_killed_branches_are_there_and_equal_prefixes_are_one():
    root, prompts = words((6,))
    _, (record,) = run(root, prompts, (64, 2, "multinomial", 1.0))
    for step in record["steps"]:
        assert len(step["nodes"]) < 128
    assert any(x["copies"] == 0 for s in record["steps"] for x in s["nodes"])
    assert any(x["copies"] > 1 for s in record["steps"] for x in s["nodes"])


def test_zeros_are_null_and_a_dead_group_goes_on():
    root, prompts = words((4, 4), ["dead"])
    result, records = run(root, prompts, (3, 1, "systematic", 0.5))
    assert (result.log_z == -np.inf).all()
    for record in records:
        assert record["log_z"] is record["draw"] is None
        assert record["log_weights"] == [None] * 3
        assert record["steps"][0]["nodes"][0]["log_value"] is None
        check_tree(record)
    mixed, prompts = words((4,), ["dead", "a"])
    result, (record,) = run(mixed, prompts, (8, 2, "systematic", 0.5), seed=1)
    assert {x["text"] for x in record["steps"][0]["nodes"]} == {"dead", "a"}
    check_weights(record, result, 0)


def test_nan_raises():
    class Broken(Words):
        def log_value(self):
            return super().log_value() * (np.nan if max(map(len, self.texts[0])) == 2 else 1)

        def of(self, texts):
            return Broken(texts, self.horizons)

    with pytest.raises(ValueError, match=r"log value of the step .* is NaN"):
        smc(Traced.start(Broken([[[]]], (4,)), ["p"]), 4, rng=rng())
    root, prompts = words((3,))
    result, _ = run(root, prompts, (4, 1, "none", 0.5))
    result.log_weights[0, 1] = np.nan
    with pytest.raises(ValueError, match="a figure of the trace is nan"):
        trace_records(result.particles, result)


def test_the_wrong_result_or_root_is_refused():
    root, prompts = words((3,))
    one = smc(Traced.start(root, prompts), 4, rng=rng())
    two = smc(Traced.start(root, prompts), 5, rng=rng())
    bare = smc(Traced.start(root, prompts), 4, rng=rng(), history=False)
    for traced, result in ((one.particles, two), (bare.particles, bare)):
        with pytest.raises(ValueError, match="not of one run, or it kept no history"):
            trace_records(traced, result)
    with pytest.raises(ValueError, match="one prefix a prompt"):
        Traced.start(root.extend(2, rng()), prompts)


def test_rewards_of_the_caller_are_taken():
    root, prompts = words((3, 3))
    result = smc(Traced.start(root, prompts), 4, rng=rng())
    given = np.arange(8.0).reshape(2, 4) / 8
    assert [r["rewards"] for r in trace_records(result.particles, result, rewards=given)] == given.tolist()


def test_each_solution_is_judged_once():
    root, prompts = words((2, 2))
    asked = []

    def reward(prompt, steps):
        asked.append((prompt, *steps))
        return float(len(steps)) / 2

    class Setup:
        pass

    root.setup = Setup()
    root.setup.reward = reward
    root.of = lambda texts: with_setup(Words(texts, root.horizons), root)
    result = smc(Traced.start(root, prompts), 32, rng=rng())
    records = trace_records(result.particles, result)
    assert len(asked) == len(set(asked)) < 64
    assert [r["rewards"] for r in records] == [[len(s) / 2 for s in g] for g in result.particles.steps()]


def with_setup(particles, root):
    particles.setup, particles.of = root.setup, root.of
    return particles


# Conditional SMC, Metropolis-Hastings


class Leaves:
    """A finite tree whose states are written out as steps."""

    def __init__(self, inner, model):
        self.inner, self.model = inner, model

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def extend(self, pool_size, draws):
        return Leaves(self.inner.extend(pool_size, draws), self.model)

    def select(self, index):
        return Leaves(self.inner.select(index), self.model)

    def join(self, other):
        return Leaves(self.inner.join(other.inner), self.model)

    def steps(self):
        t = self.inner.depth
        return [[[format(int(s), f"0{t}b")[i] for i in range(t)] for s in row] for row in self.inner.state]


def leaves(groups):
    model = random_tree(horizon=4, branching=2, eps=0.3, tilt=Tilt(0.1), rng=rng(1))
    return Leaves(model.particles(groups), model), [f"p{g}" for g in range(groups)]


def test_particle_gibbs_draws_the_same():
    root, prompts = leaves(50)
    plain = particle_gibbs(root, 4, 3, pool_size=2, rng=rng(2))
    traced = particle_gibbs(Traced.start(root, prompts), 4, 3, pool_size=2, rng=rng(2))
    np.testing.assert_array_equal(plain.log_z, traced.log_z)
    for a, b in zip(plain.draws, traced.draws, strict=True):
        np.testing.assert_array_equal(a.state, b.state)
    last = traced.draws[-1]
    for g in range(50):
        assert last.tree.path(int(last.at[g, 0])) == last.steps()[g][0]
        for level, before in zip(last.levels, traced.path, strict=False):
            assert (level.parents[g] == level.parents[g, 0]).any()
            assert before.shape == (50, 1)


def test_the_reference_is_among_the_candidates():
    """Every level of a conditional run holds the reference's prefix as candidate 0, and nothing that was not a candidate."""
    root, prompts = leaves(20)
    first = particle_gibbs(Traced.start(root, prompts), 4, 1, pool_size=2, rng=rng(0))
    path = first.path
    again = particle_gibbs(Traced.start(root, prompts), 4, 1, pool_size=2, rng=rng(1), reference=path)
    end = again.draws[-1]
    assert end.tree is path[0].tree
    for t, level in enumerate(end.levels):
        assert level.candidates.shape == (20, 8)
        np.testing.assert_array_equal(level.candidates[:, 0], path[t + 1].at[:, 0])
    for t, level in enumerate(end.levels[1:]):
        for g in range(20):
            assert set(level.parents[g]) <= set(end.levels[t].candidates[g])


def test_a_reference_of_another_trace_is_adopted():
    root, prompts = leaves(6)
    mine, other = Traced.start(root, prompts), Traced.start(root, prompts)
    both = mine.extend(3, rng(0)).join(other.extend(2, rng(1)))
    assert both.shape == (6, 5)
    assert [[both.tree.path(int(i)) for i in row] for row in both.at] == both.steps()
    chosen = both.select(np.tile([4, 1, 2], (6, 1)))
    assert chosen.levels[-1].candidates.shape == (6, 3)
    plain = log_z_bounds([root.select(np.zeros((6, 1), int)), *descend(root)], 4, rng=rng(3))
    traced = log_z_bounds([mine, *descend(mine)], 4, rng=rng(3))
    np.testing.assert_array_equal(plain.upper, traced.upper)


def descend(particles):
    draws = rng(9)
    for _ in range(4):
        particles = particles.extend(1, draws)
        yield particles


def test_only_what_can_be_joined_has_join():
    root, prompts = leaves(2)
    assert hasattr(Traced.start(root, prompts), "join")
    leaf = type(
        "Leaf", (), {"shape": (2, 1), "ended": root.ended, "log_value": lambda self: root.log_value()}
    )
    assert not hasattr(Traced.start(leaf(), prompts), "join")


def test_metropolis_draws_the_same():
    root, prompts = leaves(30)

    def chains(start):
        return metropolis(lambda draws: smc(start, 2, pool_size=3, rng=draws), 4, rng(4))

    plain, traced = chains(root), chains(Traced.start(root, prompts))
    np.testing.assert_array_equal(plain.log_z, traced.log_z)
    np.testing.assert_array_equal(plain.collect(lambda p: p.state), traced.collect(lambda p: p.state))


def test_copies_and_pickles():
    root, prompts = words()
    traced = Traced.start(root, prompts).extend(3, rng())
    for twin in (copy.copy(traced), copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert twin.steps() == traced.steps()
    with pytest.raises(AttributeError):
        _ = traced.no_such_thing
