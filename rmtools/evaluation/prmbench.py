"""PRMBench (arXiv 2501.03124): F1 on right steps, on wrong ones, and PRMScore, their mean.

A step is called right if its score is at least the threshold, .5. Rows of class "correct" stand by themselves and are left out of
the totals.

>>> confusion = np.array([[8.0, 1.0, 2.0, 4.0]])  # right called right, wrong called right, right called wrong, wrong called wrong
>>> [round(float(x[0]), 4) for x in (positive_f1(confusion), negative_f1(confusion), prm_score(confusion))]
[0.8421, 0.7273, 0.7847]
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmtools.evaluation.labelled import CORRECT, LabelledSteps
from rmtools.evaluation.shares import share_intervals
from rmtools.evaluation.step_scores import Cost
from rmtools.stats.bootstrap import Interval, cluster_sums

THRESHOLD = 0.5


@dataclass(frozen=True)
class StepF1:
    """Confusion of steps and what is made of it; 95% intervals over problems.

    Attributes
    ----------
    n, n_right, n_wrong : int
        Solutions; right and wrong steps.
    f1, negative_f1, prm_score : Interval
        F1 with right steps as positives, with wrong ones, and their mean.
    accuracy : Interval
        Share of steps judged right.
    """

    n: int
    n_right: int
    n_wrong: int
    f1: Interval
    negative_f1: Interval
    prm_score: Interval
    accuracy: Interval


@dataclass(frozen=True)
class PRMBench:
    """A value model on PRMBench; ``evaluate.json`` is this.

    ``total`` is over all classes but "correct"; ``constant`` and ``never`` are the PRMScores of calling every step right, and
    every step wrong.
    """

    model: str
    source: str
    n: int
    too_long: int
    total: StepF1
    classes: dict[str, StepF1]
    constant: float
    never: float
    threshold: float
    cost: Cost | None
    provenance: dict[str, Any] = field(default_factory=dict)
    kind: str = "prmbench"


def positive_f1(sums: np.ndarray) -> np.ndarray:
    """Return F1 of right steps from columns (tp, fp, fn, tn), (B, 4) -> (B,); 0 without any, NaN without steps."""
    return _f1(sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3])


def negative_f1(sums: np.ndarray) -> np.ndarray:
    """Return F1 of wrong steps from the same columns."""
    return _f1(sums[:, 3], sums[:, 2], sums[:, 1], sums[:, 0])


def prm_score(sums: np.ndarray) -> np.ndarray:
    """Return half of F1 and half of the negative F1, from the same columns."""
    return (positive_f1(sums) + negative_f1(sums)) / 2


def _f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    whole = 2 * tp + fp + fn
    found = np.where(whole > 0, 2 * tp / np.where(whole > 0, whole, 1.0), 0.0)
    return np.where(tp + fp + fn + tn > 0, found, np.nan)


def _accuracy(sums: np.ndarray) -> np.ndarray:
    right: np.ndarray = (sums[:, 0] + sums[:, 3]) / sums.sum(axis=1)
    return right


STATISTICS = {"f1": positive_f1, "negative_f1": negative_f1, "prm_score": prm_score, "accuracy": _accuracy}


def confusion(row: LabelledSteps, p: np.ndarray, threshold: float = THRESHOLD) -> tuple[int, int, int, int]:
    """Return how many steps of a row are (right called right, wrong called right, right called wrong, wrong called wrong)."""
    said = np.asarray(p) >= threshold
    right = np.ones(len(said), dtype=bool)
    right[list(row.wrong)] = False
    pairs = ((right, said), (~right, said), (right, ~said), (~right, ~said))
    return tuple(int((a & b).sum()) for a, b in pairs)  # type: ignore[return-value]


def evaluate_prmbench(
    rows: Sequence[LabelledSteps],
    p: Sequence[np.ndarray],
    rng: np.random.Generator,
    model: str = "",
    source: str = "",
    cost: Cost | None = None,
) -> PRMBench:
    """Return F1, negative F1 and PRMScore, in total and by class; arguments as `evaluate_processbench`."""
    kept = [i for i, x in enumerate(p) if len(x)]
    table = np.asarray([confusion(rows[i], p[i]) for i in kept], dtype=np.float64)
    names = {x: k for k, x in enumerate(dict.fromkeys(rows[i].problem for i in kept))}
    problem = np.asarray([names[rows[i].problem] for i in kept])
    group = np.asarray([rows[i].group for i in kept])
    classes = [*dict.fromkeys(g for g in group.tolist() if g != CORRECT)]
    classes += [CORRECT] if CORRECT in group else []
    members = {"": group != CORRECT, **{g: group == g for g in classes}}
    if not members[""].any():
        members[""] = np.ones(len(kept), dtype=bool)
    sums = {g: cluster_sums(table[own], problem[own]) for g, own in members.items()}
    found = share_intervals({(g, k): (sums[g], s) for g in members for k, s in STATISTICS.items()}, rng)

    def result(g: str) -> StepF1:
        tp, fp, fn, tn = sums[g].sum(axis=0).astype(int).tolist()
        return StepF1(int(members[g].sum()), tp + fn, fp + tn, **{k: found[g, k] for k in STATISTICS})

    total = result("")
    blind = [(total.n_right, total.n_wrong, 0, 0), (0, 0, total.n_right, total.n_wrong)]
    constant, never = prm_score(np.asarray(blind, dtype=np.float64)).tolist()
    return PRMBench(
        model, source, len(kept), len(rows) - len(kept), total, {g: result(g) for g in classes}, constant, never, THRESHOLD, cost
    )  # fmt: skip
