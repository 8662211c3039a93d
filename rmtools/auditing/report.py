"""The audit's report: every figure of a model, its controls and the models it is compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtools.auditing.cost import MeasuredAccuracy
from rmtools.auditing.model_audit import ModelAudit
from rmtools.auditing.table import as_text, sentences
from rmtools.codec import load_json, save_json
from rmtools.stats.paired import PairedDifference

JSON_FILE = "audit.json"
SCHEMA_VERSION = 4


@dataclass(frozen=True)
class AuditReport:
    """The audit of a model, its controls and the models it is compared with, on the same rollouts.

    Attributes
    ----------
    models : tuple of ModelAudit
        The audited model first.
    pairs : dict
        For each compared model, by role: `PairedDifference`, the audited model minus that one.
    provenance : dict
        Checkpoint, policy, task, terminal, floor, counts, seed, accuracies asked for.
    uncovered : dict or None
        Probability of a step outside the enumerated ones: ``mean``, ``largest``; ``left_out``: number of prefixes left out
        because it is over one half. None if nothing was enumerated.
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


def save_report(report: AuditReport, folder: Path) -> Path:
    """Write ``audit.json`` into ``folder``, in one rename, and return its path."""
    path = Path(folder) / JSON_FILE
    save_json(path, report, SCHEMA_VERSION)
    return path


def read_report(file: Path) -> AuditReport:
    """Read what `save_report` wrote.

    Raises
    ------
    UserError
        If the file cannot be read or has another schema version.
    """
    fix = "run `rmtools audit` again, or read it with rmtools 0.1.0"
    return load_json(AuditReport, Path(file), "the audit", SCHEMA_VERSION, fix)
