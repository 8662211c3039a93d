r"""The contracts of rmtools' protocols as assertions: run them over an implementation of your own.

Each function raises ``AssertionError`` with the law that was broken and where; it returns nothing if all laws hold. Our own
tests run them over every implementation in the package (docs/contracts.md has an example).

>>> import numpy as np
>>> from rmtools.core import product
>>> check_particles(product(horizon=3, ratio=2.0).particles(groups=2), np.random.default_rng(0))
"""

import copy
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rmtools.data.readers.row import Dropped, Field, Format, Options, RowError
from rmtools.data.rollouts import Rollout, parse_row
from rmtools.data.tasks.protocol import ExactTask, Task
from rmtools.errors import UserError
from rmtools.lm.protocol import Decoded, Scorer, StepPolicy, StepState, TreeValues
from rmtools.lm.steps import EncodedTree
from rmtools.lm.tree_scoring import padded
from rmtools.particles.protocol import Particles

P = TypeVar("P", bound=Particles)
Path = Sequence[Hashable]
Paths = Callable[[Any], Sequence[Sequence[Path]]]

__all__ = ["check_law", "check_particles", "check_policy", "check_reader", "check_scorer", "check_task"]


def _require(holds: object, law: str) -> None:
    """Raise ``AssertionError`` unless ``holds``, also under ``python -O``."""
    if not holds:
        raise AssertionError(law)


def _require_all(holds: np.ndarray, law: str) -> None:
    """Raise ``AssertionError`` with the first index where ``holds`` is False."""
    if not holds.all():
        raise AssertionError(f"{law}, first at index {np.argwhere(~holds)[0].tolist()}")


def _near(found: Any, expected: Any, tolerance: float) -> np.ndarray:
    """Return where two arrays are equal, infinities and NaN included, or differ by at most ``tolerance``."""
    return np.isclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


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
        _require(np.array_equal(self.ended, other.ended), f"{law}: which prefixes have ended differs")
        _require_all(_near(self.log_value, other.log_value, tolerance), f"{law}: log values differ")
        if self.path is not None and other.path is not None:
            _require_all(self.path == other.path, f"{law}: the prefixes differ")


def _look(particles: Particles, paths: Paths | None, when: str) -> _Seen:
    """Return what is seen of ``particles``; raise ``AssertionError`` if it is not of the protocol's shape and range."""
    shape = tuple(particles.shape)
    _require(len(shape) == 2 and min(shape) >= 1, f"shape is the pair (G, n), got {shape} {when}")
    ended, log_value = np.array(particles.ended), np.array(particles.log_value())
    for name, array in (("ended", ended), ("log_value()", log_value)):
        _require(array.shape == shape, f"{name} has the particles' shape {shape}, got {array.shape} {when}")
    _require(ended.dtype == bool, f"ended is bool, got {ended.dtype} {when}")
    fine = log_value < np.inf  # False for NaN
    _require(fine.all(), f"log values are numbers below inf, got {log_value[~fine][:1]} {when}")
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
        _require(t < max_steps, f"some prefixes have not ended after {max_steps} steps")
        here, t = _check_select(child, paths, rng, t, tolerance), t + 1


