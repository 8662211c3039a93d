"""Observing a run: it changes nothing, and what is shown is enough to work the run out again."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from rmtools.core import RESAMPLING, Tilt, metropolis, particle_gibbs, product, random_tree, smc, solve
from rmtools.errors import UserError
from rmtools.lm.particles import LMParticles

ARRAYS = ("log_weights", "log_z", "ess", "log_increments", "ancestors", "resampled", "live")
SCHEMES = sorted(RESAMPLING)


def rng(seed=0):
    return np.random.default_rng(seed)


def tree(seed=1):
    return random_tree(5, 3, 0.8, Tilt(0.05), rng(seed))


def observed(root, n, m, scheme, threshold, **settings):
    steps = []
    result = smc(root, n, m, scheme, threshold, rng(7), observe=steps.append, **settings)
    return steps, result


def test_what_cannot_be_called_is_refused():
    for run, counts in ((smc, (4,)), (particle_gibbs, (4, 2))):
        with pytest.raises(UserError, match="`observe`"):
            run(tree().particles(2), *counts, rng=rng(), observe=3)


@pytest.mark.parametrize("history", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_changes_on_a_finite_model(scheme, m, threshold, history):
    root = tree().particles(20)
    steps, result = observed(root, 6, m, scheme, threshold, history=history)
    plain = smc(root, 6, m, scheme, threshold, rng(7), history=history)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(result, name), getattr(plain, name))
    np.testing.assert_array_equal(result.particles.state, plain.particles.state)
    assert [step.t for step in steps] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_changes_on_a_language_model(policy, value, prompts, task, scheme, m):
    root = LMParticles.start(policy, value, prompts[:3], terminal="verifier", reward=task.reward)
    steps, result = observed(root, 5, m, scheme, 0.7)
    plain = smc(root, 5, m, scheme, 0.7, rng(7))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(result, name), getattr(plain, name))
    assert result.particles.steps() == plain.particles.steps()
    assert result.particles.decoded.tolist() == plain.particles.decoded.tolist()
    tokens = sum(step.children.decoded - step.parents.decoded for step in steps)
    assert tokens.tolist() == plain.particles.decoded.tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("m", [1, 4])
def test_the_running_log_z_estimates_the_mean_value_of_each_depth(m, threshold):
    """Unbiased at every step, with and without resampling; at the last step it is the result's."""
    model = tree()
    steps, result = observed(model.particles(4000), 8, m, "multinomial", threshold)
    np.testing.assert_array_equal(steps[-1].log_z, result.log_z)
    for step in steps:
        truth = np.exp(model.log_reach[step.t] + model.log_value[step.t]).sum()
        ratio = np.exp(step.log_z) / truth
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(ratio)), step.t


