r"""The final answer of a written solution, and numbers as people write them.

A line ``#### 72`` ends a solution: what is behind it (a new question, say) does not count, unless it is another such line.
The last ``\boxed{72}`` or ``#### 72`` counts, and a last box that is cut off is no answer; without one the last line
``A: 72``, ``The answer is 72`` or ``Answer: 72``; without any mark the last number. Calculator notes (``<<48/2=24>>``) and
a closing end-of-sequence token ``<…>`` are ignored (of others, policies' texts are free). The text is never evaluated.

>>> final_answer("Half of 48 is <<48/2=24>>24\nA: $1,024<eos>"), final_answer(r"so \boxed{\frac{1}{2}}.")
('$1,024', '\\frac{1}{2}')
>>> number("$1,024.50 dollars"), number("2x")
(Number(value=Fraction(2049, 2), percent=False), None)
"""

import re
from fractions import Fraction
from typing import NamedTuple

CALCULATOR = re.compile(r"<<[^<>\n]*>>")
END_OF_SEQUENCE = re.compile(r"(?:<[^<>\s]{1,40}>\s*)+\Z")
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"[{}]")
HASHES = re.compile(r"####")
CLOSING = re.compile(r"^[ \t]*####[ \t]*(?=\S)(?P<answer>[^\n]*)(?:\n\s*####[ \t]*[^\n]*)*", re.MULTILINE)
WORDS = re.compile(r"^[ \t]*\**A:|(?i:\banswer)\s*(?:is|:|=)", re.MULTILINE)
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
OVER = r"(?:/0*[1-9]\d*)?"
ANY_NUMBER = re.compile(rf"(?<![\w)])[-−]?[$€£]?(?:{DIGITS}){OVER}")
# Units are whole words of two letters or more: in `2 x` and `2pi` the letters are part of the answer.
WHOLE_NUMBER = re.compile(
    rf"(?P<sign>[-−+]?[$€£]?[-−]?)(?P<digits>{DIGITS})(?P<over>{OVER})\.?\s*(?P<percent>%|per ?cent\b)?"
    r"(?:(?<=[\s%])(?P<unit>[A-Za-z]{2,}(?:[ /][A-Za-z]+)*))?[.!]?"
)
# Words that change the number before them.
SCALES = re.compile(r"\b(?:pi|sqrt|half|halves|dozen|hundred|thousand|[mbtr]+illion)\b", re.IGNORECASE)
JOINS = re.compile(r"\b(?:or|and|to|mod|times|plus|minus|over)\b", re.IGNORECASE)
# What stands before the last `=` of `5 + 3 = 8`: no letters, so no unknown is being named.
COMPUTED = re.compile(r"[^A-Za-z\\<>≤≥!]*=")
TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}")
SENTENCE = re.compile(r"(?<!\S)[A-Za-z]{3,}(?![^\s,;])")
# Longer texts are no answers, and only the last marks are read, so that no text takes long.
LONGEST = 1000
LAST_MARKS = 20


class Number(NamedTuple):
    """An exact number; ``percent`` if it was written with a percent sign, which is not divided out."""

    value: Fraction
    percent: bool


def final_answer(text: str) -> str:
    """Return the final answer of a solution as it is written; empty if there is none."""
    text = visible(text)
    marked = marked_answer(text)
    if marked is not None:
        return marked
    if _cut_off(text):
        return ""
    numbers = ANY_NUMBER.findall(text)
    return numbers[-1] if numbers else ""


def marked_answer(text: str) -> str | None:
    """Return the answer behind the last mark, or None if there is no mark, or the last one is a box that is cut off."""
    text = _up_to_answer(text)
    if _cut_off(text):
        return None
    boxed = [(m.end(), True) for m in BOXED.finditer(text)]
    hashes = [(m.end(), False) for m in HASHES.finditer(text)]
    words = [(m.end(), False) for m in WORDS.finditer(text)]
    for end, braces in (*_latest(boxed + hashes), *_latest(words)):
        found = _in_braces(text, end) if braces else _stated(text[end : end + LONGEST])
        if found:
            return found
    return None


def _up_to_answer(text: str) -> str:
    """Return the text up to the end of its first line ``#### number``, and of further such lines right behind it."""
    ends = (m.end() for m in CLOSING.finditer(text) if number(m["answer"].strip(" *_`$")) is not None)
    end = next(ends, None)
    return text[:end]


def _cut_off(text: str) -> bool:
    """Return whether the text ends within a box, behind which there is no other mark."""
    last = max((m.end() for m in BOXED.finditer(text)), default=None)
    if last is None or HASHES.search(text, last) or WORDS.search(text, last):
        return False
    return _brace(text, last) is None


def _latest(marks: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """Return the last ``LAST_MARKS`` marks, latest first."""
    return sorted(marks)[: -LAST_MARKS - 1 : -1]


def visible(text: str) -> str:
    """Return ``text`` without calculator notes and a closing end-of-sequence token."""
    text = CALCULATOR.sub("", text)
    return text[:-100] + END_OF_SEQUENCE.sub("", text[-100:])


def _in_braces(text: str, start: int) -> str:
    """Return the text from ``start`` up to the closing brace; empty without one."""
    end = _brace(text, start)
    return "" if end is None or end - start >= LONGEST else text[start:end].strip()


def _brace(text: str, start: int) -> int | None:
    """Return where the brace that is open at ``start`` closes, None if it does not."""
    depth = 1
    for found in BRACE.finditer(text, start):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.start()
    return None


def _stated(text: str) -> str:
    """Return the answer at the beginning of the text after a mark: its line, or the number if that is a sentence."""
    line = text.strip(" \t\n:*_`").split("\n")[0]
    line = re.split(r"\.\s", line)[0].strip(" \t*_`").rstrip(" *_`.")
    if number(line) is not None or "\\" in line or SCALES.search(line) or not SENTENCE.search(line):
        return line
    numbers = ANY_NUMBER.findall(line.rsplit("=", 1)[-1])
    return numbers[0] if numbers else line


def number(answer: str) -> Number | None:
    r"""Return an answer's exact value if it is one number, whatever its currency, separators and units.

    >>> number(r"5 + 3 = \$8"), number("20%").percent, number("3/4").value, number("9**9")
    (Number(value=Fraction(8, 1), percent=False), True, Fraction(3, 4), None)
    """
    if len(answer) > LONGEST:
        return None
    plain = TEXT.sub(r"\1", answer.replace("{,}", ",").strip())
    plain = re.sub(r"\\[,!;]|\\(?=[$%])", "", plain)
    if plain.count("$") == 2 and plain[0] == plain[-1] == "$":
        plain = plain[1:-1]
    if computed := COMPUTED.match(plain):
        plain = plain[computed.end() :].strip()
    found = WHOLE_NUMBER.fullmatch(plain)
    if found is None or any(words.search(found["unit"] or "") for words in (SCALES, JOINS)):
        return None
    value = Fraction(found["digits"].replace(",", "")) / Fraction(found["over"][1:] or 1)
    negative = not {"-", "−"}.isdisjoint(found["sign"])
    return Number(-value if negative else value, found["percent"] is not None)
