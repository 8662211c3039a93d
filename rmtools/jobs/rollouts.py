"""Collecting rollouts as a job (rmtools.jobs.job): a shard is a block of prompts, ``metadata.json`` is written last.

Once all shards are there, any process may write the metadata: all would write the same.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rmtools.codec import to_json
from rmtools.data.collect import Branching, Collector, prompts_per_batch
from rmtools.data.load import load_rollouts
from rmtools.data.prompts import (
    Prompt,
    asked_format,
    check_before_loading,
    check_prompts,
    drawn_prompts,
    enter_prompts,
    given_prompts,
)
from rmtools.data.rollouts import META_FILE, Rollout, RolloutMetadata, Rollouts, metadata_text, read_metadata
from rmtools.data.shards import shard_name, write_rows
from rmtools.data.tasks import RenderedTask, Task, load_task
from rmtools.errors import UserError
from rmtools.jobs.job import Bar, Blocks, Job, Tick, drawn_from
from rmtools.jobs.processes import Process
from rmtools.lm.pace import prompts_in_time
from rmtools.lm.policy import load_policy
from rmtools.lm.prompt_format import RAW, AskedFormat, PromptFormat
from rmtools.lm.protocol import StepPolicy
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.steps import MAX_STEP_TOKENS, MOST_CUT, StepSettings, StepTokenizer
from rmtools.particles.arguments import check_count, check_seed
from rmtools.seeds import block_generator, generator
from rmtools.serving.server import ServerPolicy

MOST_IN_SHARD = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutSettings:
    """Everything the rows depend on.

    Attributes
    ----------
    verb : str
        The command: the same seed draws other rollouts for an audit than for training.
    policy, policy_fingerprint, device : str
        Name, hash of the weights ("" for a hub name), kind of device: random numbers differ between kinds.
    task, horizon, steps, temperature, top_k, top_p, min_p, branching, seed
        As in the metadata.
    task_sha256 : str
        Hash of the code of a user's own task, else "": edited code gives other rewards.
    prompts, prompts_sha256, removed_prompts : int, str, int
        Number, hash of all of them and of their right answers, number drawn without a solution and left out.
    batch_size, shard_size : int
        Prompts decoded together, and prompts of a shard.
    format : {"parquet", "jsonl"}
    prompt_format : PromptFormat
    dtype : str
        Precision of the policy's weights.
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
    top_k: int
    top_p: float
    min_p: float
    branching: Branching
    seed: int
    prompts: int
    prompts_sha256: str
    removed_prompts: int
    batch_size: int
    shard_size: int
    format: str
    prompt_format: PromptFormat = RAW
    dtype: str = ""

    @property
    def shards(self) -> Blocks:
        """The prompts of each shard."""
        return Blocks(self.prompts, self.shard_size, lambda i, count: shard_name(i, count, self.format))


@dataclass(frozen=True)
class Sharding:
    """How the work is cut: prompts of a batch and of a shard (None: the defaults), format, replace other rollouts."""

    batch_size: int | None = None
    shard_size: int | None = None
    form: str = "parquet"
    overwrite: bool = False


@dataclass(frozen=True)
class ShardCounts:
    """Counts of one shard; ``reward`` is the sum over its rows."""

    rows: int
    reward: float
    generated_tokens: int
    truncated_steps: int
    steps: int


@dataclass(frozen=True)
class Collected:
    """Finished rollouts; ``steps``: how many were drawn, branches included; ``already`` if they were before this run."""

    metadata: RolloutMetadata
    mean_reward: float
    steps: int
    already: bool

    @property
    def share_cut(self) -> float:
        """Share of the steps that the length limit closed."""
        return self.metadata.truncated_steps / max(1, self.steps)


def usual_shard(policy: StepPolicy, branching: Branching, batch: int) -> int:
    """Return the default number of prompts of a shard: 64, or a larger batch; fewer on a slow machine, `rmtools.lm.pace`."""
    most = max(MOST_IN_SHARD, batch)
    return min(most, prompts_in_time([policy], branching.tokens(policy.steps.settings), batch, policy.device))


