"""What ``rmtools sample`` does with its options: settings, the plan of the file, the work of this process."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.cli.shown import Shown
from rmtools.errors import UserError
from rmtools.files import writable_beside
from rmtools.jobs.processes import Process, this_process

if TYPE_CHECKING:
    from rmtools.auditing.accuracy import Accuracy, Predicted
    from rmtools.cli.server import Server
    from rmtools.data.tasks import Task
    from rmtools.jobs.sample_plan import SamplePlan
    from rmtools.lm.protocol import StepPolicy
    from rmtools.lm.value import ValueModel
    from rmtools.sampling.sample_prompts import SamplerSettings


@dataclass(frozen=True)
class Wanted:
    """The sampler as the options say.

    Attributes
    ----------
    algorithm : str or None
    given : mapping
        Fields of `SamplerSettings`; None where the option was not given.
    accuracy : str or None
        As written.
    audit : Path or None
    """

    algorithm: str | None
    given: Mapping[str, Any]
    accuracy: str | None = None
    audit: Path | None = None

    def settings(self) -> "tuple[SamplerSettings, Accuracy | None]":
        """Return the settings, and the accuracy from which N is still to come.

        Raises
        ------
        UserError
            Where options contradict each other.
        """
        from rmtools.sampling.sample_prompts import settings_for

        if self.accuracy is None:
            if self.audit is not None:
                raise UserError("--audit is read for --accuracy only", "pass --accuracy tv=.05, say")
            return settings_for(self.algorithm, **self.given), None
        from rmtools.auditing.accuracy import Accuracy

        accuracy = Accuracy.parse(self.accuracy)
        self._check_predicted()
        given = {**self.given, "n_particles": 1, "resampling": "multinomial", "ess_threshold": 1.0}
        return settings_for("smc", **given), accuracy

    def _check_predicted(self) -> None:
        """Raise ``UserError`` where the audit's prediction is not of the sampler that is asked for."""
        for name, option, only in (
            ("n_particles", "-n", ()),
            ("pool_size", "--pool-size", (1,)),
            ("resampling", "--resampling", ("multinomial",)),
            ("ess_threshold", "--ess-threshold", (1,)),
            ("mh_steps", "--mh-steps", (0,)),
            ("sweeps", "--sweeps", (0,)),
        ):
            value = self.given.get(name)
            if value is not None and value not in only:
                reason = (
                    f"the audit's prediction is of {option} {only[0]}"
                    if only
                    else "it chooses N by the audit"
                )
                raise UserError(f"--accuracy contradicts {option} {value}: {reason}", f"leave {option} out")
        if self.algorithm not in (None, "smc"):
            raise UserError(
                f"--accuracy contradicts --algorithm {self.algorithm}: the audit's prediction is of smc",
                "leave one of them out",
            )


@dataclass(frozen=True)
class Engine:
    """What is sampled from: a policy here or behind a server, a value model, a task."""

    policy: "StepPolicy"
    value: "ValueModel"
    task: "Task"


@dataclass(frozen=True)
class Inputs:
    """What is sampled from and for, as the options say."""

    model: Path
    policy: str | None
    task: str | None
    horizon: int | None
    prompts: str
    server: "Server | None" = None

    def load(self, seed: int) -> Engine:
        """Load value model, policy and task, or connect to the server."""
        from rmtools.cli.loading import device_of_process, load, load_beside_policy
        from rmtools.cli.server import connect_policy

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
    wanted: Wanted,
    inputs: Inputs,
    out: Path,
    trace: Path | None,
    block_size: int | None,
    overwrite: bool,
    seed: int,
) -> None:
    """Sample every prompt of the file into ``out``; print what came of it.

    Raises
    ------
    UserError
        For options out of range or in contradiction, a broken prompts file, and what `SampleFile.make` refuses.
    """
    from rmtools.data.prompts import check_prompts, read_prompts
    from rmtools.jobs.samples import SampleFile

    settings, accuracy = wanted.settings()
    out, trace = followed(out), None if trace is None else followed(trace)
    if out.is_dir():
        raise UserError(f"the output {out} is a folder", "name a JSONL file with --out")
    check_trace(trace, out, settings)
    check_prompts_stay(Path(inputs.prompts), out, trace)
    process = this_process()
    quiet_unless_main(process)
    loaded = inputs.load(seed)
    predicted, model = None, inputs.model
    if accuracy is not None:
        predicted = predict(accuracy, wanted.audit or model / "audit", model, loaded, settings)
        settings = replace(settings, n_particles=predicted.n_particles)
    found = read_prompts(inputs.prompts, loaded.task)
    check_prompts(found, loaded.task, loaded.policy)
    plan = plan_for(model, loaded, settings, predicted, found, block_size, seed, trace is not None)
    file = SampleFile(out, plan, process, trace)
    if predicted is not None and process.main:
        print(predicted)
    shown = Shown()
    made = file.make(found, drawing(loaded, settings, shown, trace is not None), shown.bar, overwrite)
    if process.main:
        finish(loaded, out, trace, made)


