"""``rmtools verify``: the theory's predictions beside measurements."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmtools.cli.options import (
    Device,
    Dtype,
    Horizon,
    Model,
    Seed,
    TaskName,
    TrainedPolicy,
    data_option,
    help_without_verb,
    output_option,
    sampler_option,
    work_option,
)

if TYPE_CHECKING:
    from rmtools.data.tasks import Task

app = typer.Typer(
    help="Compare what the theory predicts with what the sampler does.",
    callback=help_without_verb,
    invoke_without_command=True,
)
Out = Annotated[
    Path, output_option(help="Output folder; an earlier result of this command there is replaced.")
]


@app.command("lm")
def lm(
    model: Model,
    policy: TrainedPolicy = None,
    task: TaskName = None,
    horizon: Horizon = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    prompts: Annotated[str, data_option(help="JSONL file, or how many to draw from the task.")] = "64",
    n_prompts: Annotated[int, data_option(min=1, help="Number of prompts to measure.")] = 8,
    runs: Annotated[int, sampler_option(min=2, help="Independent runs per prompt.")] = 400,
    max_particles: Annotated[
        int, sampler_option(min=1, help="Skip prompts that need more particles.")
    ] = 2048,
    out: Out = Path("verify"),
    seed: Seed = 0,
) -> None:
    """Measure N Var(Z-hat) / Z^2 over repeated runs and compare it with the sigma^2 predicted."""
    from rmtools.cli.device import placement_for, print_precision
    from rmtools.cli.progress import progress
    from rmtools.codec import save_json
    from rmtools.data.prompts import (
        check_prompts,
        enter_prompts,
        prompts_check,
        prompts_from,
        require_prompts,
    )
    from rmtools.files import claim_folder
    from rmtools.lm.prompt_format import AskedFormat
    from rmtools.sampling.loading import load
    from rmtools.seeds import generator
    from rmtools.verify.language_model import (
        VERIFICATION_VERSION,
        VerificationSize,
        listed_steps,
        verify_lm,
    )

    claim_folder(out, "verify.json")
    require_prompts(prompts)

    def check(task: Any, settings: Any, *tokens: Any) -> None:
        prompts_check(prompts, task, AskedFormat(), settings.prompt_format)(*tokens)

    loaded = load(model, policy, task, horizon, placement=placement_for(device, dtype), check=check)
    print_precision(policy=loaded.policy, value_model=loaded.value)
    rng = generator("verify", seed)
    given, _ = prompts_from(prompts, loaded.task, rng)
    judge: Task = loaded.task
    tokenizer, form = loaded.policy.steps.tokenizer, loaded.settings.prompt_format
    found, judge, _ = enter_prompts(given, judge, AskedFormat(), tokenizer, form, source=prompts)
    check_prompts(found, judge, loaded.policy)
    listed_steps(judge, found[0])
    with progress(f"verifying {n_prompts} prompts, {runs} runs each", n_prompts) as tick:
        size = VerificationSize(n_prompts, runs, max_particles)
        result = verify_lm(loaded.policy, loaded.value, judge, found, size, rng, tick)
    save_json(out / "verify.json", result, VERIFICATION_VERSION)
    print(result)


@app.command("exact")
def exact(
    quick: Annotated[bool, work_option("--quick", help="Fewer cases and runs, under a minute.")] = False,
    out: Out = Path("verify-exact"),
    as_json: Annotated[bool, output_option("--json", help="Print JSON instead of the table.")] = False,
    workers: Annotated[int | None, work_option(min=1, help="Processes; default: one per core.")] = None,
    seed: Seed = 0,
) -> None:
    """Run the theorems and the predictions as checks on exact finite models; exit code 1 if one fails."""
    import json

    from rmtools.cli.progress import progress
    from rmtools.files import claim_folder
    from rmtools.verify.theorems import verify_exact
    from rmtools.verify.theorems.report import RESULT_FILE, json_values, write_report
    from rmtools.verify.theorems.runner import n_cases

    claim_folder(out, RESULT_FILE)
    with progress("checking", n_cases(quick)) as tick:
        found = verify_exact(quick, seed, workers, tick)
    print(json.dumps(json_values(found), allow_nan=False) if as_json else found, flush=True)
    write_report(found, out)
    if not as_json:
        print(f"report: {out / 'exact.html'}")
    if not found.holds:
        raise typer.Exit(1)


@app.command("scaling")
def scaling(
    quick: Annotated[bool, work_option("--quick", help="Up to T = 8, in minutes: the default.")] = False,
    full: Annotated[bool, work_option("--full", help="Up to T = 32, in hours.")] = False,
    device: Device = "auto",
    out: Annotated[Path, output_option(help="Output folder; an interrupted run goes on there.")] = Path(
        "verify-scaling"
    ),
    token_budget: Annotated[
        float | None,
        work_option(help="Tokens that one trial of the largest N may generate; default: the size's."),
    ] = None,
    workers: Annotated[int | None, work_option(min=1, help="Processes; default: one per core.")] = None,
    seed: Seed = 0,
) -> None:
    """Train a policy and reward models of several qualities, and compare particles predicted and needed as T grows."""
    import os
    from dataclasses import replace

    from rmtools.cli.device import device_for
    from rmtools.cli.progress import progress
    from rmtools.errors import UserError
    from rmtools.files import require_writable
    from rmtools.verify.scaling import FULL, QUICK, Machine, run_scaling
    from rmtools.verify.scaling.report import summary, write_report

    if quick and full:
        raise UserError("`quick` and `full` exclude each other", "pass one of them")
    require_writable(out)
    profile = replace(FULL if full else QUICK, seed=seed)
    if token_budget is not None:
        profile = replace(profile, most_tokens=token_budget)
    machine = Machine(str(device_for(device)), workers or os.cpu_count() or 1)
    found = run_scaling(out, profile, progress, machine)
    given = [] if token_budget is None else [f"--token-budget {token_budget:g}"]
    write_report(
        found, out, " ".join(["rmtools verify scaling", f"--{profile.name}", f"--seed {seed}", *given])
    )
    print(summary(found))
    print(f"report: {out / 'scaling.html'}")
