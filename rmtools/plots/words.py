r"""Text of unknown origin in a picture: only characters that the font has, cut to the room there is.

>>> from rmtools.plots.words import plain
>>> plain("  so x = $2^3$\n\n and \u6570 ")
'so x = $2^3$ ⏎ and □'
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

MISSING = "□"
MORE = "…"
LONGEST = 600  # characters; no line of a picture has room for as many


def plain(text: str) -> str:
    """Return ``text`` on one line, with a box for each character that the font cannot draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    lines = (" ".join(line.split()) for line in text.splitlines())
    flat = " ⏎ ".join(line for line in lines if line)[:LONGEST]
    font = get_font(findfont(FontProperties()))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else MISSING for c in flat)


def width(text: str, font: "FontProperties") -> float:
    """Return the width of a text in points."""
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


def fitted(text: str, room: float, font: "FontProperties") -> str:
    """Return the plain ``text``, its end cut off where it is wider than ``room`` points; "" where nothing fits."""
    text = plain(text)
    if not text or width(text, font) <= room:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if width(text[:middle].rstrip() + MORE, font) <= room:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + MORE if low else ""
