"""What bf16 costs: speed of decoding and of reading beside fp32, and how far a value model's log values move.

    python benchmarks/precision.py                          # a random Llama of 25M weights
    python benchmarks/precision.py --model PRM --rollouts ROLLOUTS

Speeds are medians of rounds in turn, after one that is not counted.
"""

import argparse
import copy
import time
from statistics import median

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rmtools.data.load import load_rollouts
from rmtools.lm.checkpoint import load_value_model

ROWS, PROMPT, NEW, VOCABULARY = 32, 64, 24, 8192


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=512,
        )
    ).eval()


@torch.inference_mode()
def reading(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Return tokens a second of one pass over the prompts."""
    start = time.perf_counter()
    model(ids, use_cache=False)
    return ids.numel() / (time.perf_counter() - start)


@torch.inference_mode()
def decoding(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Return tokens a second of greedy decoding with a cache, prompts not counted."""
    past = model(ids, use_cache=True).past_key_values
    token, start = ids[:, -1:], time.perf_counter()
    for _ in range(NEW):
        out = model(token, past_key_values=past, use_cache=True)
        past, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
    return len(ids) * NEW / (time.perf_counter() - start)


def speeds(rounds: int) -> None:
    exact = small_model()
    models = {"float32": exact, "bfloat16": copy.deepcopy(exact).to(torch.bfloat16)}
    ids = torch.randint(0, VOCABULARY, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    print(
        f"{sum(p.numel() for p in exact.parameters()) / 1e6:.0f}M weights, {torch.get_num_threads()} threads"
    )
    for measure in (reading, decoding):
        found: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(rounds + 1):
            for name, model in models.items():
                found[name].append(measure(model, ids))
        one, two = (median(found[name][1:]) for name in models)
        print(f"{measure.__name__}: float32 {one:.0f} tokens/s, bfloat16 {two:.0f}, ratio {two / one:.2f}")


def moved(checkpoint: str, rollouts: str, most: int) -> None:
    rows = load_rollouts(rollouts)[:most]
    values = []
    for dtype in ("float32", "bfloat16"):
        value, _ = load_value_model(checkpoint, device=torch.device("cpu"), dtype=dtype)
        trees = [value.steps.encode(r.prompt, r.steps) for r in rows]
        values.append(np.concatenate([t.log_value for t in value.score(trees)]))
    apart = np.abs(values[1] - values[0])
    print(
        f"{len(apart)} prefixes: log V moves by {apart.max():.3f} nats at most, {apart.mean():.4f} on average"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint of a value model; default: measure speeds")
    parser.add_argument("--rollouts", help="rollouts whose prefixes are valued")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.model:
        moved(args.model, args.rollouts, args.rows)
    else:
        speeds(args.rounds)
