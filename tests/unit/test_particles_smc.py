import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

from rmtools.core import RESAMPLING, FiniteModel, Tilt, product, random_tree, smc
from rmtools.errors import UserError

SCHEMES = ["multinomial", "systematic", "stratified", "residual"]


@dataclass(frozen=True)
class Recorded:
    """Slot i of group g at depth t has log value `script[g, t, i]` and has ended from depth `ends[g, i]` on.

    Children are written down beforehand, so only resampling is random.
    """

    script: np.ndarray
    ends: np.ndarray
    slot: np.ndarray
    depth: int = 0

    @property
    def shape(self):
        return self.slot.shape

    @property
    def ended(self):
        return self.depth >= np.take_along_axis(self.ends, self.slot, 1)

    def log_value(self):
        depth = np.minimum(self.depth, np.take_along_axis(self.ends, self.slot, 1))
        return self.script[np.arange(len(self.slot))[:, None], depth, self.slot]

    def extend(self, pool_size, rng):
        return replace(self, slot=np.repeat(self.slot, pool_size, axis=1), depth=self.depth + 1)

    def select(self, index):
        return replace(self, slot=np.take_along_axis(self.slot, index, axis=1))


def recorded(script, ends):
    script, ends = np.array(script, dtype=float), np.array(ends)
    return Recorded(script, ends, np.tile(np.arange(script.shape[2]), (len(script), 1)))


def run(root, n, **settings):
    return smc(root, n, **{"rng": np.random.default_rng(0), **settings})


