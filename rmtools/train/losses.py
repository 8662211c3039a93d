"""Bregman divergences between a target U and a prediction V: their minimiser is E[U] (docs/equations.md, section 8).

>>> import torch
>>> log_u, log_v = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
>>> round(float(itakura_saito(log_u, log_v)), 4)  # 2 - log 2 - 1
0.3069
"""

import torch
from torch import Tensor

from rmtools.errors import UserError

DIVERGENCES = ("bce", "mse", "itakura_saito", "poisson")


def itakura_saito(log_target: Tensor, log_value: Tensor) -> Tensor:
    """Return U/V - log(U/V) - 1, elementwise, of log values in nats.

    Scale-free: its conditional excess risk is rho - log rho - 1, about half the squared log Bellman error.
    """
    d = log_target - log_value
    return torch.expm1(d) - d


def poisson(log_target: Tensor, log_value: Tensor) -> Tensor:
    """Return the generalised Kullback-Leibler divergence U log(U/V) - U + V, elementwise."""
    return log_target.exp() * (log_target - log_value) - log_target.exp() + log_value.exp()


def bce(p_target: Tensor, logits: Tensor) -> Tensor:
    """Return the Bernoulli cross-entropy of p = softmax(logits)[..., 1] for a target probability, elementwise."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return -(p_target * log_p[..., 1] + (1 - p_target) * log_p[..., 0])


def mse(p_target: Tensor, logits: Tensor) -> Tensor:
    """Return the squared error (Brier score) of p = softmax(logits)[..., 1], elementwise."""
    return (torch.softmax(logits.float(), dim=-1)[..., 1] - p_target) ** 2


def divergence(name: str, log_target: Tensor, logits: Tensor, log_value: Tensor, floor: float) -> Tensor:
    """Return the divergence ``name``, elementwise.

    Parameters
    ----------
    name : str
        One of :data:`DIVERGENCES`; ``bce`` and ``mse`` compare probabilities, the others values.
    log_target, log_value : Tensor
        log U and log V, nats.
    logits : Tensor
        (..., 2), of which ``log_value`` was made.
    floor : float
        Of the tilt.

    Raises
    ------
    UserError
        On an unknown name.
    """
    if name == "itakura_saito":
        return itakura_saito(log_target, log_value)
    if name == "poisson":
        return poisson(log_target, log_value)
    p_target = ((log_target.exp() - floor) / (1 - floor)).clamp(0, 1)
    if name == "bce":
        return bce(p_target, logits)
    if name == "mse":
        return mse(p_target, logits)
    raise UserError(f"unknown divergence {name!r}", f"the divergences are: {', '.join(DIVERGENCES)}")
