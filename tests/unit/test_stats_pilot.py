"""Particles by a pilot, against exact models."""

import math

import numpy as np
import pytest

from rmtools.core import product, smc, solve
from rmtools.errors import UserError
from rmtools.stats.pilot import (
    PilotSampler,
    independent_cost,
    island_estimates,
    islands_for,
    pilot,
    pilot_estimator,
    relative_error,
)

SAMPLER = PilotSampler()


@pytest.fixture(scope="module")
def model():
    return product(horizon=6, ratio=3.0)


def log_z_of(model, shape, rng, threshold=0.5):
    return smc(
        model.particles(int(np.prod(shape))), 16, ess_threshold=threshold, rng=rng, history=False, islands=1
    ).log_z.reshape(shape)


def near(values, truth):
    return abs(np.mean(values) - truth) < 4.5 * np.std(values, ddof=1) / math.sqrt(len(values))


def test_both_sums_are_unbiased(model):
    """Without resampling an island of n particles has the variance of one over n, known exactly."""
    exact, rng = solve(model), np.random.default_rng(0)
    z_square = math.exp(2 * exact.log_z)
    truth = exact.sigma2_schedule(()) / 16
    log_z = log_z_of(model, (100, 24, 3), rng, threshold=0.0)
    top = log_z.max(axis=(1, 2))
    sums = np.stack([pilot_estimator(own, SAMPLER, 0.1).sums["variance"][0] for own in log_z])
    variance, squares = (sums * np.exp(2 * top)[:, None, None] / z_square).mean(axis=1).T
    assert near(variance, truth)
    assert near(squares, 1.0)
    biased = (np.exp(log_z).mean(axis=2) ** 2 / z_square).mean(axis=1)
    assert not near(biased, 1.0)  # the plug-in of Z^2 is what the test can tell from it


def independent(model, shape, rng):
    """Final log values of solutions of the policy, (shape, 16)."""
    root = model.particles(int(np.prod(shape)))
    found = smc(root, 16, resampling="none", rng=rng, history=False, islands=1)
    return found.particles.log_value().reshape(*shape, 16)


def test_best_of_n_against_the_sampler_is_paired(model):
    """Without resampling the sampler is best-of-N, of ratio 1. Prompts of other Z weigh the same in both sums."""
    rng, prompts = np.random.default_rng(5), 48
    shift = np.linspace(-0.7, 0.7, prompts)
    z = np.exp(log_z_of(model, 40_000, rng))
    truth = solve(model).sigma2_schedule(()) / (16 * z.var(ddof=1) / z.mean() ** 2)
    assert truth > 1.2
    covered, found = {0.0: 0, 0.5: 0}, None
    for _ in range(30):
        solutions = independent(model, (prompts,), rng) + shift[:, None]
        for threshold, ratio in ((0.0, 1.0), (0.5, truth)):
            log_z = log_z_of(model, (prompts, 16), rng, threshold) + shift[:, None]
            one, found = independent_cost(log_z, 16, list(solutions)).bootstrap(rng, 300)
            variance = pilot_estimator(log_z, SAMPLER, 0.1).bootstrap(rng, 2).uncut.estimate
            assert one.estimate == pytest.approx(found.estimate * 16 * variance)
            covered[threshold] += found.contains(ratio)
    assert min(covered.values()) >= 25
    assert not found.contains(2 * truth)
    for few in (1, 5):  # one prompt, and few that carry the sums
        assert independent_cost(log_z[:few], 16, list(solutions[:few])) is None
    carried = np.where(np.arange(prompts) < 3, 5.0, 0.0)[:, None]
    assert independent_cost(log_z + carried, 16, list(solutions + carried)) is None
    assert independent_cost(log_z, 16, [*solutions[1:], solutions[0, :1]]) is None
    assert independent_cost(np.zeros((prompts, 4)), 16, list(solutions)) is None
    assert independent_cost(np.full((8, 4), -np.inf), 16, list(np.full((8, 4), -np.inf))) is None


def test_more_prompts_before_more_islands(monkeypatch):
    """Every eighth prompt has all of the variance: its share of the first is that of all."""
    monkeypatch.setattr("rmtools.stats.pilot.MOST_RUNS", 0)
    hard, easy = product(horizon=6, ratio=6.0), product(horizon=6, ratio=1.001)

    class Prompts:
        def __init__(self):
            self.seen = []

        def __call__(self, prompts):
            self.seen.append(np.unique(prompts))
            return (hard if prompts[0] % 8 == 0 else easy).particles(len(prompts))

    def runs(n_prompts, at_first, close):
        monkeypatch.setattr("rmtools.stats.pilot.CLOSE", close)
        root = Prompts()
        found = island_estimates(
            root, n_prompts, SAMPLER, np.random.default_rng(0), at_first=at_first, at_once=16
        )
        return found[0], root

    log_z, root = runs(64, 16, 0.01)
    assert log_z.shape == (64, 16)  # 16, 32, 64
    assert np.array_equal(np.unique(np.concatenate(root.seen)), np.arange(64))
    assert len(root.seen) == 64
    assert runs(64, 16, 10.0)[0].shape == (16, 16)
    assert runs(64, None, 10.0)[0].shape == (64, 16)


