"""Add islands until a figure is known: the leading answer's share, or Z, to within a standard error.

Start with 8 islands of n particles, and stop once se t_{.975, K - 1} / 1.96 is at most the target (docs/equations.md section
9). Groups that are not known yet run together, and get half as many islands again in every round: 8, 12, 18, 27, 41, ... Each
group ends at its token budget; without one it is what 128 islands take, measured on the group's first 8.

A stopping time depends on the estimates, so the pooled Zhat is consistent, not unbiased: it is low by a few percent, and the
share of the leading answer, which is chosen by its share, is high (benchmarks/until.py).

>>> Until.parse("share=.05"), str(Until.parse("cv=.25"))
(Until(figure='share', target=0.05), 'cv=0.25')
>>> next_islands(8), next_islands(12), next_islands(27)
(4, 6, 14)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from rmtools.errors import UserError
from rmtools.particles.arguments import check_count, check_positive
from rmtools.particles.islands import Z_95, Share, log_z_error, pooled_log_z, share_of_sums, t_quantile
from rmtools.particles.logspace import shift_of
from rmtools.particles.smc import smc

FIRST = 8  # islands: with fewer the error is too often small by chance
BUDGET = 128  # islands whose tokens are the budget where none is given
SMALLEST = 1e-4
LARGEST = 0.5  # of log Z no error is resolved beyond, and no share has a larger one
KNOWN = {"share": "share known", "logz": "log Z known", "cv": "Z known"}
OUT_OF_TOKENS, NOTHING = "token budget", "nothing to draw"
AGREED = 1e-12
PARTICLES_AT_ONCE = 400_000


@dataclass(frozen=True)
class Until:
    """The figure that is to be known, and its largest standard error.

    Attributes
    ----------
    figure : {"share", "logz", "cv"}
        The leading answer's share; log Zhat in nats; Zhat relative to its size (the same rule, by the delta method).
    target : float
        In [1e-4, 0.5].
    """

    figure: str
    target: float

    def __post_init__(self) -> None:
        if self.figure not in KNOWN or not SMALLEST <= self.target <= LARGEST:
            raise _refused(f"{self.figure}={self.target:g}")

    @classmethod
    def parse(cls, text: "str | Until") -> Self:
        """Read a text like ``share=.05``; raise ``UserError`` if it names no figure and error."""
        if isinstance(text, cls):
            return text
        figure, _, number = str(text).partition("=")
        try:
            target = float(number)
        except ValueError:
            raise _refused(str(text)) from None
        if figure.strip() not in KNOWN or not SMALLEST <= target <= LARGEST:
            raise _refused(str(text))
        return cls(figure.strip(), target)

    def __str__(self) -> str:
        return f"{self.figure}={self.target:g}"


def _refused(text: str) -> UserError:
    return UserError(
        f"`until` is {text!r}: it must be share, logz or cv, with a standard error of {SMALLEST:g} to {LARGEST:g}",
        "`until` share=.05, logz=.1 or cv=.25",
    )


class Drawn(NamedTuple):
    """R new islands.

    Attributes
    ----------
    log_z : np.ndarray
        (R,) nats.
    shares : np.ndarray
        (R, A) weight of every answer within the island, 0 in islands of estimate zero. Column 0 is of no answer, which never
        leads unless no particle has one. A may grow from round to round.
    tokens : np.ndarray
        (R,) generated.
    """

    log_z: np.ndarray
    shares: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class Stop:
    """Where and why a group stopped.

    Attributes
    ----------
    stopped : str
        "share known", "log Z known", "Z known"; "token budget"; "nothing to draw" where runs take no token.
    error : float
        se t_{.975, K - 1} / 1.96, which was compared with the target. Of a share on which all islands agree, half of its Wilson
        interval over 1.96: that they agree is no proof. NaN where it is not resolved.
    islands : int
        K.
    tokens, token_budget : float
    log_z, share : float
        The estimate of log Z, nats; of the leading answer's share, NaN without one.
    lead : int
        Column of the leading answer.
    """

    stopped: str
    error: float
    islands: int
    tokens: float
    token_budget: float
    log_z: float
    share: float
    lead: int

    @property
    def exceeded(self) -> bool:
        """Whether the last islands took more than the budget: no more than one batch of them."""
        return self.tokens > self.token_budget


def next_islands(islands: int) -> int:
    """Return how many islands follow ``islands``: half as many, rounded up."""
    return -(-islands // 2)


def leading_share(log_z: np.ndarray, shares: np.ndarray, n: int) -> tuple[np.ndarray, Share]:
    """Return the column (G,) of the leading answer and its share, from ``log_z`` (G, K) and ``shares`` (G, K, A)."""
    mass = np.exp(log_z - shift_of(log_z))
    of_answer = mass[..., None] * shares
    total = of_answer.sum(axis=1)
    total[:, 0] = np.where(
        total[:, 1:].any(axis=1), -1, total[:, 0]
    )  # solutions without an answer lead only if no solution has one
    lead = total.argmax(axis=1)
    own = np.take_along_axis(of_answer, lead[:, None, None], axis=2)[..., 0]
    return lead, share_of_sums(own, mass, n * log_z.shape[1])


def judged_error(until: Until, log_z: np.ndarray, share: Share) -> np.ndarray:
    """Return the error (G,) that is compared with the target, NaN where it is not resolved."""
    wide = t_quantile(log_z.shape[1]) / Z_95
    if until.figure != "share":
        return wide * log_z_error(log_z)
    error: np.ndarray = np.where(share.se > AGREED, wide * share.se, (share.high - share.low) / (2 * Z_95))
    return error


def add_islands(
    groups: int,
    draw: Callable[[np.ndarray], Drawn],
    until: Until,
    n: int,
    token_budget: float | None = None,
) -> list[Stop]:
    """Add islands to each group until its figure is known or its budget is spent.

    Parameters
    ----------
    groups : int
        G.
    draw : callable
        Gets (R,) groups, in order, a group as often as it needs islands, and returns the new ones in this order.
    until : Until
    n : int
        Particles of an island.
    token_budget : float, optional
        Of each group; exceeded by one round's islands at most. Default: what 128 islands like its first 8 take.

    Returns
    -------
    list of Stop
        By group.
    """
    stops: dict[int, Stop] = {}
    group, extra = np.arange(groups), np.full(groups, FIRST)
    log_z, shares = np.empty((groups, 0)), np.empty((groups, 0, 1))
    tokens, dearest, limit = np.zeros(groups), np.zeros(groups), np.full(groups, np.inf)
    while len(group):
        new, islands = draw(np.repeat(group, extra)), log_z.shape[1]
        owner = np.repeat(np.arange(len(group)), extra)
        tokens += np.bincount(owner, new.tokens, len(group))
        np.maximum.at(dearest, owner, new.tokens)
        if not islands:
            limit = (
                tokens * (BUDGET / FIRST) if token_budget is None else np.full(groups, float(token_budget))
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.floor((limit - tokens) / dearest + 1e-9)
        affordable = np.where(dearest > 0, np.maximum(left, 0), 0).astype(int)
        go_on: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        # A group whose budget cuts a round short has fewer islands than the others; it is at its end.
        for count in np.unique(extra):
            at, rows = np.flatnonzero(extra == count), extra[owner] == count
            z = np.concatenate([log_z[at], new.log_z[rows].reshape(-1, count)], axis=1)
            s = _joined(shares[at], new.shares[rows].reshape(len(at), count, -1))
            lead, share = leading_share(z, s, n)
            error = judged_error(until, z, share)
            open_ = ~(error <= until.target)
            goes = open_ & (affordable[at] > 0) & (count == extra.max())
            pooled = pooled_log_z(z)
            for i in np.flatnonzero(~goes):
                g = at[i]
                reason = OUT_OF_TOKENS if dearest[g] > 0 else NOTHING
                stops[int(group[g])] = Stop(
                    stopped=reason if open_[i] else KNOWN[until.figure],
                    error=float(error[i]),
                    islands=z.shape[1],
                    tokens=float(tokens[g]),
                    token_budget=float(limit[g]),
                    log_z=float(pooled[i]),
                    share=float(share.estimate[i]),
                    lead=int(lead[i]),
                )
            go_on.append((at[goes], z[goes], s[goes]))
        at, log_z, shares = go_on[-1]
        group, tokens, dearest, limit = group[at], tokens[at], dearest[at], limit[at]
        extra = np.minimum(next_islands(log_z.shape[1]), affordable[at])
    return [stops[g] for g in range(groups)]


def _joined(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return islands (G, K, A) of two rounds side by side; answers that one has not seen weigh nothing there."""
    most = max(old.shape[2], new.shape[2])
    return np.concatenate([np.pad(x, ((0, 0), (0, 0), (0, most - x.shape[2]))) for x in (old, new)], axis=1)


