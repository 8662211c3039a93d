"""A tracer beside the sampler: each sample record has its runs, and no verifier is asked twice."""

import json

import pytest
from traced_words import check_weights, replayed, rng, words

from rmtools.core import smc
from rmtools.lm.particles import LMParticles
from rmtools.sampling.tracer import Tracer


def sampled(prompt, results, groups, draw, rewarded=True):
    """The part of a sample record that the traces are taken by: several runs, pooled."""
    steps = [s for r, g in zip(results, groups, strict=True) for s in r.particles.steps()[g]]
    rows = [{"steps": s, "reward": len(s) / 8} if rewarded else {"steps": s} for s in steps]
    return {"prompt": prompt, "samples": rows, "draw": draw}


def test_a_tracer_gives_each_sample_record_its_runs():
    """Two replicates of one prompt, two runs each, watched run by run and taken prompt by prompt."""
    root, prompts = words((5, 5, 3))
    prompts = [prompts[0], prompts[0], prompts[2]]
    tracer = Tracer(lambda policy, value, prompts, terminal: root, {"resampling": "systematic"})
    results = []
    for seed in (0, 1):
        results.append(smc(tracer.start(None, None, prompts, terminal="model"), 4, 2, rng=rng(seed)))
        tracer.watch(prompts, results[-1])
    for g, draw in ((0, 5), (1, 2), (2, None)):
        record = sampled(prompts[g], results, (g, g), draw, rewarded=g != 2)
        taken = tracer.take(record)
        assert [r["run"] for r in taken] == [0, 1]
        assert [r["draw"] for r in taken] == {0: [None, 1], 1: [2, None], 2: [None, None]}[g]
        for run_, result in zip(taken, results, strict=True):
            assert replayed(run_) == result.particles.steps()[g]
            assert run_["rewards"] == (None if g == 2 else [len(s) / 8 for s in replayed(run_)])
            check_weights(json.loads(json.dumps(run_)), result, g)
    with pytest.raises(ValueError, match="no run was watched that gave samples 0"):
        tracer.take(record)


def test_a_tracer_asks_no_verifier(policy, value, prompts):
    asked = []

    def reward(prompt, steps):
        asked.append(prompt)
        return 1.0

    tracer = Tracer(LMParticles.start)
    result = smc(tracer.start(policy, value, prompts[:2], terminal="model", reward=reward), 4, rng=rng())
    tracer.watch(prompts[:2], result)
    assert not asked
    (taken,) = tracer.take(sampled(prompts[1], [result], [1], 0))
    assert taken["prompt"] == prompts[1]
