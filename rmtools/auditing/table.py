"""The table of an audit: one list of rows, each with its figure and how to read it, and a column per model."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rmtools.auditing.metrics import look
from rmtools.auditing.notes import guided_resolved
from rmtools.stats.bellman_error import BellmanSummary
from rmtools.stats.bootstrap import Interval
from rmtools.stats.calibration import CalibrationSummary
from rmtools.stats.path_errors import RatioBound
from rmtools.summary import counted

if TYPE_CHECKING:
    from rmtools.auditing.cost import MeasuredAccuracy
    from rmtools.auditing.model_audit import ModelAudit
    from rmtools.stats.paired import PairedDifference

# Widths of the text: in all, of the first model's column with its intervals, of every other model's.
WIDTH, WIDE, NARROW = 80, 29, 14
NOT_AVAILABLE, NOT_RESOLVED, VACUOUS = "not available", "not resolved", "vacuous: ≤ 0"
SHORT_WORDS = {NOT_AVAILABLE: "-", "at most ": "≤", " / ": "/"}
TERMINALS = {"verifier": "the verifier's", "model": "the model's own"}


def digits(value: Any) -> str:
    """Return a figure to three digits, an interval with its ends."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Row:
    """A row of the table: its label, the path of its figure in a model's audit (as in `METRICS`), and how to read it.

    ``text(found, model)`` makes the cell of what stands at the path.
    """

    label: str
    path: str
    help: str
    text: "Callable[[Any, ModelAudit], str]" = lambda figure, _: digits(figure)

    def cell(self, model: "ModelAudit") -> str | None:
        """Return the figure of ``model`` as text, None if these rollouts do not give it."""
        found = look(model, self.path)
        estimate = found.estimate if isinstance(found, Interval) else found
        if found is None or estimate != estimate or estimate == math.inf:
            counted = self.path.startswith("cost/n_for") and (model.cost.sigma2 or model.cost.influence)
            return NOT_RESOLVED if counted else None
        return self.text(found, model)


@dataclass(frozen=True)
class Line:
    """A row as it is shown, one cell per model."""

    label: str
    cells: tuple[str, ...]
    help: str


def _marked(resolved: bool) -> str:
    return "" if resolved else f" {NOT_RESOLVED}"


def not_negative(found: Interval, *, resolved: bool = True) -> str:
    """Return a mean square or a variance, and whether it is resolved.

    Estimates without bias subtract noise and may be negative: of those only the upper end is told. An interval is cut at 0, which
    keeps its coverage; one that had to be cut does not tell the figure from 0.
    """
    if found.estimate <= 0:
        return (
            NOT_RESOLVED
            if found.high is None or found.high <= 0
            else f"{NOT_RESOLVED}, ≤ {digits(found.high)}"
        )
    reaches = found.low is not None and found.low < 0
    return f"{found.map(lambda x: max(x, 0.0))}{_marked(resolved and not reaches)}"


def _guided(found: BellmanSummary, model: "ModelAudit") -> str:
    share = found.counts.effective_sample_size / max(found.counts.n_resolved, 1)
    return f"{found.corrected.rms} (ESS {share:.0%}){_marked(guided_resolved(model))}"


def _at_least(bound: Interval, _: "ModelAudit") -> str:
    """Return a lower bound of a mean square, which says nothing at or below 0."""
    if bound.estimate <= 0:
        return f"{VACUOUS} ({bound})"
    return str(bound) if bound.low is None or bound.low > 0 else f"{NOT_RESOLVED} ({bound})"


def _ratio_bound(bound: RatioBound, _: "ModelAudit") -> str:
    shown = (bound.quantiles["0.5"].estimate, bound.quantiles["0.95"].estimate, bound.largest)
    return " / ".join(map(digits, shown))


def _ece_auc(found: CalibrationSummary, _: "ModelAudit") -> str:
    auc = found.auc.estimate  # NaN without outcomes of both kinds
    return f"{digits(found.ece)} / {'-' if math.isnan(auc) else digits(auc)}"


def whole(n: Interval, text: Callable[[float], str] = lambda n: f"{math.ceil(n)}") -> str:
    """Return a count with its interval, rounded up unless ``text`` does otherwise."""
    count, *ends = (
        "?" if x is None or not math.isfinite(x) else text(x) for x in (n.estimate, n.low, n.high)
    )
    return f"{count} [{', '.join(ends)}]" if ends != ["?", "?"] else count


def _particles_tv(n: Interval, model: "ModelAudit") -> str:
    if model.cost.counted_from == "tables":
        return f"{whole(n)}, enumerated"
    return f"at most {whole(n)}{_marked(model.cost.influence is None or model.cost.influence.resolved)}"


