"""The models of an audit: a checkpoint or another scorer, the models it is compared with, and its controls."""

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.arrays import extra_completions, prompt_arrays
from rmtools.auditing.model_audit import Subject
from rmtools.data.scoring import ScoredRollouts, score_rollouts
from rmtools.lm.value import ConstantValue
from rmtools.stats.paired import ModelEstimates, PairedDifference, paired_estimator
from rmtools.stats.sigma2 import Sigma2Parts, sigma2_parts

if TYPE_CHECKING:
    import torch

    from rmtools.data.rollouts import Rollout
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.protocol import Scorer

Scored = tuple["Sequence[Rollout]", ScoredRollouts]


@dataclass(frozen=True)
class AuditedModel:
    """A model or control with its scorer.

    Attributes
    ----------
    subject : Subject
    scorer : Scorer
    enumerable : bool
        Whether it has a value at any prefix, not only at those of the rollouts.
    """

    subject: Subject
    scorer: "Scorer"
    enumerable: bool = True

    @property
    def role(self) -> str:
        """The role of its subject."""
        return self.subject.role

    @property
    def tabulated(self) -> bool:
        """Whether its exact cost is computed: for the models and the constant control."""
        return self.enumerable and self.role.startswith(("model", "compare", "constant"))

    def score(self, rows: "Sequence[Rollout]", tick: Callable[[int], object]) -> Scored:
        """Return the rows that the estimates may use, and the values on them."""
        return rows, score_rollouts(rows, self.scorer, self.subject.terminal, tick)  # type: ignore[arg-type]


@dataclass(frozen=True)
class OracleModel(AuditedModel):
    """The Monte-Carlo oracle: values from half of the completions, the other half is left to the estimates."""

    seed: int = 0

    def score(self, rows: "Sequence[Rollout]", tick: Callable[[int], object]) -> Scored:
        """Return the rows without the completions that values were made from, and the values."""
        from rmtools.auditing.controls import monte_carlo_oracle

        rng = np.random.default_rng([self.seed, zlib.crc32(b"oracle")])
        found = monte_carlo_oracle(rows, self.subject.tilt, rng)
        tick(len(rows))
        return found.rows, found.scored()


def models_of(
    rows: "Sequence[Rollout]",
    value_model: "str | Path | Scorer",
    compare: "Sequence[str | Path | Scorer]",
    controls: bool,
    terminal: str,
    seed: int,
    device: "torch.device | None" = None,
) -> "tuple[list[AuditedModel], dict[str, CheckpointSettings | None]]":
    """Return the model, those it is compared with and the controls; and the settings of checkpoints by role."""
    scorer, own = loaded(value_model, device)
    found, settings = [_model("model", scorer, terminal)], {"model": own}
    for k, other in enumerate(compare, 1):
        compared, settings[f"compare {k}"] = loaded(other, device)
        found.append(_model(f"compare {k}", compared, terminal))
    if controls:
        found += _controls(rows, value_model, scorer, own, seed, device)
    return found, settings


def loaded(
    model: "str | Path | Scorer", device: "torch.device | None" = None
) -> "tuple[Scorer, CheckpointSettings | None]":
    """Return a scorer, and its settings if it is a checkpoint."""
    from rmtools.lm.checkpoint import load_value_model

    return load_value_model(Path(model), device=device) if isinstance(model, str | Path) else (model, None)


def _model(role: str, scorer: "Scorer", terminal: str) -> AuditedModel:
    # Values that are no probabilities have their own end. Enumerated steps that end a solution are worth the verifier's
    # potential, so a model with its own end is not enumerated.
    probability = getattr(scorer, "is_probability", True)
    end = terminal if probability else "model"
    subject = Subject(role, scorer.name, scorer.tilt, end, probability)
    return AuditedModel(subject, scorer, enumerable=end == "verifier")


def _controls(
    rows: "Sequence[Rollout]",
    value_model: "str | Path | Scorer",
    scorer: "Scorer",
    settings: "CheckpointSettings | None",
    seed: int,
    device: "torch.device | None",
) -> list[AuditedModel]:
    """Return the controls that apply to these rollouts, all with the model's tilt and the verifier's ends."""
    from rmtools.auditing.controls import position_only
    from rmtools.lm.checkpoint import load_value_model

    def control(role: str, its: "Scorer", fitted: bool) -> AuditedModel:
        return AuditedModel(Subject(role, its.name, its.tilt, fitted=fitted), its)

    rate = float(np.mean([r.outcome for r in rows])) if settings is None else settings.base_rate
    flat = ConstantValue(rate, scorer.steps, scorer.tilt)
    found = [control("constant", flat, fitted=settings is None)]
    if len({r.prompt for r in rows}) > 1:
        rng = np.random.default_rng([seed, zlib.crc32(b"controls")])
        found.append(
            control("position only", position_only(rows, scorer.steps, scorer.tilt, rng), fitted=True)
        )
    if settings is not None:
        untrained, _ = load_value_model(Path(str(value_model)), untrained=True, device=device)
        found.append(control("untrained", untrained, fitted=False))
    if extra_completions(rows) >= 3:
        oracle = Subject("oracle", "half of the completions", scorer.tilt, fitted=True, knows_end=True)
        found.append(OracleModel(oracle, scorer, enumerable=False, seed=seed))
    return found


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
    mine, its = (
        ModelEstimates(
            scored.errors(),
            np.exp(m.subject.tilt.log_probability(np.concatenate(scored.own_log_value)))
            if calibrated
            else None,
            _costs(rows, scored, m.subject) if costed else None,
        )
        for m, scored in ((a, one), (b, two))
    )
    length = [len(v) for v in one.own_log_value]
    outcome = np.repeat(one.reward, length) if calibrated else None
    prompt = np.repeat(one.prompt, length) if calibrated else None
    return paired_estimator(mine, its, one.prefix_prompt, outcome, prompt).bootstrap(rng)


def _costs(rows: "Sequence[Rollout]", scored: ScoredRollouts, subject: Subject) -> list[Sigma2Parts]:
    """Return the parts of sigma^2 of every prompt."""
    arrays = prompt_arrays(rows, scored, subject.tilt)
    return [sigma2_parts(x.log_value, x.value_square, x.potential) for x in arrays]


@contextlib.contextmanager
def no_progress(label: str, total: int) -> Iterator[Callable[[int], Any]]:
    """Show nothing."""
    yield lambda n: None
