"""Build the token classifier from trl's ``ModelConfig``: LoRA with a score head trained whole, full fine-tuning, QLoRA."""

import importlib.util
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from rmtools.errors import UserError
from rmtools.lm.classifier import new_token_classifier
from rmtools.training.config import library_errors

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import ModelConfig

# The first two name the model, the others say how it is built.
HONOURED = (
    *("model_name_or_path", "model_revision", "dtype"),
    *("use_peft", "lora_r", "lora_alpha", "lora_target_modules", "use_rslora", "use_dora"),
    *(
        "load_in_4bit",
        "load_in_8bit",
        "bnb_4bit_quant_type",
        "use_bnb_nested_quant",
        "bnb_4bit_quant_storage",
    ),
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


def revision(arguments: "ModelConfig") -> str:
    """Return the requested revision, "" for the newest."""
    return "" if arguments.model_revision == "main" else arguments.model_revision


def build_model(
    base: str, arguments: "ModelConfig", seed: int, activation_checkpointing: bool = False
) -> Any:
    """Return ``base`` as a token classifier, under LoRA adapters if ``use_peft`` is set; in fp32 unless ``dtype`` differs.

    Raises ``UserError`` if the model cannot be loaded, or peft refuses an argument.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    quantised = is_quantised(arguments)
    dtype = arguments.dtype if arguments.dtype in DTYPES else "float32"
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if quantised:
        from trl import get_quantization_config

        with library_errors():
            options["quantization_config"] = get_quantization_config(arguments)
        options["quantization_config"].llm_int8_skip_modules = ["score"]
    model = new_token_classifier(base, seed, revision=revision(arguments), **options)
    if quantised:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=activation_checkpointing)
    if not arguments.use_peft:
        return model
    with library_errors(re.error):
        return get_peft_model(model, lora_config(arguments))


def lora_config(arguments: "ModelConfig") -> "LoraConfig":
    """Return the peft configuration for trl's ``ModelConfig``, with task type and head set.

    ``all-linear`` excludes the head, which is trained whole and saved.
    """
    from peft import LoraConfig, TaskType

    targets = arguments.lora_target_modules or "all-linear"
    if isinstance(targets, list) and len(targets) == 1:
        targets = targets[0]
    if isinstance(targets, str) and targets != "all-linear" and not set(targets) & set(PATTERN):
        targets = [targets]  # peft reads text as a pattern of the whole module name
    return LoraConfig(
        task_type=TaskType.TOKEN_CLS,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=0.0,
        bias="none",
        use_rslora=arguments.use_rslora,
        use_dora=arguments.use_dora,
        target_modules=targets,
        exclude_modules=["score"],
        modules_to_save=["score"],
    )