def test_a_beam_has_no_running_log_z():
    steps, _ = observed(tree().particles(2), 6, 4, "top_k", 0.5)
    assert [step.log_z for step in steps] == [None] * 5


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_index_selects_the_parents_of_the_next_step(scheme, m):
    steps, result = observed(tree().particles(20), 6, m, scheme, 0.6)
    after = [step.parents for step in steps[1:]] + [result.particles]
    for t, (step, kept) in enumerate(zip(steps, after, strict=True)):
        assert step.parents.shape == step.index.shape == step.log_increment.shape == (20, 6)
        assert step.children.shape == (20, 6 * m)
        np.testing.assert_array_equal(step.children.select(step.index).state, kept.state)
        np.testing.assert_array_equal(step.index // m, result.ancestors[t])
        np.testing.assert_array_equal(step.ess, result.ess[t])
        np.testing.assert_array_equal(step.resampled, result.resampled[t])
        np.testing.assert_array_equal(step.log_increment, result.log_increments[t])
        np.testing.assert_array_equal(
            step.children.state // 3, np.repeat(step.parents.state, m, axis=1), "of the tree"
        )
        if m == 1:
            np.testing.assert_array_equal(
                step.index[~step.resampled], np.arange(6) + 0 * step.index[~step.resampled]
            )


def log_mean(x):
    return np.log(np.mean(np.exp(x), axis=-1))


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_log_z_is_worked_out_from_the_steps_alone(m, threshold):
    """Also the increments and the ESS, from the values of parents and children; and Z-hat is unbiased."""
    model = tree()
    steps, result = observed(model.particles(4000), 6, m, "stratified", threshold)
    log_z, weight = steps[0].parents.log_value()[:, 0], np.zeros((4000, 6))
    for step in steps:
        pool = step.children.log_value().reshape(4000, 6, m)
        increment = log_mean(pool) - step.parents.log_value()
        np.testing.assert_allclose(step.log_increment, increment, atol=1e-12)
        weight = weight + increment
        w = np.exp(weight)
        np.testing.assert_allclose(step.ess, w.sum(1) ** 2 / (w**2).sum(1), rtol=1e-9)
        log_z = log_z + np.where(step.resampled, log_mean(weight), 0.0)
        weight = np.where(step.resampled[:, None], 0.0, weight)
    log_z = log_z + log_mean(weight)
    np.testing.assert_allclose(log_z, result.log_z, atol=1e-12)
    ratio = np.exp(log_z - solve(model).log_z)
    assert abs(ratio.mean() - 1) <= 4.5 * ratio.std() / np.sqrt(4000)


def test_a_step_is_frozen_and_its_arrays_are_read_only():
    (step, *_), result = observed(product(3, 2.0).particles(2), 4, 2, "systematic", 1.0)
    with pytest.raises(FrozenInstanceError):
        step.t = 9
    for name in ("index", "ess", "resampled", "log_increment"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(step, name)[...] = 0
    shown = step.log_increment.copy()
    result.log_increments[0] = 1.0  # what the caller gets is the caller's
    np.testing.assert_array_equal(step.log_increment, shown)


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_observer_that_writes_into_a_step_changes_nothing(scheme, m):
    """Also one that makes the arrays writeable first, or shares their memory."""

    def spoil(step):
        for name in ("index", "ess", "resampled", "log_increment"):
            array = getattr(step, name)
            array.flags.writeable = True
            array[...] = 1

    root = tree().particles(20)
    spoiled = smc(root, 6, m, scheme, 0.6, rng(7), observe=spoil)
    plain = smc(root, 6, m, scheme, 0.6, rng(7))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(spoiled, name), getattr(plain, name))
    np.testing.assert_array_equal(spoiled.particles.state, plain.particles.state)


def test_what_the_observer_raises_comes_out_as_it_is():
    class StopError(Exception):
        pass

    def stop(step):
        if step.t == 2:
            raise StopError

    with pytest.raises(StopError) as found:
        smc(product(3, 2.0).particles(2), 4, rng=rng(), observe=stop)
    assert found.value.__cause__ is found.value.__context__ is None
    assert found.traceback[-1].name == "stop"


@pytest.mark.parametrize("m", [1, 3])
def test_conditional_runs_are_shown_with_the_reference_as_candidate_0(m):
    model, steps = tree(), []
    path = model.draw_target(50, rng(2))
    result = particle_gibbs(path[0], 4, 2, m, rng=rng(3), reference=path, observe=steps.append)
    plain = particle_gibbs(path[0], 4, 2, m, rng=rng(3), reference=path)
    np.testing.assert_array_equal(result.log_z, plain.log_z)
    np.testing.assert_array_equal(result.draws[-1].state, plain.draws[-1].state)
    assert [step.t for step in steps] == [1, 2, 3, 4, 5] * 2
    for t, step in enumerate(steps[:5], 1):
        np.testing.assert_array_equal(step.children.state[:, :1], path[t].state)
        assert (step.index[:, 0] == 0).all()
    fresh = []
    particle_gibbs(model.particles(50), 4, 2, m, rng=rng(3), observe=fresh.append)
    assert len(fresh) == 15


def test_a_chain_of_runs_is_watched_through_its_sampler():
    steps = []
    model = product(4, 2.0)
    metropolis(lambda r: smc(model.particles(3), 2, rng=r, observe=steps.append), 2, rng())
    assert [step.t for step in steps] == [1, 2, 3, 4] * 3


def test_a_step_and_a_model_print_in_a_line():
    model = product(horizon=6, ratio=3.0)
    steps = []
    smc(model.particles(groups=4), 32, rng=np.random.default_rng(0), observe=steps.append)
    assert f"t=1, groups=4, n_particles=32, resampled={steps[0].resampled.sum()}" in repr(steps[0])
    assert repr(model) == f"FiniteModel(horizon=6, states={sum(map(len, model.log_value))})"
