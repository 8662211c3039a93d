"""The ancestry tree of a traced run with the texts of its steps, and below it the effective sample size.

Sizes are in inches until everything has its place, then the axes are given exactly that room: a label takes part of the
column behind its prefix, branches bend in the rest of it, so no line runs through a text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.errors import UserError
from rmtools.plots.drawing import GREY, STYLE_SHEET, STYLES, Values, picture
from rmtools.plots.trace_layout import Spot, choose, grow, place
from rmtools.plots.words import fitted, plain, width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

LABEL, SMALL_PRINT = 7.5, 8.5  # points
ROW = 0.21  # inches: a line of text
FLAT = 0.74  # of a column: there a lineage runs level under its label
COLUMN = (0.62, 2.0)  # inches
TREE_WIDTH = 16.0  # inches, beyond which columns are made narrower
LEFT, RIGHT = 0.6, 0.95
ESS_HEIGHT, GAP, TITLE, FOOT = 1.25, 0.42, 0.86, 0.78
COLOURS = "viridis"
KILLED, KEPT, DRAWN, CASING = "#bdbdbd", "#3c3c3c", STYLES["constant"][1], "black"
CURVE = np.linspace(0, 1, 17)
BEND = CURVE**2 * (3 - 2 * CURVE)


@dataclass(frozen=True)
class Sheet:
    """What the parts of a picture share: the prefixes drawn, the width of a column (inches), the colours."""

    record: Values
    layers: Sequence[Sequence[Spot]]
    column: float
    scale: "Normalize"

    @property
    def spots(self) -> list[Spot]:
        """All prefixes drawn, the root first."""
        return [s for layer in self.layers for s in layer]

    @property
    def horizon(self) -> int:
        """T."""
        return len(self.layers) - 1


def trace_picture(record: Values, form: str = "svg") -> bytes:
    """Draw a record of a trace (docs/formats.md, Trace).

    Of runs with many particles the largest lineages are drawn; the picture says how many prefixes it leaves out.

    Parameters
    ----------
    record : mapping
        As ``rmtools.lm.trace_file.read_trace`` returns it.
    form : {"svg", "png", "pdf"}

    Returns
    -------
    bytes
        The file; the same record gives the same bytes.

    Raises
    ------
    UserError
        If the run took no step.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if not record["steps"]:
        raise UserError("this prompt took no step: there is nothing to draw", "choose another with --prompt")
    with matplotlib.rc_context(STYLE_SHEET):
        every = grow(record)
        layers = choose(every)
        place(layers)
        sheet = Sheet(record, layers, column_width(layers), value_scale(s for layer in layers for s in layer))
        top, bottom = (f(s.y for s in sheet.spots) for f in (min, max))
        tree = max(bottom - top + 2.2, 6.0) * ROW
        across = sheet.column * (sheet.horizon + 1)
        size = LEFT + across + RIGHT, TITLE + tree + GAP + ESS_HEIGHT + FOOT
        figure = Figure(figsize=size)
        foot = FOOT + ESS_HEIGHT + GAP
        ax = figure.add_axes(place_of(size, LEFT, foot, across, tree))
        ax.set_ylim((top + bottom) / 2 + tree / ROW / 2, (top + bottom) / 2 - tree / ROW / 2)
        draw_tree(ax, sheet)
        bar = min(tree, 2.2)
        colour_bar(
            figure, figure.add_axes(place_of(size, LEFT + across + 0.2, foot + tree - bar, 0.11, bar)), sheet
        )
        draw_ess(figure.add_axes(place_of(size, LEFT, FOOT, across, ESS_HEIGHT), sharex=ax), record)
        write_around(figure, sheet, sum(map(len, every)), size)
        return picture(figure, form)


def place_of(size: tuple[float, float], left: float, bottom: float, across: float, up: float) -> Any:
    """Return inches as the fractions of the figure that matplotlib wants."""
    return left / size[0], bottom / size[1], across / size[0], up / size[1]


def label_font(drawn: bool) -> "FontProperties":
    """Return the font of a label, bold for the drawn sample."""
    from matplotlib.font_manager import FontProperties

    return FontProperties(size=LABEL, weight="bold" if drawn else "normal")


def column_width(layers: Sequence[Sequence[Spot]]) -> float:
    """Return the inches of a column: what the longest label takes, within limits."""
    texts = [width(plain(s.text), label_font(s.drawn)) for layer in layers[1:] for s in layer if s.labelled]
    most = min(COLUMN[1], max(COLUMN[0], TREE_WIDTH / len(layers)))
    return float(np.clip((max(texts, default=0.0) / 72 + 0.14) / FLAT, COLUMN[0], most))


def value_scale(spots: Iterable[Spot]) -> "Normalize":
    """Return the scale of the colours, over the log values that are drawn."""
    from matplotlib.colors import Normalize

    found = [s.log_value for s in spots if s.log_value is not None] or [0.0]
    low, high = min(found), max(found)
    return Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)


