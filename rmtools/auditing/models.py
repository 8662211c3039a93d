"""What is audited: a checkpoint or another scorer, its controls, the models it is compared with."""

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.arrays import extra_completions, prompt_arrays
from rmtools.data.scoring import ScoredRollouts, score_rollouts
from rmtools.lm.value import ConstantValue
from rmtools.particles.tilt import Tilt
from rmtools.stats.paired import ModelEstimates, PairedDifference, paired_difference
from rmtools.stats.sigma2 import Sigma2Parts, sigma2_parts

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollout
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.value import Scorer

Scored = tuple["Sequence[Rollout]", ScoredRollouts]


@dataclass(frozen=True)
class Subject:
    """One model or control.

    Attributes
    ----------
    role : str
    scorer : Scorer
    terminal : str
        What a finished solution is worth to it.
    probability : bool
        Whether its values are potentials of a probability.
    enumerable : bool
        Whether it has a value at any prefix, not only at the rollouts' own.
    fitted, knows_end : bool
        As in `rmtools.auditing.model_audit.Asked`.
    """

    role: str
    scorer: "Scorer"
    terminal: str
    probability: bool = True
    enumerable: bool = True
    fitted: bool = False
    knows_end: bool = False

    @property
    def tabulated(self) -> bool:
        """Whether its exact cost is computed: not of the controls that only stand beside."""
        return self.enumerable and self.role.startswith(("model", "compare", "constant"))

    @property
    def name(self) -> str:
        """Where it came from."""
        return self.scorer.name

    @property
    def tilt(self) -> Tilt:
        """Of its values."""
        return self.scorer.tilt

    def score(self, rows: "Sequence[Rollout]", tick: Callable[[int], object]) -> Scored:
        """Return the rows that the estimates may use, and the values on them."""
        return rows, score_rollouts(rows, self.scorer, self.terminal, tick)  # type: ignore[arg-type]


def subjects_of(
    rows: "Sequence[Rollout]",
    value_model: "str | Path | Scorer",
    compare: "Sequence[str | Path | Scorer]",
    controls: bool,
    terminal: str,
    seed: int,
) -> "tuple[list[Subject], dict[str, CheckpointSettings | None]]":
    """Return the model, those it is compared with and the controls, and the settings of the first ones by role."""
    scorer, own = loaded(value_model)
    found, settings = [subject("model", scorer, terminal)], {"model": own}
    for k, other in enumerate(compare, 1):
        compared, settings[f"compare {k}"] = loaded(other)
        found.append(subject(f"compare {k}", compared, terminal))
    if controls:
        found += controls_of(rows, value_model, scorer, own, seed)
    return found, settings


def loaded(model: "str | Path | Scorer") -> "tuple[Scorer, CheckpointSettings | None]":
    """Return a scorer, and its settings where it is a checkpoint."""
    from rmtools.lm.checkpoint import load_value_model

    return load_value_model(Path(model)) if isinstance(model, str | Path) else (model, None)


def subject(role: str, scorer: "Scorer", terminal: str) -> Subject:
    """Return ``scorer`` as a subject; values that are no probabilities have their own end.

    Enumerated next steps that end the solution are worth the verifier's potential: not to a model with its own end.
    """
    probability = getattr(scorer, "is_probability", True)
    end = terminal if probability else "model"
    return Subject(role, scorer, end, probability, enumerable=end == "verifier")


def controls_of(
    rows: "Sequence[Rollout]",
    value_model: "str | Path | Scorer",
    scorer: "Scorer",
    settings: "CheckpointSettings | None",
    seed: int,
) -> list[Subject]:
    """Return the controls that apply to these rollouts, all with the model's tilt and the verifier's ends."""
    from rmtools.auditing.controls import position_only
    from rmtools.lm.checkpoint import load_value_model

    rate = float(np.mean([r.outcome for r in rows])) if settings is None else settings.base_rate
    flat = ConstantValue(rate, scorer.steps, scorer.tilt)
    found = [Subject("constant", flat, "verifier", fitted=settings is None)]
    rng = np.random.default_rng([seed, zlib.crc32(b"controls")])
    if len({r.prompt for r in rows}) > 1:
        fitted = position_only(rows, scorer.steps, scorer.tilt, rng)
        found.append(Subject("position only", fitted, "verifier", fitted=True))
    if settings is not None:
        untrained, _ = load_value_model(Path(str(value_model)), untrained=True)
        found.append(Subject("untrained", untrained, "verifier"))
    if extra_completions(rows) >= 3:
        found.append(
            OracleSubject(
                "oracle", scorer, "verifier", enumerable=False, fitted=True, knows_end=True, seed=seed
            )
        )
    return found


@dataclass(frozen=True)
class OracleSubject(Subject):
    """The Monte-Carlo oracle from half of the completions; the other half is left to the estimates."""

    seed: int = 0

    @property
    def name(self) -> str:
        """What its values are made of."""
        return "half of the completions"

    def score(self, rows: "Sequence[Rollout]", tick: Callable[[int], object]) -> Scored:
        """Return the rows without the completions that went into values, and the values."""
        from rmtools.auditing.controls import monte_carlo_oracle

        found = monte_carlo_oracle(rows, self.tilt, np.random.default_rng([self.seed, zlib.crc32(b"oracle")]))
        tick(len(rows))
        return found.rows, found.scored()


def paired(
    first: tuple[Subject, Scored], other: tuple[Subject, Scored], rng: np.random.Generator
) -> PairedDifference:
    """Return the first model minus the other on the same rollouts; the costs only where both have one tilt."""
    (a, (rows, one)), (b, (_, two)) = first, other
    calibrated = a.probability and b.probability
    costed = a.tilt == b.tilt and {a.terminal, b.terminal} == {"verifier"} and extra_completions(rows) >= 1
    length = [len(v) for v in one.own_log_value]
    mine, its = (
        ModelEstimates(
            scored.errors(),
            np.exp(s.tilt.log_probability(np.concatenate(scored.own_log_value))) if calibrated else None,
            costs(rows, scored, s.tilt) if costed else None,
        )
        for s, scored in ((a, one), (b, two))
    )
    outcome = np.repeat(one.reward, length) if calibrated else None
    of = np.repeat(one.prompt, length) if calibrated else None
    return paired_difference(mine, its, one.prefix_prompt, outcome, of, rng=rng)


def costs(rows: "Sequence[Rollout]", scored: ScoredRollouts, tilt: Tilt) -> list[Sigma2Parts]:
    """Return the parts of sigma^2 of every prompt."""
    arrays = prompt_arrays(rows, scored, tilt)
    return [sigma2_parts(x.log_value, x.value_square, x.potential) for x in arrays]


@contextlib.contextmanager
def no_progress(label: str, total: int) -> Iterator[Callable[[int], Any]]:
    """Show nothing."""
    yield lambda n: None
