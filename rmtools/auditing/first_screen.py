"""What a report answers first: a verdict in one sentence, at most ten lines, and the curves of the first picture.

Terminal, notebook, page and model card lay out the same `FirstScreen`.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rmtools.auditing.cost import particles
from rmtools.auditing.notes import DRAWN_BY, UNCALIBRATED, why_missing
from rmtools.auditing.table import NOT_AVAILABLE, NOT_RESOLVED, digits, whole
from rmtools.stats.bootstrap import Interval
from rmtools.stats.sigma2 import Sigma2, n_for_cv
from rmtools.summary import counted

if TYPE_CHECKING:
    from rmtools.auditing.cost import LimitingCost, MeasuredAccuracy
    from rmtools.auditing.model_audit import CostAudit, ModelAudit
    from rmtools.stats.paired import PairedDifference
    from rmtools.stats.pilot import Pilot

MOST_FACTS = 10
PERFECT, CONSTANT, BEST_OF_N = "perfect", "constant", "best-of-N"
EVERY_STEP, TRIGGERED = "every step", "ESS ≤ N/2"
KNOWN_BY = {
    EVERY_STEP: "multinomial resampling at every step",
    TRIGGERED: "multinomial resampling when ESS ≤ N/2",
}
TEXT_SHOWN = 32
TURNS = re.compile(r"<\|[^|\n]*\|>\w*")  # the marks of a chat's turns


@dataclass(frozen=True)
class Theory:
    """What the theory says of one resampling: sigma^2 by role, None where it is not known or not above its noise.

    ``resampling`` is `TRIGGERED` if every step is decided at the N of the audited model, else `EVERY_STEP`. Roles are those of
    models, `PERFECT` (the true value) and `BEST_OF_N` (no resampling, hence no values before the last). All are from tables if
    the audited model has some (``prompts``: of how many), else from rollouts. ``ratio`` is the model's over `PERFECT`.
    """

    resampling: str
    enumerated: bool
    prompts: int
    sigma2: Mapping[str, Interval | None]
    ratio: Interval | None

    def needed(self, role: str, delta: float) -> Interval | None:
        """Return the particles for a coefficient of variation; None if sigma^2 is not known."""
        return particles(self.sigma2.get(role), n_for_cv, delta)


def theory_of(models: "Sequence[ModelAudit]") -> Theory:
    """Return the cost of the first model, and of the others by the same theory."""
    own = models[0].cost
    tables = own.tabulated
    limiting = own.limiting if tables is None else tables.limiting
    triggered = limiting is not None and limiting.decided
    found = {m.role: _sigma2(m.cost, triggered, tables is not None) for m in models}
    found[BEST_OF_N] = _told(own.best_of_n)
    if tables is None:
        return Theory(
            TRIGGERED if triggered else EVERY_STEP, False, len(models[0].breakdowns.by_prompt), found, None
        )
    if tables.best_of_n is not None:
        found[BEST_OF_N] = tables.best_of_n
    found[PERFECT] = tables.perfect_limiting if triggered else tables.perfect
    ratio = tables.limiting_ratio if triggered else tables.ratio
    finite = ratio is not None and math.isfinite(ratio.estimate)
    return Theory(
        TRIGGERED if triggered else EVERY_STEP, True, tables.n_prompts, found, ratio if finite else None
    )


def _sigma2(cost: "CostAudit", triggered: bool, enumerated: bool) -> Interval | None:
    if enumerated:
        tables = cost.tabulated
        if tables is None or (triggered and tables.limiting is None):
            return None
        return tables.limiting.sigma2 if triggered and tables.limiting else tables.sigma2
    found: LimitingCost | Sigma2 | None = cost.limiting if triggered else cost.sigma2
    if found is None:
        return None
    return known(found.estimate if isinstance(found, Sigma2) else found.sigma2, found.resolved)


def _told(found: Sigma2 | None) -> Interval | None:
    return None if found is None else known(found.estimate, found.resolved)


def best_of_n(model: "ModelAudit", theory: Theory, pilot: "Pilot | None") -> Interval | None:
    """Return sigma^2 of best-of-N for the Z of the verdict: the pilot's on its prompts, else the theory's."""
    if pilot is None:
        return theory.sigma2.get(BEST_OF_N)
    if pilot.one_solution is not None:
        return pilot.one_solution
    if terminal_of(model, pilot) == model.terminal:
        return _told(model.cost.best_of_n) or theory.sigma2.get(BEST_OF_N)
    return _told(model.cost.best_of_n_own)


def terminal_of(model: "ModelAudit", pilot: "Pilot | None") -> str:
    """Return what a finished solution is worth where the verdict counts particles."""
    return model.terminal if pilot is None else pilot.sampler.terminal or model.terminal


def known(found: Interval, resolved: bool) -> Interval | None:
    """Return a variance that its sample tells from 0, else None."""
    return found if resolved and found.estimate > 0 else None


def short(found: Interval) -> str:
    """Return a figure to three digits, the ends of its interval to two."""
    ends = ["?" if end is None else f"{end:.2g}" for end in (found.low, found.high)]
    return digits(found.estimate) + (f" [{', '.join(ends)}]" if ends != ["?", "?"] else "")


@dataclass(frozen=True)
class Fact:
    """A line of the first screen: what it is about, the figure, a remark, and a command to copy, which is never cut."""

    label: str
    figure: str
    remark: str = ""
    command: str = ""


@dataclass(frozen=True)
class FirstScreen:
    """What a report answers first.

    Attributes
    ----------
    verdict : str
        One sentence.
    facts : tuple of Fact
        At most ten.
    theory : Theory
        What the counts without a pilot are from.
    """

    verdict: str
    facts: tuple[Fact, ...]
    theory: Theory


def first_screen(
    models: "Sequence[ModelAudit]",
    provenance: Mapping[str, Any],
    warnings: Sequence[str] = (),
    pairs: "Mapping[str, PairedDifference] | None" = None,
    measured: "MeasuredAccuracy | None" = None,
) -> FirstScreen:
    """Return what the audit of the first of ``models`` answers first."""
    model, theory, delta = models[0], theory_of(models), float(provenance["delta_cv"])
    pilot = pilot_of(model)
    needed = pilot.n_for_cv if pilot is not None else theory.needed(model.role, delta)
    why = "" if needed is not None else _why(model, warnings)
    constant = next((m for m in models if m.role == CONSTANT), None)
    best = particles(best_of_n(model, theory, pilot), n_for_cv, delta)
    facts = [*_particles(model, theory, pilot, delta, best, why)]
    facts += _by_theory(model, theory, pilot, delta, int(provenance["n_prompts"]))
    facts += _before_the_map(models, delta)
    facts += [_error(model, constant, warnings), *_bias(model), *_calibration(model)]
    facts += _success(measured)
    facts += _worst(model)
    missing = [drawn for reason, drawn in DRAWN_BY.items() if any(reason in f.figure for f in facts)]
    if missing and model.error.exact is None:
        facts.append(
            Fact("draw:", "", f"rm.collect_rollouts(policy, prompts, task=task, {', '.join(missing)})")
        )
    for role, pair in (pairs or {}).items():
        value = pair.mean_square_corrected
        shown = NOT_AVAILABLE if math.isnan(value.estimate) else str(value)
        facts.append(Fact(f"minus {role}", f"mean b^2 {shown}", "nats^2, paired"))
    unknown = "" if needed is not None else _unknown(model, why)
    verdict = _verdict(needed, best, theory.ratio, _times(pilot), delta, unknown)
    return FirstScreen(verdict, tuple(facts[:MOST_FACTS]), theory)


def pilot_of(model: "ModelAudit") -> "Pilot | None":
    """Return the pilot of the sampler if there is one that resolves its particles."""
    found = model.cost.pilot
    return found if found is not None and found.resolved else None


def command_of(pilot: "Pilot") -> str:
    """Return the options of ``rmtools sample`` that reach the accuracy the pilot was asked for."""
    islands, s = pilot.islands_for_cv or 1, pilot.sampler
    usual: dict[str, tuple[Any, Any]] = {
        "pool-size": (s.pool_size, 1),
        "resampling": (s.resampling, "systematic"),
    }
    usual |= {"ess-threshold": (s.ess_threshold, 0.5), "terminal": (s.terminal or "model", "model")}
    more = "".join(f" --{name} {own}" for name, (own, default) in usual.items() if own != default)
    return f"-n {s.n_particles * islands} --islands {islands}{more}"


def _why(model: "ModelAudit", warnings: Sequence[str]) -> str:
    """Return why the particles of a model are not known."""
    if model.cost.sigma2 is None and model.cost.tabulated is None:
        return f"{NOT_AVAILABLE}: {why_missing(model, 'cost/sigma2', warnings)}"
    return NOT_RESOLVED


def _unknown(model: "ModelAudit", why: str) -> str:
    """Return why the particles are not known, in the words of the verdict, and the error that is."""
    reason = why.removeprefix(f"{NOT_AVAILABLE}: ")
    if model.terminal == "model" and why != NOT_RESOLVED:
        reason = "its own ends are the target, and only a pilot counts them"
    text = f"is {NOT_RESOLVED}" if why == NOT_RESOLVED else f"is not known ({reason})"
    best = model.error.best
    if best is None or not (model.error.exact is not None or best.resolved):
        return text
    return f"{text}; its Bellman error is {short(best.corrected.rms)} nats (RMS; 0 is consistent)"


def _verdict(
    needed: Interval | None,
    best: Interval | None,
    ratio: Interval | None,
    times: Interval | None,
    delta: float,
    unknown: str,
) -> str:
    """Return the sentence that answers.

    ``needed`` and ``best`` are the particles of the model and of best-of-N, ``ratio`` those of the model over a perfect value's,
    ``times`` those of best-of-N over the model's, paired; ``unknown`` says why ``needed`` is None, and what is known.
    """
    goal, parts = f"Z within {100 * delta:.3g}%", []
    if needed is None:
        where = f" for {goal} on these prompts"
        if best is not None and best.estimate <= 1:
            parts.append(f"A single solution is enough{where}: final values hardly differ")
        elif best is not None:
            parts.append(f"Best-of-N needs {whole(best)} solutions{where}")
        parts.append(f"how many particles this PRM needs{'' if parts else where} {unknown}")
        return _sentence(parts)
    if ratio is not None:
        ends = [x for x in (ratio.low, ratio.high) if x is not None]
        shown = f" [{ends[0]:.2g}, {ends[1]:.2g}]" if len(ends) == 2 else ""
        parts.append(f"This PRM costs {ratio.estimate:.2g}×{shown} the particles of a perfect one")
    parts.append(f"{whole(needed)} particles give {goal} on these prompts")
    if best is not None:
        parts.append(f"best-of-N needs {whole(best)} for the same{_compared(needed, best, times)}")
    return _sentence(parts)


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _compared(needed: Interval, best: Interval, times: Interval | None) -> str:
    """Return how best-of-N compares: by the paired ratio, else where it does not clearly need more."""
    if times is not None and times.low is not None and times.high is not None:
        same = " (no difference is resolved)" if times.low <= 1 <= times.high else ""
        return f", {times.estimate:.2g}× [{times.low:.2g}, {times.high:.2g}] as many{same}"
    if needed.high is None or best.low is None or needed.high < best.low:
        return ""
    if best.high is not None and needed.low is not None and best.high < needed.low:
        return ": fewer than with this PRM"
    return " (the intervals overlap)"


def _times(pilot: "Pilot | None") -> Interval | None:
    """Return what best-of-N needs over what the sampler needs; None without a pilot, or if its n is more than enough."""
    if pilot is None or pilot.n_for_cv is None or pilot.n_for_cv.estimate <= pilot.sampler.n_particles:
        return None
    return pilot.best_of_n


def _particles(
    model: "ModelAudit", theory: Theory, pilot: "Pilot | None", delta: float, best: Interval | None, why: str
) -> Iterator[Fact]:
    """Yield the particles of the verdict, and those of best-of-N for the same."""
    label, by_theory = "particles", theory.needed(model.role, delta)
    if pilot is not None and pilot.n_for_cv is not None:
        yield Fact(label, whole(pilot.n_for_cv), f"for CV {delta:g}, by a pilot:", command_of(pilot))
    elif by_theory is not None:
        yield Fact(label, whole(by_theory), f"for CV {delta:g}, theory: {_shortly(theory)}")
    elif why:
        own_ends = model.terminal == "model" and why != NOT_RESOLVED
        yield Fact(label, why, "only a pilot counts them" if own_ends else "")
    if best is not None:
        reads = "no PRM" if terminal_of(model, pilot) == "verifier" else "the PRM at the end"
        yield Fact("  best-of-N", whole(best), f"independent solutions, {reads}")


def _by_theory(
    model: "ModelAudit", theory: Theory, pilot: "Pilot | None", delta: float, prompts: int
) -> Iterator[Fact]:
    """Yield what the theory says beside a pilot, of the perfect value and of the constant."""
    own, perfect, constant = (theory.needed(role, delta) for role in (model.role, PERFECT, CONSTANT))
    other = f", terminal {model.terminal}" if terminal_of(model, pilot) != model.terminal else ""
    if pilot is not None and own is not None:
        yield Fact("  by theory", whole(own), f"{_shortly(theory)}{other}")
    if perfect is not None:
        yield Fact(
            "  perfect value", whole(perfect), f"enumerated, {theory.prompts} of {counted(prompts, 'prompt')}"
        )
    elif own is not None:
        yield Fact("  perfect value", "not known", "needs next steps that can be listed")
    if constant is not None:
        yield Fact("  constant value", whole(constant), "the base rate as value, likewise")


def _before_the_map(models: "Sequence[ModelAudit]", delta: float) -> Iterator[Fact]:
    """Yield particles, Bellman error and Brier score of a calibrated model before and after its map, all from the rollouts."""
    before = next((m for m in models if m.role == UNCALIBRATED), None)
    if before is not None:
        old, new = (_in_short(m, delta) for m in (before, models[0]))
        yield Fact("before the map", f"N {old[0]}, RMS b {old[1]}, Brier {old[2]}", f"now {', '.join(new)}")


def _in_short(model: "ModelAudit", delta: float) -> tuple[str, str, str]:
    needed = particles(_told(model.cost.sigma2), n_for_cv, delta)
    sampled, found = model.error.sampled, model.calibration.prefixes
    return (
        "?" if needed is None else f"{math.ceil(needed.estimate)}",
        "?" if sampled is None else f"{sampled.corrected.rms.estimate:.2g}",
        "?" if found is None else f"{found.brier.estimate:.2g}",
    )


def _shortly(theory: Theory) -> str:
    return KNOWN_BY[theory.resampling].removeprefix("multinomial ")


def _error(model: "ModelAudit", constant: "ModelAudit | None", warnings: Sequence[str]) -> Fact:
    """Return the Bellman error by one estimator: enumerated, else sampled, else squared, else a lower bound."""
    best, binned, label = model.error.best, model.error.binned, "Bellman error"
    other = None if constant is None else constant.error.best
    if best is None:
        if binned is None:
            return Fact(label, f"{NOT_AVAILABLE}: {why_missing(model, 'error/', warnings)}")
        bound = binned.squared_ratio_error_at_least
        told = bound.estimate > 0 and (bound.low is None or bound.low > 0)
        return Fact(label, f"{NOT_AVAILABLE}: no children", f"(ρ-1)² ≥ {short(bound)}" if told else "")
    if model.error.exact is not None or best.resolved:
        how = "enumerated" if model.error.exact is not None else "sampled"
        beside = "" if other is None else f"; constant {digits(other.corrected.rms.estimate)}"
        return Fact(label, f"RMS b {short(best.corrected.rms)}", f"nats, {how}{beside}")
    beside = "" if other is None else f"; constant {digits(other.ratio_error.mean_square.estimate)}"
    square = best.ratio_error.mean_square
    shown = short(square) if square.estimate > 0 else NOT_RESOLVED
    return Fact(label, f"(ρ-1)² {shown}", f"RMS b {NOT_RESOLVED}{beside}")


def _bias(model: "ModelAudit") -> Iterator[Fact]:
    best, paths = model.error.best, model.error.paths
    if best is None:
        return
    low, high = best.signed_mean.low, best.signed_mean.high
    sign = "sign not resolved"
    if low is not None and high is not None and low * high > 0:
        sign = "values too low" if low > 0 else "values too high"
    total = "" if paths is None or math.isnan(paths.mean.estimate) else f"; Σ b {digits(paths.mean.estimate)}"
    yield Fact("bias", f"mean b {short(best.signed_mean)}", f"{sign}{total}")


def _calibration(model: "ModelAudit") -> Iterator[Fact]:
    found, within = model.calibration.prefixes, model.calibration.auc_within
    ranks = "" if within is None or math.isnan(within.estimate) else f"ranks: AUC {within.estimate:.2g}"
    if found is not None:
        beside = f"base rate {found.brier_constant:.2g}"
        yield Fact("calibration", f"Brier {short(found.brier)}", "; ".join(filter(None, (beside, ranks))))
    elif ranks:
        yield Fact("calibration", "no probability", ranks)


def _success(measured: "MeasuredAccuracy | None") -> Iterator[Fact]:
    if measured is not None:
        yield Fact(
            "success",
            f"{digits(measured.success)} at N = {measured.n_particles}",
            f"in the target {digits(measured.target_success)}; {counted(measured.runs, 'run')}",
        )


def _worst(model: "ModelAudit") -> Iterator[Fact]:
    if not model.breakdowns.worst:
        return
    worst = model.breakdowns.worst[0]
    lines = TURNS.sub("", "".join((worst.prompt, *worst.steps))).split("\n")
    text = " ⏎ ".join(line.strip() for line in lines if line.strip())
    place = text if len(text) <= TEXT_SHOWN else f"…{text[-TEXT_SHOWN:]}"
    value = f"V {digits(worst.value)}, next {digits(worst.value * worst.ratio)}"
    yield Fact("worst prefix", value, f"after {place}")
