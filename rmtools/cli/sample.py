"""``rmtools sample``: sample prompts with a policy and a value model, JSON lines out."""

from pathlib import Path
from typing import Annotated, Literal

from rmtools.cli.options import (
    TASKS,
    AggregateName,
    Device,
    Dtype,
    FewShot,
    Floor,
    FormatName,
    Horizon,
    Model,
    PrmFormat,
    RemoteCode,
    RootValue,
    Seed,
    System,
    Terminal,
    TrainedPolicy,
    data_option,
    model_option,
    output_option,
    sampler_option,
    work_option,
)
from rmtools.cli.published import PublishedOptions
from rmtools.cli.server import (
    BATCH,
    CONCURRENCY,
    Concurrency,
    ServerBatch,
    ServerModel,
    ServerSeed,
    ServerUrl,
    Tokenizer,
)
from rmtools.cli.value_server import ValueServer, ValueServerModel, served_values
from rmtools.errors import UserError
from rmtools.lm.formats.conventions import RECORDED

# The choices of rmtools.sampling.settings, which takes longer to import than `--help` may.
AlgorithmName = Literal[
    "smc",
    "sp-gsmc",
    "guided",
    "mh",
    "gibbs",
    "importance",
    "best-of-n",
    "majority",
    "weighted-majority",
    "beam",
]
OutputName = Literal["draw", "argmax", "majority", "weighted-majority"]
ResamplingName = Literal["multinomial", "systematic", "stratified", "residual", "top_k", "none"]

Prompts = Annotated[
    str | None,
    data_option(
        metavar="FILE",
        help='JSONL file with a "prompt" per line, or - for standard input: JSON lines if it begins with {, else a prompt '
        "per line, as --prompt takes it.",
    ),
]
PromptTexts = Annotated[
    list[str] | None,
    data_option(
        "--prompt",
        metavar="TEXT",
        help=r"A prompt, \n and \t as escapes; the task's delimiter is appended if it is missing. May be given again.",
    ),
]
SampledTask = Annotated[
    str | None,
    model_option("--task", help=f"Task: {TASKS}. Default: the checkpoint's; none: nothing is verified."),
]
Algorithm = Annotated[
    AlgorithmName | None,
    sampler_option(
        help="A name for settings of one sampler, which the options below change as far as the name allows. Default: smc."
    ),
]
Particles = Annotated[
    int | None,
    sampler_option("-n", "--n-particles", help="N: particles per prompt. Default: 16, or the algorithm's."),
]
Islands = Annotated[
    int | None,
    sampler_option(
        help="K independent runs of N / K particles each, in one batch: they give log Z-hat and every answer's share an error. "
        "Default: 1 below N = 128, 4 from 128 on, 8 from 256 on."
    ),
]
PoolSize = Annotated[
    int | None, sampler_option(help="M: candidates per particle and step. Default: 1, or the algorithm's.")
]
Resampling = Annotated[
    ResamplingName | None,
    sampler_option(help="Resampling scheme. Default: systematic, or the algorithm's."),
]
Threshold = Annotated[
    float | None, sampler_option(help="Resample when ESS <= threshold * N; 1 always, 0 never. Default: 0.5.")
]
Proposals = Annotated[
    int | None,
    sampler_option(help="H: Metropolis-Hastings proposals around any algorithm that estimates Z."),
]
Sweeps = Annotated[int | None, sampler_option(help="Sweeps of gibbs. Default: 8.")]
Output = Annotated[
    OutputName | None,
    sampler_option(
        help="The solution to choose: draw (one weighted draw, the only one that follows the target's law), argmax (the "
        "largest final value), majority or weighted-majority (of answers). The record has all. Default: the algorithm's."
    ),
]
Precision = Annotated[
    str | None,
    sampler_option(
        metavar="NORM=DELTA",
        help="Take N from the model's audit: tv=.05 (total variation of the draw) or cv=.1 (of Z). Runs multinomial "
        "resampling at every step, as the prediction does.",
    ),
]
Audit = Annotated[
    Path | None, sampler_option(help="Folder of the audit; default: audit inside the checkpoint.")
]
UntilKnown = Annotated[
    str | None,
    sampler_option(
        metavar="FIGURE=ERROR",
        help="Add islands of N particles to each prompt, 8 at first, until a figure has this standard error: share=.05 (of "
        "the leading answer), logz=.1 (nats) or cv=.25 (of Z). Easy prompts stop early, hard ones at --token-budget.",
    ),
]
Tokens = Annotated[
    int | None,
    sampler_option(
        "--token-budget",
        "--max-tokens",
        help="With --until, the most tokens a prompt may take (default: what 128 islands take). Without, repeat runs (proposals "
        "of mh, sweeps of gibbs) of each prompt until this many tokens are generated; the "
        "output is chosen from all of them, weighted by their estimates of Z.",
    ),
]
Seconds = Annotated[float | None, sampler_option(help="The same in seconds per prompt.")]
BlockSize = Annotated[
    int | None,
    work_option(
        min=1,
        help="Prompts drawn together, the most that an interruption loses. Default: a batch, at most 64, or what a slow "
        "processor does in five minutes.",
    ),
]
SampleFileName = Annotated[
    Path | None,
    output_option(help="JSONL file to write. Default: samples.jsonl; without it --prompt only prints."),
]
Trace = Annotated[
    Path | None,
    output_option(
        help="Write every candidate, ESS, weights and ancestors too; `rmtools plot trace` draws them."
    ),
]
Overwrite = Annotated[
    bool,
    output_option("--overwrite", help="Replace samples that were made, or begun, with other arguments."),
]


