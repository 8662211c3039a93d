"""What the sampler works on (`Particles`), what an observer sees (`Step`) and what it returns (`SMCResult`).

A `Particles` object is a batch of prefixes: G independent groups (prompts, or replicates of one) with n prefixes each.
Anything that can be extended by one step, valued and selected can be sampled; finite models and language models are
implemented. Prefixes that hold much memory may have two methods more: `copied()` returns them in memory of their own, which each
`extend` and `select` takes over, `kept()` ends that.

>>> import numpy as np
>>> from rmtools.core import product, smc
>>> root = product(horizon=4, ratio=2.0).particles(groups=3)
>>> root.shape, root.extend(5, np.random.default_rng(0)).shape
((3, 1), (3, 5))
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

import numpy as np

from rmtools.errors import UserError
from rmtools.particles.arguments import check_generator
from rmtools.particles.genealogy import Genealogy, genealogy
from rmtools.particles.islands import (
    FEWEST,
    ByIsland,
    Share,
    effective_number,
    log_z_error,
    pooled_share,
    t_quantile,
)
from rmtools.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class Particles(Protocol):
    """A batch of prefixes: G independent groups (prompts, or replicates of one), n per group.

    Examples
    --------
    A random walk of three steps that wants to end high; `rmtools.testing` checks a class of your own.

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> import rmtools as rm
    >>> @dataclass(frozen=True)
    ... class Walk:
    ...     at: np.ndarray
    ...     steps: int = 0
    ...     @property
    ...     def shape(self):
    ...         return self.at.shape
    ...     @property
    ...     def ended(self):
    ...         return np.full(self.at.shape, self.steps == 3)
    ...     def log_value(self):
    ...         return 0.5 * self.at
    ...     def extend(self, pool_size, rng):
    ...         if self.steps == 3:
    ...             return Walk(self.at.repeat(pool_size, axis=1), 3)
    ...         at = self.at.repeat(pool_size, axis=1)
    ...         return Walk(at + rng.choice([-1.0, 1.0], at.shape), self.steps + 1)
    ...     def select(self, index):
    ...         return Walk(np.take_along_axis(self.at, index, axis=1), self.steps)
    >>> root: rm.Particles = Walk(np.zeros((1000, 1)))
    >>> run = rm.smc(root, n_particles=16, rng=np.random.default_rng(0))
    >>> bool(abs(np.exp(run.log_z).mean() / np.cosh(0.5) ** 3 - 1) < 0.02)  # Z = E[exp(at / 2)]
    True
    """

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


@dataclass(frozen=True, eq=False, repr=False)
class Step(Generic[P]):
    """One step of a run, as `smc` shows it to `observe`, once it is drawn.

    The arrays are read-only copies: what an observer keeps stays as it was shown. `children.select(index)` are the parents
    of the next step, and after the last one `SMCResult.particles`. All G groups are shown at every step, finished ones too:
    `resampled` is False there. With K islands a group has all N particles, island k those from k N / K on; an index never
    leaves its island.

    Attributes
    ----------
    t : int
        1, 2, ... from the root on.
    parents : Particles
        The prefixes before the step, (G, N).
    children : Particles
        All candidates, (G, N * M), before any is dropped: child i * M + m continues parent i. An ended parent has M copies
        of itself. Under particle Gibbs child 0 is the reference's.
    index : np.ndarray
        (G, N) int, into the N * M children: the candidates kept; `index // M` are the parents that continue. In a group
        that was not resampled, parent i keeps one of its own candidates; with M = 1 that is the identity.
    ess : np.ndarray
        (G,) effective sample size, in particles, after weighting and before resampling; 0 where all weights are 0. The sum
        over islands.
    resampled : np.ndarray
        (G,) bool; True if any island was.
    log_increment : np.ndarray
        (G, N) nats, as in `SMCResult.log_increments`: log of the mean value of a parent's candidates over its own value,
        in the order of the parents; for `top_k` in the order of the kept children.
    log_z : np.ndarray or None
        (G,) nats, log of an unbiased estimate of the mean value of prefixes of t steps under the policy, E[V(s_t)]: log of
        the value at the root, plus the logs of the mean weights at every resampling so far, plus that of the weights since.
        After the last step it is `SMCResult.log_z`. None for `top_k`.

    Examples
    --------
    >>> import numpy as np
    >>> import rmtools as rm
    >>> def show(step: rm.Step) -> None:
    ...     print(step.t, step.children.shape, bool(step.resampled[0]))
    >>> root = rm.families.product(horizon=3, ratio=4.0).particles(groups=1)
    >>> _ = rm.smc(root, n_particles=8, ess_threshold=0.7, rng=np.random.default_rng(0), observe=show)
    1 (1, 8) False
    2 (1, 8) True
    3 (1, 8) False
    """

    t: int
    parents: P
    children: P
    index: np.ndarray
    ess: np.ndarray
    resampled: np.ndarray
    log_increment: np.ndarray
    log_z: np.ndarray | None

    def __repr__(self) -> str:
        n_groups, n = self.index.shape
        return f"Step(t={self.t}, groups={n_groups}, n_particles={n}, resampled={int(self.resampled.sum())})"


Observe = Callable[[Step[P]], object]
Observer = TypeVar("Observer", bound=Callable[..., object])


def only_looks(observe: Observer) -> Observer:
    """Mark an observer that neither extends nor selects from the prefixes of a step, then or later; it may read everything else.

    The caches of a step's prefixes are then freed as soon as the next prefixes have what they need of them. For any other
    observer they are there until the step is over, and as long as it keeps them.
    """
    observe.only_looks = True  # type: ignore[attr-defined]
    return observe


@dataclass(frozen=True, eq=False, repr=False)
class SMCResult(Generic[P]):
    """One run of the sampler for each of G groups (docs/equations.md section 4).

    Attributes
    ----------
    particles : Particles
        The final prefixes, shape (G, N).
    log_weights : np.ndarray
        (G, N) normalised log weights in nats; all -inf in a group whose estimate of Z is zero. Islands are pooled: a
        particle of island k weighs Zhat_k times its weight there. For `top_k` the normalised final log values.
    log_z : np.ndarray or None
        (G,) nats; exp(log_z) is an unbiased estimate of Z: with islands the mean of theirs. None for `top_k`, which
        estimates no Z.
    ess : np.ndarray
        (T, G) effective sample size after the step's weighting and before its resampling, summed over islands; 0 where all
        weights are 0.
    log_increments : np.ndarray
        (T, G, N) log incremental weights in nats, in the order of the parents; exactly 0 for an ended parent.
        For `top_k` the change of log value along each kept candidate, in the order of the children.
    ancestors : np.ndarray
        (T, G, N) int32: particle i after step t continues particle `ancestors[t, g, i]`, of the same island; identity
        where the group (its island) was not resampled.
    resampled : np.ndarray
        (T, G) bool; True if any island was.
    live : np.ndarray
        (T, G) bool: the group had a prefix of positive weight to extend, so the step is one of its own.
    pool_size : int
        M.
    resampling : str
        Name of the scheme; "conditional" for a run with a pinned reference.
    by_island : ByIsland or None
        Estimates, ESS and resampling of every island; None for a single run.
    family : np.ndarray or None
        (G, N) int32: the particle of the first generation that each final one descends from. None unless a single run
        resampled by `multinomial` or `none`.

    Examples
    --------
    >>> import numpy as np
    >>> import rmtools as rm
    >>> root = rm.families.product(horizon=4, ratio=2.0).particles(groups=3)
    >>> result = rm.smc(root, n_particles=50, rng=np.random.default_rng(0))
    >>> isinstance(result, rm.SMCResult), result.n_steps, result.log_weights.shape, result.to_frame().shape
    (True, 4, (3, 50), (12, 5))
    """

    particles: P
    log_weights: np.ndarray
    log_z: np.ndarray | None
    ess: np.ndarray
    log_increments: np.ndarray
    ancestors: np.ndarray
    resampled: np.ndarray
    live: np.ndarray
    pool_size: int
    resampling: str = ""
    by_island: ByIsland | None = None
    family: np.ndarray | None = None

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

    @property
    def islands(self) -> int:
        """K, number of independent runs per group."""
        return 1 if self.by_island is None else self.by_island.log_z.shape[1]

    @property
    def island_log_z(self) -> np.ndarray:
        """(G, K) nats: the estimate of each island; all NaN for `top_k`."""
        if self.by_island is not None:
            return self.by_island.log_z
        none = np.full(len(self.log_weights), np.nan)
        return (none if self.log_z is None else self.log_z)[:, None]

    @property
    def effective_islands(self) -> np.ndarray:
        """(G,) effective number of islands, (sum Zhat_k)^2 / sum Zhat_k^2: near 1 if a single one decides the result."""
        return effective_number(self.island_log_z)

    @property
    def log_z_se(self) -> np.ndarray:
        """(G,) standard error of `log_z` in nats, from the spread between islands.

        NaN where it is not resolved: above 0.5, or fewer than 3 islands with a positive estimate; always for one run (see
        `genealogy`). It is the Monte-Carlo error under this policy and value, not the chance of an answer to be right.
        """
        return log_z_error(self.island_log_z)

    def log_z_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends (G,) of the 95% interval of log Z in nats, by Student's t on K - 1; NaN where not resolved."""
        if self.log_z is None or self.islands < FEWEST:
            none = np.full(len(self.log_weights), np.nan)
            return none, none
        half = t_quantile(self.islands) * self.log_z_se
        return self.log_z - half, self.log_z + half

    def share(self, f: Callable[[P], np.ndarray] | np.ndarray) -> Share:
        """Return the share under the target of the particles for which `f` is true, with a 95% interval from the islands.

        Parameters
        ----------
        f : callable or np.ndarray
            (G, N) of bool, or of numbers in [0, 1]: whether each final particle has the answer. A callable gets the final
            `particles` and returns it. With ``answers``, (G, N) of text: ``result.share(answers == "42")``.

        Returns
        -------
        Share
            `estimate`, `low`, `high` and `se`, (G,) each. The interval is NaN where it is not resolved: with fewer than 3
            islands of positive estimate, or an answer that occurs in fewer than two.

        Raises
        ------
        UserError
            If `f` has another shape or other numbers, or the run follows no law (`top_k`).

        Notes
        -----
        Source: docs/equations.md section 9; jackknife over islands and Wilson's interval.

        Examples
        --------
        >>> import numpy as np
        >>> import rmtools as rm
        >>> root = rm.families.product(horizon=4, ratio=2.0).particles(groups=1)
        >>> result = rm.smc(root, n_particles=256, rng=np.random.default_rng(0))
        >>> share = result.share(lambda particles: particles.state == 4)  # four ones: (2/3)^4 = .198 of the target
        >>> result.islands, bool(share.low[0] < 0.198 < share.high[0])
        (8, True)
        """
        if self.log_z is None:
            raise UserError(
                "top_k follows no law, so its answers have no shares", fix="choose another scheme"
            )
        phi = np.asarray(f(self.particles) if callable(f) else f)
        if (
            phi.shape != self.log_weights.shape
            or phi.dtype.kind not in "biuf"
            or not ((phi >= 0) & (phi <= 1)).all()
        ):
            raise UserError(
                f"`f` must give {self.log_weights.shape} numbers in [0, 1], one per particle, got {phi.shape} {phi.dtype}",
                fix='a comparison, for example result.share(answers == "42")',
            )
        return pooled_share(phi, self.log_weights, self.island_log_z)

    def genealogy(self) -> Genealogy:
        """Return the surviving families of a single run, and the error of log Z and of means that they give.

        Raises
        ------
        UserError
            If the run has islands, or resampled by another scheme than `multinomial`.

        Examples
        --------
        >>> import numpy as np
        >>> import rmtools as rm
        >>> root = rm.families.product(horizon=4, ratio=2.0).particles(groups=1)
        >>> found = rm.smc(root, 100, resampling="multinomial", rng=np.random.default_rng(0)).genealogy()
        >>> int(found.families[0]), round(float(found.log_z_se[0]), 2)
        (100, 0.07)
        """
        if self.family is not None:
            return genealogy(self.family, self.log_weights, self.resampled.sum(axis=0))
        if self.islands > 1:
            raise UserError(
                "a run with islands has an error of its own, `log_z_se`",
                fix="islands=1 for the genealogy of one run",
            )
        raise UserError(
            f"no error follows from the genealogy of {self.resampling} resampling: it holds for offspring that are "
            "independent given the weights, and is wrong in either direction for others",
            fix='resampling="multinomial", or islands=4 with any random scheme',
        )

    def to_frame(self) -> "DataFrame":
        """Return a row per group and step of its own: ess, resampled and, with a history, unique_ancestors."""
        import pandas

        group, step = np.nonzero(self.live.T)
        columns = {"ess": self.ess, "resampled": self.resampled}
        if len(self.ancestors) == self.n_steps:
            columns["unique_ancestors"] = self.unique_ancestors
        rows = {name: values[step, group] for name, values in columns.items()}
        return pandas.DataFrame({"group": group, "step": step + 1, **rows})

    def plot(self) -> "Figure":
        """Draw the effective sample size by step, one line per group; dots mark where a group was resampled."""
        from rmtools.plots.sampler import ess_by_step

        return ess_by_step(self.ess, self.resampled, self.live, self.log_weights.shape[1])

    def summary(self) -> Summary:
        """Return log Z-hat, ESS and how often the run resampled."""
        n_groups, n = self.log_weights.shape
        ess = self.ess[self.live]
        figures = {
            "log Z-hat": "none: top_k follows no law" if self.log_z is None else _span(self.log_z, " nats")
        }
        figures["ESS"] = f"{_span(ess)} of {n}" if len(ess) else "no step"
        of = self if self.by_island is None else self.by_island
        figures["resampled"] = (
            "keeps the best candidates at every step"
            if self.log_z is None
            else resampling_in_words(int(of.resampled.sum()), int(of.live.sum()), self.pool_size)
        )
        if self.islands > 1:
            n_islands = (
                f"{self.islands} x {n // self.islands}, effective number {_span(self.effective_islands)}"
            )
            figures = {"islands": n_islands, "error of log Z-hat": _error(self.log_z_se), **figures}
        groups = "1 group" if n_groups == 1 else f"{n_groups} groups"
        return Summary(f"SMC: {groups}, N = {n}, M = {self.pool_size}, {self.n_steps} steps", figures)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary().html()

    def __repr__(self) -> str:
        n_groups, n = self.log_weights.shape
        return f"SMCResult(groups={n_groups}, n_particles={n}, pool_size={self.pool_size}, n_steps={self.n_steps})"


def resampling_in_words(resampled: int, steps: int, pool_size: int) -> str:
    """Say at how many of its steps a sampler resampled, and what it is if it never did."""
    if resampled:
        return f"at {resampled} of {steps} steps"
    what = (
        "plain weighted sampling (importance sampling from the policy)"
        if pool_size == 1
        else "independent particles, each guided by its own candidates alone"
    )
    return f"at none of {steps} steps: {what}"


def _error(se: np.ndarray) -> str:
    resolved = se[~np.isnan(se)]
    if not len(resolved):
        return "not resolved"
    rest = len(se) - len(resolved)
    return _span(resolved, " nats") + (f"; not resolved in {rest} of {len(se)} groups" if rest else "")


def _span(values: np.ndarray, unit: str = "") -> str:
    """Return the one value, or median and range."""
    if len(values) == 1:
        return f"{values[0]:.4g}{unit}"
    return f"{np.median(values):.4g}{unit} (median; {values.min():.4g} to {values.max():.4g})"
