"""Where the prefixes of a traced run are drawn: which of them, in what order, at what height.

Each step is a column. In a column prefixes stand in the order of their parents in the column before, so that no two
branches cross whatever the heights are; the heights then keep lineages as straight as the spacing allows.

>>> layer = [Spot(1, 0, 3, 0.0, False, "a"), Spot(2, 0, 1, 0.0, False, "b")]
>>> place([[Spot(0, 0, 4, 0.0, False, "")], layer])
>>> [round(s.y, 6) for s in layer][1] - layer[0].y
1.0
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rmtools.plots.drawing import Values

MOST_DRAWN = 48  # prefixes a step
MOST_LABELLED = 24
# A row holds a line of text; a prefix without one needs this share of it.
SMALL = 0.45
SWEEPS = 12


@dataclass(eq=False)
class Spot:
    """A prefix at one step; one that has ended is there at every later step too.

    Attributes
    ----------
    number, step : int
        Its id in the record, and t.
    copies : int
        Particles at it after the step.
    log_value : float or None
        Nats; None is a value of zero.
    heirs : int
        Final particles that descend from it.
    drawn : bool
        Whether the drawn sample does.
    waits : bool
        Whether it had ended before this step.
    y : float
        Height in rows, downward.
    """

    number: int
    step: int
    copies: int
    log_value: float | None
    ended: bool
    text: str
    parent: "Spot | None" = None
    heirs: int = 0
    drawn: bool = False
    waits: bool = False
    labelled: bool = True
    y: float = 0.0
    children: "list[Spot]" = field(default_factory=list)

    @property
    def height(self) -> float:
        """Rows it needs."""
        return 1.0 if self.labelled else SMALL

    @property
    def rank(self) -> tuple[bool, int, int, float, int]:
        """What is drawn first where not all fits: the drawn sample, then the largest lineages."""
        value = -np.inf if self.log_value is None else self.log_value
        return not self.drawn, -self.heirs, -self.copies, -value, self.number


def grow(record: Values) -> list[list[Spot]]:
    """Return the prefixes of a trace record by step, the root first, each knowing its parent and its heirs."""
    n = record["n_particles"]
    root = Spot(0, 0, n, record["root"]["log_value"], False, record["prompt"])
    layers = [[root]]
    for t, step in enumerate(record["steps"], 1):
        before = {spot.number: spot for spot in layers[-1] if spot.copies}
        layers.append([])
        for node in step["nodes"]:
            waits = node["id"] in before
            parent = before[node["id"] if waits else node["parent"]]
            fields = (node["id"], t, node["copies"], node["log_value"], node["ended"], node["text"])
            layers[-1].append(Spot(*fields, parent=parent, waits=waits))
    for spot in layers[-1]:
        spot.heirs = spot.copies
    for layer in reversed(layers[1:]):
        for spot in layer:
            if spot.parent is not None:
                spot.parent.heirs += spot.heirs
    follow(layers, record)
    return layers


def follow(layers: Sequence[Sequence[Spot]], record: Values) -> None:
    """Mark the lineage of the drawn sample, where there is one."""
    if record["draw"] is None or not record["steps"]:
        return
    number = record["steps"][-1]["particles"][record["draw"]]
    spot: Spot | None = next(s for s in layers[-1] if s.number == number)
    while spot is not None:
        spot.drawn = True
        spot = spot.parent


def choose(
    layers: Sequence[Sequence[Spot]], most: int = MOST_DRAWN, labels: int = MOST_LABELLED
) -> list[list[Spot]]:
    """Return at most ``most`` prefixes a step, the largest lineages, in an order in which no branches cross.

    The first ``labels`` of each step by size are labelled; so is none that has ended before.
    """
    chosen = [list(layers[0])]
    for layer in layers[1:]:
        kept = sorted((s for s in layer if s.parent in chosen[-1]), key=lambda s: s.rank)[:most]
        for i, spot in enumerate(kept):
            spot.labelled = i < labels and not spot.waits
            if spot.parent is not None:
                spot.parent.children.append(spot)
        for parent in chosen[-1]:
            # They are there by size. The largest goes to the middle, or the lineages would drift to one side.
            parent.children = parent.children[1::2][::-1] + parent.children[::2]
        chosen.append([s for parent in chosen[-1] for s in parent.children])
    return chosen


def place(layers: Sequence[Sequence[Spot]]) -> None:
    """Set the heights: columns keep their order and spacing, parents and children come as close as that allows."""
    for layer in layers:
        settle(layer, lambda spot: 0.0)
    for _ in range(SWEEPS):
        for layer in reversed(layers[:-1]):
            settle(layer, beside_heirs)
        for layer in layers[1:]:
            settle(layer, beside_parent)


def beside_parent(spot: Spot) -> float:
    """Return the height of the parent."""
    return spot.y if spot.parent is None else spot.parent.y


def beside_heirs(spot: Spot) -> float:
    """Return the mean height of the children, by heirs; its own where it has none."""
    total = sum(c.heirs for c in spot.children)
    return sum(c.heirs * c.y for c in spot.children) / total if total else spot.y


def settle(layer: Sequence[Spot], wish: Callable[[Spot], float]) -> None:
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
