"""Write ``summary.json`` and ``report.html`` of a run, the last stage of the quick start.

    python recipes/quickstart/report.py runs/quickstart

The page is made from the summary alone.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from figures import sigma2_scatter, success_bars, training_curve
from summary import summarise

from rmtools.auditing import AuditReport
from rmtools.auditing import page as audit
from rmtools.auditing.report import SCHEMA_VERSION as AUDIT_VERSION
from rmtools.cli.errors import exit_on_user_error
from rmtools.codec import from_json, unversioned
from rmtools.files import write_json, write_text
from rmtools.plots.page import Block, Plot, Section, Table, page
from rmtools.stats.bootstrap import Interval

Values = Mapping[str, Any]


def write_summary(run: Path) -> dict[str, Any]:
    """Write both files into the folder ``run`` and return the summary; raise ``UserError`` as `summarise` does."""
    found = summarise(run)
    write_json(run / "summary.json", found)
    write_text(run / "report.html", run_page(found))
    return found


def run_page(found: Values) -> str:
    """Return the page of a run as HTML, from its summary."""
    report = from_json(AuditReport, unversioned(found["audit"], "the audit", AUDIT_VERSION, ""))
    return page(
        "From a policy to a sampled reward model",
        [
            _checks(found),
            _success(found),
            *_audit(found, report),
            _cost(found),
            _training(found),
            _stages(found),
            Section("How to read the audit", (audit.row_help(report),), folded=True),
            Section("Provenance", (audit.provenance(report),), folded=True),
        ],
    )


def _interval(values: Values) -> str:
    """Return an interval as text."""
    if values["estimate"] is None:
        return "not available"
    return str(Interval(values["estimate"], values["low"], values["high"]))


def _number(value: float | None) -> str:
    return "not available" if value is None else f"{value:.4g}"


def _checks(found: Values) -> Section:
    rows = tuple(
        (c["name"], _number(c["value"]), c["limit"], "yes" if c["holds"] else "NO") for c in found["checks"]
    )
    failed = [c["name"] for c in found["checks"] if not c["holds"]]
    text = "Everything that must hold holds."
    if failed:
        text = f"{len(failed)} of {len(rows)} do not hold: {'; '.join(failed)}."
    return Section(
        "What must hold", (text, Table("Checks of this run", ("", "value", "limit", "holds"), rows))
    )


def _success(found: Values) -> Section:
    n, tokens, removed = found["n_particles"], found["generated_tokens"], found["removed_prompts"]
    rates = {
        "plain sampling": found["success"]["plain"],
        f"best-of-{n}, weighted draw": found["success_weighted_draw"]["best_of_n"],
        f"best-of-{n}, argmax": found["success"]["best_of_n"],
        f"SMC-{n}, weighted draw": found["success_weighted_draw"]["smc"],
        f"SMC-{n}, argmax": found["success"]["smc"],
    }
    text = (
        f"Share of {found['n_prompts']} held-out prompts solved. Best-of-{n} and SMC draw {n} solutions each. Neither "
        "uses a verifier: the reward model's last value chooses, its largest (argmax) or a draw in proportion to the "
        f"weights. Tokens generated: {tokens['best_of_n']:,.0f} by best-of-{n}, {tokens['smc']:,.0f} by SMC. Prompts "
        "without a solution were removed before: "
        + ", ".join(f"{count} of the {name} set" for name, count in removed.items())
        + "."
    )
    rows = rates | {
        f"any of {n} plain samples right (the ceiling of best-of-{n})": found["success_any_of_n"],
        f"SMC-{n} over best-of-{n}, argmax": found["smc_over_best_of_n"],
    }
    cells = tuple((name, _interval(rate)) for name, rate in rows.items())
    plot = Plot(
        success_bars(rates),
        "Share of prompts solved; plain sampling uses no reward model.",
        "Success of " + ", ".join(f"{k}: {_interval(v)}" for k, v in rates.items()),
    )
    table = Table("Success with 95% intervals over prompts", ("", "share solved"), cells)
    return Section("Success", (text, table, plot))


def _audit(found: Values, report: AuditReport) -> list[Section]:
    outside = found["uncovered"]
    exact, sampled = found["rms_ratio"], found["rms_ratio_sampled"]
    text = (
        "The trained model is judged on exact ratios: the one-step children of every audited prefix were enumerated; "
        f"steps outside the list have probability {outside['mean']:.2g} on average, {outside['largest']:.2g} at most."
    )
    ratios = Table(
        "Ratio of RMS log Bellman errors",
        ("", "enumerated", "sampled, corrected"),
        tuple((name.replace("_", " "), _number(exact[name]), _number(sampled[name])) for name in sampled),
    )
    warnings = ("Warnings of the audit:", audit.warnings(report))
    first, *others = audit.figures(report)
    every: tuple[Block, ...] = (
        audit.introduction(report),
        text,
        ratios,
        audit.main_table(report),
        *others,
    )
    return [
        Section("Audit", (*audit.answer(report), *warnings, first)),
        Section("Every figure of the audit", every, folded=True),
    ]


def _cost(found: Values) -> Section:
    prompts, sigma2 = found["verify"]["prompts"], found["sigma2"]
    predicted, measured = sigma2["predicted"]["estimate"], sigma2["measured"]
    rows = [
        (
            f"prompt {i}",
            str(p["n_particles"]),
            str(p["runs"]),
            f"{p['sigma2_predicted']:.3g}",
            _interval(p["sigma2_measured"]),
            f"{p['mean_z_ratio']:.3f} ± {1.96 * p['mean_z_ratio_se']:.3f}",
        )
        for i, p in enumerate(prompts, 1)
    ]
    rows.append(("pooled", "", "", f"{predicted:.3g}", _interval(measured), ""))
    text = (
        "Repeated runs of the sampler, beside the prediction, which is exact (enumerated). Pooled, measured over "
        f"predicted is {_interval(found['sigma2_ratio'])}. Multinomial resampling at every step, terminal verifier; "
        f"{found['verify']['skipped']} prompts that need too many particles were skipped."
    )
    plot = Plot(
        sigma2_scatter(prompts, (predicted, measured)),
        "Measured against predicted σ², one point per prompt; bars are 95% intervals over runs.",
        f"Predicted {predicted:.3g}, measured {_interval(measured)}",
    )
    columns = ("", "N", "runs", "σ² predicted", "σ² measured", "mean Ẑ/Z")
    return Section(
        "Particles, predicted and measured", (text, Table("σ² by prompt", columns, tuple(rows)), plot)
    )


def _training(found: Values) -> Section:
    plot = Plot(
        training_curve(found["training_curve"]),
        "Training loss, and on held-out rollouts the noise-corrected RMS log Bellman error and the Brier score. "
        "A hollow point: the corrected mean square was not positive.",
        "Training loss, held-out Bellman error and Brier score against optimiser steps",
    )
    return Section("Training", (plot,))


def _stages(found: Values) -> Section:
    total = {
        "name": "total",
        "seconds": found["seconds"]["total"],
        "peak_memory_gib": found["peak_memory_gib"],
        "command": "",
    }
    rows = tuple(
        (s["name"], f"{s['seconds']:.1f}", _number(s["peak_memory_gib"]), s["command"])
        for s in (*found["stages"], total)
    )
    columns = ("", "seconds", "peak memory (GiB)", "command")
    return Section("Stages", (Table("Time, peak memory and command of each stage", columns, rows),))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    run = parser.parse_args().run
    for check in write_summary(run)["checks"]:
        outcome = "holds" if check["holds"] else "FAILS"
        print(f"{outcome}  {check['name']}: {_number(check['value'])} ({check['limit']})")
    print(f"summary: {run / 'summary.json'}\nreport: {run / 'report.html'}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
