"""ProcessBench (arXiv 2412.06559): the first wrong step of a solution, if there is one.

The prediction is the first step whose score is below a threshold; F1 = 2ab / (a + b) of the accuracy a on solutions with an error
and b on those without.

>>> import numpy as np
>>> first_below(np.array([0.9, 0.4, 0.2]), 0.5), first_below(np.array([0.9, 0.6]), 0.5)
(1, -1)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmtools.evaluation.labelled import LabelledSteps
from rmtools.evaluation.published import SUBSETS
from rmtools.evaluation.shares import share_intervals
from rmtools.evaluation.step_scores import Cost
from rmtools.stats.bootstrap import Interval, cluster_sums, ratio_of_means
from rmtools.stats.calibration import auc_interval

CHOSEN_ON = "gsm8k"
"""The subset on which the threshold is chosen, as the benchmark does."""
CURVE = 101


@dataclass(frozen=True)
class FirstError:
    """Accuracy at a threshold: on solutions with an error, without one, and their harmonic mean; 95% over problems."""

    erroneous: Interval
    correct: Interval
    f1: Interval


@dataclass(frozen=True)
class SubsetResult:
    """One subset.

    Attributes
    ----------
    n_erroneous, n_correct : int
        Solutions with and without an error.
    at_half : FirstError
        At threshold .5.
    at_chosen : FirstError or None
        At the threshold chosen on GSM8K, whose own figure is then that of the best threshold in hindsight; None without
        GSM8K.
    guess : float
        F1 of the best guess that does not look: "no error" with some chance, else one of the steps.
    auc : Interval
        Chance that a right step scores higher than a first wrong one, over all pairs of steps; .5 for a constant.
    """

    n_erroneous: int
    n_correct: int
    at_half: FirstError
    at_chosen: FirstError | None
    guess: float
    auc: Interval


@dataclass(frozen=True)
class ThresholdCurve:
    """Accuracies and F1 of a subset at thresholds (n,) from 0 to 1."""

    threshold: np.ndarray
    erroneous: np.ndarray
    correct: np.ndarray
    f1: np.ndarray


@dataclass(frozen=True)
class ProcessBench:
    """A value model on ProcessBench; ``evaluate.json`` is this.

    Attributes
    ----------
    subsets : dict of SubsetResult
    average_at_half, average_at_chosen : Interval or None
        Mean F1 over the subsets, 95% over problems.
    constant_f1 : float
        0: a value that is the same everywhere calls all solutions right, or all wrong at their first step.
    threshold : float or None
        Chosen on GSM8K.
    """

    model: str
    source: str
    n: int
    too_long: int
    subsets: dict[str, SubsetResult]
    average_at_half: Interval
    average_at_chosen: Interval | None
    threshold: float | None
    curves: dict[str, ThresholdCurve]
    cost: Cost | None
    constant_f1: float = 0.0
    provenance: dict[str, Any] = field(default_factory=dict)
    kind: str = "processbench"


def first_below(p: np.ndarray, threshold: float) -> int:
    """Return the first step whose score is below the threshold, -1 without one."""
    below = np.flatnonzero(np.asarray(p) < threshold)
    return int(below[0]) if len(below) else -1


def f1(erroneous: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Return 2ab / (a + b), 0 where both are 0."""
    total = np.asarray(erroneous + correct, dtype=np.float64)
    return np.where(total > 0, 2 * erroneous * correct / np.where(total > 0, total, 1.0), 0.0)


