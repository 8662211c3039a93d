"""Every plot of the reports, as SVG text; the only importer of matplotlib.

The functions take the JSON values of ``audit.json``, ``verify.json`` and ``training_log.json``, so that a report can
be drawn again from its files. Nothing global of matplotlib is touched: no pyplot, no backend switch.

>>> svg = success_bars({"plain": {"estimate": 0.05, "low": 0.04, "high": 0.06}})
>>> svg[:4], "http://purl.org" in svg
('<svg', False)
"""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Mapping[str, Any]

# Okabe and Ito's colours tell apart for the colour-blind; marker and dash say the same without colour.
STYLES = {
    "model": ("trained model", "#0072B2", "o", "-"),
    "constant": ("constant base rate", "#D55E00", "s", "--"),
    "untrained": ("untrained head", "#009E73", "^", ":"),
}
OTHER = ("#CC79A7", "D", "-.")
GREY = "#666666"
STYLE_SHEET: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "rmtools",
}
WIDTH = 5.4


@contextlib.contextmanager
def drawing(height: float, rows: int = 1) -> Iterator[tuple["Figure", list["Axes"]]]:
    """Yield a figure (inches) and its axes, one below the other, under the reports' style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE_SHEET):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, list(np.ravel(figure.subplots(rows, 1)))


def svg_text(figure: "Figure") -> str:
    """Return the figure as an ``<svg>`` element, without document type, metadata or date."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def style_of(role: str) -> tuple[str, str, str, str]:
    """Return label, colour, marker and dash of a model; the same in every plot."""
    return STYLES.get(role, (role, *OTHER))


def number(value: float | None) -> float:
    """Return ``value``, NaN where JSON has null."""
    return math.nan if value is None else float(value)


