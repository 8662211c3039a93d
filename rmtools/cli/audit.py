"""``rmtools audit``: how inconsistent a reward model is, and how many particles that costs."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtools.cli.options import (
    AggregateName,
    Children,
    Completions,
    Device,
    Dtype,
    FewShot,
    Floor,
    FormatName,
    Horizon,
    PrmFormat,
    PromptsLimit,
    RemoteCode,
    RootValue,
    Seed,
    System,
    TaskName,
    TerminalName,
    TrainedPolicy,
    Trajectories,
    data_option,
    model_option,
    output_option,
    sampler_option,
    unescaped,
)
from rmtools.cli.published import PublishedOptions
from rmtools.cli.sample import Islands, Particles, PoolSize, Resampling, Threshold
from rmtools.cli.server import (
    BATCH,
    CONCURRENCY,
    Concurrency,
    ServerBatch,
    ServerModel,
    ServerSeed,
    ServerUrl,
    Tokenizer,
    policy_source,
)
from rmtools.cli.value_server import (
    ServedValues,
    ValueServer,
    ValueServerModel,
    served_values,
)
from rmtools.errors import UserError
from rmtools.lm.formats.conventions import RECORDED

if TYPE_CHECKING:
    from rmtools.auditing import AuditReport
    from rmtools.data.collect import Branching
    from rmtools.data.rollouts import RolloutMetadata
    from rmtools.data.rollouts import Rollouts as LoadedRollouts
    from rmtools.data.tasks import Task
    from rmtools.lm.precision import Placement
    from rmtools.lm.prompt_format import AskedFormat, PromptFormat
    from rmtools.lm.protocol import Scorer, StepPolicy
    from rmtools.sampling.loading import Check
    from rmtools.sampling.settings import SamplerSettings

    Connect = Callable[..., StepPolicy]

IMPLICIT = "implicit:"
DEFAULT_PROMPTS = "96"
# The options that set the sampler of the pilot.
PILOT = ("n_particles", "islands", "pool_size", "resampling", "ess_threshold")
# Floor of the potentials that controls of an implicit model are compared with; its own values have none.
DEFAULT_FLOOR = 0.01

AuditedModel = Annotated[
    str,
    model_option(
        help="Checkpoint of the value model or a published reward model (folder or hub name), or implicit:MODEL: the log "
        "ratio of that language model to the policy."
    ),
]
Compare = Annotated[
    list[str] | None,
    model_option(help="Another checkpoint, on the same rollouts, paired. May be given again."),
]
Rollouts = Annotated[
    Path | None, data_option(help="Rollouts: a folder, a file or a hub data set; default: drawn here.")
]
Prompts = Annotated[str, data_option(help="JSONL file, a task's name, or how many to draw from the task.")]
DeltaCv = Annotated[
    float, sampler_option(help="Relative standard error of Z for which particles are predicted.")
]
DeltaTv = Annotated[
    float, sampler_option(help="Total variation of the output for which particles are predicted.")
]
Ends = Annotated[
    TerminalName | None,
    sampler_option(
        "--terminal",
        help="What a finished solution is worth. Default: verifier; model in the pilot, as `rmtools sample` has it.",
    ),
]
RunPilot = Annotated[
    bool | None,
    sampler_option(
        "--pilot/--no-pilot",
        help="Run the sampler itself, as -n, --islands, --resampling say, in short runs on the audit's prompts, and count its "
        "particles. Default: if the checkpoint's policy can be loaded.",
    ),
]
Verify = Annotated[
    bool, sampler_option("--verify", help="Run the sampler at the predicted N and print its accuracy.")
]
FailAbove = Annotated[
    list[str] | None,
    output_option(
        metavar="METRIC=VALUE", help="Exit with 1 if the metric is above the value. May be given again."
    ),
]
Card = Annotated[bool, output_option("--card", help="Write the audit into the checkpoint's README.md too.")]
Folder = Annotated[
    Path | None,
    output_option(
        help="Output folder; default: audit inside the checkpoint. An earlier audit there is replaced, and so are "
        "rollouts drawn there with other arguments."
    ),
]


def command(
    model: AuditedModel,
    compare: Compare = None,
    prm_format: PrmFormat = None,
    root_value: RootValue = "first-steps",
    aggregate: AggregateName = "last",
    floor: Floor = 0.01,
    trust_remote_code: RemoteCode = False,
    policy: TrainedPolicy = None,
    task: TaskName = None,
    horizon: Horizon = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    rollouts: Rollouts = None,
    prompts: Prompts = DEFAULT_PROMPTS,
    prompts_limit: PromptsLimit = None,
    value_server: ValueServer = None,
    value_server_model: ValueServerModel = None,
    prompt_format: FormatName = "auto",
    system: System = None,
    few_shot: FewShot = None,
    trajectories: Trajectories = 16,
    children: Children = 16,
    completions: Completions = 4,
    terminal: Ends = None,
    n: Particles = None,
    islands: Islands = None,
    pool_size: PoolSize = None,
    resampling: Resampling = None,
    ess_threshold: Threshold = None,
    pilot: RunPilot = None,
    delta_cv: DeltaCv = 0.25,
    delta_tv: DeltaTv = 0.05,
    verify: Verify = False,
    fail_above: FailAbove = None,
    card: Card = False,
    out: Folder = None,
    server: ServerUrl = None,
    server_model: ServerModel = None,
    concurrency: Concurrency = CONCURRENCY,
    server_batch: ServerBatch = BATCH,
    server_seed: ServerSeed = False,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
) -> None:
    """Audit a reward model and its controls on the same rollouts: the Bellman error and what it costs in particles.

    Exit code 1 if a threshold of --fail-above is exceeded.
    """
    from rmtools.auditing.audit import check_accuracies
    from rmtools.auditing.metrics import thresholds
    from rmtools.auditing.recording import is_recording
    from rmtools.cli.device import placement_for
    from rmtools.data.collect import Branching
    from rmtools.files import left_as_found

    limits = thresholds(fail_above or [])
    check_accuracies(*(deltas := (delta_cv, delta_tv)))
    given = dict(zip(PILOT, (n, islands, pool_size, resampling, ess_threshold), strict=True))
    piloted = _piloted(pilot, given, terminal)
    _check_models(model, compare or [], terminal := terminal or "verifier", verify, card)
    reading = prm_format, root_value, aggregate, floor, trust_remote_code
    options = PublishedOptions(*reading, served_values(value_server, value_server_model, seed))
    if prm_format == RECORDED and rollouts is not None and is_recording(rollouts):
        _audit_recording(options, model, rollouts, placement_for(device, dtype), out, seed)
        return
    served = (server, server_model, concurrency, server_batch, server_seed, tokenizer)
    known = (policy_source(policy, served, seed), task, horizon, placement_for(device, dtype))
    asked = prompt_format, system and unescaped(system), few_shot
    inputs = _inputs(model, options, known, rollouts, prompts, asked, out)
    branching = Branching(trajectories, children, completions)
    with left_as_found(inputs.folder):
        inputs.require_what_is_run(verify)
        piloted = _at_hand(piloted, inputs, model, asked=bool(pilot))
        report = _audit(inputs, compare or [], branching, prompts_limit, terminal, deltas, piloted, seed)
    try:
        report = _with_sampler(report, inputs, seed) if verify else report
    finally:  # the audit is written even if the sampler cannot be run
        _finish(report, inputs, card)
    _exit_unless_met(report, limits)


def _exit_unless_met(report: "AuditReport", limits: dict[str, float]) -> None:
    """End with code 1 if a threshold of --fail-above is exceeded."""
    from rmtools.auditing.metrics import not_met

    missed = not_met(report.model, limits)
    for sentence in missed:
        print(f"not met: {sentence}")
    if missed:
        raise typer.Exit(1)


def _audit_recording(
    options: PublishedOptions, model: str, branches: Path, placement: "Placement", out: Path | None, seed: int
) -> None:
    """Audit recorded scores at the prefixes of a recording of branches."""
    from rmtools.auditing.recording import audit_recording
    from rmtools.files import claim_folder

    if out is None:
        raise UserError("recorded scores have no folder for their audit", "name one with --out")
    folder = claim_folder(out, "recording.json")
    scorer: Any = options.load(model, None, placement)
    found = audit_recording(scorer, branches, seed)
    print(f"{found}\nreport: {found.save(folder)}")


def _piloted(
    pilot: bool | None, given: dict[str, Any], terminal: TerminalName | None
) -> "SamplerSettings | None":
    """Return the sampler of the pilot; None with --no-pilot."""
    from rmtools.auditing.pilot import pilot_settings
    from rmtools.sampling.settings import settings_for

    if pilot is not False:
        return pilot_settings(settings_for(None, **given, terminal=terminal))
    if named := [name for name, value in given.items() if value is not None]:
        raise UserError(
            f"`{named[0]}` sets the sampler of the pilot, and --no-pilot runs none", f"leave `{named[0]}` out"
        )
    return None


def _at_hand(
    pilot: "SamplerSettings | None", inputs: "AuditInputs", model: str, asked: bool
) -> "SamplerSettings | None":
    """Return the sampler of the pilot; None, and a line why, if it cannot be run or takes hours and was not asked for."""
    from rmtools.auditing.pilot import takes_hours

    if pilot is None:
        return None
    if asked:
        inputs.require_policy("a pilot needs")
        return pilot
    reason, given = "", inputs.rollouts
    if inputs.policy is None:
        reason = inputs.unknown
    elif model.startswith(IMPLICIT):
        reason = "an implicit model is no checkpoint"
    elif given is not None and takes_hours(inputs.policy, given.rows, pilot):  # drawing them takes longer
        reason = "it would take hours on this processor; --pilot runs it"
    if reason:
        print(f"no pilot: {reason}")
        return None
    if given is not None and inputs.policy and not _same_policy(inputs.policy, given.metadata):
        print("pilot: the checkpoint's policy is run, and other figures are of the rollouts'")
    return pilot


def _check_models(model: str, compared: Sequence[str], terminal: str, verify: bool, card: bool) -> None:
    """Raise ``UserError`` unless the model has what --verify and --card need, and those compared are models of values."""
    from rmtools.lm.checkpoint import CheckpointSettings, is_published

    for other in compared:
        if not is_published(other):
            CheckpointSettings.load(other)
    if verify and (terminal == "model" or model.startswith(IMPLICIT)):
        raise UserError(
            "--verify runs the sampler against the verifier, and this audit is with the model's own ends",
            "leave --verify out, or audit a checkpoint with --terminal verifier",
        )
    if card and model.startswith(IMPLICIT):
        raise UserError("an implicit model has no model card", "leave --card out")
    if card and not Path(model).is_dir():
        raise UserError(
            f"--card writes into a checkpoint's folder, and {model} is no folder", "leave --card out"
        )


@dataclass(frozen=True)
class AuditInputs:
    """What is audited, and where its rollouts come from.

    ``value`` is a checkpoint's name or an implicit model; policy and task are None if ``unknown`` says why: then nothing can
    be drawn or enumerated. ``rollouts`` is None if they are to be drawn, for ``prompts``, a file or a number, in the format
    that is ``asked`` for or the checkpoint's (``recorded``; None: an implicit model).
    """

    value: "str | Scorer"
    policy: "StepPolicy | None"
    task: "Task | None"
    unknown: str
    rollouts: "LoadedRollouts | None"
    prompts: str
    asked: "AskedFormat"
    recorded: "PromptFormat | None"
    folder: Path
    placement: "Placement"

    def require_what_is_run(self, verify: bool) -> None:
        """Raise ``UserError`` if rollouts are to be drawn, or --verify is given, and there is no policy or task."""
        if self.rollouts is None or verify:
            self.require_policy("--verify needs" if verify else "rollouts need")

    def require_policy(self, what: str) -> "tuple[StepPolicy, Task]":
        """Return policy and task; raise ``UserError`` if they are unknown."""
        if self.policy is None or self.task is None:
            raise UserError(
                f"{what} the policy and the task, and they are not known: {self.unknown}",
                "name them with --policy and --task",
            )
        return self.policy, self.task


Named = tuple["str | Connect | None", str | None, int | None, "Placement"]
"""The options --policy (or what connects to --server), --task, --horizon, and where models run."""


def _inputs(
    model: str,
    options: PublishedOptions,
    named: Named,
    rollouts: Path | None,
    prompts: str,
    asked: tuple[str, str | None, Path | None],
    out: Path | None,
) -> AuditInputs:
    """Load what the options name."""
    from rmtools.data.load import load_rollouts
    from rmtools.data.prompts import asked_format, prompts_check, require_prompts
    from rmtools.data.tasks.load import NAMES
    from rmtools.files import claim_folder
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.hub import find_model
    from rmtools.lm.prompt_format import require_same_format

    policy, task, horizon, placement = named
    if prompts in NAMES:
        task, prompts = task or prompts, DEFAULT_PROMPTS
    outside = not model.startswith(IMPLICIT) and options.names(model)
    source = None if outside or model.startswith(IMPLICIT) else find_model(model)
    if source is not None and not source.commit:
        out = out or source.folder / "audit"
    if out is None:
        kind = "a published" if outside else "an implicit" if source is None else "a hub"
        raise UserError(f"{kind} model has no folder for its audit", "name one with --out")
    folder = claim_folder(out, "audit.json", "rollouts")
    if rollouts is None:
        require_prompts(prompts)
    loaded = None if rollouts is None else load_rollouts(str(rollouts))
    known = None if loaded is None else loaded.metadata
    if known is not None and known.task and task and task != known.task:
        raise UserError(f"the rollouts are of the task {known.task}, --task names {task}", "leave --task out")
    named = (policy, task, horizon, placement)
    recorded = None if source is None else CheckpointSettings.load(source.pinned).prompt_format
    if known is not None and known.format_known and recorded is not None:
        require_same_format(known.prompt_format, recorded, "the rollouts'")

    def check(task: Any, settings: Any, *tokens: Any) -> None:
        form = asked_format(*asked, task.delimiter)
        if known is None:
            prompts_check(prompts, task, form, settings.prompt_format)(*tokens)

    if outside:
        found = _published(model, options, named, known)
    elif source is None:
        found = _implicit(model, named, known)
    else:
        found = _checkpoint(source.pinned, named, known, check, options.served)
    delimiter = "\n" if found[2] is None else found[2].delimiter
    form = asked_format(*asked, delimiter)
    if loaded is not None and (form.given or loaded.turns):
        loaded = _rendered(loaded, form, recorded, found)
    return AuditInputs(*found, loaded, prompts, form, recorded, folder, placement)


def _rendered(
    rollouts: "LoadedRollouts", asked: "AskedFormat", recorded: "PromptFormat | None", found: "Found"
) -> "LoadedRollouts":
    """Return rows that do not tell their format in the one that is asked for; raise ``UserError`` if others have another."""
    from rmtools.data.prompts import render_rows, rows_in_format
    from rmtools.lm.hub import find_model
    from rmtools.lm.policy import load_tokenizer

    value = found[0]
    policy = found[1]
    if isinstance(value, str):
        tokenizer = load_tokenizer(find_model(value).folder)
    else:
        tokenizer = value.steps.tokenizer if policy is None else policy.steps.tokenizer
    if recorded is None or rollouts.metadata.format_known:
        return rows_in_format(rollouts, asked, tokenizer)
    form = asked.as_recorded(recorded, tokenizer, turns=bool(rollouts.turns))
    return render_rows(rollouts, form, tokenizer)


Found = tuple["str | Scorer", "StepPolicy | None", "Task | None", str]
"""The audited model, its policy and task, and why they are unknown."""


def _checkpoint(
    model: str, named: Named, known: "RolloutMetadata | None", check: "Check", served: "ServedValues | None"
) -> Found:
    """Return a checkpoint with its policy and task; None and the reason if rollouts are given and neither is found."""
    from rmtools.cli.device import print_precision
    from rmtools.lm.checkpoint import loadable_settings
    from rmtools.sampling.loading import load

    loadable_settings(model)  # a wrong checkpoint is an error even if rollouts are given
    values: Any = "apart" if served is None else partial(served.connect, model)
    try:
        loaded = load(model, *named[:3], placement=named[3], check=check, values=values)
    except UserError as error:
        if known is None or any(named[:3]):
            raise
        return values() if callable(values) else model, None, None, error.fact
    print_precision(policy=loaded.policy, value_model=loaded.value)
    return loaded.value if callable(values) else model, loaded.policy, loaded.task, ""


def _published(model: str, options: PublishedOptions, named: Named, known: "RolloutMetadata | None") -> Found:
    """Return a published reward model, and the policy and the task that are named or that the rollouts record."""
    from rmtools.data.tasks import load_task
    from rmtools.lm.hub import with_commit
    from rmtools.lm.policy import load_policy
    from rmtools.lm.sampling_law import SamplingLaw
    from rmtools.lm.steps import StepSettings

    policy, task, horizon, placement = named
    name = policy or (with_commit(known.policy, known.policy_fingerprint) if known else "")
    wanted = task or (known.task if known else "")
    chosen = load_task(wanted, horizon or (known.horizon if known else None)) if wanted else None
    if known is not None:
        settings, law = known.steps, known.law if known.temperature is not None else SamplingLaw()
    elif chosen is not None:
        settings, law = StepSettings(chosen.delimiter, chosen.horizon), SamplingLaw()
    else:
        raise UserError(
            "a published reward model remembers neither policy nor task, and there are no rollouts",
            "name them with --policy and --task, or pass --rollouts",
        )
    scorer = options.load(model, settings, placement)
    if callable(name):
        return scorer, name(settings, law), chosen, "no task is named"
    if not name:
        return scorer, None, chosen, "no policy is named, and the rollouts do not record one"
    try:
        source = load_policy(name, settings, law, placement.device, placement.dtype)
    except UserError as error:
        if known is None or policy:
            raise
        return scorer, None, chosen, error.fact
    return scorer, source, chosen, "no task is named"


def _implicit(model: str, named: Named, known: "RolloutMetadata | None") -> Found:
    """Return the log ratio of the named language model to the policy, the policy, and the task if one is known."""
    from rmtools.cli.device import print_precision
    from rmtools.data.tasks import load_task
    from rmtools.lm.hub import with_commit
    from rmtools.lm.implicit import load_implicit
    from rmtools.lm.policy import load_policy
    from rmtools.lm.sampling_law import SamplingLaw
    from rmtools.lm.steps import StepSettings
    from rmtools.particles.tilt import Tilt

    policy, task, horizon, placement = named
    if callable(policy):
        raise UserError(
            "an implicit model is a ratio to the policy's probabilities, which a server does not give",
            "name the policy with --policy",
        )
    name = policy or (with_commit(known.policy, known.policy_fingerprint) if known else "")
    if not name:
        raise UserError(
            "an implicit model is a ratio to the policy, and none is named", "name it with --policy"
        )
    wanted = task or ("crossing" if known is None else known.task)
    chosen = load_task(wanted, horizon or (known.horizon if known else None)) if wanted else None
    if known is not None:
        settings, law = known.steps, known.law
    else:
        assert chosen is not None  # crossing, if none is named
        settings, law = StepSettings(chosen.delimiter, chosen.horizon), SamplingLaw()
    source = load_policy(name, settings, law, placement.device, placement.dtype)
    scorer = load_implicit(model.removeprefix(IMPLICIT), source, Tilt(DEFAULT_FLOOR), dtype=placement.dtype)
    print_precision(policy=source, value_model=scorer)
    return scorer, source, chosen, "no task is named"


def _audit(
    inputs: AuditInputs,
    compare: Sequence[str],
    branching: "Branching",
    prompts_limit: int | None,
    terminal: str,
    deltas: tuple[float, float],
    pilot: "SamplerSettings | None",
    seed: int,
) -> "AuditReport":
    """Draw the rollouts unless some are given, and audit."""
    from rmtools.auditing import audit
    from rmtools.cli.progress import progress

    return audit(
        inputs.rollouts or _draw_rollouts(inputs, branching, prompts_limit, seed),
        inputs.value,
        compare=compare,
        policy=inputs.policy,
        task=inputs.task,
        terminal=terminal,
        delta_cv=deltas[0],
        delta_tv=deltas[1],
        prompts_limit=prompts_limit,
        pilot=pilot or False,
        seed=seed,
        device=inputs.placement.device,
        dtype=inputs.placement.dtype,
        progress=progress,
    )


def _draw_rollouts(inputs: AuditInputs, branching: "Branching", prompts_limit: int | None, seed: int) -> Path:
    """Draw rollouts into the audit's folder: resume those of the same arguments, replace others."""
    from rmtools.cli.rollout import make_rollouts
    from rmtools.jobs.rollouts import Sharding

    prompts, folder = inputs.prompts, inputs.folder / "rollouts"
    if prompts_limit is not None and prompts.isdigit():
        prompts = str(min(int(prompts), prompts_limit))
    source = inputs.require_policy("rollouts need")
    make_rollouts(
        *source,
        prompts,
        branching,
        folder,
        seed,
        Sharding(overwrite=True),
        verb="audit",
        asked=inputs.asked,
        recorded=inputs.recorded,
    )
    return folder


