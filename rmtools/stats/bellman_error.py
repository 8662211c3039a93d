"""Bellman error of a population of prefixes, with intervals over prompts.

One definition of Bellman error for audit and training: per-prefix estimates (`prefix_errors`) averaged over
prefixes, the noise corrected, and beside them what the sample cannot resolve (docs/equations.md section 6).

>>> import numpy as np
>>> from rmtools.stats.prefix_errors import prefix_errors
>>> rng = np.random.default_rng(1)
>>> prompt, depth = np.repeat(np.arange(200), 4), np.tile(np.arange(4), 200)
>>> children = np.log(rng.gamma(20.0, 1 / 20.0, (800, 16)))  # V = 1 has ratio 1: no Bellman error
>>> errors = prefix_errors(np.zeros(800), children)
>>> summary = bellman_estimator(errors, prompt, depth, horizon=4).bootstrap(rng)
>>> summary.plug_in.rms.estimate > 0.05, summary.corrected.mean_square.contains(0.0), summary.resolved
(True, True, True)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rmtools.errors import UserError
from rmtools.stats.bootstrap import Estimator, Interval, Statistic, labels_of, root, weighted_mean
from rmtools.stats.prefix_errors import PrefixErrors
from rmtools.stats.quantiles import FractionBound, fraction_bound, quantile_interval

QUANTILES = (0.5, 0.9, 0.95)


@dataclass(frozen=True)
class PrefixCounts:
    """How many prefixes the figures rest on.

    Attributes
    ----------
    n_prompts, n_prefixes : int
        Sizes of the sample.
    n_resolved, n_halved, n_degenerate, n_identical : int
        Prefixes with two children or more, with four or more, with a value of zero (no log exists), and whose
        children all have one value. The figures are over resolved prefixes.
    effective_sample_size : float
        (sum w)^2 / sum w^2 of the weights of the resolved prefixes.
    """

    n_prompts: int
    n_prefixes: int
    n_resolved: int
    n_halved: int
    n_degenerate: int
    n_identical: int
    effective_sample_size: float


@dataclass(frozen=True)
class PlugInError:
    """Size of the uncorrected log mean: biased upward by noise.

    Attributes
    ----------
    rms : Interval
        Root mean square, nats.
    quantiles : dict
        Level (as text) to Interval of |b|.
    largest : float
        Largest |b| observed; NaN without any.
    """

    rms: Interval
    quantiles: dict[str, Interval]
    largest: float


@dataclass(frozen=True)
class CorrectedError:
    """Size of b with the sampling noise taken off.

    Attributes
    ----------
    mean_square, rms : Interval
        Mean square, which may be negative, and its root (0 for a negative mean square).
    c : Interval
        Horizon times `rms`: the budget the theorems speak of.
    mean_square_identical : Interval
        Part of `mean_square` from prefixes whose children are all identical. Their noise is taken as 0. That is right for
        a forced step and wrong if a rare child was not drawn; comparing K with K/2 cannot tell which.
    """

    mean_square: Interval
    rms: Interval
    c: Interval
    mean_square_identical: Interval


@dataclass(frozen=True)
class HalfChildren:
    """The corrected error from half of the children: what it would have been with K/2.

    Attributes
    ----------
    rms : Interval
        Root mean square.
    difference : Interval
        Mean square with K/2 minus mean square with K, on the same prefixes: the change in bias.
    """

    rms: Interval
    difference: Interval


@dataclass(frozen=True)
class RatioError:
    """Mean of the U-statistic of (rho - 1)^2, unbiased at any K, and its root."""

    mean_square: Interval
    rms: Interval


@dataclass(frozen=True)
class PromptBounds:
    """Distribution-free statements on a prompt's largest and mean observed |b|, without weights."""

    largest: FractionBound
    mean: FractionBound


@dataclass(frozen=True)
class DepthSummary:
    """Bellman error of the prefixes of one depth; the figures as in `BellmanSummary`."""

    depth: int
    n_prefixes: int
    n_prompts: int
    signed_mean: Interval
    rms_plug_in: Interval
    rms_corrected: Interval
    squared_ratio_error: Interval


@dataclass(frozen=True)
class BellmanSummary:
    """Bellman error of a population of prefixes, intervals over prompts; b = log rho, in nats.

    Attributes
    ----------
    counts : PrefixCounts
    horizon : float
        T of `corrected.c`.
    signed_mean : Interval
        Mean b, first-order bias removed.
    plug_in, corrected, half_children, ratio_error
        Size of the error: uncorrected, noise-corrected, from half of the children, and of rho - 1.
    by_depth : tuple of DepthSummary
    prompt_bounds : PromptBounds
    resolved : bool
        False if `half_children.rms` lies outside the interval of `corrected.rms` and the interval of
        `half_children.difference` excludes 0, if no half exists (K < 4), or if an interval is not available.
        A mean square of at most 0 is resolved as an upper bound only.
    exact : bool
        The ratios were enumerated: nothing had to be corrected.
    """

    counts: PrefixCounts
    horizon: float
    signed_mean: Interval
    plug_in: PlugInError
    corrected: CorrectedError
    half_children: HalfChildren
    ratio_error: RatioError
    by_depth: tuple[DepthSummary, ...]
    prompt_bounds: PromptBounds
    resolved: bool
    exact: bool


