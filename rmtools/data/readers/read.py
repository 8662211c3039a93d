"""From a public file to rollouts: which format it is, and its rows one after another."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmtools.codec import VERSION
from rmtools.data.readers import outcomes, stepwise, trees
from rmtools.data.readers.file_rows import Broken, Rows, file_rows
from rmtools.data.readers.files import find_files, whole_rows
from rmtools.data.readers.hub import hub_rows, is_hub_name
from rmtools.data.readers.row import (
    MISSING,
    Dropped,
    Field,
    Format,
    Options,
    RowError,
    inner_delimiters,
    lookup,
    shown,
)
from rmtools.data.rollouts import Rollout
from rmtools.errors import UserError

FORMATS = (
    stepwise.trl,
    stepwise.labelled_steps,
    stepwise.judged_steps,
    stepwise.versaprm,
    stepwise.rlhflow,
    stepwise.processbench,
    stepwise.prmbench,
    stepwise.math_shepherd,
    stepwise.openrlhf,
    stepwise.er_prm,
    stepwise.math_aps,
    trees.prm800k,
    trees.omegaprm,
    outcomes.rollouts,
    outcomes.best_of_n,
    outcomes.gsm8k,
    outcomes.gsm8k_solutions,
    outcomes.vgs,
)
READERS = {form.name: form for form in FORMATS}
"""Every format by name."""
MAPPED = sorted({name.partition(".")[0] for form in FORMATS for name in form.fields} | {"reference"})
"""The fields that a map may name."""
LOOK, WITHIN = 5, 1000
"""How many good rows tell the format, and among how many they are looked for."""
MOST_BAD = 20
"""So many bad rows end a reading, if none may be left out."""
SHOWN = 3


@dataclass
class Tally:
    """What was read.

    Attributes
    ----------
    format : str
    rows : int
        Of the source.
    dropped : Counter
        What has no place among the rollouts, by reason.
    noted : Counter
        What is among them and worth knowing, by kind.
    bad : list of str
        The first bad rows: place and reason.
    files : Counter
        Rows by file.
    """

    format: str = ""
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)
    _seen: dict[str, None] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _labels: set[float] = field(default_factory=set)

    @property
    def ignored(self) -> list[str]:
        """The columns that no row was read from, in order."""
        return [name for name in self._seen if name not in self._used]

    def notes(self) -> list[str]:
        """Return what a user should know of the rows that were read, a line each."""
        found = [f"{n}: {what}" for what, n in self.noted.items()]
        if self.ignored:
            found.append(f"ignored columns: {', '.join(self.ignored)}")
        if len(self._labels) == 1:
            found.append(f"every label is {next(iter(self._labels)):g}: they tell no step from another")
        return found

    def add(self, rollout: Rollout, delimiter: str) -> None:
        """Count what is worth knowing of a rollout."""
        if inner := inner_delimiters(rollout.steps, delimiter):
            self.noted[
                f"steps hold the delimiter {delimiter!r} before their end, where sampling would end them"
            ] += inner
        if len(self._labels) < 2:
            self._labels.update(x for x in rollout.labels or () if x is not None)


def detect(rows: Sequence[Any], source: str = "", paths: Mapping[str, str] | None = None) -> str:
    """Return the name of the format of ``rows``: the one that most of them fit, and of several the one with most fields.

    If none fits by the types of its fields, their names decide: the reader then names the row that is wrong. ``paths`` says
    where fields lie, as `Options.map` does.

    Raises
    ------
    UserError
        If none fits, or several fit equally well: the candidates are listed.
    """
    for test in (Format.fits, Format.names):
        fitting = {name: [test(form, row, paths) for row in rows] for name, form in READERS.items()}
        counts = {name: sum(map(bool, sizes)) for name, sizes in fitting.items()}
        most = max(counts.values())
        if not most:
            continue
        best = [name for name in READERS if counts[name] == most]
        most_fields = max(max(fitting[name]) for name in best)
        found = [name for name in best if max(fitting[name]) == most_fields]
        if len(found) == 1 and len({tuple(map(bool, fitting[name])) for name in best}) == 1:
            return found[0]
        raise UserError(
            f"{source + ': ' if source else ''}the rows fit {len(best)} formats: {', '.join(best)}",
            f"name one of them as the format: {best[0]}, say",
        )
    raise _unknown(rows, source)


def _unknown(rows: Sequence[Any], source: str) -> UserError:
    """Return the error to raise if rows fit no format: what they have, and what the nearest format wants."""
    named = f"{source}: " if source else ""
    objects = [set(row) for row in rows if isinstance(row, dict)]
    fields = sorted(map(str, set.intersection(*objects))) if objects else []
    what = f"with the fields {', '.join(fields)}" if fields else "that are not objects" if rows else "at all"
    if "step_records" in fields:
        return UserError(
            f"{named}these are recorded branches without outcomes or labels: there is nothing to train on",
            "audit them as they are: rollouts FILE with a model or recorded scores (docs/published_prms.md)",
        )
    known = "; ".join(f"{n} ({', '.join(f.fields)})" for n, f in READERS.items())
    nearest = min(READERS.values(), key=lambda f: len(f.fields.keys() - fields))
    missing = [name for name in nearest.fields if name not in fields]
    lacks = (
        f"; for {nearest.name} they lack {', '.join(missing)}" if len(missing) < len(nearest.fields) else ""
    )
    return UserError(
        f"{named}the format is not known: {'rows' if rows else 'no rows'} {what}{lacks}",
        f"say where the fields are (map: prompt=…,steps=…,labels=…); the formats are {known}",
    )


def detect_rows(rows: Rows, source: str, options: Options) -> str:
    """Return the format of rows by the first good ones; raise ``UserError`` if it is not known, or a mapped field is missing."""
    looked_at = list(itertools.islice(rows, WITHIN))
    good = [values for _, values in looked_at if isinstance(values, dict)][:LOOK]
    for name, path in options.map:
        if name not in MAPPED:
            raise UserError(f"the map names an unknown field {name}", f"the fields are {', '.join(MAPPED)}")
        if good and all(lookup(row, path) is MISSING for row in good):
            there = ", ".join(dict.fromkeys(_paths(good[0])))
            raise UserError(
                f"{source}: the map wants {name} from {path}, which no row has", f"there is {there}"
            )
    if not good:
        list(whole_rows(iter(looked_at)))  # raises for a line that is no JSON
    return detect(good or [values for _, values in looked_at[:LOOK]], source, dict(options.map))


def _paths(value: Any, before: str = "", depth: int = 3) -> Iterator[str]:
    """Yield the dotted paths of an object's fields, through lists of objects."""
    value = value[0] if isinstance(value, list) and value else value
    if isinstance(value, dict) and depth and value:
        for name, inner in value.items():
            yield from _paths(inner, f"{before}.{name}" if before else str(name), depth - 1)
    else:
        yield before


