"""The plots of an audit by name, drawn by `rmtools.plots` from the JSON values of the models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rmtools import plots
from rmtools.auditing.model_audit import ModelAudit
from rmtools.codec import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AuditPlot:
    """A plot that can be drawn, its caption, and a text for those who cannot see it."""

    draw: "Callable[[], Figure]"
    caption: str
    alternative: str


def audit_plots(models: Sequence[ModelAudit], delta_cv: float) -> dict[str, AuditPlot]:
    """Return the plots that these rollouts have figures for."""
    values = to_json(models)
    branching = [m for m in values if m["error"]["sampled"]]
    roles = ", ".join(plots.style_of(m["role"])[0] for m in values)
    found = {}
    if branching:
        found = {
            "depth": AuditPlot(
                lambda: plots.bellman_by_depth(branching),
                "RMS log Bellman error by depth, 95% intervals over prompts. A consistent model is at 0 everywhere.",
                f"Bellman error by depth of {roles}",
            ),
            "sizes": AuditPlot(
                lambda: plots.error_sizes(branching),
                "Size of the error over prefixes, and added up along solutions.",
                f"Quantiles of the Bellman error and path sums of {roles}",
            ),
            "distribution": AuditPlot(
                lambda: plots.distributions(branching),
                "Distribution of b over prefixes, and of its sums along solutions: cumulative shares. Right of 0 the value is "
                "too low for what follows, left of 0 too high.",
                f"Distribution of the Bellman error of {roles}",
            ),
        }
    if values[0]["calibration"]["prefixes"]:
        found["calibration"] = AuditPlot(
            lambda: plots.reliability(values),
            "Reliability: share of right solutions against the predicted probability, in bins of equal mass; bars are "
            "95% intervals over prompts.",
            "Reliability curve of the trained model",
        )
    if plots.with_sigma2(values):
        found["particles"] = AuditPlot(
            lambda: plots.particles_for_accuracy(values, delta_cv),
            f"Particles against accuracy, N = σ²/δ²; the grey line is the table's δ = {delta_cv:g}. Bands are 95% intervals.",
            f"Particles against accuracy of {roles}",
        )
    return found
