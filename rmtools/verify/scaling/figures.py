"""Figures of `verify scaling`, as SVG text."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.plots.drawing import GREY, OTHER, STYLES, drawing, svg_text
from rmtools.verify.scaling.conclusions import SAMPLERS
from rmtools.verify.scaling.growth import Need, need_of, predicted
from rmtools.verify.scaling.points import Point
from rmtools.verify.scaling.profile import DELTA_CV
from rmtools.verify.scaling.run import MODELS, Scaling

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
STORY = ("constant", "planted", "mc-late", "default-late", "exact")
STRONG = ("constant", "default-late", "planted", "exact")
# Of ordered values, such as horizons; and the ends of the classes of c.
RAMP = ("#E8A33D", "#DB6A3F", "#B83A6B", "#6F2A8C", "#1F1A66")
BINS = (0.5, 1.0, 2.0, 4.0)
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
        figure.suptitle(title, fontsize=17, fontweight="bold", x=0.01, ha="left")
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
            _arrow_up(ax, p.horizon, y, colour)
            continue
        face = colour if need.source == "runs" else "white"
        ax.errorbar(
            [p.horizon], [y], _whiskers(p, y), color=colour, marker=marker, markersize=size, mfc=face, capsize=0,
            elinewidth=1, zorder=4, linestyle="none",
        )  # fmt: skip


def _whiskers(point: Point, y: float) -> list[list[float]] | None:
    """Return the distances to the ends of the interval of a measured point; an end that is not available has length 0."""
    n = point.n_measured
    if n is None:
        return None
    low, high = (y if end is None else y * end / n for end in (point.low, point.high))
    return [[max(y - low, 0.0)], [max(high - y, 0.0)]]


def _arrow_up(ax: "Axes", x: float, y: float, colour: str) -> None:
    """Draw an open arrow from y upwards: at least that."""
    style = {"arrowstyle": "-|>", "facecolor": "white", "edgecolor": colour, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (x, 1.8 * y), (x, y), arrowprops={**style, "mutation_scale": 14}, zorder=5)


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
    _legend(figure, keys, len(keys) if size > 10 else 2, size)


def _legend(figure: "Figure", keys: Sequence[Mapping[str, Any]], columns: int, size: float = 9) -> None:
    """Name marks and lines, given by their style and label, below the picture."""
    ax = figure.axes[-1]
    figure.legend(
        handles=[ax.plot([], [], **key)[0] for key in keys], loc="outside lower center", ncols=columns,
        fontsize=size, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip


def measured_against_predicted(found: Scaling) -> str:
    """Draw N measured against N predicted, with the diagonal and the band of a factor 2."""
    with drawing(5.4) as (figure, (ax,)):
        shown = [p for p in found.points if math.isfinite(predicted(p)) and predicted(p) > 0]
        values = [x for p in shown for x in (predicted(p), need_of(p).n)]
        ends = np.asarray([min(values, default=1) / 1.5, max(values, default=10) * 1.5])
        ax.fill_between(ends, ends / 2, ends * 2, color=GREY, alpha=0.13, linewidth=0)
        ax.plot(ends, ends, color=GREY, linewidth=1)
        ax.axvline(64, color=GREY, linewidth=0.8, linestyle=":")
        ax.text(70, ends[1] / 1.5, "judged from 64 on", fontsize=9, color=GREY, va="top")
        for p in shown:
            _mark(ax, p, predicted(p), need_of(p), LOOKS[p.model][1])
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
        ax.set(xlabel="particles predicted", ylabel="particles needed, measured")
        _models_key(ax, [p.model for p in shown])
        _samplers_key(figure)
        return svg_text(figure)


def _mark(
    ax: "Axes", point: Point, x: float, need: Need, colour: str, scale: float = 1.0, marker: str = ""
) -> None:
    """Draw a point at N over ``scale``; without ``marker`` a circle for resampling at every step, a square for the default."""
    y = need.n / scale
    if need.source == "bound":
        _arrow_up(ax, x, y, colour)
        return
    marker = marker or ("o" if point.sampler == "every-step" else "s")
    face = colour if need.source == "runs" else "white"
    ax.errorbar(
        [x], [y], _whiskers(point, y), color=colour, marker=marker, markersize=6, mfc=face, elinewidth=0.8,
        linestyle="none",
    )  # fmt: skip


def _models_key(ax: "Axes", models: Sequence[str]) -> None:
    """Name the colours in the lower right corner."""
    names = [m for m in MODELS if m in models]
    for k, model in enumerate(names):
        name, colour, _ = LOOKS[model]
        place = 0.97, 0.03 + 0.05 * (len(names) - 1 - k)
        ax.text(*place, name, color=colour, fontsize=10, transform=ax.transAxes, ha="right")


def _samplers_key(figure: "Figure") -> None:
    _legend(
        figure,
        [
            {"color": GREY, "marker": m, "linestyle": "none", "label": PANELS[s]}
            for s, m in (("every-step", "o"), ("default", "s"))
        ],
        2,
    )


def budget_of(found: Scaling, point: Point) -> float:
    """Return c: T times the root mean square of b under the target, gauge-fixed; NaN if it is not known."""
    known = found.consistency.get(f"{point.model} at {point.horizon}")
    return math.nan if known is None else point.horizon * known.rms_gauge_fixed


def over_exact(found: Scaling, sampler: str) -> list[tuple[Point, float, Need, float]]:
    """Return (point, c, need, N of the exact value) of every model but the exact one."""
    exact = {p.horizon: need_of(p) for p in found.points if (p.model, p.sampler) == ("exact", sampler)}
    rows = []
    for p in found.points:
        other = exact.get(p.horizon)
        if p.sampler != sampler or p.model == "exact" or other is None or other.source == "bound":
            continue
        if math.isfinite(c := budget_of(found, p)):
            rows.append((p, c, need_of(p), other.n))
    return rows


def transition(found: Scaling, sampler: str) -> str:
    """Draw N over N of the exact value against c, coloured by T, and against T, coloured by c."""
    horizons = [h.horizon for h in found.horizons]
    rows = over_exact(found, sampler)
    with drawing(8.0, rows=2) as (figure, (above, below)):
        for ax in (above, below):
            ax.axhspan(0.5, 2, color=GREY, alpha=0.13, linewidth=0)
            ax.axhline(1, color=GREY, linewidth=1)
            ax.set(xscale="log", yscale="log", ylabel="N over N of the exact value")
        for p, c, need, exact in rows:
            marker = LOOKS[p.model][2]
            _mark(above, p, c, need, _shade(horizons.index(p.horizon), len(horizons)), exact, marker)
            _mark(
                below, p, p.horizon, need, _shade(int(np.searchsorted(BINS, c)), len(BINS) + 1), exact, marker
            )
        _name_shades(above, [f"T = {t}" for t in horizons])
        edges = [f"{x:g}" for x in BINS]
        _name_shades(
            below,
            [f"c < {edges[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(edges)), f"c > {edges[-1]}"],
        )
        above.set(xlabel="c = T · RMS b under the target, gauge-fixed (nats)")
        above.set_title(PANELS[sampler], fontsize=12)
        below.set_xlabel("reasoning steps T")
        below.set_xticks(horizons, [str(t) for t in horizons])
        below.tick_params(axis="x", which="minor", length=0, labelbottom=False)
        shown = [m for m in MODELS if any(p.model == m for p, *_ in rows)]
        keys = [
            {"color": GREY, "marker": LOOKS[m][2], "linestyle": "none", "label": LOOKS[m][0]} for m in shown
        ]
        _legend(figure, keys, 3, 8.5)
        return svg_text(figure)


def _shade(k: int, n: int) -> str:
    """Return the colour of the k-th of n ordered values, darker for later ones."""
    return RAMP[round(k * (len(RAMP) - 1) / max(n - 1, 1))]


def _name_shades(ax: "Axes", names: Sequence[str]) -> None:
    """Name ordered colours in the upper left corner."""
    for k, name in enumerate(names):
        colour = _shade(k, len(names))
        ax.text(0.03, 0.97 - 0.075 * k, name, color=colour, transform=ax.transAxes, va="top", fontsize=10)


def error_and_accuracy(found: Scaling, sampler: str) -> str:
    """Draw CV(Zhat), and the share of right solutions over the target's, against N at the longest horizon."""
    horizon = found.horizons[-1]
    with drawing(6.6, rows=2) as (figure, (above, below)):
        for p in found.points:
            if (p.horizon, p.sampler) != (horizon.horizon, sampler):
                continue
            trials = sorted(p.trials, key=lambda t: t.n_particles)
            if not trials:
                continue
            _, colour, marker = LOOKS[p.model]
            n = [t.n_particles for t in trials]
            width = 2.0 if p.model in STRONG else 1.2
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": width}
            above.plot(n, [t.cv for t in trials], **style)
            below.plot(n, [t.success / horizon.target_success for t in trials], **style)
        above.axhline(DELTA_CV, color=GREY, linewidth=1, linestyle="--")
        below.axhline(0.9, color=GREY, linewidth=1, linestyle="--")
        above.set(xscale="log", yscale="log", ylabel="CV(Ẑ): sampling error")
        below.set(xscale="log", xlabel="particles N", ylabel="right solutions over target's")
        above.set_title(f"T = {horizon.horizon}, {PANELS[sampler]}", fontsize=12)
        _named_key(figure, [p.model for p in found.points if p.horizon == horizon.horizon])
        return svg_text(figure)


