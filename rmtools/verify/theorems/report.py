"""The files of `verify exact`: JSON, markdown, plots and one self-contained page."""

from pathlib import Path
from typing import Any

from rmtools import plots
from rmtools.codec import VERSION, to_json
from rmtools.files import json_text, replacing_files
from rmtools.plots.page import Items, Plot, Section, Table, page
from rmtools.verify.theorems.case import Figures
from rmtools.verify.theorems.runner import ExactVerification

RESULT_FILE = "exact.json"
SCHEMA_VERSION = 1
TITLE = "The theorems, run as checks on exact models"
COLUMNS = ("check", "holds", "found", "must show", "on")


def json_values(found: ExactVerification) -> dict[str, Any]:
    """Return the values of ``exact.json``; a figure that a failing check could not compute is null."""
    return {VERSION: SCHEMA_VERSION, **to_json(found)}


def write_report(found: ExactVerification, folder: Path) -> None:
    """Write ``exact.json``, ``exact.md``, ``exact.html`` and the plots (``*.svg``) into ``folder``, all or none."""
    images = drawings(found)
    texts = {f"{name}.svg": svg for name, (svg, _) in images.items()}
    texts |= {"exact.md": markdown(found), "exact.html": html(found, [*images.values()])}
    texts[RESULT_FILE] = json_text(json_values(found))
    with replacing_files(folder) as new:
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")


def rows(found: ExactVerification) -> tuple[tuple[str, ...], ...]:
    """Return the rows of the table."""
    return tuple((c.name, "yes" if c.holds else "NO", c.found, c.must_show, c.on) for c in found.checks)


def summary(found: ExactVerification) -> str:
    """Return the verdict in a sentence."""
    failed = [c.name for c in found.checks if not c.holds]
    kind = "quick" if found.quick else "full"
    verdict = "All checks hold" if not failed else f"{len(failed)} do not hold: {', '.join(failed)}"
    return f"{verdict} ({kind} run, seed {found.seed}, {found.seconds:.0f} s)."


def markdown(found: ExactVerification) -> str:
    """Return the table as markdown."""
    # A bar inside a cell would end it.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows(found)]
    table = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS), *(" | ".join(row) for row in cells)]
    return "\n".join([f"# {TITLE}", "", summary(found), "", *(f"| {line} |" for line in table)]) + "\n"


def drawings(found: ExactVerification) -> dict[str, tuple[str, str]]:
    """Return name -> (SVG, caption) of every plot, the headline first."""
    cases: dict[str, list[Figures]] = {check.name: check.cases for check in found.checks}
    most = cases["phase transition"][0]["most_particles"]
    return {
        "phase_transition": (
            plots.phase_transition(cases["phase transition"]),
            "Particles for a coefficient of variation of .2. Lines are predicted, points measured with 95% intervals: up to "
            f"{most:,} particles the sampler was run, beyond sigma^2 predicts. A constant Bellman error costs "
            "exponentially in the number of steps, an error of c/T linearly, no reward model most.",
        ),
        "output_law": (
            plots.output_law(cases["output law"]),
            "Distance of the expected output from the target, along the signs of the predicted bias. Above: multinomial "
            "resampling at every step, lines predicted. Below: other settings, which have no formula.",
        ),
        "variance": (
            plots.variance_approach(cases["variance"]),
            "The variance of the estimate of Z over its prediction, as N grows. The band is 5%.",
        ),
    }


def html(found: ExactVerification, images: list[tuple[str, str]]) -> str:
    """Return the page with the images, pairs (SVG, caption), the headline first."""
    cells = tuple((*row[:3], f"{row[3]} (on: {row[4]})") for row in rows(found))
    table = Table("What was checked, and what was found", COLUMNS[:4], cells)
    headline, *others = [Plot(svg, caption, caption) for svg, caption in images]
    notes = (
        ("unbiased", "every mean is compared with the exact Z, which dynamic programming gives"),
        ("upper and lower bounds", "the factors say how far the worst case is from what these models need"),
    )
    return page(
        TITLE,
        [
            Section("Phase transition", (summary(found), headline)),
            Section("Checks", (table,)),
            Section("Predictions", (*others,)),
            Section("How to read this", (Items(notes),)),
        ],
    )
