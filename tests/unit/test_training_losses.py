"""Divergences: what they are minimised by, and their values by hand."""

import math

import numpy as np
import pytest
import torch

from rmtools.lm.value import log_value_from_logits
from rmtools.stats.prefix_errors import prefix_errors
from rmtools.training.losses import (
    BREGMAN,
    bce,
    bellman_residual,
    contrastive,
    divergence,
    itakura_saito,
    mse,
    poisson,
    pqm,
)

FLOOR = 0.05
REWARDS = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.5], dtype=torch.float64)
LOG_U = (FLOOR + (1 - FLOOR) * REWARDS).log()
ALL = torch.ones(5, dtype=torch.bool)


def minimiser(loss):
    """The p at which the mean loss over the rewards is smallest, by gradient descent on one logit."""
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([x], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        logits = torch.stack([torch.zeros_like(x), x]).expand(len(REWARDS), 2)
        log_value = torch.log(FLOOR + (1 - FLOOR) * torch.sigmoid(x)).expand(len(REWARDS))
        value = loss(logits, log_value).mean()
        value.backward()
        return value

    optimiser.step(closure)
    return float(torch.sigmoid(x.detach()))


@pytest.mark.parametrize("name", BREGMAN)
def test_the_minimiser_is_the_mean(name):
    found = minimiser(lambda logits, log_v: divergence(name, LOG_U, ALL, logits, log_v, FLOOR))
    assert found == pytest.approx(float(REWARDS.mean()), abs=1e-4)


def test_the_log_squared_error_is_minimised_elsewhere():
    """Why it is not offered: with noisy targets it converges to the geometric mean, biased down."""
    found = minimiser(lambda logits, log_v: (LOG_U - log_v) ** 2)
    geometric = (math.exp(float(LOG_U.mean())) - FLOOR) / (1 - FLOOR)
    assert found == pytest.approx(geometric, abs=1e-3)
    assert found < 0.5 * float(REWARDS.mean())


def test_divergences_by_hand():
    log_u, log_v = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log()
    np.testing.assert_allclose(itakura_saito(log_u, log_v), [2 - math.log(2) - 1, 0], atol=1e-6)
    np.testing.assert_allclose(poisson(log_u, log_v), [0.5 * math.log(2) - 0.5 + 0.25, 0], atol=1e-6)
    logits = torch.tensor([[0.0, math.log(3.0)]])
    np.testing.assert_allclose(
        bce(torch.tensor([0.5]), logits), -0.5 * math.log(0.75) - 0.5 * math.log(0.25), atol=1e-6
    )
    np.testing.assert_allclose(mse(torch.tensor([0.5]), logits), 0.0625, atol=1e-6)


@pytest.mark.parametrize("name", BREGMAN)
def test_divergences_are_finite_at_the_ends(name):
    logits = torch.tensor([[40.0, -40.0], [-40.0, 40.0]], requires_grad=True)
    log_v = log_value_from_logits(logits, FLOOR)
    for target in (math.log(FLOOR), 0.0):
        loss = divergence(name, torch.full((2,), target), ALL[:2], logits, log_v, FLOOR)
        grad = torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]
        assert bool(torch.isfinite(loss).all())
        assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("name", [*BREGMAN, "contrastive", "pqm"])
def test_prefixes_without_a_target_neither_count_nor_pull(name):
    """Row 1 has no target at depth 2, nobody at depth 3; whatever stands there, NaN too, changes nothing."""
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 2, requires_grad=True)
    known = torch.ones(3, 4, dtype=torch.bool)
    known[1, 2] = known[:, 3] = False
    u = (FLOOR + (1 - FLOOR) * torch.rand(3, 4)).log()
    found = []
    for filler in (math.nan, -1.0):
        target = torch.where(known, u, filler)
        loss = divergence(name, target, known, logits, log_value_from_logits(logits, FLOOR), FLOOR)
        assert bool((loss[~known] == 0).all())
        found.append((loss.sum(), torch.autograd.grad(loss.sum(), logits)[0]))
    assert found[0][0] == found[1][0]
    assert bool(torch.isfinite(found[0][1]).all())
    assert torch.equal(found[0][1], found[1][1])
    assert bool((found[0][1][~known] == 0).all())
    assert bool(found[0][1][known].abs().sum() > 0)


