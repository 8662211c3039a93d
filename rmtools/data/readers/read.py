"""From a public file to rollouts: which format it is, and its rows one after another."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmtools.data.readers import outcomes, prm800k, stepwise, tagged, trees, vgs
from rmtools.data.readers.files import Place, read_rows
from rmtools.data.readers.row import Dropped, Options, RowError
from rmtools.data.rollouts import Rollout
from rmtools.data.segment import pattern
from rmtools.errors import UserError

READERS = {
    **stepwise.FORMATS,
    **tagged.FORMATS,
    **prm800k.FORMATS,
    **outcomes.FORMATS,
    **trees.FORMATS,
    **vgs.FORMATS,
}
"""Every format by name."""

LOOK = 5
"""How many rows tell the format."""


@dataclass
class Tally:
    """What was read: rows of the source, and what of them has no place among the rollouts, by reason."""

    format: str = ""
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def detect(rows: Sequence[Any], source: str = "") -> str:
    """Return the name of the one format that all ``rows`` fit.

    Where none fits by the types of its fields, their names decide: the reader then names the row that is wrong.

    Raises
    ------
    UserError
        If none fits, or more than one does: the candidates are listed.
    """
    found = [n for n, f in READERS.items() if rows and all(isinstance(r, dict) and f.fits(r) for r in rows)]
    if not found:
        found = [
            n
            for n, f in READERS.items()
            if rows and all(isinstance(r, dict) and f.fields.keys() <= r.keys() for r in rows)
        ]
    if len(found) == 1:
        return found[0]
    named = f"{source}: " if source else ""
    if found:
        raise UserError(
            f"{named}the rows fit {len(found)} formats: {', '.join(found)}",
            f"choose one (convert: --from {found[0]}; training: --data_format {found[0]}), say",
        )
    fields = sorted(rows[0]) if rows and isinstance(rows[0], dict) else []
    what = f"with the fields {', '.join(fields)}" if fields else "that are not objects" if rows else "at all"
    known = "; ".join(f"{n} ({', '.join(f.fields)})" for n, f in READERS.items())
    raise UserError(
        f"{named}the format is not known: {'rows' if rows else 'no rows'} {what}", f"the formats are {known}"
    )


def read_public(
    path: str | Path,
    name: str | None = None,
    *,
    neutral: str = Options.neutral,
    segment: str | None = None,
    delimiter: str = Options.delimiter,
    first_step: str = Options.first_step,
    tokenizer: str | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    tally: Tally | None = None,
) -> Iterator[Rollout]:
    """Read a public data set as rollouts, a row at a time.

    Parameters
    ----------
    path : str or Path
        A JSON, JSONL or parquet file, or a folder of them.
    name : str or None
        One of `READERS`; None: told from the fields of the first rows, see `detect`.
    neutral : str
        What a neutral rating (prm800k: 0) is: ``positive``, ``negative``, or ``skip`` (a step without a label).
    segment : str or None
        How whole solutions are cut, see ``rmtools.data.segment``; None: each format's own way.
    delimiter : str
        What every prompt and step ends with; appended where it is missing.
    first_step : str
        Regular expression that matches where the first step begins, in formats that join question and steps.
    tokenizer : str or None
        Folder or hub name of the tokenizer, for formats that store token ids (vgs).
    limit : int or None
        Read only this many rows.
    skip_bad : bool
        Count a row that breaks its format under ``tally.dropped`` and go on, instead of raising.
    tally : Tally or None
        Filled while the rollouts are taken.

    Returns
    -------
    Iterator[Rollout]
        Labels stay as given: 0.75 is 0.75.

    Raises
    ------
    UserError
        If the file or an option cannot be used (at once), or a row breaks its format (when it is reached): file, row
        and field are named.

    Examples
    --------
    >>> import json, pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "rows.jsonl"
    >>> row = {"prompt": "1 + 1?", "completions": ["It is 2."], "labels": [0.75]}
    >>> _ = file.write_text(json.dumps(row))
    >>> next(read_public(file)).labels
    [0.75]
    """
    options = check(Options(neutral, segment, delimiter, first_step, tokenizer))
    count = tally if tally is not None else Tally()
    if name is not None and name not in READERS:
        raise UserError(f"there is no format {name!r}", f"choose one of {', '.join(READERS)}")
    rows = itertools.islice(read_rows(Path(path)), limit)
    first = list(itertools.islice(rows, LOOK))
    count.format = name or detect([values for _, values in first], str(path))
    return convert(itertools.chain(first, rows), options, skip_bad, count)


def check(options: Options) -> Options:
    """Raise ``UserError`` where an option cannot be used, before anything is read."""
    if options.neutral not in prm800k.NEUTRAL:
        raise UserError(
            f"there is no {options.neutral!r} for neutral ratings", f"one of {', '.join(prm800k.NEUTRAL)}"
        )
    if not options.delimiter:
        raise UserError("the step delimiter is empty", "name the text that closes a step, such as a newline")
    if options.segment is not None:
        pattern(options.segment)
    try:
        re.compile(options.first_step)
    except re.error as error:
        raise UserError(
            f"the first step's pattern {options.first_step!r} is not a regular expression: {error}",
            "see Python's re for the syntax",
        ) from error
    return options


def convert(
    rows: Iterator[tuple[Place, Any]], options: Options, skip_bad: bool, tally: Tally
) -> Iterator[Rollout]:
    """Yield the rollouts of ``rows``; a row is taken whole or not at all."""
    read = READERS[tally.format].read
    for place, values in rows:
        tally.rows += 1
        try:
            found = list(read(values, options))
        except RowError as error:
            if not skip_bad:
                raise UserError(
                    f"{place}, {error}",
                    "repair the row, leave such rows out (`rmtools convert --skip-bad`), or see docs/formats.md for "
                    f"{tally.format}",
                ) from None
            tally.dropped[f"row breaks the format: field {error.kind}"] += 1
            continue
        for x in found:
            if isinstance(x, Dropped):
                tally.dropped[x.reason] += x.count
            else:
                yield x
