"""Shard files of a rollout dataset: ``data/train-00000-of-00004.parquet`` or ``.jsonl``, rows as plain dictionaries.

``datasets.load_dataset(DIR)`` looks for these names. This module checks that the files are complete and readable;
rmtools.data.rollouts checks the rows.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.errors import UserError, reason
from rmtools.files import read_json_lines

if TYPE_CHECKING:
    import pyarrow as pa

DATA = "data"
# In a folder that `rmtools rollout` works or worked on: rmtools.jobs.job.
PLAN_FILE = "plan.json"
FORMATS = ("parquet", "jsonl")
NAME = re.compile(r"train-(\d{5,})-of-(\d{5,})\.(parquet|jsonl)")
FIELDS = (
    *("prompt_id", "prompt", "steps", "reward", "children", "completions", "labels", "reference"),
    *("question", "ids"),
)
# Not in files of earlier releases, and in none where nothing is known of them.
OPTIONAL = ("question", "ids")
REMEDY = "see docs/formats.md for the schema"


def schema() -> "pa.Schema":
    """Return the arrow schema of a row; every column but prompt_id, prompt and steps may be null."""
    import pyarrow as pa

    text, number, ids = pa.string(), pa.float64(), pa.list_(pa.int32())
    child = pa.struct([("text", text), ("ended", pa.bool_()), ("reward", number), ("ids", ids)])
    per_depth = pa.list_(pa.list_(child)), pa.list_(pa.list_(number))
    kinds = (text, text, pa.list_(text), number, *per_depth, pa.list_(number), text, text, pa.list_(ids))
    return pa.schema(list(zip(FIELDS, kinds, strict=True)))


def shard_name(index: int, count: int, form: str) -> str:
    """Return the file name of shard ``index`` of ``count``.

    >>> shard_name(0, 4, "parquet")
    'train-00000-of-00004.parquet'
    """
    return f"train-{index:05d}-of-{count:05d}.{form}"


def find_shards(folder: Path) -> list[Path]:
    """Return the shards of the dataset ``folder``, in order.

    Raises
    ------
    UserError
        If there is none, one of the numbering is missing (it is named), or shards of two datasets are mixed.
    """
    inside = folder / DATA
    found = {p.name: m for p in inside.glob("train-*") if (m := NAME.fullmatch(p.name))}
    kinds = sorted({(int(m[2]), m[3]) for m in found.values()})
    if not kinds:
        raise UserError(
            f"there are no rollouts in {inside}: no file like {shard_name(0, 1, 'parquet')}",
            "make them again with `rmtools rollout`",
        )
    if len(kinds) > 1:
        names = " and ".join(f"-of-{count:05d}.{form}" for count, form in kinds)
        raise UserError(
            f"{inside} holds shards of more than one dataset: {names}", "keep one of them, or make it again"
        )
    (count, form) = kinds[0]
    for i in range(count):
        if shard_name(i, count, form) not in found:
            raise UserError(
                f"the rollouts are incomplete: {inside / shard_name(i, count, form)} is missing",
                "rerun the command that made them: it makes what is missing",
            )
    return [inside / shard_name(i, count, form) for i in range(count)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``rows`` in the format that the suffix of ``path`` names; NaN is refused in JSON lines."""
    if path.suffix == ".jsonl":
        lines = [json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in rows]
        path.write_text("".join(lines), encoding="utf-8")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema()), path)


Rows = list[tuple[str, Any]]


def read_rows(path: Path) -> Rows:
    """Return the rows of a shard, unchecked, each with its place in words: "FILE, line 3" or, of parquet, "FILE, row 2".

    Lines are counted from 1 as an editor counts them, rows from 0. Raises ``UserError`` that names the file if it cannot be
    read.
    """
    return _json_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path)


def _parquet_rows(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
        _check_columns(path, table.column_names)
        # Text is decoded here: bytes that are no UTF-8 are as unreadable as a broken page.
        return [(f"{path}, row {i}", row) for i, row in enumerate(table.to_pylist())]
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if missing := [n for n in FIELDS if n not in (*names, *OPTIONAL)]:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}", REMEDY)
    if unknown := [n for n in names if n not in FIELDS]:
        raise UserError(f"{path} has unknown columns {', '.join(unknown)}", f"drop them; {REMEDY}")


def _json_rows(path: Path) -> Rows:
    try:
        return [(f"{path}, line {number}", row) for number, row in read_json_lines(path)]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    """Return the error for a shard that is missing, cut off or corrupted."""
    return UserError(
        f"the rollouts in {path} cannot be read: {reason(error)}",
        "delete the file and rerun the command that made it: it makes what is missing",
    )
