"""Exact laws of a policy whose steps can be listed: next steps, Bellman ratios, and prompts written out as tables.

A step's probability is the product of its tokens'. Listed steps share tokens, so they are walked as a trie with the KV
cache forked, and branches below ``min_probability`` are cut. The probability of steps outside the list (malformed ones) is
returned as ``uncovered``; what is kept is scaled to one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rmtools.core import FiniteModel
from rmtools.errors import UserError
from rmtools.lm.decoding import PolicyState, appended
from rmtools.lm.particles import Reward, to_numpy
from rmtools.lm.policy import Policy
from rmtools.lm.protocol import Scorer, ValueState
from rmtools.lm.tree_scoring import padded

_Prefix = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Expansion:
    """The children of B prefixes, M in all.

    Attributes
    ----------
    parent, choice : Tensor
        (M,) row of the prefix, and index into the listed steps.
    log_probability : Tensor
        (M,) nats, of the whole step under the policy.
    tokens : Tensor
        (M, L) token ids.
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
    """Return every step of ``choices`` after each of B live prefixes, with its exact probability.

    ``choices`` are token ids, each ending with the delimiter; ``UserError`` unless all have one length. Steps, and beginnings of
    steps, below ``min_probability`` are left out.
    """
    lengths = sorted({len(c) for c in choices})
    if len(lengths) != 1:
        raise UserError(
            f"the listed steps have {lengths} tokens: steps of different length are not enumerated",
            "audit without exact ratios",
        )
    table = torch.tensor(choices, device=policy.device)
    parent = torch.arange(len(state.pending), device=policy.device)
    log_p = torch.zeros(len(parent), dtype=torch.float64, device=policy.device)
    # A node is a prefix with the beginning of a step; `member` says which steps it may still become.
    member = torch.ones(len(parent), len(choices), dtype=torch.bool, device=policy.device)
    cache, pending = state.cache, state.pending
    floor = math.log(min_probability) if min_probability > 0 else -math.inf
    for column in table.T:
        logits, cache = cache.forward(policy.model, pending[:, None])
        conditional = policy.law.log_probabilities(logits[:, -1].double())
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
    before, tokens = state.tail[parent], table[choice]
    ended = (n_steps >= policy.steps.settings.max_steps) | _stopped(policy, before, tokens)
    after = PolicyState(cache, pending, n_steps, ended, appended(before, tokens))
    return Expansion(parent, choice, log_p, tokens, after)


def _stopped(policy: Policy, before: Tensor, tokens: Tensor) -> Tensor:
    """Return which steps ``tokens`` (B, L) end their solution by a stop text, begun in them or ``before`` (B, k)."""
    found = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for b in range(len(tokens) if policy.steps.settings.stop else 0):
        old, new = ([i for i in row[b].tolist() if i >= 0] for row in (before, tokens))
        found[b] = policy.steps.stopped(new, old)
    return found


