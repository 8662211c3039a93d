"""One self-contained HTML page of sections: no script, no external request, readable on a telephone.

>>> "&lt;b&gt;" in page("a <b> title", [Section("one", ("text",))])
True
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Table:
    """A table: a caption, the names of the columns, and rows whose first cell names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    kind: str = "table"


@dataclass(frozen=True)
class Plot:
    """An SVG image with its caption and a text for those who cannot see it."""

    svg: str
    caption: str
    alternative: str
    kind: str = "plot"

    @property
    def source(self) -> str:
        """The image as a data address: ids within one image cannot meet those of another."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


@dataclass(frozen=True)
class Items:
    """A list; pairs (term, text), the term empty for a plain item."""

    entries: tuple[tuple[str, str], ...]
    kind: str = "items"


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; a text is a paragraph."""

    title: str
    blocks: tuple["str | Table | Plot | Items", ...]

    @property
    def plots(self) -> list[Plot]:
        """The plots, which stand side by side below the rest where there is room."""
        return [block for block in self.blocks if isinstance(block, Plot)]


@cache
def template() -> "Template":
    """Return the page's template; everything put into it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rmtools.plots", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def page(title: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    title : str
    sections : sequence of Section
        In the order of the page. All texts are escaped.
    """
    return template().render(title=title, sections=sections)
