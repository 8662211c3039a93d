"""What is put out of all that was drawn: draws, argmax, votes with their ties; pooled runs; budgets."""

import itertools
import json

import numpy as np
import pytest

from rmtools.core import product, smc
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.sampling.algorithms import draw_batch
from rmtools.sampling.budget import Meter, next_runs
from rmtools.sampling.outputs import argmax, choices, vote
from rmtools.sampling.records import count_cut
from rmtools.sampling.report import warning_of_cut
from rmtools.sampling.runs import PromptSamples, Run, RunObserver, pooled, pooled_all
from rmtools.sampling.sample_prompts import SamplerSettings, Source, sample_prompts, settings_for


def rng(seed=0):
    return np.random.default_rng(seed)


def log(*weights):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(weights, dtype=float))


def test_votes_and_their_ties():
    heads = {"by_weight": False}
    assert vote(["a", "b", "b"], log(0.8, 0.1, 0.1), **heads) == 1
    # Equal heads: the larger weight; equal weights too: the first. The heaviest of its solutions stands for an answer.
    assert vote(["a", "a", "b", "b"], log(0.1, 0.1, 0.1, 0.7), **heads) == 3
    assert vote(["b", "a", "a", "b"], log(0.25, 0.25, 0.25, 0.25), **heads) == 0
    assert vote(["a", "b", "b"], log(0.8, 0.1, 0.1), by_weight=True) == 0
    assert vote(["a", "b", "b"], log(0.4, 0.2, 0.4), by_weight=True) == 2
    assert vote(["a", "b"], log(0.5, 0.5), by_weight=True) == 0


def test_who_does_not_vote():
    """A solution without an answer, and one of weight zero."""
    assert vote([None, None, "a"], log(0.5, 0.4, 0.1), by_weight=False) == 2
    assert vote(["b", "b", "a"], log(0, 0, 1), by_weight=False) == 2
    assert vote([None, None], log(0.5, 0.5), by_weight=True) is None
    assert vote(["a", "b"], log(0, 0), by_weight=False) is None


def test_the_argmax_is_of_the_final_value_not_of_the_weight():
    drawn = PromptSamples([["a"], ["b"], ["c"]], log(0.7, 0.3, 0), log(0.1, 0.2, 0.9), 0.0, 0, (), 0.0)
    assert argmax(drawn) == 1
    assert choices(drawn, None) == {"draw": 0, "argmax": 1}
    assert choices(drawn, ["x", "y", "y"])["majority"] == 0


def run_of(log_z, log_weight, name="r"):
    n = len(log_weight)
    return Run(
        [[f"{name}{i}"] for i in range(n)], log_weight, np.zeros(n), log_z, [1.0], [[0] * n], [False], 6.0
    )


def test_runs_are_pooled_by_their_estimates_of_z():
    runs = [run_of(np.log(0.1), log(0.5, 0.5)), run_of(np.log(0.3), log(1, 0)), run_of(-np.inf, log(0, 0))]
    found = pooled(runs, rng())
    np.testing.assert_allclose(np.exp(found.log_weight), [0.125, 0.125, 0.75, 0, 0, 0])
    assert np.exp(found.log_z) == pytest.approx(0.4 / 3)
    assert found.tokens == 18
    draws = np.bincount([pooled(runs, rng(k)).draw for k in range(2000)], minlength=6) / 2000
    assert np.all(
        np.abs(draws - np.exp(found.log_weight)) <= 4.5 * np.sqrt(0.25 / 2000) * (found.log_weight > -9)
    )


def test_a_chain_ends_in_the_run_it_accepted_last():
    """From Z = 0 everything positive is accepted, and from there nothing of Z = 0."""
    dead, alive = run_of(-np.inf, log(0, 0)), run_of(0.0, log(0, 1))
    (found, lost) = pooled_all([[dead, alive, dead], [dead, dead, dead]], rng(), chain=True)
    assert (found.draw, found.accepted) == (3, [True, False])
    assert (lost.draw, lost.accepted) == (None, [False, False])
    assert pooled_all([[alive]], rng(), chain=True)[0].accepted == []


class Clock:
    def __init__(self, *times):
        self.times = iter(times)

    def __call__(self):
        return next(self.times)


def test_a_budget_pays_for_runs_like_the_dearest():
    meter = Meter(SamplerSettings(2, max_tokens=100))
    meter.spend([20])
    assert meter.affordable() == 4
    meter.spend([25, 35])
    assert meter.affordable() == 0
    assert (meter.spent().tokens, meter.spent().runs, meter.spent().exceeded) == (80, 3, False)
    meter.spend([30])
    assert meter.spent().exceeded

    timed = Meter(SamplerSettings(2, max_tokens=100, max_seconds=10), Clock(5, 6, 9))
    timed.spend([1])
    assert timed.affordable() == 9
    timed.spend([1, 1])
    assert timed.affordable() == 4
    assert timed.spent().seconds == 4
    assert Meter(SamplerSettings(2, max_seconds=1), Clock(0, 2)).affordable() > 10**6
    # A run that takes nothing is not repeated for ever.
    free = Meter(SamplerSettings(2, max_tokens=100))
    free.spend([0])
    assert free.affordable() == 0


