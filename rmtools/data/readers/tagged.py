"""Formats whose text holds question and steps, each step closed by the tag ки: math-shepherd, er-prm."""

from collections.abc import Iterator

from rmtools.data.readers.question import split_question
from rmtools.data.readers.row import Dropped, Format, Options, Row, RowError, get, labels, rollout, text
from rmtools.data.readers.stepwise import SIGNS
from rmtools.data.rollouts import Rollout

TAG = "ки"


def math_shepherd(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read a row of Math-Shepherd (arXiv 2312.08935): ``label`` is ``input`` with a sign in place of each tag."""
    pieces = text(get(row, "input"), "input").split(TAG)
    signs = signs_at(pieces, text(get(row, "label"), "label"))
    question, steps = tagged_steps(pieces, "input", options)
    yield rollout(options, question, steps, labels=padded(signs, steps))


def er_prm(row: Row, options: Options) -> Iterator[Rollout | Dropped]:
    """Read a row of ER-PRM (arXiv 2412.11006): ``value`` has a soft label for each tag in ``text``."""
    pieces = text(get(row, "text"), "text").split(TAG)
    question, steps = tagged_steps(pieces, "text", options)
    values = labels(get(row, "value"), "value", steps[: len(pieces) - 1])
    yield rollout(options, question, steps, labels=padded(values, steps))


def tagged_steps(pieces: list[str], field: str, options: Options) -> tuple[str, list[str]]:
    """Return question and steps, tags and the white space around them taken off.

    Text behind the last tag is one more step: nobody judged it, but the policy wrote it.
    """
    if len(pieces) == 1:
        raise RowError(field, f"has no step tag {TAG}")
    question, first = split_question(pieces[0], field, options)
    steps = [s.strip() for s in (first, *pieces[1:])]
    if not steps[-1]:
        steps.pop()
    blank = [t for t, s in enumerate(steps, 1) if not s]
    if blank:
        raise RowError(field, f"step {blank[0]} is empty")
    return question, steps


def signs_at(pieces: list[str], marked: str) -> list[float | None]:
    """Return the signs that stand in ``marked`` where the tags stand between ``pieces``."""
    found: list[float | None] = []
    at = 0
    for t, piece in enumerate(pieces):
        last = t == len(pieces) - 1
        if not marked.startswith(piece.rstrip() if last else piece, at):
            raise RowError("label", f"differs from input {'before' if t == 0 else 'after'} tag {max(t, 1)}")
        at += len(piece)
        if not last:
            if marked[at : at + 1] not in SIGNS:
                raise RowError("label", f"has no + or - where input has tag {t + 1} of {len(pieces) - 1}")
            found.append(SIGNS[marked[at]])
            at += 1
    if marked[at:].strip():
        raise RowError("label", f"goes on after the last of input's {len(pieces) - 1} tags")
    return found


def padded(found: list[float | None], steps: list[str]) -> list[float | None]:
    """Return one label a step: a step behind the last tag has none."""
    return found + [None] * (len(steps) - len(found))


FORMATS = {
    "math-shepherd": Format({"input": str, "label": str}, math_shepherd),
    "er-prm": Format({"text": str, "value": list}, er_prm),
}
