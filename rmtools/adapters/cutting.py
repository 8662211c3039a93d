"""A running sequence, of token ids or of bytes, cut into the steps of a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rmtools.adapters.prefix_scoring import Steps
from rmtools.lm.steps import StepTokenizer


@dataclass(frozen=True)
class Cut:
    """A sequence cut into steps.

    Attributes
    ----------
    steps : tuple of tuple of int
        Token ids of the finished steps, at most max_steps.
    rest : Sequence
        What follows them.
    closed : tuple of int
        Token ids of the rest as a step that the end of the sequence closes.
    full : bool
        There are max_steps steps, or a stop text or an end token ends the last one: the prefix has ended, and the rest does
        not count.
    """

    steps: Steps
    rest: Sequence[Any]
    closed: tuple[int, ...]
    full: bool


def cut_tokens(steps: StepTokenizer, ids: Sequence[int]) -> Cut:
    """Cut token ids into steps as the policy ends them: at the delimiter, or after max_step_tokens."""
    whole, over = steps.finished(ids)
    found = tuple(map(tuple, whole[: steps.settings.max_steps]))
    rest = tuple(ids[sum(map(len, found)) :])
    return Cut(found, rest, (*rest, steps.eos_id), over or len(found) == steps.settings.max_steps)


def cut_bytes(steps: StepTokenizer, text: bytes) -> Cut:
    """Cut bytes into steps at the delimiter's text; bytes that are not UTF-8 are read as the replacement character."""
    settings, written = steps.settings, text.decode(errors="surrogateescape")
    end = settings.stops.first(written)
    pieces = settings.rule.split(written if end < 0 else written[:end])
    # A stop text ends its step too.
    n_whole = len(pieces) if end >= 0 else sum(map(settings.rule.held_by, pieces))
    whole = pieces[: min(n_whole, settings.max_steps)]
    found = tuple(tuple(steps.step_ids(_readable(p))) for p in whole)
    full = end >= 0 or len(found) == settings.max_steps
    rest = "" if full else "".join(pieces[len(whole) :])
    ids = tuple(steps.step_ids(_readable(rest))) if rest else ()
    return Cut(found, rest.encode(errors="surrogateescape"), (*ids, steps.eos_id), full)


def _readable(text: str) -> str:
    """Return text with the replacement character for bytes that are not UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="replace")
