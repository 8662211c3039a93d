"""What ``rmtools sample`` does with its options: settings, the plan of the file, drawing, and the report."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.cli.errors import with_flags
from rmtools.cli.options import unescaped
from rmtools.cli.progress import Live, live_progress
from rmtools.cli.published import PublishedOptions
from rmtools.codec import to_json
from rmtools.errors import UserError
from rmtools.files import require_writable
from rmtools.jobs.processes import Process, this_process

if TYPE_CHECKING:
    from rmtools.auditing.accuracy import Accuracy, Sampled
    from rmtools.cli.options import DeviceName, DtypeName
    from rmtools.cli.server import Server
    from rmtools.cli.value_server import ServedValues
    from rmtools.data.tasks import Task
    from rmtools.jobs.job import Bar
    from rmtools.jobs.samples import Draw, SamplePlan
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.prompt_format import PromptFormat
    from rmtools.lm.protocol import StepPolicy
    from rmtools.lm.steps import StepTokenizer
    from rmtools.sampling.loading import Check, Loaded
    from rmtools.sampling.sample_prompts import SamplerSettings

    Entered = tuple[list[str], Task | None, PromptFormat]

SAMPLES = "samples.jsonl"
# The parameters that the report names, as flags.
REPORTED = {
    "n_particles": "-n",
    "islands": "--islands",
    "mh_steps": "--mh-steps",
    "sweeps": "--sweeps",
    "token_budget": "--token-budget",
}
# What the audit's prediction of N holds for.
PREDICTED = {
    "pool_size": 1,
    "resampling": "multinomial",
    "ess_threshold": 1.0,
    "mh_steps": 0,
    "sweeps": 0,
    "islands": 1,
    "until": None,
}


def requested(
    algorithm: str | None, given: Mapping[str, Any], accuracy: str | None, audit: Path | None
) -> "tuple[SamplerSettings, Accuracy | None]":
    """Return the settings that the options ask for, and the accuracy that is still to decide N.

    ``given`` has the fields of `SamplerSettings`, None for options that are not given. Raises ``UserError`` if options
    contradict each other.
    """
    from rmtools.sampling.sample_prompts import settings_for

    if accuracy is None:
        if audit is not None:
            raise UserError("--audit is read for --accuracy only", "pass --accuracy tv=.05, say")
        return settings_for(algorithm, **given), None
    from rmtools.auditing.accuracy import Accuracy

    wanted, asked = Accuracy.parse(accuracy), {"algorithm": algorithm, **given}
    for name, only in {"algorithm": "smc", "n_particles": None, **PREDICTED}.items():
        if asked.get(name) not in (None, only):
            reason = f"the audit predicts `{name}` {only}" if only is not None else "it chooses N"
            raise UserError(f"--accuracy contradicts `{name}` {asked[name]}: {reason}", f"leave `{name}` out")
    return settings_for("smc", **{**given, **PREDICTED, "n_particles": 1}), wanted


@contextlib.contextmanager
def output_file(out: Path | None, typed: bool) -> Iterator[tuple[Path, bool]]:
    """Yield the file to write, and whether it is kept: solutions of typed prompts without ``out`` are only printed."""
    if out is not None or not typed or this_process().size > 1:
        yield out or Path(SAMPLES), True
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, SAMPLES), False


@dataclass(frozen=True)
class Inputs:
    """The models, the task and the prompts that the options name; ``asked`` is their format."""

    model: str
    policy: str | None
    task: str | None
    horizon: int | None
    device: "DeviceName"
    dtype: "DtypeName"
    file: str | None
    texts: Sequence[str]
    server: "Server | None" = None
    asked: tuple[str, str | None, Path | None] = ("auto", None, None)
    published: PublishedOptions | None = None
    values: "ServedValues | None" = None

    def load(self, seed: int, check: "Check | None" = None) -> "Loaded":
        """Load value model, policy and task, or connect to the server; ``check`` as that of `rmtools.sampling.loading.load`."""
        from rmtools.cli.device import placement_for
        from rmtools.cli.server import connect_policy, require_one_policy
        from rmtools.sampling.loading import load, load_with

        placement, server = placement_for(self.device, self.dtype), self.server
        values: Any = "shared" if self.values is None else partial(self.values.connect, self.model)
        require_one_policy(self.policy, server)
        connect = None if server is None else partial(connect_policy, server, seed=seed)
        if self.published is not None:
            outside = partial(self.published.load, self.model, placement=placement)
            return load_with(outside, connect or self.policy, self.task, self.horizon, placement, check)
        if connect is None:
            return load(
                self.model,
                self.policy,
                self.task,
                self.horizon,
                placement=placement,
                task_needed=False,
                check=check,
                values=values,
            )
        return load(
            self.model,
            connect,
            self.task,
            self.horizon,
            placement=placement,
            task_needed=False,
            values=values,
        )

    def prompts(
        self, task: "Task | None", settings: "CheckpointSettings | None", tokenizer: Any
    ) -> "tuple[Entered, bool]":
        """Return the prompts in the checkpoint's format, and whether they were typed: these have no right answer."""
        from rmtools.data.prompts import (
            asked_format,
            enter_prompts,
            load_prompts,
            read_stream,
            typed_prompts,
        )

        delimiter = "\n" if task is None else task.delimiter
        typed = self.file is None
        if self.file == "-":
            found, typed = read_stream(sys.stdin, delimiter)
        elif self.file is not None:
            found = load_prompts(self.file, delimiter)
        else:
            found = typed_prompts([unescaped(text) for text in self.texts], delimiter)
        kind, system, few_shot = self.asked
        asked = asked_format(kind, system and unescaped(system), few_shot, delimiter)
        source = "standard input" if self.file == "-" else self.file or "--prompt"
        recorded = None if settings is None else settings.prompt_format
        return enter_prompts(found, task, asked, tokenizer, recorded, source=source), typed

    def check_before_loading(
        self,
        terminal: str,
        task: "Task | None",
        settings: "CheckpointSettings | None",
        steps: "StepTokenizer",
        context: int | None,
    ) -> None:
        """Raise what the prompts of a file, or typed ones, would once the weights are read; standard input is read once."""
        from rmtools.data.prompts import check_before_loading

        if self.file != "-":
            (texts, judge, _), typed = self.prompts(task, settings, steps.tokenizer)
            judged = not (typed and terminal == "model")
            check_before_loading(texts, judge if judged else None, steps, context)

    def check(self, process: Process) -> None:
        """Raise ``UserError`` unless the prompts come from one place that every process can read."""
        from rmtools.data.prompts import require_prompts

        if (self.file is None) != bool(self.texts):
            raise UserError(
                "--prompts and --prompt both name prompts" if self.texts else "there are no prompts",
                "pass --prompts FILE, --prompts - for standard input, or --prompt TEXT",
            )
        if self.file not in (None, "-"):
            require_prompts(str(self.file))
        if self.file == "-" and process.size > 1:
            raise UserError(
                "--prompts - reads standard input, which only one of several processes has",
                "write the prompts into a file",
            )


