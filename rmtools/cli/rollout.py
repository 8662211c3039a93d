"""``rmtools rollout``: branching rollouts of a policy, for training and for audits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmtools.cli.options import Horizon, Out, Policy, Seed, TaskName, generator

if TYPE_CHECKING:
    from rmtools.data.collect import Branching
    from rmtools.data.tasks import Task
    from rmtools.lm.policy import Policy as LoadedPolicy


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
    temperature: Annotated[float, typer.Option(help="Of the policy's sampling.")] = 1.0,
    max_step_tokens: Annotated[
        int, typer.Option(help="A step without delimiter is closed after this many tokens.")
    ] = 64,
    seed: Seed = 0,
) -> None:
    """Sample branching rollouts: trajectories, alternatives to their steps, extra completions."""
    from rmtools.data.collect import Branching
    from rmtools.data.tasks import load_task
    from rmtools.lm.policy import load_policy
    from rmtools.lm.steps import StepSettings

    branching = Branching(trajectories, children, completions)
    chosen = load_task(task or "crossing", horizon)
    source = load_policy(policy, StepSettings(chosen.delimiter, chosen.horizon, max_step_tokens), temperature)
    make_rollouts(source, chosen, prompts, branching, out, seed)


def make_rollouts(
    policy: "LoadedPolicy",
    task: "Task",
    prompts: str,
    branching: "Branching",
    out: Path,
    seed: int,
    verb: str = "rollout",
) -> None:
    """Collect rollouts with a progress bar, write them to ``out``, and print what they are."""
    import numpy as np

    from rmtools.cli.progress import progress
    from rmtools.data.collect import Collector
    from rmtools.data.prompts import check_prompts, prompts_from
    from rmtools.data.rollouts import META_FILE, RolloutMetadata, write_rollouts
    from rmtools.files import claim_folder
    from rmtools.lm.checkpoint import fingerprint

    rng = generator(verb, seed)
    found, removed = prompts_from(prompts, task, rng)
    check_prompts(found, task, policy)
    claim_folder(out, META_FILE)
    collector = Collector(policy, task, branching, rng)
    with progress(f"rollouts of {len(found)} prompts", len(found)) as tick:
        rows = collector.collect(found, progress=tick)
    tally, settings = collector.tally, policy.steps.settings
    write_rollouts(
        out,
        rows,
        RolloutMetadata(
            policy=policy.name,
            policy_fingerprint=fingerprint(policy.name),
            task=task.name,
            horizon=task.horizon,
            steps=settings,
            temperature=policy.temperature,
            seed=seed,
            removed_prompts=removed,
            generated_tokens=tally.tokens,
            truncated_steps=tally.truncated,
        ),
    )
    print(
        f"{len(rows)} trajectories of {len(found)} prompts in {out}; {removed} prompts without a solution were left "
        f"out; mean reward {np.mean([r.reward for r in rows]):.4f}; {tally.tokens} tokens, "
        f"{tally.truncated} steps cut at {settings.max_step_tokens} tokens"
    )
