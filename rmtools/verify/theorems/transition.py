"""The phase transition: particles for a fixed accuracy on `persistent`, for constant epsilon and for epsilon = c / T.

The accuracy is a coefficient of variation of Zhat of .2, where N = 25 sigma2 and the asymptote holds. Up to 100,000
particles (quick: 2,000) the number is measured: the sampler is run at the predicted N, N scaled by the variance
found, and run again until that is the accuracy's; beyond it is predicted. Where N is not large beside T as well (epsilon =
1/T) the measured number is below the predicted one by up to a third: lineages coalesce, and the asymptote is not reached.
"""

import math
from typing import Any

import numpy as np

from rmtools.core import FiniteModel, needle, persistent, solve
from rmtools.verify.theorems.case import Case, Setting, z_ratios
from rmtools.verify.theorems.result import counted

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
    """One curve a case."""
    steps, most = (5e6, MOST_PARTICLES // 50) if quick else (5e7, MOST_PARTICLES)
    curves: list[tuple[str, str, float, tuple[int, ...]]] = [
        (f"epsilon = {c:g}/T", "scaled", c, HORIZONS) for c in SCALED
    ]
    curves += [(f"epsilon = {eps}", "constant", eps, horizons_for(eps)) for eps in CONSTANT]
    curves.append(("no reward model", "none", 2.0, tuple(range(4, 41, 2))))
    return [
        Case(
            label,
            measure,
            {"kind": kind, "level": level, "horizons": t, "steps": steps, "most": most},
            steps * len(t),
        )
        for label, kind, level, t in curves
    ]


def horizons_for(eps: float) -> tuple[int, ...]:
    """T = 8 to 256, and more of them where the sampler reaches the asymptote."""
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
) -> dict[str, Any]:
    """Return a curve: predicted and, where it can be run, measured N at every T; and its slope or rate."""
    rows = [point(model_of(kind, level, t), t, steps, most, rng) for t in horizons]
    out: dict[str, Any] = {
        "kind": kind,
        "level": level,
        "delta_cv": DELTA_CV,
        "most_particles": most,
        "rows": rows,
    }
    if kind == "scaled":
        out |= fitted(rows, lambda row: math.log(row["horizon"]))
        out["holds"] = level not in (1.0, 2.0) or (out["slope"] <= 1.2 and agreement(rows))
    elif kind == "constant":
        late = [row for row in rows if row["horizon"] * math.log1p(level) >= ASYMPTOTE]
        out |= fitted(late, lambda row: row["horizon"] * math.log1p(level))
        out |= measured_rate(rows, lambda row: row["horizon"] * math.log1p(level))
        out["holds"] = abs(out["slope"] - 1) <= 0.05 and out["rate_holds"] and agreement(rows)
    else:
        out |= fitted(
            [row for row in rows if row["horizon"] >= 6], lambda row: row["horizon"] * math.log(level)
        )
        out["holds"] = abs(out["slope"] - 1) <= 0.05 and agreement(rows)
    return out


def point(
    model: FiniteModel, horizon: int, steps: float, most: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Return predicted and measured particles at one T."""
    predicted = solve(model).n_for_cv(DELTA_CV)
    row: dict[str, Any] = {
        "horizon": horizon,
        "predicted": predicted,
        "measured": None,
        "error": None,
        "runs": 0,
    }
    if predicted <= most:
        row |= measured(model, max(2, math.ceil(predicted)), steps, rng)
    return row


def measured(model: FiniteModel, n: int, steps: float, rng: np.random.Generator) -> dict[str, Any]:
    """Return the N at which the variance is that of the accuracy: scaled by the variance found, again where far off."""
    for _ in range(ITERATIONS):
        runs = int(np.clip(steps / (n * model.horizon), LEAST_RUNS, 40_000))
        square = (z_ratios(model, Setting(n), runs, rng) - 1) ** 2
        scale = float(square.mean()) / DELTA_CV**2
        error = float(square.std(ddof=1) / np.sqrt(runs)) / DELTA_CV**2
        if abs(scale - 1) <= max(0.05, 2 * error):
            break
        last, n = n, max(2, round(n * scale))
    else:
        n = last
    return {"runs": runs, "run_at": n, "measured": n * scale, "error": n * error}


def fitted(rows: list[dict[str, Any]], x: Any) -> dict[str, Any]:
    """Return the slope of log N on ``x``: measured N where there is one and predicted beyond; and of the predicted alone."""
    at = [x(row) for row in rows]
    found = [row["measured"] or row["predicted"] for row in rows]
    return {
        "slope": float(np.polyfit(at, np.log(found), 1)[0]),
        "slope_predicted": float(np.polyfit(at, np.log([row["predicted"] for row in rows]), 1)[0]),
        "fitted_points": len(rows),
        "measured_points": sum(row["measured"] is not None for row in rows),
    }


def measured_rate(rows: list[dict[str, Any]], x: Any) -> dict[str, Any]:
    """Return how far the measured rate is from the predicted one over the same T, from measured N alone.

    The slope of log(measured / predicted) on ``x``, weighted, over points that are large beside T; it must be 0
    within 5% of the rate and two of its standard errors.
    """
    at = [row for row in rows if row["measured"] is not None and row["predicted"] >= 10 * row["horizon"]]
    if len(at) < 2:
        return {
            "rate_difference": None,
            "rate_difference_error": None,
            "rate_points": len(at),
            "rate_holds": True,
        }
    t = np.array([x(row) for row in at])
    y = np.log([row["measured"] / row["predicted"] for row in at])
    w = np.array([row["measured"] / max(row["error"], 1e-12) for row in at]) ** 2
    t = t - w @ t / w.sum()
    rate, error = float(w @ (t * y) / (w @ t**2)), float(1 / np.sqrt(w @ t**2))
    return {
        "rate_difference": rate,
        "rate_difference_error": error,
        "rate_points": len(at),
        "rate_holds": abs(rate) <= 0.05 + 2 * error,
    }


def agreement(rows: list[dict[str, Any]]) -> bool:
    """Whether every measured N that is large beside T is within 15% of the predicted, up to 4.5 standard errors.

    Below, where the prediction is conservative, from half of it to 15% above; fewer than 25 predicted are not judged.
    """
    return all(
        (0.85 if row["predicted"] >= 10 * row["horizon"] else 0.5) * row["predicted"] - 4.5 * row["error"]
        <= row["measured"]
        <= 1.15 * row["predicted"] + 4.5 * row["error"]
        for row in rows
        if row["measured"] is not None and row["predicted"] >= 25
    )


def judge(found: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether all hold, and the figures in a line."""
    slopes = ", ".join(
        f"{case['slope']:.2f} (c = {case['level']:g})" for case in found if case["kind"] == "scaled"
    )
    rates = ", ".join(
        f"{case['slope']:.3f} ({case['level']})" for case in found if case["kind"] == "constant"
    )
    apart = [c for c in found if c.get("rate_difference") is not None]
    seen = ", ".join(f"{1 + c['rate_difference']:.2f} +- {c['rate_difference_error']:.2f}" for c in apart)
    text = (
        f"log-log slope {slopes}; rate / log(1 + epsilon) {rates}; measured alone over predicted {seen or 'too few'}; "
        f"{counted(found)}"
    )
    return all(case["holds"] for case in found), text
