"""Figures of a run of the sampler and of an exact solution, for `SMCResult.plot` and `ExactResult.plot`."""

from typing import TYPE_CHECKING

import numpy as np

from rmtools.plots.drawing import GREY, STYLES, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = [style[1] for style in STYLES.values()]
MOST_LINES = 20


def ess_by_step(ess: np.ndarray, resampled: np.ndarray, live: np.ndarray, n_particles: int) -> "Figure":
    """Draw the effective sample size by step: a line per group, up to 20, and their median beyond.

    Parameters
    ----------
    ess : np.ndarray
        (T, G) particles.
    resampled, live : np.ndarray
        (T, G) bool: dots mark where a group was resampled; a line ends with the group's last live step.
    n_particles : int
        N, a dotted line.
    """
    n_steps, n_groups = ess.shape
    steps = np.arange(1, n_steps + 1)
    with drawing(3.2) as (figure, (ax,)):
        for g in range(min(n_groups, MOST_LINES)):
            own, colour = live[:, g], COLOURS[g % len(COLOURS)]
            ax.plot(steps[own], ess[own, g], color=colour, linewidth=1, alpha=1 if n_groups < 4 else 0.5)
            at = own & resampled[:, g]
            ax.plot(steps[at], ess[at, g], "o", color=colour, markersize=4)
        if n_groups > MOST_LINES:
            median = [np.median(ess[t, live[t]]) for t in range(n_steps)]
            ax.plot(steps, median, color="black", linewidth=2, label=f"median of {n_groups} groups")
            ax.legend()
        ax.axhline(n_particles, color=GREY, linewidth=1, linestyle=":")
        ax.set(xlabel="step", ylabel="effective sample size", ylim=(0, 1.05 * n_particles))
        return figure


def exact_by_depth(bellman_error: np.ndarray, sigma2: np.ndarray) -> "Figure":
    """Draw the largest Bellman error of each depth, and below it the part of sigma2 that each step adds, (T,) both.

    Infinite values are left out.
    """
    steps = np.arange(1, len(sigma2) + 1)
    bellman_error, sigma2 = (np.where(np.isfinite(x), x, np.nan) for x in (bellman_error, sigma2))
    with drawing(4.6, rows=2) as (figure, (above, below)):
        above.plot(steps, bellman_error, "o-", color=COLOURS[0], markersize=4)
        above.set_ylabel("largest Bellman error")
        below.bar(steps, sigma2, color=COLOURS[1])
        below.set(xlabel="step", ylabel="part of σ²")
        return figure