def whiskers(intervals: Sequence[Values], least: float = -math.inf) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates (n,) and distances (2, n) to the ends; an end that is not available has length 0."""
    middle = np.asarray([number(i["estimate"]) for i in intervals])
    ends = []
    for i, m in zip(intervals, middle, strict=True):
        low, high = (m if i[name] is None else max(i[name], least) for name in ("low", "high"))
        ends.append((max(m - low, 0.0), max(high - m, 0.0)))
    return middle, np.nan_to_num(np.asarray(ends, dtype=float).reshape(-1, 2).T)


def bellman_by_depth(models: Sequence[Values]) -> str:
    """Draw the RMS log Bellman error of each depth, enumerated where every model has it, else sampled.

    Parameters
    ----------
    models : sequence of mapping
        ``models`` of ``audit.json``.
    """
    source = "exact" if all(m["exact"] for m in models) else "bellman"
    with drawing(3.5) as (figure, (ax,)):
        for k, m in enumerate(models):
            label, colour, marker, dash = style_of(m["role"])
            rows = m[source]["by_depth"]
            middle, ends = whiskers([r["rms_corrected"] for r in rows])
            depth = np.asarray([r["depth"] for r in rows]) + 0.12 * (k - (len(models) - 1) / 2)
            ax.errorbar(
                depth,
                middle,
                ends,
                color=colour,
                marker=marker,
                linestyle=dash,
                capsize=3,
                label=label,
                clip_on=False,
                zorder=3,
            )
        ax.set(
            xlabel="depth t (steps taken)",
            ylabel="RMS log Bellman error (nats)",
            title="exact, children enumerated" if source == "exact" else "sampled children, noise-corrected",
        )
        ax.set_ylim(bottom=0)
        ax.set_xticks(range(max((r["depth"] for m in models for r in m[source]["by_depth"]), default=0) + 1))
        ax.margins(y=0.25)
        ax.legend()
        return svg_text(figure)


def reliability(models: Sequence[Values]) -> str:
    """Draw the success rate against the predicted probability of the first model, in bins of equal mass."""
    model = models[0]
    label, colour, marker, dash = style_of(model["role"])
    calibration = model["calibration"]
    with drawing(3.9) as (figure, (ax,)):
        middle, ends = whiskers(calibration["curve_outcome"])
        top = max([*calibration["curve"]["mean_p"], *(middle + ends[1]), 0.05]) * 1.05
        ax.plot([0, top], [0, top], color=GREY, linewidth=1, label="perfectly calibrated")
        ax.errorbar(
            calibration["curve"]["mean_p"],
            middle,
            ends,
            color=colour,
            marker=marker,
            linestyle=dash,
            capsize=3,
            label=label,
        )
        ax.set(
            xlabel="predicted probability of success",
            ylabel="share of solutions that were right",
            xlim=(0, top),
            ylim=(0, top),
        )
        ax.legend(loc="upper left")
        return svg_text(figure)


def error_sizes(models: Sequence[Values]) -> str:
    """Draw the quantiles of the size of b over prefixes, and the sum of b along trajectories."""
    exact = all(m["exact"] for m in models)
    with drawing(5.2, rows=2) as (figure, (sizes, sums)):
        for k, m in enumerate(models):
            summary = m["exact"] if exact else m["bellman"]
            largest = {"estimate": summary["largest"], "low": None, "high": None}
            rows = [*summary["quantiles"].values(), largest]
            side_by_side(sizes, k, len(models), m["role"], rows)
            names = [f"{float(q):.0%}" for q in summary["quantiles"]]
            side_by_side(sums, k, len(models), m["role"], [m["paths"]["mean"], m["paths"]["rms_corrected"]])
        label_categories(sizes, [*names, "largest"])
        label_categories(sums, ["mean (bias)", "RMS, corrected"])
        sizes.set(
            ylabel="|b| (nats)",
            ylim=(0, None),
            title=f"quantiles over prefixes, {'enumerated' if exact else 'sampled, noise included'}",
        )
        sums.axhline(0, color=GREY, linewidth=1)
        sums.set(ylabel="sum of b (nats)", title="summed along trajectories, sampled")
        sizes.legend()
        return svg_text(figure)


def side_by_side(ax: "Axes", k: int, n: int, role: str, intervals: Sequence[Values]) -> None:
    """Draw model ``k`` of ``n`` at the categories, beside the others."""
    label, colour, marker, _ = style_of(role)
    middle, ends = whiskers(intervals)
    at = np.arange(len(middle)) + 0.2 * (k - (n - 1) / 2)
    ax.errorbar(
        at,
        middle,
        ends,
        color=colour,
        marker=marker,
        linestyle="none",
        capsize=3,
        label=label,
        clip_on=False,
        zorder=3,
    )


def label_categories(ax: "Axes", names: Sequence[str]) -> None:
    """Name the categories 0, 1, … of the horizontal axis."""
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.6, len(names) - 0.4)


def particles_for_accuracy(models: Sequence[Values], delta_cv: float) -> str | None:
    """Draw the particles that a coefficient of variation of Z takes, sigma^2 / delta^2.

    Parameters
    ----------
    models : sequence of mapping
    delta_cv : float
        The accuracy that the table speaks of, marked.

    Returns
    -------
    str or None
        None where no model has a positive sigma^2.
    """
    usable = [m for m in models if m["sigma2"] and number(m["sigma2"]["estimate"]["estimate"]) > 0]
    if not usable:
        return None
    delta = np.geomspace(0.05, 1.0, 60)
    with drawing(3.8) as (figure, (ax,)):
        for m in usable:
            label, colour, _, dash = style_of(m["role"])
            cost = m["sigma2"]["estimate"]
            ax.plot(
                delta,
                cost["estimate"] / delta**2,
                color=colour,
                linestyle=dash,
                linewidth=2,
                label=label + ("" if m["sigma2"]["resolved"] else " (not resolved)"),
            )
            if cost["low"] is not None and cost["high"] is not None:
                # A lower end at or below zero has no place on a log axis: the band then runs off the bottom.
                ax.fill_between(
                    delta,
                    max(cost["low"], 1e-9) / delta**2,
                    cost["high"] / delta**2,
                    color=colour,
                    alpha=0.15,
                    linewidth=0,
                )
        least = min(m["sigma2"]["estimate"]["estimate"] for m in usable)
        ax.axvline(delta_cv, color=GREY, linewidth=1)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="coefficient of variation of Z asked for",
            ylabel="particles N",
            xlim=(0.05, 1.0),
        )
        ax.set_ylim(bottom=max(least / 4, 1e-3))
        ax.set_xticks([0.05, 0.1, 0.25, 0.5, 1.0], ["0.05", "0.1", "0.25", "0.5", "1"])
        ax.set_xticks([], minor=True)
        ax.legend(loc="upper right")
        return svg_text(figure)


def plain_ticks(ax: "Axes", low: float, high: float) -> None:
    """Mark 1, 2 and 5 times the powers of ten, as plain numbers, on two logarithmic axes of one range."""
    powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places = [x for power in powers for x in (power, 2 * power, 5 * power) if low <= x <= high]
    names = [f"{x:g}" for x in places]
    for name in ("x", "y"):
        ax.set(**{f"{name}ticks": places, f"{name}ticklabels": names})
        ax.tick_params(axis=name, which="minor", length=0, labelleft=False, labelbottom=False)


CURVES = (
    ("loss", "training loss (nats)"),
    ("eval_rms_log_bellman", "RMS log Bellman\nerror (nats)"),
    ("eval_brier", "Brier score"),
)


def training_curve(rows: Sequence[Values]) -> str:
    """Draw loss, held-out Bellman error and Brier score against the optimiser's steps.

    Parameters
    ----------
    rows : sequence of mapping
        ``training_log.json``. A Bellman error whose corrected mean square is not positive is drawn hollow.
    """
    _, colour, marker, dash = style_of("model")
    with drawing(5.6, rows=len(CURVES)) as (figure, axes):
        for ax, (key, label) in zip(axes, CURVES, strict=True):
            found = [r for r in rows if r.get(key) is not None]
            ax.plot(
                [r["step"] for r in found],
                [r[key] for r in found],
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=4,
            )
            hollow = [r for r in found if key != "loss" and "rms" in key and r[key] <= 0]
            ax.plot(
                [r["step"] for r in hollow],
                [r[key] for r in hollow],
                color=colour,
                linestyle="none",
                marker=marker,
                markerfacecolor="white",
                zorder=3,
            )
            ax.set_ylabel(label)
            ax.set_xlim(0, 1.03 * max((r["step"] for r in rows), default=1))
            ax.set_ylim(bottom=0)
        axes[-1].set_xlabel("optimiser steps (global_step)")
        figure.align_ylabels(axes)
        return svg_text(figure)


def sigma2_scatter(prompts: Sequence[Values], pooled: tuple[float, Values] | None = None) -> str:
    """Draw measured against predicted sigma^2, one point a prompt.

    Parameters
    ----------
    prompts : sequence of mapping
        ``prompts`` of ``verify.json``.
    pooled : tuple, optional
        Predicted, and measured interval, of all prompts together.
    """
    _, colour, marker, _ = style_of("model")
    predicted = [p["sigma2_predicted"] for p in prompts]
    middle, ends = whiskers([p["sigma2_measured"] for p in prompts], least=1e-9)
    points = np.concatenate([predicted, middle])
    low, high = points[points > 0].min() / 1.7, points[points > 0].max() * 1.7
    with drawing(4.3) as (figure, (ax,)):
        ax.plot([low, high], [low, high], color=GREY, linewidth=1, label="measured = predicted")
        ax.errorbar(
            predicted,
            middle,
            ends,
            color=colour,
            marker=marker,
            linestyle="none",
            capsize=3,
            label="one prompt",
        )
        if pooled is not None:
            centre, reach = whiskers([pooled[1]], least=1e-9)
            ax.errorbar(
                [pooled[0]],
                centre,
                reach,
                color="black",
                marker="D",
                markersize=8,
                linestyle="none",
                capsize=5,
                label="all prompts pooled",
            )
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
    """Draw a success rate with its interval for each way of sampling.

    Parameters
    ----------
    rates : mapping
        Label to interval; the first, plain sampling, uses no model and is grey.
    """
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
