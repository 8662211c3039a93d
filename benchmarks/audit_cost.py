r"""What an audit's figures cost in tokens: branching rollouts and packed scoring against draws one by one.

    OMP_NUM_THREADS=1 python benchmarks/audit_cost.py --out docs/benchmarks/audit_cost.json

Three ways to the same figures, n trajectories a prompt, K children and R completions at every prefix:

- branching: the toolkit's. A prompt is read once; children and completions fork the cache, the trajectory's own step and
  outcome count among them; one scoring pass a trajectory, its distinct children packed behind it.
- one by one: K children and R completions drawn at every prefix apart from the trajectory, each read from the start of the
  prompt again; every prefix and every child is a row to score, from the start of the prompt.
- cached, rows: draws as branching does, prefixes scored in one pass a trajectory, but every child a row of its own.

A token counts where a model has to read or draw it. prefill: tokens read before the first drawn one, in every sequence that
is started. generated: every token drawn, whether or not equal prefixes were decoded as one. scored: every token a value model
reads. Nothing is charged for the attention to what is cached, nor for padding; the positions that the toolkit's models really
computed, padding included and equal prefixes merged, stand beside. The draws of "one by one" have the same law however they
are made, so they are made by the collector, and counted as above.

Precision is 1 / variance of the mean of the unbiased (rho - 1)^2 and of the pooled sigma^2 (docs/equations.md, sections 5 and
6), linearised over prompts: once for the population of prompts, as intervals have it, and once for the prompts held fixed,
over repetitions. Figures are tokens times variance, one by one over branching, with a 95% bootstrap interval over prompts.
Two cases: the task crossing (T = 8, steps of 3 tokens), and random weights at the lengths of grade-school solutions: prompts
of 60 to 100 tokens, 6 steps of 25. Throughput of scoring: benchmarks/audit_throughput.py.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from losses_on_crossing import train, train_policy

from rmtools.codec import to_json
from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import Rollout
from rmtools.data.scoring import ScoredRollouts, score_rollouts
from rmtools.data.tasks import Crossing
from rmtools.data.tasks.protocol import Verifier
from rmtools.files import write_json
from rmtools.lm.classifier import new_token_classifier
from rmtools.lm.policy import Policy, load_policy
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.value import ValueModel
from rmtools.particles.tilt import Tilt
from rmtools.stats.bootstrap import cluster_sums
from rmtools.stats.prefix_errors import prefix_errors
from rmtools.stats.sigma2 import sigma2_parts, value_square_estimate

# At .01 a single prefix of low value and two lucky children can outweigh all others: .05 beside it.
FLOORS, REQUIRED = (0.05, 0.01), 4.0
FIGURES = [f"{figure}, floor {f:g}" for f in FLOORS for figure in ("mean (rho - 1)^2", "pooled sigma^2")]
TRAINING_PROMPTS, WORDS = 1024, 1000


class Majority:
    """A verifier for random words: right where most words of the solution have an even number."""

    def reference(self, prompt: str) -> None:
        """Return None: many solutions are right."""

    def reward(self, prompt: str, steps: Sequence[str]) -> float:
        """Return 1.0 or 0.0."""
        numbers = [int(w[1:]) for w in "".join(steps).split() if w[1:].isdigit()]
        return float(sum(n % 2 == 0 for n in numbers) > len(numbers) / 2)


@dataclass(frozen=True)
class Case:
    """A policy, its task and value model, prompts, and how many branches."""

    policy: Policy
    task: Verifier
    scorer: ValueModel
    prompts: list[str]
    branching: Branching
    repetitions: int


def crossing(folder: Path | None, work: Path, prompts: int, repetitions: int) -> Case:
    """Return T = 8 of crossing with a value model trained for a minute."""
    if folder is None:
        folder = work / "policy-8"
        train_policy(folder, 8)
    task = Crossing(8)
    policy = load_policy(folder, StepSettings(task.delimiter, 8), device=torch.device("cpu"))
    rng = np.random.default_rng(0)
    drawn = list(dict.fromkeys(task.prompts(TRAINING_PROMPTS + prompts + prompts // 8, rng)[0]))
    rows = Collector(policy, task, Branching(8), rng).collect(drawn[:TRAINING_PROMPTS])
    told = {
        "method": "full",
        "floor": FLOORS[1],
        "seed": 0,
        "target": "td_lambda",
        "divergence": "itakura_saito",
    }
    scorer, _ = train(SimpleNamespace(folder=folder, policy=policy, rows=rows), told, work)
    held_out = drawn[TRAINING_PROMPTS : TRAINING_PROMPTS + prompts]
    return Case(policy, task, scorer, held_out, Branching(8, 8, 4), repetitions)


def random_words(work: Path, prompts: int, repetitions: int) -> Case:
    """Return random weights at grade-school lengths."""
    from rmtools.lm.tokenizers import word_tokenizer
    from rmtools.training.small_models import small_llama

    folder, rng = work / "random", np.random.default_rng(1)
    tokenizer = word_tokenizer([*(f"w{i} " for i in range(WORDS)), "a ", "b ", "\n"])
    small_llama(tokenizer, 64, 2, 512, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy = load_policy(folder, StepSettings("\n", 6, 25), device=torch.device("cpu"))
    drawn = ["".join(f"w{i} " for i in rng.integers(WORDS, size=n)) for n in rng.integers(60, 101, prompts)]
    scorer = ValueModel(new_token_classifier(str(folder), 0), policy.steps, Tilt(FLOORS[1]))
    return Case(policy, Majority(), scorer, drawn, Branching(4, 8, 4), repetitions)


@dataclass
class Tokens:
    """What a way costs, summed over prompts and repetitions."""

    prefill: int = 0
    generated: int = 0
    scored: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.prefill + self.generated + self.scored

    def per_prompt(self, n: int) -> dict[str, float]:
        """Return the figures of one of ``n`` prompts."""
        return {k: round(v / n, 1) for k, v in {**vars(self), "total": self.total}.items()}


def prefix_lengths(row: Rollout, steps: StepTokenizer) -> np.ndarray:
    """Return (T + 1,) tokens of the prompt and of every prefix."""
    own = [len(steps.step_ids(s)) for s in row.steps]
    return len(steps.prompt_ids(row.prompt)) + np.concatenate([[0], np.cumsum(own, dtype=int)])


def child_rows(row: Rollout, at: np.ndarray, steps: StepTokenizer) -> int:
    """Return the tokens of a row for each child, from the start of the prompt."""
    return sum(
        int(at[t]) + len(steps.step_ids(c.text)) for t, found in enumerate(row.children) for c in found
    )


def packed_length(row: Rollout, steps: StepTokenizer) -> int:
    """Return the tokens of the trajectory with its distinct children behind it, as it is scored."""
    return len(steps.encode(row.prompt, row.steps, [sorted({c.text for c in at}) for at in row.children]).ids)


def count_branching(rows: list[Rollout], drawn: int, steps: StepTokenizer) -> tuple[Tokens, Tokens]:
    """Return the tokens of the toolkit's way, and of the one that scores every child as a row."""
    prefill = sum(len(steps.prompt_ids(p)) for p in dict.fromkeys(r.prompt for r in rows))
    lengths = [prefix_lengths(r, steps) for r in rows]
    packed = sum(packed_length(r, steps) for r in rows)
    alone = sum(int(at[-1]) + child_rows(r, at, steps) for r, at in zip(rows, lengths, strict=True))
    return Tokens(prefill, drawn, packed), Tokens(prefill, drawn, alone)


