"""The ancestry tree of a traced run with the texts of its steps, and below it the effective sample size.

Sizes are in inches until everything has its place, then the axes get exactly that room: a label takes part of the
column behind its prefix, branches bend in the rest of it, so no line runs through a text.
"""

from bisect import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.errors import UserError
from rmtools.plots.drawing import GREY, STYLE_SHEET, STYLES, number, picture
from rmtools.plots.trace_layout import Spot, choose, grow, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

LABEL, SMALL_PRINT = 7.5, 8.5  # points
ROW = 0.21  # inches: a line of text
FLAT = 0.74  # of a column: there a lineage runs level under its label
COLUMN = (0.95, 2.6)  # inches
TREE_WIDTH = 16.0  # inches; columns get narrower beyond it
LEAST_ROWS, LEAST_WIDTH = 6.0, 6.8  # the width, in inches, of the legends
LEFT, RIGHT = 0.6, 0.95
ESS_HEIGHT, GAP, TITLE, FOOT = 1.25, 0.42, 0.86, 0.78
KILLED, KEPT, DRAWN = "#bdbdbd", "#3c3c3c", STYLES["constant"][1]
BEND = np.linspace(0, 1, 17)
LONGEST = 600  # characters; more never fits


def trace_picture(trace: Any, form: str = "svg") -> bytes:
    """Draw a trace.

    Only the largest lineages of many particles are drawn; the picture says how many prefixes it leaves out.

    Parameters
    ----------
    trace : rmtools.sampling.trace.Trace
    form : {"svg", "png", "pdf"}

    Returns
    -------
    bytes
        The file; the same trace gives the same bytes.

    Raises
    ------
    UserError
        If the run took no step.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE_SHEET):
        return picture(trace_figure(trace), form)


def trace_figure(trace: Any) -> "Figure":
    """Return the figure of ``trace_picture``, to be drawn under the reports' style."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    if not trace.steps:
        raise UserError("this prompt took no step: there is nothing to draw", "choose another prompt")
    every = grow(trace)
    layers = choose(every)
    place(layers)
    spots = [s for layer in layers for s in layer]
    column = column_width(layers)
    top, bottom = min(s.y for s in spots), max(s.y for s in spots)
    tree, across = max(bottom - top + 2.2, LEAST_ROWS) * ROW, column * len(layers)
    foot = FOOT + ESS_HEIGHT + GAP
    size = max(LEFT + across + RIGHT, LEAST_WIDTH), foot + tree + TITLE
    figure = Figure(figsize=size)

    def axes(left: float, low: float, wide: float, high: float, **more: Any) -> Any:
        return figure.add_axes((left / size[0], low / size[1], wide / size[0], high / size[1]), **more)

    values = [s.node.log_value for s in spots if s.node.log_value is not None] or [0.0]
    low, high = min(values), max(values)
    scale = Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)
    colours = ScalarMappable(scale, colormaps["viridis"].with_extremes(bad="black"))
    ax = axes(LEFT, foot, across, tree)
    ax.set_ylim((top + bottom + tree / ROW) / 2, (top + bottom - tree / ROW) / 2)
    draw_branches(ax, spots, trace.n_particles)
    draw_marks(ax, spots, trace.n_particles, colours)
    draw_labels(ax, spots, trace.n_particles, column)
    ax.set_axis_off()
    bar = figure.colorbar(
        colours, cax=axes(LEFT + across + 0.2, foot + tree - min(tree, 2.2), 0.11, min(tree, 2.2))
    )
    bar.set_label("log value (nats)", fontsize=SMALL_PRINT)
    bar.ax.tick_params(labelsize=SMALL_PRINT)
    bar.ax.grid(visible=False)
    draw_ess(axes(LEFT, FOOT, across, ESS_HEIGHT, sharex=ax), trace)
    write_around(figure, trace, spots, sum(map(len, every)))
    return figure


def label_font(drawn: bool) -> "FontProperties":
    """Return the font of a label, bold for the drawn sample."""
    from matplotlib.font_manager import FontProperties

    return FontProperties(size=LABEL, weight="bold" if drawn else "normal")


def column_width(layers: Sequence[Sequence[Spot]]) -> float:
    """Return the inches of a column: those of the longest label, within limits."""
    texts = [
        width(plain(s.node.text), label_font(s.drawn)) for layer in layers[1:] for s in layer if s.labelled
    ]
    most = min(COLUMN[1], max(COLUMN[0], TREE_WIDTH / len(layers)))
    return float(np.clip((max(texts, default=0.0) / 72 + 0.2) / FLAT, COLUMN[0], most))


