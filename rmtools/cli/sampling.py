"""What ``rmtools sample`` does with its options: settings, the plan of the file, the work of this process."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.errors import UserError
from rmtools.processes import Process, this_process

if TYPE_CHECKING:
    from rmtools.audit.accuracy import Accuracy, Predicted
    from rmtools.cli.loading import Loaded
    from rmtools.data.sample_plan import SamplePlan
    from rmtools.lm.inference import SamplerSettings


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
        from rmtools.lm.inference import settings_for

        if self.accuracy is None:
            if self.audit is not None:
                raise UserError("--audit is read for --accuracy only", "pass --accuracy tv=.05, say")
            return settings_for(self.algorithm, **self.given), None
        from rmtools.audit.accuracy import Accuracy

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


def sample(
    wanted: Wanted,
    model: Path,
    policy: str | None,
    task: str | None,
    horizon: int | None,
    prompts: str,
    out: Path,
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
    from rmtools.cli.loading import device_of_process, load
    from rmtools.cli.options import generator
    from rmtools.data.prompts import check_prompts, read_prompts
    from rmtools.data.samples import SampleFile

    settings, accuracy = wanted.settings()
    generator("sample", seed)  # refuses a negative seed
    if out.is_dir():
        raise UserError(f"the output {out} is a folder", "name a JSONL file with --out")
    process = this_process()
    quiet_unless_main(process)
    loaded = load(model, policy, task, horizon, share=True, device=device_of_process())
    predicted = None
    if accuracy is not None:
        predicted = predict(accuracy, wanted.audit or model / "audit", model, loaded, settings)
        settings = replace(settings, n_particles=predicted.n_particles)
    found = read_prompts(prompts, loaded.task)
    check_prompts(found, loaded.task, loaded.policy)
    plan = plan_for(model, loaded, settings, predicted, found, block_size, seed)
    file = SampleFile(out, plan, process)
    if predicted is not None and process.main:
        print(predicted)
    made = file.make(found, drawing(loaded, settings), bar_for(process), overwrite)
    if process.main:
        from rmtools.cli.sampled import report

        print(f"{'' if made else 'finished already; '}{report(out)}")


def drawing(
    loaded: "Loaded", settings: "SamplerSettings", **plugged: Any
) -> Callable[[Sequence[str], Any], Iterator[Any]]:
    """Return what draws the records of a block of prompts: the one call of the sampler.

    ``plugged`` are ``start`` and ``watch`` of `sample_prompts`: another engine, a tracer, what shows progress.
    """
    from rmtools.data.tasks import Answering
    from rmtools.lm.inference import sample_prompts

    task = loaded.task
    judged: dict[str, Any] = {
        "reward": task.reward,
        "answer": task.answer if isinstance(task, Answering) else None,
    }

    def draw(prompts: Sequence[str], rng: Any) -> Iterator[Any]:
        return sample_prompts(loaded.policy, loaded.value, prompts, settings, rng, **judged, **plugged)

    return draw


def predict(
    accuracy: "Accuracy", audit: Path, model: Path, loaded: "Loaded", settings: "SamplerSettings"
) -> "Predicted":
    """Return the particles that the audit predicts for ``accuracy``; raises ``UserError`` where it cannot."""
    from rmtools.audit.accuracy import Sampled, particles_for
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
    loaded: "Loaded",
    settings: "SamplerSettings",
    predicted: "Predicted | None",
    prompts: Sequence[str],
    block_size: int | None,
    seed: int,
) -> "SamplePlan":
    """Return everything the records depend on."""
    import rmtools
    from rmtools.data.plan import hash_of
    from rmtools.data.sample_plan import SamplePlan, usual_block
    from rmtools.data.tasks.custom import code_hash
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
        prompts_sha256=hash_of(prompts, [task.reference(p) for p in prompts]),
        block_size=usual_block(settings) if block_size is None else block_size,
        rmtools=rmtools.__version__,
    )


def quiet_unless_main(process: Process) -> None:
    """Leave the bars of loading to the main process."""
    if not process.main:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()


def bar_for(
    process: Process,
) -> Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], object]]]:
    """Return what shows a progress bar in the main process and nothing in others."""
    from rmtools.cli.rollout import bar_if

    return lambda label, total: bar_if(process.main, label, total)
