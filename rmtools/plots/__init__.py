"""Every plot of the reports; the only importer of matplotlib. An audit's are figures, the others SVG text or a file.

The functions take the JSON values of the reports, so that a report can be drawn again from its files.
"""

from rmtools.plots.audit import (
    bellman_by_depth,
    differences,
    distributions,
    error_sizes,
    particles_for_accuracy,
    reliability,
)
from rmtools.plots.drawing import FORMS, style_of, svg_text
from rmtools.plots.exact import output_law, phase_transition, variance_approach
from rmtools.plots.trace import trace_picture

__all__ = [
    "FORMS",
    "bellman_by_depth",
    "differences",
    "distributions",
    "error_sizes",
    "output_law",
    "particles_for_accuracy",
    "phase_transition",
    "reliability",
    "style_of",
    "svg_text",
    "trace_picture",
    "variance_approach",
]
