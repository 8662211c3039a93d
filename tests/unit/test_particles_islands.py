"""Islands are independent runs in one call; their errors against hand-computed cases, exact models and a naive recomputation."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from traced_words import words

from rmtools.core import FiniteModel, Tilt, product, random_tree, smc, solve
from rmtools.errors import UserError
from rmtools.particles.genealogy import genealogy
from rmtools.particles.islands import effective_number, log_z_error, pooled_share, resolve_islands, wilson

SCHEMES = ["multinomial", "systematic", "stratified", "residual", "none"]
TREE = random_tree(5, 2, 0.8, Tilt(0.05), np.random.default_rng(0))


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("settings", "log_z", "ancestors", "ess"),
    [
        (
            {},
            [-0.40689643381179375, -0.45606806873792727, -0.4452430058038306],
            83395200,
            "0x1.841ddbc2e631ep+11",
        ),
        (
            {"resampling": "multinomial", "pool_size": 2, "ess_threshold": 0.9},
            [-0.41478491826640074, -0.43297968162112804, -0.4165249929664034],
            82805973,
            "0x1.7e8fbfdac5a1cp+11",
        ),
    ],
)
def test_one_island_is_the_run_it_always_was(settings, log_z, ancestors, ess):
    """Recorded before there were islands."""
    result = smc(TREE.particles(3), 256, rng=rng(1), islands=1, **settings)
    assert result.log_z.tolist() == log_z
    assert int((result.ancestors * np.arange(256)).sum()) == ancestors
    assert float(result.ess.sum()).hex() == ess
    assert result.by_island is None


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("m", [1, 3])
def test_islands_are_separate_runs_to_the_bit(scheme, m):
    """G groups of K islands draw what G K groups draw, so islands are as independent as groups are."""
    groups, k, n = 3, 4, 6
    joint = smc(TREE.particles(groups), k * n, m, scheme, 0.8, rng(1), islands=k)
    apart = smc(TREE.particles(groups * k), n, m, scheme, 0.8, rng(1))
    np.testing.assert_array_equal(joint.island_log_z.ravel(), apart.log_z)
    np.testing.assert_array_equal(joint.particles.state.ravel(), apart.particles.state.ravel())
    np.testing.assert_array_equal(joint.by_island.ess.reshape(-1, groups * k), apart.ess)
    np.testing.assert_array_equal(joint.by_island.resampled.reshape(-1, groups * k), apart.resampled)
    np.testing.assert_array_equal(
        joint.log_increments.reshape(apart.log_increments.shape), apart.log_increments
    )
    offset = np.tile(np.arange(k) * n, groups)[:, None]
    np.testing.assert_array_equal(joint.ancestors.reshape(apart.ancestors.shape), apart.ancestors + offset)
    assert joint.ancestors.dtype == np.int32
    z, w = np.exp(apart.log_z).reshape(groups, k), np.exp(apart.log_weights).reshape(groups, k, n)
    pooled = (z[:, :, None] * w).reshape(groups, -1) / z.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(joint.log_weights), pooled, rtol=1e-12)
    np.testing.assert_allclose(np.exp(joint.log_z), z.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(joint.ess, apart.ess.reshape(-1, groups, k).sum(axis=2))
    assert joint.ess.shape == joint.live.shape == joint.resampled.shape == (5, groups)
    assert (joint.islands, joint.resampling) == (k, scheme)


@pytest.mark.parametrize("m", [1, 2])
def test_steps_shown_fit_together_and_stay_on_their_island(m):
    root, _ = words((4, 6))
    steps = []
    result = smc(root, 12, m, "systematic", 0.9, rng(), observe=steps.append, islands=3)
    plain = smc(root, 12, m, "systematic", 0.9, rng(), islands=3)
    np.testing.assert_array_equal(result.log_weights, plain.log_weights)
    for step, later in pairwise(steps):
        assert step.children.select(step.index).steps() == later.parents.steps()
    np.testing.assert_array_equal(steps[-1].log_z, result.log_z)
    assert steps[-1].children.select(steps[-1].index).steps() == result.particles.steps()
    island = np.arange(12) // 4
    for step in steps:
        assert (step.index // m // 4 == island).all()
        np.testing.assert_array_equal(step.ess, result.ess[step.t - 1])
        np.testing.assert_array_equal(step.resampled, result.resampled[step.t - 1])
        np.testing.assert_array_equal(step.log_increment, result.log_increments[step.t - 1])
    assert any(step.resampled.any() for step in steps)


def test_history_off_changes_no_figure():
    kept, bare = (smc(TREE.particles(2), 24, rng=rng(), history=h, islands=4) for h in (True, False))
    np.testing.assert_array_equal(kept.log_weights, bare.log_weights)
    assert bare.ancestors.shape == (0, 2, 24)
    multinomial = [smc(TREE.particles(2), 9, 1, "multinomial", 1, rng(), history=h) for h in (True, False)]
    np.testing.assert_array_equal(*(r.family for r in multinomial))


def test_default_islands_and_refusals():
    found = [smc(TREE.particles(1), n, rng=rng()).islands for n in (16, 127, 128, 132, 250, 256, 300)]
    assert found == [1, 1, 4, 4, 1, 8, 4]
    assert smc(TREE.particles(1), 256, 2, "top_k", rng=rng()).islands == 1
    for islands, n, nearest in ((3, 128, 129), (5, 128, 130), (16, 8, 16), (7, 128, 126)):
        with pytest.raises(UserError, match=f"do not divide.*`n_particles` {nearest}$"):
            smc(TREE.particles(1), n, rng=rng(), islands=islands)
    with pytest.raises(UserError, match="top_k: keeping the best follows no law"):
        resolve_islands(2, 8, "top_k")
    with pytest.raises(UserError, match="`islands` must be an integer of at least 1, got 0"):
        smc(TREE.particles(1), 8, rng=rng(), islands=0)


def test_error_of_log_z_by_hand():
    """Estimates 1, 2, 3, 2: mean 2, variance 2/3, so the error is sqrt(2/3 / 4) / 2 = .2041; 64/18 of 4 islands count."""
    log_z = np.log([[1.0, 2.0, 3.0, 2.0]]) - 900  # far out of the range of exp
    assert log_z_error(log_z)[0] == pytest.approx(np.sqrt(2 / 3 / 4) / 2, rel=1e-12)
    assert effective_number(log_z)[0] == pytest.approx(64 / 18)
    zero = -np.inf
    rows = np.array(
        [[0.0, 0.1, 0, 0, zero, 0.1, 0, 0], [0.0, 0, zero, zero, zero, zero, zero, zero], [zero] * 8]
    )
    with_zero = np.exp(rows[0])
    expected = (
        with_zero.std(ddof=1) / np.sqrt(8) / with_zero.mean()
    )  # the island of estimate zero counts in K
    np.testing.assert_allclose(log_z_error(rows), [expected, np.nan, np.nan])
    assert np.isnan(log_z_error(np.log([[1.0, 1, 9]]))).all()  # error 8/11 of the mean
    assert np.isnan(log_z_error(np.zeros((2, 2)))).all()
    np.testing.assert_array_equal(effective_number(rows)[1:], [2, 0])


def naive_share(phi, weights, z):
    """Jackknife island by island, and Wilson's interval by solving its quadratic equation."""
    k, n = phi.shape
    shares = (weights * phi).sum(axis=1)
    left = np.array([sum(z[j] * shares[j] for j in range(k) if j != i) / (z.sum() - z[i]) for i in range(k)])
    p = float(z @ shares / z.sum())
    se = np.sqrt((k - 1) / k * ((left - left.mean()) ** 2).sum())
    by_jackknife = math.inf if se < 1e-9 else p * (1 - p) / se**2 * (1.96 / stats.t.ppf(0.975, k - 1)) ** 2
    n_eff = min(k * n / 2, by_jackknife)
    square = 1.959964**2
    ends = np.roots([n_eff + square, -(2 * n_eff * p + square), n_eff * p * p])
    return p, min(ends.real), max(ends.real), se


