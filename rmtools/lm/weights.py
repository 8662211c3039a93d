"""Weights from a folder, checked: a tensor that is missing, has no place or is not finite would give other values."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from rmtools.errors import UserError

ADAPTER_FILE = "adapter_model.safetensors"


def adapted(base: Any, folder: Path) -> Any:
    """Return ``base`` under the adapter in ``folder``; raises ``UserError`` where that is damaged or not whole."""
    from peft import PeftModel
    from safetensors import safe_open

    with unreadable_weights(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
        model = PeftModel.from_pretrained(base, str(folder))
        with safe_open(folder / ADAPTER_FILE, framework="pt") as weights:
            there = set(weights.keys())
    if getattr(model.peft_config["default"], "layer_replication", None):
        raise UserError(
            f"the adapter in {folder} replicates layers, which merging does not keep: it would give other values",
            "train one without layer_replication",
        )
    require_whole(folder, *missing_and_unused(model, there), model)
    return model


def missing_and_unused(model: Any, there: set[str]) -> tuple[set[str], set[str]]:
    """Return which tensors of an adapted model are not among ``there``, and which of those have no place in it."""
    from peft import get_peft_model_state_dict

    # Where biases are trained peft lists those of the head a second time, under the names they have in memory.
    listed = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted = {n for n in listed if ".modules_to_save." not in n and ".original_module." not in n}
    return wanted - there, {n for n in there - set(listed) if ".lora_" in n}


def require_tensors(folder: Path, model: Any) -> None:
    """Raise ``UserError`` where a checkpoint that ``model`` is to go on from lacks some of its tensors, or its head."""
    from safetensors import safe_open

    if not (folder / ADAPTER_FILE).exists():
        require_head(folder)
        return
    with unreadable_weights(folder), safe_open(folder / ADAPTER_FILE, framework="pt") as weights:
        there = set(weights.keys())
    missing, unused = missing_and_unused(model, there)
    if missing or unused:
        raise UserError(
            f"the weights in {folder} are not those of this training: {', '.join(sorted(missing or unused)[:3])}",
            "resume from another checkpoint, or start anew without --resume_from_checkpoint",
        )


@contextlib.contextmanager
def unreadable_weights(folder: Path) -> Iterator[None]:
    """Turn whatever transformers and peft raise on a damaged folder into a ``UserError`` that names it.

    What they raise depends on which byte is wrong: a type, a key, an attribute that is missing.
    """
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(
            f"the model in {folder} cannot be loaded, its configuration or weights are damaged: {' '.join(lines[:2])[:300]}",
            "copy or train the checkpoint again",
        ) from error


def require_whole(
    folder: Path, missing: Iterable[str], unused: Iterable[str], model: torch.nn.Module
) -> None:
    """Raise ``UserError`` where weights are ``missing`` (drawn at random), would be ``unused``, or are not finite."""
    named = sorted(missing)
    if named:
        raise UserError(
            f"the weights in {folder} lack {', '.join(named[:3])}: drawn at random they would give random values",
            "copy or train the checkpoint again",
        )
    surplus = sorted(unused)
    if surplus:
        raise UserError(
            f"the weights in {folder} hold {', '.join(surplus[:3])}, which its configuration has no place for: without them it "
            "would give other values",
            "copy or train the checkpoint again",
        )
    for name, weights in model.named_parameters():
        if not bool(torch.isfinite(weights).all()):
            raise UserError(
                f"the weights {name} of {folder} are not finite: every value would be NaN",
                "train the checkpoint again, with a lower learning_rate or max_grad_norm",
            )


def require_head(folder: Path) -> None:
    """Raise ``UserError`` unless the checkpoint's weights hold the two-label head."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"the checkpoint {folder} has no weights (*.safetensors)", "train it again, or name another"
        )
    try:
        names: list[str] = []
        for file in files:
            with safe_open(file, framework="pt") as weights:
                names += list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the weights of {folder} cannot be read: {error}", "copy or train the checkpoint again"
        ) from error
    if not any(".score." in f".{n}" for n in names):
        raise UserError(
            f"the checkpoint {folder} was saved without its head (no tensor named score): "
            "a new head would give random values",
            'save it with modules_to_save=["score"]',
        )
