"""Thm 4.1 and 4.2: the exponential costs on the families that prove them.

On `needle` and `hidden_prefix` sigma2 is exact and its rate per step is fitted. On `hidden_prefix` the smallest number of
particles for a total variation of .2 is also measured, over the two final states, on the hidden prefix or off it.

With codes instead of branches (a non-integer ratio) the first step decides everything, and resampling at every step loses
the hidden code by drift: N grows by a further factor of about T, for sigma2 as for the sampler. The rate of sigma2 is
fitted where that factor does not matter; N is measured with the default sampler, which does not resample while all weights
are equal.
"""

import math

import numpy as np

from rmtools.core import FiniteModel, hidden_prefix, needle, solve
from rmtools.verify.theorems.case import Case, Figures
from rmtools.verify.theorems.simulation import Setting, output_laws, target_law

NAME = "Thm 4.1, 4.2"
ON = "needle, B = 2 and 3; hidden_prefix, L = 2 and 3, 1 + epsilon = 1.1 and 1.5"
MUST_SHOW = "rate of sigma2 within 5% of log B, of 2/3 log L, of 2/3 log(1 + epsilon); measured N within 15%"
DELTA = 0.2
MOST_PARTICLES = 100_000
THRESHOLD = {"systematic": 0.5, "multinomial": 1.0}
FIRST_GUESS = {"systematic": 0.7, "multinomial": 1.4}  # of N, in codes; only saves time
WORDS = {"systematic": "default sampler", "multinomial": "multinomial at every step"}
RATIOS = {2.0: "L = 2", 3.0: "L = 3", 1.1: "1 + epsilon = 1.1", 1.5: "1 + epsilon = 1.5"}
# Scheme, ratio, lengths m: from 1,000 codes on, until N reaches MOST_PARTICLES or a run takes too long.
MEASURED: dict[str, dict[float, tuple[int, ...]]] = {
    "systematic": {2.0: (5, 6, 7, 8), 3.0: (4, 5), 1.1: (37, 42, 47, 52), 1.5: (9, 10, 11, 12, 13, 14)},
    "multinomial": {2.0: (5, 6, 7)},
}
MEASURED_QUICK: dict[str, dict[float, tuple[int, ...]]] = {"systematic": {2.0: (5, 6), 1.5: (9, 10, 11)}}
LEAST_RUNS = 600
MOST_TRIES = 8  # N from 1/17 to 17 times the first guess
LARGEST_LOG = 300.0  # of the number of codes: sigma2 stays a float


def cases(quick: bool) -> list[Case]:
    """Return exact rates, then measured ones."""
    found = [Case(f"needle, B = {b}", exact_needle, {"branching": b}) for b in (2, 3)]
    found += [Case(f"hidden_prefix, {name}", exact_hidden, {"ratio": r}) for r, name in RATIOS.items()]
    steps = 3e7 if quick else 1e8
    for scheme, measured in (MEASURED_QUICK if quick else MEASURED).items():
        for ratio, lengths in measured.items():
            arguments = {"ratio": ratio, "lengths": lengths, "scheme": scheme, "steps": steps}
            label = f"measured, {RATIOS[ratio]}, {WORDS[scheme]}"
            found.append(Case(label, measured_hidden, arguments, steps * len(lengths) * 4))
    return found


def slope(x: list[float], y: list[float]) -> float:
    """Return the least-squares slope; NaN from fewer than two points, or if one is not finite."""
    if len(x) < 2 or not np.isfinite(y).all():
        return math.nan
    return float(np.polyfit(x, y, 1)[0])


def compared(rate: float, expected: float, tolerance: float) -> Figures:
    """Return a rate beside the expected one, and whether it is within ``tolerance`` of it."""
    ratio = rate / expected
    return {"rate": rate, "expected": expected, "ratio": ratio, "holds": abs(ratio - 1) <= tolerance}


def exact_needle(branching: int, rng: np.random.Generator) -> Figures:
    """Return the rate of sigma2 on `needle` over log B."""
    horizons = list(range(6, 41))
    sigma2 = [solve(needle(t, branching)).sigma2 for t in horizons]
    rate = slope([float(t) for t in horizons], np.log(sigma2).tolist())
    return compared(rate, math.log(branching), 0.05)


def exact_hidden(ratio: float, rng: np.random.Generator) -> Figures:
    """Return the rate of sigma2 on `hidden_prefix` over 2/3 log(ratio), from ratio^(2m) = 1000 on."""
    log_ratio = math.log(ratio)
    first, last = math.ceil(math.log(1e3) / (2 * log_ratio)), int(LARGEST_LOG / (2 * log_ratio))
    lengths = np.unique(np.linspace(first, last, 6).astype(int)).tolist()
    sigma2 = [solve(hidden_prefix(m, ratio)).sigma2 for m in lengths]
    rate = slope([3.0 * m for m in lengths], np.log(sigma2).tolist())
    return {"horizons": [3 * lengths[0], 3 * lengths[-1]], **compared(rate, 2 / 3 * log_ratio, 0.05)}


def measured_hidden(
    ratio: float, lengths: tuple[int, ...], scheme: str, steps: float, rng: np.random.Generator
) -> Figures:
    """Return the smallest N with TV <= .2 at each length, and its rate."""
    rows = [smallest_n(m, ratio, scheme, steps, rng) for m in lengths]
    rows = [row for row in rows if not row["n"] > MOST_PARTICLES]
    rate = slope([3.0 * row["m"] for row in rows], [math.log(row["n"]) for row in rows])
    return {"rows": rows, **compared(rate, 2 / 3 * math.log(ratio), 0.15)}


def smallest_n(m: int, ratio: float, scheme: str, steps: float, rng: np.random.Generator) -> Figures:
    """Return the N at which TV crosses .2, log-linear between two N of ratio 1.5 that bracket it; NaN if none do."""
    model = hidden_prefix(m, ratio)
    n = FIRST_GUESS[scheme] * ratio ** (2 * m)
    crossing = math.nan
    seen: dict[float, float] = {}
    for _ in range(MOST_TRIES):
        seen[n] = hidden_tv(model, round(n), scheme, steps, rng)
        above = [x for x, tv in seen.items() if tv > DELTA]
        below = [x for x, tv in seen.items() if tv <= DELTA]
        if above and below and min(below) / max(above) < 1.6:
            low, high = max(above), min(below)
            share = (seen[low] - DELTA) / (seen[low] - seen[high])
            crossing = low * (high / low) ** share
            break
        n = n * 1.5 if seen[n] > DELTA else n / 1.5
    return {"m": m, "horizon": 3 * m, "n": crossing, "tv": {str(round(k)): v for k, v in seen.items()}}


def hidden_tv(model: FiniteModel, n: int, scheme: str, steps: float, rng: np.random.Generator) -> float:
    """Return |expected weight on the hidden prefix - its target probability| at N = n."""
    runs = int(np.clip(steps / (n * model.horizon), LEAST_RUNS, 20_000))
    setting = Setting(n, 1, scheme, THRESHOLD[scheme])
    weight = [law[:, 0] for _, law in output_laws(model, setting, runs, rng)]
    return abs(float(np.concatenate(weight).mean()) - float(target_law(model)[0]))


def figures(found: list[Figures]) -> str:
    """Return the figures in a line."""
    exact = [case["ratio"] for case in found if not case["label"].startswith("measured")]
    measured = [case["ratio"] for case in found if case["label"].startswith("measured")]
    return f"rate / theory {min(exact):.3f} to {max(exact):.3f} exact, {min(measured):.3f} to {max(measured):.3f} measured"
