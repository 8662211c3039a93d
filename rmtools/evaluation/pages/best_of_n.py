"""The page of best-of-n."""

from collections.abc import Iterable
from pathlib import Path

from rmtools.codec import to_json
from rmtools.evaluation.best_of_n import BestOfN
from rmtools.evaluation.pages.layout import EvaluationPage, Fact, show
from rmtools.evaluation.published import BEST_OF_N, BEST_OF_N_SOURCE
from rmtools.plots import evaluation as drawings
from rmtools.plots.page import Plot, Section, Table
from rmtools.stats.bootstrap import Interval
from rmtools.summary import counted

NOTES = (
    ("at n", "the expectation over n of a problem's samples drawn without replacement; ties are split evenly"),
    ("weighted majority", "the answer with the largest sum of scores; samples without an answer do not vote"),
    ("an answer", "is worth the mean of its samples' flags: a checker may judge equal answers differently"),
    ("N by instance", "ceil(log(1 - q) / log(1 - p)), p the chance that a sample of this problem is right; in hindsight p is "
     "the share that was right, which no sampler knows beforehand"),
    ("FLOPs", "2 per weight and token, attention not counted"),
)  # fmt: skip


def page_of(found: BestOfN) -> EvaluationPage:
    """Return the page."""
    return EvaluationPage(
        f"Best of n: {Path(found.source).name}",
        lead_of(found),
        facts_of(found),
        _curve_plot(found),
        tuple(sections_of(found)),
        NOTES,
    )


def _as_interval(found: object) -> Interval:
    return Interval(found.estimate, found.low, found.high)  # type: ignore[attr-defined]


def lead_of(found: BestOfN) -> str:
    """Return the sentence that answers: what choosing by the verifier gives over counting answers."""
    if found.best_of_n is None:
        alone = f"one sample {found.pass_at_1.estimate:.3f}"
        return f"Majority of {found.n}: {found.majority.estimate:.3f}; {alone}. No verifier's scores."
    gain = found.gains["best_of_n - majority"]
    versus = "better than" if gain.estimate > 0 else "worse than"
    if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
        versus = "not resolved from"
    versus += f" a majority without a verifier ({found.majority.estimate:.3f})"
    return (
        f"Best of {found.n} solves {found.best_of_n.estimate:.3f} of {counted(found.n_problems, 'problem')}: {versus}; one "
        f"sample {found.pass_at_1.estimate:.3f}, a perfect verifier {found.oracle.estimate:.3f}."
    )


def facts_of(found: BestOfN) -> tuple[Fact, ...]:
    """Return the lines that answer first."""
    n, rows = found.n, []
    if found.best_of_n is not None and found.weighted_majority is not None:
        gain = found.gains["best_of_n - majority"]
        rows += [
            (f"best of {n}", show(_as_interval(found.best_of_n)), f"largest score ({found.aggregate})", ""),
            ("minus majority", show(gain), "on the same problems", ""),
            (
                f"weighted majority of {n}",
                show(_as_interval(found.weighted_majority)),
                f"sums of scores ({found.aggregate})",
                "",
            ),
        ]
    last = found.curve[-1]
    rows += [
        (f"majority of {n}", show(_as_interval(found.majority)), "no verifier", ""),
        ("one sample", show(_as_interval(found.pass_at_1)), "pass@1", ""),
        ("oracle", show(_as_interval(found.oracle)), f"one of {n} is right", ""),
        ("generated", drawings.tokens(last.generated_tokens), f"tokens per problem at n = {n}", ""),
        ("verifier reads", drawings.tokens(last.verifier_tokens), _verifier_remark(found), ""),
    ]
    return tuple(rows)


def _verifier_remark(found: BestOfN) -> str:
    last = found.curve[-1]
    if last.verifier_tokens is None:
        return "tokens per problem; the recording does not say (at least the generated ones, once)"
    flops = "" if last.flops is None else f", {last.flops:.2g} FLOPs"
    seconds = "" if found.cost is None else f"; all samples in {found.cost.seconds:,.1f} s"
    return f"tokens per problem{flops}{seconds}"


def sections_of(found: BestOfN) -> Iterable[Section]:
    """Yield the sections behind the first."""
    names = [m for m in drawings.METHODS if m in found.curve[0].methods and m != "pass_at_1"]
    rows = tuple(
        (
            str(c.n), *(show(c.methods[m]) for m in names), drawings.tokens(c.generated_tokens),
            drawings.tokens(c.verifier_tokens),
            "?" if c.flops is None else f"{c.flops:.2g}",
        )
        for c in found.curve
    )  # fmt: skip
    labels = tuple(drawings.METHODS[m][0] for m in names)
    yield Section(
        "As n grows",
        (Table("Share of problems solved", ("n", *labels, "generated", "verifier reads", "FLOPs"), rows),),
    )
    if len(found.aggregations) > 1:
        each = tuple(
            (a, show(_as_interval(c.best_of_n)), show(_as_interval(c.weighted_majority)))
            for a, c in found.aggregations.items()
        )
        yield Section(
            "How scores of steps become one",
            (Table(f"At n = {found.n}", ("aggregation", "best of n", "weighted majority"), each),),
        )
    if found.gains:
        gains = tuple((name.replace("_", " "), show(gain)) for name, gain in found.gains.items())
        yield Section(
            "Differences on the same problems", (Table(f"At n = {found.n}", ("", "difference"), gains),)
        )
    yield Section("Samples by instance", (_adaptive_sentence(found), _adaptive_table(found)))
    published = tuple((a, f"{b}: {c}%", f"{d}: {e}%") for a, b, c, d, e in BEST_OF_N)
    yield Section(
        "Published",
        (
            Table(
                f"Best of n elsewhere ({BEST_OF_N_SOURCE}); not measured here",
                ("", "verifier", "majority"),
                published,
            ),
        ),
    )


def _adaptive_sentence(found: BestOfN) -> str:
    q = found.adaptive[0].q
    return (
        f"With N = ceil(log(1 - q) / log(1 - p)) samples of each problem, q = {q:g}, at most those there are."
    )


def _adaptive_table(found: BestOfN) -> Table:
    rows = tuple(
        (
            f"p: {a.p_from}", f"{a.mean_n:.2f}", str(a.capped), show(a.best_of_n), show(a.oracle),
            f"{show(a.fixed_best_of_n)} (n = {a.fixed_n})",
        )
        for a in found.adaptive
    )  # fmt: skip
    columns = (
        "",
        "mean N",
        "problems that need more",
        "best of N",
        "one is right",
        "best of as many for all",
    )
    return Table("Instance-adaptive scaling", columns, rows)


def _curve_plot(found: BestOfN) -> Plot:
    return Plot(
        drawings.accuracy_over_n(to_json(found.curve)),
        "Share of problems solved as n grows; band: 95% over problems. Below n: tokens per problem, generated and, where "
        "known, read by the verifier.",
        "Share of problems solved against samples per problem",
    )
