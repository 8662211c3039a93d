"""Plots of `verify exact`, from its JSON values, as SVG text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.plots.drawing import GREY, OTHER, STYLES, Values, drawing, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = [style[1] for style in STYLES.values()]
TOP = 1e8  # particles
FAMILIES = {
    "none": (OTHER[0], OTHER[1], "-."),
    "constant": (COLOURS[1], "s", "--"),
    "scaled": (COLOURS[0], "o", "-"),
}


def phase_transition(curves: Sequence[Values]) -> str:
    """Draw particles for a fixed accuracy against the horizon (lines predicted, points measured).

    ``curves`` are the cases of the check ``phase transition``.
    """
    with drawing(5.4) as (figure, (ax,)):
        for curve in curves:
            colour, marker, dash = FAMILIES[curve["kind"]]
            x = [row["horizon"] for row in curve["rows"]]
            y = [row["predicted"] for row in curve["rows"]]
            ax.plot(x, y, color=colour, linestyle=dash, linewidth=1.5)
            seen = [row for row in curve["rows"] if row["measured"] is not None]
            measured, error = ([row[name] for row in seen] for name in ("measured", "error"))
            horizons = [row["horizon"] for row in seen]
            _points(ax, horizons, measured, error, colour, marker, linestyle="none", capsize=2)
            _name_curve(ax, curve["label"].replace("epsilon", "ε"), x, y, colour)
        ax.plot([], [], color=GREY, linewidth=1.5, label="predicted: σ² / CV²")
        ax.errorbar([], [], [], color=GREY, marker="o", markersize=4, linestyle="none", label="measured, 95%")
        ax.legend(fontsize=9, loc="lower right")
        most = curves[0]["most_particles"]
        ax.axhline(most, color=GREY, linewidth=0.8, linestyle=":")
        ax.text(690, most / 1.3, "above: predicted only", color=GREY, fontsize=9, ha="right", va="top")
        ax.set(xscale="log", yscale="log", xlim=(4, 700), ylim=(0.3, TOP))
        ax.set(xlabel="horizon T (steps)", ylabel=f"particles N for a CV of Ẑ of {curves[0]['delta_cv']}")
        _mark(ax, (4, 8, 16, 32, 64, 128, 256))
        return svg_text(figure)


def variance_approach(cases: Sequence[Values]) -> str:
    """Draw N Var(Zhat/Z) / sigma^2 against N / sigma^2 from the cases of the check ``variance``."""
    models = list(dict.fromkeys(case["label"].split(",")[0] for case in cases))
    markers = {1: ("o", "-"), 2: ("s", "--"), 4: ("^", ":")}
    with drawing(4.0) as (figure, (ax,)):
        ax.axhspan(0.95, 1.05, color=GREY, alpha=0.15, linewidth=0)
        ax.axhline(1, color=GREY, linewidth=1)
        for case in cases:
            colour = COLOURS[models.index(case["label"].split(",")[0])]
            marker, dash = markers[case["pool"]]
            n, ratio, error = ([row[name] for row in case["rows"]] for name in ("n", "ratio", "ratio_error"))
            style = {
                "linestyle": dash,
                "linewidth": 1,
                "capsize": 2,
                "label": case["label"].replace("_", " "),
            }
            _points(ax, [x / case["sigma2"] for x in n], ratio, error, colour, marker, **style)
        ax.set(xscale="log", xlabel="N / σ²", ylabel="N Var(Ẑ/Z) / σ²")
        ax.legend(fontsize=8, ncols=2)
        return svg_text(figure)


def output_law(cases: Sequence[Values]) -> str:
    """Draw the signed total variation against N (lines predicted, points measured) from the check ``output law``."""
    pools = [case for case in cases if "mad" in case]
    others = [case for case in cases if "slope" in case]
    with drawing(6.4, rows=2) as (figure, (above, below)):
        for case in pools:
            colour, rows = COLOURS[{1: 0, 2: 1, 4: 2}[case["pool"]]], case["rows"]
            tv = [row["predicted"] * row["ratio"] for row in rows]
            error = [row["predicted"] * row["ratio_error"] for row in rows]
            ends = np.array([30.0, 200.0])
            above.plot(ends, case["mad"] / (2 * ends), color=colour, linewidth=1)
            marker = "osv"[len(case["label"]) % 3]
            _points(above, [row["n"] for row in rows], tv, error, colour, marker, linestyle="none")
        for k, pool in enumerate(sorted({case["pool"] for case in pools})):
            above.plot([], [], color=COLOURS[k], marker="o", label=f"pool {pool}: line MAD(H)/2N")
        for k, case in enumerate(others):
            n, tv, error = ([row[name] for row in case["rows"]] for name in ("n", "tv", "error"))
            label = f"{case['label']}: slope {case['slope']:.2f}"
            _points(below, n, tv, error, COLOURS[k], "osv"[k], label=label)
        for ax, places in ((above, (40, 80, 160)), (below, (20, 40, 80, 160, 320))):
            ax.set(xscale="log", yscale="log", ylabel="signed total variation")
            ax.legend(fontsize=8)
            _mark(ax, places)
        below.set_xlabel("particles N")
        return svg_text(figure)


def _points(
    ax: "Axes",
    x: Sequence[float],
    y: Sequence[float],
    error: Sequence[float],
    colour: str,
    marker: str,
    **style: Any,
) -> None:
    """Draw points with 95% intervals."""
    ax.errorbar(x, y, [1.96 * e for e in error], color=colour, marker=marker, markersize=4, **style)


def _mark(ax: "Axes", places: Sequence[int]) -> None:
    """Mark these places, and no others, on the horizontal axis."""
    ax.set_xticks(places, [str(place) for place in places])
    ax.tick_params(axis="x", which="minor", length=0, labelbottom=False)


def _name_curve(ax: "Axes", label: str, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    """Write the label where the curve leaves the picture, or at its end."""
    last = max(k for k, value in enumerate(y) if value < TOP)
    if last == len(y) - 1:
        ax.text(x[last] * 1.06, y[last], label, color=colour, va="center", fontsize=9)
        return
    share = np.log(TOP / y[last]) / np.log(y[last + 1] / y[last])
    at = x[last] * (x[last + 1] / x[last]) ** share
    place: dict[str, Any] = {"rotation": 35, "rotation_mode": "anchor", "ha": "left", "va": "bottom"}
    ax.text(at, 1.3 * TOP, label, color=colour, fontsize=9, clip_on=False, **place)