def _named_key(figure: "Figure", models: Sequence[str]) -> None:
    """Name colours and markers below the picture."""
    looks = [LOOKS[m] for m in MODELS if m in models]
    keys = [{"color": c, "marker": m, "markersize": 5, "label": name} for name, c, m in looks]
    _legend(figure, keys, 3, 8.5)


def training_curve(found: Scaling, losses: Mapping[int, float]) -> str:
    """Draw loss (if known), RMS b and predicted N of the default model against optimiser steps; a line for each horizon."""
    horizons = [h.horizon for h in found.horizons]
    with drawing(8.2 if losses else 6.0, rows=3 if losses else 2) as (figure, axes):
        *first, error, needed = axes
        if first:
            first[0].plot(list(losses), list(losses.values()), color=GREY, linewidth=1.5)
            first[0].set(ylabel="training loss", yscale="log" if min(losses.values()) > 0 else "linear")
        for k, t in enumerate(horizons):
            shade = _shade(k, len(horizons))
            rows = checkpoints(found, t)
            steps = [at for at, _ in rows]
            style: dict[str, Any] = {"color": shade, "marker": "o", "markersize": 4, "linewidth": 1.6}
            error.plot(steps, [c.rms_target for _, c in rows], **style, label=f"T = {t}")
            needed.plot(steps, [c.sigma2 / DELTA_CV**2 for _, c in rows], **style)
            if rows:
                needed.axhline(
                    rows[-1][1].sigma2_perfect / DELTA_CV**2, color=shade, linewidth=0.9, linestyle=":"
                )
        error.set(ylabel="RMS b (nats)", yscale="log")
        needed.set(ylabel="predicted N", yscale="log", xlabel="optimiser steps of the reward model")
        for ax in axes:
            ax.set_xlim(0, found.profile.updates * 1.03)
        figure.legend(loc="outside lower center", ncols=len(horizons), fontsize=9, handletextpad=0.4)
        return svg_text(figure)


def checkpoints(found: Scaling, horizon: int) -> list[tuple[int, Any]]:
    """Return (optimiser steps, `Consistency`) of the default model's checkpoints at one horizon, in order."""
    profile = found.profile
    when = {"early": profile.early, "late": profile.updates} | {str(k): k for k in profile.curve}
    rows = {
        k: found.consistency[f"default-{name} at {horizon}"]
        for name, k in when.items()
        if f"default-{name} at {horizon}" in found.consistency
    }
    return sorted(rows.items(), key=lambda row: row[0])
