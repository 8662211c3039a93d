"""The audit's report: every figure of a model, its controls and the models it is compared with."""

import html
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.auditing.cost import MeasuredAccuracy
from rmtools.auditing.figures import audit_plots
from rmtools.auditing.first_screen import Fact, FirstScreen, first_screen
from rmtools.auditing.metrics import records
from rmtools.auditing.model_audit import ModelAudit
from rmtools.auditing.next_step import NextStep
from rmtools.auditing.notes import of_another
from rmtools.auditing.table import WIDTH, as_text, sentences
from rmtools.codec import load_json, save_json
from rmtools.errors import UserError
from rmtools.plots.page import Table, html_table
from rmtools.stats.paired import PairedDifference
from rmtools.summary import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

JSON_FILE = "audit.json"
SCHEMA_VERSION = 4
LABELS = 17  # width of the labels of a printed report


@dataclass(frozen=True)
class AuditReport:
    """The audit of a model, its controls and the models it is compared with, on the same rollouts.

    Printed, it answers first: a verdict, at most ten lines, and what to do next; `table` returns every row.

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
    next : NextStep or None
        What to do with the model: sample, calibrate, train or draw more data, why, and the command. None in audits before 0.2.0.

    Examples
    --------
    >>> import rmtools as rm
    >>> report: rm.AuditReport = rm.audit("rollouts", "prm", controls=False)
    >>> report.model.role, report.provenance["n_prompts"], report.first_screen().verdict[-1]
    ('model', 24, '.')
    """

    models: tuple[ModelAudit, ...]
    pairs: dict[str, PairedDifference]
    provenance: dict[str, Any]
    uncovered: dict[str, float] | None
    warnings: tuple[str, ...]
    measured: MeasuredAccuracy | None = None
    next: NextStep | None = None

    @property
    def model(self) -> ModelAudit:
        """The audited model."""
        return self.models[0]

    @property
    def of_another(self) -> tuple[str, ...]:
        """The warnings that the figures are of another policy or law of sampling than the checkpoint's."""
        return of_another(self.warnings)

    @property
    def about_model(self) -> tuple[str, ...]:
        """How a published reward model is read, what its p means, the mass of its labels; () for one trained here."""
        about = self.provenance.get("published") or {}
        mass = about.get("label_mass")
        return tuple(text for text in (about.get("sentence"), mass and f"{mass}.") if text)

    def __repr__(self) -> str:
        p = self.provenance
        return f"<AuditReport of {p['checkpoint']}: {counted(len(self.models), 'model')}, {counted(p['n_prompts'], 'prompt')}>"

    def first_screen(self) -> FirstScreen:
        """Return the verdict, at most ten lines and what to do next, which terminal, notebook, page and model card lay out."""
        found = first_screen(self.models, self.provenance, self.warnings, self.pairs, self.measured)
        return replace(found, facts=(*found.facts, self.next.fact())) if self.next else found

    def __str__(self) -> str:
        return f"{self.answer()}\n{self._pointer()}"

    def answer(self) -> str:
        """Return title, verdict and lines of the first screen, in lines of at most 80 characters."""
        screen = self.first_screen()
        warned = (*self.about_model, *(f"WARNING: {text}" for text in self.of_another))
        return "\n".join(
            [
                self._title(),
                *(line for text in (*warned, screen.verdict) for line in textwrap.wrap(text, WIDTH)),
                *(line for fact in screen.facts for line in _lines(fact)),
            ]
        )

    def _repr_html_(self) -> str:
        screen = self.first_screen()
        above = [*self.about_model, *(f"WARNING: {text}" for text in self.of_another), screen.verdict]
        rows = tuple((f.label, f.figure, f"{f.remark} {f.command}".strip()) for f in screen.facts)
        paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in above)
        return f"{paragraphs}{html_table(Table(self._title(), ('', '', ''), rows))}<p>{html.escape(self._pointer())}</p>"

    def _title(self) -> str:
        """Return what was audited, in at most 80 characters."""
        p = self.provenance
        size = f": {counted(p['n_trajectories'], 'solution')} of {counted(p['n_prompts'], 'prompt')}"
        size += f", terminal {self.model.terminal}" + (", no intervals" if p["n_prompts"] == 1 else "")
        name, room = " ".join(p["checkpoint"].split()), WIDTH - len(f"Audit of {size}")
        return f"Audit of {name if len(name) <= room else f'…{name[1 - room :]}'}{size}"

    def _pointer(self) -> str:
        n = len(self.warnings)
        return f"{counted(n, 'warning')} (report.warnings); every row: report.table()"

    def table(self) -> str:
        """Return every row for every model, then the comparisons, in lines of at most 80 characters."""
        p = self.provenance
        text = as_text(self.models, p["delta_cv"], p["delta_tv"])
        return "\n".join([text, *(textwrap.fill(x, WIDTH) for x in sentences(self.pairs, self.measured))])

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
        name : {"particles", "sizes", "distribution", "depth", "calibration"}, optional
            Particles against accuracy; the error's quantiles and sums along solutions, its distribution, by depth; reliability of
            the predicted probability. Default: the first of them that these rollouts have figures for.

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


def _lines(fact: Fact) -> list[str]:
    """Return a fact in a line of at most 80 characters; a command that does not fit stands in lines of its own."""
    start = f"{fact.label:<{LABELS}}{fact.figure}  " if fact.figure else f"{fact.label} "
    whole = f"{start}{fact.remark} {fact.command}".rstrip()
    if not fact.command or len(whole) <= WIDTH:
        return [_cut(whole)]
    indent = " " * LABELS
    flags = fact.command.replace(" -", "\0-").split("\0")  # a flag and its value stay together
    goes_on = " \\" if fact.command.startswith("rmtools ") else ""  # a whole command can be pasted
    lines = [indent + flags[0]]
    for flag in flags[1:]:
        fits = len(lines[-1]) + 1 + len(flag) + len(goes_on) <= WIDTH
        lines[-1:] = [f"{lines[-1]} {flag}"] if fits else [lines[-1] + goes_on, indent + flag]
    return [*textwrap.wrap(f"{start}{fact.remark}", WIDTH, subsequent_indent=indent), *lines]


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


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
