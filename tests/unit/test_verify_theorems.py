"""`verify exact`: every check passes on the sampler as it is and fails on one that is broken on purpose."""

import dataclasses
import importlib

import numpy as np
import pytest

from rmtools.core import hidden_prefix, persistent, product, smc, solve
from rmtools.particles import resampling
from rmtools.verify.theorems import (
    CHECKS,
    algorithm2,
    bound,
    case,
    guided,
    lower,
    output_law,
    schedule,
    simulation,
    transition,
    unbiased,
    variance,
)
from rmtools.verify.theorems.instances import one_sided, small_families, tree
from rmtools.verify.theorems.runner import n_cases, verdict

metropolis = importlib.import_module(
    "rmtools.particles.metropolis"
)  # the package exports a function of this name
SHAPE = (3, 2, 0.3, 0.05, 5)


def rng(seed=0):
    return np.random.default_rng(seed)


def broken(change):
    """The sampler with its result changed."""

    def run(*args, **kwargs):
        return change(smc(*args, **kwargs))

    return run


def shifted(result):
    return dataclasses.replace(result, log_z=result.log_z + 0.05)


def flattened(result):
    """Weights forgotten: each particle counts the same."""
    n = result.log_weights.shape[1]
    return dataclasses.replace(result, log_weights=np.full_like(result.log_weights, -np.log(n)))


def noisy(result):
    noise = np.random.default_rng(1).normal(0, 0.02, result.log_z.shape)
    return dataclasses.replace(result, log_z=result.log_z + noise - 0.0002)


def test_unbiased_finds_a_factor_of_five_percent(monkeypatch):
    assert unbiased.measure("persistent", 4000, rng())["holds"]
    monkeypatch.setattr(simulation, "smc", broken(shifted))
    found = unbiased.measure("persistent", 4000, rng())
    assert not found["holds"]
    assert found["largest_z_score"] > 4.5
    assert not verdict(unbiased, [{"label": "persistent", "seconds": 1.0, **found}]).holds


@pytest.fixture(scope="module")
def fewest_runs():
    """Every small family, with the fewest runs a setting is measured with."""
    return {name: unbiased.measure(name, 1, rng()) for name in small_families()}


def test_every_setting_of_unbiased_has_enough_runs(fewest_runs):
    for name, model in small_families().items():
        found = fewest_runs[name]
        need = 400 * (solve(model).sigma2 + 1)
        assert all(row["runs"] * row["n"] >= need for row in found["settings"])
        assert len(found["settings"]) == len(unbiased.SIZES) * (
            len(unbiased.THRESHOLDS) * len(unbiased.SCHEMES) + 1
        )


def test_output_law_finds_forgotten_weights(monkeypatch):
    assert output_law.measure(SHAPE, 2, 20_000, (40,), rng())["holds"]
    monkeypatch.setattr(simulation, "smc", broken(flattened))
    assert not output_law.measure(SHAPE, 2, 20_000, (40,), rng())["holds"]


def stuck(result):
    """Every particle at leaf 0, the estimate of Z left alone."""
    at = result.particles
    return dataclasses.replace(result, particles=dataclasses.replace(at, state=np.zeros_like(at.state)))


@pytest.mark.parametrize("change", [flattened, stuck])
def test_the_witness_finds_a_law_that_the_control_hides(monkeypatch, change):
    arguments = (output_law.OTHERS["systematic, every step"], SHAPE, 4_000, (20, 40, 80), rng())
    monkeypatch.setattr(simulation, "smc", broken(change))
    found = output_law.measure_slope(*arguments)
    assert not found["holds"]
    assert max(row["witness"] for row in found["rows"]) > 4.5
    assert not output_law.measure_identity("stratified", 4_000, rng())["holds"]
    assert not bound.measure(3, 0.1, 4_000, rng())["holds"]


def test_every_scheme_weighs_its_leaves_right():
    for scheme in output_law.IDENTITY:
        assert output_law.measure_identity(scheme, 4_000, rng())["holds"]


def test_ess_triggered_settings_trigger(fewest_runs):
    setting = output_law.OTHERS["multinomial, ESS .5"]
    assert (
        output_law.measure_slope(setting, output_law.SLOPE_TREE, 2_000, (20, 40), rng())["share_resampled"]
        > 0.1
    )
    for name, found in fewest_runs.items():
        assert (found["largest_share_triggered"] > 0.02) == (name not in unbiased.NEVER_TRIGGERED)


def test_controlled_and_plain_bias_agree_and_the_controlled_is_sharper():
    model = tree(*SHAPE)
    direction, target, mad = output_law.signed_direction(model, 1)
    bias = simulation.output_bias(model, simulation.Setting(10), 40_000, direction, target, rng())
    assert abs(bias.plain - bias.controlled)[0] < 4.5 * bias.plain_error[0]
    assert bias.controlled_error[0] < bias.plain_error[0] / 2
    assert mad > 0


