r"""Does calibrating a bad reward model save particles? PRMs of the task crossing before and after their map, on held-out prompts.

    python benchmarks/calibrate.py --out runs/calibrate
    python benchmarks/calibrate.py --out runs/calibrate --horizon 8 --method full --policy runs/scaling/policy
        --checkpoints runs/scaling/models/*/checkpoint-*       # with what `rmtools verify scaling --full` trained
    python benchmarks/calibrate.py --out runs/calibrate --table

Reward models of the quick start's size: trained on step labels, stopped after a few optimiser steps (or checkpoints that
are there), and distortions of the last of these. Each is calibrated on rollouts of prompts it was not trained on (the
defaults of `rmtools calibrate`), and measured on others: particles for a coefficient of variation of .25 (sigma^2 of the
policy written out as tables, as the audit counts them), RMS of log rho over enumerated next steps, Brier score. A line of
JSON a model, appended: a rerun resumes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import losses_on_crossing as losses
import numpy as np

DELTA_CV, FLOOR, TABLES = 0.25, 0.01, 12
EQUAL = 1e-4  # relative rounding below which particles are the same
# Name, target, divergence, seed, optimiser steps.
TRAINED = (
    ("labels 1", "labels", "bce", 1, 20),
    ("labels 2", "labels", "bce", 2, 40),
    ("labels 3", "labels", "pqm", 3, 20),
    ("labels 4", "labels", "pqm", 4, 40),
    ("early 1", "mc", "bce", 1, 10),
    ("early 2", "mc", "bce", 2, 20),
    ("early 3", "td", "itakura_saito", 3, 20),
    ("early 4", "mc", "mse", 4, 20),
    ("short", "mc", "bce", 5, 80),
)
# Slope and intercept in log odds by depth, of the last of them.
DISTORTED = {
    "too sure": ((3.0,), (0.0,)),
    "too timid": ((0.3,), (0.0,)),
    "too high": ((1.0,), (3.0,)),
    "drifting": (
        (0.5, 0.8, 1.1, 1.4, 1.7, 2.0, 2.3, 2.6, 2.9),
        (2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0),
    ),
}


@dataclass
class Setting:
    """Policy, rollouts to train on, to calibrate on and to measure on, all of different prompts."""

    folder: Path
    policy: Any
    task: Any
    rows: list[Any]
    calibrate: list[Any]
    held_out: list[Any]
    tables: list[Any] = field(default_factory=list)

    def labelled(self) -> list[Any]:
        """Return the training rows with exact step labels."""
        return losses.Setting.labelled(self)  # type: ignore[arg-type]

    def enumerations(self) -> list[Any]:
        """Return the prefixes of the first held-out prompts."""
        from rmtools.lm.enumerate import enumerate_prefixes

        for prompt in list(dict.fromkeys(r.prompt for r in self.held_out))[len(self.tables) : TABLES]:
            choices = self.task.step_choices(prompt, [])
            self.tables.append(enumerate_prefixes(self.policy, prompt, choices, self.task.reward, 3e-3))
        return self.tables


def setting(args: argparse.Namespace) -> Setting:
    """Make the policy if it is not there, and draw the rollouts."""
    import torch

    from rmtools.data.collect import Branching, Collector
    from rmtools.data.tasks import Crossing
    from rmtools.lm.policy import load_policy
    from rmtools.lm.steps import StepSettings

    task, folder = Crossing(args.horizon), args.policy or args.out / f"policy-{args.horizon}"
    if args.policy is None and not (folder / "config.json").exists():
        recipe = Path(__file__).parents[1] / "recipes" / "train_policy.py"
        words = ["--out", folder, "--horizon", args.horizon, "--iterations", args.iterations]
        command = [recipe, *words, "--gate-samples", 0, "--care", losses.CARE.get(args.horizon, 0.5)]
        subprocess.run([sys.executable, *map(str, command)], check=True, stdout=sys.stderr)
    policy = load_policy(folder, StepSettings(task.delimiter, args.horizon), device=torch.device("cpu"))
    rng = np.random.default_rng(0)
    prompts = list(dict.fromkeys(task.prompts(280, rng)[0]))
    parts = (
        (prompts[:128], Branching(8)),
        (prompts[128:192], Branching(8, 1, 3)),
        (prompts[192:216], Branching(4)),
    )
    drawn = [Collector(policy, task, how, rng).collect(some) for some, how in parts]
    return Setting(folder, policy, task, *drawn)


def models(its: Setting, args: argparse.Namespace, done: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield name, kind and scorer of every model that is not ``done``."""
    from rmtools.lm.calibrated import CalibratedValue, without_floor
    from rmtools.lm.checkpoint import load_value_model
    from rmtools.lm.value import ValueModel
    from rmtools.particles.tilt import Tilt
    from rmtools.stats.monotone_map import MonotoneMap

    bent_from: Any = None
    for folder in args.checkpoints:
        model = load_value_model(folder)[0].model
        bent_from = ValueModel(model, its.policy.steps, Tilt(FLOOR), "/".join(folder.parts[-2:]))
        if bent_from.name not in done:
            yield bent_from.name, "a checkpoint", bent_from
    trained = [t for t in TRAINED if t[1] == "labels" or not args.checkpoints]
    for name, target, divergence, seed, steps in trained:
        if name not in done or (bent_from is None and name == trained[-1][0]):
            spec = {"target": target, "divergence": divergence, "seed": seed, "steps": steps}
            found, _ = losses.train(its, {**spec, "floor": FLOOR, "method": args.method}, args.out)  # type: ignore[arg-type]
            if name not in done:
                yield name, f"{target}, {divergence}, {steps} steps", found
            bent_from = found if not args.checkpoints else bent_from
    bare, _ = without_floor(bent_from)
    for name, (slopes, intercepts) in DISTORTED.items():
        if name not in done:
            depths = max(len(slopes), len(intercepts))
            bent = MonotoneMap(
                tuple(np.resize(intercepts, depths).tolist()),
                tuple((float(s),) for s in np.resize(slopes, depths)),
            )
            yield (
                name,
                f"{bent_from.name or 'the model above'}, distorted",
                CalibratedValue(bare, bent, Tilt(FLOOR), name),
            )


