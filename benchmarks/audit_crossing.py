"""The task crossing written out as tables: a policy's prompts as a population, value models trained on it.

Policies and tables are kept in the work folder; a policy that is not there is trained as `losses_on_crossing` does it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import losses_on_crossing as losses
import numpy as np
from audit_population import Population, perfect

from rmtools.exact.finite_model import FiniteModel

FLOOR = 0.01
# The rarest step in a table. A prompt of T = 16 has some 70,000 live paths at .01: its tables are cut at .02.
RAREST = {8: 1e-3, 16: 2e-2}
STEPS = (50, 150, 500)
PAIRS = (("mc", "bce"), ("mc", "mse"), ("td", "itakura_saito"), ("td_lambda", "poisson"))


def tabulated(work: Path, horizon: int, n_prompts: int, seed: int) -> Population:
    """Return prompts of the task under the work folder's policy, with perfect values."""
    rarest = RAREST.get(horizon, 1e-2)
    kept = work / f"tables-{horizon}-{n_prompts}-{rarest:g}-{seed}.npz"
    if not kept.exists():
        models = list(_enumerated(work, horizon, n_prompts, rarest, seed))
        save(kept, models)
    return Population(tuple(perfect(m, np.random.default_rng(0)) for m in load(kept)))


def _enumerated(work: Path, horizon: int, n_prompts: int, rarest: float, seed: int) -> Iterator[FiniteModel]:
    import torch

    from rmtools.data.tasks import Crossing
    from rmtools.lm.enumerate import enumerate_prefixes
    from rmtools.lm.policy import load_policy
    from rmtools.lm.steps import StepSettings
    from rmtools.lm.value import ConstantValue
    from rmtools.particles.tilt import Tilt

    torch.set_num_threads(1)
    task, folder = Crossing(horizon), work / f"policy-{horizon}"
    if not (folder / "gate.json").exists():
        losses.train_policy(folder, horizon)
    policy = load_policy(folder, StepSettings(task.delimiter, horizon), device=torch.device("cpu"))
    blind = ConstantValue(0.5, policy.steps, Tilt(FLOOR))
    for i, prompt in enumerate(task.prompts(n_prompts, np.random.default_rng([seed, horizon]))[0]):
        found = enumerate_prefixes(policy, prompt, task.step_choices(prompt, []), task.reward, rarest)
        print(
            f"table {i + 1} of {n_prompts}: {len(found.paths)} paths, {found.uncovered:.3f} left out",
            file=sys.stderr,
        )
        yield found.score(blind).model


def save(file: Path, models: list[FiniteModel]) -> None:
    """Write models with their values."""
    arrays = {}
    for p, m in enumerate(models):
        for t in range(m.horizon):
            arrays[f"{p} {t} policy"], arrays[f"{p} {t} child"] = m.policy[t], m.child(t)
        for t, v in enumerate(m.log_value):
            arrays[f"{p} {t} value"] = v
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays)


def load(file: Path) -> list[FiniteModel]:
    """Read what `save` wrote."""
    with np.load(file) as kept:
        arrays = dict(kept)
    n_models = 1 + max(int(key.split()[0]) for key in arrays)
    horizon = max(int(key.split()[1]) for key in arrays)
    return [
        FiniteModel(
            [arrays[f"{p} {t} policy"] for t in range(horizon)],
            [arrays[f"{p} {t} value"] for t in range(horizon + 1)],
            [arrays[f"{p} {t} child"] for t in range(horizon)],
        )
        for p in range(n_models)
    ]


def trained(work: Path, horizon: int) -> Iterator[tuple[str, Population]]:
    """Yield value models of different training on the same tables: optimiser steps times losses."""
    setting: Any = None
    for steps in STEPS:
        for target, divergence in PAIRS:
            name = f"{target}, {divergence}, {steps} steps"
            kept = work / f"trained-{horizon}-{target}-{divergence}-{steps}.npz"
            if not kept.exists():
                setting = setting or losses.Setting(work, horizon)
                spec = {"target": target, "divergence": divergence, "steps": steps}
                spec |= {"method": "lora", "floor": FLOOR, "seed": 0}
                scorer, seconds = losses.train(setting, spec, work)
                save(kept, [e.score(scorer).model for e in setting.enumerations()])
                print(f"{name}: {seconds:.0f} s", file=sys.stderr)
            yield name, Population(tuple(load(kept)))


def base_rate(population: Population) -> float:
    """Return the value of the constant control."""
    return float(population.z.mean())
