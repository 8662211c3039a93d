"""Adding islands until a figure is known: the rule against hand-computed figures, rounds, budgets, and the error realised."""

import numpy as np
import pytest

from rmtools.core import Tilt, product, random_tree, smc, solve
from rmtools.errors import UserError
from rmtools.particles.islands import log_z_error, t_quantile
from rmtools.particles.until import (
    Drawn,
    Until,
    add_islands,
    independent_solutions,
    judged_error,
    leading_share,
    next_islands,
    smc_until,
)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    "text",
    [
        "share",
        "share=0",
        "share=x",
        "foo=.1",
        "=.1",
        "",
        "share=.6",
        "logz=inf",
        "cv=nan",
        "cv=-.1",
        "share=5%",
        0.05,
    ],
)
def test_malformed_text_is_refused(text):
    with pytest.raises(UserError, match=r"`until` is .*share=.05, logz=.1 or cv=.25"):
        Until.parse(text)
    with pytest.raises(UserError, match="`until` is"):
        Until("share", 0.0)
    assert Until.parse(" cv =1e-1") == Until("cv", 0.1)


def test_the_rule_by_hand():
    z = np.array([[1.0, 1.2, 0.8, 1.0, 1.1, 0.9, 1.3, 0.7]])
    wide = t_quantile(8) / 1.959963984540054
    share = np.array([[[0, 0.25, 0.75], [0, 0.5, 0.5]] * 4])
    lead, found = leading_share(np.log(z), share, 16)
    assert lead.tolist() == [2]
    p = (z[0] * share[0, :, 2]).sum() / z[0].sum()
    left = [
        (z[0] * share[0, :, 2])[np.arange(8) != k].sum() / z[0][np.arange(8) != k].sum() for k in range(8)
    ]
    se = np.sqrt(7 / 8 * np.square(np.array(left) - np.mean(left)).sum())
    assert found.estimate[0] == pytest.approx(p)
    assert judged_error(Until("share", 0.05), np.log(z), found)[0] == pytest.approx(wide * se)
    for figure in ("logz", "cv"):  # sd / (sqrt(8) mean)
        error = judged_error(Until(figure, 0.05), np.log(z), found)[0]
        assert error == pytest.approx(wide * z.std(ddof=1) / np.sqrt(8))


def test_islands_that_agree_are_no_proof():
    """128 particles that agree: Wilson's interval for 64 draws, [.943, 1], is 1.96 times .0145 on either side of its middle."""
    _, found = leading_share(np.zeros((1, 8)), np.tile([0.0, 1.0], (1, 8, 1)), 16)
    error = judged_error(Until("share", 0.05), np.zeros((1, 8)), found)[0]
    assert error == pytest.approx((1 - 64 / (64 + 1.96**2)) / 2 / 1.96, rel=1e-3)


def test_no_answer_leads_only_where_there_is_no_other():
    shares = np.zeros((2, 8, 3))
    shares[:, :, 0] = 1
    shares[1, :, 0], shares[1, :, 2] = 0.9, 0.1
    lead, found = leading_share(np.zeros((2, 8)), shares, 16)
    assert lead.tolist() == [0, 2]
    np.testing.assert_allclose(found.estimate, [1, 0.1])


def scripted(spread, tokens=10.0):
    """``draw`` of islands whose log Z alternates between 0 and ``spread[group]``; what was asked for is listed."""
    asked, seen = [], {}

    def draw(queue):
        asked.append({int(g): int(n) for g, n in zip(*np.unique(queue, return_counts=True), strict=True)})
        z = []
        for g in queue:
            seen[g] = seen.get(g, 0) + 1
            z.append(spread[g] if seen[g] % 2 else 0.0)
        return Drawn(np.array(z), np.ones((len(queue), 1)), np.broadcast_to(tokens, len(queue)).astype(float))

    return draw, asked


