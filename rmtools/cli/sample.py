"""``rmtools sample``: sample prompts with a policy and a value model, JSON lines out."""

from pathlib import Path
from typing import Annotated

import typer

from rmtools.cli.options import Horizon, Model, Seed, TaskName, TerminalName
from rmtools.cli.server import BATCH, CONCURRENCY, Concurrency, ServerBatch, ServerModel, ServerUrl

Algorithm = Annotated[
    str | None,
    typer.Option(
        help="smc, sp-gsmc, guided, mh, gibbs, importance, best-of-n, majority, weighted-majority or beam: names for "
        "settings of one sampler, which the options below change as far as the name allows. Default: smc."
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        help="The solution to choose: draw (one weighted draw, the only one that follows the target's law), argmax (the "
        "largest final value), majority or weighted-majority (of answers). The record has all. Default: the algorithm's."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NORM=DELTA",
        help="Take N from the model's audit: tv=.05 (total variation of the draw) or cv=.1 (of Z). Runs multinomial "
        "resampling at every step, as the prediction does.",
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        help="Repeat runs (proposals of mh, sweeps of gibbs) of each prompt until this many tokens are generated; the "
        "output is chosen from all of them, weighted by their estimates of Z."
    ),
]
Seconds = Annotated[float | None, typer.Option(help="The same in seconds per prompt.")]
BlockSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Prompts drawn together, the most that an interruption loses. Default: a batch, at most 64.",
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        help="Write every candidate, ESS, weights and ancestors too; `rmtools plot trace` draws them."
    ),
]


def command(
    model: Model,
    prompts: Annotated[str, typer.Option(help='JSONL file with a "prompt" per line.')],
    policy: Annotated[
        str | None, typer.Option(help="Policy; default: the one the checkpoint was trained for.")
    ] = None,
    algorithm: Algorithm = None,
    n: Annotated[
        int | None,
        typer.Option("-n", "--n-particles", help="N: particles per prompt. Default: 16, or the algorithm's."),
    ] = None,
    pool_size: Annotated[
        int | None,
        typer.Option(help="M: candidates per particle and step. Default: 1, or the algorithm's."),
    ] = None,
    resampling: Annotated[
        str | None,
        typer.Option(
            help="multinomial, systematic, stratified, residual, top_k, none. Default: systematic, or the algorithm's."
        ),
    ] = None,
    ess_threshold: Annotated[
        float | None,
        typer.Option(help="Resample when ESS <= threshold * N; 1 always, 0 never. Default: 0.5."),
    ] = None,
    mh_steps: Annotated[
        int | None,
        typer.Option(help="H: Metropolis-Hastings proposals around any algorithm that estimates Z."),
    ] = None,
    sweeps: Annotated[int | None, typer.Option(help="Sweeps of gibbs. Default: 8.")] = None,
    output: Output = None,
    accuracy: Precision = None,
    audit: Annotated[
        Path | None, typer.Option(help="Folder of the audit; default: audit inside the checkpoint.")
    ] = None,
    max_tokens: Tokens = None,
    max_seconds: Seconds = None,
    terminal: TerminalName = "model",
    task: TaskName = None,
    horizon: Horizon = None,
    block_size: BlockSize = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace samples that were made, or begun, with other arguments."),
    ] = False,
    server: ServerUrl = None,
    server_model: ServerModel = None,
    concurrency: Concurrency = CONCURRENCY,
    server_batch: ServerBatch = BATCH,
    trace: Trace = None,
    out: Annotated[Path, typer.Option(help="JSONL file to write.")] = Path("samples.jsonl"),
    seed: Seed = 0,
) -> None:
    """Sample solutions guided by a value model: sequential Monte Carlo and its relatives, through one sampler.

    Rerun the same command to resume after an interruption. Under `accelerate launch` the processes share the prompts; the
    file is the same.
    """
    from rmtools.cli.sample_run import Inputs, SampleRequest, sample
    from rmtools.cli.server import server_options

    given = {
        "n_particles": n,
        "pool_size": pool_size,
        "resampling": resampling,
        "ess_threshold": ess_threshold,
        "mh_steps": mh_steps,
        "sweeps": sweeps,
        "output": output,
        "max_tokens": max_tokens,
        "max_seconds": max_seconds,
        "terminal": terminal,
    }
    request = SampleRequest(algorithm, given, accuracy, audit)
    inputs = Inputs(
        model, policy, task, horizon, prompts, server_options(server, server_model, concurrency, server_batch)
    )
    sample(request, inputs, out, trace, block_size, overwrite, seed)
