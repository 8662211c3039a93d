"""What a user pays by each way to the same accuracy: particles, tokens of both models, FLOPs and seconds where known."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rmtools.auditing.cost import particles
from rmtools.auditing.first_screen import (
    CONSTANT,
    KNOWN_BY,
    PERFECT,
    best_of_n,
    command_of,
    pilot_of,
    terminal_of,
)
from rmtools.auditing.table import NOT_RESOLVED, whole
from rmtools.plots.page import Table
from rmtools.stats.bootstrap import Interval
from rmtools.stats.sigma2 import n_for_cv

if TYPE_CHECKING:
    from rmtools.auditing.report import AuditReport

NONE = "-"
COLUMNS = (
    "",
    "particles or solutions",
    "generated tokens",
    "tokens the PRM reads",
    "FLOPs",
    "seconds",
    "known by",
)


def cost_tables(report: "AuditReport") -> Iterator[Table]:
    """Yield a table per accuracy: of the estimate of Z, and of one answer."""
    p = report.provenance
    rows = tuple(_for_cv(report))
    if rows:
        yield Table(
            f"Z within a CV of {p['delta_cv']:g}, per prompt (prompts' own tokens left out)", COLUMNS, rows
        )
    rows = tuple(_for_tv(report))
    if rows:
        yield Table(f"One answer within a total variation of {p['delta_tv']:g}, per prompt", COLUMNS, rows)


def _for_cv(report: "AuditReport") -> Iterator[tuple[str, ...]]:
    model, theory, delta = report.model, report.first_screen().theory, report.provenance["delta_cv"]
    pilot = pilot_of(model)
    how = f"theory, {KNOWN_BY[theory.resampling]}, {'enumerated' if theory.enumerated else 'from rollouts'}"
    if pilot is not None and pilot.n_for_cv is not None:
        islands = pilot.islands_for_cv or 1
        n = pilot.sampler.n_particles
        tokens = None if pilot.tokens is None else pilot.tokens / n
        spent = pilot.seconds / (pilot.runs * pilot.n_prompts) * islands
        whole_islands = Interval(float(n * islands), None, None)  # what is paid
        how_run = f"pilot: {command_of(pilot)}"
        yield _row(report, "this PRM, as sampled", whole_islands, how_run, 1, tokens, spent)
    for name, role, reads in (
        ("this PRM", model.role, 1),
        ("a perfect value", PERFECT, 1),
        ("a constant value", CONSTANT, 0),
    ):
        needed = theory.needed(role, delta)
        if needed is not None or role == model.role:
            yield _row(report, name, needed, how, reads)
    needed = particles(best_of_n(model, theory, pilot), n_for_cv, delta)
    if needed is not None:
        verified = terminal_of(model, pilot) == "verifier"
        by, how = ("verifier", "outcomes") if verified else ("PRM at the end", "last values")
        yield _row(report, f"best-of-N, weighted by the {by}", needed, f"variance of the {how}", 1 - verified)


def _for_tv(report: "AuditReport") -> Iterator[tuple[str, ...]]:
    cost = report.model.cost
    others = cost.alternatives
    if others is None:
        return
    how = (
        f"{'' if cost.counted_from == 'tables' else 'at most, '}theory, multinomial resampling at every step"
    )
    yield _row(report, "this PRM", cost.n_for_tv, how, 1)
    if others.rejection_solutions is not None:
        yield _row(report, "rejection by the verifier", others.rejection_solutions, "1/Z, exact draws", 0)
    if others.best_of_n_solutions is not None:
        how = "rough: right as often as a draw from the target"
        yield _row(report, "best-of-N, the verifier picks", others.best_of_n_solutions, how, 0)


def _row(
    report: "AuditReport",
    name: str,
    needed: Interval | None,
    how: str,
    reads: int,
    tokens: float | None = None,
    seconds: float | None = None,
) -> tuple[str, ...]:
    """Return the cells of one way; ``tokens`` of a particle, else those of a solution; the PRM ``reads`` each once or not."""
    others = report.model.cost.alternatives
    if tokens is None and others is not None:
        tokens = others.tokens_per_solution
    if needed is None or tokens is None:
        return name, NOT_RESOLVED if needed is None else whole(needed), *[NONE] * 4, how
    each = tokens
    generated = needed.map(lambda n: n * each)
    weights = report.provenance.get("policy_weights"), report.provenance.get("model_weights")
    flops = NONE
    if weights[0] and (weights[1] or not reads):
        flops = f"{2 * generated.estimate * (weights[0] + reads * (weights[1] or 0)):.2g}"
    return (
        name,
        whole(needed),
        _count(generated),
        _count(generated) if reads else "0",
        flops,
        NONE if seconds is None else f"{seconds:.2g}",
        how,
    )


def _count(found: Interval) -> str:
    return whole(found, lambda n: f"{n:,.0f}")
