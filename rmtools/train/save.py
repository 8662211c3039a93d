"""Writing a trained value model: weights, head, tokenizer, settings and the training log, in one rename."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.data.rollouts import Rollout, RolloutMetadata
from rmtools.files import replacing, write_json
from rmtools.lm.checkpoint import CheckpointSettings, fingerprint
from rmtools.train.trainer import PRMTrainer

LOG_FILE = "training_log.json"


def settings_for(
    policy: str, metadata: RolloutMetadata, rows: list[Rollout], trainer: PRMTrainer, data: str
) -> CheckpointSettings:
    """Return what the checkpoint must remember."""
    import peft
    import torch
    import transformers

    config = trainer.args
    versions = {m.__name__: str(m.__version__) for m in (torch, transformers, peft)}
    return CheckpointSettings(
        policy=policy,
        policy_fingerprint=fingerprint(policy),
        task=metadata.task,
        horizon=metadata.horizon,
        steps=metadata.steps,
        floor=config.floor,
        # Converted rollouts do not say; 1 is the policy's own law.
        temperature=1.0 if metadata.temperature is None else metadata.temperature,
        seed=config.seed,
        base_rate=float(np.mean([r.outcome for r in rows])),
        training={
            "target": config.target,
            "divergence": config.divergence,
            "ema_decay": config.ema_decay,
            "global_steps": trainer.state.global_step,
            "rollouts": data,
            "rollouts_seed": metadata.seed,
            "trajectories": len(rows),
            "versions": versions,
        },
    )


def save_checkpoint(trainer: PRMTrainer, settings: CheckpointSettings, folder: Path) -> None:
    """Write the checkpoint; what stood at ``folder`` before is replaced only when all of it is written."""
    from safetensors import SafetensorError

    with replacing(folder) as temporary:
        temporary.mkdir()
        try:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(str(temporary))
        except SafetensorError as error:  # a full disk is not an OSError there
            raise OSError(str(error)) from error
        trainer.steps.tokenizer.save_pretrained(str(temporary))
        write_json(temporary / LOG_FILE, log_rows(trainer.state.log_history))
        settings.save(temporary, seen_from=folder)


def log_rows(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the trainer's log as JSON values."""
    return json.loads(json.dumps(history, default=float))
