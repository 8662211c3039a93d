import math

import numpy as np
import pytest

from rmtools.core import Tilt
from rmtools.errors import UserError


def test_hand_computed_values():
    tilt = Tilt(0.25)
    np.testing.assert_allclose(np.exp(tilt.log_potential([0, 0.5, 1])), [0.25, 0.625, 1.0], rtol=1e-15)
    np.testing.assert_allclose(np.exp(tilt.log_value(np.log([0.2, 1.0]))), [0.4, 1.0], rtol=1e-15)
    assert tilt.ratio_bound == 4.0


def test_temperature_is_another_reading_of_the_floor():
    tilt = Tilt.from_temperature(0.5)
    assert tilt.floor == pytest.approx(math.exp(-2.0), abs=1e-15)
    assert tilt.temperature == pytest.approx(0.5, abs=1e-15)
    # exp(r / lam) up to a constant, for r in {0, 1}
    assert np.ptp(tilt.log_potential([1.0, 0.0])) == pytest.approx(1 / 0.5, abs=1e-14)


@pytest.mark.parametrize("floor", [1e-12, 1e-6, 0.01, 0.9])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_log_probability_inverts_log_value(floor, dtype):
    tilt = Tilt(floor)
    log_p = np.log(np.array([0.05, 0.3, 0.999, 1.0])).astype(dtype)
    back = tilt.log_probability(tilt.log_value(log_p))
    assert back.dtype == dtype
    # one unit of rounding in log V is this much in p
    tolerance = 64 * np.finfo(dtype).eps * max(1, -math.log(floor)) / (1 - floor)
    np.testing.assert_allclose(np.exp(back), np.exp(log_p), atol=tolerance)


def test_value_at_the_floor_is_probability_zero():
    tilt = Tilt(0.1)
    assert tilt.log_value([-np.inf]).tolist() == [math.log(0.1)]
    assert tilt.log_probability([math.log(0.1)]).tolist() == [-np.inf]
    assert tilt.log_probability([np.nextafter(math.log(0.1), -10)]).tolist() == [-np.inf]


def test_float32_rounding_below_the_floor_is_forgiven():
    tilt = Tilt(0.003)
    below = np.nextafter(np.float32(math.log(0.003)), np.float32(-10))
    assert tilt.log_probability(np.array([below])).tolist() == [-np.inf]


@pytest.mark.parametrize("bad", [math.log(0.1) - 1e-6, 1e-6, np.nan, -np.inf])
def test_no_probability_has_this_value(bad):
    with pytest.raises(UserError, match="log value"):
        Tilt(0.1).log_probability([0.0, bad])


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_rewards_outside_the_unit_interval_are_refused(bad):
    with pytest.raises(UserError, match=r"reward .*\[0, 1\]"):
        Tilt(0.1).log_potential([0.5, bad])


@pytest.mark.parametrize("bad", [0.1, np.nan])
def test_log_probabilities_above_one_are_refused(bad):
    with pytest.raises(UserError, match="log probability"):
        Tilt(0.1).log_value([bad])


@pytest.mark.parametrize("floor", [0.0, 1.0, -0.1, 2, math.nan, "0.1"])
def test_bad_floor(floor):
    with pytest.raises(UserError, match="floor"):
        Tilt(floor)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_bad_temperature(temperature):
    with pytest.raises(UserError, match="temperature"):
        Tilt.from_temperature(temperature)