def finish(loaded: Engine, out: Path, trace: Path | None, made: bool) -> None:
    """Print the report of the file, and what a server was asked for."""
    from rmtools.cli.sampled import report
    from rmtools.cli.server import summary
    from rmtools.serving.server import ServerPolicy

    print(f"{'' if made else 'finished already; '}{report(out)}")
    if trace is not None:
        print(f"trace: {trace} (`rmtools plot trace {trace}` draws it)")
    if isinstance(loaded.policy, ServerPolicy):
        print(summary(loaded.policy))


def check_trace(trace: Path | None, out: Path, settings: "SamplerSettings") -> None:
    """Raise ``UserError`` where a trace cannot be written, or there is none."""
    if trace is None:
        return
    if trace.is_dir() or same_file(trace, out):
        raise UserError(
            f"the trace {trace} is {'a folder' if trace.is_dir() else 'the output itself'}",
            "name another JSONL file with --trace",
        )
    writable_beside(trace)
    if settings.sweeps:
        raise UserError(
            "--trace has nothing to write of gibbs: its runs are conditional ones",
            "trace smc, or leave --trace out",
        )


def same_file(one: Path, other: Path) -> bool:
    """Whether two names are of one file, through links of either kind."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


def followed(path: Path) -> Path:
    """Return where a symbolic link points to, so that the file there is written and not the link replaced."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        path.stat()  # a loop of links, and a name too long for any file, are better known now
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_prompts_stay(prompts: Path, out: Path, trace: Path | None) -> None:
    """Raise ``UserError`` where the file of prompts would be replaced."""
    for option, path in (("--out", out), ("--trace", trace)):
        if path is not None and same_file(path, prompts):
            raise UserError(
                f"{option} {path} is the file of prompts itself", f"name another JSONL file with {option}"
            )


def drawing(
    loaded: Engine, settings: "SamplerSettings", shown: Shown, traced: bool = False
) -> Callable[[Sequence[str], Any], Iterator[Any]]:
    """Return what draws the records of a block of prompts, each followed by its traces: the one call of the sampler."""
    from rmtools.data.tasks import Answering
    from rmtools.sampling.sample_prompts import sample_prompts
    from rmtools.sampling.tracer import Tracer

    task = loaded.task
    judged: dict[str, Any] = {
        "reward": task.reward,
        "answer": task.answer if isinstance(task, Answering) else None,
    }

    def draw(prompts: Sequence[str], rng: Any) -> Iterator[Any]:
        tracer = Tracer(shown.start, asdict(settings)) if traced else None

        def watch(of: Sequence[str], result: Any) -> None:
            shown.watch(result)
            if tracer is not None:
                tracer.watch(of, result)

        start = shown.start if tracer is None else tracer.start
        for record in sample_prompts(
            loaded.policy, loaded.value, prompts, settings, rng, **judged, start=start, watch=watch
        ):
            shown.next_solved = solved(record)
            yield record, ([] if tracer is None else tracer.take(record))

    return draw


def solved(record: Mapping[str, Any]) -> int | None:
    """Return whether the solution that was put out is right (1 or 0); None where nobody judges."""
    chosen = record[record["output"].replace("-", "_")]
    if chosen is None or any("reward" not in s for s in record["samples"]):
        return None if chosen is not None else 0
    return int(record["samples"][chosen]["reward"] == 1)


def predict(
    accuracy: "Accuracy", audit: Path, model: Path, loaded: Engine, settings: "SamplerSettings"
) -> "Predicted":
    """Return the particles that the audit predicts for ``accuracy``; raises ``UserError`` where it cannot."""
    from rmtools.auditing.accuracy import Sampled, particles_for
    from rmtools.lm.checkpoint import fingerprint

    source = loaded.policy
    sampled = Sampled(
        str(model),
        fingerprint(model),
        source.name,
        fingerprint(source.name),
        source.temperature,
        loaded.value.tilt.floor,
        loaded.task.name,
        settings.terminal,
    )
    return particles_for(accuracy, audit, sampled)


def plan_for(
    model: Path,
    loaded: Engine,
    settings: "SamplerSettings",
    predicted: "Predicted | None",
    prompts: Sequence[str],
    block_size: int | None,
    seed: int,
    traced: bool,
) -> "SamplePlan":
    """Return everything the records depend on."""
    import rmtools
    from rmtools.data.tasks.custom import code_hash
    from rmtools.jobs.job import prompts_hash
    from rmtools.jobs.sample_plan import SamplePlan, usual_block
    from rmtools.lm.checkpoint import fingerprint

    task, source = loaded.task, loaded.policy
    return SamplePlan(
        model=str(model),
        model_fingerprint=fingerprint(model),
        policy=source.name,
        policy_fingerprint=fingerprint(source.name),
        device=source.device.type,
        temperature=source.temperature,
        floor=loaded.value.tilt.floor,
        task=task.name,
        task_sha256=code_hash(task),
        horizon=task.horizon,
        steps=source.steps.settings,
        sampler=settings,
        accuracy=None if predicted is None else predicted.to_dict(),
        seed=seed,
        prompts=len(prompts),
        prompts_sha256=prompts_hash(prompts, [task.reference(p) for p in prompts]),
        block_size=usual_block(settings) if block_size is None else block_size,
        traced=traced,
        rmtools=rmtools.__version__,
    )


def quiet_unless_main(process: Process) -> None:
    """Leave the bars of loading to the main process."""
    if not process.main:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
