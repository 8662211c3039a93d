"""Rollouts and a value model in, an audit report out (docs/equations.md, sections 5 and 6).

The model, its controls and the models it is compared with are audited on the same rollouts. What needs torch is
imported where it is used: a report can be read and drawn without it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rmtools.audit.model import Asked, ModelAudit, audit_model
from rmtools.audit.notes import notes
from rmtools.audit.tabulated import MOST_PROMPTS, enumerations, tabulated
from rmtools.core.arguments import check_seed
from rmtools.core.cost import n_for_cv
from rmtools.core.paired import PairedDifference
from rmtools.errors import UserError

if TYPE_CHECKING:
    from rmtools.audit.subjects import Subject
    from rmtools.data.exact import ExactRatios
    from rmtools.data.rollouts import Rollout, RolloutMetadata
    from rmtools.data.tasks import Task
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.policy import Policy
    from rmtools.lm.tabulate import Enumeration
    from rmtools.lm.value import Scorer

    Rollouts = str | Path | Sequence[Rollout] | tuple[Sequence[Rollout], RolloutMetadata]

SCHEMA_VERSION = 3

Progress = Callable[[str, int], Any]


@dataclass(frozen=True)
class AuditReport:
    """The audit of a model, its controls and the models it is compared with, on the same rollouts.

    Attributes
    ----------
    models : tuple of ModelAudit
        The model first.
    pairs : dict
        Role of a compared model to `PairedDifference`: the model minus that one.
    provenance : dict
        Checkpoint, policy, task, terminal, floor, counts, seed, accuracies asked for, tokens.
    uncovered : dict or None
        Mean and largest probability of a step outside the enumerated ones, and how many prefixes were left out because
        it is over one half.
    warnings : tuple of str
        What a reader must know before trusting a figure.
    measured : dict or None
        What the sampler did at the predicted particles, as `rmtools.audit.verify.Measured` writes it.
    """

    models: tuple[ModelAudit, ...]
    pairs: dict[str, PairedDifference]
    provenance: dict[str, Any]
    uncovered: dict[str, float] | None
    warnings: tuple[str, ...]
    measured: dict[str, Any] | None = None

    @property
    def model(self) -> ModelAudit:
        """The audited model."""
        return self.models[0]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "provenance": self.provenance,
            "uncovered": self.uncovered,
            "warnings": list(self.warnings),
            "models": [m.to_dict() for m in self.models],
            "pairs": {role: pair.to_dict() for role, pair in self.pairs.items()},
            "measured": self.measured,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises
        ------
        UserError
            If it has another schema version.
        """
        if values.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"the audit has schema version {values.get('schema_version')}, this release reads {SCHEMA_VERSION}",
                "run the audit again",
            )
        return cls(
            tuple(ModelAudit.from_dict(m) for m in values["models"]),
            {role: PairedDifference.from_dict(p) for role, p in values["pairs"].items()},
            values["provenance"],
            values["uncovered"],
            tuple(values["warnings"]),
            values["measured"],
        )

    def __str__(self) -> str:
        from rmtools.audit.table import as_text

        return as_text(self)


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
    from rmtools.audit.subjects import no_progress, subjects_of
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
    listed = [s for s in subjects if s.enumerable and same_ids(rows, policy, task, s.scorer)]
    ratios = enumerated(rows, metadata, listed, policy, task, shown)
    tables = [] if ratios is None else tables_of(rows, policy, task, shown)
    asked = Asked(delta_cv, delta_tv, terminal, tokens_of(rows, subjects[0].scorer))
    found: list[ModelAudit] = []
    for k, subject in enumerate(subjects):
        used, values = scored[subject.role][1]
        exact = exact_of(ratios, subject, listed)
        its = replace(
            asked,
            terminal=subject.terminal,
            probability=subject.probability,
            fitted=subject.fitted,
            knows_end=subject.knows_end,
        )
        rng = np.random.default_rng([seed, k])
        found.append(
            audit_model(
                subject.role,
                subject.name,
                used,
                values,
                subject.tilt,
                exact,
                its,
                rng,
                tabulated(tables, subject.scorer, rng)
                if tables and subject.tabulated and subject in listed
                else None,
            )
        )
    outside = None if ratios is None else coverage(ratios)
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


