"""The main table of an audit: one list of rows, each with its figure and how to read it, one column per model."""

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.notes import guided_resolved
from rmtools.stats.bootstrap import Interval

if TYPE_CHECKING:
    from rmtools.auditing.cost import MeasuredAccuracy
    from rmtools.auditing.model_audit import ModelAudit
    from rmtools.stats.paired import PairedDifference

# Columns after the first are at most SHORT wide, so that three controls stand side by side.
WIDTH, SHORT = 80, 14
NOT_AVAILABLE, UNRESOLVED = "not available", " not resolved"
TERMINALS = {"verifier": "the verifier's", "model": "the model's own"}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes
    ----------
    label : str
        May name ``{delta_cv}`` and ``{delta_tv}``.
    cell : callable
        The figure of a model, None if these rollouts do not give it. A row without any figure is left out.
    help : str
        How to read it.
    """

    label: str
    cell: Callable[["ModelAudit"], object]
    help: str


@dataclass(frozen=True)
class Line:
    """A row as it is shown, one cell per model."""

    label: str
    cells: tuple[str, ...]
    help: str


def _sampled(model: "ModelAudit") -> str | None:
    summary = model.error.sampled
    return None if summary is None else f"{summary.corrected.rms}{'' if summary.resolved else UNRESOLVED}"


def _guided(model: "ModelAudit") -> str | None:
    summary = model.error.best_guided
    if summary is None:
        return None
    share = summary.counts.effective_sample_size / max(summary.counts.n_resolved, 1)
    return f"{summary.corrected.rms} (ESS {share:.0%}){'' if guided_resolved(model) else UNRESOLVED}"


def _gauge_fixed(model: "ModelAudit") -> Interval | None:
    found = model.error.gauge_fixed
    return found.rms if found is not None and found.n_cells else None


def _ratio_bound(model: "ModelAudit") -> str:
    bound = model.error.ratio_bound
    shown = (bound.quantiles["0.5"].estimate, bound.quantiles["0.95"].estimate, bound.largest)
    return " / ".join(f"{x:.3g}" for x in shown)


def _brier(model: "ModelAudit") -> str | None:
    found = model.calibration.prefixes
    return None if found is None else f"{found.brier} ({found.brier_constant:.3g})"


def _ece_auc(model: "ModelAudit") -> str | None:
    found = model.calibration.prefixes
    if found is None:
        return None
    auc = found.auc.estimate  # NaN without outcomes of both kinds
    return f"{found.ece:.3g} / {f'{auc:.3g}' if np.isfinite(auc) else '-'}"


def _sigma2(model: "ModelAudit") -> str | None:
    found = model.cost.sigma2
    return None if found is None else f"{found.estimate}{'' if found.resolved else UNRESOLVED}"


def _tabulated(model: "ModelAudit") -> str | None:
    found = model.cost.tabulated
    if found is None:
        return None
    return f"{found.sigma2} ({found.n_prompts} prompts, ≤ {found.uncovered:.1%} left out)"


def _particles_cv(model: "ModelAudit") -> str | None:
    cost = model.cost
    return _count(cost.n_for_cv) if cost.n_for_cv or cost.sigma2 or cost.influence else None


def _particles_tv(model: "ModelAudit") -> str | None:
    cost = model.cost
    if _particles_cv(model) is None:
        return None
    if cost.counted_from == "tables":
        return f"{_count(cost.n_for_tv)}, enumerated"
    if cost.n_for_tv is None:
        return _count(None)
    marked = cost.influence is not None and not cost.influence.resolved
    return f"at most {_count(cost.n_for_tv)}{UNRESOLVED if marked else ''}"


def _count(n: Interval | None) -> str:
    """Return a number of particles, rounded up."""
    if n is None or not np.isfinite(n.estimate):
        return "not resolved"
    ends = ", ".join("?" if e is None else f"{np.ceil(e):.0f}" for e in (n.low, n.high))
    return f"{np.ceil(n.estimate):.0f} [{ends}]"


def _theorem(model: "ModelAudit") -> str | None:
    if model.cost.paper is None:
        return None
    log10 = model.cost.paper.log10_particles
    return f"{10**log10:.0f}" if log10 < 6 else f"1e{log10:.0f}"


ROWS = (
    Row(
        "a finished solution is worth",
        lambda m: TERMINALS[m.terminal],
        "To the model and to the controls: the verifier's potential, or the model's own last value. Z, σ² and the target "
        "refer to it.",
    ),
    Row(
        "RMS b, enumerated",
        lambda m: m.error.exact and m.error.exact.corrected.rms,
        "Root mean square over prefixes of b = log ρ, where ρ is the mean value one step later over the value now; in "
        "nats, 0 for a consistent model. Exact: the steps of every prefix were enumerated under the policy. Compare models "
        "by this row.",
    ),
    Row(
        "RMS b, sampled, corrected",
        _sampled,
        "The same from sampled children, with their noise subtracted. A mean square below 0 has root 0. 'Not resolved': half "
        "of the children give another answer; draw more children, and do not quote the figure.",
    ),
    Row(
        "RMS b, sampled, plug-in",
        lambda m: m.error.sampled and m.error.sampled.plug_in.rms,
        "The same without the correction: too large by the sampling noise, and so a measure of it.",
    ),
    Row(
        "RMS b where the sampler goes",
        _guided,
        "The same at the prefixes that the sampler visits: each is weighted with its value over the root's, within prompt "
        "and depth. ESS: the share of equally weighted prefixes that would be as informative.",
    ),
    Row(
        "RMS b, gauge-fixed",
        _gauge_fixed,
        "The same without a constant per prompt and depth, which does not affect the sampler: the part of the error that "
        "costs particles. Over prompts whose solutions all have the same length.",
    ),
    Row(
        "mean (rho - 1)^2",
        lambda m: m.error.best and m.error.best.ratio_error.mean_square,
        "Mean squared relative error of one step, unbiased at any number of children.",
    ),
    Row(
        "mean (rho - 1)^2, at least",
        lambda m: m.error.binned and m.error.binned.squared_ratio_error_at_least,
        "A lower bound. Without children only errors averaged over bins of depth and value can be seen; errors of both signs "
        "in one bin cancel.",
    ),
    Row(
        "mean b (bias)",
        lambda m: m.error.best and m.error.best.signed_mean,
        "Signed mean of b. Errors of random sign cancel along a solution, a bias of one sign adds up.",
    ),
    Row(
        "sum of b along a solution: mean",
        lambda m: m.error.paths and m.error.paths.mean,
        "Mean of Σ b over the steps of one solution: a persistent bias adds up to T times the error.",
    ),
    Row(
        "sum of b along a solution: RMS",
        lambda m: m.error.paths and m.error.paths.rms_corrected,
        "Root mean square of Σ b over the steps of one solution: errors of random sign add up to √T times the error.",
    ),
    Row(
        "c = T RMS b",
        lambda m: m.error.best and m.error.best.corrected.c,
        "Steps of a solution times the error: with b of this size throughout, the value stays within e^±c of the true one. "
        "The theorems need c bounded as solutions grow longer.",
    ),
    Row(
        "L, 50% / 95% / max",
        _ratio_bound,
        "How much one step changes the value: quantiles of the larger of the ratio and its inverse.",
    ),
    Row(
        "Brier (constant)",
        _brier,
        "Mean squared error of the predicted probability of success; in brackets the score of always predicting the base "
        "rate, which a useful model beats.",
    ),
    Row(
        "ECE / AUC",
        _ece_auc,
        "Mean gap between predicted probability and success rate over ten bins (0 is best, noise adds to it); chance that a "
        "success is ranked above a failure (.5 is a guess).",
    ),
    Row(
        "V(s0) minus Z",
        lambda m: m.calibration.root and m.calibration.root.difference,
        "Value of the prompt minus the mean potential that its solutions reach: 0 for a calibrated start.",
    ),
    Row(
        "sigma^2, pooled",
        _sigma2,
        "The sampler's cost: N particles estimate Z with relative variance σ²/N, with multinomial resampling at every step.",
    ),
    Row(
        "sigma^2, enumerated",
        _tabulated,
        "The same exactly, for prompts whose solutions were enumerated under the policy and written out as tables. Left out: "
        "the probability of the steps that are not in a table, at most.",
    ),
    Row(
        "sigma^2 of a perfect value",
        lambda m: m.cost.tabulated and m.cost.tabulated.perfect,
        "What the true value would cost on the same tables.",
    ),
    Row(
        "sigma^2 over a perfect value's",
        lambda m: m.cost.tabulated and m.cost.tabulated.ratio,
        "What the model's Bellman error costs: as many times the particles of a perfect value.",
    ),
    Row(
        "particles for CV of Z {delta_cv:g}",
        _particles_cv,
        "Particles, rounded up, for this coefficient of variation of the estimate of Z.",
    ),
    Row(
        "particles for TV {delta_tv:g}",
        _particles_tv,
        "Particles, rounded up, for this total variation between output and target. Enumerated if the tables hold every "
        "prompt; from rollouts it is an upper bound.",
    ),
    Row(
        "particles for TV {delta_tv:g}, Thm 5.1",
        _theorem,
        "The paper's worst-case count, with the largest L and error seen. It holds for every model with such bounds; the row "
        "above is for this model.",
    ),
)


def table(models: "Sequence[ModelAudit]", delta_cv: float, delta_tv: float) -> list[Line]:
    """Return the rows that at least one model has a figure for."""
    found = [(row, [row.cell(m) for m in models]) for row in ROWS]
    return [
        Line(
            row.label.format(delta_cv=delta_cv, delta_tv=delta_tv),
            tuple(_text(cell) for cell in cells),
            row.help,
        )
        for row, cells in found
        if any(cell is not None for cell in cells)
    ]


def _text(value: Any) -> str:
    missing = value is None or (isinstance(value, Interval) and not np.isfinite(value.estimate))
    return NOT_AVAILABLE if missing else str(value)


def as_text(models: "Sequence[ModelAudit]", delta_cv: float, delta_tv: float) -> str:
    """Return the table in lines of at most 80 characters; models that do not fit beside the others stand below them."""
    lines = table(models, delta_cv, delta_tv)
    width = max(len(line.label) for line in lines)
    room = WIDTH - width
    columns = [
        # Only the first model has intervals here; those of the others are in the files.
        [
            textwrap.wrap(_short(cell), SHORT, break_long_words=False) if k else textwrap.wrap(cell, room - 2)
            for cell in (m.role, *(line.cells[k] for line in lines))
        ]
        for k, m in enumerate(models)
    ]
    widths = [2 + max(len(part) for cell in column for part in cell) for column in columns]
    out: list[str] = []
    start = 0
    while start < len(models):
        end = start + 1
        while end < len(models) and sum(widths[start : end + 1]) <= room:
            end += 1
        for label, *cells in zip(("", *(line.label for line in lines)), *columns[start:end], strict=True):
            for parts in zip_longest([label], *cells, fillvalue=""):
                first, *rest = parts
                out.append(
                    f"{first:<{width}}"
                    + "".join(f"  {p:<{w - 2}}" for p, w in zip(rest, widths[start:end], strict=True))
                )
        out.append("")
        start = end
    return "\n".join(line.rstrip() for line in out[:-1])


def _short(cell: str) -> str:
    """Return a cell without intervals and remarks in brackets, in short words."""
    cell = re.sub(r" \[[^\]]*\]| \([^)]*\)", "", cell)
    for long, short in (
        (NOT_AVAILABLE, "-"),
        ("at most ", "≤"),
        ("not resolved", "unresolved"),
        (" / ", "/"),
    ):
        cell = cell.replace(long, short)
    return cell


def sentences(
    model: "ModelAudit", pairs: "Mapping[str, PairedDifference]", measured: "MeasuredAccuracy | None"
) -> list[str]:
    """Return what the error costs, the paired comparisons, and the accuracy measured at the predicted particles."""
    found = [] if model.cost.tabulated is None else [_consequence(model.cost.tabulated.ratio)]
    found += [f"{role}: {_difference(pair)}" for role, pair in pairs.items()]
    return found if measured is None else [*found, _measured(measured)]


def _consequence(ratio: Interval) -> str:
    text = f"this model's error costs you {ratio.estimate:.2g}× the particles of a perfect value (enumerated: {ratio})"
    if ratio.estimate >= 1:
        return text
    return (
        f"{text}; a ratio below 1 is noise, or due to the true value not being the cheapest one: the cheapest also weighs "
        "how much the next step can change the value"
    )


def _difference(pair: "PairedDifference") -> str:
    values = {name: value for name, value in vars(pair).items() if isinstance(value, Interval)}
    return "this model minus that one, paired: " + "; ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in values.items()
    )


def _measured(found: "MeasuredAccuracy") -> str:
    early = "; the prediction is exact from 25 σ² particles on, these are fewer"
    return (
        f"measured with N = {found.n_particles} (predicted for a CV of {found.delta_cv:g}"
        f"{early if 25 * found.delta_cv**2 > 1 else ''}), {found.runs} runs of {found.prompts} prompts, multinomial "
        f"resampling at every step: CV of Z {found.cv}; right solutions in the output {found.success:.3g}, in the target "
        f"{found.target_success:.3g}, difference {found.success_difference}"
    )
