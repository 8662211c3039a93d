import itertools
import json
import math

import numpy as np
import pytest

from rmtools.codec import from_json, to_json
from rmtools.core import FiniteModel, solve
from rmtools.errors import UserError
from rmtools.stats.bootstrap import Interval
from rmtools.stats.empirical_sigma2 import MeasuredSigma2, measured_sigma2
from rmtools.stats.influence import InfluenceSD, influence_estimator, influence_sd
from rmtools.stats.sigma2 import (
    Sigma2,
    n_for_cv,
    n_for_tv,
    sigma2,
    sigma2_estimator,
    sigma2_parts,
    value_square_estimate,
)

# A tree of two steps, written out: first branch, then leaf given branch; nothing symmetric.
FIRST = np.array([0.25, 0.75])
SECOND = np.array([[0.5, 0.5], [0.75, 0.25]])
PHI = np.array([[0.1, 1.0], [0.6, 0.2]])
V0, V1 = 0.7, np.array([0.8, 0.3])
TRUE_1 = (SECOND * PHI).sum(axis=1)
Z = float(FIRST @ TRUE_1)
REACH_1 = float(FIRST @ V1)  # E[V(s_1)]


def exact_numerator(second, v1):
    """A from its definition: sum over t of E[V_{t-1}] E[V*(s_t)^2 / V(s_{t-1})]."""
    true_1 = (second * PHI).sum(axis=1)
    return float(FIRST @ true_1**2 + (FIRST @ v1) * (FIRST @ ((second * PHI**2).sum(axis=1) / v1)))


def outcomes(second):
    """(probability, branch, leaf, one extra completion) of a trajectory with R = 2."""
    for s, leaf, extra in itertools.product((0, 1), repeat=3):
        yield FIRST[s] * second[s, leaf] * second[s, extra], s, leaf, extra


def exhaustive(n, second, v1, end_of_branch=None):
    """Expected numerator and z_square over every sample of n trajectories."""
    total = np.zeros(3)
    for sample in itertools.product(outcomes(second), repeat=n):
        p = math.prod(row[0] for row in sample)
        branch, leaf, extra = (np.array([row[k] for row in sample]) for k in (1, 2, 3))
        phi, phi_extra = PHI[branch, leaf], PHI[branch, extra]
        square = np.full((n, 3), np.nan)
        square[:, 1] = value_square_estimate(np.stack([phi, phi_extra], axis=1))
        square[:, 2] = phi**2
        if end_of_branch is not None:
            square[branch == end_of_branch, 1] = phi[branch == end_of_branch] ** 2
        log_value = np.log(np.stack([np.full(n, V0), v1[branch], phi], axis=1))
        parts = sigma2_parts(log_value, square, phi)
        total += p * np.array([1.0, parts.numerator, parts.z_square])
    return total


@pytest.mark.parametrize("n", [2, 3])
def test_numerator_and_z_square_are_unbiased_by_enumeration(n):
    total, numerator, z_square = exhaustive(n, SECOND, V1)
    assert total == pytest.approx(1, abs=1e-12)
    assert numerator == pytest.approx(exact_numerator(SECOND, V1), abs=1e-12)
    assert z_square == pytest.approx(Z**2, abs=1e-12)


def test_ended_prefixes_are_absorbing_in_the_numerator():
    """Branch 1 ends after its first step: one leaf, the value its phi, V*^2 = phi^2."""
    second, v1 = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0.8, PHI[1, 0]])
    _, numerator, _ = exhaustive(2, second, v1, end_of_branch=1)
    assert numerator == pytest.approx(exact_numerator(second, v1), abs=1e-12)


def test_exact_numerator_is_that_of_the_finite_model():
    model = FiniteModel([FIRST[None], SECOND], [np.log([V0]), np.log(V1), np.log(PHI.ravel())])
    exact = solve(model)
    assert exact.sigma2 == pytest.approx(exact_numerator(SECOND, V1) / Z**2 - 2, abs=1e-12)


