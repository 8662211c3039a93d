"""Where the prefixes of a traced run are drawn: which of them, in what order, at what height.

Each step is a column. In a column prefixes stand in the order of their parents in the column before, so that no two
branches cross whatever the heights are; the heights then keep lineages as straight as the spacing allows.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_DRAWN = 48  # prefixes a step
MOST_LABELLED = 24
# A row holds a line of text; a prefix without one needs this share of it.
SMALL = 0.45
ROUNDS = 12


@dataclass(eq=False)
class Spot:
    """A prefix at one step; one that has ended is there at every later step too.

    Attributes
    ----------
    number, step : int
        Its node in the trace, and t.
    node
        With ``text``, ``log_value`` (None: a value of zero) and ``ended``.
    copies : int
        Particles at it after the step.
    waits : bool
        Whether it had ended before this step.
    heirs : int
        Final particles that descend from it.
    drawn : bool
        Whether the drawn sample does.
    y : float
        Height in rows, downward.
    """

    number: int
    step: int
    node: Any
    copies: int
    parent: "Spot | None" = None
    waits: bool = False
    heirs: int = 0
    drawn: bool = False
    labelled: bool = True
    y: float = 0.0
    children: "list[Spot]" = field(default_factory=list)

    @property
    def height(self) -> float:
        """Rows it needs."""
        return 1.0 if self.labelled else SMALL

    @property
    def rank(self) -> tuple[bool, int, int, float, int]:
        """Order in which prefixes are chosen: the drawn sample, then the largest lineages."""
        value = -np.inf if self.node.log_value is None else self.node.log_value
        return not self.drawn, -self.heirs, -self.copies, -value, self.number


def grow(trace: Any) -> list[list[Spot]]:
    """Return the prefixes of a trace by step, the root first, each with its parent, its heirs, and who was drawn."""
    layers = [[Spot(0, 0, trace.nodes[0], trace.n_particles)]]
    for t, step in enumerate(trace.steps, 1):
        before = {spot.number: spot for spot in layers[-1] if spot.copies}
        copies = Counter(step.particles)
        layers.append([])
        for number in dict.fromkeys(step.candidates):
            node, waits = trace.nodes[number], number in before
            parent = before[number if waits else node.parent]
            layers[-1].append(Spot(number, t, node, copies[number], parent, waits))
    drawn = None if trace.draw is None or not trace.steps else trace.steps[-1].particles[trace.draw]
    for spot in layers[-1]:
        spot.heirs, spot.drawn = spot.copies, spot.number == drawn
    for spot in (spot for layer in reversed(layers[1:]) for spot in layer):
        assert spot.parent is not None  # only the root has none
        spot.parent.heirs += spot.heirs
        spot.parent.drawn |= spot.drawn
    return layers


def choose(layers: Sequence[Sequence[Spot]]) -> list[list[Spot]]:
    """Return the largest lineages of every step, in an order in which no branches cross; only the first have a label."""
    chosen = [list(layers[0])]
    for layer in layers[1:]:
        kept = sorted((s for s in layer if s.parent in chosen[-1]), key=lambda s: s.rank)[:MOST_DRAWN]
        for i, spot in enumerate(kept):
            spot.labelled = i < MOST_LABELLED and not spot.waits
            if spot.parent is not None:
                spot.parent.children.append(spot)
        for parent in chosen[-1]:
            # Ordered by size so far. The largest goes to the middle, or the lineages would drift to one side.
            parent.children = parent.children[1::2][::-1] + parent.children[::2]
        chosen.append([s for parent in chosen[-1] for s in parent.children])
    return chosen


def place(layers: Sequence[Sequence[Spot]]) -> None:
    """Set the heights: columns keep their order and spacing, parents and children come as close as that allows."""
    for layer in layers:
        _settle(layer, lambda spot: 0.0)
    for _ in range(ROUNDS):
        for layer in reversed(layers[:-1]):
            _settle(layer, _beside_heirs)
        for layer in layers[1:]:
            _settle(layer, lambda spot: spot.parent.y if spot.parent else spot.y)


def _beside_heirs(spot: Spot) -> float:
    """Return the mean height of the children, weighted by heirs; its own height without any."""
    total = sum(c.heirs for c in spot.children)
    return sum(c.heirs * c.y for c in spot.children) / total if total else spot.y


def _settle(layer: Sequence[Spot], wish: Callable[[Spot], float]) -> None:
    """Put a column's prefixes as near to the heights they wish for as order and spacing allow, in least squares."""
    from scipy.optimize import isotonic_regression

    height = np.asarray([s.height for s in layer])
    # Measured from the least height each may have, spacing becomes order: an isotonic regression.
    least = np.concatenate([[0.0], np.cumsum((height[1:] + height[:-1]) / 2)])
    least -= least.mean()
    wishes = np.asarray([wish(s) for s in layer]) - least
    weight = np.asarray([1.0 + 9.0 * bool(s.heirs) + 20.0 * s.drawn for s in layer])
    found = isotonic_regression(wishes, weights=weight).x + least
    for spot, y in zip(layer, found.tolist(), strict=True):
        spot.y = y
