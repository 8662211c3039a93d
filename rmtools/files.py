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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rmtools.errors import UserError


@contextlib.contextmanager
def replacing(path: Path, within: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes ``path``, on failure ``path`` stays as it was.

    The caller makes a file or a folder there; either replaces what stood at ``path``. Temporary files lie beside it,
    or in the folder ``within`` of the same file system, where those of a killed process are easily found. Raises
    ``UserError`` where the disk is full or the place cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        for folder in (path.parent, within or path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=within or path.parent)) / path.name
        yield temporary
        if path.is_dir() and temporary.is_dir():
            replace_folder(path, temporary)
        else:
            temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary.parent, ignore_errors=True)


@contextlib.contextmanager
def replacing_files(folder: Path, last: str = "", instead_of: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder; on success its files move into ``folder``, on failure ``folder`` stays as it was.

    All of them are written before the first is moved, so that a full disk leaves no mixture of old and new; ``last``
    names the file that says the others are there: the old one goes first. What else fits the patterns ``instead_of``
    is removed: it belongs to what is replaced. Raises ``UserError`` where the disk is full or the place cannot be
    written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new.", dir=folder) as temporary:
            yield Path(temporary)
            files = sorted(Path(temporary).iterdir(), key=lambda file: (file.name == last, file.name))
            if last:
                (folder / last).unlink(missing_ok=True)
            for old in {file for pattern in instead_of for file in folder.glob(pattern)}:
                old.unlink()
            for new in files:
                new.replace(folder / new.name)
    except OSError as error:
        raise unwritable(folder, error) from error


def replace_folder(path: Path, new: Path) -> None:
    """Put the folder ``new`` where the folder ``path`` is; if that fails, ``path`` is put back."""
    old = path.replace(new.parent / "old")
    try:
        new.replace(path)
    except OSError:
        old.replace(path)
        raise


def unwritable(path: Path, error: OSError) -> UserError:
    """Return the error to raise where ``path`` could not be written; what stood there before is kept."""
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
        raise UserError(f"{what} is not valid JSON: {path}: {error}", "repair it or make it again") from error


def parse_json(text: str) -> Any:
    r"""Return the value of a JSON text; every text in it can be written as UTF-8.

    Raises
    ------
    ValueError
        Also where it is nested too deep, a number has thousands of digits, or a text holds half a surrogate pair.

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


@contextlib.contextmanager
def left_as_found(path: Path) -> Iterator[None]:
    """Take the folder ``path`` away again where an error ends the work before anything is in it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.rmdir()
        raise


def writable_beside(path: Path) -> None:
    """Raise ``UserError`` where no file can be made in the folder of ``path``, which is created."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise unwritable(path, error) from error


def claim_folder(path: Path, *ours: str) -> Path:
    """Create ``path``, or accept it if it is empty or holds one of ``ours`` (names or patterns the same command leaves).

    Raises ``UserError`` where the folder holds something else: nothing of a user's is overwritten by accident.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"the output folder {path} is a file", "choose another folder")
    if path.is_dir() and any(path.iterdir()) and not any(any(path.glob(name)) for name in ours):
        raise UserError(
            f"the output folder {path} exists and holds something else (no {' or '.join(ours)} in it)",
            "choose another folder, or empty this one",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Hours of work may come before the first file: a place that cannot be written is better known now.
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise unwritable(path, error) from error
    return path
