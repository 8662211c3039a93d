"""Exact Bellman ratios at the prefixes of rollouts: every listed next step under the policy, no sampling.

rho(s) = sum_c pi(c given s) V(c) / V(s) over the listed steps c, their probabilities scaled to one; the mass
they do not cover (malformed steps) is returned beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rmtools.data.rollouts import Rollout
from rmtools.data.tasks import Task
from rmtools.lm.enumerate.next_steps import Expansion, expand, follow
from rmtools.lm.particles import to_numpy
from rmtools.lm.policy import Policy, PolicyState
from rmtools.lm.value import Scorer, ValueState

# A prompt and the steps after it.
Prefix = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class ExactRatios:
    """Log Bellman errors b = log rho at the prefixes of N trajectories, terminal the verifier's.

    Attributes
    ----------
    log_error : list of list of np.ndarray
        For each scorer, for each trajectory its (T,) nats; NaN where the listed steps cover less than half.
    uncovered : np.ndarray
        Flat: probability of a step outside the list, at each prefix in the same order.
    """

    log_error: list[list[np.ndarray]]
    uncovered: np.ndarray


def exact_ratios(
    policy: Policy,
    scorers: Sequence[Scorer],
    rows: Sequence[Rollout],
    task: Task,
    min_probability: float = 1e-6,
    batch: int = 16,
    progress: Callable[[int], object] | None = None,
) -> ExactRatios:
    """Enumerate the one-step children of every prefix of ``rows`` and value them with every scorer.

    Every distinct prefix is enumerated once, those of ``batch`` prompts together. ``progress`` is told how many
    rows are done.
    """
    by_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(row.prompt, []).append(i)
    prompts = list(by_prompt)
    log_error: list[list[np.ndarray]] = [[np.zeros(0)] * len(rows) for _ in scorers]
    uncovered = [np.zeros(0)] * len(rows)
    for start in range(0, len(prompts), batch):
        members = [i for p in prompts[start : start + batch] for i in by_prompt[p]]
        found = _prefixes(policy, scorers, [rows[i] for i in members], task, min_probability)
        for i in members:
            at = [found[key] for key in _keys(rows[i])]
            uncovered[i] = np.asarray([mass for _, mass in at])
            for k in range(len(scorers)):
                log_error[k][i] = np.asarray([errors[k] for errors, _ in at])
        if progress is not None:
            progress(len(members))
    return ExactRatios(log_error, np.concatenate(uncovered))


def _keys(row: Rollout) -> list[Prefix]:
    """Return the prefixes of a trajectory that have not ended."""
    return [(row.prompt, tuple(row.steps[:t])) for t in range(len(row.steps))]


def _prefixes(
    policy: Policy, scorers: Sequence[Scorer], rows: Sequence[Rollout], task: Task, min_probability: float
) -> dict[Prefix, tuple[np.ndarray, float]]:
    """Return errors (n_scorers,) and uncovered mass of every distinct prefix, one depth after the other."""
    levels = _levels(rows)
    ids = [policy.steps.prompt_ids(prompt) for prompt, _ in levels[0]]
    state = policy.start(ids)
    read = [s.start(ids) for s in scorers]
    found: dict[Prefix, tuple[np.ndarray, float]] = {}
    for t, level in enumerate(levels):
        if t:
            state, read = _follow(policy, scorers, levels[t - 1], level, state, read)
        errors, uncovered = _level(policy, scorers, level, task, state, read, min_probability)
        found |= {key: (errors[:, i], float(uncovered[i])) for i, key in enumerate(level)}
    return found


def _levels(rows: Sequence[Rollout]) -> list[list[Prefix]]:
    """Return the distinct prefixes at each depth."""
    levels: list[dict[Prefix, None]] = [{} for _ in range(max(len(r.steps) for r in rows))]
    for row in rows:
        for t, key in enumerate(_keys(row)):
            levels[t][key] = None
    return [list(level) for level in levels]


def _level(
    policy: Policy,
    scorers: Sequence[Scorer],
    level: Sequence[Prefix],
    task: Task,
    state: PolicyState,
    read: Sequence[tuple[torch.Tensor, ValueState]],
    min_probability: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return errors (n_scorers, U) and uncovered mass (U,) of the prefixes of one depth."""
    choices = task.step_choices(level[0][0], list(level[0][1])) or []
    grown = expand(policy, state, [policy.steps.step_ids(c) for c in choices], min_probability)
    owner = grown.parent.cpu().numpy()
    p = np.exp(grown.log_probability.cpu().numpy())
    covered = np.bincount(owner, p, len(level))
    # After a malformed step the policy may be off its format: the listed steps then say little of rho.
    known = np.where(covered >= 0.5, covered, np.nan)
    reward = _terminal(level, owner, choices, grown, task)
    errors = np.empty((len(scorers), len(level)))
    for k, (scorer, (value, scored)) in enumerate(zip(scorers, read, strict=True)):
        child = to_numpy(scorer.advance(scored.select(grown.parent), grown.tokens)[0])
        # Every scorer has its own floor: a finished solution is worth another potential to each.
        child = np.where(np.isnan(reward), child, scorer.tilt.log_potential(np.nan_to_num(reward)))
        ratio = np.bincount(owner, p * np.exp(child - to_numpy(value)[owner]), len(level))
        errors[k] = np.log(np.where(np.isnan(known), 1.0, ratio) / known)
    return errors, 1 - covered


def _terminal(
    level: Sequence[Prefix],
    owner: np.ndarray,
    choices: Sequence[str],
    grown: Expansion,
    task: Task,
) -> np.ndarray:
    """Return the reward of the children that have ended, NaN for the others."""
    out = np.full(len(owner), np.nan)
    at = np.flatnonzero(grown.state.ended.cpu().numpy())
    chosen = grown.choice.tolist()
    out[at] = [task.reward(level[owner[i]][0], [*level[owner[i]][1], choices[chosen[i]]]) for i in at]
    return out


def _follow(
    policy: Policy,
    scorers: Sequence[Scorer],
    before: Sequence[Prefix],
    after: Sequence[Prefix],
    state: PolicyState,
    read: Sequence[tuple[torch.Tensor, ValueState]],
) -> tuple[PolicyState, list[tuple[torch.Tensor, ValueState]]]:
    """Go from the prefixes of one depth to those of the next, each by its own last step."""
    index = {key: i for i, key in enumerate(before)}
    rows = torch.tensor([index[prompt, steps[:-1]] for prompt, steps in after], device=policy.device)
    ids = [policy.steps.step_ids(steps[-1]) for _, steps in after]
    tokens = torch.full((len(ids), max(len(s) for s in ids)), -1, dtype=torch.long, device=policy.device)
    for row, s in zip(tokens, ids, strict=True):
        row[: len(s)] = torch.as_tensor(s)
    moved = [s.advance(scored.select(rows), tokens) for s, (_, scored) in zip(scorers, read, strict=True)]
    return follow(policy, state.select(rows), tokens), moved
