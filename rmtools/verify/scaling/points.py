"""One point of the claim: a reward model, a horizon and a sampler; particles predicted and particles needed."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rmtools.data.tasks.crossing import Crossing
from rmtools.exact.finite_model import FiniteModel
from rmtools.exact.solution import ExactResult, solve
from rmtools.lm.policy import Policy
from rmtools.lm.protocol import Scorer
from rmtools.particles.tilt import Tilt
from rmtools.sampling.settings import settings_for
from rmtools.sampling.source import Source
from rmtools.stats.bootstrap import Interval
from rmtools.stats.pilot import PilotSampler, pilot
from rmtools.verify.scaling.measure import (
    FEWEST_RUNS,
    SAMPLERS,
    Search,
    cv2_over_runs,
    run_models,
    run_tables,
    search,
)
from rmtools.verify.scaling.tables import Table

PILOT_PARTICLES = 16
# Of a step of the task.
STEP_TOKENS = 3
# N Var(Zhat / Z) is at its limit from about this many sigma^2 on (docs/equations.md, section 5).
ASYMPTOTIC, LEAST_FOR_LIMIT = 25, 64
# Runs of `measure_variance`: what this many steps of particles allow.
PARTICLE_STEPS, FEWEST_OF_VARIANCE, MOST_OF_VARIANCE = 4e9, 16, 128


@dataclass(frozen=True)
class Consistency:
    """How consistent a model's values are on the tables, means over prompts; b in nats.

    Attributes
    ----------
    rms_policy, rms_target : float
        Root mean square of b over prefixes of the policy's solutions, and of the target's.
    rms_gauge_fixed : float
        The second, less the target's mean of b at each depth of each prompt: the sampler does not see it.
    path_sum, path_sum_sd : float
        Mean over prompts of the mean and of the standard deviation of the sum of b along the target's solutions.
    sigma2, sigma2_perfect : float
        Of multinomial resampling at every step, pooled over prompts: of this model, and of the exact value.
    largest : float
        Largest abs(b) at a prefix that the policy reaches.
    ratio_bound : float
        L of Thm 5.1: the largest ratio of two values a step apart.
    """

    rms_policy: float
    rms_target: float
    rms_gauge_fixed: float
    path_sum: float
    path_sum_sd: float
    sigma2: float
    sigma2_perfect: float
    largest: float
    ratio_bound: float


def consistency(models: Sequence[FiniteModel]) -> Consistency:
    """Return the errors of values on tables, one model of each prompt."""
    solved = [solve(m) for m in models]
    z2 = np.exp(2 * (np.asarray([s.log_z for s in solved]) - max(s.log_z for s in solved)))
    rows = np.asarray([_errors(m, s) for m, s in zip(models, solved, strict=True)])
    by_policy, by_target, fixed, path_sum = rows[:, :4].mean(axis=0).tolist()
    return Consistency(
        math.sqrt(by_policy),
        math.sqrt(by_target),
        math.sqrt(fixed),
        path_sum,
        float(np.sqrt(np.maximum(rows[:, 4], 0)).mean()),
        float(z2 @ np.asarray([s.sigma2 for s in solved]) / z2.sum()),
        float(z2 @ np.asarray([s.sigma2_true_value for s in solved]) / z2.sum()),
        float(rows[:, 5].max()),
        max(s.ratio_bound for s in solved),
    )


def _errors(model: FiniteModel, solved: ExactResult) -> tuple[float, float, float, float, float, float]:
    """Return mean squares of b under policy and target, the second gauge-fixed; mean and variance of its path sum; sup."""
    horizon, target = model.horizon, model.target_policy
    reach: np.ndarray = np.ones(1)
    squares, own, fixed, sup = 0.0, 0.0, 0.0, 0.0
    for t in range(horizon):
        b = solved.log_bellman_error[t]
        policy = model.reach(t)
        squares += float(policy @ b**2) / horizon
        own += float(reach @ b**2) / horizon
        fixed += float(reach @ b**2 - (reach @ b) ** 2) / horizon
        sup = max(sup, float(np.abs(b[policy > 0]).max()))
        reach = np.bincount(
            model.child(t).ravel(), (reach[:, None] * target[t]).ravel(), len(model.log_value[t + 1])
        )
    first = second = np.zeros(len(model.log_value[-1]))
    for t in range(horizon)[::-1]:
        b = solved.log_bellman_error[t]
        after, after2 = ((target[t] * x[model.child(t)]).sum(axis=1) for x in (first, second))
        first, second = b + after, b**2 + 2 * b * after + after2
    return squares, own, fixed, float(first[0]), float(second[0] - first[0] ** 2), sup


@dataclass(frozen=True)
class Setting:
    """What the points of one horizon share.

    Attributes
    ----------
    floor : float
        A tenth of the policy's mean success on these prompts.
    delta_cv, share_of_target : float
        The CV of Zhat that particles are counted for; the share of the target's success that counts as success.
    most_tokens : float
        Budget of a point: tokens that policy and value model may generate and read in one trial of the largest N.
    most_on_tables : int
        The largest N that is run on tables where the budget ends.
    """

    task: Crossing
    policy: Policy
    tables: Sequence[Table]
    tilt: Tilt
    delta_cv: float
    share_of_target: float
    most_tokens: float
    most_on_tables: int

    @property
    def prompts(self) -> list[str]:
        """The prompts of the tables."""
        return [t.prompt for t in self.tables]

    @property
    def target_success(self) -> float:
        """Mean over prompts of the target's probability of a right solution."""
        p = np.asarray([t.success for t in self.tables])
        return float(np.mean(p / (self.tilt.floor + (1 - self.tilt.floor) * p)))


