"""The token classifier of a value model: made new from a language model, or read from a checkpoint folder and checked.

A tensor that is missing, has no place or is not finite would give other values: each is refused.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rmtools.errors import UserError, reason
from rmtools.lm.hub import find_model, with_commit
from rmtools.lm.policy import LOAD_ERRORS, not_a_model
from rmtools.lm.precision import Where, placed, quantisation_asked, quantised_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_FILE = "adapter_model.safetensors"
# What transformers calls the head of a token classifier: the second in GPT-2, BLOOM and Falcon, say.
HEADS = ("score", "classifier")
HEAD_TENSORS = tuple(f"{name}." for name in HEADS)
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
    """Return the weights of ``model`` under a two-label fp32 head drawn with ``seed``, dropout off.

    ``revision`` is that of a hub model (default: its newest), ``device`` where quantised weights are read; ``options`` are
    those of ``from_pretrained``, such as ``dtype`` and ``quantization_config``.

    Raises
    ------
    UserError
        If there is no model, or it has no head called ``score``.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForTokenClassification

    source = find_model(model, revision)
    with without_notices(), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            config = _classifier_config(source.folder)
            how = quantisation_asked(config, options)
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
    _require_shapes(source, loading["mismatched_keys"])
    if not head_name(found):
        raise UserError(
            f"the token classifier of {model} ({type(found).__name__}) has no linear head called {' or '.join(HEADS)}",
            "use a causal language model whose transformers class has one, such as Llama, Qwen or Mistral",
        )
    keep_head_in_fp32(found)
    found.name_or_path = found.config._name_or_path = source.name
    found.config._commit_hash = source.commit or None
    return found


def _require_shapes(model: object, mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    """Raise ``UserError`` if tensors (name, their shape, the shape needed) do not fit: a head of one or three labels."""
    for name, found, needed in sorted(mismatched):
        if name.startswith(HEAD_TENSORS):
            raise UserError(
                f"{model} is a classifier with a head of {found[0]} labels, a value model needs 2 (wrong, right)",
                "name the language model under it: a new head is drawn",
            )
        raise UserError(
            f"the weights of {model} do not fit its configuration: {name} is {tuple(found)}, the configuration needs "
            f"{tuple(needed)}",
            "name a model that was saved whole",
        )


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
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def head_name(model: Any) -> str:
    """Return what a token classifier calls its linear head, one of `HEADS`; "" if it has none."""
    return next((name for name in HEADS if isinstance(getattr(model, name, None), torch.nn.Linear)), "")


def keep_head_in_fp32(model: Any) -> None:
    """Keep and use the head of a token classifier in fp32, whatever the precision of its other weights."""
    name = head_name(model)
    setattr(model, name, float32_head(getattr(model, name)))


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
    _require_whole(folder, loading["missing_keys"], loading["unexpected_keys"], model)
    keep_head_in_fp32(model)
    if model.dtype != torch.float32:
        getattr(model, head_name(model)).load_state_dict(_saved_head(folder))
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
