"""``rmtools rollout``: branching rollouts of a policy, for training and for audits."""

from typing import Annotated

import typer

from rmtools.cli.options import Horizon, Out, Policy, Seed, TaskName


def command(
    policy: Policy,
    out: Out,
    task: TaskName = "crossing",
    prompts: Annotated[str, typer.Option(help="JSONL file, or how many to draw from the task.")] = "64",
    horizon: Horizon = None,
    trajectories: Annotated[int, typer.Option(help="Independent trajectories a prompt.")] = 8,
    children: Annotated[int, typer.Option(help="K: next steps at each prefix, the trajectory's own included.")] = 1,
    completions: Annotated[int, typer.Option(help="R: continuations from each prefix, the trajectory's own included.")] = 1,
    temperature: Annotated[float, typer.Option(help="Of the policy's sampling.")] = 1.0,
    max_step_tokens: Annotated[int, typer.Option(help="A step without delimiter is closed after this many tokens.")] = 64,
    seed: Seed = 0,
) -> None:
    """Sample branching rollouts: trajectories, alternatives to their steps, extra completions."""
    import numpy as np

    from rmtools.cli.progress import progress
    from rmtools.data.collect import Branching, Collector
    from rmtools.data.prompts import prompts_from
    from rmtools.data.rollouts import META_FILE, RolloutMetadata, write_rollouts
    from rmtools.data.tasks import load_task
    from rmtools.files import claim_folder
    from rmtools.lm.checkpoint import fingerprint
    from rmtools.lm.policy import load_policy
    from rmtools.lm.steps import StepSettings

    branching = Branching(trajectories, children, completions)
    rng = np.random.default_rng(seed)
    chosen = load_task(task or "crossing", horizon)
    found, removed = prompts_from(prompts, chosen, rng)
    settings = StepSettings(chosen.delimiter, chosen.horizon, max_step_tokens)
    model = load_policy(policy, settings, temperature)
    claim_folder(out, META_FILE)
    collector = Collector(model, chosen, branching, rng)
    with progress(f"rollouts of {len(found)} prompts", len(found)) as tick:
        rows = collector.collect(found, progress=tick)
    tally = collector.tally
    write_rollouts(out, rows, RolloutMetadata(
        policy=policy, policy_fingerprint=fingerprint(policy), task=chosen.name, horizon=chosen.horizon,
        steps=settings, temperature=temperature, seed=seed, removed_prompts=removed,
        generated_tokens=tally.tokens, truncated_steps=tally.truncated))
    print(f"{len(rows)} trajectories of {len(found)} prompts in {out}; {removed} prompts without a solution were left "
          f"out; mean reward {np.mean([r.reward for r in rows]):.4f}; {tally.tokens} tokens, "
          f"{tally.truncated} steps cut at {max_step_tokens} tokens")
