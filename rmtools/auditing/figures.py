"""The plots of an audit by name, drawn by `rmtools.plots` from the JSON values of the models."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rmtools import plots
from rmtools.auditing.cost import particles
from rmtools.auditing.first_screen import (
    BEST_OF_N,
    CONSTANT,
    KNOWN_BY,
    PERFECT,
    best_of_n,
    pilot_of,
    theory_of,
)
from rmtools.auditing.model_audit import ModelAudit
from rmtools.auditing.table import whole
from rmtools.codec import to_json
from rmtools.stats.sigma2 import n_for_cv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rmtools.stats.pilot import Pilot


@dataclass(frozen=True)
class AuditPlot:
    """A plot that can be drawn, its caption, and a text for those who cannot see it."""

    draw: "Callable[[], Figure]"
    caption: str
    alternative: str


def audit_plots(models: Sequence[ModelAudit], delta_cv: float) -> dict[str, AuditPlot]:
    """Return the plots that these rollouts have figures for, the one that answers first."""
    values = to_json(models)
    branching = [m for m in values if m["error"]["sampled"]]
    roles = ", ".join(plots.style_of(m["role"])[0] for m in values)
    found = _particles(models, delta_cv)
    if branching:
        found |= {
            "sizes": AuditPlot(
                lambda: plots.error_sizes(branching),
                "Size of the error over prefixes, and added up along solutions: the lower panel is what to compare models by.",
                f"Quantiles of the Bellman error and path sums of {roles}",
            ),
            "distribution": AuditPlot(
                lambda: plots.distributions(branching),
                "Distribution of b over prefixes, and of its sums along solutions: cumulative shares. Right of 0 the value is "
                "too low for what follows, left of 0 too high.",
                f"Distribution of the Bellman error of {roles}",
            ),
            "depth": AuditPlot(
                lambda: plots.bellman_by_depth(branching),
                "RMS log Bellman error by depth, 95% intervals over prompts. A consistent model is at 0 everywhere. Do not "
                "compare models depth by depth: a constant is consistent at every depth but the last, where all of its error is.",
                f"Bellman error by depth of {roles}",
            ),
        }
    if values[0]["calibration"]["prefixes"]:
        found["calibration"] = AuditPlot(
            lambda: plots.reliability(values),
            "Reliability: share of right solutions against the predicted probability, in bins of equal mass; bars are "
            "95% intervals over prompts.",
            "Reliability curve of the trained model",
        )
    return found


def _particles(models: Sequence[ModelAudit], delta_cv: float) -> dict[str, AuditPlot]:
    """Return the first picture: particles of the model, the perfect value, the constant and best-of-N."""
    theory, pilot = theory_of(models), pilot_of(models[0])
    shown = [m.role for m in models if m.role in ("model", CONSTANT) or m.role.startswith("compare")]
    known = dict(theory.sigma2) | {BEST_OF_N: best_of_n(models[0], theory, pilot)}
    curves = {role: cost for role in (*shown, PERFECT, BEST_OF_N) if (cost := known.get(role)) is not None}
    points = None
    if pilot is not None and pilot.n_for_cv is not None:
        points = {"needed": math.ceil(pilot.n_for_cv.estimate), "points": tuple(_points(pilot))}
    if not curves and points is None:
        return {}
    how = KNOWN_BY[theory.resampling]
    text = f"Particles for an accuracy of Z. Lines: theory, {how}, {'enumerated' if theory.enumerated else 'from rollouts'}"
    text += "; best-of-N does not resample" if BEST_OF_N in curves else ""
    text += ". Bands are 95% intervals over prompts" + (
        "; diamonds: the sampler itself, in a pilot." if points else "."
    )
    counts = {plots.style_of(role)[0]: particles(cost, n_for_cv, delta_cv) for role, cost in curves.items()}
    told = ", ".join(f"{name} {whole(n)}" for name, n in counts.items() if n is not None)
    drawn = to_json(curves), delta_cv, to_json(points)
    return {
        "particles": AuditPlot(
            lambda: plots.particles_for_accuracy(*drawn), text, f"Particles for a CV of {delta_cv:g}: {told}"
        )
    }


def _points(pilot: "Pilot") -> Iterator[dict[str, object]]:
    """Yield what 4, 8, 16, ... islands reach, within the picture."""
    for k in range(2, 12):
        cv = pilot.cv(2**k)
        if cv is not None and 0.05 <= cv.estimate <= 0.5:
            yield {"cv": cv, "n": pilot.sampler.n_particles * 2**k}
