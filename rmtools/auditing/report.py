"""The audit's report: every figure of a model, its controls and the models it is compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtools.auditing.cost import MeasuredAccuracy
from rmtools.auditing.model_audit import ModelAudit
from rmtools.auditing.table import as_text, sentences
from rmtools.codec import from_json, unversioned
from rmtools.files import read_json
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

    def __str__(self) -> str:
        p = self.provenance
        text = as_text(self.models, p["delta_cv"], p["delta_tv"])
        return "\n".join([text, *sentences(self.model, self.pairs, self.measured)])


def read_report(file: Path) -> AuditReport:
    """Read the audit that `rmtools.auditing.page.write_report` wrote.

    Raises
    ------
    UserError
        If the file cannot be read, or is no audit as this release writes it.
    """
    fix = "run `rmtools audit` again, or read it with rmtools 0.1.0"
    values = unversioned(read_json(file, "the audit"), f"{file}: the audit", SCHEMA_VERSION, fix)
    values.pop("table", None)  # the same figures as text
    return from_json(AuditReport, values, str(file), fix)