def test_share_against_a_naive_recomputation():
    g, k, n = 5, 4, 6
    phi = (rng(1).random((g, k, n)) < 0.4).astype(float)
    phi[1] = 1.0  # all islands agree
    weights = rng(2).dirichlet(np.ones(n), (g, k))
    z = rng(3).lognormal(0, 0.4, (g, k))
    pooled = (weights * z[:, :, None] / z.sum(axis=1)[:, None, None]).reshape(g, -1)
    found = pooled_share(phi.reshape(g, -1), np.log(pooled), np.log(z) - 800)
    for i in range(g):
        np.testing.assert_allclose(
            [x[i] for x in found], naive_share(phi[i], weights[i], z[i]), rtol=1e-4, atol=1e-9
        )
    estimate, low, high, _ = found
    assert ((low <= estimate) & (estimate <= high)).all()
    assert (found.se[1], high[1]) == (pytest.approx(0, abs=1e-12), 1)


def test_share_by_hand():
    """Islands of one particle with shares 1, 0, 1, 0: se = sqrt(3/4 * 4 * (1/6)^2) = .2887, n_eff = 3 (1.96/3.18)^2 = 1.138."""
    even = np.full((1, 4), np.log(0.25))
    share = pooled_share(np.array([[1.0, 0, 1, 0]]), even, np.zeros((1, 4)))
    assert share.se[0] == pytest.approx(np.sqrt(1 / 12))
    n_eff = 3 * (1.959964 / 3.182446) ** 2
    expected = [float(x[0]) for x in wilson(np.array([0.5]), np.array([n_eff]))]
    assert [share.low[0], share.high[0]] == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx([0.0608, 0.9392], abs=2e-4)
    # in a single island: not resolved; and in none
    for phi in ([[1.0, 0, 0, 0]], [[0.0] * 4]):
        alone = pooled_share(np.array(phi), even, np.zeros((1, 4)))
        assert np.isnan([alone.low, alone.high, alone.se]).all()
        assert alone.estimate[0] == pytest.approx(np.mean(phi))


