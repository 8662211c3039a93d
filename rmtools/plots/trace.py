"""The ancestry tree of a traced run with the texts of its steps, and below it the effective sample size.

Sizes are in inches until everything has its place, then the axes are given exactly that room: a label takes part of the
column behind its prefix, branches bend in the rest of it, so no line runs through a text.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.errors import UserError
from rmtools.plots.drawing import STYLE_SHEET, Values, number, picture
from rmtools.plots.trace_around import (
    CASING,
    DRAWN,
    KEPT,
    KILLED,
    SMALL_PRINT,
    WAITS,
    Sheet,
    draw_ess,
    write_around,
)
from rmtools.plots.trace_layout import Spot, choose, grow, place
from rmtools.plots.words import fitted, plain, width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

LABEL = 7.5  # points
ROW = 0.21  # inches: a line of text
FLAT = 0.74  # of a column: there a lineage runs level under its label
COLUMN = (0.95, 2.6)  # inches
TREE_WIDTH = 16.0  # inches, beyond which columns are made narrower
LEAST_ROWS = 6.0
LEFT, RIGHT = 0.6, 0.95
ESS_HEIGHT, GAP, TITLE, FOOT = 1.25, 0.42, 0.86, 0.78
BLANK = "(blank)"
COLOURS = "viridis"
CURVE = np.linspace(0, 1, 17)
BEND = CURVE**2 * (3 - 2 * CURVE)


def trace_picture(record: Values, form: str = "svg") -> bytes:
    """Draw a record of a trace (docs/formats.md, Trace).

    Of runs with many particles the largest lineages are drawn; the picture says how many prefixes it leaves out.

    Parameters
    ----------
    record : mapping
        As ``rmtools.sampling.trace_file.read_trace`` returns it.
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

    with matplotlib.rc_context(STYLE_SHEET):
        return picture(trace_figure(record), form)


def trace_figure(record: Values) -> "Figure":
    """Return the figure of ``trace_picture``, to be drawn under the reports' style."""
    from matplotlib.figure import Figure

    if not record["steps"]:
        raise UserError("this prompt took no step: there is nothing to draw", "choose another with --prompt")
    every = grow(record)
    layers = choose(every)
    place(layers)
    sheet = Sheet(record, layers, column_width(layers), value_scale(s for layer in layers for s in layer))
    top, bottom = (f(s.y for s in sheet.spots) for f in (min, max))
    tree = max(bottom - top + 2.2, LEAST_ROWS) * ROW
    across = sheet.column * (sheet.horizon + 1)
    foot = FOOT + ESS_HEIGHT + GAP
    size = LEFT + across + RIGHT, foot + tree + TITLE
    figure = Figure(figsize=size)
    ax = figure.add_axes(place_of(size, LEFT, foot, across, tree))
    ax.set_ylim((top + bottom + tree / ROW) / 2, (top + bottom - tree / ROW) / 2)
    draw_tree(ax, sheet)
    bar = min(tree, 2.2)
    colour_bar(
        figure, figure.add_axes(place_of(size, LEFT + across + 0.2, foot + tree - bar, 0.11, bar)), sheet
    )
    draw_ess(figure.add_axes(place_of(size, LEFT, FOOT, across, ESS_HEIGHT), sharex=ax), record)
    write_around(figure, sheet, sum(map(len, every)), size)
    return figure


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
    return float(np.clip((max(texts, default=0.0) / 72 + 0.2) / FLAT, COLUMN[0], most))


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
    dash = WAITS if spot.waits else "-"
    for x, y in lines:
        if spot.drawn:
            ax.plot(x, y, color=CASING, linewidth=wide + 2.0, solid_capstyle="butt", zorder=3)
            ax.plot(x, y, color=DRAWN, linewidth=wide, solid_capstyle="butt", zorder=3.1)
        else:
            colour, z = (KEPT, 2) if spot.heirs else (KILLED, 1)
            ax.plot(x, y, color=colour, linewidth=wide, linestyle=dash, solid_capstyle="round", zorder=z)


def draw_marks(ax: "Axes", sheet: Sheet, n: int) -> None:
    """Mark every new prefix: area by particles, colour by log value, square where it has ended, a cross where V = 0."""
    for ended, marker in ((False, "o"), (True, "s")):
        spots = [s for s in sheet.spots if s.ended == ended and not s.waits and s.log_value is not None]
        ax.scatter(
            [s.step for s in spots],
            [s.y for s in spots],
            [area(s, n) for s in spots],
            [number(s.log_value) for s in spots],
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
    room = 72 * (FLAT * sheet.column - start) - 3
    text = "prompt" if spot.step == 0 else fitted(spot.text, room, font) or BLANK
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
