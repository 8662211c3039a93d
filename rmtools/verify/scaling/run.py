"""The claim on language models: a policy and reward models are trained, and their particles predicted and measured.

Stages (docs/scaling.md): a policy for all horizons; its prompts as tables; rollouts; two trainings; a point for each reward
model, horizon and sampler; the report.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rmtools.codec import from_json, to_json
from rmtools.errors import UserError
from rmtools.files import read_json, write_json
from rmtools.jobs.lock import held
from rmtools.jobs.processes import Process
from rmtools.seeds import generator
from rmtools.verify.scaling.audits import Audited
from rmtools.verify.scaling.baselines import Baseline
from rmtools.verify.scaling.exact_families import FamilyPoint
from rmtools.verify.scaling.jobs import (
    POLICY,
    Horizon,
    Job,
    horizon_of,
    jobs_of,
    load_policy_of,
    make,
    tables_file,
    task_of,
)
from rmtools.verify.scaling.measure import FEWEST_RUNS
from rmtools.verify.scaling.points import STEP_TOKENS, Consistency, Point, Variance
from rmtools.verify.scaling.profile import MODELS, TRAINED, Profile
from rmtools.verify.scaling.prompts import alike_prompts
from rmtools.verify.scaling.stages import Stages
from rmtools.verify.scaling.tables import enumerate_states, load_tables, merge_states, save_tables

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
ROLLOUTS = "rollouts"
LOSSES: dict[str, dict[str, str]] = {"mc": {"target": "mc", "divergence": "bce"}, "default": {}}
# The fewest particles that a budget has to allow.
FEWEST_PARTICLES = 2
# Prefixes that stand for a merged state.
KEPT = 2
GATE_SOLUTIONS = 1024


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
        stages.run(tables_file(horizon), partial(_tabulate, out, profile, horizon, progress))
    stages.run(ROLLOUTS, partial(_collect, out, profile, progress, machine))
    for loss in LOSSES:
        stages.run(f"models/{loss}", partial(_train, out, profile, loss, progress, machine))
    _measure(stages, profile, progress, machine)


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

    floor = horizon_of(load_tables(out / tables_file(profile.horizons[-1])), merged=True).floor
    saved = [profile.early, *(profile.curve if loss == "default" else ())]
    with progress(f"training {loss}", profile.updates) as tick:
        size = Training(profile.updates, tuple(saved), floor, profile.seed, machine.device)
        train(out / POLICY, out / ROLLOUTS, path, size, tick, LOSSES[loss])


def _measure(stages: Stages, profile: Profile, progress: Progress, machine: Machine) -> None:
    """Measure what is missing, in processes."""
    missing = [j for j in jobs_of(profile) if j.file not in stages.done]
    if not missing:
        return
    with progress("points", len(missing)) as tick:
        for job, seconds in _made(stages.folder, profile, machine, missing):
            stages.finished(job.file, seconds)
            tick(1)


def _made(out: Path, profile: Profile, machine: Machine, jobs: list[Job]) -> Iterator[tuple[Job, float]]:
    """Yield each job with its seconds when it is done."""
    if machine.workers == 1:
        for job in jobs:
            yield job, make(out, profile, machine.device, job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(machine.workers, mp_context=context) as pool:
        waiting = {pool.submit(make, out, profile, machine.device, job): job for job in jobs}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
    baselines : list of Baseline
    families : list of FamilyPoint
    audits : list of Audited
        Of the trained models.
    variances : list of Variance
        Of the constant at every step.
    also : Scaling or None
        The further run of the profile.
    """

    profile: Profile
    horizons: list[Horizon]
    points: list[Point]
    consistency: dict[str, Consistency]
    baselines: list[Baseline]
    families: list[FamilyPoint]
    audits: list[Audited]
    variances: list[Variance]
    also: "Scaling | None" = None


def run_scaling(out: Path, profile: Profile, progress: Progress, machine: Machine) -> Scaling:
    """Run what is missing of a profile in ``out``, and return everything; see `run_stages` for the errors."""
    stages = run_stages(out, profile, progress, machine)
    found = read_scaling(stages, profile)
    if profile.also is not None:
        further = replace(profile.also, seed=profile.seed)
        found = replace(found, also=run_scaling(out / further.name, further, progress, machine))
    write_json(out / "scaling.json", to_json(found))
    return found


def read_scaling(stages: Stages, profile: Profile) -> Scaling:
    """Read the finished stages."""
    out = stages.folder
    horizons = [
        horizon_of(load_tables(out / tables_file(t)), t > profile.enumerated) for t in profile.horizons
    ]
    read = {
        j: read_json(out / j.file, f"a result of {j.kind}") for j in jobs_of(profile) if j.file in stages.done
    }

    def results(kind: str) -> dict[Job, Any]:
        return {j: row for j, row in read.items() if j.kind == kind}

    points = [from_json(Point, row) for row in results("points").values()]
    points.sort(key=lambda p: (p.sampler, MODELS.index(p.model), p.horizon))
    return Scaling(
        profile,
        horizons,
        points,
        {
            f"{j.name} at {j.horizon}": from_json(Consistency, row)
            for j, row in results("consistency").items()
        },
        sorted((from_json(Baseline, row) for row in results("baselines").values()), key=lambda b: b.horizon),
        [from_json(FamilyPoint, row) for row in results("families").values()],
        sorted(
            (from_json(Audited, row) for rows in results("audits").values() for row in rows),
            key=lambda a: (TRAINED.index(a.model), a.horizon),
        ),
        sorted((from_json(Variance, row) for row in results("variances").values()), key=lambda v: v.horizon),
    )
