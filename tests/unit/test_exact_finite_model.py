import itertools
import math

import numpy as np
import pytest

from rmtools.core import (
    FiniteModel,
    Tilt,
    hidden_prefix,
    implicit,
    log_z_bounds,
    needle,
    persistent,
    perturb,
    product,
    random_tree,
    solve,
)
from rmtools.errors import UserError
from rmtools.exact import influence as influence_module


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def one_step():
    # Z = .25 * 4 + .75 * 1 = 7/4, target (4/7, 3/7), H = phi / Z = (16/7, 4/7), E H = 76/49
    return FiniteModel([[[0.25, 0.75]]], [[0.0], np.log([4.0, 1.0])])


def test_one_step_by_hand(one_step):
    exact = solve(one_step)
    close(exact.log_z, math.log(7 / 4))
    close(exact.target, [4 / 7, 3 / 7])
    close(exact.influence, [16 / 7, 4 / 7])
    close([exact.sigma2, exact.sigma2_true_value, exact.sigma2_optimal], [27 / 49] * 3)
    close(exact.sigma2_pool(3), 9 / 49)
    close(exact.influence_mad().value, 288 / 343)
    close(exact.n_for_tv(0.01), 288 / 343 / 0.02)
    close(exact.n_for_cv(0.1), 2700 / 49)
    close(exact.log_bellman_error[0], [math.log(7 / 4)])
    close([exact.bellman_error, exact.bellman_error_gauge_fixed, exact.ratio_bound], [3 / 4, 0.0, 4.0])


def test_two_steps_by_hand():
    # V*(1) = (1.8 + .4)/2... : branch 0 gives .5*2 + .5*1 = 3/2, branch 1 gives .2*5 + .8*1 = 9/5; Z = 33/20
    policy = [[[0.5, 0.5]], [[0.5, 0.5], [0.2, 0.8]]]
    model = FiniteModel(policy, [np.log([2.0]), np.log([1.0, 3.0]), np.log([2.0, 1.0, 5.0, 1.0])])
    exact = solve(model)
    close(np.exp(exact.true_log_value[1]), [3 / 2, 9 / 5])
    close(exact.log_z, math.log(33 / 20))
    close(np.exp(exact.log_bellman_error[1]), [3 / 2, 3 / 5])
    close(exact.log_bellman_error[0], [0.0])
    close([exact.bellman_error, exact.ratio_bound], [2 / 3, 3.0])
    # gauge: at depth 1 log(3/2) and log(3/5) are centred to +-log(5/2)/2
    close(exact.bellman_error_gauge_fixed, math.sqrt(5 / 2) - 1)
    z2 = (33 / 20) ** 2
    first = 0.5 * (9 / 4) + 0.5 * (81 / 25)
    second = 0.5 * (0.5 * 4 + 0.5 * 1) / 1 + 0.5 * (0.2 * 25 + 0.8) / 3
    close(exact.sigma2, first / z2 + 2 * second / z2 - 2)
    own = 0.5 * (9 / 4) / 1 + 0.5 * (81 / 25) / 3
    close(exact.sigma2_pool(4), (first / z2 - 1) / 4 + 2 * (own + (second - own) / 4) / z2 - 1)
    true_second = 0.5 * 2.5 / 1.5 + 0.5 * 5.8 / 1.8
    close(exact.sigma2_true_value, first / z2 + (33 / 20) * true_second / z2 - 2)
    root = 0.5 * math.sqrt(2.5) + 0.5 * math.sqrt(5.8)
    close(exact.sigma2_optimal, first / z2 + root**2 / z2 - 2)
    close(model.reach(2), [0.25, 0.25, 0.1, 0.4])


def brute_force(model, pool_size):
    """H, target, sigma2 and MAD by listing every path."""
    horizon, z = model.horizon, np.exp(model.log_true_value[0][0])
    mean_value = [float(model.reach(t) @ np.exp(model.log_value[t])) for t in range(horizon)]
    value = [np.exp(v) for v in model.log_value]
    true = [np.exp(v) for v in model.log_true_value]
    h_all, p_all = [], []
    for path in itertools.product(*(range(p.shape[1]) for p in model.policy)):
        state, p, h = 0, 1.0, 0.0
        for t, b in enumerate(path):
            child = model.child(t)[state, b]
            p *= model.policy[t][state, b]
            mixed = true[t + 1][child] / pool_size + (1 - 1 / pool_size) * true[t][state]
            h += mixed * mean_value[t] / (value[t][state] * z)
            state = child
        h_all.append(h)
        p_all.append(p * value[horizon][state] / z)
    h, p = np.array(h_all), np.array(p_all)
    return h @ p - horizon, p @ np.abs(h - h @ p)


