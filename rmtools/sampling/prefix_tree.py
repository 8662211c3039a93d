"""The distinct prefixes of a run, each met once: what a trace is written from.

>>> tree = PrefixTree()
>>> root = tree.root("1 + 1 = ?", 0.0, False)
>>> two = [tree.child(root, "2", -0.5, True) for _ in range(3)]
>>> two, tree.path(two[0]), tree.child(two[0], "", -0.5, True)
([1, 1, 1], ['2'], 1)
"""

import math

# Batches of another composition give the same prefix values that differ by rounding; other tokens of the same text differ by
# more, and are prefixes of their own.
SAME_VALUE = 4  # decimals, nats


class PrefixTree:
    """The distinct prefixes that particles have been at, numbered as they are met; it only grows.

    Attributes
    ----------
    parent : list of int
        -1 at the roots.
    text : list of str
        Newest step of each prefix; of a root, the prompt.
    log_value : list of float
        Nats.
    ended : list of bool
    """

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.text: list[str] = []
        self.log_value: list[float] = []
        self.ended: list[bool] = []
        self._known: dict[tuple[int, str, bool, float], int] = {}

    def root(self, prompt: str, log_value: float, ended: bool) -> int:
        """Add a root and return its number; two groups never share one."""
        return self._add(-1, prompt, log_value, ended)

    def child(self, parent: int, text: str, log_value: float, ended: bool) -> int:
        """Return the number of the prefix one step on; that of ``parent`` where it has ended, for it emits nothing.

        Raises
        ------
        ValueError
            If ``log_value`` (nats) is NaN.
        """
        if self.ended[parent]:
            return parent
        if math.isnan(log_value):
            raise ValueError(
                f"the log value of the step {text!r} is NaN: a value must be finite, or -inf for zero"
            )
        key = (parent, text, ended, round(log_value, SAME_VALUE))
        if key not in self._known:
            self._known[key] = self._add(parent, text, log_value, ended)
        return self._known[key]

    def path(self, number: int) -> list[str]:
        """Return the steps of a prefix, without the prompt."""
        steps = []
        while self.parent[number] >= 0:
            steps.append(self.text[number])
            number = self.parent[number]
        return steps[::-1]

    def adopt(self, other: "PrefixTree", number: int, root: int) -> int:
        """Return our number of a prefix of another tree, below our ``root``."""
        below = []
        while other.parent[number] >= 0:
            below.append(number)
            number = other.parent[number]
        for i in reversed(below):
            root = self.child(root, other.text[i], other.log_value[i], other.ended[i])
        return root

    def root_of(self, number: int) -> int:
        """Return the root that a prefix grew from."""
        while self.parent[number] >= 0:
            number = self.parent[number]
        return number

    def _add(self, parent: int, text: str, log_value: float, ended: bool) -> int:
        self.parent.append(parent)
        self.text.append(text)
        self.log_value.append(log_value)
        self.ended.append(ended)
        return len(self.parent) - 1
