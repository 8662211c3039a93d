"""How models and samplers look in the figures of `verify scaling`, and marks that several figures share."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rmtools.plots.drawing import OTHER, STYLES
from rmtools.verify.scaling.points import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A loss has a hue, its early checkpoint a lighter one.
LOOKS = {
    "constant": ("no reward model", STYLES["constant"][1], "s"),
    "untrained": ("untrained head", STYLES["untrained"][1], "^"),
    "mc-early": ("plain regression, early", "#C49C94", "v"),
    "mc-late": ("plain regression", OTHER[0], "v"),
    "default-early": ("Bellman-trained, early", "#56B4E9", "D"),
    "default-late": ("Bellman-trained", STYLES["model"][1], "o"),
    "planted": ("small persistent bias", STYLES["compare 1"][1], "X"),
    "exact": ("exact value", STYLES["perfect"][1], "P"),
}
PANELS = {
    "every-step": "resampling at every step",
    "default": "default sampler (ESS < N/2)",
}
STRONG = ("constant", "default-late", "planted", "exact")
# Of ordered values, such as horizons; and the ends of the classes of c.
RAMP = ("#E8A33D", "#DB6A3F", "#B83A6B", "#6F2A8C", "#1F1A66")
BINS = (0.5, 1.0, 2.0, 4.0)


def whiskers(point: Point, y: float) -> list[list[float]] | None:
    """Return the distances to the ends of the interval of a measured point; an end that is not available has length 0."""
    n = point.n_measured
    if n is None:
        return None
    low, high = (y if end is None else y * end / n for end in (point.low, point.high))
    return [[max(y - low, 0.0)], [max(high - y, 0.0)]]


def arrow_up(ax: "Axes", x: float, y: float, colour: str) -> None:
    """Draw an open arrow from y upwards: at least that."""
    style = {"arrowstyle": "-|>", "facecolor": "white", "edgecolor": colour, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (x, 1.8 * y), (x, y), arrowprops={**style, "mutation_scale": 14}, zorder=5)


def legend(figure: "Figure", keys: Sequence[Mapping[str, Any]], columns: int, size: float = 9) -> None:
    """Name marks and lines, given by their style and label, below the picture."""
    ax = figure.axes[-1]
    figure.legend(
        handles=[ax.plot([], [], **key)[0] for key in keys], loc="outside lower center", ncols=columns,
        fontsize=size, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip


def shade(k: int, n: int) -> str:
    """Return the colour of the k-th of n ordered values, darker for later ones."""
    return RAMP[round(k * (len(RAMP) - 1) / max(n - 1, 1))]


def name_shades(ax: "Axes", names: Sequence[str]) -> None:
    """Name ordered colours in the upper left corner."""
    for k, name in enumerate(names):
        colour = shade(k, len(names))
        ax.text(0.03, 0.97 - 0.075 * k, name, color=colour, transform=ax.transAxes, va="top", fontsize=10)
