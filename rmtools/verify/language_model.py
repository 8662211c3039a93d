"""Predicted against measured particles on a language model (docs/equations.md, section 5).

`verify_lm` compares N Var(Z-hat) / Z^2 of repeated runs with the exact sigma^2 of the language model written out as a finite
model. `measure_accuracy` runs the sampler at the number of particles that an audit predicted. Both predictions hold for
multinomial resampling at every step, so that is what is run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rmtools.auditing.cost import MeasuredAccuracy
from rmtools.data.tasks import Task
from rmtools.errors import UserError
from rmtools.exact.solution import solve
from rmtools.lm.enumerate import tabulate
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.protocol import Scorer, StepPolicy
from rmtools.particles.smc import smc
from rmtools.stats.bootstrap import Interval, cluster_bootstrap
from rmtools.stats.empirical_sigma2 import measured_sigma2
from rmtools.verify.law import LawCheck, check_law

if TYPE_CHECKING:
    from rmtools.particles.protocol import SMCResult

VERIFICATION_VERSION = 1
PARTICLES_PER_BATCH = 40_000
MIN_PROBABILITY = 1e-3
# The runs of `measure_accuracy`: as many as make up BUDGET particles, between these bounds.
BUDGET, FEWEST_RUNS, MOST_RUNS = 200_000, 32, 400
MOST_PARTICLES, MOST_IN_ALL = 4096, 3_000_000


@dataclass(frozen=True)
class VerificationSize:
    """How much is measured: so many prompts, runs on each, and the most particles a prompt may need."""

    prompts: int
    runs: int
    max_particles: int = 2048


@dataclass(frozen=True)
class PromptVerification:
    """Prediction and measurement on one prompt.

    Attributes
    ----------
    prompt : str
    n_particles, runs : int
    z : float
        Exact Z of the table.
    uncovered : float
        Probability mass outside the table.
    sigma2_predicted : float
    sigma2_measured : Interval
        N Var(Z-hat) / Z^2, Z the mean of the runs; 95% over runs.
    mean_z_ratio, mean_z_ratio_se : float
        Mean of Z-hat / Z and its standard error.
    """

    prompt: str
    n_particles: int
    runs: int
    z: float
    uncovered: float
    sigma2_predicted: float
    sigma2_measured: Interval
    mean_z_ratio: float
    mean_z_ratio_se: float


@dataclass(frozen=True)
class Verification:
    """All prompts, pooled, and the law of the decoding.

    Pooled: sum Z_p^2 sigma_p^2 / sum Z_p^2 against sum N_p Var(Z-hat_p) / sum Z_p^2.
    """

    prompts: list[PromptVerification]
    skipped: int
    predicted: float
    measured: Interval
    ratio: Interval
    law: LawCheck
    settings: dict[str, str | float]

    def __str__(self) -> str:
        rows = ["   N   Z (exact)  Z-hat/Z          sigma2 predicted   measured (95%)"]
        rows += [
            f"{p.n_particles:5d}  {p.z:9.4f}  {p.mean_z_ratio:.3f}±{1.96 * p.mean_z_ratio_se:.3f}  "
            f"{p.sigma2_predicted:16.2f}   {_two_digits(p.sigma2_measured)}"
            for p in self.prompts
        ]
        rows.append(
            f"pooled: predicted {self.predicted:.2f}, measured {_two_digits(self.measured)}, "
            f"ratio {_two_digits(self.ratio)}"
        )
        outside = [p.uncovered for p in self.prompts]
        rows.append(
            f"the tables leave out steps of probability below {MIN_PROBABILITY:g}: {min(outside):.2%} to "
            f"{max(outside):.2%} of the mass, by which Z-hat/Z may differ from 1"
        )
        law = self.law
        rows.append(
            f"law of stepwise decoding: well-formed {law.well_formed_stepwise:.4f}, one-shot generate "
            f"{law.well_formed_generate:.4f} ({law.samples} samples each, {law.ragged} with ragged steps); "
            f"paths of {law.horizon} steps against enumeration, chi-square p "
            + ", ".join(f"{p['p_value']:.2f}" for p in law.paths)
        )
        return "\n".join(rows)


def _two_digits(interval: Interval) -> str:
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def listed_steps(task: Task, prompt: str) -> list[str]:
    """Return the task's possible steps; raise ``UserError`` if they cannot be listed."""
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
    size: VerificationSize,
    rng: np.random.Generator,
    progress: Callable[[int], object] | None = None,
) -> Verification:
    """Measure N Var(Z-hat) / Z^2 on ``size.prompts`` prompts, N = max(64, 5 sigma^2 predicted), terminal verifier.

    Prompts that need too many particles are skipped and counted: the choice depends on the prediction alone.

    Raises
    ------
    UserError
        If the task cannot list its steps, or too few prompts need few enough particles.
    """
    choices = listed_steps(task, prompts[0])
    found: list[PromptVerification] = []
    log_zs: list[np.ndarray] = []
    skipped = 0
    for prompt in prompts:
        if len(found) == size.prompts:
            break
        table = tabulate(policy, value, prompt, choices, task.reward, MIN_PROBABILITY)
        exact = solve(table.model)
        n = max(64, math.ceil(5 * exact.sigma2))
        if n > size.max_particles:
            skipped += 1
            continue
        log_z = repeated_runs(policy, value, task, prompt, n, size.runs, rng)
        log_zs.append(log_z)
        ratio = np.exp(log_z - exact.log_z)
        measured = measured_sigma2(log_z[:, None], np.asarray([n]), None, rng).pooled
        mean, error = float(ratio.mean()), float(ratio.std(ddof=1) / math.sqrt(size.runs))
        z, sigma2 = float(np.exp(exact.log_z)), float(exact.sigma2)
        found.append(
            PromptVerification(prompt, n, size.runs, z, table.uncovered, sigma2, measured, mean, error)
        )
        if progress is not None:
            progress(1)
    if len(found) < size.prompts:
        raise UserError(
            f"only {len(found)} of {size.prompts} prompts need few enough particles ({skipped} skipped)",
            "raise `max_particles` or give more prompts",
        )
    law = check_law(policy, task, prompts, rng)
    return _pooled(found, skipped, np.stack(log_zs, 1), law, rng)


