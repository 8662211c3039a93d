"""Bellman residuals of single prefixes from their one-step children, and what follows without averaging.

At a prefix with K children, x = V(child) / V(prefix): the mean of x is unbiased for rho, a U-statistic is
unbiased for (rho - 1)^2, and log rho is estimated with its first-order bias and its noise removed
(docs/equations.md section 6).

>>> import numpy as np
>>> errors = prefix_errors(np.log([0.5]), np.log([[0.25, 0.75, 0.5, 0.5]]))
>>> [round(float(x[0]), 6) for x in (errors.ratio, errors.squared_error, errors.log_error)]
[1.0, -0.041667, 0.020833]
"""

from dataclasses import dataclass, fields

import numpy as np

from rmtools.errors import UserError
from rmtools.stats.bootstrap import labels_of, refuse_nan


@dataclass(frozen=True, eq=False)
class PrefixErrors:
    """Bellman errors of P prefixes, all arrays (P,).

    Attributes
    ----------
    count : np.ndarray
        Number of children K; 0 for exact ratios.
    ratio : np.ndarray
        Mean x, unbiased for rho; NaN without children or with a prefix of value zero.
    squared_error : np.ndarray
        Unbiased for (rho - 1)^2, may be negative; NaN with K < 2.
    plug_in : np.ndarray
        log of the mean x, nats.
    log_error : np.ndarray
        log rho with the first-order bias removed, nats; NaN with K < 2.
    log_error_noise : np.ndarray
        Variance of `log_error`, to first order; NaN with K < 2.
    half_log_error_square : np.ndarray
        `log_error_square` from half of the children, averaged over both halves; NaN with K < 4.
    identical : np.ndarray
        All of at least two children have the same value: the noise estimate is 0, which may be luck.
    degenerate : np.ndarray
        The prefix or all of its children have value zero: log rho does not exist.
    exact : bool
        The ratios come from enumeration and carry no noise.
    """

    count: np.ndarray
    ratio: np.ndarray
    squared_error: np.ndarray
    plug_in: np.ndarray
    log_error: np.ndarray
    log_error_noise: np.ndarray
    half_log_error_square: np.ndarray
    identical: np.ndarray
    degenerate: np.ndarray
    exact: bool = False

    @property
    def log_error_square(self) -> np.ndarray:
        """(P,) `log_error`^2 minus its noise, may be negative; unbiased to first order in 1/K."""
        found: np.ndarray = self.log_error**2 - self.log_error_noise
        return found

    @property
    def resolved(self) -> np.ndarray:
        """(P,) bool: the noise of `log_error` is known (two children or more, no value of zero)."""
        known: np.ndarray = np.isfinite(self.log_error_noise)
        return known

    def __len__(self) -> int:
        return len(self.count)

    def take(self, index: np.ndarray) -> "PrefixErrors":
        """Return those of the prefixes ``index`` (integers)."""
        arrays = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "exact"}
        return PrefixErrors(**arrays, exact=self.exact)


def prefix_errors(
    log_value: np.ndarray, child_log_value: np.ndarray, present: np.ndarray | None = None
) -> PrefixErrors:
    """Estimate the Bellman error of each prefix from its children.

    Parameters
    ----------
    log_value : np.ndarray
        (P,) nats; -inf is a value of zero.
    child_log_value : np.ndarray
        (P, K) nats, the values of independent draws of the next step.
    present : np.ndarray, optional
        (P, K) bool; entries that are not present are not read.

    Raises
    ------
    UserError
        If a value that is present is NaN or +inf, or the shapes do not fit.

    Notes
    -----
    Source: docs/equations.md section 6.
    """
    log_value, child, mask = check_values(log_value, child_log_value, present)
    zero = log_value == -np.inf
    log_x = np.where(mask & ~zero[:, None], child, -np.inf) - np.where(zero, 0.0, log_value)[:, None]
    count = mask.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_mean, corrected, noise = _log_error(log_x, mask)
        ratio = np.where(zero | (count == 0), np.nan, np.exp(log_mean))
        squared = np.where(zero, np.nan, pair_mean(np.expm1(log_x), mask))
    highest, lowest = np.where(mask, child, -np.inf), np.where(mask, child, np.inf)
    identical = highest.max(axis=1, initial=-np.inf) == lowest.min(axis=1, initial=np.inf)
    degenerate = (count > 0) & (zero | (log_mean == -np.inf))
    return PrefixErrors(
        count=count,
        ratio=ratio,
        squared_error=squared,
        plug_in=np.where(degenerate, np.nan, log_mean),
        log_error=corrected,
        log_error_noise=noise,
        half_log_error_square=_half_square(log_x, mask),
        identical=(count >= 2) & identical,
        degenerate=degenerate,
    )


