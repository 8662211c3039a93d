"""Build the token classifier from trl's ``ModelConfig``: LoRA with a score head trained whole, full fine-tuning, QLoRA."""

import copy
import importlib.util
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from rmtools.errors import UserError
from rmtools.files import read_json
from rmtools.lm.classifier import HEADS, head_name, new_token_classifier, without_renaming_notice
from rmtools.lm.formats.beginning import beginning
from rmtools.lm.hub import find_model
from rmtools.training.config import library_errors

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
    from trl import ModelConfig

# The first two name the model, the others say how it is built.
HONOURED = (
    *("model_name_or_path", "model_revision", "dtype"),
    *("use_peft", "lora_r", "lora_alpha", "lora_target_modules", "use_rslora", "use_dora"),
    *("load_in_4bit", "load_in_8bit"),
    *("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
)
PATTERN = "*+?[](){}|^$\\"
DTYPES = ("float32", "bfloat16", "float16")


def check_model_arguments(arguments: "ModelConfig") -> None:
    """Raise ``UserError`` for arguments of ``ModelConfig`` that this trainer does not use, or that contradict each other.

    Dropout would perturb the bootstrap targets, the head is always trained whole, and packed trees need the default
    attention.
    """
    # The value of lora_task_type is always token classification.
    default, used = type(arguments)(), (*HONOURED, "lora_task_type")
    names = [f.name for f in fields(arguments) if f.name not in used]
    ignored = [name for name in names if getattr(arguments, name) != getattr(default, name)]
    if ignored:
        raise UserError(
            f"{', '.join(ignored)}: not used by this trainer",
            f"it uses these arguments of the model: {', '.join(HONOURED)}",
        )
    if arguments.dtype not in (None, "auto", *DTYPES):
        raise UserError(f"unknown dtype {arguments.dtype!r}", f"choose one of: {', '.join(DTYPES)}")
    if is_quantised(arguments):
        if not arguments.use_peft:
            raise UserError(
                "quantised weights cannot be trained whole", "set use_peft: true, or load in full precision"
            )
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "load_in_4bit and load_in_8bit need bitsandbytes, which is not installed",
                "pip install bitsandbytes",
            )


def is_quantised(arguments: "ModelConfig") -> bool:
    """Return whether the base's weights are loaded in 4 or 8 bits."""
    return bool(arguments.load_in_4bit or arguments.load_in_8bit)


def build_model(
    base: str, arguments: "ModelConfig", seed: int, activation_checkpointing: bool = False
) -> Any:
    """Return ``base`` as a token classifier, under LoRA adapters if ``use_peft`` is set; in fp32 unless ``dtype`` differs.

    ``base`` may be ``org/name@revision``. Head and adapters are drawn with ``seed``. Raises ``UserError`` if the model cannot be
    loaded, or peft refuses an argument.
    """
    from peft import prepare_model_for_kbit_training

    require_no_adapter(base)
    beginning(base)  # whether files and configuration agree
    dtype = arguments.dtype if arguments.dtype in DTYPES else "float32"
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if is_quantised(arguments):
        from trl import get_quantization_config

        with library_errors():
            options["quantization_config"] = get_quantization_config(arguments)
        options["quantization_config"].llm_int8_skip_modules = list(HEADS)
    model = new_token_classifier(base, seed, **options)
    if is_quantised(arguments):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=activation_checkpointing)
    return with_adapter(model, lora_config(arguments), seed) if arguments.use_peft else model


def require_no_adapter(folder: str) -> None:
    """Raise ``UserError`` if a model to start from is an adapter."""
    found = find_model(folder).folder
    path = found / "adapter_config.json"
    if path.exists():
        base = read_json(path, "the adapter's configuration").get("base_model_name_or_path") or "not known"
        ours = (found / "rmtools.json").exists()
        raise UserError(
            f"{folder} is an adapter, not a model to start from; its base is {base}",
            "name the base; to continue the adapter's own training, set resume_from_checkpoint; to train on top of it, "
            "merge it first: `rmtools export --merge`"
            if ours
            else "merge it into its base first (peft's merge_and_unload), save that with its tokenizer, and name that folder",
        )


def with_adapter(model: Any, config: "PeftConfig", seed: int) -> Any:
    """Return a token classifier under an adapter drawn with ``seed``; its head is trained whole and saved."""
    from peft import TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    config = copy.copy(config)
    config.task_type = TaskType.TOKEN_CLS
    head = head_name(model)
    config.modules_to_save = sorted({*(getattr(config, "modules_to_save", None) or ()), head})  # type: ignore[attr-defined]
    if getattr(config, "exclude_modules", "") is None:  # all-linear would include the head
        config.exclude_modules = [head]  # type: ignore[attr-defined]
    if hasattr(config, "fan_in_fan_out") and any(isinstance(m, Conv1D) for m in model.modules()):
        config.fan_in_fan_out = True  # GPT-2 stores its weights transposed
    with library_errors(re.error), without_renaming_notice(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def require_trainable(model: Any, bootstraps: bool) -> None:
    """Raise ``UserError`` if a model that the user built is no value model that can be trained and loaded again."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not any(hasattr(base, name) for name in HEADS) or base.config.num_labels != 2:
        raise UserError(
            f"the model ({type(base).__name__}) is no token classifier with two labels and a head called "
            f"{' or '.join(HEADS)}",
            "pass the name of a language model, or AutoModelForTokenClassification.from_pretrained(name, num_labels=2)",
        )
    if base is not model and not base.name_or_path:
        raise UserError(
            "the base of the adapter has no name: the checkpoint could not be loaded again",
            "save the base with its tokenizer, and load it from that folder",
        )
    dropout = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    if dropout and bootstraps:
        raise UserError(
            f"the model has dropout ({dropout[0]}), which perturbs the bootstrap targets as well as the prediction",
            "set it to 0 (lora_dropout=0, config.classifier_dropout=0), or choose target mc or labels",
        )


def lora_config(arguments: "ModelConfig") -> "LoraConfig":
    """Return the peft configuration for trl's ``ModelConfig``; dropout would perturb the bootstrap targets."""
    from peft import LoraConfig

    targets = arguments.lora_target_modules or "all-linear"
    if isinstance(targets, list) and len(targets) == 1:
        targets = targets[0]
    if isinstance(targets, str) and targets != "all-linear" and not set(targets) & set(PATTERN):
        targets = [targets]  # peft reads text as a pattern of the whole module name
    return LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=0.0,
        bias="none",
        use_rslora=arguments.use_rslora,
        use_dora=arguments.use_dora,
        target_modules=targets,
    )
