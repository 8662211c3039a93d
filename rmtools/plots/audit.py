"""Plots of an audit, from ``audit.json``, as matplotlib figures."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.plots.drawing import (
    GREY,
    STYLES,
    Values,
    drawing,
    label_categories,
    style_of,
    whiskers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _source(models: Sequence[Values]) -> str:
    """Return which summary of the error every model has: the enumerated one, else the sampled one."""
    return "exact" if all(m["error"]["exact"] for m in models) else "sampled"


# A legend that may stand on lines.
BOXED: dict[str, Any] = {
    "loc": "upper right",
    "frameon": True,
    "facecolor": "white",
    "edgecolor": "none",
    "framealpha": 0.85,
}


def bellman_by_depth(models: Sequence[Values]) -> "Figure":
    """Draw the RMS log Bellman error of each depth, enumerated where every model has it, else sampled.

    Parameters
    ----------
    models : sequence of mapping
        ``models`` of ``audit.json``.
    """
    source = _source(models)
    with drawing(3.5) as (figure, (ax,)):
        for k, m in enumerate(models):
            rows = m["error"][source]["by_depth"]
            apart = min(0.12, 0.6 / len(models)) * (k - (len(models) - 1) / 2)
            depth = np.asarray([r["depth"] for r in rows]) + apart
            points(ax, depth, [r["rms_corrected"] for r in rows], m["role"], clip_on=False, zorder=3)
        ax.set(
            xlabel="depth t (steps taken)",
            ylabel="RMS log Bellman error (nats)",
            title="exact, children enumerated" if source == "exact" else "sampled children, noise-corrected",
        )
        ax.set_ylim(bottom=0)
        deepest = max((r["depth"] for m in models for r in m["error"][source]["by_depth"]), default=0)
        ax.set_xticks(range(deepest + 1))
        ax.margins(y=0.25)
        ax.legend()
    return figure


def reliability(models: Sequence[Values]) -> "Figure":
    """Draw the success rate against the predicted probability of the first model, in bins of equal mass."""
    model = models[0]
    calibration = model["calibration"]["prefixes"]
    with drawing(3.9) as (figure, (ax,)):
        middle, ends = whiskers(calibration["curve_outcome"])
        top = max([*calibration["curve"]["mean_p"], *(middle + ends[1]), 0.05]) * 1.05
        ax.plot([0, top], [0, top], color=GREY, linewidth=1, label="perfectly calibrated")
        points(ax, calibration["curve"]["mean_p"], calibration["curve_outcome"], model["role"])
        ax.set(
            xlabel="predicted probability of success",
            ylabel="share of solutions that were right",
            xlim=(0, top),
            ylim=(0, top),
        )
        ax.legend(loc="upper left")
    return figure


def error_sizes(models: Sequence[Values]) -> "Figure":
    """Draw the quantiles of the size of b over prefixes, and the sum of b along trajectories."""
    source = _source(models)
    with drawing(5.2, rows=2) as (figure, (sizes, sums)):
        for k, m in enumerate(models):
            plug_in, paths = m["error"][source]["plug_in"], m["error"]["paths"]
            largest = {"estimate": plug_in["largest"], "low": None, "high": None}
            rows = [*plug_in["quantiles"].values(), largest]
            side_by_side(sizes, k, len(models), m["role"], rows)
            names = [f"{float(q):.0%}" for q in plug_in["quantiles"]]
            side_by_side(sums, k, len(models), m["role"], [paths["mean"], paths["rms_corrected"]])
        label_categories(sizes, [*names, "largest"])
        label_categories(sums, ["mean (bias)", "RMS, corrected"])
        sizes.set(
            ylabel="|b| (nats)",
            ylim=(0, None),
            title=f"quantiles over prefixes, {'enumerated' if source == 'exact' else 'sampled, noise included'}",
        )
        sums.axhline(0, color=GREY, linewidth=1)
        sums.set(ylabel="sum of b (nats)", title="summed along trajectories, sampled")
        sizes.legend()
    return figure


def side_by_side(ax: "Axes", k: int, n: int, role: str, intervals: Sequence[Values]) -> None:
    """Draw model ``k`` of ``n`` at the categories, beside the others."""
    at = np.arange(len(intervals)) + min(0.2, 0.8 / n) * (k - (n - 1) / 2)
    points(ax, at, intervals, role, linestyle="none", clip_on=False, zorder=3)


def points(
    ax: "Axes", at: Sequence[float] | np.ndarray, intervals: Sequence[Values], role: str, **more: Any
) -> None:
    """Draw estimates with their intervals in the style of a model; ``more`` goes to `errorbar`."""
    label, colour, marker, dash = style_of(role)
    style: dict[str, Any] = {
        "color": colour,
        "marker": marker,
        "linestyle": dash,
        "capsize": 3,
        "label": label,
    }
    ax.errorbar(at, *whiskers(intervals), **(style | more))


def particles_for_accuracy(
    curves: Mapping[str, Values], delta_cv: float, pilot: Values | None = None
) -> "Figure":
    """Draw the particles that a coefficient of variation of Z takes, sigma^2 / delta^2, and what pooled pilot runs reach.

    Parameters
    ----------
    curves : mapping of str to mapping
        Role to the interval of its sigma^2, positive; at least one, or points of a pilot.
    delta_cv : float
        The accuracy that the counts are written for.
    pilot : mapping, optional
        ``needed``: its particles for `delta_cv`; ``points``: {``cv``: interval, ``n``} of islands pooled.
    """
    low, high = min(0.05, delta_cv), max(0.5, delta_cv)
    delta = np.geomspace(low, high, 60)
    with drawing(4.2) as (figure, (ax,)):
        for role, cost in sorted(curves.items(), key=lambda item: -float(item[1]["estimate"])):
            label, colour, marker, dash = style_of(role)
            n = float(at_least_one(cost["estimate"], delta_cv))
            own = "this model, theory" if pilot else "this model"
            label = f"{own if role == 'model' else label}: {math.ceil(n):,}"
            style: dict[str, Any] = {
                "color": colour,
                "linestyle": dash,
                "linewidth": 3 if role == "model" else 1.8,
            }
            ax.plot(delta, at_least_one(cost["estimate"], delta), **style)
            ax.plot([delta_cv], [n], marker=marker, markersize=7, label=label, **style)
            if cost["low"] is not None and cost["high"] is not None:
                ends = at_least_one(max(cost["low"], 0.0), delta), at_least_one(cost["high"], delta)
                ax.fill_between(delta, *ends, color=colour, alpha=0.12, linewidth=0)
        if pilot:
            middle, apart = whiskers([p["cv"] for p in pilot["points"]])
            style = {
                "color": STYLES["model"][1],
                "markerfacecolor": "white",
                "linestyle": "none",
                "zorder": 4,
            }
            count, label = [p["n"] for p in pilot["points"]], f"the sampler, in a pilot: {pilot['needed']:,}"
            ax.errorbar(middle, count, xerr=apart, marker="D", capsize=3, label=label, **style)
        ax.axvline(delta_cv, color=GREY, linewidth=1)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="accuracy asked for: coefficient of variation of Z",
            ylabel="particles N",
            xlim=(low, high),
        )
        ax.set_ylim(1, 5 * ax.get_ylim()[1])  # room for the legend
        ticks = [x for x in (0.05, 0.1, 0.2, 0.25, 0.5, 1.0) if low <= x <= high]
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.set_xticks([], minor=True)
        ax.yaxis.set_major_formatter("{x:,.0f}")
        ax.legend(title=f"particles for a CV of {delta_cv:g}", alignment="left", **BOXED)
    return figure


def at_least_one(sigma2: float, delta: float | np.ndarray) -> np.ndarray:
    """Return sigma^2 / delta^2, at least one particle."""
    counts: np.ndarray = np.maximum(sigma2 / np.square(delta), 1.0)
    return counts


def distributions(models: Sequence[Values]) -> "Figure":
    """Draw the cumulative shares of b over prefixes and of its sums along trajectories."""
    with drawing(5.2, rows=2) as (figure, axes):
        for ax, name, what in zip(
            axes,
            ("log_error", "path_sum"),
            ("b at a prefix (nats)", "sum of b along a solution (nats)"),
            strict=True,
        ):
            for m in models:
                label, colour, _, dash = style_of(m["role"])
                found = m["error"]["distribution"]
                if found[name]:
                    ax.plot(
                        found[name], found["level"], color=colour, linestyle=dash, linewidth=2, label=label
                    )
            ax.axvline(0, color=GREY, linewidth=1)
            ax.set(xlabel=what, ylabel="share below", ylim=(0, 1))
        axes[0].legend(loc="upper left")
    return figure


def differences(figures: Mapping[str, Values]) -> "Figure":
    """Draw paired differences with their intervals, each on its own axis, beside 0."""
    with drawing(0.6 + 0.8 * len(figures), rows=len(figures)) as (figure, axes):
        for ax, (name, interval) in zip(axes, figures.items(), strict=True):
            middle, ends = whiskers([interval])
            ax.errorbar(middle, [0], xerr=ends, marker="o", capsize=3)
            ax.axvline(0, color=GREY, linewidth=1)
            ax.set(yticks=[0], yticklabels=[name.replace("_", " ")])
            ax.locator_params(axis="x", nbins=4)
        axes[-1].set(xlabel="a minus b")
    return figure
