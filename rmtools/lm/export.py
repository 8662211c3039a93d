"""A checkpoint as a plain transformers model: adapter merged, loadable without rmtools or peft."""

import shutil
from pathlib import Path

from rmtools.errors import UserError
from rmtools.files import claim_folder, replacing_files, write_json
from rmtools.lm.card import CARD_FILE
from rmtools.lm.checkpoint import MODEL_FILES, CheckpointSettings, fingerprint, load_value_model

MARK_FILE = "export.json"
"""Marks an export: only such a folder is overwritten, never a trained checkpoint."""


def export_merged(checkpoint: str | Path, out: str | Path) -> Path:
    """Write ``checkpoint`` as an ``AutoModelForTokenClassification`` with its tokenizer and settings; return the folder.

    rmtools reads it like the checkpoint itself. Raises ``UserError`` if the checkpoint cannot be loaded, or ``out`` holds
    something else or cannot be written.
    """
    import torch
    from safetensors import SafetensorError

    checkpoint, out = Path(checkpoint), Path(out)
    if out.resolve() == checkpoint.resolve():
        raise UserError(f"the output folder {out} is the checkpoint itself", "choose another folder")
    value, settings = load_value_model(checkpoint, device=torch.device("cpu"))
    claim_folder(out, MARK_FILE)
    with replacing_files(out, last=MARK_FILE, instead_of=MODEL_FILES) as temporary:
        try:
            value.model.save_pretrained(str(temporary))
        except SafetensorError as error:  # a full disk is not an OSError there
            raise OSError(str(error)) from error
        value.steps.tokenizer.save_pretrained(str(temporary))
        settings.save(temporary, seen_from=out)
        write_json(temporary / MARK_FILE, {"schema_version": 1, "merged_from": fingerprint(checkpoint)})
        if (checkpoint / CARD_FILE).exists():
            shutil.copy(checkpoint / CARD_FILE, temporary / CARD_FILE)
    return out


def serving_notes(settings: CheckpointSettings, out: Path) -> str:
    """Return how to load and serve the exported model elsewhere."""
    return (
        f'transformers: AutoModelForTokenClassification.from_pretrained("{out}"); p of a step = softmax(logits)[1] at its '
        f"last token, steps end with {settings.steps.delimiter!r}\n"
        f"vLLM: vllm serve {out} --runner pooling, then token_classify on prompt + steps"
    )
