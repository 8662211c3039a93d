"""The two ends of what a perfect value costs, prompt by prompt (docs/equations.md section 5).

`perfect_parts` bounds 1 / V*(s) by polynomials around h = c / V(s), valid for any c and any number of terms. Which
ones are close depends on the model: prefixes of one depth whose values are close share a c, and both c and the
number of terms are those that suit all other prompts.

>>> import numpy as np
>>> from rmtools.stats.perfect_parts import perfect_parts
>>> rng = np.random.default_rng(0)
>>> phi, extra = rng.choice([0.5, 1.0], (99, 4)), rng.choice([0.5, 1.0], (99, 4, 2, 3))
>>> values = np.log(np.full((4, 3), 0.75))  # V* = 0.75 before the last step, so V = V*
>>> lower, upper = perfect_ends([perfect_parts(values, *row) for row in zip(phi, extra)])
>>> [bool(abs(end.mean() - 0.0625) < 0.02) for end in (lower, upper)]  # Z^2 sigma^2 = Var(phi)
[True, True]
"""

from collections.abc import Sequence

import numpy as np

from rmtools.errors import UserError
from rmtools.particles.arguments import check_count
from rmtools.stats.binned_errors import equal_mass_bins
from rmtools.stats.bootstrap import labels_of
from rmtools.stats.perfect_parts import PerfectParts

# Powers of 1 - phi h are heavy-tailed where phi h may be large. In audits of 100 prompts with floor .05 and a poor
# model, four terms wherever they looked better gave lower ends down to -160; with these two guards none below -1.
CLEAR = 2.0  # standard errors by which more terms must be better for the other prompts
LARGEST_STEP = 3.0  # largest phi h at which four terms are used: |1 - phi h| is at most 2
# One prompt can make up most of a bin, and its noise the bin's c: as if so many more of its size had the depth's c.
PULL = 2.0


def perfect_ends(parts: Sequence[PerfectParts], n_bins: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return each prompt's lower and upper end of Z^2 sigma^2 of a perfect value.

    Parameters
    ----------
    parts : sequence of PerfectParts
        One per prompt.
    n_bins : int
        Bins of equal mass of the model's value at each depth.

    Returns
    -------
    tuple of np.ndarray
        (C,) each. Their expectations lie below and above Z^2 sigma^2. A prompt without others has c = 1 and the
        fewest terms.

    Raises
    ------
    UserError
        If there is no prompt, or `n_bins` is below 1.

    Notes
    -----
    Lower end: 2 or 4 terms; with 2, the c used is the one at which the sum over the other prompts is the
    Cauchy-Schwarz bound E[A^2 / V]^2 / E[A^2 B / V^2]. Upper end: none or 2 terms and the remainder. Source:
    docs/equations.md section 5.
    """
    if not parts:
        raise UserError("there is no prompt to pool over", fix="pass the parts of at least one prompt")
    check_count("n_bins", n_bins)
    depth, smallest, sums = _cell_sums(parts, n_bins)
    moments, inverse, remainder = sums[:4], sums[4], sums[5:]
    c = _scale(moments[0], moments[1], depth)
    two = 2 * c * moments[0] - c**2 * moments[1]
    four = 4 * c * moments[0] - 6 * c**2 * moments[1] + 4 * c**3 * moments[2] - c**4 * moments[3]
    corrected = two + remainder[0] - 2 * c * remainder[1] + c**2 * remainder[2]
    bounded = c * _largest_of_others(parts)[:, None] <= LARGEST_STEP * smallest
    base = np.array([p.known - p.horizon * p.z_square for p in parts])
    return base + _clearly_larger(two, np.where(bounded, four, two)), base - _clearly_larger(
        -inverse, -corrected
    )


def _cell_sums(parts: Sequence[PerfectParts], n_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the prefixes of each depth into bins of the value, and sum over each prompt's prefixes in each.

    Returns
    -------
    tuple of np.ndarray
        (D,) depth and smallest V of each of D cells; (8, C, D) sums of moments, inverse and remainder.
    """
    sizes = [p.log_value.shape for p in parts]
    prompt = np.repeat(np.arange(len(parts)), [n * t for n, t in sizes])
    depth = np.concatenate([np.tile(np.arange(t), n) for n, t in sizes])
    log_value = np.concatenate([p.log_value.ravel() for p in parts])
    rows = np.concatenate(
        [np.concatenate([p.moments, p.inverse[None], p.remainder]).reshape(8, -1) for p in parts], axis=1
    )
    live = ~np.isnan(log_value)
    prompt, depth, log_value, rows = prompt[live], depth[live], log_value[live], rows[:, live]
    cell, n_cells = labels_of(depth * n_bins + equal_mass_bins(log_value, depth, n_bins), len(depth))
    at, smallest = np.zeros(n_cells, dtype=np.intp), np.full(n_cells, np.inf)
    at[cell] = depth
    np.minimum.at(smallest, cell, log_value)
    sums = [np.bincount(prompt * n_cells + cell, row, len(parts) * n_cells) for row in rows]
    return at, np.exp(smallest), np.stack(sums).reshape(8, len(parts), n_cells)


def _scale(cross: np.ndarray, norm: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return c of each prompt and cell (C, D): cross over norm of the other prompts, pulled to that of the depth."""
    same = depth[:, None] == np.arange(depth.max(initial=-1) + 1)
    whole = _ratio(_others(cross @ same), _others(norm @ same), 1.0)[:, depth]
    pull = PULL * np.sqrt(_others(cross**2))
    return _ratio(_others(cross) + pull, _others(norm) + pull / whole, whole)


def _ratio(a: np.ndarray, b: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    return np.where(b > 0, a / np.where(b > 0, b, 1.0), otherwise)


def _clearly_larger(plain: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Sum over cells of `plain`, or of `other` where it is clearly larger for all other prompts, (C,)."""
    gain = np.where(np.isfinite(other).all(axis=0), other - plain, 0.0)
    clear = _others(gain) > CLEAR * np.sqrt(_others(gain**2))
    return np.sum(plain + np.where(clear, gain, 0.0), axis=1)


def _largest_of_others(parts: Sequence[PerfectParts]) -> np.ndarray:
    """Largest potential seen at any other prompt, (C,)."""
    own = np.eye(len(parts), dtype=bool)
    return np.where(own, 0.0, np.array([p.largest for p in parts])).max(axis=1)


def _others(x: np.ndarray) -> np.ndarray:
    """Sum over all prompts but each one, (C, D); nothing is subtracted, which could lose a small rest."""
    none = np.zeros((1, x.shape[1]))
    before = np.concatenate([none, np.cumsum(x[:-1], axis=0)])
    after = np.concatenate([np.cumsum(x[:0:-1], axis=0)[::-1], none])
    return before + after