@pytest.mark.parametrize("delta", [0, -1, math.nan, math.inf])
def test_arguments_out_of_range(model, delta):
    with pytest.raises(UserError, match="delta_cv"):
        pilot(lambda prompts: model.particles(len(prompts)), 24, SAMPLER, delta, np.random.default_rng(0))
    for wrong in (PilotSampler(0), PilotSampler(pool_size=0)):
        with pytest.raises(UserError, match="must be an integer of at least 1"):
            pilot(lambda prompts: model.particles(len(prompts)), 24, wrong, 0.1, np.random.default_rng(0))


def test_variance_and_intervals_of_the_default_sampler(model):
    rng = np.random.default_rng(1)
    z = np.exp(log_z_of(model, 40_000, rng))
    truth, spread = z.var(ddof=1) / z.mean() ** 2, np.square(z / z.mean() - 1)
    found = [
        pilot_estimator(own, SAMPLER, 0.1).bootstrap(rng, 500) for own in log_z_of(model, (60, 24, 16), rng)
    ]
    values = np.array([p.relative_variance.estimate for p in found])
    error = math.hypot(values.std() / math.sqrt(len(values)), spread.std() / math.sqrt(len(z)))
    assert abs(values.mean() - truth) < 4.5 * error
    assert sum(p.relative_variance.contains(truth) for p in found) >= 50
    assert not all(p.relative_variance.contains(1.3 * truth) for p in found)
    errors = np.array([p.relative_error for p in found])
    assert 0.7 < errors.mean() * truth / values.std() < 1.4


def test_islands_of_an_accuracy():
    assert [islands_for(v, 0.25) for v in (0.0, 0.0625, 0.25, 0.2501, 1.0)] == [4, 4, 4, 5, 16]
    assert islands_for(0.1 * 3, 0.1) == 30


def test_few_prompts_have_more_islands(model):
    calls = []

    def root(prompts):
        calls.append(len(prompts))
        return model.particles(len(prompts))

    found = pilot(root, 5, SAMPLER, 0.1, np.random.default_rng(2), at_once=64)
    assert found.runs >= 41
    assert found.n_prompts * found.runs == sum(calls)
    assert max(calls) == 64
    assert found.reached
    assert found.n_for_cv.estimate == pytest.approx(16 * found.relative_variance.estimate / 0.01)
    assert found.islands_for_cv == math.ceil(found.relative_variance.estimate / 0.01)
    assert found.cv(4).estimate == pytest.approx(math.sqrt(found.relative_variance.estimate / 4))
    assert found.particles_for(0.1) == found.n_for_cv
    again = pilot(root, 5, SAMPLER, 0.1, np.random.default_rng(2), at_once=64)
    assert again.relative_variance == found.relative_variance


def test_one_prompt_has_an_interval_over_islands(model):
    found = pilot(lambda i: model.particles(len(i)), 1, SAMPLER, 0.1, np.random.default_rng(3))
    assert found.runs >= 201
    assert 0 < found.relative_variance.low < found.relative_variance.estimate < found.relative_variance.high


def of(z, delta=0.1):
    with np.errstate(divide="ignore"):
        return pilot_estimator(np.log(z), SAMPLER, delta).bootstrap(np.random.default_rng(0))


def test_estimates_of_zero():
    rng = np.random.default_rng(4)
    nothing = of(np.zeros((8, 30)))
    assert (nothing.resolved, nothing.n_for_cv, nothing.relative_variance, nothing.failed) == (
        *(False, None, None),
        1.0,
    )
    assert "zero on every island" in nothing.reason
    single = np.zeros((8, 30))
    single[:, 0] = 1.0
    assert not of(single).resolved
    assert not of(single, delta=5.0).resolved
    some = of((rng.random((40, 30)) < 0.5) * 1.0)
    assert some.relative_variance.contains(1.0)
    assert some.failed == pytest.approx(0.5, abs=0.05)


def test_equal_estimates_have_no_variance():
    found = of(np.full((8, 30), 0.3))
    assert found.resolved
    assert (found.relative_variance.estimate, found.islands_for_cv, found.n_for_cv.estimate) == (0.0, 4, 16.0)
    assert math.isnan(relative_error(np.zeros((8, 30))))


def test_a_variance_that_is_small_whatever_its_error():
    """Where four islands are enough at two standard errors, they are the answer."""
    z = np.ones((1, 201))
    z[0, :2] = 1.5, 0.5
    found = of(z, delta=0.25)
    assert found.relative_error > 0.5
    assert (found.resolved, found.islands_for_cv, found.reached) == (True, 4, False)
    assert not of(z, delta=0.01).resolved


def test_values_hundreds_of_nats_apart():
    log_z = np.random.default_rng(5).normal(scale=0.3, size=(30, 20)) - 700 * np.arange(30)[:, None]
    found = pilot_estimator(log_z, SAMPLER, 0.1).bootstrap(np.random.default_rng(0))
    assert found.carrying == pytest.approx(1.0)
    assert math.isfinite(found.uncut.estimate)


def test_top_k_is_refused(model):
    with pytest.raises(UserError, match="estimates no Z"):
        pilot(
            lambda i: model.particles(len(i)),
            4,
            PilotSampler(resampling="top_k"),
            0.1,
            np.random.default_rng(0),
        )
