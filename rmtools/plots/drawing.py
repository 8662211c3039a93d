"""One style for every plot, and its parts; the only importer of matplotlib.

Nothing global of matplotlib is touched: no pyplot, no backend switch.
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
    "position only": ("position only", "#E69F00", "v", "--"),
    "oracle": ("Monte-Carlo oracle", "#000000", "P", ":"),
    "compare 1": ("compared model 1", "#CC79A7", "D", "-."),
    "compare 2": ("compared model 2", "#56B4E9", "X", "-."),
    "perfect": ("perfect value", "#000000", "P", ":"),
    "best-of-N": ("best-of-N", "#666666", "X", "-."),
}
OTHER = ("#8C564B", "*", "-.")
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
FORMS = ("svg", "png", "pdf")
DPI = 150


@contextlib.contextmanager
def drawing(
    height: float, rows: int = 1, columns: int = 1, width: float = WIDTH
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """Yield a figure (inches) and its axes, row by row, under the reports' style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE_SHEET):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(np.ravel(figure.subplots(rows, columns)))


def svg_text(figure: "Figure") -> str:
    """Return the figure as an ``<svg>`` element, without document type, metadata or date."""
    import matplotlib

    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context(STYLE_SHEET):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def picture(figure: "Figure", form: str) -> bytes:
    """Return the figure as a file of one of ``FORMS``; the same figure gives the same bytes."""
    if form == "svg":
        return svg_text(figure).encode()
    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format=form,
        dpi=DPI,
        metadata={"pdf": {"CreationDate": None}, "png": {"Software": None}}[form],
    )
    return buffer.getvalue()


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


def label_categories(ax: "Axes", names: Sequence[str]) -> None:
    """Name the categories 0, 1, … of the horizontal axis."""
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.6, len(names) - 0.4)


def plain_ticks(ax: "Axes", low: float, high: float) -> None:
    """Mark 1, 2 and 5 times the powers of ten, as plain numbers, on two logarithmic axes of one range."""
    powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places = [x for power in powers for x in (power, 2 * power, 5 * power) if low <= x <= high]
    names = [f"{x:g}" for x in places]
    for name in ("x", "y"):
        ax.set(**{f"{name}ticks": places, f"{name}ticklabels": names})
        ax.tick_params(axis=name, which="minor", length=0, labelleft=False, labelbottom=False)
