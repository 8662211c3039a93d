"""Rollouts and a value model in, an audit report out (docs/equations.md, sections 5 and 6).

The model, its controls and the models it is compared with are audited on the same rollouts. What needs torch is
imported where it is used: a report can be read and drawn without it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.enumerated import EnumeratedRollouts, Progress, enumerate_rollouts
from rmtools.auditing.model_audit import AuditOptions, ModelAudit, audit_model
from rmtools.auditing.next_step import next_step
from rmtools.auditing.notes import UNCALIBRATED, calibration_notes, notes, of_another, provenance_notes
from rmtools.auditing.report import AuditReport
from rmtools.auditing.rows import limited, provenance_of, rows_of, tokens_of
from rmtools.errors import UserError
from rmtools.particles.arguments import check_bool, check_callable, check_number, check_seed
from rmtools.seeds import generator
from rmtools.stats.paired import PairedDifference

if TYPE_CHECKING:
    import torch

    from rmtools.auditing.load_models import AuditedModel, Scored
    from rmtools.auditing.pilot import PilotRun
    from rmtools.auditing.rows import Rollouts
    from rmtools.data.rollouts import Rollout, RolloutMetadata
    from rmtools.data.scoring import ScoredRollouts
    from rmtools.data.tasks import Task
    from rmtools.lm.precision import Dtype
    from rmtools.lm.protocol import Scorer, StepPolicy
    from rmtools.sampling.settings import SamplerSettings


def audit(
    rollouts: "Rollouts",
    value_model: "str | Path | Scorer",
    *,
    controls: bool = True,
    compare: "str | Path | Scorer | Sequence[str | Path | Scorer]" = (),
    policy: "str | Path | StepPolicy | None" = None,
    task: "str | Task | None" = None,
    terminal: str = "verifier",
    delta_cv: float = 0.25,
    delta_tv: float = 0.05,
    prompts_limit: int | None = None,
    pilot: "bool | SamplerSettings" = False,
    seed: int = 0,
    device: "str | torch.device | None" = None,
    dtype: "Dtype" = "auto",
    progress: Progress | None = None,
) -> AuditReport:
    """Audit a reward model on branching rollouts.

    Parameters
    ----------
    rollouts : path, datasets.Dataset, sequence of Rollout or dict, or (rollouts, RolloutMetadata)
        What `rmtools.load_rollouts` reads: a folder written by `rmtools rollout` or `rmtools convert`, a file, or rows.
    value_model : path, hub name or Scorer
        A checkpoint or published model (a folder, ``org/name`` or ``org/name@revision``), or anything that scores prefixes.
    controls : bool
        Audit the controls that apply too: constant, position only, untrained head, Monte-Carlo oracle.
    compare : path, hub name or Scorer, or a sequence of them
        Further models, paired with the first.
    policy, task : path, hub name or Policy; str or Task; optional
        With both, and terminal "verifier", the Bellman ratios are also enumerated where the task lists its steps.
    terminal : {"verifier", "model"}
        What a finished solution is worth to the models; controls always use the verifier.
    delta_cv, delta_tv : float
        Accuracies for which particles are predicted.
    prompts_limit, seed : int
        Audit only the first so many prompts; seed of bootstrap and pilot.
    pilot : bool or SamplerSettings
        Run the sampler in islands too (``model.cost.pilot``); True: as `rmtools.sample` does, with the checkpoint's policy.
    device, dtype : str or torch.device, {"auto", "float32", "bfloat16"}
        Where checkpoints are loaded (default: CUDA if available), and in which precision, as by `rmtools.load_value_model`.
    progress : callable, optional
        ``progress(label, total)`` returns a context manager that yields a tick.

    Raises
    ------
    UserError
        If there are no rollouts or outcomes, a model takes prompts of another format, is no Scorer, or gives wrong values.

    Examples
    --------
    >>> import rmtools as rm
    >>> [model.role for model in rm.audit("rollouts", "prm").models]
    ['model', 'constant', 'position only', 'untrained']
    """
    from rmtools.auditing.load_models import load_models, load_policy_and_task, pinned
    from rmtools.data.rollouts import rollouts_fingerprint
    from rmtools.lm.precision import Placement, device_of

    shown = _checked(controls, terminal, delta_cv, delta_tv, seed, progress, dtype)
    where, compare, prepare = Placement(device_of(device), dtype), _listed(compare), _pilots(pilot)
    _require_bases((value_model, *compare))
    rows, metadata = rows_of(rollouts)
    _require_formats(metadata, (value_model, *compare))
    fingerprint, rows = rollouts_fingerprint(rows), limited(rows, prompts_limit)
    value_model, *compare = (pinned(m, metadata, where) for m in (value_model, *compare))
    models, known = load_models(rows, value_model, compare, controls, terminal, seed, where)
    source, judge = load_policy_and_task(policy, task, metadata, models[0].scorer.steps.settings, where)
    run = prepare(models[0].scorer, rows, source, judge, known["model"], where)
    scored = [_score(model, rows, shown) for model in models]
    enumerated = enumerate_rollouts(rows, metadata, models, source, judge, shown)
    found = _audited(models, scored, enumerated, rows, (delta_cv, delta_tv), seed)
    outside = None if enumerated is None else enumerated.coverage()
    provenance = provenance_of(rows, metadata, known["model"]) | _checkpoint(models[0], value_model, source)
    asked = {"seed": seed, "delta_cv": delta_cv, "delta_tv": delta_tv, "rollouts_fingerprint": fingerprint}
    apart = bool(of_another(provenance_notes(metadata, known["model"], fingerprint)))
    found[0], missing = _with_pilot(found[0], run, None if apart else scored[0], delta_cv, seed, shown)
    warnings = (*notes(rows, metadata, known, found, fingerprint, outside), *missing, *_remarks(models, rows))
    return _report(found, _pairs(models, scored, seed), provenance | asked, outside, warnings)


def _report(
    found: list[ModelAudit],
    pairs: dict[str, PairedDifference],
    provenance: dict[str, Any],
    outside: dict[str, float] | None,
    warnings: tuple[str, ...],
) -> AuditReport:
    """Return the report, with what to do next."""
    then = next_step(found, provenance)
    return AuditReport(tuple(found), pairs, provenance, outside, warnings, next=then)


def _pilots(asked: "bool | SamplerSettings") -> Callable[..., "PilotRun | None"]:
    """Return what prepares the pilot that is asked for, from models and rows; raise ``UserError`` for wrong settings."""
    if asked is False:  # its imports are left out too
        return lambda *_: None
    from rmtools.auditing.pilot import PilotRun, pilot_settings

    settings = pilot_settings(asked)
    return lambda *of: None if settings is None else PilotRun.prepare(settings, *of)


def _with_pilot(
    model: ModelAudit,
    run: "PilotRun | None",
    scored: "Scored | None",
    delta_cv: float,
    seed: int,
    progress: Progress,
) -> tuple[ModelAudit, list[str]]:
    """Return the audit with its pilot; without it and with the reason if it fails: the other figures are not lost with it.

    ``scored`` are the solutions that best-of-N is told by; None if they are of another policy than the pilot's.
    """
    if run is None:
        return model, []
    independent = None if scored is None else _final_values(*scored, model.terminal, run.settings.terminal)
    try:
        found = run(delta_cv, generator("pilot", seed), progress, independent)
    except UserError as error:
        return model, [f"there is no pilot: {error.fact}"]
    return replace(model, cost=replace(model.cost, pilot=found)), []


def _final_values(
    rows: "Sequence[Rollout]", scored: "ScoredRollouts", audited: str, wanted: str
) -> dict[str, np.ndarray] | None:
    """Return the final log values of each prompt's solutions with the terminal ``wanted``; None if the audit has none."""
    if wanted == "verifier" != audited:
        return None
    values = scored.log_value if wanted == audited else scored.own_log_value
    found: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        found.setdefault(row.prompt, []).append(float(value[-1]))
    return {prompt: np.asarray(own) for prompt, own in found.items()}


