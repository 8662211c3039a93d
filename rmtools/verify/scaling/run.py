"""The claim on language models: a policy and reward models are trained, and their particles predicted and measured.

Stages (docs/scaling.md): a policy for all horizons; its prompts as tables; rollouts; two trainings; a point for each reward
model, horizon and sampler; the report.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.codec import from_json, to_json
from rmtools.data.tasks.crossing import Crossing
from rmtools.errors import UserError
from rmtools.exact.finite_model import FiniteModel
from rmtools.files import read_json, write_json
from rmtools.jobs.lock import held
from rmtools.jobs.processes import Process
from rmtools.lm.protocol import Scorer
from rmtools.particles.tilt import Tilt
from rmtools.seeds import generator
from rmtools.verify.scaling.measure import FEWEST_RUNS, SAMPLERS
from rmtools.verify.scaling.points import STEP_TOKENS, Consistency, Point, Setting, consistency, measure_point
from rmtools.verify.scaling.profile import DELTA_CV, EPSILON, SHARE_OF_TARGET, Profile
from rmtools.verify.scaling.prompts import alike_prompts
from rmtools.verify.scaling.stages import Stages
from rmtools.verify.scaling.tables import Table, enumerate_states, load_tables, merge_states, save_tables
from rmtools.verify.scaling.values import TableValue, exact_values, planted_values

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
VERSION = 1
MODELS = ("constant", "untrained", "mc-early", "mc-late", "default-early", "default-late", "planted", "exact")
POLICY, ROLLOUTS = "policy", "rollouts"
LOSSES: dict[str, dict[str, str]] = {"mc": {"target": "mc", "divergence": "bce"}, "default": {}}
# The fewest particles that a budget has to allow.
FEWEST_PARTICLES = 2
# Prefixes that stand for a merged state.
KEPT = 2
GATE_SOLUTIONS = 1024


@dataclass(frozen=True)
class Horizon:
    """The policy at one horizon, on the prompts that are measured: its success, the floor, and how prefixes were tabulated."""

    horizon: int
    success: float
    floor: float
    target_success: float
    uncovered: float
    states: int
    merged: bool


def task_of(profile: Profile, horizon: int) -> Crossing:
    """Return the task at one horizon."""
    return Crossing(horizon, silent=profile.task == "crossing-silent")


@dataclass(frozen=True)
class Machine:
    """Where a run computes: the device of the models, and the processes that measure points."""

    device: str = "cpu"
    workers: int = 2


def run_stages(out: Path, profile: Profile, progress: Progress, machine: Machine) -> Stages:
    """Run what is missing of a profile in ``out``.

    Raises
    ------
    UserError
        If the budget is too small for two particles at some horizon, ``out`` is in use, or holds another configuration or
        changed files, or the policy does not pass its gate.
    """
    check_budget(profile)
    with held(out, Process(0, 1), "verification"):
        stages = Stages.open(out, to_json(profile))
        _run_missing(stages, profile, progress, machine)
    return stages


def check_budget(profile: Profile) -> None:
    """Raise ``UserError`` if the budget of a point does not allow two particles at every horizon."""
    for horizon in profile.horizons:
        needed = budget_for(profile, horizon, FEWEST_PARTICLES)
        if needed > profile.most_tokens:
            raise UserError(
                f"a budget of {profile.most_tokens:g} tokens a point is too small for T = {horizon}: {FEWEST_RUNS} runs of "
                f"{FEWEST_PARTICLES} particles on {profile.prompts} prompts take {needed:g}",
                f"pass `token_budget` {budget_for(profile, profile.horizons[-1], FEWEST_PARTICLES):g}, or more",
            )


def budget_for(profile: Profile, horizon: int, n: int) -> float:
    """Return the tokens of the runs that N particles are judged by at least."""
    return FEWEST_RUNS * n * profile.prompts * STEP_TOKENS * horizon


def _run_missing(stages: Stages, profile: Profile, progress: Progress, machine: Machine) -> None:
    out = stages.folder
    stages.run(POLICY, partial(_train_policy, profile, progress, machine))
    for horizon in profile.horizons:
        stages.run(_tables_name(horizon), partial(_tabulate, out, profile, horizon, progress))
    stages.run(ROLLOUTS, partial(_collect, out, profile, progress, machine))
    for loss in LOSSES:
        stages.run(f"models/{loss}", partial(_train, out, profile, loss, progress, machine))
    _measure(stages, profile, progress, machine)


def _tables_name(horizon: int) -> str:
    return f"tables/{horizon}.npz"


def _train_policy(profile: Profile, progress: Progress, machine: Machine, path: Path) -> None:
    from rmtools.verify.scaling.policy import measure_gate, train_policy

    tasks = [task_of(profile, t) for t in profile.horizons]
    with progress("training the policy", profile.policy.updates) as tick:
        train_policy(tasks, path, profile.policy, profile.seed, tick, machine.device)
    with progress("checking the policy", len(tasks)) as tick:
        gates = []
        for task in tasks:
            rng = generator(f"scaling gate {task.horizon}", profile.seed)
            gates.append(measure_gate(task, path, GATE_SOLUTIONS, rng))
            tick(1)
    write_json(path / "gate.json", [to_json(g) for g in gates])
    failed = [g for g in gates if not g.passed]
    if failed:
        figures = "; ".join(
            f"at T = {g.horizon} {g.well_formed:.3f} of the solutions are well-formed, {g.right:.3f} of the steps right, "
            f"{g.step_success:.3f} safe"
            for g in failed
        )
        raise UserError(
            f"the policy does not pass its gate (at least .98, at least .99, .75 to .85): {figures}",
            "run again with another `seed`",
        )


def _tabulate(out: Path, profile: Profile, horizon: int, progress: Progress, path: Path) -> None:
    task, rng = task_of(profile, horizon), generator(f"scaling prompts {horizon}", profile.seed)
    policy, found = load_policy_of(out, profile, horizon), []
    prompts = alike_prompts(task, profile.prompts, rng)
    with progress(f"tables of T = {horizon}", len(prompts)) as tick:
        for prompt in prompts:
            found.append(
                enumerate_states(policy, task, prompt, 1e-3)
                if horizon <= profile.enumerated
                else merge_states(policy, task, prompt, KEPT, rng)
            )
            tick(1)
    save_tables(path, found)


def _collect(out: Path, profile: Profile, progress: Progress, machine: Machine, path: Path) -> None:
    from rmtools.verify.scaling.training import collect

    tasks = [task_of(profile, t) for t in profile.horizons]
    collect(
        out / POLICY,
        tasks,
        profile.rollout_prompts,
        profile.trajectories,
        profile.seed,
        path,
        machine.device,
        progress,
    )


def _train(out: Path, profile: Profile, loss: str, progress: Progress, machine: Machine, path: Path) -> None:
    from rmtools.verify.scaling.training import Training, train

    floor = horizon_of(load_tables(out / _tables_name(profile.horizons[-1])), merged=True).floor
    saved = [profile.early, *(profile.curve if loss == "default" else ())]
    with progress(f"training {loss}", profile.updates) as tick:
        size = Training(profile.updates, tuple(saved), floor, profile.seed, machine.device)
        train(out / POLICY, out / ROLLOUTS, path, size, tick, LOSSES[loss])


def horizon_of(tables: Sequence[Table], merged: bool) -> Horizon:
    """Return what is known of the policy at a horizon from its tables; the floor is a tenth of its success."""
    p = np.asarray([t.success for t in tables])
    floor = float(p.mean()) / 10
    return Horizon(
        tables[0].horizon,
        float(p.mean()),
        floor,
        float(np.mean(p / (floor + (1 - floor) * p))),
        float(np.mean([t.uncovered for t in tables])),
        sum(len(r) for t in tables for r in t.rules),
        merged,
    )


def load_policy_of(out: Path, profile: Profile, horizon: int, device: str = "cpu") -> Any:
    """Return the policy with steps of one horizon."""
    import torch

    from rmtools.lm.policy import load_policy
    from rmtools.lm.steps import StepSettings

    return load_policy(
        out / POLICY, StepSettings(task_of(profile, horizon).delimiter, horizon), device=torch.device(device)
    )


def checkpoint_of(out: Path, profile: Profile, name: str) -> Path:
    """Return the folder of a trained model: ``mc-late``, or ``default-early``, or ``default-150`` after 150 optimiser steps."""
    loss, _, when = name.partition("-")
    if when in ("late", str(profile.updates)):
        return out / "models" / loss
    return out / "models" / loss / f"checkpoint-{profile.early if when == 'early' else when}"


def load_model(
    out: Path, profile: Profile, name: str, tables: Sequence[Table], policy: Any, tilt: Tilt
) -> tuple[Scorer, list[FiniteModel]]:
    """Return a reward model as a scorer of the policy's prefixes, and its values on the tables."""
    from rmtools.lm.checkpoint import load_value_model
    from rmtools.lm.classifier import new_token_classifier
    from rmtools.lm.value import ConstantValue, ValueModel

    if name in ("exact", "planted"):
        values = [
            exact_values(t, tilt) if name == "exact" else planted_values(t, tilt, EPSILON) for t in tables
        ]
        choices = task_of(profile, tables[0].horizon).step_choices("", [])
        scorer: Scorer = TableValue(tables, values, choices, policy.steps, tilt, name)
        return scorer, [t.model(v) for t, v in zip(tables, values, strict=True)]
    if name == "constant":
        scorer = ConstantValue(float(np.mean([t.success for t in tables])), policy.steps, tilt)
    elif name == "untrained":
        untrained = new_token_classifier(str(out / POLICY), profile.seed).to(policy.device)
        scorer = ValueModel(untrained, policy.steps, tilt, name)
    else:
        trained, _ = load_value_model(checkpoint_of(out, profile, name), device=policy.device)
        scorer = ValueModel(trained.model, policy.steps, tilt, name)
    return scorer, [t.model(t.log_values(scorer)) for t in tables]


