import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from rmtools.core import solve
from rmtools.errors import UserError
from rmtools.exact.families import random_tree
from rmtools.particles.tilt import Tilt
from rmtools.stats.bootstrap import Interval
from rmtools.stats.perfect_ends import perfect_ends
from rmtools.stats.perfect_value import (
    CostRatio,
    PerfectParts,
    PerfectSigma2,
    cost_ratio,
    perfect_parts,
    perfect_sigma2,
)
from rmtools.stats.sigma2 import Sigma2Parts, pooled_sigma2, sigma2_parts, value_square_estimate

# A tree of two steps, written out: first branch, then leaf given branch; nothing symmetric.
FIRST = np.array([0.25, 0.75])
SECOND = np.array([[0.5, 0.5], [0.75, 0.25]])
PHI = np.array([[0.1, 1.0], [0.6, 0.2]])
V1 = np.array([0.8, 0.3])
TRUE_1 = (SECOND * PHI).sum(axis=1)
SQUARE_2 = (SECOND * PHI**2).sum(axis=1)
Z = float(FIRST @ TRUE_1)


def mean_of(function, branch, count):
    """Expectation of a function of `count` completions of a branch."""
    return sum(
        math.prod(SECOND[branch, leaf]) * function(PHI[branch, leaf])
        for leaf in (np.array(x, dtype=int) for x in itertools.product((0, 1), repeat=count))
    )


def expected(n_extra, ended=None, n=2):
    """Expected parts over every sample of n trajectories with n_extra completions of s_1."""
    rows = [
        (FIRST[s] * math.prod(SECOND[s, list(leaves)]), s, leaves)
        for s, *leaves in itertools.product((0, 1), repeat=2 + n_extra)
        if s != ended or not any(leaves)
    ]
    if ended is not None:  # the branch ends with its first leaf
        rows = [(FIRST[s] if s == ended else p, s, leaves) for p, s, leaves in rows]
    total = {}
    for sample in itertools.product(rows, repeat=n):
        p = math.prod(row[0] for row in sample)
        branch = np.array([row[1] for row in sample])
        phi = np.array([PHI[row[1], row[2]] for row in sample])
        value = np.where(branch == ended, phi[:, 0], V1[branch])
        over = np.stack([np.zeros(n, dtype=bool), branch == ended], axis=1)
        parts = perfect_parts(
            np.log(np.stack([np.full(n, 0.7), value, phi[:, 0]], axis=1)),
            phi[:, 0],
            np.stack([np.full((n, n_extra), np.nan), phi[:, 1:]], axis=1),
            np.stack(
                [np.zeros((n, n_extra), dtype=bool), ~over[:, 1:] | np.zeros((n, n_extra), dtype=bool)], 1
            ),
            over,
        )
        for name in ("known", "moments", "inverse", "remainder", "z_square"):
            part = getattr(parts, name)
            if np.ndim(part) > 1:
                part = part.sum(axis=-2)
            total[name] = total.get(name, 0.0) + p * part
    return total


def test_parts_have_the_expectation_they_name_by_enumeration():
    found = expected(3)
    assert found["z_square"] == pytest.approx(Z**2)
    assert found["known"] == pytest.approx(FIRST @ TRUE_1**2)
    moments = [Z * (FIRST @ (SQUARE_2 * TRUE_1**k / V1 ** (k + 1))) for k in range(4)]
    np.testing.assert_allclose(found["moments"][:, 0], moments)
    jensen = [np.array([mean_of(lambda x: 1 / x.mean(), s, count) for s in (0, 1)]) for count in (3, 1)]
    assert found["inverse"][0] == pytest.approx(Z * (FIRST @ (SQUARE_2 * jensen[0])))
    remainder = [Z * (FIRST @ (SQUARE_2 * jensen[1] * (TRUE_1 / V1) ** k)) for k in range(3)]
    np.testing.assert_allclose(found["remainder"][:, 0], remainder)


