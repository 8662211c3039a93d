"""The record of one prompt: everything that was drawn, so that another output can be chosen without sampling again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rmtools.codec import to_json
from rmtools.lm.steps import StepTokenizer
from rmtools.sampling.errors import genealogy_error, island_error, shares_of, until_known
from rmtools.sampling.outputs import choices
from rmtools.sampling.runs import PromptSamples
from rmtools.sampling.settings import SamplerSettings
from rmtools.sampling.source import Source
from rmtools.sampling.trace import Trace

SCHEMA_VERSION = 2

ESTIMATES = {
    "model": "log E_policy[V(s_T)], the model's own last value",
    "verifier": "log Z = log E_policy[potential]",
}


@dataclass(frozen=True)
class Cost:
    """What a prompt took.

    Attributes
    ----------
    prompt_tokens : int
        Of the prompt, which both models read once.
    policy_tokens : float
        Generated, those of dropped particles and candidates too.
    value_tokens : float or None
        Read by the value model, equal prefixes once; None behind other particles than those of a language model.
    flops : float or None
        2 per weight and token of both models, attention not counted; None where a model's weights are not in this process.
    seconds : float
        Its share of the time of the prompts that ran together: the only figure that the same command does not repeat.
    """

    prompt_tokens: int
    policy_tokens: float
    value_tokens: float | None
    flops: float | None
    seconds: float


def record(
    source: Source, prompt: str, drawn: PromptSamples, settings: SamplerSettings, seconds: float
) -> dict[str, Any]:
    """Return the record of ``prompt`` as JSON values (docs/formats.md); a weight of zero is null.

    ``seconds`` is its share of the time of the prompts that ran together.
    """
    written = [source.policy.steps.written(steps) for steps in drawn.steps]
    answers = None if source.answer is None else [source.answer(prompt, steps) for steps in written]
    picked = choices(drawn, answers)
    chosen = picked[settings.output.replace("-", "_")]
    cut, steps = count_cut(source.policy.steps, drawn.steps)
    single = drawn.runs[0] if len(drawn.runs) == 1 else None
    runs = [
        {name: getattr(run, name) for name in ("log_z", "ess", "ancestors", "resampled", "tokens")}
        for run in drawn.runs
    ]
    chains = (("accepted", drawn.accepted), ("kept", drawn.kept))
    budget = None if drawn.spent is None else to_json(drawn.spent)
    if budget is not None and settings.max_seconds is None:  # seconds differ from run to run
        del budget["seconds"]
    found: dict[str, Any] = to_json(
        {
            "schema_version": SCHEMA_VERSION,
            "sampler": settings,
            "prompt": prompt,
            "terminal": settings.terminal,
            "estimates": ESTIMATES[settings.terminal],
            "log_z": drawn.log_z,
            "islands": island_error(drawn),
            "genealogy": genealogy_error(drawn),
            "shares": shares_of(drawn, answers),
            "until": until_known(drawn, settings.until, answers),
            "output": settings.output,
            "chosen": chosen,
            "answer": None if chosen is None or answers is None else answers[chosen],
            **picked,
            "samples": samples(source, prompt, drawn, answers),
            "ess": single and single.ess,
            "ancestors": single and single.ancestors,
            "resampled": single and single.resampled,
            "runs": None if single else runs,
            "chain": {name: done for name, done in chains if done is not None} or None,
            "budget": budget,
            "generated_tokens": drawn.tokens,
            "cost": cost(source, prompt, drawn, seconds),
            "n_steps": steps,
            "cut_steps": cut,
        }
    )
    return found


def cost(source: Source, prompt: str, drawn: PromptSamples, seconds: float) -> Cost:
    """Return what was spent on ``prompt``."""
    prompt_tokens = len(source.policy.steps.prompt_ids(prompt))
    read, flops = drawn.value_tokens, None
    models = [weights_of(owner) for owner in (source.policy, source.value)]
    if None not in models and read is not None:
        policy, value = (2.0 * (weights or 0) for weights in models)
        flops = policy * (prompt_tokens + drawn.tokens) + value * (prompt_tokens + read)
    return Cost(prompt_tokens, drawn.tokens, read, flops, round(seconds, 3))


def weights_of(owner: Any) -> int | None:
    """Return the number of weights of a policy or a value model in this process; None of any other."""
    model: Any = getattr(owner, "model", None)
    if model is None and hasattr(owner, "value"):  # a value model that reads another tokenizer's ids
        return weights_of(owner.value)
    return sum(p.numel() for p in model.parameters()) if hasattr(model, "parameters") else None


def samples(
    source: Source, prompt: str, drawn: PromptSamples, answers: Sequence[str | None] | None
) -> list[dict[str, Any]]:
    """Return the solutions with weight and value, and with reward and answer if these are known."""
    rows = []
    for i, (steps, weight, value) in enumerate(
        zip(drawn.steps, drawn.log_weight, drawn.log_value, strict=True)
    ):
        row: dict[str, Any] = {"steps": steps, "log_weight": weight, "log_value": value}
        if source.reward is not None:
            row["reward"] = float(source.reward(prompt, source.policy.steps.written(steps)))
        if answers is not None:
            row["answer"] = answers[i]
        rows.append(row)
    return rows


def count_cut(tokenizer: StepTokenizer, solutions: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Return how many steps of all solutions were cut, at ``max_step_tokens`` or at the end of the context, of how many.

    They end neither with the delimiter nor with an end token, nor the solution with a stop text.
    """
    settings = tokenizer.settings
    n_cut = 0
    for steps in solutions:
        for t, step in enumerate(steps, 1):
            last = t == len(steps)
            # Of steps that are so many tokens only the last of an unfinished solution is not whole.
            whole = (not last or t == settings.max_steps) if settings.end == "tokens" else False
            whole = whole or settings.rule.held_by(step) or any(e in step for e in tokenizer.end_texts)
            n_cut += not whole and not (last and settings.stops.held_by("".join(steps)))
    return n_cut, sum(map(len, solutions))


def traces(drawn: PromptSamples, samples: Sequence[dict[str, Any]]) -> list[Trace]:
    """Return the traces of the runs, in order, with the draw and the rewards of the record's ``samples``."""
    found, first = [], 0
    for number, run in enumerate(drawn.runs):
        own = samples[first : first + len(run.steps)]
        draw = -1 if drawn.draw is None else drawn.draw - first
        if run.trace is not None:
            found.append(
                replace(
                    run.trace,
                    run=number,
                    draw=draw if 0 <= draw < len(own) else None,
                    rewards=[s["reward"] for s in own] if all("reward" in s for s in own) else None,
                )
            )
        first += len(own)
    return found
