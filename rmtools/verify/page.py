"""The page about a run, made from ``summary.json`` alone."""

from collections.abc import Mapping
from typing import Any

from rmtools import plots
from rmtools.auditing import page as audit
from rmtools.plots.page import Items, Plot, Section, Table, page
from rmtools.stats.bootstrap import Interval

Values = Mapping[str, Any]


def run_page(found: Values) -> str:
    """Return the page of a run as HTML.

    Parameters
    ----------
    found : mapping
        As `rmtools.verify.summary.summarise` returns it.
    """
    return page(
        "From a policy to a sampled reward model",
        [
            checks(found),
            success(found),
            bellman(found),
            cost(found),
            training(found),
            stages(found),
            Section("How to read the audit", (Items(audit.readings(found["audit"])),)),
            Section("Provenance", (Items(audit.provenance(found["audit"])),)),
        ],
    )


def shown(interval: Values) -> str:
    """Return an interval's text; what JSON has as null is not available."""
    return "not available" if interval["estimate"] is None else str(Interval.from_dict(interval))


def value_text(value: float | None) -> str:
    """Return a figure's text."""
    return "not available" if value is None else f"{value:.4g}"


def checks(found: Values) -> Section:
    """Return what must hold and whether it does."""
    rows = tuple(
        (c["name"], value_text(c["value"]), c["limit"], "yes" if c["holds"] else "NO")
        for c in found["checks"]
    )
    failed = [c["name"] for c in found["checks"] if not c["holds"]]
    text = "Everything that must hold holds."
    if failed:
        text = f"{len(failed)} of {len(rows)} do not hold: {'; '.join(failed)}."
    return Section(
        "What must hold", (text, Table("Checks of this run", ("", "value", "limit", "holds"), rows))
    )


def success(found: Values) -> Section:
    """Return success by way of sampling."""
    n, tokens, removed = found["n_particles"], found["generated_tokens"], found["removed_prompts"]
    rates = {
        "plain sampling": found["success"]["plain"],
        f"best-of-{n}, weighted draw": found["success_weighted_draw"]["best_of_n"],
        f"best-of-{n}, argmax": found["success"]["best_of_n"],
        f"SMC-{n}, weighted draw": found["success_weighted_draw"]["smc"],
        f"SMC-{n}, argmax": found["success"]["smc"],
    }
    text = (
        f"Share of {found['n_prompts']} held-out prompts solved. Best-of-{n} and SMC draw {n} solutions each; no verifier "
        f"helps them, the reward model's last value chooses: its largest (argmax), or a draw in proportion to the "
        f"weights. Tokens generated: {tokens['best_of_n']:,.0f} by best-of-{n}, {tokens['smc']:,.0f} by SMC. Prompts "
        "without a solution were left out beforehand: "
        + ", ".join(f"{count} drawing the {name} set" for name, count in removed.items())
        + "."
    )
    rows = [(name, shown(rate)) for name, rate in rates.items()]
    rows.append(
        (f"any of {n} plain samples right (the ceiling of best-of-{n})", shown(found["success_any_of_n"]))
    )
    rows.append((f"SMC-{n} over best-of-{n}, argmax", shown(found["smc_over_best_of_n"])))
    return Section(
        "Success",
        (
            text,
            Table("Success with 95% intervals over prompts", ("", "share solved"), tuple(rows)),
            Plot(
                plots.success_bars(rates),
                "Share of prompts solved; plain sampling uses no reward model.",
                "Success of " + ", ".join(f"{k}: {shown(v)}" for k, v in rates.items()),
            ),
        ),
    )


def bellman(found: Values) -> Section:
    """Return the audit: the exact errors first, the table, warnings, plots."""
    values = found["audit"]
    rows = [
        (
            role,
            shown(interval),
            shown(found["rms_log_bellman_sampled"][role]),
            "yes" if found["rms_log_bellman_sampled"][role]["resolved"] else "no",
        )
        for role, interval in found["rms_log_bellman"].items()
    ]
    exact, sampled = found["rms_ratio"], found["rms_ratio_sampled"]
    rows += [
        (name.replace("_", " "), value_text(exact[name]), value_text(sampled[name]), "") for name in sampled
    ]
    outside = found["uncovered"]
    text = (
        "The trained model is judged on exact ratios: the one-step children of every audited prefix were enumerated; "
        f"steps outside the list have probability {outside['mean']:.2g} on average, {outside['largest']:.2g} at most. "
        "The estimate from sampled children stands beside it."
    )
    judged = Table(
        "RMS log Bellman error (nats), 95% intervals over prompts",
        ("", "exact", "sampled, corrected", "sampled resolved"),
        tuple(rows),
    )
    return Section(
        "Audit",
        (
            audit.introduction(values),
            text,
            judged,
            audit.main_table(values),
            "Warnings of the audit:",
            Items(audit.warnings(values)),
            *audit.figures(values),
        ),
    )


def cost(found: Values) -> Section:
    """Return predicted against measured sigma^2."""
    verify, sigma2 = found["verify"], found["sigma2"]
    rows = [
        (
            f"prompt {i}",
            str(p["n_particles"]),
            str(p["runs"]),
            f"{p['sigma2_predicted']:.3g}",
            shown(p["sigma2_measured"]),
            f"{p['mean_z_ratio']:.3f} ± {1.96 * p['mean_z_ratio_se']:.3f}",
        )
        for i, p in enumerate(verify["prompts"], 1)
    ]
    rows.append(("pooled", "", "", f"{sigma2['predicted']['estimate']:.3g}", shown(sigma2["measured"]), ""))
    text = (
        f"The sampler run again and again, beside what theory predicts for it. Pooled, measured over predicted is "
        f"{shown(found['sigma2_ratio'])}. Multinomial resampling at every step, terminal verifier; the prediction is "
        f"exact, by enumeration; {verify['skipped']} prompts that need too many particles were passed over."
    )
    plot = Plot(
        plots.sigma2_scatter(verify["prompts"], (sigma2["predicted"]["estimate"], sigma2["measured"])),
        "Measured against predicted σ², a point a prompt; bars are 95% intervals over runs.",
        f"Predicted {sigma2['predicted']['estimate']:.3g}, measured {shown(sigma2['measured'])}",
    )
    columns = ("", "N", "runs", "σ² predicted", "σ² measured", "mean Ẑ/Z")
    return Section(
        "Particles, predicted and measured", (text, Table("σ² by prompt", columns, tuple(rows)), plot)
    )


def training(found: Values) -> Section:
    """Return the training curve."""
    plot = Plot(
        plots.training_curve(found["training_curve"]),
        "Training loss, and on held-out rollouts the noise-corrected RMS "
        "log Bellman error and the Brier score. A hollow point: the corrected mean square was not positive.",
        "Training loss, held-out Bellman error and Brier score against optimiser steps",
    )
    return Section("Training", (plot,))


def stages(found: Values) -> Section:
    """Return how long the stages took, and their commands."""
    rows = [
        (s["name"], f"{s['seconds']:.1f}", value_text(s["peak_memory_gib"]), s["command"])
        for s in found["stages"]
    ]
    rows.append(("total", f"{found['seconds']['total']:.1f}", value_text(found["peak_memory_gib"]), ""))
    return Section(
        "Stages",
        (
            Table(
                "Time, peak memory and command of each stage",
                ("", "seconds", "peak memory (GiB)", "command"),
                tuple(rows),
            ),
        ),
    )