def test_an_ended_prefix_is_known_and_in_nothing_else():
    found = expected(1, ended=1)
    true = np.array([TRUE_1[0], PHI[1, 0]])
    z = FIRST @ true
    assert found["z_square"] == pytest.approx(z**2)
    assert found["known"] == pytest.approx(FIRST @ true**2 + z * FIRST[1] * true[1])
    np.testing.assert_allclose(
        found["moments"][:2, 0], z * FIRST[0] * SQUARE_2[0] / V1[0] * np.array([1, true[0] / V1[0]])
    )
    assert np.isnan(found["moments"][2:]).all()
    assert np.isnan(found["remainder"]).all()
    one_over = mean_of(lambda x: 1 / x.mean(), 0, 1)
    assert found["inverse"][0] == pytest.approx(z * FIRST[0] * SQUARE_2[0] * one_over)


def one_step(phi):
    log_value = np.log(np.stack([np.full(len(phi), 3.0), phi], axis=1))
    return perfect_parts(log_value, phi, np.ones((len(phi), 1, 1)))


def test_one_step_by_hand():
    """sigma^2 = E[phi^2] / Z^2 - 1: mean of squares 1.25 over pairs 0.75, and 0.26 over 0.1 (Z^2 = 0.1)."""
    rng = np.random.default_rng(0)
    parts = [one_step(np.array([0.5, 1.5])), one_step(np.array([0.1, 0.5, 0.1]))]
    assert [p.z_square for p in parts] == pytest.approx([0.75, (0.05 + 0.01 + 0.05) / 3])
    single = perfect_sigma2(parts[:1], rng)
    assert single.lower == single.upper == Interval(pytest.approx(1.25 / 0.75 - 1), None, None)
    pooled = perfect_sigma2(parts, rng)
    assert pooled.lower.estimate == pytest.approx((1.25 + 0.09) / (0.75 + 0.11 / 3) - 1)
    assert pooled.lower == pooled.upper
    assert pooled.n_prompts == 2


def test_rollouts_of_one_step_need_no_completions():
    phi = np.array([0.5, 1.5])
    log_value = np.log(np.stack([np.ones(2), phi], axis=1))
    without = perfect_parts(log_value, phi, np.ones((2, 1, 0)))
    assert (without.known, without.z_square) == (one_step(phi).known, one_step(phi).z_square)


def exact_parts(model, log_value):
    """Parts without noise and without Jensen's excess, at the values `log_value`: a row a state, not a trajectory."""
    exact = solve(model)
    true, z = [np.exp(v) for v in exact.true_log_value], math.exp(exact.log_z)
    shape = (len(true[-2]), model.horizon - 1)
    value, rows = np.full(shape, np.nan), np.zeros((8, *shape))
    for t in range(1, model.horizon):
        second = model.reach(t) * (model.policy[t] * np.exp(2 * model.gather(t, np.log(true[t + 1])))).sum(1)
        at, size = np.exp(log_value[t]), len(true[t])
        value[:size, t - 1] = log_value[t]
        powers = [true[t] ** k / at ** (k + 1) for k in range(4)]
        rest = [true[t] ** (k - 1) / at**k for k in range(3)]
        rows[:, :size, t - 1] = z * second * np.stack([*powers, 1 / true[t], *rest])
    known = float(model.policy[0][0] @ true[1] ** 2)
    return PerfectParts(known, value, rows[:4], rows[4], rows[5:], z**2, model.horizon, float(true[-1].max()))


@pytest.mark.parametrize("eps", [0.1, 0.4, 1.5])
@pytest.mark.parametrize("n_bins", [1, 4])
def test_exact_parts_bracket_the_exact_cost(eps, n_bins):
    """Both ends hold at any value; the upper is exact without Jensen's excess; at V* both are exact."""
    model = random_tree(4, 3, eps, Tilt(0.3), np.random.default_rng(5))
    truth, rng = solve(model).sigma2_true_value, np.random.default_rng(6)
    parts = exact_parts(model, model.log_value)
    found = perfect_sigma2([parts] * 30, rng, n_bins=n_bins)
    assert found.upper.estimate == pytest.approx(truth)
    assert found.lower.estimate < truth
    if n_bins == 1:
        first, second = (parts.moments[k].sum(axis=0) for k in (0, 1))
        cauchy_schwarz = (parts.known + np.sum(first**2 / second)) / parts.z_square - model.horizon
        assert found.lower.estimate >= cauchy_schwarz - 1e-12
    if eps == 0.1:
        assert found.lower.estimate == pytest.approx(truth, rel=0.05)
    # A factor per depth makes no difference, at V* or away from it.
    scaled = [v + math.log(k) for v, k in zip(model.log_value, (1.0, 5.0, 0.3, 2.0, 1.0), strict=True)]
    again = perfect_sigma2([exact_parts(model, scaled)] * 30, rng, n_bins=n_bins)
    assert again.lower.estimate == pytest.approx(found.lower.estimate)
    perfect = exact_parts(model, solve(model).true_log_value)
    found = perfect_sigma2([perfect] * 30, rng, n_bins=n_bins)
    assert (found.lower.estimate, found.upper.estimate) == pytest.approx((truth, truth))


