"""Rollouts shard by shard, so that a killed collection goes on where it was, and several processes share one.

What the processes share is the folder. ``plan.json`` is there before the first shard. Shard i is drawn by process
i mod size, from a generator of its own, and moved into place whole; before it, a small file ``tally/00000.json`` with
its hash and its counts. A shard counts as done when the hash fits, so whatever a kill or a bad disk left behind is
drawn again and comes out the same. Unfinished files lie in ``.partial/RANK``, see
rmtools.data.workplace. Once all
shards are there, any process may write ``metadata.json``: all would write the same.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rmtools.data.collect import Tally
from rmtools.data.plan import Plan, differences, read_plan
from rmtools.data.rollouts import META_FILE, Rollout, RolloutMetadata, read_metadata
from rmtools.data.shards import DATA, PLAN_FILE, write_rows
from rmtools.data.workplace import PARTIAL, Workplace, remove
from rmtools.errors import UserError
from rmtools.files import claim_folder, json_text, read_json, replacing
from rmtools.processes import Process

TALLY = "tally"
POLL = 0.2
# How long the main process waits for another's next shard, in seconds: a shard of its own may have taken this long.
PATIENCE = 600.0


@dataclass(frozen=True)
class ShardTally:
    """Counts of one shard, and the hash of its file."""

    rows: int
    reward: float
    generated_tokens: int
    truncated_steps: int
    sha256: str


@dataclass(frozen=True)
class Finished:
    """All shards together."""

    metadata: RolloutMetadata
    mean_reward: float


class ShardedRollouts:
    """A folder of rollouts in the making.

    Parameters
    ----------
    folder : Path
    plan : Plan
    process : Process
        Which of the processes this one is.
    """

    def __init__(self, folder: Path, plan: Plan, process: Process) -> None:
        self.folder = folder
        self.plan = plan
        self.process = process
        self.workplace = Workplace(folder, process)
        self._done: dict[int, ShardTally] = {}

    @contextlib.contextmanager
    def claimed(self, overwrite: bool = False) -> Iterator[None]:
        """Hold the folder for this plan while rollouts are drawn; what is unfinished is removed before and after.

        Parameters
        ----------
        overwrite : bool
            Remove rollouts of another plan instead of refusing.

        Raises
        ------
        UserError
            If it holds something else or rollouts of another plan, another run is at work on it, or it cannot be
            written.
        """
        if self.process.main:
            claim_folder(self.folder, PLAN_FILE, PARTIAL)
        else:
            self._await_plan()
        with self.workplace.held():
            if self.process.main:
                self._begin(overwrite)
            yield

    def _begin(self, overwrite: bool) -> None:
        old = read_plan(self.folder)
        changed = differences(old, self.plan.to_dict()) if old is not None else []
        if changed and not overwrite:
            raise UserError(
                f"{self.folder} holds rollouts that were begun with other arguments: {', '.join(changed)}",
                "choose another --out, pass the same arguments to go on, or --overwrite to replace them",
            )
        if changed:
            self.workplace.check_alone()
            # The plan goes last: a kill in between leaves a folder that is still refused or overwritten.
            for name in (META_FILE, DATA, TALLY, PLAN_FILE):
                remove(self.folder / name)
        if changed or old is None:
            with replacing(self.folder / PLAN_FILE, self.workplace.path) as temporary:
                temporary.write_text(json_text(self.plan.to_dict()), encoding="utf-8")

    def _await_plan(self) -> None:
        """Wait until the main process has claimed the folder; it is the one to refuse."""
        until = time.monotonic() + PATIENCE
        while not self._plan_stands():
            if time.monotonic() > until:
                raise UserError(
                    f"the main process has not begun these rollouts in {self.folder}",
                    "see its error, and start again",
                )
            time.sleep(POLL)

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
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.folder / META_FILE).exists() and not self.missing(range(self.plan.shards))

    def missing(self, among: Sequence[int]) -> list[int]:
        """Return the shards that are not there, or not whole."""
        return [i for i in among if not self._is_done(i)]

    def _is_done(self, shard: int) -> bool:
        if shard in self._done:
            return True
        path = self.folder / DATA / self.plan.name(shard)
        try:
            tally = ShardTally(**read_json(self._tally_file(shard), "a tally"))
            whole = sha256(path) == tally.sha256
        except (UserError, OSError, TypeError):
            return False
        if whole:
            self._done[shard] = tally
        return whole

    def _tally_file(self, shard: int) -> Path:
        return self.folder / TALLY / f"{shard:05d}.json"

    def write(self, shard: int, rows: Sequence[Rollout], tally: Tally) -> None:
        """Put a shard into place; raises ``UserError`` where the disk is full or the place cannot be written."""
        with replacing(self.folder / DATA / self.plan.name(shard), self.workplace.path) as temporary:
            write_rows(temporary, [asdict(r) for r in rows])
            reward = sum(r.outcome for r in rows)
            counts = ShardTally(len(rows), reward, tally.tokens, tally.truncated, sha256(temporary))
            with replacing(self._tally_file(shard), self.workplace.path) as beside:
                beside.write_text(json_text(asdict(counts)), encoding="utf-8")
        self._done[shard] = counts

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

    def finish(self) -> Finished | None:
        """Write the metadata and return it, once every shard is there; else return None."""
        if self.missing(range(self.plan.shards)):
            return None
        tallies = [self._done[i] for i in range(self.plan.shards)]
        metadata = self.plan.metadata(
            rows=sum(t.rows for t in tallies),
            tokens=sum(t.generated_tokens for t in tallies),
            truncated=sum(t.truncated_steps for t in tallies),
        )
        if not self._says(metadata):
            with replacing(self.folder / META_FILE, self.workplace.path) as temporary:
                temporary.write_text(metadata.to_text(), encoding="utf-8")
        return Finished(metadata, sum(t.reward for t in tallies) / metadata.rows)

    def _says(self, metadata: RolloutMetadata) -> bool:
        try:
            return read_metadata(self.folder) == metadata
        except UserError:
            return False


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