def sample(
    inputs: Inputs,
    settings: "SamplerSettings",
    accuracy: "Accuracy | None",
    audit: Path,
    out: Path,
    kept: bool,
    trace: Path | None,
    block_size: int | None,
    overwrite: bool,
    seed: int,
) -> None:
    """Sample every prompt into ``out``, and print the report, which does not name a file that is not ``kept``.

    Raises
    ------
    UserError
        For a broken prompts file, files that cannot be written, and what `SampleFile.make` refuses.
    """
    from rmtools.auditing.accuracy import particles_for
    from rmtools.cli.device import print_precision
    from rmtools.data.prompts import check_prompts
    from rmtools.data.tasks import AnswerTask
    from rmtools.jobs.samples import SampleFile
    from rmtools.lm.prompt_format import read_questions
    from rmtools.sampling.error_report import fold
    from rmtools.sampling.report import report, warning_of_cut
    from rmtools.sampling.sample_prompts import Source, usual_block
    from rmtools.serving.server import ServerPolicy

    process = this_process()
    inputs.check(process)
    out, trace = follow_link(out), None if trace is None else follow_link(trace)
    check_places(inputs.file, out, trace)
    require_writable(out.parent)
    if trace is not None and settings.sweeps:
        raise UserError(
            "--trace cannot follow gibbs: its runs are conditional", "trace smc, or leave --trace out"
        )
    if not process.main:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    loaded = inputs.load(seed, partial(inputs.check_before_loading, settings.terminal))
    print_precision(policy=loaded.policy, value_model=loaded.value)
    if loaded.task is None and settings.terminal == "verifier":
        raise UserError("`terminal` verifier needs a task, and none is named", "name it with `task`")
    unverifiable = settings.terminal == "model" and isinstance(loaded.task, AnswerTask)
    (prompts, task, form), typed = inputs.prompts(loaded.task, loaded.settings, loaded.policy.steps.tokenizer)
    loaded = replace(loaded, task=task)
    read_questions(loaded.value, form, loaded.policy.steps.tokenizer)
    unanswered = typed and unverifiable
    judged = loaded.task is not None and not unanswered
    check_prompts(prompts, loaded.task if judged else None, loaded.policy)
    plan = plan_for(inputs.model, loaded, settings, prompts, seed, trace is not None, form)
    if accuracy is not None:
        predicted = particles_for(accuracy, audit, audited_as(plan))
        settings = replace(settings, n_particles=predicted.n_particles)
        plan = replace(plan, sampler=settings, accuracy=to_json(predicted))
        if process.main:
            print(fold(str(predicted)))
    source = Source(loaded.policy, loaded.value)
    plan = replace(plan, block_size=block_size or usual_block(settings, source, prompts))
    draw, bar = drawing(loaded, settings, trace is not None, judged)
    server = loaded.policy.record() if isinstance(loaded.policy, ServerPolicy) else None
    made = SampleFile(out, plan, process, trace, server).make(prompts, draw, bar, overwrite)
    if process.main:
        text = report(out, typed, lambda line: with_flags(line, REPORTED))
        finish(loaded.policy, text if kept else text.replace(f" in {out}", "", 1), trace, made)
        most = loaded.policy.steps.settings.max_step_tokens
        context = getattr(loaded.policy, "context", None)
        if warning := warning_of_cut(out, most, context):
            print(warning, file=sys.stderr)


