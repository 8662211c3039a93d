"""Resampling schemes: (log_weights (G, n), n_out, rng) -> ancestors (G, n_out), all groups at once.

Every random scheme is unbiased: the expected number of offspring of particle i is n_out times its normalised weight.
Ancestors are in nondecreasing order within a group (`top_k`: best first). Neighbours stay neighbours, from which
systematic resampling profits, and counting distinct parents takes one comparison.

>>> import numpy as np
>>> log_weights = np.array([[np.log(0.5), np.log(0.25), np.log(0.25), -np.inf]])
>>> systematic(log_weights, 4, np.random.default_rng(0)).tolist()
[[0, 0, 1, 2]]
>>> sorted(RESAMPLING)
['multinomial', 'none', 'residual', 'stratified', 'systematic', 'top_k']
"""

from collections.abc import Callable

import numpy as np

from rmtools.errors import UserError

UNIT_BITS = 62  # weights are summed in units of 2^-62 of their sum, or of 2^-62 n_out of an offspring

Resampler = Callable[[np.ndarray, int, np.random.Generator, np.ndarray | None], np.ndarray]


def multinomial(
    log_weights: np.ndarray, n_out: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """Draw independently by weight: the scheme of arXiv 2602.01381 Algorithm 1 and of its theorems.

    Parameters
    ----------
    log_weights : np.ndarray
        (G, n) nats, not necessarily normalised; -inf is weight zero.
    n_out : int
        Number of ancestors per group.
    rng : np.random.Generator
        Source of the draws.
    weights : np.ndarray, optional
        exp(log_weights) up to a factor per group, if the caller has it already; the largest of a group
        between 1e-250 and 1e250.

    Returns
    -------
    np.ndarray
        (G, n_out) int, nondecreasing in each row.

    Raises
    ------
    UserError
        If a weight is NaN or a group has no positive weight.
    """
    ends = _ends(log_weights, weights, 1 << (UNIT_BITS - 1))
    n_groups, n = ends.shape
    # Sorting shares and points together is a search of all points at once, and several times faster than one. The
    # last bit tells a point (1) from a share (0).
    both = np.empty((n_groups, n + n_out), dtype=np.int64)
    np.left_shift(ends, 1, out=both[:, :n])
    words = rng.integers(0, 2**64 - 1, (n_groups, n_out), dtype=np.uint64, endpoint=True)
    points = np.bitwise_or((words >> np.uint64(64 - UNIT_BITS)).view(np.int64), 1, out=both[:, n:])
    np.minimum(points, both[:, n - 1 : n] - 1, out=points)  # the shares' sum may round below 2^61
    both.sort(axis=1)
    place = np.flatnonzero((both & 1).astype(bool)).reshape(n_groups, n_out)
    place -= np.arange(n_groups)[:, None] * (n + n_out) + np.arange(n_out)
    return place


def stratified(
    log_weights: np.ndarray, n_out: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """Draw one uniform in each of `n_out` equal strata; otherwise as `multinomial`."""
    bits = UNIT_BITS - int(n_out).bit_length()
    ends = _ends(log_weights, weights, n_out << bits)
    ends = np.where(ends == ends[:, -1:], n_out << bits, np.minimum(ends, n_out << bits))
    stratum = np.minimum(ends >> bits, n_out - 1)
    uniform = rng.random((len(ends), n_out))
    inside = uniform.ravel().take(stratum + np.arange(len(ends))[:, None] * n_out)
    return _from_offspring(stratum + (inside * 2.0**bits < ends - (stratum << bits)), n_out)


def systematic(
    log_weights: np.ndarray, n_out: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """Draw one uniform per group, shared by all strata; otherwise as `multinomial`."""
    bits = UNIT_BITS - int(n_out).bit_length()
    ends = _ends(log_weights, weights, n_out << bits)
    # Tooth k of the comb lies at k + 1 - u, so the number of teeth below x is the whole part of x + u. Rounding leaves
    # the last end a few units off n_out; u is drawn so that all n_out teeth lie below it.
    off = (n_out << bits) - ends[:, -1:]
    room = (1 << bits) - np.abs(off)
    u = np.minimum((rng.random((len(ends), 1)) * room).astype(np.int64), room - 1)
    ends += np.maximum(off, 0) + u
    ends >>= bits
    return _from_offspring(ends, n_out)


def residual(
    log_weights: np.ndarray, n_out: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """Keep the whole parts of n_out * weight and draw the rest; otherwise as `multinomial`."""
    weights = _weights(log_weights, weights)
    expected = weights * (n_out / weights.sum(axis=1, keepdims=True))
    # A whole number rounded to just below itself must not lose its last offspring to chance.
    nearest = np.rint(expected)
    expected = np.where(np.abs(expected - nearest) <= 1e-12 * np.maximum(nearest, 1.0), nearest, expected)
    counts = np.floor(expected)
    missing = n_out - counts.sum(axis=1).astype(np.intp)
    short = np.flatnonzero(missing)
    if len(short):
        rows = np.repeat(np.arange(len(short)), missing[short])
        drawn = search_rows(np.cumsum((expected - counts)[short], axis=1), rows, rng.random(len(rows)))
        extra = np.bincount(rows * weights.shape[1] + drawn, minlength=len(short) * weights.shape[1])
        counts[short] += extra.reshape(len(short), -1)
    return _from_offspring(np.cumsum(counts, axis=1).astype(np.intp), n_out)


def top_k(
    log_weights: np.ndarray, n_out: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """Keep the `n_out` largest, best first, the earlier of equals first: beam search, not unbiased.

    Parameters and result as `multinomial`; `rng` is not used. Groups without positive weight are ranked too. Raises
    UserError if a weight is NaN or fewer than `n_out` candidates exist.
    """
    if n_out > log_weights.shape[1]:
        raise UserError(f"top_k cannot keep {n_out} of {log_weights.shape[1]} candidates", fix="lower n_out")
    _refuse_nan(log_weights)
    return np.argsort(-log_weights, axis=1, kind="stable")[:, :n_out]


def none(
    log_weights: np.ndarray, n_out: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """Continue every particle by itself: importance sampling. Parameters as `multinomial`; `rng` is not used.

    Raises UserError if `n_out` differs from the number of particles.
    """
    n_groups, n = log_weights.shape
    if n_out != n:
        raise UserError(
            f"resampling 'none' keeps all {n} particles, got n_out={n_out}", fix="choose another scheme"
        )
    return np.tile(np.arange(n), (n_groups, 1))


RESAMPLING: dict[str, Resampler] = {
    "multinomial": multinomial,
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "none": none,
    "top_k": top_k,
}


def resolve(name: str) -> Resampler:
    """Return the scheme called `name`, or raise UserError with the valid names."""
    if not isinstance(name, str) or name not in RESAMPLING:
        raise UserError(f"unknown resampling scheme {name!r}", fix=f"choose one of {', '.join(RESAMPLING)}")
    return RESAMPLING[name]


def _refuse_nan(log_weights: np.ndarray) -> None:
    bad = np.isnan(log_weights)
    if bad.any():
        group, particle = np.argwhere(bad)[0]
        raise UserError(
            f"log weight of group {group}, particle {particle} is NaN", fix="check the values behind it"
        )


def _weights(log_weights: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    if weights is not None:
        return weights
    top = log_weights.max(axis=1, keepdims=True)
    if not np.isfinite(top).all():
        _refuse_nan(log_weights)
        group = int(np.flatnonzero(~np.isfinite(top[:, 0]))[0])
        raise UserError(
            f"group {group} cannot be resampled: its largest log weight is {top[group, 0]}",
            fix="leave out groups whose particles all have weight zero, and infinite weights",
        )
    found: np.ndarray = np.exp(log_weights - top)
    return found


def _ends(log_weights: np.ndarray, weights: np.ndarray | None, total: int) -> np.ndarray:
    """Return the (G, n) running sums of the weights in integer units; the last is `total` up to rounding.

    Sums of integers are exact, and an addition takes a quarter of the time of one of floats.
    """
    weights = _weights(log_weights, weights)
    scaled = weights * (float(total) / weights.sum(axis=1, keepdims=True))
    units = np.rint(scaled, out=scaled).astype(np.int64)
    ends: np.ndarray = np.cumsum(units, axis=1, out=units)
    return ends


def _from_offspring(below: np.ndarray, n_out: int) -> np.ndarray:
    """Return ancestors (G, n_out) from the number of offspring of particles 0 ... i, (G, n) int, which is overwritten.

    The parent of offspring k is the number of particles with at most k offspring up to and including them. Counting
    these and a running sum over all groups at once are several times faster than repeating each particle.
    """
    n_groups, n = below.shape
    below += np.arange(n_groups)[:, None] * n_out
    counts = np.bincount(below.ravel(), minlength=n_groups * n_out + 1)
    ancestors = np.cumsum(counts[:-1]).reshape(n_groups, n_out)
    ancestors -= np.arange(n_groups)[:, None] * n
    return ancestors


def search_rows(cumulative: np.ndarray, rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the first particle of each row whose cumulative share exceeds the point; never one of weight zero."""
    n_groups, n = cumulative.shape
    # One search for all groups: group g occupies [g, g + 1). Its last share is exactly g + 1, so a point strictly
    # below g + 1 cannot fall on the next group or on trailing particles of weight zero.
    offset = np.arange(n_groups, dtype=np.float64)
    shares = (cumulative / cumulative[:, -1:] + offset[:, None]).ravel()
    below = np.nextafter(offset + 1.0, 0.0)
    found = np.searchsorted(shares, np.minimum(points + offset[rows], below[rows]), side="right")
    place: np.ndarray = found - rows * n
    return place
