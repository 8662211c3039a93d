"""What a finite model must be, said where and by how much it is not.

>>> import numpy as np
>>> check_layers((np.array([[0.5, 0.4]]),), (np.zeros(1), np.zeros(2)))
Traceback (most recent call last):
...
rmtools.errors.UserError: policy[0][0] sums to one plus -0.1; fix: divide each row by its sum
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rmtools.errors import UserError

ROW_SUM_TOLERANCE = 1e-9


def check_layers(policy: tuple[np.ndarray, ...], log_value: tuple[np.ndarray, ...]) -> None:
    """Raise UserError for wrong shapes, probabilities that do not sum to one, values of NaN or +inf."""
    if not policy or len(log_value) != len(policy) + 1:
        raise UserError(
            f"T >= 1 steps have T policies and T + 1 values, got {len(policy)} and {len(log_value)}",
            fix="log_value[0] is the root's, log_value[T] the log potential",
        )
    for t, (p, v) in enumerate(zip(policy, log_value, strict=False)):
        if p.ndim != 2 or v.shape != p.shape[:1] or p.shape[1] < 1:
            raise UserError(
                f"step {t}: policy has shape {p.shape} and log_value {v.shape}, expected (S, B) and (S,)",
                fix="one row of branch probabilities and one value per state",
            )
        _check_rows(t, p)
    if len(log_value[0]) != 1 or log_value[-1].ndim != 1:
        raise UserError(
            f"shapes of log_value[0] and log_value[T]: got {log_value[0].shape} and {log_value[-1].shape}",
            fix="one root state, and one log potential per final state",
        )
    for t, v in enumerate(log_value):
        bad = np.flatnonzero(~(v < np.inf))
        if len(bad):
            raise UserError(f"log_value[{t}][{bad[0]}] is {v[bad[0]]}: a value is finite or -inf for zero")


def _check_rows(t: int, p: np.ndarray) -> None:
    bad = np.argwhere(~((p >= 0) & (p <= 1 + ROW_SUM_TOLERANCE)))
    if len(bad):
        s, b = bad[0]
        raise UserError(f"policy[{t}][{s}, {b}] is {p[s, b]}: not a probability", fix="entries are in [0, 1]")
    excess = p.sum(axis=1) - 1
    worst = int(np.argmax(np.abs(excess)))
    if abs(excess[worst]) > ROW_SUM_TOLERANCE:
        raise UserError(
            f"policy[{t}][{worst}] sums to one plus {excess[worst]:.3g}",
            fix="divide each row by its sum",
        )


def check_children(
    policy: tuple[np.ndarray, ...], log_value: tuple[np.ndarray, ...], children: Sequence[ArrayLike] | None
) -> tuple[np.ndarray, ...] | None:
    """Return child indices, 0 where the policy is zero, or None for the full tree; refuse wrong ones."""
    if children is None:
        for t, p in enumerate(policy):
            if p.size != len(log_value[t + 1]):
                raise UserError(
                    f"layer {t + 1} of a full tree has {p.size} states, got {len(log_value[t + 1])} values",
                    fix="pass `children` for a model that is not the full tree",
                )
        return None
    if len(children) != len(policy):
        raise UserError(f"`children` must have {len(policy)} layers, got {len(children)}", fix="one per step")
    checked = []
    for t, (p, c) in enumerate(zip(policy, children, strict=True)):
        given = np.asarray(c)
        if given.shape != p.shape or not np.issubdtype(given.dtype, np.integer):
            raise UserError(
                f"children[{t}] has shape {given.shape} and type {given.dtype}, expected {p.shape} integers",
                fix="one child index per state and branch",
            )
        index = np.where(p > 0, given, 0).astype(np.intp)
        if index.min() < 0 or index.max() >= len(log_value[t + 1]):
            s, b = np.argwhere((index < 0) | (index >= len(log_value[t + 1])))[0]
            raise UserError(
                f"children[{t}][{s}, {b}] is {given[s, b]}: layer {t + 1} has {len(log_value[t + 1])} states",
                fix="count states from 0",
            )
        checked.append(index)
    return tuple(checked)