def test_shares_of_answers_and_what_is_refused():
    result = smc(product(4, 2.0).particles(3), 64, rng=rng(), islands=4)
    by_function = result.share(lambda particles: particles.state == 3)
    np.testing.assert_array_equal(by_function, result.share(result.particles.state == 3))
    assert by_function.estimate.shape == (3,)
    single = smc(product(4, 2.0).particles(3), 64, rng=rng())
    assert np.isnan(single.share(single.particles.state == 3).low).all()
    assert not np.isnan(single.share(single.particles.state == 3).estimate).any()
    assert np.isnan(single.log_z_se).all()
    assert np.isnan(single.log_z_interval()).all()
    for bad in (result.particles.state, np.ones(64), np.full((3, 64), "a"), np.full((3, 64), np.nan)):
        with pytest.raises(UserError, match="numbers in \\[0, 1\\]"):
            result.share(bad)
    beam = smc(TREE.particles(2), 4, 2, "top_k", rng=rng())
    assert np.isnan(beam.log_z_se).all()
    with pytest.raises(UserError, match="top_k follows no law"):
        beam.share(np.ones((2, 4)))


def test_islands_that_die():
    """A value of zero behind half of the first steps: islands of one particle die with probability 1/2."""
    model = FiniteModel(
        [[[0.5, 0.5]], [[0.5, 0.5]] * 2],
        [[0.0], [np.log(2), -np.inf], [np.log(2), np.log(2), -np.inf, -np.inf]],
    )
    result = smc(model.particles(400), 4, 1, "multinomial", 1, rng(), islands=4)
    alive = (result.island_log_z > -np.inf).sum(axis=1)
    assert set(alive) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(np.isnan(result.log_z_se), alive < 3)
    np.testing.assert_allclose(result.effective_islands, alive)
    np.testing.assert_allclose(np.exp(result.log_z), alive / 2)
    assert (result.log_weights[alive == 0] == -np.inf).all()
    with np.errstate(all="raise"):
        share = result.share(np.ones((400, 4)))
    assert np.isnan(share.estimate[alive == 0]).all()
    np.testing.assert_array_equal(np.isnan(share.low), alive < 3)


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_coverage_and_size_of_the_errors(scheme):
    """Coarse: a normal or plain interval, an error of the mean taken for that of one island, or of N, all fail."""
    model, runs = product(6, 2.5), 3000
    exact = solve(model)
    result = smc(model.particles(runs), 128, 1, scheme, 0.5, rng(3), history=False)
    assert result.islands == 4
    low, high = result.log_z_interval()
    assert 0.93 <= np.mean((low <= exact.log_z) & (exact.log_z <= high)) <= 0.98
    ratio = np.exp(result.log_z - exact.log_z)
    assert np.mean((result.log_z_se * ratio) ** 2) == pytest.approx(ratio.var(ddof=1), rel=0.12)
    answer, q = 5, 2.5 / 3.5
    p = 6 * q**5 * (1 - q)
    share = result.share(result.particles.state == answer)
    known = ~np.isnan(share.low)
    assert known.mean() > 0.99
    # On the safe side here: at least half of the particles' noise is always allowed for.
    assert 0.93 <= np.mean((share.low <= p) & (p <= share.high)) <= 0.993
    assert np.mean(share.se[known] ** 2) == pytest.approx(share.estimate.var(ddof=1), rel=0.15)


