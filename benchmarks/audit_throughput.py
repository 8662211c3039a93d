r"""Tokens a second of scoring rollouts, children packed, beside bare forward passes over the same batches.

    OMP_NUM_THREADS=1 python benchmarks/audit_throughput.py --out docs/benchmarks/audit_throughput.json

`score_rollouts` tokenises (nothing kept from before), packs, builds the masks, runs the model, reads the values and makes
the arrays of the audit. The bare side runs the same model over the same ids, a trajectory and its children one padded row,
made before the clock starts, in the same batches, causal and without a mask of its own. Real tokens are counted, padding is
not. In turn, the order changing from round to round, medians, seconds of the process, not of the
clock. Two models of random weights (d = 64 with 2 layers,
where Python weighs most, and d = 256 with 4) and two shapes: rows of crossing (27 tokens of prompt, 8 steps of 3) and rows of
grade-school length (80, 6 steps of 25), 7 alternatives to every step.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from rmtools.data.rollouts import Child, Rollout
from rmtools.data.scoring import score_rollouts
from rmtools.files import write_json
from rmtools.lm.steps import EncodedTree, StepSettings, StepTokenizer
from rmtools.lm.tokenizers import word_tokenizer
from rmtools.lm.tree_scoring import batches_by_length
from rmtools.lm.value import TOKENS_PER_BATCH, ValueModel
from rmtools.particles.tilt import Tilt

REQUIRED, WORDS, CHILDREN = 0.8, 1000, 8
# Width, layers, batches.
MODELS = {"d = 64, 2 layers": (64, 2, 4), "d = 256, 4 layers": (256, 4, 1)}
# Tokens of the prompt, steps, tokens of a step, rows of about a batch, and distinct words: crossing has few, its children
# repeat.
SHAPES = {"crossing": (27, 8, 3, 85, 4), "grade school": (80, 6, 25, 12, WORDS)}


def make_rows(
    prompt: int, horizon: int, step: int, count: int, words: int, rng: np.random.Generator
) -> list[Rollout]:
    """Return rollouts of random words."""

    def text(n: int) -> str:
        return "".join(f"w{i} " for i in rng.integers(words, size=n - 1)) + "\n"

    def one(i: int) -> Rollout:
        children = [[Child(text(step), False, None) for _ in range(CHILDREN - 1)] for _ in range(horizon)]
        return Rollout(str(i // 8), text(prompt), [text(step) for _ in range(horizon)], 1.0, children)

    return [one(i) for i in range(count)]


def value_model(tokenizer: Any, hidden: int, layers: int, horizon: int) -> ValueModel:
    """Return a Llama with a two-label head, all random."""
    from transformers import LlamaConfig, LlamaForTokenClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_labels=2,
        classifier_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    steps = StepTokenizer(tokenizer, StepSettings("\n", horizon))
    return ValueModel(LlamaForTokenClassification(config), steps, Tilt(0.01))


def encoded(rows: list[Rollout], steps: StepTokenizer) -> list[EncodedTree]:
    """Return the trees that `score_rollouts` makes of ``rows``."""
    return [
        steps.encode(r.prompt, r.steps, [sorted({c.text for c in at}) for at in r.children]) for r in rows
    ]


def padded_ids(trees: list[EncodedTree], pad: int) -> list[torch.Tensor]:
    """Return the ids of the batches that `ValueModel.score` makes."""
    batches = []
    for batch in batches_by_length(trees, TOKENS_PER_BATCH):
        rows = [torch.from_numpy(trees[i].ids.astype(np.int64)) for i in batch]
        batches.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad))
    return batches


def seconds(what: Callable[[], Any]) -> float:
    start = time.process_time()
    what()
    return time.process_time() - start


@torch.inference_mode()
def compare(model: ValueModel, rows: list[Rollout], rounds: int) -> dict[str, Any]:
    """Return tokens a second of both sides."""
    trees = encoded(rows, model.steps)
    batches, tokens = padded_ids(trees, model.steps.pad_id), sum(len(t.ids) for t in trees)
    ways: dict[str, Callable[[], Any]] = {
        "score_rollouts": lambda: score_rollouts(rows, model),
        "bare": lambda: [model.model(input_ids=ids) for ids in batches],
    }
    sides: dict[str, list[float]] = {"score_rollouts": [], "bare": []}
    for k in range(rounds + 1):
        model.steps = StepTokenizer(model.steps.tokenizer, model.steps.settings)
        for side in sorted(sides, reverse=k % 2 == 0):
            taken = seconds(ways[side])
            sides[side] += [taken] if k else []
    ratios = [bare / ours for ours, bare in zip(sides["score_rollouts"], sides["bare"], strict=True)]
    return {
        "tokens": tokens,
        "tokens with padding": sum(b.numel() for b in batches),
        "batches": [list(b.shape) for b in batches],
        "tokens_per_s": {side: round(tokens / statistics.median(taken)) for side, taken in sides.items()},
        "of_bare": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def throughputs(rounds: int) -> dict[str, Any]:
    """Return the comparison for every model and shape."""
    tokenizer = word_tokenizer([*(f"w{i} " for i in range(WORDS)), "a ", "b ", "\n"])
    found: dict[str, Any] = {"required": REQUIRED}
    for shape, (prompt, horizon, step, count, words) in SHAPES.items():
        for name, (hidden, layers, batches) in MODELS.items():
            rows = make_rows(prompt, horizon, step, count * batches, words, np.random.default_rng(0))
            model = value_model(tokenizer, hidden, layers, horizon)
            found[f"{shape}, {name}"] = compare(model, rows, rounds)
            print(shape, name, found[f"{shape}, {name}"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = throughputs(args.rounds)
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
