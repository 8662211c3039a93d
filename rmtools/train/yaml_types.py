"""Values of the wrong type in a YAML file: the parser that reads flags takes them as they are."""

import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from rmtools.errors import UserError

NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
# transformers takes a truth value here, though it is not in the field's type.
TRUE_OR_TEXT = "resume_from_checkpoint"


def check_yaml(path: str | Path, dataclasses: list[Any]) -> None:
    """Raise ``UserError`` where a value of the file is not of its field's type; keys are left to the parser.

    Parameters
    ----------
    path : path
    dataclasses : list of type
        Whose fields the keys are.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"the configuration {path} cannot be read: {error}", "name a YAML file with keys and values"
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"the configuration {path} holds no keys and values", "write lines such as `target: td`"
        )
    hints = {name: hint for cls in dataclasses for name, hint in get_type_hints(cls).items()}
    for key, value in values.items():
        wanted = kinds(hints[key]) if key in hints else []
        if wanted and not fits(value, wanted) and not (key == TRUE_OR_TEXT and isinstance(value, bool)):
            named = " or ".join(NAMES[k] for k in NAMES if k in wanted)
            raise UserError(f"{path}, key {key}: must be {named}, got {value!r}", "correct the value")


def kinds(hint: Any) -> list[type]:
    """Return the plain types that a field's type allows, NoneType among them; none where it allows anything else."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = []
    for part in parts:
        plain = get_origin(part) or part
        if isinstance(plain, type) and plain in (*NAMES, type(None)):
            found.append(plain)
        elif isinstance(plain, type) and issubclass(plain, str):  # transformers' enumerations of names
            found.append(str)
        else:
            return []
    return found


def fits(value: Any, wanted: list[type]) -> bool:
    """Whether ``value`` is of one of the types; text is, for every type that the parser reads from text."""
    if value is None:
        return type(None) in wanted
    if isinstance(value, bool | list | dict):
        return type(value) in wanted
    if isinstance(value, int):
        return int in wanted or float in wanted
    if isinstance(value, float):
        return float in wanted
    return isinstance(value, str)
