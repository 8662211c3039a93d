"""Figures of `verify scaling`, as SVG text."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.plots.drawing import GREY, OTHER, STYLES, drawing, svg_text
from rmtools.verify.scaling.points import Point
from rmtools.verify.scaling.profile import DELTA_CV, MODELS
from rmtools.verify.scaling.report.comparisons import checkpoints, over_exact, tokens_needed
from rmtools.verify.scaling.report.growth import Need, need_of, predicted
from rmtools.verify.scaling.report.marks import (
    BINS,
    LOOKS,
    PANELS,
    STRONG,
    arrow_up,
    legend,
    name_shades,
    shade,
    whiskers,
)
from rmtools.verify.scaling.run import Scaling

METHOD_COLOURS = (
    STYLES["constant"][1],
    OTHER[0],
    "#C49C94",
    "#56B4E9",
    STYLES["compare 1"][1],
    STYLES["model"][1],
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
        arrow_up(ax, x, y, colour)
        return
    marker = marker or ("o" if point.sampler == "every-step" else "s")
    face = colour if need.source == "runs" else "white"
    ax.errorbar(
        [x], [y], whiskers(point, y), color=colour, marker=marker, markersize=6, mfc=face, elinewidth=0.8,
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
    legend(
        figure,
        [
            {"color": GREY, "marker": m, "linestyle": "none", "label": PANELS[s]}
            for s, m in (("every-step", "o"), ("default", "s"))
        ],
        2,
    )


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
            _mark(above, p, c, need, shade(horizons.index(p.horizon), len(horizons)), exact, marker)
            _mark(
                below, p, p.horizon, need, shade(int(np.searchsorted(BINS, c)), len(BINS) + 1), exact, marker
            )
        name_shades(above, [f"T = {t}" for t in horizons])
        edges = [f"{x:g}" for x in BINS]
        name_shades(
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
        legend(figure, keys, 3, 8.5)
        return svg_text(figure)


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
    legend(figure, keys, 3, 8.5)


def methods(found: Scaling) -> str:
    """Draw tokens that each method needs for the accuracy against T; an arrow where it is not reached."""
    names = list(dict.fromkeys(b.method for b in found.baselines))
    with drawing(5.2) as (figure, (ax,)):
        for k, name in enumerate(names):
            colour, own = (
                METHOD_COLOURS[k % len(METHOD_COLOURS)],
                [b for b in found.baselines if b.method == name],
            )
            reached = [(b.horizon, n) for b in own if (n := tokens_needed(b)) is not None]
            ax.plot(
                *zip(*reached, strict=True) if reached else ([], []), color=colour, marker="o", markersize=5
            )
            for b in own:
                if b.trials and b.n_for_success is None:
                    most = max(b.trials, key=lambda t: t.n_particles)
                    arrow_up(ax, b.horizon, most.tokens + most.value_tokens, colour)
        horizons = [h.horizon for h in found.horizons]
        ax.set(yscale="log", xlabel="reasoning steps T", ylabel="tokens per prompt")
        ax.set_xticks(horizons, [str(t) for t in horizons])
        keys = [
            {"color": METHOD_COLOURS[k % len(METHOD_COLOURS)], "marker": "o", "markersize": 5, "label": name}
            for k, name in enumerate(names)
        ]
        legend(figure, keys, 3)
        return svg_text(figure)


def training_curve(found: Scaling, losses: Mapping[int, float]) -> str:
    """Draw loss (if known), RMS b and predicted N of the default model against optimiser steps; a line for each horizon."""
    horizons = [h.horizon for h in found.horizons]
    with drawing(8.2 if losses else 6.0, rows=3 if losses else 2) as (figure, axes):
        *first, error, needed = axes
        if first:
            first[0].plot(list(losses), list(losses.values()), color=GREY, linewidth=1.5)
            first[0].set(ylabel="training loss", yscale="log" if min(losses.values()) > 0 else "linear")
        for k, t in enumerate(horizons):
            colour = shade(k, len(horizons))
            rows = checkpoints(found, t)
            steps = [at for at, _ in rows]
            style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4, "linewidth": 1.6}
            error.plot(steps, [c.rms_target for _, c in rows], **style, label=f"T = {t}")
            needed.plot(steps, [c.sigma2 / DELTA_CV**2 for _, c in rows], **style)
            if rows:
                needed.axhline(
                    rows[-1][1].sigma2_perfect / DELTA_CV**2, color=colour, linewidth=0.9, linestyle=":"
                )
        error.set(ylabel="RMS b (nats)", yscale="log")
        needed.set(ylabel="predicted N", yscale="log", xlabel="optimiser steps of the reward model")
        for ax in axes:
            ax.set_xlim(0, found.profile.updates * 1.03)
        figure.legend(loc="outside lower center", ncols=len(horizons), fontsize=9, handletextpad=0.4)
        return svg_text(figure)