@pytest.mark.parametrize("r", [2, 3, 5])
def test_value_square_is_unbiased_by_enumeration(r):
    p, phi = np.array([0.2, 0.5, 0.3]), np.array([0.1, 0.4, 1.0])
    rows = np.array(list(itertools.product(range(3), repeat=r)))
    assert p[rows].prod(axis=1) @ value_square_estimate(phi[rows]) == pytest.approx((p @ phi) ** 2, abs=1e-12)


def test_value_square_by_hand_and_masked():
    phi = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, np.nan], [1.0, np.nan, np.nan]])
    present = ~np.isnan(phi)
    found = value_square_estimate(phi, present)
    np.testing.assert_allclose(found[:2], [(2 + 4 + 8) / 3, 2.0])
    assert math.isnan(found[2])
    with pytest.raises(UserError, match=r"potentials\[1, 2\] is NaN"):
        value_square_estimate(phi)
    with pytest.raises(UserError, match="shape"):
        value_square_estimate(phi, present[:2])


def trajectories(n, rng, n_extra=2):
    """n trajectories of the tree: log_value (n, 3), phi (n,), extra completions of s_1 (n, n_extra)."""
    branch = (rng.random(n) < FIRST[1]).astype(int)
    leaves = (rng.random((n, 1 + n_extra)) < SECOND[branch, 1][:, None]).astype(int)
    phi = PHI[branch[:, None], leaves]
    log_value = np.log(np.stack([np.full(n, V0), V1[branch], phi[:, 0]], axis=1))
    return log_value, phi[:, 0], phi[:, 1:]


def parts_of(log_value, phi, extra):
    square = np.stack([phi * 0, value_square_estimate(np.column_stack([phi, extra])), phi**2], axis=1)
    return sigma2_parts(log_value, square, phi)


def test_left_out_parts_are_parts_of_the_rest():
    log_value, phi, extra = trajectories(7, np.random.default_rng(0))
    parts = parts_of(log_value, phi, extra)
    assert (parts.n, parts.n_terms) == (7, 2)
    for i in range(7):
        rest = parts_of(*(np.delete(a, i, axis=0) for a in (log_value, phi, extra)))
        assert parts.left_out_numerator[i] == pytest.approx(rest.numerator, rel=1e-12)
        assert parts.left_out_z_square[i] == pytest.approx(rest.z_square, rel=1e-12)


def test_sigma2_ignores_a_constant_per_depth():
    log_value, phi, extra = trajectories(50, np.random.default_rng(1))
    plain = parts_of(log_value, phi, extra)
    moved = parts_of(log_value + np.array([300.0, -200.0, 0.0]), phi, extra)
    assert moved.numerator == pytest.approx(plain.numerator, rel=1e-12)


def test_sigma2_of_one_prompt_is_its_jackknife():
    log_value, phi, extra = trajectories(40, np.random.default_rng(2))
    parts = parts_of(log_value, phi, extra)
    result = sigma2(parts)
    assert result.ratio == pytest.approx(parts.numerator / parts.z_square - 2, rel=1e-12)
    left_out = parts.left_out_numerator / parts.left_out_z_square - 2
    assert result.estimate.estimate == pytest.approx(40 * result.ratio - 39 * left_out.mean(), rel=1e-9)
    assert result.resolved
    assert from_json(Sigma2, json.loads(json.dumps(to_json(result), allow_nan=False))) == result


def test_pooled_sigma2_by_hand():
    rng = np.random.default_rng(3)
    parts = [parts_of(*trajectories(20, rng)) for _ in range(30)]
    pooled = sigma2_estimator(parts).bootstrap(np.random.default_rng(4), 200)
    numerator = sum(p.numerator - 2 * p.z_square for p in parts)
    assert pooled.estimate.estimate == pytest.approx(numerator / sum(p.z_square for p in parts), rel=1e-12)
    assert pooled.z_square.estimate == pytest.approx(np.mean([p.z_square for p in parts]), rel=1e-12)
    assert (pooled.n_prompts, pooled.n_trajectories, pooled.resolved) == (30, 600, True)
    one = sigma2_estimator(parts[:1]).bootstrap(rng)
    assert one.estimate.low is None
    assert not one.resolved
    with pytest.raises(UserError, match="no prompt"):
        sigma2_estimator([]).bootstrap(rng)


