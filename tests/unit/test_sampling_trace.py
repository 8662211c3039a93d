"""The trace changes no draw, and everything the sampler did can be worked out again from it by hand."""

import numpy as np
import pytest
from traced_words import Words, check_tree, check_weights, replayed, rng, run, words

from rmtools.core import smc
from rmtools.errors import UserError
from rmtools.lm.particles import LMParticles
from rmtools.sampling.sample_prompts import sample_prompts, settings_for
from rmtools.sampling.trace import Tracer, trees_at

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
    result, traces = run(root, at, how)
    texts = result.particles.steps()
    for g, trace in enumerate(traces):
        check_tree(trace)
        assert trace.prompt == at[g]
        assert replayed(trace) == trace.solutions() == texts[g]
        assert trace.sampler["resampling"] == how[2]
        if how[2] == "top_k":
            assert trace.log_z is None
        else:
            check_weights(trace, result, g)


@pytest.mark.parametrize("how", SETTINGS)
def test_no_draw_changes(policy, value, prompts, task, how):
    n, m, scheme, threshold = how
    root = LMParticles.start(policy, value, prompts[:3], terminal="verifier", reward=task.reward)
    plain = smc(root, n, m, scheme, threshold, rng(1))
    tracer = Tracer(trees_at(root, prompts[:3]))
    found = smc(root, n, m, scheme, threshold, rng(1), observe=tracer)
    assert [t.solutions() for t in tracer.traces(found, {})] == plain.particles.steps()
    assert found.particles.steps() == plain.particles.steps()
    assert found.particles.decoded.tolist() == plain.particles.decoded.tolist()
    assert (plain.particles.decoded > 0).all()
    for name in ("log_weights", "log_z", "ess", "log_increments", "ancestors", "resampled", "live"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


@pytest.mark.parametrize("how", SETTINGS)
def test_groups_that_stop_early(how):
    """Prompts of 5, 2 and 4 steps at most, and words that end one sooner: no step is recorded after a group's last one."""
    root, prompts = words()
    result, traces = run(root, prompts, how, seed=5)
    for g, trace in enumerate(traces):
        check_tree(trace)
        assert replayed(trace) == result.particles.steps()[g]
        assert len(trace.steps) == max(len(trace.texts(i)) for i in range(len(trace.nodes)))
        if how[2] != "top_k":
            check_weights(trace, result, g)
    assert len(traces[1].steps) <= 2
    waiting = any(t.nodes[i].ended for t in traces for s in t.steps[:-1] for i in s.particles)
    assert waiting == (how[0] > 1)


def test_killed_branches_are_there_and_equal_prefixes_are_one():
    root, prompts = words((6,))
    _, (trace,) = run(root, prompts, (64, 2, "multinomial", 1.0))
    for step in trace.steps:
        assert len(set(step.candidates)) < 128
        assert len(set(step.particles)) < 64
    assert any(set(s.candidates) - set(s.particles) for s in trace.steps)


def test_zeros_are_null_and_a_dead_group_stays():
    root, prompts = words((4, 4), ["dead"])
    result, traces = run(root, prompts, (3, 1, "systematic", 0.5))
    assert (result.log_z == -np.inf).all()
    for trace in traces:
        assert trace.log_z is trace.draw is None
        assert trace.log_weights == [None] * 3
        assert trace.nodes[1].log_value is None
        check_tree(trace)
    mixed, prompts = words((4,), ["dead", "a"])
    result, (trace,) = run(mixed, prompts, (8, 2, "systematic", 0.5), seed=1)
    assert {trace.nodes[i].text for i in trace.steps[0].candidates} == {"dead", "a"}
    check_weights(trace, result, 0)


def test_nan_raises():
    class Broken(Words):
        def log_value(self):
            return super().log_value() * (np.nan if max(map(len, self.texts[0])) == 2 else 1)

        def of(self, texts):
            return Broken(texts, self.horizons)

    with pytest.raises(ValueError, match="nan"):
        run(Broken([[[]]], (4,)), ["p"], (4, 1, "systematic", 0.5))


@pytest.mark.parametrize(
    "wanted",
    [
        settings_for("smc", n_particles=4),
        settings_for("mh", pool_size=3, mh_steps=2),
        settings_for("smc", n_particles=2, max_tokens=150),
    ],
)
def test_each_record_has_the_traces_of_its_runs(policy, value, prompts, task, wanted):
    """Also where a prompt occurs twice; the samples are the same without traces, and none is judged a second time."""
    at = [*prompts[:2], prompts[0]]
    judged, traces = [], []

    def reward(prompt, steps):
        judged.append(prompt)
        return task.reward(prompt, steps)

    plain = list(sample_prompts(policy, value, at, wanted, rng(3), reward))
    asked = len(judged)
    records = list(sample_prompts(policy, value, at, wanted, rng(3), reward, on_traces=traces.append))
    for record in (*records, *plain):
        record["cost"].pop("seconds")
    assert records == plain
    assert len(judged) == 2 * asked
    for record, own in zip(records, traces, strict=True):
        assert [t.run for t in own] == list(range(len(record["runs"] or [0])))
        assert [x for t in own for x in t.solutions()] == [s["steps"] for s in record["samples"]]
        assert [x for t in own for x in t.rewards] == [s["reward"] for s in record["samples"]]
        (drawn,) = (t for t in own if t.draw is not None)
        assert drawn.run * wanted.n_particles + drawn.draw == record["draw"]
        assert {t.prompt for t in own} == {record["prompt"]}


def test_conditional_runs_are_refused(policy, value, prompts):
    with pytest.raises(UserError, match="has no trace"):
        next(sample_prompts(policy, value, prompts, settings_for("gibbs"), rng(), on_traces=print))
