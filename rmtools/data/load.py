r"""Rollouts from whatever holds them: a folder, a file, a data set of the hub or of `datasets`, rows in memory.

>>> rows = [{"prompt": "1 + 1?", "completions": ["It is 2."], "labels": [0.75]}]
>>> found = load_rollouts(rows)
>>> found[0].steps, found[0].labels, found.metadata.horizon
(['It is 2.\n'], [0.75], 1)
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.codec import VERSION
from rmtools.data.messages import read_turns
from rmtools.data.readers.file_rows import Broken, file_rows
from rmtools.data.readers.files import find_files
from rmtools.data.readers.hub import is_hub_name, load_hub
from rmtools.data.readers.read import (
    LOOK,
    WITHIN,
    Tally,
    convert,
    counted_rows,
    detect_files,
    detect_rows,
    require_format,
)
from rmtools.data.readers.row import Options
from rmtools.data.rollouts import (
    META_FILE,
    SCHEMA_VERSION,
    Rollout,
    RolloutMetadata,
    Rollouts,
    parse_row,
    parse_rows,
    read_rollouts,
)
from rmtools.data.shards import DATA, FIELDS, PLAN_FILE
from rmtools.errors import UserError
from rmtools.lm.prompt_format import Turn
from rmtools.particles.arguments import check_bool

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def load_rollouts(
    source: "str | Path | Dataset | Sequence[Rollout] | Sequence[Mapping[str, Any]]",
    data_format: str = "",
    skip_bad: bool = False,
    *,
    split: str = "",
    options: Options = Options(),  # noqa: B008 - frozen
) -> Rollouts:
    r"""Load rollouts, with their metadata as far as it is known.

    Rows of a public format that cannot be used, such as those without any label, are counted in a warning, which also names
    the columns that were ignored.

    Parameters
    ----------
    source : path, datasets.Dataset, pandas.DataFrame, or sequence of Rollout or dict
        A folder of `rmtools rollout` or `rmtools convert`; a JSON, CSV, parquet or Arrow file, compressed or not, a folder of
        such files, or one that `datasets` saved; a hub data set
        (``owner/name``, with ``/configuration`` and ``:split`` if needed; default split: train); or rows. Rows have the
        schema of docs/formats.md, or one of the public formats there.
    data_format : str
        Name of the public format; default: found from the fields of the first good rows.
    skip_bad : bool
        Leave out rows that break the schema or their public format, and lines that are no JSON, with their number by kind in
        a warning, instead of raising.
    split : str
        Of a folder with several splits, or of a hub data set.
    options : rmtools.data.readers.Options
        How rows of a public format are read: the names of their fields, what is filtered, where steps begin.

    Returns
    -------
    Rollouts
        A sequence of `Rollout`, with ``.metadata``.

    Raises
    ------
    UserError
        If there is nothing to read or the data set cannot be loaded, the format is not known (the fields are listed),
        or a row is wrong (named).

    Examples
    --------
    >>> import rmtools as rm
    >>> rm.load_rollouts([{"prompt_id": "a", "prompt": "1 + 1?\n", "steps": ["It is 2.\n"], "reward": 1.0}])
    Rollouts(1 rows of 1 prompts)
    """
    require_format(data_format or None)
    check_bool("skip_bad", skip_bad)
    if isinstance(source, str) and source == "":
        raise UserError(
            "there are no rollouts: no folder, file or data set is named",
            "name one (train_rollouts when training)",
        )
    if isinstance(source, Rollouts):
        return source
    if not isinstance(source, str | Path):
        if not isinstance(source, Iterable):
            raise UserError(
                f"rollouts cannot be read from {source!r}",
                "name a folder, a file or a data set, or give rows",
            )
        rows: Any = source
        if hasattr(rows, "iterrows"):  # a pandas table
            rows = [_plain(row) for row in rows.to_dict("records")]
        return _from_rows(rows, data_format, "", skip_bad, options)
    if is_hub_name(source):
        return _from_rows(load_hub(str(source), split), data_format, str(source), skip_bad, options)
    return _from_path(Path(source), data_format, skip_bad, split, options)


def _from_path(folder: Path, data_format: str, skip_bad: bool, split: str, options: Options) -> Rollouts:
    """Return the rollouts of a file or folder."""
    source = str(folder)
    if not folder.exists() or any((folder / file).exists() for file in (META_FILE, PLAN_FILE)):
        if folder.exists() and (asked := data_format or split):
            name = "data_format" if data_format else "split"
            raise UserError(
                f"{name} is {asked}, but {source} holds rollouts of rmtools",
                f"leave {name} out",
            )
        return _own_folder(folder, skip_bad)
    files = find_files(folder, split)
    if _has_own_rows(values for file in files for _, values in file_rows(file)) and not data_format:
        if (folder / DATA).exists():
            return _own_folder(folder, skip_bad)
        rows = (row for file in files for row in file_rows(file))
        return _read_own(rows, source, skip_bad)
    tally = Tally(data_format)
    tally.format = data_format or detect_files(files, options, _as_text)
    return _read_public(counted_rows(files, tally), tally, source, skip_bad, options)


def _own_folder(folder: Path, skip_bad: bool) -> Rollouts:
    """Return the rollouts of a folder of `rmtools rollout` or `rmtools convert`."""
    left_out: list[UserError] = []
    rows, metadata = read_rollouts(folder, left_out if skip_bad else None)
    _tell(str(folder), len(rows), left_out)
    return Rollouts(rows, metadata, str(folder))


def _from_rows(
    source: Iterable[Any], data_format: str, name: str, skip_bad: bool, options: Options
) -> Rollouts:
    """Return the rollouts of rows in memory, or of a `datasets.Dataset`."""
    if isinstance(source, Mapping):  # of several splits
        raise UserError(
            f"the data set has several splits: {', '.join(map(str, source))}",
            "give one of them, such as data['train']",
        )
    rows = list(source)
    if not rows:
        raise UserError(f"there are no rollouts: {name or 'the data set'} is empty", "give at least one row")
    if all(isinstance(row, Rollout) for row in rows):
        return Rollouts(rows, RolloutMetadata.unknown(rows), name)
    kinds = {type(row).__name__: row for row in rows if not isinstance(row, Mapping)}
    if kinds:
        raise UserError(
            f"rows must be dictionaries or Rollout objects, got {', '.join(sorted(kinds))}",
            "give one kind of them, such as table.to_dict('records') of a pandas table",
        )
    places = [(f"{name}, row {i}" if name else f"row {i}", dict(row)) for i, row in enumerate(rows)]
    if _has_own_rows(rows) and not data_format:
        return _read_own(places, name, skip_bad)
    tally = Tally(data_format)
    tally.format = data_format or detect_rows(_as_text(iter(places)), name, options)
    return _read_public(places, tally, name, skip_bad, options)


def _has_own_rows(rows: Iterable[Any]) -> bool:
    """Return whether most of the first good rows have the schema of this package."""
    good = (values for values in itertools.islice(rows, WITHIN) if isinstance(values, Mapping))
    first = list(map(_is_ours, itertools.islice(good, LOOK)))
    return any(first) and 2 * sum(first) >= len(first)


def _read_own(rows: Iterable[tuple[str, Any]], source: str, skip_bad: bool) -> Rollouts:
    """Read rows of our schema."""
    turns: dict[str, tuple[Turn, ...]] = {}
    wrong: list[UserError] = []
    said = ((place, _said(values, place, turns, skip_bad)) for place, values in rows)
    found = list(parse_rows(said, _own_row, wrong if skip_bad else None))
    _tell(source or "the data set", len(found), wrong)
    return Rollouts(found, RolloutMetadata.unknown(found), source, turns)


def _read_public(
    rows: Iterable[tuple[str, Any]], tally: Tally, source: str, skip_bad: bool, options: Options
) -> Rollouts:
    """Read rows of the public format ``tally.format``, and warn of what was left out or ignored."""
    turns: dict[str, tuple[Turn, ...]] = {}
    said = ((place, _said(values, place, turns, skip_bad)) for place, values in rows)
    found = list(convert(said, options, skip_bad, tally))
    left_out = "; ".join(f"{n}: {reason}" for reason, n in tally.dropped.most_common())
    if not found:
        raise UserError(
            f"there are no rollouts: {source or 'the data set'} gives none ({left_out or 'it has no rows'})",
            "give at least one row",
        )
    name = f"{source or 'rows'} ({tally.format})"
    if left_out:
        shown = f", such as {'; '.join(tally.bad)}" if tally.bad else ""
        logger.warning("%s: left out %s%s", name, left_out, shown)
    for note in tally.notes():
        logger.warning("%s: %s", name, note)
    return Rollouts(found, RolloutMetadata.unknown(found, options.delimiter), source, turns)


def _as_text(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield rows with prompts that are chat messages as what the user says last, as far as they are such."""
    return ((place, _said(values, place, {}, True)) for place, values in rows)