def _check_children(parent: _Seen, child: _Seen, pool_size: int, t: int, tolerance: float) -> None:
    """Check the (G, n * M) children of one step: order, length, and ended parents."""
    groups, n = parent.ended.shape
    _require(
        child.ended.shape == (groups, n * pool_size),
        f"extend(M) gives (G, n * M) = {(groups, n * pool_size)} children, got {child.ended.shape} at step {t}",
    )
    index = np.broadcast_to(np.repeat(np.arange(n), pool_size), child.ended.shape)
    before = parent.at(index)
    over = before.ended
    _require_all(child.ended | ~over, f"an ended prefix is absorbing: a child of one is alive at step {t}")
    kept = ~over | _near(child.log_value, before.log_value, tolerance)
    _require_all(kept, f"an ended prefix keeps its value: one changed at step {t}")
    if before.path is None or child.path is None:
        return
    for g, i in np.ndindex(child.path.shape):
        old, new = before.path[g, i], child.path[g, i]
        where = f"group {g}, child {i}, step {t}"
        if over[g, i]:
            _require(new == old, f"an ended prefix emits nothing: {new} after {old} ({where})")
        else:
            _require(
                new[: len(old)] == old, f"child i * M + m continues prefix i: {new} after {old} ({where})"
            )
            _require(len(new) == len(old) + 1, f"a child is one step longer: {new} after {old} ({where})")


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
    _require(never == 0, f"a step of probability 0 was drawn {never} times")

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
        _require(tail[k] > level, f"{what}: {where}")


def check_scorer(scorer: Scorer, rollouts: Sequence[Rollout], *, tolerance: float = 1e-4) -> None:
    """Check the contract of :class:`rmtools.lm.protocol.Scorer` on the prompts, steps and children of ``rollouts``.

    Values are numbers, and log(V) in [log floor, 0] if the scorer ``is_probability``; they depend on the prefix alone, not on
    what is scored with it; a child has the value of a trajectory that takes it; ``start`` and ``advance`` give the values of
    ``score``; states are immutable, and ``select`` and ``join`` reindex them.

    Parameters
    ----------
    scorer : Scorer
    rollouts : sequence of Rollout
        At least two, better of different lengths and with children.
    tolerance : float
        Nats by which values of one prefix may differ between batches, and by which V may leave [floor, 1].

    Raises
    ------
    AssertionError
        Names the law, and the rollout or depth.
    """
    _require(isinstance(scorer.name, str), f"name is text, got {scorer.name!r}")
    fine = isinstance(scorer.is_probability, bool)
    _require(fine, f"is_probability is a bool, got {scorer.is_probability!r}")
    texts = [[[c.text for c in at] for at in r.children] for r in rollouts]
    encode = scorer.steps.encode
    trees = [encode(r.prompt, r.steps, c) for r, c in zip(rollouts, texts, strict=True)]
    done: list[int] = []
    values = scorer.score(trees, progress=done.append)
    _require(sum(done) == len(trees), f"progress counts every tree once: {sum(done)} of {len(trees)}")
    _require(len(values) == len(trees), f"score gives one value per tree: {len(values)} for {len(trees)}")
    for i, (tree, found) in enumerate(zip(trees, values, strict=True)):
        _check_tree(scorer, tree, found, i, tolerance)
    _check_context(scorer, rollouts, trees, values, tolerance)
    _Increments(scorer, trees, values, tolerance).check()


def _check_tree(scorer: Scorer, tree: EncodedTree, found: TreeValues, i: int, tolerance: float) -> None:
    """Check shapes and ranges of one trajectory's values."""
    shapes = [np.shape(found.log_value), *map(np.shape, found.children)]
    expected = [(len(tree.reads),), *((len(at),) for at in tree.child_reads)]
    law = f"values of rollout {i} have shapes {expected} (T + 1, then children), got {shapes}"
    _require(shapes == expected, law)
    every = np.concatenate([found.log_value, *found.children])
    _require((every < np.inf).all(), f"log values are numbers below inf: rollout {i} has {every}")
    if scorer.is_probability:
        low = scorer.tilt.log_potential(np.zeros(1)) - tolerance
        fine = ((every >= low) & (every <= tolerance)).all()
        _require(fine, f"V is in [floor, 1]: rollout {i} has log values {every}")


