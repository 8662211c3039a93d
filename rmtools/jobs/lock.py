"""A folder held by one run at a time, with a place for unfinished files that is swept after a kill.

Process RANK of a run locks ``.partial/RANK.lock`` and keeps its unfinished files in ``.partial/RANK``. The lock ends with
the process, however that ends: what lies beside a free lock was left by a process that was killed. A held lock belongs to
a run that still works, such as the workers of a launcher that was killed alone; a second run is refused.
"""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from rmtools.errors import UserError
from rmtools.files import unwritable
from rmtools.jobs.processes import Process

PARTIAL, LOCK = ".partial", ".lock"
# A lock is tried for this long: its last owner may be removing it. In seconds.
TRIED = 0.3
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def held(folder: Path, process: Process, what: str = "rollouts") -> Iterator[Path]:
    """Hold ``folder`` for ``process``; yield an empty folder for its unfinished files, removed afterwards.

    ``what`` names the content in the error. Raises ``UserError`` if another run holds the folder.
    """
    root = folder / PARTIAL
    scratch, file = root / str(process.rank), root / f"{process.rank}{LOCK}"
    lock = _acquire(file)
    if lock is None:
        raise _busy(folder, what)
    try:
        remove(scratch)
        if process.main:
            _sweep(folder, process.size, what)
        try:
            scratch.mkdir(parents=True)
        except OSError as error:
            raise unwritable(scratch, error) from error
        yield scratch
    finally:
        remove(scratch)
        _release(file, lock)
        # The last process to end removes the root as well.
        with contextlib.suppress(OSError):
            root.rmdir()


def require_alone(folder: Path, process: Process, what: str) -> None:
    """Raise ``UserError`` if a process of another rank works in ``folder``."""
    _require_free([p for p in (folder / PARTIAL).iterdir() if p.stem != str(process.rank)], folder, what)


def is_free(file: Path) -> bool:
    """Return whether no process holds the lock ``file``; remove it if so."""
    lock = _acquire(file)
    if lock is not None:
        _release(file, lock)
    return lock is not None


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists; raise ``UserError`` if that fails."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        # Another process swept the same leftover first.
        pass
    except OSError as error:
        raise unwritable(path, error) from error


def _acquire(file: Path) -> FileLock | None:
    """Return the lock, None if another process holds it; a file system without locks counts as free."""
    lock = FileLock(file)
    while True:
        try:
            lock.acquire(timeout=TRIED, poll_interval=0.02)
            return lock
        except Timeout:
            return None
        except FileNotFoundError:
            # A process that has just ended removed the empty root between two calls.
            continue
        except OSError as error:
            if error.errno in NO_LOCKS:
                return lock
            raise unwritable(file, error) from error


def _release(file: Path, lock: FileLock) -> None:
    # Removed while held: who waits for it then finds a lock without a name, and makes a new one. Windows removes it itself.
    with contextlib.suppress(PermissionError):
        file.unlink(missing_ok=True)
    lock.release()


def _sweep(folder: Path, size: int, what: str) -> None:
    """Remove what was left by ranks that a run of ``size`` processes does not have."""
    ours = {str(rank) for rank in range(size)}
    strangers = [path for path in (folder / PARTIAL).iterdir() if path.stem not in ours]
    _require_free(strangers, folder, what)
    for left in strangers:
        remove(left)


def _require_free(paths: list[Path], folder: Path, what: str) -> None:
    if not all(is_free(path) for path in paths if path.suffix == LOCK):
        raise _busy(folder, what)


def _busy(folder: Path, what: str) -> UserError:
    return UserError(
        f"another run is at work on the {what} in {folder}",
        "let it finish, or end its processes, and run the same command again",
    )
