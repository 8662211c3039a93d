"""The audit's report: every figure of a model, its controls and the models it is compared with."""

import html
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.auditing.cost import MeasuredAccuracy
from rmtools.auditing.figures import audit_plots
from rmtools.auditing.metrics import records
from rmtools.auditing.model_audit import ModelAudit
from rmtools.auditing.notes import DRAWN_BY, OTHER_LAW, OTHER_POLICY
from rmtools.auditing.table import (
    NOT_AVAILABLE,
    TERMINALS,
    WIDTH,
    as_text,
    counted,
    first_rows,
    in_columns,
    sentences,
)
from rmtools.codec import load_json, save_json
from rmtools.errors import UserError
from rmtools.plots.page import Table, html_table
from rmtools.stats.bootstrap import Interval
from rmtools.stats.paired import PairedDifference

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

JSON_FILE = "audit.json"
SCHEMA_VERSION = 4


@dataclass(frozen=True)
class AuditReport:
    """The audit of a model, its controls and the models it is compared with, on the same rollouts.

    Printed, it answers in at most twelve lines; `table` returns every row.

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

    Examples
    --------
    >>> import rmtools as rm
    >>> report: rm.AuditReport = rm.audit("rollouts", "prm", controls=False)
    >>> report.model.role, report.provenance["n_prompts"], len(str(report).splitlines()) <= 12
    ('model', 24, True)
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

    @property
    def of_another(self) -> tuple[str, ...]:
        """The warnings that the figures are of another policy or law of sampling than the checkpoint's."""
        return tuple(text for text in self.warnings if OTHER_POLICY in text or OTHER_LAW in text)

    def __repr__(self) -> str:
        p = self.provenance
        return f"<AuditReport of {p['checkpoint']}: {counted(len(self.models), 'model')}, {counted(p['n_prompts'], 'prompt')}>"

    def __str__(self) -> str:
        shown = self._summary()
        rows = in_columns(shown.columns, shown.rows).splitlines()
        lines = [shown.caption, *self._caveat(), *rows, *self._remarks(shown)]
        return "\n".join(
            textwrap.shorten(line, WIDTH, placeholder=" …") if len(line) > WIDTH else line for line in lines
        )

    def _repr_html_(self) -> str:
        shown = self._summary()
        above, below = (
            "".join(f"<p>{html.escape(text)}</p>" for text in texts)
            for texts in (self._caveat(), self._remarks(shown))
        )
        return above + html_table(shown) + below

    def _caveat(self) -> list[str]:
        """Return the line above the table, if the figures are of another sampler."""
        return [f"WARNING: {'; '.join(self.of_another)}"] if self.of_another else []

    def _summary(self) -> Table:
        """Return the first rows, the model beside the constant, or beside the next model if there is none."""
        p = self.provenance
        beside = [m for m in self.models[1:] if m.role == "constant"] or list(self.models[1:2])
        rows = first_rows([self.model, *beside[:1]], p["delta_cv"], p["delta_tv"], self.warnings)
        size = f": {counted(p['n_trajectories'], 'solution')} of {counted(p['n_prompts'], 'prompt')}"
        size += ", no intervals" if p["n_prompts"] == 1 else ""
        name, room = " ".join(p["checkpoint"].split()), WIDTH - len(f"Audit of {size}")
        caption = f"Audit of {name if len(name) <= room else f'…{name[1 - room :]}'}{size}"
        return Table(caption, ("b: log Bellman error, nats", "model", *(m.role for m in beside[:1])), rows)

    def _remarks(self, shown: Table) -> list[str]:
        """Return what stands below the first rows: at most five lines, four if errors were enumerated."""
        missing = [
            drawn for why, drawn in DRAWN_BY.items() if any(row[1].endswith(why) for row in shown.rows)
        ]
        paired = [
            f"{role}, paired: mean b^2 {_known(pair.mean_square_corrected)}"
            for role, pair in self.pairs.items()
        ]
        return [
            *(["the model minus " + "; ".join(paired)] if paired else []),
            f"terminal: {TERMINALS[self.model.terminal]}; particles: for multinomial resampling at every step",
            *(
                [f"draw: rm.collect_rollouts(policy, prompts, task=task, {', '.join(missing)})"]
                if missing and self.model.error.exact is None
                else []
            ),
            *([] if self.of_another else [f"audited: {', '.join(m.role for m in self.models)}"]),
            f"warnings: {len(self.warnings)} (report.warnings); every row: report.table()",
        ]

    def table(self) -> str:
        """Return every row for every model, then the comparisons, in lines of at most 80 characters and sentences."""
        p = self.provenance
        text = as_text(self.models, p["delta_cv"], p["delta_tv"])
        return "\n".join([text, *sentences(self.model, self.pairs, self.measured)])

    def to_frame(self) -> "DataFrame":
        """Return a row per model and figure: columns ``model`` (its role), ``figure``, ``estimate``, ``low``, ``high``.

        Figures are named as thresholds are (`metrics.METRICS`); NaN is a figure or an end that is not available.
        """
        from pandas import DataFrame

        frame = DataFrame([row for m in self.models for row in records(m)])
        return frame.astype({"estimate": float, "low": float, "high": float})

    def plot(self, name: str = "") -> "Figure":
        """Return a plot as a matplotlib figure.

        Parameters
        ----------
        name : {"depth", "sizes", "distribution", "calibration", "particles"}, optional
            Error by depth, its quantiles and sums along solutions, its distribution, reliability of the predicted
            probability, particles against accuracy. Default: the first of them that these rollouts have figures for.

        Raises
        ------
        UserError
            If there is no such plot; those there are are listed.
        """
        found = audit_plots(self.models, self.provenance["delta_cv"])
        name = name or next(iter(found), "")
        if name not in found:
            raise UserError(
                f"there is no plot {name!r} of these rollouts", f"choose one of: {', '.join(found) or 'none'}"
            )
        return found[name].draw()


def _known(interval: Interval) -> str:
    return NOT_AVAILABLE if math.isnan(interval.estimate) else str(interval)


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