def test_rounds_of_those_that_are_not_known():
    """Halves of 0 and x: sd about x / 2, so ± .05 needs 8 islands at .02, some 30 at .5, and more than 128 at 1.5."""
    draw, asked = scripted([0.02, 0.5, 1.5])
    stops = add_islands(3, draw, Until("logz", 0.05), 4)
    assert asked[0] == {0: 8, 1: 8, 2: 8}
    assert [a[2] for a in asked] == [8, 4, 6, 9, 14, 21, 31, 35]  # 128 in all: the default budget
    assert [s.stopped for s in stops] == ["log Z known", "log Z known", "token budget"]
    assert stops[0].islands == 8
    assert stops[1].islands == sum(a.get(1, 0) for a in asked) > 8
    assert stops[2].islands == 128
    assert [s.tokens for s in stops] == [10.0 * s.islands for s in stops]
    assert {s.token_budget for s in stops} == {1280.0}
    assert stops[2].error > 0.05 >= max(s.error for s in stops[:2])
    assert not any(s.exceeded for s in stops)
    assert next_islands(9) == 5


def test_budgets():
    draw, asked = scripted([1.5, 1.5])
    stops = add_islands(2, draw, Until("cv", 0.01), 4, token_budget=175)
    assert asked == [{0: 8, 1: 8}, {0: 4, 1: 4}, {0: 5, 1: 5}]
    assert [(s.islands, s.tokens, s.exceeded) for s in stops] == [(17, 170.0, False)] * 2
    draw, asked = scripted([1.5])
    (stop,) = add_islands(1, draw, Until("cv", 0.01), 4, token_budget=30)
    assert (stop.islands, stop.stopped, stop.exceeded) == (8, "token budget", True)
    draw, asked = scripted([-np.inf], tokens=0.0)  # the root has no value
    (stop,) = add_islands(1, draw, Until("cv", 0.01), 4)
    assert (stop.islands, stop.stopped, stop.exceeded) == (8, "nothing to draw", False)


def test_prompts_of_unequal_cost():
    """A budget cuts a round short for the dear one alone; the other keeps its rounds."""
    asked = []

    def draw(queue):
        asked.append(np.bincount(queue, minlength=2).tolist())
        z = np.where(np.arange(len(queue)) % 2, 0.0, 2.0)
        return Drawn(z, np.ones((len(queue), 1)), np.where(queue == 0, 10.0, 1.0))

    dear, cheap = add_islands(2, draw, Until("logz", 0.01), 4, token_budget=100)
    assert asked[:3] == [[8, 8], [2, 4], [0, 6]]
    assert (dear.islands, dear.tokens) == (10, 100)
    assert (cheap.islands, cheap.tokens) == (100, 100)


def test_estimates_of_zero():
    """In all islands: they cost tokens, and are never known. In most: fewer than three count for nothing."""

    def zero(queue):
        return Drawn(np.full(len(queue), -np.inf), np.zeros((len(queue), 1)), np.ones(len(queue)))

    for figure in ("share", "logz"):
        (stop,) = add_islands(1, zero, Until(figure, 0.1), 4)
        assert (stop.stopped, stop.islands, stop.log_z) == ("token budget", 128, -np.inf)
        assert np.isnan(stop.error)
    count = iter(range(1000))

    def two(queue):
        at = np.array([next(count) for _ in queue])
        z = np.where(at < 2, 0.0, -np.inf)
        return Drawn(z, np.stack([at * 0, at < 2], axis=1).astype(float), np.ones(len(queue)))

    (stop,) = add_islands(1, two, Until("share", 0.1), 4, token_budget=20)
    assert (stop.stopped, stop.islands) == ("token budget", 20)
    assert np.isnan(stop.error)


def test_answers_that_differ_on_all_islands():
    """A new column every time: no answer occurs twice, so no share is known."""
    count = iter(range(1000))

    def draw(queue):
        at = [next(count) for _ in queue]
        shares = np.zeros((len(queue), at[-1] + 2))
        shares[np.arange(len(queue)), np.array(at) + 1] = 1
        return Drawn(np.zeros(len(queue)), shares, np.ones(len(queue)))

    (stop,) = add_islands(1, draw, Until("share", 0.1), 1, token_budget=18)
    assert (stop.stopped, stop.islands, stop.share) == ("token budget", 18, pytest.approx(1 / 18))
    assert np.isnan(stop.error)


