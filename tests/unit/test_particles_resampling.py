import numpy as np
import pytest

from rmtools.errors import UserError
from rmtools.particles.resampling import RESAMPLING, resolve, systematic, top_k

RANDOM = ["multinomial", "systematic", "stratified", "residual"]
WEIGHTS = np.array(
    [[0.0, 0.3, 0.05, 0.0, 0.65, 0.0], [5.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1e-9, 0.0, 0.0, 0.0]]
)


def logs(weights):
    with np.errstate(divide="ignore"):
        return np.log(weights)


def counts(ancestors, n):
    return np.array([np.bincount(row, minlength=n) for row in ancestors])


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("n_out", [1, 6, 50])
def test_shape_order_and_no_offspring_of_weight_zero(name, n_out):
    ancestors = RESAMPLING[name](logs(WEIGHTS), n_out, np.random.default_rng(0))
    assert ancestors.shape == (3, n_out)
    assert (np.diff(ancestors, axis=1) >= 0).all()
    assert (np.take_along_axis(WEIGHTS, ancestors, axis=1) > 0).all()


@pytest.mark.parametrize("name", RANDOM)
def test_expected_offspring(name):
    replicates, n_out = 20_000, 7
    share = WEIGHTS[:2] / WEIGHTS[:2].sum(axis=1, keepdims=True)
    for row in range(2):
        log_weights = np.tile(logs(WEIGHTS[row]) + 700.0, (replicates, 1))
        drawn = counts(RESAMPLING[name](log_weights, n_out, np.random.default_rng(row)), 6)
        error = np.maximum(drawn.std(axis=0) / np.sqrt(replicates), 1e-12)
        assert (np.abs(drawn.mean(axis=0) - n_out * share[row]) <= 4.5 * error).all()


@pytest.mark.parametrize("name", ["systematic", "residual"])
def test_equal_weights_are_a_copy(name):
    for n in (1, 3, 7, 49, 1000):
        ancestors = RESAMPLING[name](np.zeros((4, n)), n, np.random.default_rng(n))
        assert (ancestors == np.arange(n)).all()


@pytest.mark.parametrize(("name", "spread"), [("systematic", 1), ("stratified", 2)])
def test_counts_stay_near_their_expectation(name, spread):
    rng = np.random.default_rng(3)
    weights = rng.dirichlet(np.full(40, 0.3), size=500)
    drawn = counts(RESAMPLING[name](logs(weights), 25, rng), 40)
    assert np.abs(drawn - 25 * weights).max() < spread


def test_residual_keeps_whole_parts():
    rng = np.random.default_rng(4)
    weights = rng.dirichlet(np.full(10, 0.5), size=500)
    assert (counts(RESAMPLING["residual"](logs(weights), 30, rng), 10) >= np.floor(30 * weights - 1e-9)).all()


