r"""The law of one output: its_hub's particle filter and our sampler on a three-step model with its exact value.

    pip install "rmtools[its-hub]"
    OMP_NUM_THREADS=1 python benchmarks/law_vs_its_hub.py --out docs/benchmarks/law_vs_its_hub.json

Both get the same tree, the same exact value V of every prefix, the same number of particles and of runs; its_hub's own
ParticleFiltering and StepGeneration run unchanged over a language model that draws steps of the tree. The target is
policy * V(s_T) / Z. its_hub resamples by the odds V / (1 - V) of each score, at the last step too, and its selection by
"sample" weighs by the last odds again, so with ever more particles its output follows

    policy * odds(s_1) * ... * odds(s_T) * odds(s_T), normalised,

which is another law than the target (a choice of its own: it makes no promise of policy * V). The distances to both are
measured. Every run gives the law of one draw given its particles (their normalised weights), not one draw alone; the draws
that its_hub made are tested against it. The toy is the random three-step tree whose distance between the two laws is the median
of 999. A second run hands its_hub scores whose odds are V(s_t) / V(s_{t-1}), as `ItsHubReward(scores="ratio")` does, and
takes one of its particles uniformly.
"""

import argparse
import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from its_hub.api import AbstractLanguageModel, AbstractProcessRewardModel
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
from its_hub.core.lms.step_generation import StepGeneration

from rmtools.core import FiniteModel, random_tree, solve
from rmtools.files import write_json, write_text
from rmtools.verify.law import chi_square
from rmtools.verify.theorems.output_law import signed_direction
from rmtools.verify.theorems.simulation import Setting, output_bias, output_laws

HORIZON, BRANCHING, FLOOR, TOYS = 3, 3, 0.05, 999
SIZES = (8, 64, 256, 4096)
PARTICLES, PARTICLES_OF_OURS = 2**19, 2**25  # at most, of a row
DELIMITER = "\n"
DEFAULT = ("systematic", 0.5)
MANY = 200  # runs of ours for the prediction, in multiples of the runs that are compared


def state_of(answer: str) -> tuple[int, int]:
    """Return depth and state of an answer whose steps are numbers of branches."""
    branches = [int(s) for s in answer.split(DELIMITER) if s]
    state = 0
    for b in branches:
        state = state * BRANCHING + b
    return len(branches), state


class ToyPolicy(AbstractLanguageModel):
    """Draws the next step of each conversation from the tree's policy."""

    def __init__(self, model: FiniteModel, rng: np.random.Generator) -> None:
        self.cumulative = [np.cumsum(p, axis=1) for p in model.policy]
        self.rng = rng

    async def agenerate(
        self, messages: Sequence[Any], stop: str | None = None, **kwargs: Any
    ) -> list[dict[str, str]]:
        found = []
        for conversation, uniform in zip(messages, self.rng.random(len(messages)), strict=True):
            depth, state = state_of(conversation[1].content if len(conversation) > 1 else "")
            branch = int(np.searchsorted(self.cumulative[depth][state], uniform, side="right"))
            found.append({"role": "assistant", "content": str(min(branch, BRANCHING - 1))})
        return found