def detect_files(
    files: Sequence[Path], options: Options, prepare: Callable[[Rows], Rows] = lambda rows: rows
) -> str:
    """Return the one format of files, whose rows ``prepare`` changes first.

    Raises ``UserError`` if they have several, or as `detect_rows`.
    """
    found = {}
    for file in files:
        try:
            found[file] = detect_rows(prepare(file_rows(file)), str(file), options)
        except UserError:
            if len(files) == 1 or next(file_rows(file), None) is not None:
                raise
    names = list(dict.fromkeys(found.values()))
    if len(names) > 1:
        firsts = ", ".join(f"{next(f for f in found if found[f] == name)} is {name}" for name in names)
        raise UserError(
            f"the files have {len(names)} formats: {firsts}",
            "name the files of one format, or name the format",
        )
    if not names:
        raise UserError(
            f"the format is not known: no rows at all in {files[0].parent}", "name a file with rows"
        )
    return names[0]


def counted_rows(files: Iterable[Path], tally: Tally) -> Rows:
    """Yield the rows of files, counted by file."""
    for file in files:
        tally.files[str(file)] += 0
        for place, values in file_rows(file):
            tally.files[str(file)] += 1
            yield place, values


def read_public(
    path: str | Path,
    name: str | None = None,
    options: Options = Options(),  # noqa: B008 - frozen
    *,
    split: str = "",
    limit: int | None = None,
    skip_bad: bool = False,
    tally: Tally | None = None,
) -> Iterator[Rollout]:
    """Read a public data set as rollouts, a row at a time.

    Parameters
    ----------
    path : str or Path
        A JSON, CSV, parquet or Arrow file, compressed or not, a folder of them, or a data set of the hub.
    name : str or None
        One of `READERS`; None: detected from the fields of the first good rows, see `detect`.
    options : Options
        How neutral ratings, whole solutions and joined texts are read, and under which names fields are found.
    split : str
        Of a folder with several splits.
    limit : int or None
        Read only this many rows.
    skip_bad : bool
        Count a row that breaks its format, or a line that is no JSON, under ``tally.dropped`` and continue, instead of
        raising.
    tally : Tally or None
        Filled while the rollouts are taken.

    Returns
    -------
    Iterator[Rollout]
        Labels stay as given: 0.75 is 0.75.

    Raises
    ------
    UserError
        If the file cannot be used (at once), or rows break their format (at the end, or once there are 20 of them): file,
        row and field of the first ones are named, and how many there are of each kind.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "rows.jsonl"
    >>> row = {"prompt": "1 + 1?", "completions": ["It is 2."], "labels": [0.75]}
    >>> _ = file.write_text(json.dumps(row))
    >>> next(read_public(file)).labels
    [0.75]
    """
    require_format(name)
    count = tally if tally is not None else Tally()
    if is_hub_name(path):
        rows = list(hub_rows(path, split))
        count.format = name or detect_rows(iter(rows), str(path), options)
        return convert(rows[:limit], options, skip_bad, count)
    files = find_files(Path(path), split)
    count.format = name or detect_files(files, options)
    return convert(itertools.islice(counted_rows(files, count), limit), options, skip_bad, count)