def draw_tree(ax: "Axes", sheet: Sheet) -> None:
    """Draw branches, prefixes and labels."""
    n = sheet.record["n_particles"]
    for drawn in (False, True):
        for spot in sheet.spots:
            if spot.drawn == drawn:
                draw_branch(ax, spot, n)
    draw_marks(ax, sheet, n)
    for spot in sheet.spots:
        draw_label(ax, spot, sheet, n)
    ax.set_axis_off()


def thickness(spot: Spot, n: int) -> float:
    """Return the points of the line to a prefix: more for more particles."""
    return 0.7 + 3.8 * spot.copies / n


def draw_branch(ax: "Axes", spot: Spot, n: int) -> None:
    """Draw the bend from the parent to a prefix, and the level part behind it where it goes on or has a label."""
    wide = thickness(spot, n)
    lines = []
    if spot.parent is not None:
        x = spot.step - 1 + FLAT + (1 - FLAT) * CURVE
        lines.append((x, spot.parent.y + (spot.y - spot.parent.y) * BEND))
    if spot.children or (spot.heirs and spot.labelled):
        lines.append((np.asarray([spot.step, spot.step + FLAT]), np.asarray([spot.y, spot.y])))
    dash = (0, (2, 1.5)) if spot.waits else "-"
    for x, y in lines:
        if spot.drawn:
            ax.plot(x, y, color=CASING, linewidth=wide + 2.0, solid_capstyle="butt", zorder=3)
            ax.plot(x, y, color=DRAWN, linewidth=wide, solid_capstyle="butt", zorder=3.1)
        else:
            colour, z = (KEPT, 2) if spot.heirs else (KILLED, 1)
            ax.plot(x, y, color=colour, linewidth=wide, linestyle=dash, solid_capstyle="butt", zorder=z)


def draw_marks(ax: "Axes", sheet: Sheet, n: int) -> None:
    """Mark every new prefix: area by particles, colour by log value, square where it has ended, a cross where V = 0."""
    for ended, marker in ((False, "o"), (True, "s")):
        spots = [s for s in sheet.spots if s.ended == ended and not s.waits and s.log_value is not None]
        ax.scatter(
            [s.step for s in spots],
            [s.y for s in spots],
            [area(s, n) for s in spots],
            [s.log_value for s in spots],
            marker=marker,
            cmap=COLOURS,
            norm=sheet.scale,
            edgecolors=[CASING if s.heirs else "#909090" for s in spots],
            linewidths=[1.3 if s.drawn else 0.7 for s in spots],
            zorder=4,
        )
    zero = [s for s in sheet.spots if s.log_value is None and not s.waits]
    ax.scatter([s.step for s in zero], [s.y for s in zero], 16, "black", marker="x", linewidths=0.9, zorder=4)


def area(spot: Spot, n: int) -> float:
    """Return the square points of a mark."""
    return (16 if spot.labelled else 9) + 90 * spot.copies / n


def draw_label(ax: "Axes", spot: Spot, sheet: Sheet, n: int) -> None:
    """Write a prefix's newest step above its level line."""
    if not spot.labelled:
        return
    font = label_font(spot.drawn)
    start = (area(spot, n) ** 0.5 / 2 + 2) / 72
    text = "prompt" if spot.step == 0 else fitted(spot.text, 72 * (FLAT * sheet.column - start), font)
    ax.annotate(
        text,
        (spot.step, spot.y),
        (72 * start, thickness(spot, n) / 2 + (3.4 if spot.drawn else 2.2)),
        textcoords="offset points",
        color="black" if spot.heirs else "#6f6f6f",
        fontproperties=font,
        va="baseline",
        parse_math=False,
        zorder=5,
    )