def _check_context(
    scorer: Scorer,
    rollouts: Sequence[Rollout],
    trees: Sequence[EncodedTree],
    values: Sequence[TreeValues],
    tolerance: float,
) -> None:
    """Check that values do not depend on order, other trees and children, and that children are valued like steps."""
    trunks = scorer.score([t.trunk() for t in reversed(trees)])[::-1]
    for i, (tree, found, trunk) in enumerate(zip(trees, values, trunks, strict=True)):
        law = f"a value depends on its prefix alone: rollout {i}"
        _require_close(found.log_value, trunk.log_value, tolerance, law)
        (alone,) = scorer.score([tree])
        _require_close(found.log_value, alone.log_value, tolerance, law)
        for at, same in zip(found.children, alone.children, strict=True):
            _require_close(at, same, tolerance, law)
    forks = [
        (i, t, k) for i, v in enumerate(values) for t, at in enumerate(v.children) for k in range(len(at))
    ]
    if not forks:
        return
    taken = [
        scorer.steps.encode(r.prompt, [*r.steps[:t], r.children[t][k].text])
        for i, t, k in forks
        for r in [rollouts[i]]
    ]
    for (i, t, k), alone in zip(forks, scorer.score(taken), strict=True):
        law = f"a child has the value of a trajectory that takes it: rollout {i}, depth {t}, child {k}"
        _require_close(values[i].children[t][k], alone.log_value[-1], tolerance, law)


def _require_close(found: Any, expected: Any, tolerance: float, law: str) -> None:
    _require_all(_near(found, expected, tolerance), f"{law}: {found} against {expected}")


@dataclass(frozen=True)
class _Increments:
    """Reads trees step by step with ``start`` and ``advance``, and compares with what ``score`` gave."""

    scorer: Scorer
    trees: Sequence[EncodedTree]
    values: Sequence[TreeValues]
    tolerance: float

    def check(self) -> None:
        parts = [t.parts() for t in self.trees]
        found, state = self.scorer.start([prompt for prompt, _, _ in parts])
        _require(found.shape == (len(parts),), f"start gives (B,) values, got {tuple(found.shape)}")
        self._compare(found, [v.log_value[0] for v in self.values], "score is start at the prompt")
        last = found
        for t in range(max(len(steps) for _, steps, _ in parts)):
            rows = [steps[t] if t < len(steps) else [] for _, steps, _ in parts]
            tokens = padded(rows, -1, found.device)
            new, after = self.scorer.advance(state, tokens)
            at = [i for i, row in enumerate(rows) if row]
            expected = [self.values[i].log_value[t + 1] for i in at]
            self._compare(new[at], expected, f"score is start and then advance: step {t}")
            rest = [i for i, row in enumerate(rows) if not row]
            kept = torch.isnan(new[rest]) | torch.isclose(new[rest], last[rest].to(new), 0, self.tolerance)
            _require(kept.all(), f"a row without a token gets NaN or its value as it was: step {t}")
            self._check_states(state, tokens, new, t)
            forks = [(i, k, ids) for i in at for k, ids in enumerate(parts[i][2][t])]
            if forks:
                chosen = state.select(torch.tensor([i for i, _, _ in forks], device=found.device))
                children, _ = self.scorer.advance(
                    chosen, padded([ids for _, _, ids in forks], -1, found.device)
                )
                expected = [self.values[i].children[t][k] for i, k, _ in forks]
                self._compare(
                    children, expected, f"select(rows) gives the prefixes at rows: children of step {t}"
                )
            last = torch.where(torch.isnan(new), last.to(new), new)
            state = after

    def _check_states(self, state: Any, tokens: Tensor, new: Tensor, t: int) -> None:
        """Check that ``advance`` left its state as it was, and that joined selections read on as they should."""
        again, _ = self.scorer.advance(state, tokens)
        self._compare(again, new.tolist(), f"advance changed the state it was given: step {t}")
        half = len(tokens) // 2
        order = torch.tensor([*range(half, len(tokens)), *range(half)], device=tokens.device)
        joined = (
            state.select(order[:-half]).join(state.select(order[-half:])) if half else state.select(order)
        )
        read, _ = self.scorer.advance(joined, tokens[order])
        self._compare(read, new[order].tolist(), f"select(a).join(select(b)) is select([a, b]): step {t}")

    def _compare(self, found: Tensor, expected: Sequence[float], law: str) -> None:
        _require_close(found.double().cpu().numpy(), expected, self.tolerance, law)


