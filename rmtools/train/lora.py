"""LoRA for a token classifier: adapters on the backbone, the score head trained whole."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import ModelConfig


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