def test_slopes_are_those_of_a_power_law():
    rows = [{"n": n, "tv": 0.7 / n, "error": 0.01 / n} for n in (10, 20, 40)]
    slope, error = output_law.weighted_slope(rows)
    assert slope == pytest.approx(-1)
    assert 0 < error < 0.05
    assert output_law.weighted_slope([{"n": 10, "tv": -0.1, "error": 0.1}])[1] == np.inf


def test_other_settings_have_their_slope():
    found = output_law.measure_slope(
        output_law.OTHERS["systematic, every step"], SHAPE, 20_000, (20, 40, 80), rng()
    )
    assert found["slope"] == pytest.approx(-1, abs=0.15)


def test_one_sided_errors_are_exactly_epsilon():
    model = one_sided(tree(4, 2, 0.0, 0.3, 1), 0.2)
    b = solve(model).log_bellman_error
    np.testing.assert_allclose(b[0], 0, atol=1e-12)
    for layer in b[1:]:
        np.testing.assert_allclose(np.abs(layer), np.log(1.2), atol=1e-12)


def test_variance_finds_added_noise(monkeypatch):
    """5,000 runs tell the ratio to .02; the noise adds .8, the check allows .05."""
    monkeypatch.setattr(variance, "RUNS", 5_000)
    assert variance.measure("random_tree", 2, (), rng())["holds"]
    monkeypatch.setattr(simulation, "smc", broken(noisy))
    assert not variance.measure("random_tree", 2, (), rng())["holds"]


@pytest.mark.parametrize(
    "change",
    [
        broken(shifted),
        lambda root, n, m, scheme, threshold, *rest, **kept: smc(root, n, m, scheme, 1.0, *rest, **kept),
        lambda root, n, m, scheme, threshold, *rest, **kept: smc(root, n, m, scheme, 0.0, *rest, **kept),
    ],
)
def test_schedule_finds_bias_and_other_triggers(monkeypatch, change):
    monkeypatch.setattr(schedule, "N", 2_000)
    assert schedule.measure("tree T = 6", 1, 300, rng())["holds"]
    monkeypatch.setattr(simulation, "smc", change)
    assert not schedule.measure("tree T = 6", 1, 300, rng())["holds"]


def test_schedule_finds_an_output_of_another_trigger(monkeypatch):
    assert schedule.measure_tv(1, 500, 4_000, rng())["holds"]
    monkeypatch.setattr(
        schedule,
        "output_bias",
        lambda m, s, *rest: simulation.output_bias(m, dataclasses.replace(s, threshold=1.0), *rest),
    )
    assert not schedule.measure_tv(1, 500, 4_000, rng())["holds"]


def test_every_schedule_case_can_tell_and_is_decided():
    for name, pool in schedule.CASES:
        exact = solve(schedule.models()[name])
        limiting = exact.limiting_schedule(schedule.THRESHOLD, pool)
        assert limiting.decided(schedule.N / 2)
        others = exact.sigma2_pool(pool), exact.sigma2_schedule((), pool)
        assert all(abs(x / limiting.sigma2 - 1) > 0.2 for x in others)


def test_guided_finds_a_bound_that_is_too_small(monkeypatch):
    assert guided.measure_trees(rng())["violations"] == 0
    monkeypatch.setattr(guided, "sp_tv_bound", lambda depth, eps: min(1.0, 0.2 * depth * eps))
    assert not guided.measure_trees(rng())["holds"]


def test_guided_product_breaks_nothing_although_its_error_is_large():
    found = guided.measure_product(rng())
    assert found["epsilon"] == pytest.approx(1.0)
    assert found["tv"] < 1e-12


def test_bound_finds_a_number_that_does_not_suffice(monkeypatch):
    assert bound.measure(2, 0.1, 4000, rng())["holds"]
    monkeypatch.setattr(bound, "particle_bound", lambda *a: 1)
    assert not bound.measure(3, 0.1, 4000, rng())["holds"]


def test_smallest_sufficient_is_near_the_prediction():
    model = tree(3, 2, 0.3, 0.1, 3)
    predicted = solve(model).n_for_tv(0.01)
    assert predicted > 10
    assert bound.smallest_sufficient(model, 0.01, 10**6, 20_000, rng())[0] == pytest.approx(
        predicted, rel=0.15
    )


def test_algorithm2_finds_a_chain_that_accepts_everything(monkeypatch):
    space = (2, 2, 2)
    assert algorithm2.measure_balance(space, rng())["holds"]
    monkeypatch.setattr(algorithm2, "log_acceptance", lambda current, proposed: 0.0 * (proposed - current))
    found = algorithm2.measure_balance(space, rng())
    assert found["balance"] > 1e-6
    assert not found["holds"]


