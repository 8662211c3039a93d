"""One result of a run: a point, a model's consistency, a baseline or an exact family, each made alone and written to a file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.codec import to_json
from rmtools.data.tasks.crossing import Crossing
from rmtools.exact.finite_model import FiniteModel
from rmtools.files import write_json
from rmtools.lm.protocol import Scorer
from rmtools.particles.tilt import Tilt
from rmtools.seeds import generator
from rmtools.verify.scaling.exact_families import FAMILIES, measure_family
from rmtools.verify.scaling.measure import SAMPLERS
from rmtools.verify.scaling.points import Setting, consistency, measure_point, measure_variance
from rmtools.verify.scaling.profile import (
    BELLMAN,
    DELTA_CV,
    EPSILON,
    MODELS,
    SHARE_OF_TARGET,
    STORY,
    TRAINED,
    Profile,
)
from rmtools.verify.scaling.tables import Table, load_tables
from rmtools.verify.scaling.values import TableValue, exact_values, planted_values

POLICY = "policy"


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
    return Crossing(horizon, silent=profile.silent)


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


def tables_file(horizon: int) -> str:
    """Return the file of the tables of one horizon."""
    return f"tables/{horizon}.npz"


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
        scorer = trained_scorer(out, profile, name, policy, tilt)
    return scorer, [t.model(t.log_values(scorer)) for t in tables]


def trained_scorer(out: Path, profile: Profile, name: str, policy: Any, tilt: Tilt) -> Scorer:
    """Return a trained model as a scorer of the policy's prefixes, with the floor of their horizon."""
    from rmtools.lm.checkpoint import load_value_model
    from rmtools.lm.value import ValueModel

    trained, _ = load_value_model(checkpoint_of(out, profile, name), device=policy.device)
    return ValueModel(trained.model, policy.steps, tilt, name)


@dataclass(frozen=True)
class Job:
    """What is measured: ``kind`` as of `jobs_of`; ``name`` a model, method or family."""

    kind: str
    horizon: int
    name: str
    sampler: str = ""

    @property
    def file(self) -> str:
        """The file of its result, in the folder of the run."""
        return f"{self.kind}/{self.horizon}-{self.name}{f'-{self.sampler}' if self.sampler else ''}.json"


def jobs_of(profile: Profile) -> list[Job]:
    """Return everything that is measured: the models of the story first, and of them the longest horizons."""
    from rmtools.verify.scaling.baselines import available

    longest_first = profile.horizons[::-1]
    told, others = (
        [
            Job("points", t, m, s)
            for t in longest_first
            for m in MODELS
            if (m in STORY) == first
            for s in SAMPLERS
        ]
        for first in (True, False)
    )
    checkpoints = [f"default-{k}" for k in profile.curve]
    return [
        *told,
        *others,
        *(Job("variances", t, "constant", "every-step") for t in longest_first),
        *(Job("consistency", t, m) for t in longest_first for m in (*MODELS, *checkpoints)),
        *(
            Job("families", t, f, s)
            for f, steps in FAMILIES.items()
            for t in steps
            for s in SAMPLERS
            if profile.families
        ),
        *(Job("audits", t, "trained") for t in longest_first),
        *(Job("baselines", t, m) for t in longest_first for m in available() if profile.baseline_tokens),
    ]


def make(out: Path, profile: Profile, device: str, job: Job) -> float:
    """Measure ``job`` and write its file; return the seconds."""
    import torch

    began = time.monotonic()
    torch.set_num_threads(1)
    rng = generator(" ".join(["scaling", *_seed_words(job)]), profile.seed)
    found = (
        measure_family(job.name, job.horizon, job.sampler, profile.most_on_tables, rng)
        if job.kind == "families"
        else _measure(out, profile, device, job, rng)
    )
    file = out / job.file
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, to_json(found))
    return time.monotonic() - began


def _seed_words(job: Job) -> list[str]:
    kind = [] if job.kind == "points" else [job.kind]
    return [*kind, job.name, str(job.horizon), *([job.sampler] if job.sampler else [])]


def _measure(out: Path, profile: Profile, device: str, job: Job, rng: np.random.Generator) -> Any:
    from rmtools.verify.scaling.audits import audit_trained
    from rmtools.verify.scaling.baselines import measure_baseline

    tables = load_tables(out / tables_file(job.horizon))
    at = horizon_of(tables, job.horizon > profile.enumerated)
    policy = load_policy_of(out, profile, job.horizon, device)
    tilt = Tilt(at.floor)
    if job.kind == "audits":
        scorers = {m: trained_scorer(out, profile, m, policy, tilt) for m in TRAINED}
        prompts = [t.prompt for t in tables]
        return audit_trained(policy, task_of(profile, job.horizon), prompts, scorers, profile.seed)
    name = BELLMAN if job.kind == "baselines" else job.name
    scorer, models = load_model(out, profile, name, tables, policy, tilt)
    if job.kind == "consistency":
        return consistency(models)
    setting = Setting(
        task_of(profile, job.horizon),
        policy,
        tables,
        tilt,
        DELTA_CV,
        SHARE_OF_TARGET,
        profile.most_tokens,
        profile.most_on_tables,
    )
    if job.kind == "variances":
        return measure_variance(setting, scorer, models, at.merged, rng)
    if job.kind == "baselines":
        return measure_baseline(setting, job.name, name, scorer, profile.baseline_tokens, rng)
    return measure_point(setting, name, scorer, models, job.sampler, rng)
