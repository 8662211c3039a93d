"""The audit of one model or control on scored rollouts: every estimator of rmtools.stats, with 95% intervals over prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.auditing.arrays import prompt_arrays
from rmtools.auditing.breakdowns import (
    PromptAudit,
    ValueBin,
    WorstPrefix,
    by_prompt,
    by_value,
    worst_prefixes,
)
from rmtools.auditing.cost import (
    CostEstimates,
    LimitingCost,
    Tabulated,
    best_of_n_cost,
    cost_estimates,
    limiting_cost,
    particles,
)
from rmtools.data.scoring import within_prompt_and_depth
from rmtools.exact.bounds import PaperCounts, paper_counts
from rmtools.particles.tilt import Tilt
from rmtools.stats.alternative_costs import AlternativeCosts, alternative_costs
from rmtools.stats.bellman_error import BellmanSummary, bellman_estimator
from rmtools.stats.binned_errors import FlatSummary, flat_estimator
from rmtools.stats.bootstrap import Estimator, Interval, bootstrap
from rmtools.stats.calibration import CalibrationSummary, ZCheck, calibration_estimator, z_check
from rmtools.stats.influence import InfluenceSD
from rmtools.stats.path_errors import (
    GaugeFixed,
    PathSummary,
    RatioBound,
    gauge_fixed_estimator,
    path_estimator,
    path_sums,
    ratio_bound_quantiles,
)
from rmtools.stats.pilot import Pilot
from rmtools.stats.prefix_errors import PrefixErrors, exact_errors, self_normalise
from rmtools.stats.scale_check import ScaleCheck, scale_check
from rmtools.stats.sigma2 import Sigma2, n_for_cv, n_for_tv

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollout
    from rmtools.data.scoring import ScoredRollouts


# Fields of `ErrorAudit` that are bootstrapped, by the names of their estimators.
ESTIMATED = ("sampled", "sampled_guided", "exact", "exact_guided", "gauge_fixed", "binned", "paths")


@dataclass(frozen=True)
class AuditOptions:
    """What costs are predicted for: relative standard error of Z, total variation of the output, tokens of a solution."""

    delta_cv: float = 0.25
    delta_tv: float = 0.05
    tokens: float = 0.0


@dataclass(frozen=True)
class Subject:
    """The model or control that is audited.

    ``role`` is ``model``, ``compare 1`` or a control's name, ``name`` says where its values come from, ``terminal`` ("verifier"
    or "model") what a finished solution is worth to it. Without ``probability``, values are no potentials of a probability of
    success: nothing is calibrated. If values are ``fitted`` on these outcomes, V(s_0) is not compared with Z. If the value at the
    end is computed from the outcome (``knows_end``), the calibration leaves it out.
    """

    role: str
    name: str
    tilt: Tilt
    terminal: str = "verifier"
    probability: bool = True
    fitted: bool = False
    knows_end: bool = False


@dataclass(frozen=True)
class ErrorDistribution:
    """Quantiles of b over prefixes and of its sums along trajectories at ``level``, nats; empty without children.

    Sampling noise is included unless b was enumerated.
    """

    level: tuple[float, ...]
    log_error: tuple[float, ...]
    path_sum: tuple[float, ...]


@dataclass(frozen=True)
class ErrorAudit:
    """The Bellman error.

    Attributes
    ----------
    sampled, sampled_guided : BellmanSummary or None
        From sampled children: at the policy's prefixes, and at those the sampler visits (weights V(s_t) / V(s_0) within prompt
        and depth). None without children, as ``gauge_fixed`` and ``paths``.
    exact, exact_guided : BellmanSummary or None
        The same from enumerated children. None if the task does not list its steps.
    gauge_fixed : GaugeFixed or None
        Without a constant per prompt and depth; over prompts whose solutions all have the same length.
    binned : FlatSummary or None
        Without children: signed errors in bins and the lower bound they give.
    ratio_bound : RatioBound
    paths : PathSummary or None
    distribution : ErrorDistribution
    """

    sampled: BellmanSummary | None
    sampled_guided: BellmanSummary | None
    exact: BellmanSummary | None
    exact_guided: BellmanSummary | None
    gauge_fixed: GaugeFixed | None
    binned: FlatSummary | None
    ratio_bound: RatioBound
    paths: PathSummary | None
    distribution: ErrorDistribution

    @property
    def best(self) -> BellmanSummary | None:
        """The enumerated summary if there is one, else the sampled one."""
        return self.exact or self.sampled

    @property
    def best_guided(self) -> BellmanSummary | None:
        """The same at the prefixes that the sampler visits."""
        return self.exact_guided or self.sampled_guided


@dataclass(frozen=True)
class CostAudit:
    """What the error costs in particles.

    Attributes
    ----------
    sigma2, influence : Sigma2 or None, InfluenceSD or None
        Pooled, and the spread of H. None without extra completions, or with fewer than two.
    tabulated : Tabulated or None
        Exact costs, if solutions can be enumerated.
    n_for_cv, n_for_tv : Interval or None
        Particles for the accuracies of `AuditOptions`. None if the spread cannot be distinguished from noise.
    counted_from : str
        ``tables`` if solutions can be enumerated (exact sigma^2 and MAD(H), of the prompts of ``tabulated``, which may be the
        first of those audited), else ``rollouts`` (estimates; for the TV an upper bound).
    paper : PaperCounts or None
        None without children: single steps bound epsilon by L - 1 only.
    alternatives : AlternativeCosts or None
        None unless the target is the verifier's.
    limiting : LimitingCost or None
        From rollouts, resampling when ESS <= N / 2. None as ``sigma2``, and in audits before 0.2.0.
    pilot : Pilot or None
        From runs of the sampler itself, whatever its resampling; Z is that of the pilot's terminal. None without a pilot, and for
        controls.
    best_of_n : Sigma2 or None
        From rollouts, of N independent solutions weighted by their final values: importance sampling, the same for every model
        with this terminal. None with a prompt of one trajectory, with equal outcomes, and in audits before 0.2.0.
    best_of_n_own : Sigma2 or None
        The same with terminal "model", where the audit's is "verifier": weighted by the model's own last values.
    """

    sigma2: Sigma2 | None
    influence: InfluenceSD | None
    tabulated: Tabulated | None
    n_for_cv: Interval | None
    n_for_tv: Interval | None
    counted_from: str
    paper: PaperCounts | None = None
    alternatives: AlternativeCosts | None = None
    limiting: LimitingCost | None = None
    pilot: Pilot | None = None
    best_of_n: Sigma2 | None = None
    best_of_n_own: Sigma2 | None = None


@dataclass(frozen=True)
class CalibrationAudit:
    """Values against outcomes.

    Attributes
    ----------
    prefixes : CalibrationSummary or None
        p at all prefixes; None if values are no probabilities.
    root : ZCheck or None
        V(s_0) against Z; None if it was fitted.
    auc_within : Interval or None
        AUC over pairs of unfinished prefixes of one prompt and depth; NaN without a pair, None in audits before 0.2.0.
    scale : ScaleCheck or None
        Whether p at all prefixes is on the scale of the outcomes; None as ``prefixes``, and in audits before 0.2.0.
    """

    prefixes: CalibrationSummary | None
    root: ZCheck | None
    auc_within: Interval | None = None
    scale: ScaleCheck | None = None


@dataclass(frozen=True)
class Breakdowns:
    """Where the error and the cost are: by prompt, by value of the prefix, and the worst prefixes."""

    by_prompt: tuple[PromptAudit, ...]
    by_value: tuple[ValueBin, ...]
    worst: tuple[WorstPrefix, ...]


@dataclass(frozen=True)
class ModelAudit:
    """The audit of one model or control; Z, sigma^2 and the target refer to its ``terminal``. Names as in `Subject`."""

    role: str
    name: str
    terminal: str
    error: ErrorAudit
    cost: CostAudit
    calibration: CalibrationAudit
    breakdowns: Breakdowns


def audit_model(
    subject: Subject,
    rows: "Sequence[Rollout]",
    scored: "ScoredRollouts",
    options: AuditOptions,
    rng: np.random.Generator,
    exact_log_error: np.ndarray | None = None,
    exact_cost: Estimator[Tabulated] | None = None,
) -> ModelAudit:
    """Audit one model on rollouts and its values there.

    With terminal "model" sigma^2 is not available: completions carry rewards, not the model's values. ``exact_log_error`` (P,)
    is enumerated b in nats; NaN where it could not be enumerated: these prefixes are left out.
    """
    errors, prompt = scored.errors(), scored.prefix_prompt
    branching = bool((scored.child_present.sum(axis=1) > 1).any())
    root = np.asarray([v[0] for v in scored.log_value])[scored.prefix_trajectory]
    guided = self_normalise(scored.prefix_log_value - root, prompt, scored.prefix_depth)
    arrays = prompt_arrays(rows, scored, subject.tilt)
    verified = subject.terminal == "verifier"
    parts = cost_estimates(rows, arrays) if verified else CostEstimates()
    ends = [a.potential if verified else np.exp(a.log_value[:, -1]) for a in arrays]
    z = np.asarray([values.mean() for values in ends])
    roots = np.asarray([np.exp(a.log_value[0, 0]) for a in arrays])
    rewards = [scored.reward[scored.prompt == g] for g in range(len(arrays))]
    estimators: dict[str, Estimator[Any] | None] = {
        "exact": _exact(exact_log_error, scored, None),
        "exact_guided": _exact(exact_log_error, scored, guided),
        "calibration": calibrate(scored, subject) if subject.probability else None,
        "root": None if subject.fitted else z_check(z, roots),
        "tabulated": exact_cost,
        **parts.pooled(),
    }
    if branching:
        estimators |= _from_children(scored, errors, guided)
    else:
        estimators["binned"] = flat_estimator(scored.log_value, scored.prompt)
    if verified:
        potentials = [a.potential for a in arrays]
        estimators["alternatives"] = alternative_costs(rewards, potentials, options.tokens, options.delta_tv)
    found = bootstrap(estimators, rng)
    scheduled = bootstrap({"limiting": parts.limiting()}, rng)["limiting"]
    independent = bootstrap(
        {"best_of_n": best_of_n_cost(ends), "best_of_n_own": _own_cost(scored, subject)}, rng
    )
    transitions = scored.prefix_log_value, scored.child_log_value, scored.child_present
    error = ErrorAudit(
        **{name: found.get(name) for name in ESTIMATED},
        ratio_bound=ratio_bound_quantiles(*transitions, prompt),
        distribution=_distribution(errors, exact_log_error, scored),
    )
    cost = replace(_cost(found, options), **independent)
    if scheduled is not None:
        spread = None if scheduled.influence is None else scheduled.influence.sd
        cost = replace(cost, limiting=limiting_cost(scheduled, spread, options.delta_cv, options.delta_tv))
    if error.best is not None:
        bounds = error.ratio_bound.largest, _largest_error(errors, exact_log_error)
        cost = replace(cost, paper=paper_counts(*bounds, scored.horizon, options.delta_tv))
    breakdowns = Breakdowns(
        by_prompt(rows, scored, errors, z, parts, options.delta_cv, options.delta_tv),
        found.get("by_value", ()),
        worst_prefixes(rows, scored, errors, exact_log_error) if branching else (),
    )
    scale = check_scale(scored, subject) if subject.probability else None
    calibration = CalibrationAudit(
        found["calibration"], found["root"], within_prompt_and_depth(scored), scale
    )
    return ModelAudit(subject.role, subject.name, subject.terminal, error, cost, calibration, breakdowns)


def _from_children(
    scored: "ScoredRollouts", errors: PrefixErrors, guided: np.ndarray
) -> dict[str, Estimator[Any] | None]:
    """Return the estimators that need sampled children."""
    prompt, depth = scored.prefix_prompt, scored.prefix_depth
    sums = path_sums(scored.alternative_errors(), scored.prefix_trajectory)
    return {
        "sampled": bellman_estimator(errors, prompt, depth, scored.horizon),
        "sampled_guided": bellman_estimator(errors, prompt, depth, scored.horizon, guided),
        "gauge_fixed": _gauge_fixed(scored, errors),
        "paths": path_estimator(sums, scored.prompt[sums.trajectory]),
        "by_value": by_value(scored.prefix_log_value, errors, prompt),
    }


def _exact(
    log_error: np.ndarray | None, scored: "ScoredRollouts", weights: np.ndarray | None
) -> Estimator[BellmanSummary] | None:
    if log_error is None or not np.isfinite(log_error).any():
        return None
    known = np.isfinite(log_error)
    place = scored.prefix_prompt[known], scored.prefix_depth[known]
    w = None if weights is None else weights[known]
    return bellman_estimator(exact_errors(log_error[known]), *place, scored.horizon, w)


def _cost(found: Mapping[str, Any], options: AuditOptions) -> CostAudit:
    """Return sigma^2 and the particles, from tables if there are any; without ``paper``."""
    sigma2, influence, exact = found["sigma2"], found["influence"], found["tabulated"]
    tables = exact is not None
    variance, deviation = (
        (exact.sigma2, exact.mad) if tables else (sigma2 and sigma2.estimate, influence and influence.sd)
    )
    n_tv = particles(deviation, n_for_tv, options.delta_tv)
    alternatives = found.get("alternatives")
    if alternatives is not None and n_tv is not None:
        alternatives = replace(alternatives, smc_tokens=n_tv.map(lambda n: n * options.tokens))
    n_cv = particles(variance, n_for_cv, options.delta_cv)
    source = "tables" if tables else "rollouts"
    return CostAudit(sigma2, influence, exact, n_cv, n_tv, source, alternatives=alternatives)


def _own_cost(scored: "ScoredRollouts", subject: Subject) -> Estimator[Sigma2] | None:
    """Estimate the cost of best-of-N with the model's own last values; None if the audit's has them, or it has none."""
    if subject.terminal != "verifier" or subject.knows_end:
        return None
    last = np.exp([v[-1] for v in scored.own_log_value])
    return best_of_n_cost([last[scored.prompt == g] for g in range(int(scored.prompt.max()) + 1)])


def _distribution(
    errors: PrefixErrors, exact: np.ndarray | None, scored: "ScoredRollouts"
) -> ErrorDistribution:
    level = np.linspace(0, 1, 41)
    sums = path_sums(scored.alternative_errors(), scored.prefix_trajectory).total
    found = (errors.log_error if exact is None else exact, sums)
    known = [values[np.isfinite(values)] for values in found]
    return ErrorDistribution(
        tuple(level.tolist()), *(tuple(np.quantile(v, level).tolist()) if len(v) else () for v in known)
    )


def _largest_error(errors: PrefixErrors, exact: np.ndarray | None) -> float:
    """Return the largest absolute b, nats: enumerated, or what is left of a sampled one after two standard errors."""
    if exact is not None and np.isfinite(exact).any():
        return float(np.nanmax(np.abs(exact[np.isfinite(exact)])))
    left = np.abs(errors.log_error) - 2 * np.sqrt(errors.log_error_noise)
    left = left[np.isfinite(left) & ~errors.identical]
    return max(float(left.max()), 0.0) if len(left) else 0.0


def _gauge_fixed(scored: "ScoredRollouts", errors: PrefixErrors) -> Estimator[GaugeFixed] | None:
    """Estimate the gauge-fixed error over the prompts whose solutions all have the same length; None without any."""
    length = np.asarray([len(v) for v in scored.log_value])
    longest = np.zeros(int(scored.prompt.max()) + 1, dtype=int)
    np.maximum.at(longest, scored.prompt, length)
    shorter = np.bincount(scored.prompt, length < longest[scored.prompt])
    use = (shorter == 0)[scored.prefix_prompt]
    if not use.any():
        return None
    part = errors.take(np.flatnonzero(use))
    return gauge_fixed_estimator(part, scored.prefix_prompt[use], scored.prefix_depth[use])


def calibrate(scored: "ScoredRollouts", subject: Subject) -> Estimator[CalibrationSummary]:
    """Estimate the calibration of p at every prefix, and of the model's own value at the end."""
    p, outcome, prompt, _ = _predictions(scored, subject)
    return calibration_estimator(p, outcome, prompt)


def check_scale(scored: "ScoredRollouts", subject: Subject) -> ScaleCheck | None:
    """Test whether the same p are on the scale of the outcomes; None if values are no probabilities."""
    if not subject.probability:
        return None
    return scale_check(*_predictions(scored, subject), subject.tilt.floor)


def _predictions(
    scored: "ScoredRollouts", subject: Subject
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return p, outcome, prompt and depth (n,) of every prefix."""
    values = [v[:-1] if subject.knows_end else v for v in scored.own_log_value]
    length = [len(v) for v in values]
    p = np.exp(subject.tilt.log_probability(np.concatenate(values)))
    depth = np.concatenate([np.arange(n) for n in length])
    return p, np.repeat(scored.reward, length), np.repeat(scored.prompt, length), depth
