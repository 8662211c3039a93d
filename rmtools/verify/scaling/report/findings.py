"""Sentences and tables of the report, made from the points: what grew how, where the transition is, what accuracy costs."""

import math
from collections.abc import Sequence
from statistics import median

import numpy as np

from rmtools.exact.bounds import paper_counts
from rmtools.plots.page import Table
from rmtools.stats.bootstrap import Interval
from rmtools.verify.scaling.baselines import BEAM_WIDTH
from rmtools.verify.scaling.exact_families import PERSISTENT_EPSILON, FamilyPoint
from rmtools.verify.scaling.points import Consistency, Point, Trial
from rmtools.verify.scaling.profile import BELLMAN, DELTA_CV
from rmtools.verify.scaling.report.claims import FACTOR, Conclusions
from rmtools.verify.scaling.report.comparisons import (
    budget_of,
    checkpoints,
    over_exact,
    rank_correlation,
    tokens_needed,
    trigger_saving,
)
from rmtools.verify.scaling.report.growth import FROM, Need, need_of, needs_of
from rmtools.verify.scaling.report.marks import PANELS
from rmtools.verify.scaling.run import Scaling

# A smaller ratio of two N is within the steps of the search.
CLEAR = 1.5
SMC = "smc"


def sentence(text: str) -> str:
    """Return text that begins with a capital."""
    return text[:1].upper() + text[1:]


def dash(value: object) -> str:
    """Return a dash for None."""
    return "–" if value is None else str(value)


def decimals(x: float) -> str:
    """Return two decimals of a small number, three digits of a large one.

    >>> decimals(1.239), decimals(12345.6), decimals(float("inf"))
    ('1.24', '12,300', '?')
    """
    if not math.isfinite(x):
        return "?"
    return f"{x:.2f}" if abs(x) < 10 else f"{float(f'{x:.3g}'):,.0f}"


def figure(found: Interval | None) -> str:
    """Return an estimate with its interval.

    >>> figure(Interval(1.234, 0.5, None)), figure(None)
    ('1.23 [0.50, ?]', '–')
    """
    if found is None:
        return dash(None)
    low, high = ("?" if end is None else decimals(end) for end in (found.low, found.high))
    return f"{decimals(found.estimate)} [{low}, {high}]"


def factor(log_ratio: float) -> str:
    """Return exp of a log ratio."""
    return decimals(math.exp(log_ratio))


def count(x: float | None) -> str:
    """Return a number of particles, rounded up."""
    return "–" if x is None or not math.isfinite(x) else f"{math.ceil(x):,}"


def grown(needs: Sequence[Need]) -> str | None:
    """Return the factor from the first to the last need, "more than" if the last is only a bound; None if it is not known."""
    if len(needs) < 2 or needs[0].source == "bound":
        return None
    ratio = math.exp(needs[-1].log_n - needs[0].log_n)
    text = f"{ratio:.1f}" if ratio < 9.95 else f"{float(f'{ratio:.2g}'):,.0f}"
    return ("more than " if needs[-1].source == "bound" else "") + "×" + text


def span(found: Scaling) -> tuple[int, int]:
    """Return the horizons between which growth is told: from 4 on, from 2 if the longest is no more than 8."""
    horizons = [h.horizon for h in found.horizons]
    first = next((t for t in horizons if t >= FROM), horizons[0]) if horizons[-1] > 2 * FROM else horizons[0]
    return first, horizons[-1]


def headline(found: Scaling, sampler: str = "default") -> str:
    """Return how much the need grew without and with a reward model."""
    first, last = span(found)
    parts = []
    for model, name in (("constant", "without a reward model"), (BELLMAN, "with a trained one")):
        factor = grown(needs_of(found.points, model, sampler, first))
        parts.append(f"{factor or 'an unknown number of'} particles {name}")
    return f"From {first} to {last} steps: {parts[0]}, {parts[1].replace(' particles', '')}"


def growth_in_short(found: Scaling) -> tuple[str, str]:
    """Return the horizons, and how much the need grew under the default sampler: constant, trained, exact."""
    first, last = span(found)
    parts = (
        (grown(needs_of(found.points, m, "default", first)) or "?").replace("more than ", ">") + f" {m}"
        for m in ("constant", BELLMAN, "exact")
    )
    return f"N, T = {first} to {last}", ", ".join(parts)


def growth_text(found: Scaling, sampler: str) -> str:
    """Return the headline of a sampler with every model."""
    first, last = span(found)
    models = dict.fromkeys(p.model for p in found.points)
    parts = [f"{m} {grown(needs_of(found.points, m, sampler, first)) or 'not known'}" for m in models]
    return f"from {first} to {last} steps " + ", ".join(parts)