def test_batches_of_replicates_grow_and_then_go_one_by_one():
    assert [next_runs(a, b, 50) for a, b in ((0, 1), (1, 8), (2, 8), (9, 8), (99, 8), (999, 40))] == [
        0,
        1,
        1,
        4,
        16,
        50,
    ]


@pytest.mark.parametrize("algorithm", ["smc", "mh", "gibbs", "best-of-n"])
def test_a_budget_is_spent_and_not_overspent(on_finite_model, algorithm):
    """Runs of 4 particles over 5 steps take 20 tokens each, so 210 tokens are ten runs."""
    settings = settings_for(algorithm, n_particles=4, pool_size=1, max_tokens=210)
    for drawn in draw_batch(on_finite_model(product(5, 2.0)), ["a", "b"], settings, rng()):
        assert drawn.spent.tokens == drawn.tokens == 200
        assert (drawn.spent.runs, drawn.spent.exceeded) == (10, False)
        assert drawn.draw is not None
        if algorithm == "mh":
            assert len(drawn.accepted) == 9
        # Of Gibbs the first run is the start of the chain and not a sample.
        assert len(drawn.steps) == (9 if algorithm == "gibbs" else 40)


def test_tokens_are_counted_by_prompt(policy, value, prompts, task):
    """Also those of what is dropped: without resampling and pools all that is drawn is there to be counted again."""
    from rmtools.lm.policy import Policy

    # Hot enough for steps of many lengths.
    hot = Policy(policy.model, policy.steps, 2.5)
    plain = settings_for("importance", n_particles=6)
    for record in sample_prompts(hot, value, prompts[:3], plain, rng(4)):
        each = [sum(len(hot.steps.step_ids(s)) for s in x["steps"]) for x in record["samples"]]
        # Text that is cut within a word may be tokenised in another way.
        assert record["generated_tokens"] == pytest.approx(sum(each), rel=0.02)
    source = Source(hot, value)
    seen = RunObserver(source, prompts[:3])
    result = smc(source.root(prompts[:3], "model"), 4, 3, rng=rng(5), observe=seen)
    assert seen.tokens.tolist() == result.particles.decoded.tolist()
    assert len(set(seen.tokens.tolist())) > 1


@pytest.mark.parametrize("algorithm", ["smc", "gibbs"])
def test_a_budget_smaller_than_a_run_is_told(on_finite_model, algorithm):
    settings = settings_for(algorithm, n_particles=4, max_tokens=7)
    (drawn,) = draw_batch(on_finite_model(product(5, 2.0)), ["a"], settings, rng())
    assert (drawn.spent.runs, drawn.spent.exceeded, drawn.tokens) == (1, True, 20)
    assert drawn.draw is not None
    assert len(drawn.steps) == (1 if algorithm == "gibbs" else 4)


def test_a_budget_of_time(on_finite_model, monkeypatch):
    """On a clock by which every batch of runs takes a hundredth of a second: a busy machine changes nothing."""
    ticks = itertools.count()
    monkeypatch.setattr(Meter.__init__, "__defaults__", (lambda: next(ticks) / 100,))
    settings = settings_for("smc", n_particles=4, max_seconds=0.2)
    (drawn,) = draw_batch(on_finite_model(product(5, 2.0)), ["a"], settings, rng())
    assert drawn.spent.runs > 4
    assert 0.1 < drawn.spent.seconds <= 0.2
    assert not drawn.spent.exceeded


@pytest.mark.parametrize(
    "wanted",
    [
        SamplerSettings(4),
        SamplerSettings(4, 2),
        SamplerSettings(4, mh_steps=3),
        settings_for("gibbs", n_particles=4, sweeps=3),
        settings_for("gibbs", n_particles=4, max_tokens=100),
        SamplerSettings(4, max_tokens=100),
        settings_for("beam"),
    ],
)
def test_a_prompt_without_any_weight(on_finite_model, wanted):
    """Its record says so, and the others of its batch are as ever."""
    source = on_finite_model(product(3, 2.0), dies=("b",))
    one, dead, two = draw_batch(source, ["a", "b", "c"], wanted, rng())
    assert dead.draw is None
    assert not np.isfinite(dead.log_weight).any()
    assert dead.log_z in (None, -np.inf)
    assert choices(dead, ["x"] * len(dead.steps)) == dict.fromkeys(
        ("draw", "argmax", "majority", "weighted_majority")
    )
    for alive in (one, two):
        assert np.exp(alive.log_weight).sum() == pytest.approx(1)
        assert argmax(alive) is not None


def test_gibbs_needs_particles_that_can_be_joined(on_finite_model):
    from rmtools.errors import UserError

    with pytest.raises(UserError, match="Texts has no `join`"):
        draw_batch(on_finite_model(product(3, 2.0), joins=False), ["a"], settings_for("gibbs"), rng())


