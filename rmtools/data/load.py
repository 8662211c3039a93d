r"""Rollouts from whatever holds them: a folder, a file, a data set of the hub or of `datasets`, rows in memory.

>>> rows = [{"prompt": "1 + 1?", "completions": ["It is 2."], "labels": [0.75]}]
>>> found = load_rollouts(rows)
>>> found[0].steps, found[0].labels, found.metadata.horizon
(['It is 2.\n'], [0.75], 1)
"""

import contextlib
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.codec import VERSION
from rmtools.data.messages import read_turns
from rmtools.data.readers.files import SUFFIXES, read_rows
from rmtools.data.readers.read import LOOK, Tally, convert, detect, require_format
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
from rmtools.data.shards import DATA, PLAN_FILE
from rmtools.errors import UserError
from rmtools.lm.hub import ask, not_found
from rmtools.lm.prompt_format import Turn
from rmtools.particles.arguments import check_bool

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# owner/name, owner/name/configuration, either with :split
HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(/(?P<config>\w[\w.-]*))?(:(?P<split>\w[\w.-]*))?")

HOW_TO_NAME = "name a folder, a file, or a data set of the hub as owner/name, owner/name/configuration or owner/name:split"


def load_rollouts(
    source: "str | Path | Dataset | Sequence[Rollout] | Sequence[Mapping[str, Any]]",
    data_format: str = "",
    skip_bad: bool = False,
) -> Rollouts:
    r"""Load rollouts, with their metadata as far as it is known.

    Rows of a public format that cannot be used, such as those without any label, are counted in a warning.

    Parameters
    ----------
    source : path, datasets.Dataset, pandas.DataFrame, or sequence of Rollout or dict
        A folder of `rmtools rollout` or `rmtools convert`; a JSON, JSONL or parquet file; a hub data set
        (``owner/name``, with ``/configuration`` and ``:split`` if needed; default split: train); or rows. Rows have the
        schema of docs/formats.md, or one of the public formats there.
    data_format : str
        Name of the public format; default: found from the fields of the first rows.
    skip_bad : bool
        Leave out rows that break the schema or their public format, with their number in a warning, instead of raising.

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
            rows = rows.to_dict("records")
        return _from_rows(rows, data_format, skip_bad=skip_bad)
    folder, named = Path(source), HUB_NAME.fullmatch(str(source))
    if not folder.exists() and named and folder.suffix not in SUFFIXES:
        return _from_rows(_from_hub(str(source), **named.groupdict()), data_format, str(source), skip_bad)
    if not folder.exists() or any((folder / file).exists() for file in (META_FILE, PLAN_FILE, DATA)):
        if data_format and folder.exists():
            raise UserError(
                f"data_format is {data_format}, but {source} holds rollouts of rmtools",
                "leave data_format out",
            )
        left_out: list[UserError] = []
        rows, metadata = read_rollouts(folder, left_out if skip_bad else None)
        _tell(str(source), len(rows), left_out)
        return Rollouts(rows, metadata, str(source))
    return _read(read_rows(folder), data_format, str(source), skip_bad)


def _from_hub(source: str, name: str, config: str | None, split: str | None) -> "Dataset":
    """Return a data set of the hub; the one in the cache if the hub does not answer."""
    from datasets import load_dataset
    from huggingface_hub.errors import HTTPError

    refused: Exception | None = None
    try:
        ask(name, data_set=True)
    except (OSError, HTTPError) as error:
        refused = error
    try:
        with _from_cache() if refused else contextlib.nullcontext():
            return load_dataset(name, config, split=split or "train")
    except (OSError, HTTPError, ValueError) as error:
        if refused is not None and isinstance(error, OSError):
            raise not_found(name, "", refused, "data set", HOW_TO_NAME) from refused
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the hub's data set {source} cannot be loaded: {reason}", HOW_TO_NAME) from error


@contextlib.contextmanager
def _from_cache() -> Iterator[None]:
    """Make `datasets` read its cache alone: it tries an unreachable hub six times."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _from_rows(source: Iterable[Any], data_format: str, name: str = "", skip_bad: bool = False) -> Rollouts:
    """Return the rollouts of rows in memory, or of a `datasets.Dataset`."""
    if isinstance(source, Mapping):  # of several splits
        raise UserError(
            f"the data set has several splits: {', '.join(map(str, source))}",
            "give one of them, such as data['train']",
        )
    rows = list(source)
    if rows and all(isinstance(row, Rollout) for row in rows):
        return Rollouts(rows, RolloutMetadata.unknown(rows), name)
    kinds = {type(row).__name__: row for row in rows if not isinstance(row, Mapping)}
    if kinds:
        raise UserError(
            f"rows must be dictionaries or Rollout objects, got {', '.join(sorted(kinds))}",
            "give one kind of them, such as table.to_dict('records') of a pandas table",
        )
    places = ((f"{name}, row {i}" if name else f"row {i}", row) for i, row in enumerate(rows))
    return _read(places, data_format, name, skip_bad)


def _read(rows: Iterator[tuple[str, Any]], data_format: str, source: str, skip_bad: bool) -> Rollouts:
    """Read rows of our schema or of a public format."""
    turns: dict[str, tuple[Turn, ...]] = {}
    rows = ((place, _said(values, str(place), turns, skip_bad)) for place, values in rows)
    first = list(itertools.islice(rows, LOOK))
    if not first:
        raise UserError(
            f"there are no rollouts: {source or 'the data set'} is empty", "give at least one row"
        )
    rows, tally = itertools.chain(first, rows), Tally(data_format)
    ours = map(_is_ours, (values for _, values in first))
    if not data_format and (any(ours) if skip_bad else all(ours)):
        wrong: list[UserError] = []
        found = list(parse_rows(rows, _own_row, wrong if skip_bad else None))
        _tell(source or "the data set", len(found), wrong)
        return Rollouts(found, RolloutMetadata.unknown(found), source, turns)
    tally.format = data_format or detect([values for _, values in first], source)
    found = list(convert(rows, Options(), skip_bad, tally))
    left_out = "; ".join(f"{n}: {reason}" for reason, n in tally.dropped.most_common())
    if not found:
        raise UserError(
            f"there are no rollouts: {source or 'the data set'} gives none ({left_out})",
            "give at least one row",
        )
    if left_out:
        logger.warning("%s (%s): left out %s", source or "rows", tally.format, left_out)
    return Rollouts(found, RolloutMetadata.unknown(found), source, turns)


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
    """Return whether a row has the schema of this package, whatever its values are."""
    return isinstance(row, Mapping) and {"prompt", "steps"} <= row.keys() and "correctness" not in row


def _own_row(row: Any, place: str) -> Rollout:
    """Return the rollout of a row of our schema; a prompt without id gets the one that `rmtools rollout` gives."""
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
