"""Figures of what was needed against the horizon."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.plots.drawing import GREY, drawing, svg_text
from rmtools.verify.scaling.measure import SAMPLERS
from rmtools.verify.scaling.points import Point
from rmtools.verify.scaling.profile import DELTA_CV, MODELS, STORY
from rmtools.verify.scaling.report.growth import need_of, predicted
from rmtools.verify.scaling.report.marks import LOOKS, PANELS, STRONG, arrow_up, legend, whiskers
from rmtools.verify.scaling.run import Scaling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Quantity = Callable[[Point, float], float]


def particles_of(_point: Point, n: float) -> float:
    """Return N itself."""
    return n


def tokens_of(point: Point, n: float) -> float:
    """Return tokens that a run of N particles generates and a value model reads, on a prompt."""
    n_run = point.n_largest if point.n_measured is None else point.n_measured
    return (point.tokens + point.verifier_tokens) * n / n_run


def story(found: Scaling, title: str) -> str:
    """Draw N against T for the models that matter, a panel for each sampler."""
    with drawing(5.6, columns=2, width=11.5) as (figure, axes):
        drawn = _shared_range(axes, found, STORY, particles_of)
        for ax, sampler in zip(axes, SAMPLERS, strict=True):
            _panel(ax, found, sampler, STORY, particles_of, big=True)
            ax.set_title(PANELS[sampler], fontsize=14)
            ax.set_xlabel("reasoning steps T", fontsize=14)
            ax.set_ylim(*drawn)
        axes[0].set_ylabel(f"particles N for a CV(Ẑ) of {DELTA_CV:g}", fontsize=14)
        figure.suptitle(title, fontsize=15, fontweight="bold", x=0.01, ha="left")
        _key(figure, found, STORY, 12)
        return svg_text(figure)


def against_horizon(found: Scaling, sampler: str, quantity: Quantity, label: str) -> str:
    """Draw what every model needs under one sampler against T, on a logarithmic scale."""
    with drawing(5.2) as (figure, (ax,)):
        drawn = _shared_range([ax], found, MODELS, quantity)
        _panel(ax, found, sampler, MODELS, quantity)
        ax.set(xlabel="reasoning steps T", ylabel=label, ylim=drawn)
        ax.set_title(PANELS[sampler], fontsize=12)
        _key(figure, found, MODELS, 9)
        return svg_text(figure)


def _shared_range(
    axes: Sequence["Axes"], found: Scaling, models: Sequence[str], quantity: Quantity
) -> tuple[float, float]:
    """Make the vertical axes logarithmic, and return a range that holds what was needed, of both samplers."""
    shown = [p for p in found.points if p.model in models]
    values = [quantity(p, need_of(p).n) for p in shown]
    for ax in axes:
        ax.set_yscale("log")
    return 0.6 * min(values, default=1.0), 2.0 * max(values, default=10.0)


def _panel(
    ax: "Axes",
    found: Scaling,
    sampler: str,
    models: Sequence[str],
    quantity: Quantity,
    big: bool = False,
) -> None:
    """Draw a line for each model, its prediction, and 1/p(T)."""
    size, ends = (13 if big else 9.5), []
    for model in models:
        points = sorted(
            (p for p in found.points if (p.model, p.sampler) == (model, sampler)), key=lambda p: p.horizon
        )
        if points:
            _curve(ax, points, quantity, big)
            last = points[-1]
            ends.append((last.horizon, quantity(last, need_of(last).n), *LOOKS[model][:2], model in STRONG))
    horizons = [h.horizon for h in found.horizons]
    if quantity is particles_of:
        ax.plot(horizons, [1 / h.success for h in found.horizons], color=GREY, linewidth=1.4, linestyle=":")
        ends.append((horizons[-1], 1 / found.horizons[-1].success, "1/p(T)", GREY, False))
    ax.set_xticks(horizons, [str(t) for t in horizons])
    ax.set_xlim(0, horizons[-1] * 1.03)
    ax.tick_params(labelsize=size)
    low, high = _shared_range([ax], found, models, quantity)
    _name_ends(ax, ends, (math.log(low), math.log(high)), 0.062 if big else 0.05, size)


def _curve(ax: "Axes", points: Sequence[Point], quantity: Quantity, big: bool) -> None:
    """Draw one model: measured points filled, those on tables hollow, censored ones as arrows, the prediction dashed."""
    _, colour, marker = LOOKS[points[0].model]
    strong = points[0].model in STRONG
    size, width = (7.5, 2.4) if big else (5.5, 1.9 if strong else 1.2)
    foreseen = [p for p in points if math.isfinite(predicted(p)) and predicted(p) > 0]
    ax.plot(
        [p.horizon for p in foreseen],
        [quantity(p, predicted(p)) for p in foreseen],
        color=colour,
        linewidth=0.9,
        linestyle=(0, (5, 3)),
        zorder=2,
    )
    needs = {p.horizon: need_of(p) for p in points}
    known = [p for p in points if needs[p.horizon].source != "bound"]
    ax.plot(
        [p.horizon for p in known],
        [quantity(p, needs[p.horizon].n) for p in known],
        color=colour,
        linewidth=width,
        alpha=1 if strong else 0.8,
        zorder=3,
    )
    for p in points:
        need, y = needs[p.horizon], quantity(p, needs[p.horizon].n)
        if need.source == "bound":
            arrow_up(ax, p.horizon, y, colour)
            continue
        face = colour if need.source == "runs" else "white"
        ax.errorbar(
            [p.horizon], [y], whiskers(p, y), color=colour, marker=marker, markersize=size, mfc=face, capsize=0,
            elinewidth=1, zorder=4, linestyle="none",
        )  # fmt: skip


def _name_ends(
    ax: "Axes",
    ends: Sequence[tuple[float, float, str, str, bool]],
    span: tuple[float, float],
    gap: float,
    size: float,
) -> None:
    """Write names beside the ends (x, y, name, colour, bold) of lines, apart from each other; ``span`` in log y."""
    low, high = span
    ordered = sorted(ends, key=lambda e: e[1])
    wanted = np.asarray([(math.log(y) - low) / (high - low) for _, y, *_ in ordered])
    for (x, y, name, colour, bold), place in zip(ordered, spread(wanted, gap), strict=True):
        ax.annotate(
            name,
            (x, y),
            (1.05, place),
            textcoords="axes fraction",
            color=colour,
            fontsize=size,
            fontweight="bold" if bold else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 5},
        )


def spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Return increasing places near ``wanted`` (n,), increasing, that are at least ``gap`` apart, within [0, 1] if they fit.

    >>> spread(np.array([0.5, 0.5, 0.9]), 0.1).round(2).tolist()
    [0.45, 0.55, 0.9]
    """
    # The nearest places in squares: isotonic regression of the places less their rank times the gap.
    shift = gap * np.arange(len(wanted))
    blocks: list[list[float]] = []
    for value in np.asarray(wanted) - shift:
        blocks.append([float(value)])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = np.concatenate([np.full(len(b), np.mean(b)) for b in blocks]) if blocks else np.zeros(0)
    most = max(1 - gap * (len(wanted) - 1), 0.0)
    return np.clip(level, 0.0, most) + shift


def _key(figure: "Figure", found: Scaling, models: Sequence[str], size: float) -> None:
    """Say below the picture what the marks are, those that occur."""
    sources = {need_of(p).source for p in found.points if p.model in models}
    point: dict[str, Any] = {"color": GREY, "marker": "o", "linestyle": "none"}
    keys = [{**point, "label": "measured, 95%"}]
    if "tables" in sources:
        keys.append({**point, "mfc": "white", "label": "on tables of the policy"})
    if "bound" in sources:
        keys.append({**point, "marker": r"$\uparrow$", "label": "at least (budget)"})
    keys.append({"color": GREY, "linewidth": 1, "linestyle": (0, (5, 3)), "label": "predicted"})
    keys.append({"color": GREY, "linewidth": 1.4, "linestyle": ":", "label": "1/p(T): tries per success"})
    legend(figure, keys, len(keys) if size > 10 else 2, size)