def test_contrastive_by_hand():
    """Depth 0: U 1, 3 and V equal: 2 KL((1/4, 3/4), (1/2, 1/2)); a factor on V or on U changes nothing."""
    u, v = torch.tensor([[0.1], [0.3]]).log(), torch.tensor([[0.2], [0.2]]).log()
    known = torch.ones(2, 1, dtype=torch.bool)
    expected = 2 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    for shift in (0.0, 1.0):
        assert float(contrastive(u, v + shift, known).sum()) == pytest.approx(expected, rel=1e-5)
        assert float(contrastive(u - shift, v, known).sum()) == pytest.approx(expected, rel=1e-5)


def test_the_contrastive_gradient_is_the_difference_of_expectations():
    """E under the target minus E under the twisted policy of grad log V (arXiv 2404.17546), self-normalised."""
    torch.manual_seed(1)
    u, v = torch.rand(6, 1).log(), torch.rand(6, 1).log().requires_grad_()
    known = torch.ones(6, 1, dtype=torch.bool)
    grad = torch.autograd.grad(contrastive(u, v, known).sum(), v)[0]
    expected = -6 * (torch.softmax(u, 0) - torch.softmax(v.detach(), 0))
    torch.testing.assert_close(grad, expected)


def plain_pqm(q, right, margin):
    """Equation 10 of arXiv 2410.11287 written out: right steps grow from 0, wrong ones stay a margin below."""
    wrong = sum(math.exp(x + margin) for x, r in zip(q, right, strict=True) if not r)
    terms, so_far = [], 1.0
    terms.append(-math.log(1.0 / (so_far + wrong)))
    for x, r in zip(q, right, strict=True):
        if r:
            so_far += math.exp(x)
            terms.append(-math.log(math.exp(x) / (so_far + wrong)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("right", [(1, 1, 0), (0, 0, 0), (1, 1, 1), (0, 1, 0)])
def test_pqm_is_its_equation(right):
    q = [0.3, -0.7, 1.1]
    logits = torch.tensor([[[0.0, 9.0], *([0.0, x] for x in q)]])
    p = torch.tensor([[0.5, *map(float, right)]])
    found = pqm(p, logits, torch.ones(1, 4, dtype=torch.bool), 4.0)
    np.testing.assert_allclose(found.sum(1), plain_pqm(q, right, 4.0), rtol=1e-5)
    np.testing.assert_allclose(found, found[0, 0])


# The Bellman residual


def test_the_bellman_residual_is_the_audits_u_statistic():
    """Counts stand for repeated draws: the estimate is that of core.residuals on the draws written out."""
    rng = np.random.default_rng(0)
    v, own = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    child, count = rng.normal(size=(2, 3, 2)), np.array([[[1, 3], [2, 0], [0, 0]], [[4, 1], [1, 1], [0, 2]]])
    found, resolved = bellman_residual(
        *(torch.from_numpy(x) for x in (v, own, child)), torch.from_numpy(count).double().log()
    )
    for i in range(2):
        for t in range(3):
            draws = [own[i, t], *np.repeat(child[i, t], count[i, t])]
            expected = prefix_errors(v[i, t : t + 1], np.asarray([draws])).squared_error[0]
            assert bool(resolved[i, t]) == (len(draws) > 1)
            if len(draws) > 1:
                assert float(found[i, t]) == pytest.approx(expected, rel=1e-9)
            else:
                assert float(found[i, t]) == 0


def test_the_residual_is_unbiased_where_the_one_child_square_is_not():
    """Two equiprobable children .2 and .6 of a prefix worth .4: rho = 1. All pairs: 0; the square of one child: .25."""
    log = torch.tensor([0.2, 0.6], dtype=torch.float64).log()
    v = torch.tensor([0.4], dtype=torch.float64).log().requires_grad_()
    pairs, one = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for a in log:
        one = one + (torch.expm1(a - v) ** 2).mean() / 2
        for b in log:
            none = torch.zeros(1, 1, 1, dtype=torch.float64)
            pairs = pairs + bellman_residual(v[None], a[None, None], b[None, None, None], none)[0].mean() / 4
    assert float(pairs.detach()) == pytest.approx(0, abs=1e-12)
    assert float(torch.autograd.grad(pairs, v)[0]) == pytest.approx(0, abs=1e-12)
    assert float(one.detach()) == pytest.approx(0.25)
    assert abs(float(torch.autograd.grad(one, v)[0])) > 0.1
