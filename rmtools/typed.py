"""Whether values read from a file are of the types that a dataclass declares.

>>> from dataclasses import dataclass
>>> @dataclass
... class Point:
...     x: float
...     name: str | None = None
>>> wrong_types({"x": 1, "name": None}, Point)
[]
>>> wrong_types({"x": True, "name": 3}, Point)
['x must be a number, got True', 'name must be text, got 3']
"""

import math
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def wrong_types(values: Mapping[str, Any], cls: type) -> list[str]:
    """Return which of ``values`` are not of the types of the dataclass ``cls``, as sentences; unknown names pass.

    Fields of other types than those of JSON pass as well. NaN and infinities are no numbers.
    """
    hints = get_type_hints(cls)
    found = {name: kinds(hints[name]) for name in values if name in hints}
    wrong = [
        f"{name} must be {named(wanted)}, got {values[name]!r}"
        for name, wanted in found.items()
        if wanted and not is_of(values[name], wanted)
    ]
    mixed = [
        f"{name} must be a list of texts, got {values[name]!r}"
        for name in found
        if isinstance(values[name], list) and "list[str]" in str(hints[name]) and not all_text(values[name])
    ]
    return wrong + mixed


def all_text(values: list[Any]) -> bool:
    """Whether every item is text."""
    return all(isinstance(x, str) for x in values)


def named(wanted: list[type]) -> str:
    """Return the types in words."""
    return " or ".join(NAMES[k] for k in NAMES if k in wanted)


def kinds(hint: Any) -> list[type]:
    """Return the types of JSON that a field's type allows, NoneType among them; none where it allows anything else."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = []
    for part in parts:
        plain = get_origin(part) or part
        if isinstance(plain, type) and plain in (*NAMES, type(None)):
            found.append(plain)
        elif isinstance(plain, type) and issubclass(plain, str):  # an enumeration of names
            found.append(str)
        else:
            return []
    return found


def is_of(value: Any, wanted: list[type]) -> bool:
    """Whether ``value`` is of one of the types; an integer is a number, a truth value is neither."""
    if type(value) is int:
        return int in wanted or float in wanted
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return type(value) in wanted
