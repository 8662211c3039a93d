"""A checkpoint as a plain transformers model: adapter merged, loadable without rmtools or peft."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmtools.errors import UserError, reason
from rmtools.files import claim_folder, replacing_files, write_json
from rmtools.lm.calibration_file import Calibration, read_calibration
from rmtools.lm.card import CARD_FILE
from rmtools.lm.checkpoint import (
    MODEL_FILES,
    CheckpointSettings,
    dequantised,
    fingerprint,
    is_published,
    load_value_model,
)
from rmtools.lm.classifier import head_name
from rmtools.lm.formats.recognise import head_of, tensor_shapes
from rmtools.lm.hub import FILES, NOT_READ, find_model, is_hub_name, status
from rmtools.stats.monotone_map import MonotoneMap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Token ids, of any tokenizer.
PROBE = range(5, 13)
MARK_FILE = "export.json"
"""Marks an export: only such a folder is overwritten, never a trained checkpoint."""


def export_merged(checkpoint: str | Path, out: str | Path) -> Path:
    """Write ``checkpoint`` as an ``AutoModelForTokenClassification`` with its tokenizer and settings; return the folder.

    rmtools reads it like the checkpoint itself. The weights of a quantised base are written in fp32. The Platt scaling of a
    calibrated model goes into the head. Raises ``UserError`` if the checkpoint cannot be loaded, its map is no such scaling, or
    ``out`` holds something else or cannot be written.
    """
    import torch
    from safetensors import SafetensorError

    source, out = find_model(checkpoint), Path(out)
    checkpoint = source.folder
    if out.resolve() == checkpoint.resolve():
        raise UserError(f"the output folder {out} is the checkpoint itself", "choose another folder")
    calibration = read_calibration(source.pinned)
    if is_published(source.pinned):
        raise _published(str(source), calibration)
    scaling = None if calibration is None else _scaling(calibration.map, source.pinned)
    value, settings = load_value_model(source.pinned, device=torch.device("cpu"), dtype="float32")
    whole = dequantised(checkpoint, settings) if settings.base_quantization else value.model
    if scaling is not None:
        fold(whole, *scaling)
    claim_folder(out, MARK_FILE)
    with replacing_files(out, last=MARK_FILE, instead_of=MODEL_FILES) as temporary:
        try:
            whole.save_pretrained(str(temporary))
        except SafetensorError as error:  # a full disk is not an OSError there
            raise OSError(str(error)) from error
        value.steps.tokenizer.save_pretrained(str(temporary))
        settings.save(temporary, seen_from=out)
        mark = {"schema_version": 1, "merged_from": fingerprint(source.pinned), "probe": probe_of(whole)}
        if scaling is not None:
            mark |= {"platt_scaling": dict(zip(("slope", "intercept"), scaling, strict=True))}
        write_json(temporary / MARK_FILE, mark)
        if (checkpoint / CARD_FILE).exists():
            shutil.copy(checkpoint / CARD_FILE, temporary / CARD_FILE)
    return out


def probe_of(model: "PreTrainedModel") -> dict[str, Any]:
    """Return a few token ids and their p: a server of the export is known by it."""
    import torch

    ids = [k % model.config.get_text_config().vocab_size for k in PROBE]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1].float()
    return {"ids": ids, "p": float(logits.softmax(-1)[1])}


def _published(name: str, calibration: Calibration | None) -> UserError:
    """Return the error for a published model, and how a server can apply its map."""
    fix = "serve it as it was published"
    found = None if calibration is None else pooler_config(calibration.map)
    if found is not None:
        fix += f"; if it has one logit, vLLM applies the map with --pooler-config '{json.dumps(found)}'"
    elif calibration is not None:
        fix += "; calibrated with `form` platt and `by_depth` none, vLLM can apply the map to one logit"
    return UserError(f"{name} is a published reward model: there is nothing to merge or export", fix)


def _scaling(map: MonotoneMap, name: str) -> tuple[float, float]:
    """Return slope and intercept of a map that a head can hold; raise ``UserError`` for another one."""
    if map.platt is None:
        what = "differs between depths" if map.by_depth else "is not linear in log odds"
        raise UserError(
            f"the map of {name} ({map}) cannot be exported: it {what}, and a head reads every prefix alike by a linear layer",
            "calibrate with `form` platt and `by_depth` none, or export the model without its map",
        )
    return map.platt


def fold(model: Any, slope: float, intercept: float) -> None:
    """Put a Platt scaling into the two-label head of a classifier, in place: its log odds are then slope * x + intercept.

    vLLM's ``logit_mean`` is one number for all labels and drops out of the softmax of two; a head serves every reader.
    """
    import torch

    head = getattr(model, head_name(model))
    if head.bias is None:
        raise UserError(
            "the head of the model has no bias that could hold the intercept of its map",
            "export the model without its map",
        )
    with torch.no_grad():
        head.weight.mul_(slope)
        head.bias.mul_(slope)
        head.bias[1] += intercept


def pooler_config(map: MonotoneMap) -> dict[str, float] | None:
    """Return what vLLM needs to apply a map to the logit of a one-label head: activation((logit - mean) / sigma).

    None if it cannot: the map is no Platt scaling of all depths, or it is a constant.

    >>> pooler_config(MonotoneMap((-1.0,), ((0.5,),)))
    {'logit_mean': 2.0, 'logit_sigma': 2.0}
    """
    if map.platt is None or map.platt[0] == 0:
        return None
    slope, intercept = map.platt
    return {"logit_mean": -intercept / slope, "logit_sigma": 1 / slope}


def push(folder: str | Path, name: str, private: bool = False) -> str:
    """Upload a checkpoint with its tokenizer, settings and model card to the hub; return its name with the new commit.

    Weights of an earlier upload are replaced.

    Parameters
    ----------
    folder : path
        A checkpoint or an export.
    name : str
        ``org/name``; made if the hub has no such model.
    private : bool
        Make it a private one.

    Raises
    ------
    UserError
        If the checkpoint cannot be loaded, has no model card, or needs a base that is a folder of this machine; if a private
        upload would be public, or the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    folder = Path(folder)
    if "/" not in name or not is_hub_name(name):
        raise UserError(f"{name!r} is no name on the hub", "name it as org/name, or user/name")
    _require_complete(folder)
    client, message = HfApi(), "Upload a checkpoint of rmtools"
    try:
        client.create_repo(name, private=private or None, exist_ok=True)
        public = private and not client.model_info(name).private
        if not public:
            kept, replaced = list(FILES), list(MODEL_FILES)
            done = client.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=message,
                allow_patterns=kept,
                ignore_patterns=list(NOT_READ),
                delete_patterns=replaced,
            )
    except (OSError, HTTPError) as error:
        raise _not_pushed(folder, name, private, error) from error
    if public:
        raise UserError(
            f"the hub's model {name} is public", "choose another name, or make it private there first"
        )
    return f"{name}@{done.oid}"


