"""Conditional SMC: runs that contain a given trajectory, for particle Gibbs and for bounds on log Z.

A conditional run keeps the reference in slot 0: its step is one of the M candidates of its parent, and slot 0 continues
it. Everything else is drawn as in `smc` with multinomial resampling at every step. One weighted draw of such a run is a
Markov kernel that leaves the target invariant (particle Gibbs). If the reference is an exact draw of the target,
E[1 / Zhat] <= 1 / Z (with equality if no run can die): the mean of log Zhat bounds log Z from above, as that of an
ordinary run bounds it from below (docs/equations.md section 4; arXiv 2404.17546 section 5).

>>> import numpy as np
>>> from rmtools.core import product, solve
>>> model = product(horizon=6, ratio=4.0)
>>> rng = np.random.default_rng(0)
>>> path = model.draw_target(1000, rng)
>>> bounds = log_z_bounds(path, n_particles=8, rng=rng)
>>> bool(bounds.lower.mean() < solve(model).log_z < bounds.upper.mean())
True
>>> chain = particle_gibbs(model.particles(1000), n_particles=8, sweeps=3, rng=rng)
>>> len(chain.draws), chain.kept.shape
(3, (3, 1000))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from rmtools.errors import UserError
from rmtools.particles.arguments import check_callable, check_count
from rmtools.particles.islands import Share, pooled_share
from rmtools.particles.protocol import Observe, Particles, SMCResult, Step
from rmtools.particles.resampling import multinomial
from rmtools.particles.smc import Settings, check_root, check_settings, run

BATCHES = 20  # of sweeps, whose spread gives an error


class JoinableParticles(Particles, Protocol):
    """`Particles` that can be concatenated, as conditional SMC requires."""

    def join(self, other: Self) -> Self:
        """Return (G, n + k) prefixes: these, then those of `other`, (G, k), of the same depth."""
        ...


J = TypeVar("J", bound=JoinableParticles)


@dataclass(frozen=True, eq=False)
class GibbsResult(Generic[J]):
    """G chains of particle Gibbs.

    Attributes
    ----------
    draws : tuple of Particles
        Final prefixes, (G, 1), after each sweep.
    path : tuple of Particles
        The trajectories of the last draws, (G, 1) at every depth from the root; pass them as `reference` to continue.
    log_z : np.ndarray
        (H, G) nats, log Zhat of each conditional run.
    kept : np.ndarray
        (H, G) bool: the draw came from the reference's slot. A reference that ends early is copied to other slots as
        well; a draw from those does not count as kept.
    """

    draws: tuple[J, ...]
    path: tuple[J, ...]
    log_z: np.ndarray
    kept: np.ndarray

    def share(self, f: Callable[[J], np.ndarray]) -> Share:
        """Return the share under the target of the draws for which `f` is true, with a 95% interval from batches of sweeps.

        Parameters
        ----------
        f : callable
            Draws of one sweep, (G, 1), to (G, 1) of bool or of numbers in [0, 1].

        Returns
        -------
        Share
            (G,) each. The interval is NaN with fewer than 20 sweeps, or where the answer occurs in fewer than two batches.

        Notes
        -----
        Source: docs/equations.md section 9. 20 batches of equally many sweeps, the first few sweeps left out; a batch counts
        as an island.
        """
        phi = np.concatenate([np.asarray(f(d), dtype=float).reshape(-1, 1) for d in self.draws], axis=1)
        at = batches_of(len(self.draws))
        even = np.full((len(phi), at.size), -np.log(at.size))
        return pooled_share(phi[:, at.ravel()], even, np.zeros((len(phi), len(at))))


def batches_of(sweeps: int) -> np.ndarray:
    """Return the sweeps of each of 20 batches, (20, size) indices; of a single batch, (1, sweeps), below 20 sweeps."""
    count = BATCHES if sweeps >= BATCHES else 1
    size = sweeps // count
    return np.arange(sweeps - count * size, sweeps).reshape(count, size)


@dataclass(frozen=True, eq=False)
class LogZBounds:
    """Stochastic bounds on log Z, one pair per group, in nats.

    Attributes
    ----------
    lower : np.ndarray
        (G,) log Zhat of ordinary runs; the mean over runs is at most log Z.
    upper : np.ndarray
        (G,) log Zhat of runs conditional on an exact draw of the target; the mean is at least log Z.
    """

    lower: np.ndarray
    upper: np.ndarray

    def means(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return (mean, standard error) of `lower` and of `upper` over groups that replicate one prompt."""
        n = len(self.lower)
        with np.errstate(invalid="ignore"):
            low, high = (
                (float(x.mean()), float(np.std(x, ddof=1) / np.sqrt(n))) for x in (self.lower, self.upper)
            )
        return low, high


