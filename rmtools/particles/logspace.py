"""Sums and means of numbers held as logarithms; zeros are -inf, and no NaN arises.

>>> import numpy as np
>>> round(float(np.exp(log_mean_exp(np.log([[1.0, 3.0]]))[0])), 12)
2.0
>>> float(log_mean_exp(np.array([[-np.inf, -np.inf]]))[0])
-inf
"""

import numpy as np

MANY_COLUMNS = 16


def shift_of(log_x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the maximum along `axis` (kept), or 0 where it is infinite and subtracting it would make NaN."""
    top = log_x.max(axis=axis, keepdims=True)
    return np.where(np.isinf(top), 0.0, top)


def log_sum_exp(log_x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return log of the sum of exp(log_x) along `axis`, nats; -inf for a sum of zeros."""
    shift = shift_of(log_x, axis)
    return _log(np.exp(log_x - shift).sum(axis=axis), shift.squeeze(axis))


def log_mean_exp(log_x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return log of the mean of exp(log_x) along `axis`, nats; exact where all entries are equal."""
    shift = shift_of(log_x, axis)
    return _log(np.exp(log_x - shift).mean(axis=axis), shift.squeeze(axis))


def log_mean_columns(log_x: np.ndarray, log_p: np.ndarray | None = None) -> np.ndarray:
    """Return log sum_b p_b exp(log_x[..., b]) over the last axis, nats; p_b = 1/B without `log_p`.

    For a short last axis (branches, pools) a loop over whole columns is several times faster than a numpy reduction.
    """
    n_columns = log_x.shape[-1]
    if n_columns > MANY_COLUMNS:
        return log_mean_exp(log_x) if log_p is None else log_sum_exp(log_x + log_p)
    columns = [log_x[..., b] if log_p is None else log_x[..., b] + log_p[..., b] for b in range(n_columns)]
    if n_columns == 1:
        return columns[0].copy()
    top = columns[0]
    for column in columns[1:]:
        top = np.maximum(top, column)
    shift = np.where(np.isinf(top), 0.0, top)
    total = np.exp(columns[0] - shift)
    for column in columns[1:]:
        total += np.exp(column - shift)
    if log_p is None:
        total /= n_columns
    return _log(total, shift)


def log_normalise(log_x: np.ndarray) -> np.ndarray:
    """Subtract the log sum along the last axis; rows of zeros (-inf) stay as they are."""
    total = log_sum_exp(log_x)[..., None]
    return log_x - np.where(total == -np.inf, 0.0, total)


def _log(total: np.ndarray, shift: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        log_total: np.ndarray = np.log(total) + shift
    return log_total
