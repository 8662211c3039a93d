"""Figures of samples and rollouts, for `Samples.plot` and `Rollouts.plot`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rmtools.plots.drawing import GREY, STYLES, Values, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = [style[1] for style in STYLES.values()]


def ess_of_records(records: Sequence[Values]) -> "Figure":
    """Draw the effective sample size by step: a line per run, in the colour of its prompt; particle Gibbs has none."""
    with drawing(3.2) as (figure, (ax,)):
        for i, record in enumerate(records):
            for run in record["runs"] or [record]:
                ess = run["ess"] or []
                ax.plot(range(1, len(ess) + 1), ess, color=COLOURS[i % len(COLOURS)], linewidth=1, alpha=0.6)
        n = max((record["sampler"]["n_particles"] for record in records), default=1)
        ax.axhline(n, color=GREY, linewidth=1, linestyle=":")
        ax.set(xlabel="step", ylabel="effective sample size", ylim=(0, 1.05 * n))
        return figure


def rewards_and_lengths(rewards: Sequence[float], lengths: Sequence[int]) -> "Figure":
    """Draw how many prompts have which mean reward, if any, and how many trajectories have which number of steps."""
    with drawing(4.6 if rewards else 2.6, rows=1 + bool(rewards)) as (figure, axes):
        below = axes[-1]
        if rewards:
            axes[0].hist(rewards, bins=20, range=(0, 1), color=COLOURS[0])
            axes[0].set(xlabel="mean reward of a prompt", ylabel="prompts")
        longest = max(lengths, default=1)
        below.bar(range(1, longest + 1), [lengths.count(n) for n in range(1, longest + 1)], color=COLOURS[0])
        below.set(xlabel="steps", ylabel="trajectories")
        return figure
