"""Held-out metrics during training: the estimators of the audit, without intervals.

The Bellman error has terminal ``verifier``: the value of an ended prefix is the potential of its outcome.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rmtools.data.rollouts import Rollout
from rmtools.data.scoring import ScoredRollouts, score_rollouts, within_prompt_and_depth
from rmtools.lm.protocol import Scorer, TreeValues
from rmtools.lm.steps import EncodedTree
from rmtools.lm.value import ValueModel
from rmtools.stats.bootstrap import Interval
from rmtools.stats.calibration import auc, brier, expected_calibration_error, ranking_note


def held_out_metrics(rows: Sequence[Rollout], scorer: Scorer) -> dict[str, float]:
    """Return every metric that ``rows`` resolve.

    With outcomes: ``brier``, ``ece`` and ``auc`` of p at all prefixes, and ``last_auc`` at the last ones;
    ``auc_within`` prompt and depth over unfinished prefixes behind the prompt, with the ends of its interval. With children too:
    ``mean_square_log_bellman`` (noise-corrected, may be negative), ``rms_log_bellman`` its root (0 if negative),
    ``t_rms_log_bellman`` T times that, ``mean_log_bellman``, ``mean_square_bellman`` (of rho - 1, unbiased), and
    ``rms_log_bellman_at_<t>`` by depth. With step labels: ``label_brier`` and ``label_auc``. There is no AUC
    without two outcomes to compare.
    """
    found: dict[str, float] = {}
    if all(r.reward is not None for r in rows):
        scored = score_rollouts(rows, scorer)
        values = scored.own_log_value
        if any(at for r in rows for at in r.children):
            found |= _bellman_metrics(scored)
        outcome = [np.full(len(v), r.outcome) for r, v in zip(rows, values, strict=True)]
        found |= _calibration_metrics(values, outcome, scorer)
        last = _calibration_metrics([v[-1:] for v in values], [o[-1:] for o in outcome], scorer)
        found |= {f"last_{k}": v for k, v in last.items() if k == "auc"} | _ranking_metrics(scored)
    else:
        values = [v.log_value for v in scorer.score([scorer.steps.encode(r.prompt, r.steps) for r in rows])]
    labels = [
        np.asarray([np.nan if x is None else x for x in r.labels or [None] * len(r.steps)]) for r in rows
    ]
    if not all(np.isnan(x).all() for x in labels):
        of_labels = _calibration_metrics([v[1:] for v in values], labels, scorer)
        found |= {f"label_{k}": v for k, v in of_labels.items() if k in ("brier", "auc")}
    return found


def _bellman_metrics(scored: ScoredRollouts) -> dict[str, float]:
    """Return the noise-corrected Bellman error pooled and by depth."""
    errors = scored.errors()
    known = errors.resolved
    square, depth = errors.log_error_square[known], scored.prefix_depth[known]
    mean = float(square.mean())
    found = {
        "rms_log_bellman": _root(mean),
        "t_rms_log_bellman": scored.horizon * _root(mean),
        "mean_square_log_bellman": mean,
        "mean_log_bellman": float(errors.log_error[known].mean()),
        "mean_square_bellman": float(errors.squared_error[known].mean()),
    }
    return found | {
        f"rms_log_bellman_at_{t}": _root(float(square[depth == t].mean())) for t in np.unique(depth)
    }


def _ranking_metrics(scored: ScoredRollouts) -> dict[str, float]:
    """Return ``auc_within`` and the ends of its interval, as far as they exist."""
    found = within_prompt_and_depth(scored)
    named = {"auc_within": found.estimate, "auc_within_low": found.low, "auc_within_high": found.high}
    return {name: value for name, value in named.items() if value is not None and not np.isnan(value)}


def figures_at(log: Sequence[Mapping[str, Any]], step: int | None = None) -> tuple[int, dict[str, float]]:
    """Return the optimiser step and the held-out metrics of the evaluation at ``step``, else of the last one."""
    rows = [row for row in log if any(name.startswith("eval_") for name in row)]
    row = next((r for r in rows if r.get("step") == step), rows[-1] if rows else {})
    metrics = {k.removeprefix("eval_"): v for k, v in row.items() if k.startswith("eval_")}
    return row.get("step", 0), metrics


def ranking_warning(log: Sequence[Mapping[str, Any]], step: int | None = None) -> str | None:
    """Return what to say if the figures at ``step`` are more consistent than a constant's or the first, but do not rank."""
    rows = [row for row in log if any(name.startswith("eval_") for name in row)]
    at, metrics = figures_at(log, step)
    error = metrics.get("rms_log_bellman", math.nan)
    references = {
        "the constant's": metrics.get("constant_rms_log_bellman"),
        "at the first evaluation": rows[0].get("eval_rms_log_bellman") if rows else None,
    }
    ends = (metrics.get(f"auc_within_{end}") for end in ("low", "high"))
    within = Interval(metrics.get("auc_within", math.nan), *ends)
    found = (
        ranking_note(within, error, value, name) for name, value in references.items() if value is not None
    )
    return next((f"optimiser step {at}: {text}" for text in found if text), None)


def _root(mean_square: float) -> float:
    """Return the square root, 0 for a negative estimate."""
    return float(np.sqrt(max(mean_square, 0.0)))


def _calibration_metrics(
    values: Sequence[np.ndarray], outcomes: Sequence[np.ndarray], scorer: Scorer
) -> dict[str, float]:
    """Return ``brier``, ``ece`` and ``auc`` of p against outcomes (N arrays each), without outcomes of NaN."""
    p = np.exp(scorer.tilt.log_probability(np.concatenate(list(values))))
    outcome = np.concatenate(list(outcomes))
    p, outcome = p[~np.isnan(outcome)], outcome[~np.isnan(outcome)]
    area = auc(p, outcome)
    found = {"brier": float(brier(p, outcome)), "ece": float(expected_calibration_error(p, outcome))}
    return found if area is None else found | {"auc": float(area)}


class ShardedScorer(ValueModel):
    """A value model that splits its trees over ``processes``; ``gather`` joins the lists of all processes."""

    def __init__(
        self, inner: ValueModel, rank: int, processes: int, gather: Callable[[list[Any]], list[Any]]
    ) -> None:
        super().__init__(inner.model, inner.steps, inner.tilt, inner.name)
        self.rank, self.processes, self.gather = rank, processes, gather

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score this process's share, and collect the others'."""
        mine = range(self.rank, len(trees), self.processes)
        scored = super().score([trees[i] for i in mine], progress)
        found = dict(self.gather(list(zip(mine, scored, strict=True))))
        return [found[i] for i in range(len(trees))]