@pytest.mark.parametrize("pool_size", [1, 2, 5])
@pytest.mark.parametrize("name", ["tree", "product", "persistent", "perturbed chain", "needle", "hidden"])
def test_dynamic_programming_agrees_with_listing_every_path(name, pool_size):
    rng = np.random.default_rng(0)
    model = {
        "tree": lambda: random_tree(4, 3, 0.3, Tilt(0.05), rng),
        "product": lambda: product(6, 3.0),
        "persistent": lambda: persistent(6, 0.4),
        "perturbed chain": lambda: perturb(product(5, 0.4), 0.5, "random_signs", rng),
        "needle": lambda: needle(5, 3),
        "hidden": lambda: hidden_prefix(2, 3),
    }[name]()
    exact = solve(model)
    excess, mad = brute_force(model, pool_size)
    np.testing.assert_allclose(exact.influence_mad(pool_size).value, mad, rtol=1e-11, atol=1e-12)
    assert exact.influence_mad(pool_size).standard_error == 0
    if pool_size == 1:
        np.testing.assert_allclose(exact.sigma2, excess, rtol=1e-12, atol=1e-11)


def test_a_chain_and_its_tree_agree():
    chain = product(5, 3.0)
    ones = [np.array([bin(s).count("1") for s in range(2**t)]) for t in range(6)]
    tree = FiniteModel([np.full((2**t, 2), 0.5) for t in range(5)], [n * np.log(3.0) for n in ones])
    a, b = solve(chain), solve(tree)
    assert (chain.is_tree, tree.is_tree) == (False, True)
    for name in ("log_z", "bellman_error", "ratio_bound", "sigma2", "sigma2_true_value", "sigma2_optimal"):
        close(getattr(a, name), getattr(b, name))
    close(a.sigma2_pool(3), b.sigma2_pool(3))
    close(a.influence_mad(2).value, b.influence_mad(2).value)
    assert (a.target, a.influence) == (None, None)
    with pytest.raises(UserError, match="needs a tree"):
        a.influence_pool(2)


def test_mad_from_draws_agrees_with_dynamic_programming(monkeypatch):
    model = perturb(product(6, 3.0), 0.5, "random_signs", np.random.default_rng(1))
    exact = solve(model).influence_mad(2)
    monkeypatch.setattr(influence_module, "MAX_ATOMS", 1)
    drawn = solve(model).influence_mad(2, n_draws=100_000, seed=3)
    assert drawn.method == "100000 exact draws"
    assert 0 < drawn.standard_error < 0.01 * drawn.value
    assert abs(drawn.value - exact.value) <= 4.5 * drawn.standard_error


def test_closed_forms_of_the_families():
    close(solve(product(7, 3.0)).log_z, 7 * math.log(2.0))
    close(solve(product(7, 3.0)).bellman_error, 1.0)
    close(solve(product(7, 3.0)).ratio_bound, 3.0)
    close(solve(product(7, 0.5)).bellman_error, 1 / 3)
    for horizon in (2, 5, 8, 33):
        exact = solve(persistent(horizon, 0.2))
        t = np.arange(1, horizon + 1)
        close(exact.sigma2, np.sum(np.sinh(np.minimum(t - 1, horizon - t + 1) * math.log(1.2)) ** 2))
        close([exact.log_z, exact.bellman_error, exact.sigma2_true_value], [0.0, 0.2, 0.0])
    exact = solve(implicit(4, 3, np.random.default_rng(0)))
    close([exact.log_z, exact.bellman_error], [0.0, 0.0])
    assert exact.sigma2 > 0.1
    close(np.exp(solve(needle(5, 3)).log_z), 3.0**-5 + (1 - 3.0**-5) * 3.0**-10)
    hidden = solve(hidden_prefix(4, 2))
    close(np.exp(hidden.log_z), 2.0**-8 * 2**4 + (1 - 2.0**-8) * 2.0**-4)
    close([hidden.bellman_error, hidden.ratio_bound], [1.0, 2.0])
    close(solve(hidden_prefix(6, 1.5)).bellman_error, 0.5)
    close(hidden_prefix(6, 1.5).policy[0], [[1 / 129, 128 / 129]])


def test_long_chains_do_not_underflow():
    exact = solve(needle(400, 4))
    close(exact.log_z, np.logaddexp(-400 * math.log(4), -800 * math.log(4)))
    rate = np.diff([math.log(solve(needle(t, 4)).sigma2) for t in (100, 101)])
    close(rate, [math.log(4)])
    assert math.isfinite(solve(persistent(256, 0.5)).sigma2)


