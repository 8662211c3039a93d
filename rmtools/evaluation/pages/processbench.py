"""The page of ProcessBench."""

from collections.abc import Iterable

from rmtools.codec import to_json
from rmtools.evaluation.pages.layout import EvaluationPage, Fact, cost_fact, show, too_long_fact
from rmtools.evaluation.processbench import CHOSEN_ON, ProcessBench
from rmtools.evaluation.published import PROCESSBENCH, SUBSETS
from rmtools.plots import evaluation as drawings
from rmtools.plots.page import Plot, Section, Table

NOTES = (
    ("prediction", "the first step whose score is below the threshold; no error if there is none"),
    ("F1", "2ab / (a + b), a the accuracy on solutions with a wrong step, b on those without"),
    ("chosen threshold", "the best on GSM8K, used on all subsets; on GSM8K itself it is a figure in hindsight, and its interval "
     "does not know that the threshold was chosen"),
    ("a constant", "calls all solutions right, or all wrong at the first step: F1 is 0"),
    ("a guess", "says no error with the best chance there is, else any of the steps"),
)  # fmt: skip


def page_of(found: ProcessBench) -> EvaluationPage:
    """Return the page."""
    return EvaluationPage(
        f"ProcessBench: {found.model}",
        lead_of(found),
        facts_of(found),
        _threshold_plot(found),
        tuple(sections_of(found)),
        NOTES,
    )


def lead_of(found: ProcessBench) -> str:
    """Return the sentence that answers."""
    a = found.average_at_half
    chosen = (
        ""
        if found.average_at_chosen is None
        else f", {found.average_at_chosen.estimate:.3f} at {found.threshold:.3f} (chosen on gsm8k)"
    )
    guess = sum(s.guess for s in found.subsets.values()) / len(found.subsets)
    return f"F1 {show(a, ends=False)} at threshold .5{chosen}; a constant has 0, a guess {guess:.3f}."


def facts_of(found: ProcessBench) -> tuple[Fact, ...]:
    """Return the lines that answer first."""
    rows = []
    for name, s in found.subsets.items():
        size = f"{s.n_erroneous} with an error, {s.n_correct} without"
        rows.append((f"{name}, at .5", show(s.at_half.f1), f"F1; {size}", ""))
        if s.at_chosen is not None:
            rows.append(
                (
                    f"{name}, at {found.threshold:.3f}",
                    show(s.at_chosen.f1),
                    f"F1, threshold chosen on {CHOSEN_ON}{' itself: in hindsight' if name == CHOSEN_ON else ''}",
                    "",
                )
            )
        rows.append(
            (f"{name}, AUC", show(s.auc), "right steps above first wrong ones; .5 for a constant", "")
        )
    constant = ("constant", show(found.constant_f1), "F1 of the same value everywhere", "")
    guess = (
        "guess",
        show(sum(s.guess for s in found.subsets.values()) / len(found.subsets)),
        "F1 of the best guess that does not look",
        "",
    )
    return (*rows, constant, guess, *too_long_fact(found.too_long), *cost_fact(found.cost))


def sections_of(found: ProcessBench) -> Iterable[Section]:
    """Yield the sections behind the first."""
    rows = []
    for name, s in found.subsets.items():
        at = {"0.5": s.at_half} | ({} if s.at_chosen is None else {f"{found.threshold:.3f}": s.at_chosen})
        rows += [(name, t, show(x.erroneous), show(x.correct), show(x.f1)) for t, x in at.items()]
    if len(found.subsets) > 1:
        rows.append(("average", "0.5", "", "", show(found.average_at_half)))
        if found.average_at_chosen is not None:
            rows.append(("average", f"{found.threshold:.3f}", "", "", show(found.average_at_chosen)))
    columns = ("subset", "threshold", "accuracy, with an error", "accuracy, without", "F1")
    yield Section("By subset", (Table("Accuracy of the first wrong step", columns, tuple(rows)),))
    published = tuple(
        (p.model, *(f"{x:.1f}" for x in p.f1), f"{p.average:.1f}", p.source) for p in PROCESSBENCH
    )
    caption = "F1 in percent that others reported; not measured here"
    yield Section("Published", (Table(caption, ("model", *SUBSETS, "average", "source"), published),))


def _threshold_plot(found: ProcessBench) -> Plot:
    return Plot(
        drawings.first_errors(to_json(found.curves), found.threshold),
        "Share of solutions with and without an error that are judged right, and F1, against the threshold.",
        "F1 and accuracies against the threshold",
    )
