"""Laws of the sampler on a language model: sampled against enumerated, stepwise against one-shot, Z-hat against Z.

What the output's law is measured with, and a larger run of it, is `benchmarks/lm_law.py`.
"""

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import lm_law_parts as parts
from lm_output import (
    exact_draws,
    influence_signs,
    mean_and_error,
    noise_floor,
    on_language_model,
    on_table,
    run,
    split_tv,
    total_variation,
    witness,
    z_score,
)

from rmtools.core import solve
from rmtools.data.collect import Branching, Collector
from rmtools.lm.enumerate import tabulate
from rmtools.lm.generate import generate_once
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.value import ConstantValue
from rmtools.particles.smc import smc
from rmtools.particles.tilt import Tilt
from rmtools.verify.language_model import VerificationSize, repeated_runs, verify_lm
from rmtools.verify.law import chi_square, path_test
from rmtools.verify.theorems.simulation import Setting


def path_p_value(paths, table, covered):
    """Chi-square of sampled paths against the table, paths outside it in one cell, rare cells pooled."""
    n = len(paths)
    index = {tuple(p): i for i, p in enumerate(table.paths)}
    observed = np.zeros(len(index) + 1)
    for p in paths:
        observed[index.get(tuple(p), len(index))] += 1
    expected = n * np.append(covered, table.uncovered)
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert len(expected) > 20
    return stats.chisquare(observed, expected * n / expected.sum()).pvalue


@pytest.fixture(scope="module")
def enumerated(policy, value, task, prompts):
    """A prompt's 5,832 well-formed solutions with their probabilities under the policy."""
    prompt = prompts[2]
    table = tabulate(policy, value, prompt, task.step_choices(prompt, []), task.reward, 0.0)
    ids = policy.steps.prompt_ids(prompt)
    given = torch.tensor([ids + [i for s in p for i in policy.steps.step_ids(s)] for p in table.paths])
    with torch.inference_mode():
        each = torch.log_softmax(policy.model(input_ids=given).logits.double(), -1)
    log_p = each[:, :-1].gather(2, given[:, 1:, None])[:, len(ids) - 1 :, 0].sum(1).numpy()
    assert np.exp(log_p).sum() + table.uncovered == pytest.approx(1, abs=1e-5)
    assert 0.005 < table.uncovered < 0.2
    return prompt, table, np.exp(log_p)