def count_one_by_one(rows: list[Rollout], drawn: int, draws: int, steps: StepTokenizer) -> Tokens:
    """Return the tokens where each of ``draws`` sequences a prefix, and each scored row, begins with the prompt."""
    lengths = [prefix_lengths(r, steps) for r in rows]
    prefill = sum(int(at[0]) + draws * int(at[:-1].sum()) for at in lengths)
    scored = sum(int(at[:-1].sum()) + child_rows(r, at, steps) for r, at in zip(rows, lengths, strict=True))
    return Tokens(prefill, drawn, scored)


def squared_error_sums(scored: ScoredRollouts, own: bool) -> np.ndarray:
    """Return (Q, 2): sum and number of the unbiased (rho - 1)^2 of each prompt."""
    first = 0 if own else 1
    errors = prefix_errors(
        scored.prefix_log_value, scored.child_log_value[:, first:], scored.child_present[:, first:]
    )
    known = np.isfinite(errors.squared_error)
    return cluster_sums(
        np.stack([np.where(known, errors.squared_error, 0.0), known], axis=1), scored.prefix_prompt
    )


def cost_sums(rows: list[Rollout], scored: ScoredRollouts, own: bool, tilt: Tilt) -> np.ndarray:
    """Return (Q, 2): Z^2 sigma^2 and Z^2 of each prompt, both unbiased."""
    phi = np.exp(tilt.log_potential(scored.reward))
    log_value = np.stack([np.pad(v, (0, scored.horizon + 1 - len(v)), mode="edge") for v in scored.log_value])
    square = np.repeat(phi[:, None] ** 2, scored.horizon + 1, axis=1)
    for i, row in enumerate(rows):
        drawn = np.exp(tilt.log_potential(np.asarray(row.completions)))
        every = np.concatenate([np.full((len(drawn), 1), phi[i]), drawn], axis=1) if own else drawn
        square[i, 1 : len(row.steps)] = value_square_estimate(every)[1:]
    parts = [
        sigma2_parts(log_value[at], square[at], phi[at])
        for at in (np.flatnonzero(scored.prompt == g) for g in range(scored.prompt.max() + 1))
    ]
    return np.array([(p.numerator - p.n_terms * p.z_square, p.z_square) for p in parts])


