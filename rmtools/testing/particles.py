"""The contract of `Particles`: child order, immutability, absorption, select and join; the law on an enumerable one."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from rmtools.particles.protocol import Particles
from rmtools.testing.laws import near, require, require_all

P = TypeVar("P", bound=Particles)
Path = Sequence[Hashable]
Paths = Callable[[Any], Sequence[Sequence[Path]]]


@dataclass(frozen=True)
class _Seen:
    """Everything that can be seen of particles, copied: (G, n) arrays, and the path of each prefix if it is known."""

    ended: np.ndarray
    log_value: np.ndarray
    path: np.ndarray | None

    def at(self, index: np.ndarray) -> "_Seen":
        """Return the prefixes ``index`` (G, k) of each group."""
        path = None if self.path is None else np.take_along_axis(self.path, index, 1)
        return _Seen(
            np.take_along_axis(self.ended, index, 1), np.take_along_axis(self.log_value, index, 1), path
        )

    def require_same(self, other: "_Seen", law: str, tolerance: float) -> None:
        """Raise ``AssertionError`` if the two differ."""
        require(np.array_equal(self.ended, other.ended), f"{law}: which prefixes have ended differs")
        require_all(near(self.log_value, other.log_value, tolerance), f"{law}: log values differ")
        if self.path is not None and other.path is not None:
            require_all(self.path == other.path, f"{law}: the prefixes differ")


def _look(particles: Particles, paths: Paths | None, when: str) -> _Seen:
    """Return what is seen of ``particles``; raise ``AssertionError`` if it is not of the protocol's shape and range."""
    shape = tuple(particles.shape)
    require(len(shape) == 2 and min(shape) >= 1, f"shape is the pair (G, n), got {shape} {when}")
    ended, log_value = np.array(particles.ended), np.array(particles.log_value())
    for name, array in (("ended", ended), ("log_value()", log_value)):
        require(array.shape == shape, f"{name} has the particles' shape {shape}, got {array.shape} {when}")
    require(ended.dtype == bool, f"ended is bool, got {ended.dtype} {when}")
    fine = log_value < np.inf  # False for NaN
    require(fine.all(), f"log values are numbers below inf, got {log_value[~fine][:1]} {when}")
    if paths is None:
        return _Seen(ended, log_value, None)
    path = np.empty(shape, dtype=object)
    for g, row in enumerate(paths(particles)):
        for i, steps in enumerate(row):
            path[g, i] = tuple(steps)
    return _Seen(ended, log_value, path)


def check_particles(
    root: P,
    rng: np.random.Generator,
    *,
    pool_size: int = 3,
    paths: Paths | None = None,
    seeded: bool = True,
    max_steps: int = 100,
    tolerance: float = 1e-4,
) -> None:
    """Check the contract of :class:`rmtools.particles.protocol.Particles`, from ``root`` to the end of every prefix.

    Shapes and ranges; child i * M + m continues prefix i; ``extend`` and ``select`` leave the object as it was; an ended
    prefix keeps its value and emits nothing; ``select`` of a selection, and ``join`` of selections if there is a ``join``, are
    selections; the same generator draws the same; every prefix ends.

    Parameters
    ----------
    root : Particles
    rng : np.random.Generator
    pool_size : int
        M, at least 2.
    paths : callable, optional
        Returns G lists of n paths, each the steps of a prefix so far. Default: the method ``steps`` of the particles if they
        have one; without either, child order and identity are checked through the log values alone.
    seeded : bool
        Whether draws depend on the generator alone. Not so behind some servers.
    max_steps : int
        Steps after which every prefix must have ended.
    tolerance : float
        Nats by which log values of one prefix may differ between calls or batches.

    Raises
    ------
    AssertionError
        Names the first law that is broken, and the step.
    """
    paths = paths or ((lambda p: p.steps()) if hasattr(root, "steps") else None)
    here, t = root, 0
    while True:
        seen = _look(here, paths, f"after {t} steps")
        seed = int(rng.integers(2**32))
        child = here.extend(pool_size, np.random.default_rng(seed))
        _look(here, paths, f"after {t} steps").require_same(
            seen, f"extend changed its parent at step {t}", tolerance
        )
        children = _look(child, paths, f"in the children of step {t}")
        _check_children(seen, children, pool_size, t, tolerance)
        if seeded:
            again = _look(here.extend(pool_size, np.random.default_rng(seed)), paths, f"at step {t}")
            law = f"two extensions by generators of one seed differ at step {t}"
            again.require_same(children, law, tolerance)
        if seen.ended.all():
            return
        require(t < max_steps, f"some prefixes have not ended after {max_steps} steps")
        here, t = _check_select(child, paths, rng, t, tolerance), t + 1


def _check_children(parent: _Seen, child: _Seen, pool_size: int, t: int, tolerance: float) -> None:
    """Check the (G, n * M) children of one step: order, length, and ended parents."""
    groups, n = parent.ended.shape
    require(
        child.ended.shape == (groups, n * pool_size),
        f"extend(M) gives (G, n * M) = {(groups, n * pool_size)} children, got {child.ended.shape} at step {t}",
    )
    index = np.broadcast_to(np.repeat(np.arange(n), pool_size), child.ended.shape)
    before = parent.at(index)
    over = before.ended
    require_all(child.ended | ~over, f"an ended prefix is absorbing: a child of one is alive at step {t}")
    kept = ~over | near(child.log_value, before.log_value, tolerance)
    require_all(kept, f"an ended prefix keeps its value: one changed at step {t}")
    if before.path is None or child.path is None:
        return
    for g, i in np.ndindex(child.path.shape):
        old, new = before.path[g, i], child.path[g, i]
        where = f"group {g}, child {i}, step {t}"
        if over[g, i]:
            require(new == old, f"an ended prefix emits nothing: {new} after {old} ({where})")
        else:
            require(
                new[: len(old)] == old, f"child i * M + m continues prefix i: {new} after {old} ({where})"
            )
            require(len(new) == len(old) + 1, f"a child is one step longer: {new} after {old} ({where})")


