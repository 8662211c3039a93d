"""``rmtools audit``: how inconsistent a reward model is, and how many particles that costs."""

from pathlib import Path
from typing import Annotated

import typer

from rmtools.cli.options import Horizon, Seed, TaskName, TerminalName


def command(
    model: Annotated[
        str,
        typer.Option(
            help="Checkpoint of the value model, or implicit:FOLDER: the log ratio of that language model to the policy."
        ),
    ],
    rollouts: Annotated[
        Path | None, typer.Option(help="Folder written by `rmtools rollout`; default: made here.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Policy; default: the one the checkpoint was trained for.")
    ] = None,
    task: TaskName = None,
    horizon: Horizon = None,
    prompts: Annotated[
        str, typer.Option(help="JSONL file, a task's name, or how many to draw from the task.")
    ] = "96",
    prompts_limit: Annotated[int | None, typer.Option(help="Use the first so many prompts only.")] = None,
    trajectories: Annotated[int, typer.Option(help="Independent trajectories a prompt.")] = 16,
    children: Annotated[
        int, typer.Option(help="K: next steps at each prefix, the trajectory's own included.")
    ] = 16,
    completions: Annotated[
        int, typer.Option(help="R: continuations from each prefix, the trajectory's own included.")
    ] = 4,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="Another checkpoint, on the same rollouts, paired. May be given again."),
    ] = None,
    terminal: TerminalName = "verifier",
    delta_cv: Annotated[
        float, typer.Option(help="Relative accuracy of Z for which particles are predicted.")
    ] = 0.25,
    delta_tv: Annotated[
        float, typer.Option(help="Total variation of the output for which they are predicted.")
    ] = 0.05,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the sampler at the predicted N and print its accuracy.")
    ] = False,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE", help="Exit with 1 where the metric is above it. May be given again."
        ),
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write the audit into the checkpoint's README.md too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; default: audit inside the checkpoint.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Audit a reward model and its controls on the same rollouts: the Bellman error and what it costs in particles.

    Exit code 1 if a threshold of --fail-above is not met.
    """
    from rmtools.auditing.audit import check_accuracies
    from rmtools.auditing.metrics import not_met, thresholds
    from rmtools.cli.auditing import audited, check_verifiable, finish, source_of, with_sampler
    from rmtools.data.collect import Branching
    from rmtools.files import left_as_found
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.particles import check_terminal_name

    limits = thresholds(fail_above or [])
    check_accuracies(delta_cv, delta_tv)
    check_terminal_name(terminal)
    branching = Branching(trajectories, children, completions)
    check_verifiable(verify, model, terminal)
    for other in compare or []:
        CheckpointSettings.load(Path(other))
    source = source_of(model, policy, task, horizon, rollouts, prompts, out)
    with left_as_found(source.folder):
        source.need_policy(rollouts is None or verify, "--verify" if verify else "rollouts")
        source.need_card(card)
        report = audited(source, compare or [], branching, prompts_limit, terminal, delta_cv, delta_tv, seed)
    try:
        report = with_sampler(report, source, seed) if verify else report
    finally:  # an audit that cannot be verified is an audit still
        finish(report, source, card)
    missed = not_met(report.model, limits)
    for sentence in missed:
        print(f"not met: {sentence}")
    if missed:
        raise typer.Exit(1)
