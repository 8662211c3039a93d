"""Turn dataclasses into JSON values and back, by the types of their fields.

A field with ``metadata={"saved": False}`` is derived: it is not written, and takes its default when read. Numbers that
are not finite become null; null becomes NaN where the field is a plain float.

>>> @dataclass(frozen=True)
... class Point:
...     x: float
...     names: tuple[str, ...] = ()
>>> to_json(Point(float("nan"), ("a",)))
{'x': None, 'names': ['a']}
>>> from_json(Point, {"x": 1, "names": ["a", "b"]})
Point(x=1.0, names=('a', 'b'))
>>> from_json(Point, {"x": True}, "points.json")
Traceback (most recent call last):
...
rmtools.errors.UserError: points.json: x must be a number, got True
"""

import math
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from rmtools.errors import UserError
from rmtools.files import read_json, write_json

T = TypeVar("T")
VERSION = "schema_version"
PLAIN = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    type(None): "null",
}


def to_json(value: Any) -> Any:
    """Return ``value`` as JSON values: dataclasses as objects, arrays and tuples as lists, not finite numbers as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in _saved(type(value))}
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, Enum):
        return to_json(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_json(hint: type[T], value: Any, what: str = "", fix: str = "") -> T:
    """Return the object of type ``hint`` that `to_json` wrote.

    Parameters
    ----------
    hint : type
        A dataclass, or any type its fields may have: numbers, text, lists, tuples, mappings, enumerations, literals,
        paths, arrays, unions of these, ``Any``.
    value : JSON value
    what, fix : str
        For the error: what was read, and what the user can do.

    Raises
    ------
    UserError
        Where a field is missing, unknown, of another type or out of its range; the message names its place.
    """
    try:
        found: T = _read(hint, value, "")
        return found
    except _MismatchError as error:
        raise UserError(f"{what}: {error}" if what else str(error), fix) from None
    except UserError as error:  # of a dataclass that checks its ranges itself
        raise UserError(f"{what}: {error.fact}" if what else error.fact, fix or error.fix) from None


def save_json(path: Path, value: Any, version: int) -> None:
    """Write a dataclass to ``path`` with its schema version, in one rename."""
    write_json(path, {VERSION: version, **to_json(value)})


def load_json(hint: type[T], path: Path, what: str, version: int, fix: str) -> T:
    """Read what `save_json` wrote.

    Raises
    ------
    UserError
        Where the file cannot be read, has another schema version (the message names it), or does not fit ``hint``.
    """
    return from_json(hint, unversioned(read_json(path, what), f"{path}", version, fix), f"{path}", fix)


def unversioned(values: Any, what: str, version: int, fix: str) -> dict[str, Any]:
    """Return ``values`` without their schema version; raise ``UserError`` where it is not ``version``."""
    if not isinstance(values, dict):
        raise UserError(f"{what} is no JSON object", fix)
    found = values.get(VERSION)
    if found != version:
        stated = "no schema version" if found is None else f"schema version {found!r}"
        raise UserError(f"{what} has {stated}, this release reads {version}", fix)
    return {name: item for name, item in values.items() if name != VERSION}


def check_ranges(value: Any, **ranges: tuple[bool, str]) -> None:
    """Raise ``UserError`` for the first field out of its range; each is given as (whether it holds, the range in words)."""
    for name, (holds, words) in ranges.items():
        if not holds:
            raise UserError(f"{name} must be {words}, got {getattr(value, name)!r}")


class _MismatchError(Exception):
    """A value that does not fit its type, with its place."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place} {problem}" if place else f"it {problem}")


@cache
def _saved(cls: type) -> tuple[Field[Any], ...]:
    return tuple(f for f in fields(cls) if f.metadata.get("saved", True))


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _read(hint: Any, value: Any, place: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(args, value, place)
    if origin is Literal:
        if value not in args:
            raise _MismatchError(place, f"must be one of {', '.join(map(str, args))}, got {value!r}")
        return value
    plain = origin or hint
    if is_dataclass(plain):
        return _read_dataclass(plain, value, place)
    if plain in PLAIN:
        return _read_plain(plain, value, place)
    if issubclass(plain, Enum):
        choices = [member.value for member in plain]
        return plain(_read(Literal[tuple(choices)], value, place))
    if plain is Path:
        return Path(_read_plain(str, value, place))
    if plain is np.ndarray:
        items = _read_items((Any, ...), value, place)
        array = np.asarray(items)
        return array.astype(np.float64) if array.dtype == object else array  # null is NaN
    if plain is tuple:
        return tuple(_read_items(args or (Any, ...), value, place))
    if issubclass(plain, Mapping):
        if not isinstance(value, dict):
            raise _MismatchError(place, f"must be a mapping, got {value!r}")
        return {k: _read(args[1] if args else Any, v, _inside(place, k)) for k, v in value.items()}
    if issubclass(plain, Sequence):
        return _read_items((args[0] if args else Any, ...), value, place)
    raise TypeError(f"{hint} has no JSON form")


def _read_union(args: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and type(None) in args:
        return None
    # The branch that fits; where none does, the error of the last one, or all plain types in words.
    others = [a for a in args if a is not type(None)]
    exact = [a for a in others if type(value) is a]
    error: _MismatchError | None = None
    for branch in exact or others:
        try:
            return _read(branch, value, place)
        except _MismatchError as found:
            error = found
    if all(a in PLAIN for a in args):
        raise _MismatchError(place, f"must be {' or '.join(PLAIN[a] for a in args)}, got {value!r}")
    assert error is not None  # a union has a branch that is not None
    raise error


def _read_plain(plain: Any, value: Any, place: str) -> Any:
    if plain is float and value is None:
        return math.nan
    # An integer is a number, a truth value is neither; NaN and infinities are not JSON.
    if plain is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is not plain or plain is float:
        raise _MismatchError(place, f"must be {PLAIN[plain]}, got {value!r}")
    return value


def _read_items(args: tuple[Any, ...], value: Any, place: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise _MismatchError(place, f"must be a list, got {value!r}")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise _MismatchError(place, f"must have {len(args)} items, got {len(value)}")
    return [_read(a, item, f"{place}[{i}]") for i, (a, item) in enumerate(zip(args, value, strict=True))]


def _read_dataclass(cls: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _MismatchError(place, f"must be a mapping, got {value!r}")
    known = {f.name: f for f in _saved(cls)}
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise _MismatchError(place, f"has unknown fields: {', '.join(unknown)}; it has {', '.join(known)}")
    missing = [
        name
        for name, f in known.items()
        if name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise _MismatchError(place, f"lacks {', '.join(missing)}")
    hints = _hints(cls)
    return cls(**{name: _read(hints[name], item, _inside(place, name)) for name, item in value.items()})


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
