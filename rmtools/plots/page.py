"""Sections as one self-contained HTML page (no script, no external request, readable on a telephone), or as Markdown.

>>> "&lt;b&gt;" in page("a <b> title", [Section("one", ("text",))])
True
"""

import base64
import html
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
class Lead:
    """The sentence that answers."""

    text: str
    kind: str = "lead"


@dataclass(frozen=True)
class Facts:
    """Lines of (what it is about, figure, remark, command to copy, which breaks only before a flag)."""

    rows: tuple[tuple[str, str, str, str], ...]
    kind: str = "facts"


Block = str | Lead | Facts | Table | Plot | Items


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; a text is a paragraph.

    If ``folded``, the heading opens it. The first section of a page may have no title: its plots then stand beside the rest.
    """

    title: str
    blocks: tuple[Block, ...]
    folded: bool = False

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


def html_table(table: Table) -> str:
    """Return a table by itself, as a notebook shows it."""
    rows = [("th", table.columns), *(("td", row) for row in table.rows)]
    lines = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in rows)
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{html.escape(table.caption)}</caption>{inside}</table>"


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the sections, without their plots, as Markdown."""
    parts = [f"## {escaped(title)}"]
    for section in sections:
        blocks = [text for b in section.blocks if not isinstance(b, Plot) if (text := _block_markdown(b))]
        if blocks and section.folded:
            head = f"<details><summary>{html.escape(section.title)}</summary>"
            parts += [head, *blocks, "</details>"]
        elif blocks:
            parts += [*([f"### {escaped(section.title)}"] if section.title else []), *blocks]
    return "\n\n".join(parts) + "\n"


def _block_markdown(block: str | Lead | Facts | Table | Items) -> str:
    if isinstance(block, str):
        return escaped(block)
    if isinstance(block, Lead):
        return f"**{escaped(block.text)}**"
    if isinstance(block, Facts):
        cells = (
            (label, figure, escaped(remark) + (f" `{command}`" if command else ""))
            for label, figure, remark, command in block.rows
        )
        facts = (f"| {escaped(label)} | {escaped(figure)} | {rest} |" for label, figure, rest in cells)
        return "\n".join(["| | | |", "| --- | --- | --- |", *facts])
    if isinstance(block, Items):
        return "\n".join(f"- {f'**{escaped(a)}**: ' if a else ''}{escaped(b)}" for a, b in block.entries)
    lines = [block.columns, tuple("---" for _ in block.columns), *block.rows]
    rows = (f"| {' | '.join(map(escaped, line))} |" for line in lines)
    return "\n".join([f"{escaped(block.caption)}\n", *rows])


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, also inside a table."""
    for mark in "\\|*_<>[]`":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