def _checked(
    controls: object,
    terminal: str,
    delta_cv: float,
    delta_tv: float,
    seed: int,
    progress: Progress | None,
    dtype: "Dtype",
) -> Progress:
    """Check the arguments; return what shows progress."""
    from rmtools.lm.particles import check_terminal_name
    from rmtools.lm.precision import check_dtype

    check_dtype(dtype)
    check_accuracies(delta_cv, delta_tv)
    check_seed(seed)
    check_bool("controls", controls)
    check_callable("progress", progress)
    check_terminal_name(terminal)
    return progress or _no_progress


def _listed(
    compare: "str | Path | Scorer | Sequence[str | Path | Scorer]",
) -> "Sequence[str | Path | Scorer]":
    """Return the models to compare with as a sequence; one of them is a sequence of one."""
    return compare if isinstance(compare, Sequence) and not isinstance(compare, str) else [compare]


def _pairs(
    models: "Sequence[AuditedModel]", scored: "Sequence[Scored]", seed: int
) -> dict[str, PairedDifference]:
    """Return the paired differences of the first model and every compared one, itself without its map included."""
    from rmtools.auditing.load_models import paired

    return {
        model.subject.role: paired(
            (models[0], scored[0]), (model, its), np.random.default_rng([seed, 999 + k])
        )
        for k, (model, its) in enumerate(zip(models, scored, strict=True))
        if model.subject.role.startswith(("compare", UNCALIBRATED))
    }


