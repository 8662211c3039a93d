"""Sequential Monte Carlo with pools: one sampler whose settings are best-of-N, beam search, SP-gSMC and SMC.

At each step every particle draws a pool of M candidates from the policy. Its log increment is the log of the pool's mean
value over its own value. After resampling, each offspring takes one candidate of its parent's pool with probability
proportional to the value. The estimate of Z is unbiased for every N, M, unbiased resampling scheme and ESS threshold if
the value is positive wherever the target can be reached (docs/equations.md section 4; arXiv 2602.01381 Algorithms 1 and
2). All G groups run at once, in the log domain, in nats.

>>> import numpy as np
>>> from rmtools.core import product, solve
>>> model = product(horizon=8, ratio=3.0)
>>> result = smc(model.particles(groups=2000), n_particles=20, pool_size=2, rng=np.random.default_rng(0))
>>> bool(abs(np.exp(result.log_z - solve(model).log_z).mean() - 1) < 0.02)
True
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Generic

import numpy as np

from rmtools.errors import UserError
from rmtools.particles.arguments import check_bool, check_callable, check_count, check_generator, is_number
from rmtools.particles.islands import ByIsland, IslandView, joined_index, pooled_log_z, resolve_islands
from rmtools.particles.logspace import MANY_COLUMNS, log_mean_columns, log_mean_exp, log_normalise, shift_of
from rmtools.particles.protocol import Observe, P, SMCResult, Step
from rmtools.particles.resampling import (
    RESAMPLING,
    Resampler,
    multinomial,
    none,
    resolve,
    search_rows,
    top_k,
)

SAFE_EXPONENT = 300.0  # squares of such weights, and their sums, are ordinary floating-point numbers
LARGEST_KEPT = 2**25 - 2**16  # bytes, just below the largest threshold glibc adapts to (mallopt(3))


def smc(
    root: P,
    n_particles: int,
    pool_size: int = 1,
    resampling: str = "systematic",
    ess_threshold: float = 0.5,
    rng: np.random.Generator | None = None,
    history: bool = True,
    *,
    observe: Observe[P] | None = None,
    islands: int | None = None,
) -> SMCResult[P]:
    """Sample each group of `root` with `n_particles` particles.

    Parameters
    ----------
    root : Particles
        Shape (G, 1), replicated to N particles per group, or (G, N).
    n_particles : int
        N, particles per group.
    pool_size : int
        M, candidates per particle and step.
    resampling : str
        A name in `rmtools.particles.resampling.RESAMPLING`. `none` never resamples. `top_k` keeps the N best of
        the N * M candidates at every step (step-level beam search); it is deterministic and estimates no Z.
    ess_threshold : float
        Resample a group when its effective sample size is at most this fraction of N. 1 resamples at every
        step, 0 never. Not used by `none` and `top_k`.
    rng : np.random.Generator
        Source of every draw; required.
    history : bool
        Keep `log_increments` and `ancestors` (12 bytes per particle and step). If False, they have no rows.
    observe : callable, optional
        Called once per step with a `Step`, after the step's draws. It draws nothing from `rng`, so the result is the
        same with and without it. What it raises is not caught. One marked by `only_looks` costs no memory.
    islands : int, optional
        K independent runs of N / K particles in the place of one, pooled with weights Zhat_k: they give `log_z_se` and the
        interval of `share`. Default: 1 below N = 128, 4 from 128 on, 8 from 256 on (the next smaller one if it does not
        divide N), 1 for `top_k`. 1 is a single run, whose figures hold for N particles that interact.

    Returns
    -------
    SMCResult
        Each group stops by itself: it is not resampled after its last step (the final particles stay weighted), and
        nothing in it changes once all its particles have ended or all its weights are zero.

    Raises
    ------
    UserError
        If a setting is out of range, the scheme is unknown (the valid ones are listed), `rng` is missing, or `islands` do
        not divide N or do not go with the scheme.
    ValueError
        If a value is NaN or +inf; the message names the step, the group and the particle.

    Examples
    --------
    >>> import numpy as np
    >>> import rmtools as rm
    >>> model = rm.families.product(horizon=8, ratio=3.0)
    >>> result = rm.smc(model.particles(groups=2000), n_particles=20, rng=np.random.default_rng(0))
    >>> bool(abs(np.exp(result.log_z - rm.solve(model).log_z).mean() - 1) < 0.02)
    True
    """
    resampler, rng = check_settings(n_particles, pool_size, resampling, ess_threshold, rng)
    threshold = 0.0 if resampler is none else float(ess_threshold)
    check_root(root)
    check_callable("observe", observe)
    check_bool("history", history)
    count = resolve_islands(islands, n_particles, resampling)
    settings = Settings(int(n_particles) // count, int(pool_size), resampler, threshold, islands=count)
    return run(root, settings, rng, history, observe)


@dataclass(frozen=True)
class Settings:
    """Checked settings of a run of `islands` times `n` particles per group.

    `pinned`, a trajectory of joinable particles, (G, 1) at every depth, takes the place of candidate 0 of slot 0 and stays
    in slot 0 (conditional SMC).
    """

    n: int
    pool: int
    resampler: Resampler
    threshold: float
    pinned: Sequence[Any] = ()
    islands: int = 1


def run(
    root: P,
    settings: Settings,
    rng: np.random.Generator,
    history: bool = True,
    observe: Observe[P] | None = None,
) -> SMCResult[P]:
    """Run the sampler with settings already checked."""
    _keep_freed_arrays()
    step = _beam_step if settings.resampler is top_k else _step
    state = _start(root, settings)
    record = _History(state.log_value.shape, history, observe, settings.islands)
    frees = hasattr(root, "copied") and (observe is None or getattr(observe, "only_looks", False))
    if frees:
        state = _with(state, "copied")
    while (live := _live_groups(state)).any():
        state = step(state, settings, live, record, rng)
    return _finish(_with(state, "kept") if frees else state, settings, record)


def _with(state: "_State[P]", method: str) -> "_State[P]":
    return replace(state, particles=getattr(state.particles, method)())


@cache
def _keep_freed_arrays() -> None:
    """Make glibc keep freed arrays for the next ones: a step makes about twenty of the same size.

    By default it returns arrays of more than 128 KiB to the system, and each next one pays a page fault per 4 KiB: more
    than half of the time on a finite model (docs/log.md). Its threshold follows the largest block freed so far, up to
    32 MiB, so freeing one such block, never written to, is enough. Up to 64 MiB of freed memory stay with the process.
    """
    np.empty(LARGEST_KEPT, dtype=np.uint8)


@dataclass(frozen=True)
class _State(Generic[P]):
    """What a step works on; with K islands the particles are an `IslandView`, and G and N are those of the view."""

    particles: P
    ended: np.ndarray | None  # (G, N); None while no prefix has ended
    log_value: np.ndarray  # (G, N)
    log_weight: np.ndarray | None  # (G, N), relative to log_const; None is zero everywhere
    log_const: np.ndarray  # (G,)
    family: np.ndarray | None = (
        None  # (G, N), ancestor in the first generation; None if the scheme has no use for it
    )


class _History:
    """Per-step arrays, written in place: copying a list of steps would double the memory traffic."""

    def __init__(
        self,
        shape: tuple[int, int],
        keep: bool,
        observe: Callable[[Step[Any]], object] | None,
        islands: int,
    ) -> None:
        self.n_steps = 0
        self.keep = keep
        self.observe = observe
        self.islands = islands
        capacity = max(1, min(64, 2**27 // max(1, shape[0] * shape[1]))) if keep else 0
        self.log_increments = np.empty((capacity, *shape))
        self.ancestors = np.empty((capacity, *shape), dtype=np.int32)
        self.live: list[np.ndarray] = []
        self.ess: list[np.ndarray] = []
        self.resampled: list[np.ndarray] = []

    def new_step(self, live: np.ndarray) -> np.ndarray | None:
        """Count a step and return the array for its log increments; None if no history is kept."""
        self.n_steps += 1
        self.live.append(live)
        if not self.keep:
            return None
        if self.n_steps > len(self.ancestors):
            self.log_increments = np.concatenate([self.log_increments, np.empty_like(self.log_increments)])
            self.ancestors = np.concatenate([self.ancestors, np.empty_like(self.ancestors)])
        row: np.ndarray = self.log_increments[self.n_steps - 1]
        return row

    def end_step(self, ess: np.ndarray, resampled: np.ndarray, ancestors: np.ndarray) -> None:
        """Write the other figures of the step."""
        self.ess.append(ess)
        self.resampled.append(resampled)
        if self.keep:
            self.ancestors[self.n_steps - 1] = ancestors

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the fields of `SMCResult` with a row per step; the per-group ones are (T, G, K) with K > 1 islands."""
        _, rows, n = self.ancestors.shape
        shape: tuple[int, ...] = (self.n_steps, rows)
        increments, ancestors = self.log_increments[: self.n_steps], self.ancestors[: self.n_steps]
        if self.islands > 1:
            shape = (self.n_steps, rows // self.islands, self.islands)
            increments = increments.reshape(len(increments), shape[1], self.islands * n)
            ancestors = joined_index(ancestors, self.islands, n)
        return {
            "ess": np.array(self.ess, dtype=float).reshape(shape),
            "log_increments": increments,
            "ancestors": ancestors,
            "resampled": np.array(self.resampled, dtype=bool).reshape(shape),
            "live": np.array(self.live, dtype=bool).reshape(shape),
        }

    def show(
        self,
        parents: P,
        children: P,
        index: np.ndarray,
        log_increment: np.ndarray,
        weights: tuple[np.ndarray | None, np.ndarray] | None = None,
    ) -> None:
        """Call the observer, if any, with the step whose other figures were written last; `weights` as in `_State`."""
        if self.observe is None:
            return
        arrays: list[np.ndarray] = [index, self.ess[-1], self.resampled[-1], log_increment]
        log_z = None if weights is None else _log_z(*weights, index.shape)
        if isinstance(parents, IslandView) and isinstance(children, IslandView):
            k = self.islands
            arrays = [
                joined_index(index, k, children.shape[1]),
                self.ess[-1].reshape(-1, k).sum(axis=1),
                np.any(self.resampled[-1].reshape(-1, k), axis=1),
                log_increment.reshape(-1, k * log_increment.shape[1]),
            ]
            log_z = None if log_z is None else pooled_log_z(log_z.reshape(-1, k))
            parents, children = parents.whole, children.whole
        at, ess, resampled, increment = (_frozen(x) for x in arrays)
        log_z = None if log_z is None else _frozen(log_z)
        self.observe(Step(self.n_steps, parents, children, at, ess, resampled, increment, log_z))


def check_settings(
    n_particles: int, pool_size: int, resampling: str, ess_threshold: float, rng: np.random.Generator | None
) -> tuple[Resampler, np.random.Generator]:
    """Return the scheme and the generator, or raise UserError."""
    check_count("n_particles", n_particles, fix=16)
    check_count("pool_size", pool_size)
    if not is_number(ess_threshold) or not 0 <= ess_threshold <= 1:
        raise UserError(
            f"`ess_threshold` must be in [0, 1], got {ess_threshold!r}: "
            "it is a fraction of `n_particles`, not a count",
            fix="0.5 resamples when half of the effective particles are lost, 1 at every step, 0 never",
        )
    return resolve(resampling), check_generator(rng)


def check_root(root: object) -> None:
    """Raise UserError unless `root` has the methods of `Particles`."""
    if not all(hasattr(root, name) for name in ("shape", "ended", "log_value", "extend", "select")):
        raise UserError(
            f"`root` must be Particles, got {type(root).__name__}",
            fix="model.particles(groups) of a finite model, LMParticles.start(...) of a language model",
        )


def _start(root: P, settings: Settings) -> _State[Any]:
    (n_groups, n_root), n = root.shape, settings.n * settings.islands
    if n_root not in (1, n):
        raise UserError(
            f"`root` must have 1 or {n} prefixes per group, got {n_root}", fix="pass one root per group"
        )
    log_value = _checked_values(root.log_value(), step=0)
    if n_root != n:
        root = root.select(np.zeros((n_groups, n), dtype=np.intp))
        log_value = np.repeat(log_value, n, axis=1)
    particles: Any = root
    if settings.islands > 1:
        particles = IslandView(root, settings.islands)
        log_value = log_value.reshape(particles.shape)
    log_const = shift_of(log_value)
    family = None
    if settings.islands == 1 and settings.resampler in (multinomial, none):
        family = np.tile(np.arange(n, dtype=np.int32), (n_groups, 1))
    return _State(
        particles, _if_any(particles.ended), log_value, log_value - log_const, log_const[:, 0], family
    )


def _if_any(ended: np.ndarray) -> np.ndarray | None:
    return ended if ended.any() else None


def _checked_values(log_value: np.ndarray, step: int) -> np.ndarray:
    """Return `log_value`, (G, n) nats, or raise ValueError naming the place of a NaN or +inf."""
    if not log_value.max(initial=-np.inf) < np.inf:
        group, particle = np.argwhere(~(log_value < np.inf))[0]
        raise ValueError(
            f"log value of step {step}, group {group}, particle {particle} is {log_value[group, particle]}: "
            "a value must be finite, or -inf for zero"
        )
    return log_value


def _take(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the entries (G, k) of x (G, n) at `index` (G, k), faster than take_along_axis."""
    offset = np.arange(len(x))[:, None] * x.shape[1]
    taken: np.ndarray = x.ravel().take(index + offset)
    return taken


def _live_groups(state: _State[P]) -> np.ndarray:
    if state.log_weight is None:
        if state.ended is None:
            return np.ones(len(state.log_const), dtype=bool)
        live: np.ndarray = np.any(~state.ended, axis=1)
    elif state.ended is None:
        live = state.log_weight.max(axis=1) > -np.inf
    else:
        live = np.any(~state.ended & (state.log_weight > -np.inf), axis=1)
    return live


def _step(
    state: _State[P], settings: Settings, live: np.ndarray, history: _History, rng: np.random.Generator
) -> _State[P]:
    children = state.particles.extend(settings.pool, rng)
    if settings.pinned:
        children = _pin(children, settings.pinned, history.n_steps + 1)
    child_ended = _if_any(children.ended)
    pool = _checked_values(children.log_value(), history.n_steps + 1)
    increment = _increment(pool, state, out=history.new_step(live))
    log_weight = increment if state.log_weight is None else state.log_weight + increment
    weighed = _weigh(log_weight)
    due = live & ~_finished(child_ended, pool, log_weight) & (weighed.log_mean > -np.inf)
    due &= _ess_says_so(weighed.ess, settings)
    ancestors = _resample(log_weight, weighed.weight, due, settings, rng)
    history.end_step(weighed.ess, due, ancestors)
    log_const = np.where(due, state.log_const + weighed.log_mean, state.log_const)
    left = _left_weight(log_weight, due)
    index = ancestors
    if settings.pool > 1:
        index = _draw_candidates(pool, ancestors, settings.pool, rng)
        if settings.pinned:
            index[:, 0] = 0
    history.show(state.particles, children, index, increment, (left, log_const))
    if settings.pool == 1 and not due.any():
        return _State(children, child_ended, pool, left, log_const, state.family)
    particles = children.select(index)
    ended = None if child_ended is None else particles.ended
    family = state.family if state.family is None or not due.any() else _take(state.family, ancestors)
    return _State(particles, ended, _take(pool, index), left, log_const, family)


def _pin(children: Any, pinned: Sequence[Any], t: int) -> Any:
    """Replace candidate 0 of slot 0 by the trajectory's prefix after t steps."""
    n_groups, n = children.shape
    index = np.tile(np.arange(n), (n_groups, 1))
    index[:, 0] = n
    # An ended trajectory is absorbing: its last prefix is that of all later depths.
    return children.join(pinned[min(t, len(pinned) - 1)]).select(index)


def _frozen(x: np.ndarray) -> np.ndarray:
    """Return a read-only copy: of a view, an observer could make the array below it writeable again."""
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def _increment(pool: np.ndarray, state: _State[P], out: np.ndarray | None) -> np.ndarray:
    """Return each parent's log increment; exactly 0 for ended parents and those of value zero."""
    n_groups, n = state.log_value.shape
    log_mean = pool if pool.shape[1] == n else log_mean_columns(pool.reshape(n_groups, n, -1))
    with np.errstate(invalid="ignore"):  # -inf - -inf, replaced below
        increment: np.ndarray = np.subtract(log_mean, state.log_value, out=out)
    still = state.log_value == -np.inf
    if state.ended is not None:
        still |= state.ended
    if still.any():
        increment[still] = 0.0
    return increment


@dataclass(frozen=True)
class _Weighed:
    weight: np.ndarray  # (G, N), each group's up to a constant
    ess: np.ndarray  # (G,)
    log_mean: np.ndarray  # (G,) nats


def _weigh(log_weight: np.ndarray) -> _Weighed:
    shift: np.ndarray | float = 0.0
    if max(log_weight.max(), -log_weight.min()) <= SAFE_EXPONENT:
        weight = np.exp(log_weight)
    else:
        shift = shift_of(log_weight)[:, 0]
        weight = np.exp(log_weight - shift[:, None])
    total = weight.sum(axis=1)
    # einsum, not vecdot: for long rows BLAS would start threads, one set per worker process.
    squares = np.einsum("gn,gn->g", weight, weight)
    ess = np.divide(total**2, squares, out=np.zeros_like(total), where=squares > 0)
    with np.errstate(divide="ignore"):
        return _Weighed(weight, ess, np.log(total / log_weight.shape[1]) + shift)


def _ess_says_so(ess: np.ndarray, settings: Settings) -> np.ndarray:
    # 0 and 1 are exact promises and must not depend on how an ESS of N (or 0) rounds.
    if settings.threshold in (0.0, 1.0):
        return np.full(len(ess), settings.threshold == 1.0)
    low: np.ndarray = ess <= settings.threshold * settings.n
    return low


def _finished(child_ended: np.ndarray | None, pool: np.ndarray, log_weight: np.ndarray) -> np.ndarray:
    """(G,) bool: no candidate of positive weight can be extended, so this was the group's last step."""
    if child_ended is None:
        return np.zeros(len(pool), dtype=bool)
    n_groups, n = log_weight.shape
    alive = (pool > -np.inf).reshape(n_groups, n, -1) & (log_weight > -np.inf)[:, :, None]
    unfinished: np.ndarray = np.any(~child_ended & alive.reshape(pool.shape), axis=1)
    return ~unfinished


def _resample(
    log_weight: np.ndarray, weight: np.ndarray, due: np.ndarray, settings: Settings, rng: np.random.Generator
) -> np.ndarray:
    """Return the ancestors of all groups, (G, N); the identity where not due."""
    if due.all():
        return settings.resampler(log_weight, settings.n, rng, weight)
    identity = np.broadcast_to(np.arange(settings.n), log_weight.shape)
    if not due.any():
        return identity
    ancestors = identity.copy()
    ancestors[due] = settings.resampler(log_weight[due], settings.n, rng, weight[due])
    return ancestors


def _left_weight(log_weight: np.ndarray, due: np.ndarray) -> np.ndarray | None:
    """Return the log weights after resampling; None is zero everywhere, which the next step need not add."""
    if due.all():
        return None
    if not due.any():
        return log_weight
    left = log_weight.copy()
    left[due] = 0.0
    return left


def _draw_candidates(pool: np.ndarray, ancestors: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """Return child indices, (G, N): each offspring draws one of its parent's M candidates by value, independently."""
    parent = ancestors + np.arange(len(ancestors))[:, None] * (pool.shape[1] // m)
    uniform = rng.random(ancestors.shape)
    pool = pool.reshape(-1, m)
    if m > MANY_COLUMNS:
        chosen = _search_candidates(pool, parent.ravel(), uniform.ravel()).reshape(ancestors.shape)
    else:
        chosen = np.zeros(ancestors.shape, dtype=np.intp)
        for share in _cumulative_shares(pool):
            chosen += uniform >= share.take(parent)
    index: np.ndarray = ancestors * m + chosen
    return index


def _search_candidates(log_value: np.ndarray, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    cumulative = np.cumsum(np.exp(log_value - shift_of(log_value)), axis=1)
    cumulative[cumulative[:, -1] == 0] = 1.0  # a row of zeros picks candidate 0
    return search_rows(cumulative, rows, uniform)


def _cumulative_shares(log_value: np.ndarray) -> list[np.ndarray]:
    """Return columns 0 ... M - 2 of each row's cumulative shares; all 1 in a row of zeros, which picks candidate 0.

    A share that reaches 1 early does so exactly: trailing candidates of value zero are never drawn.
    """
    columns = [log_value[:, b] for b in range(log_value.shape[1])]
    top = columns[0]
    for column in columns[1:]:
        top = np.maximum(top, column)
    shift = np.where(top == -np.inf, 0.0, top)
    sums = [np.exp(columns[0] - shift)]
    for column in columns[1:]:
        sums.append(sums[-1] + np.exp(column - shift))
    return [np.divide(x, sums[-1], out=np.ones_like(x), where=sums[-1] > 0) for x in sums[:-1]]


def _beam_step(
    state: _State[P], settings: Settings, live: np.ndarray, history: _History, rng: np.random.Generator
) -> _State[P]:
    n, m = settings.n, settings.pool
    parent_ended = np.repeat(state.particles.ended, m, axis=1)
    children = state.particles.extend(m, rng)
    pool = _checked_values(children.log_value(), history.n_steps + 1)
    # An ended beam has M identical candidates; only the first competes, or one answer would fill the beam.
    assert state.log_weight is not None
    lost = np.repeat(state.log_weight == -np.inf, m, axis=1)
    spare = lost | (parent_ended & (np.arange(n * m) % m > 0))
    index = top_k(np.where(spare, -np.inf, pool), n, rng)
    index = np.where(live[:, None], index, np.arange(n) * m)
    ancestors = index // m
    change_out = history.new_step(live)
    log_value = _take(pool, index)
    with np.errstate(invalid="ignore"):
        change = log_value - _take(state.log_value, ancestors)
    change = np.where(_take(parent_ended, index) | np.isnan(change), 0.0, change)
    if change_out is not None:
        change_out[:] = change
    log_weight = np.where(_take(spare, index) & live[:, None], -np.inf, 0.0)
    log_weight = np.where(log_value == -np.inf, -np.inf, log_weight)
    history.end_step(_weigh(log_value).ess, live, ancestors)
    history.show(state.particles, children, index, change)
    particles = children.select(index)
    return _State(particles, _if_any(particles.ended), log_value, log_weight, state.log_const)


def _log_z(log_weight: np.ndarray | None, log_const: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the estimate (G,) of log Z, nats, from what `_State` holds."""
    found: np.ndarray = log_const + log_mean_exp(np.zeros(shape) if log_weight is None else log_weight)
    return found


def _finish(state: _State[Any], settings: Settings, history: _History) -> SMCResult[Any]:
    beam = settings.resampler is top_k
    log_z = None if beam else _log_z(state.log_weight, state.log_const, state.log_value.shape)
    log_weight = np.zeros(state.log_value.shape) if state.log_weight is None else state.log_weight
    log_weights = log_normalise(log_weight + state.log_value if beam else log_weight)
    arrays: dict[str, Any] = history.arrays()
    scheme = next((name for name, drawn in RESAMPLING.items() if drawn is settings.resampler), "conditional")
    if settings.islands == 1 or log_z is None:
        return SMCResult(
            state.particles,
            log_weights,
            log_z,
            **arrays,
            pool_size=settings.pool,
            resampling=scheme,
            family=state.family,
        )
    each = log_z.reshape(-1, settings.islands)
    own = {name: arrays.pop(name) for name in ("ess", "resampled", "live")}
    pooled = (log_weights + log_z[:, None]).reshape(len(each), -1)
    return SMCResult(
        particles=state.particles.whole,
        log_weights=log_normalise(pooled),
        log_z=pooled_log_z(each),
        ess=own["ess"].sum(axis=2),
        resampled=own["resampled"].any(axis=2),
        live=own["live"].any(axis=2),
        **arrays,
        pool_size=settings.pool,
        resampling=scheme,
        by_island=ByIsland(each, **own),
    )
