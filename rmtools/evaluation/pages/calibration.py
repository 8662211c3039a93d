"""The page of calibration."""

import math
from collections.abc import Iterable, Sequence

from rmtools.codec import to_json
from rmtools.evaluation.calibration import Calibration
from rmtools.evaluation.pages.layout import EvaluationPage, Fact, cost_fact, show, too_long_fact
from rmtools.plots import evaluation as drawings
from rmtools.plots.page import Plot, Section, Table
from rmtools.summary import counted

NOTES = (
    ("Brier", "mean squared difference of p and outcome; the constant predicts the mean outcome of the same prefixes"),
    ("ECE", "over 10 bins of equal mass; biased upward by the noise of each bin, so without an interval"),
    ("AUC within", "over pairs of unfinished prefixes of one prompt and depth: what resampling chooses between; .5 is a guess"),
    ("design effect", "the variance of the mean Brier score over prompts, relative to that of as many independent prefixes"),
)  # fmt: skip


def page_of(found: Calibration) -> EvaluationPage:
    """Return the page."""
    return EvaluationPage(
        f"Calibration: {found.model}",
        lead_of(found),
        facts_of(found),
        _reliability_plot(found),
        tuple(sections_of(found)),
        NOTES,
    )


def lead_of(found: Calibration) -> str:
    """Return the sentence that answers: calibrated better than a constant, and ranking among alternatives or not."""
    s = found.overall
    better = "below" if s.brier.estimate < s.brier_constant else "not below"
    within = show(found.auc_within, ends=False)
    return (
        f"Brier {show(s.brier, ends=False)}, {better} the constant's {s.brier_constant:.3f}; AUC {show(s.auc, ends=False)}, and "
        f"{within} among prefixes of one prompt and depth."
    )


def facts_of(found: Calibration) -> tuple[Fact, ...]:
    """Return the lines that answer first."""
    s = found.overall
    what = (
        "rewards of the solutions"
        if found.outcomes == "rewards"
        else "labels of the steps: judgements, not chances of success"
    )
    return (
        ("Brier", show(s.brier), f"constant {s.brier_constant:.3f}", ""),
        ("ECE", show(s.ece), "10 bins of equal mass", ""),
        ("AUC", show(s.auc), "over all prefixes", ""),
        ("AUC within", show(found.auc_within), "pairs of the same prompt and depth", ""),
        ("mean p", show(s.mean_p), f"mean outcome {show(s.mean_outcome)}", ""),
        ("outcomes", found.outcomes, what, ""),
        (
            "size",
            f"{s.n:,} prefixes",
            f"of {counted(found.n_solutions, 'solution')} of {counted(found.n_prompts, 'prompt')}",
            "",
        ),
        ("design effect", show(found.design_effect), f"as {_effective(found)} independent prefixes", ""),
        *too_long_fact(found.too_long),
        *cost_fact(found.cost),
    )


def _effective(found: Calibration) -> str:
    return (
        "?" if math.isnan(found.design_effect) else f"{found.overall.n / max(found.design_effect, 1e-9):,.0f}"
    )


def sections_of(found: Calibration) -> Iterable[Section]:
    """Yield the sections behind the first."""
    rows = tuple(
        (
            t,
            str(s.n),
            show(s.brier),
            f"{s.brier_constant:.3f}",
            show(s.ece),
            show(s.auc),
            show(s.mean_p),
            show(s.mean_outcome),
        )
        for t, s in found.by_depth.items()
    )
    columns = ("steps", "prefixes", "Brier", "constant", "ECE", "AUC", "mean p", "mean outcome")
    drawn = Plot(
        drawings.by_depth(to_json(found.by_depth)),
        "Brier score, the constant's, ECE and AUC by the number of steps taken.",
        "Calibration by depth",
    )
    yield Section("By depth", (Table("Prefixes of the same number of steps", columns, rows), drawn))
    c = found.overall.curve
    bins: Sequence[tuple[str, ...]] = [
        (f"{p:.3f}", show(y), str(int(n)))
        for p, y, n in zip(c.mean_p, found.overall.curve_outcome, c.count, strict=True)
    ]
    yield Section(
        "Bins",
        (Table("Bins of equal mass", ("mean p", "mean outcome", "prefixes"), tuple(bins)),),
        folded=True,
    )


def _reliability_plot(found: Calibration) -> Plot:
    return Plot(
        drawings.reliability(to_json(found.overall)),
        f"Mean outcome ({found.outcomes}) against mean p, bins of equal mass; bars: 95% over prompts.",
        "Reliability curve",
    )