def check_values(
    log_value: np.ndarray, child_log_value: np.ndarray, present: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values (P,), children (P, K) and the mask of those present; raise as `prefix_errors`."""
    log_value = np.asarray(log_value, dtype=np.float64)
    child = np.asarray(child_log_value, dtype=np.float64)
    if log_value.ndim != 1 or child.ndim != 2 or len(child) != len(log_value):
        raise UserError(
            f"log_value has shape {log_value.shape} and child_log_value {child.shape}",
            fix="pass (P,) and (P, K); mask what is missing with `present`",
        )
    mask = np.ones(child.shape, dtype=bool) if present is None else np.asarray(present, dtype=bool)
    if mask.shape != child.shape:
        raise UserError(f"`present` has shape {mask.shape}, the children {child.shape}", fix="pass (P, K)")
    refuse_nan("log_value", log_value)
    refuse_nan("child_log_value", child, mask)
    for name, bad in (("log_value", log_value == np.inf), ("child_log_value", mask & (child == np.inf))):
        if bad.any():
            raise UserError(
                f"{name}{np.argwhere(bad)[0].tolist()} is +inf: a value is finite, or -inf for zero"
            )
    return log_value, child, mask


def _log_error(log_x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log mean of x, the same with its first-order bias removed, and its noise variance; (P,) each.

    Everything is relative to the largest child, so ratios of any size neither overflow nor lose the variance.
    """
    count = mask.sum(axis=1)
    masked = np.where(mask, log_x, -np.inf)
    top = masked.max(axis=1, initial=-np.inf)
    u = np.exp(masked - np.where(top == -np.inf, 0.0, top)[:, None])
    mean = u.sum(axis=1) / count
    log_mean = np.log(mean) + np.where(top == -np.inf, 0.0, top)
    deviation = np.where(mask, u - mean[:, None], 0.0)
    relative = np.sum(deviation**2, axis=1) / np.where(count > 1, count - 1, np.nan) / mean**2
    noise = relative / count
    return log_mean, log_mean + noise / 2, noise


def pair_mean(y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mean of y_i y_j over pairs i != j of the entries (..., K) present; NaN with fewer than two."""
    y, count = np.where(mask, y, 0.0), mask.sum(axis=-1)
    pairs = np.where(count > 1, count * (count - 1.0), np.nan)
    mean: np.ndarray = (y.sum(axis=-1) ** 2 - np.sum(y**2, axis=-1)) / pairs
    return mean


def _half_square(log_x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Noise-corrected square of the log error from each half of the children, averaged; NaN with K < 4."""
    rank, half = np.cumsum(mask, axis=1) - 1, (mask.sum(axis=1) // 2)[:, None]
    squares = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for part in (mask & (rank < half), mask & (rank >= half) & (rank < 2 * half)):
            _, error, noise = _log_error(log_x, part)
            squares.append(error**2 - noise)
    found: np.ndarray = (squares[0] + squares[1]) / 2
    return found


def exact_errors(log_ratio: np.ndarray) -> PrefixErrors:
    """Wrap exact b = log rho, where the children of each prefix were enumerated under the policy.

    Parameters
    ----------
    log_ratio : np.ndarray
        (P,) nats; -inf (all children have value zero) or +inf is counted as degenerate.

    Raises
    ------
    UserError
        If an entry is NaN.
    """
    b = np.asarray(log_ratio, dtype=np.float64)
    refuse_nan("log_ratio", b)
    finite = np.isfinite(b)
    shown, zero = np.where(finite, b, np.nan), np.where(finite, 0.0, np.nan)
    return PrefixErrors(
        count=np.zeros(len(b), dtype=np.intp),
        ratio=np.exp(shown),
        squared_error=np.expm1(shown) ** 2,
        plug_in=shown,
        log_error=shown,
        log_error_noise=zero,
        half_log_error_square=shown**2,
        identical=np.zeros(len(b), dtype=bool),
        degenerate=~finite,
        exact=True,
    )


def self_normalise(log_weights: np.ndarray, *labels: np.ndarray) -> np.ndarray:
    """Return importance weights with mean one within each cell of equal labels.

    For the guided state distribution the log weight is log V(s_t) - log V(s_0). Normalised per prompt and
    depth, each cell keeps its on-policy mass, as a sampler with N particles per prompt at every step has it;
    without labels the normalisation is over all prefixes.

    Parameters
    ----------
    log_weights : np.ndarray
        (P,) nats; -inf is weight zero.
    *labels : np.ndarray
        (P,) each, for example prompt and depth.

    Returns
    -------
    np.ndarray
        (P,) weights; 0 throughout a cell in which all weights are zero.

    Raises
    ------
    UserError
        If a log weight is NaN or +inf, or a label has another length.
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    refuse_nan("log_weights", log_weights)
    if np.any(log_weights == np.inf):
        raise UserError(
            f"log_weights[{int(np.argmax(log_weights))}] is +inf", fix="check the values behind it"
        )
    cell = np.zeros(len(log_weights), dtype=np.intp)
    for label in labels:
        index, n_labels = labels_of(label, len(log_weights), "labels")
        cell = cell * n_labels + index
    cell, n_cells = labels_of(cell, len(log_weights))
    top = np.full(n_cells, -np.inf)
    np.maximum.at(top, cell, log_weights)
    w = np.exp(log_weights - np.where(top == -np.inf, 0.0, top)[cell])
    total, count = np.bincount(cell, w, n_cells), np.bincount(cell, minlength=n_cells)
    found: np.ndarray = w * (count / np.where(total > 0, total, 1.0))[cell]
    return found