def thickness(spot: Spot, n: int) -> float:
    """Return the points of the line to a prefix: more for more particles."""
    return 0.7 + 3.8 * spot.copies / n


def area(spot: Spot, n: int) -> float:
    """Return the square points of a mark: more for more particles."""
    return (16 if spot.labelled else 9) + 90 * spot.copies / n


def draw_branches(ax: "Axes", spots: Sequence[Spot], n: int) -> None:
    """Draw the bend from every parent to its prefix, and a level part behind it if it continues or has a label."""
    for spot in spots:
        wide, lines = thickness(spot, n), []
        if spot.parent is not None:
            rise = spot.parent.y + (spot.y - spot.parent.y) * BEND**2 * (3 - 2 * BEND)
            lines.append((spot.step - 1 + FLAT + (1 - FLAT) * BEND, rise))
        if spot.children or (spot.heirs and spot.labelled):
            lines.append((np.asarray([spot.step, spot.step + FLAT]), np.full(2, spot.y)))
        for x, y in lines:
            if spot.drawn:
                ax.plot(x, y, color="black", linewidth=wide + 2.0, solid_capstyle="butt", zorder=3)
            colour, z = (DRAWN, 3.1) if spot.drawn else (KEPT, 2) if spot.heirs else (KILLED, 1)
            cap: Any = "butt" if spot.drawn else "round"
            ax.plot(x, y, color=colour, linewidth=wide, solid_capstyle=cap, zorder=z)


def draw_marks(ax: "Axes", spots: Sequence[Spot], n: int, colours: Any) -> None:
    """Mark every new prefix: area by particles, colour by log value (black: zero), square if it has ended."""
    for ended, marker in ((False, "o"), (True, "s")):
        own = [s for s in spots if s.node.ended == ended and not s.waits]
        ax.scatter(
            [s.step for s in own],
            [s.y for s in own],
            [area(s, n) for s in own],
            colours.to_rgba([number(s.node.log_value) for s in own]),
            marker=marker,
            edgecolors=["black" if s.heirs else "#909090" for s in own],
            linewidths=[1.3 if s.drawn else 0.7 for s in own],
            zorder=4,
        )


def draw_labels(ax: "Axes", spots: Sequence[Spot], n: int, column: float) -> None:
    """Write the newest step of a prefix above its level line."""
    for spot in (s for s in spots if s.labelled):
        font = label_font(spot.drawn)
        start = area(spot, n) ** 0.5 / 2 + 2
        text = fitted(spot.node.text, 72 * FLAT * column - start - 3, font) or "(blank)"
        ax.annotate(
            text if spot.step else "prompt",
            (spot.step, spot.y),
            (start, thickness(spot, n) / 2 + (3.4 if spot.drawn else 2.2)),
            textcoords="offset points",
            color="black" if spot.heirs else "#6f6f6f",
            fontproperties=font,
            va="baseline",
            parse_math=False,
            zorder=5,
        )


def draw_ess(ax: "Axes", trace: Any) -> None:
    """Draw the ESS and the distinct parents by step, where the run resampled, and the threshold if it decides."""
    n, steps, blue = trace.n_particles, trace.steps, STYLES["model"][1]
    at, ess = np.arange(1, len(steps) + 1), np.asarray([s.ess for s in steps])
    resampled = np.asarray([s.resampled for s in steps])
    ax.plot(at, ess, color=blue, linewidth=1.8, zorder=3)
    mark: Any = {"color": blue, "markersize": 6, "clip_on": False, "zorder": 4}
    ax.plot(at[resampled], ess[resampled], "o", label="ESS, then resampled", **mark)
    ax.plot(at[~resampled], ess[~resampled], "o", label="ESS, not resampled", markerfacecolor="white", **mark)
    parents = [len(set(s.ancestors)) for s in steps]
    ax.plot(
        at,
        parents,
        "s--",
        color=DRAWN,
        linewidth=1.2,
        markersize=3.5,
        label="parents kept",
        clip_on=False,
    )
    threshold = trace.sampler.get("ess_threshold")
    if trace.sampler.get("resampling") not in ("none", "top_k") and threshold:
        label = f"resample at {threshold * n:g} or below"
        ax.axhline(threshold * n, color=GREY, linewidth=1, linestyle=":", label=label)
    ax.set_ylim(0, n * 1.06)
    ax.set_xlim(-0.12, len(steps) + 1 - 0.12)
    ax.set_xticks([0, *at], ["0", *map(str, at)])
    ax.tick_params(labelsize=SMALL_PRINT)
    ax.set_xlabel("step t", fontsize=SMALL_PRINT, labelpad=2)
    ax.set_ylabel("particles", fontsize=SMALL_PRINT)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=4,
        fontsize=SMALL_PRINT,
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.2,
    )


