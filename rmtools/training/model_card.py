"""The model card of a checkpoint, written by training and extended by an audit."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.repocard import metadata_load

from rmtools.lm.checkpoint import CheckpointSettings

CARD_FILE = "README.md"
BODY = """
# Process reward model

A two-label token classifier over `{base}`, read at the last token of the prompt and of every step: softmax[1]
estimates the probability that the solution will be right. Steps end with `{delimiter}`; prompt and steps are
tokenised apart and joined. The value is f + (1 - f) p with floor f = {floor:g}.

Target `{target}`, divergence `{divergence}`, {steps} optimiser steps on {trajectories} trajectories; everything else is
in `rmtools.json`.

{figures}

    rmtools audit --model <this folder> --rollouts <held-out rollouts> --out audit
    rmtools export --model <this folder> --merge --out merged   # plain transformers, no rmtools needed
"""


def model_card(settings: CheckpointSettings, log: Sequence[dict[str, Any]]) -> ModelCard:
    """Return the model card of a checkpoint.

    Parameters
    ----------
    settings : CheckpointSettings
    log : sequence of dict
        The training log; its last held-out metrics go into text and ``model-index``.
    """
    training = settings.training
    local = Path(settings.base).is_dir()
    base = Path(settings.base).resolve().name if local else settings.base
    evaluated = [row for row in log if any(name.startswith("eval_") for name in row)]
    last = evaluated[-1] if evaluated else {}
    metrics = {k.removeprefix("eval_"): v for k, v in last.items() if k.startswith("eval_")}
    data = ModelCardData(
        base_model=base,
        license=licence(settings.base, settings.base_revision),
        datasets=[settings.task or Path(training["rollouts"]).stem],
        library_name="rmtools",
        pipeline_tag="token-classification",
        tags=["process-reward-model", "rmtools"],
        model_name=f"{Path(base).name}-prm",
        eval_results=eval_results(metrics, "held out") or None,
    )
    table = [
        f"Held-out metrics after {last.get('step')} optimiser steps:",
        "",
        "| metric | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.4g} |" for name, value in metrics.items()),
    ]
    body = BODY.format(
        base=base,
        delimiter=json.dumps(settings.steps.delimiter),
        floor=settings.floor,
        target=training["target"],
        divergence=training["divergence"],
        steps=training["global_steps"],
        trajectories=training["trajectories"],
        figures="\n".join(table) if metrics else "Not evaluated on held-out rollouts while training.",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def eval_results(metrics: dict[str, float], split: str) -> list[EvalResult]:
    """Return ``metrics`` as entries of ``model-index``, without those that are not finite."""
    return [
        EvalResult(
            task_type="token-classification",
            dataset_type="rollouts",
            dataset_name="branching rollouts",
            dataset_split=split,
            metric_type=name,
            metric_value=float(f"{value:.6g}"),
        )
        for name, value in metrics.items()
        if math.isfinite(value)
    ]


def licence(base: str, revision: str = "") -> str | None:
    """Return the licence that the base's own card names, None if it is not known. Reads local files only."""
    try:
        local = Path(base) / CARD_FILE
        card = (
            local
            if Path(base).is_dir()
            else try_to_load_from_cache(base, CARD_FILE, revision=revision or None)
        )
        found = metadata_load(card) if isinstance(card, str | Path) and Path(card).is_file() else None
    except (ValueError, OSError, yaml.YAMLError):
        return None
    named = (found or {}).get("license")
    return named if isinstance(named, str) else None