def _with_sampler(report: "AuditReport", inputs: AuditInputs, seed: int) -> "AuditReport":
    """Return the report with the accuracy of the sampler at the predicted particles."""
    from rmtools.auditing.load_models import loaded
    from rmtools.cli.progress import progress
    from rmtools.data.load import load_rollouts
    from rmtools.data.prompts import task_of_rows
    from rmtools.seeds import generator
    from rmtools.verify.language_model import measure_accuracy

    policy, task = inputs.require_policy("--verify needs")
    if inputs.rollouts is not None:
        _require_same_policy(policy, inputs.rollouts.metadata)
    prompts = [p.prompt for p in report.model.breakdowns.by_prompt]
    task = task_of_rows(task, inputs.rollouts or load_rollouts(inputs.folder / "rollouts"))
    scorer, _ = loaded(inputs.value, inputs.placement)
    n, delta, rng = report.model.cost.n_for_cv, report.provenance["delta_cv"], generator("audit verify", seed)
    with progress("running the sampler at the predicted particles", len(prompts)) as tick:
        return replace(report, measured=measure_accuracy(policy, scorer, task, prompts, n, delta, rng, tick))


def _same_policy(policy: "StepPolicy", known: "RolloutMetadata") -> bool:
    """Return whether the sampler would run the policy that drew the rollouts."""
    from rmtools.jobs.job import served_model_of
    from rmtools.lm.checkpoint import has_fingerprint

    law = getattr(policy, "law", None)
    if known.server or hasattr(policy, "record"):  # weights behind a server are not known
        same = served_model_of(policy.name) == served_model_of(known.policy)
        return same and law == known.law
    return has_fingerprint(policy.name, known.policy_fingerprint) and law == known.law


