"""A folder for the unfinished files of one process, locked while the process lives and swept afterwards.

The lock is on the folder itself and goes with the process, however that ends: what lies in an unlocked one was left by a
process that was killed. One that is locked belongs to a run that still goes on, such as the workers of a launcher that was
killed alone; two runs must not share a folder, the second is refused.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rmtools.errors import UserError
from rmtools.files import unwritable
from rmtools.jobs.processes import Process

PARTIAL = ".partial"


class Workplace:
    """The folder ``.partial/RANK`` of a process.

    Parameters
    ----------
    folder : Path
        Where the finished files go.
    process : Process
    what : str
        What the folder holds, in messages.
    """

    def __init__(self, folder: Path, process: Process, what: str = "rollouts") -> None:
        self.what = what
        self.root = folder / PARTIAL
        self.path = self.root / str(process.rank)
        self.process = process

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, empty at first, gone afterwards; raises ``UserError`` where another run holds it."""
        lock = self._lock()
        try:
            for left in self.path.iterdir():
                remove(left)
            if self.process.main:
                self._sweep_absent()
            yield
        finally:
            remove(self.path)
            os.close(lock)
            # The last process to end removes the root as well.
            with contextlib.suppress(OSError):
                self.root.rmdir()

    def check_alone(self) -> None:
        """Raise ``UserError`` where a process of another rank is at work."""
        for other in self._others():
            if not is_free(other):
                raise busy(self.root.parent, self.what)

    def _lock(self) -> int:
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.path, os.O_RDONLY)
            except FileNotFoundError:
                # A process that has just ended removed the empty root between two calls.
                continue
            except OSError as error:
                raise unwritable(self.path, error) from error
            if not try_lock(lock):
                os.close(lock)
                raise busy(self.root.parent, self.what)
            # The folder may have been removed by its last owner before the lock was ours.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), self.path.stat()):
                    return lock
            os.close(lock)

    def _sweep_absent(self) -> None:
        """Remove what processes left that this run does not have."""
        for other in self._others():
            if not other.name.isdigit() or int(other.name) >= self.process.size:
                if not is_free(other):
                    raise busy(self.root.parent, self.what)
                remove(other)

    def _others(self) -> list[Path]:
        return sorted(p for p in self.root.glob("*") if p != self.path)


def try_lock(descriptor: int) -> bool:
    """Lock an open folder; return False where another process has. A file system without locks counts as free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def is_free(path: Path) -> bool:
    """Return whether no process holds ``path``."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return try_lock(descriptor)
    finally:
        os.close(descriptor)


def busy(folder: Path, what: str) -> UserError:
    """Return the error for a folder that another run works on."""
    return UserError(
        f"another run is at work on the {what} in {folder}",
        "let it finish, or end its processes, and run the same command again",
    )


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; raises ``UserError`` where it cannot be."""
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
