"""``rmtools sample``: the sampler over a policy and a value model, JSON lines out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from rmtools.cli.options import Horizon, Model, Seed, TaskName, TerminalName, generator

if TYPE_CHECKING:
    from rmtools.lm.particles import Terminal


def command(
    model: Model,
    prompts: Annotated[str, typer.Option(help='JSONL file with a "prompt" a line.')],
    policy: Annotated[
        str | None, typer.Option(help="Policy; default: the one the checkpoint was trained for.")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n-particles", help="N: particles a prompt.")] = 16,
    pool_size: Annotated[int, typer.Option(help="M: candidates a particle and step.")] = 1,
    resampling: Annotated[
        str, typer.Option(help="multinomial, systematic, stratified, residual, top_k, none.")
    ] = "systematic",
    ess_threshold: Annotated[
        float, typer.Option(help="Resample when ESS <= threshold * N; 1 always, 0 never.")
    ] = 0.5,
    terminal: TerminalName = "model",
    task: TaskName = None,
    horizon: Horizon = None,
    out: Annotated[Path, typer.Option(help="JSONL file to write.")] = Path("samples.jsonl"),
    seed: Seed = 0,
) -> None:
    """Sample solutions by sequential Monte Carlo guided by a value model.

    With --resampling none the same samples are independent: best-of-N is their argmax.
    """
    import json

    from rmtools.cli.loading import load
    from rmtools.cli.progress import progress
    from rmtools.core.resampling import RESAMPLING
    from rmtools.data.prompts import check_prompts, read_prompts
    from rmtools.errors import UserError
    from rmtools.files import write_text
    from rmtools.lm.checkpoint import fingerprint
    from rmtools.lm.inference import SamplerSettings, sample_prompts

    if resampling not in RESAMPLING:
        raise UserError(f"unknown resampling {resampling!r}", f"choose one of: {', '.join(RESAMPLING)}")
    settings = SamplerSettings(n, pool_size, resampling, ess_threshold, cast("Terminal", terminal))
    if out.is_dir():
        raise UserError(f"the output {out} is a folder", "name a JSONL file with --out")
    loaded = load(model, policy, task, horizon, share=True)
    found = read_prompts(prompts, loaded.task)
    check_prompts(found, loaded.task, loaded.policy)
    rng, reward = generator("sample", seed), loaded.task.reward
    with progress(f"sampling {len(found)} prompts", len(found)) as tick:
        records = list(sample_prompts(loaded.policy, loaded.value, found, settings, rng, reward, tick))
    provenance = {
        "model": str(model),
        "model_fingerprint": fingerprint(model),
        "policy": loaded.policy.name,
        "policy_fingerprint": fingerprint(loaded.policy.name),
        "task": loaded.task.name,
        "seed": seed,
    }
    lines = [json.dumps({**r, "provenance": provenance}, allow_nan=False) + "\n" for r in records]
    write_text(out, "".join(lines))
    report(records, out, terminal)


def report(records: list[dict], out: Path, terminal: str) -> None:
    """Print the shares of right solutions: all samples, one weighted draw, the argmax of the final value."""
    import numpy as np

    every = np.mean([s["reward"] for r in records for s in r["samples"]])
    draw = np.mean([r["samples"][r["draw"]]["reward"] for r in records])
    best = np.mean([r["samples"][r["argmax"]]["reward"] for r in records])
    print(
        f"{len(records)} prompts in {out} (terminal {terminal}, log_z estimates {records[0]['estimates']})\n"
        f"right: {every:.3f} of all samples, {draw:.3f} of one weighted draw, {best:.3f} of the argmax"
    )
