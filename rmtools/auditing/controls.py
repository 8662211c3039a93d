"""Controls without a checkpoint: the value of the depth alone, and the Monte-Carlo oracle.

`position_only` is what a model knows that reads nothing but how far a solution has come. `monte_carlo_oracle` is what
the rollouts themselves know: a prefix is worth the mean potential of some of its completions, and the figures are
estimated from the others, so that value and estimate are independent (docs/equations.md, sections 5 and 6).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rmtools.data.rollouts import Rollout
from rmtools.data.scoring import ScoredRollouts
from rmtools.errors import UserError
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.value import TreeValues, ValueState
from rmtools.particles.tilt import Tilt


@dataclass(frozen=True)
class Position:
    """The :class:`ValueState` of a :class:`PositionValue`: which table each prefix has (B,), and its depth (B,)."""

    table: Tensor
    depth: Tensor

    def select(self, rows: Tensor) -> "Position":
        """Return the prefixes ``rows`` (B',)."""
        rows = rows.to(self.depth.device)
        return Position(self.table[rows], self.depth[rows])

    def join(self, other: ValueState) -> "Position":
        """Return these prefixes and, behind them, those of ``other``."""
        assert isinstance(other, Position)
        return Position(torch.cat([self.table, other.table]), torch.cat([self.depth, other.depth]))


class PositionValue:
    """The scorer that knows the depth and nothing else; made by :func:`position_only`.

    Parameters
    ----------
    log_value : np.ndarray
        (3, D) nats by depth: for the prompts of half A, for those of half B, and for prompts that were not fitted on.
        Deeper prefixes have the last entry.
    half : dict
        Prompt, as token ids, to 0 (half A) or 1 (half B).
    steps : StepTokenizer
    tilt : Tilt
    fitted_on : str
        Which rows the tables are of.
    """

    is_probability = True

    def __init__(
        self,
        log_value: np.ndarray,
        half: dict[tuple[int, ...], int],
        steps: StepTokenizer,
        tilt: Tilt,
        fitted_on: str,
    ) -> None:
        self.log_value = log_value
        self.half = half
        self.steps = steps
        self.tilt = tilt
        self.name = "position only"
        self.fitted_on = fitted_on

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Return each prefix's and child's value of its depth."""
        if progress is not None:
            progress(len(trees))
        out = []
        for tree in trees:
            row = self.log_value[self._table(tree.ids[: int(tree.reads[0]) + 1])]
            values = row[np.minimum(np.arange(len(tree.reads)), len(row) - 1)]
            children = [np.full(len(at), values[t + 1]) for t, at in enumerate(tree.child_reads)]
            out.append(TreeValues(values, children))
        return out

    def _table(self, prompt: Sequence[int] | np.ndarray) -> int:
        return self.half.get(tuple(int(i) for i in prompt), 2)

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return the values (B,) nats of prompts given as token ids, and the state."""
        state = Position(
            torch.tensor([self._table(p) for p in prompts]), torch.zeros(len(prompts), dtype=torch.long)
        )
        return self._read(state), state

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return the values (B,) nats one step deeper where there is a new token (B, L; -1 = none), and the state."""
        assert isinstance(state, Position)
        new = (tokens >= 0).any(1).to(state.depth.device)
        after = Position(state.table, state.depth + new.long())
        return self._read(after), after

    def _read(self, state: Position) -> Tensor:
        depth = state.depth.clamp(max=self.log_value.shape[1] - 1)
        return torch.from_numpy(self.log_value[state.table.numpy(), depth.numpy()])


def position_only(
    rows: Sequence[Rollout], steps: StepTokenizer, tilt: Tilt, rng: np.random.Generator
) -> PositionValue:
    """Fit the value of each depth, cross-fitted: prompts of half A get the table of half B, and the reverse.

    V(t) is the mean potential of the trajectories that reach depth t without having ended. At depths that the other
    half never reaches, and where a solution has ended, it is that of the deepest one reached.

    Parameters
    ----------
    rows : sequence of Rollout
        With outcomes. Both halves are halves of their prompts; other prompts get the table of all rows.
    steps : StepTokenizer
    tilt : Tilt
    rng : np.random.Generator
        Draws the halves.

    Raises
    ------
    UserError
        If there are fewer than two prompts, or a row has no outcome.
    """
    prompts = list(dict.fromkeys(r.prompt for r in rows))
    if len(prompts) < 2:
        raise UserError(
            f"the rollouts have {len(prompts)} prompt: the value of a depth is fitted on half of the prompts and "
            "read on the others",
            "use rollouts of at least two prompts, better 64",
        )
    order = rng.permutation(len(prompts))
    half = {prompts[i]: int(rank >= len(prompts) // 2) for rank, i in enumerate(order.tolist())}
    other = [_by_depth([r for r in rows if half[r.prompt] != h], tilt) for h in (0, 1)]
    tables = [*other, _by_depth(rows, tilt)]
    depths = max(len(t) for t in tables)
    return PositionValue(
        np.stack([np.pad(t, (0, depths - len(t)), mode="edge") for t in tables]),
        {tuple(steps.prompt_ids(p)): h for p, h in half.items()},
        steps,
        tilt,
        f"{len(rows)} trajectories of {len(prompts)} prompts, cross-fitted by halves of the prompts",
    )


def _by_depth(rows: Sequence[Rollout], tilt: Tilt) -> np.ndarray:
    """Return (D,) nats: the log of the mean potential of the trajectories that are unfinished at each depth."""
    reward = np.asarray([r.outcome for r in rows])
    length = np.asarray([len(r.steps) for r in rows])
    # The potential is linear in the reward: this is the log of its mean.
    return tilt.log_potential([reward[length > t].mean() for t in range(int(length.max()))])


@dataclass(frozen=True)
class OracleValue:
    """The Monte-Carlo oracle on its rows: values, and the rows without the completions that they are made of.

    Estimate from ``rows`` only: on them values and completions are independent given the trajectories. The oracle has no
    values at alternative next steps, so it has no Bellman error; sigma^2, calibration and ratios along trajectories
    it has. Its sigma^2 is that of a value with the noise of few completions, not of V*; at the end it knows the outcome,
    so calibration there is perfect.

    Attributes
    ----------
    log_value : list of np.ndarray
        N arrays (T + 1,) nats; the last is the potential of the trajectory's reward.
    rows : list of Rollout
        The same rows; completions that went into a value are removed.
    tilt : Tilt
    name : str
        Says how many completions a value is made of.
    n_roots_from_outcomes : int
        Prompts without completions of the prompt itself: their root is valued by the very outcomes that calibration
        compares it with (weight 1/n each). Particle costs do not see it.
    """

    log_value: list[np.ndarray]
    rows: list[Rollout]
    tilt: Tilt
    name: str
    n_roots_from_outcomes: int

    is_probability = True

    def scored(self) -> ScoredRollouts:
        """Return the values as the estimators read them: no children but the trajectories' own next steps."""
        length = np.asarray([len(r.steps) for r in self.rows])
        child = np.concatenate([v[1:] for v in self.log_value])[:, None]
        index = {p: i for i, p in enumerate(dict.fromkeys(r.prompt_id for r in self.rows))}
        return ScoredRollouts(
            prompt=np.asarray([index[r.prompt_id] for r in self.rows]),
            log_value=self.log_value,
            own_log_value=self.log_value,
            reward=np.asarray([r.outcome for r in self.rows]),
            prefix_trajectory=np.repeat(np.arange(len(self.rows)), length),
            prefix_depth=np.concatenate([np.arange(n) for n in length]),
            prefix_log_value=np.concatenate([v[:-1] for v in self.log_value]),
            child_log_value=child,
            child_present=np.ones(child.shape, dtype=bool),
            horizon=int(length.max()),
        )


def monte_carlo_oracle(
    rows: Sequence[Rollout], tilt: Tilt, rng: np.random.Generator, shrinkage: float = 0.0
) -> OracleValue:
    """Value every prefix by the mean potential of one half of its extra completions; leave the other to the estimates.

    The root has one value for all trajectories of a prompt: the mean over all their extra completions of the prompt,
    which no estimate reads, or over their outcomes where there are none. A constant cancels in every
    estimate of particle costs: V(s_0) enters them as V_i(s_0) / V_j(s_0) only.

    The trajectory's own outcome is in no value but the last: it is the potential at the end. sigma^2 alone would need no
    split, since V(s_t) meets V*^2 of other depths or of other trajectories only; in the spread of H completions of s_t
    stand in h_t and, through V(s_t), in h_{t+1}, and using them twice hides most of it.

    Parameters
    ----------
    rows : sequence of Rollout
        With outcomes, and at least two extra completions at every prefix after the first step (R >= 3); with four the
        spread of H can be estimated too.
    tilt : Tilt
    rng : np.random.Generator
        Draws which completions are used.
    shrinkage : float
        Weight of the root's value in every other one, in completions. Few completions that all fail make a value of the
        floor, and sigma^2 is of 1 / V: with 0 it may exceed that of a constant.

    Raises
    ------
    UserError
        If a prefix has fewer than two extra completions, a row has no outcome, the shrinkage is negative, or is asked for
        where a prompt has no completions of its own: outcomes would be in every value.

    Notes
    -----
    Of an odd number the larger half is left to the estimates. Source: docs/equations.md section 5.
    """
    for i, row in enumerate(rows):
        _require_completions(row, i)
    root = _root_rewards(rows)
    from_outcomes = sum(not from_completions for _, from_completions in root.values())
    _check_shrinkage(shrinkage, from_outcomes)
    kept: list[Rollout] = []
    values: list[np.ndarray] = []
    sizes: set[int] = set()
    for row in rows:
        prior = root[row.prompt_id][0]
        left: list[list[float]] = [[] for _ in row.steps]
        expected = [prior]
        for t in range(1, len(row.steps)):
            rewards = np.asarray(row.completions[t])
            used, rest = np.split(rng.permutation(len(rewards)), [len(rewards) // 2])
            left[t] = rewards[np.sort(rest)].tolist()
            expected.append((rewards[used].sum() + shrinkage * prior) / (len(used) + shrinkage))
            sizes.add(len(used))
        kept.append(replace(row, completions=left))
        # The potential is linear in the reward: these are logs of mean potentials.
        values.append(tilt.log_potential([*np.minimum(expected, 1.0), row.outcome]))
    count = " to ".join(str(n) for n in sorted({min(sizes), max(sizes)})) if sizes else "no"
    name = f"Monte-Carlo oracle, {count} completions" + (
        f" and {shrinkage:g} of the root" if shrinkage else ""
    )
    return OracleValue(values, kept, tilt, name, from_outcomes)


def _require_completions(row: Rollout, index: int) -> None:
    for t in range(1, len(row.steps)):
        n = len(row.completions[t]) if row.completions else 0
        if n < 2:
            raise UserError(
                f"field completions: row {index} (prompt {row.prompt_id}) has {n} after step {t}: the oracle's value takes "
                "one, and what it is compared with another",
                "draw rollouts with 5 completions per prefix, including the trajectory's own",
            )


def _root_rewards(rows: Sequence[Rollout]) -> dict[str, tuple[float, bool]]:
    """Return {prompt id: mean reward, whether it is of completions of the prompt and not of the outcomes}."""
    drawn: dict[str, list[float]] = {}
    outcomes: dict[str, list[float]] = {}
    for row in rows:
        drawn.setdefault(row.prompt_id, []).extend(row.completions[0] if row.completions else ())
        outcomes.setdefault(row.prompt_id, []).append(row.outcome)
    return {p: (float(np.mean(drawn[p] or outcomes[p])), bool(drawn[p])) for p in drawn}


def _check_shrinkage(shrinkage: float, from_outcomes: int) -> None:
    if not 0 <= shrinkage < np.inf:
        raise UserError(
            f"`shrinkage` must be at least 0, got {shrinkage}: it counts completions", "try 1, or 0 for none"
        )
    if shrinkage and from_outcomes:
        raise UserError(
            f"field completions: {from_outcomes} prompts have none before the first step: shrunk to their outcomes, the "
            "values would know what they are compared with",
            "shrinkage=0, or draw rollouts with 5 completions per prefix",
        )
