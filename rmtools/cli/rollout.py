"""``rmtools rollout``: branching rollouts of a policy, for training and for audits."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmtools.cli.options import Horizon, Out, Policy, Seed, TaskName, generator
from rmtools.errors import UserError
from rmtools.jobs.processes import Process, this_process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rmtools.data.collect import Branching
    from rmtools.data.tasks import Task
    from rmtools.jobs.plan import Plan
    from rmtools.jobs.resume import ShardedRollouts
    from rmtools.lm.policy import Policy as LoadedPolicy

Depths = Annotated[
    str,
    typer.Option(
        help="At how many depths of a trajectory children and completions are drawn: all, or a number. Which ones is "
        "drawn for each trajectory beforehand, among all depths a solution may have."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Prompts decoded together. Default: 32 on the CPU; on a GPU as many as half of the memory that the weights "
        "leave takes, were every solution as long as the settings allow."
    ),
]
ShardSize = Annotated[
    int | None,
    typer.Option(
        help="Prompts of a shard, the most that an interruption loses. Default: 64, or the batch if larger."
    ),
]


def command(
    policy: Policy,
    out: Out,
    task: TaskName = "crossing",
    prompts: Annotated[str, typer.Option(help="JSONL file, or how many to draw from the task.")] = "64",
    horizon: Horizon = None,
    trajectories: Annotated[int, typer.Option(help="Independent trajectories a prompt.")] = 8,
    children: Annotated[
        int, typer.Option(help="K: next steps at each prefix, the trajectory's own included.")
    ] = 1,
    completions: Annotated[
        int, typer.Option(help="R: continuations from each prefix, the trajectory's own included.")
    ] = 1,
    depths: Depths = "all",
    temperature: Annotated[float, typer.Option(help="Of the policy's sampling.")] = 1.0,
    delimiter: Annotated[
        str | None,
        typer.Option(
            help=r"What ends a step, \n and \t as escapes: '\n\n' for a policy that writes paragraphs. Default: the task's."
        ),
    ] = None,
    max_step_tokens: Annotated[
        int, typer.Option(help="A step without delimiter is closed after this many tokens.")
    ] = 64,
    batch_size: BatchSize = None,
    shard_size: ShardSize = None,
    form: Annotated[str, typer.Option("--format", help="Of the shards: parquet or jsonl.")] = "parquet",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace rollouts that were made with other arguments.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Sample branching rollouts: trajectories, alternatives to their steps, extra completions.

    Interrupted, the same command goes on where it was. Under `accelerate launch` the processes share the work; the rows
    are the same.
    """
    from rmtools.cli.loading import device_of_process
    from rmtools.data.collect import Branching
    from rmtools.data.shards import check_format
    from rmtools.data.tasks import load_task
    from rmtools.lm.policy import load_policy
    from rmtools.lm.steps import StepSettings

    process = this_process()
    branching = Branching(trajectories, children, completions, number_of_depths(depths))
    check_format(form)
    chosen = load_task(task or "crossing", horizon)
    if branching.depths is not None and branching.depths > chosen.horizon:
        raise UserError(
            f"--depths is {branching.depths}, solutions have at most {chosen.horizon} steps",
            f"pass --depths all, or at most {chosen.horizon}",
        )
    if not process.main:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    settings = StepSettings(delimiter_for(chosen, delimiter), chosen.horizon, max_step_tokens)
    source = load_policy(policy, settings, temperature, device_of_process())
    sharding = Sharding(batch_size, shard_size, form, overwrite)
    make_rollouts(source, chosen, prompts, branching, out, seed, sharding, process)


@dataclass(frozen=True)
class Sharding:
    """How the work is cut: prompts of a batch and of a shard (None: the defaults), format, replace other rollouts."""

    batch_size: int | None = None
    shard_size: int | None = None
    form: str = "parquet"
    overwrite: bool = False


def delimiter_for(task: "Task", given: str | None) -> str:
    """Return what ends a step; raises ``UserError`` on an empty one, and where the task's steps end otherwise."""
    from rmtools.data.tasks.protocol import ExactTask

    if given is None:
        return task.delimiter
    text = given.replace("\\n", "\n").replace("\\t", "\t")
    if not text:
        raise UserError("--delimiter is empty: no step would end", r"pass --delimiter '\n', say")
    if text != task.delimiter and isinstance(task, ExactTask):
        raise UserError(
            f"--delimiter is {text!r}, the steps of task {task.name} end with {task.delimiter!r}",
            "leave --delimiter out, or use a task whose answers are free text",
        )
    return text


def number_of_depths(text: str) -> int | None:
    """Return how many depths are branched at, None for all; raises ``UserError`` on anything else."""
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--depths must be all or a number of at least 1, got {text}", "--depths 4, say")
    return int(text)


