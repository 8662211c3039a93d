import dataclasses
import json
import math

import numpy as np
import pytest

from rmtools.codec import from_json, to_json
from rmtools.errors import UserError
from rmtools.stats.bellman_error import bellman_estimator
from rmtools.stats.bootstrap import Interval
from rmtools.stats.calibration import brier
from rmtools.stats.paired import ModelEstimates, PairedDifference, paired_estimator
from rmtools.stats.prefix_errors import exact_errors, prefix_errors
from rmtools.stats.sigma2 import sigma2_estimator, sigma2_parts

P, N = 60, 90
PROMPT, OUTCOME_PROMPT = np.arange(P) // 4, np.arange(N) // 6
OUTCOME = (np.random.default_rng(0).random(N) < 0.4).astype(float)


def parts(shift, seed=2):
    """Parts at 15 prompts; `shift` moves the values, the potentials are the same."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(15):
        phi, value = rng.uniform(0.1, 1, 6), rng.normal(0, 0.3, (6, 4))
        square = np.repeat(phi[:, None] ** 2, 4, axis=1)
        found.append(sigma2_parts(value + shift * np.arange(24).reshape(6, 4) % 5, square, phi))
    return found


def model(shift, seed=1):
    """Values that differ by `shift` on the same children; shift 0 is the same model."""
    rng = np.random.default_rng(seed)
    children, value = np.log(rng.gamma(4, 0.25, (P, 6))), rng.normal(0, 0.3, P)
    p = np.clip(rng.random(N) + shift / 5, 0, 1)
    return ModelEstimates(prefix_errors(value + shift * (PROMPT % 3), children), p, parts(shift))


def compare(a, b, **changes):
    arguments = {"prompt": PROMPT, "outcome": OUTCOME, "outcome_prompt": OUTCOME_PROMPT}
    return paired_estimator(a, b, **arguments | changes).bootstrap(np.random.default_rng(3), 300)


def test_differences_are_those_of_the_figures():
    a, b = model(0.4), model(0.0)
    found = compare(a, b)
    summaries = [
        bellman_estimator(m.errors, PROMPT, PROMPT, 3).bootstrap(np.random.default_rng(0)) for m in (a, b)
    ]
    figures = {
        "squared_ratio_error": [s.ratio_error.mean_square for s in summaries],
        "mean_square_corrected": [s.corrected.mean_square for s in summaries],
        "signed_mean": [s.signed_mean for s in summaries],
    }
    for name, intervals in figures.items():
        first, second = (interval.estimate for interval in intervals)
        assert abs(first - second) > 1e-3
        assert getattr(found, name).estimate == pytest.approx(first - second)
    assert found.brier.estimate == pytest.approx(brier(a.p, OUTCOME) - brier(b.p, OUTCOME))
    costs = [sigma2_estimator(m.cost).bootstrap(np.random.default_rng(0)).estimate.estimate for m in (a, b)]
    assert found.sigma2.estimate == pytest.approx(costs[0] - costs[1])
    assert (found.n_prompts, found.n_prefixes, found.n_common) == (15, P, P)
    swapped = compare(b, a)
    assert swapped.sigma2.estimate == pytest.approx(-found.sigma2.estimate)
    assert swapped.signed_mean.estimate == pytest.approx(-found.signed_mean.estimate)
    assert from_json(PairedDifference, json.loads(json.dumps(to_json(found)))) == found


def test_identical_models_differ_by_exactly_nothing():
    found = compare(model(0.3), model(0.3))
    for name in ("squared_ratio_error", "mean_square_corrected", "signed_mean", "brier", "sigma2"):
        assert getattr(found, name) == Interval(0.0, 0.0, 0.0)


def test_what_is_not_given_is_none():
    a, b = (ModelEstimates(model(shift).errors) for shift in (0.0, 0.4))
    found = compare(a, b, outcome=None, outcome_prompt=None)
    assert found.brier is None
    assert found.sigma2 is None
    assert found.signed_mean.low is not None
    assert from_json(PairedDifference, json.loads(json.dumps(to_json(found)))) == found


def test_a_prefix_that_one_model_cannot_judge_is_in_neither():
    rng = np.random.default_rng(4)
    children, value = np.log(rng.gamma(4, 0.25, (P, 6))), np.zeros(P)
    value[:5] = -np.inf
    present = np.ones(children.shape, dtype=bool)
    present[-3:, 1:] = False
    a = ModelEstimates(prefix_errors(value, children))
    b = ModelEstimates(prefix_errors(np.full(P, 0.1), children, present))
    found = compare(a, b, outcome=None, outcome_prompt=None)
    assert found.n_common == P - 8
    assert found.signed_mean.estimate == pytest.approx(0.1)


def test_exact_ratios_are_compared_as_they_are():
    a, b = (ModelEstimates(exact_errors(np.full(P, x))) for x in (0.2, -0.1))
    found = compare(a, b, outcome=None, outcome_prompt=None)
    assert found.signed_mean.estimate == pytest.approx(0.3)
    assert found.mean_square_corrected.estimate == pytest.approx(0.04 - 0.01)
    assert found.squared_ratio_error.estimate == pytest.approx(math.expm1(0.2) ** 2 - math.expm1(-0.1) ** 2)


def test_paired_intervals_are_narrower_than_those_of_the_two_models():
    a, b = model(0.02), model(0.0)
    found = compare(a, b)
    widths = []
    for m in (a, b):
        summary = bellman_estimator(m.errors, PROMPT, PROMPT, 3).bootstrap(np.random.default_rng(0), 300)
        cost = sigma2_estimator(m.cost).bootstrap(np.random.default_rng(0), 300).estimate
        widths.append(
            [summary.signed_mean.half_width, summary.ratio_error.mean_square.half_width, cost.half_width]
        )
    apart = np.hypot(*widths)
    paired = [f.half_width for f in (found.signed_mean, found.squared_ratio_error, found.sigma2)]
    assert np.all(np.array(paired) < 0.5 * apart)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"errors": exact_errors(np.zeros(3))}, {}, "60 and 3 prefixes"),
        ({"p": None}, {}, "takes `p` of both"),
        ({}, {"outcome": None}, "takes `p` of both"),
        ({}, {"outcome_prompt": None}, "takes `p` of both"),
        ({"p": np.full(N, 2.0)}, {}, "p\\[0\\] is 2"),
        ({"p": np.full(3, 0.5)}, {}, "shapes"),
        ({"cost": None}, {}, "parts of both models"),
        ({"cost": parts(0.0)[:3]}, {}, "parts of both models"),
        ({"cost": parts(0.0, seed=9)}, {}, "prompt 0 has T = 3"),
        ({}, {"prompt": PROMPT[:-1]}, "`clusters` has shape"),
        ({}, {"outcome_prompt": OUTCOME_PROMPT[:-1]}, "`clusters` has shape"),
    ],
)
def test_what_does_not_fit_is_refused(change, arguments, message):
    with pytest.raises(UserError, match=message):
        compare(model(0.0), dataclasses.replace(model(0.1), **change), **arguments)