def _require_complete(folder: Path) -> None:
    """Raise ``UserError`` unless others can load the checkpoint: weights with head, tokenizer, settings, base, card."""
    import torch

    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder} to push", "name the folder of a checkpoint or an export"
        )
    _, settings = load_value_model(folder, device=torch.device("cpu"))
    if (folder / "adapter_config.json").exists() and Path(settings.base).is_dir():
        raise UserError(
            f"{folder} is an adapter on a folder of this machine ({settings.base}): nobody else could load it",
            "push a whole model: export it with `merge` first",
        )
    if not (folder / CARD_FILE).exists():
        raise UserError(
            f"{folder} has no model card ({CARD_FILE})", "write one, or let the audit of the checkpoint do it"
        )


def _not_pushed(folder: Path, name: str, private: bool, error: Exception) -> UserError:
    """Return the error for an upload that failed."""
    refused = status(error) in (401, 403, 404) or "token" in str(error).lower()
    how = (
        "run `hf auth login` with a token that may write there"
        if refused
        else "check the network and HF_HUB_OFFLINE"
    )
    again = f"export `model` {folder} `push` {name}{' `private`' if private else ''}"
    return UserError(
        f"{folder} could not be pushed to {name}: {reason(error)}; the folder is complete",
        f"{how}, then push again: {again}",
    )


def serving_notes(settings: CheckpointSettings, out: Path) -> str:
    """Return how to load and serve the exported model elsewhere."""
    if head_of(tensor_shapes(out)).kind == "mlp":
        return "its head has two layers, which transformers' token classifier has no place for: load it with rm.load_value_model"
    return (
        f'transformers: AutoModelForTokenClassification.from_pretrained("{out}"); p of a step = softmax(logits)[1] at its '
        f"last token, steps end with {settings.steps.delimiter!r}\n"
        f"vLLM: vllm serve {out} --runner pooling, then token_classify on prompt + steps"
    )