@dataclass(frozen=True)
class Trial:
    """What runs of N particles showed: CV(Zhat), its standard error, and the mean share of right solutions."""

    n_particles: int
    runs: int
    cv: float
    cv_error: float
    success: float
    resampled: float
    tokens: float


@dataclass(frozen=True)
class Variance:
    """N CV(Zhat)^2 of the constant under resampling at every step, beside sigma^2.

    Attributes
    ----------
    sigma2 : float
        Of the tables, pooled over prompts.
    n_particles, runs : int
        Of each of the runs, and how many there are of a prompt.
    relative : Interval
        N CV(Zhat)^2 over sigma^2, 95% over runs.
    source : str
        What was run: "runs" of the language model, or "tables".
    """

    horizon: int
    sigma2: float
    n_particles: int
    runs: int
    relative: Interval
    source: str


@dataclass(frozen=True)
class Point:
    """A reward model under a sampler at one horizon.

    Attributes
    ----------
    n_predicted : float or None
        For the CV: sigma^2 / delta^2 of the tables for multinomial resampling at every step, a pilot's n V(n) / delta^2 for the
        default sampler; None if the pilot does not resolve it.
    n_measured : float or None
        The N needed for the CV by runs of the language models, with ``low`` and ``high``, 95% over prompts (None: beyond the
        largest N). None if ``censored``: ``n_largest``, the largest N of the budget, does not reach it.
    n_on_tables : float or None
        The N needed by runs on the tables, where the budget ends; None if it was not run, or does not end there either.
    n_for_success : float or None
        The N needed for the share of the target's success; None beyond the largest N.
    resampled : float
        Steps resampled by a run of the N needed, or of the largest.
    tokens, verifier_tokens : float
        Of such a run on a prompt.
    seconds : float
        Of the whole point.
    trials : list of Trial
        Of the language models, the largest N first.
    """

    model: str
    horizon: int
    sampler: str
    n_predicted: float | None
    n_measured: float | None
    low: float | None
    high: float | None
    censored: bool
    n_largest: int
    n_for_success: float | None
    n_on_tables: float | None
    resampled: float
    tokens: float
    verifier_tokens: float
    seconds: float
    trials: list[Trial] = field(default_factory=list)
    trials_on_tables: list[Trial] = field(default_factory=list)


