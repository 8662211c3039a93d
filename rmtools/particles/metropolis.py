"""Independent Metropolis-Hastings over whole runs of the sampler, accepted by their estimates of Z.

A fresh run replaces the current one with probability min(1, Z' / Z) (particle independent Metropolis-Hastings; with one
particle, arXiv 2602.01381 Algorithm 2). The state of a chain is one weighted draw of its run. Its law tends to the
target for every number of particles. All G groups are chains run at once.

>>> import numpy as np
>>> from rmtools.core import product, smc
>>> model = product(horizon=6, ratio=4.0)
>>> rng = np.random.default_rng(0)
>>> chains = metropolis(lambda rng: smc(model.particles(4000), 1, pool_size=8, rng=rng), mh_steps=10, rng=rng)
>>> ones = chains.collect(lambda particles: particles.state[:, 0])
>>> bool(abs(ones.mean() / 6 - 0.8) < 0.01), chains.accepted.shape
(True, (10, 4000))
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

import numpy as np

from rmtools.errors import UserError
from rmtools.particles.arguments import check_count, check_generator
from rmtools.particles.islands import log_z_error, pooled_log_z
from rmtools.particles.protocol import P, SMCResult


@dataclass(frozen=True, eq=False)
class MetropolisResult(Generic[P]):
    """Final state of G chains and their history.

    Attributes
    ----------
    runs : tuple of Particles
        Final particles, (G, N), of the runs that some chain still holds.
    run : np.ndarray
        (G,) index into `runs` of each chain's current run.
    index : np.ndarray
        (G,) particle of that run, one weighted draw.
    log_z : np.ndarray
        (H + 1, G) nats: estimate of the current run before the first and after each proposal.
    proposed_log_z : np.ndarray
        (H, G) nats: estimate of each proposed run.
    accepted : np.ndarray
        (H, G) bool.
    """

    runs: tuple[P, ...]
    run: np.ndarray
    index: np.ndarray
    log_z: np.ndarray
    proposed_log_z: np.ndarray
    accepted: np.ndarray

    @property
    def estimates(self) -> np.ndarray:
        """(G, H + 1) nats: the estimates of all runs, the first one and every proposal; they are independent."""
        return np.concatenate([self.log_z[:1], self.proposed_log_z]).T

    @property
    def pooled_log_z(self) -> np.ndarray:
        """(G,) nats: log of the mean of all estimates, unbiased for Z, unlike the estimate of the current run."""
        return pooled_log_z(self.estimates)

    @property
    def pooled_log_z_se(self) -> np.ndarray:
        """(G,) standard error of `pooled_log_z`, the runs as islands; NaN where not resolved (`SMCResult.log_z_se`)."""
        return log_z_error(self.estimates)

    def outputs(self) -> Iterator[tuple[np.ndarray, P]]:
        """Yield pairs (groups, particles): the chains whose state lies in `particles`, (G, 1), at those rows."""
        for r, particles in enumerate(self.runs):
            yield np.flatnonzero(self.run == r), particles.select(self.index[:, None])

    def collect(self, read: Callable[[P], np.ndarray]) -> np.ndarray:
        """Apply `read` to particles of shape (G, 1) and return the rows of the final states, (G, ...)."""
        rows: np.ndarray | None = None
        for groups, particles in self.outputs():
            values = np.asarray(read(particles))
            rows = np.empty_like(values) if rows is None else rows
            rows[groups] = values[groups]
        assert rows is not None
        return rows


def metropolis(
    sampler: Callable[[np.random.Generator], SMCResult[P]], mh_steps: int, rng: np.random.Generator
) -> MetropolisResult[P]:
    """Run one chain per group: a first run, then `mh_steps` proposals.

    Parameters
    ----------
    sampler : callable
        rng -> SMCResult with the same groups at every call, for example a partial application of `smc`; with `observe`
        among its arguments every run is observed.
    mh_steps : int
        H, number of proposals; 0 returns the first run.
    rng : np.random.Generator
        Source of every draw, including the sampler's.

    Raises
    ------
    UserError
        If `mh_steps` is negative, or the sampler estimates no Z (`top_k`) or changes its number of groups.

    Notes
    -----
    Source: docs/equations.md section 4; arXiv 2602.01381 Algorithm 2 for one particle.
    """
    check_count("mh_steps", mh_steps, 0, "it is a number of proposals", fix=8)
    check_generator(rng)
    first = sampler(rng)
    held: dict[int, P] = {0: first.particles}
    current = _estimate(first)
    run, index = np.zeros(len(current), dtype=np.intp), first.draw(rng)
    chain, proposals, accepted = [current], [], []
    for h in range(1, mh_steps + 1):
        result = sampler(rng)
        proposed, drawn = _estimate(result, len(current)), result.draw(rng)
        accept = -rng.standard_exponential(len(current)) < log_acceptance(current, proposed)
        current = np.where(accept, proposed, current)
        run, index = np.where(accept, h, run), np.where(accept, drawn, index)
        held[h] = result.particles
        held = {key: particles for key, particles in held.items() if key in set(run.tolist())}
        chain.append(current)
        proposals.append(proposed)
        accepted.append(accept)
    shape = (mh_steps, len(current))
    return MetropolisResult(
        runs=tuple(held.values()),
        run=np.searchsorted(np.array(list(held)), run),
        index=index,
        log_z=np.array(chain),
        proposed_log_z=np.array(proposals).reshape(shape),
        accepted=np.array(accepted, dtype=bool).reshape(shape),
    )


def log_acceptance(current: np.ndarray, proposed: np.ndarray) -> np.ndarray:
    """Return log of min(1, Z'/Z), nats; from Z = 0 every positive estimate is accepted and nothing else."""
    with np.errstate(invalid="ignore"):
        ratio = np.minimum(proposed - current, 0.0)
    return np.where(proposed > -np.inf, ratio, -np.inf)


def _estimate(result: SMCResult[P], n_groups: int | None = None) -> np.ndarray:
    if result.log_z is None:
        raise UserError(
            "the sampler estimates no Z, so no proposal can be judged", fix="choose a scheme other than top_k"
        )
    if n_groups is not None and len(result.log_z) != n_groups:
        raise UserError(
            f"the sampler returned {len(result.log_z)} groups after {n_groups}", fix="keep the root fixed"
        )
    return result.log_z
