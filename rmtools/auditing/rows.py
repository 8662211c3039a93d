"""The audited rollouts, and where they and the model come from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rmtools.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from rmtools.data.rollouts import Rollout, RolloutMetadata
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.protocol import Scorer, StepPolicy

    Source: TypeAlias = str | Path | Dataset | Sequence[Rollout] | Sequence[Mapping[str, Any]]
    Rollouts: TypeAlias = Source | tuple[Source, RolloutMetadata]


def rows_of(rollouts: "Rollouts") -> "tuple[list[Rollout], RolloutMetadata | None]":
    """Return the rows, one id per prompt text, and their metadata if they have any."""
    from rmtools.data.load import load_rollouts
    from rmtools.data.rollouts import Rollout, RolloutMetadata

    metadata: RolloutMetadata | None = None
    if isinstance(rollouts, tuple) and len(rollouts) == 2 and isinstance(rollouts[1], RolloutMetadata):
        rollouts, metadata = rollouts  # type: ignore[assignment]
    if isinstance(rollouts, list | tuple) and all(isinstance(row, Rollout) for row in rollouts):
        rows = list(rollouts)
    else:
        found = load_rollouts(rollouts)
        if found.turns:
            raise UserError(
                "the prompts of the rows are chat messages, and an audit reads texts",
                "write the messages' text as the prompt, or rows of `rmtools rollout`, which renders them",
            )
        rows, metadata = found.rows, metadata or found.metadata
    if not rows:
        raise UserError("there are no rollouts to audit", "make some with `rmtools rollout`")
    return _one_id_per_prompt(rows), metadata


def _one_id_per_prompt(rows: "list[Rollout]") -> "list[Rollout]":
    """Give a text with several ids the first of them; raise ``UserError`` if one id has two texts."""
    ids: dict[str, str] = {}
    texts: dict[str, str] = {}
    for row in rows:
        ids.setdefault(row.prompt, row.prompt_id)
        if texts.setdefault(row.prompt_id, row.prompt) != row.prompt:
            raise UserError(
                f"the prompt id {row.prompt_id} stands before two different prompts",
                "give every prompt an id of its own",
            )
    return [r if ids[r.prompt] == r.prompt_id else replace(r, prompt_id=ids[r.prompt]) for r in rows]


def limited(rows: "list[Rollout]", limit: int | None) -> "list[Rollout]":
    """Return the rows of the first ``limit`` prompts."""
    from rmtools.particles.arguments import check_count

    if limit is None:
        return rows
    check_count("prompts_limit", limit, 1, "it is a number of prompts", fix=96)
    kept = set(list(dict.fromkeys(r.prompt_id for r in rows))[:limit])
    return [r for r in rows if r.prompt_id in kept]


def tokens_of(rows: "Sequence[Rollout]", model: "Scorer | StepPolicy") -> float:
    """Return the mean number of tokens of a solution."""
    return float(np.mean([sum(len(model.steps.step_ids(s)) for s in r.steps) for r in rows]))


def provenance_of(
    rows: "Sequence[Rollout]", metadata: "RolloutMetadata | None", settings: "CheckpointSettings | None"
) -> dict[str, Any]:
    """Return where the rollouts and the model come from, and how many branches there are."""
    import rmtools

    known: dict[str, Any] = {"policy": "", "policy_fingerprint": "", "task": ""}
    if metadata is not None:
        law = ("temperature", "top_k", "top_p", "min_p")
        same = (*known, "horizon", *law, "removed_prompts", "generated_tokens")
        known = {name: getattr(metadata, name) for name in same}
        known |= {"rollouts_seed": metadata.seed, "rollouts_source": metadata.source, "dtype": metadata.dtype}
        known["prompt_format"] = str(metadata.prompt_format)
    return {
        **known,
        "n_prompts": len({r.prompt_id for r in rows}),
        "n_trajectories": len(rows),
        "children": 1 + max((len(at) for r in rows for at in r.children), default=0),
        "completions": 1 + max((len(at) for r in rows for at in r.completions), default=0),
        # The hashes of the training prompts are as long as the training data.
        "training": {}
        if settings is None
        else {k: v for k, v in settings.training.items() if k != "prompts"},
        "rmtools": rmtools.__version__,
    }
