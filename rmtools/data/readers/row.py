"""What every reader shares: checked access to a row's fields, the declaration of a format, and the rollout made of a row."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rmtools.data.rollouts import Child, Rollout
from rmtools.data.segment import pattern, segment
from rmtools.errors import UserError
from rmtools.lm.step_ends import StepEnd

NEUTRAL = {"positive": 1.0, "negative": 0.0, "skip": None}
"""Label of a neutral rating (prm800k: 0). Its paper scores it positive, trl's conversion made it negative."""
SIGNS = {"+": 1.0, "-": 0.0}
"""Labels written as signs."""
INNER = ("keep", "split", "refuse")
"""What becomes of a step that holds the delimiter before its end, where sampling would end it."""
MISSING: Any = object()


class RowError(Exception):
    """A row that breaks its format; the loop that knows file and row number makes a ``UserError`` of it.

    ``field`` is "" if the row is none at all.
    """

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f", field {field}: {why}" if field else f" {why}")
        where = re.sub(r"\[\d+\]", "[]", field)
        self.kind = f"field {where}" if field else why.partition(":")[0]


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
    map : tuple of (str, str)
        Fields of the format, each with the field of the rows that holds it; dots lead into objects and lists.
    keep_excluded : bool
        Keep rows of prm800k that its authors set aside: quality control, initial screening, bad problems.
    inner_delimiter : str
        A step that holds the delimiter before its end: ``keep`` it whole, ``split`` it (the label stays with the last
        piece), or ``refuse`` the row.
    """

    neutral: str = "positive"
    segment: str | None = None
    delimiter: str = "\n"
    first_step: str = r"Step 1:"
    tokenizer: str | None = None
    map: tuple[tuple[str, str], ...] = ()
    keep_excluded: bool = False
    inner_delimiter: str = "keep"

    def __post_init__(self) -> None:
        if self.inner_delimiter not in INNER:
            raise UserError(
                f"there is no {self.inner_delimiter!r} for steps that hold the delimiter",
                f"choose one of {', '.join(INNER)}",
            )
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


def parse_map(text: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs of ``field=path,field=path``; raise ``UserError`` if the text is no such list.

    >>> parse_map("prompt=question, labels=steps.label")
    (('prompt', 'question'), ('labels', 'steps.label'))
    """
    pairs = [
        tuple(part.strip() for part in given.partition("=")[::2])
        for given in text.split(",")
        if given.strip()
    ]
    names = [name for name, _ in pairs]
    if wrong := next((name for name, path in pairs if not name or not path), None):
        raise UserError(
            f"the map says nothing of {wrong!r}", "write prompt=question,steps=solution,labels=marks, say"
        )
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"the map names {repeated} twice", "give each field one source")
    return tuple((name, path) for name, path in pairs)


def lookup(value: Any, path: str) -> Any:
    """Return what a dotted path leads to, `MISSING` if there is nothing; of a list what its items have there.

    >>> lookup({"a": {"b": [{"c": 1}, {"c": 2}]}}, "a.b.c"), lookup({"a.b": 3}, "a.b")
    ([1, 2], 3)
    """
    if isinstance(value, list):
        found = [lookup(item, path) for item in value]
        return MISSING if any(x is MISSING for x in found) else found
    if not isinstance(value, dict):
        return MISSING
    if path in value:
        return value[path]
    first, dot, rest = path.partition(".")
    return lookup(value[first], rest) if dot and first in value else MISSING


