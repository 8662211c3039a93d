"""Draw training, sigma^2 predicted and measured, and success of a run as SVG text.

>>> svg = success_bars({"plain": {"estimate": 0.05, "low": 0.04, "high": 0.06}})
>>> svg[:4], "http://purl.org" in svg
('<svg', False)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmtools.plots.drawing import GREY, Values, drawing, plain_ticks, style_of, svg_text, whiskers

CURVES = (
    ("loss", "training loss (nats)"),
    ("eval_rms_log_bellman", "RMS log Bellman\nerror (nats)"),
    ("eval_brier", "Brier score"),
)


def training_curve(rows: Sequence[Values]) -> str:
    """Draw loss, held-out Bellman error and Brier score; a point is hollow where the corrected mean square is not positive."""
    _, colour, marker, dash = style_of("model")
    with drawing(5.6, rows=len(CURVES)) as (figure, axes):
        for ax, (key, label) in zip(axes, CURVES, strict=True):
            found = [r for r in rows if r.get(key) is not None]
            hollow = [r for r in found if "rms" in key and r[key] <= 0]
            line: Any = {"linestyle": dash, "markersize": 4}
            white: Any = {"linestyle": "none", "markerfacecolor": "white", "zorder": 3}
            for points, style in ((found, line), (hollow, white)):
                x, y = [r["step"] for r in points], [r[key] for r in points]
                ax.plot(x, y, color=colour, marker=marker, **style)
            ax.set_ylabel(label)
            ax.set_xlim(0, 1.03 * max((r["step"] for r in rows), default=1))
            ax.set_ylim(bottom=0)
        axes[-1].set_xlabel("optimiser steps (global_step)")
        figure.align_ylabels(axes)
        return svg_text(figure)


def sigma2_scatter(prompts: Sequence[Values], pooled: tuple[float, Values]) -> str:
    """Draw measured against predicted sigma^2 of the prompts of ``verify.json``, and of all prompts pooled."""
    _, colour, marker, _ = style_of("model")
    predicted = [p["sigma2_predicted"] for p in prompts]
    middle, ends = whiskers([p["sigma2_measured"] for p in prompts], least=1e-9)
    points = np.concatenate([predicted, middle])
    low, high = points[points > 0].min() / 1.7, points[points > 0].max() * 1.7
    with drawing(4.3) as (figure, (ax,)):
        ax.plot([low, high], [low, high], color=GREY, linewidth=1, label="measured = predicted")
        blue: Any = {"color": colour, "marker": marker, "linestyle": "none", "capsize": 3}
        ax.errorbar(predicted, middle, ends, **blue, label="one prompt")
        centre, reach = whiskers([pooled[1]], least=1e-9)
        black: Any = {"color": "black", "marker": "D", "markersize": 8, "linestyle": "none", "capsize": 5}
        ax.errorbar([pooled[0]], centre, reach, **black, label="all prompts pooled")
        ax.set(
            xscale="log",
            yscale="log",
            xlim=(low, high),
            ylim=(low, high),
            xlabel="predicted σ² (enumeration)",
            ylabel="measured σ² = N Var(Ẑ)/Z²",
        )
        plain_ticks(ax, low, high)
        ax.legend(loc="upper left")
        return svg_text(figure)


def success_bars(rates: Mapping[str, Values]) -> str:
    """Draw a success rate with its interval for each label; the first, plain sampling, is grey."""
    middle, ends = whiskers(list(rates.values()))
    with drawing(0.9 + 0.55 * len(rates)) as (figure, (ax,)):
        at = np.arange(len(rates))[::-1]
        colours = [GREY, *[style_of("model")[1]] * (len(rates) - 1)]
        ax.barh(at, middle, xerr=ends, color=colours, height=0.6, ecolor="black", capsize=4)
        for y, m, reach in zip(at, middle, ends[1], strict=True):
            ax.text(m + reach + 0.02, y, f"{m:.3f}", va="center")
        ax.set_yticks(at, list(rates))
        ax.set(
            xlim=(0, min(1.15, 1.25 * float(np.nanmax(middle + ends[1])) + 0.05)),
            xlabel="share of prompts solved",
        )
        ax.grid(axis="y", visible=False)
        return svg_text(figure)
