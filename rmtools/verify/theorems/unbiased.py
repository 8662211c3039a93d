"""E[Zhat] = Z for every family, scheme, N, M and ESS threshold (docs/equations.md, section 4).

A test within 4.5 standard errors needs a small and honest standard error: every setting has runs * N >= 400 (sigma2 + 1),
and the largest standard error is printed. An ESS threshold is tested only if the ESS crosses it: in each family some
steps resample and others do not (except `needle`, whose weights are all equal before the end).
"""

import numpy as np

from rmtools.core import FiniteModel, solve
from rmtools.verify.theorems.case import Case, Figures
from rmtools.verify.theorems.instances import small_families
from rmtools.verify.theorems.simulation import Setting, share_resampled, z_ratios

NAME = "unbiased"
ON = "every family x scheme (not top_k) x (N, M) x ESS threshold"
MUST_SHOW = "mean of Zhat within 4.5 standard errors of Z, runs x N >= 400 (sigma2 + 1)"
SIZES = ((1, 4), (8, 1), (20, 1), (6, 3))
THRESHOLDS = (0.0, 0.5, 0.9, 1.0)
NEVER_TRIGGERED = ("needle",)
SCHEMES = ("multinomial", "systematic", "stratified", "residual")
LIMIT = 4.5


def settings() -> list[Setting]:
    """Return every scheme at every threshold; `none` has no threshold."""
    return [
        Setting(n, m, scheme, threshold)
        for n, m in SIZES
        for scheme, thresholds in [*((s, THRESHOLDS) for s in SCHEMES), ("none", (0.5,))]
        for threshold in thresholds
    ]


def cases(quick: bool) -> list[Case]:
    """Return one case per family."""
    runs = 5_000 if quick else 60_000
    return [
        Case(name, measure, {"family": name, "runs": runs}, runs * 52 * 12 * 8.0) for name in small_families()
    ]


def measure(family: str, runs: int, rng: np.random.Generator) -> Figures:
    """Return the largest deviation over the settings of one family."""
    model = small_families()[family]
    sigma2 = solve(model).sigma2
    rows = [setting_row(model, s, max(runs, int(np.ceil(400 * (sigma2 + 1) / s.n))), rng) for s in settings()]
    triggered = max(row["share_resampled"] for row in rows if 0 < row["threshold"] < 1 and row["n"] > 1)
    worst = max(rows, key=lambda row: abs(row["z_score"]))
    return {
        "sigma2": sigma2,
        "settings": rows,
        "largest_z_score": worst["z_score"],
        "largest_error": max(row["standard_error"] for row in rows),
        "largest_share_triggered": triggered,
        "holds": abs(worst["z_score"]) <= LIMIT and (triggered > 0.02 or family in NEVER_TRIGGERED),
    }


def setting_row(model: FiniteModel, setting: Setting, runs: int, rng: np.random.Generator) -> Figures:
    """Return the mean of Zhat / Z under one setting."""
    ratio = z_ratios(model, setting, runs, rng)
    share = share_resampled(model, setting, 500, rng)
    error = float(ratio.std(ddof=1) / np.sqrt(runs))
    off = float(ratio.mean()) - 1
    return {
        "n": setting.n,
        "m": setting.m,
        "scheme": setting.scheme,
        "threshold": setting.threshold,
        "runs": runs,
        "share_resampled": share,
        "mean": 1 + off,
        "standard_error": error,
        # A consistent value has no variance; the rest is rounding.
        "z_score": 0.0 if abs(off) < 1e-9 else off / max(error, 1e-300),
    }


def figures(found: list[Figures]) -> str:
    """Return the figures in a line."""
    n = sum(len(case["settings"]) for case in found)
    z = max(abs(case["largest_z_score"]) for case in found)
    error = max(case["largest_error"] for case in found)
    return (
        f"{n} settings, largest |z| {z:.2f} (limit {LIMIT}), largest standard error {100 * error:.2f}% of Z"
    )