def require_format(name: str | None) -> None:
    """Raise ``UserError`` if ``name`` names no format."""
    if name is not None and name not in READERS:
        raise UserError(f"there is no format {name!r}", f"choose one of {', '.join(READERS)}")


def convert(
    rows: Iterable[tuple[str, Any]], options: Options, skip_bad: bool, tally: Tally
) -> Iterator[Rollout]:
    """Yield the rollouts of ``rows`` (place and values) in ``tally.format``; a row is taken whole or not at all."""
    form, paths = READERS[tally.format], dict(options.map)
    bad: Counter[str] = Counter()
    for place, values in rows:
        tally.rows += 1
        try:
            found = _read_row(values, form, paths, options, tally)
        except RowError as error:
            bad[error.kind] += 1
            tally.bad += [f"{place}{error}"] * (sum(bad.values()) <= SHOWN)
            tally.dropped[f"row breaks the format: {error.kind}"] += 1
            if not skip_bad and sum(bad.values()) >= MOST_BAD:
                raise _bad_rows(tally, bad) from None
            continue
        for x in found:
            if isinstance(x, Dropped):
                tally.dropped[x.reason] += x.count
            else:
                tally.add(x, options.delimiter)
                yield x
    if bad and not skip_bad:
        raise _bad_rows(tally, bad)


def _read_row(
    values: Any, form: Format, paths: dict[str, str], options: Options, tally: Tally
) -> list[Rollout | Dropped]:
    """Return what a row gives; raise `RowError` if it breaks the format."""
    if isinstance(values, Broken):
        raise RowError("", values.why)
    if not isinstance(values, dict):
        raise RowError("", f"is no object: {shown(values)}")
    if VERSION in values:
        raise Field(values)[VERSION].wrong(f"is not of the format {form.name}: its meaning is not known")
    tally._seen |= dict.fromkeys(values)
    return list(form.read(Field(values, "", paths, tally._used), options))


def _bad_rows(tally: Tally, bad: Counter[str]) -> UserError:
    """Return the error to raise for bad rows: the first ones, and how many there are of each kind."""
    total = sum(bad.values())
    kinds = ", ".join(f"{n} {kind}" for kind, n in bad.most_common())
    many = f" ({total} of the {tally.rows:,} rows read are bad: {kinds})" if total > 1 else ""
    return UserError(
        f"{'; '.join(tally.bad)}{many}",
        f"repair the row{'s' if total > 1 else ''}, leave such rows out (`skip_bad`), say where the fields are (`map`), or "
        f"see docs/formats.md for {tally.format}",
    )