@pytest.mark.parametrize("kind", ["random_signs", "persistent", "terminal"])
@pytest.mark.parametrize("eps", [0.0, 0.05, 1.0])
def test_perturb_attains_its_error_and_keeps_the_truth(kind, eps):
    rng = np.random.default_rng(2)
    for model in (
        random_tree(4, 3, 0.7, Tilt(0.1), rng),
        product(5, 3.0),
        random_tree(3, 2, 0.0, Tilt(0.1), rng),
    ):
        changed = perturb(model, eps, kind, rng)
        exact = solve(changed)
        close(exact.bellman_error, eps)
        close(exact.log_z, solve(model).log_z)
        close(exact.sigma2_true_value, solve(model).sigma2_true_value)


def test_terminal_error_is_at_the_last_step_only():
    exact = solve(perturb(product(5, 3.0), 0.5, "terminal", np.random.default_rng(0)))
    for b in exact.log_bellman_error[:-1]:
        close(b, 0 * b)
    close(np.abs(exact.log_bellman_error[-1]), np.full(5, math.log(1.5)))


def test_unreachable_states_and_forbidden_branches_do_not_count():
    policy = [[[1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]]
    wild = FiniteModel(policy, [[0.0], np.log([1.0, 1e9]), np.log([1.5, 0.5, 1e9, 1e-9])])
    close([solve(wild).bellman_error, solve(wild).ratio_bound], [0.0, 2.0])
    close(solve(wild).target, [0.75, 0.25, 0, 0])
    close(solve(wild).influence[2:], [0, 0])
    chain = FiniteModel(
        [[[1.0, 0.0]], [[0.5, 0.5]]], [[0.0], [0.0], np.log([1.5, 0.5])], [[[0, -7]], [[0, 1]]]
    )
    assert chain.is_tree
    close(solve(chain).sigma2, solve(wild).sigma2)
    close(solve(chain).influence, solve(wild).influence[:2])


def test_a_potential_of_zero_everywhere_is_reported():
    model = FiniteModel([[[0.5, 0.5]]], [[0.0], [-np.inf, -np.inf]])
    exact = solve(model)
    assert exact.log_z == -np.inf
    assert exact.target is None
    assert [exact.sigma2, exact.sigma2_true_value, exact.sigma2_optimal] == [math.inf] * 3
    assert [exact.bellman_error, exact.ratio_bound, exact.sigma2_pool(2)] == [math.inf] * 3
    assert [exact.n_for_tv(0.1), exact.n_for_cv(0.1)] == [math.inf] * 2
    with pytest.raises(UserError, match="target"):
        model.draw_target(3, np.random.default_rng(0))


def test_some_zero_potentials_are_ordinary():
    model = FiniteModel([[[0.5, 0.25, 0.25]]], [[np.log(0.5)], [0.0, -np.inf, -np.inf]])
    exact = solve(model)
    close([exact.log_z, exact.sigma2, exact.bellman_error], [math.log(0.5), 1.0, 0.0])
    assert exact.ratio_bound == math.inf
    below = FiniteModel(
        [[[0.5, 0.5]], np.eye(2)[:, ::-1]], [[0.0], [0.0, -np.inf], [0.0, 0.0, -np.inf, -np.inf]]
    )
    close([solve(below).log_z, solve(below).sigma2], [math.log(0.5), 1.0])
    assert np.isfinite(solve(below).log_bellman_error[1][1])


def test_draw_target_has_the_law_of_the_target():
    model = random_tree(3, 2, 0.5, Tilt(0.05), np.random.default_rng(0))
    path = model.draw_target(40_000, np.random.default_rng(1))
    assert [p.depth for p in path] == [0, 1, 2, 3]
    assert (path[3].state // 2 == path[2].state).all()
    target = solve(model).target
    seen = np.bincount(path[3].state[:, 0], minlength=8) / 40_000
    assert (np.abs(seen - target) <= 4.5 * np.sqrt(target * (1 - target) / 40_000)).all()


def test_expected_output_law_by_hand():
    # N = 2, ratio 3: E[3K / (3K + 2 - K)] = 1/2 * 3/4 + 1/4 = 5/8
    close(product(2, 3.0).expected_output_law(2), [9 / 64, 30 / 64, 25 / 64])
    close(product(3, 3.0).expected_output_law(1), np.array([1, 3, 3, 1]) / 8)
    big = product(3, 3.0).expected_output_law(10**6)
    np.testing.assert_allclose(big, np.array([1, 9, 27, 27]) / 64, atol=1e-5)
    with pytest.raises(UserError, match="state"):
        random_tree(3, 2, 0.5, Tilt(0.1), np.random.default_rng(0)).expected_output_law(4)
    with pytest.raises(UserError, match="two branches"):
        random_tree(3, 3, 0.5, Tilt(0.1), np.random.default_rng(0)).expected_output_law(4)


def test_expected_output_law_approaches_the_target_as_mad_over_2n():
    model = product(6, 3.0)
    target = np.array([math.comb(6, k) for k in range(7)]) * 0.25**6 * 3.0 ** np.arange(7)
    tv = 0.5 * np.abs(model.expected_output_law(1000) - target).sum()
    assert tv == pytest.approx(solve(model).influence_mad().value / 2000, rel=0.01)


def test_a_million_leaves():
    model = random_tree(20, 2, 0.1, Tilt(0.01), np.random.default_rng(0))
    reach = np.ones(1)
    for policy in model.policy:
        reach = (reach[:, None] * policy).ravel()
    assert reach.size == 2**20
    assert np.exp(solve(model).log_z) == pytest.approx(reach @ np.exp(model.log_value[-1]), rel=1e-9)


BAD_MODELS = {
    "sums to one plus -0.1": ([[[0.5, 0.5]], [[0.5, 0.5], [0.5, 0.4]]], [[0.0], [0.0] * 2, [0.0] * 4], None),
    r"policy\[1\]\[1\]": ([[[0.5, 0.5]], [[0.5, 0.5], [0.5, 0.4]]], [[0.0], [0.0] * 2, [0.0] * 4], None),
    r"policy\[0\]\[0, 0\] is -0.5": ([[[-0.5, 1.5]]], [[0.0], [0.0] * 2], None),
    r"policy\[0\]\[0, 0\] is nan": ([[[np.nan, 0.5]]], [[0.0], [0.0] * 2], None),
    "T policies": ([[[0.5, 0.5]]], [[0.0]], None),
    "expected": ([[0.5, 0.5]], [[0.0], [0.0] * 2], None),
    "full tree has 2 states, got 3": ([[[0.5, 0.5]]], [[0.0], [0.0] * 3], None),
    "one root state": ([[[0.5, 0.5]] * 2], [[0.0] * 2, [0.0] * 4], None),
    r"log_value\[1\]\[1\] is nan": ([[[0.5, 0.5]]], [[0.0], [0.0, np.nan]], None),
    r"log_value\[0\]\[0\] is inf": ([[[0.5, 0.5]]], [[np.inf], [0.0, 0.0]], None),
    "must have 1 layers": ([[[0.5, 0.5]]], [[0.0], [0.0] * 2], []),
    r"children\[0\]\[0, 1\] is 2": ([[[0.5, 0.5]]], [[0.0], [0.0] * 2], [[[0, 2]]]),
    "integers": ([[[0.5, 0.5]]], [[0.0], [0.0] * 2], [[[0.0, 1.0]]]),
}


@pytest.mark.parametrize("fact", BAD_MODELS)
def test_bad_models_are_refused_with_the_place(fact):
    with pytest.raises(UserError, match=fact):
        FiniteModel(*BAD_MODELS[fact])


@pytest.mark.parametrize(
    ("call", "fact"),
    [
        (lambda: product(0, 2.0), "horizon"),
        (lambda: product(3, 0.0), "ratio"),
        (lambda: needle(3, 1), "branching"),
        (lambda: hidden_prefix(2, 1.0), "ratio"),
        (lambda: persistent(1, 0.1), "at least 2"),
        (lambda: persistent(4, -0.1), "eps"),
        (lambda: perturb(product(1, 2.0), 0.1, "persistent"), "at least 2 steps"),
        (lambda: perturb(product(3, 2.0), 0.1, "signs"), "random_signs, persistent, terminal"),
        (lambda: perturb(product(3, 2.0), 0.1, "terminal"), "rng"),
        (lambda: product(3, 2.0).particles(0), "groups"),
        (lambda: solve(product(3, 2.0)).n_for_tv(0.0), "tolerance"),
        (lambda: solve(product(3, 2.0)).n_for_cv(-1.0), "relative error"),
        (lambda: solve(product(3, 2.0)).sigma2_pool(0), "pool_size"),
    ],
)
def test_bad_arguments(call, fact):
    with pytest.raises(UserError, match=fact):
        call()


def test_a_value_of_zero_before_a_positive_potential_costs_infinitely_much():
    model = FiniteModel(
        [[[0.5, 0.5]], [[0.5, 0.5]] * 2], [[0.0], [-np.inf, 0.0], np.log([1.0, 2.0, 3.0, 4.0])]
    )
    exact = solve(model)
    assert np.exp(exact.log_z) == pytest.approx(2.5)
    assert (
        exact.sigma2 == exact.sigma2_pool(2) == exact.influence_mad().value == exact.n_for_tv(0.1) == np.inf
    )
    assert np.isfinite([exact.sigma2_true_value, exact.sigma2_optimal]).all()
    with pytest.raises(UserError, match="depth 1"):
        log_z_bounds(model.draw_target(50, np.random.default_rng(0)), 4, rng=np.random.default_rng(1))
