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
    """Draw particles for a fixed accuracy against the horizon: lines predicted, points measured.

    Parameters
    ----------
    curves : sequence of mapping
        Cases of the check ``phase transition``.
    """
    with drawing(5.4) as (figure, (ax,)):
        for curve in curves:
            colour, marker, dash = FAMILIES[curve["kind"]]
            x = [row["horizon"] for row in curve["rows"]]
            y = [row["predicted"] for row in curve["rows"]]
            ax.plot(x, y, color=colour, linestyle=dash, linewidth=1.5)
            seen = [row for row in curve["rows"] if row["measured"] is not None]
            ax.errorbar(
                [row["horizon"] for row in seen],
                [row["measured"] for row in seen],
                [1.96 * row["error"] for row in seen],
                color=colour,
                marker=marker,
                markersize=4,
                linestyle="none",
                capsize=2,
            )
            name_curve(ax, curve["label"].replace("epsilon", "ε"), x, y, colour)
        ax.plot([], [], color=GREY, linewidth=1.5, label="predicted: σ² / CV²")
        ax.errorbar([], [], [], color=GREY, marker="o", markersize=4, linestyle="none", label="measured, 95%")
        ax.legend(fontsize=9, loc="lower right")
        most = curves[0]["most_particles"]
        ax.axhline(most, color=GREY, linewidth=0.8, linestyle=":")
        ax.text(690, most / 1.3, "above: predicted only", color=GREY, fontsize=9, ha="right", va="top")
        ax.set(xscale="log", yscale="log", xlim=(4, 700), ylim=(0.3, TOP))
        ax.set(xlabel="horizon T (steps)", ylabel=f"particles N for a CV of Ẑ of {curves[0]['delta_cv']}")
        places = [4, 8, 16, 32, 64, 128, 256]
        ax.set_xticks(places, [str(t) for t in places])
        ax.tick_params(axis="x", which="minor", length=0, labelbottom=False)
        return svg_text(figure)


def name_curve(ax: "Axes", label: str, x: Sequence[float], y: Sequence[float], colour: str) -> None:
    """Write the label where the curve leaves the picture, or at its end."""
    last = max(k for k, value in enumerate(y) if value < TOP)
    if last == len(y) - 1:
        ax.text(x[last] * 1.06, y[last], label, color=colour, va="center", fontsize=9)
        return
    share = np.log(TOP / y[last]) / np.log(y[last + 1] / y[last])
    at = x[last] * (x[last + 1] / x[last]) ** share
    place: dict[str, Any] = {"rotation": 35, "rotation_mode": "anchor", "ha": "left", "va": "bottom"}
    ax.text(at, 1.3 * TOP, label, color=colour, fontsize=9, clip_on=False, **place)


def variance_approach(cases: Sequence[Values]) -> str:
    """Draw N Var(Zhat/Z) / sigma^2 against N / sigma^2.

    Parameters
    ----------
    cases : sequence of mapping
        Cases of the check ``variance``.
    """
    models = list(dict.fromkeys(case["label"].split(",")[0] for case in cases))
    markers = {1: ("o", "-"), 2: ("s", "--"), 4: ("^", ":")}
    with drawing(4.0) as (figure, (ax,)):
        ax.axhspan(0.95, 1.05, color=GREY, alpha=0.15, linewidth=0)
        ax.axhline(1, color=GREY, linewidth=1)
        for case in cases:
            name = case["label"].split(",")[0]
            marker, dash = markers[case["pool"]]
            ax.errorbar(
                [row["n"] / case["sigma2"] for row in case["rows"]],
                [row["ratio"] for row in case["rows"]],
                [1.96 * row["ratio_error"] for row in case["rows"]],
                color=COLOURS[models.index(name)],
                marker=marker,
                markersize=4,
                linestyle=dash,
                linewidth=1,
                capsize=2,
                label=case["label"].replace("_", " "),
            )
        ax.set(xscale="log", xlabel="N / σ²", ylabel="N Var(Ẑ/Z) / σ²")
        ax.legend(fontsize=8, ncols=2)
        return svg_text(figure)


def output_law(cases: Sequence[Values]) -> str:
    """Draw the signed total variation against N: predicted lines, measured points.

    Parameters
    ----------
    cases : sequence of mapping
        Cases of the check ``output law``.
    """
    pools = [case for case in cases if "mad" in case]
    others = [case for case in cases if "slope" in case]
    with drawing(6.4, rows=2) as (figure, (above, below)):
        for case in pools:
            colour = COLOURS[{1: 0, 2: 1, 4: 2}[case["pool"]]]
            n = np.array([row["n"] for row in case["rows"]])
            tv = np.array([row["predicted"] * row["ratio"] for row in case["rows"]])
            error = [1.96 * row["predicted"] * row["ratio_error"] for row in case["rows"]]
            ends = np.array([30.0, 200.0])
            above.plot(ends, case["mad"] / (2 * ends), color=colour, linewidth=1)
            above.errorbar(
                n,
                tv,
                error,
                color=colour,
                marker="osv"[len(case["label"]) % 3],
                markersize=4,
                linestyle="none",
            )
        for k, pool in enumerate(sorted({case["pool"] for case in pools})):
            above.plot([], [], color=COLOURS[k], marker="o", label=f"pool {pool}: line MAD(H)/2N")
        for k, case in enumerate(others):
            rows = case["rows"]
            below.errorbar(
                [row["n"] for row in rows],
                [row["tv"] for row in rows],
                [1.96 * row["error"] for row in rows],
                color=COLOURS[k],
                marker="osv"[k],
                markersize=4,
                label=f"{case['label']}: slope {case['slope']:.2f}",
            )
        for ax in (above, below):
            ax.set(xscale="log", yscale="log", ylabel="signed total variation")
            ax.legend(fontsize=8)
        for ax, places in ((above, (40, 80, 160)), (below, (20, 40, 80, 160, 320))):
            ax.set_xticks(places, [str(n) for n in places])
            ax.tick_params(axis="x", which="minor", length=0, labelbottom=False)
        below.set_xlabel("particles N")
        return svg_text(figure)