def test_every_run_is_shown_to_the_watcher(on_finite_model):
    from dataclasses import replace

    seen = []
    source = replace(
        on_finite_model(product(3, 2.0)), watch=lambda p, r: seen.append((list(p), r.log_z.shape))
    )
    draw_batch(source, ["a", "b"], SamplerSettings(4, mh_steps=2), rng())
    assert seen == [(["a", "b"], (2,))] * 3


@pytest.mark.parametrize(
    ("wanted", "runs"), [(SamplerSettings(4, mh_steps=2), 3), (settings_for("gibbs", sweeps=3), 4)]
)
def test_every_step_is_shown_to_the_observer(on_finite_model, wanted, runs):
    from dataclasses import replace

    steps = []
    source = replace(on_finite_model(product(5, 2.0)), observe=steps.append)
    drawn = draw_batch(source, ["a", "b"], wanted, rng())
    assert [step.t for step in steps] == [1, 2, 3, 4, 5] * runs
    tokens = sum(step.children.decoded - step.parents.decoded for step in steps)
    assert [d.tokens for d in drawn] == tokens.tolist()


def test_cut_steps_are_counted(step_tokenizer):
    end = step_tokenizer.step_text([step_tokenizer.eos_id])
    assert count_cut(step_tokenizer, [["u r1 \n", "u r1 u r1 u r1 "], [f"u r1 {end}"], []]) == (1, 3)

    def counted(solutions, **settings):
        steps = StepTokenizer(step_tokenizer.tokenizer, StepSettings("\n", 3, **settings))
        return count_cut(steps, solutions)

    over_steps = [["u r1 \n", "s r2 "], ["u r1 \n", "s r1 "]]
    assert counted(over_steps, stop=("r1 \ns r2",)) == (1, 4)
    # The end of the context alone ends a solution of so many tokens a step before its horizon.
    assert counted([["u r1 ", "u r1 ", "u "], ["u r1 ", f"u {end}"], ["u r1 ", "u "]], end="tokens") == (1, 7)


def test_a_file_of_cut_steps_is_warned_of(tmp_path):
    out = tmp_path / "samples.jsonl"
    for cut, warned in ((1, False), (2, True)):
        out.write_text(f'{{"cut_steps": 1, "n_steps": 40}}\n{{"cut_steps": {cut}, "n_steps": 60}}\n')
        said = warning_of_cut(out, 9, 64)
        assert ("3.0% of the steps were cut at 9 tokens" in said) if warned else said == ""


def test_a_policy_that_never_emits_the_delimiter(policy, value, prompts):
    """Every step runs to its limit, and is counted."""
    from rmtools.lm.policy import Policy
    from rmtools.lm.value import ConstantValue

    steps = StepTokenizer(policy.steps.tokenizer, StepSettings(". \n", 3, 3))
    constant = ConstantValue(0.5, steps, value.tilt)
    other = Policy(policy.model, steps)
    record = next(sample_prompts(other, constant, prompts[:1], SamplerSettings(8), rng()))
    assert record["cut_steps"] == record["n_steps"] > 8
    assert record["generated_tokens"] <= 8 * 3 * 3


@pytest.mark.parametrize(
    "wanted",
    [
        settings_for("sp-gsmc", pool_size=4),
        settings_for("mh", pool_size=4, mh_steps=3),
        settings_for("majority", n_particles=6),
        settings_for("weighted-majority", n_particles=6),
        settings_for("beam"),
        settings_for("smc", n_particles=4, max_tokens=150),
    ],
)
def test_records_of_every_kind(policy, value, prompts, task, wanted):
    """Whatever is put out, everything that was drawn is there, and the same seed gives the same."""

    def sampled():
        found = sample_prompts(policy, value, prompts[:2], wanted, rng(3), task.reward, answer=task.answer)
        return [{**r, "cost": {**r["cost"], "seconds": 0}} for r in found]

    records = sampled()
    assert records == sampled()
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    for r in records:
        assert r["chosen"] == r[wanted.output.replace("-", "_")]
        assert r["answer"] == (None if r["chosen"] is None else r["samples"][r["chosen"]]["answer"])
        several = r["runs"] is not None
        assert several == (wanted.chain or wanted.budgeted)
        assert (r["ess"] is None) == (r["ancestors"] is None) == several
        n = wanted.n_particles
        assert len(r["samples"]) == n * (len(r["runs"]) if several else 1)
        for s in r["samples"]:
            assert s["answer"] == task.answer(r["prompt"], s["steps"])
        weights = [-np.inf if s["log_weight"] is None else s["log_weight"] for s in r["samples"]]
        assert np.exp(weights).sum() == pytest.approx(1)
        if wanted.budgeted:
            assert r["budget"]["tokens"] == r["generated_tokens"] == sum(x["tokens"] for x in r["runs"])
            assert "seconds" not in r["budget"]
        assert (r["chain"] is None) == (not wanted.chain)


def test_a_majority_needs_answers(policy, value, prompts):
    from rmtools.errors import UserError

    with pytest.raises(UserError, match="counts answers"):
        next(sample_prompts(policy, value, prompts, settings_for("majority"), rng()))
    assert list(sample_prompts(policy, value, [], settings_for("smc"), rng())) == []
