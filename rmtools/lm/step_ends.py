r"""Where a step ends, decided on text: with the first token after which the step's text holds a complete match.

The rest of that token belongs to the step. A match before which the step is blank does not count if the delimiter is white
space: blank lines are no steps, and begin the next one.

>>> end = StepEnd("\n")
>>> [end.held_by(text) for text in ("a", "a\n", "a\n\n", "\n", "\na\n")]
[False, True, True, False, True]
>>> end.split("\na\n\nb")
['\na\n\n', 'b']
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SENTENCE = re.compile(r"[.!?]\s")


@dataclass(frozen=True)
class TokenEnds:
    """What each token of a vocabulary says of the end of a step, (V,) bool each.

    Attributes
    ----------
    closes : np.ndarray
        Its own text holds a match.
    closes_begun : np.ndarray
        It holds a match with nothing but blanks before it: it closes a step that has begun.
    begins : np.ndarray
        It has text that is not blank.
    opens, completes : np.ndarray
        A match may begin in it and be completed by later tokens, or have begun before it. The whole text decides.
    """

    closes: np.ndarray
    closes_begun: np.ndarray
    begins: np.ndarray
    opens: np.ndarray
    completes: np.ndarray


@dataclass(frozen=True)
class StepEnd:
    r"""The rule that closes a step.

    Parameters
    ----------
    delimiter : str
        Its text; of no meaning for the other kinds.
    kind : {"delimiter", "sentence", "tokens"}
        The delimiter; ``[.!?]`` and white space; or nothing but the length limit.
    """

    delimiter: str
    kind: str = "delimiter"

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if self.kind == "tokens":
            return None
        return SENTENCE if self.kind == "sentence" else re.compile(re.escape(self.delimiter))

    @property
    def _skips_blanks(self) -> bool:
        return self.kind == "delimiter" and self.delimiter.isspace()

    def first(self, text: str, start: int = 0) -> int:
        """Return where the first match in ``text[start:]`` ends, -1 without one."""
        if self._pattern is None:
            return -1
        for match in self._pattern.finditer(text, start):
            if not self._skips_blanks or text[start : match.start()].strip():
                return match.end()
        return -1

    def held_by(self, text: str) -> bool:
        """Return whether the text of a step is complete."""
        return self.first(text) >= 0

    def split(self, text: str) -> list[str]:
        """Cut the text of a solution into steps; joined again they are ``text``.

        Blank lines stay with the step before them; a rest without a match is the last step.
        """
        steps: list[str] = []
        start = 0
        while start < len(text):
            end = self.first(text, start)
            if end < 0:
                end = len(text)
            elif self._skips_blanks:
                blank = text[end:][: len(text[end:]) - len(text[end:].lstrip())]
                end += blank.rfind(self.delimiter) + len(self.delimiter) if self.delimiter in blank else 0
            steps.append(text[start:end])
            start = end
        return steps

    def tokens(self, texts: Sequence[str]) -> TokenEnds:
        """Return what tokens with these ``texts`` say of the end of a step."""
        closes = [self.held_by(t) for t in texts]
        # Behind text that is no blank, a match that was only begun would complete: "x" stands for it.
        begun = [not c and self.held_by("x" + t) for c, t in zip(closes, texts, strict=True)]
        opens, completes = self._partial(texts)
        kinds = (closes, begun, [bool(t.strip()) for t in texts], opens, completes)
        return TokenEnds(*(np.asarray(k, dtype=bool) for k in kinds))

    def _partial(self, texts: Sequence[str]) -> tuple[list[bool], list[bool]]:
        if self.kind == "sentence":
            return [t[-1:] in (".", "!", "?") and bool(t) for t in texts], [t[:1].isspace() for t in texts]
        return partial_matches("" if self._pattern is None else self.delimiter, texts)


# Tokens of a character that has begun before a stop text: the bytes of one but the first.
WITHIN = 3


@dataclass(frozen=True)
class StopTexts:
    """Texts that end a solution, with the first token after which its text holds one.

    >>> StopTexts(("END", "Q:")).n_tokens
    6
    """

    texts: tuple[str, ...]

    @cached_property
    def n_tokens(self) -> int:
        """Number of tokens behind which no stop text reaches back from the last one: 1 without stop texts."""
        # Every token has a byte at least.
        return max((len(text.encode()) for text in self.texts), default=1 - WITHIN) + WITHIN

    def held_by(self, text: str) -> bool:
        """Return whether a text holds one of them."""
        return any(stop in text for stop in self.texts)

    def first(self, text: str) -> int:
        """Return where the first one in a text is complete, -1 without one."""
        return min((text.find(stop) + len(stop) for stop in self.texts if stop in text), default=-1)

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which tokens with these ``texts`` hold one, may open one, and may complete one, (V,) bool each."""
        out = np.zeros((3, len(texts)), dtype=bool)
        for stop in self.texts:
            out |= np.asarray([[stop in t for t in texts], *partial_matches(stop, texts)])
        return out[0], out[1], out[2]


def partial_matches(wanted: str, texts: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """Return for each of ``texts`` whether ``wanted`` may begin in it to go on behind it, and whether it may complete it.

    A token that is a part of a character has a replacement character as its text; it may belong to any that is not ASCII.
    """
    heads = tuple(wanted[:k] for k in range(1, len(wanted)))
    tails = tuple(wanted[k:] for k in range(1, len(wanted)))
    partial = not wanted.isascii()
    inner = [bool(t) and (t in wanted[1:-1] or (partial and "\ufffd" in t)) for t in texts]
    opens = [t.endswith(heads) or i for t, i in zip(texts, inner, strict=True)]
    completes = [t.startswith(tails) or (partial and "\ufffd" in t) for t in texts]
    return opens, completes