def bellman_estimator(
    errors: PrefixErrors,
    prompt: np.ndarray,
    depth: np.ndarray,
    horizon: float,
    weights: np.ndarray | None = None,
) -> Estimator[BellmanSummary]:
    """Estimate the Bellman error of a population of prefixes.

    Parameters
    ----------
    errors : PrefixErrors
        Of P prefixes, from `prefix_errors` or `exact_errors`.
    prompt, depth : np.ndarray
        (P,) integer labels of the prompt (resampled as one) and of the depth t.
    horizon : float
        T, for c = T times the error.
    weights : np.ndarray, optional
        (P,) nonnegative; equal by default (`on_policy`). For `guided` see `self_normalise`.

    Raises
    ------
    UserError
        If shapes differ, a weight is NaN or negative, or there are no prefixes.

    Notes
    -----
    Source: docs/equations.md section 6.
    """
    w = _checked(errors, prompt, depth, weights)
    problems = _problems(errors, prompt, w)
    for t in np.unique(depth):
        at_depth = _problems(errors, prompt, np.where(depth == t, w, 0.0))
        problems |= {f"{t} {name}": at_depth[name] for name in _BY_DEPTH}
    use, size = errors.resolved, np.abs(errors.plug_in)
    used, owner = size[use], prompt[use]

    def result(found: Mapping[str, Interval]) -> BellmanSummary:
        rms, half = root(found["corrected"]), HalfChildren(root(found["half"]), found["half_difference"])
        return BellmanSummary(
            counts=_counts(errors, prompt, w),
            horizon=float(horizon),
            signed_mean=found["signed"],
            plug_in=PlugInError(
                root(found["plug_in"]),
                {f"{q:g}": quantile_interval(used, owner, q, w[use]) for q in QUANTILES},
                float(np.max(used[w[use] > 0], initial=-math.inf)) if w[use].any() else math.nan,
            ),
            corrected=CorrectedError(
                found["corrected"], rms, rms.map(lambda x: horizon * x), found["identical"]
            ),
            half_children=half,
            ratio_error=RatioError(found["ratio"], root(found["ratio"])),
            by_depth=tuple(_depth(int(t), found, prompt[use & (depth == t)]) for t in np.unique(depth)),
            prompt_bounds=PromptBounds(*(fraction_bound(x) for x in _per_prompt(used, owner))),
            resolved=errors.exact or _agree(rms, half),
            exact=errors.exact,
        )

    return Estimator(problems, result)


def _checked(
    errors: PrefixErrors, prompt: np.ndarray, depth: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    n = len(errors)
    if n == 0:
        raise UserError(
            "there are no prefixes to estimate a Bellman error from", fix="audit at least one trajectory"
        )
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    for name, array in (("prompt", prompt), ("depth", depth), ("weights", w)):
        if array.shape != (n,):
            raise UserError(f"`{name}` has shape {array.shape} for {n} prefixes", fix="pass one per prefix")
    bad = ~((w >= 0) & (w < np.inf))
    if bad.any():
        raise UserError(
            f"weights[{int(np.argmax(bad))}] is {w[np.argmax(bad)]}", fix="weights are finite and >= 0"
        )
    return w


_BY_DEPTH = ("signed", "plug_in", "corrected", "ratio")


def _problems(
    errors: PrefixErrors, prompt: np.ndarray, w: np.ndarray
) -> dict[str, tuple[np.ndarray, Statistic]]:
    """Weighted means over the prefixes on which each figure exists."""
    square, half = errors.log_error_square, errors.half_log_error_square
    quantities = {
        "signed": errors.log_error,
        "plug_in": np.where(errors.resolved, errors.plug_in, np.nan) ** 2,
        "corrected": square,
        "half": half,
        "half_difference": half - square,
        "ratio": errors.squared_error,
        "identical": np.where(errors.identical, square, 0 * square),
    }
    return {name: weighted_mean(value, prompt, w) for name, value in quantities.items()}


def _agree(rms: Interval, half: HalfChildren) -> bool:
    """K and K/2 agree: within the interval, or no further apart than the noise of their difference."""
    if rms.half_width is None or not math.isfinite(half.rms.estimate):
        return False
    return rms.contains(half.rms.estimate) or (
        half.difference.half_width is not None and half.difference.contains(0.0)
    )


def _counts(errors: PrefixErrors, prompt: np.ndarray, w: np.ndarray) -> PrefixCounts:
    used = w[errors.resolved]
    return PrefixCounts(
        n_prompts=len(np.unique(prompt)),
        n_prefixes=len(errors),
        n_resolved=len(used),
        n_halved=int(np.isfinite(errors.half_log_error_square).sum()),
        n_degenerate=int(errors.degenerate.sum()),
        n_identical=int(errors.identical.sum()),
        effective_sample_size=float(used.sum() ** 2 / np.sum(used**2)) if used.any() else 0.0,
    )


def _depth(t: int, found: Mapping[str, Interval], prompts: np.ndarray) -> DepthSummary:
    signed, plug_in, corrected, ratio = (found[f"{t} {name}"] for name in _BY_DEPTH)
    return DepthSummary(
        t, len(prompts), len(np.unique(prompts)), signed, root(plug_in), root(corrected), ratio
    )


def _per_prompt(size: np.ndarray, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest and the mean |b| of each prompt."""
    index, n_prompts = labels_of(prompt, len(size))
    largest = np.zeros(n_prompts)
    np.maximum.at(largest, index, size)
    return largest, np.bincount(index, size, n_prompts) / np.bincount(index, minlength=n_prompts)