@pytest.mark.parametrize("n_groups", [1, 40])
def test_paths_of_the_sampler_have_the_enumerated_law(policy, value, task, enumerated, n_groups):
    """(a) 8,000 trajectories without resampling, as one group and as 40 replicates."""
    prompt, table, covered = enumerated
    root = LMParticles.start(policy, value, [prompt] * n_groups, terminal="verifier", reward=task.reward)
    result = smc(root, 8000 // n_groups, 1, "none", 0.0, np.random.default_rng(11))
    assert path_p_value([p for g in result.particles.steps() for p in g], table, covered) > 1e-3


def test_paths_of_the_collector_have_the_enumerated_law(policy, task, enumerated):
    """(a) 6,000 rollouts that fork children and completions on the way."""
    prompt, table, covered = enumerated
    rows = Collector(policy, task, Branching(6000, 2, 1), np.random.default_rng(12)).collect([prompt])
    assert path_p_value([r.steps for r in rows], table, covered) > 1e-3


def test_paths_with_value_blind_resampling_keep_their_law(policy, task, step_tokenizer, enumerated):
    """Selection by index alone (repeats, drops, reordering) does not change what follows."""
    prompt, table, covered = enumerated
    rng = np.random.default_rng(13)
    particles = LMParticles.start(policy, ConstantValue(0.5, step_tokenizer, Tilt(0.05)), [prompt] * 8000)
    for _ in range(task.horizon):
        particles = particles.extend(3, rng)
        particles = particles.select(rng.integers(3, size=(8000, 1)))
    assert path_p_value([p for g in particles.steps() for p in g], table, covered) > 1e-3


@pytest.mark.slow
def test_stepwise_and_one_shot_sampling_are_well_formed_alike(policy, value, task):
    """(b) A hot policy whose steps are ragged, N = 256 in one batch: shares within .02 on 6,144 samples each."""
    hot = Policy(policy.model, policy.steps, 1.3)
    rng = np.random.default_rng(21)
    prompts = task.prompts(24 * 256, rng)[0]
    once, stepwise = [], []
    for i in range(0, len(prompts), 256):
        batch = prompts[i : i + 256]
        found, _ = generate_once(hot, batch, 3 * 6 + 1, rng)
        # One-shot text goes on until the end token; the horizon closes a solution.
        once += [task.well_formed(s[: task.horizon]) for s in found]
        root = LMParticles.start(hot, value, batch)
        steps = [g[0] for g in smc(root, 1, 1, "none", 0.0, rng).particles.steps()]
        stepwise += [task.well_formed(s) for s in steps]
        lengths = {len(hot.steps.step_ids(x)) for s in steps for x in s}
        assert len(lengths) > 1, "no ragged step: the test would say nothing"
    assert 0.3 < np.mean(stepwise) < 0.95
    assert abs(np.mean(once) - np.mean(stepwise)) < 0.02


def test_stepwise_and_one_shot_success_agree(policy, value, task, prompts):
    """(b) The same for the share of right solutions on one prompt, 4,096 samples each."""
    rng = np.random.default_rng(22)
    prompt = prompts[3]
    once = [s for _ in range(16) for s in generate_once(policy, [prompt] * 256, 20, rng)[0]]
    root = LMParticles.start(policy, value, [prompt])
    steps = smc(root, 4096, 1, "none", 0.0, rng).particles.steps()[0]
    a, b = (np.mean([task.reward(prompt, s[: task.horizon]) for s in x]) for x in (once, steps))
    assert 0.05 < b < 0.95
    assert abs(a - b) < 4.5 * np.sqrt(2 * b * (1 - b) / 4096)


@pytest.fixture(scope="module")
def cool(policy):
    """Cool enough that nearly all of its mass is in the table."""
    return Policy(policy.model, policy.steps, 0.5)


def exact_z(table, tilt):
    """Z with the mass outside the table at the potential of a wrong solution."""
    return (1 - table.uncovered) * np.exp(solve(table.model).log_z) + table.uncovered * tilt.floor


@pytest.mark.parametrize("which", [1, 3])
def test_z_hat_is_unbiased_with_the_predicted_variance(cool, value, task, prompts, which):
    """(c) Multinomial resampling at every step, 3,000 runs of N = 64: mean within 4.5 SE, N Var / Z^2 within 20%.

    The tolerance: sigma^2 is the limit of N Var / Z^2, its relative error at N = 64 is of order sigma^2 / N (here
    up to 10%), and 3,000 runs measure a variance to about 5%.
    """
    prompt, n, runs = prompts[which], 64, 3000
    table = tabulate(cool, value, prompt, task.step_choices(prompt, []), task.reward, 0.0)
    assert table.uncovered < 1e-3
    z, sigma2 = exact_z(table, value.tilt), solve(table.model).sigma2
    assert sigma2 > 1
    z_hat = np.exp(repeated_runs(cool, value, task, prompt, n, runs, np.random.default_rng(31 + which)))
    assert len(z_hat) == runs
    assert abs(z_hat.mean() - z) < 4.5 * z_hat.std(ddof=1) / np.sqrt(runs)
    assert n * z_hat.var(ddof=1) / z**2 == pytest.approx(sigma2, rel=0.2)


def test_z_hat_is_unbiased_with_pools_and_adaptive_resampling(cool, value, task, prompts):
    """(c) Pools of 3, systematic resampling by ESS, 2,000 replicates in one batch."""
    prompt, runs = prompts[1], 2000
    table = tabulate(cool, value, prompt, task.step_choices(prompt, []), task.reward, 0.0)
    root = LMParticles.start(cool, value, [prompt] * runs, terminal="verifier", reward=task.reward)
    z_hat = np.exp(smc(root, 6, 3, "systematic", 0.6, np.random.default_rng(41)).log_z)
    assert abs(z_hat.mean() - exact_z(table, value.tilt)) < 4.5 * z_hat.std(ddof=1) / np.sqrt(runs)


def test_verify_lm_pools_prediction_and_measurement(cool, value, task, prompts):
    told = []
    found = verify_lm(
        cool, value, task, prompts[:3], VerificationSize(2, 400), np.random.default_rng(5), told.append
    )
    assert sum(told) == len(found.prompts) == 2
    assert all(p.n_particles >= max(64, 5 * p.sigma2_predicted) for p in found.prompts)
    assert all(abs(p.mean_z_ratio - 1) < 4.5 * p.mean_z_ratio_se + p.uncovered for p in found.prompts)
    z2 = np.asarray([p.z for p in found.prompts]) ** 2
    assert found.predicted == pytest.approx(
        np.sum(z2 * [p.sigma2_predicted for p in found.prompts]) / z2.sum()
    )
    assert 0.5 < found.ratio.low < found.ratio.estimate < found.ratio.high < 2
    assert "pooled: predicted" in str(found)


@pytest.mark.parametrize("which", [0, 1, 3])
def test_decoding_agrees_with_the_table_on_several_prompts(policy, task, prompts, which):
    """Paths of 4,000 rollouts against enumerated probabilities; those of a hotter policy do not pass."""
    prompt, rng = prompts[which], np.random.default_rng([51, which])
    assert path_test(policy, task, prompt, task.horizon, 4000, rng)["p_value"] > 1e-3
    table = tabulate(
        policy,
        ConstantValue(0.5, policy.steps, Tilt(0.01)),
        prompt,
        task.step_choices(prompt, []),
        task.reward,
        1e-4,
    )
    hot = Policy(policy.model, policy.steps, 1.2)
    rows = Collector(hot, task, Branching(4000), rng).collect([prompt])
    assert path_p_value([r.steps for r in rows], table, table.path_probability) < 1e-6


@pytest.fixture(scope="module")
def table(cool, value, task, prompts):
    """A prompt with sigma^2 = 5.4: its 214 likeliest solutions, all but .001 of the mass."""
    return tabulate(cool, value, prompts[1], task.step_choices(prompts[1], []), task.reward, 1e-4)


@pytest.fixture(scope="module")
def subject(cool, value, task, table):
    return on_language_model(cool, value, table, task.reward)


def test_the_enumerated_law_is_one_law_on_the_model_and_on_its_table(subject, table, value):
    assert subject.target.sum() == pytest.approx(1, abs=1e-9)
    assert subject.policy.sum() == pytest.approx(1, abs=1e-9)
    assert total_variation(subject.target[:-1], on_table(table).target) < table.uncovered
    # The table scales each step's law to one, the other Z leaves the mass outside where it is.
    assert math.exp(subject.log_z) == pytest.approx(exact_z(table, value.tilt), rel=table.uncovered)
    assert 1e-4 < table.uncovered < 5e-3


@pytest.mark.parametrize(("pool", "n"), [(1, 64), (2, 64), (4, 32)])
def test_output_of_pools_is_mad_over_2n_from_the_target(subject, pool, n):
    """3,000 runs; 15% for the terms of order 1/N^2, as everywhere the prediction is judged."""
    found = run(subject, Setting(n, pool), 3000, np.random.default_rng([61, pool]))
    signs, mad = influence_signs(subject, pool)
    plain, controlled = found.bias(subject.target)
    tv, error = mean_and_error(0.5 * controlled @ signs)
    predicted = mad / (2 * n)
    assert tv > 4.5 * error  # the bias is resolved
    assert abs(tv - predicted) < 0.15 * predicted + 4.5 * error
    uncontrolled, its_error = mean_and_error(0.5 * plain @ signs)
    assert abs(uncontrolled - predicted) < 0.15 * predicted + 4.5 * its_error
    # Signs that one half chooses find as much, and no more.
    halves, halves_error = split_tv(controlled)
    assert abs(halves - tv) < 0.15 * predicted + 4.5 * math.hypot(error, halves_error)
    assert abs(z_score(found.ratio)) < 4.5
    largest, cells = witness(found, subject, n)
    assert cells >= 10
    assert largest < 4.5
    counted = np.bincount(found.drawn, minlength=len(subject.target)) / len(found.drawn)
    floor = noise_floor(subject.target, len(found.drawn), np.random.default_rng(1))[1]
    assert total_variation(counted, subject.target) < 1.15 * predicted + floor


def test_metropolis_brings_the_output_nearer_with_every_doubling(subject):
    rows = [{"prompt": 1, **r} for r in parts.metropolis_chains(subject, 2000, np.random.default_rng(62))]
    assert [r["mh_steps"] for r in rows] == 2 * [0, 1, 2, 4, 8]
    assert parts.metropolis_exceptions(rows) == []
    # The judge does object where distances grow.
    reversed_rows = [{**r, "mh_steps": s["mh_steps"]} for r, s in zip(rows[:5][::-1], rows, strict=False)]
    assert len(parts.metropolis_exceptions(reversed_rows)) > 2


def test_particle_gibbs_keeps_the_target_from_an_exact_draw(subject):
    rows = [{"prompt": 1, **r} for r in parts.gibbs(subject, 1000, np.random.default_rng(63))]
    assert parts.gibbs_exceptions(rows) == []
    assert [r["control"] for r in rows] == 8 * [False] + [True]
    assert all(r["cells"] > 10 for r in rows)


def test_exact_draws_have_the_law_of_the_target(subject):
    path = exact_draws(subject.start(2000), 110, np.random.default_rng(64))
    assert [level.shape for level in path] == 4 * [(2000, 1)]
    cells = subject.cells(path[-1])[:, 0]
    assert len({*cells}) > 20
    counts = np.bincount(cells, minlength=len(subject.target)).astype(float)
    assert chi_square(counts, 2000 * subject.target)["p_value"] > 1e-4
    assert chi_square(counts, 2000 * subject.policy)["p_value"] < 1e-6
    # What runs ends in distance zero, by frequencies and by halves.
    each = np.eye(len(subject.target))[cells] - subject.target
    tv, error = split_tv(each)
    assert abs(tv) < 4.5 * error
    assert (
        total_variation(counts / 2000, subject.target)
        < noise_floor(subject.target, 2000, np.random.default_rng(2))[1]
    )
    with pytest.raises(ValueError, match="no solution of 1 was kept"):
        exact_draws(subject.start(200), 1, np.random.default_rng(65))


def test_halves_find_a_distance_that_is_known():
    rng, p = np.random.default_rng(66), np.asarray([0.5, 0.3, 0.15, 0.05])
    q = np.asarray([0.4, 0.3, 0.2, 0.1])
    each = np.eye(4)[rng.choice(4, size=20_000, p=q)] - p
    tv, error = split_tv(each)
    assert abs(tv - total_variation(p, q)) < 4.5 * error
    assert error < 0.01


@pytest.mark.slow
def test_the_default_setting_converges_as_one_over_n(subject, table):
    """The slope on the table, and the decoding as far from its target as the table at small N."""
    runs = 20_000
    default = Setting(0, 1, "systematic", 0.5)
    rows = {
        n: parts.measured(
            on_table(table), dataclasses.replace(default, n=n), runs, None, np.random.default_rng(n)
        )
        for n in (8, 16, 64, 128, 256, 512)
    }
    slope, error = parts.slope(list(rows.values()))
    assert error < 0.05
    assert abs(slope + 1) < 0.15
    for n in (8, 16):
        row = parts.measured(
            subject, dataclasses.replace(default, n=n), 4000, None, np.random.default_rng([67, n])
        )
        assert abs(row["tv"] - rows[n]["tv"]) < 4.5 * math.hypot(row["tv_error"], rows[n]["tv_error"])
        assert row["tv"] > 4.5 * row["tv_error"]
        assert abs(row["z"]) < 4.5
        assert row["witness"] < 4.5


def test_a_policy_that_is_not_the_tables_is_seen(policy, value, task, table):
    """The check of every cell, on decoding at .6 where the table was made at .5; Z hardly differs."""
    warmer = Policy(policy.model, policy.steps, 0.6)
    wrong = on_language_model(warmer, value, table, task.reward)
    found = run(wrong, Setting(32), 2000, np.random.default_rng(68))
    assert witness(found, wrong, 32)[0] > 4.5
