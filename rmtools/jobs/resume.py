"""Rollouts shard by shard (rmtools.jobs.sharded_job), so that a killed collection goes on where it was.

Once all shards are there, any process may write ``metadata.json``: all would write the same.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rmtools.data.collect import Tally
from rmtools.data.rollouts import META_FILE, Rollout, RolloutMetadata, read_metadata
from rmtools.data.shards import write_rows
from rmtools.errors import UserError
from rmtools.files import replacing
from rmtools.jobs.plan import Plan
from rmtools.jobs.processes import Process
from rmtools.jobs.sharded_job import SharedWork


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
        self.work = SharedWork(folder, plan, process, ShardTally, "rollouts")

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.folder / META_FILE).exists() and self.work.complete

    def write(self, shard: int, rows: Sequence[Rollout], tally: Tally) -> None:
        """Put a shard into place; raises ``UserError`` where the disk is full or the place cannot be written."""
        self.work.put(
            shard,
            lambda path: write_rows(path, [asdict(r) for r in rows]),
            rows=len(rows),
            reward=sum(r.outcome for r in rows),
            generated_tokens=tally.tokens,
            truncated_steps=tally.truncated,
        )

    def finish(self) -> Finished | None:
        """Write the metadata and return it, once every shard is there; else return None."""
        if not self.work.complete:
            return None
        tallies = self.work.tallies()
        metadata = self.plan.metadata(
            rows=sum(t.rows for t in tallies),
            tokens=sum(t.generated_tokens for t in tallies),
            truncated=sum(t.truncated_steps for t in tallies),
        )
        if not self._says(metadata):
            with replacing(self.folder / META_FILE, self.work.workplace.path) as temporary:
                temporary.write_text(metadata.to_text(), encoding="utf-8")
        return Finished(metadata, sum(t.reward for t in tallies) / metadata.rows)

    def _says(self, metadata: RolloutMetadata) -> bool:
        try:
            return read_metadata(self.folder) == metadata
        except UserError:
            return False
