"""Bellman errors from plain trajectories, where no prefix has a second child.

A prefix s_t with the value of its one next step shows x_t = V(s_{t+1}) / V(s_t). Given s_t, x_t - 1 has mean
rho - 1, so the mean over a bin of prefixes (one depth, similar values) is the bin's signed error. The error of a
single prefix is hidden in noise that one child cannot tell from it, but by Jensen the squared means of the bins
add up to at most the mean of (rho - 1)^2 (docs/equations.md section 6).

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> rising = np.log(rng.choice([0.5, 1.7], size=300))  # V(s_1) = 1.1 on average where V(s_0) = 1
>>> falling = np.log(rng.choice([0.2, 0.7], size=300))  # V(s_1) = 0.45 on average where V(s_0) = 0.5
>>> rows = [[0.0, x] for x in rising] + [[np.log(0.5), x] for x in falling]
>>> summary = flat_estimator(rows, np.arange(600), n_bins=2).bootstrap(rng)
>>> summary.squared_ratio_error_at_least.contains(0.01), summary.signed_mean.contains(0.0)
(True, True)
>>> [(b.depth, b.n_prefixes, b.signed_mean.estimate > 0) for b in summary.bins]
[(0, 300, False), (0, 300, True)]
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rmtools.errors import UserError
from rmtools.particles.arguments import check_count
from rmtools.stats.bootstrap import Estimator, Interval, labels_of, ratio_of_means, refuse_nan, root
from rmtools.stats.quantiles import equal_mass_bins


@dataclass(frozen=True)
class FlatBin:
    """The prefixes of one depth whose values are close to each other.

    Attributes
    ----------
    depth : int
        t.
    lowest_log_value, highest_log_value : float
        Range of log V(s_t), nats.
    n_prefixes, n_prompts : int
        What was found there.
    signed_mean : Interval
        Mean of rho - 1, unbiased; the bin is held fixed.
    """

    depth: int
    lowest_log_value: float
    highest_log_value: float
    n_prefixes: int
    n_prompts: int
    signed_mean: Interval


@dataclass(frozen=True)
class FlatSummary:
    """What trajectories without children say about the Bellman error, intervals over prompts.

    Attributes
    ----------
    n_prompts, n_prefixes : int
        Sizes of the sample.
    n_degenerate : int
        Prefixes without a ratio (their value is zero, or too small a share of the next): left out everywhere.
    n_bins_left_out, n_prefixes_left_out : int
        Bins with prefixes of fewer than 2 prompts, and their prefixes. They are in `signed_mean`, and count as
        free of error in `squared_ratio_error_at_least`.
    signed_mean : Interval
        Mean of rho - 1 over all prefixes.
    squared_ratio_error_at_least : Interval
        Sum over bins of their share times the square of their mean, from pairs of prefixes of different prompts:
        unbiased for the squares of the bins, hence at most the mean of (rho - 1)^2 (Jensen), with equality
        where rho is a function of the bin. May be negative by noise: kept. NaN without any bin.
    rms_ratio_error_at_least : Interval
        Its root; 0 for a negative mean square.
    bins : tuple of FlatBin
        By depth, then by value.
    """

    n_prompts: int
    n_prefixes: int
    n_degenerate: int
    n_bins_left_out: int
    n_prefixes_left_out: int
    signed_mean: Interval
    squared_ratio_error_at_least: Interval
    rms_ratio_error_at_least: Interval
    bins: tuple[FlatBin, ...]


def flat_estimator(
    log_value: Sequence[ArrayLike], prompt: np.ndarray, n_bins: int = 4
) -> Estimator[FlatSummary]:
    """Signed Bellman errors by depth and value, and what they say at least about the mean square.

    Parameters
    ----------
    log_value : sequence of array_like
        One (T + 1,) per trajectory, nats: the prompt's value first, then one after each step. Lengths may differ.
    prompt : np.ndarray
        (N,) label of each trajectory's prompt.
    n_bins : int
        Bins of equal mass at each depth; fewer if many prefixes share a value. More bins raise the lower end
        and its noise.

    Raises
    ------
    UserError
        If there is no prefix with a ratio, a value is NaN or +inf, or the shapes do not fit.

    Notes
    -----
    Bins are cut by the values V(s_t) of the sample itself, at which x_t has not been looked at. Source:
    docs/equations.md section 6.
    """
    check_count("n_bins", n_bins)
    value, depth, who, error = _prefixes(log_value, prompt)
    found = np.isfinite(error)
    value, depth, who, error = value[found], depth[found], who[found], error[found]
    if len(error) == 0:
        raise UserError("there is no prefix with a value above zero", fix="pass at least one step")
    bin_of = depth * n_bins
    for t in np.unique(depth):
        bin_of[depth == t] += equal_mass_bins(value[depth == t], n_bins)
    bins, total = labels_of(bin_of, len(error))
    _, n_prompts = labels_of(prompt, len(log_value))
    sums, counts = (
        np.bincount(who * total + bins, weights, n_prompts * total).reshape(n_prompts, total)
        for weights in (error, None)
    )
    kept = np.flatnonzero((counts > 0).sum(axis=0) >= 2)
    problems = {f"{b}": (np.stack([sums[:, b], counts[:, b]], axis=1), ratio_of_means) for b in kept}
    everything = counts.sum(axis=1)
    problems["signed"] = (np.stack([sums.sum(axis=1), everything], axis=1), ratio_of_means)
    squares = _squared_means(sums[:, kept], counts[:, kept])
    problems["squared"] = (np.stack([squares, everything], axis=1), ratio_of_means)

    def result(intervals: Mapping[str, Interval]) -> FlatSummary:
        at_least = intervals["squared"] if len(kept) else Interval(math.nan, None, None)
        return FlatSummary(
            n_prompts=n_prompts,
            n_prefixes=len(found),
            n_degenerate=int((~found).sum()),
            n_bins_left_out=total - len(kept),
            n_prefixes_left_out=int(counts.sum() - counts[:, kept].sum()),
            signed_mean=intervals["signed"],
            squared_ratio_error_at_least=at_least,
            rms_ratio_error_at_least=root(at_least),
            bins=tuple(
                _bin(depth[bins == b], value[bins == b], who[bins == b], intervals[f"{b}"]) for b in kept
            ),
        )

    return Estimator(problems, result)


def _prefixes(
    log_value: Sequence[ArrayLike], prompt: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return log V(s_t), t, prompt 0..C-1 and x_t - 1 of every prefix, (P,); the last not finite if degenerate."""
    rows = [np.asarray(row, dtype=np.float64) for row in log_value]
    label, _ = labels_of(prompt, len(rows))
    for i, row in enumerate(rows):
        if row.ndim != 1 or len(row) == 0:
            raise UserError(f"log_value[{i}] has shape {row.shape}", fix="pass (T + 1,) per trajectory")
        refuse_nan(f"log_value[{i}]", row)
        if (row == np.inf).any():
            raise UserError(f"log_value[{i}] holds +inf: a value is finite, or -inf for zero")
    steps = [len(row) - 1 for row in rows]
    empty = [np.zeros(0)]
    value, after = (np.concatenate(empty + [row[part] for row in rows]) for part in (np.s_[:-1], np.s_[1:]))
    depth = np.concatenate([*(np.arange(n) for n in steps), np.zeros(0, dtype=np.intp)])
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.expm1(after - value)
    return value, depth, np.repeat(label, steps), error


def _squared_means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Parts (C,) of sum over bins of n times the squared mean, from sums and counts (C, B) per prompt and bin.

    They add up to the mean over pairs of prefixes of different prompts, times n. Split as 2 m S_p - m^2 n_p with
    m from the other prompts, the derivative of the square, they also have its noise.
    """
    total, n = sums.sum(axis=0), counts.sum(axis=0)
    pairs = n**2 - np.sum(counts**2, axis=0)
    square = (total**2 - np.sum(sums**2, axis=0)) / pairs
    parts: np.ndarray = np.sum(2 * sums * (total - sums) * n / pairs - square * counts, axis=1)
    return parts


def _bin(depth: np.ndarray, value: np.ndarray, who: np.ndarray, signed_mean: Interval) -> FlatBin:
    lowest, highest = float(value.min()), float(value.max())
    return FlatBin(int(depth[0]), lowest, highest, len(who), len(np.unique(who)), signed_mean)
