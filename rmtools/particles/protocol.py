"""What the sampler works on (`Particles`) and what it returns (`SMCResult`).

A `Particles` object is a batch of prefixes: G independent groups (prompts, or replicates of one) with n prefixes each.
Anything that can be extended by one step, valued and selected can be sampled; finite models and language models are
implemented.

>>> import numpy as np
>>> from rmtools.core import product, smc
>>> root = product(horizon=4, ratio=2.0).particles(groups=3)
>>> root.shape, root.extend(5, np.random.default_rng(0)).shape
((3, 1), (3, 5))
>>> result = smc(root, n_particles=50, rng=np.random.default_rng(0))
>>> result.n_steps, result.log_weights.shape, result.draw(np.random.default_rng(1)).shape
(4, (3, 50), (3,))
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, Self, TypeVar

import numpy as np

from rmtools.particles.arguments import check_generator


class Particles(Protocol):
    """A batch of prefixes: G independent groups (prompts, or replicates of one), n per group."""

    @property
    def shape(self) -> tuple[int, int]:
        """The pair (G, n)."""
        ...

    @property
    def ended(self) -> np.ndarray:
        """(G, n) bool; an ended prefix is absorbing: it keeps its value and emits nothing."""
        ...

    def log_value(self) -> np.ndarray:
        """Return (G, n) log values in nats; -inf is a value of zero, NaN is an error."""
        ...

    def extend(self, pool_size: int, rng: np.random.Generator) -> Self:
        """Return (G, n * pool_size) prefixes one step longer; child i * pool_size + m continues prefix i."""
        ...

    def select(self, index: np.ndarray) -> Self:
        """Return the (G, k) prefixes at `index`, (G, k) integers into n; caches follow."""
        ...


P = TypeVar("P", bound=Particles)


@dataclass(frozen=True, eq=False)
class SMCResult(Generic[P]):
    """One run of the sampler for each of G groups (docs/equations.md section 4).

    Attributes
    ----------
    particles : Particles
        The final prefixes, shape (G, N).
    log_weights : np.ndarray
        (G, N) normalised log weights in nats; all -inf in a group whose estimate of Z is zero. For `top_k`
        the normalised final log values.
    log_z : np.ndarray or None
        (G,) nats; exp(log_z) is an unbiased estimate of Z. None for `top_k`, which estimates no Z.
    ess : np.ndarray
        (T, G) effective sample size after the step's weighting and before its resampling; 0 where all weights are 0.
    log_increments : np.ndarray
        (T, G, N) log incremental weights in nats, in the order of the parents; exactly 0 for an ended parent.
        For `top_k` the change of log value along each kept candidate, in the order of the children.
    ancestors : np.ndarray
        (T, G, N) int32: particle i after step t continues particle `ancestors[t, g, i]`; identity where the
        group was not resampled.
    resampled : np.ndarray
        (T, G) bool.
    """

    particles: P
    log_weights: np.ndarray
    log_z: np.ndarray | None
    ess: np.ndarray
    log_increments: np.ndarray
    ancestors: np.ndarray
    resampled: np.ndarray

    @property
    def n_steps(self) -> int:
        """Number of steps of the longest group."""
        return len(self.ess)

    @cached_property
    def unique_ancestors(self) -> np.ndarray:
        """(T, G) number of distinct parents that continue after each step."""
        changes = np.diff(np.sort(self.ancestors, axis=2), axis=2)
        unique: np.ndarray = 1 + np.count_nonzero(changes, axis=2)
        return unique

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw one particle per group by weight and return its index, (G,) int.

        The index is 0 in a group whose estimate of Z is zero, where no draw exists (see `log_z`).
        """
        check_generator(rng)
        # Gumbel-max: a categorical draw that never leaves the log domain.
        index: np.ndarray = np.argmax(self.log_weights + rng.gumbel(size=self.log_weights.shape), axis=1)
        return index

    def argmax(self) -> np.ndarray:
        """Return the index of the largest weight in each group, (G,) int (the first among equals)."""
        index: np.ndarray = np.argmax(self.log_weights, axis=1)
        return index
