"""Trace of a run of the sampler: every candidate with its text and value, which were kept, ESS and increments.

A `Tracer` observes the steps of a run and draws nothing, so a run gives the same samples with and without it. It makes a
`Trace` of each prompt; the file has one per line (docs/formats.md, Trace).

>>> import pathlib, tempfile
>>> file = pathlib.Path(tempfile.mkdtemp()) / "trace.jsonl"
>>> _ = file.write_text('{"kind": "trace", "schema_version": 1}')
>>> read_trace(file)  # doctest: +ELLIPSIS
Traceback (most recent call last):
...
rmtools.errors.UserError: ...trace.jsonl, line 1: it has schema version 1, this release reads 2; fix: ...
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.codec import from_json, to_json, unversioned
from rmtools.errors import UserError
from rmtools.files import parse_json
from rmtools.particles.protocol import SMCResult, Step

KIND = "trace"
SCHEMA_VERSION = 2
FIX = "trace the samples again with `rmtools sample`"
OTHER_VERSION = FIX + "; a trace of version 1 is read by rmtools 0.1.0"
# The value of a prefix depends on its batch by rounding errors. Other tokens of the same text differ by more.
SAME_VALUE = 4  # decimals, nats


@dataclass(frozen=True)
class Node:
    """A distinct prefix.

    Attributes
    ----------
    parent : int
        Number of the node one step before; -1 at the root, which is node 0.
    text : str
        The newest step; of the root, the prompt.
    log_value : float or None
        Nats; None is a value of zero.
    ended : bool
    """

    parent: int
    text: str
    log_value: float | None
    ended: bool


@dataclass(frozen=True)
class TracedStep:
    """One step of a run with N particles and M candidates each.

    Attributes
    ----------
    candidates : list of int
        N * M nodes; number i * M + m is candidate m of particle i before the step. An ended particle has itself.
    particles : list of int
        N nodes, after resampling and the choice of a candidate.
    ancestors : list of int
        The particle before the step that each particle continues.
    log_increments : list of float or None
        N, nats, in the order of the particles before the step (top_k: after it); None is -inf.
    ess : float
        Before resampling.
    resampled : bool
    """

    candidates: list[int]
    particles: list[int]
    ancestors: list[int]
    log_increments: list[float | None]
    ess: float
    resampled: bool


@dataclass(frozen=True)
class Trace:
    """What the sampler did in one run on one prompt.

    Attributes
    ----------
    prompt : str
    sampler : dict
        Settings, as JSON values.
    n_particles, pool_size : int
        N and M.
    nodes : list of Node
        In the order in which they were met.
    steps : list of TracedStep
    log_weights : list of float or None
        N normalised final weights, nats; None is -inf.
    log_z : float or None
        Nats; None for top_k, or where the estimate is zero.
    run : int
        Number of the run among those of its prompt.
    draw : int or None
        The final particle drawn; None where another run holds the draw, or there is none.
    rewards : list of float or None
        Of the N final particles; None without a verifier.
    provenance : dict
        ``run``, as in the records of the samples, and ``record``, the number of the prompt's record among them.
    """

    prompt: str
    sampler: dict[str, Any]
    n_particles: int
    pool_size: int
    nodes: list[Node]
    steps: list[TracedStep]
    log_weights: list[float | None]
    log_z: float | None
    run: int
    draw: int | None
    rewards: list[float] | None
    provenance: dict[str, Any] = field(default_factory=dict)

    def solutions(self) -> list[list[str]]:
        """Return the steps of the N final particles."""
        return [self.texts(i) for i in (self.steps[-1].particles if self.steps else [0] * self.n_particles)]

    def texts(self, node: int) -> list[str]:
        """Return the steps of a prefix."""
        found = []
        while node:
            found.append(self.nodes[node].text)
            node = self.nodes[node].parent
        return found[::-1]


class Tree:
    """The distinct prefixes of one prompt; it only grows, and runs from one root share it."""

    def __init__(self, prompt: str, log_value: float, ended: bool) -> None:
        self.nodes = [Node(-1, prompt, to_json(log_value), ended)]
        self.known: dict[tuple[int, str, float, bool], int] = {}

    def child(self, parent: int, text: str, log_value: float, ended: bool) -> int:
        """Return the node one step after ``parent``; that of ``parent`` if it has ended, for it emits nothing."""
        if self.nodes[parent].ended:
            return parent
        key = (parent, text, round(log_value, SAME_VALUE), ended)
        if key not in self.known:
            self.known[key] = len(self.nodes)
            self.nodes.append(Node(parent, text, to_json(log_value), ended))
        return self.known[key]


def trees_at(root: Any, prompts: Sequence[str]) -> list[Tree]:
    """Return the tree of each of the G ``prompts``, holding its root alone; ``root`` has shape (G, 1)."""
    values, ended = root.log_value()[:, 0].tolist(), root.ended[:, 0].tolist()
    return [Tree(*fields) for fields in zip(prompts, values, ended, strict=True)]


class Tracer:
    """Observe one run and keep every candidate.

    Parameters
    ----------
    trees : sequence of Tree
        One per group.
    """

    def __init__(self, trees: Sequence[Tree]) -> None:
        self.trees = trees
        self.at: np.ndarray | None = None  # (G, N) node of each particle; None: the roots
        self.steps: list[list[TracedStep]] = [[] for _ in trees]
        self.grown = [0] * len(trees)  # the last step in which a prefix of the group grew

    def __call__(self, step: Step[Any]) -> None:
        """Add the candidates of a step."""
        m = step.children.shape[1] // step.parents.shape[1]
        at = np.zeros(step.parents.shape, dtype=int) if self.at is None else self.at
        row, texts = newest_steps(step.children)
        parents = np.repeat(at, m, axis=1)
        columns = (parents, row.reshape(parents.shape), step.children.log_value(), step.children.ended)
        drawn = np.asarray(
            [
                [tree.child(p, texts[r], v, e) for p, r, v, e in zip(*of_group, strict=True)]
                for tree, *of_group in zip(self.trees, *(c.tolist() for c in columns), strict=True)
            ]
        )
        self.at = np.take_along_axis(drawn, step.index.astype(int), axis=1)
        for g, steps in enumerate(self.steps):
            steps.append(
                TracedStep(
                    candidates=drawn[g].tolist(),
                    particles=self.at[g].tolist(),
                    ancestors=(step.index[g] // m).tolist(),
                    log_increments=to_json(step.log_increment[g]),
                    ess=float(step.ess[g]),
                    resampled=bool(step.resampled[g]),
                )
            )
            if (drawn[g] != parents[g]).any():
                self.grown[g] = step.t

    def traces(self, result: SMCResult[Any], sampler: Mapping[str, Any]) -> list[Trace]:
        """Return the trace of every group of the run's result; draw and rewards are still open."""
        return [
            Trace(
                prompt=tree.nodes[0].text,
                sampler=dict(sampler),
                n_particles=result.log_weights.shape[1],
                pool_size=result.pool_size,
                nodes=tree.nodes,
                # After the last step of a group, while others continue, none of its prefixes grows.
                steps=steps[:grown],
                log_weights=to_json(result.log_weights[g]),
                log_z=None if result.log_z is None else to_json(result.log_z[g]),
                run=0,
                draw=None,
                rewards=None,
            )
            for g, (tree, steps, grown) in enumerate(zip(self.trees, self.steps, self.grown, strict=True))
        ]


