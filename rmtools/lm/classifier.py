"""The token classifier of a value model: made new from a language model, or read from a checkpoint folder and checked.

A tensor that is missing, has no place or is not finite would give other values: each is refused.
"""

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rmtools.errors import UserError, reason
from rmtools.files import read_json
from rmtools.lm.hub import find_model, with_commit
from rmtools.lm.policy import LOAD_ERRORS, not_a_model
from rmtools.lm.precision import Where, placed, quantisation_asked, quantised_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_FILE = "adapter_model.safetensors"
# What transformers calls the head of a token classifier: the second in GPT-2, BLOOM and Falcon, say.
HEADS = ("score", "classifier")
HEAD_TENSORS = tuple(f"{name}." for name in HEADS)
TWO_LAYERS = ("0.weight", "0.bias", "2.weight", "2.bias")
"""The tensors of a head of two layers with a ReLU between them, as those of Qwen2.5-Math-PRM are called."""
# Trained models that begin with a value head keep their language model under this name.
WRAPPED = "pretrained_model."
# Names of a first label that make it the good one, if the second is named likewise the bad one.
GOOD = {"right", "correct", "good", "positive", "true", "yes", "+"}
BAD = {"wrong", "incorrect", "bad", "negative", "false", "no", "-"}
AGAIN = "copy or train the checkpoint again"


class Float32Head(torch.nn.Linear):
    """A linear head that computes in fp32 whatever the precision around it: logits decide log values near the floor."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the logits in fp32."""
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return torch.nn.functional.linear(input.float(), self.weight.float(), bias)


def new_token_classifier(
    model: str, seed: int, *, revision: str = "", device: Where | None = None, **options: Any
) -> "PreTrainedModel":
    """Return the weights of ``model`` under a two-label fp32 head, dropout off.

    A head of two labels (one linear layer, or two with a ReLU between them) is kept, with the good label second; any other is
    replaced by a new one, drawn with ``seed``; so is a missing head (`rmtools.lm.formats.beginning` says which).
    ``revision`` is that of a hub model (default: its newest), ``device`` where quantised weights are read; ``options`` are
    those of ``from_pretrained``, such as ``dtype`` and ``quantization_config``.

    Raises
    ------
    UserError
        If there is no model, its weights are not whole, or it has no head called ``score``.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForTokenClassification

    source = find_model(model, revision)
    with without_notices(), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            config = _classifier_config(source.folder)
            how = quantisation_asked(config, options)
            if _is_wrapped(source.folder):
                options["key_mapping"] = {f"^{re.escape(WRAPPED)}": ""}
            with quantised_weights(source, how):
                # fp32 unless asked otherwise: transformers would take the precision the weights are stored in.
                found, loading = AutoModelForTokenClassification.from_pretrained(
                    source.folder,
                    config=config,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # an error, below
                    **{"dtype": torch.float32, **placed(how, device), **options},
                )
        except UserError:
            raise
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            raise not_a_model(model, error) from error
    _require_backbone(source, loading)
    if not head_name(found):
        raise UserError(
            f"the token classifier of {model} ({type(found).__name__}) has no linear head called {' or '.join(HEADS)}",
            "use a causal language model whose transformers class has one, such as Llama, Qwen or Mistral",
        )
    keep_head_in_fp32(found)
    _take_head(found, source.folder, loading)
    found.name_or_path = found.config._name_or_path = source.name
    found.config._commit_hash = source.commit or None
    return found


def _require_backbone(model: object, loading: Mapping[str, Any]) -> None:
    """Raise ``UserError`` if tensors beside the head's are missing, or do not fit the configuration."""
    for name, found, needed in sorted(loading["mismatched_keys"]):
        if not name.startswith(HEAD_TENSORS):
            raise UserError(
                f"the weights of {model} do not fit its configuration: {name} is {tuple(found)}, the configuration needs "
                f"{tuple(needed)}",
                "name a model that was saved whole",
            )
    lost = sorted(name for name in loading["missing_keys"] if not name.startswith(HEAD_TENSORS))
    if lost:
        raise UserError(
            f"the weights of {model} lack {', '.join(lost[:3])}: drawn at random they would give random values",
            "name a model that was saved whole",
        )


def _take_head(model: Any, folder: Path, loading: Mapping[str, Any]) -> None:
    """Finish the head of a classifier made from ``folder``: two layers are put in its place, the good label second."""
    name, lost = head_name(model), set(loading["missing_keys"])
    replaced = lost | {name for name, *_ in loading["mismatched_keys"]}
    if f"{name}.weight" in replaced:
        two = two_layer_head(_saved_head(folder))
        if two is None:
            return
        setattr(model, name, two)
    elif f"{name}.bias" in lost:
        torch.nn.init.zeros_(getattr(model, name).bias)
    if good_label_first(folder):
        swap_labels(getattr(model, name))