def particle_gibbs(
    root: J,
    n_particles: int,
    sweeps: int,
    pool_size: int = 1,
    resampling: str = "multinomial",
    rng: np.random.Generator | None = None,
    reference: Sequence[J] | None = None,
    *,
    observe: Observe[J] | None = None,
) -> GibbsResult[J]:
    """Run G chains of particle Gibbs; each sweep draws a trajectory from a run conditional on the last one.

    Parameters
    ----------
    root : JoinableParticles
        Shape (G, 1).
    n_particles : int
        N >= 2 particles per group, the reference among them.
    sweeps : int
        H >= 1.
    pool_size : int
        M candidates per particle and step; the reference step is one of its M.
    resampling : str
        Only "multinomial": the offspring of the other slots must be independent given the weights.
    rng : np.random.Generator
        Source of every draw; required.
    reference : sequence of Particles, optional
        Trajectories to start from, (G, 1) at every depth from the root to the end. Default: one draw of an
        ordinary run.
    observe : callable, optional
        Called with every `Step` of every run, as in `smc`; t = 1 begins the next one. The first ordinary run counts if
        no `reference` is given. In a conditional run candidate 0 of `children` is the reference's.

    Raises
    ------
    UserError
        If a setting is out of range, the scheme is another one, or a reference has not ended or has value zero.

    Notes
    -----
    Source: Andrieu, Doucet & Holenstein (2010), conditional SMC; with pools, the N * M candidates are its particles.
    """
    _, rng = check_settings(n_particles, pool_size, resampling, 1.0, rng)
    if resampling != "multinomial":
        raise UserError(
            f"particle Gibbs resamples by 'multinomial', got {resampling!r}: with the reference pinned to a slot the "
            "other slots must be independent draws, or the target is not left invariant",
            fix="resampling='multinomial'",
        )
    check_count("n_particles", n_particles, 2, "one of them is the reference", fix=8)
    check_count("sweeps", sweeps, fix=10)
    check_callable("observe", observe)
    check_root(root)
    if reference is None:
        path, alive = first_paths(root, n_particles, pool_size, rng, observe)
        if not alive.all():
            raise UserError(
                "no particle of the first run has positive value", fix="raise n_particles or pass `reference`"
            )
    else:
        path = tuple(reference)
        if not path or path[0].shape != root.shape or (path[0].log_value() != root.log_value()).any():
            raise UserError(
                "a reference must start at the root: its first prefixes are not those of `root`",
                fix="pass prefixes of every depth, the root's first, as `GibbsResult.path` has them",
            )
    draws, log_z, kept = [], [], []
    for _ in range(sweeps):
        levels = _Levels(observe)
        result = _conditional(path, n_particles, pool_size, rng, levels)
        index = result.draw(rng)
        path = levels.trace(result, index)
        draws.append(path[-1])
        log_z.append(result.log_z)
        kept.append(index == 0)
    return GibbsResult(tuple(draws), path, np.array(log_z), np.array(kept))


def log_z_bounds(
    posterior: Sequence[J], n_particles: int, pool_size: int = 1, rng: np.random.Generator | None = None
) -> LogZBounds:
    """Bracket log Z between an ordinary run and one conditional on an exact draw of the target.

    Parameters
    ----------
    posterior : sequence of Particles
        Exact draws of the target, (G, 1) at every depth from the root to the end. The bounds are on log Z of its
        first prefixes, even if these are not the root.
    n_particles, pool_size
        N and M of both runs.
    rng : np.random.Generator
        Source of every draw; required.

    Raises
    ------
    UserError
        If a setting is out of range, or a trajectory has not ended or has value zero.

    Notes
    -----
    Source: arXiv 2404.17546 section 5 (bidirectional SMC bounds); multinomial resampling at every step.
    """
    _, rng = check_settings(n_particles, pool_size, "multinomial", 1.0, rng)
    if not posterior:
        raise UserError("`posterior` is empty", fix="pass prefixes of every depth, the root's first")
    upper = _conditional(tuple(posterior), n_particles, pool_size, rng, None).log_z
    lower = run(posterior[0], Settings(n_particles, pool_size, multinomial, 1.0), rng, history=False).log_z
    assert upper is not None
    assert lower is not None
    return LogZBounds(lower, upper)


class _Levels(Generic[J]):
    """Observe a run, keeping the particles before every step."""

    def __init__(self, observe: Observe[J] | None) -> None:
        self.parents: list[J] = []
        self.observe = observe

    def __call__(self, step: Step[J]) -> None:
        self.parents.append(step.parents)
        if self.observe is not None:
            self.observe(step)

    def trace(self, result: SMCResult[J], index: np.ndarray) -> tuple[J, ...]:
        """Return the trajectory of one final particle per group, root first."""
        path = [result.particles.select(index[:, None])]
        groups = np.arange(len(index))
        for level, ancestors in zip(reversed(self.parents), reversed(result.ancestors), strict=True):
            index = ancestors[groups, index].astype(np.intp)
            path.append(level.select(index[:, None]))
        return tuple(reversed(path))


def _pinned_multinomial(
    log_weights: np.ndarray, n_out: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    free = multinomial(log_weights, n_out - 1, rng, weights)
    return np.concatenate([np.zeros((len(free), 1), dtype=free.dtype), free], axis=1)


def _conditional(
    path: tuple[J, ...], n: int, m: int, rng: np.random.Generator, observe: Observe[J] | None
) -> SMCResult[J]:
    last = path[-1]
    if not last.ended.all():
        raise UserError(
            "a reference trajectory must have ended", fix="pass prefixes of every depth, the end included"
        )
    for depth, level in enumerate(path):
        if not (level.log_value() > -np.inf).all():
            raise UserError(
                f"a reference trajectory has value zero at depth {depth}: no run of the sampler goes there",
                fix="choose another, or a value that is positive wherever the target can be reached",
            )
    return run(path[0], Settings(n, m, _pinned_multinomial, 1.0, path), rng, observe=observe)


def first_paths(
    root: J,
    n_particles: int,
    pool_size: int,
    rng: np.random.Generator,
    observe: Observe[J] | None = None,
) -> tuple[tuple[J, ...], np.ndarray]:
    """Draw one trajectory per group from an ordinary run, as references for particle Gibbs.

    Returns
    -------
    path : tuple of Particles
        (G, 1) at every depth from the root to the end.
    alive : np.ndarray
        (G,) bool: some particle of the run has positive value; otherwise the path cannot be a reference.
    """
    levels = _Levels(observe)
    result = run(root, Settings(n_particles, pool_size, multinomial, 1.0), rng, observe=levels)
    assert result.log_z is not None
    return levels.trace(result, result.draw(rng)), result.log_z > -np.inf