def check_policy(
    policy: StepPolicy, prompts: Sequence[str], *, particles: int = 4, seed: int = 0, seeded: bool = True
) -> None:
    """Check the contract of :class:`rmtools.lm.protocol.StepPolicy`, from ``prompts`` to the end of every solution.

    A step ends where the step settings say, and only there; equal prefixes are held once; an ended prefix is absorbing and gets
    no token; ``decode_step`` leaves its state as it was. If ``seeded``, the same seed draws the same, also from a state reindexed
    by ``select`` and ``join``; a state started anew at the prefixes draws the same first 4 tokens, 9 times in 10 (rounding).
    The law itself is checked by :func:`check_law` on particles over the policy.

    Parameters
    ----------
    policy : StepPolicy
    prompts : sequence of str
    particles : int
        Solutions of each prompt.
    seed : int
    seeded : bool
        Whether draws depend on the generator alone. Not so behind some servers.

    Raises
    ------
    AssertionError
        Names the law, and the step.
    """
    _require(policy.temperature > 0, f"temperature is positive, got {policy.temperature}")
    _require(isinstance(policy.name, str), f"name is text, got {policy.name!r}")
    ids = [policy.steps.prompt_ids(p) for p in prompts]
    policy.check_length(ids)
    state: StepState = policy.start(ids)
    _require(
        state.pending.tolist() == [i[-1] for i in ids], "start: pending is the last token of each prompt"
    )
    _require(not state.ended.any(), "start: no prompt has ended")
    node = torch.arange(len(ids), device=policy.device).repeat_interleave(particles)
    read = [list(i) for i in ids]
    for t in range(policy.steps.settings.max_steps + 1):
        before = state.pending.tolist(), state.ended.tolist()
        step = policy.decode_step(state, node, torch.Generator(policy.device).manual_seed(seed + t))
        after = state.pending.tolist(), state.ended.tolist()
        _require(after == before, f"decode_step changed its state at step {t}")
        _check_decoded(policy, state, node, step, t)
        if seeded:
            again = policy.decode_step(state, node, torch.Generator(policy.device).manual_seed(seed + t))
            law = f"two steps by generators of one seed differ at step {t}"
            _require(_texts(policy, again) == _texts(policy, step), law)
        if bool(state.ended.all()):
            return
        state, node = _reindexed(step.state, step.node, t)
        rows = zip(step.parent.tolist(), step.tokens.tolist(), strict=True)
        read = [[*read[u], *(i for i in row if i >= 0)] for u, row in rows][::-1]
        if seeded:
            _check_reading(policy, step.state, state, read, seed + t)
    raise AssertionError(
        f"max_steps is {policy.steps.settings.max_steps}, and some prefixes have not ended by then"
    )


def _texts(policy: StepPolicy, step: Decoded[Any]) -> list[str]:
    """Return the text of the step at every particle."""
    return [
        policy.steps.step_text([i for i in step.tokens[u].tolist() if i >= 0]) for u in step.node.tolist()
    ]