def rows_of(rollouts: "Rollouts") -> "tuple[list[Rollout], RolloutMetadata | None]":
    """Return the rows, one id for every prompt text, and what is known of them."""
    from rmtools.data.rollouts import RolloutMetadata, read_rollouts

    metadata: RolloutMetadata | None = None
    if isinstance(rollouts, str | Path):
        rows, metadata = read_rollouts(rollouts)
    elif len(rollouts) == 2 and isinstance(rollouts[1], RolloutMetadata):
        rows, metadata = list(rollouts[0]), rollouts[1]  # type: ignore[arg-type]
    else:
        rows = list(rollouts)  # type: ignore[arg-type]
    if not rows:
        raise UserError("there are no rollouts to audit", "make some with `rmtools rollout`")
    return one_id_a_prompt(rows), metadata


def one_id_a_prompt(rows: "list[Rollout]") -> "list[Rollout]":
    """Give a text that stands under several ids the first of them: its trajectories are of one prompt.

    Raises
    ------
    UserError
        If one id has two texts: trajectories of different prompts would be paired.
    """
    ids: dict[str, str] = {}
    texts: dict[str, str] = {}
    for row in rows:
        ids.setdefault(row.prompt, row.prompt_id)
        if texts.setdefault(row.prompt_id, row.prompt) != row.prompt:
            raise UserError(
                f"the prompt id {row.prompt_id} stands before two different prompts",
                "give every prompt an id of its own",
            )
    return [r if ids[r.prompt] == r.prompt_id else replace(r, prompt_id=ids[r.prompt]) for r in rows]


def check_accuracies(delta_cv: float, delta_tv: float) -> None:
    """Raise ``UserError`` where an accuracy asked for is none."""
    n_for_cv(1.0, delta_cv)
    if not 0 < delta_tv < 1:
        raise UserError(
            f"delta_tv is {delta_tv}: a total variation is between 0 and 1", "pass --delta-tv 0.05, say"
        )


def same_ids(
    rows: "Sequence[Rollout]", policy: "Policy | None", task: "Task | None", scorer: "Scorer"
) -> bool:
    """Return whether ``scorer`` reads the policy's tokens: only then can it be asked while they are enumerated."""
    if policy is None or task is None:
        return False
    prompts = list(dict.fromkeys(r.prompt for r in rows))
    choices = task.step_choices(prompts[0], []) or []
    return all(scorer.steps.prompt_ids(p) == policy.steps.prompt_ids(p) for p in prompts) and all(
        scorer.steps.step_ids(c) == policy.steps.step_ids(c) for c in choices
    )


def limited(rows: "list[Rollout]", limit: int | None) -> "list[Rollout]":
    """Return the rows of the first ``limit`` prompts."""
    from rmtools.core.arguments import check_count

    if limit is None:
        return rows
    check_count("prompts_limit", limit, 1, "it is a number of prompts", fix=96)
    kept = set(list(dict.fromkeys(r.prompt_id for r in rows))[:limit])
    return [r for r in rows if r.prompt_id in kept]


def tokens_of(rows: "Sequence[Rollout]", scorer: "Scorer") -> float:
    """Return the mean number of tokens of a solution."""
    return float(np.mean([sum(len(scorer.steps.step_ids(s)) for s in r.steps) for r in rows]))


