"""The figures of an audit by name: the names of thresholds, of the model card, and of `AuditReport.to_frame`."""

from collections.abc import Mapping
from typing import Any

from rmtools.auditing.model_audit import ModelAudit
from rmtools.errors import UserError
from rmtools.stats.bootstrap import Interval

# Path of each figure in a model's audit. "best" is the enumerated error if there is one, else the sampled one.
METRICS = {
    "rms_log_bellman": "error/best/corrected/rms",
    "rms_log_bellman_guided": "error/best_guided/corrected/rms",
    "rms_log_bellman_gauge_fixed": "error/gauge_fixed/rms",
    "t_rms_log_bellman": "error/best/corrected/c",
    "abs_mean_log_bellman": "error/best/signed_mean",
    "mean_square_bellman": "error/best/ratio_error/mean_square",
    "mean_square_bellman_at_least": "error/binned/squared_ratio_error_at_least",
    "largest_log_bellman": "error/best/plug_in/largest",
    "rms_path_sum": "error/paths/rms_corrected",
    "ratio_bound_95": "error/ratio_bound/quantiles/0.95",
    "brier": "calibration/prefixes/brier",
    "ece": "calibration/prefixes/ece",
    "abs_z_error": "calibration/root/difference",
    "sigma2": "cost/sigma2/estimate",
    "perfect_ratio": "cost/tabulated/ratio",
    "n_for_cv": "cost/n_for_cv",
    "n_for_tv": "cost/n_for_tv",
    "limiting_n_for_cv": "cost/limiting/n_for_cv",
    "limiting_n_for_tv": "cost/limiting/n_for_tv",
    "pilot_n_for_cv": "cost/pilot/n_for_cv",
    "pilot_relative_variance": "cost/pilot/relative_variance",
}
# Further figures of the table: in `to_frame`, not thresholds.
FURTHER = {
    "rms_log_bellman_enumerated": "error/exact/corrected/rms",
    "rms_log_bellman_sampled": "error/sampled/corrected/rms",
    "rms_log_bellman_plug_in": "error/sampled/plug_in/rms",
    "mean_log_bellman": "error/best/signed_mean",
    "mean_path_sum": "error/paths/mean",
    "ratio_bound_50": "error/ratio_bound/quantiles/0.5",
    "largest_ratio": "error/ratio_bound/largest",
    "auc": "calibration/prefixes/auc",
    "auc_within": "calibration/auc_within",
    "z_error": "calibration/root/difference",
    "sigma2_enumerated": "cost/tabulated/sigma2",
    "sigma2_perfect": "cost/tabulated/perfect",
    "sigma2_best_of_n": "cost/best_of_n/estimate",
    "limiting_perfect_ratio": "cost/tabulated/limiting_ratio",
    "log10_n_theorem": "cost/paper/log10_particles",
}


def look(model: ModelAudit, path: str) -> Any:
    """Return what stands at ``path`` in the audit of ``model``, None if a part of the path is None."""
    found: Any = model
    for part in path.split("/"):
        if found is None:
            return None
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


def figure(model: ModelAudit, name: str) -> float | None:
    """Return the metric ``name`` of ``model``, None if these rollouts do not give it; the size of signed ones."""
    found = look(model, METRICS[name])
    value = float("nan") if found is None else float(found.estimate if isinstance(found, Interval) else found)
    return None if value != value else abs(value) if name.startswith("abs_") else value


def records(model: ModelAudit) -> list[dict[str, Any]]:
    """Return a row per figure, with its interval: None for what is not available."""
    rows = []
    for name, path in (METRICS | FURTHER).items():
        if not name.startswith("abs_"):
            found = look(model, path)
            its = found if isinstance(found, Interval) else Interval(found, None, None)
            rows.append({"model": model.role, "figure": name, **vars(its)})
    return rows


def thresholds(given: list[str]) -> dict[str, float]:
    """Read ``NAME=VALUE`` texts.

    Raises
    ------
    UserError
        If a name is no metric (the valid ones are listed), or a value is no number.
    """
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if name not in METRICS:
            raise UserError(
                f"`fail_above`: there is no metric {name!r}", f"choose one of: {', '.join(METRICS)}"
            )
        try:
            limit = float(value)
        except ValueError:
            limit = float("nan")
        if not equals or limit != limit:
            raise UserError(f"`fail_above` {text}: {value!r} is no number", f"{name}=0.5")
        found[name] = limit
    return found


def not_met(model: ModelAudit, limits: Mapping[str, float]) -> list[str]:
    """Return a sentence for every threshold that ``model`` is above, or whose figure could not be estimated."""
    out = []
    for name, limit in limits.items():
        value = figure(model, name)
        if value is None:
            out.append(f"{name} could not be estimated from these rollouts, it should be at most {limit:g}")
        elif value > limit:
            out.append(f"{name} is {value:.4g}, it should be at most {limit:g}")
    return out