def _check_decoded(policy: StepPolicy, state: StepState, node: Tensor, step: Decoded[Any], t: int) -> None:
    """Check the shapes of a decoded step, and each of its distinct continuations."""
    rows, parent = step.tokens.tolist(), step.parent.tolist()
    _require(step.node.shape == node.shape, f"node has one entry per particle, step {t}")
    _require(step.parent[step.node].equal(node), f"parent[node] is where each particle was before step {t}")
    held = {(u, *row) for u, row in zip(parent, rows, strict=True)}
    _require(len(held) == len(rows), f"a prefix is held twice, step {t}")
    used = set(step.node.tolist())
    _require(used == set(range(len(rows))), f"every prefix held is some particle's, step {t}")
    settings, steps = policy.steps.settings, policy.steps
    for u, (row, before) in enumerate(zip(rows, parent, strict=True)):
        ids, where = [i for i in row if i >= 0], f"step {t}, prefix {u}"
        ended = bool(step.state.ended[u])
        _require(row[: len(ids)] == ids, f"-1 stands only behind the end of a step: {row}, {where}")
        if state.ended[before]:
            _require(ended and not ids, f"an ended prefix is absorbing and gets no token: {ids}, {where}")
            same = step.state.pending[u] == state.pending[before]
            _require(same, f"an ended prefix keeps its pending token: {where}")
            continue
        _require(ids, f"a step has at least one token: {where}")
        _require(step.state.pending[u] == ids[-1], f"pending is the last token: {where}")
        early = [k for k in range(1, len(ids)) if steps.ends(ids[:k]) or steps.closes(ids[:k])]
        _require(not early, f"a step ends with its first delimiter or end of sequence: {ids}, {where}")
        over = steps.ends(ids) or steps.closes(ids) or len(ids) >= settings.max_step_tokens
        _require(
            over or ended,
            f"a step ends with the delimiter, the end of the sequence or max_step_tokens: {ids}, {where}",
        )
        _require(
            ended or (not steps.ends(ids) and t + 1 < settings.max_steps),
            f"the end of the sequence and max_steps end a prefix: {where}",
        )


def _reindexed(state: StepState, node: Tensor, t: int) -> tuple[StepState, Tensor]:
    """Return the same prefixes in another order, through ``select`` and ``join``, and where each particle is now."""
    order = torch.arange(len(state.pending), device=node.device).flip(0)
    half = len(order) // 2
    new = state.select(order[:half]).join(state.select(order[half:])) if half else state.select(order)
    for name in ("pending", "ended"):
        same = getattr(new, name).equal(getattr(state, name)[order])
        _require(same, f"select(a).join(select(b)) is select([a, b]): {name} differs after step {t}")
    return new, len(order) - 1 - node


def _check_reading(
    policy: StepPolicy, old: StepState, new: StepState, read: list[list[int]], seed: int
) -> None:
    """Check that ``new``, which is ``old`` in reverse, holds the prefixes ``read`` (token ids)."""

    def draw(state: StepState, node: Tensor) -> Decoded[Any]:
        return policy.decode_step(state, node, torch.Generator(policy.device).manual_seed(seed))

    node = torch.arange(len(read), device=policy.device).repeat_interleave(16)
    same = _texts(policy, draw(old, len(read) - 1 - node)) == _texts(policy, draw(new, node))
    _require(same, "select and join reindex all of a state: other steps follow the same prefixes")
    live = (~new.ended).nonzero()[:, 0]
    if len(live):
        node = torch.arange(len(live), device=policy.device).repeat_interleave(16)
        fresh = policy.start([read[u] for u in live.tolist()])
        one, two = draw(new.select(live), node), draw(fresh, node)
        begun = ([step.tokens[u, :4].tolist() for u in step.node.tolist()] for step in (one, two))
        alike = np.mean([a[: len(b)] == b[: len(a)] for a, b in zip(*begun, strict=True)])
        _require(alike >= 0.9, f"a state has read its prefixes: {alike:.0%} of steps are a new state's")