def test_more_bins_know_more_of_a_value_that_is_not_calibrated():
    model = random_tree(4, 3, 0.1, Tilt(0.3), np.random.default_rng(5))
    parts = exact_parts(model, [0.2 * v for v in model.log_value])
    rng = np.random.default_rng(0)
    lower = [perfect_sigma2([parts] * 3, rng, n_bins=n).lower.estimate for n in (1, 3, 9)]
    assert lower[0] < lower[1] < lower[2] < solve(model).sigma2_true_value


def made(known, moments, inverse, remainder, value=1.0):
    """Parts of two steps of one prompt, Z = 1, a single prefix before the last."""
    arrays = [np.array(a, dtype=float)[..., None, None] for a in (np.log(value), moments, inverse, remainder)]
    return PerfectParts(known, *arrays, 1.0, 2, 1.0)


NAN = math.nan


def test_each_prompt_is_weighed_with_the_scale_of_the_others():
    parts = [
        made(1.0, [3.0, 2.0, NAN, NAN], 4.0, [NAN] * 3),
        made(1.5, [5.0, 4.0, NAN, NAN], 6.0, [NAN] * 3),
    ]
    found = perfect_sigma2(parts, np.random.default_rng(0))
    c = (5 / 4, 3 / 2)
    lower = 1 + 2 * c[0] * 3 - c[0] ** 2 * 2 + 1.5 + 2 * c[1] * 5 - c[1] ** 2 * 4
    assert found.lower.estimate == pytest.approx(lower / 2 - 2)
    assert found.upper.estimate == pytest.approx((1 + 4 + 1.5 + 6) / 2 - 2)
    # Squaring the summed numerators would have given more.
    assert lower < 2.5 + 8**2 / 6
    # Alone, the scale is 1.
    alone = perfect_sigma2(parts[:1], np.random.default_rng(0))
    assert alone.lower == Interval(pytest.approx(1 + 2 * 3 - 2 - 2), None, None)


def test_a_bin_ruled_by_one_prompt_is_pulled_to_its_depth():
    """Two bins: the others' c is 10 in the first, from one prompt, and 1 in the depth but for it."""
    low = [
        made(0.0, [1.0, 0.1, NAN, NAN], 1.0, [NAN] * 3, 0.1),
        made(0.0, [1.0, 1.0, NAN, NAN], 1.0, [NAN] * 3, 0.1),
    ]
    high = [made(0.0, [1.0, 1.0, NAN, NAN], 1.0, [NAN] * 3, 0.9) for _ in range(2)]
    lower, _ = perfect_ends([*low, *high], n_bins=2)
    depth = 3 / 2.1
    c = (1 + 2) / (0.1 + 2 / depth)
    assert lower[1] == pytest.approx(-2 + 2 * c - c**2)
    assert c < 2.1


def test_the_number_of_terms_is_chosen_on_the_other_prompts():
    """With c = 1: two terms give 2 a - b, four give 4 a - 6 b + 4 c - d; the upper end likewise."""
    good = made(0.0, [1, 1, 1, 0.9], 2.0, [1.5, 1.4, 1.4])  # four: 1.1 over 1; corrected: 1.1 under 2
    bad = made(0.0, [1, 1, 1, 1.2], 1.0, [1.5, 1.0, 1.2])  # four: 0.8 under 1; corrected: 1.7 over 1
    rng = np.random.default_rng(0)
    many = perfect_sigma2([good] * 20 + [bad], rng)
    assert many.lower.estimate == pytest.approx((20 * 1.1 + 0.8) / 21 - 2)
    assert many.upper.estimate == pytest.approx((20 * 1.1 + 1.7) / 21 - 2)
    # Three others are not enough to tell, however they agree.
    few = perfect_sigma2([good] * 4, rng)
    assert (few.lower.estimate, few.upper.estimate) == pytest.approx((1.0 - 2, 2.0 - 2))
    # Nor are four terms used where phi h may be above 3.
    steep = [dataclasses.replace(good, log_value=np.full((1, 1), np.log(0.3)))] * 20
    found = perfect_sigma2(steep, rng)
    assert (found.lower.estimate, found.upper.estimate) == pytest.approx((1.0 - 2, 1.1 - 2))