def test_no_success_is_not_resolved():
    phi = np.zeros(10)
    parts = sigma2_parts(np.zeros((10, 3)), np.zeros((10, 3)), phi)
    result = sigma2(parts)
    assert math.isnan(result.ratio)
    assert not result.resolved
    json.dumps(to_json(result), allow_nan=False)
    again = from_json(Sigma2, json.loads(json.dumps(to_json(result))))
    assert math.isnan(again.ratio)
    rare = np.array([1.0] + [0.0] * 9)  # one success: no pair of distinct successes, Z^2 estimated as 0
    assert not sigma2(sigma2_parts(np.zeros((10, 2)), np.stack([rare, rare], axis=1), rare)).resolved


def test_two_trajectories_have_parts_but_no_jackknife():
    parts = parts_of(*trajectories(2, np.random.default_rng(5)))
    assert math.isfinite(parts.numerator)
    assert np.isnan(parts.left_out_numerator).all()
    assert sigma2(parts).estimate.low is None


def test_bad_trajectories_are_named():
    good, phi = np.zeros((4, 3)), np.ones(4)
    bad = good.copy()
    bad[2, 1] = np.nan
    with pytest.raises(UserError, match=r"log_value\[2, 1\] is NaN"):
        sigma2_parts(bad, good, phi)
    with pytest.raises(UserError, match=r"value_square\[2, 1\] is NaN"):
        sigma2_parts(good, bad, phi)
    with pytest.raises(UserError, match=r"potential\[0\] is NaN"):
        sigma2_parts(good, good, phi * np.nan)
    bad[2, 1] = -np.inf
    with pytest.raises(UserError, match=r"log_value\[2, 1\] is -inf"):
        sigma2_parts(bad, good, phi)
    with pytest.raises(UserError, match="1 trajectories"):
        sigma2_parts(good[:1], good[:1], phi[:1])
    with pytest.raises(UserError, match="shape"):
        sigma2_parts(good, good[:, :2], phi)
    last = good.copy()
    last[:, 2] = -np.inf  # the log potential of a failure with f = 0 is not read
    assert math.isfinite(sigma2_parts(last, good, phi).numerator)


def test_particle_counts():
    assert n_for_cv(2.0, 0.1) == pytest.approx(200)
    assert n_for_tv(3.0, 0.05) == pytest.approx(30)
    for count in (n_for_cv, n_for_tv):
        with pytest.raises(UserError, match="delta"):
            count(1.0, 0.0)


def exact_influence():
    """Mean, variance and mean absolute deviation of H under the target, from the four paths."""
    h = TRUE_1[:, None] / Z + PHI * REACH_1 / (V1[:, None] * Z)  # h_1 with V(s_0) = E V(s_0)
    target = FIRST[:, None] * SECOND * PHI / Z
    mean = float((target * h).sum())
    return mean, float((target * (h - mean) ** 2).sum()), float((target * np.abs(h - mean)).sum())


def test_influence_of_the_whole_population_is_exact():
    """Every path and pair of completions as often as it is probable: the plug-in is the exact figure."""
    rows = []
    for s, leaf, a, b in itertools.product((0, 1), repeat=4):
        multiplicity = FIRST[s] * SECOND[s, leaf] * SECOND[s, a] * SECOND[s, b] * 256
        assert multiplicity == round(multiplicity)
        rows += [(s, leaf, a, b)] * round(multiplicity)
    s, leaf, a, b = np.array(rows * 100).T
    phi = PHI[s, leaf]
    log_value = np.log(np.stack([np.full(len(s), V0), V1[s], phi], axis=1))
    extra = np.full((len(s), 2, 2), np.nan)
    extra[:, 1] = np.stack([PHI[s, a], PHI[s, b]], axis=1)
    result = influence_sd(log_value, phi, extra)
    mean, variance, mad = exact_influence()
    assert result.mean == pytest.approx(mean, rel=1e-12)
    assert result.variance.estimate == pytest.approx(
        variance, rel=1e-3
    )  # the jackknife moves it by order 1/n
    assert result.sd.estimate == pytest.approx(math.sqrt(variance), rel=1e-3)
    assert result.mad_plug_in > mad  # of two noisy completions: biased upward
    assert mad < math.sqrt(variance)


