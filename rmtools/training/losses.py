"""Losses of a prediction V for a target U (docs/equations.md, section 8).

Itakura-Saito, Poisson, cross-entropy and squared error of probabilities are Bregman divergences: their minimiser is
E[U] at every prefix. ``contrastive`` compares the batch's values at a depth as one distribution and finds E[U] up to
a factor per depth; ``pqm`` ranks the steps of a trajectory and finds no value. Both are for comparison.

>>> import torch
>>> log_u, log_v = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
>>> round(float(itakura_saito(log_u, log_v)), 4)  # 2 - log 2 - 1
0.3069
"""

import math

import torch
from torch import Tensor

BREGMAN = ("bce", "mse", "itakura_saito", "poisson")
DIVERGENCES = (*BREGMAN, "contrastive", "pqm")


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


def contrastive(log_target: Tensor, log_value: Tensor, known: Tensor) -> Tensor:
    """Return the divergence of normalised values from normalised targets, depth by depth over the batch.

    At depth t with n prefixes this is n KL(U/sum U, V/sum V), split into one term per prefix. With U the potential, its
    gradient is the difference of expectations under the target and under the twisted policy, both estimated with
    self-normalised weights of the policy's own trajectories: contrastive twist learning.

    Parameters
    ----------
    log_target, log_value, known : Tensor
        (B, T + 1) log U and log V in nats, and which prefixes have a target.

    Notes
    -----
    Prompts are compared with each other as well as solutions: the prompt is part of the sequence. The minimiser is
    E[U] up to a factor per depth in the limit of large batches; in small batches the normalised targets are biased
    upwards. SMC does not see a factor per depth if all solutions end at the same depth; the raw Bellman error always
    does. Source: Zhao et al., arXiv 2404.17546, section 4.
    """
    u = torch.log_softmax(log_target.masked_fill(~known, -torch.inf), dim=0)
    v = torch.log_softmax(log_value.masked_fill(~known, -torch.inf), dim=0)
    share = torch.where(known, u, 0.0).exp() * torch.where(known, u - v, 0.0)
    return torch.where(known, share * known.sum(0), 0.0)


def pqm(p_target: Tensor, logits: Tensor, known: Tensor, margin: float) -> Tensor:
    """Return the ranking loss of a trajectory's steps, split evenly over its prefixes that have a target.

    With Q the log odds of p, right steps (target of at least one half) should increase along the trajectory from Q = 0
    at the root, and every wrong step should stay ``margin`` below them.

    Parameters
    ----------
    p_target, known : Tensor
        (B, T + 1) target probabilities, and which prefixes have one; the root's is not used.
    logits : Tensor
        (B, T + 1, 2).
    margin : float
        Nats.

    Notes
    -----
    This learns ranks: p is no probability afterwards. Source: Li and Li, arXiv 2410.11287, eq. 10.
    """
    q = (logits[..., 1] - logits[..., 0]).float()
    depth = torch.arange(q.shape[1], device=q.device)
    wrong = known & (depth > 0) & (p_target < 0.5)
    # The root stands before every right step, with Q = 0.
    right = (known & (p_target >= 0.5)) | (depth == 0)
    q = torch.where(depth > 0, q, 0.0)
    so_far = torch.logcumsumexp(q.masked_fill(~right, -torch.inf), dim=1)
    against = torch.logsumexp((q + margin).masked_fill(~wrong, -math.inf), dim=1, keepdim=True)
    each = torch.where(right, torch.logaddexp(so_far, against) - q, 0.0)
    whole = each.sum(1) / right.sum(1)
    return (whole / known.sum(1).clamp(min=1))[:, None].expand_as(q)


def probability(log_value: Tensor, floor: float) -> Tensor:
    """Return p from log(f + (1 - f) p)."""
    return ((log_value.exp() - floor) / (1 - floor)).clamp(0, 1)


def divergence(
    name: str,
    log_target: Tensor,
    known: Tensor,
    logits: Tensor,
    log_value: Tensor,
    floor: float,
    margin: float = 4.0,
) -> Tensor:
    """Return the loss ``name`` of every prefix, zero for prefixes without target.

    ``bce``, ``mse`` and ``pqm`` compare probabilities, the others values.

    Parameters
    ----------
    name : str
        One of :data:`DIVERGENCES`.
    log_target, log_value, known : Tensor
        (B, T + 1) log U and log V in nats, and which prefixes have a target.
    logits : Tensor
        (B, T + 1, 2) that gave ``log_value``.
    floor, margin : float
        Floor of the tilt; margin of ``pqm``, nats.
    """
    log_target = torch.where(known, log_target, 0.0)
    if name in ("itakura_saito", "poisson"):
        found = (itakura_saito if name == "itakura_saito" else poisson)(log_target, log_value)
    elif name == "contrastive":
        found = contrastive(log_target, log_value, known)
    elif name in ("bce", "mse"):
        found = (bce if name == "bce" else mse)(probability(log_target, floor), logits)
    else:
        found = pqm(probability(log_target, floor), logits, known, margin)
    return torch.where(known, found, 0.0)


def bellman_residual(
    log_value: Tensor, log_next: Tensor, log_child: Tensor, log_count: Tensor
) -> tuple[Tensor, Tensor]:
    """Return unbiased estimates (B, T) of (rho - 1)^2 at the prefixes, and which have the two next steps it needs (others: 0).

    The gradient flows through all arguments. The product of two different next steps is averaged over all pairs, so
    neither the value nor its gradient contains the conditional variance that the square of one does.

    Parameters
    ----------
    log_value, log_next : Tensor
        (B, T) at the prefix and after the own step, nats.
    log_child, log_count : Tensor
        (B, T, C) distinct alternatives, and log of how often each was drawn, padded with -inf.

    Notes
    -----
    Source: docs/equations.md, sections 6 and 8 (double sampling).
    """
    values = torch.cat([log_next[..., None], log_child], dim=-1)
    count = torch.cat([torch.ones_like(log_next)[..., None], log_count.exp()], dim=-1)
    x = torch.expm1(torch.where(count > 0, values - log_value[..., None], 0.0))
    k = count.sum(-1)
    pairs = (count * x).sum(-1) ** 2 - (count * x**2).sum(-1)
    return torch.where(k > 1, pairs / (k * (k - 1)).clamp(min=1), 0.0), k > 1