def test_importance_sampling_by_hand():
    root = recorded(np.log([[[1, 1], [2, 1], [4, 1]]]), [[2, 2]])
    result = run(root, 2, ess_threshold=0)
    assert result.n_steps == 2
    np.testing.assert_allclose(np.exp(result.log_z), [5 / 2], rtol=1e-15)
    np.testing.assert_allclose(np.exp(result.log_weights), [[4 / 5, 1 / 5]], rtol=1e-15)
    np.testing.assert_allclose(np.exp(result.log_increments), [[[2, 1]], [[2, 1]]], rtol=1e-15)
    np.testing.assert_allclose(result.ess, [[9 / 5], [25 / 17]], rtol=1e-15)
    assert not result.resampled.any()
    assert result.ancestors.tolist() == [[[0, 1]], [[0, 1]]]
    assert result.unique_ancestors.tolist() == [[2], [2]]
    assert result.argmax().tolist() == [0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resampling_every_step_multiplies_the_means(scheme):
    root = recorded(np.log([[[1, 1, 1], [2, 1, 3], [4, 5, 3], [1, 1, 1]]]), [[3, 3, 3]])
    result = run(root, 3, resampling=scheme, ess_threshold=1)
    assert result.resampled.tolist() == [[True], [True], [False]]
    means = [np.exp(row).mean() for row in result.log_increments]
    np.testing.assert_allclose(np.exp(result.log_z), np.prod(means), rtol=1e-14)


def test_ess_threshold_is_a_fraction_of_n():
    root = recorded(np.log([[[1, 1], [2, 1], [1, 1]]] * 2), [[2, 2]] * 2)  # ESS after the first step: 1.8
    assert not run(root, 2, ess_threshold=0.89).resampled.any()
    assert run(root, 2, ess_threshold=0.91).resampled.tolist() == [[True, True], [False, False]]
    equal = recorded(np.zeros((1, 3, 2)), [[2, 2]])
    assert run(equal, 2, ess_threshold=1).resampled.tolist() == [[True], [False]]
    assert not run(equal, 2, ess_threshold=0.999).resampled.any()


def test_groups_end_at_different_depths_and_freeze():
    rng = np.random.default_rng(1)
    ends = np.array([[2] * 4, [5] * 4, [1, 3, 3, 1]])
    script = rng.normal(size=(3, 6, 4))
    script[:, 0] = log_start = 0.3
    root = recorded(script, ends)
    result = run(root, 4, ess_threshold=1, resampling="multinomial")
    assert result.n_steps == 5
    resampled = result.resampled
    assert resampled[:, 0].tolist() == [True, False, False, False, False]
    assert resampled[:, 1].tolist() == [True] * 4 + [False]
    assert not resampled[3:, 2].any()
    assert (result.log_increments[2:, 0] == 0).all()
    assert (result.ancestors[1:, 0] == np.arange(4)).all()
    means = np.exp(result.log_increments[:, 0]).mean(axis=1)
    np.testing.assert_allclose(np.exp(result.log_z[0]), np.exp(log_start) * np.prod(means[:2]), rtol=1e-14)
    alone = run(recorded(root.script[:1], ends[:1]), 4, ess_threshold=0)
    together = run(root, 4, ess_threshold=0)
    np.testing.assert_array_equal(alone.log_z, together.log_z[:1])
    np.testing.assert_array_equal(alone.log_weights, together.log_weights[:1])


def test_ended_parents_have_an_increment_of_exactly_zero():
    @dataclass(frozen=True)
    class Jittery(Recorded):
        def log_value(self):
            return super().log_value() + 1e-9 * self.depth

    base = recorded(np.random.default_rng(2).normal(size=(1, 5, 3)), [[1, 2, 4]])
    root = Jittery(base.script, base.ends, base.slot)
    result = run(root, 3, ess_threshold=0)
    assert (result.log_increments[1:, 0, 0] == 0).all()
    assert (result.log_increments[2:, 0, 1] == 0).all()
    assert (result.log_increments[:, 0, 2] != 0).all()


def test_a_dead_particle_stays_dead():
    script = np.array([[[0, 0, 0], [-np.inf, 0, 1], [3, 0, 1], [3, 0, 1]]])
    result = run(recorded(script, [[3, 3, 3]]), 3, ess_threshold=0)
    assert result.log_weights[0, 0] == -np.inf
    np.testing.assert_allclose(np.exp(result.log_z), (1 + np.e) / 3, rtol=1e-15)
    for scheme in SCHEMES:
        result = run(recorded(script, [[3, 3, 3]]), 3, resampling=scheme, ess_threshold=1)
        assert 0 not in result.ancestors[0]


@pytest.mark.parametrize("pool_size", [1, 3])
@pytest.mark.parametrize("threshold", [0, 0.5, 1])
def test_all_dead_is_zero_not_nan_and_leaves_others_alone(pool_size, threshold):
    script = np.zeros((2, 4, 2))
    script[0, 1:] = -np.inf
    result = run(recorded(script, [[3, 3]] * 2), 2, pool_size=pool_size, ess_threshold=threshold)
    assert result.log_z.tolist() == [-np.inf, 0.0]
    assert (result.log_weights[0] == -np.inf).all()
    assert (result.ess[:, 0] == 0).all()
    assert not np.isnan(result.log_increments).any()
    assert not result.resampled[:, 0].any()
    assert result.draw(np.random.default_rng(0))[0] == 0


def test_a_root_of_value_zero():
    model = FiniteModel([[[0.5, 0.5]]], [[-np.inf], [-np.inf, -np.inf]])
    result = run(model.particles(3), 4)
    assert (result.n_steps, result.log_z.tolist()) == (0, [-np.inf] * 3)
    assert result.log_increments.shape == (0, 3, 4)
    assert result.ess.shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("scheme", ["systematic", "top_k", "none"])
def test_nan_names_step_group_and_particle(bad, scheme):
    script = np.zeros((2, 4, 3))
    script[1, 2, 1] = bad
    with pytest.raises(ValueError, match="step 2, group 1, particle 1"):
        run(recorded(script, [[3] * 3] * 2), 3, ess_threshold=0, resampling=scheme)
    script[1, 0, 2] = bad
    with pytest.raises(ValueError, match="step 0, group 1, particle 2"):
        run(recorded(script, [[3] * 3] * 2), 3, resampling=scheme)


def test_pool_draws_candidates_by_value():
    model = FiniteModel([[[0.25, 0.75]]], [[0.0], [np.log(3.0), -np.inf]])
    result = run(model.particles(2000), 5, pool_size=4)
    chosen = np.take_along_axis(result.particles.state, result.draw(np.random.default_rng(1))[:, None], 1)[
        :, 0
    ]
    assert (chosen[result.log_z > -np.inf] == 0).all()
    seen = np.exp(result.log_increments) * 4 / 3
    assert set(np.round(seen.ravel(), 9)) <= {0, 1, 2, 3, 4}
    # binomial(4, 1/4) candidates of positive value in each pool
    assert abs((seen == 0).mean() - 0.75**4) < 4.5 * np.sqrt(0.2 / 10_000)


def test_large_pools_draw_candidates_by_value():
    weights = np.arange(40.0)
    weights[[0, 38, 39]] = 0, 0, 3
    with np.errstate(divide="ignore"):
        model = FiniteModel([np.full((1, 40), 1 / 40)], [[0.0], np.log(weights)])
    result = run(model.particles(3000), 2, pool_size=200)
    seen = np.bincount(result.particles.state.ravel(), minlength=40) / 6000
    # the pool is large: frequencies are nearly those of the target
    share = weights / weights.sum()
    assert (np.abs(seen - share) <= 4.5 * np.sqrt(share / 6000) + share / 50).all()
    dead = FiniteModel([np.full((1, 40), 1 / 40)], [[0.0], np.full(40, -np.inf)])
    assert run(dead.particles(3), 2, pool_size=200).log_z.tolist() == [-np.inf] * 3


def test_roots_can_be_given_one_per_particle():
    script = np.log([[[1, 3], [1, 3], [1, 3]]])
    result = run(recorded(script, [[2, 2]]), 2, ess_threshold=0)
    np.testing.assert_allclose(np.exp(result.log_z), [2.0], rtol=1e-15)
    np.testing.assert_allclose(np.exp(result.log_weights), [[0.25, 0.75]], rtol=1e-15)
    with pytest.raises(UserError, match="1 or 5 prefixes"):
        run(recorded(script, [[2, 2]]), 5)


def test_top_k_keeps_the_best_and_estimates_no_z():
    script = [[[0, 0, 0, 0], [4, 3, 2, 1], [1, 5, 2, 9]]]
    result = run(recorded(script, [[2] * 4]), 4, resampling="top_k", pool_size=2)
    assert result.log_z is None
    assert result.ancestors[0].tolist() == [[0, 0, 1, 1]]
    assert result.ancestors[1, 0].tolist() == [2, 2, 3, 3]
    assert result.log_increments[:, 0].tolist() == [[4, 4, 3, 3], [2, 2, 2, 2]]
    assert result.unique_ancestors.tolist() == [[2], [2]]


def test_an_ended_beam_competes_once():
    # slot 0 ends with the best value at depth 1; its copies must not push slots 1 and 2 out
    script = [[[0, 0, 0], [9, 1, 1], [9, 2, 3]]]
    result = run(recorded(script, [[1, 2, 2]]), 3, resampling="top_k", pool_size=3)
    slots = result.particles.slot[0]
    assert slots.tolist() == [0, 0, 0]  # the first step: three candidates of the same best parent
    assert np.exp(result.log_weights).sum() == pytest.approx(1.0)
    result = run(recorded([[[0, 0], [2, 1], [2, 3]]], [[1, 2]]), 2, resampling="top_k", pool_size=1)
    assert result.particles.slot.tolist() == [[1, 0]]
    assert result.argmax().tolist() == [0]


CHILDREN = {"a": "aa", "b": "xx", "c": "fx", "f": "de", "x": "xx", "d": "dd", "e": "ee"}
VALUES = {"a": 0.9, "b": 0.5, "c": 0.4, "f": 0.4, "d": 0.3, "e": 0.2, "x": 0.0}


@dataclass(frozen=True)
class Named:
    """Prefixes by name, each with the two children that `CHILDREN` gives it."""

    names: np.ndarray

    @property
    def shape(self):
        return self.names.shape

    @property
    def ended(self):
        return np.isin(self.names, ["a", "d", "e"])

    def log_value(self):
        with np.errstate(divide="ignore"):
            return np.log(np.vectorize(VALUES.get)(self.names))

    def extend(self, pool_size, rng):
        return Named(np.array([list("".join(CHILDREN[name] for name in row)) for row in self.names]))

    def select(self, index):
        return Named(np.take_along_axis(self.names, index, axis=1))


def test_a_copy_in_a_dead_beams_place_does_not_compete_later():
    """Step 1: "b" dies, and a lost copy of "a" stands in its place. Step 2: both children of "f" are kept, not the copy."""
    result = run(Named(np.array([["a", "b", "c"]])), 3, resampling="top_k", pool_size=2)
    assert result.particles.names.tolist() == [["a", "d", "e"]]
    np.testing.assert_allclose(np.exp(result.log_weights), [[0.9 / 1.4, 0.3 / 1.4, 0.2 / 1.4]])


def test_the_last_step_is_not_resampled_though_a_lost_prefix_goes_on():
    """Slot 1 has value zero at depth 1 and would be alive again at depth 2, where the others end with an ESS of 1.2."""
    with np.errstate(divide="ignore"):
        root = recorded(np.log([[[1, 1, 1], [1, 0, 1], [9, 5, 1]]]), [[2, 9, 2]])
    result = run(root, 3, ess_threshold=0.5)
    assert not result.resampled.any()
    np.testing.assert_allclose(np.exp(result.log_weights), [[0.9, 0, 0.1]])


def test_every_step_is_every_step_whatever_rounding_says():
    """The ESS of three equal weights of exp(-1.61) is computed as 3 + 9e-16."""
    root = recorded([[[0, 0, 0], [-1.61] * 3, [-1.61] * 3]], [[2, 2, 2]])
    result = run(root, 3, ess_threshold=1)
    assert result.ess[0, 0] > 3
    assert result.resampled[0, 0]


def test_values_far_beyond_what_floats_hold():
    """Log values of +-5,000: estimates by hand, resampled at every step or never."""
    root = recorded([[[0, 0], [5000, 5000 + np.log(3)], [-5000, -5000]]], [[2, 2]])
    result = run(root, 2, ess_threshold=0)
    np.testing.assert_allclose(result.log_z, [-5000], rtol=1e-12)
    every = run(root, 2, ess_threshold=1, resampling="multinomial")
    steps = np.log([1 / 1, 1 / 3])[every.particles.slot[0]]
    expected = 5000 + np.log(2) + np.log(np.exp(steps).mean()) - 10_000
    np.testing.assert_allclose(every.log_z, [expected], rtol=1e-12)


def test_top_k_finds_the_best_leaf_with_enough_beams():
    model = random_tree(3, 2, 0.0, Tilt(0.05), np.random.default_rng(0))
    result = run(model.particles(50), 40, resampling="top_k", pool_size=8)
    best = np.argmax(model.log_value[3])
    assert (result.particles.state[np.arange(50), result.argmax()] == best).all()


def test_same_seed_same_result():
    model = random_tree(4, 2, 0.3, Tilt(0.1), np.random.default_rng(0))
    for settings in ({}, {"pool_size": 3}, {"resampling": "multinomial", "ess_threshold": 1}):
        first, second = (run(model.particles(7), 11, **settings) for _ in range(2))
        for name in ("log_weights", "log_z", "ess", "log_increments", "ancestors", "resampled"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        np.testing.assert_array_equal(first.particles.state, second.particles.state)


def test_ancestors_trace_the_paths():
    model = random_tree(5, 2, 0.3, Tilt(0.1), np.random.default_rng(0))
    result = run(model.particles(3), 20, ess_threshold=1)
    # a leaf of the full tree knows its path: rebuild the log values along it and compare the increments
    lineage = np.tile(np.arange(20), (3, 1))
    for t in reversed(range(5)):
        lineage = np.take_along_axis(result.ancestors[t].astype(int), lineage, 1)
        state = result.particles.state >> (5 - t)
        child = result.particles.state >> (4 - t)
        expected = model.log_value[t + 1][child] - model.log_value[t][state]
        np.testing.assert_allclose(
            np.take_along_axis(result.log_increments[t], lineage, 1), expected, atol=1e-12
        )


def test_histories_longer_than_the_first_buffer():
    result = run(product(150, 1.1).particles(2), 3)
    assert result.log_increments.shape == (150, 2, 3)
    np.testing.assert_array_equal(
        np.unique(np.round(result.log_increments, 9)), np.round([0, np.log(1.1)], 9)
    )


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"n_particles": 0}, "`n_particles` must be an integer of at least 1, got 0"),
        ({"n_particles": 2.5}, "n_particles"),
        ({"pool_size": 0}, "`pool_size`"),
        ({"ess_threshold": 32}, r"`ess_threshold` must be in \[0, 1\], got 32: it is a fraction"),
        ({"ess_threshold": float("nan")}, "ess_threshold"),
        ({"resampling": "sistematic"}, "systematic"),
        ({"rng": None}, "rng"),
        ({"rng": 3}, "default_rng"),
    ],
)
def test_bad_settings(settings, fact):
    settings = {"n_particles": 4, "rng": np.random.default_rng(0), **settings}
    with pytest.raises(UserError, match=fact):
        smc(product(2, 2.0).particles(1), **settings)


@pytest.mark.parametrize("scheme", sorted(RESAMPLING))
def test_every_scheme_runs_with_pools_and_ragged_ends(scheme):
    ends = np.random.default_rng(3).integers(1, 6, size=(4, 6))
    root = recorded(np.random.default_rng(4).normal(size=(4, 7, 6)), ends)
    result = run(root, 6, resampling=scheme, pool_size=2)
    assert result.particles.ended.all()
    np.testing.assert_allclose(np.exp(result.log_weights).sum(axis=1), 1.0, rtol=1e-12)


def test_core_is_imported_without_what_takes_long():
    code = "import rmtools.core, sys; assert not {'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
