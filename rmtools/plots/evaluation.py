"""Plots of evaluations, from the values of ``evaluate.json``, as SVG text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmtools.plots.drawing import GREY, Values, drawing, number, svg_text, whiskers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Label, colour, marker, dash.
METHODS = {
    "oracle": ("one of n is right", "#000000", "P", ":"),
    "best_of_n": ("best of n", "#0072B2", "o", "-"),
    "weighted_majority": ("weighted majority", "#E69F00", "v", "--"),
    "majority": ("majority", "#D55E00", "s", "--"),
    "pass_at_1": ("one sample", GREY, "X", "-."),
}


def tokens(value: float | None) -> str:
    """Return a number of tokens in a few characters.

    >>> tokens(512.0), tokens(40321.0), tokens(3.2e6), tokens(None)
    ('512', '40k', '3.2M', '?')
    """
    if value is None:
        return "?"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2g}{letter}" if value < 10 * size else f"{value / size:.0f}{letter}"
    return f"{value:.0f}"


def accuracy_over_n(curve: Sequence[Values]) -> str:
    """Draw the share of problems solved against samples per problem, with the tokens they take.

    Parameters
    ----------
    curve : sequence of mapping
        ``curve`` of ``evaluate.json``.
    """
    n = [point["n"] for point in curve]
    with drawing(4.2) as (figure, (ax,)):
        for name, (label, colour, marker, dash) in METHODS.items():
            if name not in curve[0]["methods"]:
                continue
            rows = [point["methods"][name] for point in curve]
            middle, low, high = (
                np.asarray([number(r[e]) for r in rows]) for e in ("estimate", "low", "high")
            )
            if name == "best_of_n":
                ax.fill_between(n, low, high, color=colour, alpha=0.12, linewidth=0)
            ax.plot(n, middle, color=colour, marker=marker, markersize=5, linestyle=dash, label=label)
        known = {key for key in ("generated_tokens", "verifier_tokens") if curve[0][key] is not None}
        names = [
            "\n".join(
                [str(c["n"]), *(tokens(c[k]) for k in ("generated_tokens", "verifier_tokens") if k in known)]
            )
            for c in curve
        ]
        below = {"generated_tokens": "tokens generated", "verifier_tokens": "tokens the verifier reads"}
        ax.set(xscale="log", ylim=(0, 1.18), ylabel="share of problems solved")
        ax.set_xlabel(
            "; ".join(["samples per problem", *(text for key, text in below.items() if key in known)])
        )
        ax.set_xticks(n, names)
        ax.tick_params(axis="x", which="minor", length=0, labelbottom=False)
        ax.legend(loc="upper left", ncols=2, fontsize=9)
        return svg_text(figure)


def first_errors(curves: Values, chosen: float | None) -> str:
    """Draw accuracies and F1 of each subset of ProcessBench against the threshold.

    Parameters
    ----------
    curves : mapping
        ``curves`` of ``evaluate.json``.
    chosen : float or None
        The threshold to mark.
    """
    with drawing(3.4 * len(curves), rows=len(curves)) as (figure, axes):
        for ax, (subset, c) in zip(axes, curves.items(), strict=True):
            lines = {
                "f1": ("F1", "#0072B2", "-"),
                "erroneous": ("with an error", "#D55E00", "--"),
                "correct": ("without", "#009E73", ":"),
            }
            for key, (label, colour, dash) in lines.items():
                ax.plot(c["threshold"], c[key], color=colour, linestyle=dash, label=label)
            ax.axvline(0.5, color=GREY, linewidth=1)
            if chosen is not None:
                ax.axvline(chosen, color=GREY, linewidth=1, linestyle="--")
            ax.set(xlim=(0, 1), ylim=(0, 1.18), title=subset, ylabel="share right; F1")
            ax.legend(loc="upper center", ncols=3, fontsize=9)
        axes[-1].set_xlabel("threshold (solid line: .5; dashed: chosen on gsm8k)")
        return svg_text(figure)


def classes(rows: Values) -> str:
    """Draw F1, negative F1 and PRMScore of every class of PRMBench (``classes`` of ``evaluate.json``)."""
    names = list(rows)
    with drawing(1.4 + 0.5 * len(names)) as (figure, (ax,)):
        marks = {
            "f1": ("F1, right steps", "#009E73", "^"),
            "negative_f1": ("F1, wrong steps", "#D55E00", "s"),
            "prm_score": ("PRMScore", "#0072B2", "o"),
        }
        for k, (key, (label, colour, marker)) in enumerate(marks.items()):
            middle, ends = whiskers([rows[name][key] for name in names])
            place = np.arange(len(names)) + 0.18 * (k - 1)
            ax.errorbar(
                middle,
                place,
                xerr=ends,
                color=colour,
                marker=marker,
                markersize=5,
                linestyle="none",
                capsize=2,
                label=label,
            )
        ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        ax.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5), xlabel="share")
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)
        return svg_text(figure)


def reliability(summary: Values) -> str:
    """Draw the mean outcome against the mean prediction, in bins of equal mass (``overall`` of ``evaluate.json``)."""
    with drawing(3.9) as (figure, (ax,)):
        middle, ends = whiskers(summary["curve_outcome"])
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="perfectly calibrated")
        ax.errorbar(
            summary["curve"]["mean_p"],
            middle,
            ends,
            color="#0072B2",
            marker="o",
            markersize=5,
            linestyle="none",
            capsize=3,
            label="the model",
        )
        ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="predicted probability", ylabel="mean outcome")
        ax.legend(loc="upper left")
        return svg_text(figure)


def by_depth(rows: Values) -> str:
    """Draw Brier score, the constant's, ECE and AUC against the number of steps (``by_depth`` of ``evaluate.json``)."""
    depth = np.asarray([int(t) for t in rows])
    with drawing(5.6, rows=2) as (figure, (errors, ranking)):
        _whiskered(errors, depth, [r["brier"] for r in rows.values()], "#0072B2", "o", "Brier")
        constant = [r["brier_constant"] for r in rows.values()]
        errors.plot(
            depth,
            constant,
            color="#D55E00",
            marker="s",
            markersize=4,
            linestyle="--",
            label="Brier, constant",
        )
        gaps = [number(r["ece"]) for r in rows.values()]
        errors.plot(depth, gaps, color="#009E73", marker="^", markersize=4, linestyle=":", label="ECE")
        errors.set(ylabel="error")
        errors.set_ylim(bottom=0)
        errors.legend(loc="best", fontsize=9)
        _whiskered(ranking, depth, [r["auc"] for r in rows.values()], "#0072B2", "o", "AUC")
        ranking.axhline(0.5, color=GREY, linewidth=1)
        ranking.set(xlabel="steps taken", ylabel="AUC over all prompts", ylim=(0, 1.02))
        for ax in (errors, ranking):
            ax.locator_params(axis="x", integer=True)
        return svg_text(figure)


def _whiskered(
    ax: "Axes", x: np.ndarray, intervals: Sequence[Values], colour: str, marker: str, label: str
) -> None:
    middle, ends = whiskers(intervals)
    ax.errorbar(x, middle, ends, color=colour, marker=marker, markersize=5, capsize=3, label=label)
