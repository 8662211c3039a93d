"""The report of `verify scaling`: Markdown, one self-contained page with its plots, and ten lines for the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rmtools.files import read_json, replacing_files
from rmtools.plots.page import Facts, Items, Lead, Plot, Section, Table, markdown, page
from rmtools.summary import Summary
from rmtools.verify.scaling.measure import SAMPLERS
from rmtools.verify.scaling.profile import DELTA_CV, EPSILON, SHARE_OF_TARGET
from rmtools.verify.scaling.report import bellman, figures, findings, growth_figures
from rmtools.verify.scaling.report.claims import Conclusions, conclusions
from rmtools.verify.scaling.report.comparisons import Ratio
from rmtools.verify.scaling.report.findings import dash, decimals, figure
from rmtools.verify.scaling.report.marks import PANELS
from rmtools.verify.scaling.run import Scaling

PAGE, TEXT = "scaling.html", "scaling.md"
TITLE = "Particles needed as solutions grow longer"
GATE, LOSSES = "policy/gate.json", "models/default/training_log.json"
MODELS = (
    ("constant", "no reward model: the policy's success p(T) everywhere"),
    ("untrained", "a random head on the policy"),
    ("mc-early, mc-late", "plain regression on outcomes (cross-entropy), after a few updates and after all"),
    (
        "default-early, default-late",
        "Bellman-trained: TD(λ) targets, Itakura-Saito divergence; a few updates and all",
    ),
    ("planted", f"the exact value with a bias of {EPSILON:.0%} a step, whose sign persists along a solution"),
    ("exact", "the exact value, from tables of the policy"),
)


def write_report(found: Scaling, out: Path, command: str) -> None:
    """Write ``scaling.md``, ``scaling.html`` and the plots (``*.svg``) into ``out``, all or none.

    Parameters
    ----------
    found : Scaling
    out : Path
        The folder of the run: the policy's gate and the training loss are read from it where they are there.
    command : str
        The command that makes the report again.
    """
    judged = conclusions(found)
    plots = drawings(found, training_loss(out))
    sections = page_sections(found, judged, plots, gate_rows(out), command)
    texts = {f"{name}.svg": plot.svg for name, plot in plots.items()}
    texts[TEXT] = with_images(markdown(TITLE, sections), plots)
    texts[PAGE] = page(TITLE, sections)
    if found.also is not None:
        write_report(found.also, out / found.also.profile.name, command)
    with replacing_files(out, last=PAGE) as new:
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")


def summary(found: Scaling) -> Summary:
    """Return the claims with their figures, for the terminal."""
    horizons = ", ".join(str(h.horizon) for h in found.horizons)
    name, grown = findings.growth_in_short(found)
    lines = {name: grown} | {
        c.short: f"{c.verdict:<12} {figure(c.found):<19} ({c.asked})" for c in conclusions(found).claims
    }
    return Summary(f"{TITLE} ({found.profile.name} run, T = {horizons})", lines)


def training_loss(out: Path) -> dict[int, float]:
    """Return the loss of the default model by optimiser step; empty if it is not there."""
    if not (out / LOSSES).exists():
        return {}
    rows = read_json(out / LOSSES, "the training log")
    return {int(row["step"]): float(row["loss"]) for row in rows if "loss" in row and "step" in row}


def gate_rows(out: Path) -> tuple[tuple[str, ...], ...]:
    """Return rows of the policy's gate; empty if it is not there."""
    if not (out / GATE).exists():
        return ()
    rows = read_json(out / GATE, "the policy's gate")
    return tuple(
        (f"T = {g['horizon']}", *(f"{g[k]:.4f}" for k in ("well_formed", "right", "step_success")))
        for g in rows
    )


