r"""Rows a second and peak memory of the trainer beside trl 1.13.0's PRMTrainer, the last release that has one.

    python -m venv .venv-trl && .venv-trl/bin/pip install torch==2.13.0 transformers==5.23.0 trl==1.13.0 peft
    python benchmarks/train_vs_trl.py --trl-python .venv-trl/bin/python --out docs/benchmarks/train_vs_trl.json

Same model, same rows, same LoRA, same batch, fp32, no activation checkpointing; one process a measurement, the two sides
in turn, medians over rounds. Cases: ``equal`` rows of 65 tokens; ``ragged`` the 5,276 model solutions of GSM8K, as both
come (trl draws batches at random) and with trl told to group by length; ``children`` 8 alternatives at every
prefix of those solutions: one row a child for trl, packed behind their trajectory here, with a loss on every child (``mc`` with
the Bellman residual) and with bootstrap targets from them (``td``); ``real`` the same solutions, 8 a step, with the weights and
the tokenizer of ``--model``.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HERE = Path(__file__).parent
SOLUTIONS = HERE.parents[1] / "shared" / "data" / "gsm8k" / "example_model_solutions.jsonl"
WARM, RATE, K = 3, 1e-4, 8
# case -> (what each side is told, optimiser steps measured)
CASES: dict[str, dict[str, Any]] = {
    "equal": {
        "data": "equal",
        "batch": 16,
        "steps": 30,
        "sides": {"trl": {}, "rmtools": {"target": "labels"}},
    },
    "ragged": {
        "data": "ragged",
        "batch": 16,
        "steps": 60,
        "sides": {
            "trl": {},
            "trl, grouped by length": {"train_sampling_strategy": "group_by_length"},
            "rmtools": {"target": "labels"},
        },
    },
    "real": {
        "data": "ragged",
        "batch": 8,
        "steps": 6,
        "sides": {
            "trl": {},
            "trl, grouped by length": {"train_sampling_strategy": "group_by_length"},
            "rmtools": {"target": "labels"},
            "rmtools, 1,024 tokens a pass": {"target": "labels", "max_tokens_per_batch": 1024},
        },
    },
    "children": {
        "data": "children",
        "batch": 4,
        "steps": 10,
        "sides": {
            "trl": {"train_sampling_strategy": "group_by_length"},
            "rmtools, loss on children": {"target": "mc", "bellman_residual": 0.1},
            "rmtools, td": {"target": "td"},
        },
    },
}


# What is trained


def make_inputs(folder: Path) -> None:
    """Write two small models and the rows of every case."""
    sys.path.insert(0, str(HERE.parent))
    rows = [json.loads(line) for line in SOLUTIONS.read_text(encoding="utf-8").splitlines()]
    from rmtools.lm.tokenizers import bpe_tokenizer

    texts = [r["question"] + "\n" + r["ground_truth"] for r in rows]
    write_model(folder / "gsm8k", bpe_tokenizer(texts, 2048))
    solved = [one for r in rows for one in solutions(r)]
    write_rows(folder / "ragged.jsonl", [as_trl(*s) for s in solved])
    write_children(folder, solved)
    write_equal(folder)


def solutions(row: dict[str, Any]) -> list[tuple[str, list[str], bool]]:
    """Return prompt, steps and outcome of each model's solution."""
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    return [
        (
            row["question"] + "\n",
            [s for s in row[n]["solution"].split("\n") if s.strip()],
            row[n]["is_correct"],
        )
        for n in names
    ]


def as_trl(prompt: str, steps: list[str], right: bool) -> dict[str, Any]:
    return {"prompt": prompt, "completions": steps, "labels": [right] * len(steps)}


def write_children(folder: Path, solved: list[tuple[str, list[str], bool]]) -> None:
    """Give every prefix K next steps: its own and the steps of other solutions at that depth, all different."""
    chosen = solved[::40]
    by_depth = [sorted({s[t] for _, s, _ in solved if len(s) > t + 1}) for t in range(40)]
    packed, rows = [], []
    for i, (prompt, steps, right) in enumerate(chosen):
        children = []
        for t, own in enumerate(steps):
            pool = [c for c in by_depth[min(t, 3)][7 * i : 7 * i + K + 4] if c != own][: K - 1]
            children.append(pool)
            rows += [as_trl(prompt, [*steps[:t], c], right) for c in (own, *pool)]
        packed.append({"prompt": prompt, "steps": steps, "right": right, "children": children})
    write_rows(folder / "children.jsonl", rows)
    write_rows(folder / "children-packed.jsonl", packed)