def growth_sentence(judged: Conclusions) -> str:
    """Return which models grew exponentially."""
    parts = []
    for sampler in PANELS:
        shapes: dict[str, list[str]] = {}
        for g in judged.growth:
            if g.sampler == sampler:
                shapes.setdefault(g.shape, []).append(g.model)
        parts.append(
            f"{sampler}: " + "; ".join(f"{', '.join(models)} {shape}" for shape, models in shapes.items())
        )
    return "Which law is nearer to the points. " + ". ".join(parts) + "."


def worst_case(known: Consistency, horizon: int) -> float:
    """Return log10 of the particles of Thm 5.1 for a total variation of `DELTA_CV`, L and epsilon from the tables."""
    return paper_counts(known.ratio_bound, known.largest, horizon, DELTA_CV).log10_particles


def worst_case_sentence(found: Scaling) -> str:
    """Return what the paper's worst-case count asks for beside what was needed."""
    last = found.horizons[-1]
    own = (BELLMAN, "every-step", last.horizon)
    point = next((p for p in found.points if (p.model, p.sampler, p.horizon) == own), None)
    known = found.consistency.get(f"{BELLMAN} at {last.horizon}")
    if known is None or point is None:
        return "The worst-case count of Thm 5.1 is not known: no Bellman error was measured."
    log10 = worst_case(known, last.horizon)
    return (
        f"Thm 5.1 of arXiv 2602.01381 guarantees a total variation of {DELTA_CV:g} with 10^{log10:.0f} particles for the "
        f"Bellman-trained model at T = {last.horizon} (L = {decimals(known.ratio_bound)}, largest |b| {known.largest:.2g} nats); "
        f"{needed(point)} were needed for a CV of {DELTA_CV:g}. It is a worst case, and far outside the picture."
    )


def worst_case_table(found: Scaling) -> Table:
    """Return N needed, predicted, and of Thm 5.1 for the trained and the exact value at every step."""
    rows = []
    for p in found.points:
        known = found.consistency.get(f"{p.model} at {p.horizon}")
        if p.sampler != "every-step" or p.model not in (BELLMAN, "exact", "constant") or known is None:
            continue
        figures = (
            decimals(known.ratio_bound),
            f"{known.largest:.2g}",
            f"10^{worst_case(known, p.horizon):.1f}",
        )
        rows.append((p.model, str(p.horizon), needed(p), count(p.n_predicted), *figures))
    return Table(
        "Particles at every step: needed, predicted, and those of Thm 5.1",
        ("model", "T", "needed", "predicted", "L", "largest |b|", "Thm 5.1"),
        tuple(rows),
    )


def needed(point: Point) -> str:
    """Return the N needed, and what it is from."""
    need = need_of(point)
    marks = {"runs": "{}", "tables": "{} on tables", "bound": "above {}"}
    return marks[need.source].format(count(round(need.n)))


def transition_sentence(found: Scaling, sampler: str) -> str:
    """Return between which c a model begins to cost more than twice the exact value."""
    rows = [(p, c, need.n / exact, need.source) for p, c, need, exact in over_exact(found, sampler)]
    known = [r for r in rows if r[3] != "bound"]
    if len(known) < 4:
        return f"{sentence(PANELS[sampler])}: too few points."
    dear = [r for r in rows if r[2] > FACTOR]
    cheap = [r for r in known if r[2] <= FACTOR]
    text = f"{sentence(PANELS[sampler])}: the rank correlation of c with N over that of the exact value is "
    text += f"{rank_correlation([r[1] for r in known], [r[2] for r in known]):.2f} over {len(known)} points. "
    if dear:
        p, c, *_ = min(dear, key=lambda r: r[1])
        text += f"The smallest c that costs more than a factor of {FACTOR:g} is {decimals(c)} ({p.model}, T = {p.horizon}); "
    else:
        text += f"No c costs more than a factor of {FACTOR:g}; "
    if cheap:
        p, c, *_ = max(cheap, key=lambda r: r[1])
        text += f"the largest that does not is {decimals(c)} ({p.model}, T = {p.horizon})."
    else:
        text += "none costs less."
    return (
        text
        + " The paper bounds the cost by a polynomial while c stays bounded as T grows; it does not say at which c cost sets in."
    )


def trigger_sentences(found: Scaling) -> tuple[str, ...]:
    """Return what resampling only when it is needed removes of the cost of a persistent error."""
    parts = []
    for model in ("planted", "constant", BELLMAN, "exact"):
        if saved := trigger_saving(found.points, model):
            horizon, ratio, bound = saved[-1]
            parts.append(f"{'more than ' if bound else ''}{decimals(ratio)} ({model}, T = {horizon})")
    own = "How much the ESS trigger removes: N at every step over N by default is " + ", ".join(parts) + "."
    if not parts:
        own = "How much the ESS trigger removes is not known: no point has both samplers."
    return (own, *family_sentences(found.families))