def measure_point(
    setting: Setting,
    name: str,
    value: Scorer,
    models: Sequence[FiniteModel],
    sampler_name: str,
    rng: np.random.Generator,
) -> Point:
    """Predict and measure the particles of one model, whose values on the tables are those of ``models``."""
    began, sampler, delta = time.monotonic(), SAMPLERS[sampler_name], setting.delta_cv
    horizon, prompts = setting.task.horizon, setting.prompts
    asked = setting.share_of_target * setting.target_success
    predicted = _predicted(setting, value, models, sampler_name, rng)
    run = run_models(setting.policy, value, setting.task, prompts, sampler, rng)
    most = int(setting.most_tokens / (FEWEST_RUNS * len(prompts) * STEP_TOKENS * horizon))
    found = search(run, predicted, most, delta, asked, rng)
    on_tables = None
    if found.n_for_cv is None:
        run = run_tables(models, setting.tilt, sampler, rng)
        on_tables = search(run, predicted, setting.most_on_tables, delta, asked, rng)
    need = found.n_for_cv
    at = next((t for t in found.tried if need is not None and t.n_particles == need.estimate), found.tried[0])
    return Point(
        name,
        horizon,
        sampler_name,
        predicted if math.isfinite(predicted) else None,
        None if need is None else need.estimate,
        None if need is None else need.low,
        None if need is None else need.high,
        need is None,
        found.tried[0].n_particles,
        _estimate(found.n_for_success or (on_tables.n_for_success if on_tables else None)),
        _estimate(on_tables.n_for_cv if on_tables else None),
        at.resampled,
        at.tokens,
        at.tokens if hasattr(value, "model") else 0.0,
        time.monotonic() - began,
        _trials(found),
        [] if on_tables is None else _trials(on_tables),
    )


def _predicted(
    setting: Setting, value: Scorer, models: Sequence[FiniteModel], sampler: str, rng: np.random.Generator
) -> float:
    """Return N for the CV: by theory for resampling at every step, by a pilot of the language models for the default."""
    if sampler == "every-step":
        return consistency(models).sigma2 / setting.delta_cv**2
    scheme, source = SAMPLERS[sampler], Source(setting.policy, value, setting.task.reward)
    one = settings_for("smc", n_particles=PILOT_PARTICLES, islands=1)
    prompts = setting.prompts
    found = pilot(
        lambda index: source.root([prompts[i] for i in index], "verifier"),
        len(prompts),
        PilotSampler(PILOT_PARTICLES, 1, scheme.resampling, scheme.ess_threshold, "verifier"),
        setting.delta_cv,
        rng,
        at_once=source.prompts_per_batch(one, prompts),
    )
    return (
        math.inf
        if not found.resolved
        else PILOT_PARTICLES * max(found.uncut.estimate, 0.0) / setting.delta_cv**2
    )


def measure_variance(
    setting: Setting, value: Scorer, models: Sequence[FiniteModel], merged: bool, rng: np.random.Generator
) -> Variance:
    """Run enough particles for the limit of N Var(Zhat / Z), on the tables if their states are merged.

    The runs are as many as `PARTICLE_STEPS` allows.
    """
    sampler, sigma2 = SAMPLERS["every-step"], consistency(models).sigma2
    n = max(LEAST_FOR_LIMIT, math.ceil(ASYMPTOTIC * sigma2))
    work = n * len(models) * setting.task.horizon
    runs = int(np.clip(PARTICLE_STEPS / work, FEWEST_OF_VARIANCE, MOST_OF_VARIANCE))
    run = (
        run_tables(models, setting.tilt, sampler, rng)
        if merged
        else run_models(setting.policy, value, setting.task, setting.prompts, sampler, rng)
    )
    relative = cv2_over_runs(run(n, runs), rng).map(lambda cv2: n * cv2 / sigma2)
    return Variance(setting.task.horizon, sigma2, n, runs, relative, "tables" if merged else "runs")


def _estimate(need: Interval | None) -> float | None:
    return None if need is None else need.estimate


def _trials(found: Search) -> list[Trial]:
    return [
        Trial(
            t.n_particles,
            t.runs,
            math.sqrt(max(t.cv2, 0.0)),
            t.cv2_error / (2 * math.sqrt(t.cv2)) if t.cv2 > 0 else 0.0,
            t.success,
            t.resampled,
            t.tokens,
        )
        for t in found.tried
    ]