class Positions:
    """Counts the positions that a model computes, padding included."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.total = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, args: Any, told: dict[str, Any]) -> None:
        self.total += told["input_ids"].numel()


def repeated(case: Case, own: bool, seed: int) -> tuple[np.ndarray, list[Tokens]]:
    """Return (repetition, figure, prompt, 2) sums, and the tokens: branching and cached, or one by one."""
    width = case.branching
    draws = width.children + width.completions
    asked = width if own else Branching(width.trajectories, width.children + 1, width.completions + 1)
    sums, tokens = [], [Tokens(), Tokens()] if own else [Tokens()]
    for k in range(case.repetitions):
        collector = Collector(case.policy, case.task, asked, np.random.default_rng([seed, k]))
        rows = collector.collect(case.prompts)
        found_sums = []
        for floor in FLOORS:
            case.scorer.tilt = Tilt(floor)
            scored = score_rollouts(rows, case.scorer)
            found_sums += [squared_error_sums(scored, own), cost_sums(rows, scored, own, case.scorer.tilt)]
        sums.append(found_sums)
        drawn, steps = collector.tally.tokens, case.policy.steps
        found = count_branching(rows, drawn, steps) if own else (count_one_by_one(rows, drawn, draws, steps),)
        for total, one in zip(tokens, found, strict=True):
            for name, value in vars(one).items():
                setattr(total, name, getattr(total, name) + value)
    return np.asarray(sums), tokens


def influence(sums: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the ratio of the sums (B, Q, 2), and what each prompt adds to its linearised error, (B, Q)."""
    top, bottom = sums.mean(axis=(0, 1))
    ratio = float(top / bottom)
    return ratio, (sums[..., 0] - ratio * sums[..., 1]) / bottom


def spreads(errors: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each prompt adds to the variance of the population's figure, and with the prompts fixed, (Q,)."""
    return {
        "population of prompts": (errors**2).mean(axis=0),
        "fixed prompts": errors.var(axis=0, ddof=1),
    }


def compare(case: Case) -> dict[str, Any]:
    """Return tokens, variances and their products for the three ways."""
    read, valued = Positions(case.policy.model), Positions(case.scorer.model)
    runs = len(case.prompts) * case.repetitions
    ours, (branching, cached) = repeated(case, own=True, seed=1)
    computed = {
        "policy": round(read.total / runs, 1),
        "value model": round(valued.total / runs / len(FLOORS), 1),
    }
    theirs, (apart,) = repeated(case, own=False, seed=2)
    drawn = np.random.default_rng(0).integers(len(case.prompts), size=(2000, len(case.prompts)))
    figures: dict[str, Any] = {}
    for f, name in enumerate(FIGURES):
        (a, mine), (b, other) = influence(ours[:, f]), influence(theirs[:, f])
        figures[name] = {"branching": round(a, 4), "one by one": round(b, 4)}
        for what, mine_spread in spreads(mine).items():
            other_spread = spreads(other)[what]
            variances = other_spread.mean() / mine_spread.mean()
            resampled = other_spread[drawn].mean(axis=1) / mine_spread[drawn].mean(axis=1)
            times = apart.total / branching.total
            low, high = np.quantile(resampled, [0.025, 0.975]) * times
            figures[name][what] = {
                "variance ratio": round(float(variances), 3),
                "times fewer tokens": round(float(variances * times), 2),
                "interval": [round(float(low), 2), round(float(high), 2)],
            }
    return {
        "prompts": len(case.prompts),
        "repetitions": case.repetitions,
        "branches": to_json(case.branching),
        "tokens a prompt": {
            "branching": branching.per_prompt(runs),
            "one by one": apart.per_prompt(runs),
            "cached, rows": cached.per_prompt(runs),
        },
        "positions computed by branching, a prompt": computed,
        "tokens, one by one over branching": round(apart.total / branching.total, 2),
        # The same draws, so the same precision.
        "tokens, cached with rows over branching": round(cached.total / branching.total, 2),
        "figures": figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, help="a policy of crossing, T = 8; trained here if not given")
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--long-prompts", type=int, default=28)
    parser.add_argument("--repetitions", type=int, default=3, help="at least 2")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"required": REQUIRED}
    with tempfile.TemporaryDirectory() as name:
        for label, make in (
            ("crossing, T = 8", lambda: crossing(args.policy, Path(name), args.prompts, args.repetitions)),
            (
                "random weights, 6 steps of 25 tokens",
                lambda: random_words(Path(name), args.long_prompts, args.repetitions),
            ),
        ):
            start = time.monotonic()
            result[label] = compare(make())
            print(f"{label}: {time.monotonic() - start:.0f} s", result[label], flush=True)
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
