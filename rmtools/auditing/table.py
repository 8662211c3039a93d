"""The audit as a table: a label and one cell a model."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.notes import guided_resolved
from rmtools.stats.bellman_error import BellmanSummary
from rmtools.stats.bootstrap import Interval

if TYPE_CHECKING:
    from rmtools.auditing.cost import MeasuredAccuracy
    from rmtools.auditing.model_audit import ModelAudit
    from rmtools.stats.paired import PairedDifference

NOT_AVAILABLE = "not available"
ENDS = {"verifier": "the verifier's", "model": "the model's own"}


def table(models: "Sequence[ModelAudit]", cv: float, tv: float) -> list[tuple[str, list[str]]]:
    """Return the lines of the table; those that no model has a figure for are left out."""
    lines: list[tuple[str, Callable[[ModelAudit], Any]]] = [
        ("a finished solution is worth", lambda m: ENDS[m.terminal]),
        ("RMS b, enumerated", lambda m: m.exact and m.exact.rms_corrected),
        ("RMS b, sampled, corrected", lambda m: resolved(m.bellman)),
        ("RMS b, sampled, plug-in", lambda m: m.bellman and m.bellman.rms_plug_in),
        ("RMS b where the sampler goes", guided),
        ("RMS b, gauge-fixed", gauge_fixed),
        ("mean (rho - 1)^2", lambda m: m.error and m.error.squared_ratio_error),
        ("mean (rho - 1)^2, at least", lambda m: m.flat and m.flat.squared_ratio_error_at_least),
        ("mean b (bias)", lambda m: m.error and m.error.signed_mean),
        ("sum of b along a solution: mean", lambda m: m.paths and m.paths.mean),
        ("sum of b along a solution: RMS", lambda m: m.paths and m.paths.rms_corrected),
        ("c = T RMS b", lambda m: m.error and m.error.c),
        ("L, 50% / 95% / max", ratio_bound),
        ("Brier (constant)", brier),
        ("ECE / AUC", ece_auc),
        ("V(s0) minus Z", lambda m: m.z and m.z.difference),
        ("sigma^2, pooled", sigma2),
        ("sigma^2, enumerated", enumerated_sigma2),
        ("sigma^2 of a perfect value, enumerated", lambda m: m.tabulated and m.tabulated.perfect),
        ("particles of a perfect value times", lambda m: m.tabulated and m.tabulated.ratio),
        (
            f"particles: CV of Z {cv:g} | TV {tv:g}",
            lambda m: (m.n_for_cv or m.sigma2 or m.influence) and f"{count(m.n_for_cv)} | {particles_tv(m)}",
        ),
        (f"particles of Thm 5.1 for TV {tv:g}", lambda m: m.paper and power(m.paper.log10_particles)),
    ]
    cells = [(label, [cell(m) for m in models]) for label, cell in lines]
    return [(label, [shown(c) for c in row]) for label, row in cells if any(c is not None for c in row)]


def as_text(models: "Sequence[ModelAudit]", cv: float, tv: float) -> str:
    """Return the table as a terminal shows it."""
    rows = [("", [m.role for m in models]), *table(models, cv, tv)]
    # A terminal is narrow: intervals of the first model only, the others have theirs in the files.
    rows = [(label, [cells[0], *map(without_interval, cells[1:])]) for label, cells in rows]
    width = max(len(label) for label, _ in rows)
    columns = [max(len(cells[i]) for _, cells in rows) for i in range(len(models))]
    return "\n".join(
        f"{label:<{width}}  " + "  ".join(f"{c:<{w}}" for c, w in zip(cells, columns, strict=True)).rstrip()
        for label, cells in rows
    )


def without_interval(cell: str) -> str:
    """Return a cell without what stands in brackets."""
    return re.sub(r" \[[^\]]*\]| \((ESS|\d+ prompts).*", "", cell).replace(NOT_AVAILABLE, "-")


def sentences(
    model: "ModelAudit", pairs: "Mapping[str, PairedDifference]", measurement: "MeasuredAccuracy | None"
) -> list[str]:
    """Return the consequence in words, the comparisons, and the accuracy measured beside the one asked for."""
    found = [] if model.tabulated is None else [costs(model.tabulated.ratio)]
    found += [f"{role}: {difference(pair)}" for role, pair in pairs.items()]
    return found if measurement is None else [*found, measured(measurement)]


BELOW_ONE = (
    "; below 1 because the true value is not quite the cheapest one, which also weighs how much the next step can change it, "
    "or by noise"
)


def costs(ratio: Interval) -> str:
    """Return what the model's error costs its user, enumerated."""
    text = f"this model's error costs you {ratio.estimate:.2g}× the particles of a perfect value (enumerated: {ratio})"
    return text + (BELOW_ONE if ratio.estimate < 1 else "")


