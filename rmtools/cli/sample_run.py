"""What ``rmtools sample`` does with its options: settings, the plan of the file, drawing, and the report."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.cli.progress import Live, live_progress
from rmtools.errors import UserError
from rmtools.files import require_writable
from rmtools.jobs.processes import this_process

if TYPE_CHECKING:
    from rmtools.auditing.accuracy import Accuracy, Sampled
    from rmtools.cli.server import Server
    from rmtools.data.tasks import Task
    from rmtools.jobs.job import Bar
    from rmtools.jobs.samples import Draw, SamplePlan
    from rmtools.lm.protocol import StepPolicy
    from rmtools.lm.value import ValueModel
    from rmtools.sampling.sample_prompts import SamplerSettings

# What the audit's prediction of N holds for.
PREDICTED = {"pool_size": 1, "resampling": "multinomial", "ess_threshold": 1.0, "mh_steps": 0, "sweeps": 0}


@dataclass(frozen=True)
class SampleRequest:
    """The sampler that the options ask for.

    Attributes
    ----------
    algorithm : str or None
    given : mapping
        Fields of `SamplerSettings`; None for options that are not given.
    accuracy : str or None
        As written.
    audit : Path or None
    """

    algorithm: str | None
    given: Mapping[str, Any]
    accuracy: str | None = None
    audit: Path | None = None

    def settings(self) -> "tuple[SamplerSettings, Accuracy | None]":
        """Return the settings, and the accuracy that is still to decide N.

        Raises
        ------
        UserError
            If options contradict each other.
        """
        from rmtools.sampling.sample_prompts import settings_for

        if self.accuracy is None:
            if self.audit is not None:
                raise UserError("--audit is read for --accuracy only", "pass --accuracy tv=.05, say")
            return settings_for(self.algorithm, **self.given), None
        from rmtools.auditing.accuracy import Accuracy

        accuracy = Accuracy.parse(self.accuracy)
        self._check_predicted()
        return settings_for("smc", **{**self.given, **PREDICTED, "n_particles": 1}), accuracy

    def _check_predicted(self) -> None:
        """Raise ``UserError`` unless the audit's prediction holds for this sampler."""
        asked = {"algorithm": self.algorithm, **self.given}
        for name, only in {"algorithm": "smc", "n_particles": None, **PREDICTED}.items():
            if asked.get(name) not in (None, only):
                reason = f"the audit predicts `{name}` {only}" if only is not None else "it chooses N"
                raise UserError(
                    f"--accuracy contradicts `{name}` {asked[name]}: {reason}", f"leave `{name}` out"
                )


@dataclass(frozen=True)
class Engine:
    """What is sampled from: a policy here or behind a server, a value model, a task."""

    policy: "StepPolicy"
    value: "ValueModel"
    task: "Task"


@dataclass(frozen=True)
class Inputs:
    """The models, the task and the prompts that the options name."""

    model: Path
    policy: str | None
    task: str | None
    horizon: int | None
    prompts: str
    server: "Server | None" = None

    def load(self, seed: int) -> Engine:
        """Load value model, policy and task, or connect to the server."""
        from rmtools.cli.loading import device_of_process
        from rmtools.cli.server import connect_policy
        from rmtools.sampling.loading import load, load_beside_policy

        device = device_of_process()
        if self.server is None:
            loaded = load(self.model, self.policy, self.task, self.horizon, share=True, device=device)
            return Engine(loaded.policy, loaded.value, loaded.task)
        if self.policy is not None:
            raise UserError("--policy and --server both name a policy", "leave one of them out")
        value, task, temperature = load_beside_policy(self.model, self.task, self.horizon, device)
        policy = connect_policy(self.server, value.steps, temperature, seed, value.device)
        return Engine(policy, value, task)