class _Ends:
    """The thresholds at which each solution is judged right: above ``low``, up to ``high`` (N,) each.

    With a first error k the prediction is k for p_k < threshold <= min(p_0..p_{k-1}); without one -1 for threshold <= min p.
    """

    def __init__(self, p: Sequence[np.ndarray], first: Sequence[int]) -> None:
        self.erroneous = np.asarray(first) >= 0
        self.low = np.asarray(
            [x[k] if k >= 0 else -np.inf for x, k in zip(p, first, strict=True)], dtype=float
        )
        before = [x[:k] if k >= 0 else x for x, k in zip(p, first, strict=True)]
        self.high = np.asarray([x.min(initial=np.inf) for x in before], dtype=float)

    def right(self, threshold: float) -> np.ndarray:
        """Return (N,) whether each prediction is right."""
        return (self.low < threshold) & (threshold <= self.high)

    def accuracies(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return accuracies (n,) on erroneous and on correct solutions, 0 without any of a kind."""
        found = []
        for own in (self.erroneous, ~self.erroneous):
            low, high = self.low[own], self.high[own]
            kept = low < high
            low, high = np.sort(low[kept]), np.sort(high[kept])
            inside = np.searchsorted(low, thresholds, "left") - np.searchsorted(high, thresholds, "left")
            found.append(inside / max(int(own.sum()), 1))
        return found[0], found[1]


def best_threshold(p: Sequence[np.ndarray], first: Sequence[int]) -> float:
    """Return the threshold of the largest F1 (the lowest of equals), half-way to the next lower score.

    Parameters
    ----------
    p : sequence of np.ndarray
        Scores of the steps of each solution.
    first : sequence of int
        The first wrong step, -1 for none.
    """
    ends = _Ends(p, first)
    scores = np.unique(np.concatenate([*p, [0.0, 1.0]]))
    tops = np.unique(np.minimum(ends.high, 1.0 + 1e-9))
    best = float(tops[int(np.argmax(f1(*ends.accuracies(tops))))])
    under = scores[scores < best]
    return (best + float(under[-1])) / 2 if len(under) else best


def guess_f1(first: Sequence[int], n_steps: Sequence[int]) -> float:
    """Return the best expected-accuracy F1 of guessing: "no error" with chance x, else each step alike.

    F1 of a = (1 - x) m and b = x, m the mean of 1 / T over solutions with an error, is largest at x = sqrt(m) / (1 + sqrt(m)).
    """
    shares = [1 / t for k, t in zip(first, n_steps, strict=True) if k >= 0]
    if not shares or len(shares) == len(first):
        return 0.0
    m = float(np.mean(shares))
    x = np.sqrt(m) / (1 + np.sqrt(m))
    return float(f1(np.asarray((1 - x) * m), np.asarray(x)))


def evaluate_processbench(
    rows: Sequence[LabelledSteps],
    p: Sequence[np.ndarray],
    rng: np.random.Generator,
    model: str = "",
    source: str = "",
    cost: Cost | None = None,
) -> ProcessBench:
    """Return F1 and its accuracies by subset, at threshold .5 and at the one chosen on GSM8K.

    Parameters
    ----------
    rows : sequence of LabelledSteps
    p : sequence of np.ndarray
        (T,) scores of each row's steps in [0, 1]; empty for a row that the model could not read, which is left out.
    rng : np.random.Generator
        Source of the resamples.
    model, source, cost
        For the report.
    """
    kept = [i for i, x in enumerate(p) if len(x)]
    by_subset: dict[str, list[int]] = {}
    for i in kept:
        by_subset.setdefault(rows[i].group, []).append(i)
    order = sorted(by_subset, key=lambda s: (SUBSETS.index(s) if s in SUBSETS else len(SUBSETS), s))
    first = [row.wrong[0] if row.wrong else -1 for row in rows]

    def of(subset: str) -> tuple[list[np.ndarray], list[int]]:
        return [p[i] for i in by_subset[subset]], [first[i] for i in by_subset[subset]]

    threshold = best_threshold(*of(CHOSEN_ON)) if CHOSEN_ON in by_subset else None
    thresholds = [0.5] if threshold is None else [0.5, threshold]
    found = _accuracies(rows, kept, {s: (by_subset[s], _Ends(*of(s))) for s in order}, thresholds, rng)
    subsets, curves = {}, {}
    for s in order:
        scores, errors = of(s)
        ends, grid = _Ends(scores, errors), np.linspace(0, 1, CURVE)
        a, b = ends.accuracies(grid)
        curves[s] = ThresholdCurve(grid, a, b, f1(a, b))
        chosen = None if threshold is None else found[s, threshold]
        subsets[s] = SubsetResult(
            int(ends.erroneous.sum()),
            int((~ends.erroneous).sum()),
            found[s, 0.5],
            chosen,
            guess_f1(errors, [len(x) for x in scores]),
            _auc([rows[i] for i in by_subset[s]], scores),
        )
    return ProcessBench(
        model, source, len(kept), len(rows) - len(kept), subsets, found["", 0.5].f1,
        None if threshold is None else found["", threshold].f1, threshold, curves, cost,
    )  # fmt: skip


def _accuracies(
    rows: Sequence[LabelledSteps],
    kept: Sequence[int],
    subsets: dict[str, tuple[list[int], _Ends]],
    thresholds: Sequence[float],
    rng: np.random.Generator,
) -> dict[tuple[str, float], FirstError]:
    """Return the figures of each subset, and under "" the average F1, with intervals that resample problems."""
    names = {problem: i for i, problem in enumerate(dict.fromkeys(rows[i].problem for i in kept))}
    cluster = np.asarray([names[rows[i].problem] for i in kept])
    place = {i: k for k, i in enumerate(kept)}
    problems: dict[Any, Any] = {}
    for threshold in thresholds:
        columns = np.zeros((len(kept), 4 * len(subsets)))
        for s, (members, ends) in enumerate(subsets.values()):
            at, right = [place[i] for i in members], ends.right(threshold)
            for k, own in enumerate((ends.erroneous, ~ends.erroneous)):
                columns[at, 4 * s + 2 * k], columns[at, 4 * s + 2 * k + 1] = right & own, own
        sums = cluster_sums(columns, cluster)
        for s, name in enumerate(subsets):
            for k, kind in enumerate(("erroneous", "correct")):
                two = sums[:, 4 * s + 2 * k : 4 * s + 2 * k + 2]
                problems[name, threshold, kind] = two, ratio_of_means
            problems[name, threshold, "f1"] = sums[:, 4 * s : 4 * s + 4], _mean_f1
        problems["", threshold, "f1"] = sums, _mean_f1
    found = share_intervals(problems, rng)
    nothing = Interval(float("nan"), None, None)
    return {
        (name, t): FirstError(
            found.get((name, t, "erroneous"), nothing), found.get((name, t, "correct"), nothing), found[name, t, "f1"]
        )
        for t in thresholds
        for name in ("", *subsets)
    }  # fmt: skip


def _mean_f1(means: np.ndarray) -> np.ndarray:
    """Return the mean over subsets of F1 from columns (right, all) of erroneous and correct solutions; NaN if a kind lacks."""
    parts = means.reshape(len(means), -1, 4)
    found: np.ndarray = f1(parts[..., 0] / parts[..., 1], parts[..., 2] / parts[..., 3]).mean(axis=1)
    return np.where(
        np.isfinite(parts[..., 1] * parts[..., 3]).all(axis=1) & (parts[..., 1::2] > 0).all(axis=(1, 2)),
        found,
        np.nan,
    )


def _auc(rows: Sequence[LabelledSteps], scores: Sequence[np.ndarray]) -> Interval:
    """Return the AUC of scores over judged steps: those up to the first wrong one."""
    p, good, problem = [], [], []
    names = {x: i for i, x in enumerate(dict.fromkeys(row.problem for row in rows))}
    for row, x in zip(rows, scores, strict=True):
        last = row.wrong[0] + 1 if row.wrong else len(x)
        p += x[:last].tolist()
        good += [float(t not in row.wrong) for t in range(last)]
        problem += [names[row.problem]] * last
    return auc_interval(np.asarray(p), np.asarray(good), np.asarray(problem))
