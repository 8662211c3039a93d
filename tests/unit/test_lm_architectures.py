"""Models that read a prefix otherwise when others are beside it are refused; the others read it alike."""

import numpy as np
import pytest
import torch
import transformers

from rmtools.errors import UserError
from rmtools.lm.architectures import (
    fixed_rope_length,
    require_forks,
    require_full_attention,
    require_rotations,
    require_window,
)
from rmtools.lm.kv.cache import PrefixCache
from rmtools.lm.kv.holes import MOST_IF_COARSE, _moved
from rmtools.lm.policy import left_padded

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "original_max_position_embeddings": 16,
}


def llama(**more):
    return transformers.LlamaConfig(**{**SMALL, "max_position_embeddings": 16, **more})


def phi():
    return transformers.Phi3Config(
        **SMALL, max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=LONG
    )


class Config:
    def __init__(self, **values):
        self.__dict__.update(values)

    def get_text_config(self):
        return self


WINDOWS = [
    {"sliding_window": 16},
    {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]},
    {"sliding_window": 16, "use_sliding_window": True},
    {"attention_layers": ["global", "local"], "window_size": 16},
]


@pytest.mark.parametrize("values", [*WINDOWS, {"layer_types": ["linear_attention", "full_attention"]}])
def test_children_are_not_packed_where_they_would_see_too_little(values):
    with pytest.raises(UserError, match="children are packed"):
        require_full_attention(Config(**values), 17)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sliding_window": None},
        {"sliding_window": 17},
        {"sliding_window": 4, "use_sliding_window": False},
        {"sliding_window": 4, "layer_types": ["full_attention"]},
        {"attention_layers": ["global"], "window_size": 4},
    ],
)
def test_whole_attention_is_packed_and_decoded(values):
    assert require_full_attention(Config(**values), 17) is None
    assert require_window(Config(**values), 17) is None


@pytest.mark.parametrize("values", WINDOWS)
def test_holes_in_a_window_are_refused(values):
    require_window(Config(**values), 16)
    with pytest.raises(UserError, match="16 tokens"):
        require_window(Config(**values), 17)


def test_distances_in_columns_and_states_of_another_kind_are_refused():
    with pytest.raises(UserError, match="mpt"):
        require_forks(transformers.MptConfig())
    with pytest.raises(UserError, match="linear_attention"):
        require_forks(Config(layer_types=["linear_attention"]))
    require_forks(llama())


@pytest.mark.parametrize(
    ("config", "most"),
    [(llama(), None), (llama(rope_parameters=DYNAMIC), 16), (phi(), 16), (transformers.GPT2Config(), None)],
)
def test_where_rotations_turn(config, most):
    assert fixed_rope_length(config) == most
    require_rotations(config, 16)
    if most:
        with pytest.raises(UserError, match="beyond 16"):
            require_rotations(config, 17)


@pytest.mark.parametrize("config", [llama(rope_parameters=DYNAMIC), phi()])
@torch.inference_mode()
def test_beyond_it_company_does_change_a_prefix(config):
    """What is refused is wrong, and what is let through is right."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    rng = np.random.default_rng(0)

    def short_one(longest):
        rows = [[int(x) for x in rng.integers(3, 50, n)] for n in (9, longest)]
        alone = model(input_ids=torch.tensor(rows[:1])).logits[0, -1]
        ids, present = left_padded(rows, 0, model.device)
        positions = (present.cumsum(1) - 1).clamp(min=0)
        beside = model(input_ids=ids, attention_mask=present.long(), position_ids=positions).logits[0, -1]
        return float((alone - beside).abs().max()), ids, present

    assert short_one(16)[0] < 1e-3
    error, ids, present = short_one(24)
    assert error > 0.1
    with pytest.raises(UserError, match="rotations"):
        PrefixCache.empty(2, model.device).forward(model, ids, present)


BART = {
    "vocab_size": 50,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


def random_model(config):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@torch.inference_mode()
def behind_a_hole(model):
    """Return how far the logits of a row with a hole in the middle are from those of its tokens alone."""
    first = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    cache = PrefixCache.empty(2, model.device).forward(model, *first)[1]
    found = cache.forward(model, torch.tensor([[10], [11]]))[0][1, -1]
    alone = model(input_ids=torch.tensor([[8, 9, 11]])).logits[0, -1]
    return float((found - alone).abs().max() / alone.abs().max())


@pytest.mark.parametrize("config", [transformers.BartConfig(**BART), transformers.PegasusConfig(**BART)])
def test_models_that_count_columns_are_refused_before_anything_is_read(config, monkeypatch):
    model = random_model(config)
    with pytest.raises(UserError, match=f"{type(model).__name__} counts columns"):
        PrefixCache.empty(1, model.device).forward(model, torch.tensor([[5]]))
    assert _moved(model.to(torch.bfloat16)) > MOST_IF_COARSE
    monkeypatch.setattr("rmtools.lm.kv.batch.require_holes", lambda model: None)
    assert behind_a_hole(model.float()) > 0.1  # what is refused is wrong


def test_alibi_and_learned_positions_are_let_through():
    for config in (
        transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4),
        transformers.OPTConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4
        ),
    ):
        model = random_model(config)
        assert behind_a_hole(model) < 1e-5
        assert _moved(model.to(torch.bfloat16)) < MOST_IF_COARSE / 4


def test_attention_that_is_scaled_by_columns_is_refused_from_there_on():
    config = transformers.Llama4TextConfig(attn_temperature_tuning=True, floor_scale=16)
    require_window(config, 15)
    with pytest.raises(UserError, match="number of the column"):
        require_window(config, 16)
    require_window(transformers.Llama4TextConfig(attn_temperature_tuning=False, floor_scale=16), 16)
