"""Estimators of the Bellman error of a population of prefixes, with intervals over prompts.

One definition of Bellman error for audit and training: per-prefix estimates (`residuals`) averaged over
prefixes, the noise corrected, the intervals by resampling prompts (`intervals`), and beside them what the
sample cannot resolve (docs/equations.md section 6). Everything of that section is importable from here.

>>> import numpy as np
>>> rng = np.random.default_rng(1)
>>> prompt, depth = np.repeat(np.arange(200), 4), np.tile(np.arange(4), 200)
>>> children = np.log(rng.gamma(20.0, 1 / 20.0, (800, 16)))  # V = 1 has ratio 1: no Bellman error
>>> errors = prefix_errors(np.zeros(800), children)
>>> summary = bellman_summary(errors, prompt, depth, horizon=4, rng=rng)
>>> summary.rms_plug_in.estimate > 0.05, summary.mean_square_corrected.contains(0.0), summary.resolved
(True, True, True)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rmtools.errors import UserError
from rmtools.stats.bootstrap import (
    Interval,
    Statistic,
    bootstrap_all,
    cluster_bootstrap,
    cluster_sums,
    labels_of,
    ratio_of_means,
    root,
)
from rmtools.stats.path_errors import (
    GaugeFixed,
    PathSummary,
    PathSums,
    RatioBound,
    gauge_fixed_rms,
    path_summary,
    path_sums,
    ratio_bound_quantiles,
)
from rmtools.stats.prefix_errors import PrefixErrors, exact_errors, prefix_errors, self_normalise
from rmtools.stats.quantiles import FractionBound, fraction_bound, quantile_interval

__all__ = [
    "BellmanSummary",
    "DepthSummary",
    "FractionBound",
    "GaugeFixed",
    "Interval",
    "PathSummary",
    "PathSums",
    "PrefixErrors",
    "RatioBound",
    "bellman_summary",
    "cluster_bootstrap",
    "cluster_sums",
    "exact_errors",
    "exact_summary",
    "fraction_bound",
    "gauge_fixed_rms",
    "path_summary",
    "path_sums",
    "prefix_errors",
    "quantile_interval",
    "ratio_bound_quantiles",
    "self_normalise",
]

QUANTILES = (0.5, 0.9, 0.95)


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
    n_prompts, n_prefixes : int
        What was given.
    n_resolved, n_halved, n_degenerate, n_identical : int
        Prefixes with two children or more, with four or more, with a value of zero (no log exists), and whose
        children all have one value. The figures are over resolved prefixes.
    effective_sample_size : float
        (sum w)^2 / sum w^2 of the weights of the resolved prefixes.
    horizon : float
        T of `c`.
    signed_mean : Interval
        Mean b, first-order bias removed.
    rms_plug_in : Interval
        Root mean square of the uncorrected log mean: biased upward by noise.
    mean_square_corrected, rms_corrected : Interval
        Noise-corrected mean square, which may be negative, and its root (0 for a negative mean square).
    rms_half_children : Interval
        `rms_corrected` from half of the children: what it would have been with K/2.
    half_difference : Interval
        Mean square with K/2 minus mean square with K, on the same prefixes: the change in bias.
    mean_square_identical : Interval
        Part of `mean_square_corrected` that comes from prefixes whose children are all identical. Their noise is
        taken as 0: right where the step is forced, wrong where a rare child was not drawn, and K against K/2 does
        not tell which (both are blind where K times its probability is small).
    resolved : bool
        False where `rms_half_children` lies outside the interval of `rms_corrected` and the interval of
        `half_difference` excludes 0, where no half exists (K < 4), and where an interval is not available.
        A mean square of at most 0 is resolved as an upper bound only.
    squared_ratio_error, rms_ratio_error : Interval
        Mean of the U-statistic of (rho - 1)^2, unbiased at any K, and its root.
    quantiles : dict
        Level (as text) to Interval of |b|, plug-in.
    largest : float
        Largest |b| observed, plug-in; NaN without any.
    c : Interval
        `horizon` times `rms_corrected`: the budget the theorems speak of.
    by_depth : tuple of DepthSummary
        The same by depth.
    prompt_max_bound, prompt_mean_bound : FractionBound
        Distribution-free statements on a prompt's largest and mean observed |b|, without weights.
    exact : bool
        The ratios were enumerated: nothing had to be corrected.
    """

    n_prompts: int
    n_prefixes: int
    n_resolved: int
    n_halved: int
    n_degenerate: int
    n_identical: int
    effective_sample_size: float
    horizon: float
    signed_mean: Interval
    rms_plug_in: Interval
    mean_square_corrected: Interval
    rms_corrected: Interval
    rms_half_children: Interval
    half_difference: Interval
    mean_square_identical: Interval
    resolved: bool
    squared_ratio_error: Interval
    rms_ratio_error: Interval
    quantiles: dict[str, Interval]
    largest: float
    c: Interval
    by_depth: tuple[DepthSummary, ...]
    prompt_max_bound: FractionBound
    prompt_mean_bound: FractionBound
    exact: bool


