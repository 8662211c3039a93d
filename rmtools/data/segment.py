r"""Cutting a whole solution into steps: verbatim pieces that concatenate to the text.

>>> segment("First.\n\nThen 2.\n\n\n", "blank-line")
['First.\n\n', 'Then 2.\n\n\n']
>>> segment("Step 1: a Step 2: b", r"regex:(?=Step \d+:)")
['Step 1: a ', 'Step 2: b']
"""

import re

from rmtools.errors import UserError

PATTERNS = {"newline": r"\n", "blank-line": r"\n(?:[^\S\n]*\n)+"}
"""Named patterns that close a step."""


def pattern(how: str) -> re.Pattern[str]:
    """Return the pattern that closes a step under ``how``.

    Parameters
    ----------
    how : str
        ``newline``, ``blank-line``, ``regex:PATTERN`` (a step ends where a match ends; a match may be of width zero), or
        any other text: the delimiter itself.

    Raises
    ------
    UserError
        If it is empty, or the pattern is not a regular expression.
    """
    expression = how.removeprefix("regex:") if how.startswith("regex:") else PATTERNS.get(how, re.escape(how))
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise UserError(
            f"the segmentation {how!r} is not a regular expression: {error}", "see Python's re for the syntax"
        ) from error
    if not expression:
        raise UserError(
            "the segmentation is empty", "pass newline, blank-line, regex:PATTERN or the delimiter's text"
        )
    return compiled


def segment(text: str, how: str) -> list[str]:
    r"""Cut ``text`` into steps; joined again they are ``text``.

    A piece of white space alone stays with the step before it or, at the start, with the step after it. A text of white
    space alone is returned as one piece.

    >>> segment("\n\na\n\n\nb", "newline")
    ['\n\na\n\n\n', 'b']

    Raises
    ------
    UserError
        As `pattern`.
    """
    ends = [m.end() for m in pattern(how).finditer(text)]
    steps: list[str] = []
    start = 0
    for end in [*ends, len(text)]:
        piece = text[start:end]
        # An opening piece without a step in it is left to the piece after it.
        if piece and steps and not piece.strip():
            steps[-1] += piece
        elif piece.strip():
            steps.append(piece)
        else:
            continue
        start = end
    return steps or ([text] if text else [])
