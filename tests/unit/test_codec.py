"""Dataclasses as JSON by type: what is written is read back, and what does not fit is named by its place."""

import json
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from rmtools.codec import from_json, load_json, save_json, to_json
from rmtools.errors import UserError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    x: float
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...]
    by_name: dict[str, Inner]
    pair: tuple[int, str]
    colour: Colour
    mode: Literal["a", "b"]
    path: Path
    maybe: float | None
    either: int | str
    anything: dict[str, Any] = field(default_factory=dict)
    derived: int = field(default=7, metadata={"saved": False})


OUTER = Outer(
    Inner(1.5),
    (Inner(2.0, "b"), Inner(3.0)),
    {"k": Inner(4.0)},
    (1, "one"),
    Colour.BLUE,
    "b",
    Path("a/b"),
    None,
    "text",
    {"free": [1, {"deep": None}]},
)


def test_round_trip():
    values = json.loads(json.dumps(to_json(OUTER), allow_nan=False))
    assert "derived" not in values
    assert from_json(Outer, values) == OUTER


def test_arrays_and_numpy_numbers():
    @dataclass(frozen=True)
    class Figures:
        values: np.ndarray
        n: int

    written = to_json(Figures(np.array([[1.0, np.nan], [np.inf, 2.0]]), np.int64(3)))
    assert written == {"values": [[1.0, None], [None, 2.0]], "n": 3}
    read = from_json(Figures, written)
    np.testing.assert_array_equal(read.values, [[1.0, np.nan], [np.nan, 2.0]])


def test_null_is_nan_for_a_float_and_none_for_an_optional_one():
    assert to_json(Inner(math.inf)) == {"x": None, "name": None}
    assert math.isnan(from_json(Inner, {"x": None}).x)
    assert from_json(float | None, None) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"inner": {"x": "1"}}, r"inner\.x must be a number, got '1'"),
        ({"inner": {"x": True}}, r"inner\.x must be a number, got True"),
        ({"inner": {"x": float("nan")}}, r"inner\.x must be a number, got nan"),
        ({"inner": {}}, "inner lacks x"),
        ({"inner": {"x": 1, "y": 2}}, "inner has unknown fields: y; it has x, name"),
        ({"inner": [1]}, r"inner must be a mapping, got \[1\]"),
        ({"inner": {"x": 1, "name": 3}}, r"inner\.name must be text or null, got 3"),
        ({"many": [{"x": 1}, {"x": []}]}, r"many\[1\]\.x must be a number"),
        ({"many": "ab"}, "many must be a list, got 'ab'"),
        ({"by_name": {"k": 3}}, r"by_name\.k must be a mapping, got 3"),
        ({"by_name": []}, "by_name must be a mapping"),
        ({"pair": [1]}, "pair must have 2 items, got 1"),
        ({"pair": [1.0, "one"]}, r"pair\[0\] must be an integer, got 1\.0"),
        ({"colour": "green"}, "colour must be one of red, blue, got 'green'"),
        ({"mode": "c"}, "mode must be one of a, b, got 'c'"),
        ({"path": 3}, "path must be text, got 3"),
        ({"maybe": "x"}, "maybe must be a number or null, got 'x'"),
        ({"either": 1.5}, r"either must be an integer or text, got 1\.5"),
        ({"derived": 8}, "unknown fields: derived"),
    ],
)
def test_what_does_not_fit_is_named(change, problem):
    with pytest.raises(UserError, match=f"^file: .*{problem}") as error:
        from_json(Outer, to_json(OUTER) | change, "file", "make it again")
    assert error.value.fix == "make it again"


def test_a_truth_value_is_no_integer():
    with pytest.raises(UserError, match="integer, got True"):
        from_json(int, True)


def test_a_type_without_json_form_is_our_bug():
    with pytest.raises(TypeError, match="set"):
        to_json({1, 2})


def test_files_have_a_version(tmp_path):
    path = tmp_path / "inner.json"
    save_json(path, Inner(1.0), 2)
    assert load_json(Inner, path, "the inner", 2, "again") == Inner(1.0)
    with pytest.raises(UserError, match=r"version 2, .* 3\b") as error:
        load_json(Inner, path, "the inner", 3, "again")
    assert error.value.fix == "again"
    path.write_text("[]")
    with pytest.raises(UserError, match="JSON object"):
        load_json(Inner, path, "the inner", 2, "again")


def test_an_array_of_integers_keeps_its_type():
    read = from_json(np.ndarray, [1, 2])
    assert read.dtype.kind == "i"
    assert to_json(read) == [1, 2]
    assert np.isnan(from_json(np.ndarray, [1, None])[1])


def test_ranges_that_a_dataclass_checks_are_named_with_the_file():
    @dataclass(frozen=True)
    class Share:
        p: float

        def __post_init__(self):
            if not 0 <= self.p <= 1:
                raise UserError(f"p must be in [0, 1], got {self.p}", "use .5")

    with pytest.raises(UserError, match=r"^share.json: p .*\[0, 1\], got 3.0") as error:
        from_json(Share, {"p": 3}, "share.json", "write it again")
    assert error.value.fix == "write it again"
