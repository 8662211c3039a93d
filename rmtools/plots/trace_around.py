"""What stands around an ancestry tree: prompt, settings, legend, the ESS curve below, and what is left out.

>>> threshold_of({"sampler": {"resampling": "none", "ess_threshold": 0.5}}) is None
True
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.plots.drawing import GREY, STYLES, Values
from rmtools.plots.trace_layout import Spot
from rmtools.plots.words import fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

SMALL_PRINT = 8.5  # points
KILLED, KEPT, DRAWN, CASING = "#bdbdbd", "#3c3c3c", STYLES["constant"][1], "black"
WAITS = (0, (2, 1.5))


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
    if record["sampler"].get("resampling") != "top_k":
        parts.append("Ẑ = 0" if record["log_z"] is None else f"log Ẑ = {record['log_z']:.3f} nats")
    draw, rewards = record["draw"], record["rewards"]
    if draw is not None:
        weight = record["log_weights"][draw]
        parts.append(f"drawn sample: particle {draw}, weight {0.0 if weight is None else np.exp(weight):.3g}")
    if rewards is not None:
        found = [r for r in rewards if r is not None]
        parts.append(
            f"mean reward {np.mean(found):.3g}"
            + ("" if draw is None else f", of the drawn sample {rewards[draw]:g}")
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
        handles.append(Line2D([], [], color=KEPT, linestyle=WAITS, label="waits, ended"))
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
