"""What trl's ``ModelConfig`` flags mean here: LoRA with the score head trained whole, full fine-tuning, QLoRA."""

from typing import TYPE_CHECKING, Any

from rmtools.errors import UserError
from rmtools.lm.classifier import new_token_classifier

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel
    from trl import ModelConfig

HONOURED = (
    "model_name_or_path",
    "model_revision",
    "dtype",
    "use_peft",
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
    "use_rslora",
    "use_dora",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
    "bnb_4bit_quant_storage",
)
PATTERN = "*+?[](){}|^$\\"
# The task type is set here whatever the flag says; trl's own __post_init__ normalises the target modules.
SET_HERE = ("lora_task_type",)


def refuse_ignored(arguments: "ModelConfig") -> None:
    """Raise ``UserError`` for a flag of trl's ``ModelConfig`` that would change nothing here.

    Dropout would perturb the bootstrap targets, the head is always trained whole, and tree-packed batches need
    the default attention: a flag that asks otherwise is an error rather than a wish.
    """
    from dataclasses import fields

    default = type(arguments)()
    ignored = [
        f.name
        for f in fields(arguments)
        if f.name not in (*HONOURED, *SET_HERE) and getattr(arguments, f.name) != getattr(default, f.name)
    ]
    if ignored:
        raise UserError(
            f"{', '.join(ignored)}: not used by this trainer",
            f"of the model's flags it takes {', '.join(HONOURED)}",
        )


def build_model(
    base: str, arguments: "ModelConfig", seed: int, activation_checkpointing: bool = False
) -> Any:
    """Return ``base`` as a token classifier, under LoRA adapters where ``use_peft`` says so.

    Raises
    ------
    UserError
        If bitsandbytes is asked for and missing, or quantised weights are to be trained whole.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    quantised = arguments.load_in_4bit or arguments.load_in_8bit
    if quantised and not arguments.use_peft:
        raise UserError(
            "quantised weights cannot be trained whole", "add --use_peft true, or load in full precision"
        )
    options = model_options(arguments)
    model: PreTrainedModel = new_token_classifier(base, seed, revision=revision(arguments), **options)
    if quantised:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=activation_checkpointing)
    return get_peft_model(model, lora_config(arguments)) if arguments.use_peft else model


def revision(arguments: "ModelConfig") -> str:
    """Return the revision that is asked for, "" for the newest."""
    return "" if arguments.model_revision == "main" else arguments.model_revision


def model_options(arguments: "ModelConfig") -> dict[str, Any]:
    """Return the options of ``from_pretrained`` for precision and quantisation; fp32 where none is named."""
    import importlib.util

    import torch

    names = ("float32", "bfloat16", "float16")
    if arguments.dtype not in (None, "auto", *names):
        raise UserError(f"unknown dtype {arguments.dtype!r}", f"choose one of: {', '.join(names)}")
    named = arguments.dtype if arguments.dtype in names else "float32"
    options: dict[str, Any] = {"dtype": getattr(torch, named)}
    if arguments.load_in_4bit or arguments.load_in_8bit:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "load_in_4bit and load_in_8bit need bitsandbytes, which is not installed",
                "pip install bitsandbytes",
            )
        from trl import get_quantization_config

        options["quantization_config"] = get_quantization_config(arguments)
        options["quantization_config"].llm_int8_skip_modules = ["score"]
    return options


def lora_config(arguments: "ModelConfig") -> "LoraConfig":
    """Return the peft configuration that trl's ``ModelConfig`` flags ask for, with the task type and head set.

    ``all-linear`` would also wrap the head, which must be trained whole and saved; it is left out.
    """
    from peft import LoraConfig, TaskType

    targets = arguments.lora_target_modules or "all-linear"
    if isinstance(targets, list) and len(targets) == 1:
        targets = targets[0]
    if isinstance(targets, str) and targets != "all-linear" and not set(targets) & set(PATTERN):
        targets = [
            targets
        ]  # peft takes a text for a pattern of the whole name, which a module's own never is
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
