"""The audit of one model or control on scored rollouts: every estimator of rmtools.core, with 95% intervals over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rmtools.auditing.arrays import PromptArrays, prompt_arrays
from rmtools.auditing.breakdowns import (
    PromptAudit,
    ValueBin,
    WorstPrefix,
    by_prompt,
    by_value,
    worst_prefixes,
)
from rmtools.auditing.cost import (
    OtherWays,
    PaperCounts,
    Spread,
    ZCheck,
    other_ways,
    paper_counts,
    particles,
    spread_of,
    z_check,
)
from rmtools.auditing.enumerated import Tabulated
from rmtools.particles.tilt import Tilt
from rmtools.stats.bellman_error import (
    BellmanSummary,
    GaugeFixed,
    PathSummary,
    RatioBound,
    bellman_summary,
    exact_summary,
    gauge_fixed_rms,
    path_summary,
    path_sums,
    ratio_bound_quantiles,
    self_normalise,
)
from rmtools.stats.binned_errors import FlatSummary, flat_summary
from rmtools.stats.bootstrap import Interval
from rmtools.stats.calibration import CalibrationSummary, calibration_summary
from rmtools.stats.influence import InfluenceSD
from rmtools.stats.prefix_errors import PrefixErrors
from rmtools.stats.sigma2 import Sigma2, n_for_cv, n_for_tv

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollout
    from rmtools.data.scoring import ScoredRollouts


@dataclass(frozen=True)
class Asked:
    """What particles are predicted for, and what an ended solution is worth.

    Attributes
    ----------
    delta_cv, delta_tv : float
        Relative standard error of the estimate of Z; total variation of the output.
    terminal : str
        "verifier" or "model".
    tokens : float
        Mean tokens of a solution, for the costs.
    probability : bool
        Whether values are potentials of a probability of success: else there is nothing to calibrate.
    fitted : bool
        Whether the values were fitted on these outcomes: V(s_0) beside Z says nothing then.
    knows_end : bool
        Whether the value at the end is made of the outcome: it is left out of the calibration.
    """

    delta_cv: float = 0.25
    delta_tv: float = 0.05
    terminal: str = "verifier"
    tokens: float = 0.0
    probability: bool = True
    fitted: bool = False
    knows_end: bool = False


@dataclass(frozen=True)
class ModelAudit:
    """One model or control.

    Attributes
    ----------
    role, name : str
        ``model``, a control's name, or ``compare 1``; where it came from.
    terminal : str
        What an ended solution is worth to it; Z, sigma^2 and the target are those of it.
    bellman, guided : BellmanSummary or None
        From sampled children, noise-corrected and plug-in: at the policy's prefixes, and at those the sampler visits (weights
        V(s_t) / V(s_0) within prompt and depth). None without children.
    gauge_fixed : GaugeFixed or None
        What is left when a constant per prompt and depth is removed, which the sampler does not see; over prompts whose
        solutions all have one length. None without children or such prompts.
    exact, exact_guided : BellmanSummary or None
        From enumerated children, where the task lists its steps.
    flat : FlatSummary or None
        Without children: signed errors in bins and the lower bound they give.
    ratio_bound : RatioBound
        Quantiles of L.
    calibration : CalibrationSummary or None
        p against outcomes, at all prefixes. None where the values are no probabilities.
    z : ZCheck or None
        None where the value was fitted on these outcomes.
    paths : PathSummary or None
        Sums of b along trajectories.
    sigma2 : Sigma2 or None
        Pooled; None without extra completions.
    influence : InfluenceSD or None
        Spread of H; None with fewer than two extra completions.
    tabulated : Tabulated or None
        sigma^2 exactly, and that of a perfect value, where solutions can be enumerated.
    n_for_cv, n_for_tv : Interval or None
        Particles for the accuracies asked for; None where the spread could not be told from noise.
    counted_from : str
        What they were counted from: ``tables`` where those hold every audited prompt (exact sigma^2 and MAD(H)), else
        ``rollouts`` (estimates; for the TV an upper bound).
    paper : PaperCounts or None
        None without children: single steps bound epsilon by L - 1 only.
    other_ways : OtherWays or None
        None where the target is not the verifier's.
    by_prompt, by_value, worst : tuple
    distribution : dict
        Quantiles of b over prefixes and of its sums along trajectories (nats), sampling noise included unless enumerated:
        ``level``, ``log_error``, ``path_sum``; empty lists without children.
    """

    role: str
    name: str
    terminal: str
    bellman: BellmanSummary | None
    guided: BellmanSummary | None
    gauge_fixed: GaugeFixed | None
    exact: BellmanSummary | None
    exact_guided: BellmanSummary | None
    flat: FlatSummary | None
    ratio_bound: RatioBound
    calibration: CalibrationSummary | None
    z: ZCheck | None
    paths: PathSummary | None
    sigma2: Sigma2 | None
    influence: InfluenceSD | None
    tabulated: Tabulated | None
    n_for_cv: Interval | None
    n_for_tv: Interval | None
    counted_from: str
    paper: PaperCounts | None
    other_ways: OtherWays | None
    by_prompt: tuple[PromptAudit, ...]
    by_value: tuple[ValueBin, ...]
    worst: tuple[WorstPrefix, ...]
    distribution: dict[str, list[float]]

    @property
    def error(self) -> BellmanSummary | None:
        """The enumerated summary where there is one, else the sampled one."""
        return self.exact or self.bellman

    @property
    def guided_error(self) -> BellmanSummary | None:
        """The same where the sampler goes."""
        return self.exact_guided or self.guided


def audit_model(
    role: str,
    name: str,
    rows: "Sequence[Rollout]",
    scored: "ScoredRollouts",
    tilt: Tilt,
    exact_log_error: np.ndarray | None,
    asked: Asked,
    rng: np.random.Generator,
    exact_cost: Tabulated | None = None,
) -> ModelAudit:
    """Audit one model on scored rollouts.

    Parameters
    ----------
    role, name : str
    rows : sequence of Rollout
    scored : ScoredRollouts
        Of the same rows.
    tilt : Tilt
    exact_log_error : np.ndarray or None
        (P,) enumerated b, nats; NaN where it could not be enumerated: left out.
    asked : Asked
        With terminal "model" sigma^2 is not available: completions carry rewards, not the model's values.
    rng : np.random.Generator
        Source of the bootstrap.
    exact_cost : Tabulated, optional
    """
    errors, prompt, depth = scored.errors(), scored.prefix_prompt, scored.prefix_depth
    known = None if exact_log_error is None else np.isfinite(exact_log_error)
    branching = bool((scored.child_present.sum(axis=1) > 1).any())
    weights = self_normalise(scored.prefix_log_value - root_values(scored), prompt, depth)

    def sampled(w: np.ndarray | None) -> BellmanSummary | None:
        return bellman_summary(errors, prompt, depth, scored.horizon, w, rng=rng) if branching else None

    def enumerated(w: np.ndarray | None) -> BellmanSummary | None:
        if exact_log_error is None or known is None or not known.any():
            return None
        kept = None if w is None else w[known]
        return exact_summary(
            exact_log_error[known], prompt[known], depth[known], scored.horizon, kept, rng=rng
        )

    sampled_bellman, exact = sampled(None), enumerated(None)
    arrays = prompt_arrays(rows, scored, tilt)
    z = np.asarray([end_values(a, asked.terminal).mean() for a in arrays])
    roots = np.asarray([np.exp(a.log_value[0, 0]) for a in arrays])
    verified = asked.terminal == "verifier"
    spread = spread_of(rows, arrays, rng) if verified else Spread(None, None, (), ())
    bound = ratio_bound_quantiles(
        scored.prefix_log_value, scored.child_log_value, scored.child_present, prompt
    )
    tables = exact_cost is not None and exact_cost.n_prompts == len(arrays)
    cost, deviation = spreads(spread, exact_cost if tables else None)
    tv = particles(deviation, lambda s: n_for_tv(s, asked.delta_tv))
    rewards = [scored.reward[scored.prompt == g] for g in range(len(arrays))]
    largest = largest_error(errors, exact_log_error) if branching or exact is not None else None
    return ModelAudit(
        role=role,
        name=name,
        terminal=asked.terminal,
        bellman=sampled_bellman,
        guided=sampled(weights),
        gauge_fixed=gauge_fixed(scored, errors, rng) if branching else None,
        exact=exact,
        exact_guided=enumerated(weights),
        flat=None if branching else flat_summary(scored.log_value, scored.prompt, rng=rng),
        ratio_bound=bound,
        calibration=calibration(scored, tilt, rng, asked.knows_end) if asked.probability else None,
        z=None if asked.fitted else z_check(z, roots, rng),
        paths=paths(scored, rng) if branching else None,
        sigma2=spread.sigma2,
        influence=spread.influence,
        tabulated=exact_cost,
        n_for_cv=particles(cost, lambda s: n_for_cv(s, asked.delta_cv)),
        n_for_tv=tv,
        counted_from="tables" if tables else "rollouts",
        paper=None
        if largest is None
        else paper_counts(bound.largest, largest, scored.horizon, asked.delta_tv),
        other_ways=other_ways(rewards, [a.potential for a in arrays], asked.tokens, tv, asked.delta_tv, rng)
        if verified
        else None,
        by_prompt=by_prompt(rows, scored, errors, z, spread, asked.delta_cv, asked.delta_tv),
        by_value=by_value(scored.prefix_log_value, errors, prompt, rng) if branching else (),
        worst=worst_prefixes(rows, scored, errors, exact_log_error) if branching else (),
        distribution=distribution(errors, exact_log_error, scored),
    )


def spreads(spread: Spread, exact: Tabulated | None) -> tuple[Interval | None, Interval | None]:
    """Return sigma^2 and what bounds the TV: MAD(H) exactly, or SD(H) from rollouts."""
    if exact is not None:
        return exact.sigma2, exact.mad
    return (
        None if spread.sigma2 is None else spread.sigma2.estimate,
        None if spread.influence is None else spread.influence.sd,
    )


def distribution(
    errors: PrefixErrors, exact: np.ndarray | None, scored: "ScoredRollouts"
) -> dict[str, list[float]]:
    """Return quantiles of b and of its path sums on a grid of levels."""
    level = np.linspace(0, 1, 41)
    sums = path_sums(scored.alternative_errors(), scored.prefix_trajectory).total
    found = {"log_error": errors.log_error if exact is None else exact, "path_sum": sums}
    known = {name: values[np.isfinite(values)] for name, values in found.items()}
    return {
        "level": level.tolist(),
        **{name: np.quantile(v, level).tolist() if len(v) else [] for name, v in known.items()},
    }


def root_values(scored: "ScoredRollouts") -> np.ndarray:
    """Return log V(s_0) of the trajectory of each prefix, (P,)."""
    return np.asarray([v[0] for v in scored.log_value])[scored.prefix_trajectory]


def end_values(arrays: PromptArrays, terminal: str) -> np.ndarray:
    """Return what the trajectories of a prompt end in (n,): their potentials, or the model's own values."""
    return arrays.potential if terminal == "verifier" else np.exp(arrays.log_value[:, -1])