ROWS = (
    Row(
        "a finished solution is worth",
        "terminal",
        "The verifier's potential, or the model's own last value. Z, σ² and the target refer to it.",
        lambda terminal, _: TERMINALS[terminal],
    ),
    Row(
        "RMS b, enumerated",
        "error/exact/corrected/rms",
        "Root mean square over prefixes of b = log ρ, nats; ρ is the mean value one step later over the value now, 1 for a "
        "consistent model. Exact: the steps of every prefix were enumerated under the policy. Compare models by this row.",
    ),
    Row(
        "RMS b, sampled, corrected",
        "error/sampled",
        "The same from sampled children, with their noise subtracted. A mean square below 0 has root 0. 'Not resolved': half "
        "of the children give another answer; draw more children, and do not quote the figure.",
        lambda found, _: f"{found.corrected.rms}{_marked(found.resolved)}",
    ),
    Row(
        "RMS b, sampled, plug-in",
        "error/sampled/plug_in/rms",
        "The same without the correction: too large by the sampling noise, and so a measure of it.",
    ),
    Row(
        "RMS b where the sampler goes",
        "error/best_guided",
        "The same at the prefixes that the sampler visits: each is weighted with its value over the root's, within prompt "
        "and depth. ESS: the share of equally weighted prefixes that would be as informative.",
        _guided,
    ),
    Row(
        "RMS b, gauge-fixed",
        "error/gauge_fixed/rms",
        "The same without a constant per prompt and depth, which does not affect the sampler: the part of the error that "
        "costs particles. Over prompts whose solutions all have the same length.",
    ),
    Row(
        "mean (rho - 1)^2",
        "error/best/ratio_error/mean_square",
        "Mean squared relative error of one step, unbiased at any number of children. 'Not resolved': the sample does not "
        "tell it from 0.",
        lambda found, _: not_negative(found),
    ),
    Row(
        "mean (rho - 1)^2, at least",
        "error/binned/squared_ratio_error_at_least",
        "A lower bound: without children, errors of both signs in one bin of depth and value cancel. Vacuous: a bound at or "
        "below 0 holds for every model.",
        _at_least,
    ),
    Row(
        "mean b (bias)",
        "error/best/signed_mean",
        "Signed mean of b. Errors of random sign cancel along a solution, a bias of one sign adds up.",
    ),
    Row(
        "sum of b along a solution: mean",
        "error/paths/mean",
        "Mean of Σ b over the steps of one solution: a persistent bias adds up to T times the error.",
    ),
    Row(
        "sum of b along a solution: RMS",
        "error/paths/rms_corrected",
        "Root mean square of Σ b over the steps of one solution: errors of random sign add up to √T times the error.",
    ),
    Row(
        "c = T RMS b",
        "error/best/corrected/c",
        "The value stays within e^±c of the true one. The theorems need c bounded as solutions grow longer.",
    ),
    Row(
        "L, 50% / 95% / max",
        "error/ratio_bound",
        "How much one step changes the value: quantiles of the larger of the ratio and its inverse.",
        _ratio_bound,
    ),
    Row(
        "Brier (constant)",
        "calibration/prefixes",
        "Mean squared error of the predicted probability of success; in brackets the score of always predicting the base "
        "rate, which a useful model beats.",
        lambda found, _: f"{found.brier} ({digits(found.brier_constant)})",
    ),
    Row(
        "ECE / AUC",
        "calibration/prefixes",
        "Mean gap between predicted probability and success rate over ten bins (0 is best, noise adds to it); chance that a "
        "success is ranked above a failure (.5 is a guess).",
        _ece_auc,
    ),
    Row(
        "AUC within prompt and depth",
        "calibration/auc_within",
        "Chance that, of two unfinished prefixes of one prompt and depth, that of a success has the higher value (ties one "
        "half): what resampling can use. A constant and a value of the position have .5; a useful model has more.",
        lambda found, _: str(found),
    ),
    Row(
        "V(s0) minus Z",
        "calibration/root/difference",
        "Value of the prompt minus the mean potential that its solutions reach: 0 for a calibrated start.",
    ),
    Row(
        "sigma^2, pooled",
        "cost/sigma2",
        "The sampler's cost: N particles estimate Z with relative variance σ²/N, with multinomial resampling at every step. "
        "'Not resolved': it, or Z², cannot be told from 0.",
        lambda found, _: not_negative(found.estimate, resolved=found.resolved),
    ),
    Row(
        "sigma^2, ESS ≤ N/2",
        "cost/limiting",
        "The same with resampling when ESS ≤ N/2 (as N grows). 'Undecided': at the N it asks for, the sampler may resample at "
        "other steps; a pilot run is then the prediction. For systematic resampling it is an upper reference.",
        lambda found, _: (
            f"{not_negative(found.sigma2, resolved=found.resolved)}{'' if found.decided else ' (undecided)'}"
        ),
    ),
    Row(
        "sigma^2 of best-of-N",
        "cost/best_of_n",
        "The same without resampling, for independent solutions weighted by their final values: the policy alone.",
        lambda found, _: not_negative(found.estimate, resolved=found.resolved),
    ),
    Row(
        "sigma^2, enumerated",
        "cost/tabulated",
        "The same exactly, for prompts whose solutions were enumerated under the policy and written out as tables. Left out: "
        "the probability of the steps that are not in a table, at most.",
        lambda found, _: (
            f"{not_negative(found.sigma2)} ({counted(found.n_prompts, 'prompt')}, ≤ {found.uncovered:.1%} left out)"
        ),
    ),
    Row(
        "sigma^2 of a perfect value",
        "cost/tabulated/perfect",
        "What the true value would cost on the same tables.",
        lambda found, _: not_negative(found),
    ),
    Row(
        "sigma^2 over a perfect value's",
        "cost/tabulated/ratio",
        "What the model's Bellman error costs: as many times the particles of a perfect value. Below 1 by noise, or as the true "
        "value is not the cheapest: that one also weighs how much the next step can change the value.",
        lambda found, _: not_negative(found),
    ),
    Row(
        "particles for CV of Z {delta_cv:g}",
        "cost/n_for_cv",
        "Particles, rounded up, for this coefficient of variation of the estimate of Z, with multinomial resampling at every "
        "step. Enumerated if there are tables, for the prompts they hold.",
        lambda n, _: whole(n),
    ),
    Row(
        "particles for TV {delta_tv:g}",
        "cost/n_for_tv",
        "Particles, rounded up, for this total variation between output and target. Enumerated if there are "
        "tables; from rollouts it is an upper bound.",
        _particles_tv,
    ),
    Row(
        "particles for TV {delta_tv:g}, Thm 5.1",
        "cost/paper/log10_particles",
        "The paper's worst-case count, with the largest L and error seen. It holds for every model with such bounds; the row "
        "above is for this model.",
        lambda log10, _: f"{10**log10:.0f}" if log10 < 6 else f"1e{log10:.0f}",
    ),
)


