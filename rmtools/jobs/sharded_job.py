"""Shards of work in a folder, so that a killed run goes on where it was, and several processes share one.

What the processes share is the folder. ``plan.json`` is there before the first shard. Shard i is made by process
i mod size, from a generator of its own, and moved into place whole; before it, a small file ``tally/00000.json`` with
its hash and its counts. A shard counts as done when the hash fits, so whatever a kill or a bad disk left behind is
made again and comes out the same. Unfinished files lie in ``.partial/RANK``, see rmtools.jobs.lock.

What the shards hold is the business of rmtools.jobs.resume (rollouts) and rmtools.jobs.samples.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rmtools.data.rollouts import META_FILE
from rmtools.data.shards import DATA, PLAN_FILE
from rmtools.errors import UserError
from rmtools.files import claim_folder, json_text, read_json, replacing
from rmtools.jobs.lock import PARTIAL, Workplace, remove
from rmtools.jobs.plan import differences, read_plan
from rmtools.jobs.processes import Process

TALLY = "tally"
POLL = 0.2
# How long the main process waits for another's next shard, in seconds: a shard of its own may have taken this long.
PATIENCE = 600.0


class ShardPlan(Protocol):
    """What `SharedWork` needs to know of a plan."""

    @property
    def shards(self) -> int:
        """How many shards there are."""
        ...

    def name(self, shard: int) -> str:
        """Return the file name of a shard."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as it is saved, with ``prompts_sha256``."""
        ...


class Hashed(Protocol):
    """Counts of one shard, and the hash of its file."""

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        ...


T = TypeVar("T", bound=Hashed)


def never() -> bool:
    """Return False."""
    return False


class SharedWork(Generic[T]):
    """A folder of shards in the making.

    Parameters
    ----------
    folder : Path
    plan : ShardPlan
    process : Process
        Which of the processes this one is.
    tally : callable
        Makes a dataclass with a field ``sha256``: what is kept of a shard.
    what : str
        What the shards hold, in messages.
    over : callable
        Whether the main process has come to the end and put the folder away: then there is nothing to wait for.
    """

    def __init__(
        self,
        folder: Path,
        plan: ShardPlan,
        process: Process,
        tally: Callable[..., T],
        what: str,
        over: Callable[[], bool] = never,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.process = process
        self.workplace = Workplace(folder, process, what)
        self._kind = tally
        self._what = what
        self._over = over
        self._done: dict[int, T] = {}

    @contextlib.contextmanager
    def claimed(self, overwrite: bool = False) -> Iterator[bool]:
        """Hold the folder for this plan while shards are made; what is unfinished is removed before and after.

        Parameters
        ----------
        overwrite : bool
            Remove shards of another plan instead of refusing.

        Yields
        ------
        bool
            False where there is nothing left to do for this process.

        Raises
        ------
        UserError
            If it holds something else or shards of another plan, another run is at work on it, or it cannot be
            written.
        """
        if self.process.main:
            claim_folder(self.folder, PLAN_FILE, PARTIAL)
        elif not self._await_plan():
            yield False
            return
        with self.workplace.held():
            if self.process.main:
                self._begin(overwrite)
            # The main process may have put the folder away between the wait and the lock.
            yield self.process.main or (self._plan_stands() and not self._over())

    def _begin(self, overwrite: bool) -> None:
        old = read_plan(self.folder)
        changed = differences(old, self.plan.to_dict()) if old is not None else []
        if changed and not overwrite:
            raise UserError(
                f"{self.folder} holds {self._what} that were begun with other arguments: {', '.join(changed)}",
                "choose another --out, pass the same arguments to go on, or --overwrite to replace them",
            )
        if changed:
            self.workplace.check_alone()
            # The plan goes last: a kill in between leaves a folder that is still refused or overwritten.
            for name in (META_FILE, DATA, TALLY, PLAN_FILE):
                remove(self.folder / name)
        if old is None and not (self.folder / META_FILE).exists():
            # Shards without a plan are of nobody knows which arguments.
            for name in (DATA, TALLY):
                remove(self.folder / name)
        if changed or old is None:
            with replacing(self.folder / PLAN_FILE, self.workplace.path) as temporary:
                temporary.write_text(json_text(self.plan.to_dict()), encoding="utf-8")

    def _await_plan(self) -> bool:
        """Wait until the main process has claimed the folder (it is the one to refuse); False where all is over."""
        until = time.monotonic() + PATIENCE
        while not self._plan_stands():
            if self._over():
                return False
            if time.monotonic() > until:
                raise UserError(
                    f"the main process has not begun these {self._what} in {self.folder}",
                    "see its error, and start again",
                )
            time.sleep(POLL)
        return True

    def _plan_stands(self) -> bool:
        try:
            old = read_plan(self.folder)
        except UserError:
            # The main process is replacing it.
            return False
        return old is not None and not differences(old, self.plan.to_dict())

    @property
    def own(self) -> range:
        """The shards of this process."""
        return range(self.process.rank, self.plan.shards, self.process.size)

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return not self.missing(range(self.plan.shards))

    def missing(self, among: Sequence[int]) -> list[int]:
        """Return the shards that are not there, or not whole."""
        return [i for i in among if not self._is_done(i)]

    def _is_done(self, shard: int) -> bool:
        if shard in self._done:
            return True
        try:
            tally = self._kind(**read_json(self._tally_file(shard), "a tally"))
            whole = sha256(self.file(shard)) == tally.sha256
        except (UserError, OSError, TypeError):
            return False
        if whole:
            self._done[shard] = tally
        return whole

    def file(self, shard: int) -> Path:
        """Return where a shard lies."""
        return self.folder / DATA / self.plan.name(shard)

    def _tally_file(self, shard: int) -> Path:
        return self.folder / TALLY / f"{shard:05d}.json"

    def put(self, shard: int, write: Callable[[Path], object], **counts: Any) -> None:
        """Put what ``write`` writes into the place of a shard, with its ``counts`` (fields of the tally).

        Raises
        ------
        UserError
            Where the disk is full or the place cannot be written.
        """
        with replacing(self.file(shard), self.workplace.path) as temporary:
            write(temporary)
            tally = self._kind(sha256=sha256(temporary), **counts)
            with replacing(self._tally_file(shard), self.workplace.path) as beside:
                beside.write_text(json_text(vars(tally)), encoding="utf-8")
        self._done[shard] = tally

    def tallies(self) -> list[T]:
        """Return the counts of every shard; all must be there."""
        return [self._done[i] for i in range(self.plan.shards)]

    def wait(self, longest: float, progress: Callable[[int], object]) -> None:
        """Wait for the shards of the other processes; ``progress`` is told how many have come.

        Parameters
        ----------
        longest : float
            Seconds of this process's slowest shard: the others get twenty times that, and ten minutes.
        progress : callable

        Raises
        ------
        UserError
            If none has come for that long.
        """
        missing = self.missing(range(self.plan.shards))
        since = time.monotonic()
        while missing:
            time.sleep(POLL)
            left = self.missing(missing)
            if len(left) < len(missing):
                progress(len(missing) - len(left))
                missing, since = left, time.monotonic()
            elif time.monotonic() - since > PATIENCE + 20 * longest:
                names = ", ".join(self.plan.name(i) for i in missing[:3])
                raise UserError(
                    f"other processes have not written {len(missing)} shards ({names}, …)",
                    "run the same command again: it does what is missing",
                )


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
