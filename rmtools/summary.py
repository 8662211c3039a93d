"""Results in a few lines: a title with named figures, as text or as a table for notebooks.

>>> print(Summary("2 groups of 16 particles", {"ESS": "7.1 of 16", "log Z-hat": "-0.3 nats"}))
2 groups of 16 particles
ESS        7.1 of 16
log Z-hat  -0.3 nats
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass


def counted(n: int, thing: str) -> str:
    """Return how many of a thing there are, in the plural unless there is one."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


@dataclass(frozen=True)
class Summary:
    """A title and named figures, one per line."""

    title: str
    figures: Mapping[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.figures))
        return "\n".join([self.title, *(f"{name:<{width}}  {text}" for name, text in self.figures.items())])

    def html(self) -> str:
        """Return a table, its caption the title."""
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in self.figures.items()
        )
        return f"<table><caption>{html.escape(self.title)}</caption>{rows}</table>"
