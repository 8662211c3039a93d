"""Fit a monotone map of a value model's p to the outcomes of rollouts: what `rmtools calibrate` saves beside the model.

The outcomes of a prefix are the reward of its trajectory and of the completions drawn from it: all solutions that pass through
it. They are drawn by the rollouts' policy, so the map is trained toward V* before the tilt: the probability of success from the
prefix under that policy (docs/equations.md, section 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from rmtools.data.rollouts import Rollout
from rmtools.errors import UserError
from rmtools.evaluation.step_scores import score_steps
from rmtools.lm.calibrated import reads_root, without_floor
from rmtools.lm.protocol import Scorer
from rmtools.particles.tilt import Tilt
from rmtools.stats.map_fit import FittedMap, Outcomes, fit_map


def calibrate(
    rows: Sequence[Rollout],
    scorer: Scorer,
    rng: np.random.Generator,
    form: str = "auto",
    by_depth: str = "auto",
    folds: int = 5,
    progress: Callable[[int], object] | None = None,
) -> FittedMap:
    """Fit a map to the outcomes of ``rows``.

    Parameters
    ----------
    rows : sequence of Rollout
        With rewards, of two prompts at least.
    scorer : Scorer
        A value model as it was loaded, without a map. Its floor is taken off while it is read, and put back.
    rng : np.random.Generator
        Source of the folds.
    form, by_depth, folds
        As of `rmtools.stats.map_fit.fit_map`.
    progress : callable, optional
        Called with the number of rows that are newly scored.

    Raises
    ------
    UserError
        If a row has no reward, or as of `fit_map` and `rmtools.evaluation.step_scores.score_steps`.
    """
    if any(r.reward is None for r in rows):
        raise UserError(
            "some rollouts have no reward: a map is trained toward the outcomes of solutions",
            "use rollouts with rewards, such as those of `rmtools rollout`",
        )
    if not scorer.is_probability:
        raise UserError(
            f"the values of {scorer.name} are no probabilities of success: there is nothing to calibrate",
            "calibrate a model whose values are probabilities",
        )
    inner, tilt = without_floor(scorer)
    try:
        p = score_steps(rows, inner, progress).p
    finally:
        _with_floor(inner, tilt)
    return fit_map(outcomes_of(rows, p, root=reads_root(scorer)), rng, form, by_depth, folds)


def _with_floor(value: "Scorer", tilt: Tilt) -> None:
    value.tilt = tilt
    reading = getattr(value, "reading", None)
    if reading is not None:
        value.reading = replace(reading, floor=tilt.floor)  # type: ignore[attr-defined]


def outcomes_of(rows: Sequence[Rollout], p: Sequence[np.ndarray], *, root: bool = True) -> Outcomes:
    """Return the predictions with their outcomes: a row per prefix, the bare prompts only if ``root``.

    ``p`` are arrays (T + 1,), or empty for rows that are left out. A finished solution has one outcome, its reward.
    """
    ids = {x: i for i, x in enumerate(dict.fromkeys(r.prompt for r in rows))}
    columns: list[tuple[float, float, float, float, int, int]] = []
    for row, values in zip(rows, p, strict=True):
        for t, value in enumerate(values.tolist()):
            if t == 0 and not root:
                continue
            extra = row.completions[t] if row.completions and t < len(row.steps) else []
            drawn = np.asarray([row.outcome, *extra], dtype=np.float64)
            columns.append((value, drawn.mean(), (drawn**2).mean(), float(len(drawn)), ids[row.prompt], t))
    if not columns:
        raise UserError("no prefix has both a value and an outcome", "use rollouts with rewards")
    found = np.asarray(columns, dtype=np.float64).T
    with np.errstate(divide="ignore"):
        log_p = np.log(found[0])
    return Outcomes(log_p, found[1], found[4].astype(np.int64), found[5].astype(np.int64), found[3], found[2])