def _require_same_policy(policy: "StepPolicy", known: "RolloutMetadata") -> None:
    """Raise ``UserError`` unless the sampler would run the policy that drew the rollouts."""
    if not _same_policy(policy, known):
        raise UserError(
            "--verify would run another policy or sampling law than the rollouts were drawn with",
            "name theirs with --policy, or leave --rollouts out",
        )


def _finish(report: "AuditReport", inputs: AuditInputs, card: bool) -> None:
    """Write the three files and the card; print the answer, and below it the table and the notes."""
    from rmtools.auditing.card import write_card
    from rmtools.auditing.metrics import METRICS, figure
    from rmtools.auditing.page import PAGE_FILE, markdown, write_report
    from rmtools.auditing.table import WIDTH

    write_report(report, inputs.folder)
    print(f"{report.answer()}\n{'─' * WIDTH}\n{report.table()}")
    for warning in report.warnings:
        if warning not in report.of_another:
            print(textwrap.fill(f"note: {warning}", WIDTH, subsequent_indent="  "))
    print(f"report: {inputs.folder / PAGE_FILE}")
    if card and isinstance(inputs.value, str):
        metrics = {name: figure(report.model, name) for name in METRICS}
        within = report.model.calibration.auc_within
        metrics["auc_within"] = None if within is None else within.estimate
        print(f"model card: {write_card(Path(inputs.value), markdown(report), metrics)}")