def smc_until(
    start: Callable[[np.ndarray], Any],
    groups: int,
    n_particles: int,
    until: Until | str,
    *,
    answer: Callable[[Any], np.ndarray] | None = None,
    rng: np.random.Generator,
    token_budget: float | None = None,
    **options: Any,
) -> list[Stop]:
    """Sample each group with islands of `n_particles` until its figure is known, on particles of any kind.

    Parameters
    ----------
    start : callable
        (R,) groups to their root, (R, 1): for a finite model ``lambda g: model.particles(len(g))``.
    groups, n_particles : int
        G; n, of each island.
    until : Until or str
    answer : callable, optional
        Final particles to the number of their answer, (R, n) integers from 1 on; 0: none. Needed for a share.
    rng : np.random.Generator
    token_budget : float, optional
        A token here is one step of one candidate.
    **options
        Further arguments of `smc`.

    Returns
    -------
    list of Stop

    Raises
    ------
    UserError
        If an argument is out of range, answers are no numbers of particles, or `options` set the islands or top_k.

    Examples
    --------
    >>> import numpy as np
    >>> from rmtools.core import product
    >>> model, rng = product(horizon=8, ratio=2.0), np.random.default_rng(0)
    >>> (stop,) = smc_until(lambda g: model.particles(len(g)), 1, 16, "cv=.1", rng=rng)
    >>> stop.stopped, stop.islands, stop.error <= 0.1
    ('Z known', 8, True)
    """
    until = Until.parse(until)
    check_count("n_particles", n_particles, fix=16)
    if until.figure == "share" and answer is None:
        raise UserError("`until` share needs answers", "pass `answer`, or `until` cv=.25")
    if token_budget is not None:
        check_positive("token_budget", token_budget)
    if "islands" in options or options.get("resampling") == "top_k":
        raise UserError(
            "`until` chooses the number of islands, and needs a `resampling` that estimates Z",
            "leave both out",
        )

    def draw(group: np.ndarray) -> Drawn:
        parts, size = [], max(1, PARTICLES_AT_ONCE // n_particles)
        for at in range(0, len(group), size):
            root = start(group[at : at + size])
            result = smc(root, n_particles, rng=rng, history=False, islands=1, **options)
            label = _labels(answer, result)
            tokens = result.live.sum(axis=0) * n_particles * result.pool_size
            parts.append((result.log_z, shares_by_label(label, np.exp(result.log_weights)), tokens))
        most = max(s.shape[1] for _, s, _ in parts)
        shares = [np.pad(s, ((0, 0), (0, most - s.shape[1]))) for _, s, _ in parts]
        return Drawn(
            np.concatenate([z for z, _, _ in parts]),
            np.concatenate(shares),
            np.concatenate([t for *_, t in parts]).astype(float),
        )

    return add_islands(groups, draw, until, n_particles, token_budget)


def _labels(answer: Callable[[Any], np.ndarray] | None, result: Any) -> np.ndarray:
    shape = result.log_weights.shape
    label = np.zeros(shape, int) if answer is None else np.asarray(answer(result.particles))
    if label.shape != shape or label.dtype.kind not in "iu" or label.min(initial=0) < 0:
        raise UserError(
            f"`answer` must give {shape} integers from 0 on, one per particle, got {label.shape} {label.dtype}",
            "number the answers from 1 on, 0 for none",
        )
    return label


def shares_by_label(label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the summed weights (R, A) of particles by their ``label``, (R, n)."""
    count = int(label.max()) + 1
    place = (label + np.arange(len(label))[:, None] * count).ravel()
    return np.bincount(place, weight.ravel(), len(label) * count).reshape(len(label), count)


def independent_solutions(
    weight: np.ndarray, log_value: np.ndarray, log_z: float, se: float, phi: np.ndarray | None = None
) -> float:
    """Return the N of instance-adaptive best-of-N with the same standard error.

    That is the number of solutions drawn independently from the policy for this prompt and weighted by their final values phi
    (weighted majority; best-of-N is among them), until the same figure has the same standard error. One such solution has
    variance E_pi[phi^2 (1_a - p)^2] / Z^2 = E_pi*[phi (1_a - p)^2] / Z for a share, E_pi*[phi] / Z - 1 for Z relative to its
    size; both expectations are taken over this run's own weighted population, so what it did not see is missing. N is that
    variance over se^2. Where all islands agree on a share (se = 0): N / 2 draws, as for its interval, times E_pi*[phi] / Z.

    Parameters
    ----------
    weight, log_value : np.ndarray
        (N,) normalised; (N,) final log values, nats.
    log_z : float
        Nats, of the pooled population.
    se : float
        NaN where it is not resolved, and so is N.
    phi : np.ndarray, optional
        (N,) whether a particle has the answer; without it the figure is Z.
    """
    seen = weight > 0
    weight, ratio = weight[seen], np.exp(log_value[seen] - log_z)
    if phi is None:
        spread = float((weight * ratio).sum()) - 1
    else:
        share = float((weight * phi[seen]).sum())
        spread = float((weight * ratio * (phi[seen] - share) ** 2).sum())
        if se <= AGREED:
            return float(np.ceil(len(seen) / 2 * (weight * ratio).sum() - 1e-9))
    if se <= AGREED:
        return 1.0
    return float(np.ceil(max(spread / se**2 - 1e-9, 1.0))) if se == se else np.nan