def rollouts(n, horizon, n_extra, rng):
    phi = rng.uniform(0.1, 1, n)
    log_value = np.log(rng.uniform(0.2, 0.8, (n, horizon + 1)))
    return log_value, phi, rng.uniform(0.1, 1, (n, horizon, n_extra))


def test_padding_with_ended_prefixes_and_absent_completions_changes_nothing():
    rng = np.random.default_rng(1)
    log_value, phi, extra = rollouts(6, 3, 4, rng)
    parts = perfect_parts(log_value, phi, extra)
    more = np.concatenate([log_value[:, :3], np.log(phi)[:, None].repeat(3, 1)], axis=1)
    ended = np.zeros((6, 5), dtype=bool)
    ended[:, 3:] = True
    wide = np.full((6, 5, 7), np.nan)
    wide[:, 1:3, 2:6] = extra[:, 1:]
    padded = perfect_parts(more, phi, wide, np.isfinite(wide), ended)
    np.testing.assert_allclose(padded.moments, np.pad(parts.moments, [(0, 0), (0, 0), (0, 2)]))
    np.testing.assert_allclose(padded.remainder, np.pad(parts.remainder, [(0, 0), (0, 0), (0, 2)]))
    assert np.isnan(padded.log_value).sum() == 12
    found = [perfect_sigma2([p, p], np.random.default_rng(0)) for p in (parts, padded)]
    for name in ("lower", "upper"):
        ends = [getattr(f, name).estimate for f in found]
        assert ends[0] == pytest.approx(ends[1])
    mixed = perfect_sigma2([parts, padded], np.random.default_rng(0))
    assert mixed.lower.estimate == pytest.approx(found[0].lower.estimate)


def test_a_prefix_with_few_completions_takes_the_higher_terms_from_all():
    rng = np.random.default_rng(2)
    log_value, phi, extra = rollouts(6, 3, 4, rng)
    present = np.ones(extra.shape, dtype=bool)
    present[2, 1, 1:] = False
    parts = perfect_parts(log_value, phi, extra, present)
    few = np.zeros((6, 2), dtype=bool)
    few[2, 0] = True
    for array in (parts.moments[2:], parts.remainder):
        np.testing.assert_array_equal(np.isnan(array), np.broadcast_to(few, array.shape))
    assert np.isfinite(parts.moments[:2]).all()
    assert np.isfinite(perfect_sigma2([parts, perfect_parts(log_value, phi, extra)], rng).lower.estimate)


def cost(log_value, phi, extra):
    square = np.repeat(phi[:, None] ** 2, log_value.shape[1], axis=1)
    own = np.broadcast_to(phi[:, None, None], (*extra.shape[:2], 1))
    square[:, :-1] = value_square_estimate(np.concatenate([own, extra], axis=2))
    return sigma2_parts(log_value, square, phi)


def test_cost_ratio_is_the_ratio_of_the_pooled_costs():
    rng = np.random.default_rng(3)
    samples = [rollouts(8, 3, 5, rng) for _ in range(40)]
    model, perfect = [cost(*s) for s in samples], [perfect_parts(*s) for s in samples]
    found = cost_ratio(model, perfect, rng)
    bracket = perfect_sigma2(perfect, rng)
    weight = sum(p.z_square for p in model)
    pooled = sum(p.numerator - p.horizon * p.z_square for p in model) / weight
    for ratio, end in ((found.at_least, bracket.upper), (found.at_most, bracket.lower)):
        if end.estimate > 0:
            assert ratio.estimate == pytest.approx(pooled / end.estimate)
            assert (ratio.high is None) == (end.low <= 0)
            assert ratio.low < ratio.estimate
    assert found.at_least.high > found.at_least.estimate  # the upper end is far above 0 here
    assert found.n_prompts == 40
    assert CostRatio.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert PerfectSigma2.from_dict(json.loads(json.dumps(bracket.to_dict()))) == bracket


