"""Rows of JSON, JSONL, parquet and saved data sets, one after another, each with its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmtools.errors import UserError, reason
from rmtools.files import parse_json, read_json_lines

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow")
NOT_ROWS = {"dataset_info.json", "state.json", "dataset_dict.json", "dataset_infos.json"}
"""Files that `datasets` writes beside the rows."""
BATCH = 32
"""Rows of a parquet file held at once: a row of vgs is megabytes."""


def _files(path: Path) -> list[Path]:
    """Return the files of rows at ``path``: itself, or those in the folder and below, sorted.

    Raises
    ------
    UserError
        If there is none, or the file is of another kind.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}", "name a JSON, JSONL or parquet file, or a folder of them")
    if path.is_file() and path.suffix not in SUFFIXES:
        raise UserError(f"{path} is none of {', '.join(SUFFIXES)}", "name a JSON, JSONL or parquet file")
    inside = [path] if path.is_file() else sorted(path.rglob("*"))
    found = [p for p in inside if p.suffix in SUFFIXES and p.is_file() and p.name not in NOT_ROWS]
    if not found:
        raise UserError(
            f"the folder {path} holds no file of rows", f"files of rows end with {', '.join(SUFFIXES)}"
        )
    return found


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield every row at ``path`` with its place, a line or a batch at a time (a JSON array: whole).

    A place is "FILE, line 3" in a file of lines, counted from 1 as an editor counts them, else "FILE, row 2", from 0.

    Raises
    ------
    UserError
        If a file cannot be read, or a line is not valid JSON.
    """
    for file in _files(path):
        try:
            if file.suffix in (".json", ".jsonl"):
                yield from _json_rows(file)
            else:
                for row, values in enumerate(_arrow_rows(file)):
                    yield f"{file}, row {row}", values
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(file, reason(error)) from error


def _unreadable(file: Path, why: str) -> UserError:
    """Return the error to raise if a file cannot be read."""
    return UserError(f"{file} cannot be read: {why}", "repair or replace the file")


def _json_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a JSON array, of one JSON object, or of JSON lines, whatever the suffix."""
    if _is_lines(file):
        for number, values in read_json_lines(file):
            yield f"{file}, line {number}", values
        return
    try:
        found = parse_json(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise _unreadable(file, f"line {error.lineno} is not valid JSON: {error.msg}") from error
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise _unreadable(file, str(error)) from error
    for row, values in enumerate(found if isinstance(found, list) else [found]):
        yield f"{file}, row {row}", values


def _is_lines(file: Path) -> bool:
    """Return whether the file has a JSON value per line, by its suffix or its first line."""
    if file.suffix == ".jsonl":
        return True
    with file.open(encoding="utf-8-sig") as source:
        first = next((line for line in source if line.strip()), "")
    try:
        return isinstance(parse_json(first), dict)
    except ValueError:
        return False


def _arrow_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, or of an arrow stream as `datasets` saves it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as source:
                for batch in source.iter_batches(batch_size=BATCH):
                    yield from batch.to_pylist()
        else:
            with pa.memory_map(str(file)) as memory, pa.ipc.open_stream(memory) as stream:
                for batch in stream:
                    yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise _unreadable(file, reason(error)) from error
