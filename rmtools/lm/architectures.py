"""Which models can read prefixes of different length together, so that each row's logits are those of its own tokens alone.

A hole in a cache or a pad in a batch must change nothing. It does if a layer looks back a fixed number of columns, if its
state is not keys and values, if distance is counted in columns, or if rotations depend on the longest row.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from rmtools.errors import UserError
from rmtools.lm.steps import EncodedTree

ATTENTION = {"full_attention", "sliding_attention", "attention"}
# The mask of a longer row takes more memory than its activations.
LONGEST_ROW = 16_384
# Their distances are counted in columns, holes included.
BY_COLUMN = {"mpt"}


def _other_layers(config: Any) -> set[str]:
    """Return the kinds of layers whose state is something else than keys and values."""
    return set(getattr(config.get_text_config(), "layer_types", None) or ()) - ATTENTION


def _attention_window(config: Any) -> int | None:
    """Return how many columns the layer with the shortest memory looks back; None if all look back on everything."""
    config = config.get_text_config()
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return int(config.window_size)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if window and slides else None


def fixed_rope_length(config: Any) -> int | None:
    """Return the longest length at which RoPE ignores the rest of the batch; None if it always does."""
    config = config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    each = parameters.values() if all(isinstance(x, dict) for x in parameters.values()) else [parameters]
    found = [
        rope.get("original_max_position_embeddings") or config.max_position_embeddings
        for rope in each
        if rope.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(found) if found else None


def require_forks(config: Any) -> None:
    """Raise ``UserError`` if the state of a prefix cannot be forked, reindexed, and put beside one of another length."""
    other = _other_layers(config)
    if other:
        raise UserError(
            f"the model has layers of {', '.join(sorted(other))}: their state cannot be forked and reindexed with its prefix",
            "use a model whose layers all attend to keys and values",
        )
    kind = getattr(config, "model_type", None)
    if kind in BY_COLUMN:
        raise UserError(
            f"models of type {kind} count distances in columns: prefixes of different length cannot be read together",
            "use a model with position ids",
        )


def require_window(config: Any, columns: int) -> None:
    """Raise ``UserError`` if a layer would look back on fewer than ``columns`` columns: holes would count as tokens."""
    window = _attention_window(config)
    if window and columns > window:
        raise UserError(
            f"prefixes of up to {columns} tokens are decoded together, and the model looks back {window} tokens",
            "use shorter prompts and steps, or a model with full attention",
        )
    text = config.get_text_config()
    # Llama 4: what its attention is scaled by counts columns, and is 1 before this one.
    scaled = getattr(text, "floor_scale", None) if getattr(text, "attn_temperature_tuning", False) else None
    if scaled and columns >= scaled:
        raise UserError(
            f"prefixes of up to {columns} tokens are decoded together, and from token {scaled:g} on the model scales its "
            "attention by the number of the column: holes would count as tokens",
            "use shorter prompts and steps, or another model",
        )
    require_rotations(config, columns)


def require_rotations(config: Any, tokens: int) -> None:
    """Raise ``UserError`` if a prefix would be read differently because one of ``tokens`` tokens is read with it."""
    most = fixed_rope_length(config)
    if most and tokens > most:
        raise UserError(
            f"texts of up to {tokens} tokens are read together, and beyond {most} the model's rotations depend on the longest: "
            "the value of a prefix would depend on the rest of the batch",
            f"use prompts and solutions of at most {most} tokens, or a model whose rotations are fixed",
        )


def require_full_attention(config: Any, longest: int) -> None:
    """Raise ``UserError`` if children packed behind their trajectory would not see what they would see alone.

    ``longest`` is the number of tokens of the longest row, children included.
    """
    window, other = _attention_window(config), _other_layers(config)
    if other or (window and longest > window):
        why = f"has layers of {', '.join(sorted(other))}" if other else f"looks back {window} tokens"
        raise UserError(
            f"children are packed behind their trajectory in rows of up to {longest} tokens, and the model {why}: it would "
            "value them differently than alone",
            "use rows without children (target mc or labels, no bellman_residual), shorter ones, or a model with full attention",
        )


def longest_shared_row(model: Any) -> int:
    """Return how many tokens a row with a mask of its own may have (`rmtools.lm.packing`); 0 if the model knows no such mask."""
    if hasattr(model, "get_base_model"):  # of adapters, whose own forward passes everything on
        model = model.get_base_model()
    config = model.config
    if getattr(config, "_attn_implementation", "eager") not in ("eager", "sdpa"):
        return 0
    by_position = "position_ids" in inspect.signature(getattr(model, "forward", model)).parameters
    if not by_position or getattr(config, "alibi", False) or getattr(config, "model_type", None) in BY_COLUMN:
        return 0
    if _other_layers(config):
        return 0
    return min(_attention_window(config) or LONGEST_ROW, LONGEST_ROW)


def with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """Return the argument of ``model.forward`` that takes ``cache``: transformers before 5.24 calls it past_key_values."""
    base = getattr(model, "get_base_model", None)  # of peft, whose own forward passes everything on
    forward = (model if base is None else base()).forward
    return {"cache" if "cache" in inspect.signature(forward).parameters else "past_key_values": cache}


def require_scorable(config: Any, trees: Sequence[EncodedTree]) -> None:
    """Raise ``UserError`` if the model would read a prefix or child of ``trees`` differently in a batch than alone."""
    require_rotations(config, max((int(t.positions.max()) + 1 for t in trees), default=0))
    with_children = [len(t.ids) for t in trees if t.segment[-1]]
    if with_children:
        require_full_attention(config, max(with_children))