def bellman_summary(
    errors: PrefixErrors,
    prompt: np.ndarray,
    depth: np.ndarray,
    horizon: float,
    weights: np.ndarray | None = None,
    *,
    rng: np.random.Generator,
    n_resamples: int = 2000,
) -> BellmanSummary:
    """Bellman error of a population of prefixes.

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
    rng : np.random.Generator
        Source of the resamples.
    n_resamples : int
        Number of resamples.

    Returns
    -------
    BellmanSummary

    Raises
    ------
    UserError
        If shapes differ, a weight is NaN or negative, or no prefix is left to speak of.

    Notes
    -----
    Source: docs/equations.md section 6.
    """
    prompt, depth, w = _checked(errors, prompt, depth, weights)
    problems = _problems(errors, prompt, w)
    depths = np.unique(depth)
    for t in depths:
        at_depth = _problems(errors, prompt, np.where(depth == t, w, 0.0))
        problems |= {f"{t} {name}": at_depth[name] for name in _BY_DEPTH}
    found = bootstrap_all(problems, rng, n_resamples)
    use, size = errors.resolved, np.abs(errors.plug_in)
    weighted = use & (w > 0)
    rms = root(found["corrected"])
    half = root(found["half"])
    return BellmanSummary(
        n_prompts=len(np.unique(prompt)),
        n_prefixes=len(errors),
        n_resolved=int(use.sum()),
        n_halved=int(np.isfinite(errors.half_log_error_square).sum()),
        n_degenerate=int(errors.degenerate.sum()),
        n_identical=int(errors.identical.sum()),
        effective_sample_size=_effective_size(w[use]),
        horizon=float(horizon),
        signed_mean=found["signed"],
        rms_plug_in=root(found["plug_in"]),
        mean_square_corrected=found["corrected"],
        rms_corrected=rms,
        rms_half_children=half,
        half_difference=found["half_difference"],
        mean_square_identical=found["identical"],
        resolved=errors.exact or _agree(rms, half, found["half_difference"]),
        squared_ratio_error=found["ratio"],
        rms_ratio_error=root(found["ratio"]),
        quantiles={f"{q:g}": quantile_interval(size[use], prompt[use], q, w[use]) for q in QUANTILES},
        largest=float(size[weighted].max()) if weighted.any() else math.nan,
        c=rms.map(lambda x: horizon * x),
        by_depth=tuple(_depth(int(t), found, prompt[use & (depth == t)]) for t in depths),
        prompt_max_bound=fraction_bound(_per_prompt(size[use], prompt[use], largest=True)),
        prompt_mean_bound=fraction_bound(_per_prompt(size[use], prompt[use], largest=False)),
        exact=errors.exact,
    )


def exact_summary(
    log_ratio: np.ndarray,
    prompt: np.ndarray,
    depth: np.ndarray,
    horizon: float,
    weights: np.ndarray | None = None,
    *,
    rng: np.random.Generator,
    n_resamples: int = 2000,
) -> BellmanSummary:
    """Return the figures of `bellman_summary` where log rho (P,) is exact: all children were enumerated."""
    return bellman_summary(
        exact_errors(log_ratio), prompt, depth, horizon, weights, rng=rng, n_resamples=n_resamples
    )


def _checked(
    errors: PrefixErrors, prompt: np.ndarray, depth: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = len(errors)
    if n == 0:
        raise UserError(
            "there are no prefixes to estimate a Bellman error from", fix="audit at least one trajectory"
        )
    labels_of(prompt, n), labels_of(depth, n, "depth")
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (n,):
        raise UserError(f"`weights` has shape {w.shape} for {n} prefixes", fix="pass one weight per prefix")
    bad = ~((w >= 0) & (w < np.inf))
    if bad.any():
        raise UserError(
            f"weights[{int(np.argmax(bad))}] is {w[np.argmax(bad)]}", fix="weights are finite and >= 0"
        )
    return np.asarray(prompt), np.asarray(depth), w


_BY_DEPTH = ("signed", "plug_in", "corrected", "ratio")


def _problems(
    errors: PrefixErrors, prompt: np.ndarray, w: np.ndarray
) -> dict[str, tuple[np.ndarray, Statistic]]:
    """Weighted means over the prefixes on which each figure exists, as sums per prompt."""
    quantities = {
        "signed": errors.log_error,
        "plug_in": np.where(errors.resolved, errors.plug_in, np.nan) ** 2,
        "corrected": errors.log_error_square,
        "half": errors.half_log_error_square,
        "half_difference": errors.half_log_error_square - errors.log_error_square,
        "ratio": errors.squared_error,
        "identical": np.where(errors.identical, errors.log_error_square, 0 * errors.log_error_square),
    }
    problems: dict[str, tuple[np.ndarray, Statistic]] = {}
    for name, value in quantities.items():
        used = np.where(np.isfinite(value), w, 0.0)
        numerator = np.where(np.isfinite(value), value, 0.0) * used
        problems[name] = (cluster_sums(np.stack([numerator, used], axis=1), prompt), ratio_of_means)
    return problems


def _agree(rms: Interval, half: Interval, difference: Interval) -> bool:
    """K and K/2 agree: within the interval, or no further apart than the noise of their difference."""
    if rms.half_width is None or not math.isfinite(half.estimate):
        return False
    return rms.contains(half.estimate) or (difference.half_width is not None and difference.contains(0.0))


def _effective_size(w: np.ndarray) -> float:
    return float(w.sum() ** 2 / np.sum(w**2)) if w.any() else 0.0


def _depth(t: int, found: Mapping[str, Interval], prompts: np.ndarray) -> DepthSummary:
    signed, plug_in, corrected, ratio = (found[f"{t} {name}"] for name in _BY_DEPTH)
    return DepthSummary(
        t, len(prompts), len(np.unique(prompts)), signed, root(plug_in), root(corrected), ratio
    )


def _per_prompt(size: np.ndarray, prompt: np.ndarray, largest: bool) -> np.ndarray:
    index, n_prompts = labels_of(prompt, len(size))
    if not largest:
        return np.bincount(index, size, n_prompts) / np.bincount(index, minlength=n_prompts)
    top = np.zeros(n_prompts)
    np.maximum.at(top, index, size)
    return top
