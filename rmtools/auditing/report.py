"""The audit's report: every figure of a model, its controls and the models it is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rmtools.auditing.cost import MeasuredAccuracy
from rmtools.auditing.model_audit import ModelAudit
from rmtools.auditing.table import as_text, sentences
from rmtools.codec import from_json, to_json
from rmtools.errors import UserError
from rmtools.stats.paired import PairedDifference

JSON_FILE = "audit.json"
SCHEMA_VERSION = 4


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
    measured : MeasuredAccuracy or None
        What the sampler did at the predicted particles.
    """

    models: tuple[ModelAudit, ...]
    pairs: dict[str, PairedDifference]
    provenance: dict[str, Any]
    uncovered: dict[str, float] | None
    warnings: tuple[str, ...]
    measured: MeasuredAccuracy | None = None

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
            "measured": to_json(self.measured),
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
                "run the audit again, or read it with rmtools 0.1.0",
            )
        return cls(
            tuple(ModelAudit.from_dict(m) for m in values["models"]),
            {role: PairedDifference.from_dict(p) for role, p in values["pairs"].items()},
            values["provenance"],
            values["uncovered"],
            tuple(values["warnings"]),
            from_json(MeasuredAccuracy | None, values["measured"], "the audit"),  # type: ignore[arg-type]
        )

    def __str__(self) -> str:
        p = self.provenance
        text = as_text(self.models, p["delta_cv"], p["delta_tv"])
        return "\n".join([text, *sentences(self.model, self.pairs, self.measured)])
