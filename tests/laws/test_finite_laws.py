import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtools.core import FiniteModel, Tilt, perturb, product, random_tree, solve

law = settings(deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
eps_values = st.floats(0, 3)
kinds = st.sampled_from(["random_signs", "persistent", "terminal"])


def random_chain(horizon, n_states, seed):
    """A layered chain with merging states, forbidden branches and random values."""
    rng = np.random.default_rng(seed)
    sizes = [1] + [n_states] * horizon
    policy, children = [], []
    for t in range(horizon):
        p = rng.dirichlet(np.ones(3), size=sizes[t])
        p[rng.random(p.shape) < 0.2] = 0.0
        p[:, 0] += p.sum(axis=1) == 0
        policy.append(p / p.sum(axis=1, keepdims=True))
        children.append(rng.integers(sizes[t + 1], size=p.shape))
    return FiniteModel(policy, [rng.normal(size=s) for s in sizes], children)


chains = st.builds(random_chain, st.integers(1, 5), st.integers(1, 4), seeds)
trees = st.builds(
    lambda h, b, eps, floor, seed: random_tree(h, b, eps, Tilt(floor), np.random.default_rng(seed)),
    st.integers(1, 4),
    st.integers(2, 3),
    eps_values,
    st.floats(0.001, 0.9),
    seeds,
)


@law
@given(st.one_of(trees, chains))
def test_orders_between_the_figures(model):
    exact = solve(model)
    assert exact.sigma2 >= -1e-9
    assert exact.sigma2_optimal <= min(exact.sigma2_true_value, exact.sigma2) * (1 + 1e-9) + 1e-9
    assert exact.bellman_error_gauge_fixed <= exact.bellman_error + 1e-9
    assert 1 + exact.bellman_error <= exact.ratio_bound * (1 + 1e-9)
    assert exact.sigma2_pool(1) == exact.sigma2
    assert exact.sigma2_pool(2) <= exact.sigma2_pool(1) + 1e-9
    assert exact.influence_mad().value <= 2 * exact.sigma2 + 1e-9 + 2 * model.horizon


@law
@given(trees)
def test_influence_holds_the_variance(model):
    exact = solve(model)
    np.testing.assert_allclose(exact.target.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(
        exact.target @ exact.influence - model.horizon, exact.sigma2, rtol=1e-9, atol=1e-9
    )
    for m in (2, 7):
        h = exact.influence_pool(m)
        np.testing.assert_allclose(
            exact.target @ h - model.horizon, exact.sigma2_pool(m), rtol=1e-9, atol=1e-9
        )
        mad = exact.target @ np.abs(h - exact.target @ h)
        np.testing.assert_allclose(exact.influence_mad(m).value, mad, rtol=1e-12, atol=1e-12)


@law
@given(chains)
def test_reach_and_target_are_laws(model):
    for t in range(model.horizon + 1):
        np.testing.assert_allclose(model.reach(t).sum(), 1, rtol=1e-9)
    for p in model.target_policy:
        np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-9)


@law
@given(chains)
def test_a_chain_and_its_unfolded_tree_agree(model):
    states, log_value, policy = np.zeros(1, dtype=int), [model.log_value[0]], []
    for t in range(model.horizon):
        policy.append(model.policy[t][states])
        states = model.child(t)[states].ravel()
        log_value.append(model.log_value[t + 1][states])
    tree = FiniteModel(policy, log_value)
    a, b = solve(model), solve(tree)
    for name in (
        "log_z",
        "bellman_error",
        "bellman_error_gauge_fixed",
        "ratio_bound",
        "sigma2",
        "sigma2_optimal",
    ):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(a.sigma2_pool(3), b.sigma2_pool(3), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(a.influence_mad(2).value, b.influence_mad(2).value, rtol=1e-9, atol=1e-9)


@law
@given(
    st.one_of(trees, chains, st.builds(product, st.integers(2, 5), st.floats(0.2, 5))),
    eps_values,
    kinds,
    seeds,
)
def test_perturb_attains_its_error(model, eps, kind, seed):
    if kind == "persistent" and model.horizon < 2:
        return
    changed = solve(perturb(model, eps, kind, np.random.default_rng(seed)))
    exact = solve(model)
    np.testing.assert_allclose(changed.bellman_error, eps, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(changed.log_z, exact.log_z, atol=1e-9)
    np.testing.assert_allclose(changed.sigma2_true_value, exact.sigma2_true_value, rtol=1e-9, atol=1e-9)


@law
@given(trees, eps_values, seeds)
def test_values_stay_within_the_telescoped_error(model, eps, seed):
    # V*/V is a mean of products of ratios: within (1 + eps) ** +-(T - t)
    changed = perturb(model, eps, "random_signs", np.random.default_rng(seed))
    for t in range(model.horizon):
        gap = np.abs(solve(changed).true_log_value[t] - changed.log_value[t])
        assert gap.max() <= (model.horizon - t) * np.log1p(eps) + 1e-9


@law
@given(st.integers(1, 6), st.floats(0.1, 10), st.integers(1, 40))
def test_expected_output_law_is_between_policy_and_target(horizon, ratio, n):
    model = product(horizon, ratio)
    law = model.expected_output_law(n)
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-10)
    share = law @ np.arange(horizon + 1) / horizon
    low, high = sorted((0.5, ratio / (1 + ratio)))
    assert low - 1e-9 <= share <= high + 1e-9
