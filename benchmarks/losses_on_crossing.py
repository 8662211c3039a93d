r"""Which target with which divergence? Value models of the task crossing against enumerated truth.

    python benchmarks/losses_on_crossing.py run --out runs/losses --horizon 8 --jobs 2
    python benchmarks/losses_on_crossing.py table --out runs/losses

Every combination gets the same policy, the same 8,192 trajectories, the same number of optimiser steps and the same
learning rate. Figures are of prompts that were not trained on: RMS of log rho and of rho - 1 from enumerated next steps, Brier
and AUC of p against outcomes at all prefixes, and sigma^2 (docs/equations.md, section 5) of the policy written out as a table,
pooled over prompts; terminal the verifier's potential. One line of JSON a run, appended: a rerun goes on where it stopped.

The policy is trained first, and on another machine it becomes another one: rows of different draws of it (``policy``, 1
where it is not named) are not compared, each draw has its own constant.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from rmtools.core import solve

STEPS, BATCH, PROMPTS, TRAJECTORIES = 500, 64, 1024, 8
HELD_OUT = 96
# Prompts written out as tables, and the rarest step in them: a prompt of T = 16 has some 10,000 live paths.
TABULATED, MIN_PROBABILITY = {8: 24, 16: 6}, {8: 1e-3, 16: 1e-2}
# A second half of demonstrations this careful leaves a success rate of 4 to 10%; longer paths fail more often.
CARE = {8: 0.35, 16: 0.62}
RATE = {"lora": 3e-3, "full": 1e-3}
SETTING: list[Any] = []
PAIRS = [
    *itertools.product(("mc", "td", "td_lambda", "n_step"), ("bce", "mse", "itakura_saito", "poisson")),
    ("mc", "contrastive"),
    ("td", "contrastive"),
    ("labels", "pqm"),
]


def combinations(horizon: int) -> Iterator[dict[str, Any]]:
    """Yield the runs, the most telling first."""
    for method, floor in (("lora", 0.01), ("full", 0.01), ("lora", 0.05), ("full", 0.05)):
        for seed, (target, divergence) in itertools.product(range(3), PAIRS):
            yield {
                "horizon": horizon,
                "method": method,
                "floor": floor,
                "seed": seed,
                "target": target,
                "divergence": divergence,
            }


class Setting:
    """One horizon: task, policy, rollouts to train on and rollouts to measure on."""

    def __init__(self, out: Path, horizon: int) -> None:
        import torch

        from rmtools.data.collect import Branching, Collector
        from rmtools.data.tasks import Crossing
        from rmtools.lm.policy import load_policy
        from rmtools.lm.steps import StepSettings

        self.task, self.folder = Crossing(horizon), out / f"policy-{horizon}"
        if not (self.folder / "gate.json").exists():
            train_policy(self.folder, horizon)
        self.policy = load_policy(
            self.folder, StepSettings(self.task.delimiter, horizon), device=torch.device("cpu")
        )
        rng = np.random.default_rng([horizon, 1])
        prompts = self.task.prompts(PROMPTS + HELD_OUT, rng)[0]
        self.prompts = [p for p in dict.fromkeys(prompts[PROMPTS:]) if p not in set(prompts[:PROMPTS])]
        self.rows = Collector(self.policy, self.task, Branching(TRAJECTORIES), rng).collect(prompts[:PROMPTS])
        self._enumerated: list[Any] = []
        self.held_out = Collector(self.policy, self.task, Branching(4), rng).collect(self.prompts)

    def move(self, device: str) -> None:
        """Move the policy to ``device``."""
        self.policy.model.to(device)

    def enumerations(self) -> list[Any]:
        """Return the prefixes of the first held-out prompts under the policy."""
        from rmtools.lm.enumerate import enumerate_prefixes

        if not self._enumerated:
            horizon, reward = self.task.horizon, self.task.reward
            rarest = MIN_PROBABILITY.get(horizon, 1e-2)
            for prompt in self.prompts[: TABULATED.get(horizon, 6)]:
                choices = self.task.step_choices(prompt, [])
                self._enumerated.append(enumerate_prefixes(self.policy, prompt, choices, reward, rarest))
        return self._enumerated

    def labelled(self) -> list[Any]:
        """Return the training rows with exact step labels, for the ranking loss."""
        from dataclasses import replace

        return [replace(r, labels=self.task.step_labels(r.prompt, r.steps)) for r in self.rows]


def train_policy(folder: Path, horizon: int) -> None:
    """Make the policy with the recipe; its gate is for T = 8 and may fail elsewhere."""
    recipe = Path(__file__).parents[1] / "recipes" / "train_policy.py"
    command = [sys.executable, str(recipe), "--out", str(folder), "--horizon", str(horizon)]
    subprocess.run([*command, "--care", str(CARE.get(horizon, 0.5))], check=False)


def train(setting: Setting, spec: dict[str, Any], out: Path) -> Any:
    """Train one value model; return it as a scorer, and the seconds it took."""
    from transformers import set_seed
    from trl import ModelConfig

    from rmtools.lm.value import ValueModel
    from rmtools.particles.tilt import Tilt
    from rmtools.training.config import PRMConfig
    from rmtools.training.lora import build_model
    from rmtools.training.trainer import PRMTrainer

    config = PRMConfig(
        output_dir=str(out / "unused"),
        target=spec["target"],
        divergence=spec["divergence"],
        floor=spec["floor"],
        seed=spec["seed"],
        max_steps=spec.get("steps", STEPS),
        per_device_train_batch_size=BATCH,
        learning_rate=RATE[spec["method"]],
        lr_scheduler_type="cosine",
        warmup_steps=30,
        weight_decay=0.0,
        report_to="none",
        use_cpu=setting.policy.device.type == "cpu",
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    set_seed(spec["seed"])
    flags = ModelConfig(use_peft=spec["method"] == "lora", lora_r=32, lora_alpha=64)
    model = build_model(str(setting.folder), flags, spec["seed"])
    rows = setting.labelled() if spec["target"] == "labels" else setting.rows
    steps = setting.policy.steps
    trainer = PRMTrainer(model, config, rows, processing_class=steps.tokenizer, steps=steps.settings)
    start = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    seconds = time.monotonic() - start
    return ValueModel(model, setting.policy.steps, Tilt(spec["floor"])), seconds


def figures(setting: Setting, scorer: Any) -> dict[str, float]:
    """Return what the model is worth on prompts it was not trained on."""
    from rmtools.data.scoring import score_rollouts
    from rmtools.lm.enumerate import exact_ratios
    from rmtools.stats.calibration import auc, brier

    prompt = setting.held_out[0].prompt
    found = exact_ratios(
        setting.policy,
        [scorer],
        [(r.prompt, r.steps) for r in setting.held_out],
        setting.task.step_choices(prompt, []),
        setting.task.reward,
    )
    b = np.concatenate(found.log_error[0])
    scored = score_rollouts(setting.held_out, scorer)
    p = np.exp(scorer.tilt.log_probability(np.concatenate(scored.own_log_value)))
    outcome = np.repeat(scored.reward, [len(v) for v in scored.own_log_value])
    z2, sigma2, perfect = [], [], []
    for table in setting.enumerations():
        model = table.score(scorer).model
        exact = solve(model)
        z2.append(np.exp(2 * exact.log_z))
        sigma2.append(exact.sigma2)
        perfect.append(exact.sigma2_true_value)
    return {
        "rms_log_rho": float(np.sqrt(np.nanmean(b**2))),
        "rms_rho_minus_1": float(np.sqrt(np.nanmean(np.expm1(b) ** 2))),
        "mean_log_rho": float(np.nanmean(b)),
        "brier": float(brier(p, outcome)),
        "auc": float(auc(p, outcome) or np.nan),
        "sigma2": float(np.sum(np.asarray(z2) * sigma2) / np.sum(z2)),
        "sigma2_of_the_true_value": float(np.sum(np.asarray(z2) * perfect) / np.sum(z2)),
    }


def controls(setting: Setting, floor: float) -> dict[str, float]:
    """Return the figures of the constant base rate."""
    from rmtools.lm.value import ConstantValue
    from rmtools.particles.tilt import Tilt

    rate = float(np.mean([r.outcome for r in setting.rows]))
    return figures(setting, ConstantValue(rate, setting.policy.steps, Tilt(floor)))


def constants(horizon: int) -> list[dict[str, Any]]:
    """Return the controls, as runs."""
    named = {"method": "constant", "seed": 0, "target": "-", "divergence": "-"}
    order = ("horizon", "method", "floor", "seed", "target", "divergence")
    return [{k: {**named, "horizon": horizon, "floor": f}[k] for k in order} for f in (0.01, 0.05)]


def work(spec: dict[str, Any]) -> dict[str, Any]:
    """Make one row; the setting is the one this process was forked with."""
    if spec["method"] == "constant":
        found, seconds = controls(SETTING[0], spec["floor"]), 0.0
    else:
        scorer, seconds = train(SETTING[0], spec, SETTING[1])
        found = figures(SETTING[0], scorer)
    return {**spec, "seconds": round(seconds, 1), "figures": found}


def begin(out: Path, horizon: int, device: str) -> None:
    """Draw the same rollouts again, in a worker that is spawned: a forked one cannot use a GPU."""
    import torch

    torch.set_num_threads(1)
    SETTING[:] = [Setting(out, horizon), out]
    SETTING[0].move(device)


def run(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / f"losses-{args.horizon}.jsonl"
    known = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {json.dumps({k: v for k, v in row.items() if k not in ("figures", "seconds")}) for row in known}
    setting = Setting(args.out, args.horizon)
    rate = float(np.mean([r.outcome for r in setting.rows]))
    print(f"T = {args.horizon}: {len(setting.rows)} trajectories, success {rate:.3f}", flush=True)
    left = [s for s in [*constants(args.horizon), *combinations(args.horizon)] if json.dumps(s) not in done]
    given = (args.out, args.horizon, args.device)
    pool = ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn"), begin, given)
    with pool:
        for future in as_completed([pool.submit(work, s) for s in left]):
            row = future.result()
            with log.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            short = {k: round(v, 3) for k, v in row["figures"].items()}
            print({k: v for k, v in row.items() if k != "figures"}, short, flush=True)


def table(args: argparse.Namespace) -> None:
    """Print the medians over seeds, with the range of the first figure."""
    rows = [
        json.loads(line)
        for f in sorted(args.out.glob("losses-*.jsonl"))
        for line in f.read_text().splitlines()
    ]
    names = ("rms_log_rho", "rms_rho_minus_1", "mean_log_rho", "brier", "auc", "sigma2")
    head = "T, policy, method, floor, target, divergence, seeds, RMS log ρ [range], RMS ρ − 1, mean log ρ, Brier, AUC, σ²"
    print("| " + " | ".join(head.split(", ")) + " |")
    print("|" + " --- |" * len(head.split(", ")))
    key = ("horizon", "policy", "method", "floor", "target", "divergence")
    groups: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(k, 1) for k in key), []).append(row["figures"])
    for group in sorted(groups, key=lambda g: (*g[:4], np.median([f["rms_log_rho"] for f in groups[g]]))):
        found = groups[group]
        first = [f["rms_log_rho"] for f in found]
        cells = [f"{np.median([f[n] for f in found]):.3g}" for n in names]
        cells[0] += f" [{min(first):.3g}, {max(first):.3g}]"
        print("| " + " | ".join([*map(str, group), str(len(found)), *cells]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--out", type=Path, default=Path("runs/losses"))
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one core each")
    parser.add_argument(
        "--device", default="cpu", help="cpu or cuda: the models are small, cores matter more"
    )
    args = parser.parse_args()
    run(args) if args.what == "run" else table(args)


if __name__ == "__main__":
    main()
