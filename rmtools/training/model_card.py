"""The model card of a checkpoint, written by training and extended by an audit."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.repocard import metadata_load

from rmtools.lm.card import CARD_FILE, model_index
from rmtools.lm.checkpoint import CheckpointSettings
from rmtools.training.metrics import figures_at, ranking_warning

BODY = """
# Process reward model

A two-label token classifier over `{base}`, read at the last token of the prompt and of every step: softmax[1]
estimates the probability that the solution will be right. Steps end with `{delimiter}`; prompt and steps are
tokenised apart and joined. The value is f + (1 - f) p with floor f = {floor:g}.
The prompts' format is {prompts}.
{began}

Target `{target}`, divergence `{divergence}`, {steps} optimiser steps on {trajectories} trajectories; everything else is
in `rmtools.json`.

{figures}

    rmtools audit --model <this folder> --rollouts <held-out rollouts> --out audit
    rmtools export --model <this folder> --merge --out merged   # plain transformers, no rmtools needed
"""


def model_card(
    settings: CheckpointSettings, log: Sequence[dict[str, Any]], step: int | None = None
) -> ModelCard:
    """Return the model card of a checkpoint, with the held-out metrics of the training ``log`` at ``step``, or the last."""
    training = settings.training
    local = Path(settings.base).is_dir()
    base = Path(settings.base).resolve().name if local else settings.base
    at, metrics = figures_at(log, step)
    warning = ranking_warning(log, step)
    data = ModelCardData(
        base_model=base,
        license=_licence(settings.base, settings.base_revision),
        datasets=[settings.task or Path(training["rollouts"]).stem or "rollouts"],
        library_name="rmtools",
        pipeline_tag="token-classification",
        tags=["process-reward-model", "rmtools"],
        model_name=f"{Path(base).name}-prm",
        eval_results=model_index({k: float(f"{v:.6g}") for k, v in metrics.items()}, "held out") or None,
    )
    table = [
        f"Held-out metrics after {at} optimiser steps, as in the training log. Bellman errors here are from sampled children of "
        "the held-out prompts, without intervals. Quote the audit's: with an interval, and enumerated where steps can be listed.",
        "",
        "| metric | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.4g} |" for name, value in metrics.items()),
        *(["", f"Warning: {warning}."] if warning else []),
    ]
    body = BODY.format(
        base=base,
        delimiter=json.dumps(settings.steps.delimiter),
        floor=settings.floor,
        prompts=settings.prompt_format,
        began=training.get("began_from", {}).get("sentence", ""),
        target=training["target"],
        divergence=training["divergence"],
        steps=training["global_steps"],
        trajectories=training["trajectories"],
        figures="\n".join(table) if metrics else "Not evaluated on held-out rollouts while training.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def _licence(base: str, revision: str) -> str | None:
    """Return the licence that the base's own card names, None if it is not known; read local files only."""
    try:
        local: Any = Path(base) / CARD_FILE
        if not Path(base).is_dir():
            local = try_to_load_from_cache(base, CARD_FILE, revision=revision or None)
        found = metadata_load(local) if isinstance(local, str | Path) and Path(local).is_file() else None
    except (ValueError, OSError, yaml.YAMLError):
        return None
    named = (found or {}).get("license")
    return named if isinstance(named, str) else None
