"""``rmtools rollout``: branching rollouts of a policy, for training and for audits."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rmtools.cli.options import (
    Children,
    Completions,
    Device,
    Dtype,
    FewShot,
    FormatName,
    Horizon,
    Out,
    Policy,
    Seed,
    System,
    TaskName,
    Trajectories,
    data_option,
    model_option,
    output_option,
    unescaped,
    work_option,
)
from rmtools.cli.server import (
    BATCH,
    CONCURRENCY,
    Concurrency,
    ServerBatch,
    ServerModel,
    ServerSeed,
    ServerUrl,
    Tokenizer,
    policy_source,
    summary,
)
from rmtools.errors import UserError
from rmtools.jobs.processes import Process, this_process

if TYPE_CHECKING:
    from rmtools.cli.options import DeviceName, DtypeName
    from rmtools.data.collect import Branching
    from rmtools.data.tasks import Task
    from rmtools.jobs.rollouts import Sharding
    from rmtools.lm.prompt_format import AskedFormat, PromptFormat
    from rmtools.lm.protocol import StepPolicy
    from rmtools.lm.sampling_law import SamplingLaw
    from rmtools.lm.steps import StepSettings, StepTokenizer

Depths = Annotated[
    str,
    data_option(
        metavar="all|N",
        help="Number of depths of a trajectory at which children and completions are drawn, or all. The depths are "
        "drawn for each trajectory beforehand, among all that a solution may have.",
    ),
]
StepEnds = Annotated[
    str | None,
    model_option(
        "--steps",
        metavar="newline|paragraph|sentence|tokens=K",
        help="What ends a step: a line, an empty line, [.!?] and white space, or K tokens. Blank lines are no steps. "
        "Default: the task's.",
    ),
]
Stop = Annotated[
    list[str] | None,
    model_option(
        "--stop", help=r"Text that ends a solution, \n and \t as escapes; may be given several times."
    ),
]
DELIMITERS = {"newline": "\n", "paragraph": "\n\n"}
Format = Literal["parquet", "jsonl"]
BatchSize = Annotated[
    int | None,
    work_option(
        min=1,
        help="Prompts decoded together. Default: on the CPU 32, fewer of a large model; on a GPU as many as fit into "
        "half of the memory that the weights leave, if every solution were as long as the settings allow.",
    ),
]
ShardSize = Annotated[
    int | None,
    work_option(
        min=1,
        help="Prompts of a shard, the most that an interruption loses. Default: 64, or what a slow CPU does in five minutes.",
    ),
]
Delimiter = Annotated[
    str | None,
    model_option(
        help=r"Text that ends a step, \n and \t as escapes: '\n\n' for a policy that writes paragraphs. Default: the "
        "task's."
    ),
]


def command(
    out: Out,
    policy: Policy = None,
    task: TaskName = "crossing",
    horizon: Horizon = None,
    temperature: Annotated[float, model_option(help="Sampling temperature of the policy.")] = 1.0,
    top_k: Annotated[
        int, model_option("--top-k", min=0, help="Draw among the k most probable tokens; 0: among all.")
    ] = 0,
    top_p: Annotated[
        float, model_option("--top-p", help="Then among the most probable ones that reach this mass.")
    ] = 1.0,
    min_p: Annotated[
        float,
        model_option(
            "--min-p", help="Then among those of at least this fraction of the largest probability."
        ),
    ] = 0.0,
    steps: StepEnds = None,
    delimiter: Delimiter = None,
    stop: Stop = None,
    max_step_tokens: Annotated[
        int | None,
        model_option(
            min=1,
            help="Close a step after this many tokens if nothing else did. Default: 256, or K of --steps tokens=K.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    prompts: Annotated[str, data_option(help="JSONL file, or how many to draw from the task.")] = "64",
    prompt_format: FormatName = "auto",
    system: System = None,
    few_shot: FewShot = None,
    trajectories: Trajectories = 8,
    children: Children = 1,
    completions: Completions = 1,
    depths: Depths = "all",
    form: Annotated[Format, output_option("--format", help="File format of the shards.")] = "parquet",
    overwrite: Annotated[
        bool, output_option("--overwrite", help="Replace rollouts made with other arguments.")
    ] = False,
    batch_size: BatchSize = None,
    shard_size: ShardSize = None,
    server: ServerUrl = None,
    server_model: ServerModel = None,
    concurrency: Concurrency = CONCURRENCY,
    server_batch: ServerBatch = BATCH,
    server_seed: ServerSeed = False,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
) -> None:
    """Sample branching rollouts: trajectories, alternatives to their steps, extra completions.

    Rerun an interrupted command to resume. Under `accelerate launch` the processes share the work; the rows are the same.
    """
    from rmtools.data.collect import Branching
    from rmtools.data.prompts import asked_format, prompts_check, require_prompts
    from rmtools.data.tasks import load_task
    from rmtools.files import require_no_file, require_writable
    from rmtools.jobs.rollouts import Sharding
    from rmtools.lm.sampling_law import SamplingLaw

    options = (server, server_model, concurrency, server_batch, server_seed, tokenizer)
    source = policy_source(policy, options, seed, needed=True)
    chosen = load_task(task or "crossing", horizon)
    asked = asked_format(prompt_format, system and unescaped(system), few_shot, chosen.delimiter)
    branching = Branching(trajectories, children, completions, _depths(depths, chosen.horizon))
    settings = step_settings(chosen, steps, delimiter, stop, max_step_tokens)
    law = SamplingLaw(temperature, top_k, top_p, min_p)
    require_prompts(prompts)
    require_no_file(out)
    require_writable(out)
    check = prompts_check(prompts, chosen, asked)
    if callable(source):
        loaded: StepPolicy = source(settings, law, check=check)
    else:
        loaded = _in_this_process(str(source), settings, law, device, dtype, check)
    sharding = Sharding(batch_size, shard_size, form, overwrite)
    make_rollouts(loaded, chosen, prompts, branching, out, seed, sharding, this_process(), asked=asked)


def _in_this_process(
    name: str,
    settings: "StepSettings",
    law: "SamplingLaw",
    device: "DeviceName",
    dtype: "DtypeName",
    check: "Callable[[StepTokenizer, int | None], object]",
) -> "StepPolicy":
    """Load the policy of ``--policy``, and print its precision."""
    from rmtools.cli.device import device_for, print_precision
    from rmtools.lm.policy import load_policy

    if not this_process().main:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    loaded = load_policy(name, settings, law, device_for(device), dtype, check)
    print_precision(policy=loaded)
    return loaded


def step_settings(
    task: "Task",
    steps: str | None,
    delimiter: str | None,
    stop: list[str] | None,
    max_step_tokens: int | None,
) -> "StepSettings":
    """Return what the options say of the end of a step and of a solution.

    Raises ``UserError`` for an unknown ``--steps``, two options that say the same, or another delimiter than the task's.
    """
    from rmtools.lm.steps import MAX_STEP_TOKENS, StepSettings

    stops = tuple(unescaped(text) for text in stop or ())
    most = MAX_STEP_TOKENS if max_step_tokens is None else max_step_tokens
    if steps is not None and delimiter is not None:
        raise UserError("--steps and --delimiter both say what ends a step", "pass one of them")
    if steps is None or steps in DELIMITERS:
        text = _delimiter(task, delimiter if steps is None else DELIMITERS[steps])
        return StepSettings(text, task.horizon, most, stop=stops)
    kind, _, size = steps.partition("=")
    if steps == "sentence":
        return StepSettings(task.delimiter, task.horizon, most, "sentence", stops)
    if kind == "tokens" and size.isdigit() and int(size) >= 1:
        if max_step_tokens is not None:
            raise UserError(
                f"--steps {steps} and --max-step-tokens {max_step_tokens} both say how many tokens a step has",
                "pass one of them",
            )
        return StepSettings(task.delimiter, task.horizon, int(size), "tokens", stops)
    raise UserError(
        f"--steps must be newline, paragraph, sentence or tokens=K, got {steps!r}", "--steps tokens=64, say"
    )


def _delimiter(task: "Task", given: str | None) -> str:
    """Return what ends a step; raise ``UserError`` if it is empty, or the task's steps end otherwise."""
    from rmtools.data.tasks.protocol import ExactTask

    if given is None:
        return task.delimiter
    text = unescaped(given)
    if not text:
        raise UserError("--delimiter is empty: no step would end", r"pass --delimiter '\n', say")
    if text != task.delimiter and isinstance(task, ExactTask):
        raise UserError(
            f"--delimiter is {text!r}, the steps of task {task.name} end with {task.delimiter!r}",
            "leave --delimiter out, or use a task whose answers are free text",
        )
    return text


