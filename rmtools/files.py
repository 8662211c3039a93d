"""Writing without half-written results: a temporary file beside the target, then a rename.

>>> import pathlib, tempfile
>>> folder = pathlib.Path(tempfile.mkdtemp())
>>> write_text(folder / "a.json", "{}")
>>> (folder / "a.json").read_text()
'{}'
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rmtools.errors import UserError


@contextlib.contextmanager
def replacing(path: Path, within: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes ``path``, on failure ``path`` stays as it was.

    The caller makes a file or a folder there; either replaces what stood at ``path``. Temporary files lie beside it, or
    in the folder ``within`` of the same file system, which the caller can sweep after a kill. Raises ``UserError`` if
    the disk is full or the place cannot be written.
    """
    path = Path(path)
    with _temporary_folder(path, within or path.parent, f".{path.name}.") as folder:
        path.parent.mkdir(parents=True, exist_ok=True)
        new, old = folder / path.name, folder / f"{path.name}.old"
        yield new
        replaced = path.is_dir() and new.is_dir()
        if replaced:
            path.replace(old)
        try:
            new.replace(path)
        except OSError:
            if replaced:
                old.replace(path)
            raise


@contextlib.contextmanager
def replacing_files(folder: Path, last: str = "", instead_of: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder; on success its files move into ``folder``, on failure ``folder`` stays as it was.

    All files are written before the first is moved, so a full disk leaves no mixture of old and new. Raises
    ``UserError`` if the disk is full or the place cannot be written.

    Parameters
    ----------
    folder : Path
    last : str
        The file that says the others are there: its old version is removed first, the new one moved last.
    instead_of : sequence of str
        Patterns of files that belong to what is replaced, and are removed.
    """
    with _temporary_folder(folder, folder, ".new.") as temporary:
        yield temporary
        files = sorted(temporary.iterdir(), key=lambda file: (file.name == last, file.name))
        if last:
            (folder / last).unlink(missing_ok=True)
        for old in {file for pattern in instead_of for file in folder.glob(pattern)}:
            old.unlink()
        for new in files:
            new.replace(folder / new.name)


@contextlib.contextmanager
def _temporary_folder(target: Path, parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in ``parent``, removed afterwards; an ``OSError`` says that ``target`` cannot be written."""
    with left_as_found(parent):
        folder: Path | None = None
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            yield folder
        except OSError as error:
            raise unwritable(target, error) from error
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def unwritable(path: Path, error: OSError) -> UserError:
    """Return the error to raise if ``path`` could not be written; what stood there before is kept."""
    blocked = isinstance(error, FileExistsError | NotADirectoryError)
    reason = "its folder is a file" if blocked else error.strerror or str(error)
    return UserError(
        f"cannot write {path}: {reason}; what stood there before is unchanged",
        "free space or choose another folder",
    )


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 in one rename."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON in one rename; NaN and infinities are refused (they are not JSON)."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON; NaN and infinities are refused (they are not JSON)."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; ``what`` names it in the error ("the checkpoint's settings")."""
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{what} cannot be read: {path}: {error.strerror}", "name another, or make it again"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{what} cannot be read: {path} is not valid JSON: {error}", "repair it or make it again"
        ) from error


def parse_json(text: str) -> Any:
    r"""Return the value of a JSON text; every text in it can be written as UTF-8.

    Raises
    ------
    ValueError
        Also if it is nested too deep, a number has thousands of digits, or a text holds half a surrogate pair.

    >>> parse_json('{"a": "\\ud83d"}')
    Traceback (most recent call last):
    ...
    ValueError: a text in it holds half a surrogate pair
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    try:
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text in it holds half a surrogate pair") from error
    return value


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each line of a file of JSON lines; blank lines are skipped.

    Raises ``UserError`` naming the line if it is not valid JSON, ``OSError`` or ``UnicodeDecodeError`` if the file cannot
    be read.
    """
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        yield from json_lines(lines, str(path))


def json_lines(lines: Iterable[str], name: str) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each line that is not blank; raise ``UserError`` naming the line if it is not valid JSON."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = parse_json(line)
            except ValueError as error:
                raise UserError(
                    f"{name}, line {number} is not valid JSON: {error}", "repair or remove the line"
                ) from error
            yield number, value


@contextlib.contextmanager
def left_as_found(path: Path) -> Iterator[None]:
    """Remove the folder ``path`` and its parents again, those made meanwhile, if an error leaves them empty."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def require_no_file(folder: Path) -> None:
    """Raise ``UserError`` if an output folder is a file."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the output folder {folder} is a file", "choose another folder")


def require_writable(folder: Path) -> None:
    """Raise ``UserError`` if ``folder`` cannot be made or written: hours of work may come before the first file."""
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            folder.stat()  # fails for a name that no folder can have
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise unwritable(folder, error) from error


def claim_folder(path: Path, *ours: str, holds: str = "", overwrite: bool = True) -> Path:
    """Return ``path`` if a command may write there; nothing is created.

    It may if the folder is not there, is empty, or holds one of ``ours`` (names or patterns that the same command leaves) and
    ``overwrite`` is set; ``holds`` names in the error what would be replaced. Raises ``UserError`` otherwise: nothing of a
    user's is overwritten by accident.
    """
    path = Path(path)
    require_no_file(path)
    if path.is_dir() and any(path.iterdir()) and not any(any(path.glob(name)) for name in ours):
        raise UserError(
            f"the output folder {path} exists and holds something else (no {' or '.join(ours)} in it)",
            "choose another folder, or empty this one",
        )
    if not overwrite and any(any(path.glob(name)) for name in ours):
        raise UserError(
            f"{path} holds {holds} already", "choose another folder, or pass `overwrite` to replace it"
        )
    require_writable(path)
    return path
