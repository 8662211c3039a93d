"""``rmtools evaluate``: a reward model as people report it, on recorded samples, benchmarks and rollouts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rmtools.cli.options import (
    Device,
    DeviceName,
    Dtype,
    DtypeName,
    Horizon,
    PrmFormat,
    PromptsLimit,
    RemoteCode,
    Seed,
    TaskName,
    TrainedPolicy,
    data_option,
    help_without_verb,
    model_option,
    output_option,
    sampler_option,
)
from rmtools.cli.published import PublishedOptions
from rmtools.cli.value_server import ServedValues, ValueServer, ValueServerModel, served_values
from rmtools.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from rmtools.data.rollouts import Rollouts
    from rmtools.evaluation.labelled import LabelledSteps
    from rmtools.evaluation.recorded import RecordedSamples
    from rmtools.evaluation.report import Evaluation
    from rmtools.evaluation.step_scores import Cost, StepScores
    from rmtools.lm.protocol import Scorer

app = typer.Typer(
    help="Evaluate a reward model: best-of-n, ProcessBench, PRMBench, calibration.",
    callback=help_without_verb,
    invoke_without_command=True,
)
Files = Annotated[
    list[Path], typer.Argument(metavar="FILE…", help="JSON, JSONL or parquet files, or a folder of them.")
]
Model = Annotated[str, model_option(help="Checkpoint of the value model: folder or hub name.")]
Limit = Annotated[int | None, data_option(min=1, help="Read only the first so many rows.")]
Aggregate = Annotated[
    Literal["last", "min", "product", "mean"] | None,
    sampler_option(
        help="How scores of steps become one of the solution. All are reported; default of the first lines: last."
    ),
]


def _out(default: str) -> Any:
    return output_option(
        help=f"Output folder: evaluate.json, evaluate.html, evaluate.md. Default: {default}. An earlier result there is replaced."
    )


@dataclass(frozen=True)
class ValueModelName:
    """A value model as the options name it: a checkpoint, or a published reward model."""

    name: str
    prm_format: str | None
    trust_remote_code: bool
    device: DeviceName
    dtype: DtypeName
    served: ServedValues | None = None

    @property
    def published(self) -> PublishedOptions | None:
        """How a published model is read; None for a checkpoint."""
        options = PublishedOptions(
            self.prm_format, trust_remote_code=self.trust_remote_code, served=self.served
        )
        return options if options.names(self.name) else None

    def load(self) -> "Scorer":
        """Return the model, in this process."""
        from rmtools.cli.device import placement_for, print_precision
        from rmtools.lm.checkpoint import load_value_model
        from rmtools.lm.hub import find_model

        placement, published = placement_for(self.device, self.dtype), self.published
        if published is not None:
            return published.load(self.name, None, placement)
        name = find_model(self.name).pinned
        if self.served is not None:
            return self.served.connect(name)
        value = load_value_model(name, device=placement.device, dtype=placement.dtype)[0]
        print_precision(value_model=value)
        return value


@app.command("best-of-n")
def best_of_n(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="Recorded samples: records with traces, or a file of `rmtools sample`. Default: drawn here.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        model_option(
            help="Checkpoint of the value model that scores the samples. Default: the scores in the file."
        ),
    ] = None,
    prm_format: PrmFormat = None,
    trust_remote_code: RemoteCode = False,
    value_server: ValueServer = None,
    value_server_model: ValueServerModel = None,
    policy: TrainedPolicy = None,
    task: TaskName = None,
    horizon: Horizon = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    prompts: Annotated[
        str | None, data_option(help="JSONL file of prompts to sample, with answers if the task needs them.")
    ] = None,
    prompts_limit: PromptsLimit = None,
    n: Annotated[
        int, sampler_option("-n", "--n-particles", min=1, help="Samples per prompt, if they are drawn here.")
    ] = 8,
    aggregate: Aggregate = None,
    quantile: Annotated[
        float,
        sampler_option(
            help="q of instance-adaptive scaling: the chance of a right sample that N is to give."
        ),
    ] = 0.9,
    out: Annotated[Path, _out("evaluate-best-of-n")] = Path("evaluate-best-of-n"),
    seed: Seed = 0,
) -> None:
    """Best-of-n, majority and weighted majority as n grows, and what the verifier costs.

    On recorded samples: `rmtools evaluate best-of-n FILE`, with --model to score them anew; or on fresh ones:
    `rmtools evaluate best-of-n --model MODEL --prompts PROMPTS`.
    """
    from rmtools.evaluation.best_of_n import evaluate_best_of_n
    from rmtools.seeds import generator

    _claim(out)
    if not 0 < quantile < 1:
        raise UserError(
            f"`quantile` must be in (0, 1), got {quantile}: it is a chance", "pass `quantile` 0.9"
        )
    if (file is None) == (prompts is None):
        what = (
            "there are no samples" if file is None else "both FILE and `prompts` say where samples come from"
        )
        raise UserError(what, "name a file of recorded samples, or `model` and `prompts` to draw some")
    values = served_values(value_server, value_server_model, seed)
    named = ValueModelName(model, prm_format, trust_remote_code, device, dtype, values) if model else None
    if file is not None:
        samples, value = _recorded(file, named)
    else:
        samples, value = _drawn(named, (policy, task, horizon), (str(prompts), prompts_limit), n, seed)
    samples, cost, root = _scored(samples, value)
    found = evaluate_best_of_n(
        samples, generator("evaluate best-of-n", seed), aggregate, cost, root, quantile
    )
    known = _provenance(named, seed, verifier=samples.verifier, policy=samples.policy)
    _finish(replace(found, provenance=known), out)


def _recorded(file: Path, named: ValueModelName | None) -> "tuple[RecordedSamples, Scorer | None]":
    """Read recorded samples, and load the model that is to score them if one is named."""
    from rmtools.evaluation.recorded import read_recorded, rows_to_score

    samples = read_recorded(file)
    if named is None:
        return samples, None
    rows_to_score(samples, "\n")  # raises before the model is loaded
    return samples, named.load()


def _scored(
    samples: "RecordedSamples", value: "Scorer | None"
) -> "tuple[RecordedSamples, Cost | None, np.ndarray | None]":
    """Return samples with the model's scores, what these cost, and the values of the prompts; without a model as they are."""
    from rmtools.evaluation.recorded import root_values, rows_to_score, with_scores

    if value is None:
        return samples, None, None
    rows = rows_to_score(samples, value.steps.settings.delimiter)
    found = _score(rows, value, as_they_are=samples.rendered)
    return with_scores(samples, found.p, value.name), found.cost, root_values(samples, found.p)