def check_task(
    task: Task,
    rng: np.random.Generator,
    *,
    prompts: Sequence[str] | None = None,
    n: int = 8,
    solutions: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Check the contract of :class:`rmtools.data.tasks.protocol.Task`.

    Its prompts can be verified and are drawn by the generator alone; rewards are in [0, 1] and the same whenever a solution is
    verified; listed steps end with the delimiter and make well-formed solutions. Of an exact task also: demonstrations are
    well-formed, one of full care earns a reward, what earns 1 has right steps only, and steps that are not listed are not right.
    Which listed steps are right, and whether wrong solutions of other tasks earn too much, is not checked.

    Parameters
    ----------
    task : Task
    rng : np.random.Generator
    prompts : sequence of str, optional
        Default: the task draws them. Needed if its prompts come from a file.
    n : int
        Prompts to draw.
    solutions : mapping of str to sequence of str, optional
        For some prompts a right solution, which is well-formed and earns 1. Otherwise that is not checked of inexact tasks.

    Raises
    ------
    AssertionError
        Names the law, and the prompt or solution.
    """
    _require(isinstance(task.name, str) and task.name, f"name is text, got {task.name!r}")
    _require(task.delimiter, "the delimiter is not empty")
    _require(task.horizon >= 1, f"the horizon is at least 1, got {task.horizon}")
    prompts = _drawn_prompts(task, n, int(rng.integers(2**32))) if prompts is None else prompts
    found = [(p, s) for p in prompts for s in _solutions(task, p, rng)]
    for prompt in prompts:
        try:
            task.check_prompt(prompt)
        except UserError as error:
            raise AssertionError(f"prompts can be verified: {prompt!r} is refused, {error}") from error
    for prompt, right in (solutions or {}).items():
        fine = task.well_formed(right) and task.reward(prompt, right) == 1
        _require(fine, f"a right solution is well-formed and earns 1: {right} of {prompt!r}")
        found.append((prompt, list(right)))
    if isinstance(task, ExactTask):
        careful = ((p, task.demonstration(p, 1.0, rng)) for _ in range(20) for p in prompts)
        _require(any(task.reward(p, s) > 0 for p, s in careful), "some careful demonstration earns a reward")
    rewards = [task.reward(p, s) for p, s in found]
    for (prompt, steps), reward in zip(found, rewards, strict=True):
        _require(0 <= reward <= 1, f"rewards are in [0, 1], got {reward} for {steps} of {prompt!r}")
        _require(isinstance(task.well_formed(steps), bool | np.bool_), f"well_formed gives a bool: {steps}")
    again = [task.reward(p, s) for p, s in reversed(found)][::-1]
    for (prompt, steps), one, two in zip(found, rewards, again, strict=True):
        _require(one == two, f"the verifier is deterministic: {one}, then {two} for {steps} of {prompt!r}")


def _drawn_prompts(task: Task, n: int, seed: int) -> list[str]:
    """Return prompts of the task; raise ``AssertionError`` if they are not ``n`` texts, drawn by the generator alone."""
    prompts, left_out = task.prompts(n, np.random.default_rng(seed))
    fine = len(prompts) == n and all(isinstance(p, str) and p for p in prompts)
    _require(fine, f"prompts(n) gives n texts, got {prompts!r} for {n}")
    _require(left_out >= 0, f"prompts(n) also gives a number of prompts left out, got {left_out}")
    again, _ = task.prompts(n, np.random.default_rng(seed))
    _require(again == prompts, "two drawings of prompts by generators of one seed differ")
    return prompts


def _solutions(task: Task, prompt: str, rng: np.random.Generator) -> list[list[str]]:
    """Return finished solutions of a prompt, right and wrong; check those that the task itself writes."""
    end = task.delimiter
    found = [[end], [f"no step of any task{end}"], [f"{i}{end}" for i in range(task.horizon)]]
    choices = task.step_choices(prompt, [])
    if choices is not None:
        _require(choices, f"step_choices lists every step, got none for {prompt!r}")
        odd = [c for c in choices if not c.endswith(end) or c.count(end) != 1]
        _require(not odd, f"a listed step ends with its one delimiter: {odd[:1]}")
        found += [[str(c) for c in rng.choice(choices, size=task.horizon)] for _ in range(4)]
        _require(
            all(map(task.well_formed, found[3:])), f"solutions of listed steps are well-formed: {found[3:]}"
        )
    if isinstance(task, ExactTask):
        fine = not any(task.right_steps(prompt, found[1]))
        _require(fine, f"a step that is not listed is not right: {found[1]}")
        for care in (0.0, 0.5, 1.0):
            steps = task.demonstration(prompt, care, rng)
            fine = 1 <= len(steps) <= task.horizon and task.well_formed(steps)
            _require(fine, f"a demonstration is well-formed and within the horizon: {steps}")
            right = task.right_steps(prompt, steps)
            _require(len(right) == len(steps), f"right_steps gives one bool per step: {right} for {steps}")
            fine = all(right) or task.reward(prompt, steps) < 1
            _require(
                fine, f"a solution with reward 1 has right steps only: {right} for {steps} of {prompt!r}"
            )
            found.append(steps)
    return found


def check_reader(
    form: Format,
    rows: Sequence[Mapping[str, Any]],
    *,
    steps: Sequence[Sequence[str]] | None = None,
    rewards: Sequence[Sequence[float | None]] | None = None,
    options: Options | None = None,
) -> None:
    """Check the contract of a reader, declared with :func:`rmtools.data.readers.row.public_format`.

    A row of the format becomes valid rollouts, or is reported as dropped, and is never lost in silence; the text of its steps
    keeps its order; a row is read the same whatever was read before, and stays as it was; a row without a field of the format
    is refused with ``RowError``. Without ``steps`` and ``rewards``, a reader that drops every row or turns rewards round passes.

    Parameters
    ----------
    form : Format
    rows : sequence of mapping
        Right rows of the format.
    steps : sequence of sequence of str, optional
        For each row, texts that its rollouts' steps must hold in this order.
    rewards : sequence of sequence of (float or None), optional
        For each row, the rewards of its rollouts in order, and so their number.
    options : Options, optional

    Raises
    ------
    AssertionError
        Names the law, and the row.
    """
    options = options or Options()
    given = copy.deepcopy(list(rows))
    found = [list(form.read(Field(row), options)) for row in rows]
    _require(list(rows) == given, "a reader leaves its rows as they were")
    again = [list(form.read(Field(row), options)) for row in reversed(rows)][::-1]
    for i, (row, one, two) in enumerate(zip(rows, found, again, strict=True)):
        _require(
            form.fits(row), f"row {i} has the fields of the format {form.name}: {', '.join(form.fields)}"
        )
        _require(one == two, f"row {i} is read alike whatever was read before: {one}, then {two}")
        _require(one, f"row {i} becomes rollouts or Dropped, and is never lost in silence")
        kept = [x for x in one if isinstance(x, Rollout)]
        _require(
            all(isinstance(x, Rollout | Dropped) for x in one), f"row {i} becomes rollouts or Dropped: {one}"
        )
        for rollout in kept:
            try:
                same = parse_row(asdict(rollout), f"row {i}") == rollout
            except UserError as error:
                raise AssertionError(f"rollouts are valid: {error}") from error
            _require(same, f"rollouts are valid: row {i} changes when it is written and read")
        if rewards is not None:
            got = [rollout.reward for rollout in kept]
            _require(got == list(rewards[i]), f"row {i} has rollouts of rewards {rewards[i]}, got {got}")
        text = "".join(s for rollout in kept for s in rollout.steps)
        for piece in steps[i] if steps is not None else ():
            _require(piece in text, f"steps keep their order and none is lost: row {i} lacks {piece!r} there")
            text = text[text.index(piece) + len(piece) :]
        for name in form.fields:
            _check_refused(form, {n: v for n, v in row.items() if n != name}, name, options)


def _check_refused(form: Format, row: Mapping[str, Any], name: str, options: Options) -> None:
    """Check that a row without the field ``name`` is refused, if the format needs it, with an error that names row and field."""
    try:
        found = list(form.read(Field(row), options))
    except RowError:
        return
    except Exception as error:
        raise AssertionError(f"a row without {name} is refused with RowError, got {error!r}") from error
    read = any(isinstance(x, Rollout) for x in found) and not form.fits(row)
    _require(not read, f"a row without {name} is refused with RowError, and was read")