def test_influence_matches_the_finite_model():
    mean, _, mad = exact_influence()
    model = FiniteModel([FIRST[None], SECOND], [np.log([V0]), np.log(V1), np.log(PHI.ravel())])
    assert solve(model).sigma2 == pytest.approx(mean - 2, abs=1e-12)
    assert solve(model).influence_mad().value == pytest.approx(mad, abs=1e-12)


def test_influence_of_ended_prefixes_is_phi():
    rng = np.random.default_rng(6)
    log_value, phi, extra = trajectories(30, rng)
    ended = np.zeros((30, 2), dtype=bool)
    ended[::3, 1] = True
    filled = np.zeros((30, 2, 2))
    filled[:, 1] = np.where(ended[:, 1:], phi[:, None], extra)
    expected = influence_sd(log_value, phi, filled)
    filled[ended] = np.nan
    present = np.broadcast_to(~ended[:, :, None], (30, 2, 2))
    found = influence_sd(log_value, phi, filled, present, ended)
    assert found.variance.estimate == pytest.approx(expected.variance.estimate, rel=1e-10)
    assert found.mean == pytest.approx(expected.mean, rel=1e-12)
    with pytest.raises(UserError, match=r"trajectory 0 .* prefix 1"):
        influence_sd(log_value, phi, filled, present)


def test_influence_refuses_bad_input_and_round_trips():
    rng = np.random.default_rng(7)
    log_value, phi, extra = trajectories(10, rng, n_extra=3)
    full = np.stack([extra * np.nan, extra], axis=1)
    result = influence_sd(log_value, phi, full)
    assert from_json(InfluenceSD, json.loads(json.dumps(to_json(result), allow_nan=False))) == result
    full[4, 1, 2] = np.nan
    with pytest.raises(UserError, match=r"extra\[4, 1, 2\] is NaN"):
        influence_sd(log_value, phi, full)
    with pytest.raises(UserError, match="shape"):
        influence_sd(log_value, phi, full[:, :1])


def test_pooled_influence_weighs_by_z_square():
    rng = np.random.default_rng(8)
    prompts = []
    for _ in range(12):
        log_value, phi, extra = trajectories(30, rng)
        prompts.append(influence_sd(log_value, phi, np.stack([extra, extra], axis=1)))
        assert prompts[-1].scaled_variance == pytest.approx(Z**2 * prompts[-1].variance.estimate, rel=0.5)
    none = influence_sd(np.zeros((30, 3)), np.zeros(30), np.zeros((30, 2, 2)))
    assert math.isnan(none.variance.estimate)
    assert (none.scaled_variance, none.z_square) == (0, 0)
    pooled = influence_estimator([*prompts, none]).bootstrap(rng, 100)
    weights = np.array([p.z_square for p in prompts])
    expected = sum(p.scaled_variance for p in prompts) / weights.sum()
    assert pooled.variance.estimate == pytest.approx(expected, rel=1e-12)
    assert pooled.mean == pytest.approx(np.average([p.mean for p in prompts], weights=weights), rel=1e-12)
    assert (pooled.n_prompts, pooled.n_trajectories) == (13, 390)
    with pytest.raises(UserError, match="no prompt"):
        influence_estimator([]).bootstrap(rng)


def test_scaled_variance_of_the_whole_population_is_exact():
    """One step, V = 1: H = phi / Z, so Z^2 Var H is the variance of phi under the target."""
    phi = np.tile([0.5, 1.5], 5000)
    result = influence_sd(np.zeros((10000, 2)), phi, np.zeros((10000, 1, 0)))
    assert result.variance.estimate == pytest.approx(0.1875, rel=1e-3)
    assert result.scaled_variance == pytest.approx(0.1875, rel=1e-3)
    assert result.z_square == pytest.approx(1.0, rel=1e-3)