def drawings(found: Scaling, losses: dict[int, float]) -> dict[str, Plot]:
    """Return the plots by name, the one for the top of a page that links them first."""
    title = findings.headline(found)
    needed = f"particles N for a CV(Ẑ) of {DELTA_CV:g}"
    plots = {
        "scaling": Plot(
            growth_figures.story(found, title),
            "Both samplers side by side, the models that tell the story.",
            title,
        )
    }
    for s in SAMPLERS:
        growth = findings.growth_text(found, s)
        plots[f"particles_{s}"] = Plot(
            growth_figures.against_horizon(found, s, growth_figures.particles_of, needed),
            f"Particles needed, {PANELS[s]}. Bars are 95% intervals over prompts; dashed lines are predicted, by the "
            "theory for every step, by a pilot for the default. A straight line is exponential growth.",
            f"Particles against steps, {s}: {growth}",
        )
    for s in SAMPLERS:
        plots[f"tokens_{s}"] = Plot(
            growth_figures.against_horizon(
                found, s, growth_figures.tokens_of, "tokens generated and read, per prompt"
            ),
            f"Tokens of policy and value model for the same accuracy, {PANELS[s]}.",
            f"Tokens against steps, {s}",
        )
    plots["predicted"] = Plot(
        figures.measured_against_predicted(found),
        "Measured against predicted N. Band: a factor of 2. Hollow: run on tables, where the budget ends; arrows: the N "
        "needed is above.",
        "Measured against predicted particles",
    )
    for s in SAMPLERS:
        plots[f"transition_{s}"] = Plot(
            figures.transition(found, s),
            f"What a model costs over the exact value, {PANELS[s]}: against c (above), and against T, coloured by c "
            "(below). If c alone decides, colours lie on one curve above. Band: a factor of 2.",
            f"Particles over those of the exact value against c, {s}",
        )
    for s in SAMPLERS:
        plots[f"accuracy_{s}"] = Plot(
            figures.error_and_accuracy(found, s),
            f"Sampling error and task accuracy at the same N, {PANELS[s]}. Dashed: what was asked.",
            f"Sampling error and accuracy against particles, {s}",
        )
    if found.baselines:
        plots["methods"] = Plot(
            figures.methods(found),
            "Tokens of policy and value model, per prompt, for a success of .9 of the target's. Arrows: not reached with the "
            "largest N tried.",
            "Tokens for the same accuracy against steps, by method",
        )
    if found.also is not None:
        plots["silent"] = Plot(
            growth_figures.story(found.also, findings.headline(found.also)),
            "Particles needed where failures cannot be read.",
            findings.headline(found.also),
        )
    plots["training"] = Plot(
        figures.training_curve(found, losses),
        "The Bellman-trained model as it trains: loss, Bellman error, and particles predicted for resampling at every step. "
        "Dotted: the exact value.",
        "Loss, Bellman error and predicted particles against optimiser steps",
    )
    return plots


def page_sections(
    found: Scaling,
    judged: Conclusions,
    plots: dict[str, Plot],
    gates: tuple[tuple[str, ...], ...],
    command: str,
) -> list[Section]:
    """Return the sections of the page and of the Markdown."""

    def pair(name: str) -> list[Plot]:
        return [plots[f"{name}_{s}"] for s in SAMPLERS]

    failed = tuple(
        (c.name, f"{figure(c.found)}, asked {c.asked}. {c.if_not} {c.margin}") for c in judged.failed
    )
    return [
        Section("", (Lead(lead(found, judged)), Facts(claim_facts(judged)), *pair("particles"))),
        *([Section("What fails", (Items(failed),))] if failed else []),
        Section(
            "1. Exponential or polynomial",
            (findings.growth_sentence(judged), growth_table(judged), *pair("tokens")),
        ),
        Section(
            "2. Does the theory predict the number?",
            (findings.worst_case_sentence(found), findings.worst_case_table(found), plots["predicted"]),
        ),
        Section(
            "3. Does c = T·ε decide?",
            (
                *(findings.transition_sentence(found, s) for s in SAMPLERS),
                *findings.trigger_sentences(found),
                findings.trigger_table(found),
                *([findings.family_table(found)] if found.families else []),
                *pair("transition"),
            ),
        ),
        Section(
            "4. Sampling error and task accuracy",
            (
                *(findings.accuracy_sentence(found, s) for s in SAMPLERS),
                *(findings.accuracy_table(found, s) for s in SAMPLERS),
                *pair("accuracy"),
            ),
        ),
        Section("5. As training goes on", (findings.training_sentence(found), plots["training"])),
        *(
            [
                Section(
                    "Other methods",
                    (findings.baselines_sentence(found), findings.baselines_table(found), plots["methods"]),
                )
            ]
            if found.baselines
            else []
        ),
        *([silent_section(found.also, plots)] if found.also else []),
        Section("Trained models against the exact value", ratio_tables(judged)),
        Section("Every claim", (claims_table(judged),), folded=True),
        Section("Every point", (findings.points_table(found),), folded=True),
        Section("Bellman error of every model", (*bellman_parts(found),), folded=True),
        Section("Policy and tables", (*policy_tables(found, gates),), folded=True),
        Section("How to read this", (Items((*MODELS, *notes(found, command))),), folded=True),
    ]


def bellman_parts(found: Scaling) -> list[str | Table]:
    """Return the exact Bellman errors, and what audits say."""
    parts: list[str | Table] = [bellman.consistency_table(found)]
    if found.audits:
        parts += [bellman.audit_sentence(found), bellman.audit_table(found)]
    return parts


def silent_section(also: Scaling, plots: dict[str, Plot]) -> Section:
    """Return what the further run shows: a task whose failures read like any other step."""
    judged = conclusions(also)
    return Section(
        "Failures that cannot be read",
        (
            f"The same task, but a blocked row is written like any other: only the prompt shows a failure. {lead(also, judged)} "
            f"Its own page is {also.profile.name}/{PAGE}.",
            growth_table(judged),
            plots["silent"],
        ),
    )


def lead(found: Scaling, judged: Conclusions) -> str:
    """Return the sentence that answers."""
    known = [c for c in judged.claims if c.holds is not None]
    good = sum(bool(c.holds) for c in known)
    rest = len(judged.claims) - len(known)
    text = f"{findings.headline(found)} (default sampler). {good} of {len(known)} claims hold"
    return text + (f", {rest} not resolved." if rest else ".")


