"""LoRA for a token classifier: adapters on the backbone, the score head trained whole."""

from typing import TYPE_CHECKING

from rmtools.errors import UserError

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import ModelConfig

HONOURED = ("model_name_or_path", "use_peft", "lora_r", "lora_alpha", "lora_target_modules", "use_rslora")
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


def lora_config(arguments: "ModelConfig") -> "LoraConfig":
    """Return the peft configuration that trl's ``ModelConfig`` flags ask for, with the task type and head set.

    ``all-linear`` would also wrap the head, which must be trained whole and saved; it is left out.
    """
    from peft import LoraConfig, TaskType

    targets = arguments.lora_target_modules or "all-linear"
    if isinstance(targets, list) and len(targets) == 1:
        targets = targets[0]
    return LoraConfig(
        task_type=TaskType.TOKEN_CLS,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=0.0,
        bias="none",
        use_rslora=arguments.use_rslora,
        target_modules=targets,
        exclude_modules=["score"],
        modules_to_save=["score"],
    )
