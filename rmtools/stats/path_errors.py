"""Errors of whole trajectories and transitions: path sums, the gauge-fixed error, the ratio bound.

>>> import numpy as np
>>> from rmtools.stats.prefix_errors import exact_errors
>>> sums = path_sums(exact_errors(np.array([0.1, -0.1, 0.2, 0.2])), np.array([0, 0, 1, 1]))
>>> sums.total.tolist()
[0.0, 0.4]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rmtools.stats.bootstrap import Estimator, Interval, labels_of, ratio_of_means, root, weighted_mean
from rmtools.stats.prefix_errors import PrefixErrors, check_values
from rmtools.stats.quantiles import quantile_interval


@dataclass(frozen=True, eq=False)
class PathSums:
    """Sums of the log error along trajectories, arrays (n,).

    Attributes
    ----------
    trajectory : np.ndarray
        Label of each trajectory, ascending.
    total, noise : np.ndarray
        Sum of `log_error` and of its noise variance, nats; NaN if a step is not resolved.
    plug_in : np.ndarray
        Sum of the uncorrected log error.
    steps : np.ndarray
        Number of prefixes summed.
    """

    trajectory: np.ndarray
    total: np.ndarray
    noise: np.ndarray
    plug_in: np.ndarray
    steps: np.ndarray


def path_sums(errors: PrefixErrors, trajectory: np.ndarray) -> PathSums:
    """Sum log errors over the prefixes of each trajectory: random signs cancel, a persistent bias does not.

    Parameters
    ----------
    errors : PrefixErrors
        Of P prefixes.
    trajectory : np.ndarray
        (P,) label of the trajectory of each prefix.

    Raises
    ------
    UserError
        If the lengths differ.

    Notes
    -----
    Estimate `errors` from the extra children alone. The trajectory's own next step may count as a child
    everywhere else, but here its value decides both the noise at t and the prefix at t + 1: the corrected mean
    square is then biased by a term of order 1/K (on a tree of four steps -.052 of .125 at K = 8, .005 without
    it). The mean is not affected. Source: docs/equations.md section 6.
    """
    index, n = labels_of(trajectory, len(errors), "trajectory")
    columns = (errors.log_error, errors.log_error_noise, errors.plug_in)
    total, noise, plug_in = (np.bincount(index, column, n) for column in columns)
    return PathSums(np.unique(trajectory), total, noise, plug_in, np.bincount(index, minlength=n))


@dataclass(frozen=True)
class RatioBound:
    """Quantiles over transitions of max(x, 1/x), x = V(child) / V(prefix): the ratio bound L as far as seen.

    Attributes
    ----------
    quantiles : dict
        Level (as text, "0.95") to Interval.
    largest : float
        Largest observed among positive values.
    n, n_zero : int
        Number of transitions, and of those with a value of zero on either side (their ratio is infinite; they
        enter no quantile).
    """

    quantiles: dict[str, Interval]
    largest: float
    n: int
    n_zero: int


def ratio_bound_quantiles(
    log_value: np.ndarray,
    child_log_value: np.ndarray,
    present: np.ndarray | None = None,
    prompt: np.ndarray | None = None,
    levels: Sequence[float] = (0.5, 0.9, 0.95, 0.99),
) -> RatioBound:
    """Quantiles of max(x, 1/x) over all transitions that were drawn.

    Parameters
    ----------
    log_value, child_log_value, present : np.ndarray
        As `prefix_errors`.
    prompt : np.ndarray, optional
        (P,) labels; the intervals are over prompts, and not available without them.
    levels : sequence of float

    Raises
    ------
    UserError
        As `prefix_errors`.
    """
    log_value, child, mask = check_values(log_value, child_log_value, present)
    row, _ = np.nonzero(mask)
    parent, drawn = log_value[row], child[mask]
    positive = (parent > -np.inf) & (drawn > -np.inf)
    bound = np.exp(np.abs(drawn[positive] - parent[positive]))
    largest = float(bound.max()) if len(bound) else np.nan
    # One cluster has no interval.
    owner = np.zeros(len(bound)) if prompt is None else prompt[row][positive]
    quantiles = {f"{q:g}": quantile_interval(bound, owner, q) for q in levels}
    return RatioBound(quantiles, largest, len(row), int((~positive).sum()))


@dataclass(frozen=True)
class PathSummary:
    """Sums of b along trajectories, nats, intervals over prompts.

    `mean` is a persistent bias; the root mean squares are plug-in and noise-corrected. Trajectories with a
    step that is not resolved are counted in `n_unresolved` and left out.
    """

    n_trajectories: int
    n_unresolved: int
    mean: Interval
    rms_plug_in: Interval
    mean_square_corrected: Interval
    rms_corrected: Interval


def path_estimator(sums: PathSums, prompt: np.ndarray) -> Estimator[PathSummary]:
    """Average path sums over trajectories; `prompt` (n,) labels them in the order of `sums.trajectory`.

    Raises
    ------
    UserError
        If the lengths differ.
    """
    use = np.isfinite(sums.total) & np.isfinite(sums.noise)
    columns = {"mean": sums.total, "plug_in": sums.plug_in**2, "corrected": sums.total**2 - sums.noise}
    problems = {name: weighted_mean(np.where(use, value, np.nan), prompt) for name, value in columns.items()}

    def result(found: Mapping[str, Interval]) -> PathSummary:
        corrected = found["corrected"]
        return PathSummary(
            n_trajectories=len(use),
            n_unresolved=int((~use).sum()),
            mean=found["mean"],
            rms_plug_in=root(found["plug_in"]),
            mean_square_corrected=corrected,
            rms_corrected=root(corrected),
        )

    return Estimator(problems, result)


@dataclass(frozen=True)
class GaugeFixed:
    """RMS of b after a constant per prompt and depth is removed, which the sampler does not see.

    `n_cells` cells of prompt and depth have the 8 prefixes it takes, `n_short` have fewer and are left out.
    """

    mean_square: Interval
    rms: Interval
    n_cells: int
    n_short: int


def gauge_fixed_estimator(
    errors: PrefixErrors, prompt: np.ndarray, depth: np.ndarray, min_prefixes: int = 8
) -> Estimator[GaugeFixed]:
    """Noise-corrected RMS of b with the mean of each (prompt, depth) cell removed.

    Leave out prompts whose trajectories end at different depths: the constant is not free there.

    Parameters
    ----------
    errors, prompt, depth
        As `bellman_estimator`.
    min_prefixes : int
        Cells with fewer resolved prefixes are counted, not used.

    Raises
    ------
    UserError
        If shapes differ.

    Notes
    -----
    Source: docs/equations.md section 7 (`gauge_fixed`, RMS form); unbiased to first order in 1/K.
    """
    use = errors.resolved
    owner, n_prompts = labels_of(prompt, len(errors))
    step, n_depths = labels_of(depth, len(errors), "depth")
    cell = (owner * n_depths + step)[use]
    n_cells = n_prompts * n_depths
    count = np.bincount(cell, minlength=n_cells)
    mean = np.bincount(cell, errors.log_error[use], n_cells) / np.maximum(count, 1)
    squares = np.bincount(cell, (errors.log_error[use] - mean[cell]) ** 2, n_cells)
    noise = np.bincount(cell, errors.log_error_noise[use], n_cells) / np.maximum(count, 1)
    enough = count >= max(min_prefixes, 2)
    spread = np.where(enough, squares / np.maximum(count - 1, 1) - noise, 0.0)
    used = np.where(enough, count, 0)
    sums = np.stack([spread * used, used], axis=1).reshape(n_prompts, n_depths, 2).sum(axis=1)
    n_short = int(((count > 0) & ~enough).sum())

    def result(found: Mapping[str, Interval]) -> GaugeFixed:
        square = found["mean_square"]
        return GaugeFixed(square, root(square), int(enough.sum()), n_short)

    return Estimator({"mean_square": (sums, ratio_of_means)}, result)
