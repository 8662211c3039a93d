"""The statistics of an audit on exact models, reduced: the rollouts' law, coverage, bias, needed particles.

The whole is `benchmarks/audit_statistics.py`; what it is made of is imported from there.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from audit_bias import Z_MAX, bias_of, z_score
from audit_coverage import CONTROLS, Design, coverage_of
from audit_crossing import load, save
from audit_needed import Sampler, smallest
from audit_population import Population, constant, draw_rollouts, noisy, perturbed, random_trees, uneven
from audit_prediction import audited, rank, rank_correlation, ranking_verdicts, repeated_ranks
from audit_statistics import Effort, main

from rmtools.core import solve
from rmtools.exact.families import product
from rmtools.verify.theorems.output_law import signed_direction
from rmtools.verify.theorems.simulation import Setting, output_bias

# Of 60 audits; a 95% interval covers less than .85 once in 300 times, one that covers .7 hardly ever reaches it.
AUDITS, LOWEST = 60, 0.85


def frequencies(states, size):
    return np.bincount(states.ravel(), minlength=size)


def largest_z(counts, expected):
    """Of Poisson counts; cells expected less than 20 times are not looked at."""
    common = expected >= 20
    return np.max(np.abs(counts - expected)[common] / np.sqrt(expected[common]))


def test_rollouts_have_the_law_of_the_model():
    rng = np.random.default_rng(1)
    population = random_trees(3, 3, 3, 0.1, rng)
    groups, n, k, r = 3000, 2, 3, 4
    rollouts = draw_rollouts(population.roots(np.repeat(np.arange(3), groups)), n, k, r, rng)
    joined = population.joined
    total = 3 * groups * n
    for t, children in enumerate(rollouts.children):
        reach, size = joined.reach(t + 2), len(joined.log_value[t + 2])
        assert largest_z(frequencies(rollouts.path[t + 1], size), total * reach) < Z_MAX
        for child in range(k):
            assert largest_z(frequencies(children[..., child], size), total * reach) < Z_MAX
        # Every child and every completion belongs to its prefix, and is independent of the others there.
        assert np.all(np.isin(children, joined.child(t + 1)[rollouts.path[t]]))
        log_true = joined.log_true_value
        values = np.exp(log_true[t + 2][children]) - np.exp(log_true[t + 1][rollouts.path[t]])[..., None]
        completions = rollouts.extra[:, :, t] - np.exp(log_true[t + 1][rollouts.path[t]])[..., None]
        for residual in (values, completions):
            for i in range(3):
                assert abs(z_score(residual[:, 0, i])) < Z_MAX
                for j in range(i):
                    assert abs(z_score(residual[:, 0, i] * residual[:, 0, j])) < Z_MAX
        assert abs(z_score(values[:, 0, 0] * completions[:, 0, 0])) < Z_MAX


def test_the_joined_model_holds_every_prompt():
    rng = np.random.default_rng(2)
    trees = random_trees(4, 3, 2, 0.1, rng)
    chains = Population((product(3, 2.0), product(3, 0.5)))
    for population in (trees, trees.valued(perturbed(0.3, "persistent"), rng), chains):
        joined = population.joined
        np.testing.assert_allclose(np.exp(solve(joined).log_z), population.z.mean())
        np.testing.assert_allclose(joined.log_true_value[1], np.log(population.z))
        errors = np.concatenate([e.log_bellman_error[2] for e in population.exact])
        np.testing.assert_allclose(solve(joined).log_bellman_error[3], errors, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "design"), [(uneven(0.3), Design(60, 12, 8, 4)), (constant(0.47), Design(60, 6, 8, 3))]
)
def test_intervals_of_an_audit_cover_and_the_wrong_ones_do_not(value, design):
    rng = np.random.default_rng(3)
    population = random_trees(200, 3, 3, 0.1, rng).valued(value, rng)
    found = coverage_of("trees", population, design, (), AUDITS, rng)["cells"]
    judged = [name for name, cell in found.items() if cell["judged"]]
    assert {"squared ratio error", "Z", "sigma^2"} <= set(judged)
    # Of six trajectories fewer than six carry the potential: the spread of H says that it is not resolved.
    assert ("SD of H" in judged) == (design.n > 6)
    assert all(found[name]["coverage"] >= LOWEST for name in judged), found
    assert found[CONTROLS["Z"]]["coverage"] < LOWEST
    # The error of a constant is nearly the same for all prompts; the other's is not.
    if design.n > 6:
        assert found[CONTROLS["squared ratio error"]]["coverage"] < LOWEST


@pytest.mark.parametrize("count", [2, 8])
def test_estimators_are_unbiased_and_the_plug_in_is_not(count):
    rng = np.random.default_rng(4)
    tree = random_trees(1, 4, 2, 0.1, rng).valued(noisy(0.4), rng)
    scores = bias_of("tree", tree, count, 1500, rng)["z"]
    plug_in = scores.pop("plug-in (rho - 1)^2")
    assert max(map(abs, scores.values())) < Z_MAX
    assert plug_in > 2 * Z_MAX


def test_bisection_finds_where_an_error_is_small_enough():
    for scale, goal in ((3.0, 0.1), (0.5, 0.2), (40.0, 0.5)):
        found = smallest(lambda n, scale=scale: scale / np.sqrt(n), goal, 0.5)
        assert found == pytest.approx((scale / goal) ** 2, rel=0.01)
    # An error that falls otherwise than assumed: the guess is far off, the bracket moves.
    assert smallest(lambda n: 5 / n**1.5, 0.001, 0.5) == pytest.approx(5000 ** (2 / 3), rel=0.01)


def test_needed_particles_are_those_predicted_from_rollouts_and_exactly():
    rng = np.random.default_rng(5)
    population = random_trees(6, 4, 3, 0.02, rng).valued(noisy(0.5), rng)
    sampler = Sampler(population, "multinomial", 1.0, 800, 6)
    effort = Effort(0.15, 0.02, (1536,), 800, 6)
    found = audited(population, 6000, effort, rng)
    needed = smallest(lambda n: sampler.at(n).cv, effort.delta_cv, 0.5)
    assert found["n_for_cv"] / needed == pytest.approx(1, abs=0.25)
    assert population.truth["sigma^2"] / effort.delta_cv**2 / needed == pytest.approx(1, abs=0.1)
    mad = population.pooled([e.influence_mad().value for e in population.exact])
    needed = smallest(lambda n: sampler.at(n).tv, effort.delta_tv, 1.0)
    assert mad / (2 * effort.delta_tv) / needed == pytest.approx(1, abs=0.2)
    assert found["n_for_tv"] > needed  # an upper bound


def test_total_variation_is_measured_as_the_check_of_the_output_law_does():
    rng = np.random.default_rng(7)
    population = random_trees(1, 4, 2, 0.05, rng).valued(noisy(0.5), rng)
    found = Sampler(population, "multinomial", 1.0, 20_000, 8).at(30)
    direction, target, _ = signed_direction(population.models[0], 1)
    other = output_bias(population.models[0], Setting(30), 20_000, direction, target, rng)
    error = np.hypot(found.tv_error, other.controlled_error[0])
    assert abs(found.tv - other.controlled[0]) < Z_MAX * error
    assert found.tv > 10 * found.tv_error


def test_audits_rank_value_models_as_the_sampler_does():
    rng = np.random.default_rng(10)
    trees = random_trees(6, 4, 2, 0.05, rng)
    models = [(f"noise {sd}", trees.valued(noisy(sd), rng)) for sd in (0.0, 0.6, 0.3, 1.0)]
    effort = Effort(0.2, 0.02, (2400,), 400, 11)
    rows = rank(models, effort, rng)
    assert np.argsort([r["needed_cv"] for r in rows]).tolist() == [0, 2, 1, 3]
    found = ranking_verdicts(rows)
    assert found[0]["met"]
    assert "1.000" in found[0]["requirement"]
    repeats = repeated_ranks(models, rows, effort, rng)
    assert min(repeats["2400"]) >= 0.8
    # Against another order the correlation is another.
    again = repeated_ranks(models, [*rows[::-1]], effort, np.random.default_rng(12))
    assert max(again["2400"]) < 0


def test_rank_correlation_of_monotone_figures_is_one():
    x = np.array([3.0, 1.0, 2.0, 9.0])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)


def test_tables_are_read_as_they_were_written(tmp_path):
    models = random_trees(2, 3, 2, 0.1, np.random.default_rng(9)).models
    save(tmp_path / "tables.npz", list(models))
    for model, again in zip(models, load(tmp_path / "tables.npz"), strict=True):
        assert solve(again).sigma2 == solve(model).sigma2
        assert all(np.array_equal(a, b) for a, b in zip(model.log_value, again.log_value, strict=True))


def test_the_command_writes_figures_and_what_was_met(tmp_path, monkeypatch, capsys):
    out = tmp_path / "bias.json"
    small = ["--trees-only", "--audits", "1", "--groups", "100"]
    monkeypatch.setattr(sys, "argv", ["audit_statistics.py", "bias", "--out", str(out), *small])
    main()
    values = json.loads(out.read_text())
    assert [v["met"] for v in values["requirements"]] == [not v["exceptions"] for v in values["requirements"]]
    assert {row["count"] for row in values["scores"]} == {2, 4, 16}
    page = out.with_suffix(".md").read_text()
    assert page.strip() == capsys.readouterr().out.strip()
    assert "means; largest" in page
    assert all(f"| {row['model']} |" in page for row in values["rms"])
