"""What `benchmarks/accuracy_at_tokens.py` counts and reads: tokens, answers, intervals; with a value that knows nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import accuracy_samplers as samplers
from accuracy_at_tokens import described, differences, interval, markdown, not_ahead, success_at_tokens
from accuracy_samplers import Bench, Point, Tally, distinct_tokens, majority
from crossing_models import Models

from rmtools.codec import to_json
from rmtools.lm.particles import LMParticles
from rmtools.particles.smc import smc


@pytest.fixture(scope="module")
def bench(policy, value, task, prompts):
    return Bench(Models(task, policy, value, frozenset(prompts[:4])), prompts[4:])


@pytest.fixture(scope="module")
def points(bench):
    rng = np.random.default_rng(1)
    found = []
    for budget in (4, 16):
        found += bench.independent(budget, rng)
        for terminal in samplers.TERMINALS:
            for run in (bench.resampled, bench.beam, bench.chain):
                found += run(terminal, budget, rng)
    return found


def test_distinct_tokens_are_those_of_a_tree_of_beginnings(policy, value, prompts):
    tally, seen = Tally(), 0

    def observe(step):
        nonlocal seen
        beginnings = set()
        for g, (old, new) in enumerate(zip(step.parents.steps(), step.children.steps(), strict=True)):
            for i, steps in enumerate(new):
                if len(steps) == len(old[i // 2]):
                    continue
                ids = policy.steps.step_ids(steps[-1])
                beginnings |= {(g, *steps[:-1], *ids[: k + 1]) for k in range(len(ids))}
        seen += len(beginnings)
        assert distinct_tokens(step.children) == len(beginnings)
        tally(step)

    root = LMParticles.start(policy, value, prompts[:3])
    result = smc(root, 6, 2, ess_threshold=1, rng=np.random.default_rng(2), observe=observe)
    assert tally.distinct == seen
    assert tally.nominal == result.particles.decoded.sum()
    assert tally.distinct < 0.8 * tally.nominal


def test_every_sampler_draws_as_many_tokens_at_a_budget(points, task):
    expected = {"plain", "best-of-N", "weighted majority", "beam", "SMC, argmax", "SMC, one draw"}
    assert expected | {"SMC, majority", "SP-gSMC + MH"} == {p.sampler for p in points}
    for p in points:
        n = 1 if p.sampler == "plain" else p.budget
        # Steps of 3 tokens; this policy often ends early, and there are few samples.
        assert p.nominal == pytest.approx(3 * task.horizon * n, rel=0.25), p.sampler
        assert p.distinct <= p.nominal
        assert len(p.success) == 4
        assert np.all((p.success >= 0) & (p.success <= 1))


def test_best_of_n_by_the_verifier_is_right_where_any_sample_is(bench):
    rng = np.random.default_rng(3)
    found = {(p.sampler, p.terminal): p.success for p in bench.independent(8, rng)}
    np.testing.assert_array_equal(found["best-of-N", "verifier"], found["plain", "verifier"] > 0)


def test_a_majority_pools_the_weights_of_equal_solutions(policy, value, prompts):
    root = LMParticles.start(policy, value, prompts[:6])
    result = smc(root, 12, rng=np.random.default_rng(4))
    chosen = majority(result.log_weights, result.particles.steps())
    differs = 0
    for g, steps in enumerate(result.particles.steps()):
        texts, w = ["".join(s) for s in steps], np.exp(result.log_weights[g])
        mass = {t: sum(x for x, u in zip(w, texts, strict=True) if u == t) for t in texts}
        assert mass[texts[chosen[g]]] == pytest.approx(max(mass.values()))
        differs += texts[chosen[g]] != texts[int(w.argmax())]
    assert differs, "no majority differs from the argmax: the test would say nothing"


def test_held_out_prompts_are_others(bench):
    found = bench.models.held_out(50, 7)
    assert len(set(found)) == 50
    assert not set(found) & bench.models.trained_on
    assert found == bench.models.held_out(50, 7)


def test_interval_where_all_prompts_agree_is_not_a_point():
    rng = np.random.default_rng(5)
    all_right = interval(np.ones(100), rng)
    assert all_right.estimate == all_right.high == 1
    assert 0.95 < all_right.low < 0.97
    mixed = interval((rng.random(400) < 0.3).astype(float), rng)
    assert 0.03 < mixed.half_width < 0.06


def test_page_says_where_smc_does_not_win():
    rng = np.random.default_rng(6)
    names = (samplers.PLAIN, samplers.SMC, samplers.SMC_DRAW, *{"best-of-N", "weighted majority", "beam"})
    points = []
    for terminal in samplers.TERMINALS:
        for budget in samplers.BUDGETS:
            for name in (*names, samplers.CHAIN):
                level = {"SMC, argmax": 0.8, "beam": 0.9}.get(name, 0.4)
                success = (rng.random(200) < level).astype(float)
                points.append(Point(name, terminal, budget, success, 24.0 * budget, 9.0 * budget))
    rows = [described(p, rng) for p in points if p.sampler != samplers.PLAIN or p.budget == 64]
    horizon = to_json({"horizon": 8, "points": rows, "ahead": differences(points, rng)})
    said = not_ahead([horizon])
    assert len(said) == 2
    assert all("against beam" in line for line in said)
    text = markdown({"command": "c", "not_ahead": said, "horizons": [horizon]})
    assert "against beam" in text
    assert "SP-gSMC + MH" in text
    assert success_at_tokens([horizon]).startswith("<svg")