def write_equal(folder: Path) -> None:
    """65 tokens each: grids of 10 columns and demonstrations."""
    import numpy as np

    from rmtools.data.tasks import Crossing
    from rmtools.lm.tokenizers import word_tokenizer

    task, rng = Crossing(10), np.random.default_rng(0)
    prompts = task.prompts(2048, rng)[0]
    write_model(folder / "crossing", word_tokenizer(task.vocabulary()))
    rows = [
        as_trl(p, [s[:-1] for s in task.demonstration(p, 0.6, rng)], bool(i % 2))
        for i, p in enumerate(prompts)
    ]
    write_rows(folder / "equal.jsonl", rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def write_model(folder: Path, tokenizer: Any) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# One measurement, in its own process


def arguments(case: dict[str, Any], batch: int, steps: int, told: dict[str, Any], out: str) -> dict[str, Any]:
    return {
        "output_dir": out,
        "per_device_train_batch_size": batch,
        "max_steps": WARM + steps,
        "learning_rate": RATE,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        "seed": 0,
        **told,
    }


def clock() -> Any:
    """Return a callback that knows when the warm steps ended and the last one did."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        start = end = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.end = time.perf_counter()
            if state.global_step == WARM:
                self.start = self.end

    return Clock()


def lora() -> Any:
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.TOKEN_CLS,
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules="all-linear",
        exclude_modules=["score"],
        modules_to_save=["score"],
    )


def trl_trainer(model: str, data: Path, options: dict[str, Any], timer: Any) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForTokenClassification, AutoTokenizer
    from trl.experimental.prm import PRMConfig, PRMTrainer

    found = AutoModelForTokenClassification.from_pretrained(model, num_labels=2)
    config = PRMConfig(**options, gradient_checkpointing=False, max_length=4096)
    rows = Dataset.from_list([json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()])
    return PRMTrainer(
        model=found,
        args=config,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=lora(),
        callbacks=[timer],
    )


def rmtools_trainer(model: str, data: Path, options: dict[str, Any], timer: Any) -> Any:
    sys.path.insert(0, str(HERE.parent))
    from peft import get_peft_model

    from rmtools.data.rollouts import Child, Rollout
    from rmtools.lm.classifier import new_token_classifier
    from rmtools.lm.steps import StepSettings
    from rmtools.training.config import PRMConfig
    from rmtools.training.trainer import PRMTrainer

    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    rollouts = [
        Rollout(
            str(i),
            r["prompt"],
            [s + "\n" for s in r.get("steps", r.get("completions"))],
            float(r.get("right", 0)),
            [[Child(c + "\n", False, None) for c in at] for at in r.get("children", [])],
            labels=[float(x) for x in r["labels"]] if "labels" in r else None,
        )
        for i, r in enumerate(rows)
    ]
    divergence = {"divergence": "bce"} if options.get("target") != "td" else {}
    adapted = get_peft_model(new_token_classifier(model, 0), lora())
    config = PRMConfig(**options, **divergence)
    return PRMTrainer(adapted, config, rollouts, steps=StepSettings("\n", 64), callbacks=[timer])


def measure(args: argparse.Namespace) -> None:
    """Train a few steps and print rows a second and the peak of resident memory."""
    case = CASES[args.case]
    ours, children = args.side.startswith("rmtools"), case["data"] == "children"
    # A batch of 4 packed trajectories holds about 120 children; trl gets 16 rows a step.
    batch, steps = (16, 30) if children and not ours else (case["batch"], case["steps"])
    data = args.folder / (f"{case['data']}{'-packed' if children and ours else ''}.jsonl")
    model = str(args.folder / ("crossing" if case["data"] == "equal" else "gsm8k"))
    if args.case == "real":
        model = args.model
    timer = clock()
    with tempfile.TemporaryDirectory() as out:
        options = arguments(case, batch, steps, case["sides"][args.side], out)
        trainer = (rmtools_trainer if ours else trl_trainer)(model, data, options, timer)
        trainer.train()
    rows = steps * batch
    if children and ours:
        per_row = [sum(K for _ in e.child_reads) for e in trainer.prepared.examples]
        rows = int(rows * statistics.mean(per_row))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("RESULT " + json.dumps({"rows_per_s": rows / (timer.end - timer.start), "peak_gib": peak}))


# All of them


def compare(args: argparse.Namespace) -> None:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        for case in args.cases:
            sides = list(CASES[case]["sides"])
            found: dict[str, list[dict[str, float]]] = {s: [] for s in sides}
            for _ in range(args.rounds):
                for side in sides:
                    python = args.rmtools_python if side.startswith("rmtools") else args.trl_python
                    found[side].append(one(python, case, side, folder, args.model))
            results[case] = summary(found)
            print(case, json.dumps(results[case], indent=1), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")


def one(python: str, case: str, side: str, folder: Path, model: str | None) -> dict[str, float]:
    command = [python, __file__, "--measure", "--case", case, "--side", side, "--folder", str(folder)]
    if model:
        command += ["--model", model]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{side} on {case} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return medians, and for each side the ratio to trl's default round by round."""
    base = [r["rows_per_s"] for r in found["trl"]]
    out = {}
    for side, rounds in found.items():
        ratios = [r["rows_per_s"] / b for r, b in zip(rounds, base, strict=True)]
        out[side] = {
            "rows_per_s": round(statistics.median(r["rows_per_s"] for r in rounds), 2),
            "times_trl": round(statistics.median(ratios), 3),
            "times_trl_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "peak_gib": round(statistics.median(r["peak_gib"] for r in rounds), 3),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trl-python", default=".venv-trl/bin/python")
    parser.add_argument(
        "--rmtools-python",
        default=sys.executable,
        help="of this side; trl's own to compare memory in one environment",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cases", nargs="+", choices=list(CASES), help="default: all, real with --model only"
    )
    parser.add_argument("--model", help="folder of a language model, for case real")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.cases = args.cases or [case for case in CASES if case != "real" or args.model]
    measure(args) if args.measure else compare(args)


if __name__ == "__main__":
    main()
