"""The files of a data set, of one split, and their rows one after another."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmtools.data.readers.file_rows import COMPRESSED, SUFFIXES, Broken, Rows, file_rows, kind_of
from rmtools.errors import UserError
from rmtools.files import read_json

STATE, SPLITS_FILE = "state.json", "dataset_dict.json"
NOT_ROWS = {"dataset_info.json", STATE, SPLITS_FILE, "dataset_infos.json"}
"""Files that `datasets` writes beside the rows."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The splits that `datasets` reads in the names of files and folders, and the words for them."""
SHARD = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}")
HOW = f"name a file of rows ({', '.join(SUFFIXES)}; also {', '.join(COMPRESSED)}), or a folder of them"


def find_files(path: Path, split: str = "") -> list[Path]:
    """Return the files of rows at ``path``, sorted: itself, or those in the folder and below that belong to ``split``.

    Raises
    ------
    UserError
        If there is none, the file is of another kind, a link leads out of the folder, or the folder holds several splits and
        none is named.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}", HOW)
    if path.is_file():
        if not kind_of(path):
            raise UserError(f"{path} is no file of rows that is known", HOW)
        if split:
            raise UserError(f"{path} is one file: it has no split {split}", "leave the split out")
        return [path]
    found = [p for p in sorted(path.rglob("*")) if kind_of(p) and p.name not in NOT_ROWS and p.is_file()]
    found = [p for p in found if _belongs(p)]
    if not found:
        raise UserError(f"the folder {path} holds no file of rows", HOW)
    _require_inside(path, found)
    splits: dict[str, list[Path]] = defaultdict(list)
    for file in found:
        splits[split_of(file, path)].append(file)
    names = ", ".join(f"{name or 'no split'} ({len(files)} files)" for name, files in sorted(splits.items()))
    if split:
        if split not in splits:
            raise UserError(f"{path} has no split {split}; there is {names}", "name one of these")
        return splits[split]
    if len(splits) > 1:
        raise UserError(
            f"{path} holds several splits, which are not read as one: {names}",
            "name one as `split`, or the file or folder of it",
        )
    return found


def _belongs(file: Path) -> bool:
    """Return whether a file is one of a saved data set's own, where there is one: `datasets` leaves caches beside them."""
    state = file.parent / STATE
    if not state.is_file():
        return True
    known = read_json(state, "the state of the saved data set")
    return file.name in {str(data.get("filename")) for data in known.get("_data_files", ())}


def _require_inside(folder: Path, files: list[Path]) -> None:
    """Raise ``UserError`` if a link leads out of the folder; in the hub's cache, files are links to its ``blobs``."""
    root = folder.resolve()
    root = root.parents[1] if root.parent.name == "snapshots" else root
    for file in files:
        if not file.resolve().is_relative_to(root):
            raise UserError(
                f"{file} is a link out of the folder, to {file.resolve()}",
                "name that file, or copy it into the folder",
            )


def split_of(file: Path, folder: Path) -> str:
    """Return the split that a file belongs to by its name, or that of its folder; "" if they say nothing.

    >>> split_of(Path("d/phase1_test.jsonl"), Path("d")), split_of(Path("d/train/a.parquet"), Path("d"))
    ('test', 'train')
    """
    parts = file.relative_to(folder).parts
    if (folder / SPLITS_FILE).is_file():
        return parts[0]
    shard = SHARD.match(parts[-1])
    if shard and shard["split"] not in ("data", "part"):
        return shard["split"]
    for part in reversed(parts):
        words = re.split(r"[-._ 0-9]+", part.lower())
        if name := next((name for name, known in SPLITS.items() if not {*known}.isdisjoint(words)), ""):
            return name
    return ""


def read_rows(path: Path, split: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every row at ``path`` with its place, see `file_rows`.

    Raises
    ------
    UserError
        As `find_files` and `file_rows`, or if a line is not valid JSON.
    """
    for file in find_files(path, split):
        yield from whole_rows(file_rows(file))


def whole_rows(rows: Rows) -> Rows:
    """Yield rows as they are; raise ``UserError`` that names the place of one that is `Broken`."""
    for place, value in rows:
        if isinstance(value, Broken):
            raise UserError(f"{place} {value.why}", "repair or remove the line")
        yield place, value