def command(
    model: Model,
    prm_format: PrmFormat = None,
    root_value: RootValue = "first-steps",
    aggregate: AggregateName = "last",
    floor: Floor = 0.01,
    trust_remote_code: RemoteCode = False,
    prompts: Prompts = None,
    prompt: PromptTexts = None,
    prompt_format: FormatName = "auto",
    system: System = None,
    few_shot: FewShot = None,
    policy: TrainedPolicy = None,
    task: SampledTask = None,
    horizon: Horizon = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    algorithm: Algorithm = None,
    n: Particles = None,
    islands: Islands = None,
    pool_size: PoolSize = None,
    resampling: Resampling = None,
    ess_threshold: Threshold = None,
    mh_steps: Proposals = None,
    sweeps: Sweeps = None,
    terminal: Terminal = "model",
    output: Output = None,
    accuracy: Precision = None,
    audit: Audit = None,
    until: UntilKnown = None,
    max_tokens: Tokens = None,
    max_seconds: Seconds = None,
    server: ServerUrl = None,
    server_model: ServerModel = None,
    concurrency: Concurrency = CONCURRENCY,
    server_batch: ServerBatch = BATCH,
    value_server: ValueServer = None,
    value_server_model: ValueServerModel = None,
    server_seed: ServerSeed = False,
    tokenizer: Tokenizer = None,
    out: SampleFileName = None,
    trace: Trace = None,
    overwrite: Overwrite = False,
    block_size: BlockSize = None,
    seed: Seed = 0,
) -> None:
    """Sample solutions guided by a value model: sequential Monte Carlo and its relatives, through one sampler.

    Rerun the same command to resume after an interruption. Under `accelerate launch` the processes share the prompts; the
    file is the same, but for the seconds it took.
    """
    from rmtools.cli.sample_run import Inputs, output_file, requested, sample
    from rmtools.cli.server import server_options
    from rmtools.lm.hub import FoundModel, find_model

    given = {
        **{"n_particles": n, "islands": islands, "pool_size": pool_size},
        "resampling": resampling,
        "ess_threshold": ess_threshold,
        "mh_steps": mh_steps,
        "sweeps": sweeps,
        "output": output,
        "until": until,
        "max_tokens": max_tokens,
        "max_seconds": max_seconds,
        "terminal": terminal,
    }
    settings, wanted = requested(algorithm, given, accuracy, audit)
    reading = prm_format, root_value, aggregate, floor, trust_remote_code
    options = PublishedOptions(*reading, served_values(value_server, value_server_model, seed))
    published = options if options.names(model) else None
    source = FoundModel(model, Path(model)) if prm_format == RECORDED else find_model(model)
    if wanted is not None and audit is None and (source.commit or published):
        raise UserError(f"{model} has no folder of its audits", "name one with --audit")
    served = server_options(server, server_model, concurrency, server_batch, server_seed, tokenizer)
    models, asked = (source.pinned, policy, task, horizon, device, dtype), (prompt_format, system, few_shot)
    inputs = Inputs(*models, prompts, prompt or [], served, asked, published, options.served)
    audit = audit or source.folder / "audit"
    with output_file(out, bool(prompt)) as (file, kept):
        sample(inputs, settings, wanted, audit, file, kept, trace, block_size, overwrite, seed)
