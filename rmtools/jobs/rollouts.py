"""Collecting rollouts as a job (rmtools.jobs.job): a shard is a block of prompts, ``metadata.json`` is written last.

Once all shards are there, any process may write the metadata: all would write the same.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rmtools.codec import to_json
from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import META_FILE, RolloutMetadata, metadata_text, read_metadata
from rmtools.data.shards import shard_name, write_rows
from rmtools.data.tasks import Task
from rmtools.errors import UserError
from rmtools.jobs.job import Bar, Blocks, Job, Tick, block_generator
from rmtools.jobs.processes import Process
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepSettings


@dataclass(frozen=True)
class RolloutSettings:
    """Everything the rows depend on.

    Attributes
    ----------
    verb : str
        The command: the same seed draws other rollouts for an audit than for training.
    policy, policy_fingerprint, device : str
        Name, hash of the weights ("" for a hub name), kind of device: random numbers differ between kinds.
    task, horizon, steps, temperature, branching, seed
        As in the metadata.
    task_sha256 : str
        Hash of the code of a user's own task, else "": edited code gives other rewards.
    prompts, prompts_sha256, removed_prompts : int, str, int
        Number, hash of all of them and of their right answers, number drawn without a solution and left out.
    batch_size, shard_size : int
        Prompts decoded together, and prompts of a shard.
    format : {"parquet", "jsonl"}
    """

    verb: str
    policy: str
    policy_fingerprint: str
    device: str
    task: str
    task_sha256: str
    horizon: int
    steps: StepSettings
    temperature: float
    branching: Branching
    seed: int
    prompts: int
    prompts_sha256: str
    removed_prompts: int
    batch_size: int
    shard_size: int
    format: str

    @property
    def shards(self) -> Blocks:
        """The prompts of each shard."""
        return Blocks(self.prompts, self.shard_size, lambda i, count: shard_name(i, count, self.format))


@dataclass(frozen=True)
class ShardCounts:
    """Counts of one shard; ``reward`` is the sum over its rows."""

    rows: int
    reward: float
    generated_tokens: int
    truncated_steps: int


@dataclass(frozen=True)
class Collected:
    """Finished rollouts; ``already`` if they were before this run."""

    metadata: RolloutMetadata
    mean_reward: float
    already: bool


def collect_rollouts(
    folder: Path,
    settings: RolloutSettings,
    policy: Policy,
    task: Task,
    prompts: Sequence[str],
    bar: Bar,
    process: Process = Process(),  # noqa: B008 - frozen
    overwrite: bool = False,
) -> Collected | None:
    """Collect the missing shards of this process into ``folder``; return None while those of another are missing.

    Raises
    ------
    UserError
        If the folder holds something else or rollouts of other settings, another run is at work in it, or it cannot be
        written.
    """
    job = Job(folder, settings, settings.shards, ShardCounts, process, "rollouts", also=(META_FILE,))

    def compute(shard: int, tick: Tick) -> tuple[ShardCounts, Any]:
        rng = block_generator(settings.verb, settings.seed, shard)
        collector = Collector(policy, task, settings.branching, rng)
        rows = collector.collect(prompts[settings.shards.of(shard)], settings.batch_size, tick)
        tally = collector.tally
        counts = ShardCounts(len(rows), sum(r.outcome for r in rows), tally.tokens, tally.truncated)
        return counts, lambda path: write_rows(path, [asdict(r) for r in rows])

    with job.claimed(overwrite):
        already = (folder / META_FILE).exists() and not job.missing()
        job.run(compute, f"rollouts of {len(prompts)} prompts", bar)
        counts = job.counts()
        if not counts:
            return None
        metadata = _metadata(settings, counts)
        if not _says(folder, metadata):
            job.write(folder / META_FILE, lambda path: path.write_text(metadata_text(metadata), "utf-8"))
        return Collected(metadata, sum(c.reward for c in counts) / metadata.rows, already)


def _metadata(settings: RolloutSettings, counts: Sequence[ShardCounts]) -> RolloutMetadata:
    return RolloutMetadata(
        policy=settings.policy,
        policy_fingerprint=settings.policy_fingerprint,
        task=settings.task,
        horizon=settings.horizon,
        steps=settings.steps,
        temperature=settings.temperature,
        seed=settings.seed,
        removed_prompts=settings.removed_prompts,
        generated_tokens=sum(c.generated_tokens for c in counts),
        truncated_steps=sum(c.truncated_steps for c in counts),
        branching=to_json(settings.branching),
        rows=sum(c.rows for c in counts),
        shards=settings.shards.count,
    )


def _says(folder: Path, metadata: RolloutMetadata) -> bool:
    try:
        return read_metadata(folder) == metadata
    except UserError:
        return False
