"""Rollouts and values in, an audit report out (docs/equations.md, sections 5 and 6).

Every figure is an estimate with a 95% interval over prompts; the model and its controls are audited on the same
rollouts. Only estimators of rmtools.core are used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmtools.core.calibration import CalibrationSummary, calibration_summary
from rmtools.core.cost import (
    InfluenceSD,
    Sigma2,
    influence_sd,
    n_for_cv,
    n_for_tv,
    pooled_influence_sd,
    pooled_sigma2,
    sigma2_parts,
    value_square_estimate,
)
from rmtools.core.estimate import (
    BellmanSummary,
    PathSummary,
    RatioBound,
    bellman_summary,
    exact_summary,
    path_summary,
    path_sums,
    ratio_bound_quantiles,
)
from rmtools.core.intervals import Interval
from rmtools.core.tilt import Tilt
from rmtools.data.rollouts import Rollout
from rmtools.data.scoring import ScoredRollouts
from rmtools.lm.particles import Terminal

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelAudit:
    """One model or control.

    Attributes
    ----------
    role, name : str
        ``model``, ``constant`` or ``untrained``; where it came from.
    bellman : BellmanSummary
        From sampled children, noise-corrected and plug-in.
    exact : BellmanSummary or None
        From enumerated children, where the task lists its steps.
    ratio_bound : RatioBound
        Quantiles of L.
    calibration : CalibrationSummary
        p against outcomes, at all prefixes.
    paths : PathSummary
        Sums of b along trajectories.
    sigma2 : Sigma2 or None
        Pooled; None without extra completions.
    influence : InfluenceSD or None
        Spread of H; None with fewer than two extra completions.
    n_for_cv, n_for_tv : Interval or None
        Particles for the accuracies asked for; None where the spread could not be told from noise.
    """

    role: str
    name: str
    bellman: BellmanSummary
    exact: BellmanSummary | None
    ratio_bound: RatioBound
    calibration: CalibrationSummary
    paths: PathSummary
    sigma2: Sigma2 | None
    influence: InfluenceSD | None
    n_for_cv: Interval | None
    n_for_tv: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; what could not be estimated is null."""
        return {
            name: value.to_dict() if hasattr(value, "to_dict") else value
            for name, value in ((n, getattr(self, n)) for n in self.__dataclass_fields__)
        }


@dataclass(frozen=True)
class AuditReport:
    """The audit of a model and its controls on the same rollouts.

    Attributes
    ----------
    models : tuple of ModelAudit
        The model first.
    provenance : dict
        Checkpoint, policy, task, terminal, floor, counts, seed, accuracies asked for, tokens.
    uncovered : dict or None
        Mean and largest probability of a step outside the enumerated ones, and how many prefixes were left out because
        it is over one half.
    warnings : tuple of str
        What a reader must know before trusting a figure.
    """

    models: tuple[ModelAudit, ...]
    provenance: dict[str, Any]
    uncovered: dict[str, float] | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "provenance": self.provenance,
            "uncovered": self.uncovered,
            "warnings": list(self.warnings),
            "models": [m.to_dict() for m in self.models],
        }

    def table(self) -> list[tuple[str, list[str]]]:
        """Return the ten-line table: a label and one cell a model."""
        cv, tv = self.provenance["delta_cv"], self.provenance["delta_tv"]

        def row(label: str, cell: Any) -> tuple[str, list[str]]:
            return label, [shown(cell(m)) for m in self.models]

        return [
            row("RMS b, enumerated", lambda m: m.exact and m.exact.rms_corrected),
            row("RMS b, sampled, corrected", lambda m: resolved(m.bellman)),
            row("RMS b, sampled, plug-in", lambda m: m.bellman.rms_plug_in),
            row("mean b (bias)", lambda m: (m.exact or m.bellman).signed_mean),
            row("c = T RMS b", lambda m: (m.exact or m.bellman).c),
            row(
                "L, 50% / 95% / max",
                lambda m: (
                    f"{m.ratio_bound.quantiles['0.5'].estimate:.3g} / "
                    f"{m.ratio_bound.quantiles['0.95'].estimate:.3g} / {m.ratio_bound.largest:.3g}"
                ),
            ),
            row("Brier (constant)", lambda m: f"{m.calibration.brier} ({m.calibration.brier_constant:.3g})"),
            row("ECE / AUC", lambda m: f"{m.calibration.ece:.3g} / {m.calibration.auc.estimate:.3g}"),
            row("sigma^2, pooled", lambda m: m.sigma2 and m.sigma2.estimate),
            row(
                f"particles: CV of Z {cv:g} | TV {tv:g} (at most)",
                lambda m: f"{count(m.n_for_cv)} | {count(m.n_for_tv)}",
            ),
        ]

    def __str__(self) -> str:
        rows = [("", [m.role for m in self.models]), *self.table()]
        width = max(len(label) for label, _ in rows)
        columns = [max(len(cells[i]) for _, cells in rows) for i in range(len(self.models))]
        return "\n".join(
            f"{label:<{width}}  " + "  ".join(f"{c:<{w}}" for c, w in zip(cells, columns, strict=True))
            for label, cells in rows
        )


def shown(value: Any) -> str:
    """Return a cell's text."""
    return "not available" if value is None else str(value)


def resolved(summary: BellmanSummary) -> str:
    """Return the corrected RMS, marked where the number of children cannot resolve it."""
    return str(summary.rms_corrected) + ("" if summary.resolved else " not resolved")


