"""The audit in a checkpoint's model card: a section of the text, and results in ``model-index``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from rmtools.errors import UserError
from rmtools.files import write_text
from rmtools.lm.card import CARD_FILE, model_index

BEGIN, END = "<!-- rmtools audit -->", "<!-- end of rmtools audit -->"
SPLIT = "audit"


def write_card(checkpoint: Path, markdown: str, metrics: Mapping[str, float | None] | None = None) -> Path:
    """Merge an audit into the checkpoint's README.md, in place of an earlier audit; return the file, keep everything else.

    ``markdown`` is the section of the text, ``metrics`` go to ``model-index`` (None for those the audit does not resolve).

    Raises
    ------
    UserError
        If the card's metadata cannot be read, or the file cannot be written; it is unchanged then.
    """
    path = Path(checkpoint) / CARD_FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    section = f"{BEGIN}\n\n{markdown.strip()}\n\n{END}"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        text = f"{before}{section}{after}"
    else:
        text = f"{text.rstrip()}\n\n{section}\n" if text.strip() else f"{section}\n"
    results = model_index(metrics or {}, SPLIT)
    if results:
        text = _with_results(path, text, results)
    write_text(path, text)
    return path


def _with_results(path: Path, text: str, results: list[Any]) -> str:
    """Return the card's text with ``results`` in its metadata, in place of those of an earlier audit."""
    try:
        card = ModelCard(text if text.startswith("---") else f"---\nlibrary_name: rmtools\n---\n{text}")
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"the metadata of {path} cannot be read: {' '.join(str(error).split())}",
            "correct the block between the lines ---, or remove it",
        ) from error
    data: Any = card.data
    data.eval_results = [r for r in data.eval_results or [] if r.dataset_split != SPLIT] + results
    data.model_name = data.get("model_name") or path.parent.resolve().name
    return str(card)
