"""What a checkpoint says of itself: ``rmtools.json``, the training log, and a model card with the figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtools.data.rollouts import Rollout, RolloutMetadata, rollouts_fingerprint
from rmtools.files import write_json, write_text
from rmtools.lm.checkpoint import CheckpointSettings, fingerprint
from rmtools.training.resume import decisive

if TYPE_CHECKING:
    from transformers import TrainerState
    from trl import ModelConfig

    from rmtools.training.config import PRMConfig

LOG_FILE = "training_log.json"
CARD_FILE = "README.md"


def settings_for(
    base: str,
    revision: str,
    metadata: RolloutMetadata,
    rows: Sequence[Rollout],
    config: "PRMConfig",
    data: str,
    model: "ModelConfig | None" = None,
) -> CheckpointSettings:
    """Return what a checkpoint trained on ``rows`` must remember; ``data`` says where they were, ``model`` how it was built.

    Where the rollouts do not say which policy made them, the base model stands in for it.
    """
    import peft
    import torch
    import transformers

    versions = {m.__name__: str(m.__version__) for m in (torch, transformers, peft)}
    objective = {k: v for k, v in asdict(config.objective()).items() if k != "floor"}
    weights = fingerprint(base)
    return CheckpointSettings(
        policy=metadata.policy or base,
        policy_fingerprint=metadata.policy_fingerprint if metadata.policy else weights,
        base=base,
        base_revision=revision,
        base_fingerprint=weights,
        task=metadata.task,
        horizon=metadata.horizon,
        steps=metadata.steps,
        floor=config.floor,
        temperature=1.0 if metadata.temperature is None else metadata.temperature,
        seed=config.seed,
        base_rate=base_rate(rows),
        training={
            **objective,
            "ema_decay": config.ema_decay,
            "rollouts": data,
            "rollouts_seed": metadata.seed,
            "rollouts_fingerprint": rollouts_fingerprint(rows),
            "trajectories": len(rows),
            "arguments": decisive(config, model),
            "versions": versions,
        },
    )


def base_rate(rows: Sequence[Rollout]) -> float:
    """Return the mean reward, or of rows without rewards the mean label: the constant control."""
    rewards = [r.reward for r in rows if r.reward is not None]
    labels = [x for r in rows for x in r.labels or () if x is not None]
    return float(np.mean(rewards or labels))


def write_description(
    folder: Path, seen_from: Path, settings: CheckpointSettings | None, state: "TrainerState"
) -> None:
    """Write log, card and settings of a training at ``state`` into ``folder``, which will be moved to ``seen_from``."""
    log = json.loads(json.dumps(state.log_history, default=float))
    write_json(folder / LOG_FILE, log)
    if settings is None:
        return
    settings = replace(settings, training={**settings.training, "global_steps": state.global_step})
    settings.save(folder, seen_from=seen_from)
    write_text(folder / CARD_FILE, card(settings, log))


def card(settings: CheckpointSettings, log: Sequence[dict[str, Any]]) -> str:
    """Return the model card."""
    training, base = (
        settings.training,
        Path(settings.base).name if Path(settings.base).is_dir() else settings.base,
    )
    evaluated = [row for row in log if any(k.startswith("eval_") for k in row)]
    lines = [
        "---",
        "library_name: rmtools",
        "pipeline_tag: token-classification",
        "tags: [process-reward-model, rmtools]",
        "---",
        "",
        "# Process reward model",
        "",
        f"A two-label token classifier over `{base}`, read at the last token of the prompt and of every step: softmax[1] "
        "estimates the probability that the solution will be right. Steps end with "
        f"`{json.dumps(settings.steps.delimiter)}`; prompt and steps are tokenised apart and joined. The value is "
        f"f + (1 - f) p with floor f = {settings.floor:g}.",
        "",
        f"Target `{training['target']}`, divergence `{training['divergence']}`, {training['global_steps']} optimiser steps on "
        f"{training['trajectories']} trajectories; everything else is in `rmtools.json`.",
        "",
        *(
            figures(evaluated[-1])
            if evaluated
            else ["Not evaluated on held-out rollouts while training.", ""]
        ),
        "    rmtools audit --model <this folder> --rollouts <held-out rollouts> --out audit",
        "    rmtools export --model <this folder> --merge --out merged   # plain transformers, no rmtools needed",
    ]
    return "\n".join(lines) + "\n"


def figures(row: dict[str, Any]) -> list[str]:
    """Return the last held-out metrics as a table."""
    named = {k.removeprefix("eval_"): v for k, v in row.items() if k.startswith("eval_")}
    cells = [f"| {k} | {v:.4g} |" for k, v in named.items()]
    return [
        f"Held-out metrics after {row['step']} optimiser steps:",
        "",
        "| metric | value |",
        "| --- | --- |",
        *cells,
        "",
    ]