def measured(its: Setting, scorer: Any) -> dict[str, float]:
    found = losses.figures(its, scorer)  # type: ignore[arg-type]
    return {
        "particles": found["sigma2"] / DELTA_CV**2,
        "rms_log_rho": found["rms_log_rho"],
        "brier": found["brier"],
        "auc": found["auc"],
    }


def run(args: argparse.Namespace) -> None:
    from rmtools.evaluation.calibrate import calibrate
    from rmtools.lm.calibrated import CalibratedValue, without_floor

    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "calibrate.jsonl"
    done = [json.loads(line)["name"] for line in log.read_text().splitlines()] if log.exists() else []
    its = setting(args)
    rate = float(np.mean([r.outcome for r in its.rows]))
    print(f"T = {args.horizon}, success {rate:.3f}", flush=True)
    for name, kind, scorer in models(its, args, done):
        before = measured(its, scorer)
        fitted = calibrate(its.calibrate, scorer, np.random.default_rng(0))
        inner, tilt = without_floor(scorer)
        mapped = CalibratedValue(inner, fitted.map, tilt, name)
        after = measured(its, mapped)
        scorer.tilt = tilt
        row = {
            "name": name,
            "kind": kind,
            "success": rate,
            "form": fitted.form,
            "before": before,
            "after": after,
        }
        with log.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(name, fitted.form, {k: (round(before[k], 3), round(after[k], 3)) for k in before}, flush=True)
    table(args)


def table(args: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in (args.out / "calibrate.jsonl").read_text().splitlines()]
    fewer = sum(r["after"]["particles"] <= r["before"]["particles"] * (1 + EQUAL) for r in rows)
    print("| model | trained | map | particles | RMS log ρ | Brier | AUC |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for r in rows:
        b, a = r["before"], r["after"]
        figures = (f"{b[k]:.3g} → {a[k]:.3g}" for k in ("particles", "rms_log_rho", "brier", "auc"))
        print("| " + " | ".join((r["name"], r["kind"], r["form"], *figures)) + " |")
    print(f"\nparticles after at most those before: {fewer} of {len(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/calibrate"))
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=300, help="optimiser steps of the policy")
    parser.add_argument("--policy", type=Path, help="one that is there; default: trained here")
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="instead of the early ones")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    args = parser.parse_args()
    table(args) if args.table else run(args)


if __name__ == "__main__":
    main()
