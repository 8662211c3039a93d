"""Controls without a checkpoint: a value that depends on the depth only, and the Monte-Carlo oracle.

The oracle values a prefix by the mean potential of half of its completions (the smaller one of an odd number); the figures
are estimated from the others, so that value and estimate are independent (docs/equations.md, sections 5 and 6).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rmtools.data.rollouts import Rollout
from rmtools.data.scoring import ScoredRollouts, scored_rollouts
from rmtools.errors import UserError
from rmtools.lm.protocol import TreeValues, ValueState
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.value import RowState
from rmtools.particles.tilt import Tilt


@dataclass(eq=False)
class PositionValue:
    """A scorer that reads the depth only; made by :func:`position_only`.

    ``log_value`` (3, D) nats holds a table by depth for the prompts of half A, of half B, and for all others; deeper prefixes
    have the last entry. ``half`` maps the token ids of a prompt to 0 (half A) or 1 (half B).
    """

    log_value: np.ndarray
    half: dict[tuple[int, ...], int]
    steps: StepTokenizer
    tilt: Tilt
    fitted_on: str
    name: str = "position only"
    is_probability: bool = True

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Return the value of every prefix and child, by its depth."""
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

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, RowState]:
        """Return the values (B,) nats of prompts given as token ids, and the state: rows of (table, depth)."""
        return self._read(RowState(torch.tensor([(self._table(p), 0) for p in prompts])))

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, RowState]:
        """Return the values (B,) nats one step deeper where there is a new token (B, L; -1 = none), and the state."""
        assert isinstance(state, RowState)
        new = (tokens >= 0).any(1).to(state.rows.device)
        return self._read(RowState(torch.stack([state.rows[:, 0], state.rows[:, 1] + new.long()], dim=1)))

    def _read(self, state: RowState) -> tuple[Tensor, RowState]:
        table, depth = state.rows.numpy().T
        return torch.from_numpy(self.log_value[table, np.minimum(depth, self.log_value.shape[1] - 1)]), state


def position_only(
    rows: Sequence[Rollout], steps: StepTokenizer, tilt: Tilt, rng: np.random.Generator
) -> PositionValue:
    """Fit the value of each depth, cross-fitted: prompts of half A get the table of half B, and the reverse.

    V(t) is the mean potential of the trajectories that are unfinished at depth t; at finished solutions, and at depths that
    the other half never reaches, it is the value of the deepest depth reached. Other prompts get the table of all rows.

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
    """The values of the Monte-Carlo oracle, N arrays (T + 1,) nats, and the rows without the completions averaged into them.

    Estimate from ``rows`` only: on them values and completions are independent given the trajectories. The oracle has no
    values at alternative next steps, hence no Bellman error; sigma^2, calibration and ratios along trajectories exist. Its
    sigma^2 includes the noise of few completions; its last value is the potential of the outcome. The root value of the
    ``n_roots_from_outcomes`` prompts without completions of their own is the mean of the outcomes that calibration compares
    it with; particle costs are not affected.
    """

    log_value: list[np.ndarray]
    rows: list[Rollout]
    name: str
    n_roots_from_outcomes: int

    def scored(self) -> ScoredRollouts:
        """Return the values for the estimators; the only children are the trajectories' own next steps."""
        child = np.concatenate([v[1:] for v in self.log_value])[:, None]
        return scored_rollouts(
            self.rows, self.log_value, self.log_value, child, np.ones_like(child, dtype=bool)
        )


def monte_carlo_oracle(
    rows: Sequence[Rollout], tilt: Tilt, rng: np.random.Generator, shrinkage: float = 0.0
) -> OracleValue:
    """Value every prefix by the mean potential of half of its extra completions; leave the other half to the estimates.

    The root has one value per prompt: the mean of all extra completions of the prompt, which no estimate reads, or else of
    the outcomes. It cancels in particle costs. A trajectory's own outcome enters its last value only. The spread of H needs
    the split: completions of s_t enter h_t and, through V(s_t), h_{t+1}; using them twice hides most of the spread.

    Parameters
    ----------
    rows : sequence of Rollout
        With outcomes, and at least two extra completions at every prefix after the first step (R >= 3); four for the
        spread of H.
    tilt : Tilt
    rng : np.random.Generator
    shrinkage : float
        Weight of the root's value in every other value, in completions. With 0, prefixes whose few completions all fail have
        the floor's value, and sigma^2 may exceed a constant's.

    Raises
    ------
    UserError
        If a prefix has fewer than two extra completions, a row has no outcome, the shrinkage is negative, or it is positive
        and a prompt has no completions of its own: outcomes would enter every value.
    """
    _require_completions(rows)
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
    return OracleValue(values, kept, name, from_outcomes)


def _require_completions(rows: Sequence[Rollout]) -> None:
    for i, row in enumerate(rows):
        for t in range(1, len(row.steps)):
            if (n := len(row.completions[t]) if row.completions else 0) < 2:
                raise UserError(
                    f"field completions: row {i} (prompt {row.prompt_id}) has {n} after step {t}: the oracle needs one "
                    "for its value and one for the estimates",
                    "draw rollouts with 5 completions per prefix, including the trajectory's own",
                )


def _root_rewards(rows: Sequence[Rollout]) -> dict[str, tuple[float, bool]]:
    """Return {prompt id: (mean reward, True if over completions of the prompt, False if over outcomes)}."""
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
