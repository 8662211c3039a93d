from functools import partial

import numpy as np
import pytest

from rmtools.core import (
    FiniteModel,
    Tilt,
    hidden_prefix,
    implicit,
    metropolis,
    needle,
    particle_gibbs,
    persistent,
    perturb,
    product,
    random_tree,
    smc,
    solve,
)
from rmtools.errors import UserError
from rmtools.exact.bounds import particle_bound, particles_for_cv, pool_size_bound, sp_tv_bound

RNG = np.random.default_rng(0)
MODEL = product(3, 2.0)
COUNTS = {
    "n_particles": lambda n: smc(MODEL.particles(2), n, rng=RNG),
    "pool_size": lambda n: smc(MODEL.particles(2), 4, n, rng=RNG),
    "groups": MODEL.particles,
    "n_particles of a law": MODEL.expected_output_law,
    "pool_size of a variance": solve(MODEL).sigma2_pool,
    "mh_steps": lambda n: metropolis(lambda rng: smc(MODEL.particles(2), 4, rng=rng), n, RNG),
    "sweeps": lambda n: particle_gibbs(MODEL.particles(2), 4, n, rng=RNG),
    "horizon of product": lambda n: product(n, 2.0),
    "horizon of persistent": lambda n: persistent(n, 0.1),
    "branching": lambda n: needle(3, n),
    "m": lambda n: hidden_prefix(n, 2.0),
    "horizon of implicit": lambda n: implicit(n, 2, RNG),
    "horizon of random_tree": lambda n: random_tree(n, 2, 0.1, Tilt(0.1), RNG),
    "depth": lambda n: sp_tv_bound(n, 0.1),
    "horizon of a bound": lambda n: particle_bound(2.0, n, 0.1, 0.1),
    "mh_steps of a bound": lambda n: pool_size_bound(2.0, 8, 0.1, n, 0.1),
}
NUMBERS = {
    "ratio": lambda x: product(3, x),
    "ratio of hidden_prefix": lambda x: hidden_prefix(2, x),
    "eps": lambda x: persistent(4, x),
    "eps of perturb": lambda x: perturb(MODEL, x, "persistent"),
    "ess_threshold": lambda x: smc(MODEL.particles(2), 4, ess_threshold=x, rng=RNG),
    "bellman_error": lambda x: particle_bound(2.0, 8, x, 0.1),
    "delta": lambda x: particle_bound(2.0, 8, 0.1, x),
    "sigma2": lambda x: particles_for_cv(x, 0.1),
    "delta of a cv": lambda x: particles_for_cv(1.0, x),
}


@pytest.mark.parametrize("wrong", [-1, 2.5, 4.0, np.float64(4), "4", None, True, np.nan, np.inf, [4]])
@pytest.mark.parametrize("call", COUNTS.values(), ids=COUNTS)
def test_a_count_is_an_integer(call, wrong):
    with pytest.raises(UserError, match=r"at least [012], got "):
        call(wrong)
    call(np.int64(4))


@pytest.mark.parametrize("wrong", [-1, "0.5", None, True, np.nan, [0.5]])
@pytest.mark.parametrize("call", NUMBERS.values(), ids=NUMBERS)
def test_a_number_is_a_number(call, wrong):
    with pytest.raises(UserError, match="got"):
        call(wrong)


@pytest.mark.parametrize("wrong", [None, 0, np.random, np.random.RandomState(0)])
@pytest.mark.parametrize(
    "call",
    [
        partial(smc, MODEL.particles(2), 4),
        partial(metropolis, lambda rng: smc(MODEL.particles(2), 4, rng=rng), 2),
        partial(particle_gibbs, MODEL.particles(2), 4, 2),
        partial(random_tree, 3, 2, 0.1, Tilt(0.1)),
        partial(implicit, 3, 2),
        partial(perturb, MODEL, 0.1, "terminal"),
        partial(MODEL.draw_target, 3),
    ],
)
def test_a_generator_is_a_generator(call, wrong):
    with pytest.raises(UserError, match="`rng`"):
        call(rng=wrong)


def test_codes_that_no_float_counts_are_refused():
    with pytest.raises(UserError, match=r"hidden_prefix\(10000, 2.0\)"):
        hidden_prefix(10_000, 2.0)


def test_one_code_hides_nothing():
    with pytest.raises(UserError, match=r"hidden_prefix\(1, 1.3\)"):
        hidden_prefix(1, 1.3)


def test_a_model_and_its_answers_cannot_be_changed():
    model = product(3, 2.0)
    for array in (*model.policy, *model.log_value, solve(model).true_log_value[-1]):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0.0


def test_a_root_of_value_zero_costs_infinitely_many_particles():
    model = product(3, 2.0)
    dead = FiniteModel(model.policy, [np.array([-np.inf]), *model.log_value[1:]], model.children)
    exact = solve(dead)
    assert np.isfinite(exact.log_z)
    assert (exact.sigma2, exact.sigma2_pool(2), exact.n_for_cv(0.1)) == (np.inf,) * 3
    assert exact.n_for_tv(0.1) == np.inf


def test_a_chain_whose_target_passes_a_value_of_zero_needs_infinitely_many():
    children = [np.array([[0, 1]]), np.array([[0, 0], [1, 1]]), np.array([[0, 1], [0, 1]])]
    policy = [np.full((1, 2), 0.5), np.full((2, 2), 0.5), np.array([[0.9, 0.1], [0.1, 0.9]])]
    model = FiniteModel(policy, [[0.0], [-np.inf, 0.0], [0.0, 0.0], [0.0, 1.0]], children)
    assert (solve(model).sigma2, solve(model).n_for_tv(0.01)) == (np.inf, np.inf)


def test_a_model_is_no_particles():
    with pytest.raises(UserError, match=r"`root` .*FiniteModel.*model\.particles"):
        smc(MODEL, 4, rng=RNG)


@pytest.mark.parametrize("cut", [slice(1, None), slice(3, None), slice(0, 0)])
def test_a_reference_starts_at_the_root(cut):
    path = MODEL.draw_target(2, RNG)
    with pytest.raises(UserError, match=r"reference .*root"):
        particle_gibbs(MODEL.particles(2), 4, 2, rng=RNG, reference=path[cut])


def test_a_reference_has_every_depth():
    path = MODEL.draw_target(2, RNG)
    with pytest.raises(UserError, match="cannot join"):
        particle_gibbs(MODEL.particles(2), 4, 2, rng=RNG, reference=[path[0], *path[2:]])


@pytest.mark.parametrize("name", [None, ["multinomial"], "Systematic", 3])
def test_a_scheme_is_a_name_of_the_list(name):
    with pytest.raises(UserError, match="multinomial, systematic"):
        smc(MODEL.particles(2), 4, resampling=name, rng=RNG)
