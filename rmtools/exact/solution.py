"""Solve a finite model exactly, by dynamic programming.

The solution holds values, Bellman errors, the asymptotic variance sigma2 = lim N Var(Zhat / Z) under multinomial resampling
at every step, and the influence H of each trajectory, which gives the asymptotic bias of the output law, TV = MAD(H) /
(2 N) (docs/equations.md sections 1, 5 and 7). Suprema are over states of positive probability. All in nats.

>>> import numpy as np
>>> from rmtools.core import product
>>> exact = solve(product(horizon=3, ratio=2.0))
>>> round(float(np.exp(exact.log_z)), 12), round(exact.bellman_error, 12), round(exact.ratio_bound, 12)
(3.375, 0.5, 2.0)
>>> round(exact.sigma2, 12), round(exact.n_for_cv(0.1), 9), round(exact.n_for_tv(0.01), 6)
(0.333333333333, 33.333333333, 19.753086)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rmtools.errors import UserError
from rmtools.exact.bounds import particles_for_cv, particles_for_tv
from rmtools.exact.finite_model import FiniteModel, FiniteParticles
from rmtools.exact.influence import InfluenceMad, leaf_influence, mean_absolute_deviation
from rmtools.exact.schedule import (
    LimitingSchedule,
    check_times,
    every_step,
    limiting_schedule,
    log_block_terms,
)
from rmtools.particles.arguments import check_count
from rmtools.particles.logspace import log_mean_columns, log_sum_exp
from rmtools.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class ExactResult:
    """Exact figures of a finite model (docs/equations.md sections 1, 5 and 7).

    Attributes
    ----------
    log_z : float
        log Z = log E_policy[potential], nats; -inf if the potential is zero everywhere.
    true_log_value : tuple of np.ndarray
        log V*, (S_t,) nats, t = 0 ... T.
    log_bellman_error : tuple of np.ndarray
        b = log(E_policy[V(child)] / V), (S_t,) nats, t = 0 ... T - 1; 0 where both are zero.
    bellman_error : float
        sup of exp(abs(b)) - 1 (epsilon of arXiv 2602.01381 Assumption 3.2).
    bellman_error_gauge_fixed : float
        The same after the best constant per depth, which the sampler does not see.
    ratio_bound : float
        L, sup of the ratio of the values at two ends of a step, either way round (Assumption 3.1).
    sigma2 : float
        lim N Var(Zhat / Z), pool 1, multinomial resampling at every step; inf if Z = 0, or if a prefix from
        which the target can be reached has value zero: the sampler then never goes there, and Zhat is biased.
    sigma2_true_value : float
        The same with V* in place of V.
    sigma2_optimal : float
        The smallest over all values, attained by V(s) = root of E_policy[V*(child)^2].
    target : np.ndarray or None
        Trees: law of the final states under the target, (S_T,). None on chains and if Z = 0.
    influence : np.ndarray or None
        Trees: H of each final state's trajectory, (S_T,), pool 1; 0 at unreachable states.

    Examples
    --------
    >>> import rmtools as rm
    >>> exact: rm.ExactResult = rm.solve(rm.families.persistent(horizon=8, eps=0.05))
    >>> round(exact.bellman_error, 6), round(exact.n_for_cv(0.1), 1), len(exact.to_frame())
    (0.05, 10.6, 8)
    """

    log_z: float
    true_log_value: tuple[np.ndarray, ...]
    log_bellman_error: tuple[np.ndarray, ...]
    bellman_error: float
    bellman_error_gauge_fixed: float
    ratio_bound: float
    sigma2: float
    sigma2_true_value: float
    sigma2_optimal: float
    target: np.ndarray | None
    influence: np.ndarray | None
    _model: FiniteModel
    _log_terms: np.ndarray  # (2, T), from _variance_terms

    def sigma2_pool(self, pool_size: int) -> float:
        """Return lim N Var(Zhat / Z) with pools of `pool_size` candidates (docs/equations.md section 5)."""
        check_count("pool_size", pool_size)
        child, own = (_sum_excess(row) for row in self._log_terms)
        return child if pool_size == 1 else own * (1 - 1 / pool_size) + child / pool_size

    def influence_pool(self, pool_size: int) -> np.ndarray:
        """Return H of each final state's trajectory with pools, (S_T,).

        Raises UserError on a chain, where H is not a function of the final state, and if Z = 0.
        """
        check_count("pool_size", pool_size)
        if self.target is None:
            raise UserError(
                "influence per final state needs a tree and Z > 0: on a chain H depends on the path",
                fix="use `influence_mad`",
            )
        return leaf_influence(self._model, pool_size, every_step(self._model))

    def influence_mad(
        self,
        pool_size: int = 1,
        n_draws: int = 200_000,
        seed: int = 0,
        schedule: Sequence[int] | None = None,
    ) -> InfluenceMad:
        """Return the mean absolute deviation of H under the target: TV(expected output, target) -> MAD / (2 N).

        Exact on trees, and on chains where H takes few values (standard error 0). Otherwise the mean over `n_draws`
        exact draws of the target, from a generator seeded with `seed`, with its standard error. `schedule` as in
        `sigma2_schedule`; None is every step.
        """
        check_count("pool_size", pool_size)
        times = every_step(self._model) if schedule is None else check_times(schedule, self._model.horizon)
        return mean_absolute_deviation(self._model, pool_size, times, n_draws, np.random.default_rng(seed))

    def sigma2_schedule(self, schedule: Sequence[int], pool_size: int = 1) -> float:
        """Return lim N Var(Zhat / Z) with multinomial resampling at some steps only (docs/equations.md section 10).

        Parameters
        ----------
        schedule : sequence of int
            Increasing steps, from 1 to T - 1, after which the particles are resampled; () is importance sampling.
        pool_size : int
            M, candidates per particle and step.

        Raises
        ------
        UserError
            If the steps do not increase or are not from 1 to T - 1.
        """
        check_count("pool_size", pool_size)
        times = check_times(schedule, self._model.horizon)
        return _sum_excess(log_block_terms(self._model, times, pool_size))

    def limiting_schedule(self, ess_threshold: float = 0.5, pool_size: int = 1) -> LimitingSchedule:
        """Return when many particles resample if they do so, multinomially, whenever ESS <= `ess_threshold` * N.

        The result holds sigma2, how near each step is to the threshold, and the N above which each is decided: below, the
        finite sampler resamples at other steps, and its variance may be far from sigma2 (docs/equations.md section 10).
        `n_for_cv` and `n_for_tv` take its `times`. For systematic resampling sigma2 is an upper reference, no prediction.
        Raises UserError for a threshold outside [0, 1].
        """
        return limiting_schedule(self._model, ess_threshold, pool_size)

    def n_for_tv(self, delta: float, pool_size: int = 1, schedule: Sequence[int] | None = None) -> float:
        """Return the particles (not rounded) for an expected output within `delta`, in (0, 1), of the target in TV.

        For multinomial resampling at the steps of `schedule` (as in `sigma2_schedule`); None is every step.
        """
        return particles_for_tv(self.influence_mad(pool_size, schedule=schedule).value, delta)

    def n_for_cv(self, delta: float, pool_size: int = 1, schedule: Sequence[int] | None = None) -> float:
        """Return the particles (not rounded) for an estimate of Z with coefficient of variation `delta` > 0.

        For multinomial resampling at the steps of `schedule` (as in `sigma2_schedule`); None is every step.
        """
        if schedule is None:
            return particles_for_cv(self.sigma2_pool(pool_size), delta)
        return particles_for_cv(self.sigma2_schedule(schedule, pool_size), delta)

    def to_frame(self) -> "DataFrame":
        """Return a row per step t: reachable states before it, their largest Bellman error, and the part of sigma2 it adds."""
        import pandas

        return pandas.DataFrame(
            {
                "step": np.arange(1, self._model.horizon + 1),
                "states": [int((reach > -np.inf).sum()) for reach in self._model.log_reach[:-1]],
                "bellman_error": [
                    _expm1(float(np.abs(b).max())) for b in _reachable(self._model, self.log_bellman_error)
                ],
                "sigma2": _excess(self._log_terms[0]),
            }
        )

    def plot(self) -> "Figure":
        """Draw the columns of `to_frame` by step."""
        from rmtools.plots.sampler import exact_by_depth

        frame = self.to_frame()
        return exact_by_depth(frame["bellman_error"].to_numpy(), frame["sigma2"].to_numpy())

    def summary(self) -> Summary:
        """Return Z, the Bellman errors, sigma2 and the particles that it asks for."""
        model = self._model
        kind = "tree" if model.is_tree else "chain"
        return Summary(
            f"exact solution of a {kind}: T = {model.horizon}, {len(model.log_value[-1])} final states",
            {
                "log Z": f"{self.log_z:.6g} nats (Z = {1 + _expm1(self.log_z):.4g})",
                "Bellman error": f"{self.bellman_error:.4g} ({self.bellman_error_gauge_fixed:.4g} gauge fixed)",
                "ratio bound L": f"{self.ratio_bound:.4g}",
                "sigma2": f"{self.sigma2:.4g} (true value {self.sigma2_true_value:.4g}, optimal "
                f"{self.sigma2_optimal:.4g})",
                "particles": f"{self.n_for_cv(0.1):.4g} for a CV of 0.1 of the estimate of Z",
            },
        )

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary().html()

    def __repr__(self) -> str:
        return f"ExactResult(log_z={self.log_z:.6g}, bellman_error={self.bellman_error:.4g}, sigma2={self.sigma2:.4g})"


def solve(model: FiniteModel) -> ExactResult:
    """Compute the `ExactResult` of `model`; raise UserError if it is no FiniteModel.

    Examples
    --------
    >>> import rmtools as rm
    >>> exact = rm.solve(rm.families.product(horizon=3, ratio=2.0))
    >>> round(exact.sigma2, 6), round(exact.n_for_cv(0.1), 6)
    (0.333333, 33.333333)
    >>> times = exact.limiting_schedule(ess_threshold=0.5).times
    >>> times, round(exact.n_for_cv(0.1, schedule=times), 6)
    ((), 37.174211)
    """
    if not isinstance(model, FiniteModel):
        particles = isinstance(model, FiniteParticles)
        raise UserError(
            f"`model` must be a FiniteModel, got {type(model).__name__}",
            fix="solve(model) takes the model itself, smc its model.particles(groups)"
            if particles
            else "rmtools.families.product(horizon=8, ratio=2.0) is one",
        )
    true = model.log_true_value
    log_z = float(true[0][0])
    bellman = tuple(_log_bellman(model, t) for t in range(model.horizon))
    visible = _reachable(model, bellman)
    terms, terms_true, terms_best = _variance_terms(model)
    # Z = 0: the target does not exist, and no number of particles draws from it.
    exists = log_z > -math.inf
    target = np.exp(model.log_reach[-1] + true[-1] - log_z) if exists and model.is_tree else None
    return ExactResult(
        log_z=log_z,
        true_log_value=true,
        log_bellman_error=bellman,
        bellman_error=_expm1(max(float(np.abs(b).max()) for b in visible)),
        bellman_error_gauge_fixed=_expm1(max(_half_range(b) for b in visible)),
        ratio_bound=1 + _expm1(max(_log_ratio_bound(model, t) for t in range(model.horizon))),
        sigma2=_sum_excess(terms[0]) if exists else math.inf,
        sigma2_true_value=_sum_excess(terms_true) if exists else math.inf,
        sigma2_optimal=_sum_excess(terms_best) if exists else math.inf,
        target=target,
        influence=None if target is None else leaf_influence(model, 1, every_step(model)),
        _model=model,
        _log_terms=terms if exists else np.full_like(terms, np.inf),
    )


def _reachable(model: FiniteModel, by_depth: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    return [x[model.log_reach[t] > -np.inf] for t, x in enumerate(by_depth)]


def guided_tv(model: FiniteModel) -> np.ndarray:
    """Return the total variation between one exactly guided particle and each depth's target, (T + 1,), on a tree.

    The particle steps by policy * V(child) / E_policy[V(child)], the kernel of arXiv 2602.01381 Thm 4.3. The target at
    depth t is policy * V_t, normalised; at depth T it is the target itself. The theorem does not hold for the prefix law
    of the target, policy * V*_t: at an early prefix V*/V contains all later errors, and persistent ones put it further
    than 2 t epsilon away.

    Raises UserError on a chain, whose states are not prefixes, and if Z = 0 or a reachable prefix has no child of
    positive value.
    """
    if not model.is_tree or model.log_true_value[0][0] == -np.inf:
        raise UserError("the law of prefixes needs a tree and Z > 0", fix="unfold the chain into its tree")
    guided, distance = np.zeros(1), []
    for t in range(model.horizon + 1):
        target = model.log_reach[t] + model.log_value[t]
        target = target - log_sum_exp(target)
        distance.append(0.5 * float(np.abs(np.exp(guided) - np.exp(target)).sum()))
        if t < model.horizon:
            guided = _guided_step(model, t, guided)
    return np.array(distance)


def _guided_step(model: FiniteModel, t: int, guided: np.ndarray) -> np.ndarray:
    edge: np.ndarray = model.log_policy[t] + model.gather(t, model.log_value[t + 1])
    total = log_sum_exp(edge)
    if (total[guided > -np.inf] == -np.inf).any():
        raise UserError(
            f"a prefix of depth {t} has no child of positive value: guidance is not defined there"
        )
    edge = guided[:, None] + edge - np.where(total == -np.inf, 0.0, total)[:, None]
    if model.children is None:
        return edge.ravel()
    law = np.full(len(model.log_value[t + 1]), -np.inf)
    used = (model.policy[t] > 0) & (model.log_reach[t] > -np.inf)[:, None]
    law[model.child(t)[used]] = edge[used]
    return law


def _variance_terms(model: FiniteModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logs of the terms of the variance, one per step (docs/equations.md section 5).

    (2, T) for the model's value: Zhat E[V*(s_t)^2 / V] / Z^2, and the same with V*(s_{t-1})^2; (T,) for the true value;
    (T,) for the optimal value.
    """
    true, log_z = model.log_true_value, model.log_true_value[0][0]
    terms, terms_true, terms_best = [], [], []
    for t in range(model.horizon):
        reach, value, own = model.log_reach[t], model.log_value[t], true[t]
        second = log_mean_columns(2 * model.gather(t, true[t + 1]), model.log_policy[t])
        log_mean_value = log_sum_exp(reach + value)
        with np.errstate(invalid="ignore"):
            square = [log_sum_exp(_weighted(reach, x - value)) for x in (second, 2 * own)]
            terms.append([log_mean_value + s - 2 * log_z for s in square])
            terms_true.append(log_sum_exp(_weighted(reach, second - own)) - log_z)
            terms_best.append(2 * (log_sum_exp(reach + 0.5 * second) - log_z))
    return np.array(terms).T, np.array(terms_true), np.array(terms_best)


