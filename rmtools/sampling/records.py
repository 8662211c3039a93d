"""The record of one prompt: everything that was drawn, so that another output can be chosen without sampling again."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rmtools.lm.steps import StepTokenizer
from rmtools.sampling.outputs import choices
from rmtools.sampling.runs import Drawn, Run
from rmtools.sampling.settings import SamplerSettings
from rmtools.sampling.source import Answer, Source

SCHEMA_VERSION = 2

ESTIMATES = {
    "model": "log E_policy[V(s_T)], the model's own last value",
    "verifier": "log Z = log E_policy[potential]",
}


def record(source: Source, prompt: str, drawn: Drawn, settings: SamplerSettings) -> dict[str, Any]:
    """Return the record of ``prompt`` as JSON values; docs/formats.md has its fields."""
    answers = answers_of(source.answer, prompt, drawn.steps)
    picked = choices(drawn, answers)
    chosen = picked[settings.output.replace("-", "_")]
    cut, steps = count_cut(source.policy.steps, drawn.steps)
    alone = drawn.runs[0] if len(drawn.runs) == 1 else None
    return {
        "schema_version": SCHEMA_VERSION,
        "sampler": asdict(settings),
        "prompt": prompt,
        "terminal": settings.terminal,
        "estimates": ESTIMATES[settings.terminal],
        "log_z": finite(drawn.log_z),
        "output": settings.output,
        "chosen": chosen,
        "answer": None if chosen is None or answers is None else answers[chosen],
        **picked,
        "samples": samples(source, prompt, drawn, answers),
        "ess": None if alone is None else alone.ess,
        "ancestors": None if alone is None else alone.ancestors,
        "runs": None if alone is not None else [run_record(r) for r in drawn.runs],
        "chain": chain_record(drawn),
        "budget": budget_record(drawn, settings),
        "generated_tokens": drawn.tokens,
        "n_steps": steps,
        "cut_steps": cut,
    }


def answers_of(
    answer: Answer | None, prompt: str, solutions: Sequence[Sequence[str]]
) -> list[str | None] | None:
    """Return the answer of every solution, None where the task has none."""
    return None if answer is None else [answer(prompt, steps) for steps in solutions]


def samples(
    source: Source, prompt: str, drawn: Drawn, answers: Sequence[str | None] | None
) -> list[dict[str, Any]]:
    """Return the solutions as JSON values; a weight of zero is null."""
    rows = []
    for i, steps in enumerate(drawn.steps):
        row = sample_record(prompt, steps, drawn.log_weight[i], drawn.log_value[i], source.reward)
        rows.append(row if answers is None else {**row, "answer": answers[i]})
    return rows


def sample_record(
    prompt: str, steps: list[str], log_weight: float, log_value: float, reward: Any = None
) -> dict[str, Any]:
    """Return one sample as JSON values; a weight of zero is null."""
    row: dict[str, Any] = {"steps": steps, "log_weight": finite(log_weight), "log_value": finite(log_value)}
    if reward is not None:
        row["reward"] = float(reward(prompt, steps))
    return row


def run_record(run: Run) -> dict[str, Any]:
    """Return one of several runs; its samples are the next N of the record's."""
    return {"log_z": finite(run.log_z), "ess": run.ess, "ancestors": run.ancestors, "tokens": run.tokens}


def chain_record(drawn: Drawn) -> dict[str, Any] | None:
    """Return what a chain of runs did, None where there is none."""
    if drawn.accepted is not None:
        return {"accepted": drawn.accepted}
    return None if drawn.kept is None else {"kept": drawn.kept}


def budget_record(drawn: Drawn, settings: SamplerSettings) -> dict[str, Any] | None:
    """Return what a budget went into; seconds only where they were budgeted, for they differ from run to run."""
    spent = drawn.spent
    if spent is None:
        return None
    timed = {} if settings.max_seconds is None else {"seconds": spent.seconds}
    return {"tokens": spent.tokens, "runs": spent.runs, "exceeded": spent.exceeded, **timed}


def count_cut(tokenizer: StepTokenizer, solutions: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Return how many steps of all solutions end neither with the delimiter nor the end token, and how many there are.

    They were cut at ``max_step_tokens`` or at the end of the context.
    """
    ends = (tokenizer.settings.delimiter, tokenizer.step_text([tokenizer.eos_id]))
    texts = [s for steps in solutions for s in steps]
    return sum(not s.endswith(tuple(filter(None, ends))) for s in texts), len(texts)


def finite(x: float | None) -> float | None:
    """Return ``x``, or None for -inf (JSON has no infinities); NaN raises."""
    if x is None:
        return None
    if np.isnan(x):
        raise ValueError("a weight is NaN")
    return float(x) if np.isfinite(x) else None