def count(n: Interval | None) -> str:
    """Return a number of particles, rounded up."""
    if n is None or not np.isfinite(n.estimate):
        return "not resolved"
    ends = ", ".join("?" if e is None else f"{np.ceil(e):.0f}" for e in (n.low, n.high))
    return f"{np.ceil(n.estimate):.0f} [{ends}]"


def audit_model(
    role: str,
    name: str,
    rows: Sequence[Rollout],
    scored: ScoredRollouts,
    tilt: Tilt,
    exact_log_error: np.ndarray | None,
    delta_cv: float,
    delta_tv: float,
    rng: np.random.Generator,
    terminal: Terminal = "verifier",
) -> ModelAudit:
    """Audit one model on scored rollouts.

    Parameters
    ----------
    role, name : str
    rows : sequence of Rollout
    scored : ScoredRollouts
        Of the same rows.
    tilt : Tilt
    exact_log_error : np.ndarray or None
        (P,) enumerated b, nats; NaN where it could not be enumerated: left out.
    delta_cv, delta_tv : float
        Accuracies for which particles are predicted.
    rng : np.random.Generator
        Source of the bootstrap.
    terminal : {"verifier", "model"}
        With "model" sigma^2 is not available: completions carry rewards, not the model's values.
    """
    errors = scored.errors()
    prompts, depths = scored.prefix_prompt, scored.prefix_depth
    known = np.ones(0, dtype=bool) if exact_log_error is None else np.isfinite(exact_log_error)
    p, outcome, prompt = outcomes(scored, tilt)
    cost, influence = particle_cost(rows, scored, tilt, rng) if terminal == "verifier" else (None, None)
    trajectories = path_sums(scored.alternative_errors(), scored.prefix_trajectory)
    return ModelAudit(
        role=role,
        name=name,
        bellman=bellman_summary(errors, prompts, depths, scored.horizon, rng=rng),
        exact=None
        if exact_log_error is None
        else exact_summary(exact_log_error[known], prompts[known], depths[known], scored.horizon, rng=rng),
        ratio_bound=ratio_bound_quantiles(
            scored.prefix_log_value, scored.child_log_value, scored.child_present, scored.prefix_prompt
        ),
        calibration=calibration_summary(p, outcome, prompt, rng=rng),
        paths=path_summary(trajectories, scored.prompt[trajectories.trajectory], rng=rng),
        sigma2=cost,
        influence=influence,
        n_for_cv=particles(None if cost is None else cost.estimate, lambda s: n_for_cv(s, delta_cv)),
        n_for_tv=particles(None if influence is None else influence.sd, lambda s: n_for_tv(s, delta_tv)),
    )


def particles(spread: Interval | None, needed: Callable[[float], float]) -> Interval | None:
    """Return the particles ``needed`` for a spread, at least 1; None where the spread was not above its noise."""
    if spread is None or not spread.estimate > 0:
        return None
    return spread.map(lambda s: max(needed(max(s, 0.0)), 1.0))


def outcomes(scored: ScoredRollouts, tilt: Tilt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return p, reward and prompt (n,) at every prefix, the model's own value also at the end."""
    length = [len(v) for v in scored.own_log_value]
    p = np.exp(tilt.log_probability(np.concatenate(scored.own_log_value)))
    return p, np.repeat(scored.reward, length), np.repeat(scored.prompt, length)


def particle_cost(
    rows: Sequence[Rollout], scored: ScoredRollouts, tilt: Tilt, rng: np.random.Generator
) -> tuple[Sigma2 | None, InfluenceSD | None]:
    """Return pooled sigma^2 and the pooled spread of H, None where the rollouts have too few completions."""
    extra = min((len(at) for r in rows if len(r.steps) > 1 for at in r.completions[1:] or [[]]), default=0)
    single = all(len(r.steps) == 1 for r in rows)
    trajectories = np.bincount(scored.prompt)
    if trajectories.min() < 2 or not (single or extra >= 1):
        return None, None
    parts, spreads = [], []
    for g in range(len(trajectories)):
        at = np.flatnonzero(scored.prompt == g).tolist()
        arrays = PromptArrays.of(
            [rows[i] for i in at], [scored.log_value[i] for i in at], scored.horizon, tilt
        )
        parts.append(sigma2_parts(arrays.log_value, arrays.value_square, arrays.potential))
        if extra >= 2 and trajectories.min() >= 3:
            spreads.append(
                influence_sd(arrays.log_value, arrays.potential, arrays.extra, arrays.present, arrays.ended)
            )
    usable = any(np.isfinite(s.variance.estimate) for s in spreads)
    return pooled_sigma2(parts, rng), pooled_influence_sd(spreads, rng) if usable else None


@dataclass(frozen=True)
class PromptArrays:
    """The n trajectories of one prompt, an ended prefix absorbing.

    Attributes
    ----------
    log_value : np.ndarray
        (n, T + 1) nats.
    value_square : np.ndarray
        (n, T + 1) unbiased estimates of V*^2; the squared potential at ended prefixes.
    potential : np.ndarray
        (n,).
    extra, present : np.ndarray
        (n, T, R_extra) potentials of extra completions, and which exist.
    ended : np.ndarray
        (n, T) bool.
    """

    log_value: np.ndarray
    value_square: np.ndarray
    potential: np.ndarray
    extra: np.ndarray
    present: np.ndarray
    ended: np.ndarray

    @classmethod
    def of(
        cls, rows: Sequence[Rollout], values: Sequence[np.ndarray], horizon: int, tilt: Tilt
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
