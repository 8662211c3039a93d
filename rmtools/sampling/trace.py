"""What the sampler did, step by step: every candidate with its text and value, which were kept, ESS and increments.

`Traced` wraps the particles of a run and draws nothing itself, so a run gives the same samples with and without it. Equal
prefixes are one entry of a tree, killed branches included; `trace_records` makes it one JSON-ready dictionary a
prompt (docs/formats.md, Trace), and ``rmtools.sampling.trace_file.read_trace`` reads them again.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rmtools.particles.protocol import SMCResult
from rmtools.sampling.prefix_tree import PrefixTree

KIND = "trace"
SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class Level:
    """One step: which prefixes were extended, (G, n), and their candidates, (G, n * M), as numbers of the tree."""

    parents: np.ndarray
    candidates: np.ndarray


@dataclass(frozen=True, eq=False)
class Traced:
    """Particles that remember every candidate drawn on the way to them; see ``rmtools.particles.protocol.Particles``.

    Made by :meth:`start`. Whatever is not listed here (``steps()``, ``decoded``, …) is that of the particles within;
    ``join`` is there where they have it, and keeps the trace.

    Attributes
    ----------
    inner : Particles
        With ``steps()``, the texts of every prefix's steps.
    tree : PrefixTree
        Shared by all particles that come from one root.
    at : np.ndarray
        (G, n) number of the prefix that each particle is at.
    levels : tuple of Level
        One a step.
    joined : bool
        Whether the next ``select`` completes the candidates of the newest step, as conditional SMC does with its reference.
    """

    inner: Any
    tree: PrefixTree
    at: np.ndarray
    levels: tuple[Level, ...] = ()
    joined: bool = False

    @classmethod
    def start(cls, root: Any, prompts: Sequence[str]) -> "Traced":
        """Wrap a root, shape (G, 1), of the G ``prompts``."""
        if root.shape != (len(prompts), 1):
            raise ValueError(
                f"a root of shape {root.shape} for {len(prompts)} prompts: one prefix a prompt is needed"
            )
        tree, value, ended = PrefixTree(), root.log_value(), root.ended
        at = [
            [tree.root(p, float(v), bool(e))]
            for p, v, e in zip(prompts, value[:, 0], ended[:, 0], strict=True)
        ]
        return cls(root, tree, np.asarray(at))

    @property
    def shape(self) -> tuple[int, int]:
        """(G, n)."""
        n_groups, n = self.inner.shape
        return n_groups, n

    @property
    def ended(self) -> np.ndarray:
        """(G, n) bool."""
        return self.inner.ended

    def log_value(self) -> np.ndarray:
        """Return log V of every prefix, (G, n) nats."""
        return self.inner.log_value()

    def extend(self, pool_size: int, rng: np.random.Generator) -> "Traced":
        """Draw ``pool_size`` next steps of every prefix and note them."""
        inner = self.inner.extend(pool_size, rng)
        at = self._numbers(inner, np.repeat(self.at, pool_size, axis=1))
        return Traced(inner, self.tree, at, (*self.levels, Level(self.at, at)))

    def select(self, index: np.ndarray) -> "Traced":
        """Return prefixes ``index`` (G, k) of each group."""
        at = np.take_along_axis(self.at, np.asarray(index), axis=1)
        levels = self.levels
        if self.joined:
            levels = (*levels[:-1], replace(levels[-1], candidates=at))
        return Traced(self.inner.select(index), self.tree, at, levels)

    def _join(self, other: "Traced") -> "Traced":
        """Return these prefixes with those of ``other``, (G, k), behind them; the trace stays ours."""
        at = other.at
        if other.tree is not self.tree:
            roots = [self.tree.root_of(int(row[0])) for row in self.at]
            at = np.asarray(
                [
                    [self.tree.adopt(other.tree, int(i), r) for i in row]
                    for row, r in zip(at, roots, strict=True)
                ]
            )
        inner = self.inner.join(other.inner)
        return Traced(inner, self.tree, np.concatenate([self.at, at], axis=1), self.levels, bool(self.levels))

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet while an object is being copied or unpickled
            raise AttributeError(name)
        found = getattr(self.inner, name)
        # Only particles that can be joined are traced ones that can.
        return self._join if name == "join" else found

    def _numbers(self, children: Any, parents: np.ndarray) -> np.ndarray:
        """Return the numbers of ``children``, (G, n), of prefixes ``parents``, (G, n)."""
        row, texts = newest_steps(children)
        values, ended = children.log_value().ravel(), children.ended.ravel()
        key = parents.ravel() * len(texts) + row
        _, first, back = np.unique(key, return_index=True, return_inverse=True)
        fields = zip(
            parents.ravel()[first].tolist(),
            row[first].tolist(),
            values[first].tolist(),
            ended[first].tolist(),
            strict=True,
        )
        numbers = [self.tree.child(p, texts[r], v, e) for p, r, v, e in fields]
        return np.asarray(numbers)[back].reshape(parents.shape)


def newest_steps(particles: Any) -> tuple[np.ndarray, list[str]]:
    """Return the texts of the newest steps and, (G * n,), which of them each prefix has; "" before the first step.

    The distinct prefixes of a language model in process are decoded once each, and only their newest step.
    """
    if hasattr(particles, "blocks") and hasattr(particles, "node"):
        from rmtools.lm.particles import step_texts

        rows = np.arange(len(particles.values))
        steps = step_texts(particles.setup.policy, particles.blocks[-1:], rows)
        return particles.node.cpu().numpy(), [s[0] if s else "" for s in steps]
    texts = [s[-1] if s else "" for group in particles.steps() for s in group]
    return np.arange(len(texts)), texts


def trace_records(
    traced: Traced,
    result: SMCResult[Any],
    settings: Mapping[str, Any] | None = None,
    draw: np.ndarray | None = None,
    rewards: np.ndarray | None = None,
    judge: bool = True,
) -> list[dict[str, Any]]:
    """Return one JSON-ready record a group (docs/formats.md, Trace); -inf is null.

    Parameters
    ----------
    traced : Traced
        The final particles of the run: ``result.particles``.
    result : SMCResult
        With its history.
    settings : mapping, optional
        Of the sampler, as JSON values.
    draw : np.ndarray, optional
        (G,) index of the sample that was drawn.
    rewards : np.ndarray, optional
        (G, N) rewards of the samples, where the caller has them.
    judge : bool
        Else ask the particles' own verifier, where there is one.

    Raises
    ------
    ValueError
        If ``result`` is of another run or has no history, or a number is NaN.
    """
    if (
        not len(traced.levels) == len(result.log_increments) == result.n_steps
        or traced.shape != result.log_weights.shape
    ):
        raise ValueError(
            f"the trace has {len(traced.levels)} steps of {traced.shape} particles, the result {len(result.log_increments)} "
            f"of {result.log_weights.shape}: they are not of one run, or it kept no history"
        )
    found = judged(traced) if rewards is None and judge else rewards
    return [
        {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "run": 0,
            "sampler": dict(settings or {}),
            "n_particles": traced.shape[1],
            "pool_size": traced.levels[0].candidates.shape[1] // traced.shape[1] if traced.levels else 1,
            **group_record(traced, result, g),
            "draw": None if draw is None or result.log_weights[g].max() == -np.inf else int(draw[g]),
            "rewards": None if found is None else numbers(np.asarray(found[g], dtype=float)),
        }
        for g in range(traced.shape[0])
    ]


def group_record(traced: Traced, result: SMCResult[Any], g: int) -> dict[str, Any]:
    """Return the part of a group's record that its run decides."""
    tree = traced.tree
    root = tree.root_of(int(traced.at[g, 0]))
    ids = {root: 0}
    after = [*(level.parents for level in traced.levels[1:]), traced.at]
    steps = []
    for t in range(steps_taken(traced, g)):
        candidates, kept = traced.levels[t].candidates[g].tolist(), after[t][g].tolist()
        copies = Counter(kept)
        for i in candidates:
            ids.setdefault(i, len(ids))
        steps.append(
            {
                "nodes": [node(tree, i, ids, copies[i]) for i in dict.fromkeys(candidates)],
                "candidates": [ids[i] for i in candidates],
                "particles": [ids[i] for i in kept],
                "ancestors": result.ancestors[t, g].tolist(),
                "unique_ancestors": int(result.unique_ancestors[t, g]),
                "log_increments": numbers(result.log_increments[t, g]),
                "ess": float(result.ess[t, g]),
                "resampled": bool(result.resampled[t, g]),
            }
        )
    weights = result.log_weights[g]
    final = np.where(weights > -np.inf, traced.log_value()[g], -np.inf)
    return {
        "prompt": tree.text[root],
        "root": {"id": 0, "log_value": number(tree.log_value[root])},
        "steps": steps,
        "log_z": None if result.log_z is None else number(result.log_z[g]),
        "log_weights": numbers(weights),
        "argmax": int(final.argmax()) if final.max() > -np.inf else None,
    }


