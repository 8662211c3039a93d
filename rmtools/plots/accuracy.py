"""Plot of success against generated tokens, one line a sampler, as SVG text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmtools.plots.drawing import GREY, Values, drawing, number, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour and marker; what only reads another sampler's particles again is dashed.
SAMPLERS = {
    "plain": (GREY, "P", "none"),
    "best-of-N": ("#D55E00", "s", "-"),
    "weighted majority": ("#E69F00", "v", "--"),
    "beam": ("#009E73", "^", "-"),
    "SMC, argmax": ("#0072B2", "o", "-"),
    "SMC, one draw": ("#56B4E9", "o", "--"),
    "SP-gSMC + MH": ("#CC79A7", "D", "-"),
}
TERMINALS = {"model": "final weight: the model", "verifier": "final weight: the verifier"}


def success_at_tokens(horizons: Sequence[Values]) -> str:
    """Draw success with interval bands against nominal tokens a prompt: a row a horizon, a column a final weight.

    Parameters
    ----------
    horizons : sequence of mapping
        ``horizons`` of ``accuracy_at_tokens.json``: each with ``horizon`` and ``points``. Samplers without a line
        style here are left out.
    """
    height = 0.9 + 2.9 * len(horizons)
    with drawing(height) as (figure, _):
        figure.clear()
        figure.set_size_inches(9.2, height)
        axes = figure.subplots(len(horizons), len(TERMINALS), sharey=True, squeeze=False)
        for row, values in zip(axes, horizons, strict=True):
            for ax, (terminal, title) in zip(row, TERMINALS.items(), strict=True):
                panel(ax, [p for p in values["points"] if p["terminal"] == terminal])
                ax.set_title(f"T = {values['horizon']}, {title}")
            row[0].set_ylabel("share of prompts solved")
        for ax in axes[-1]:
            ax.set_xlabel("generated tokens a prompt (nominal)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=10)
        return svg_text(figure)


def panel(ax: "Axes", points: Sequence[Values]) -> None:
    """Draw one panel."""
    for name, (colour, marker, dash) in SAMPLERS.items():
        found = sorted((p for p in points if p["sampler"] == name), key=lambda p: p["nominal_tokens"])
        x = [p["nominal_tokens"] for p in found]
        middle, low, high = (
            np.asarray([number(p["success"][end]) for p in found]) for end in ("estimate", "low", "high")
        )
        ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(x, middle, color=colour, marker=marker, markersize=5, linestyle=dash, label=name)
        if len(found) == 1:
            ax.errorbar(x, middle, [middle - low, high - middle], color=colour, capsize=3)
    ax.set(xscale="log", ylim=(0, 1.03))
    places = sorted({round(p["nominal_tokens"] / p["budget"]) * p["budget"] for p in points})
    ax.set_xticks(places, [str(x) for x in places])
    ax.tick_params(axis="x", which="minor", length=0, labelbottom=False)