TREE = random_tree(6, 2, 0.3, Tilt(0.05), np.random.default_rng(0))


def test_the_error_realised_on_an_exact_model():
    target = TREE.reach(6) * np.exp(TREE.log_value[-1])
    target /= target.sum()
    label = np.arange(len(target)) % 3 + 1
    exact = np.bincount(label, target)
    stops = smc_until(
        lambda g: TREE.particles(len(g)), 400, 16, "share=.05", answer=lambda p: label[p.state], rng=rng(1)
    )
    error = np.array([s.share - exact[s.lead] for s in stops])
    assert np.sqrt(np.mean(error**2)) < 0.055
    assert {s.stopped for s in stops} == {"share known"}
    assert max(s.error for s in stops) <= 0.05
    assert {s.islands for s in stops} <= {8, 12, 18, 27, 41}
    assert len({s.islands for s in stops}) >= 3
    assert all(s.tokens == 16 * 6 * s.islands for s in stops)


def test_best_of_n_is_what_importance_sampling_needs():
    """Without resampling the islands are best-of-N: it needs as many solutions as they have, for Z and for a share."""
    result = smc(product(6, 2.0).particles(100), 40 * 16, resampling="none", rng=rng(2), islands=40)
    phi = (result.particles.state >= 4).astype(float)
    errors = (log_z_error(result.island_log_z), [None] * 100), (result.share(phi).se, phi)
    for se, of in errors:
        weight, value = np.exp(result.log_weights), result.particles.log_value()
        need = [independent_solutions(*x) for x in zip(weight, value, result.log_z, se, of, strict=True)]
        assert np.median(need) == pytest.approx(640, rel=0.1)


def test_best_of_n_by_hand():
    weight, value = np.array([0.25, 0.75, 0.0]), np.log([1.0, 3.0, 9.0])
    log_z = np.log(2.0)  # E*[phi] / Z = (.25 + .75 * 3) / 2 = 1.25
    assert independent_solutions(weight, value, log_z, 0.1) == 25
    # p = .75: (.25 * .5 * .75^2 + .75 * 1.5 * .25^2) / .01 = 14.06
    assert independent_solutions(weight, value, log_z, 0.1, np.array([0, 1, 0])) == 15
    assert independent_solutions(weight, value, log_z, 0.0, np.array([1, 1, 1])) == np.ceil(2 / 2 * 1.25)
    assert np.isnan(independent_solutions(weight, value, log_z, np.nan))


def test_a_share_needs_answers():
    with pytest.raises(UserError, match="`until` share needs answers"):
        smc_until(lambda g: TREE.particles(len(g)), 1, 16, "share=.05", rng=rng())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n_particles": 0}, "`n_particles` must be an integer of at least 1"),
        ({"token_budget": 0}, "`token_budget` must be finite and above 0"),
        ({"token_budget": np.nan}, "`token_budget` must be finite and above 0"),
        ({"islands": 4}, "`until` chooses the number of islands"),
        ({"resampling": "top_k"}, "needs a `resampling` that estimates Z"),
        ({"answer": lambda particles: np.ones(3, int)}, r"`answer` must give \(8, 16\) integers.*got \(3,\)"),
        ({"answer": lambda particles: np.ones(particles.shape)}, "float64"),
        ({"answer": lambda particles: -np.ones(particles.shape, int)}, "integers from 0 on"),
    ],
)
def test_arguments_out_of_range(given, words):
    given = {"n_particles": 16, "answer": lambda particles: np.ones(particles.shape, int), **given}
    with pytest.raises(UserError, match=words):
        smc_until(lambda g: TREE.particles(len(g)), 1, until="share=.05", rng=rng(), **given)


def test_log_z_is_the_pooled_one():
    (stop,) = smc_until(lambda g: TREE.particles(len(g)), 1, 64, "logz=.1", rng=rng(3))
    assert stop.log_z == pytest.approx(solve(TREE).log_z, abs=0.3)
    assert (stop.stopped, stop.lead, stop.share) == ("log Z known", 0, pytest.approx(1))
