"""Calibration of a value model on rollouts: Brier, ECE and AUC in all and by depth, AUC within prompt and depth.

Outcomes are the rewards of the trajectories. Where rows have none, p is compared with their step labels: judgements of each
step, another quantity than the chance of success.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmtools.data.rollouts import Rollout
from rmtools.errors import UserError
from rmtools.evaluation.step_scores import Cost
from rmtools.stats.bootstrap import Interval, bootstrap, cluster_sums
from rmtools.stats.calibration import CalibrationSummary, auc_within, calibration_estimator

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """A value model against outcomes; ``evaluate.json`` is this.

    Attributes
    ----------
    outcomes : str
        "rewards" or "step labels".
    overall : CalibrationSummary
        All prefixes, finished ones included.
    by_depth : dict of CalibrationSummary
        By the number of steps taken, "0" the bare prompt.
    auc_within : Interval
        Over pairs of unfinished prefixes of the same prompt and depth: what resampling has to choose between.
    design_effect : float
        Variance of the mean Brier score over prompts, relative to that of as many independent prefixes.
    """

    model: str
    source: str
    outcomes: str
    n_prompts: int
    n_solutions: int
    too_long: int
    overall: CalibrationSummary
    by_depth: dict[str, CalibrationSummary]
    auc_within: Interval
    design_effect: float
    cost: Cost | None
    provenance: dict[str, Any] = field(default_factory=dict)
    kind: str = "calibration"


@dataclass(frozen=True)
class _Prefixes:
    """(P,) prefixes: probability, outcome, prompt, depth, and whether the solution goes on behind them."""

    p: np.ndarray
    outcome: np.ndarray
    prompt: np.ndarray
    depth: np.ndarray
    unfinished: np.ndarray


def _prefixes(rows: Sequence[Rollout], p: Sequence[np.ndarray], by_label: bool) -> _Prefixes:
    ids = {x: i for i, x in enumerate(dict.fromkeys(r.prompt_id for r in rows))}
    columns: list[tuple[float, float, int, int, bool]] = []
    for row, values in zip(rows, p, strict=True):
        for t, value in enumerate(values.tolist()):
            label = row.labels[t - 1] if by_label and row.labels is not None and t else None
            outcome = label if by_label else row.reward
            if outcome is not None and not math.isnan(value):
                columns.append((value, outcome, ids[row.prompt_id], t, t < len(row.steps)))
    if not columns:
        raise UserError(
            "no prefix has both a value and an outcome", "use rollouts with rewards or step labels"
        )
    found = np.asarray(columns, dtype=np.float64).T
    return _Prefixes(found[0], found[1], found[2].astype(int), found[3].astype(int), found[4] > 0)


def evaluate_calibration(
    rows: Sequence[Rollout],
    p: Sequence[np.ndarray],
    rng: np.random.Generator,
    model: str = "",
    source: str = "",
    cost: Cost | None = None,
) -> Calibration:
    """Compare probabilities with outcomes.

    Parameters
    ----------
    rows : sequence of Rollout
        Their rewards are the outcomes; their step labels, unless every row has a reward.
    p : sequence of np.ndarray
        (T + 1,) probabilities of each row, at the prompt and behind each step; NaN where the model gives no value, empty for a
        row that it could not read.
    rng : np.random.Generator
        Source of the resamples.
    model, source, cost
        For the report.

    Raises
    ------
    UserError
        If nothing can be compared, or a probability or outcome is out of range.
    """
    by_label = any(r.reward is None for r in rows)
    x = _prefixes(rows, p, by_label)
    depths = np.unique(x.depth).tolist()
    estimators = {"": calibration_estimator(x.p, x.outcome, x.prompt, bins=BINS)}
    for t in depths:
        at = x.depth == t
        estimators[str(t)] = calibration_estimator(x.p[at], x.outcome[at], x.prompt[at], bins=BINS)
    found = bootstrap(estimators, rng)
    between = (x.depth > 0) & x.unfinished
    kept = sum(len(values) > 0 for values in p)
    return Calibration(
        model,
        source,
        "step labels" if by_label else "rewards",
        len(np.unique(x.prompt)),
        kept,
        len(p) - kept,
        found[""],
        {str(t): found[str(t)] for t in depths},
        auc_within(x.p[between], x.outcome[between], x.prompt[between], x.depth[between]),
        design_effect((x.p - x.outcome) ** 2, x.prompt),
        cost,
    )


def design_effect(values: np.ndarray, clusters: np.ndarray) -> float:
    """Return the variance of the mean of ``values`` (P,) by clusters, relative to that of P independent ones.

    1 for values that do not depend on their cluster; NaN if all are equal or there is one cluster.

    >>> round(design_effect(np.array([0.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1])), 2)
    3.0
    """
    n, centred = len(values), values - values.mean()
    sums = cluster_sums(centred, clusters)[:, 0]
    alone = float(centred @ centred) / (n - 1) * n if n > 1 else 0.0
    if len(sums) < 2 or alone == 0:
        return math.nan
    return float(sums @ sums) * len(sums) / (len(sums) - 1) / alone