def newest_steps(particles: Any) -> tuple[np.ndarray, list[str]]:
    """Return the texts of the newest steps and, (G * n,), which of them each prefix has; "" before the first step.

    The distinct prefixes of a language model in process are decoded once each.
    """
    if hasattr(particles, "blocks") and hasattr(particles, "node"):
        from rmtools.lm.particles import step_texts

        rows = np.arange(len(particles.values))
        steps = step_texts(particles.setup.policy, particles.blocks[-1:], rows)
        return particles.node.cpu().numpy(), [s[0] if s else "" for s in steps]
    texts = [s[-1] if s else "" for group in particles.steps() for s in group]
    return np.arange(len(texts)), texts


def trace_line(trace: Trace) -> dict[str, Any]:
    """Return a trace as the JSON values of a line of the file."""
    return {"schema_version": SCHEMA_VERSION, "kind": KIND, **to_json(trace)}


def read_trace(path: str | Path) -> list[Trace]:
    """Return the traces of a file (docs/formats.md, Trace), in order.

    Raises
    ------
    UserError
        If the file cannot be read or is empty, or a line is cut off, not JSON, not a trace, has another schema version or
        contradicts itself; names file and line.
    """
    found = [_parse(path, number, line) for number, line in _lines(path)]
    if not found:
        raise UserError(f"the trace {path} is empty", FIX)
    return found