def family_sentences(families: Sequence[FamilyPoint]) -> tuple[str, ...]:
    """Return what the trigger removes on `persistent`, and that nothing removes the cost on `hidden_prefix`."""
    needs = {(p.family, p.horizon, p.sampler): p for p in families}
    horizon = max((p.horizon for p in families if p.family == "persistent"), default=0)
    every, default = (needs.get(("persistent", horizon, s)) for s in PANELS)
    if every is None or default is None:
        return ()
    hidden = sorted({p.horizon for p in families if p.family == "hidden_prefix"})
    grown = {
        s: [needs["hidden_prefix", t, s].n_measured for t in (hidden[0], hidden[-1])]
        for s in PANELS
        if hidden
    }
    text = (
        f"On the exact family persistent (ε = {PERSISTENT_EPSILON:g}, T = {horizon}) σ² is {decimals(every.sigma2)}: "
        f"{count(every.n_measured)} particles are needed at every step, {count(default.n_measured)} by default."
    )
    if not all(all(n) for n in grown.values()):
        return (text,)
    factors = " and ".join(
        f"{decimals(n[1] / n[0])} ({PANELS[s]})" for s, n in grown.items() if n[0] and n[1]
    )
    return (
        text,
        f"On hidden_prefix nothing removes the cost: from T = {hidden[0]} to {hidden[-1]} it grows by {factors}. "
        "The lower bounds of Thm 4.1 and 4.2 hold for any sampler that does not guess.",
    )


def family_table(found: Scaling) -> Table:
    """Return the particles that the exact families need."""
    rows = [
        (
            p.family, str(p.horizon), p.sampler, decimals(p.sigma2), count(p.sigma2 / DELTA_CV**2),
            count(p.n_measured) if p.n_measured else f"above {p.n_largest:,}",
        )
        for p in found.families
    ]  # fmt: skip
    columns = ("family", "T", "sampler", "σ² at every step", "σ²/δ²", "needed")
    return Table(f"Exact families: particles for a CV(Ẑ) of {DELTA_CV:g}", columns, tuple(rows))


def trigger_table(found: Scaling) -> Table:
    """Return N at every step over N by default, for all models."""
    horizons = [h.horizon for h in found.horizons]
    rows = []
    for model in dict.fromkeys(p.model for p in found.points):
        saved = {
            t: ("≥ " if bound else "") + decimals(r)
            for t, r, bound in trigger_saving(found.points, model)
            if not bound or r > 1
        }
        rows.append((model, *(saved.get(t, "–") for t in horizons)))
    return Table("N at every step over N by default", ("model", *(f"T = {t}" for t in horizons)), tuple(rows))


def accuracy_sentence(found: Scaling, sampler: str) -> str:
    """Return how N for accuracy compares with N for the CV, and where a smaller Bellman error does not buy accuracy."""
    both = [
        (p.n_for_success, need_of(p).n)
        for p in found.points
        if p.sampler == sampler and p.n_for_success is not None and need_of(p).source != "bound"
    ]
    if not both:
        return f"{sentence(PANELS[sampler])}: accuracy was not reached anywhere."
    text = f"{sentence(PANELS[sampler])}: a success of .9 of the target's needs {decimals(median(a / b for a, b in both))} "
    text += f"times the particles of a CV of {DELTA_CV:g} (median of {len(both)} points). "
    against = []
    for horizon in (h.horizon for h in found.horizons):
        rows = [
            (budget_of(found, p), p.n_for_success, p.model)
            for p in found.points
            if (p.horizon, p.sampler) == (horizon, sampler) and p.n_for_success is not None
        ]
        against += [
            f"{better} needs {decimals(a / b)} times the particles of {worse} at T = {horizon}, with c = {decimals(c)} "
            f"against {decimals(d)}"
            for c, a, better in rows
            for d, b, worse in rows
            if c < d and a > CLEAR * b
        ]
    if not against:
        return text + f"A smaller c never needs more than {CLEAR:g} times the particles for accuracy."
    pairs = f"{len(against)} pairs of models, among them" if len(against) > 3 else "these pairs of models"
    return text + f"A lower Bellman error does not buy accuracy in {pairs}: {'; '.join(against[-3:])}."


def accuracy_table(found: Scaling, sampler: str) -> Table:
    """Return errors and accuracy of all models at the longest horizon, needed N and at equal N."""
    last = found.horizons[-1]
    points = [p for p in found.points if (p.horizon, p.sampler) == (last.horizon, sampler)]
    tried = [t.n_particles for p in points if p.model == BELLMAN for t in p.trials]
    at = round(math.sqrt(min(tried) * max(tried))) if tried else 1
    rows = []
    for p in points:
        cv, share = (between(p.trials, at, name) for name in ("cv", "success"))
        rows.append(
            (
                p.model, decimals(budget_of(found, p)), needed(p), count(p.n_for_success),
                "–" if cv is None else decimals(cv), "–" if share is None else decimals(share / last.target_success),
            )
        )  # fmt: skip
    columns = (
        "model",
        "c",
        "N for CV",
        "N for success",
        f"CV at N = {at}",
        f"success over target's at N = {at}",
    )
    return Table(
        f"T = {last.horizon}, {PANELS[sampler]}; between N tried, interpolated", columns, tuple(rows)
    )


