"""What the page of an evaluation has: title, answer, lines, plot, sections, notes; and how figures are written."""

import math
from dataclasses import dataclass

from rmtools.evaluation.step_scores import Cost
from rmtools.plots.page import Facts, Items, Lead, Plot, Section
from rmtools.stats.bootstrap import Interval
from rmtools.summary import counted

Fact = tuple[str, str, str, str]
BRACKETS = "Brackets are 95% intervals over problems."


@dataclass(frozen=True)
class EvaluationPage:
    """A page before it is written: ``facts`` are (what, figure, remark, command), ``notes`` say how to read it."""

    title: str
    lead: str
    facts: tuple[Fact, ...]
    plot: Plot
    sections: tuple[Section, ...]
    notes: tuple[tuple[str, str], ...]

    def all_sections(self, provenance: tuple[tuple[str, str], ...]) -> list[Section]:
        """Return the sections of the page and of the Markdown, the answer first."""
        first = Section("", (Lead(self.lead), Facts(self.facts), BRACKETS, self.plot))
        last = Section("How to read this", (Items((*self.notes, *provenance)),), folded=True)
        return [first, *self.sections, last]


def show(found: "Interval | float | None", *, ends: bool = True) -> str:
    """Return a figure to three digits, with its interval if it has one.

    >>> show(Interval(0.5, 0.25, None)), show(0.123456), show(None)
    ('0.500 [0.250, ?]', '0.123', '–')
    """
    if found is None:
        return "–"
    value = found if isinstance(found, float) else found.estimate
    if math.isnan(value):
        return "–"
    if isinstance(found, float) or not ends or (found.low is None and found.high is None):
        return f"{value:.3f}"
    low, high = ("?" if end is None else f"{end:.3f}" for end in (found.low, found.high))
    return f"{value:.3f} [{low}, {high}]"


def cost_text(cost: Cost | None) -> str:
    """Return what a verifier took, in a sentence."""
    if cost is None:
        return ""
    flops = (
        ""
        if cost.flops is None or cost.parameters is None
        else f", {cost.flops:.2g} FLOPs (2 × {cost.parameters:,} weights × tokens)"
    )
    return f"{counted(cost.solutions, 'solution')}: {cost.tokens:,.0f} tokens{flops}, {cost.seconds:,.1f} s"


def cost_fact(cost: Cost | None) -> tuple[Fact, ...]:
    """Return the line of what a verifier took, if that is known."""
    return () if cost is None else (("verifier", f"{cost.tokens:,.0f} tokens", cost_text(cost), ""),)


def too_long_fact(n: int) -> tuple[Fact, ...]:
    """Return the line of solutions that were left out, if there are any."""
    return (("left out", str(n), "longer than the model's context", ""),) if n else ()
