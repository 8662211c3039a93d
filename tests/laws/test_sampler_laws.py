from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtools.core import FiniteModel, FiniteParticles, Tilt, perturb, product, random_tree, smc, solve
from rmtools.particles.resampling import RESAMPLING

SCHEMES = ["multinomial", "systematic", "stratified", "residual", "none"]
# no deadline: machines are shared; derandomised: a law fails for a reason, not on a day
law = settings(deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
trees = st.builds(
    lambda horizon, branching, eps, floor, seed: random_tree(
        horizon, branching, eps, Tilt(floor), np.random.default_rng(seed)
    ),
    st.integers(1, 4),
    st.integers(2, 3),
    st.floats(0, 2),
    st.floats(0.001, 0.9),
    seeds,
)


@dataclass(frozen=True)
class Enumerated:
    """A full tree under the uniform policy whose pool lists all children: the fully adapted sampler."""

    inner: FiniteParticles

    @property
    def shape(self):
        return self.inner.shape

    @property
    def ended(self):
        return self.inner.ended

    def log_value(self):
        return self.inner.log_value()

    def extend(self, pool_size, rng):
        model, depth, state = self.inner.model, self.inner.depth, self.inner.state
        children = np.repeat(state, pool_size, axis=1)
        if depth < model.horizon:
            children = children * pool_size + np.tile(np.arange(pool_size), state.shape[1])
            depth += 1
        return Enumerated(FiniteParticles(model, depth, children))

    def select(self, index):
        return Enumerated(self.inner.select(index))


@law
@given(
    st.integers(1, 4), st.integers(2, 3), st.integers(1, 6), st.sampled_from(SCHEMES), st.floats(0, 1), seeds
)
def test_exact_value_and_full_adaptation_give_increments_of_zero(
    horizon, branching, n, scheme, threshold, seed
):
    rng = np.random.default_rng(seed)
    policy = [np.full((branching**t, branching), 1 / branching) for t in range(horizon)]
    potential = np.log(rng.uniform(0.01, 1, branching**horizon))
    model = FiniteModel(policy, [*(np.zeros(len(p)) for p in policy), potential])
    model = perturb(model, 0.0, "terminal", rng)
    result = smc(Enumerated(model.particles(5)), n, branching, scheme, threshold, rng)
    np.testing.assert_allclose(result.log_increments, 0, atol=1e-12)
    np.testing.assert_allclose(result.log_z, solve(model).log_z, atol=1e-12)
    np.testing.assert_allclose(result.ess, n, rtol=1e-12)


@law
@given(trees, st.integers(1, 8), st.integers(1, 3), st.sampled_from(SCHEMES), st.floats(0, 1), seeds)
def test_the_estimate_is_the_product_of_means_between_resamplings(model, n, m, scheme, threshold, seed):
    result = smc(model.particles(6), n, m, scheme, threshold, np.random.default_rng(seed))
    log_z, weight = np.full(6, model.log_value[0][0]), np.zeros((6, n))
    for t in range(result.n_steps):
        weight = weight + result.log_increments[t]
        due = result.resampled[t]
        mean = np.log(np.exp(weight).mean(axis=1))
        log_z, weight = np.where(due, log_z + mean, log_z), np.where(due[:, None], 0, weight)
        w = np.exp(weight + np.where(due[:, None], np.nan, 0))
        expected = w.sum(axis=1) ** 2 / (w**2).sum(axis=1)
        np.testing.assert_allclose(result.ess[t][~due], expected[~due], rtol=1e-9)
        assert ((result.ess[t] >= 1 - 1e-9) & (result.ess[t] <= n * (1 + 1e-9))).all()
        distinct = [len(set(row)) for row in result.ancestors[t].tolist()]
        assert result.unique_ancestors[t].tolist() == distinct
    np.testing.assert_allclose(result.log_z, log_z + np.log(np.exp(weight).mean(axis=1)), atol=1e-10)
    np.testing.assert_allclose(np.exp(result.log_weights).sum(axis=1), 1, rtol=1e-12)


@law
@given(
    trees,
    st.floats(-50, 50),
    st.data(),
    st.integers(1, 8),
    st.integers(1, 3),
    st.sampled_from([0, 0.5, 1]),
    seeds,
)
def test_a_constant_at_an_inner_depth_changes_nothing(model, shift, data, n, m, threshold, seed):
    depth = data.draw(st.integers(0, model.horizon - 1))
    log_value = list(model.log_value)
    log_value[depth] = log_value[depth] + shift
    moved = FiniteModel(model.policy, log_value)
    a, b = solve(model), solve(moved)
    np.testing.assert_allclose(b.sigma2, a.sigma2, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(b.bellman_error_gauge_fixed, a.bellman_error_gauge_fixed, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(b.influence, a.influence, rtol=1e-9)
    scheme = "multinomial"
    x, y = (
        smc(mod.particles(6), n, m, scheme, threshold, np.random.default_rng(seed)) for mod in (model, moved)
    )
    # unless rounding moved an ESS or a uniform across a boundary
    if (x.resampled == y.resampled).all() and (x.ancestors == y.ancestors).all():
        np.testing.assert_allclose(y.log_z, x.log_z, atol=1e-9)
        np.testing.assert_allclose(y.log_weights, x.log_weights, atol=1e-9)


@law
@given(trees, st.integers(1, 4), seeds)
def test_one_particle_is_single_particle_guided(model, m, seed):
    result = smc(model.particles(9), 1, m, rng=np.random.default_rng(seed))
    assert (result.ess == 1).all()
    assert (result.log_weights == 0).all()
    expected = model.log_value[0][0] + result.log_increments.sum(axis=0)[:, 0]
    np.testing.assert_allclose(result.log_z, expected, atol=1e-12)


@settings(law, max_examples=25)
@given(trees, seeds)
def test_a_large_pool_takes_the_policy_out(model, seed):
    # M -> infinity: the increment of a prefix is its log Bellman error, whatever was drawn
    result = smc(model.particles(2), 1, 20_000, rng=np.random.default_rng(seed))
    exact = solve(model)
    path = [result.particles.state[:, 0]]
    for t in reversed(range(model.horizon)):
        path.append(path[-1] // model.policy[t].shape[1])
    for t, state in enumerate(reversed(path[1:])):
        ratio = np.exp(model.gather(t, model.log_value[t + 1])[state] - model.log_value[t][state][:, None])
        p = model.policy[t][state]
        rho = np.exp(exact.log_bellman_error[t][state])
        error = np.sqrt(np.maximum((p * ratio**2).sum(axis=1) - rho**2, 0) / 20_000)
        assert (np.abs(np.exp(result.log_increments[t][:, 0]) - rho) <= 6 * error + 1e-9).all()
    limit = exact.sigma2_pool(10**9)
    assert exact.sigma2_pool(3) >= exact.sigma2_pool(50) - 1e-9 >= limit - 2e-9


def deterministic(n_states, horizon, rng):
    """Every state of a layer moves to one state of the next: all randomness is in the root particles."""
    policy = [np.ones((1, 1)), *(np.ones((n_states, 1)) for _ in range(horizon))]
    log_value = [np.zeros(1), *(rng.normal(size=n_states) for _ in range(horizon + 1))]
    children = [[[0]], *(rng.permutation(n_states)[:, None] for _ in range(horizon))]
    return FiniteModel(policy, log_value, children)


@law
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 7), seeds)
def test_groups_and_particles_may_be_permuted(groups, horizon, n, seed):
    rng = np.random.default_rng(seed)
    model = deterministic(10, horizon, rng)
    state = rng.integers(10, size=(groups, n))
    order, shuffle = rng.permutation(groups), rng.permutation(n)

    def importance(states):
        return smc(FiniteParticles(model, 1, states), n, ess_threshold=0, rng=np.random.default_rng(0))

    plain, mixed = importance(state), importance(state[order][:, shuffle])
    np.testing.assert_allclose(mixed.log_z, plain.log_z[order], atol=1e-12)
    np.testing.assert_allclose(mixed.log_weights, plain.log_weights[order][:, shuffle], atol=1e-12)
    np.testing.assert_allclose(mixed.ess, plain.ess[:, order], rtol=1e-12)


@law
@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 7), st.sampled_from([0, 0.5, 1]), seeds)
def test_a_group_does_not_feel_the_others(groups, horizon, n, threshold, seed):
    rng = np.random.default_rng(seed)
    model = deterministic(10, horizon, rng)
    state = rng.integers(10, size=(groups, n))
    other = state.copy()
    other[1:] = rng.integers(10, size=(groups - 1, n))

    def first(states):
        # before the first resampling the draws cannot differ; afterwards only the law is the same
        return smc(
            FiniteParticles(model, 1, states), n, ess_threshold=threshold, rng=np.random.default_rng(1)
        )

    a, b = first(state), first(other)
    np.testing.assert_array_equal(a.log_increments[0, 0], b.log_increments[0, 0])
    if not a.resampled[:, 0].any():
        np.testing.assert_array_equal(a.log_z[0], b.log_z[0])
        np.testing.assert_array_equal(a.log_weights[0], b.log_weights[0])


@law
@given(
    st.sampled_from(sorted(set(RESAMPLING) - {"none", "top_k"})),
    st.integers(1, 30),
    st.integers(1, 30),
    seeds,
)
def test_resampling_keeps_counts_within_reach(scheme, n, n_out, seed):
    rng = np.random.default_rng(seed)
    log_weights = rng.normal(scale=10, size=(4, n))
    log_weights[rng.random((4, n)) < 0.3] = -np.inf
    log_weights[:, rng.integers(n)] = rng.normal()
    ancestors = RESAMPLING[scheme](log_weights, n_out, rng)
    assert ancestors.shape == (4, n_out)
    assert ((ancestors >= 0) & (ancestors < n)).all()
    assert (np.take_along_axis(log_weights, ancestors, 1) > -np.inf).all()


@pytest.mark.parametrize("n", [1, 4])
def test_a_group_of_its_own_horizon_is_not_resampled_by_its_neighbours(n):
    result = smc(product(4, 3.0).particles(3), n, ess_threshold=1, rng=np.random.default_rng(0))
    assert result.resampled.all(axis=1).tolist() == [True, True, True, False]
