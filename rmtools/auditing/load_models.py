"""The models of an audit: a checkpoint or another scorer, the models it is compared with, and its controls."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rmtools.auditing.arrays import extra_completions, prompt_arrays
from rmtools.auditing.controls import monte_carlo_oracle, position_only
from rmtools.auditing.model_audit import Subject
from rmtools.auditing.notes import UNCALIBRATED
from rmtools.data.scoring import ScoredRollouts, score_rollouts
from rmtools.errors import UserError
from rmtools.lm.calibrated import uncalibrated
from rmtools.lm.checkpoint import is_published, load_value_model
from rmtools.lm.hub import find_model
from rmtools.lm.policy import load_policy
from rmtools.lm.precision import Placement
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.scorer_checks import AUDITED, require_scorer
from rmtools.lm.steps import StepSettings
from rmtools.lm.value import ConstantValue
from rmtools.stats.paired import ModelEstimates, PairedDifference, paired_estimator
from rmtools.stats.sigma2 import sigma2_parts

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollout, RolloutMetadata
    from rmtools.data.tasks import Task
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.protocol import Scorer, StepPolicy

Scored = tuple["Sequence[Rollout]", ScoredRollouts]


@dataclass(frozen=True)
class AuditedModel:
    """A model or control with its scorer.

    ``enumerable`` says whether it has a value at any prefix, not only at those of the rollouts. With an ``oracle`` generator its
    values are the Monte-Carlo oracle's, from half of the completions; the other half is left to the estimates.
    """

    subject: Subject
    scorer: "Scorer"
    enumerable: bool = True
    oracle: np.random.Generator | None = None

    @property
    def tabulated(self) -> bool:
        """Whether its exact cost is computed: for the models and the constant control."""
        return self.enumerable and self.subject.role.startswith(("model", "compare", "constant"))

    def score(self, rows: "Sequence[Rollout]", tick: Callable[[int], object]) -> Scored:
        """Return the rows that the estimates may use, and the values on them."""
        if self.oracle is None:
            return rows, score_rollouts(rows, self.scorer, self.subject.terminal, tick)  # type: ignore[arg-type]
        found = monte_carlo_oracle(rows, self.subject.tilt, self.oracle)
        tick(len(rows))
        return found.rows, found.scored()


def load_models(
    rows: "Sequence[Rollout]",
    value_model: "str | Path | Scorer",
    compare: "Sequence[str | Path | Scorer]",
    controls: bool,
    terminal: str,
    seed: int,
    placement: "Placement | None" = None,
) -> "tuple[list[AuditedModel], dict[str, CheckpointSettings | None]]":
    """Return the model, those it is compared with and the controls; and the settings of checkpoints by role.

    A calibrated model is followed by itself without its map.
    """
    found, settings = [], {}
    for k, given in enumerate((value_model, *compare)):
        role = f"compare {k}" if k else "model"
        scorer, settings[role] = loaded(given, placement, "compare" if k else "value_model")
        found.append(_model(role, scorer, terminal))
        if not k and (bare := uncalibrated(scorer)) is not None:
            found.append(_model(UNCALIBRATED, bare, terminal))
    if controls:
        found += _controls(rows, value_model, found[0].scorer, settings["model"], seed, placement)
    return found, settings


def pinned(
    model: "str | Path | Scorer", metadata: "RolloutMetadata | None", where: Placement
) -> "str | Scorer":
    """Return a model of the hub named with its commit, so that all of an audit is of one.

    A published reward model is loaded: it reads steps as the rollouts end them.
    """
    if not isinstance(model, str | Path):
        return model
    if not is_published(model):
        return find_model(model).pinned
    steps = None if metadata is None else metadata.steps
    found: Scorer = load_value_model(model, device=where.device, dtype=where.dtype, steps=steps)[0]
    return found


def loaded(
    model: "str | Path | Scorer", placement: "Placement | None" = None, parameter: str = "value_model"
) -> "tuple[Scorer, CheckpointSettings | None]":
    """Return a scorer, and its settings if it is a checkpoint; an error names the ``parameter`` it was given as."""
    if isinstance(model, str | Path):
        where = placement or Placement()
        return load_value_model(model, device=where.device, dtype=where.dtype)
    require_scorer(model, AUDITED, parameter)
    return model, None


def _model(role: str, scorer: "Scorer", terminal: str) -> AuditedModel:
    # Values that are no probabilities have their own end. Enumerated steps that end a solution are worth the verifier's
    # potential, so a model with its own end is not enumerated; nor is one that only scores whole trajectories.
    probability = getattr(scorer, "is_probability", True)
    end = terminal if probability else "model"
    # A root that is the mean over drawn first steps is not the one of a table.
    enumerable = end == "verifier" and hasattr(scorer, "start") and not getattr(scorer, "first_steps", False)
    subject = Subject(role, scorer.name, scorer.tilt, end, probability)
    return AuditedModel(subject, scorer, enumerable=enumerable)


def _controls(
    rows: "Sequence[Rollout]",
    value_model: "str | Path | Scorer",
    scorer: "Scorer",
    settings: "CheckpointSettings | None",
    seed: int,
    placement: "Placement | None",
) -> list[AuditedModel]:
    """Return the controls that apply to these rollouts, all with the model's tilt and the verifier's ends."""

    def control(role: str, its: "Scorer", fitted: bool) -> AuditedModel:
        return AuditedModel(Subject(role, its.name, its.tilt, fitted=fitted), its)

    def generator(name: bytes) -> np.random.Generator:
        return np.random.default_rng([seed, zlib.crc32(name)])

    rate = float(np.mean([r.outcome for r in rows])) if settings is None else settings.base_rate
    flat = ConstantValue(rate, scorer.steps, scorer.tilt)
    found = [control("constant", flat, fitted=settings is None)]
    if len({r.prompt for r in rows}) > 1:
        by_depth = position_only(rows, scorer.steps, scorer.tilt, generator(b"controls"))
        found.append(control("position only", by_depth, fitted=True))
    if settings is not None and _has_base(settings):
        where = placement or Placement()
        untrained, _ = load_value_model(
            str(value_model), untrained=True, device=where.device, dtype=where.dtype
        )
        found.append(control("untrained", untrained, fitted=False))
    if extra_completions(rows) >= 3:
        oracle = Subject("oracle", "half of the completions", scorer.tilt, fitted=True, knows_end=True)
        found.append(AuditedModel(oracle, scorer, enumerable=False, oracle=generator(b"oracle")))
    return found


def load_policy_and_task(
    policy: "str | Path | StepPolicy | None",
    task: "str | Task | None",
    known: "RolloutMetadata | None",
    steps: StepSettings,
    placement: Placement,
) -> "tuple[StepPolicy | None, Task | None]":
    """Return the policy and the task, loaded if they are named, as the rollouts (or else ``steps``) say.

    Raises ``UserError`` if one is neither a name nor such an object.
    """
    from rmtools.data.tasks import load_task

    law = SamplingLaw()
    if known is not None and known.temperature is not None:
        steps, law = known.steps, known.law
    if isinstance(task, str):
        task = load_task(task, steps.max_steps, steps.delimiter)
    if task is not None and not hasattr(task, "step_choices"):
        raise UserError(
            f"`task` must be a name or a Task, got {type(task).__name__}",
            "task='crossing', say, or leave it out",
        )
    if isinstance(policy, str | Path):
        policy = load_policy(policy, steps, law, placement.device, placement.dtype)
    if policy is not None and not hasattr(policy, "decode_step"):
        raise UserError(
            f"`policy` must be a folder, a hub name or a StepPolicy, got {type(policy).__name__}",
            "rmtools.load_policy returns one; or leave it out",
        )
    return policy, task


def _has_base(settings: "CheckpointSettings") -> bool:
    """Return whether the model that training began with can be loaded; a merged checkpoint may be without it."""
    try:
        find_model(settings.base, settings.base_revision)
    except UserError:
        return False
    return True


def paired(
    first: tuple[AuditedModel, Scored], other: tuple[AuditedModel, Scored], rng: np.random.Generator
) -> PairedDifference:
    """Return the first model minus the other on the same rollouts; the costs only if both have the same tilt."""
    (a, (rows, one)), (b, (_, two)) = first, other
    calibrated = a.subject.probability and b.subject.probability
    costed = (
        a.subject.tilt == b.subject.tilt
        and {a.subject.terminal, b.subject.terminal} == {"verifier"}
        and extra_completions(rows) >= 1
    )

    def estimates(subject: Subject, scored: ScoredRollouts) -> ModelEstimates:
        p = np.exp(subject.tilt.log_probability(np.concatenate(scored.own_log_value))) if calibrated else None
        arrays = prompt_arrays(rows, scored, subject.tilt) if costed else []
        parts = [sigma2_parts(x.log_value, x.value_square, x.potential) for x in arrays]
        return ModelEstimates(scored.errors(), p, parts or None)

    length = [len(v) for v in one.own_log_value]
    outcome, prompt = (np.repeat(x, length) if calibrated else None for x in (one.reward, one.prompt))
    both = estimates(a.subject, one), estimates(b.subject, two)
    return paired_estimator(*both, one.prefix_prompt, outcome, prompt).bootstrap(rng)