def rollout_settings(
    policy: StepPolicy,
    task: Task,
    prompts: Sequence[str],
    branching: Branching,
    seed: int,
    sharding: Sharding = Sharding(),
    removed: int = 0,
    verb: str = "rollout",
) -> RolloutSettings:
    """Return the settings for ``prompts``; ``removed`` is the number drawn without a solution and left out."""
    batch = sharding.batch_size or prompts_per_batch(policy, branching, prompts)
    return RolloutSettings(
        verb=verb,
        **drawn_from(policy, task, prompts, seed),
        branching=branching,
        removed_prompts=removed,
        batch_size=batch,
        shard_size=sharding.shard_size or usual_shard(policy, branching, batch),
        format=sharding.form,
    )


def collect_into(
    folder: Path,
    settings: RolloutSettings,
    policy: StepPolicy,
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
        rows, counts = collect_shard(settings, policy, task, prompts, shard, tick)
        return counts, lambda path: write_rows(path, [asdict(r) for r in rows])

    with job.claimed(overwrite):
        already = (folder / META_FILE).exists() and not job.missing()
        job.run(compute, f"rollouts of {len(prompts)} prompts", bar)
        counts = job.counts()
        if not counts:
            return None
        metadata = metadata_of(settings, counts, policy)
        if not _says(folder, metadata):
            job.write(folder / META_FILE, lambda path: path.write_text(metadata_text(metadata), "utf-8"))
        reward = sum(c.reward for c in counts) / metadata.rows
        return Collected(metadata, reward, sum(c.steps for c in counts), already)


def collect_shard(
    settings: RolloutSettings, policy: StepPolicy, task: Task, prompts: Sequence[str], shard: int, tick: Tick
) -> tuple[list[Rollout], ShardCounts]:
    """Return the rows of one shard, the same whoever collects it."""
    rng = block_generator(settings.verb, settings.seed, shard)
    collector = Collector(policy, task, settings.branching, rng)
    rows = collector.collect(prompts[settings.shards.of(shard)], settings.batch_size, tick)
    if isinstance(task, RenderedTask):
        rows = [replace(row, question=task.question(row.prompt)) for row in rows]
    tally = collector.tally
    reward = sum(r.outcome for r in rows)
    return rows, ShardCounts(len(rows), reward, tally.tokens, tally.truncated, tally.steps)


def metadata_of(
    settings: RolloutSettings, counts: Sequence[ShardCounts], policy: StepPolicy
) -> RolloutMetadata:
    """Return the metadata of finished rollouts."""
    same = {f.name for f in fields(RolloutMetadata)} & {f.name for f in fields(settings)} - {"branching"}
    return RolloutMetadata(
        **{name: getattr(settings, name) for name in same},
        generated_tokens=sum(c.generated_tokens for c in counts),
        truncated_steps=sum(c.truncated_steps for c in counts),
        branching=to_json(settings.branching),
        rows=sum(c.rows for c in counts),
        shards=settings.shards.count,
        server=policy.record() if isinstance(policy, ServerPolicy) else {},
    )


def _says(folder: Path, metadata: RolloutMetadata) -> bool:
    try:
        return read_metadata(folder) == metadata
    except UserError:
        return False


def collect_rollouts(
    policy: str | Path | StepPolicy,
    prompts: int | Sequence[str | Prompt | dict[str, Any]],
    *,
    task: str | Task,
    trajectories: int = 8,
    children: int = 1,
    completions: int = 1,
    depths: "int | Literal['all']" = "all",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_step_tokens: int = MAX_STEP_TOKENS,
    batch_size: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Bar | None = None,
    prompt_format: str = "auto",
    system: str | None = None,
    few_shot: str | Path | Sequence[Any] | None = None,
) -> Rollouts:
    """Collect branching rollouts of a policy: the rows of ``rmtools rollout`` for the same arguments.

    Parameters
    ----------
    policy : path or StepPolicy
        Folder, hub name, or a policy (loaded, or of `rmtools.connect`), which keeps its own temperature and step settings.
    prompts : int, or sequence of str, Prompt or dict
        How many to draw from the task; or texts, or items of `load_prompts`.
    task : str or Task
        Gives the rewards: crossing, arithmetic, gsm8k, math, answers, path/to/file.py:function, or an object.
    trajectories, children, completions, depths, temperature, top_k, top_p, min_p
        As in `rmtools.data.collect.Branching` and `rmtools.lm.sampling_law.SamplingLaw`.
    max_step_tokens : int
        A step without delimiter is closed after this many tokens.
    batch_size : int, optional
        Prompts decoded together; the rows depend on it. Default: on the CPU 32, fewer of a large model; what fits on a GPU.
    seed : int
        Seed of every draw.
    out : path, optional
        Folder to write; an interrupted call resumes there. Default: rows in memory only.
    progress : callable, optional
        ``progress(label, total)`` returns a context manager that yields a tick.
    prompt_format, system, few_shot
        How questions become prompts (docs/prompts.md): auto, raw or chat; the system turn; examples in front (a JSONL file,
        rows, or pairs of question and solution). auto: chat if the policy's tokenizer has a template.

    Raises
    ------
    UserError
        If the policy or task cannot be loaded, a prompt does not fit them, or ``out`` holds something else.

    Examples
    --------
    >>> import rmtools as rm
    >>> rollouts = rm.collect_rollouts("policy", 4, task=task, trajectories=2, children=3)
    >>> len(rollouts), len(rollouts[0].children[0]), rollouts.metadata.branching["children"]
    (8, 2, 3)
    """
    check_seed(seed)
    chosen = _task(task, policy)
    branching = Branching(trajectories, children, completions, depths)
    asked = asked_format(prompt_format, system, few_shot, chosen.delimiter)
    given, removed = _given_or_drawn(prompts, chosen, seed)
    if isinstance(policy, str | Path):
        steps = StepSettings(chosen.delimiter, chosen.horizon, max_step_tokens)
        law = SamplingLaw(temperature, top_k, top_p, min_p)
        policy = load_policy(policy, steps, law, check=partial(_check_early, given, chosen, asked))
    texts, chosen, form = enter_prompts(given, chosen, asked, policy.steps.tokenizer)
    if said := asked.chosen(form, policy.name):
        logger.warning(said)
    check_prompts(texts, chosen, policy)
    settings = rollout_settings(policy, chosen, texts, branching, seed, Sharding(batch_size), removed)
    settings = replace(settings, prompt_format=form)
    if out is None:
        return _collect_in_memory(settings, policy, chosen, texts, progress or _silent)
    done = collect_into(Path(out), settings, policy, chosen, texts, progress or _silent)
    _warn_of_cut(0.0 if done is None else done.share_cut, policy)
    return load_rollouts(out)


def _silent(label: str, total: int) -> AbstractContextManager[Tick]:
    return nullcontext(lambda n: None)


def _check_early(
    prompts: Sequence[Prompt], task: Task, asked: AskedFormat, steps: StepTokenizer, context: int | None
) -> None:
    """Raise ``UserError`` if the prompts do not fit task, format and tokenizer: before weights are read."""
    texts, task, _ = enter_prompts(prompts, task, asked, steps.tokenizer)
    check_before_loading(texts, task, steps, context)


def _warn_of_cut(share: float, policy: StepPolicy) -> None:
    """Warn if many steps were cut before they ended: their values are of pieces, and their solutions may be."""
    if share > MOST_CUT:
        logger.warning(
            "%.1f%% of the steps were cut at max_step_tokens %d, or at the end of the context (%s), before they ended: raise it, "
            "or take shorter prompts or a model with more context",
            100 * share,
            policy.steps.settings.max_step_tokens,
            getattr(policy, "context", None) or "not known",
        )


def _task(task: str | Task, policy: str | Path | StepPolicy) -> Task:
    """Return the task, if it is named with the steps of a policy that is given."""
    if not isinstance(task, str):
        return task
    if isinstance(policy, str | Path):
        return load_task(task)
    return load_task(task, policy.steps.settings.max_steps, policy.steps.settings.delimiter)


def _given_or_drawn(prompts: int | Sequence[Any], task: Task, seed: int) -> tuple[list[Prompt], int]:
    """Return prompts that are given, or drawn from the task, and the number of unsolvable ones."""
    if not isinstance(prompts, int):
        return given_prompts(prompts, task.delimiter), 0
    check_count("prompts", prompts)
    return drawn_prompts(prompts, task, generator("rollout", seed))


def _collect_in_memory(
    settings: RolloutSettings, policy: StepPolicy, task: Task, prompts: Sequence[str], bar: Bar
) -> Rollouts:
    rows: list[Rollout] = []
    counts: list[ShardCounts] = []
    with bar(f"rollouts of {len(prompts)} prompts", len(prompts)) as tick:
        for shard in range(settings.shards.count):
            own, count = collect_shard(settings, policy, task, prompts, shard, tick)
            rows += own
            counts.append(count)
    found = metadata_of(settings, counts, policy)
    _warn_of_cut(found.truncated_steps / max(1, sum(c.steps for c in counts)), policy)
    return Rollouts(rows, found)
