"""Auditing a checkpoint: score the rollouts with it and with its controls, enumerate where the task allows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rmtools.audit.audit import AuditReport, ModelAudit, audit_model
from rmtools.core.estimate import BellmanSummary
from rmtools.data.exact import ExactRatios, exact_ratios
from rmtools.data.rollouts import Rollout, RolloutMetadata, rollouts_fingerprint
from rmtools.data.scoring import score_rollouts
from rmtools.data.tasks import Task
from rmtools.errors import UserError
from rmtools.lm.checkpoint import CheckpointSettings, fingerprint
from rmtools.lm.particles import Terminal
from rmtools.lm.policy import Policy
from rmtools.lm.value import Scorer

Progress = Callable[[str, int], Any]


def audit(
    rows: Sequence[Rollout],
    metadata: RolloutMetadata,
    scorers: dict[str, Scorer],
    settings: CheckpointSettings,
    policy: Policy | None,
    task: Task | None,
    *,
    terminal: Terminal = "verifier",
    delta_cv: float = 0.25,
    delta_tv: float = 0.05,
    seed: int = 0,
    progress: Progress,
) -> AuditReport:
    """Audit ``scorers`` (role -> scorer, the model first) on the same rollouts.

    Parameters
    ----------
    rows, metadata
        As read from a rollout folder; needs children.
    scorers : dict
    settings : CheckpointSettings
        Of the model.
    policy, task : optional
        With both, and terminal "verifier", the Bellman ratios are also enumerated.
    terminal : {"verifier", "model"}
        For the model; a control without weights has no value of its own at the end.
    delta_cv, delta_tv : float
        Accuracies for which particles are predicted.
    seed : int
        Of the bootstrap.
    progress : callable
        ``progress(label, total)`` returns a context manager that yields a tick.

    Raises
    ------
    UserError
        If no prefix has two children.
    """
    if not any(r.children for r in rows):
        raise UserError(
            "the rollouts have no children: the Bellman error cannot be estimated from single steps",
            "make them with `rmtools rollout --children 16`",
        )
    ratios = enumerated(rows, metadata, scorers, policy, task, terminal, progress)
    found: list[ModelAudit] = []
    for k, (role, scorer) in enumerate(scorers.items()):
        with progress(f"scoring: {role}", len(rows)) as tick:
            scored = score_rollouts(rows, scorer, terminal, tick)
        exact = None if ratios is None else np.concatenate(ratios.log_error[k])
        rng = np.random.default_rng([seed, k])
        found.append(
            audit_model(
                role, scorer.name, rows, scored, scorer.tilt, exact, delta_cv, delta_tv, rng, terminal
            )
        )
    provenance = provenance_of(rows, metadata, settings) | {
        "checkpoint": scorers["model"].name,
        "terminal": terminal,
        "seed": seed,
        "delta_cv": delta_cv,
        "delta_tv": delta_tv,
    }
    notes = tuple(warnings_for(metadata, settings, found))
    if settings.training.get("rollouts_fingerprint") == rollouts_fingerprint(rows):
        notes = ("these are the rollouts the checkpoint was trained on: every figure flatters it", *notes)
    return AuditReport(tuple(found), provenance, None if ratios is None else coverage(ratios), notes)


def enumerated(
    rows: Sequence[Rollout],
    metadata: RolloutMetadata,
    scorers: dict[str, Scorer],
    policy: Policy | None,
    task: Task | None,
    terminal: Terminal,
    progress: Progress,
) -> ExactRatios | None:
    """Return the exact Bellman ratios.

    None where the steps cannot be listed, the terminal is the model's, or the policy is not that of the rollouts.
    """
    if policy is None or task is None or terminal != "verifier" or not task.step_choices(rows[0].prompt, []):
        return None
    # Ratios under another policy than the rollouts' would stand beside sampled ones as if they were the same.
    same_weights = fingerprint(policy.name) == metadata.policy_fingerprint
    if not same_weights or policy.temperature != metadata.temperature:
        return None
    with progress("enumerating one-step children", len(rows)) as tick:
        return exact_ratios(policy, list(scorers.values()), rows, task, progress=tick)


def coverage(ratios: ExactRatios) -> dict[str, float]:
    """Return mean and largest probability outside the listed steps, and the prefixes left out for it."""
    return {
        "mean": float(ratios.uncovered.mean()),
        "largest": float(ratios.uncovered.max()),
        "left_out": float((ratios.uncovered > 0.5).sum()),
    }


def provenance_of(
    rows: Sequence[Rollout], metadata: RolloutMetadata, settings: CheckpointSettings
) -> dict[str, Any]:
    """Return where the rollouts and the model come from, and how many branches there are."""
    return {
        "policy": metadata.policy,
        "task": metadata.task,
        "horizon": metadata.horizon,
        "floor": settings.floor,
        "temperature": metadata.temperature,
        "n_prompts": len({r.prompt_id for r in rows}),
        "n_trajectories": len(rows),
        "children": 1 + max((len(at) for r in rows for at in r.children), default=0),
        "completions": 1 + max((len(at) for r in rows for at in r.completions), default=0),
        "rollouts_seed": metadata.seed,
        "removed_prompts": metadata.removed_prompts,
        "generated_tokens": metadata.generated_tokens,
        "training": settings.training,
    }


def warnings_for(
    metadata: RolloutMetadata, settings: CheckpointSettings, found: Sequence[ModelAudit]
) -> list[str]:
    """Return what a reader must know: another policy, another temperature, a figure that is not resolved."""
    out = []
    if metadata.policy_fingerprint != settings.policy_fingerprint:
        out.append("the rollouts are of another policy than the checkpoint was trained for")
    if metadata.temperature is None:
        out.append("the rollouts do not say at which temperature they were sampled")
    elif metadata.temperature != settings.temperature:
        out.append(
            f"the rollouts were sampled at temperature {metadata.temperature}, the checkpoint was trained "
            f"at {settings.temperature}"
        )
    for m in found:
        if not m.bellman.resolved:
            out.append(
                f"{m.role}: the sampled RMS log Bellman error is not resolved with this many children "
                "(K and K/2 differ by more than the interval)"
            )
        if m.exact is None and identical_share(m.bellman) > 0.5:
            out.append(
                f"{m.role}: over half of the mean square is from prefixes whose children are all identical: forced "
                "steps, or good children too rare for this many children to show"
            )
        if m.sigma2 is not None and not m.sigma2.resolved:
            out.append(f"{m.role}: sigma^2 is not resolved (the interval of Z^2 reaches 0)")
    return out


def identical_share(summary: BellmanSummary) -> float:
    """Return the share of the corrected mean square that prefixes with identical children carry."""
    total = summary.mean_square_corrected.estimate
    return summary.mean_square_identical.estimate / total if total > 0 else 0.0