def _pooled(
    found: list[PromptVerification], skipped: int, log_z: np.ndarray, law: LawCheck, rng: np.random.Generator
) -> Verification:
    """Pool as docs/equations.md, section 5: sum variances and Z^2 before dividing."""
    z2 = np.asarray([p.z for p in found]) ** 2
    predicted = float(np.sum(z2 * [p.sigma2_predicted for p in found]) / z2.sum())
    measured = measured_sigma2(log_z, np.asarray([p.n_particles for p in found]), None, rng).pooled
    settings: dict[str, str | float] = {
        "resampling": "multinomial",
        "ess_threshold": 1.0,
        "pool_size": 1,
        "terminal": "verifier",
        "n_particles": "max(64, 5 sigma2 predicted)",
        "predicted_from": "enumeration",
    }
    ratio = measured.map(lambda x: x / predicted)
    return Verification(found, skipped, predicted, measured, ratio, law, settings)


def measure_accuracy(
    policy: StepPolicy,
    value: Scorer,
    task: Task,
    prompts: Sequence[str],
    n_for_cv: Interval | None,
    delta_cv: float,
    rng: np.random.Generator,
    progress: Callable[[int], object] | None = None,
) -> MeasuredAccuracy:
    """Run the sampler at the predicted N on every prompt, terminal verifier.

    Parameters
    ----------
    policy, value, task, prompts, rng
        As audited; the prompts are distinct.
    n_for_cv : Interval or None
        The prediction for a relative standard error ``delta_cv`` of Z; its estimate is rounded up.
    progress : callable, optional
        Called with the number of prompts done since the last call.

    Raises
    ------
    UserError
        If there is no prediction, or too many particles are needed.
    """
    if n_for_cv is None or not np.isfinite(n_for_cv.estimate):
        raise UserError(
            "the sampler needs a predicted number of particles, and the audit has none",
            "audit with 4 completions per prefix, more prompts, and terminal verifier",
        )
    n = math.ceil(n_for_cv.estimate)
    if n > MOST_PARTICLES:
        raise UserError(
            f"the audit predicts {n} particles, the most that are run to verify it is {MOST_PARTICLES}",
            "ask for a larger `delta_cv`, or train the value model further",
        )
    if n * FEWEST_RUNS * len(prompts) > MOST_IN_ALL:
        raise UserError(
            f"verifying takes {FEWEST_RUNS} runs of {n} particles on {len(prompts)} prompts: too many",
            "audit fewer prompts, `prompts_limit` 24, or ask for a larger `delta_cv`",
        )
    runs = int(np.clip(BUDGET // (n * len(prompts)), FEWEST_RUNS, MOST_RUNS))
    log_z, right = np.zeros((runs, len(prompts))), np.zeros((runs, len(prompts)))
    size = max(1, PARTICLES_PER_BATCH // (n * runs))
    for start in range(0, len(prompts), size):
        repeated = [p for p in prompts[start : start + size] for _ in range(runs)]
        result = _run_sampler(policy, value, task, repeated, n, rng)
        log_z[:, start : start + size] = _log_z(result).reshape(-1, runs).T
        right[:, start : start + size] = _share_right(result, task, repeated).reshape(-1, runs).T
        if progress is not None:
            progress(len(repeated) // runs)
    cv = measured_sigma2(log_z, n, None, rng).pooled.map(lambda s: math.sqrt(max(s, 0.0) / n))
    difference, success, target = output_law(log_z, right, rng)
    return MeasuredAccuracy(n, runs, len(prompts), delta_cv, cv, success, target, difference)


def repeated_runs(
    policy: StepPolicy, value: Scorer, task: Task, prompt: str, n: int, runs: int, rng: np.random.Generator
) -> np.ndarray:
    """Return log Z-hat (runs,) nats of independent runs on one prompt, many to a batch."""
    most = max(1, PARTICLES_PER_BATCH // n)
    sizes = [min(most, runs - start) for start in range(0, runs, most)]
    return np.concatenate(
        [_log_z(_run_sampler(policy, value, task, [prompt] * size, n, rng)) for size in sizes]
    )


def _run_sampler(
    policy: StepPolicy, value: Scorer, task: Task, prompts: list[str], n: int, rng: np.random.Generator
) -> "SMCResult[LMParticles]":
    root = LMParticles.start(policy, value, prompts, terminal="verifier", reward=task.reward)
    return smc(root, n, resampling="multinomial", ess_threshold=1.0, rng=rng, islands=1)


def _log_z(result: "SMCResult[LMParticles]") -> np.ndarray:
    assert result.log_z is not None  # no pools: Z is estimated
    return result.log_z


def _share_right(result: "SMCResult[LMParticles]", task: Task, prompts: list[str]) -> np.ndarray:
    """Return the weighted share of right solutions of each run."""
    written = result.particles.setup.policy.steps.written
    reward = np.asarray(
        [
            [task.reward(p, written(steps)) for steps in group]
            for p, group in zip(prompts, result.particles.steps(), strict=True)
        ]
    )
    weight = np.exp(result.log_weights)
    return np.asarray((weight * reward).sum(axis=1) / weight.sum(axis=1))


def output_law(
    log_z: np.ndarray, right: np.ndarray, rng: np.random.Generator
) -> tuple[Interval, float, float]:
    """Return success in the expected output minus success in the target, and both, means over prompts.

    E[Z-hat f] = Z E_target[f] for the weighted mean f of a run's output (docs/equations.md, section 4): weighting runs by
    their Z-hat gives the target, equal weights the output.

    Parameters
    ----------
    log_z, right : np.ndarray
        (runs, prompts) log Z-hat in nats, and weighted shares of right solutions.
    rng : np.random.Generator
    """
    z = np.exp(log_z - log_z.max(axis=0))
    target = (z * right).mean(axis=0) / z.mean(axis=0)
    # One column: a run's part of the mean over prompts, the ratio linearised at its value.
    parts = right - target - z / z.mean(axis=0) * (right - target)
    difference = cluster_bootstrap(parts.mean(axis=1)[:, None], lambda means: means[:, 0], rng)
    return difference, float(right.mean()), float(target.mean())