def enumerated(
    rows: "Sequence[Rollout]",
    metadata: "RolloutMetadata | None",
    subjects: "Sequence[Subject]",
    policy: "Policy | None",
    task: "Task | None",
    progress: Progress,
) -> "ExactRatios | None":
    """Return the exact Bellman ratios of the subjects that can be asked for any prefix.

    None where the steps cannot be listed, every terminal is a model's, or the policy is not that of the rollouts.
    """
    if policy is None or task is None or metadata is None or not subjects:
        return None
    from rmtools.data.exact import exact_ratios
    from rmtools.lm.checkpoint import fingerprint

    if not task.step_choices(rows[0].prompt, []):
        return None
    # Ratios under another policy than the rollouts' would stand beside sampled ones as if they were the same.
    same_weights = fingerprint(policy.name) == metadata.policy_fingerprint
    if not same_weights or policy.temperature != metadata.temperature:
        return None
    scorers = [s.scorer for s in subjects]
    with progress("enumerating one-step children", len(rows)) as tick:
        return exact_ratios(policy, scorers, rows, task, progress=tick)


def tables_of(
    rows: "Sequence[Rollout]", policy: "Policy | None", task: "Task | None", progress: Progress
) -> "list[Enumeration]":
    """Return the prompts written out as tables, as many as is cheap."""
    assert policy is not None
    assert task is not None
    prompts = list(dict.fromkeys(r.prompt for r in rows))
    with progress("enumerating solutions", min(len(prompts), MOST_PROMPTS)) as tick:
        return enumerations(policy, task, prompts, tick)


def exact_of(
    ratios: "ExactRatios | None", subject: "Subject", subjects: "Sequence[Subject]"
) -> np.ndarray | None:
    """Return the enumerated b of ``subject``, None where there is none."""
    if ratios is None or subject not in subjects:
        return None
    place = [s.role for s in subjects].index(subject.role)
    return np.concatenate(ratios.log_error[place])


def coverage(ratios: "ExactRatios") -> dict[str, float]:
    """Return mean and largest probability outside the listed steps, and the prefixes left out for it."""
    return {
        "mean": float(ratios.uncovered.mean()),
        "largest": float(ratios.uncovered.max()),
        "left_out": float((ratios.uncovered > 0.5).sum()),
    }


def pairs_of(scored: Mapping[str, Any], seed: int) -> dict[str, PairedDifference]:
    """Return the paired differences of the first model and every compared one."""
    from rmtools.audit.subjects import paired

    first, *others = scored.values()
    return {
        other[0].role: paired(first, other, np.random.default_rng([seed, 1000 + k]))
        for k, other in enumerate(others)
        if other[0].role.startswith("compare")
    }


def provenance_of(
    rows: "Sequence[Rollout]", metadata: "RolloutMetadata | None", settings: "CheckpointSettings | None"
) -> dict[str, Any]:
    """Return where the rollouts and the model come from, and how many branches there are."""
    import rmtools

    known = (
        {}
        if metadata is None
        else {
            "policy": metadata.policy,
            "policy_fingerprint": metadata.policy_fingerprint,
            "task": metadata.task,
            "horizon": metadata.horizon,
            "temperature": metadata.temperature,
            "rollouts_seed": metadata.seed,
            "removed_prompts": metadata.removed_prompts,
            "generated_tokens": metadata.generated_tokens,
            "rollouts_source": metadata.source,
        }
    )
    return {
        "policy": "",
        "policy_fingerprint": "",
        "task": "",
        **known,
        "n_prompts": len({r.prompt_id for r in rows}),
        "n_trajectories": len(rows),
        "children": 1 + max((len(at) for r in rows for at in r.children), default=0),
        "completions": 1 + max((len(at) for r in rows for at in r.completions), default=0),
        "training": {} if settings is None else settings.training,
        "rmtools": rmtools.__version__,
    }


def weights_of(value_model: "str | Path | Scorer") -> str:
    """Return the fingerprint of a checkpoint, "" for what has no folder."""
    from rmtools.lm.checkpoint import fingerprint

    return fingerprint(value_model) if isinstance(value_model, str | Path) else ""


def with_measured(report: AuditReport, measured: dict[str, Any]) -> AuditReport:
    """Return ``report`` with what the sampler did at the predicted particles."""
    return replace(report, measured=measured)
