"""Regression targets for the value of a prefix (docs/equations.md, section 8). All are log values, nats.

``mc`` is the outcome, averaged over the completions of the prefix; ``td`` the bootstrap value after one step,
averaged over the children; ``n_step`` the same after ``n`` steps; ``td_lambda`` the lambda-return between them;
``labels`` the given step labels. Returns of a trajectory that was cut end in the bootstrap value of its last prefix,
which has no target itself.

>>> import torch
>>> after, none = torch.tensor([[0.2, 0.5]]).log(), torch.zeros(1, 2, 0)
>>> one = one_step(after, none, none)
>>> returns = lambda_return(one, torch.tensor([0.5]).log(), torch.tensor([2]), 0.5)
>>> [round(x, 3) for x in returns.exp()[0].tolist()]
[0.35, 0.5, 0.5]
"""

import math

import torch
from torch import Tensor

TARGETS = ("mc", "td", "td_lambda", "n_step", "labels")
BOOTSTRAPPED = ("td", "td_lambda", "n_step")


def monte_carlo(log_potential: Tensor, log_completion: Tensor) -> Tensor:
    """Return log of the mean potential of the trajectory and the extra completions of each prefix, (B, T + 1).

    Parameters
    ----------
    log_potential : Tensor
        (B,) log potential of each trajectory's outcome.
    log_completion : Tensor
        (B, T + 1, R) of the extra completions, padded with -inf.
    """
    own = log_potential[:, None, None].expand(-1, log_completion.shape[1], 1)
    values = torch.cat([own, log_completion], dim=-1)
    return mean_in_logs(values, torch.where(values > -math.inf, 0.0, -math.inf))


def one_step(log_next: Tensor, log_child: Tensor, log_count: Tensor) -> Tensor:
    """Return log of the mean value after one step, over the trajectory's own step and its alternatives, (B, T).

    Parameters
    ----------
    log_next : Tensor
        (B, T) bootstrap value after the own step; the potential if that step ends the solution.
    log_child : Tensor
        (B, T, C) bootstrap values of the distinct alternatives.
    log_count : Tensor
        (B, T, C) log of how often each was drawn, padded with -inf.
    """
    own = log_next[..., None]
    return mean_in_logs(
        torch.cat([own, log_child], dim=-1), torch.cat([torch.zeros_like(own), log_count], dim=-1)
    )


def mean_in_logs(log_values: Tensor, log_count: Tensor) -> Tensor:
    """Return the log of the weighted mean of exp over the last axis; entries of weight zero may be NaN."""
    counted = torch.where(log_count > -math.inf, log_values, 0.0)
    return torch.logsumexp(counted + log_count, dim=-1) - torch.logsumexp(log_count, dim=-1)


def lambda_return(log_one_step: Tensor, log_end: Tensor, length: Tensor, lam: float) -> Tensor:
    """Return log G (B, T + 1), G_t = (1 - lambda) U_t + lambda G_{t+1}, and the end value from the last prefix on.

    Parameters
    ----------
    log_one_step : Tensor
        (B, T) one-step targets log U_t.
    log_end : Tensor
        (B,) log potential, or the bootstrap value of the last prefix of a trajectory that was cut short.
    length : Tensor
        (B,) steps of each trajectory; entries beyond are padding.
    lam : float
        0 is ``td``, 1 is the trajectory's own outcome.
    """
    result = [log_end]
    for t in range(log_one_step.shape[1] - 1, -1, -1):
        if lam == 0:
            mixed = log_one_step[:, t]
        elif lam == 1:
            mixed = result[-1]
        else:
            mixed = torch.logaddexp(math.log1p(-lam) + log_one_step[:, t], math.log(lam) + result[-1])
        result.append(torch.where(t < length, mixed, log_end))
    return torch.stack(result[::-1], dim=1)


def n_step_return(log_one_step: Tensor, log_end: Tensor, length: Tensor, n: int) -> Tensor:
    """Return log of the value after ``n`` steps (B, T + 1), the last of them averaged over the children of the prefix before.

    Parameters
    ----------
    log_one_step, log_end, length : Tensor
        As :func:`lambda_return`.
    n : int
        At least 1, which is ``td``. With fewer steps left, the end value.
    """
    horizon = log_one_step.shape[1]
    at = torch.arange(horizon + 1, device=length.device)[None, :] + (n - 1)
    ahead = log_one_step.gather(1, at.clamp(max=horizon - 1).expand(len(length), -1))
    return torch.where(at < length[:, None], ahead, log_end[:, None])


def given_labels(log_label: Tensor) -> Tensor:
    """Return each step's label as target of the prefix it ends, (B, T + 1); the first is also the target of the root.

    The value of the root is the mean value of first steps: a first step's label is a one-step target of it. ``log_label``
    (B, T) holds log values, NaN for a step without label.
    """
    return torch.cat([log_label[:, :1], log_label], dim=1)
