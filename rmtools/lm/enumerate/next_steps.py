"""Exact one-step laws of a policy: the probability of every listed next step of a prefix.

A step's probability is the product of its tokens'. Steps share tokens, so a trie of them is walked with the KV
cache forked, and branches under ``min_probability`` are cut; the mass not covered is stated, never spread.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.policy import Policy, PolicyState


@dataclass(frozen=True)
class Expansion:
    """The children of B prefixes, M in all.

    Attributes
    ----------
    parent : Tensor
        (M,) row of the prefix.
    choice : Tensor
        (M,) index into the listed steps.
    log_probability : Tensor
        (M,) nats, of the whole step under the policy.
    tokens : Tensor
        (M, L) token ids, -1 where a step is shorter.
    state : PolicyState
        Of the M children.
    """

    parent: Tensor
    choice: Tensor
    log_probability: Tensor
    tokens: Tensor
    state: PolicyState


@torch.inference_mode()
def expand(
    policy: Policy, state: PolicyState, choices: list[list[int]], min_probability: float = 0.0
) -> Expansion:
    """Return every step of ``choices`` (token ids) after each of B live prefixes, with its exact probability.

    Parameters
    ----------
    policy : Policy
    state : PolicyState
        B prefixes, none of them ended.
    choices : list of list of int
        Token ids of the steps, each ending with the delimiter; no step may be a prefix of another.
    min_probability : float
        Steps (and beginnings of steps) below it are left out.
    """
    table = equal_lengths(choices).to(policy.device)
    parent = torch.arange(len(state.pending), device=policy.device)
    log_p = torch.zeros(len(parent), dtype=torch.float64, device=policy.device)
    # A node is a prefix with the beginning of a step; `member` says which steps it may still become.
    member = torch.ones(len(parent), len(choices), dtype=torch.bool, device=policy.device)
    cache, pending = state.cache, state.pending
    floor = math.log(min_probability) if min_probability > 0 else -math.inf
    for column in table.T:
        logits, cache = cache.forward(policy.model, pending[:, None])
        conditional = torch.log_softmax(logits[:, -1].double() / policy.temperature, dim=-1)
        node, token = _next_tokens(member, column, conditional.shape[1])
        new = log_p[node] + conditional[node, token]
        kept = new >= floor
        node, pending, log_p = node[kept], token[kept], new[kept]
        member = member[node] & (column[None, :] == pending[:, None])
        parent, cache = parent[node], cache.select(node)
        if not len(node):
            break
    choice = member.long().argmax(1)
    n_steps = state.n_steps[parent] + 1
    ended = n_steps >= policy.steps.settings.max_steps
    return Expansion(parent, choice, log_p, table[choice], PolicyState(cache, pending, n_steps, ended))


def equal_lengths(choices: list[list[int]]) -> Tensor:
    """Return the steps as one (C, L) table; raises ``UserError`` where their token counts differ."""
    lengths = sorted({len(c) for c in choices})
    if len(lengths) != 1:
        raise UserError(
            f"the listed steps have {lengths} tokens: steps of different length are not enumerated",
            "audit without exact ratios",
        )
    return torch.tensor(choices)


def _next_tokens(member: Tensor, column: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return the distinct (node, token) pairs by which each node can go on."""
    node, choice = member.nonzero(as_tuple=True)
    pairs = torch.unique(node * vocabulary + column[choice])
    return pairs // vocabulary, pairs % vocabulary


@torch.inference_mode()
def follow(policy: Policy, state: PolicyState, tokens: Tensor) -> PolicyState:
    """Append a given step ``tokens`` (B, L; -1 = none) to each prefix, as if it had been decoded."""
    present = tokens >= 0
    length = present.sum(1)
    fed = torch.cat([state.pending[:, None], torch.where(present, tokens, policy.steps.pad_id)], dim=1)
    # The last token of each row stays pending, as after decoding.
    column = torch.arange(fed.shape[1], device=fed.device)[None, :]
    feed = column < length[:, None]
    _, cache = state.cache.forward(
        policy.model, fed[:, :-1], None if bool(feed[:, :-1].all()) else feed[:, :-1]
    )
    pending = fed[torch.arange(len(fed), device=fed.device), length]
    n_steps = state.n_steps + (length > 0).long()
    ended = state.ended | (n_steps >= policy.steps.settings.max_steps) | (pending == policy.steps.eos_id)
    return PolicyState(cache, pending, n_steps, ended)