def colour_bar(figure: "Figure", ax: "Axes", sheet: Sheet) -> None:
    """Draw the scale of the log values."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(sheet.scale, COLOURS), cax=ax)
    bar.set_label("log value (nats)", fontsize=SMALL_PRINT)
    bar.ax.tick_params(labelsize=SMALL_PRINT)
    bar.ax.grid(visible=False)


def draw_ess(ax: "Axes", record: Values) -> None:
    """Draw ESS and the parents that go on by step, where it resampled, and the threshold where it decides."""
    n, steps = record["n_particles"], record["steps"]
    at = np.arange(1, len(steps) + 1)
    ess = [s["ess"] for s in steps]
    _, colour, _, _ = STYLES["model"]
    ax.plot(at, ess, color=colour, linewidth=1.8, zorder=3)
    for resampled, label, face in (
        (True, "ESS, then resampled", colour),
        (False, "ESS, not resampled", "white"),
    ):
        t = [i for i, s in enumerate(steps) if s["resampled"] == resampled]
        ax.plot(
            at[t],
            [ess[i] for i in t],
            "o",
            color=colour,
            markerfacecolor=face,
            markersize=6,
            label=label,
            clip_on=False,
            zorder=4,
        )
    ax.plot(
        at,
        [s["unique_ancestors"] for s in steps],
        color=DRAWN,
        linestyle="--",
        linewidth=1.2,
        marker="s",
        markersize=3.5,
        label="parents that go on",
        clip_on=False,
        zorder=2,
    )
    threshold = threshold_of(record)
    if threshold is not None:
        ax.axhline(
            threshold * n,
            color=GREY,
            linewidth=1,
            linestyle=":",
            label=f"resample at or below {threshold * n:g}",
        )
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
    )


def threshold_of(record: Values) -> float | None:
    """Return the share of N at which the run resampled; None where it is not known or never mattered."""
    sampler = record["sampler"]
    found = sampler.get("ess_threshold")
    if (
        sampler.get("resampling") in ("none", "top_k")
        or not isinstance(found, int | float)
        or not 0 < found <= 1
    ):
        return None
    return float(found)


def write_around(figure: "Figure", sheet: Sheet, total: int, size: tuple[float, float]) -> None:
    """Write prompt, settings and outcome above the picture, and under it what it leaves out."""
    from matplotlib.font_manager import FontProperties

    room = 72 * (size[0] - 0.3)
    lines = [
        (sheet.record["prompt"], FontProperties(size=10.5, weight="bold"), 0.22),
        (summary(sheet.record), FontProperties(size=9), 0.42),
    ]
    for text, font, down in lines:
        figure.text(
            0.15 / size[0],
            1 - down / size[1],
            fitted(text, room, font),
            fontproperties=font,
            va="baseline",
            parse_math=False,
        )
    figure.legend(
        handles=legend_of(sheet),
        loc="upper left",
        bbox_to_anchor=(0.15 / size[0], 1 - 0.48 / size[1]),
        ncols=7,
        fontsize=SMALL_PRINT,
        borderaxespad=0,
        columnspacing=1.2,
        handletextpad=0.5,
    )
    font = FontProperties(size=SMALL_PRINT)
    for i, text in enumerate(caption(sheet, total)):
        figure.text(
            0.15 / size[0],
            (0.24 - 0.15 * i) / size[1],
            fitted(text, room, font),
            fontproperties=font,
            color="#444444",
        )


def summary(record: Values) -> str:
    """Return settings and outcome in a line."""
    parts = [f"N = {record['n_particles']}, M = {record['pool_size']}"]
    if record["sampler"].get("resampling"):
        parts.append(str(record["sampler"]["resampling"]))
    parts.append(
        "log Ẑ not estimated or -inf" if record["log_z"] is None else f"log Ẑ = {record['log_z']:.3f} nats"
    )
    draw, rewards = record["draw"], record["rewards"]
    if draw is not None:
        weight = record["log_weights"][draw]
        parts.append(f"drawn sample: particle {draw}, weight {0.0 if weight is None else np.exp(weight):.3g}")
    if rewards is not None:
        found = [r for r in rewards if r is not None]
        parts.append(
            f"mean reward {np.mean(found):.3g}" + ("" if draw is None else f", of the drawn sample {rewards[draw]:g}")
        )
    return " · ".join(parts)


def legend_of(sheet: Sheet) -> list[Any]:
    """Return one handle for each kind of line and mark that the picture has."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    spots = sheet.spots
    handles: list[Any] = []
    if any(s.drawn for s in spots):
        handles.append(Patch(facecolor=DRAWN, edgecolor=CASING, label="drawn sample"))
    if any(s.heirs and not s.drawn for s in spots):
        handles.append(Line2D([], [], color=KEPT, linewidth=2.2, label="leads to a final particle"))
    if any(not s.heirs for s in spots):
        handles.append(Line2D([], [], color=KILLED, linewidth=2.2, label="killed"))
    mark: Any = {"linestyle": "none", "markerfacecolor": "white", "markeredgecolor": CASING, "markersize": 6}
    if any(s.ended for s in spots):
        handles.append(Line2D([], [], marker="s", label="ended", **mark))
    if any(s.waits for s in spots):
        handles.append(Line2D([], [], color=KEPT, linestyle=(0, (2, 1.5)), label="waits, ended"))
    if any(s.log_value is None for s in spots):
        handles.append(Line2D([], [], marker="x", label="value zero", **mark))
    return handles


def caption(sheet: Sheet, total: int) -> list[str]:
    """Return what the sizes mean, and how many prefixes are not drawn or have no text."""
    spots = sheet.spots
    lines = [
        "Line width and mark area grow with the particles at a prefix. The text is that of its newest step."
    ]
    bare = sum(not s.labelled and not s.waits for s in spots)
    if total > len(spots) or bare:
        lines.append(
            f"Not drawn: {total - len(spots):,} of {total:,} prefixes, those of the smallest lineages. "
            f"Drawn without text: {bare:,}."
        )
    return lines
