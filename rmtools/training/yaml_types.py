"""Values of the wrong type in a YAML file: the parser that reads flags takes them as they are."""

from pathlib import Path
from typing import Any

import yaml

from rmtools.errors import UserError
from rmtools.typed import wrong_types

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
    strange = [key for key in values if not isinstance(key, str)]
    if strange:
        raise UserError(f"{path}: the key {strange[0]!r} is no text", "name an argument, or put it in quotes")
    # Text is read by the parser, as on the command line: 3e-3 is text to YAML.
    given = {k: v for k, v in values.items() if not isinstance(v, str)}
    if isinstance(given.get(TRUE_OR_TEXT), bool):
        del given[TRUE_OR_TEXT]
    wrong = [found for cls in dataclasses for found in wrong_types(given, cls)]
    if wrong:
        raise UserError(f"{path}, key {wrong[0]}", "correct the value")