def table(models: "Sequence[ModelAudit]", delta_cv: float, delta_tv: float) -> list[Line]:
    """Return the rows that at least one model has a figure for."""
    found = [(row, [row.cell(m) for m in models]) for row in ROWS]
    return [
        Line(
            row.label.format(delta_cv=delta_cv, delta_tv=delta_tv),
            tuple(cell or NOT_AVAILABLE for cell in cells),
            row.help,
        )
        for row, cells in found
        if any(cells)
    ]


def as_text(models: "Sequence[ModelAudit]", delta_cv: float, delta_tv: float) -> str:
    """Return the table in lines of at most 80 characters: two models side by side, the others below, by threes."""
    lines = table(models, delta_cv, delta_tv)
    # Only the first model has intervals here; those of the others are in the files.
    columns = [
        (m.role, *(_briefest(line.cells[k]) if k else line.cells[0] for line in lines))
        for k, m in enumerate(models)
    ]
    blocks = [columns[:2], *(columns[k : k + 3] for k in range(2, len(columns), 3))]
    labels = ("", *(line.label for line in lines))
    texts = []
    for k, block in enumerate(blocks):
        head, *rows = zip(labels, *block, strict=True)
        texts.append(in_columns(head, rows, NARROW if k else WIDE))
    return "\n\n".join(texts)


def in_columns(head: Sequence[str], rows: Sequence[Sequence[str]], first: int | None = None) -> str:
    """Return a table in lines of at most 80 characters; without a width of the ``first`` column a row is one line."""
    text = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for k, name in enumerate(head):
        width = None if first is None or k == 0 else first if k == 1 else NARROW
        text.add_column(name, max_width=width, no_wrap=width is None)
    for row in rows:
        text.add_row(*row)
    out = io.StringIO()
    # Not shown by the console itself, as it would be in a notebook.
    console = Console(
        file=out,
        width=WIDTH,
        color_system=None,
        force_jupyter=False,
        markup=False,
        highlight=False,
        emoji=False,
    )
    console.print(text)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _brief(cell: str) -> str:
    """Return a cell without remarks in round brackets, in short words."""
    text = re.sub(r" \([^)]*\)", "", cell)
    for long, short in SHORT_WORDS.items():
        text = text.replace(long, short)
    return text


def _briefest(cell: str) -> str:
    """Return it without its interval too."""
    return re.sub(r" \[[^\]]*\]", "", _brief(cell))


def sentences(pairs: "Mapping[str, PairedDifference]", measured: "MeasuredAccuracy | None") -> list[str]:
    """Return the paired comparisons, and the accuracy measured at the predicted particles."""
    found = [f"{role}: {_difference(pair)}" for role, pair in pairs.items()]
    return found if measured is None else [*found, _measured(measured)]


def _difference(pair: "PairedDifference") -> str:
    values = (f"{name.replace('_', ' ')} {value}" for name, value in pair.figures().items())
    return f"this model minus that one, paired: {'; '.join(values)}"


def _measured(found: "MeasuredAccuracy") -> str:
    size = f"{counted(found.runs, 'run')} of {counted(found.prompts, 'prompt')}"
    early = "; the prediction is exact from 25 σ² particles on, these are fewer"
    return (
        f"measured with N = {found.n_particles} (predicted for a CV of {found.delta_cv:g}"
        f"{early if 25 * found.delta_cv**2 > 1 else ''}), {size}, multinomial resampling at "
        f"every step: CV of Z {found.cv}; right solutions in the output {found.success:.3g}, in the target "
        f"{found.target_success:.3g}, difference {found.success_difference}"
    )