def test_measured_sigma2_by_hand():
    z_hat = np.array([[1.0, 4.0], [3.0, 4.0], [2.0, 1.0], [2.0, 3.0]])
    rng = np.random.default_rng(9)
    exact = measured_sigma2(np.log(z_hat), [10, 20], [2.0, 4.0], rng, n_resamples=200)
    variance = z_hat.var(axis=0, ddof=1)
    assert exact.by_prompt[0].estimate == pytest.approx(10 * variance[0] / 4, rel=1e-12)
    assert exact.by_prompt[1].estimate == pytest.approx(20 * variance[1] / 16, rel=1e-12)
    pooled = (10 * variance[0] + 20 * variance[1]) / 20
    assert exact.pooled.estimate == pytest.approx(pooled, rel=1e-12)
    estimated = measured_sigma2(np.log(z_hat), 10, None, rng, n_resamples=200)
    z_square = z_hat.mean(axis=0) ** 2 - variance / 4
    assert estimated.by_prompt[1].estimate == pytest.approx(10 * variance[1] / z_square[1], rel=1e-12)
    assert from_json(MeasuredSigma2, json.loads(json.dumps(to_json(exact), allow_nan=False))) == exact


def test_measured_sigma2_keeps_runs_of_zero_and_refuses_nan():
    rng = np.random.default_rng(10)
    log_z = np.array([[0.0, -np.inf], [-np.inf, -np.inf], [-0.1, -np.inf]])
    result = measured_sigma2(log_z, 4, None, rng, n_resamples=50)
    assert result.by_prompt[1] == Interval(result.by_prompt[1].estimate, None, None)
    assert math.isnan(result.by_prompt[1].estimate)
    assert math.isfinite(result.pooled.estimate)
    log_z[0, 0] = np.nan
    with pytest.raises(UserError, match=r"log_z\[0, 0\] is NaN"):
        measured_sigma2(log_z, 4, None, rng)
    for bad in ({"log_z": np.zeros((1, 2))}, {"n_particles": [1, 2, 3]}, {"n_particles": 0}, {"z": -1.0}):
        arguments = {"log_z": np.zeros((3, 2)), "n_particles": 4, "z": None} | bad
        with pytest.raises(UserError):
            measured_sigma2(**arguments, rng=rng)
    with pytest.raises(UserError, match="inf"):
        measured_sigma2(np.full((3, 1), np.inf), 4, None, rng)


def test_measured_sigma2_is_scale_free():
    draws = np.random.default_rng(11).normal(size=(50, 3))
    low, high = (
        measured_sigma2(draws + shift, 8, None, np.random.default_rng(0), n_resamples=50)
        for shift in (-600, 600)
    )
    assert low.pooled.estimate == pytest.approx(high.pooled.estimate, rel=1e-9)


def test_effective_trajectories_by_hand():
    """Potentials 1, 1, 2: (sum)^2 / sum of squares = 16 / 6; pooled with weights Z^2."""
    rng = np.random.default_rng(0)
    found = []
    for phi in ([1.0, 1.0, 2.0], [0.5, 0.5, 0.5]):
        phi = np.asarray(phi)
        log_value = np.log(np.stack([np.ones(3), phi], axis=1))
        found.append(influence_sd(log_value, phi, np.ones((3, 1, 2))))
    assert found[0].effective_trajectories == pytest.approx(16 / 6)
    assert found[1].effective_trajectories == pytest.approx(3)
    weights = [p.z_square for p in found]
    pooled = influence_estimator(found).bootstrap(rng)
    assert pooled.effective_trajectories == pytest.approx(np.average([16 / 6, 3], weights=weights))
    assert not pooled.resolved
    assert from_json(type(pooled), to_json(pooled)) == pooled