def finish(policy: "StepPolicy", text: str, trace: Path | None, made: bool) -> None:
    """Print the report of the file, the solutions of typed prompts, and what was asked of a server."""
    from rmtools.cli.server import summary
    from rmtools.serving.server import ServerPolicy

    print(f"{'' if made else 'finished already; '}{text}")
    if trace is not None:
        print(f"trace: {trace}\ndraw it: rmtools plot trace {trace}")
    if isinstance(policy, ServerPolicy):
        print(summary(policy))


def check_places(prompts: str | None, out: Path, trace: Path | None) -> None:
    """Raise ``UserError`` if a file cannot be written, or would replace the prompts or the other file."""
    if out.is_dir():
        raise UserError(f"the output {out} is a folder", "name a JSONL file with --out")
    if trace is not None:
        if trace.is_dir() or same_file(trace, out):
            raise UserError(
                f"the trace {trace} is {'a folder' if trace.is_dir() else 'the output itself'}",
                "name another JSONL file with --trace",
            )
        require_writable(trace.parent)
    for option, path in (("--out", out), ("--trace", trace)):
        if path is not None and prompts not in (None, "-") and same_file(path, Path(prompts)):
            raise UserError(
                f"{option} {path} is the file of prompts itself", f"name another JSONL file with {option}"
            )


def same_file(one: Path, other: Path) -> bool:
    """Whether two names lead to one file, through links of either kind."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


def follow_link(path: Path) -> Path:
    """Return the target of a symbolic link, so that the file there is written and the link stays."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        path.stat()  # fail now on a loop of links or a name too long for any file
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def drawing(loaded: "Loaded", settings: "SamplerSettings", traced: bool, judged: bool) -> "tuple[Draw, Bar]":
    """Return the function that draws a block of prompts, and the progress bar that it feeds."""
    from rmtools.data.tasks import Answering
    from rmtools.particles.protocol import only_looks
    from rmtools.sampling.sample_prompts import sample_prompts
    from rmtools.sampling.trace import Trace, trace_line

    task, live, last = loaded.task, Live("", 0), None

    @contextlib.contextmanager
    def bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
        nonlocal live
        with live_progress(label, total) as live:
            yield lambda n: live.done(n, last)

    @only_looks
    def observe(step: Any) -> None:
        tokens = step.children.decoded - step.parents.decoded
        live.step(int(tokens.sum()), float(step.ess.mean()))

    def draw(prompts: Sequence[str], rng: Any) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        nonlocal last
        traces: list[Trace] = []
        for record in sample_prompts(
            loaded.policy,
            loaded.value,
            prompts,
            settings,
            rng,
            reward=task.reward if judged else None,
            answer=task.answer if isinstance(task, Answering) else None,
            observe=observe,
            on_traces=traces.extend if traced else None,
        ):
            last = solved(record)
            yield record, [trace_line(t) for t in traces]
            traces.clear()
        last = None

    return draw, bar


def solved(record: Mapping[str, Any]) -> int | None:
    """Return whether the chosen solution is right (1 or 0); None without a verifier."""
    if record["chosen"] is None or any("reward" not in s for s in record["samples"]):
        return None if record["chosen"] is not None else 0
    return int(record["samples"][record["chosen"]]["reward"] == 1)


def plan_for(
    model: str,
    loaded: "Loaded",
    settings: "SamplerSettings",
    prompts: Sequence[str],
    seed: int,
    traced: bool,
    form: "PromptFormat",
) -> "SamplePlan":
    """Return everything the records depend on; block size and accuracy are still open."""
    import rmtools
    from rmtools.jobs.job import drawn_from
    from rmtools.jobs.samples import SamplePlan
    from rmtools.lm.checkpoint import fingerprint
    from rmtools.lm.precision import precision_of

    return SamplePlan(
        **drawn_from(loaded.policy, loaded.task, prompts, seed),
        model=model,
        model_fingerprint=fingerprint(model),
        model_dtype=precision_of(loaded.value),
        floor=loaded.value.tilt.floor,
        sampler=settings,
        accuracy=None,
        block_size=1,
        traced=traced,
        rmtools=rmtools.__version__,
        prompt_format=form,
    )


def audited_as(plan: "SamplePlan") -> "Sampled":
    """Return the part of a plan that must match the audit."""
    from rmtools.auditing.accuracy import Sampled

    names = [f.name for f in fields(Sampled) if f.name != "terminal"]
    return Sampled(**{name: getattr(plan, name) for name in names}, terminal=plan.sampler.terminal)
