"""Predicted against measured particles: N Var(Z-hat) / Z^2 of repeated runs beside sigma^2 (docs/equations.md, section 5).

The prediction holds for multinomial resampling at every step, so that is what is run. It comes from the language
model written out as a finite model, where sigma^2 is exact.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rmtools.core import solve
from rmtools.data.tasks import Task
from rmtools.errors import UserError
from rmtools.lm.enumerate import tabulate
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.value import Scorer
from rmtools.particles.smc import smc
from rmtools.stats.empirical_sigma2 import measured_sigma2
from rmtools.verify.law import check_law

PARTICLES_PER_BATCH = 40_000
MIN_PROBABILITY = 1e-3


@dataclass(frozen=True)
class PromptVerification:
    """One prompt: what was predicted and what was measured.

    Attributes
    ----------
    prompt : str
    n_particles, runs : int
    z : float
        Exact Z of the table.
    uncovered : float
        Probability mass outside the table.
    sigma2_predicted : float
    sigma2_measured : dict
        N Var(Z-hat) / Z^2 as estimate, low, high; Z the mean of the runs.
    mean_z_ratio, mean_z_ratio_se : float
        Mean of Z-hat / Z and its standard error.
    """

    prompt: str
    n_particles: int
    runs: int
    z: float
    uncovered: float
    sigma2_predicted: float
    sigma2_measured: dict[str, float | None]
    mean_z_ratio: float
    mean_z_ratio_se: float


@dataclass(frozen=True)
class Verification:
    """All prompts, the law of the decoding, and pooled.

    Pooled: sum Z_p^2 sigma_p^2 / sum Z_p^2 against sum N_p Var(Z-hat_p) / sum Z_p^2.
    """

    prompts: list[PromptVerification]
    skipped: int
    predicted: float
    measured: dict[str, float | None]
    ratio: dict[str, float | None]
    law: dict[str, Any]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"schema_version": 1, **asdict(self)}

    def __str__(self) -> str:
        rows = ["   N   Z (exact)  Z-hat/Z          sigma2 predicted   measured (95%)"]
        for p in self.prompts:
            m = p.sigma2_measured
            rows.append(
                f"{p.n_particles:5d}  {p.z:9.4f}  {p.mean_z_ratio:.3f}±{1.96 * p.mean_z_ratio_se:.3f}  "
                f"{p.sigma2_predicted:16.2f}   {m['estimate']:.2f} [{m['low']:.2f}, {m['high']:.2f}]"
            )
        m, r = self.measured, self.ratio
        rows.append(
            f"pooled: predicted {self.predicted:.2f}, measured {m['estimate']:.2f} [{m['low']:.2f}, "
            f"{m['high']:.2f}], ratio {r['estimate']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        )
        outside = [p.uncovered for p in self.prompts]
        rows.append(
            f"the tables leave out steps of probability below {MIN_PROBABILITY:g}: {min(outside):.2%} to "
            f"{max(outside):.2%} of the mass, by which Z-hat/Z may differ from 1"
        )
        law = self.law
        rows.append(
            f"law of stepwise decoding: well-formed {law['well_formed_stepwise']:.4f}, one-shot generate "
            f"{law['well_formed_generate']:.4f} ({law['samples']} samples each, {law['ragged']} with ragged steps); "
            f"paths of {law['horizon']} steps against enumeration, chi-square p "
            + ", ".join(f"{p['p_value']:.2f}" for p in law["paths"])
        )
        return "\n".join(rows)


def listed_steps(task: Task, prompt: str) -> list[str]:
    """Return the task's steps; raises ``UserError`` where they cannot be listed."""
    choices = task.step_choices(prompt, [])
    if choices is None:
        raise UserError(
            f"the task {task.name} cannot list its steps: sigma^2 has no exact value to verify",
            "use a task with step_choices, such as crossing",
        )
    return choices


def verify_lm(
    policy: Policy,
    value: Scorer,
    task: Task,
    prompts: Sequence[str],
    n_prompts: int,
    runs: int,
    rng: np.random.Generator,
    max_particles: int = 2048,
    progress: Callable[[int], object] | None = None,
) -> Verification:
    """Measure N Var(Z-hat) / Z^2 on ``n_prompts`` prompts, N = max(64, 5 sigma^2 predicted), terminal verifier.

    Prompts that need more than ``max_particles`` are passed over and counted: chosen on the prediction alone,
    before anything is measured.
    """
    choices = listed_steps(task, prompts[0])
    found: list[PromptVerification] = []
    log_zs: list[np.ndarray] = []
    skipped = 0
    for prompt in prompts:
        if len(found) == n_prompts:
            break
        table = tabulate(policy, value, prompt, choices, task.reward, MIN_PROBABILITY)
        exact = solve(table.model)
        n = max(64, math.ceil(5 * exact.sigma2))
        if n > max_particles:
            skipped += 1
            continue
        log_z = repeated_runs(policy, value, task, prompt, n, runs, rng)
        log_zs.append(log_z)
        ratio = np.exp(log_z - exact.log_z)
        measured = measured_sigma2(log_z[:, None], np.asarray([n]), None, rng)
        found.append(
            PromptVerification(
                prompt,
                n,
                runs,
                float(np.exp(exact.log_z)),
                table.uncovered,
                float(exact.sigma2),
                measured.pooled.to_dict(),
                float(ratio.mean()),
                float(ratio.std(ddof=1) / math.sqrt(runs)),
            )
        )
        if progress is not None:
            progress(1)
    law = check_law(policy, task, prompts, rng).to_dict()
    return pooled(found, skipped, np.stack(log_zs, 1), law, rng, n_prompts)


def pooled(
    found: list[PromptVerification],
    skipped: int,
    log_z: np.ndarray,
    law: dict[str, Any],
    rng: np.random.Generator,
    n_prompts: int,
) -> Verification:
    """Pool over prompts as docs/equations.md, section 5: variances and Z^2 are summed before dividing."""
    if len(found) < n_prompts:
        raise UserError(
            f"only {len(found)} of {n_prompts} prompts need few enough particles ({skipped} passed over)",
            "raise --max-particles or give more prompts",
        )
    z2 = np.asarray([p.z for p in found]) ** 2
    predicted = float(np.sum(z2 * [p.sigma2_predicted for p in found]) / z2.sum())
    measured = measured_sigma2(log_z, np.asarray([p.n_particles for p in found]), None, rng).pooled.to_dict()
    ratio = {k: None if v is None else v / predicted for k, v in measured.items()}
    settings = {
        "resampling": "multinomial",
        "ess_threshold": 1.0,
        "pool_size": 1,
        "terminal": "verifier",
        "n_particles": "max(64, 5 sigma2 predicted)",
        "predicted_from": "enumeration",
    }
    return Verification(found, skipped, predicted, measured, ratio, law, settings)


def repeated_runs(
    policy: Policy, value: Scorer, task: Task, prompt: str, n: int, runs: int, rng: np.random.Generator
) -> np.ndarray:
    """Return log Z-hat (runs,) nats of independent runs on one prompt, many to a batch."""
    out: list[np.ndarray] = []
    while (left := runs - sum(len(z) for z in out)) > 0:
        batch = min(left, max(1, PARTICLES_PER_BATCH // n))
        root = LMParticles.start(policy, value, [prompt] * batch, terminal="verifier", reward=task.reward)
        result = smc(root, n, 1, "multinomial", 1.0, rng)
        if result.log_z is None:
            raise ValueError("no estimate of Z")
        out.append(result.log_z)
    return np.concatenate(out)
