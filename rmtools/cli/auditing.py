"""What ``rmtools audit`` loads, makes and writes: the model, its policy and task as far as they are known, the rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rmtools.errors import UserError

if TYPE_CHECKING:
    from rmtools.auditing import AuditReport
    from rmtools.data.collect import Branching
    from rmtools.data.rollouts import RolloutMetadata
    from rmtools.data.tasks import Task
    from rmtools.lm.policy import Policy
    from rmtools.lm.value import Scorer

IMPLICIT = "implicit:"
DEFAULT_PROMPTS = "96"
# Of the potentials that controls beside an implicit model are held against; its own values have none.
DEFAULT_FLOOR = 0.01


@dataclass(frozen=True)
class Source:
    """What is audited, and where its rollouts come from and go to.

    Attributes
    ----------
    model : str
        As named.
    value : path or Scorer
        A checkpoint's folder, or an implicit model.
    policy, task : optional
        As far as they are known: without them nothing is drawn or enumerated.
    unknown : str
        Why there is no policy or task.
    rollouts : Path or None
        As named.
    prompts : str
        A file or a number.
    folder : Path
        Of the report.
    """

    model: str
    value: "Path | Scorer"
    policy: "Policy | None"
    task: "Task | None"
    unknown: str
    rollouts: Path | None
    prompts: str
    folder: Path

    def need_card(self, needed: bool) -> None:
        """Raise ``UserError`` where a card is asked for and there is no checkpoint to put it in."""
        if needed and not isinstance(self.value, Path):
            raise UserError("an implicit model has no model card", "leave --card out")

    def need_policy(self, needed: bool, what: str) -> None:
        """Raise ``UserError`` where something has to be drawn and there is nothing to draw with."""
        if needed and (self.policy is None or self.task is None):
            raise UserError(
                f"{what} need the policy and the task, and they are not known: {self.unknown}",
                "name them with --policy and --task",
            )


def check_verifiable(verify: bool, model: str, terminal: str) -> None:
    """Raise ``UserError``, before any work, where there will be no particles to verify."""
    if verify and (terminal == "model" or model.startswith(IMPLICIT)):
        raise UserError(
            "--verify runs the sampler against the verifier, and this audit is with the model's own ends",
            "leave --verify out, or audit a checkpoint with --terminal verifier",
        )


def source_of(
    model: str,
    policy: str | None,
    task: str | None,
    horizon: int | None,
    rollouts: Path | None,
    prompts: str,
    out: Path | None,
) -> Source:
    """Load what the options name; with rollouts at hand a policy or task that is not found is no error."""
    from rmtools.data.rollouts import read_metadata
    from rmtools.data.tasks.load import NAMES
    from rmtools.files import claim_folder

    if prompts in NAMES:
        task, prompts = task or prompts, DEFAULT_PROMPTS
    known = None if rollouts is None else read_metadata(rollouts)
    if known is not None and known.task and task and task != known.task:
        raise UserError(f"the rollouts are of the task {known.task}, --task names {task}", "leave --task out")
    if model.startswith(IMPLICIT):
        if out is None:
            raise UserError("an implicit model has no folder for its audit", "name one with --out")
        claim_folder(out, "audit.json", "rollouts")
        scorer, source, chosen = implicit_of(model, policy, task, horizon, known)
        return Source(model, scorer, source, chosen, "no task is named", rollouts, prompts, out)
    checkpoint = Path(model)
    found = policy_of(checkpoint, policy, task, horizon, known)
    folder = claim_folder(out or checkpoint / "audit", "audit.json", "rollouts")
    return Source(model, checkpoint, *found, rollouts, prompts, folder)


def policy_of(
    model: Path, policy: str | None, task: str | None, horizon: int | None, known: "RolloutMetadata | None"
) -> "tuple[Policy | None, Task | None, str]":
    """Return the policy and task of a checkpoint; None and why, where rollouts make them dispensable."""
    from rmtools.cli.loading import load
    from rmtools.lm.checkpoint import CheckpointSettings

    CheckpointSettings.load(model)  # a wrong checkpoint is an error whatever else is at hand
    try:
        loaded = load(model, policy, task, horizon)
    except UserError as error:
        if known is None or policy or task or horizon:
            raise
        return None, None, error.fact
    return loaded.policy, loaded.task, ""


def implicit_of(
    model: str, policy: str | None, task: str | None, horizon: int | None, known: "RolloutMetadata | None"
) -> "tuple[Scorer, Policy, Task | None]":
    """Return the log ratio of the named language model and the policy, the policy, and the task if one is named."""
    from rmtools.data.tasks import load_task
    from rmtools.lm.implicit import load_implicit
    from rmtools.lm.policy import load_policy
    from rmtools.lm.steps import StepSettings
    from rmtools.particles.tilt import Tilt

    name = policy or (known.policy if known else "")
    if not name:
        raise UserError(
            "an implicit model is a ratio to the policy, and none is named", "name it with --policy"
        )
    wanted = task or (known.task if known else "crossing")
    chosen = load_task(wanted, horizon or (known.horizon if known else None)) if wanted else None
    if known is None:
        assert chosen is not None
        settings, temperature = StepSettings(chosen.delimiter, chosen.horizon), 1.0
    else:
        settings, temperature = known.steps, known.temperature or 1.0
    source = load_policy(name, settings, temperature)
    tilt = Tilt(DEFAULT_FLOOR)
    return load_implicit(model.removeprefix(IMPLICIT), source, tilt), source, chosen


def audited(
    source: Source,
    compare: Sequence[str],
    branching: "Branching",
    prompts_limit: int | None,
    terminal: str,
    delta_cv: float,
    delta_tv: float,
    seed: int,
) -> "AuditReport":
    """Make the rollouts where none are named, and audit."""
    from rmtools.auditing import audit
    from rmtools.cli.progress import progress
    from rmtools.data.rollouts import read_rollouts

    folder = source.rollouts or make_rollouts(source, branching, prompts_limit, seed)
    rows, metadata = read_rollouts(folder)
    return audit(
        (rows, metadata),
        source.value,
        compare=[Path(c) for c in compare],
        policy=source.policy,
        task=source.task,
        terminal=terminal,
        delta_cv=delta_cv,
        delta_tv=delta_tv,
        prompts_limit=prompts_limit,
        seed=seed,
        progress=progress,
    )


def make_rollouts(source: Source, branching: "Branching", prompts_limit: int | None, seed: int) -> Path:
    """Draw the rollouts of this audit into its folder; those of other arguments make way, the same are used again."""
    from rmtools.cli import rollout

    assert source.policy is not None
    assert source.task is not None
    prompts, folder = source.prompts, source.folder / "rollouts"
    if prompts_limit is not None and prompts.isdigit():
        prompts = str(min(int(prompts), prompts_limit))
    rollout.make_rollouts(
        source.policy,
        source.task,
        prompts,
        branching,
        folder,
        seed,
        rollout.Sharding(overwrite=True),
        verb="audit",
    )
    return folder


def with_sampler(report: "AuditReport", source: Source, seed: int) -> "AuditReport":
    """Return the report with the accuracy of the sampler at the predicted particles."""
    from dataclasses import replace

    from rmtools.auditing.models import loaded
    from rmtools.cli.options import generator
    from rmtools.cli.progress import progress
    from rmtools.verify.language_model import measure_accuracy

    assert source.policy is not None
    assert source.task is not None
    require_same_policy(source)
    prompts = [p.prompt for p in report.model.breakdowns.by_prompt]
    scorer, _ = loaded(source.value)
    with progress("running the sampler at the predicted particles", len(prompts)) as tick:
        found = measure_accuracy(
            source.policy,
            scorer,
            source.task,
            prompts,
            report.model.cost.n_for_cv,
            report.provenance["delta_cv"],
            generator("audit verify", seed),
            tick,
        )
    return replace(report, measured=found)


def require_same_policy(source: Source) -> None:
    """Raise ``UserError`` where the sampler would run another policy than the rollouts are of."""
    from rmtools.data.rollouts import read_metadata
    from rmtools.lm.checkpoint import fingerprint

    assert source.policy is not None
    if source.rollouts is None:
        return
    known = read_metadata(source.rollouts)
    alike = fingerprint(source.policy.name) == known.policy_fingerprint
    if not alike or source.policy.temperature != known.temperature:
        raise UserError(
            "--verify would run another policy or temperature than the rollouts were drawn with",
            "name theirs with --policy, or leave --rollouts out",
        )


def finish(report: "AuditReport", source: Source, card: bool) -> None:
    """Write the three files and the card, print the table and the notes."""
    from rmtools.auditing.card import write_card
    from rmtools.auditing.metrics import METRICS, figure
    from rmtools.auditing.page import MARKDOWN_FILE, PAGE_FILE, write_report

    write_report(report, source.folder)
    print(report)
    for warning in report.warnings:
        print(f"note: {warning}")
    print(f"report: {source.folder / PAGE_FILE}")
    if card and isinstance(source.value, Path):
        text = (source.folder / MARKDOWN_FILE).read_text(encoding="utf-8")
        metrics = {name: figure(report.model, name) for name in METRICS}
        print(f"model card: {write_card(source.value, text, metrics)}")