def steps_taken(traced: Traced, g: int) -> int:
    """Return how many steps group ``g`` took: after the last, while others go on, no prefix of it grows."""
    for t in reversed(range(len(traced.levels))):
        level = traced.levels[t]
        pool = level.candidates.shape[1] // level.parents.shape[1]
        if (level.candidates[g] != np.repeat(level.parents[g], pool)).any():
            return t + 1
    return 0


def node(tree: PrefixTree, i: int, ids: Mapping[int, int], copies: int) -> dict[str, Any]:
    """Return prefix ``i`` of the tree under its number in the record."""
    return {
        "id": ids[i],
        "parent": ids[tree.parent[i]],
        "text": tree.text[i],
        "log_value": number(tree.log_value[i]),
        "ended": tree.ended[i],
        "copies": copies,
    }


def judged(traced: Traced) -> np.ndarray | None:
    """Return the rewards of the samples, (G, N), each distinct one judged once; None without a verifier."""
    reward = getattr(getattr(traced.inner, "setup", None), "reward", None)
    if reward is None:
        return None
    tree, found = traced.tree, {}
    for row in traced.at.tolist():
        prompt = tree.text[tree.root_of(row[0])]
        for i in set(row):
            found[i] = float(reward(prompt, tree.path(i)))
    return np.asarray([[found[i] for i in row] for row in traced.at.tolist()])


def numbers(values: np.ndarray) -> list[float | None]:
    """Return values as JSON numbers, -inf as null; NaN and +inf raise ``ValueError``."""
    return [number(x) for x in values.tolist()]


def number(x: float) -> float | None:
    """Return a value as a JSON number, -inf as null; NaN and +inf raise ``ValueError``."""
    if not x < math.inf:
        raise ValueError(f"a figure of the trace is {x}")
    return float(x) if x > -math.inf else None