def largest_error(errors: PrefixErrors, exact: np.ndarray | None) -> float:
    """Return the largest absolute b, nats: enumerated, or what is left of a sampled one after two standard errors."""
    if exact is not None and np.isfinite(exact).any():
        return float(np.nanmax(np.abs(exact[np.isfinite(exact)])))
    left = np.abs(errors.log_error) - 2 * np.sqrt(errors.log_error_noise)
    left = left[np.isfinite(left) & ~errors.identical]
    return max(float(left.max()), 0.0) if len(left) else 0.0


def gauge_fixed(
    scored: "ScoredRollouts", errors: PrefixErrors, rng: np.random.Generator
) -> GaugeFixed | None:
    """Return the gauge-fixed error over the prompts whose solutions all have one length; None without any."""
    length = np.asarray([len(v) for v in scored.log_value])
    n = int(scored.prompt.max()) + 1
    shortest, longest = np.full(n, length.max()), np.zeros(n, dtype=int)
    np.minimum.at(shortest, scored.prompt, length)
    np.maximum.at(longest, scored.prompt, length)
    use = (shortest == longest)[scored.prefix_prompt]
    if not use.any():
        return None
    part = errors.take(np.flatnonzero(use))
    return gauge_fixed_rms(part, scored.prefix_prompt[use], scored.prefix_depth[use], rng=rng)


def paths(scored: "ScoredRollouts", rng: np.random.Generator) -> PathSummary:
    """Return the sums of b along trajectories."""
    sums = path_sums(scored.alternative_errors(), scored.prefix_trajectory)
    return path_summary(sums, scored.prompt[sums.trajectory], rng=rng)


def calibration(
    scored: "ScoredRollouts", tilt: Tilt, rng: np.random.Generator, knows_end: bool = False
) -> CalibrationSummary:
    """Return the calibration of p at every prefix, the model's own value also at the end unless it is the outcome."""
    values = [v[:-1] if knows_end else v for v in scored.own_log_value]
    length = [len(v) for v in values]
    p = np.exp(tilt.log_probability(np.concatenate(values)))
    outcome, prompt = np.repeat(scored.reward, length), np.repeat(scored.prompt, length)
    return calibration_summary(p, outcome, prompt, rng=rng)
