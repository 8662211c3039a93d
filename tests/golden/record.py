"""Record the figures of a small training and audit, made by the real commands on a tiny model in seconds.

python tests/golden/record.py                # writes figures.json and environment.json
python tests/golden/record.py --overwrite    # replaces them, and prints how far each figure moved

A record is replaced when figures are meant to move: say so in CHANGELOG.md under **Numerics**. Weights, rows and rewards come
from numpy's generators, so every machine starts from the same numbers; nothing is sampled from a model, where one flipped
token would change all that follows.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import runpy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

HERE = Path(__file__).parent
FIGURES, ENVIRONMENT = HERE / "figures.json", HERE / "environment.json"
RECIPE = HERE.parents[1] / "recipes" / "train_prm.py"
HORIZON, PROMPTS, PER_PROMPT, CHILDREN, COMPLETIONS = 3, 12, 3, 3, 2
# Every divergence for three steps with the defaults, learning rate included; one long enough to give an audit something to find.
TRAININGS: dict[str, dict[str, Any]] = {
    "itakura_saito": {},
    "poisson": {"divergence": "poisson"},
    "contrastive": {"divergence": "contrastive"},
    "bce": {"divergence": "bce", "target": "mc"},
    "mse": {"divergence": "mse", "target": "td"},
    "pqm": {"divergence": "pqm", "target": "mc"},
    "audited": {"max_steps": 12, "learning_rate": 0.01},
}


def figures(folder: Path) -> dict[str, list[float | None]]:
    """Train and audit in ``folder``; return every figure by name."""
    write_policy(folder / "policy")
    for seed, name in enumerate(("train", "heldout")):
        write_rows(folder, name, seed)
    found: dict[str, list[float | None]] = {}
    for name, changes in TRAININGS.items():
        train(folder, folder / name, **changes)
        log = json.loads((folder / name / "training_log.json").read_text())
        for key in ("loss", "learning_rate"):
            found[f"{name}: {key}"] = [row[key] for row in log if key in row]
        found[f"{name}: log values of held-out prefixes"] = held_out_values(folder, name)
    audit(folder, "audited")
    report = json.loads((folder / "audit" / "audit.json").read_text())
    for part in ("error", "cost", "calibration"):
        for path, value in numbers(report["models"][0][part], f"audit: {part}"):
            if "identical" not in path:  # exactly equal values: a count that needs equal bits
                found.setdefault(path, []).append(value)
    return found


def write_policy(folder: Path) -> None:
    """A Llama of 4,000 weights drawn by numpy, whose next word mostly has the kind that the format asks for."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rmtools.data.tasks import Crossing
    from rmtools.lm.tokenizers import word_tokenizer

    tokenizer = word_tokenizer(Crossing(HORIZON).vocabulary())
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape, **special)
    )
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(scale=0.15, size=tuple(p.shape))
        for name, p in sorted(model.named_parameters())
        if p.ndim == 2
    }
    kinds = [["u ", "s ", "d "], ["r0 ", "r1 ", "r2 ", "r3 ", "r4 ", "x "], ["\n"]]
    for kind, words in enumerate(kinds):
        for i in tokenizer.convert_tokens_to_ids(words):
            weights["model.embed_tokens.weight"][i, kind] += 4.0
            weights["lm_head.weight"][i, (kind - 1) % 3] += 2.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in weights:
                p.copy_(torch.from_numpy(weights[name]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path, name: str, seed: int) -> None:
    """Demonstrations of the task ``crossing``, half of them careless; children are steps of others for the same prompt."""
    from rmtools.data.rollouts import Child, Rollout, RolloutMetadata, write_rollouts
    from rmtools.data.tasks import Crossing
    from rmtools.lm.checkpoint import fingerprint
    from rmtools.lm.steps import StepSettings

    task, rng = Crossing(HORIZON), np.random.default_rng(seed)
    rows = []
    for prompt in dict.fromkeys(task.prompts(PROMPTS, rng)[0]):
        for _ in range(PER_PROMPT):
            steps = task.demonstration(prompt, 0.5, rng)
            children = []
            for t in range(HORIZON):
                texts = [task.demonstration(prompt, 0.5, rng)[t] for _ in range(CHILDREN)]
                ended = t == HORIZON - 1
                rewards = [task.reward(prompt, [*steps[:t], x]) if ended else None for x in texts]
                children.append([Child(x, ended, r) for x, r in zip(texts, rewards, strict=True)])
            extra = [[float(rng.random() < 0.4) for _ in range(COMPLETIONS)] for _ in range(HORIZON)]
            rows.append(Rollout(prompt, prompt, steps, task.reward(prompt, steps), children, extra))
    settings = StepSettings(task.delimiter, HORIZON, max_step_tokens=6)
    policy = folder / "policy"
    metadata = RolloutMetadata(str(policy), fingerprint(policy), task.name, HORIZON, settings, 1.0, seed)
    write_rollouts(folder / name, rows, metadata)


def command(*words: Any, script: Path | None = None) -> None:
    """Run ``rmtools`` or a recipe in this process."""
    from rmtools.cli.main import run

    before, sys.argv = sys.argv, [str(script or "rmtools"), *map(str, words)]
    try:
        run() if script is None else runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{' '.join(sys.argv)} ended with {end.code}") from end
    finally:
        sys.argv = before


def train(folder: Path, out: Path, **changes: Any) -> None:
    values = {
        "train_rollouts": folder / "train",
        "output_dir": out,
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "lora_r": 4,
        "report_to": "none",
        "use_cpu": "true",
        "disable_tqdm": "true",
        "dataloader_pin_memory": "false",
        **changes,
    }
    command(*(x for key, value in values.items() for x in (f"--{key}", value)), script=RECIPE)


def audit(folder: Path, name: str) -> None:
    options = ("--rollouts", folder / "heldout", "--out", folder / "audit", "--no-pilot")
    command("audit", "--model", folder / name, *options)


def held_out_values(folder: Path, name: str) -> list[float | None]:
    """Log V of every held-out prefix, nats."""
    from rmtools.data.rollouts import read_rollouts
    from rmtools.lm.checkpoint import load_value_model

    value, _ = load_value_model(folder / name)
    rows, _ = read_rollouts(folder / "heldout")
    scored = value.score([value.steps.encode(r.prompt, r.steps) for r in rows])
    return [float(x) for s in scored for x in s.log_value]


def numbers(value: Any, path: str) -> Iterator[tuple[str, float | None]]:
    """Yield every number and null of JSON values with its path; those of one list share a path."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from numbers(item, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item, path)
    elif not isinstance(value, str):
        yield path, None if value is None else float(value)


def differences(found: list[float | None], recorded: list[float | None]) -> np.ndarray:
    """Absolute differences, relative where the recorded figure is above 1; inf where one of the two is missing."""
    if len(found) != len(recorded) or any(
        (a is None) != (b is None) for a, b in zip(found, recorded, strict=True)
    ):
        return np.array([np.inf])
    pairs = [(a, b) for a, b in zip(found, recorded, strict=True) if a is not None and b is not None]
    return np.array([abs(a - b) / max(1.0, abs(b)) for a, b in pairs] or [0.0])


def rounded(values: list[float | None]) -> list[float | None]:
    """Nine digits: more than fp32 has."""
    return [None if v is None else float(f"{v:.9g}") for v in values]


def environment() -> dict[str, str]:
    """What the figures may depend on besides the code."""
    import torch

    packages = (
        "numpy",
        "scipy",
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "trl",
        "datasets",
        "tokenizers",
    )
    versions = {name: importlib.metadata.version(name) for name in packages}
    machine = {"system": platform.system(), "machine": platform.machine()}
    cpu = {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "threads": str(torch.get_num_threads())}
    return {"python": platform.python_version(), **versions, **machine, **cpu}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--overwrite", action="store_true", help="replace the record")
    args = parser.parse_args()
    if FIGURES.exists() and not args.overwrite:
        print(f"{FIGURES} is there already; fix: pass --overwrite to replace it", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        found = figures(Path(folder))
    if FIGURES.exists():
        recorded = json.loads(FIGURES.read_text())
        for name in sorted(found.keys() | recorded.keys()):
            d = differences(found.get(name, []), recorded.get(name, []))
            if d.max() > 0:
                print(f"{name}: max {d.max():.2g}, mean {d.mean():.2g}")
    lines = (f" {json.dumps(name)}: {json.dumps(rounded(found[name]))}" for name in sorted(found))
    FIGURES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    ENVIRONMENT.write_text(json.dumps(environment(), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
