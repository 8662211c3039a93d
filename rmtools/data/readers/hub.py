"""Data sets of the hub by name: ``owner/name``, ``owner/name/configuration``, either with ``:split``."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rmtools.data.readers.file_rows import Rows, kind_of
from rmtools.errors import UserError
from rmtools.lm.hub import ask, not_found

if TYPE_CHECKING:
    from datasets import Dataset

HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(/(?P<config>\w[\w.-]*))?(:(?P<split>\w[\w.-]*))?")
HOW_TO_NAME = "name a folder, a file, or a data set of the hub as owner/name, owner/name/configuration or owner/name:split"


def is_hub_name(source: str | Path) -> bool:
    """Return whether a name is no file or folder and could be a data set of the hub."""
    named = HUB_NAME.fullmatch(str(source))
    return bool(named) and not Path(source).exists() and not kind_of(Path(source))


def hub_rows(source: str | Path, split: str = "") -> Rows:
    """Yield the rows of a data set of the hub with their places; raises as `load_hub`."""
    return ((f"{source}, row {i}", row) for i, row in enumerate(load_hub(str(source), split)))


def load_hub(source: str, split: str = "") -> "Dataset":
    """Return a data set of the hub; the one in the cache if the hub does not answer.

    Raises
    ------
    UserError
        If it cannot be loaded, or ``split`` is another one than the name's.
    """
    from datasets import load_dataset
    from huggingface_hub.errors import HTTPError

    named = HUB_NAME.fullmatch(source)
    name, config, own = named.group("name", "config", "split") if named else (source, None, None)
    if split and own not in (None, split):
        raise UserError(
            f"{source} names the split {own}, and the split asked for is {split}", "name one of them"
        )
    refused: Exception | None = None
    try:
        ask(name, data_set=True)
    except (OSError, HTTPError) as error:
        refused = error
    try:
        with _from_cache() if refused else contextlib.nullcontext():
            return load_dataset(name, config, split=split or own or "train")
    except (OSError, HTTPError, ValueError) as error:
        if refused is not None and isinstance(error, OSError):
            raise not_found(name, "", refused, "data set", HOW_TO_NAME) from refused
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the hub's data set {source} cannot be loaded: {reason}", HOW_TO_NAME) from error


@contextlib.contextmanager
def _from_cache() -> Iterator[None]:
    """Make `datasets` read its cache alone: it tries an unreachable hub six times."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
