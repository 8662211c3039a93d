"""Targets by hand: returns of ragged and of cut trajectories, counted children, given labels."""

import math

import numpy as np
import pytest
import torch

from rmtools.training.targets import (
    given_labels,
    lambda_return,
    mean_in_logs,
    monte_carlo,
    n_step_return,
    one_step,
)


def logs(x):
    return torch.tensor(x, dtype=torch.float64).log()


def test_mean_in_logs_leaves_out_what_is_absent():
    x, count = logs([[0.2, 0.4, math.nan], [0.3, 0.9, 0.0]]), logs([[1, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(mean_in_logs(x, count).exp(), [0.3, 0.3])


def test_mean_in_logs_counts():
    np.testing.assert_allclose(mean_in_logs(logs([0.2, 0.4]), logs([3, 1])).exp(), 0.25)


def test_monte_carlo_counts_the_trajectory_once():
    """Own outcome .5; prefix 0 has extra outcomes .1 and .9, prefix 1 has .2, the end none."""
    log_phi = logs([0.5])
    extra = logs([[[0.1, 0.9], [0.2, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(monte_carlo(log_phi, extra).exp(), [[0.5, 0.35, 0.5]])


def test_one_step_averages_own_and_children():
    """Prefix 0: own .6, children .2 and .1; prefix 1: own .3; prefix 2: own .6, child .2 drawn three times."""
    child, count = logs([[[0.2, 0.1], [0.0, 0.0], [0.2, 0.7]]]), logs([[[1, 1], [0, 0], [3, 0]]])
    found = one_step(logs([[0.6, 0.3, 0.6]]), child, count)
    np.testing.assert_allclose(found.exp(), [[0.3, 0.3, 0.3]])


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


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [[0.2, 0.4, 0.8, 1.0], [0.3, 0.05, 0.05, 0.05]]),
        (2, [[0.4, 0.8, 1.0, 1.0], [0.05] * 4]),
        (3, [[0.8, 1.0, 1.0, 1.0], [0.05] * 4]),
        (9, [[1.0] * 4, [0.05] * 4]),
    ],
)
def test_n_step_return_of_ragged_trajectories(n, expected):
    """The value n steps on is the one-step target n - 1 steps on; past the end it is the outcome."""
    u = logs([[0.2, 0.4, 0.8], [0.3, 0.7, 0.9]])
    found = n_step_return(u, logs([1.0, 0.05]), torch.tensor([3, 1]), n)
    np.testing.assert_allclose(found.exp(), expected)


def test_given_labels_are_the_targets_of_the_prefixes_they_end():
    found = given_labels(logs([[0.7, 0.2, math.nan]])).exp()
    np.testing.assert_allclose(found, [[0.7, 0.7, 0.2, math.nan]])


def test_lambda_is_the_weight_of_the_return_ahead():
    found = lambda_return(logs([[0.2, 0.5]]), logs([0.8]), torch.tensor([2]), 0.25).exp()
    np.testing.assert_allclose(found, [[0.75 * 0.2 + 0.25 * 0.575, 0.575, 0.8]], rtol=1e-6)
