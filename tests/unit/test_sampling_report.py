"""The printed report: how often the sampler resampled; intervals over prompts, also where all prompts agree."""

import json

import numpy as np
import pytest
from scipy import stats

from rmtools.sampling.report import intervals, resampling, runs_of
from rmtools.sampling.sample_prompts import sample_prompts, settings_for


def records(*prompts):
    return [{"prompt": p} for p in prompts]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_prompts_that_agree_leave_an_exact_bound(value):
    """That of a binomial with as many trials as prompts; a prompt that occurs twice is one."""
    found = intervals(records("a", "b", "c", "d", "d"), {"draw": [value] * 5})["draw"]
    exact = stats.binomtest(int(4 * value), 4).proportion_ci(0.95, "exact")
    assert (found.estimate, found.low, found.high) == pytest.approx((value, exact.low, exact.high))


def test_prompts_that_differ_are_resampled():
    found = intervals(records(*map(str, range(100))), {"draw": [float(i < 40) for i in range(100)]})["draw"]
    assert found.estimate == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4 - 1.96 * 0.049, abs=0.02)
    assert found.high == pytest.approx(0.4 + 1.96 * 0.049, abs=0.02)


@pytest.mark.parametrize(
    "given",
    [
        {"n_particles": 8},
        {"n_particles": 6, "pool_size": 2, "ess_threshold": 1.0, "resampling": "multinomial"},
        {"n_particles": 5, "ess_threshold": 0.0},
        {"n_particles": 5, "resampling": "none"},
        {"n_particles": 4, "mh_steps": 2, "ess_threshold": 0.9},
    ],
)
def test_resampled_steps_are_counted_as_the_runs_had_them(uneven, value, prompts, task, given):
    """Also where solutions are of uneven lengths: resampling may drop the longest, or all that are not finished."""
    results = []
    settings = settings_for(None, terminal="verifier", **given)
    found = sample_prompts(
        uneven,
        value,
        prompts[:6],
        settings,
        np.random.default_rng(4),
        task.reward,
        watch=lambda _, result: results.append(result),
    )
    records = [json.loads(json.dumps(record)) for record in found]
    for g, record in enumerate(records):
        for i, run in enumerate(runs_of(record)):
            live, resampled = results[i].live[:, g], results[i].resampled[:, g]
            assert run["resampled"] == resampled[live].tolist()
    (line,) = resampling(records)
    total = sum(result.resampled.sum() for result in results)
    assert (f"at {total} of" in line) == (total > 0) != ("importance sampling" in line)


@pytest.mark.parametrize("algorithm", ["beam", "sp-gsmc", "gibbs"])
def test_no_line_where_the_settings_say_how_it_resamples(policy, value, prompts, algorithm):
    settings = settings_for(algorithm)
    assert (
        resampling(list(sample_prompts(policy, value, prompts[:1], settings, np.random.default_rng(0)))) == []
    )
