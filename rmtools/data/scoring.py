"""Score rollouts: the values of a model at every prefix and child, for the audit and the training metrics."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtools.data.encoding import encode_row, keeps_ids_of
from rmtools.data.rollouts import Child, Rollout
from rmtools.errors import UserError
from rmtools.lm.particles import Terminal
from rmtools.lm.protocol import Scorer, TreeValues
from rmtools.lm.scorer_checks import require_range, require_scores, require_tree_values
from rmtools.lm.value import BROKEN, NaNValueError
from rmtools.particles.tilt import Tilt
from rmtools.stats.bootstrap import Interval
from rmtools.stats.calibration import auc_within
from rmtools.stats.prefix_errors import PrefixErrors, prefix_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredRollouts:
    """N trajectories and their P prefixes that have not ended, with log values in nats.

    Attributes
    ----------
    prompt : np.ndarray
        (N,) index of each trajectory's prompt.
    log_value : list of np.ndarray
        N arrays (T + 1,); the last value is that of ``terminal``.
    own_log_value : list of np.ndarray
        The same with the model's own value at the end.
    reward : np.ndarray
        (N,) in [0, 1].
    prefix_trajectory, prefix_depth : np.ndarray
        (P,) trajectory and depth t of each prefix.
    prefix_log_value : np.ndarray
        (P,).
    child_log_value, child_present : np.ndarray
        (P, K) one-step children, the trajectory's own first, and which of them exist.
    horizon : int
        Largest number of steps.
    """

    prompt: np.ndarray
    log_value: list[np.ndarray]
    own_log_value: list[np.ndarray]
    reward: np.ndarray
    prefix_trajectory: np.ndarray
    prefix_depth: np.ndarray
    prefix_log_value: np.ndarray
    child_log_value: np.ndarray
    child_present: np.ndarray
    horizon: int

    @property
    def prefix_prompt(self) -> np.ndarray:
        """(P,) prompt of each prefix."""
        return self.prompt[self.prefix_trajectory]

    def errors(self) -> PrefixErrors:
        """Return the Bellman error estimates at the prefixes."""
        return prefix_errors(self.prefix_log_value, self.child_log_value, self.child_present)

    def alternative_errors(self) -> PrefixErrors:
        """Return the same without the own next steps, for sums along a trajectory.

        An own step's value is noise at t and the prefix at t + 1: counting it would correlate the terms of a sum.
        """
        present = self.child_present.copy()
        present[:, 0] = ~present[:, 1:].any(axis=1)
        return prefix_errors(self.prefix_log_value, self.child_log_value, present)


def within_prompt_and_depth(scored: ScoredRollouts) -> Interval:
    """Return the AUC over pairs of unfinished prefixes of one prompt and depth, the bare prompts left out."""
    behind = scored.prefix_depth > 0
    return auc_within(
        scored.prefix_log_value[behind],
        scored.reward[scored.prefix_trajectory[behind]],
        scored.prefix_prompt[behind],
        scored.prefix_depth[behind],
    )


def score_rollouts(
    rows: Sequence[Rollout],
    scorer: Scorer,
    terminal: Terminal = "verifier",
    progress: Callable[[int], object] | None = None,
) -> ScoredRollouts:
    """Score every prefix and child of ``rows``.

    Parameters
    ----------
    rows : sequence of Rollout
    scorer : Scorer
    terminal : {"verifier", "model"}
        Value of an ended prefix: the potential of its reward, or the model's own value.
    progress : callable, optional
        ``progress(n)`` reports n more scored rows.

    Raises
    ------
    UserError
        If the scorer's values do not have the shapes of `TreeValues`, or one is NaN (the prefix is named).
    """
    emitted = keeps_ids_of(rows, scorer.steps)
    texts = [[distinct_alternatives(at, emitted=emitted) for at in r.children] for r in rows]
    trees = [
        encode_row(r, scorer.steps, [list(at.values()) for at in t], emitted=emitted)
        for r, t in zip(rows, texts, strict=True)
    ]
    if hasattr(scorer, "question_of"):  # a published PRM renders the question in its own way
        scorer.question_of = _questions(rows, scorer.steps.front_text)
    inexact = sum(not tree.exact for tree in trees)
    if inexact:
        logger.warning(
            "%d of %d rows: a step ends within a token; its value is read there", inexact, len(rows)
        )
    try:
        found = scorer.score(trees, progress=progress)
    except NaNValueError as error:
        raise _nan_at(rows[error.trajectory], error.step, scorer.name) from error
    require_scores(scorer, found, len(rows))
    for row, v, named in zip(rows, found, texts, strict=True):
        require_tree_values(scorer.name, v, len(row.steps), [len(known) for known in named])
        _require_values(row, v, scorer)
    own = [v.log_value for v in found]
    reward = np.asarray([r.outcome for r in rows])
    log_value = [v.copy() for v in own]
    if terminal == "verifier":
        for values, phi in zip(log_value, scorer.tilt.log_potential(reward), strict=True):
            values[-1] = phi
    children = [
        _children(
            row, values, [v.children[t][_places(row, t, known, emitted)] for t, known in enumerate(named)]
        )
        for row, values, v, named in zip(rows, log_value, found, texts, strict=True)
    ]
    if terminal == "verifier":
        for row, at in zip(rows, children, strict=True):
            _end_with_potentials(row, at, scorer.tilt)
    if getattr(scorer, "first_steps", False):
        for values, root in zip([*log_value, *own], 2 * _roots(rows, children), strict=True):
            values[0] = root
    return scored_rollouts(rows, log_value, own, *_table([c for at in children for c in at]))


def scored_rollouts(
    rows: Sequence[Rollout],
    log_value: list[np.ndarray],
    own_log_value: list[np.ndarray],
    child_log_value: np.ndarray,
    child_present: np.ndarray,
) -> ScoredRollouts:
    """Return the values of ``rows`` with the places of their prefixes; arguments as the fields of `ScoredRollouts`."""
    length = np.asarray([len(r.steps) for r in rows])
    index = {name: i for i, name in enumerate(dict.fromkeys(r.prompt_id for r in rows))}
    return ScoredRollouts(
        prompt=np.asarray([index[r.prompt_id] for r in rows]),
        log_value=log_value,
        own_log_value=own_log_value,
        reward=np.asarray([r.outcome for r in rows]),
        prefix_trajectory=np.repeat(np.arange(len(rows)), length),
        prefix_depth=np.concatenate([np.arange(n) for n in length]),
        prefix_log_value=np.concatenate([v[:-1] for v in log_value]),
        child_log_value=child_log_value,
        child_present=child_present,
        horizon=int(length.max()),
    )


def _require_values(row: Rollout, values: TreeValues, scorer: Scorer) -> None:
    """Raise ``UserError`` naming the first prefix of ``row`` whose value, or that of a next step, is not in its range."""

    def prefix(t: int) -> str:
        return f"{row.prompt}{''.join(row.steps[:t])}"

    own = np.asarray(values.log_value)
    for t in range(len(own)):
        if np.isnan(own[t]) or (t < len(values.children) and np.isnan(values.children[t]).any()):
            raise _nan_at(row, t, scorer.name)
    require_range(scorer, own, _precision(own), prefix)
    for t, at in enumerate(values.children):
        found = np.asarray(at)
        require_range(scorer, found, _precision(found), lambda _, t=t: f"{prefix(t)}…")  # type: ignore[misc]


def _precision(values: np.ndarray) -> float:
    return float(np.finfo(values.dtype if values.dtype.kind == "f" else np.float64).eps)


def _nan_at(row: Rollout, t: int, name: str) -> UserError:
    """Return the error for NaN at the prefix of ``t`` steps, or at a next step of it."""
    return UserError(
        f"{name} gives NaN at a prefix of prompt {row.prompt_id} after {t} steps, or at a next step there: "
        f"{(row.prompt + ''.join(row.steps[:t]))[-120:]!r}",
        BROKEN,
    )


def distinct_alternatives(at: Sequence[Child], *, emitted: bool) -> dict[tuple[Any, ...], Child]:
    """Return the distinct alternatives of a depth by what tells them apart, in an order of their own."""
    return dict(sorted((_key(c, emitted), c) for c in at))


def _key(child: Child, emitted: bool) -> tuple[Any, ...]:
    return child.text, (child.ids or ()) if emitted else ()


def _places(row: Rollout, t: int, known: dict[tuple[Any, ...], Child], emitted: bool) -> np.ndarray:
    """Return the index of each alternative at depth t among the distinct ones, which are scored once."""
    index = {key: i for i, key in enumerate(known)}
    return np.asarray([index[_key(c, emitted)] for c in row.children[t]], dtype=np.int64)


def _children(row: Rollout, values: np.ndarray, alternatives: list[np.ndarray]) -> list[np.ndarray]:
    """Return for each depth the log values of the own next step and of its alternatives."""
    none = np.zeros(0)
    return [
        np.concatenate([values[t + 1 : t + 2], alternatives[t] if row.children else none])
        for t in range(len(row.steps))
    ]


def _end_with_potentials(row: Rollout, children: list[np.ndarray], tilt: Tilt) -> None:
    """Give the alternatives that end the solution the potential of their reward, in place."""
    for t, at in enumerate(row.children):
        ended = [k for k, child in enumerate(at) if child.ended]
        if ended:
            rewards = np.asarray([at[k].reward for k in ended], dtype=float)
            children[t][np.asarray(ended) + 1] = tilt.log_potential(rewards)


def _questions(rows: Sequence[Rollout], front: str) -> Callable[[str], str]:
    """Return the map from a prompt, with or without the special tokens in ``front``, to the question that it renders."""
    known = {r.prompt: r.question for r in rows if r.question is not None}
    known |= {prompt.removeprefix(front): q for prompt, q in known.items()}
    return lambda prompt: known.get(prompt, prompt)


def _roots(rows: Sequence[Rollout], children: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Return for each row the log of the mean value of its prompt's first steps, every one that was drawn counted once."""
    first: dict[str, list[np.ndarray]] = {}
    for row, at in zip(rows, children, strict=True):
        first.setdefault(row.prompt_id, []).append(at[0])
    found = {name: np.concatenate(values) for name, values in first.items()}
    mean = {name: float(np.logaddexp.reduce(v) - np.log(len(v))) for name, v in found.items()}
    return [mean[row.prompt_id] for row in rows]


def _table(branches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (P, K) values, zero where absent, and which are present."""
    width = max(len(b) for b in branches)
    values = np.zeros((len(branches), width))
    present = np.zeros(values.shape, dtype=bool)
    for i, b in enumerate(branches):
        values[i, : len(b)] = b
        present[i, : len(b)] = True
    return values, present
