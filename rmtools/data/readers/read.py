"""From a public file to rollouts: which format it is, and its rows one after another."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmtools.codec import VERSION
from rmtools.data.readers import outcomes, stepwise, trees
from rmtools.data.readers.files import read_rows
from rmtools.data.readers.row import Dropped, Field, Options, RowError
from rmtools.data.rollouts import Rollout
from rmtools.errors import UserError

FORMATS = (
    stepwise.trl,
    stepwise.rlhflow,
    stepwise.processbench,
    stepwise.prmbench,
    stepwise.math_shepherd,
    stepwise.er_prm,
    trees.prm800k,
    outcomes.rollouts,
    outcomes.gsm8k,
    outcomes.gsm8k_solutions,
    trees.omegaprm,
    outcomes.vgs,
)
READERS = {form.name: form for form in FORMATS}
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

    If none fits by the types of its fields, their names decide: the reader then names the row that is wrong.

    Raises
    ------
    UserError
        If none fits, or more than one does: the candidates are listed.
    """
    found = [n for n, f in READERS.items() if rows and all(map(f.fits, rows))]
    found = found or [n for n, f in READERS.items() if rows and all(map(f.names, rows))]
    if len(found) == 1:
        return found[0]
    named = f"{source}: " if source else ""
    if found:
        raise UserError(
            f"{named}the rows fit {len(found)} formats: {', '.join(found)}",
            f"name one of them as the format: {found[0]}, say",
        )
    objects = [set(row) for row in rows if isinstance(row, dict)]
    fields = sorted(set.intersection(*objects)) if objects else []
    what = f"with the fields {', '.join(fields)}" if fields else "that are not objects" if rows else "at all"
    known = "; ".join(f"{n} ({', '.join(f.fields)})" for n, f in READERS.items())
    nearest = min(READERS.values(), key=lambda f: len(f.fields.keys() - fields))
    missing = [name for name in nearest.fields if name not in fields]
    lacks = (
        f"; for {nearest.name} they lack {', '.join(missing)}" if len(missing) < len(nearest.fields) else ""
    )
    raise UserError(
        f"{named}the format is not known: {'rows' if rows else 'no rows'} {what}{lacks}",
        f"the formats are {known}",
    )


def read_public(
    path: str | Path,
    name: str | None = None,
    options: Options = Options(),  # noqa: B008 - frozen
    *,
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
        One of `READERS`; None: detected from the fields of the first rows, see `detect`.
    options : Options
        How neutral ratings, whole solutions and joined texts are read.
    limit : int or None
        Read only this many rows.
    skip_bad : bool
        Count a row that breaks its format under ``tally.dropped`` and continue, instead of raising.
    tally : Tally or None
        Filled while the rollouts are taken.

    Returns
    -------
    Iterator[Rollout]
        Labels stay as given: 0.75 is 0.75.

    Raises
    ------
    UserError
        If the file cannot be used (at once), or a row breaks its format (when it is reached): file, row and field are
        named.

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
    rows = itertools.islice(read_rows(Path(path)), limit)
    first = list(itertools.islice(rows, LOOK))
    count = tally if tally is not None else Tally()
    count.format = name or detect([values for _, values in first], str(path))
    return convert(itertools.chain(first, rows), options, skip_bad, count)


def require_format(name: str | None) -> None:
    """Raise ``UserError`` if ``name`` names no format."""
    if name is not None and name not in READERS:
        raise UserError(f"there is no format {name!r}", f"choose one of {', '.join(READERS)}")


def convert(
    rows: Iterable[tuple[str, Any]], options: Options, skip_bad: bool, tally: Tally
) -> Iterator[Rollout]:
    """Yield the rollouts of ``rows`` (place and values) in ``tally.format``; a row is taken whole or not at all."""
    read = READERS[tally.format].read
    for place, values in rows:
        tally.rows += 1
        try:
            if isinstance(values, dict) and VERSION in values:
                raise Field(values)[VERSION].wrong(
                    f"is not of the format {tally.format}: its meaning is not known"
                )
            found = list(read(Field(values), options))
        except RowError as error:
            if not skip_bad:
                raise UserError(
                    f"{place}, {error}",
                    "repair the row, leave such rows out (`skip_bad`: rmtools convert, rm.load_rollouts), or see "
                    f"docs/formats.md for {tally.format}",
                ) from None
            tally.dropped[f"row breaks the format: field {error.kind}"] += 1
            continue
        for x in found:
            if isinstance(x, Dropped):
                tally.dropped[x.reason] += x.count
            else:
                yield x