def _plain(value: Any) -> Any:
    """Return the value of a pandas table's cell without numpy's types: its lists are arrays."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _said(row: Any, place: str, turns: dict[str, tuple[Turn, ...]], skip_bad: bool) -> Any:
    """Return a row whose prompt is chat messages with what the user says last; put the messages into ``turns``.

    With ``skip_bad`` a row of wrong messages is left to its reader, to which its prompt is no text.
    """
    if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), list):
        return row
    try:
        found = read_turns(row["prompt"], f"{place}, field prompt")
        prompt = found[-1][1].strip() + "\n"
        if turns.get(prompt, found) != found:
            raise UserError(
                f"{place}, field prompt: another conversation ends with the same message {prompt[:40]!r}",
                "render the prompts yourself, or leave one of the two out",
            )
    except UserError:
        if skip_bad:
            return row
        raise
    turns[prompt] = found
    return {**row, "prompt": prompt}


def _tell(source: str, kept: int, left_out: Sequence[UserError]) -> None:
    """Warn of rows that break the schema and were left out; raise ``UserError`` if no other is left."""
    if not left_out:
        return
    what = f"rows that break the schema (such as {left_out[0].fact})"
    if not kept:
        raise UserError(f"there are no rollouts: {source} has only {what}", left_out[0].fix)
    logger.warning("%s: left out %d %s", source, len(left_out), what)


def _is_ours(row: Any) -> bool:
    """Return whether a row has the schema of this package, whatever its values are.

    Steps with labels and other columns beside are those of a public data set.
    """
    if not isinstance(row, Mapping) or not {"prompt", "steps"} <= row.keys() or "correctness" in row:
        return False
    return row.keys() <= {*FIELDS, VERSION} or not {"prompt_id", "reward"}.isdisjoint(row)


def _own_row(row: Any, place: str) -> Rollout:
    """Return the rollout of a row of our schema; a prompt without id gets the one that `rmtools rollout` gives."""
    if isinstance(row, Broken):
        raise UserError(f"{place} {row.why}", "repair or remove the line")
    if not isinstance(row, Mapping):
        return parse_row(row, place)
    values = dict(row)
    version = values.pop(VERSION, SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{place} has schema version {version!r}, this release reads {SCHEMA_VERSION}",
            "make the rollouts again with `rmtools rollout`",
        )
    if values.get("prompt_id") is None and isinstance(values.get("prompt"), str):
        from rmtools.data.collect import prompt_id

        values["prompt_id"] = prompt_id(values["prompt"])
    return parse_row(values, place)