def two_layer_head(tensors: Mapping[str, torch.Tensor]) -> torch.nn.Sequential | None:
    """Return the head of two layers with two labels that ``tensors`` are (`TWO_LAYERS`), in fp32; None if they are another."""
    if set(tensors) != set(TWO_LAYERS) or len(tensors["2.bias"]) != 2:
        return None
    shapes = [tensors[f"{i}.weight"].shape for i in (0, 2)]
    layers = [Float32Head(inner, outer, device="meta") for outer, inner in shapes]
    found = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
    found.load_state_dict({n: t.float() for n, t in tensors.items()}, assign=True)
    return found.requires_grad_(True)


def good_label_first(folder: Path) -> bool:
    """Return whether the configuration of a two-label classifier names the good label first: it is read as the second."""
    config = read_json(folder / "config.json", "the model's configuration")
    names = config.get("id2label") if isinstance(config, dict) else None
    if not isinstance(names, dict) or len(names) != 2:
        return False
    first, second = (str(names.get(str(i), "")).lower() for i in (0, 1))
    return first in GOOD and second in BAD


@torch.no_grad()
def swap_labels(head: torch.nn.Module) -> None:
    """Exchange the two labels of a head, in place."""
    last: Any = head[-1] if isinstance(head, torch.nn.Sequential) else head
    for weights in last.parameters():
        weights.copy_(weights.flip(0))


def _is_wrapped(folder: Path) -> bool:
    """Return whether a folder's weights are those of a language model inside another one (`WRAPPED`)."""
    return any(n.startswith(WRAPPED) for file in folder.glob("*.safetensors") for n in _tensor_names(file))


def source_name(model: Any) -> str:
    """Return the folder or ``org/name@commit`` that a model was loaded from, "" if it does not say."""
    return with_commit(str(model.name_or_path), getattr(model.config, "_commit_hash", None) or "")


def _classifier_config(model: Path) -> Any:
    """Return the configuration of ``model`` for a two-label classifier without dropout.

    transformers uses a dropout of .1 before the head if a configuration names none: it would perturb the bootstrap target
    as well as the prediction.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, num_labels=2)
    config.id2label, config.label2id = {0: "wrong", 1: "right"}, {"wrong": 0, "right": 1}
    config.classifier_dropout = 0.0
    config.__dict__.pop("auto_map", None)  # code of the published model, which a checkpoint does not have
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def head_name(model: Any) -> str:
    """Return what a token classifier calls its head, one of `HEADS`; "" without a head of linear layers."""
    kinds = (torch.nn.Linear, torch.nn.Sequential)
    return next((name for name in HEADS if isinstance(getattr(model, name, None), kinds)), "")


def keep_head_in_fp32(model: Any) -> None:
    """Keep and use the head of a token classifier in fp32, whatever the precision of its other weights."""
    name = head_name(model)
    head = getattr(model, name)
    if isinstance(head, torch.nn.Linear):
        setattr(model, name, float32_head(head))


def float32_head(head: torch.nn.Linear) -> Float32Head:
    """Return the same weights, kept and used in fp32."""
    new = Float32Head(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    new.load_state_dict({n: p.float() for n, p in head.state_dict().items()}, assign=True)
    return new


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Silence the notice that the head is newly initialised: here it is meant to be."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def saved_classifier(folder: Path, dtype: "torch.dtype | str" = torch.float32) -> "PreTrainedModel":
    """Return the whole classifier saved in ``folder``, its head in fp32 whatever the ``dtype`` of the other weights.

    Raises ``UserError`` if its weights are damaged or incomplete.
    """
    from transformers import AutoModelForTokenClassification

    with unreadable_weights(folder, *LOAD_ERRORS):
        model, loading = AutoModelForTokenClassification.from_pretrained(
            folder, dtype=dtype, output_loading_info=True
        )
    lost, unused = set(loading["missing_keys"]), set(loading["unexpected_keys"])
    name, head = head_name(model), _saved_head(folder)
    two = two_layer_head(head) if f"{name}.weight" in lost else None
    if two is not None:
        setattr(model, name, two)
        lost -= {f"{name}.weight", f"{name}.bias"}
        unused -= {f"{name}.{n}" for n in TWO_LAYERS}
    _require_whole(folder, lost, unused, model)
    keep_head_in_fp32(model)
    if two is None and model.dtype != torch.float32:
        getattr(model, name).load_state_dict(head)
    return model


def _saved_head(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the head saved in ``folder``, in their own precision."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        if any(name.startswith(HEAD_TENSORS) for name in _tensor_names(file)):
            found |= {
                n.partition(".")[2]: w for n, w in load_file(file).items() if n.startswith(HEAD_TENSORS)
            }
    return found


@contextlib.contextmanager
def without_renaming_notice() -> Iterator[None]:
    """Silence transformers' warning that peft reads an attribute of its models that was renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def adapted(base: Any, folder: Path) -> Any:
    """Return ``base`` under the adapter in ``folder``; raise ``UserError`` if that is damaged or incomplete."""
    from peft import PeftModel

    with unreadable_weights(folder, *LOAD_ERRORS), without_renaming_notice():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
        model = PeftModel.from_pretrained(base, str(folder))
    if getattr(model.peft_config["default"], "layer_replication", None):
        raise UserError(
            f"the adapter in {folder} replicates layers, which merging does not keep: it would give other values",
            "train one without layer_replication",
        )
    _require_whole(folder, *_missing_and_unused(model, folder), model)
    return model