@app.command("processbench")
def processbench(
    files: Files,
    model: Model,
    prm_format: PrmFormat = None,
    trust_remote_code: RemoteCode = False,
    value_server: ValueServer = None,
    value_server_model: ValueServerModel = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    limit: Limit = None,
    out: Annotated[Path, _out("evaluate-processbench")] = Path("evaluate-processbench"),
    seed: Seed = 0,
) -> None:
    """ProcessBench: the first wrong step, F1 by subset at threshold .5 and at the one chosen on GSM8K."""
    from rmtools.evaluation.labelled import read_processbench
    from rmtools.evaluation.processbench import evaluate_processbench

    values = served_values(value_server, value_server_model, seed)
    named = ValueModelName(model, prm_format, trust_remote_code, device, dtype, values)
    _labelled(files, named, limit, out, seed, (read_processbench, evaluate_processbench))


@app.command("prmbench")
def prmbench(
    files: Files,
    model: Model,
    prm_format: PrmFormat = None,
    trust_remote_code: RemoteCode = False,
    value_server: ValueServer = None,
    value_server_model: ValueServerModel = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    limit: Limit = None,
    out: Annotated[Path, _out("evaluate-prmbench")] = Path("evaluate-prmbench"),
    seed: Seed = 0,
) -> None:
    """PRMBench: F1 on right steps, on wrong ones, and PRMScore, by class of error."""
    from rmtools.evaluation.labelled import read_prmbench
    from rmtools.evaluation.prmbench import evaluate_prmbench

    values = served_values(value_server, value_server_model, seed)
    named = ValueModelName(model, prm_format, trust_remote_code, device, dtype, values)
    _labelled(files, named, limit, out, seed, (read_prmbench, evaluate_prmbench))


@app.command("calibration")
def calibration(
    rollouts: Annotated[
        Path,
        typer.Argument(
            metavar="ROLLOUTS",
            help="A folder of `rmtools rollout`, or a file of a public format (docs/formats.md).",
        ),
    ],
    model: Model,
    prm_format: PrmFormat = None,
    trust_remote_code: RemoteCode = False,
    value_server: ValueServer = None,
    value_server_model: ValueServerModel = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    limit: Limit = None,
    out: Annotated[Path, _out("evaluate-calibration")] = Path("evaluate-calibration"),
    seed: Seed = 0,
) -> None:
    """Calibration on rollouts: Brier, ECE and AUC in all and by depth, AUC within prompt and depth."""
    from rmtools.data.load import load_rollouts
    from rmtools.evaluation.calibration import evaluate_calibration
    from rmtools.seeds import generator

    _claim(out)
    rows = load_rollouts(str(rollouts))
    if limit is not None:
        rows = rows[:limit]
    values = served_values(value_server, value_server_model, seed)
    named = ValueModelName(model, prm_format, trust_remote_code, device, dtype, values)
    value = named.load()
    scored = _score(rows, value)
    rng = generator("evaluate calibration", seed)
    found = evaluate_calibration(list(rows), scored.p, rng, value.name, str(rollouts), scored.cost)
    _finish(replace(found, provenance=_provenance(named, seed, limit=limit)), out)