def difference(pair: Any) -> str:
    """Return the paired differences, the first model minus the other."""
    shown_ = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in vars(pair).items()
        if isinstance(value, Interval)
    ]
    return "this model minus that one, paired: " + "; ".join(shown_)


def measured(found: "MeasuredAccuracy") -> str:
    """Return the accuracy that the sampler had at the predicted particles."""
    early = (
        "; the prediction is exact from 25 σ² particles on, these are fewer"
        if 25 * found.delta_cv**2 > 1
        else ""
    )
    return (
        f"measured with N = {found.n_particles} (predicted for a CV of {found.delta_cv:g}{early}), {found.runs} runs of "
        f"{found.prompts} prompts, multinomial resampling at every step: CV of Z {found.cv}; right solutions in the output "
        f"{found.success:.3g}, in the target {found.target_success:.3g}, difference {found.success_difference}"
    )


def shown(value: Any) -> str:
    """Return a cell's text."""
    nothing = value is None or (isinstance(value, Interval) and not np.isfinite(value.estimate))
    return NOT_AVAILABLE if nothing else str(value)


def resolved(summary: BellmanSummary | None) -> str | None:
    """Return the corrected RMS, marked where the number of children cannot resolve it."""
    if summary is None:
        return None
    return str(summary.rms_corrected) + ("" if summary.resolved else " not resolved")


def gauge_fixed(model: "ModelAudit") -> Interval | None:
    """Return the error without a constant per prompt and depth, where a cell has enough prefixes."""
    found = model.gauge_fixed
    return found.rms if found is not None and found.n_cells else None


def guided(model: "ModelAudit") -> str | None:
    """Return the error under the sampler's weights, and their effective sample size."""
    summary = model.guided_error
    if summary is None:
        return None
    share = summary.effective_sample_size / max(summary.n_resolved, 1)
    mark = "" if guided_resolved(model) else " not resolved"
    return f"{summary.rms_corrected} (ESS {share:.0%}){mark}"


def ratio_bound(model: "ModelAudit") -> str:
    """Return quantiles of L and the largest one."""
    q = model.ratio_bound.quantiles
    return f"{q['0.5'].estimate:.3g} / {q['0.95'].estimate:.3g} / {model.ratio_bound.largest:.3g}"


def brier(model: "ModelAudit") -> str | None:
    """Return the Brier score beside the constant's."""
    c = model.calibration
    return None if c is None else f"{c.brier} ({c.brier_constant:.3g})"


def ece_auc(model: "ModelAudit") -> str | None:
    """Return both, a dash for an AUC without outcomes of both kinds."""
    if model.calibration is None:
        return None
    auc = model.calibration.auc.estimate
    return f"{model.calibration.ece:.3g} / {f'{auc:.3g}' if np.isfinite(auc) else '-'}"


def sigma2(model: "ModelAudit") -> str | None:
    """Return pooled sigma^2, marked where Z^2 is not resolved."""
    if model.sigma2 is None:
        return None
    return str(model.sigma2.estimate) + ("" if model.sigma2.resolved else " not resolved")


def enumerated_sigma2(model: "ModelAudit") -> str | None:
    """Return exact sigma^2, of how many prompts it is, and the most probability that is outside one's table."""
    found = model.tabulated
    if found is None:
        return None
    return f"{found.sigma2} ({found.n_prompts} prompts, {found.uncovered:.1%} or less outside their tables)"


def particles_tv(model: "ModelAudit") -> str:
    """Return the particles for the TV: exactly, or at most; marked where too few trajectories carry the potential."""
    if model.counted_from == "tables":
        return f"{count(model.n_for_tv)}, enumerated"
    marked = model.n_for_tv is not None and model.influence is not None and not model.influence.resolved
    return (
        ("at most " if model.n_for_tv is not None else "") + count(model.n_for_tv) + " not resolved" * marked
    )


def count(n: Interval | None) -> str:
    """Return a number of particles, rounded up."""
    if n is None or not np.isfinite(n.estimate):
        return "not resolved"
    ends = ", ".join("?" if e is None else f"{np.ceil(e):.0f}" for e in (n.low, n.high))
    return f"{np.ceil(n.estimate):.0f} [{ends}]"


def power(log10: float) -> str:
    """Return ten to the ``log10`` as text."""
    return f"{10**log10:.0f}" if log10 < 6 else f"1e{log10:.0f}"
