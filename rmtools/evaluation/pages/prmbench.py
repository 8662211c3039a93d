"""The page of PRMBench."""

from collections.abc import Iterable

from rmtools.codec import to_json
from rmtools.evaluation.pages.layout import EvaluationPage, Fact, cost_fact, show, too_long_fact
from rmtools.evaluation.prmbench import PRMBench
from rmtools.plots import evaluation as drawings
from rmtools.plots.page import Plot, Section, Table

NOTES = (
    ("judged right", "a step whose score is at least .5"),
    ("PRMScore", "half of F1 with right steps as positives, half of F1 with wrong ones"),
    ("total", "rows of the class correct are left out"),
)  # fmt: skip


def page_of(found: PRMBench) -> EvaluationPage:
    """Return the page."""
    return EvaluationPage(
        f"PRMBench: {found.model}",
        lead_of(found),
        facts_of(found),
        _classes_plot(found),
        tuple(sections_of(found)),
        NOTES,
    )


def lead_of(found: PRMBench) -> str:
    """Return the sentence that answers."""
    return (
        f"PRMScore {show(found.total.prm_score, ends=False)}: {show(found.total.f1, ends=False)} on right steps, "
        f"{show(found.total.negative_f1, ends=False)} on wrong ones; calling every step right has {found.constant:.3f}."
    )


def facts_of(found: PRMBench) -> tuple[Fact, ...]:
    """Return the lines that answer first."""
    t = found.total
    return (
        ("PRMScore", show(t.prm_score), "half of each F1", ""),
        ("F1", show(t.f1), f"{t.n_right:,} right steps", ""),
        ("negative F1", show(t.negative_f1), f"{t.n_wrong:,} wrong steps", ""),
        ("accuracy", show(t.accuracy), "share of steps judged right", ""),
        ("constant", show(found.constant), "PRMScore of calling every step right", ""),
        ("never", show(found.never), "PRMScore of calling every step wrong", ""),
        *too_long_fact(found.too_long),
        *cost_fact(found.cost),
    )


def sections_of(found: PRMBench) -> Iterable[Section]:
    """Yield the sections behind the first."""
    rows = [
        (
            name.replace("_", " "), str(s.n), str(s.n_right), str(s.n_wrong),
            show(s.f1), show(s.negative_f1), show(s.prm_score), show(s.accuracy),
        )
        for name, s in {"total": found.total, **found.classes}.items()
    ]  # fmt: skip
    columns = (
        "class",
        "solutions",
        "right steps",
        "wrong steps",
        "F1",
        "negative F1",
        "PRMScore",
        "accuracy",
    )
    yield Section("By class", (Table("Steps judged right or wrong at .5", columns, tuple(rows)),))


def _classes_plot(found: PRMBench) -> Plot:
    shown = to_json({"total": found.total, **found.classes})
    return Plot(
        drawings.classes(shown),
        "F1 of right and of wrong steps, and PRMScore, by class.",
        "F1 by class of error",
    )
