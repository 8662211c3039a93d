"""Divergences and targets: what they are minimised by, and their values by hand."""

import math

import numpy as np
import pytest
import torch

from rmtools.core.tilt import Tilt
from rmtools.data.rollouts import Child, Rollout
from rmtools.errors import UserError
from rmtools.lm.value import log_value_from_logits
from rmtools.train.collate import Collator, example, ragged
from rmtools.train.losses import DIVERGENCES, bce, divergence, itakura_saito, mse, poisson
from rmtools.train.targets import lambda_return, mean_in_logs, monte_carlo, one_step

FLOOR = 0.05
REWARDS = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.5], dtype=torch.float64)
LOG_U = (FLOOR + (1 - FLOOR) * REWARDS).log()


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


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_minimiser_is_the_mean(name):
    found = minimiser(lambda logits, log_v: divergence(name, LOG_U, logits, log_v, FLOOR))
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


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_finite_at_the_ends(name):
    logits = torch.tensor([[40.0, -40.0], [-40.0, 40.0]], requires_grad=True)
    log_v = log_value_from_logits(logits, FLOOR)
    for target in (math.log(FLOOR), 0.0):
        loss = divergence(name, torch.full((2,), target), logits, log_v, FLOOR)
        grad = torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]
        assert bool(torch.isfinite(loss).all())
        assert bool(torch.isfinite(grad).all())


def test_an_unknown_divergence_lists_the_known_ones():
    with pytest.raises(UserError, match="bce, mse, itakura_saito, poisson"):
        divergence("kl", LOG_U, torch.zeros(5, 2), LOG_U, FLOOR)


# Targets


def logs(x):
    return torch.tensor(x, dtype=torch.float64).log()


def test_mean_in_logs_leaves_out_what_is_absent():
    x = logs([[0.2, 0.4, 0.0], [0.3, 0.0, 0.0]])
    np.testing.assert_allclose(mean_in_logs(x).exp(), [0.3, 0.3])


def test_monte_carlo_counts_the_trajectory_once():
    """Own outcome .5; prefix 0 has extra outcomes .1 and .9, prefix 1 has .2, the end none."""
    log_phi = logs([0.5])
    extra = logs([[[0.1, 0.9], [0.2, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(monte_carlo(log_phi, extra).exp(), [[0.5, 0.35, 0.5]])


def test_one_step_averages_own_and_children():
    found = one_step(logs([[0.6, 0.3]]), logs([[[0.2, 0.1], [0.0, 0.0]]]))
    np.testing.assert_allclose(found.exp(), [[0.3, 0.3]])


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.0, [[0.2, 0.4, 0.8, 1.0], [0.3, 0.05, 0.05, 0.05]]),
        (1.0, [[1.0] * 4, [0.05] * 4]),
        (0.5, [[0.1 + 0.5 * (0.2 + 0.5 * 0.9), 0.2 + 0.5 * 0.9, 0.9, 1.0], [0.15 + 0.025, 0.05, 0.05, 0.05]]),
    ],
)
def test_lambda_return_of_ragged_trajectories(lam, expected):
    """Lengths 3 and 1: one-step targets .2 .4 .8 and .3; outcomes 1 and .05."""
    u = logs([[0.2, 0.4, 0.8], [0.3, 0.7, 0.9]])
    found = lambda_return(u, logs([1.0, 0.05]), torch.tensor([3, 1]), lam)
    np.testing.assert_allclose(found.exp(), expected)


def test_lambda_out_of_range():
    for lam in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match=r"td_lambda must be in \[0, 1\]"):
            lambda_return(logs([[0.5]]), logs([0.5]), torch.tensor([1]), lam)


# Collation

ROWS = [
    Rollout(
        "a",
        "r2 . \n",
        ["u r3 \n", "s x \n"],
        0.75,
        [[Child("d r1 \n", False, None)], [Child("s r3 \n", True, 0.25)]],
        [[0.5, 1.0], [0.0]],
    ),
    Rollout("b", "r1 . \n", ["u \n"], 0.0),
]


def test_examples_keep_soft_rewards(step_tokenizer):
    """0.75 is not cast to 0: potentials of trajectory, ended child and completions."""
    tilt = Tilt(FLOOR)
    one = example(ROWS[0], step_tokenizer, tilt)
    assert math.exp(one.log_potential) == pytest.approx(FLOOR + (1 - FLOOR) * 0.75)
    assert np.isnan(one.child_log_potential[0]).all()
    np.testing.assert_allclose(np.exp(one.child_log_potential[1]), FLOOR + (1 - FLOOR) * 0.25)
    np.testing.assert_allclose(
        np.exp(one.completion_log_potential[0]), [FLOOR + (1 - FLOOR) * r for r in (0.5, 1.0)]
    )


def test_a_batch_by_hand(step_tokenizer):
    tilt = Tilt(FLOOR)
    batch = Collator(step_tokenizer.pad_id)([example(r, step_tokenizer, tilt) for r in ROWS])
    assert batch["reads"].tolist() == [[2, 5, 8], [2, 4, 0]]
    assert batch["length"].tolist() == [2, 1]
    assert batch["child_reads"].tolist() == [[[11], [14]], [[-1], [-1]]]
    assert torch.isnan(batch["child_log_potential"]).tolist() == [[[True], [False]], [[True], [True]]]
    assert batch["completion_log_potential"].shape == (2, 3, 2)
    assert (batch["completion_log_potential"] == -math.inf).tolist() == [
        [[False, False], [False, True], [True, True]],
        [[True, True]] * 3,
    ]
    assert batch["model"]["input_ids"].shape == (2, 15)
    ids = batch["model"]["input_ids"].gather(1, batch["reads"])
    newline = step_tokenizer.delimiter_ids[0]
    assert ids[0].tolist() == [newline] * 3
    assert ids[1, :2].tolist() == [newline] * 2


def test_ragged_without_branches():
    assert ragged([[], []], 3, -1).shape == (2, 3, 0)