def write_around(figure: "Figure", trace: Any, spots: Sequence[Spot], total: int) -> None:
    """Write prompt, settings, outcome and legend above the picture, and under it what it leaves out of ``total``."""
    from matplotlib.font_manager import FontProperties

    wide, high = figure.get_size_inches()
    bare = sum(not s.labelled and not s.waits for s in spots)
    caption = (
        "Line width and mark area grow with the particles at a prefix. The text is that of its newest step."
    )
    left_out = (
        f"Not drawn: {total - len(spots):,} of {total:,} prefixes, those of the smallest lineages. "
        f"Drawn without text: {bare:,}."
    )
    for text, font, y in (
        (trace.prompt, FontProperties(size=10.5, weight="bold"), high - 0.22),
        (summary(trace), FontProperties(size=9), high - 0.42),
        (caption, FontProperties(size=SMALL_PRINT), 0.24),
        (left_out if total > len(spots) or bare else "", FontProperties(size=SMALL_PRINT), 0.09),
    ):
        text = fitted(text, 72 * (wide - 0.3), font)
        figure.text(0.15 / wide, y / high, text, fontproperties=font, va="baseline", parse_math=False)
    figure.legend(
        handles=legend_of(spots),
        loc="upper left",
        bbox_to_anchor=(0.15 / wide, 1 - 0.48 / high),
        ncols=7,
        fontsize=SMALL_PRINT,
        borderaxespad=0,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def summary(trace: Any) -> str:
    """Return settings and outcome in a line."""
    scheme = trace.sampler.get("resampling")
    parts = [f"N = {trace.n_particles}, M = {trace.pool_size}", *([scheme] if scheme else [])]
    if scheme != "top_k":
        parts.append("Ẑ = 0" if trace.log_z is None else f"log Ẑ = {trace.log_z:.3f} nats")
    if trace.draw is not None:
        weight = np.exp(number(trace.log_weights[trace.draw]))
        parts.append(f"drawn sample: particle {trace.draw}, weight {weight:.3g}")
    if trace.rewards is not None:
        drawn = "" if trace.draw is None else f", of the drawn sample {trace.rewards[trace.draw]:g}"
        parts.append(f"mean reward {np.mean(trace.rewards):.3g}{drawn}")
    return " · ".join(parts)


def legend_of(spots: Sequence[Spot]) -> list[Any]:
    """Return one handle for each kind of line and mark that the picture has."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    mark: Any = {"linestyle": "none", "markeredgecolor": "black", "markersize": 6}
    handles = {
        Patch(facecolor=DRAWN, edgecolor="black", label="drawn sample"): any(s.drawn for s in spots),
        Line2D([], [], color=KEPT, linewidth=2.2, label="leads to a final particle"): any(
            s.heirs and not s.drawn for s in spots
        ),
        Line2D([], [], color=KILLED, linewidth=2.2, label="killed"): any(not s.heirs for s in spots),
        Line2D([], [], marker="s", markerfacecolor="white", label="ended", **mark): any(
            s.node.ended for s in spots
        ),
        Line2D([], [], marker="o", markerfacecolor="black", label="value zero", **mark): any(
            s.node.log_value is None for s in spots
        ),
    }
    return [handle for handle, there in handles.items() if there]


def plain(text: str) -> str:
    """Return ``text`` on one line, with a box for each character that the font cannot draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    lines = (" ".join(line.split()) for line in text.splitlines())
    flat = " ⏎ ".join(line for line in lines if line)[:LONGEST]
    font = get_font(findfont(FontProperties()))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "□" for c in flat)


def width(text: str, font: "FontProperties") -> float:
    """Return the width of a text in points."""
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def fitted(text: str, room: float, font: "FontProperties") -> str:
    """Return the plain ``text``, cut off at the end if it is wider than ``room`` points; "" if nothing fits."""
    text = plain(text)
    if not text or width(text, font) <= room:
        return text
    cuts = range(1, len(text) + 1)
    fits = bisect(cuts, False, key=lambda i: width(f"{text[:i].rstrip()}…", font) > room)
    return f"{text[:fits].rstrip()}…" if fits else ""