def _weighted(log_reach: np.ndarray, log_ratio: np.ndarray) -> np.ndarray:
    """Return log of reach times a ratio, with 0 / 0 = 0: nothing is lost if true value and value are both zero."""
    return np.where((log_reach == -np.inf) | np.isnan(log_ratio), -np.inf, log_reach + log_ratio)


def _log_bellman(model: FiniteModel, t: int) -> np.ndarray:
    expected = log_mean_columns(model.gather(t, model.log_value[t + 1]), model.log_policy[t])
    with np.errstate(invalid="ignore"):
        b = expected - model.log_value[t]
    return np.where(expected == model.log_value[t], 0.0, b)


def _log_ratio_bound(model: FiniteModel, t: int) -> float:
    child = model.gather(t, model.log_value[t + 1])
    own = model.log_value[t]
    unreachable = model.log_reach[t] == -np.inf
    worst = 0.0
    for b in range(child.shape[1]):
        with np.errstate(invalid="ignore"):
            ratio = np.abs(child[:, b] - own)
        ratio[(model.policy[t][:, b] == 0) | unreachable | (child[:, b] == own)] = 0.0
        worst = max(worst, float(ratio.max()))
    return worst


def _half_range(b: np.ndarray) -> float:
    return float(np.ptp(b)) / 2 if np.isfinite(b).all() else math.inf


def _expm1(x: float) -> float:
    return math.expm1(x) if x < 709 else math.inf


def _sum_excess(log_terms: np.ndarray) -> float:
    return float(np.sum(_excess(log_terms)))


def _excess(log_terms: np.ndarray) -> np.ndarray:
    # NaN is 0 * inf: the target passes a depth at which no reachable prefix has a positive value.
    with np.errstate(over="ignore"):
        return np.expm1(np.where(np.isnan(log_terms), np.inf, log_terms))