def between(trials: Sequence[Trial], n: int, name: str) -> float | None:
    """Return a figure of trials at N = ``n``, interpolated in log N; None outside of the N tried."""
    ordered = sorted(trials, key=lambda t: t.n_particles)
    if not ordered or not ordered[0].n_particles <= n <= ordered[-1].n_particles:
        return None
    x = np.log([t.n_particles for t in ordered])
    return float(np.interp(math.log(n), x, [getattr(t, name) for t in ordered]))


def baselines_sentence(found: Scaling) -> str:
    """Return what other methods need at the longest horizon where SMC reaches the accuracy."""
    reached = [b for b in found.baselines if b.method == SMC and b.n_for_success is not None]
    if not reached:
        return "Other methods were not measured, or SMC does not reach the accuracy within their budget."
    own = max(reached, key=lambda b: b.horizon)
    others = [b for b in found.baselines if b.horizon == own.horizon and b.method != SMC]
    spent = tokens_needed(own)
    parts = []
    for b in others:
        tokens = tokens_needed(b)
        if tokens is not None and spent:
            parts.append(f"{b.method} {decimals(tokens / spent)} times as many")
        else:
            most = max((t.success for t in b.trials), default=0.0)
            parts.append(f"{b.method} does not get there ({most:.2f} at most)")
    return (
        f"For a success of {own.asked:.2f} (.9 of the target's) at T = {own.horizon} SMC with {BELLMAN} takes {count(spent)} "
        f"tokens a prompt, policy and value model: {'; '.join(parts)}."
    )


def baselines_table(found: Scaling) -> Table:
    """Return what every method needs for the accuracy."""
    rows = []
    for b in found.baselines:
        ends = "" if b.n_for_success is None else f" [{count(b.low)}, {count(b.high)}]".replace("–", "?")
        most = max(b.trials, key=lambda t: t.n_particles, default=None)
        last = "–" if most is None else f"{most.success:.2f} at N = {most.n_particles:,}"
        rows.append(
            (
                str(b.horizon), b.method, f"{b.asked:.2f}", count(b.n_for_success) + ends, count(b.expected),
                count(tokens_needed(b)), last,
            )
        )  # fmt: skip
    columns = ("T", "method", "success asked", "N, 95%", "1 - (1 - p)^N", "tokens", "largest N tried")
    return Table(
        f"Accuracy by other methods. Rejection asks the verifier; the others choose by the last value of {BELLMAN} "
        f"(beam: {BEAM_WIDTH} candidates of each; its-hub: its particle filter, which reads every text anew)",
        columns,
        tuple(rows),
    )


def training_sentence(found: Scaling) -> str:
    """Return how the predicted N fell from the first checkpoint to the last, at the longest horizon."""
    horizon = found.horizons[-1].horizon
    rows = checkpoints(found, horizon)
    if len(rows) < 2:
        return "No checkpoints were measured."
    (k, first), (m, last) = rows[0], rows[-1]
    return (
        f"At T = {horizon}, from {k} to {m} optimiser steps, RMS b goes from {decimals(first.rms_target)} to "
        f"{decimals(last.rms_target)} nats and the particles predicted at every step from {count(first.sigma2 / DELTA_CV**2)} to "
        f"{count(last.sigma2 / DELTA_CV**2)}; the exact value's are {count(last.sigma2_perfect / DELTA_CV**2)}."
    )


def points_table(found: Scaling) -> Table:
    """Return every point."""
    rows = []
    for p in found.points:
        ends = f" [{count(p.low)}, {count(p.high)}]".replace("–", "?")
        measured = f"above {p.n_largest:,}" if p.n_measured is None else count(p.n_measured) + ends
        rows.append(
            (
                p.model, str(p.horizon), p.sampler, count(p.n_predicted), measured, count(p.n_on_tables),
                count(p.n_for_success), f"{p.resampled:.1f}", f"{p.tokens:,.0f}", f"{p.verifier_tokens:,.0f}",
                f"{p.seconds:.0f}",
            )
        )  # fmt: skip
    columns = (
        "model", "T", "sampler", "predicted", "measured, 95%", "on tables", "for success", "resampled", "tokens",
        "verifier tokens", "seconds",
    )  # fmt: skip
    return Table(
        f"Particles for a CV(Ẑ) of {DELTA_CV:g}; tokens of such a run on a prompt, of the largest where censored",
        columns,
        tuple(rows),
    )
