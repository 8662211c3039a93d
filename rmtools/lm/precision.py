"""Which precision weights are held in, and reading weights that are quantised.

On a CPU float32 is the default: without bf16 instructions bfloat16 is slower (docs/precision.md), and the same seed draws the
same on every CPU. On a GPU the default is the precision of the files. Heads and log values are fp32 in any case.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rmtools.codec import to_json
from rmtools.errors import UserError, reason

Dtype = Literal["auto", "float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("auto", "float32", "bfloat16")


SPREAD: Literal["spread"] = "spread"
"""Instead of a device: the layers of a model over all GPUs, in one process."""
Where = torch.device | Literal["spread"]


def device_of(given: "torch.device | str | None") -> Where | None:
    """Return the device that is named "cpu", "cuda" or "cuda:1", or `SPREAD`; None for None and "auto".

    Raises ``UserError`` if there is no such device, or models cannot run there.
    """
    if given is None or isinstance(given, torch.device) or given == "auto":
        return given if isinstance(given, torch.device) else None
    if given == SPREAD:
        return SPREAD
    try:
        found = torch.device(given)
    except (RuntimeError, TypeError, ValueError):
        raise UserError(
            f"there is no `device` {given!r}", "choose one of: auto, cpu, cuda, cuda:1, spread"
        ) from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"the `device` {given} cannot be used: torch finds no such CUDA GPU", "device='cpu'")
    if found.type not in ("cpu", "cuda"):
        raise UserError(
            f"the `device` {given} cannot be used: steps are drawn in float64, on a CPU or a CUDA GPU",
            "device='cpu'",
        )
    return found


def check_dtype(dtype: object) -> None:
    """Raise ``UserError`` unless ``dtype`` is one of `DTYPES`."""
    if dtype not in DTYPES:
        raise UserError(f"unknown `dtype` {dtype!r}", f"choose one of: {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Placement:
    """Where models run (None: CUDA if available) and in which precision."""

    device: Where | None = None
    dtype: Dtype = "auto"


def weights_in(dtype: str, device: torch.device) -> "torch.dtype | str":
    """Return the ``dtype`` for ``from_pretrained``: ``auto`` is float32 on a CPU and the precision of the files elsewhere.

    Raises ``UserError`` for an unknown ``dtype``.
    """
    check_dtype(dtype)
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    found: torch.dtype = getattr(torch, dtype)
    return found


def placed(how: dict[str, Any], where: Where | None) -> dict[str, Any]:
    """Return the options of ``from_pretrained`` that put weights quantised as ``how`` there: most cannot be moved."""
    return {"device_map": "auto" if where == SPREAD else {"": where}} if how and where else {}


def quantisation(config: Any) -> dict[str, Any]:
    """Return how the weights of a model with this configuration are quantised; {} if they are not."""
    return _values(getattr(config, "quantization_config", None))


def quantisation_asked(config: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the same of a model about to be loaded with these ``options`` of ``from_pretrained``."""
    return _values(options.get("quantization_config")) or quantisation(config)


def _values(found: Any) -> dict[str, Any]:
    values: dict[str, Any] = to_json(dict(found or {}) if isinstance(found, dict | None) else found.to_dict())
    return values


def precision_of(holder: Any) -> str:
    """Return the precision of a policy's or a value model's weights, such as "bfloat16"; "" if it holds none."""
    return model_precision(
        getattr(getattr(holder, "target", holder), "model", None)
    )  # of a ratio: its numerator


def model_precision(model: Any) -> str:
    """Return the precision of a transformers model's weights; "" if it is none."""
    dtype = getattr(model, "dtype", None)
    if not isinstance(dtype, torch.dtype):
        return ""
    name, how = str(dtype).removeprefix("torch."), quantisation(getattr(model, "config", None))
    if not how:
        return name
    bits = " 4 bit" if how.get("load_in_4bit") else " 8 bit" if how.get("load_in_8bit") else ""
    return f"{how.get('quant_method', 'quantised')}{bits}, {name}"


def best_device() -> torch.device:
    """Return the CUDA device if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs_on(where: Where) -> torch.device:
    """Return the device of the inputs of a model that is put there."""
    return best_device() if where == SPREAD else where


def on_device(model: Any, where: Where) -> Any:
    """Return the model on a device, or spread over all GPUs; quantised weights are there already."""
    if quantisation(model.config):
        return model
    return spread(model) if where == SPREAD else model.to(where)


def spread(model: Any) -> Any:
    """Put the layers of a model on all GPUs, about as much on each, and return it; on the CPU without a GPU.

    Raises ``UserError`` if they have too little memory: layers in the CPU's memory cannot be sampled from beside others.
    """
    from accelerate.big_modeling import dispatch_model
    from accelerate.utils import get_balanced_memory, infer_auto_device_map

    model.tie_weights()
    whole = list(model._no_split_modules or ())
    memory = get_balanced_memory(model, no_split_module_classes=whole)
    found = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
    places = {str(place) for place in found.values()}
    if "disk" in places or ("cpu" in places and len(places) > 1):
        raise UserError(
            f"the GPUs have no room for {model.name_or_path or 'the model'}: {len(places)} places would be needed, "
            "the CPU or the disk among them",
            "use more or larger GPUs, `dtype` bfloat16, or a server for the policy",
        )
    return dispatch_model(model, found, skip_keys=getattr(model, "_skip_keys_device_placement", None))


def is_spread(model: Any) -> bool:
    """Return whether the layers of a model are on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1


def input_device(model: Any) -> torch.device:
    """Return the device of a model's inputs: with a ``device_map`` over several, that of the embeddings."""
    embeddings = getattr(model, "get_input_embeddings", None)
    found: torch.device = model.device if embeddings is None else embeddings().weight.device
    return found


@contextlib.contextmanager
def quantised_weights(name: object, how: dict[str, Any]) -> Iterator[None]:
    """Turn what a missing library or device raises while weights quantised as ``how`` are read into a ``UserError``."""
    try:
        yield
    except (ImportError, RuntimeError, ValueError) as error:
        if not how:
            raise
        raise UserError(
            f"the weights of {name} are quantised ({how.get('quant_method', 'unknown method')}) and cannot be read here: "
            f"{reason(error)}",
            "install the library that reads them (bitsandbytes: pip install bitsandbytes), or name a model whose weights are "
            "not quantised",
        ) from error


def require_quantiser(model: object, how: dict[str, Any]) -> None:
    """Raise ``UserError`` if bitsandbytes is needed for weights quantised as ``how`` and missing."""
    if how.get("quant_method") == "bitsandbytes" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{model} is read with quantised weights (bitsandbytes), and bitsandbytes is not installed",
            "pip install bitsandbytes",
        )
