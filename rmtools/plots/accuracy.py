"""Plots of the samplers over a language model, as SVG text: success against tokens, distance from the target."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmtools.plots.drawing import GREY, STYLES, Values, drawing, number, svg_text

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
COLOURS = [colour for _, colour, _, _ in STYLES.values()]
MARKERS = "os^vDPX"  # a prompt each
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


def sampler_law(parts: Values) -> str:
    """Draw how far the output is from the target: pools against their prediction, chains, the default setting.

    Parameters
    ----------
    parts : mapping
        ``parts`` of ``lm_law.json``; a panel whose part is missing stays empty.
    """
    with drawing(3.9) as (figure, _):
        figure.clear()
        figure.set_size_inches(11.5, 3.9)
        first, second, third = figure.subplots(1, 3)
        default = [parts.get(name, []) for name in ("default", "default-tables")]
        for ax, there in zip(
            (first, second, third), ("pools" in parts, "metropolis" in parts, any(default)), strict=True
        ):
            ax.set_visible(there)
        if first.get_visible():
            ratios(first, parts["pools"])
        if second.get_visible():
            chains(second, parts["metropolis"])
        if third.get_visible():
            slopes(third, *default)
        return svg_text(figure)


def ratios(ax: "Axes", rows: Sequence[Values]) -> None:
    """Draw measured over predicted distance against N / sigma^2; a colour a pool, a marker a prompt."""
    ax.axhspan(0.85, 1.15, color=GREY, alpha=0.15, linewidth=0)
    ax.axhline(1, color=GREY, linewidth=1)
    pools = sorted({r["m"] for r in rows})
    for prompt, m in dict.fromkeys((r["prompt"], r["m"]) for r in rows):
        own = [r for r in rows if (r["prompt"], r["m"]) == (prompt, m)]
        ax.errorbar(
            [r["n"] / r["sigma2"] for r in own],
            [r["signed"] / r["predicted"] for r in own],
            [1.96 * r["signed_error"] / r["predicted"] for r in own],
            color=COLOURS[pools.index(m)],
            marker=MARKERS[prompt - 1],
            markersize=4,
            linestyle="none",
            capsize=2,
            elinewidth=0.8,
        )
    for k, m in enumerate(pools):
        ax.plot([], [], color=COLOURS[k], marker="o", linestyle="none", label=f"pool {m}")
    ax.set(xscale="log", xlabel="N / σ²", ylabel="TV measured / (MAD(H)/2N)", ylim=(0, 1.6))
    ax.set_title("multinomial at every step")
    ax.legend(loc="lower left", fontsize=9)


def chains(ax: "Axes", rows: Sequence[Values]) -> None:
    """Draw the distance of a chain's state from the target after H proposals; a colour a sampler, a marker a prompt."""
    names = list(dict.fromkeys(r["sampler"] for r in rows))
    for prompt, name in dict.fromkeys((r["prompt"], r["sampler"]) for r in rows):
        own = [r for r in rows if (r["prompt"], r["sampler"]) == (prompt, name)]
        ax.errorbar(
            [r["mh_steps"] for r in own],
            [r["tv"] for r in own],
            [1.96 * r["tv_error"] for r in own],
            color=COLOURS[names.index(name)],
            marker=MARKERS[prompt - 1],
            markersize=4,
            linewidth=1,
            capsize=2,
            label=name if prompt == 1 else None,
        )
    ax.axhline(0, color=GREY, linewidth=1)
    ax.set(xlabel="Metropolis–Hastings proposals H", ylabel="TV to the target")
    ax.set_title("Metropolis–Hastings")
    ax.legend(fontsize=9)


def slopes(ax: "Axes", decoded: Sequence[Values], tabled: Sequence[Values]) -> None:
    """Draw the distance against N in the default setting: points decoded, lines from the table."""
    for prompt in dict.fromkeys(r["prompt"] for r in [*decoded, *tabled]):
        colour, marker = COLOURS[3 + (prompt - 1) % 3], MARKERS[prompt - 1]
        lines = [r for r in tabled if r["prompt"] == prompt and r["tv"] > 0]
        ax.plot([r["n"] for r in lines], [r["tv"] for r in lines], color=colour, linewidth=1)
        own = [r for r in decoded if r["prompt"] == prompt and r["tv"] > 0]
        ax.errorbar(
            [r["n"] for r in own],
            [r["tv"] for r in own],
            [1.96 * r["tv_error"] for r in own],
            color=colour,
            marker=marker,
            markersize=4,
            linestyle="none",
            capsize=2,
            label=f"prompt {prompt}",
        )
    ax.set(xscale="log", yscale="log", xlabel="particles N", ylabel="TV to the target")
    sizes = sorted({r["n"] for r in [*decoded, *tabled]})
    if last := [r["tv"] for r in [*decoded, *tabled] if r["n"] == sizes[-1] and r["tv"] > 0]:
        x, middle = np.asarray(sizes, dtype=float), np.exp(np.mean(np.log(last)))
        ax.plot(x, middle * x[-1] / x, color=GREY, linestyle=":", label="slope −1")
        ax.set_ylim(bottom=min(last) / 3)
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.tick_params(axis="x", which="minor", length=0, labelbottom=False)
    ax.set_title("default: systematic, ESS < N/2")
    ax.legend(fontsize=9)
