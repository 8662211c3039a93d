"""Cutting solutions into steps: the pieces are the text, and none is blank."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtools.data.segment import segment
from rmtools.errors import UserError

HOW = ["newline", "blank-line", "\n", " ", "ки", r"regex:(?=Step \d)", r"regex:\.\s*", "regex:x*", "regex:$"]
TEXTS = st.lists(
    st.sampled_from(["a", "Step 1: ", "\n", "\n\n", " ", "\t", "ки", ".", "x", "\r\n", "\u2028", ""]),
    max_size=12,
).map("".join)


@given(TEXTS | st.text(max_size=40), st.sampled_from(HOW))
def test_the_pieces_are_the_text(text, how):
    pieces = segment(text, how)
    assert "".join(pieces) == text
    assert all(pieces)
    if text.strip():
        assert all(p.strip() for p in pieces)


@given(TEXTS, st.sampled_from(["newline", "blank-line"]))
def test_cutting_again_changes_nothing(text, how):
    for piece in segment(text, how)[1:]:
        assert segment(piece, how) == [piece]


@pytest.mark.parametrize(
    ("text", "how", "pieces"),
    [
        ("a\nb\nc", "newline", ["a\n", "b\n", "c"]),
        ("a\nb\n\nc\n", "blank-line", ["a\nb\n\n", "c\n"]),
        ("a\n \n\t\n\n  b", "blank-line", ["a\n \n\t\n\n", "  b"]),
        ("a\r\n\r\nb", "blank-line", ["a\r\n\r\n", "b"]),
        ("\n\na\n", "newline", ["\n\na\n"]),
        ("a ки b ки", " ки", ["a ки", " b ки"]),
        ("a.b", ".", ["a.", "b"]),
        ("Q Step 1: a Step 2: b", r"regex:(?=Step 2:)", ["Q Step 1: a ", "Step 2: b"]),
        ("48/2 = <<48/2=24>>24\n#### 24", "newline", ["48/2 = <<48/2=24>>24\n", "#### 24"]),
        ("", "newline", []),
        ("\n \n", "newline", ["\n \n"]),
    ],
)
def test_examples(text, how, pieces):
    assert segment(text, how) == pieces


@pytest.mark.parametrize(
    ("how", "word"), [("regex:(", "not a regular expression"), ("", "empty"), ("regex:", "empty")]
)
def test_what_cannot_cut(how, word):
    with pytest.raises(UserError, match=word):
        segment("a", how)
