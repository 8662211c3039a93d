"""The rollouts of one prompt as padded arrays, an ended prefix absorbing: what the estimators of cost read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rmtools.particles.tilt import Tilt
from rmtools.stats.sigma2 import value_square_estimate

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollout
    from rmtools.data.scoring import ScoredRollouts


@dataclass(frozen=True, eq=False)
class PromptArrays:
    """The n trajectories of one prompt, an ended prefix absorbing.

    Attributes
    ----------
    log_value, value_square : np.ndarray
        (n, T + 1) nats; unbiased estimates of V*^2, the squared potential at ended prefixes.
    potential : np.ndarray
        (n,).
    extra, present, ended : np.ndarray
        (n, T, R_extra) potentials of extra completions, and which exist; (n, T) bool.
    """

    log_value: np.ndarray
    value_square: np.ndarray
    potential: np.ndarray
    extra: np.ndarray
    present: np.ndarray
    ended: np.ndarray

    @classmethod
    def of(
        cls, rows: "Sequence[Rollout]", values: Sequence[np.ndarray], horizon: int, tilt: Tilt
    ) -> "PromptArrays":
        """Pad the trajectories of one prompt to ``horizon`` steps."""
        width = max((len(at) for r in rows for at in r.completions), default=0)
        potential = np.exp(tilt.log_potential(np.asarray([r.outcome for r in rows])))
        log_value = np.stack([np.pad(v, (0, horizon + 1 - len(v)), mode="edge") for v in values])
        extra = np.ones((len(rows), horizon, width))
        present = np.zeros(extra.shape, dtype=bool)
        ended = np.zeros(extra.shape[:2], dtype=bool)
        for i, row in enumerate(rows):
            ended[i, len(row.steps) :] = True
            for t, at in enumerate(row.completions):
                extra[i, t, : len(at)] = at
                present[i, t, : len(at)] = True
        extra = np.exp(tilt.log_potential(np.where(present, extra, 0.0)))
        own = np.broadcast_to(potential[:, None, None], (*ended.shape, 1))
        square = np.repeat(potential[:, None] ** 2, horizon + 1, axis=1)
        drawn = value_square_estimate(
            np.concatenate([own, extra], 2), np.concatenate([np.ones_like(own, bool), present], 2)
        )
        square[:, 1:-1] = np.where(ended[:, 1:], square[:, 1:-1], drawn[:, 1:])
        return cls(log_value, square, potential, extra, present, ended)


def prompt_arrays(rows: "Sequence[Rollout]", scored: "ScoredRollouts", tilt: Tilt) -> list[PromptArrays]:
    """Return the arrays of every prompt, in the order of ``scored.prompt``."""
    order = np.argsort(scored.prompt, kind="stable")
    ends = np.cumsum(np.bincount(scored.prompt))[:-1]
    return [
        PromptArrays.of([rows[i] for i in at], [scored.log_value[i] for i in at], scored.horizon, tilt)
        for at in np.split(order, ends)
    ]


def extra_completions(rows: "Sequence[Rollout]") -> int:
    """Return how many completions besides the trajectory's own every prefix after the first step has at least."""
    return min((len(at) for r in rows if len(r.steps) > 1 for at in r.completions[1:] or [[]]), default=0)