def test_cost_ratio_is_not_available_where_a_cost_is_not_above_zero():
    rng = np.random.default_rng(4)
    expensive = [cost(*rollouts(8, 2, 3, rng)) for _ in range(8)]
    assert sum(p.numerator - 2 * p.z_square for p in expensive) > 0
    # The lower end: known - 2 + (2 c a - c^2 b) with a = b, so c = 1.
    known = np.linspace(0.8, 1.2, 8)
    perfect = [made(k, [0.9, 0.9, NAN, NAN], 1.5, [NAN] * 3) for k in known]
    found = cost_ratio(expensive, perfect, rng)
    assert math.isnan(found.at_most.estimate)
    assert (found.at_most.low, found.at_most.high) == (None, None)
    assert found.at_least.estimate > 0
    # A lower end above 0 by less than its noise: an estimate, but no upper limit.
    near = [made(k + 0.15, [0.9, 0.9, NAN, NAN], 1.5, [NAN] * 3) for k in known]
    found = cost_ratio(expensive, near, rng)
    assert found.at_most.estimate > 0
    assert perfect_sigma2(near, rng).lower.low < 0
    assert found.at_most.high is None
    # A model whose cost is above 0 by less than its noise: estimates, but no interval.
    noisy = [Sigma2Parts(2 + x, 1.0, 2, np.zeros(3), np.zeros(3)) for x in np.linspace(-1, 1.2, 8)]
    assert pooled_sigma2(noisy, rng).estimate.low < 0 < pooled_sigma2(noisy, rng).estimate.estimate
    found = cost_ratio(noisy, [made(k + 1, [0.9, 0.9, NAN, NAN], 1.5, [NAN] * 3) for k in known], rng)
    for ratio in (found.at_least, found.at_most):
        assert ratio.estimate > 0
        assert (ratio.low, ratio.high) == (None, None)
    # A model whose cost is not above 0 has no ratio at all.
    free = [sigma2_parts(np.zeros((3, 3)), np.ones((3, 3)), np.ones(3)) for _ in range(8)]
    found = cost_ratio(free, near, rng)
    assert math.isnan(found.at_least.estimate)
    assert math.isnan(found.at_most.estimate)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"potential": np.array([0.5, 0.0, 0.4])}, "potential\\[1\\] is 0"),
        ({"extra": np.zeros((3, 2, 2))}, "extra\\[0, 1, 0\\] is 0"),
        ({"extra": np.full((3, 2, 2), np.nan)}, "extra\\[0, 1, 0\\] is NaN"),
        ({"extra": np.ones((3, 1, 2))}, "shapes"),
        ({"present": np.zeros((3, 2, 2), dtype=bool)}, "no extra completion at prefix 1"),
        ({"present": np.ones((3, 2, 1), dtype=bool)}, "shapes"),
        ({"ended": np.zeros((3, 3), dtype=bool)}, "ended has shape"),
        ({"log_value": np.full((3, 3), -np.inf)}, "no finite cost"),
        ({"potential": np.array([0.5, np.nan, 0.4])}, "NaN"),
    ],
)
def test_bad_rollouts_are_refused(change, message):
    good = {
        "log_value": np.zeros((3, 3)),
        "potential": np.full(3, 0.5),
        "extra": np.full((3, 2, 2), 0.5),
        "present": None,
        "ended": None,
    }
    perfect_parts(**good)
    with pytest.raises(UserError, match=message):
        perfect_parts(**(good | change))


def test_prompts_must_be_given_and_match():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="no prompt"):
        perfect_sigma2([], rng)
    with pytest.raises(UserError, match="`n_bins`"):
        perfect_sigma2([one_step(np.array([0.5, 1.5]))], rng, n_bins=0)
    with pytest.raises(UserError, match="1 prompts of the model and 0"):
        cost_ratio([cost(*rollouts(3, 2, 2, rng))], [], rng)