def test_algorithm2_at_its_bounds():
    found = algorithm2.measure(algorithm2.TREES[0], 1000, rng())
    assert found["holds"]
    assert found["tv"] < 4 * found["noise"]
    assert found["factor"] > 1
    assert found["smallest_mh_steps"] > 0


@pytest.mark.parametrize("log_acceptance", [0.0, -np.inf], ids=["all", "none"])
def test_algorithm2_needs_its_acceptance(monkeypatch, log_acceptance):
    """With it a call holds: `test_algorithm2_at_its_bounds`. Without, TV is .17 and .2 with a noise of .03; delta is .1."""
    monkeypatch.setattr(
        metropolis, "log_acceptance", lambda current, proposed: np.full_like(proposed, log_acceptance)
    )
    monkeypatch.setattr(algorithm2, "cheapest", lambda model, chains, rng: (1, 1))
    assert not algorithm2.measure(algorithm2.TREES[0], 500, rng())["holds"]


def test_enumerated_runs_by_hand():
    """One step, two branches, M = 2: pools (0,0), (0,1), (1,0), (1,1), each with two choices."""
    model = product(1, 3.0)
    q, z, leaf = algorithm2.enumerate_runs(model, 2)
    assert len(q) == 8
    assert q.sum() == pytest.approx(1)
    assert sorted(set(z.round(12))) == [1.0, 2.0, 3.0]
    assert q[leaf == 1].sum() == pytest.approx(0.25 + 0.5 * 0.75)


def test_lower_finds_another_rate(monkeypatch):
    assert lower.exact_hidden(2.0, rng())["holds"]
    assert lower.exact_needle(2, rng())["holds"]
    assert lower.measured_hidden(2.0, (3, 4), "systematic", 2e6, rng())["holds"]
    monkeypatch.setattr(lower, "hidden_prefix", lambda m, ratio: hidden_prefix(m, ratio**1.5))
    assert not lower.exact_hidden(2.0, rng())["holds"]


def test_transition_finds_another_rate(monkeypatch):
    arguments = ("constant", 0.5, (8, 12, 16, 24, 32), 1e5, 1000, rng())
    found = transition.measure(*arguments)
    assert found["holds"]
    assert found["measured_points"] < found["fitted_points"]
    monkeypatch.setattr(transition, "persistent", lambda t, eps: persistent(t, 1.3 * eps))
    assert not transition.measure(*arguments)["holds"]


def test_transition_finds_a_sampler_that_disagrees(monkeypatch):
    monkeypatch.setattr(simulation, "smc", broken(lambda r: dataclasses.replace(r, log_z=2 * r.log_z)))
    assert not transition.measure("scaled", 2.0, (8, 16, 32), 1e6, 5000, rng())["holds"]


def test_transition_is_linear_for_small_errors():
    found = transition.measure("scaled", 1.0, (16, 32, 64, 128, 256), 0.0, 0, rng())
    assert found["slope"] == pytest.approx(1, abs=0.1)
    assert found["measured_points"] == 0


def test_horizons_reach_the_asymptote():
    for eps in transition.CONSTANT:
        late = [t for t in transition.horizons_for(eps) if t * np.log1p(eps) >= transition.ASYMPTOTE]
        assert len(late) >= 4
        assert max(late) == 256


def test_a_case_depends_on_its_label_and_seed_only():
    draw = case.Case("a", lambda rng: {"x": rng.random()})
    assert draw.measure(0, "check") == draw.measure(0, "check")
    assert draw.measure(0, "check") != draw.measure(1, "check")
    assert draw.measure(0, "check")["x"] != dataclasses.replace(draw, label="b").measure(0, "check")["x"]


@pytest.mark.parametrize("quick", [True, False])
def test_labels_are_unique_and_cases_counted(quick):
    labels = [(check.NAME, c.label) for check in CHECKS for c in check.cases(quick)]
    assert len(set(labels)) == len(labels) == n_cases(quick)


def square_root(log_weights, n_out, rng, weights=None):
    return resampling.multinomial(log_weights / 2, n_out, rng)


def test_a_sampler_that_does_not_converge_fails_and_does_not_run_on(monkeypatch):
    monkeypatch.setitem(resampling.RESAMPLING, "multinomial", square_root)
    found = bound.measure(2, 0.02, 2000, rng())
    assert not found["holds"]


def test_a_total_variation_that_never_crosses_is_no_rate(monkeypatch):
    monkeypatch.setattr(lower, "hidden_tv", lambda *args: 0.5)
    found = lower.measured_hidden(2.0, (5, 6), "systematic", 1e6, rng())
    assert not found["holds"]
    assert np.isnan(found["rate"])
