"""``rmtools audit``: how inconsistent a reward model is, and how many particles that costs."""

from pathlib import Path
from typing import Annotated

import typer

from rmtools.cli.options import Horizon, Model, Seed, TaskName, TerminalName


def command(
    model: Model,
    rollouts: Annotated[
        Path | None, typer.Option(help="Folder written by `rmtools rollout`; default: made here.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Policy; default: the one the checkpoint was trained for.")
    ] = None,
    task: TaskName = None,
    horizon: Horizon = None,
    prompts: Annotated[str, typer.Option(help="JSONL file, or how many to draw from the task.")] = "96",
    trajectories: Annotated[int, typer.Option(help="Independent trajectories a prompt.")] = 16,
    children: Annotated[
        int, typer.Option(help="K: next steps at each prefix, the trajectory's own included.")
    ] = 16,
    completions: Annotated[
        int, typer.Option(help="R: continuations from each prefix, the trajectory's own included.")
    ] = 4,
    terminal: TerminalName = "verifier",
    delta_cv: Annotated[
        float, typer.Option(help="Relative accuracy of Z for which particles are predicted.")
    ] = 0.25,
    delta_tv: Annotated[
        float, typer.Option(help="Total variation of the output for which they are predicted.")
    ] = 0.05,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; default: audit inside the checkpoint.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Audit a reward model and two controls, the constant base rate and the untrained head, on the same rollouts."""
    from rmtools.audit.report import write_report
    from rmtools.audit.run import audit
    from rmtools.cli.loading import load
    from rmtools.cli.progress import progress
    from rmtools.cli.rollout import Sharding, make_rollouts
    from rmtools.core.cost import n_for_cv, n_for_tv
    from rmtools.data.collect import Branching
    from rmtools.data.rollouts import read_rollouts
    from rmtools.files import claim_folder
    from rmtools.lm.checkpoint import load_value_model
    from rmtools.lm.particles import check_terminal_name
    from rmtools.lm.value import ConstantValue, Scorer

    n_for_cv(1.0, delta_cv), n_for_tv(1.0, delta_tv)
    check_terminal_name(terminal)
    loaded = load(model, policy, task, horizon)
    value, checkpoint = loaded.value, loaded.settings
    folder = claim_folder(out or model / "audit", "audit.json", "rollouts")
    if rollouts is None:
        rollouts = folder / "rollouts"
        branching = Branching(trajectories, children, completions)
        # The folder is this verb's own: rollouts of other arguments in it make way, the same ones are used again.
        sharding = Sharding(overwrite=True)
        make_rollouts(loaded.policy, loaded.task, prompts, branching, rollouts, seed, sharding, verb="audit")
    rows, metadata = read_rollouts(rollouts)
    untrained, _ = load_value_model(model, untrained=True)
    scorers: dict[str, Scorer] = {
        "model": value,
        "constant": ConstantValue(checkpoint.base_rate, value.steps, value.tilt),
        "untrained": untrained,
    }
    report = audit(
        rows,
        metadata,
        scorers,
        checkpoint,
        loaded.policy,
        loaded.task,
        terminal=terminal,  # type: ignore[arg-type]
        delta_cv=delta_cv,
        delta_tv=delta_tv,
        seed=seed,
        progress=progress,
    )
    write_report(report, folder)
    print(report)
    for warning in report.warnings:
        print(f"note: {warning}")
    print(f"report: {folder / 'audit.html'}")