class Fixed:
    """A generator whose uniforms are the largest or smallest there are."""

    def __init__(self, value):
        self.value = value

    def random(self, shape):
        return np.full(shape, self.value)

    def integers(self, low, high, shape, dtype, endpoint):
        assert endpoint
        return np.full(shape, low if self.value == 0 else high, dtype=dtype)


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("name", RANDOM)
def test_extreme_uniforms_stay_inside(name, uniform):
    rng = np.random.default_rng(5)
    weights = np.concatenate(
        [np.zeros((300, 2)), rng.dirichlet(np.full(20, 0.1), size=300), np.zeros((300, 2))], 1
    )
    ancestors = RESAMPLING[name](logs(weights), 999, Fixed(uniform))
    assert ancestors.shape == (300, 999)
    assert (np.take_along_axis(weights, ancestors, axis=1) > 0).all()


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("n_out", [1, 2, 3, 64, 100_003])
@pytest.mark.parametrize("scale", [1e-250, 1.0, 1e250])
def test_the_last_offspring_is_never_lost_nor_one_too_many(name, uniform, n_out, scale):
    weights = scale * np.array(
        [[0.0, 1 / 3, 1e-30, 1 / 7, 0.0], [0.1, 0.1, 0.1, 0.7, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]
    )
    ancestors = RESAMPLING[name](logs(weights), n_out, Fixed(uniform), weights)
    assert ancestors.shape == (3, n_out)
    assert (np.take_along_axis(weights, ancestors, axis=1) > 0).all()


@pytest.mark.parametrize("name", ["systematic", "stratified"])
def test_a_comb_is_the_cumulative_weight_at_its_teeth(name):
    """Against the definition: offspring k goes to the first particle whose running share exceeds (k + u_k) / n_out."""
    rng = np.random.default_rng(6)
    weights = rng.dirichlet(np.full(30, 0.5), size=200)
    drawn = RESAMPLING[name](logs(weights), 17, np.random.default_rng(7))
    u = np.random.default_rng(7).random((200, 1 if name == "systematic" else 17))
    # Systematic draws u from the other end of the stratum, which has the same law.
    points = (np.arange(17) + (1 - u if name == "systematic" else u)) / 17
    expected = [np.searchsorted(np.cumsum(w), p) for w, p in zip(weights, points, strict=True)]
    np.testing.assert_array_equal(drawn, expected)


def test_top_k_is_best_first_and_stable():
    log_weights = np.array([[1.0, 3.0, 3.0, -np.inf, 2.0], [-np.inf] * 5])
    assert top_k(log_weights, 4, np.random.default_rng(0)).tolist() == [[1, 2, 4, 0], [0, 1, 2, 3]]
    with pytest.raises(UserError, match="cannot keep 6 of 5"):
        top_k(log_weights, 6, np.random.default_rng(0))


def test_none_is_the_identity():
    none = resolve("none")
    assert none(np.zeros((2, 3)), 3, np.random.default_rng(0)).tolist() == [[0, 1, 2]] * 2
    with pytest.raises(UserError, match="keeps all 3"):
        none(np.zeros((2, 3)), 4, np.random.default_rng(0))


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(
        UserError, match=r"'sistematic'.*multinomial, systematic, stratified, residual, none, top_k"
    ):
        resolve("sistematic")


@pytest.mark.parametrize("name", RANDOM)
def test_nan_and_groups_without_weight_are_refused(name):
    bad = np.zeros((3, 4))
    bad[1, 2] = np.nan
    with pytest.raises(UserError, match="group 1, particle 2"):
        RESAMPLING[name](bad, 4, np.random.default_rng(0))
    bad[1] = -np.inf
    with pytest.raises(UserError, match="group 1"):
        RESAMPLING[name](bad, 4, np.random.default_rng(0))


def test_same_seed_same_ancestors():
    log_weights = np.random.default_rng(0).normal(size=(5, 30))
    first, second = (systematic(log_weights, 30, np.random.default_rng(1)) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("log_weight", [-0.3, -0.1, -1.7, 0.0, 2.3])
@pytest.mark.parametrize("n", [7, 20, 100, 160, 1000])
def test_residual_keeps_equal_weights_whole(log_weight, n):
    log_weights = np.full((50, n), log_weight)
    found = RESAMPLING["residual"](log_weights, n, np.random.default_rng(0), np.exp(log_weights))
    np.testing.assert_array_equal(found, np.tile(np.arange(n), (50, 1)))


def test_multinomial_never_draws_a_weight_of_zero():
    """Zeros first, within and last; weights e^-300 to e^300."""
    for scale in (-300.0, 0.0, 300.0):
        log_weights = np.tile([-np.inf, scale, -np.inf, scale - 2, scale - 40, -np.inf, -np.inf], (2000, 1))
        found = RESAMPLING["multinomial"](log_weights, 11, np.random.default_rng(1), np.exp(log_weights))
        assert set(np.unique(found)) <= {1, 3, 4}
        share = (found == 1).mean()
        assert abs(share - 1 / (1 + np.exp(-2))) < 4.5 * 0.5 / np.sqrt(found.size)
        assert (np.diff(found, axis=1) >= 0).all()
