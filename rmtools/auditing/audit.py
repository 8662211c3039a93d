"""Rollouts and a value model in, an audit report out (docs/equations.md, sections 5 and 6).

The model, its controls and the models it is compared with are audited on the same rollouts. What needs torch is
imported where it is used: a report can be read and drawn without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.enumerated import EnumeratedRollouts, Progress, enumerate_rollouts
from rmtools.auditing.model_audit import Asked, ModelAudit, audit_model
from rmtools.auditing.notes import notes
from rmtools.auditing.report import AuditReport
from rmtools.auditing.rows import limited, provenance_of, rows_of, tokens_of, weights_of
from rmtools.errors import UserError
from rmtools.particles.arguments import check_seed
from rmtools.stats.paired import PairedDifference
from rmtools.stats.sigma2 import n_for_cv

if TYPE_CHECKING:
    from rmtools.auditing.models import Subject
    from rmtools.auditing.rows import Rollouts
    from rmtools.data.rollouts import Rollout
    from rmtools.data.scoring import ScoredRollouts
    from rmtools.data.tasks import Task
    from rmtools.lm.policy import Policy
    from rmtools.lm.value import Scorer


def audit(
    rollouts: "Rollouts",
    value_model: "str | Path | Scorer",
    *,
    controls: bool = True,
    compare: "Sequence[str | Path | Scorer]" = (),
    policy: "Policy | None" = None,
    task: "Task | None" = None,
    terminal: str = "verifier",
    delta_cv: float = 0.25,
    delta_tv: float = 0.05,
    prompts_limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> AuditReport:
    """Audit a reward model on branching rollouts.

    Parameters
    ----------
    rollouts : path, or sequence of Rollout, or (rollouts, RolloutMetadata)
        A folder written by `rmtools rollout` or `rmtools convert`, or its rows.
    value_model : path or Scorer
        A checkpoint, or anything that scores prefixes.
    controls : bool
        Audit the controls that apply too: constant, position only, untrained head, Monte-Carlo oracle.
    compare : sequence of path or Scorer
        Further models, paired with the first.
    policy, task : optional
        With both, and terminal "verifier", the Bellman ratios are also enumerated where the task lists its steps.
    terminal : {"verifier", "model"}
        What a finished solution is worth, for the model; a control without weights has no value of its own there.
    delta_cv, delta_tv : float
        Accuracies for which particles are predicted.
    prompts_limit : int, optional
        Audit the first so many prompts only.
    seed : int
        Of the bootstrap.
    progress : callable, optional
        ``progress(label, total)`` returns a context manager that yields a tick.

    Returns
    -------
    AuditReport

    Raises
    ------
    UserError
        If there are no rollouts, an outcome is missing, or a model gives NaN (the prefix is named).
    """
    from rmtools.auditing.models import no_progress, subjects_of
    from rmtools.data.rollouts import rollouts_fingerprint

    check_accuracies(delta_cv, delta_tv)
    check_seed(seed)
    if terminal not in ("verifier", "model"):
        raise UserError(f"unknown terminal {terminal!r}", "choose one of: verifier, model")
    rows, metadata = rows_of(rollouts)
    fingerprint = rollouts_fingerprint(rows)
    rows = limited(rows, prompts_limit)
    shown = progress or no_progress
    subjects, settings = subjects_of(rows, value_model, compare, controls, terminal, seed)
    scored: dict[str, Any] = {}
    for subject in subjects:
        with shown(f"scoring: {subject.role}", len(rows)) as tick:
            scored[subject.role] = (subject, subject.score(rows, tick))
    enumerated = enumerate_rollouts(rows, metadata, subjects, policy, task, shown)
    asked = Asked(delta_cv, delta_tv, terminal, tokens_of(rows, subjects[0].scorer))
    found = [
        audit_subject(
            subject,
            scored[subject.role][1],
            enumerated,
            asked,
            np.random.default_rng([seed, k]),
        )
        for k, subject in enumerate(subjects)
    ]
    outside = None if enumerated is None else enumerated.coverage()
    provenance = provenance_of(rows, metadata, settings["model"]) | {
        "checkpoint": subjects[0].name,
        "checkpoint_fingerprint": weights_of(value_model),
        "terminal": subjects[0].terminal,
        "floor": subjects[0].tilt.floor,
        "seed": seed,
        "delta_cv": delta_cv,
        "delta_tv": delta_tv,
        "rollouts_fingerprint": fingerprint,
    }
    return AuditReport(
        tuple(found),
        pairs_of(scored, seed),
        provenance,
        outside,
        tuple(notes(rows, metadata, settings, found, fingerprint, outside)),
    )


def audit_subject(
    subject: "Subject",
    scored: "tuple[Sequence[Rollout], ScoredRollouts]",
    enumerated: EnumeratedRollouts | None,
    asked: Asked,
    rng: np.random.Generator,
) -> ModelAudit:
    """Audit the model or one of its controls on the rows it was scored on, and on the tables of enumerated prompts."""
    its = replace(
        asked,
        terminal=subject.terminal,
        probability=subject.probability,
        fitted=subject.fitted,
        knows_end=subject.knows_end,
    )
    exact = None if enumerated is None else enumerated.log_errors(subject)
    cost = None if enumerated is None else enumerated.cost(subject, rng)
    return audit_model(subject.role, subject.name, *scored, subject.tilt, exact, its, rng, cost)


def check_accuracies(delta_cv: float, delta_tv: float) -> None:
    """Raise ``UserError`` where an accuracy asked for is none."""
    n_for_cv(1.0, delta_cv)
    if not 0 < delta_tv < 1:
        raise UserError(
            f"delta_tv is {delta_tv}: a total variation is between 0 and 1", "pass --delta-tv 0.05, say"
        )


def pairs_of(scored: Mapping[str, Any], seed: int) -> dict[str, PairedDifference]:
    """Return the paired differences of the first model and every compared one."""
    from rmtools.auditing.models import paired

    first, *others = scored.values()
    return {
        other[0].role: paired(first, other, np.random.default_rng([seed, 1000 + k]))
        for k, other in enumerate(others)
        if other[0].role.startswith("compare")
    }