def _measure(stages: Stages, profile: Profile, progress: Progress, machine: Machine) -> None:
    """Measure the missing points in processes, the longest horizons first."""
    jobs = [(m, t, s) for t in profile.horizons[::-1] for m in MODELS for s in SAMPLERS]
    jobs += [
        (m, t, "")
        for t in profile.horizons[::-1]
        for m in (*MODELS, *(f"default-{k}" for k in profile.curve))
    ]
    missing = [j for j in jobs if point_name(*j) not in stages.done]
    if not missing:
        return
    with progress("points", len(missing)) as tick:
        for job, seconds in _made(stages.folder, profile, machine, missing):
            stages.finished(point_name(*job), seconds)
            tick(1)


_Job = tuple[str, int, str]


def _made(out: Path, profile: Profile, machine: Machine, jobs: list[_Job]) -> Iterator[tuple[_Job, float]]:
    """Yield each job with its seconds when it is done."""
    if machine.workers == 1:
        for job in jobs:
            yield job, make_point(out, profile, machine.device, *job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(machine.workers, mp_context=context) as pool:
        waiting = {pool.submit(make_point, out, profile, machine.device, *job): job for job in jobs}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def point_name(model: str, horizon: int, sampler: str) -> str:
    """Return the file of a point, or of a model's consistency if ``sampler`` is empty."""
    return f"points/{horizon}-{model}-{sampler}.json" if sampler else f"consistency/{horizon}-{model}.json"


def make_point(out: Path, profile: Profile, device: str, model: str, horizon: int, sampler: str) -> float:
    """Measure a point and write its file; return the seconds."""
    import time

    import torch

    began = time.monotonic()
    torch.set_num_threads(1)
    tables = load_tables(out / _tables_name(horizon))
    at = horizon_of(tables, horizon > profile.enumerated)
    policy = load_policy_of(out, profile, horizon, device)
    tilt = Tilt(at.floor)
    scorer, models = load_model(out, profile, model, tables, policy, tilt)
    file = out / point_name(model, horizon, sampler)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not sampler:
        write_json(file, to_json(consistency(models)))
        return time.monotonic() - began
    setting = Setting(
        task_of(profile, horizon),
        policy,
        tables,
        tilt,
        DELTA_CV,
        SHARE_OF_TARGET,
        profile.most_tokens,
        profile.most_on_tables,
    )
    rng = generator(f"scaling {model} {horizon} {sampler}", profile.seed)
    write_json(file, to_json(measure_point(setting, model, scorer, models, sampler, rng)))
    return time.monotonic() - began


@dataclass(frozen=True)
class Scaling:
    """Everything that was measured.

    Attributes
    ----------
    profile : Profile
    horizons : list of Horizon
    points : list of Point
    consistency : dict
        ``"model at T"`` to `Consistency`; of the default's checkpoints also.
    """

    profile: Profile
    horizons: list[Horizon]
    points: list[Point]
    consistency: dict[str, Consistency]


def run_scaling(out: Path, profile: Profile, progress: Progress, machine: Machine) -> Scaling:
    """Run what is missing of a profile in ``out``, and write the report; see `run_stages` for the errors."""
    stages = run_stages(out, profile, progress, machine)
    found = read_scaling(stages, profile)
    write_json(out / "scaling.json", to_json(found))
    return found


def read_scaling(stages: Stages, profile: Profile) -> Scaling:
    """Read the finished stages."""
    out = stages.folder
    horizons = [
        horizon_of(load_tables(out / _tables_name(t)), t > profile.enumerated) for t in profile.horizons
    ]
    points, found = [], {}
    for name in sorted(stages.done):
        kind, _, rest = name.partition("/")
        if kind == "points":
            points.append(from_json(Point, read_json(out / name, "a point")))
        elif kind == "consistency":
            horizon, _, model = rest.removesuffix(".json").partition("-")
            found[f"{model} at {horizon}"] = from_json(
                Consistency, read_json(out / name, "a model's consistency")
            )
    points.sort(key=lambda p: (p.sampler, MODELS.index(p.model), p.horizon))
    return Scaling(profile, horizons, points, found)
