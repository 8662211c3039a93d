r"""Whether p is on the scale of the outcomes: the gradient of the log loss in an offset, a slope and a drift of its log odds.

A map of p that keeps its order at a depth t, sigmoid(x + a + b (x - mean x) + c (t - mean t)) with x = logit p, leaves p as it
is at a = b = c = 0. If outcomes have the probability p, the gradient of the log loss there has expectation 0:
U = sum (y - p) (1, x - mean x, t - mean t). Hotelling's test of its mean over prompts needs no fit, and holds with few prompts.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> x, prompt = rng.normal(size=4000), np.repeat(np.arange(200), 20)
>>> p, depth = 1 / (1 + np.exp(-x)), np.zeros(4000)
>>> y = (rng.random(4000) < p).astype(float)
>>> scale_check(p, y, prompt, depth, 0.01).resolved, scale_check(p**2, y, prompt, depth, 0.01).resolved
(False, True)
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import f as f_distribution

from rmtools.particles.tilt import Tilt
from rmtools.stats.bootstrap import cluster_sums, labels_of
from rmtools.stats.calibration import reliability_curve

MOST_LOG_ODDS = 12.0
LEVEL = 0.05


@dataclass(frozen=True)
class ScaleCheck:
    """Whether p differs from the outcomes by a monotone map.

    Attributes
    ----------
    p_value : float or None
        Of p on the scale of the outcomes; None with too few prompts to test it.
    log_gap : float
        RMS over ten bins of p of log V minus the log of the mean outcome's potential, nats, without the noise of the bins.
    n_prompts : int
    """

    p_value: float | None
    log_gap: float
    n_prompts: int

    @property
    def resolved(self) -> bool:
        """Whether outcomes exclude, at the level of 5%, that p is on their scale."""
        return self.p_value is not None and self.p_value < LEVEL


def scale_check(
    p: np.ndarray, outcome: np.ndarray, prompt: np.ndarray, depth: np.ndarray, floor: float
) -> ScaleCheck:
    """Test whether p (n,) is on the scale of the outcomes (n,) in [0, 1].

    ``prompt`` (n,) are the clusters, ``depth`` (n,) steps taken, ``floor`` that of the tilt.
    """
    p, y = np.asarray(p, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    labels, n_prompts = labels_of(prompt, len(p))
    with np.errstate(divide="ignore"):
        x = np.clip(np.log(p) - np.log1p(-p), -MOST_LOG_ODDS, MOST_LOG_ODDS)
    columns = [np.ones(len(p)), x - x.mean(), depth - np.mean(depth)]
    used = np.stack([c for c in columns if c.any()], axis=1)
    return ScaleCheck(
        _p_value(cluster_sums((y - p)[:, None] * used, labels)), _log_gap(p, y, labels, floor), n_prompts
    )


def _p_value(sums: np.ndarray) -> float | None:
    """Return that of Hotelling's test of a mean of 0, of sums (P, K) over prompts; None with too few prompts."""
    n = len(sums)
    if n < 2:
        return None
    # In units of their spread, without directions that others hold already.
    spread = sums.std(axis=0, ddof=1)
    unit = sums[:, spread > 0] / spread[spread > 0]
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(unit, rowvar=False))) if unit.size else ([], unit)
    kept = np.asarray(values) > 1e-8
    k = int(kept.sum())
    if k == 0 or n <= k + 1:
        return None
    mean = (unit @ vectors[:, kept]).mean(axis=0)
    statistic = n * float(np.sum(mean**2 / np.asarray(values)[kept])) * (n - k) / (k * (n - 1))
    return float(f_distribution.sf(statistic, k, n - k))


def _log_gap(p: np.ndarray, y: np.ndarray, prompt: np.ndarray, floor: float) -> float:
    curve, tilt = reliability_curve(p, y), Tilt(floor)
    gap = tilt.log_potential(curve.mean_p) - tilt.log_potential(curve.mean_outcome)
    n, total = int(prompt.max()) + 1, 0.0
    for k, mass in enumerate(curve.mass):
        inside = curve.index == k
        rest = cluster_sums((y - curve.mean_outcome[k]) * inside, prompt)[:, 0]
        se = np.sqrt(n / max(n - 1, 1) * (rest @ rest)) / inside.sum()
        value = np.exp(tilt.log_potential(curve.mean_outcome[k]))
        total += mass * (gap[k] ** 2 - ((1 - floor) * se / value) ** 2)
    return float(np.sqrt(max(total, 0.0)))
