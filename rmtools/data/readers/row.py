"""What every reader shares: checked access to a row's fields, steps that end with the delimiter, what was left out."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rmtools.data.rollouts import Rollout

Row = dict[str, Any]


class RowError(Exception):
    """A row breaks its format; the loop that knows file and row number makes a ``UserError`` of it."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"field {field}: {why}")
        self.kind = re.sub(r"\[\d+\]", "[]", field)


@dataclass(frozen=True)
class Dropped:
    """Something of the source that has no place in a rollout: why, and how many."""

    reason: str
    count: int = 1


@dataclass(frozen=True)
class Options:
    """How the formats are read.

    Parameters
    ----------
    neutral : str
        What a neutral rating (prm800k: 0) is: ``positive``, ``negative``, or ``skip`` (a step without a label).
    segment : str or None
        How whole solutions are cut, see ``rmtools.data.segment``; None: each format's own way.
    delimiter : str
        What every prompt and step ends with; appended where it is missing.
    first_step : str
        Regular expression that matches where the first step begins, in formats that join question and steps.
    tokenizer : str or None
        Folder or hub name of the tokenizer, for formats that store token ids.
    """

    neutral: str = "positive"
    segment: str | None = None
    delimiter: str = "\n"
    first_step: str = r"Step 1:"
    tokenizer: str | None = None


Read = Callable[[Row, Options], Iterator[Rollout | Dropped]]


@dataclass(frozen=True)
class Format:
    """A public format: the fields by which it is known, with the types they have, and its reader."""

    fields: dict[str, type | tuple[type, ...]]
    read: Read

    def fits(self, row: Row) -> bool:
        """Return whether the row has the format's fields, in their types."""
        return all(isinstance(row.get(name), kind) for name, kind in self.fields.items())


def get(row: Any, field: str) -> Any:
    """Return a field's value; raises ``RowError`` where it is missing."""
    if not isinstance(row, dict):
        raise RowError(field, f"is looked for in {shown(row)}, which is not an object")
    if field not in row:
        raise RowError(field, "is missing")
    return row[field]


def text(value: Any, field: str) -> str:
    """Return a text that is not blank."""
    if not isinstance(value, str):
        raise RowError(field, f"must be a text, got {shown(value)}")
    if not value.strip():
        raise RowError(field, "is empty")
    return value


def items(value: Any, field: str) -> list[Any]:
    """Return a list, maybe empty."""
    if not isinstance(value, list):
        raise RowError(field, f"must be a list, got {shown(value)}")
    return value


def texts(value: Any, field: str) -> list[str]:
    """Return a list of at least one text, none of them blank."""
    found = items(value, field)
    if not found:
        raise RowError(field, "there is no step")
    return [text(x, f"{field}[{i}]") for i, x in enumerate(found)]


def unit(value: Any, field: str) -> float:
    """Return a number in [0, 1] as it is: a soft label stays soft. True and False are 1 and 0; NaN is none."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise RowError(field, f"must be in [0, 1], got {shown(value)}")
    return float(value)


def labels(value: Any, field: str, steps: Sequence[str]) -> list[float | None]:
    """Return one label a step; null is a step without one."""
    found = items(value, field)
    if len(found) != len(steps):
        raise RowError(field, f"has {len(found)} labels for {len(steps)} steps")
    return [None if x is None else unit(x, f"{field}[{i}]") for i, x in enumerate(found)]


def index(value: Any, field: str, low: int, high: int) -> int:
    """Return an integer between ``low`` and ``high``, both included."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RowError(field, f"must be an integer from {low} to {high}, got {shown(value)}")
    return value


def reference(value: Any) -> str | None:
    """Return the right answer as text, None where there is none."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return None if missing else str(value).strip() or None


def shown(value: Any) -> str:
    """Return a value as an error shows it: short."""
    found = repr(value)
    return found if len(found) <= 40 else f"{found[:37]}..."


def apart(pieces: Sequence[str], delimiter: str) -> list[str]:
    r"""Return prompt and steps so that they tokenise apart: each ends with the delimiter, no step begins with a newline.

    Newlines that open a step close the piece before it: "a\n" and "\nb" would share a token "\n\n".

    >>> apart(["1 + 1?", "One.", "\n\nTwo.\n\n"], "\n")
    ['1 + 1?\n', 'One.\n\n', 'Two.\n\n']
    """
    found = list(pieces)
    for i in range(1, len(found)):
        rest = found[i].lstrip("\r\n")
        found[i - 1] += found[i][: len(found[i]) - len(rest)]
        found[i] = rest
    return [p if p.endswith(delimiter) else p + delimiter for p in found]


def rollout(
    options: Options,
    prompt: str,
    steps: Sequence[str],
    *,
    reward: float | None = None,
    labels: Sequence[float | None] | None = None,
    reference: str | None = None,
) -> Rollout | Dropped:
    """Return one trajectory, closed with the delimiter; where neither outcome nor label is known, what was dropped."""
    # The id is the one `rmtools rollout` gives; its module loads torch, which `--help` must not wait for.
    from rmtools.data.collect import prompt_id

    if reward is None and (labels is None or all(x is None for x in labels)):
        return Dropped("trajectory without outcome or label")
    ended, *closed = apart([prompt, *steps], options.delimiter)
    return Rollout(
        prompt_id(ended),
        ended,
        closed,
        reward,
        labels=None if labels is None else list(labels),
        reference=reference,
    )