@pytest.mark.parametrize(("m", "threshold"), [(1, 1.0), (1, 0.6), (2, 1.0), (3, 0.8)])
def test_genealogical_variance_is_unbiased(m, threshold):
    """E[Zhat^2 v] = Var(Zhat) for 6 particles, pools and ESS triggering included; one resampling more or less is refuted."""
    z = np.exp(solve(TREE).log_z)
    result = smc(TREE.particles(40_000), 6, m, "multinomial", threshold, rng(5), history=False)
    found, ratio = result.genealogy(), np.exp(result.log_z) / z
    assert (found.relative_variance < 0).any()

    def deviation(inflation):
        v = 1 - inflation * (1 - found.relative_variance) / found.inflation
        off = ratio**2 * v - (ratio - 1) ** 2
        return off.mean() / (off.std(ddof=1) / np.sqrt(len(off)))

    assert abs(deviation(found.inflation)) <= 4.5
    assert abs(deviation(found.inflation / 1.2)) > 4.5
    assert abs(deviation(found.inflation * 1.2)) > 4.5


def test_genealogy_against_the_ancestors_one_by_one():
    result = smc(TREE.particles(7), 8, 2, "multinomial", 0.9, rng(2))
    found = result.genealogy()
    for g in range(7):
        line = np.arange(8)
        for ancestors in result.ancestors[::-1, g]:
            line = ancestors[line]
        w = np.exp(result.log_weights[g])
        np.testing.assert_array_equal(found.family[g], line)
        assert found.families[g] == len(set(line[w > 0]))
        apart = sum(w[i] * w[j] for i in range(8) for j in range(8) if line[i] != line[j])
        inflation = (8 / 7) ** (1 + result.resampled[:, g].sum())
        assert found.relative_variance[g] == pytest.approx(1 - inflation * apart)
        phi = np.arange(8) / 8
        mean = w @ phi
        own = sum(sum(w[i] * (phi[i] - mean) for i in range(8) if line[i] == b) ** 2 for b in range(8))
        assert found.share_se(np.tile(phi, (7, 1)))[g] == pytest.approx(np.sqrt(inflation * own))
    assert len(set(result.resampled.sum(axis=0).tolist())) > 1


def test_without_resampling_the_genealogy_is_the_sample_variance():
    result = smc(TREE.particles(4), 9, 1, "none", rng=rng())
    z = np.exp(result.log_weights) * 9  # weights over their mean
    np.testing.assert_allclose(result.genealogy().relative_variance, z.var(axis=1, ddof=1) / 9)


def test_genealogy_where_it_says_nothing():
    for scheme in ("systematic", "stratified", "residual", "top_k"):
        with pytest.raises(UserError, match=f"genealogy of {scheme} resampling.*wrong in either direction"):
            smc(TREE.particles(2), 6, 2, scheme, rng=rng()).genealogy()
    with pytest.raises(UserError, match="an error of its own"):
        smc(TREE.particles(2), 6, 1, "multinomial", rng=rng(), islands=3).genealogy()
    dead = genealogy(np.zeros((1, 3), int), np.full((1, 3), -np.inf), np.array([0]))
    assert dead.families.tolist() == [0]
    assert np.isnan([dead.log_z_se, dead.relative_variance, dead.share_se(np.ones((1, 3)))]).all()
    lone = smc(TREE.particles(2), 1, 2, "multinomial", rng=rng()).genealogy()
    assert np.isnan(lone.log_z_se).all()


def test_a_result_with_islands_prints_them():
    result = smc(TREE.particles(3), 256, rng=rng())
    assert "islands             8 x 32, effective number" in str(result)
    assert "error of log Z-hat" in str(result)
    assert "islands" not in str(smc(TREE.particles(3), 64, rng=rng()))
    assert max(map(len, str(result).splitlines())) <= 120
    assert result.plot().axes
    assert len(result.to_frame()) == 15