class Field:
    """A value of a row and its place there; a method raises `RowError` if the value is not what it returns.

    Parameters
    ----------
    value : object
    place : str
        Its name in the row; "" for the row itself.
    paths : mapping, optional
        Of a row: where a field lies if not under its own name.
    used : set, optional
        Of a row: takes the columns that are read.
    """

    def __init__(
        self,
        value: Any,
        place: str = "",
        paths: Mapping[str, str] | None = None,
        used: set[str] | None = None,
    ) -> None:
        self.value = value
        self.place = place
        self.paths = paths or {}
        self.used = used

    def wrong(self, why: str) -> RowError:
        """Return the error to raise about this field."""
        return RowError(self.place, why)

    def under(self, paths: Mapping[str, str]) -> Self:
        """Return the row with fields under other names: those of ``paths``, unless they are mapped already."""
        return type(self)(self.value, self.place, {**paths, **self.paths}, self.used)

    def _found(self, name: str) -> Any:
        """Return the value of a field, `MISSING` without it."""
        path = self.paths.get(name, name)
        if self.used is not None:
            self.used.add(
                path if isinstance(self.value, dict) and path in self.value else path.partition(".")[0]
            )
        return lookup(self.value, path) if isinstance(self.value, dict) else MISSING

    def __getitem__(self, name: str) -> Self:
        """Return a field of an object."""
        path = self.paths.get(name, name)
        found = type(self)(self._found(name), f"{self.place}.{path}" if self.place else path)
        if not isinstance(self.value, dict):
            raise found.wrong(f"is looked for in {shown(self.value)}, which is not an object")
        if found.value is MISSING:
            there = f"; there is {', '.join(map(str, self.value))}" if path != name else ""
            raise found.wrong(f"is missing{there}")
        return found

    def has(self, name: str) -> bool:
        """Return whether an object has the field ``name``, neither null nor NaN (a table's null)."""
        value = self._found(name)
        return value is not MISSING and not is_null(value)

    def items(self) -> list[Self]:
        """Return the items of a list, maybe empty."""
        if not isinstance(self.value, list):
            raise self.wrong(f"must be a list, got {shown(self.value)}")
        return [type(self)(x, f"{self.place}[{i}]") for i, x in enumerate(self.value)]

    def records(self) -> list[Self]:
        """Return the items of a list of objects, also if it is stored as an object of lists, as `datasets` does."""
        lists = list(self.value.values()) if isinstance(self.value, dict) else []
        if not lists or not all(isinstance(x, list) and len(x) == len(lists[0]) for x in lists):
            return self.items()
        rows = [dict(zip(self.value, values, strict=True)) for values in zip(*lists, strict=True)]
        return [type(self)(row, f"{self.place}[{i}]") for i, row in enumerate(rows)]

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

    def label(self) -> float | None:
        """Return a label in [0, 1]: a number, true or false, + or -; None if it is null."""
        sign = SIGNS.get(self.value.strip()) if isinstance(self.value, str) else None
        return self.unit_or_null() if sign is None else sign

    def labels(self, n_steps: int) -> list[float | None]:
        """Return one label per step; null for a step without one."""
        found = self.items()
        if len(found) != n_steps:
            raise self.wrong(f"has {len(found)} labels for {n_steps} steps")
        return [x.label() for x in found]

    def index(self, low: int, high: int) -> int:
        """Return an integer between ``low`` and ``high``, both included; tables write 0 as 0.0."""
        whole = type(self.value) is int or (type(self.value) is float and self.value.is_integer())
        if not whole or not low <= self.value <= high:
            raise self.wrong(f"must be an integer from {low} to {high}, got {shown(self.value)}")
        return int(self.value)

    def flag(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            raise self.wrong(f"must be true or false, got {shown(self.value)}")
        return self.value

    def reference(self, *names: str) -> str | None:
        """Return the right answer in the first field of ``names`` that an object has, as text; None without any."""
        value = next((v for n in names if (v := self._found(n)) is not MISSING), None)
        return None if is_null(value) else str(value).strip() or None


def is_null(value: Any) -> bool:
    """Return whether a value is null, or NaN, which tables write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


Found = Iterator[Rollout | Dropped]
Read = Callable[[Field, Options], Found]
Kind = type | tuple[type, ...]


@dataclass(frozen=True)
class Format:
    """A public format.

    Attributes
    ----------
    name : str
    fields : dict
        The fields, as dotted paths, and their types by which a row is recognised.
    reader : callable
        Yields the rollouts of a row, and what it drops.
    also : tuple of dict
        Other layouts of it: the names that some of the fields have there.
    """

    name: str
    fields: dict[str, Kind]
    reader: Read
    also: tuple[dict[str, str], ...] = ()

    def fits(self, row: Any, paths: Mapping[str, str] | None = None) -> int:
        """Return how many fields a row has in their types, in the layout that it fits; 0 if it fits none."""
        return self._fitting(
            row, paths or {}, lambda value, kind: isinstance(None if value is MISSING else value, kind)
        )

    def names(self, row: Any, paths: Mapping[str, str] | None = None) -> int:
        """Return how many fields of these names a row has, of any type; 0 if one is missing."""
        return self._fitting(row, paths or {}, lambda value, kind: value is not MISSING)

    def _fitting(self, row: Any, paths: Mapping[str, str], good: Callable[[Any, Kind], bool]) -> int:
        for names in ({}, *self.also) if isinstance(row, dict) else ():
            under = {**names, **paths}
            if all(good(lookup(row, under.get(n, n)), kind) for n, kind in self.fields.items()):
                return len(self.fields)
        return 0

    def read(self, row: Field, options: Options) -> Found:
        """Yield the rollouts of a row, in whichever of the layouts it is."""
        for names in ({}, *self.also):
            found = row.under(names)
            if all(lookup(row.value, found.paths.get(n, n)) is not MISSING for n in self.fields):
                return self.reader(found, options)
        return self.reader(row, options)


def public_format(
    name: str, *also: dict[str, str], dotted: dict[str, Kind] | None = None, **fields: Kind
) -> Callable[[Read], Format]:
    """Declare a format: the decorated function yields the rollouts of a row, and what it drops.

    ``fields`` are the fields, with their types, by which a row of the format is recognised; ``dotted`` those within others;
    ``also`` the names they have in other layouts of it. List the format in ``read.READERS``, and describe it in
    docs/formats.md.
    """
    return lambda read: Format(name, {**fields, **(dotted or {})}, read, also)


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
    if options.inner_delimiter != "keep":
        rest, kept = _split_inner(rest, kept, options)
    return Rollout(prompt_id(first), first, rest, reward, labels=kept, reference=reference)


@dataclass(frozen=True)
class Continuation:
    """One of several continuations of a prefix: its steps and its reward."""

    steps: Sequence[str]
    reward: float


def branched(
    options: Options,
    prompt: str,
    before: Sequence[str],
    own: Continuation,
    others: Sequence[Continuation],
    *,
    reference: str | None = None,
) -> Rollout:
    """Return the trajectory ``before`` + ``own``, with independent continuations of the prefix ``before``.

    The first steps of ``others`` are children there, and their rewards completions. Steps are kept verbatim: newlines that
    open a continuation cannot close a prefix that others share.
    """
    from rmtools.data.collect import prompt_id

    def closed(text: str) -> str:
        return text if text.endswith(options.delimiter) else text + options.delimiter

    steps = [*before, *own.steps[:-1], closed(own.steps[-1])]
    depths = len(steps)
    children: list[list[Child]] = [[] for _ in range(depths)]
    completions: list[list[float]] = [[] for _ in range(depths)]
    for other in others:
        ended = len(other.steps) == 1
        text = closed(other.steps[0]) if ended else other.steps[0]
        children[len(before)].append(Child(text, ended, other.reward if ended else None))
        completions[len(before)].append(other.reward)
    branches = (children, completions) if others else ([], [])
    return Rollout(
        prompt_id(closed(prompt)), closed(prompt), steps, own.reward, *branches, reference=reference
    )


def inner_delimiters(steps: Sequence[str], delimiter: str) -> int:
    r"""Return how many steps hold the delimiter before their end, where sampling would end them.

    >>> inner_delimiters(["a\nb\n", "c\n\n", "\nd\n"], "\n")
    1
    """
    return sum(len(StepEnd(delimiter).split(step)) > 1 for step in steps)


def _split_inner(
    steps: list[str], labels: list[float | None] | None, options: Options
) -> tuple[list[str], list[float | None] | None]:
    """Split steps where sampling would end them; a label stays with the last piece, where it was given."""
    pieces = [StepEnd(options.delimiter).split(step) for step in steps]
    if (
        options.inner_delimiter == "refuse"
        and (t := next((t for t, p in enumerate(pieces) if len(p) > 1), None)) is not None
    ):
        raise RowError(
            "steps",
            f"step {t + 1} holds the delimiter {options.delimiter!r} before its end: {shown(steps[t])}",
        )
    kept = (
        None
        if labels is None
        else [x for p, label in zip(pieces, labels, strict=True) for x in [None] * (len(p) - 1) + [label]]
    )
    return [piece for p in pieces for piece in p], kept
