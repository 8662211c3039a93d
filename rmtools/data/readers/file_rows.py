r"""The rows of one file, each with its place: JSON, CSV, parquet, Arrow, compressed or not, as `datasets` and pandas write it.

>>> import gzip, pathlib, tempfile
>>> file = pathlib.Path(tempfile.mkdtemp()) / "rows.jsonl.gz"
>>> _ = file.write_bytes(gzip.compress(b'{"a": 1}\n{"a": \n'))
>>> [value for _, value in file_rows(file)]
[{'a': 1}, Broken(why='is not valid JSON: Expecting value: line 2 column 1 (char 7)')]
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rmtools.errors import UserError, reason
from rmtools.files import parse_json

LINES, WHOLE, COLUMNS, TABLES = (
    (".jsonl", ".ndjson"),
    (".json",),
    (".parquet", ".arrow", ".feather"),
    (".csv", ".tsv"),
)
SUFFIXES = (*LINES, *WHOLE, *COLUMNS, *TABLES)
BATCH = 32
"""Rows of a table held at once: a row of vgs is megabytes."""
MOST_COLUMNS = 1_000
EXPANDED, AT_LEAST = 100, 256 << 20
"""How many times its size a compressed file may grow, once it is larger than ``AT_LEAST`` bytes."""
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)

Rows = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Broken:
    """Stands for a row that cannot be read: why."""

    why: str


def _zstd(path: Path) -> IO[bytes]:
    import pyarrow as pa

    return pa.input_stream(str(path), compression="zstd")


def _zip(path: Path) -> IO[bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        if len(names) != 1:
            raise UserError(f"{path} holds {len(names)} files", "unpack it, and name the file or the folder")
        try:
            return archive.open(names[0])
        except RuntimeError as error:  # encrypted, or packed in a way that Python does not know
            raise OSError(reason(error)) from error


COMPRESSED: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": gzip.open,  # type: ignore[dict-item]
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
    ".zip": _zip,
}
"""How a compressed file is opened, by suffix."""


def kind_of(file: Path) -> str:
    """Return the suffix that says how a file is read, without that of its compression; "" if it is none of `SUFFIXES`.

    >>> kind_of(Path("a.jsonl.gz")), kind_of(Path("a.parquet")), kind_of(Path("README.md"))
    ('.jsonl', '.parquet', '')
    """
    name = file.with_suffix("") if file.suffix in COMPRESSED else file
    return name.suffix if name.suffix in SUFFIXES and not (name != file and name.suffix in COLUMNS) else ""


def file_rows(file: Path) -> Rows:
    """Yield every row of a file with its place, a line or a batch at a time (a JSON array: whole).

    A place is "FILE, line 3" in a file of lines, counted from 1 as an editor counts them, else "FILE, row 2", from 0. A line
    that is no JSON is `Broken`.

    Raises
    ------
    UserError
        If the file cannot be read: it is damaged, has other contents than its name says, too many columns, or is compressed
        beyond all reason.
    """
    kind = kind_of(file)
    try:
        if kind in COLUMNS:
            yield from _numbered(file, _arrow_rows(file, kind))
            return
        with _opened(file) as stream:
            if kind in TABLES:
                yield from _numbered(file, _csv_rows(stream, "\t" if kind == ".tsv" else ","))
                return
            lines = kind in LINES or _has_lines(file)
            if lines:
                yield from _json_lines(file, stream)
            else:
                yield from _numbered(file, _unfolded(_json_value(file, stream)))
    except UnicodeDecodeError as error:
        raise unreadable(file, f"it is no text in UTF-8: {reason(error)}") from error
    except DAMAGED as error:
        raise unreadable(file, reason(error)) from error


def unreadable(file: Path, why: str) -> UserError:
    """Return the error to raise if a file cannot be read."""
    return UserError(f"{file} cannot be read: {why}", "repair or replace the file")


def _numbered(file: Path, rows: Iterator[Any]) -> Rows:
    return ((f"{file}, row {i}", row) for i, row in enumerate(rows))


# Text


def _json_lines(file: Path, stream: IO[bytes]) -> Rows:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                value = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                value = Broken("is not valid JSON: it is no text in UTF-8")
            except ValueError as error:
                value = Broken(f"is not valid JSON: {error}")
            yield f"{file}, line {number}", value


def _json_value(file: Path, stream: IO[bytes]) -> Any:
    try:
        return parse_json(stream.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise unreadable(file, f"line {error.lineno} is not valid JSON: {error.msg}") from error
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise unreadable(file, str(error)) from error


def _has_lines(file: Path) -> bool:
    """Return whether a ``.json`` file has a JSON object in each of several lines."""
    with _opened(file) as stream:
        found = (line for line in stream if line.strip())
        first, second = next(found, b""), next(found, b"")
    try:
        return bool(second) and isinstance(parse_json(first.decode("utf-8-sig")), dict)
    except ValueError:
        return False


def _unfolded(value: Any) -> Iterator[Any]:
    """Yield the rows of a JSON value: of an array, of a table as pandas writes it in any of its orients, or itself."""
    if isinstance(value, list):
        yield from value
    elif not isinstance(value, dict):
        yield value
    elif {"columns", "data"} <= value.keys() <= {"columns", "data", "index"}:  # orient split
        yield from (dict(zip(value["columns"], row, strict=False)) for row in value["data"])
    elif value.keys() == {"schema", "data"}:  # orient table
        key = value["schema"].get("primaryKey", ())
        yield from ({k: v for k, v in row.items() if k not in key} for row in value["data"])
    elif value and all(isinstance(part, dict) and part for part in value.values()):
        if _numbers(value):  # orient index
            yield from value.values()
        elif all(map(_numbers, value.values())):  # orient columns
            index = next(iter(value.values()))
            yield from ({name: column.get(i) for name, column in value.items()} for i in index)
        else:
            yield value
    else:
        yield value


def _numbers(keys: dict[str, Any]) -> bool:
    """Return whether the keys are those of a table's index."""
    return all(key.isdecimal() for key in keys)


