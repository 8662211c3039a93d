"""What the value of a prefix is regressed on (docs/equations.md, section 8). All in log values, nats.

``mc`` is the outcome, averaged over the completions of the prefix; ``td`` the bootstrap value one step on,
averaged over the children; ``td_lambda`` the lambda-return between the two.
"""

import math

import torch
from torch import Tensor

from rmtools.errors import UserError

TARGETS = ("mc", "td", "td_lambda")


def monte_carlo(log_potential: Tensor, log_completion: Tensor) -> Tensor:
    """Return log of the mean potential of the trajectory and the extra completions of each prefix.

    Parameters
    ----------
    log_potential : Tensor
        (B,) of the trajectories' rewards.
    log_completion : Tensor
        (B, T + 1, R) of the extra completions, -inf where there is none.

    Returns
    -------
    Tensor
        (B, T + 1).
    """
    own = log_potential[:, None, None].expand(-1, log_completion.shape[1], 1)
    return mean_in_logs(torch.cat([own, log_completion], dim=-1))


def one_step(log_next: Tensor, log_child: Tensor) -> Tensor:
    """Return log of the mean value one step on, over the trajectory's own step and its alternatives.

    Parameters
    ----------
    log_next : Tensor
        (B, T) bootstrap value after the own step; the potential where that step ends.
    log_child : Tensor
        (B, T, C) bootstrap values of the alternatives, -inf where there is none.

    Returns
    -------
    Tensor
        (B, T).
    """
    return mean_in_logs(torch.cat([log_next[..., None], log_child], dim=-1))


def mean_in_logs(log_values: Tensor) -> Tensor:
    """Return log mean exp over the last axis, entries of -inf left out of the count."""
    count = (log_values > -math.inf).sum(-1)
    return torch.logsumexp(log_values, dim=-1) - count.log()


def lambda_return(log_one_step: Tensor, log_potential: Tensor, length: Tensor, lam: float) -> Tensor:
    """Return log G with G_t = (1 - lambda) U_t + lambda G_{t+1}, and G the potential from the last prefix on.

    Parameters
    ----------
    log_one_step : Tensor
        (B, T) one-step targets log U_t.
    log_potential : Tensor
        (B,).
    length : Tensor
        (B,) steps of each trajectory; entries beyond are padding.
    lam : float
        0 is ``td``, 1 is the trajectory's own outcome.

    Returns
    -------
    Tensor
        (B, T + 1).
    """
    if not 0 <= lam <= 1:
        raise UserError(f"td_lambda must be in [0, 1], got {lam}")
    result = [log_potential]
    for t in range(log_one_step.shape[1] - 1, -1, -1):
        if lam == 0:
            mixed = log_one_step[:, t]
        elif lam == 1:
            mixed = result[-1]
        else:
            mixed = torch.logaddexp(math.log1p(-lam) + log_one_step[:, t], math.log(lam) + result[-1])
        result.append(torch.where(t < length, mixed, log_potential))
    return torch.stack(result[::-1], dim=1)
