"""Monotone maps: by hand, and fitted to outcomes whose law is known."""

import numpy as np
import pytest
from scipy.special import expit, log_expit

from rmtools.errors import UserError
from rmtools.stats.map_fit import Outcomes, fit_map
from rmtools.stats.monotone_map import MOST_LOG_ODDS, MonotoneMap, log_odds, ramps

N, PROMPTS, DEPTHS = 9_000, 120, 5


def drawn(law, seed=0, spread=2.0):
    """N predictions x with 0/1 outcomes of probability law(x, depth)."""
    rng = np.random.default_rng(seed)
    prompt, depth = np.repeat(np.arange(PROMPTS), N // PROMPTS), np.tile(np.arange(DEPTHS), N // DEPTHS)
    x = spread * rng.normal(size=N)
    y = (rng.random(N) < expit(law(x, depth))).astype(float)
    return Outcomes(log_expit(x), y, prompt, depth), x, depth


def fitted(outcomes, seed=1, **how):
    return fit_map(outcomes, np.random.default_rng(seed), **how)


def test_a_map_by_hand():
    found = MonotoneMap((1.0, -1.0), ((0.5, 2.0), (1.0, 0.0)), (0.0,))
    z = log_odds(found(log_expit(np.array([-2.0, 3.0, 3.0])), np.array([0, 0, 7])))
    np.testing.assert_allclose(z, [1 + 0.5 * -2.0, 1 + 2.0 * 3.0, -1.0], atol=1e-12)


def test_ramps_sum_to_x():
    x = np.linspace(-4, 4, 33)
    np.testing.assert_allclose(ramps(x, [-1.0, 0.5, 2.0]).sum(-1), x, atol=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.3, 40.0])
def test_never_zero_or_one_and_monotone(slope):
    log_p = np.concatenate([[-np.inf], log_expit(np.linspace(-60, 60, 400)), [0.0]])
    q = np.exp(MonotoneMap((0.5,), ((slope,),))(log_p))
    assert q.min() > 0
    assert q.max() < 1
    assert (np.diff(q) >= 0).all()


def test_nan_raises():
    with pytest.raises(UserError, match=r"log_p\[1\] is NaN"):
        MonotoneMap.identity()([-1.0, np.nan])
    with pytest.raises(UserError, match="NaN"):
        fitted(Outcomes(np.array([np.nan, -1.0]), np.array([0.0, 1.0]), np.arange(2), np.zeros(2)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (((0.0,), ((-0.1,),)), "not monotone"),
        (((0.0,), ((np.nan,),)), "not finite"),
        (((0.0,), ((1.0, 1.0, 1.0),), (1.0, 0.0)), "not monotone"),
        (((0.0, 1.0), ((1.0,),)), "intercepts"),
        (((0.0,), ((1.0, 2.0),)), "knots"),
    ],
)
def test_no_map(given, words):
    with pytest.raises(UserError, match=words):
        MonotoneMap(*given)


@pytest.mark.parametrize(
    ("law", "form", "close"),
    [
        (lambda x, t: x, "identity", 1e-12),
        (lambda x, t: 0.5 * x - 1, "platt", 0.01),
        (lambda x, t: 0.5 * x - 1 + 0.4 * t, "platt by depth (offset)", 0.02),
        (lambda x, t: (0.2 + 0.2 * t) * x - 1, "platt by depth", 0.02),
        (lambda x, t: np.where(x > 0, 0.1, 1.5) * x - 0.5, "piecewise", 0.035),
    ],
)
def test_the_form_of_the_law_is_found(law, form, close):
    outcomes, x, depth = drawn(law)
    found = fitted(outcomes)
    assert found.form == form
    error = np.exp(found.map(outcomes.log_p, depth)) - expit(law(x, depth))
    assert np.sqrt(np.mean(error**2)) < close
    assert found.after.log_loss <= found.before.log_loss


def test_few_prompts_keep_the_simple_form():
    """A map by depth is right, and 4 prompts of 12 outcomes do not tell."""
    outcomes, _, _ = drawn(lambda x, t: x - 0.3 + 0.1 * t)
    few = [np.concatenate([np.flatnonzero(outcomes.prompt == g)[:12] for g in range(4)])]
    part = Outcomes(
        *(a[tuple(few)] for a in (outcomes.log_p, outcomes.outcome, outcomes.prompt, outcomes.depth))
    )
    assert "by depth" not in fitted(part).form


def test_means_count_as_their_outcomes():
    """Eight outcomes of one prediction, one by one or as a mean of weight 8: the same map and the same scores."""
    rng = np.random.default_rng(0)
    x, prompt = rng.normal(size=600), np.repeat(np.arange(60), 10)
    y = (rng.random((600, 8)) < expit(0.5 * x)[:, None]).astype(float)
    depth = np.zeros(600, dtype=int)
    one = fitted(
        Outcomes(
            *(np.repeat(a, 8) for a in (log_expit(x),)),
            y.ravel(),
            *(np.repeat(a, 8) for a in (prompt, depth)),
        ),
        form="platt",
    )
    mean = fitted(
        Outcomes(log_expit(x), y.mean(1), prompt, depth, np.full(600, 8.0), (y**2).mean(1)), form="platt"
    )
    np.testing.assert_allclose(mean.map.platt, one.map.platt, rtol=1e-4)
    assert mean.after.brier == pytest.approx(one.after.brier, rel=1e-6)
    assert mean.after.log_loss == pytest.approx(one.after.log_loss, rel=1e-6)
    assert mean.n_outcomes == one.n_outcomes == 4800


def test_separated_outcomes_give_finite_maps():
    x = np.r_[np.full(50, -3.0), np.full(50, 3.0)]
    found = fitted(Outcomes(log_expit(x), (x > 0) * 1.0, np.arange(100), np.zeros(100)), form="platt")
    assert 1 < found.map.platt[0] < MOST_LOG_ODDS


def test_a_form_that_is_asked_for():
    outcomes, _, _ = drawn(lambda x, t: x + 0.5 * t)
    assert fitted(outcomes, form="platt", by_depth="none").map.platt is not None
    assert fitted(outcomes, form="piecewise").form.startswith("piecewise")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outcome": np.ones(N)}, "every outcome is 1"),
        ({"prompt": np.zeros(N, dtype=int)}, "one prompt"),
        ({"outcome": np.full(N, 1.5)}, r"must be in \[0, 1\]"),
    ],
)
def test_nothing_to_fit(change, words):
    outcomes, _, _ = drawn(lambda x, t: x)
    with pytest.raises(UserError, match=words):
        fitted(Outcomes(**{**vars(outcomes), **change}))


def test_unknown_names():
    outcomes, _, _ = drawn(lambda x, t: x)
    with pytest.raises(UserError, match="auto, platt, piecewise"):
        fitted(outcomes, form="isotonic")
    with pytest.raises(UserError, match="auto, none"):
        fitted(outcomes, by_depth="each")
    with pytest.raises(UserError, match="folds"):
        fitted(outcomes, folds=1)
