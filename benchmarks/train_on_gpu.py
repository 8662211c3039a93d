r"""Tokens a second and peak memory of the trainer beside a bare loop: bf16 LoRA on half a billion random weights.

    python benchmarks/train_on_gpu.py --out docs/benchmarks/train_on_gpu.json

A Llama in the shape of Qwen2.5-0.5B (24 layers, d = 896, 151,936 words, bf16), LoRA r = 16 on all linear
layers, fp32 head and loss, rows of 576 tokens (prompt and 8 steps of 64), 32 a step. The bare loop runs the same
model under the same autocast over batches made before the clock starts: forward pass, cross-entropy at the step
ends, backward pass, AdamW. All in one process, in turn, medians over rounds. ``children``: 4 alternatives of 24
tokens at 8 prefixes; their tokens are counted.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROWS, BATCH, TOKENS, STEPS_A_ROW, CHILD_TOKENS, WARM = 512, 32, 512, 8, 24, 5
SIDES: dict[str, dict[str, Any]] = {
    "bare loop": {},
    "labels, bce": {"target": "labels", "divergence": "bce"},
    "td_lambda (default)": {},
    "td_lambda, ema_decay 0": {"ema_decay": 0.0},
    "labels, activation checkpointing": {
        "target": "labels",
        "divergence": "bce",
        "checkpointing": True,
    },
    "children, td": {"target": "td"},
    "children, loss on children": {"target": "mc", "divergence": "bce", "bellman_residual": 0.1},
}


def write_model(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from rmtools.lm.tokenizers import word_tokenizer

    tokenizer = word_tokenizer([*(f"w{i} " for i in range(2000)), "a ", "b ", "\n"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(children: int) -> list[Any]:
    """Return rows of equal length with given labels and outcomes."""
    from rmtools.data.rollouts import Child, Rollout

    rng = np.random.default_rng(0)
    step = TOKENS // STEPS_A_ROW

    def words(n: int) -> str:
        return "".join(f"w{i} " for i in rng.integers(2000, size=n - 1)) + "\n"

    rows = []
    for i in range(ROWS):
        own = [words(step) for _ in range(STEPS_A_ROW - 1)]
        last = words(step - 1)
        others = [
            [Child(words(CHILD_TOKENS), False, None) for _ in range(children)] for _ in range(STEPS_A_ROW)
        ]
        labels = [float(x) for x in rng.integers(2, size=STEPS_A_ROW)]
        reward = float(rng.integers(2))
        rows.append(
            Rollout(str(i), words(step), [*own, last], reward, others if children else [], labels=labels)
        )
    return rows


def build(folder: Path, told: dict[str, Any], rows: list[Any], steps: int, out: str) -> Any:
    from transformers import TrainerCallback
    from trl import ModelConfig

    from rmtools.lm.steps import StepSettings
    from rmtools.training.config import CHECKPOINTING, PRMConfig
    from rmtools.training.lora import build_model
    from rmtools.training.trainer import PRMTrainer

    class Clock(TrainerCallback):
        start = end = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (WARM, WARM + steps):
                torch.cuda.synchronize()
                self.start, self.end = self.end, time.perf_counter()

    told = {{"checkpointing": CHECKPOINTING}.get(k, k): v for k, v in told.items()}
    flags = ModelConfig(dtype="bfloat16", use_peft=True, lora_r=16, lora_alpha=32)
    model = build_model(str(folder), flags, 0)
    config = PRMConfig(
        output_dir=out,
        per_device_train_batch_size=BATCH,
        max_steps=WARM + steps,
        learning_rate=1e-4,
        bf16=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        dataloader_num_workers=2,
        **told,
    )
    clock = Clock()
    return PRMTrainer(model, config, rows, steps=StepSettings("\n", 64), callbacks=[clock]), clock


def bare(trainer: Any, steps: int) -> float:
    """Return the seconds that the same model takes in a loop of its own."""
    examples, collate = trainer.prepared.examples, trainer.data_collator
    batches = [collate(examples[i : i + BATCH]) for i in range(0, len(examples), BATCH)]
    model = trainer.model.cuda().train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    start = 0.0
    for i in range(WARM + steps):
        if i == WARM:
            torch.cuda.synchronize()
            start = time.perf_counter()
        batch = batches[i % len(batches)]
        ids, at, labels = (
            x.cuda() for x in (batch["model"]["input_ids"], batch["reads"], batch["log_label"])
        )
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(input_ids=ids).logits
        chosen = logits.gather(1, at[:, 1:, None].expand(-1, -1, 2)).float()
        torch.nn.functional.cross_entropy(
            chosen.flatten(0, 1), (labels.exp() > 0.5).long().flatten()
        ).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(folder: Path, side: str, steps: int) -> dict[str, float]:
    rows = make_rows(4 if side.startswith("children") else 0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as out:
        told = SIDES["labels, bce"] if side == "bare loop" else SIDES[side]
        trainer, clock = build(folder, told, rows, steps, out)
        tokens = statistics.mean(len(e.tree.ids) for e in trainer.prepared.examples) * BATCH * steps
        if side == "bare loop":
            seconds = bare(trainer, steps)
        else:
            trainer.train()
            seconds = clock.end - clock.start
    return {"tokens_per_s": tokens / seconds, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA device")
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        for _ in range(args.rounds):
            for side in SIDES:
                found[side].append(measure(Path(name), side, args.steps))
                print(side, found[side][-1], flush=True)
    result: dict[str, Any] = {"card": torch.cuda.get_device_name(), "torch": torch.__version__}
    for side, rounds in found.items():
        ratios = [
            r["tokens_per_s"] / b["tokens_per_s"] for r, b in zip(rounds, found["bare loop"], strict=True)
        ]
        result[side] = {
            "tokens_per_s": round(statistics.median(r["tokens_per_s"] for r in rounds)),
            "of_the_bare_loop": round(statistics.median(ratios), 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
            "peak_gib": round(statistics.median(r["peak_gib"] for r in rounds), 2),
        }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
