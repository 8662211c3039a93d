"""What a checkpoint records of its training: ``rmtools.json``, the training log and the model card."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import torch
import transformers

from rmtools.codec import to_json
from rmtools.data.contamination import prompt_hashes
from rmtools.data.rollouts import Rollout, Rollouts, rollouts_fingerprint
from rmtools.errors import UserError
from rmtools.files import write_json, write_text
from rmtools.lm.card import CARD_FILE
from rmtools.lm.checkpoint import CheckpointSettings, fingerprint
from rmtools.lm.formats.beginning import beginning
from rmtools.lm.hub import split_name
from rmtools.lm.precision import quantisation
from rmtools.training.config import PRMConfig
from rmtools.training.model_card import model_card
from rmtools.training.targets import BOOTSTRAPPED

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerState

LOG_FILE = "training_log.json"
# Arguments that do not decide the weights, as patterns. A training may also be made longer, moved to other devices, or
# split into other forward passes.
IGNORED = (
    *(
        "*output_dir",
        "resume_from_checkpoint",
        "save_*",
        "early_stopping_*",
        "enable_jit_checkpoint",
        "restore_*",
    ),
    *("log_*", "logging_*", "report_to", "run_name", "project", "trackio_*", "include_*", "disable_tqdm"),
    *(
        "max_tokens_per_batch",
        "push_to_hub",
        "hub_*",
        "*_token",
        "debug",
        "skip_memory_metrics",
        "full_determinism",
    ),
    *("do_*", "eval_*", "*_eval*", "prediction_loss_only", "load_best*", "metric_for_best*", "greater_is*"),
    *("max_steps", "num_train_epochs", "per_device_*", "gradient_accumulation_steps", "auto_find*"),
    *("*_checkpointing*", "torch_*", "tf32", "bf16", "fp16", "use_*", "liger_*", "average_tokens*"),
    *("accelerator_config", "parallelism_config", "ddp_*", "fsdp*", "deepspeed", "local_rank"),
    *("dataloader_[!d]*", "remove_unused_columns", "label_names", "length_column_name"),
    *("prompt_format", "system", "few_shot"),  # the rows' fingerprint tells them
)
# The parameters of an adapter, by the flags that set them.
ADAPTER = {
    **{"peft_type": "peft_type", "r": "lora_r", "lora_alpha": "lora_alpha"},
    **{"use_rslora": "use_rslora", "use_dora": "use_dora"},
}


def checkpoint_settings(
    base: str, rollouts: Rollouts, config: PRMConfig, model: "PreTrainedModel | None" = None
) -> CheckpointSettings:
    """Return the settings of a checkpoint trained on ``rollouts``.

    ``base`` names the model under the head; it is also the policy if the rollouts name none. ``model`` is the one that is
    trained, which shows its adapter and precision.
    """
    repository, commit = split_name(base)
    metadata, weights, trained_on = rollouts.metadata, fingerprint(base), rollouts_fingerprint(rollouts)
    configuration = {
        "base": weights,
        "rollouts_fingerprint": trained_on,
        **_resolved_configuration(config),
        **({} if model is None else _resolved_model(model)),
    }
    return CheckpointSettings(
        policy=metadata.policy or base,
        policy_fingerprint=metadata.policy_fingerprint if metadata.policy else weights,
        base=repository,
        base_revision=commit,
        base_fingerprint=weights,
        task=metadata.task,
        horizon=metadata.horizon,
        steps=metadata.steps,
        floor=config.floor,
        temperature=1.0 if metadata.temperature is None else metadata.temperature,
        top_k=metadata.top_k,
        top_p=metadata.top_p,
        min_p=metadata.min_p,
        seed=config.seed,
        base_rate=base_rate(rollouts),
        prompt_format=metadata.prompt_format,
        base_quantization={} if model is None else to_json(quantisation(model.config)),
        training={
            "target": config.target,
            "divergence": config.divergence,
            **_begun_from(base),
            "rollouts": rollouts.source,
            "rollouts_seed": metadata.seed,
            "rollouts_fingerprint": trained_on,
            "trajectories": len(rollouts),
            "prompts": prompt_hashes(rollouts),
            **_solution_tokens(rollouts),
            "configuration": configuration,
            "configuration_hash": configuration_hash(configuration),
            "versions": {m.__name__: str(m.__version__) for m in (torch, transformers, peft)},
        },
    )


def _begun_from(base: str) -> dict[str, Any]:
    """Return the format of the model that training began from and whether its head was kept; {} if it is not here."""
    try:
        return {"began_from": to_json(beginning(base))}
    except UserError:
        return {}


def _solution_tokens(rollouts: Rollouts) -> dict[str, int]:
    """Return how many tokens all but the longest hundredth of the solutions have, if the rows hold their ids."""
    lengths = [sum(len(step) for step in row.ids) for row in rollouts if row.ids]
    whole = lengths and len(lengths) == len(rollouts)
    return {"solution_tokens": math.ceil(np.quantile(lengths, 0.99))} if whole else {}


def _resolved_configuration(config: PRMConfig) -> dict[str, Any]:
    """Return the arguments that decide the weights, as JSON values; equivalent arguments give equal values."""
    unused = {
        "td_lambda": config.target != "td_lambda",
        "n_step": config.target != "n_step",
        "ema_decay": config.target not in BOOTSTRAPPED,
        "pqm_margin": config.divergence != "pqm",
    }
    names = [f.name for f in fields(config) if not any(fnmatch(f.name, p) for p in IGNORED)]
    found = {name: to_json(getattr(config, name)) for name in names if not unused.get(name)}
    found["data_seed"] = config.seed if config.data_seed is None else config.data_seed
    found["lr_scheduler_kwargs"] = found["lr_scheduler_kwargs"] or None
    own = "bf16" if config.bf16 else "fp16" if config.fp16 else ""
    found["mixed_precision"] = own or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    # Rows of one optimiser step over all processes.
    found["rows_per_step"] = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    if config.divergence == "contrastive":  # it compares the rows of a forward pass
        found["rows_per_pass"] = config.train_batch_size
    return found


def _resolved_model(model: "PreTrainedModel") -> dict[str, Any]:
    """Return adapter, precision and quantisation of the model that is trained, as JSON values."""
    adapter = getattr(model, "peft_config", {}).get("default")
    found: dict[str, Any] = {
        "use_peft": adapter is not None,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    found |= {
        flag: to_json(getattr(adapter, name)) for name, flag in ADAPTER.items() if hasattr(adapter, name)
    }
    if targets := getattr(adapter, "target_modules", None):
        found["lora_target_modules"] = [targets] if isinstance(targets, str) else sorted(targets)
    if quantised := getattr(model.config, "quantization_config", None):
        found |= {name: str(value) for name, value in quantised.to_dict().items()}
    return found


def configuration_hash(configuration: dict[str, Any]) -> str:
    """Return a short hash of a resolved configuration."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]


def base_rate(rows: Sequence[Rollout]) -> float:
    """Return the mean reward, or the mean label of rows without rewards: the constant control."""
    rewards = [r.reward for r in rows if r.reward is not None]
    labels = [x for r in rows for x in r.labels or () if x is not None]
    return float(np.mean(rewards or labels))


def write_records(
    folder: Path,
    seen_from: Path,
    settings: CheckpointSettings,
    state: "TrainerState",
    step: int | None = None,
) -> None:
    """Write log, settings and model card into ``folder``, whose files move to ``seen_from``.

    The card has the held-out metrics of the evaluation at ``step``; default: of the last one.
    """
    log = json.loads(json.dumps(state.log_history, default=float))
    write_json(folder / LOG_FILE, log)
    settings = replace(settings, training={**settings.training, "global_steps": state.global_step})
    settings.save(folder, seen_from=seen_from)
    write_text(folder / CARD_FILE, str(model_card(settings, log, step)))