def _check_select(child: P, paths: Paths | None, rng: np.random.Generator, t: int, tolerance: float) -> P:
    """Check ``select`` and ``join`` on the children of step ``t``; return a few of them to continue from."""
    seen, (groups, n) = _look(child, paths, f"at step {t}"), child.shape
    first, second = rng.integers(n, size=(groups, n)), rng.integers(n, size=(groups, 4))
    one = child.select(first)
    law = f"select(index) gives the prefixes at index, step {t}"
    _look(one, paths, "after select").require_same(seen.at(first), law, tolerance)
    _look(child, paths, f"at step {t}").require_same(
        seen, f"select changed its parent at step {t}", tolerance
    )
    two = one.select(second)
    both = np.take_along_axis(first, second, 1)
    law = f"select(a).select(b) is select(a[b]), step {t}"
    _look(two, paths, "after two selections").require_same(seen.at(both), law, tolerance)
    if hasattr(child, "join"):
        joined = child.select(second).join(two)
        law = f"select(a).join(select(b)) is select([a, b]), step {t}"
        _look(joined, paths, "after join").require_same(seen.at(np.hstack([second, both])), law, tolerance)
        two = joined.select(np.tile([1, 6, 3, 4], (groups, 1)))
        law = f"a selection of joined prefixes is those prefixes, step {t}"
        expected = seen.at(np.stack([second[:, 1], both[:, 2], second[:, 3], both[:, 0]], 1))
        _look(two, paths, "").require_same(expected, law, tolerance)
    return two


def check_law(
    root: Particles,
    law: Mapping[Hashable, float],
    rng: np.random.Generator,
    *,
    paths: Paths | None = None,
    draws: int = 2000,
    false_alarm: float = 1e-6,
) -> None:
    """Check that first steps of ``root`` follow ``law`` independently of one another, by exact two-sided binomial tests.

    Counted are each step in each group; the extensions in which a step is drawn about as often as expected (systematic draws:
    too many); and pairs of steps at neighbouring children, groups and extensions. A step of probability 0 always fails.

    Parameters
    ----------
    root : Particles
        (G, 1) prefixes that have not ended, with the same law in every group.
    law : mapping
        The probability of each next step; what is missing to 1 is that of all others.
    rng : np.random.Generator
    paths : callable, optional
        As in :func:`check_particles`; the last entry of a path is the step.
    draws : int
        Children per group, drawn in about the square root of as many extensions.
    false_alarm : float
        Upper bound of the probability that a right implementation fails: tests are exact, and share it equally (Bonferroni).

    Raises
    ------
    AssertionError
        If a count has a probability below ``false_alarm`` / (number of tests).
    """
    from scipy.stats import binom

    of = paths or (lambda particles: particles.steps())
    p = np.append(list(law.values()), max(0.0, 1.0 - sum(law.values())))
    cell = {step: k for k, step in enumerate(law)}
    width = -(-draws // math.isqrt(draws))
    extensions = [of(root.extend(width, rng)) for _ in range(math.isqrt(draws))]
    steps = np.array([[[cell.get(path[-1], len(law)) for path in g] for g in e] for e in extensions])
    never = int((p[steps] < 1e-12).sum())
    require(never == 0, f"a step of probability 0 was drawn {never} times")

    times = (steps[..., None] == np.arange(len(p))).sum(2)  # (extensions, G, cells)
    told = "the steps of group {} do not follow their law"
    tests = [(told.format(g), seen, width * len(times), p) for g, seen in enumerate(times.sum(0))]
    grid = np.arange(width + 1)[:, None]
    usual = np.abs(grid - width * p) < 1
    about = np.minimum(1.0, (binom.pmf(grid, width, p) * usual).sum(0))
    near = np.take_along_axis(usual, times.reshape(-1, len(p)), 0)
    tests.append(("draws of one extension depend on one another", near.sum(0), len(near), about))
    pairs = np.append(np.outer(p, p), np.sum(p**2))
    for axis, what in enumerate(("extensions", "groups", "children")):
        for start in (0, 1):
            line = np.moveaxis(steps, axis, 0)[start:]
            one, two = line[: len(line) // 2 * 2 : 2].ravel(), line[1::2].ravel()
            found = np.append(np.bincount(one * len(p) + two, minlength=len(p) ** 2), (one == two).sum())
            tests.append((f"neighbouring {what} depend on one another", found, len(one), pairs))
    level = false_alarm / sum(len(seen) for _, seen, _, _ in tests)
    for what, seen, n, expected in tests:
        tail = 2 * np.minimum(binom.cdf(seen, n, expected), binom.sf(seen - 1, n, expected))
        k = int(tail.argmin())
        where = f"{seen[k]} of {n} where {n * expected[k]:.4g} are expected, p {tail[k]:.1e}"
        require(tail[k] > level, f"{what}: {where}")