def claim_facts(judged: Conclusions) -> tuple[tuple[str, str, str, str], ...]:
    """Return a line for each claim."""
    return tuple(
        (
            c.short,
            figure(c.found),
            f"{c.verdict.upper() if c.holds is False else c.verdict} (asked {c.asked}): {c.name}",
            "",
        )
        for c in judged.claims
    )


def claims_table(judged: Conclusions) -> Table:
    """Return every claim with what was asked and what it is from."""
    rows = tuple((c.name, c.verdict, figure(c.found), c.asked, c.quantity, c.detail) for c in judged.claims)
    return Table(
        "What was asked before the run, and what was found; 95% intervals",
        ("claim", "verdict", "found", "asked", "figure", "points"),
        rows,
    )


def growth_table(judged: Conclusions) -> Table:
    """Return slopes and residuals of both laws."""
    rows = []
    for g in judged.growth:
        lines = [
            text
            for x in (g.exponential, g.polynomial)
            for text in (
                (dash(None),) * 2 if x is None else (figure(x.slope), f"×{findings.factor(x.residual)}")
            )
        ]
        horizons = ", ".join(map(str, g.horizons)) + (f" ({g.bounds} censored)" if g.bounds else "")
        rows.append((g.model, g.sampler, g.shape, *lines, horizons))
    columns = ("model", "sampler", "nearer to", "slope on T", "off by", "slope on log T", "off by", "T")
    return Table(
        "Log N on T (exponential) and on log T (polynomial): slopes, 95%, and how far the points are from the line",
        columns,
        tuple(rows),
    )


def ratio_tables(judged: Conclusions) -> tuple[Table, Table]:
    """Return N of trained models over N of the exact value; and the same of N CV^2, which no search rounds."""
    return (
        _ratio_table(judged.ratios, "N over N of the exact value, 95%"),
        _ratio_table(
            judged.finer,
            "N CV(Ẑ)² over that of the exact value, of all runs with half of the N needed or more",
        ),
    )


def _ratio_table(ratios: Sequence[Ratio], title: str) -> Table:
    horizons = sorted({r.horizon for r in ratios})
    cells = {
        (r.model, r.sampler, r.horizon): ("≥ " + decimals(r.found.estimate)) if r.bound else figure(r.found)
        for r in ratios
    }
    rows = tuple(
        (model, sampler, *(cells.get((model, sampler, t), dash(None)) for t in horizons))
        for model, sampler in dict.fromkeys((r.model, r.sampler) for r in ratios)
    )
    return Table(title, ("model", "sampler", *(f"T = {t}" for t in horizons)), rows)


def policy_tables(found: Scaling, gates: tuple[tuple[str, ...], ...]) -> list[Table]:
    """Return what is known of the policy at each horizon."""
    rows = tuple(
        (
            f"T = {h.horizon}", f"{h.success:.4g}", f"{h.floor:.3g}", f"{h.target_success:.3f}", f"{h.uncovered:.1e}",
            f"{h.states:,}", "merged" if h.merged else "every prefix",
        )
        for h in found.horizons
    )  # fmt: skip
    success = Table(
        "The policy on the prompts that are measured, from its tables",
        ("", "success p(T)", "floor", "target's success", "mass not in tables", "states", "a state is"),
        rows,
    )
    gate = Table(
        "The policy's gate: solutions in format (at least .98), steps that are right (at least .99), safe ones (.75 to .85)",
        ("", "in format", "right", "safe"),
        gates,
    )
    return [success, *([gate] if gates else [])]


def notes(found: Scaling, command: str) -> Sequence[tuple[str, str]]:
    """Return how to read the figures, and how they were made."""
    seconds = sum(p.seconds for p in found.points)
    return (
        ("N needed", f"the smallest N such that it and every larger N tried have a CV(Ẑ) of at most {DELTA_CV:g}"),
        ("for success", f"the N for a mean share of right solutions of {SHARE_OF_TARGET:g} of the target's"),
        ("censored", "the largest N of the budget does not reach the CV; the search then ran on the policy's tables"),
        ("c", "T times the root mean square of b under the target, less its mean at each depth; theorems have the supremum"),
        ("off by", "root mean square distance of log N from the line, as a factor"),
        ("time", f"{seconds / 60:.0f} minutes of one core for all points"),
        ("made by", f"{command} (profile {found.profile.name}, seed {found.profile.seed})"),
    )  # fmt: skip


def with_images(text: str, plots: dict[str, Plot]) -> str:
    """Return Markdown with the first plot below its title, and the others at its end."""
    title, _, rest = text.partition("\n\n")
    first, *others = (f"![{plot.alternative}]({name}.svg)" for name, plot in plots.items())
    return "\n\n".join([title, first, rest.rstrip(), "### Plots", *others]) + "\n"
