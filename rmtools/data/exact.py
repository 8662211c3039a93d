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
from rmtools.lm.enumerate import Expansion, expand, follow
from rmtools.lm.particles import to_numpy
from rmtools.lm.policy import Policy, PolicyState
from rmtools.lm.value import Scorer, ValueState


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
    batch: int = 128,
    progress: Callable[[int], object] | None = None,
) -> ExactRatios:
    """Enumerate the one-step children of every prefix of ``rows`` and value them with every scorer.

    Identical trajectories are enumerated once. ``progress`` is told how many rows are done.
    """
    distinct = list(dict.fromkeys((r.prompt, tuple(r.steps)) for r in rows))
    found: dict[tuple[str, tuple[str, ...]], tuple[np.ndarray, np.ndarray]] = {}
    counts = dict.fromkeys(distinct, 0)
    for r in rows:
        counts[r.prompt, tuple(r.steps)] += 1
    for start in range(0, len(distinct), batch):
        keys = distinct[start : start + batch]
        errors, uncovered = _batch(policy, scorers, keys, task, min_probability)
        for i, key in enumerate(keys):
            found[key] = errors[i], uncovered[i]
        if progress is not None:
            progress(sum(counts[k] for k in keys))
    per_row = [found[r.prompt, tuple(r.steps)] for r in rows]
    log_error = [
        [e[k][: len(r.steps)] for (e, _), r in zip(per_row, rows, strict=True)] for k in range(len(scorers))
    ]
    return ExactRatios(
        log_error, np.concatenate([u[: len(r.steps)] for (_, u), r in zip(per_row, rows, strict=True)])
    )


def _batch(
    policy: Policy,
    scorers: Sequence[Scorer],
    keys: Sequence[tuple[str, tuple[str, ...]]],
    task: Task,
    min_probability: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return errors (N, n_scorers, T) and uncovered mass (N, T) of distinct trajectories."""
    horizon = max(len(steps) for _, steps in keys)
    errors = np.zeros((len(keys), len(scorers), horizon))
    uncovered = np.zeros((len(keys), horizon))
    ids = [policy.steps.prompt_ids(prompt) for prompt, _ in keys]
    state = policy.start(ids)
    read = [s.start(ids) for s in scorers]
    alive = np.arange(len(keys))
    for t in range(horizon):
        grown, choices = _expansion(policy, state, keys[int(alive[0])][0], task, min_probability)
        owner = alive[grown.parent.cpu().numpy()]
        terminal = _terminal(
            scorers[0], keys, owner, [choices[c] for c in grown.choice.tolist()], grown, t, task
        )
        p = np.exp(grown.log_probability.cpu().numpy())
        covered = np.bincount(owner, p, len(keys))[alive]
        uncovered[alive, t] = 1 - covered
        # After a malformed step the policy may be off its format: the listed steps then say little of rho.
        known = np.where(covered >= 0.5, covered, np.nan)
        for k, (scorer, (value, scored)) in enumerate(zip(scorers, read, strict=True)):
            child = to_numpy(scorer.advance(scored.select(grown.parent), grown.tokens)[0])
            child = np.where(np.isnan(terminal), child, terminal)
            ratio = np.bincount(
                owner, p * np.exp(child - to_numpy(value)[grown.parent.cpu().numpy()]), len(keys)
            )
            errors[alive, k, t] = np.log(ratio[alive] / known)
        going = np.asarray(
            [i for i, key in enumerate(alive.tolist()) if len(keys[key][1]) > t + 1], dtype=np.int64
        )
        alive, state, read = _follow(policy, scorers, keys, alive, going, state, read, t)
        if not len(alive):
            break
    return errors, uncovered


def _expansion(
    policy: Policy, state: PolicyState, prompt: str, task: Task, min_probability: float
) -> tuple[Expansion, list[str]]:
    choices = task.step_choices(prompt, [])
    assert choices is not None
    return expand(policy, state, [policy.steps.step_ids(c) for c in choices], min_probability), choices


def _terminal(
    scorer: Scorer,
    keys: Sequence[tuple[str, tuple[str, ...]]],
    owner: np.ndarray,
    texts: list[str],
    grown: Expansion,
    t: int,
    task: Task,
) -> np.ndarray:
    """Return the log potential of the children that have ended, NaN for the others."""
    out = np.full(len(owner), np.nan)
    at = np.flatnonzero(grown.state.ended.cpu().numpy())
    rewards = [task.reward(keys[owner[i]][0], [*keys[owner[i]][1][:t], texts[i]]) for i in at]
    out[at] = scorer.tilt.log_potential(np.asarray(rewards, dtype=float))
    return out


def _follow(
    policy: Policy,
    scorers: Sequence[Scorer],
    keys: Sequence[tuple[str, tuple[str, ...]]],
    alive: np.ndarray,
    going: np.ndarray,
    state: PolicyState,
    read: list,
    t: int,
) -> tuple[np.ndarray, PolicyState, list]:
    """Move the trajectories that go on to their own next step."""
    if not len(going):
        return alive[going], state, read
    at = torch.as_tensor(going, device=policy.device)
    steps = [policy.steps.step_ids(keys[key][1][t]) for key in alive[going].tolist()]
    tokens = torch.full((len(steps), max(len(s) for s in steps)), -1, dtype=torch.long, device=policy.device)
    for row, s in zip(tokens, steps, strict=True):
        row[: len(s)] = torch.as_tensor(s)
    moved: list[tuple[torch.Tensor, ValueState]] = [
        s.advance(scored.select(at), tokens) for s, (_, scored) in zip(scorers, read, strict=True)
    ]
    return alive[going], follow(policy, state.select(at), tokens), moved