def read_traced_prompt(path: str | Path, index: int) -> Trace:
    """Return trace ``index`` (from 0) of a file; the other lines are only counted.

    Raises
    ------
    UserError
        As `read_trace`, or if there is no such trace (says how many there are).
    """
    count = 0
    for number, line in _lines(path):
        if count == index:
            return _parse(path, number, line)
        count += 1
    if not count:
        raise UserError(f"the trace {path} is empty", FIX)
    raise UserError(
        f"there is no prompt {index} in {path}: it has {count}", f"choose one of 0 to {count - 1}"
    )


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    try:
        with Path(path).open(encoding="utf-8", newline="\n") as source:
            yield from ((number, line) for number, line in enumerate(source, 1) if line.strip())
    except OSError as error:
        raise UserError(f"the trace {path} cannot be read: {error.strerror or error}", FIX) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the trace {path} is not UTF-8 text: {error.reason}", FIX) from error


def _parse(path: str | Path, number: int, line: str) -> Trace:
    place = f"{path}, line {number}"
    try:
        values = parse_json(line)
    except ValueError as error:
        what = f"not valid JSON: {error}" if line.endswith("\n") else "the line is cut off"
        raise UserError(f"{place}: {what}", FIX) from error
    if not isinstance(values, dict) or values.pop("kind", None) != KIND:
        raise UserError(f'{place}: this is not a trace: there is no "kind": "trace"', FIX)
    trace = from_json(Trace, unversioned(values, f"{place}: it", SCHEMA_VERSION, OTHER_VERSION), place, FIX)
    problem = _contradiction(trace)
    if problem:
        raise UserError(f"{place}: {problem}", FIX)
    return trace


def _contradiction(trace: Trace) -> str:
    """Return what is wrong with the numbers of a trace, "" if nothing is."""
    n, m, nodes = trace.n_particles, trace.pool_size, trace.nodes
    if min(n, m) < 1:
        return "n_particles and pool_size must be at least 1"
    if not nodes or any(not 0 <= node.parent < i for i, node in enumerate(nodes) if i):
        return "a node has no parent before it"
    if len(trace.log_weights) != n or len(trace.rewards or trace.log_weights) != n:
        return f"log_weights and rewards must have {n} values"
    if np.isnan([*(trace.rewards or []), *(step.ess for step in trace.steps)]).any():
        return "ess and rewards must be numbers"
    if trace.draw is not None and not 0 <= trace.draw < n:
        return f"draw must be one of 0 to {n - 1}"
    before = [0] * n
    for t, step in enumerate(trace.steps, 1):
        per_particle = (step.particles, step.ancestors, step.log_increments)
        if len(step.candidates) != n * m or any(len(values) != n for values in per_particle):
            return f"step {t} must have {n * m} candidates, {n} particles, ancestors and log_increments"
        for i, node in enumerate(step.candidates):
            if not 0 <= node < len(nodes) or before[i // m] not in (node, nodes[node].parent):
                return f"step {t}: candidate {node} does not continue its particle"
        if not set(step.particles) <= set(step.candidates) or not set(step.ancestors) <= set(range(n)):
            return (
                f"step {t}: a particle is not one of the candidates, or an ancestor not one of the particles"
            )
        before = step.particles
    return ""