class ToyValue(AbstractProcessRewardModel):
    """The exact value of a prefix as its score; with ``ratio`` the score whose odds are V(s_t) / V(s_{t-1})."""

    def __init__(self, model: FiniteModel, ratio: bool = False) -> None:
        self.value = [np.exp(v) for v in model.log_value]
        self.ratio = ratio

    def score(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        return [self._one(*state_of(s)) for s in steps]

    async def ascore(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        return self.score(prompt_or_messages, steps)

    def _one(self, depth: int, state: int) -> float:
        value = float(self.value[depth][state])
        if not self.ratio:
            return value
        return value / (value + float(self.value[depth - 1][state // BRANCHING]))


@dataclass(frozen=True)
class Filtered:
    """Runs of its_hub's filter: leaves and last log weights of the particles (R, N), the selected one (R,)."""

    leaf: np.ndarray
    log_weight: np.ndarray
    selected: np.ndarray

    def law(self, selection: str, leaves: int) -> np.ndarray:
        """Return the law of the output of each run, (R, leaves)."""
        weight = np.full(self.leaf.shape, 1 / self.leaf.shape[1])
        if selection == "sample":
            weight = np.exp(self.log_weight - self.log_weight.max(axis=1, keepdims=True))
            weight /= weight.sum(axis=1, keepdims=True)
        elif selection == "argmax":
            weight = np.zeros(self.leaf.shape)
            weight[np.arange(len(weight)), self.log_weight.argmax(axis=1)] = 1.0
        cell = self.leaf + leaves * np.arange(len(weight))[:, None]
        return np.bincount(cell.ravel(), weight.ravel(), minlength=leaves * len(weight)).reshape(-1, leaves)


def run_its_hub(model: FiniteModel, n: int, runs: int, seed: int, ratio: bool = False) -> Filtered:
    """Run ``ParticleFiltering`` with its defaults, selection by "sample"."""
    random.seed(seed)  # its_hub resamples and selects from Python's global generator
    lm = ToyPolicy(model, np.random.default_rng(seed))
    # StepGeneration takes max_steps + 1 steps.
    steps = StepGeneration(max_steps=HORIZON - 1, step_token=DELIMITER)
    pf = ParticleFiltering(steps, ToyValue(model, ratio), final_response_selection="sample")

    async def every() -> list[Any]:
        return [await pf.ainfer(lm, "toy", n, return_response_only=False) for _ in range(runs)]

    found = asyncio.run(every())
    ends = [[state_of(r["content"]) for r in f.responses] for f in found]
    assert all(depth == HORIZON for run in ends for depth, _ in run)
    return Filtered(
        np.asarray([[state for _, state in run] for run in ends]),
        np.asarray([f.log_weights_lst for f in found]),
        np.asarray([f.selected_index for f in found]),
    )


def limit_law(model: FiniteModel, last: int) -> np.ndarray:
    """Return policy * product of the odds, those of the last step to the power ``last``, over the leaves."""
    log_law = model.log_reach[HORIZON].copy()
    leaf = np.arange(len(log_law))
    for t in range(1, HORIZON + 1):
        log_v = model.log_value[t][leaf // BRANCHING ** (HORIZON - t)]
        log_law += (last if t == HORIZON else 1) * (log_v - np.log(-np.expm1(log_v)))
    law = np.exp(log_law - log_law.max())
    return law / law.sum()


def tv(a: np.ndarray, b: np.ndarray) -> float:
    return 0.5 * float(np.abs(a - b).sum())


def median_toy() -> tuple[int, FiniteModel, list[float]]:
    """Return the seed and the tree whose distance between its_hub's law and the target is the median, and 5, 50, 95%."""
    models = [random_tree(HORIZON, BRANCHING, 0.0, FLOOR, np.random.default_rng(i)) for i in range(TOYS)]
    apart = np.array([tv(limit_law(m, 2), target_of(m)) for m in models])
    seed = int(np.argsort(apart)[TOYS // 2])
    return seed, models[seed], np.percentile(apart, [5, 50, 95]).tolist()


def target_of(model: FiniteModel) -> np.ndarray:
    target = solve(model).target
    assert target is not None
    return target


def distance(laws: np.ndarray, law: np.ndarray) -> dict[str, float]:
    """Return TV of the mean of ``laws`` (R, leaves) to ``law``, its 95% interval, and what noise alone would read."""
    mean, error = laws.mean(axis=0), laws.std(axis=0, ddof=1) / np.sqrt(len(laws))
    along = laws @ (0.5 * np.sign(mean - law))
    half = 1.96 * float(along.std(ddof=1)) / np.sqrt(len(laws))
    found = tv(mean, law)
    noise = 0.5 * float(error.sum()) * float(np.sqrt(2 / np.pi))
    return {"tv": found, "low": max(0.0, found - half), "high": found + half, "noise": noise}


def our_laws(model: FiniteModel, setting: Setting, runs: int, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([law for _, law in output_laws(model, setting, runs, rng)])


def compare(model: FiniteModel, n: int, runs: int, seed: int) -> dict[str, Any]:
    """Return the distances of both at N particles, from the same number of runs."""
    target, leaves = target_of(model), len(model.log_value[-1])
    theirs = run_its_hub(model, n, runs, seed)
    sampled = theirs.law("sample", leaves)
    drawn = np.bincount(theirs.leaf[np.arange(runs), theirs.selected], minlength=leaves)
    uniform = run_its_hub(model, n, runs, seed + 1, ratio=True).law("uniform", leaves)
    rng = np.random.default_rng([seed, n])
    return {
        "n": n,
        "runs": runs,
        "its_hub": {
            "sample": distance(sampled, target),
            "argmax": distance(theirs.law("argmax", leaves), target),
            "sample to its own law": distance(sampled, limit_law(model, 2)),
            "uniform to its own law": distance(theirs.law("uniform", leaves), limit_law(model, 1)),
            "ratio scores, uniform": distance(uniform, target),
            "draws against weights": chi_square(drawn.astype(float), runs * sampled.mean(axis=0)),
        },
        "rmtools": {
            "multinomial": distance(our_laws(model, Setting(n), runs, rng), target),
            "default": distance(our_laws(model, Setting(n, 1, *DEFAULT), runs, rng), target),
        },
        "predicted": predict(model, n, min(MANY * runs, PARTICLES_OF_OURS // n), rng),
    }


def predict(model: FiniteModel, n: int, runs: int, rng: np.random.Generator) -> dict[str, float]:
    """Return MAD(H)/2N and the signed distance of ours from many runs, multinomial at every step and default."""
    direction, target, mad = signed_direction(model, 1)
    exact = output_bias(model, Setting(n), runs, direction, target, rng)
    pilot = output_bias(model, Setting(SIZES[0], 1, *DEFAULT), runs, np.eye(len(target)), target, rng)
    signs = 0.5 * np.sign(pilot.controlled)[:, None]
    usual = output_bias(model, Setting(n, 1, *DEFAULT), runs, signs, target, rng)
    return {
        "runs": runs,
        "mad_over_2n": mad / (2 * n),
        "multinomial": float(exact.controlled[0]),
        "multinomial_error": float(exact.controlled_error[0]),
        "default": float(usual.controlled[0]),
        "default_error": float(usual.controlled_error[0]),
    }


HEAD = """# The law of one output: its_hub's particle filter and rmtools

`{command}`. A random tree of {horizon} steps with {branching} branches (floor {floor}, seed {seed}), its exact value as
every score. its_hub {its_hub}: `ParticleFiltering`, unchanged, with its defaults (multinomial resampling after every step).
TV to the target policy * V(s_T) / Z with a 95% interval, the same number of particles and of runs on both sides.
"""
OURS = """rmtools: one draw by weight; multinomial resampling at every step, and the default (systematic when ESS <= N/2).
its_hub: `final_response_selection="sample"` is its draw by weight, "argmax" its default. Noise: what the column of
multinomial would read on average if its law were the target.

## What its_hub converges to

Its weights are the odds V / (1 - V) of each score, it resamples after the last step too, and the selection weighs by the
last odds once more: policy * odds * odds * odds^2, normalised. That law is {limit:.3f} from the target here (random trees of
this shape: median {median:.2f}, 5 to 95% {low:.2f} to {high:.2f}); "argmax" goes to the leaf of the largest value, {argmax:.3f}
away (once N is large enough to find that leaf). It is another target, by its own design perhaps: a score counts at every
step, as an observation of its own. With scores whose odds are V(s_t) / V(s_{{t-1}}) (`ItsHubReward(scores="ratio")`) and one
of its responses taken uniformly, the same filter draws from policy * V (here, where all solutions have {horizon} steps: one
that stops early is weighed by its last odds again at every step of the others).
"""
PREDICTED = """## What rmtools predicts of itself

Signed distance along the bias with its standard error, from more runs (docs/equations.md section 5): MAD(H)/2N is the limit
for multinomial resampling at every step; the default has no formula.
"""


def report(found: dict[str, Any]) -> str:
    """Return the markdown page."""
    toy, rows = found["toy"], found["rows"]
    low, median, high = toy["apart"]
    shape = {"horizon": HORIZON, "branching": BRANCHING, "floor": FLOOR, "seed": toy["seed"]}
    head = HEAD.format(command=found["command"], its_hub=found["its_hub"], **shape)
    ours = OURS.format(
        horizon=HORIZON, limit=toy["limit"], argmax=toy["argmax_limit"], low=low, median=median, high=high
    )
    main_columns = [
        ("N", lambda r: str(r["n"])),
        ("runs", lambda r: str(r["runs"])),
        ('its_hub, "sample"', lambda r: cell(r["its_hub"]["sample"])),
        ('its_hub, "argmax"', lambda r: cell(r["its_hub"]["argmax"])),
        ("rmtools, multinomial", lambda r: cell(r["rmtools"]["multinomial"])),
        ("rmtools, default", lambda r: cell(r["rmtools"]["default"])),
        ("noise", lambda r: f"{r['rmtools']['multinomial']['noise']:.4f}"),
        ("MAD(H)/2N", lambda r: f"{r['predicted']['mad_over_2n']:.4f}"),
    ]
    own_columns = [
        ("N", lambda r: str(r["n"])),
        ('"sample", to policy * odds * last odds', lambda r: cell(r["its_hub"]["sample to its own law"])),
        ("uniform, to policy * odds", lambda r: cell(r["its_hub"]["uniform to its own law"])),
        ("ratio scores, uniform, to the target", lambda r: cell(r["its_hub"]["ratio scores, uniform"])),
        ("noise of the last", lambda r: f"{r['its_hub']['ratio scores, uniform']['noise']:.4f}"),
        ("draws against weights, p", lambda r: f"{r['its_hub']['draws against weights']['p_value']:.2f}"),
    ]
    predicted_columns = [
        ("N", lambda r: str(r["n"])),
        ("runs", lambda r: f"{r['predicted']['runs']:,}"),
        ("MAD(H)/2N", lambda r: f"{r['predicted']['mad_over_2n']:.5f}"),
        ("multinomial", lambda r: signed(r["predicted"], "multinomial", 1, 5)),
        ("its ratio", lambda r: signed(r["predicted"], "multinomial", r["predicted"]["mad_over_2n"], 3)),
        ("default", lambda r: signed(r["predicted"], "default", 1, 5)),
    ]
    parts = [head, table(main_columns, rows), ours, table(own_columns, rows), PREDICTED]
    return "\n".join([*parts, table(predicted_columns, rows)])


def table(columns: list[tuple[str, Callable[[dict[str, Any]], str]]], rows: list[dict[str, Any]]) -> str:
    lines = [[name for name, _ in columns], ["---"] * len(columns)]
    lines += [[show(row) for _, show in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def signed(p: dict[str, float], name: str, unit: float, digits: int) -> str:
    return f"{p[name] / unit:.{digits}f} ± {p[f'{name}_error'] / unit:.{digits}f}"


def cell(d: dict[str, float]) -> str:
    return f"{d['tv']:.4f} [{d['low']:.4f}, {d['high']:.4f}]"


def main() -> None:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=4000, help="runs of each at each N, fewer where N is large"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write, and a page .md beside it")
    args = parser.parse_args()
    seed, model, apart = median_toy()
    limit, target = limit_law(model, 2), target_of(model)
    found: dict[str, Any] = {
        "command": f"python benchmarks/law_vs_its_hub.py --runs {args.runs} --seed {args.seed}",
        "its_hub": version("its_hub"),
        "toy": {
            "seed": seed,
            "apart": apart,
            "limit": tv(limit, target),
            "argmax_limit": 1 - float(target[int(model.log_value[-1].argmax())]),
            "policy": [p.tolist() for p in model.policy],
            "value": [np.exp(v).tolist() for v in model.log_value],
            "target": target.tolist(),
            "its_hub_law": limit.tolist(),
        },
        "rows": [],
    }
    for n in SIZES:
        row = compare(model, n, min(args.runs, PARTICLES // n), 10_000 * args.seed + n)
        found["rows"].append(row)
        print(
            f"N = {n}: its_hub {row['its_hub']['sample']['tv']:.3f}, "
            f"rmtools {row['rmtools']['multinomial']['tv']:.4f}, MAD(H)/2N {row['predicted']['mad_over_2n']:.4f}",
            flush=True,
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, found)
        write_text(args.out.with_suffix(".md"), report(found))


if __name__ == "__main__":
    main()