def _csv_rows(stream: IO[bytes], separator: str) -> Iterator[dict[str, Any]]:
    import pandas

    try:
        chunks = pandas.read_csv(stream, sep=separator, chunksize=1000, keep_default_na=False, na_values=[""])
        for chunk in chunks:
            for row in chunk.to_dict("records"):
                yield {str(name): _cell(value) for name, value in row.items()}
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise OSError(reason(error)) from error


ITEM = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|True|False|None|nan|[-+]?\d*\.?\d+(?:e[-+]?\d+)?\.?"""
)


def _cell(value: Any) -> Any:
    """Return the value of a cell: lists and objects are written in JSON, or as Python or numpy show them."""
    if isinstance(value, float) and value != value:
        return None
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    with contextlib.suppress(ValueError):
        return parse_json(value)
    inside = value[1:-1]
    if not value.endswith("]") or ITEM.sub("", inside).strip(" ,\n"):
        return value
    import ast

    # numpy writes no commas between the items, so they are read one by one: Python would join adjacent texts.
    words = {"nan": "None"}
    return [ast.literal_eval(words.get(item, item)) for item in ITEM.findall(inside)]


# Tables


def _arrow_rows(file: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, or of an Arrow file or stream."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if kind == ".parquet":
            with pq.ParquetFile(file) as source:
                _require_columns(file, source.schema_arrow.names)
                for batch in source.iter_batches(batch_size=BATCH):
                    yield from batch.to_pylist()
            return
        with pa.memory_map(str(file)) as memory:
            whole = memory.read(6) == b"ARROW1"
            memory.seek(0)
            with pa.ipc.open_file(memory) if whole else pa.ipc.open_stream(memory) as source:
                _require_columns(file, source.schema.names)
                batches = map(source.get_batch, range(source.num_record_batches)) if whole else source
                for batch in batches:
                    for start in range(0, batch.num_rows, BATCH):
                        yield from batch.slice(start, BATCH).to_pylist()
    except pa.ArrowException as error:
        raise unreadable(file, reason(error)) from error


def _require_columns(file: Path, names: list[str]) -> None:
    if len(names) > MOST_COLUMNS:
        raise UserError(
            f"{file} has {len(names):,} columns ({', '.join(names[:3])}, …): rows of steps have a few",
            f"keep the columns you need, at most {MOST_COLUMNS:,}",
        )


# Compression


def _opened(file: Path) -> IO[bytes]:
    """Open a file of text, unpacking it if it is compressed; what it unpacks to is bounded."""
    if file.suffix not in COMPRESSED:
        return file.open("rb")
    limit = max(AT_LEAST, EXPANDED * file.stat().st_size)
    return io.BufferedReader(_Bounded(COMPRESSED[file.suffix](file), limit, file), 1 << 16)


class _Bounded(io.RawIOBase):
    """A stream that ends in an error behind so many bytes."""

    def __init__(self, source: IO[bytes], limit: int, file: Path) -> None:
        self.source, self.left, self.file, self.limit = source, limit, file, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self.source.read(len(buffer))
        self.left -= len(found)
        if self.left < 0:
            raise UserError(
                f"{self.file} unpacks to more than {self.limit >> 20:,} MiB, {EXPANDED} times its size: it may be made to "
                "fill the memory",
                "unpack it yourself if you know it, and name the unpacked file",
            )
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self.source.close()
        super().close()
