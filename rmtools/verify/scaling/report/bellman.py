"""Bellman errors on the page: from the tables, and what `rmtools audit` says of the same models."""

from rmtools.plots.page import Table
from rmtools.verify.scaling.audits import Audited
from rmtools.verify.scaling.profile import DELTA_CV
from rmtools.verify.scaling.report.findings import decimals, figure
from rmtools.verify.scaling.run import Scaling


def consistency_table(found: Scaling) -> Table:
    """Return the Bellman errors of every model at every horizon."""
    rows = []
    for name, c in found.consistency.items():
        model, _, horizon = name.rpartition(" at ")
        values = (c.rms_policy, c.rms_target, c.rms_gauge_fixed, c.path_sum, c.path_sum_sd, c.largest)
        rows.append(
            (model, horizon, *(f"{x:.3f}" for x in values), decimals(c.sigma2), decimals(c.sigma2_perfect))
        )
    rows.sort(key=lambda row: int(row[1]))
    columns = (
        "model", "T", "RMS b, policy", "RMS b, target", "gauge-fixed", "sum of b", "its SD", "largest |b|", "σ²",
        "σ² of exact",
    )  # fmt: skip
    return Table("Bellman error b in nats, from the tables; means over prompts", columns, tuple(rows))


def audit_sentence(found: Scaling) -> str:
    """Return how often the audit's intervals hold the figures of the tables."""
    pairs = _pairs(found)
    rms = [a.rms.contains(rms) for a, rms, _ in pairs]
    resolved = [a.n_for_cv.contains(n) for a, _, n in pairs if a.n_for_cv is not None]
    particles = (
        f"and the particles for resampling at every step for {sum(resolved)} of the {len(resolved)} that it resolves"
        if resolved
        else "particles are not resolved by so few rollouts"
    )
    return (
        f"What `rmtools audit` says of the trained models from rollouts with sampled children, beside the exact figures: its "
        f"95% interval holds the root mean square of b for {sum(rms)} of {len(rms)} models and horizons, {particles}."
    )


def audit_table(found: Scaling) -> Table:
    """Return the audits beside the tables."""
    rows = tuple(
        (
            a.model, f"{a.horizon}", figure(a.rms), f"{rms:.3f}", figure(a.path_rms), figure(a.auc_within),
            figure(a.n_for_cv), decimals(n),
        )
        for a, rms, n in _pairs(found)
    )  # fmt: skip
    columns = ("model", "T", "RMS b", "exact", "RMS of its sums", "AUC within", "N", "exact")
    return Table(f"Audits of the trained models, 95% intervals; N for a CV(Ẑ) of {DELTA_CV:g}", columns, rows)


def _pairs(found: Scaling) -> list[tuple[Audited, float, float]]:
    """Return each audit with the tables' RMS of b under the policy, and N at every step."""
    known = ((a, found.consistency.get(f"{a.model} at {a.horizon}")) for a in found.audits)
    return [(a, c.rms_policy, c.sigma2 / DELTA_CV**2) for a, c in known if c is not None]
