"""What every reader shares: checked access to a row's fields, the declaration of a format, and the rollout made of a row."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rmtools.data.rollouts import Rollout
from rmtools.data.segment import pattern, segment
from rmtools.errors import UserError

NEUTRAL = {"positive": 1.0, "negative": 0.0, "skip": None}
"""Label of a neutral rating (prm800k: 0). Its paper scores it positive, trl's conversion made it negative."""


class RowError(Exception):
    """A row that breaks its format; the loop that knows file and row number makes a ``UserError`` of it."""

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
    """How the formats are read; raises ``UserError`` if an option cannot be used.

    Parameters
    ----------
    neutral : str
        Label of a neutral rating (prm800k: 0): ``positive``, ``negative``, or ``skip`` (a step without a label).
    segment : str or None
        How whole solutions are cut, see ``rmtools.data.segment``; None: each format's own way.
    delimiter : str
        Text that ends every prompt and step; appended if missing.
    first_step : str
        Regular expression that matches where the first step begins, in formats that join question and steps.
    tokenizer : str or None
        Folder or hub name of the tokenizer, for formats that store token ids (vgs).
    """

    neutral: str = "positive"
    segment: str | None = None
    delimiter: str = "\n"
    first_step: str = r"Step 1:"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.neutral not in NEUTRAL:
            raise UserError(
                f"there is no {self.neutral!r} for neutral ratings", f"choose one of {', '.join(NEUTRAL)}"
            )
        if not self.delimiter:
            raise UserError(
                "the step delimiter is empty", "name the text that closes a step, such as a newline"
            )
        if self.segment is not None:
            pattern(self.segment)
        try:
            re.compile(self.first_step)
        except re.error as error:
            raise UserError(
                f"the first step's pattern {self.first_step!r} is not a regular expression: {error}",
                "see Python's re for the syntax",
            ) from error

    def cut(self, solution: str, default: str) -> list[str]:
        """Return the steps of a whole solution, cut by ``default`` if ``segment`` is not given."""
        return segment(solution, self.segment or default)


class Field:
    """A value of a row and its place there; a method raises `RowError` if the value is not what it returns."""

    def __init__(self, value: Any, place: str = "") -> None:
        self.value = value
        self.place = place

    def wrong(self, why: str) -> RowError:
        """Return the error to raise about this field."""
        return RowError(self.place, why)

    def __getitem__(self, name: str) -> Self:
        """Return a field of an object."""
        found = type(self)(None, f"{self.place}.{name}" if self.place else name)
        if not isinstance(self.value, dict):
            raise found.wrong(f"is looked for in {shown(self.value)}, which is not an object")
        if name not in self.value:
            raise found.wrong("is missing")
        found.value = self.value[name]
        return found

    def has(self, name: str) -> bool:
        """Return whether an object has the field ``name``, not null."""
        return isinstance(self.value, dict) and self.value.get(name) is not None

    def items(self) -> list[Self]:
        """Return the items of a list, maybe empty."""
        if not isinstance(self.value, list):
            raise self.wrong(f"must be a list, got {shown(self.value)}")
        return [type(self)(x, f"{self.place}[{i}]") for i, x in enumerate(self.value)]

    def text(self) -> str:
        """Return a text that is not blank."""
        if not isinstance(self.value, str):
            raise self.wrong(f"must be a text, got {shown(self.value)}")
        if not self.value.strip():
            raise self.wrong("is empty")
        return self.value

    def texts(self) -> list[str]:
        """Return a list of at least one text, each not blank."""
        found = [x.text() for x in self.items()]
        if not found:
            raise self.wrong("there is no step")
        return found

    def unit(self) -> float:
        """Return a number in [0, 1] as it is: a soft label stays soft. True and False are 1 and 0; NaN is refused."""
        if not isinstance(self.value, int | float) or not 0 <= self.value <= 1:
            raise self.wrong(f"must be in [0, 1], got {shown(self.value)}")
        return float(self.value)

    def unit_or_null(self) -> float | None:
        """Return a number in [0, 1] or None."""
        return None if self.value is None else self.unit()

    def labels(self, n_steps: int) -> list[float | None]:
        """Return one label per step; null for a step without one."""
        found = self.items()
        if len(found) != n_steps:
            raise self.wrong(f"has {len(found)} labels for {n_steps} steps")
        return [x.unit_or_null() for x in found]

    def index(self, low: int, high: int) -> int:
        """Return an integer between ``low`` and ``high``, both included."""
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.wrong(f"must be an integer from {low} to {high}, got {shown(self.value)}")
        return self.value

    def flag(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            raise self.wrong(f"must be true or false, got {shown(self.value)}")
        return self.value

    def reference(self, *names: str) -> str | None:
        """Return the right answer in the first field of ``names`` that an object has, as text; None without any."""
        value = next((self.value[n] for n in names if n in self.value), None)
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return None if missing else str(value).strip() or None


Found = Iterator[Rollout | Dropped]
Read = Callable[[Field, Options], Found]
Kind = type | tuple[type, ...]


@dataclass(frozen=True)
class Format:
    """A public format: its name, the fields and their types by which it is recognised, and its reader."""

    name: str
    fields: dict[str, Kind]
    read: Read

    def fits(self, row: Any) -> bool:
        """Return whether the row has the format's fields, in their types."""
        return isinstance(row, dict) and all(isinstance(row.get(n), kind) for n, kind in self.fields.items())

    def names(self, row: Any) -> bool:
        """Return whether the row has fields of these names, of any type."""
        return isinstance(row, dict) and self.fields.keys() <= row.keys()


def public_format(name: str, **fields: Kind) -> Callable[[Read], Format]:
    """Declare a format: the decorated function yields the rollouts of a row, and what it drops.

    ``fields`` are the fields, with their types, by which a row of the format is recognised. List the format in
    ``read.READERS``, and describe it in docs/formats.md.
    """
    return lambda read: Format(name, fields, read)


def shown(value: Any) -> str:
    """Return a value as an error shows it: short."""
    found = repr(value)
    return found if len(found) <= 40 else f"{found[:37]}..."


def split_for_tokenizer(pieces: Sequence[str], delimiter: str) -> list[str]:
    r"""Return prompt and steps so that they tokenise apart: each ends with the delimiter, no step begins with a newline.

    Newlines that open a step close the piece before it: "a\n" and "\nb" would share a token "\n\n".

    >>> split_for_tokenizer(["1 + 1?", "One.", "\n\nTwo.\n\n"], "\n")
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
    """Return one trajectory, closed with the delimiter, or what was dropped if neither outcome nor label is known."""
    # The id is the one `rmtools rollout` gives; its module loads torch, which `--help` must not wait for.
    from rmtools.data.collect import prompt_id

    if reward is None and all(x is None for x in labels or ()):
        return Dropped("trajectory without outcome or label")
    first, *rest = split_for_tokenizer([prompt, *steps], options.delimiter)
    kept = None if labels is None else list(labels)
    return Rollout(prompt_id(first), first, rest, reward, labels=kept, reference=reference)