def _depths(text: str, horizon: int) -> "int | Literal['all']":
    if text == "all":
        return "all"
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--depths must be all or a number of at least 1, got {text}", "--depths 4, say")
    if int(text) > horizon:
        raise UserError(
            f"--depths is {int(text)}, solutions have at most {horizon} steps",
            f"pass --depths all, or at most {horizon}",
        )
    return int(text)


def make_rollouts(
    policy: "StepPolicy",
    task: "Task",
    prompts: str,
    branching: "Branching",
    out: Path,
    seed: int,
    sharding: "Sharding | None" = None,
    process: Process = Process(),  # noqa: B008 - frozen
    verb: str = "rollout",
    asked: "AskedFormat | None" = None,
    recorded: "PromptFormat | None" = None,
) -> None:
    """Collect the missing rollouts of ``out`` with a progress bar; print a summary.

    Shard sizes that are not given are those ``out`` was begun with, or else the defaults. Prompts are rendered in the format
    that is ``asked`` for, or ``recorded`` by a checkpoint. Raises ``UserError`` if a prompt does not fit the task, or the
    format is not the checkpoint's, and as `collect_into` does.
    """
    from rmtools.cli.progress import progress
    from rmtools.data.prompts import check_prompts, enter_prompts, prompts_from
    from rmtools.jobs.job import read_plan
    from rmtools.jobs.rollouts import Sharding, collect_into, rollout_settings
    from rmtools.lm.prompt_format import AskedFormat
    from rmtools.lm.steps import MOST_CUT
    from rmtools.seeds import generator
    from rmtools.serving.server import ServerPolicy

    sharding = sharding or Sharding()
    given, removed = prompts_from(prompts, task, generator(verb, seed))
    asked, tokenizer = asked or AskedFormat(), policy.steps.tokenizer
    found, task, form = enter_prompts(given, task, asked, tokenizer, recorded, source=prompts)
    said = asked.chosen(form, policy.name, "--prompt-format raw")
    if said and recorded is None and process.main:
        print(said, file=sys.stderr)
    check_prompts(found, task, policy)
    old = (None if sharding.overwrite else read_plan(out)) or {}
    sharding = replace(
        sharding,
        batch_size=sharding.batch_size or old.get("batch_size"),
        shard_size=sharding.shard_size or old.get("shard_size"),
    )
    settings = rollout_settings(policy, task, found, branching, seed, sharding, removed, verb)
    settings = replace(settings, prompt_format=form)
    done = collect_into(out, settings, policy, task, found, progress, process, sharding.overwrite)
    if process.main and isinstance(policy, ServerPolicy):
        print(summary(policy))
    if process.main and done is not None:
        print(
            f"{'finished already; ' if done.already else ''}{done.metadata.rows} trajectories of {len(found)} prompts in "
            f"{out}; {removed} prompts without a solution were left out; mean reward {done.mean_reward:.4f}; "
            f"{done.metadata.generated_tokens} tokens, {done.metadata.truncated_steps} of {done.steps} steps cut at "
            f"{settings.steps.max_step_tokens} tokens or at the end of the context"
        )
        if done.share_cut > MOST_CUT:
            print(
                f"warning: {done.share_cut:.1%} of the steps were cut at {settings.steps.max_step_tokens} tokens, or at the end "
                f"of the context ({getattr(policy, 'context', None) or 'not known'}), before they ended: a larger "
                "--max-step-tokens, another --steps, shorter prompts or a model with more context give whole ones",
                file=sys.stderr,
            )
