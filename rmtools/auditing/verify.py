"""The prediction put to the test: the sampler at the predicted number of particles, the accuracy it really has."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.errors import UserError
from rmtools.particles.smc import smc
from rmtools.stats.bootstrap import Interval, as_dict, cluster_bootstrap
from rmtools.stats.empirical_sigma2 import measured_sigma2

if TYPE_CHECKING:
    from rmtools.data.tasks import Task
    from rmtools.lm.policy import Policy
    from rmtools.lm.value import Scorer

BUDGET, PER_BATCH, MOST_PARTICLES = 200_000, 40_000, 4096
FEWEST_RUNS, MOST_RUNS, MOST_IN_ALL = 32, 400, 3_000_000


@dataclass(frozen=True)
class Measured:
    """What the sampler did at ``n_particles``, multinomial resampling at every step.

    Attributes
    ----------
    n_particles, runs, prompts : int
        ``runs`` independent ones of each prompt.
    delta_cv : float
        The relative standard error of Z asked for, which ``n_particles`` was predicted for.
    cv : Interval
        The one measured, pooled over prompts as sigma^2 is; over runs.
    success, target_success : float
        Share of right solutions in the expected output, and in the target (runs weighted by their Z).
    success_difference : Interval
        Their difference, over runs: the total variation is at least its size.
    """

    n_particles: int
    runs: int
    prompts: int
    delta_cv: float
    cv: Interval
    success: float
    target_success: float
    success_difference: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return a dict fit for JSON."""
        return as_dict(self)


def measure(
    policy: "Policy",
    value: "Scorer",
    task: "Task",
    prompts: Sequence[str],
    n_for_cv: Interval | None,
    delta_cv: float,
    rng: np.random.Generator,
    progress: Callable[[int], object] | None = None,
) -> Measured:
    """Run the sampler at the predicted N on every prompt, terminal verifier.

    Parameters
    ----------
    policy, value, task
    prompts : sequence of str
        Distinct; those of the audit.
    n_for_cv : Interval or None
        The prediction; its estimate is rounded up.
    delta_cv : float
    rng : np.random.Generator
    progress : callable, optional
        Told how many prompts are done.

    Raises
    ------
    UserError
        If there is no prediction, or it is beyond what can be run here.
    """
    if n_for_cv is None or not np.isfinite(n_for_cv.estimate):
        raise UserError(
            "--verify needs a predicted number of particles, and the audit has none",
            "audit with --completions 4 and more prompts, terminal verifier",
        )
    n = math.ceil(n_for_cv.estimate)
    if n > MOST_PARTICLES:
        raise UserError(
            f"--verify would run {n} particles, the most it runs is {MOST_PARTICLES}",
            "ask for a larger --delta-cv, or train the value model further",
        )
    if n * FEWEST_RUNS * len(prompts) > MOST_IN_ALL:
        raise UserError(
            f"--verify would run {n} particles {FEWEST_RUNS} times on {len(prompts)} prompts: too many",
            "audit fewer prompts (--prompts-limit 24), or ask for a larger --delta-cv",
        )
    runs = int(np.clip(BUDGET // (n * len(prompts)), FEWEST_RUNS, MOST_RUNS))
    log_z, right = np.zeros((runs, len(prompts))), np.zeros((runs, len(prompts)))
    size = max(1, PER_BATCH // (n * runs))
    for start in range(0, len(prompts), size):
        batch = list(prompts[start : start + size])
        found = run_batch(policy, value, task, batch, n, runs, rng)
        log_z[:, start : start + size], right[:, start : start + size] = found
        if progress is not None:
            progress(len(batch))
    cost = measured_sigma2(log_z, n, None, rng).pooled
    difference, success, target = output_law(log_z, right, rng)
    cv = cost.map(lambda s: math.sqrt(max(s, 0.0) / n))
    return Measured(n, runs, len(prompts), delta_cv, cv, success, target, difference)


def run_batch(
    policy: "Policy",
    value: "Scorer",
    task: "Task",
    prompts: list[str],
    n: int,
    runs: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return log Z (runs, prompts) and the weighted share of right solutions of each run."""
    from rmtools.lm.particles import LMParticles

    repeated = [p for p in prompts for _ in range(runs)]
    root = LMParticles.start(policy, value, repeated, terminal="verifier", reward=task.reward)
    result = smc(root, n, resampling="multinomial", ess_threshold=1, rng=rng)
    assert result.log_z is not None
    reward = np.asarray(
        [
            [task.reward(p, steps) for steps in group]
            for p, group in zip(repeated, result.particles.steps(), strict=True)
        ]
    )
    weight = np.exp(result.log_weights)
    share = (weight * reward).sum(axis=1) / weight.sum(axis=1)
    return result.log_z.reshape(-1, runs).T, share.reshape(-1, runs).T


def output_law(
    log_z: np.ndarray, right: np.ndarray, rng: np.random.Generator
) -> tuple[Interval, float, float]:
    """Return success in the expected output minus success in the target, and both, means over prompts.

    E[Z-hat f] = Z E_target[f] for the weighted mean f of a run's output (docs/equations.md, section 4): weighting runs by
    their Z-hat gives the target, equal weights the output.
    """
    z = np.exp(log_z - log_z.max(axis=0))
    target = (z * right).mean(axis=0) / z.mean(axis=0)
    # One column: a run's part of the mean over prompts, the ratio linearised at its value.
    parts = right - target - z / z.mean(axis=0) * (right - target)
    difference = cluster_bootstrap(parts.mean(axis=1)[:, None], lambda means: means[:, 0], rng)
    return difference, float(right.mean()), float(target.mean())