def make_rollouts(
    policy: "LoadedPolicy",
    task: "Task",
    prompts: str,
    branching: "Branching",
    out: Path,
    seed: int,
    sharding: Sharding = Sharding(),
    process: Process = Process(),  # noqa: B008 - frozen
    verb: str = "rollout",
) -> None:
    """Collect what is missing of the rollouts in ``out`` with a progress bar; print what they are.

    Raises
    ------
    UserError
        If a prompt is not the task's, ``out`` holds something else or rollouts of other arguments, or cannot be written.
    """
    from rmtools.data.prompts import check_prompts, prompts_from
    from rmtools.jobs.resume import ShardedRollouts

    found, removed = prompts_from(prompts, task, generator(verb, seed))
    check_prompts(found, task, policy)
    plan = plan_for(policy, task, found, removed, branching, out, seed, sharding, verb)
    rollouts = ShardedRollouts(out, plan, process)
    with rollouts.work.claimed(sharding.overwrite):
        already = rollouts.finished
        longest = draw_missing(rollouts, policy, task, found)
        if process.main:
            others = rollouts.work.missing(range(plan.shards))
            with bar_if(bool(others), "waiting for shards of other processes", len(others)) as tick:
                rollouts.work.wait(longest, tick)
        finished = rollouts.finish()
    if process.main and finished is not None:
        what = finished.metadata
        print(
            f"{'finished already; ' if already else ''}{what.rows} trajectories of {plan.prompts} prompts in {out}; "
            f"{removed} prompts without a solution were left out; mean reward {finished.mean_reward:.4f}; "
            f"{what.generated_tokens} tokens, {what.truncated_steps} steps cut at {plan.steps.max_step_tokens} tokens"
        )


def plan_for(
    policy: "LoadedPolicy",
    task: "Task",
    prompts: "Sequence[str]",
    removed: int,
    branching: "Branching",
    out: Path,
    seed: int,
    sharding: Sharding,
    verb: str,
) -> "Plan":
    """Return the plan; sizes that are not given are those ``out`` was begun with, or else the defaults."""
    from rmtools.data.collect import prompts_per_batch
    from rmtools.data.tasks.custom import code_hash
    from rmtools.jobs.plan import Plan, hash_of, read_plan
    from rmtools.lm.checkpoint import fingerprint

    old = (None if sharding.overwrite else read_plan(out)) or {}
    batch = sharding.batch_size
    if batch is None:
        batch = old.get("batch_size") or prompts_per_batch(policy, branching, prompts)
    shard = sharding.shard_size
    if shard is None:
        shard = old.get("shard_size") or max(64, batch)
    return Plan(
        verb=verb,
        policy=policy.name,
        policy_fingerprint=fingerprint(policy.name),
        device=policy.device.type,
        task=task.name,
        task_sha256=code_hash(task),
        horizon=task.horizon,
        steps=policy.steps.settings,
        temperature=policy.temperature,
        branching=branching,
        seed=seed,
        prompts=len(prompts),
        prompts_sha256=hash_of(prompts, [task.reference(p) for p in prompts]),
        removed_prompts=removed,
        batch_size=batch,
        shard_size=shard,
        format=sharding.form,
    )


def draw_missing(
    rollouts: "ShardedRollouts", policy: "LoadedPolicy", task: "Task", prompts: "Sequence[str]"
) -> float:
    """Draw this process's missing shards; return the seconds of the slowest, 0 without any."""
    from rmtools.data.collect import Collector
    from rmtools.jobs.plan import shard_generator

    plan, process, longest = rollouts.plan, rollouts.work.process, 0.0
    missing = rollouts.work.missing(rollouts.work.own)
    blocks = [prompts[plan.block(i)] for i in missing]
    label = f"rollouts of {plan.prompts} prompts" + (
        f", process 0 of {process.size}" if process.size > 1 else ""
    )
    with bar_if(process.main and bool(missing), label, sum(map(len, blocks))) as tick:
        for shard, block in zip(missing, blocks, strict=True):
            start = time.monotonic()
            rng = shard_generator(plan.verb, plan.seed, shard)
            collector = Collector(policy, task, plan.branching, rng)
            rows = collector.collect(block, plan.batch_size, tick)
            rollouts.write(shard, rows, collector.tally)
            longest = max(longest, time.monotonic() - start)
    return longest


@contextlib.contextmanager
def bar_if(shown: bool, label: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar, or nothing."""
    from rmtools.cli.progress import progress

    if not shown:
        yield lambda n: None
        return
    with progress(label, total) as tick:
        yield tick