def _labelled(
    files: Sequence[Path],
    named: ValueModelName,
    limit: int | None,
    out: Path,
    seed: int,
    how: tuple[Any, Any],
) -> None:
    """Read, score and evaluate a benchmark of labelled steps; ``how`` reads it and evaluates it."""
    from rmtools.data.rollouts import RolloutMetadata, Rollouts
    from rmtools.seeds import generator

    read, evaluate = how
    _claim(out)
    labelled: list[LabelledSteps] = read(files)  # raises before the model is loaded
    value = named.load()
    if value.steps.settings.delimiter != "\n":
        labelled = read(files, value.steps.settings.delimiter)
    labelled = labelled[:limit]
    rows, source = [x.rollout for x in labelled], ", ".join(map(str, files))
    scored = _score(Rollouts(rows, RolloutMetadata.unknown(rows), source), value)
    rng = generator(f"evaluate {evaluate.__name__}", seed)
    found = evaluate(labelled, [p[1:] for p in scored.p], rng, value.name, source, scored.cost)
    _finish(replace(found, provenance=_provenance(named, seed, limit=limit)), out)


def _claim(out: Path) -> None:
    from rmtools.evaluation.report import JSON_FILE
    from rmtools.files import claim_folder

    claim_folder(out, JSON_FILE)


def _score(rows: "Rollouts", value: "Scorer", as_they_are: bool = False) -> "StepScores":
    """Score rows with a bar; their prompts are rendered as the model reads them unless they are taken as they are."""
    from rmtools.cli.progress import progress
    from rmtools.evaluation.step_scores import rows_as_trained, score_steps

    read = rows if as_they_are else rows_as_trained(rows, value)
    with progress("scoring solutions", len(read)) as tick:
        return score_steps(list(read), value, tick)


def _drawn(
    model: ValueModelName | None,
    others: tuple[str | None, str | None, int | None],
    prompts_file: tuple[str, int | None],
    n: int,
    seed: int,
) -> "tuple[RecordedSamples, Scorer]":
    """Draw independent samples of the prompts, and return them with the value model."""
    from rmtools.cli.device import placement_for, print_precision
    from rmtools.cli.progress import progress
    from rmtools.data.prompts import (
        check_prompts,
        enter_prompts,
        load_prompts,
        prompts_check,
        require_prompts,
    )
    from rmtools.data.tasks import Answering
    from rmtools.evaluation.recorded import from_records
    from rmtools.lm.prompt_format import AskedFormat, read_questions
    from rmtools.sampling.loading import load, load_with
    from rmtools.sampling.sample_prompts import sample_prompts, settings_for
    from rmtools.seeds import generator

    source, limit = prompts_file
    if model is None:
        raise UserError("a model is to score the samples, and none is named", "name it with `model`")
    require_prompts(source)
    if source.isdigit():
        raise UserError(f"`prompts` {source} is no file", "`rmtools prompts` writes one")

    def check(judge: Any, settings: Any, *tokens: Any) -> None:
        if judge is None:
            raise UserError("nothing says which samples are right: no task is named", "name it with `task`")
        recorded = None if settings is None else settings.prompt_format
        prompts_check(source, judge, AskedFormat(), recorded)(*tokens)

    placement, published = placement_for(model.device, model.dtype), model.published
    if published is None:
        values: Any = "apart" if model.served is None else partial(model.served.connect, model.name)
        loaded = load(model.name, *others, placement=placement, check=check, values=values)
    else:
        outside = partial(published.load, model.name, placement=placement)
        loaded = load_with(outside, *others, placement, check)
    print_precision(policy=loaded.policy, value_model=loaded.value)
    given = load_prompts(source, loaded.task.delimiter)[:limit]
    steps = loaded.policy.steps
    recorded = None if loaded.settings is None else loaded.settings.prompt_format
    prompts, judge, form = enter_prompts(
        given, loaded.task, AskedFormat(), steps.tokenizer, recorded, source=source
    )
    read_questions(loaded.value, form, steps.tokenizer)
    check_prompts(prompts, judge, loaded.policy)
    answer = judge.answer if isinstance(judge, Answering) else None
    settings, rng = (
        settings_for("best-of-n", n_particles=n, terminal="model"),
        generator("evaluate samples", seed),
    )
    records = []
    with progress(f"sampling {n} solutions of each prompt", len(prompts)) as tick:
        for record in sample_prompts(
            loaded.policy, loaded.value, prompts, settings, rng, reward=judge.reward, answer=answer
        ):
            records.append(record | {"sampler": {"resampling": "none", "algorithm": "best-of-n"}})
            tick(1)
    return replace(from_records(records, source), policy=loaded.policy.name), loaded.value


def _provenance(model: ValueModelName | None, seed: int, **others: Any) -> dict[str, Any]:
    """Return what was run, without what is not known."""
    import rmtools
    from rmtools.lm.checkpoint import fingerprint

    weights = fingerprint(model.name) if model is not None and not Path(model.name).is_file() else ""
    named = {} if model is None else {"model": model.name, "model_fingerprint": weights}
    known = {**named, "prm_format": None if model is None else model.prm_format, **others}
    return {k: v for k, v in known.items() if v not in (None, "")} | {
        "seed": seed,
        "rmtools": rmtools.__version__,
    }


def _finish(found: "Evaluation", out: Path) -> None:
    """Write the report and print its first lines."""
    from rmtools.evaluation.report import PAGE_FILE, summary, write_evaluation

    write_evaluation(found, out)
    print(summary(found))
    print(f"report: {out / PAGE_FILE}")
