"""The contract of `Scorer`: whole scoring equals incremental scoring, whatever else is in a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.data.rollouts import Rollout
from rmtools.lm.protocol import Scorer, TreeValues
from rmtools.lm.steps import EncodedTree
from rmtools.lm.tree_scoring import padded
from rmtools.testing.laws import require, require_close


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
    require(isinstance(scorer.name, str), f"name is text, got {scorer.name!r}")
    fine = isinstance(scorer.is_probability, bool)
    require(fine, f"is_probability is a bool, got {scorer.is_probability!r}")
    texts = [[[c.text for c in at] for at in r.children] for r in rollouts]
    encode = scorer.steps.encode
    trees = [encode(r.prompt, r.steps, c) for r, c in zip(rollouts, texts, strict=True)]
    done: list[int] = []
    values = scorer.score(trees, progress=done.append)
    require(sum(done) == len(trees), f"progress counts every tree once: {sum(done)} of {len(trees)}")
    require(len(values) == len(trees), f"score gives one value per tree: {len(values)} for {len(trees)}")
    for i, (tree, found) in enumerate(zip(trees, values, strict=True)):
        _check_tree(scorer, tree, found, i, tolerance)
    _check_context(scorer, rollouts, trees, values, tolerance)
    _Increments(scorer, trees, values, tolerance).check()


def _check_tree(scorer: Scorer, tree: EncodedTree, found: TreeValues, i: int, tolerance: float) -> None:
    """Check shapes and ranges of one trajectory's values."""
    shapes = [np.shape(found.log_value), *map(np.shape, found.children)]
    expected = [(len(tree.reads),), *((len(at),) for at in tree.child_reads)]
    law = f"values of rollout {i} have shapes {expected} (T + 1, then children), got {shapes}"
    require(shapes == expected, law)
    every = np.concatenate([found.log_value, *found.children])
    require((every < np.inf).all(), f"log values are numbers below inf: rollout {i} has {every}")
    if scorer.is_probability:
        low = scorer.tilt.log_potential(np.zeros(1)) - tolerance
        fine = ((every >= low) & (every <= tolerance)).all()
        require(fine, f"V is in [floor, 1]: rollout {i} has log values {every}")


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
        require_close(found.log_value, trunk.log_value, tolerance, law)
        (alone,) = scorer.score([tree])
        require_close(found.log_value, alone.log_value, tolerance, law)
        for at, same in zip(found.children, alone.children, strict=True):
            require_close(at, same, tolerance, law)
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
        require_close(values[i].children[t][k], alone.log_value[-1], tolerance, law)


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
        require(found.shape == (len(parts),), f"start gives (B,) values, got {tuple(found.shape)}")
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
            require(kept.all(), f"a row without a token gets NaN or its value as it was: step {t}")
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
        require_close(found.double().cpu().numpy(), expected, self.tolerance, law)
