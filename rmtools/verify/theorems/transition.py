"""The phase transition: particles for a fixed accuracy on `persistent`, for constant epsilon and for epsilon = c / T.

The accuracy is a coefficient of variation of Zhat of .2: N = 25 sigma2, where the asymptote holds. Up to 100,000 particles
(quick: 2,000) the number is measured: the sampler runs at the predicted N, N is scaled by the variance found, and the
sampler runs again until the accuracy is met. Larger numbers are predicted. If N is not large compared with T (epsilon =
1/T), the measured number is up to a third below the predicted one: lineages coalesce, and the asymptote is not reached.
"""

import math
from collections.abc import Callable

import numpy as np

from rmtools.core import FiniteModel, needle, persistent, solve
from rmtools.verify.theorems.case import Case, Figures
from rmtools.verify.theorems.simulation import Setting, squared_deviation

NAME = "phase transition"
ON = "persistent, T = 8 to 256, epsilon constant and c / T; needle for no reward model; multinomial at every step"
MUST_SHOW = (
    "N for a fixed accuracy: log-log slope <= 1.2 for epsilon = c/T, c = 1, 2; rate log(1 + epsilon) within 5% for "
    "constant epsilon"
)
DELTA_CV = 0.2
ITERATIONS, LEAST_RUNS = 4, 200
MOST_PARTICLES = 100_000
SCALED, CONSTANT = (1.0, 2.0, 8.0), (0.1, 0.2, 0.5)
ASYMPTOTE = 6.0  # T log(1 + epsilon) from which the constant-epsilon rate is fitted
HORIZONS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def cases(quick: bool) -> list[Case]:
    """Return one case per curve."""
    steps, most = (5e6, MOST_PARTICLES // 50) if quick else (5e7, MOST_PARTICLES)
    curves: list[tuple[str, str, float, tuple[int, ...]]] = [
        *((f"epsilon = {c:g}/T", "scaled", c, HORIZONS) for c in SCALED),
        *((f"epsilon = {eps}", "constant", eps, horizons_for(eps)) for eps in CONSTANT),
        ("no reward model", "none", 2.0, tuple(range(4, 41, 2))),
    ]
    found = []
    for label, kind, level, t in curves:
        arguments = {"kind": kind, "level": level, "horizons": t, "steps": steps, "most": most}
        found.append(Case(label, measure, arguments, steps * len(t)))
    return found


def horizons_for(eps: float) -> tuple[int, ...]:
    """Return T = 8 to 256, with additional T where the sampler reaches the asymptote."""
    start = ASYMPTOTE / math.log1p(eps)
    extra = {2 * round(start * (1 + 0.1 * k) / 2 + 0.5) for k in range(5)}
    return tuple(sorted({*HORIZONS, *(t for t in extra if t <= 256)}))


def model_of(kind: str, level: float, horizon: int) -> FiniteModel:
    """Return the model of one point of a curve."""
    if kind == "none":
        return needle(horizon, int(level))
    return persistent(horizon, level / horizon if kind == "scaled" else level)


def measure(
    kind: str, level: float, horizons: tuple[int, ...], steps: float, most: int, rng: np.random.Generator
) -> Figures:
    """Return a curve: predicted and, if it can be run, measured N at every T; and its slope or rate."""
    rows = [point(model_of(kind, level, t), t, steps, most, rng) for t in horizons]
    out: Figures = {
        "kind": kind,
        "level": level,
        "delta_cv": DELTA_CV,
        "most_particles": most,
        "rows": rows,
    }
    if kind == "scaled":
        out |= fitted(rows, lambda row: math.log(row["horizon"]))
        out["holds"] = level not in (1.0, 2.0) or (out["slope"] <= 1.2 and agree(rows))
    elif kind == "constant":
        late = [row for row in rows if row["horizon"] * math.log1p(level) >= ASYMPTOTE]
        out |= fitted(late, lambda row: row["horizon"] * math.log1p(level))
        out |= measured_rate(rows, lambda row: row["horizon"] * math.log1p(level))
        out["holds"] = abs(out["slope"] - 1) <= 0.05 and out["rate_holds"] and agree(rows)
    else:
        late = [row for row in rows if row["horizon"] >= 6]
        out |= fitted(late, lambda row: row["horizon"] * math.log(level))
        out["holds"] = abs(out["slope"] - 1) <= 0.05 and agree(rows)
    return out


def point(model: FiniteModel, horizon: int, steps: float, most: int, rng: np.random.Generator) -> Figures:
    """Return predicted and measured particles at one T."""
    predicted = solve(model).n_for_cv(DELTA_CV)
    row: Figures = {"horizon": horizon, "predicted": predicted, "measured": None, "error": None, "runs": 0}
    if predicted <= most:
        row |= measured(model, max(2, math.ceil(predicted)), steps, rng)
    return row


def measured(model: FiniteModel, n: int, steps: float, rng: np.random.Generator) -> Figures:
    """Return the N with the variance of the accuracy: scale N by the variance found, and repeat while it is far off."""
    for _ in range(ITERATIONS):
        runs = int(np.clip(steps / (n * model.horizon), LEAST_RUNS, 40_000))
        scale, error = (x / DELTA_CV**2 for x in squared_deviation(model, Setting(n), runs, rng))
        if abs(scale - 1) <= max(0.05, 2 * error):
            break
        last, n = n, max(2, round(n * scale))
    else:
        n = last
    return {"runs": runs, "run_at": n, "measured": n * scale, "error": n * error}


def fitted(rows: list[Figures], x: Callable[[Figures], float]) -> Figures:
    """Return the slope of log N on ``x``, N measured if possible, else predicted; and the slope of the predicted alone."""
    at = [x(row) for row in rows]
    found = [row["measured"] or row["predicted"] for row in rows]
    return {
        "slope": float(np.polyfit(at, np.log(found), 1)[0]),
        "slope_predicted": float(np.polyfit(at, np.log([row["predicted"] for row in rows]), 1)[0]),
        "fitted_points": len(rows),
        "measured_points": sum(row["measured"] is not None for row in rows),
    }


def measured_rate(rows: list[Figures], x: Callable[[Figures], float]) -> Figures:
    """Return the difference between the measured and the predicted rate over the same T, from measured N alone.

    It is the weighted slope of log(measured / predicted) on ``x`` over points with N large compared with T, and must be 0
    within 5% of the rate and two of its standard errors.
    """
    at = [row for row in rows if row["measured"] is not None and row["predicted"] >= 10 * row["horizon"]]
    out: Figures = {"rate_difference": None, "rate_difference_error": None, "rate_points": len(at)}
    if len(at) < 2:
        return {**out, "rate_holds": True}
    t = np.array([x(row) for row in at])
    y = np.log([row["measured"] / row["predicted"] for row in at])
    w = np.array([row["measured"] / max(row["error"], 1e-12) for row in at]) ** 2
    t = t - w @ t / w.sum()
    rate, error = float(w @ (t * y) / (w @ t**2)), float(1 / np.sqrt(w @ t**2))
    holds = abs(rate) <= 0.05 + 2 * error
    return {**out, "rate_difference": rate, "rate_difference_error": error, "rate_holds": holds}


def agree(rows: list[Figures]) -> bool:
    """Whether every measured N that is large compared with T is within 15% of the predicted, up to 4.5 standard errors.

    Smaller N, for which the prediction is conservative: from half of it to 15% above. Below 25 predicted: not judged.
    """
    return all(
        (0.85 if row["predicted"] >= 10 * row["horizon"] else 0.5) * row["predicted"] - 4.5 * row["error"]
        <= row["measured"]
        <= 1.15 * row["predicted"] + 4.5 * row["error"]
        for row in rows
        if row["measured"] is not None and row["predicted"] >= 25
    )


def figures(found: list[Figures]) -> str:
    """Return the figures in a line."""
    slopes = ", ".join(
        f"{case['slope']:.2f} (c = {case['level']:g})" for case in found if case["kind"] == "scaled"
    )
    rates = ", ".join(
        f"{case['slope']:.3f} ({case['level']})" for case in found if case["kind"] == "constant"
    )
    known = [c for c in found if c.get("rate_difference") is not None]
    alone = ", ".join(f"{1 + c['rate_difference']:.2f} +- {c['rate_difference_error']:.2f}" for c in known)
    return f"log-log slope {slopes}; rate / log(1 + epsilon) {rates}; measured alone over predicted {alone or 'too few'}"