@contextlib.contextmanager
def _no_progress(label: str, total: int) -> Iterator[Callable[[int], Any]]:
    yield lambda n: None


def _score(model: "AuditedModel", rows: "Sequence[Rollout]", progress: Progress) -> "Scored":
    with progress(f"scoring: {model.subject.role}", len(rows)) as tick:
        return model.score(rows, tick)


def _audited(
    models: "Sequence[AuditedModel]",
    scored: "Sequence[Scored]",
    enumerated: EnumeratedRollouts | None,
    rows: "Sequence[Rollout]",
    deltas: tuple[float, float],
    seed: int,
) -> list[ModelAudit]:
    found, options = [], AuditOptions(*deltas, tokens_of(rows, models[0].scorer))
    for k, (model, its) in enumerate(zip(models, scored, strict=True)):
        exact: tuple[Any, ...] = ()
        if enumerated is not None:
            cost = enumerated.cost(model, *deltas)
            exact = enumerated.log_errors(model), cost
        rng = np.random.default_rng([seed, k])
        found.append(audit_model(model.subject, *its, options, rng, *exact))
    return found


def _checkpoint(
    model: "AuditedModel", value_model: "str | Path | Scorer", policy: "StepPolicy | None"
) -> dict[str, Any]:
    """Return the provenance of the audited model; a scorer has no fingerprint."""
    from rmtools.lm.checkpoint import fingerprint
    from rmtools.lm.formats.described import described, mass_line
    from rmtools.lm.precision import precision_of

    subject, source = model.subject, getattr(value_model, "source", value_model)
    about = described(model.scorer)
    return {
        "checkpoint": subject.name,
        "checkpoint_fingerprint": fingerprint(source) if isinstance(source, str | Path) else "",
        **({"published": about | {"label_mass": mass_line(model.scorer)}} if about else {}),
        **({"calibration": str(map)} if (map := getattr(model.scorer, "map", None)) else {}),
        "checkpoint_dtype": precision_of(model.scorer),
        "terminal": subject.terminal,
        "floor": subject.tilt.floor,
        **_weights(policy=policy, model=model.scorer),
    }


def _remarks(models: "Sequence[AuditedModel]", rows: "Sequence[Rollout]") -> list[str]:
    """Return what is to be said of a map that was fitted on these prompts, and of each model whose labels have little mass."""
    from rmtools.lm.formats.described import mass_warning

    fitted = calibration_notes(rows, models[0].scorer)
    return [*fitted, *(text for m in models if (text := mass_warning(m.scorer)))]


def _weights(**owners: Any) -> dict[str, int]:
    """Return the number of weights of each that is in this process: what FLOPs are counted from."""
    from rmtools.sampling.records import weights_of

    found = {f"{name}_weights": weights_of(owner) for name, owner in owners.items()}
    return {name: n for name, n in found.items() if n is not None}


def _require_bases(models: "Sequence[str | Path | Scorer]") -> None:
    """Raise ``UserError`` if a checkpoint is an adapter whose base cannot be found: before the rows are read."""
    from rmtools.lm.checkpoint import is_published, loadable_settings

    for model in models:
        if isinstance(model, str | Path) and not is_published(model):
            loadable_settings(model)


def _require_formats(metadata: "RolloutMetadata | None", models: "Sequence[str | Path | Scorer]") -> None:
    """Raise ``UserError`` if the rollouts' prompts are of another format than those a checkpoint was trained on."""
    from rmtools.lm.checkpoint import CheckpointSettings, is_published
    from rmtools.lm.prompt_format import require_same_format

    if metadata is None or not metadata.format_known:
        return
    for model in models:
        own = isinstance(model, str | Path) and not is_published(model)
        known = CheckpointSettings.load(model) if own else model  # type: ignore[arg-type]
        recorded = getattr(known, "prompt_format", None)
        if recorded is not None:
            require_same_format(metadata.prompt_format, recorded, "the rollouts'")


def check_accuracies(delta_cv: float, delta_tv: float) -> None:
    """Raise ``UserError`` if particles cannot be predicted for these accuracies."""
    check_number("delta_cv", delta_cv, 0, "it is a relative standard error", fix="delta_cv=0.25")
    check_number("delta_tv", delta_tv, 0, "it is a total variation", fix="delta_tv=0.05")
    if not 0 < delta_cv < np.inf:
        raise UserError(f"`delta_cv` must be positive and finite, got {delta_cv}", "delta_cv=0.25")
    if not 0 < delta_tv < 1:
        raise UserError(f"`delta_tv` is {delta_tv}: a total variation is between 0 and 1", "delta_tv=0.05")