def sample(
    request: SampleRequest,
    inputs: Inputs,
    out: Path,
    trace: Path | None,
    block_size: int | None,
    overwrite: bool,
    seed: int,
) -> None:
    """Sample every prompt of the file into ``out``, and print the report.

    Raises
    ------
    UserError
        For options out of range or in contradiction, a broken prompts file, and what `SampleFile.make` refuses.
    """
    from rmtools.auditing.accuracy import particles_for
    from rmtools.data.prompts import check_prompts, read_prompts
    from rmtools.jobs.samples import SampleFile
    from rmtools.sampling.sample_prompts import usual_block

    settings, accuracy = request.settings()
    out, trace = follow_link(out), None if trace is None else follow_link(trace)
    check_places(Path(inputs.prompts), out, trace)
    if trace is not None and settings.sweeps:
        raise UserError(
            "--trace cannot follow gibbs: its runs are conditional", "trace smc, or leave --trace out"
        )
    process = this_process()
    if not process.main:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    engine = inputs.load(seed)
    prompts = read_prompts(inputs.prompts, engine.task)
    check_prompts(prompts, engine.task, engine.policy)
    plan = plan_for(inputs.model, engine, settings, prompts, seed, trace is not None)
    if accuracy is not None:
        predicted = particles_for(accuracy, request.audit or inputs.model / "audit", audited_as(plan))
        settings = replace(settings, n_particles=predicted.n_particles)
        plan = replace(plan, sampler=settings, accuracy=predicted.to_dict())
        if process.main:
            print(predicted)
    plan = replace(plan, block_size=block_size or usual_block(settings))
    draw, bar = drawing(engine, settings, trace is not None)
    made = SampleFile(out, plan, process, trace).make(prompts, draw, bar, overwrite)
    if process.main:
        finish(engine, out, trace, made)


def finish(engine: Engine, out: Path, trace: Path | None, made: bool) -> None:
    """Print the report of the file, and what was asked of a server."""
    from rmtools.cli.sample_report import report
    from rmtools.cli.server import summary
    from rmtools.serving.server import ServerPolicy

    print(f"{'' if made else 'finished already; '}{report(out)}")
    if trace is not None:
        print(f"trace: {trace} (`rmtools plot trace {trace}` draws it)")
    if isinstance(engine.policy, ServerPolicy):
        print(summary(engine.policy))


def check_places(prompts: Path, out: Path, trace: Path | None) -> None:
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
        if path is not None and same_file(path, prompts):
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


def drawing(engine: Engine, settings: "SamplerSettings", traced: bool) -> "tuple[Draw, Bar]":
    """Return the function that draws a block of prompts, and the progress bar that it feeds."""
    from rmtools.data.tasks import Answering
    from rmtools.sampling.sample_prompts import sample_prompts
    from rmtools.sampling.trace import Trace, trace_line

    task, live, last = engine.task, Live("", 0), None

    @contextlib.contextmanager
    def bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
        nonlocal live
        with live_progress(label, total) as live:
            yield lambda n: live.done(n, last)

    def observe(step: Any) -> None:
        tokens = step.children.decoded - step.parents.decoded
        live.step(int(tokens.sum()), float(step.ess.mean()))

    def draw(prompts: Sequence[str], rng: Any) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        nonlocal last
        traces: list[Trace] = []
        for record in sample_prompts(
            engine.policy,
            engine.value,
            prompts,
            settings,
            rng,
            reward=task.reward,
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
    model: Path, engine: Engine, settings: "SamplerSettings", prompts: Sequence[str], seed: int, traced: bool
) -> "SamplePlan":
    """Return everything the records depend on; block size and accuracy are still open."""
    import rmtools
    from rmtools.data.tasks.custom import code_hash
    from rmtools.jobs.job import prompts_hash
    from rmtools.jobs.samples import SamplePlan
    from rmtools.lm.checkpoint import fingerprint

    task, policy = engine.task, engine.policy
    return SamplePlan(
        model=str(model),
        model_fingerprint=fingerprint(model),
        policy=policy.name,
        policy_fingerprint=fingerprint(policy.name),
        device=policy.device.type,
        temperature=policy.temperature,
        floor=engine.value.tilt.floor,
        task=task.name,
        task_sha256=code_hash(task),
        horizon=task.horizon,
        steps=policy.steps.settings,
        sampler=settings,
        accuracy=None,
        seed=seed,
        prompts=len(prompts),
        prompts_sha256=prompts_hash(prompts, [task.reference(p) for p in prompts]),
        block_size=1,
        traced=traced,
        rmtools=rmtools.__version__,
    )


def audited_as(plan: "SamplePlan") -> "Sampled":
    """Return the part of a plan that must match the audit."""
    from rmtools.auditing.accuracy import Sampled

    names = [f.name for f in fields(Sampled) if f.name != "terminal"]
    return Sampled(**{name: getattr(plan, name) for name in names}, terminal=plan.sampler.terminal)