def _next_tokens(member: Tensor, column: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return the distinct (node, token) pairs that continue each node."""
    node, choice = member.nonzero(as_tuple=True)
    pairs = torch.unique(node * vocabulary + column[choice])
    return pairs // vocabulary, pairs % vocabulary


@torch.inference_mode()
def follow(policy: Policy, state: PolicyState, tokens: Tensor) -> PolicyState:
    """Append a given step ``tokens`` (B, L; -1 = no token) to each prefix, as if it had been decoded."""
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
    over = torch.isin(pending, torch.tensor(policy.steps.end_ids, device=pending.device))
    over = over | _stopped(policy, state.tail, tokens)
    ended = state.ended | (n_steps >= policy.steps.settings.max_steps) | over
    return PolicyState(cache, pending, n_steps, ended, appended(state.tail, tokens))


@dataclass(frozen=True)
class ExactRatios:
    """Log Bellman errors b = log rho at the prefixes of N solutions, terminal the verifier's.

    Attributes
    ----------
    log_error : list of list of np.ndarray
        For each scorer, for each solution its (T,) nats; NaN where the listed steps cover less than half.
    uncovered : np.ndarray
        Flat: probability of a step outside the list, at each prefix in the same order.
    """

    log_error: list[list[np.ndarray]]
    uncovered: np.ndarray


def exact_ratios(
    policy: Policy,
    scorers: Sequence[Scorer],
    solutions: Sequence[tuple[str, Sequence[str]]],
    choices: Sequence[str],
    reward: Reward,
    min_probability: float = 1e-6,
    batch: int = 16,
    progress: Callable[[int], object] | None = None,
) -> ExactRatios:
    """Return rho(s) = sum_c pi(c | s) V(c) / V(s) at every prefix s of ``solutions``, enumerated instead of sampled.

    Parameters
    ----------
    policy
    scorers : sequence of Scorer
        Each must read the policy's tokens.
    solutions : sequence of (prompt, steps)
        A prefix that several solutions share is enumerated once.
    choices : sequence of str
        Every well-formed step c, the same after any prefix.
    reward : callable
        The verifier: gives the potential of children that end a solution.
    min_probability : float
        Steps less probable than this, given their prefix, are left out.
    batch : int
        Prompts enumerated together.
    progress : callable, optional
        Called with the number of solutions done.
    """
    by_prompt: dict[str, list[int]] = {}
    for i, (prompt, _) in enumerate(solutions):
        by_prompt.setdefault(prompt, []).append(i)
    prompts = list(by_prompt)
    ratios = _Ratios(policy, scorers, choices, reward, min_probability)
    log_error: list[list[np.ndarray]] = [[np.zeros(0)] * len(solutions) for _ in scorers]
    uncovered = [np.zeros(0)] * len(solutions)
    for start in range(0, len(prompts), batch):
        members = [i for p in prompts[start : start + batch] for i in by_prompt[p]]
        found = ratios.at([solutions[i] for i in members])
        for i in members:
            here = [found[key] for key in _prefixes(*solutions[i])]
            uncovered[i] = np.asarray([mass for _, mass in here])
            for k in range(len(scorers)):
                log_error[k][i] = np.asarray([errors[k] for errors, _ in here])
        if progress is not None:
            progress(len(members))
    return ExactRatios(log_error, np.concatenate(uncovered))


def _prefixes(prompt: str, steps: Sequence[str]) -> list[_Prefix]:
    """Return the prefixes of a solution that have not ended."""
    return [(prompt, tuple(steps[:t])) for t in range(len(steps))]


@dataclass(frozen=True)
class _Depth:
    """The distinct prefixes of one depth, as the policy and every scorer have read them."""

    prefixes: list[_Prefix]
    state: PolicyState
    read: list[tuple[Tensor, ValueState]]


@dataclass(frozen=True)
class _Ratios:
    """Enumerates the next steps of prefixes, one depth after the other, and values them with every scorer."""

    policy: Policy
    scorers: Sequence[Scorer]
    choices: Sequence[str]
    reward: Reward
    min_probability: float

    def at(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> dict[_Prefix, tuple[np.ndarray, float]]:
        """Return errors (n_scorers,) and uncovered probability of every distinct prefix."""
        depths: list[dict[_Prefix, None]] = [{} for _ in range(max(len(steps) for _, steps in solutions))]
        for prompt, steps in solutions:
            for t, key in enumerate(_prefixes(prompt, steps)):
                depths[t][key] = None
        found: dict[_Prefix, tuple[np.ndarray, float]] = {}
        ids = [self.policy.steps.prompt_ids(prompt) for prompt, _ in depths[0]]
        depth = _Depth(list(depths[0]), self.policy.start(ids), [s.start(ids) for s in self.scorers])
        for t, prefixes in enumerate(depths):
            if t:
                depth = self._follow(depth, list(prefixes))
            errors, uncovered = self._errors(depth)
            found |= {key: (errors[:, i], float(uncovered[i])) for i, key in enumerate(prefixes)}
        return found

    def _follow(self, before: _Depth, prefixes: list[_Prefix]) -> _Depth:
        """Go from the prefixes of one depth to those of the next, each by its own last step."""
        device = self.policy.device
        index = {key: i for i, key in enumerate(before.prefixes)}
        rows = torch.tensor([index[prompt, steps[:-1]] for prompt, steps in prefixes], device=device)
        tokens = padded([self.policy.steps.step_ids(steps[-1]) for _, steps in prefixes], -1, device)
        state = follow(self.policy, before.state.select(rows), tokens)
        read = [
            s.advance(scored.select(rows), tokens)
            for s, (_, scored) in zip(self.scorers, before.read, strict=True)
        ]
        return _Depth(prefixes, state, read)

    def _errors(self, depth: _Depth) -> tuple[np.ndarray, np.ndarray]:
        """Return errors (n_scorers, U) and uncovered probability (U,) of the prefixes of one depth."""
        n = len(depth.prefixes)
        ids = [self.policy.steps.step_ids(c) for c in self.choices]
        grown = expand(self.policy, depth.state, ids, self.min_probability)
        owner = grown.parent.cpu().numpy()
        p = np.exp(grown.log_probability.cpu().numpy())
        covered = np.bincount(owner, p, n)
        # After a malformed step the policy may be off its format: the listed steps then say little of rho.
        known = np.where(covered >= 0.5, covered, np.nan)
        reward = self._rewards(depth, owner, grown)
        errors = np.empty((len(self.scorers), n))
        for k, (scorer, (value, scored)) in enumerate(zip(self.scorers, depth.read, strict=True)):
            child = to_numpy(scorer.advance(scored.select(grown.parent), grown.tokens)[0])
            # Scorers differ in their floor, hence in the potential of a finished solution.
            child = np.where(np.isnan(reward), child, scorer.tilt.log_potential(np.nan_to_num(reward)))
            ratio = np.bincount(owner, p * np.exp(child - to_numpy(value)[owner]), n)
            errors[k] = np.log(np.where(np.isnan(known), 1.0, ratio) / known)
        return errors, 1 - covered

    def _rewards(self, depth: _Depth, owner: np.ndarray, grown: Expansion) -> np.ndarray:
        """Return the reward of the children that have ended, NaN for the others."""
        out = np.full(len(owner), np.nan)
        choice = grown.choice.tolist()
        for i in np.flatnonzero(grown.state.ended.cpu().numpy()):
            prompt, steps = depth.prefixes[owner[i]]
            out[i] = self.reward(prompt, [*steps, self.choices[choice[i]]])
        return out


@dataclass(frozen=True)
class Enumeration:
    """The live prefixes of one prompt under a policy, without values: enumerated once, scored by any number of models.

    Attributes
    ----------
    rules, links : list of np.ndarray
        T arrays (S_t, B): probabilities of the next steps, scaled to one, and the states they lead to.
    parents, tokens : list of Tensor
        T arrays (S_{t+1},) and (S_{t+1}, L): which state each one follows, and the step's token ids.
    rewards : np.ndarray
        (S_T,) of the verifier.
    paths : list of list of str
        The steps of each state at depth T.
    path_probability : np.ndarray
        (S_T,) of each path under the policy, not scaled: they sum to 1 - uncovered.
    """

    prompt: str
    rules: list[np.ndarray]
    links: list[np.ndarray]
    parents: list[Tensor]
    tokens: list[Tensor]
    rewards: np.ndarray
    paths: list[list[str]]
    path_probability: np.ndarray

    @property
    def uncovered(self) -> float:
        """Probability that a trajectory of the policy leaves the table, by a step that is not listed."""
        return float(1 - self.path_probability.sum())

    def score(self, value: Scorer) -> "TabulatedModel":
        """Return the table with ``value``'s values at every prefix and the verifier's potential at the ends."""
        root, scored = value.start([value.steps.prompt_ids(self.prompt)])
        log_values = [to_numpy(root)]
        for parent, tokens in zip(self.parents, self.tokens, strict=True):
            values, scored = value.advance(scored.select(parent), tokens)
            log_values.append(to_numpy(values))
        log_values[-1] = value.tilt.log_potential(self.rewards)
        model = FiniteModel(self.rules, log_values, self.links)
        return TabulatedModel(**{**vars(self), "model": model})


@dataclass(frozen=True)
class TabulatedModel(Enumeration):
    """An enumerated prompt as an exact finite model, ``model``; its states at depth T are in the order of ``paths``."""

    model: FiniteModel


def enumerate_prefixes(
    policy: Policy, prompt: str, choices: Sequence[str], reward: Reward, min_probability: float = 1e-4
) -> Enumeration:
    """Enumerate the prefixes of ``prompt`` under ``policy``, whose step settings give the horizon.

    ``choices``, ``reward`` and ``min_probability`` are those of `exact_ratios`; ``UserError`` if no listed step of a prefix is
    that probable.
    """
    ids = [policy.steps.step_ids(c) for c in choices]
    state = policy.start([policy.steps.prompt_ids(prompt)])
    rules, links, parents, tokens = [], [], [], []
    paths: list[list[str]] = [[]]
    probability = np.ones(1)
    while not bool(state.ended.all()):
        grown = expand(policy, state, ids, min_probability)
        parent = grown.parent.cpu().numpy()
        p = np.exp(grown.log_probability.cpu().numpy())
        rule, link = _layer(parent, p, len(paths))
        probability = probability[parent] * p
        rules.append(rule)
        links.append(link)
        parents.append(grown.parent)
        tokens.append(grown.tokens)
        paths = [[*paths[i], choices[c]] for i, c in zip(parent, grown.choice.tolist(), strict=True)]
        state = grown.state
        if bool(state.ended.any()) and not bool(state.ended.all()):
            raise UserError(
                f"a stop text ends some of the listed steps: {', '.join(map(repr, policy.steps.settings.stop))}",
                "leave the stop texts out: a table has solutions of one length",
            )
    rewards = np.asarray([reward(prompt, s) for s in paths], dtype=float)
    return Enumeration(prompt, rules, links, parents, tokens, rewards, paths, probability)


def tabulate(
    policy: Policy,
    value: Scorer,
    prompt: str,
    choices: Sequence[str],
    reward: Reward,
    min_probability: float = 1e-4,
) -> TabulatedModel:
    """Enumerate the prefixes of ``prompt`` under ``policy`` and score them with ``value``."""
    return enumerate_prefixes(policy, prompt, choices, reward, min_probability).score(value)


def _layer(parent: np.ndarray, p: np.ndarray, n_parents: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (S, B) probabilities scaled to one and (S, B) child indices."""
    slot = np.arange(len(parent)) - np.searchsorted(parent, parent)
    rule = np.zeros((n_parents, slot.max(initial=0) + 1))
    link = np.zeros(rule.shape, dtype=np.int64)
    rule[parent, slot] = p
    link[parent, slot] = np.arange(len(parent))
    mass = rule.sum(1)
    if (mass == 0).any():
        raise UserError(
            "a prefix has no listed step above min_probability: the policy is not on its format",
            "use a policy trained on the task, or lower its temperature",
        )
    return rule / mass[:, None], link