def merged(adapter: Any, folder: Path) -> "PreTrainedModel":
    """Return the classifier with its adapter, read from ``folder``, merged into the weights."""
    try:
        return adapter.merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the adapter in {folder} cannot be merged: {str(error).splitlines()[0]}",
            "train one that can, such as LoRA without biases of its own",
        ) from error


def require_head(folder: Path) -> None:
    """Raise ``UserError`` unless the checkpoint's weights hold the two-label head."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"the checkpoint {folder} has no weights (*.safetensors)", "train it again, or name another"
        )
    names = [f".{n}" for file in files for n in _tensor_names(file)]
    if not any(f".{head}" in name for name in names for head in HEAD_TENSORS):
        raise UserError(
            f"the checkpoint {folder} was saved without its head (no tensor named {' or '.join(HEADS)}): "
            "a new head would give random values",
            'save it with modules_to_save=["score"]',
        )


def require_tensors(folder: Path, model: Any) -> None:
    """Raise ``UserError`` unless the checkpoint ``folder`` has every tensor that training ``model`` resumes from."""
    if not (folder / ADAPTER_FILE).exists():
        require_head(folder)
        return
    missing, unused = _missing_and_unused(model, folder)
    if missing or unused:
        raise UserError(
            f"the weights in {folder} are not those of this training: {', '.join(sorted(missing or unused)[:3])}",
            "resume from another checkpoint, or start anew",
        )


def _tensor_names(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as weights:
            return list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights {file} cannot be read: {error}", AGAIN) from error


def _missing_and_unused(model: Any, folder: Path) -> tuple[set[str], set[str]]:
    """Return which tensors of an adapted model are not in ``folder``, and which of those there have no place in it."""
    from peft import get_peft_model_state_dict

    there = set(_tensor_names(folder / ADAPTER_FILE))
    # Where biases are trained peft lists those of the head a second time, under the names they have in memory.
    listed = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted = {n for n in listed if ".modules_to_save." not in n and ".original_module." not in n}
    return wanted - there, {n for n in there - set(listed) if ".lora_" in n}


def _require_whole(
    folder: Path, missing: Iterable[str], unused: Iterable[str], model: torch.nn.Module
) -> None:
    """Raise ``UserError`` if weights are ``missing`` (drawn at random), would be ``unused``, or are not finite."""
    for names, verb, problem in (
        (missing, "lack", "drawn at random they would give random values"),
        (
            unused,
            "hold",
            "its configuration has no place for them, and without them it would give other values",
        ),
    ):
        if names:
            listed = ", ".join(sorted(names)[:3])
            raise UserError(f"the weights in {folder} {verb} {listed}: {problem}", AGAIN)
    for name, weights in model.named_parameters():
        if not bool(torch.isfinite(weights).all()):
            raise UserError(
                f"the weights {name} of {folder} are not finite: every value would be NaN",
                "train the checkpoint again, with a lower learning_rate or max_grad_norm",
            )


@contextlib.contextmanager
def unreadable_weights(folder: Path, *more: type[Exception]) -> Iterator[None]:
    """Turn what transformers and peft raise on damaged weights, and ``more``, into a ``UserError``; for one call of theirs."""
    from safetensors import SafetensorError

    caught: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, SafetensorError, *more)
    try:
        yield
    except caught as error:
        raise UserError(
            f"the model in {folder} cannot be loaded, its configuration or weights are damaged: {reason(error, 2)}",
            AGAIN,
        ) from error
