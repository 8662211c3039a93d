"""Sample prompts from Python: `sample` loads what is named, `Samples` holds what was drawn."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

import numpy as np

from rmtools.data.prompts import (
    Prompt,
    asked_format,
    check_before_loading,
    check_prompts,
    enter_prompts,
    given_prompts,
)
from rmtools.data.tasks import Answering, Task, load_task
from rmtools.errors import UserError
from rmtools.lm.checkpoint import (
    CheckpointSettings,
    is_published,
    load_value_model,
    loadable_settings,
    require_recorded,
)
from rmtools.lm.hub import find_model
from rmtools.lm.particles import Terminal
from rmtools.lm.policy import Policy, load_policy
from rmtools.lm.precision import Where, device_of
from rmtools.lm.prompt_format import read_questions
from rmtools.lm.protocol import Scorer, StepPolicy
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.scorer_checks import SAMPLED, require_scorer
from rmtools.lm.steps import StepTokenizer
from rmtools.particles.arguments import check_bool, check_callable, check_seed
from rmtools.particles.protocol import Observe
from rmtools.sampling.error_report import log_z_se, until_in_words
from rmtools.sampling.loading import task_of
from rmtools.sampling.report import resampling, sampler
from rmtools.sampling.sample_prompts import SamplerSettings, Source, sample_prompts, settings_for, usual_block
from rmtools.sampling.trace import Trace
from rmtools.seeds import block_generator
from rmtools.summary import Summary

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from pandas import DataFrame

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
# Prompts that a printed result shows.
SHOWN = 4
LONGEST_SHOWN = 60


@dataclass(frozen=True, eq=False, repr=False)
class SampledPrompt:
    """The solutions drawn for one prompt: an item of `Samples`.

    Attributes
    ----------
    record : dict
        All that is known, as ``rmtools sample`` writes it (docs/formats.md, Samples), without ``provenance``.
    traces : tuple of Trace
        One per run; empty unless ``sample`` was called with ``trace=True``.
    """

    record: dict[str, Any]
    traces: tuple[Trace, ...] = field(default=())

    @property
    def prompt(self) -> str:
        """The prompt."""
        text: str = self.record["prompt"]
        return text

    @property
    def chosen(self) -> int | None:
        """Index of the solution that the ``output`` of the sampler names; None if there is nothing to choose."""
        index: int | None = self.record["chosen"]
        return index

    @property
    def best(self) -> str | None:
        """Text of the chosen solution: one weighted draw for output "draw", the default of smc."""
        return None if self.chosen is None else "".join(self.steps[self.chosen])

    @property
    def steps(self) -> list[list[str]]:
        """The steps of all K solutions."""
        return [s["steps"] for s in self.record["samples"]]

    @property
    def weights(self) -> np.ndarray:
        """(K,) normalised weights; all 0 if every estimate of Z is zero."""
        return np.exp(self._floats("log_weight"))

    @property
    def log_values(self) -> np.ndarray:
        """(K,) final log values, nats."""
        return self._floats("log_value")

    @property
    def rewards(self) -> np.ndarray | None:
        """(K,) the verifier's rewards in [0, 1]; None without a task."""
        found = [s.get("reward") for s in self.record["samples"]]
        return None if None in found else np.asarray(found, dtype=float)

    @property
    def reward(self) -> float | None:
        """Reward of the chosen solution; None without a task or a choice."""
        return None if self.rewards is None or self.chosen is None else float(self.rewards[self.chosen])

    @property
    def answer(self) -> str | None:
        """Final answer of the chosen solution, if the task reads answers."""
        answer: str | None = self.record["answer"]
        return answer

    @property
    def log_z(self) -> float | None:
        """Estimate of log Z, nats; ``record["estimates"]`` says of what. None if it is zero, or none is estimated."""
        value: float | None = self.record["log_z"]
        return value

    @property
    def log_z_se(self) -> float | None:
        """Standard error of `log_z`, nats: Monte-Carlo error from islands or the genealogy; None where not resolved."""
        return log_z_se(self.record)

    @property
    def shares(self) -> list[dict[str, Any]]:
        """Answers with `share`, `se`, `low` and `high`, the largest share first; empty without answers or for beam search."""
        rows: list[dict[str, Any]] = self.record["shares"] or []
        return rows

    @property
    def stopped(self) -> str | None:
        """Why no more islands were added: "share known", "log Z known", "Z known", "token budget"; None without `until`."""
        until = self.record.get("until")
        return None if until is None else str(until["stopped"])

    @property
    def ess(self) -> np.ndarray | None:
        """(T,) effective sample size by step, before resampling; None unless there was a single run."""
        found = self.record["ess"]
        return None if found is None else np.asarray(found, dtype=float)

    def _floats(self, name: str) -> np.ndarray:
        """Return a field of all solutions; null is -inf."""
        values = [s[name] for s in self.record["samples"]]
        return np.asarray([-np.inf if v is None else v for v in values], dtype=float)

    def to_frame(self) -> "DataFrame":
        """Return one row per solution: text, steps, weight, log_value, chosen, and reward and answer if known."""
        import pandas

        rows = self.record["samples"]
        columns: dict[str, Any] = {
            "text": ["".join(s["steps"]) for s in rows],
            "steps": [len(s["steps"]) for s in rows],
            "weight": self.weights,
            "log_value": self.log_values,
            "chosen": [i == self.chosen for i in range(len(rows))],
        }
        columns |= {
            name: [s[name] for s in rows] for name in ("reward", "answer") if rows and name in rows[0]
        }
        return pandas.DataFrame(columns)

    def plot(self) -> "Figure":
        """Draw the ancestry tree of the first run if it was traced, else the effective sample size by step."""
        from rmtools.plots.trace import trace_figure

        return trace_figure(self.traces[0]) if self.traces else Samples((self,)).plot()

    def summary(self) -> Summary:
        """Return the chosen solution, its weight and reward, and the estimate."""
        figures = {"best": "nothing was chosen" if self.best is None else _line(self.best)}
        if self.chosen is not None:
            weight = f"weight {self.weights[self.chosen]:.3g}"
            figures["chosen"] = f"solution {self.chosen} of {len(self.steps)}, {weight}"
        if self.rewards is not None and self.reward is not None:
            figures["reward"] = f"{self.reward:g}, mean of all {self.rewards.mean():.3g}"
        error = "" if self.log_z_se is None else f" ± {self.log_z_se:.2g}"
        figures["log Z-hat"] = "none" if self.log_z is None else f"{self.log_z:.4g}{error} nats"
        return Summary(f"prompt {_line(self.prompt)}", figures)

    def __str__(self) -> str:
        return str(self.summary())

    def __repr__(self) -> str:
        return f"SampledPrompt({self.prompt!r}, {len(self.steps)} solutions)"

    def _repr_html_(self) -> str:
        return self.summary().html()


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Sequence[SampledPrompt]):
    """What `sample` drew: one `SampledPrompt` per prompt, in order.

    Attributes
    ----------
    items : tuple of SampledPrompt

    Examples
    --------
    >>> import rmtools as rm
    >>> samples = rm.sample("prm", rm.load_prompts("prompts.jsonl")[:2], n_particles=4)
    >>> isinstance(samples, rm.Samples), len(samples), samples[0].weights.shape, samples.to_frame().shape[0]
    (True, 2, (4,), 8)
    """

    items: tuple[SampledPrompt, ...]

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> SampledPrompt: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: int | slice) -> "SampledPrompt | Samples":
        return Samples(self.items[index]) if isinstance(index, slice) else self.items[index]

    @property
    def best(self) -> list[str | None]:
        """Text of the chosen solution of each prompt; None if nothing was chosen."""
        return [p.best for p in self.items]

    def to_frame(self) -> "DataFrame":
        """Return one row per solution, as `SampledPrompt.to_frame`, with the number of its prompt first."""
        import pandas

        frames = [p.to_frame().assign(prompt=i) for i, p in enumerate(self.items)]
        found = pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame({"prompt": []})
        return found[["prompt", *found.columns.drop("prompt")]]

    def plot(self) -> "Figure":
        """Draw the effective sample size by step, one line per prompt and run."""
        from rmtools.plots.samples import ess_of_records

        return ess_of_records([p.record for p in self.items])

    def summary(self) -> Summary:
        """Return the sampler, the choice, shares of right solutions, estimates, and the first solutions."""
        if not self.items:
            return Summary("no prompts", {"best": "nothing was sampled"})
        records, n = [p.record for p in self.items], len(self.items)
        figures = {"output": f"{records[0]['output']}, terminal {records[0]['terminal']}"}
        rewards = [p.rewards for p in self.items if p.rewards is not None]
        if len(rewards) == n:
            right = sum(p.reward == 1 for p in self.items)
            figures["right"] = (
                f"{right} of {n} chosen solutions; mean reward of all {np.concatenate(rewards).mean():.3g}"
            )
        log_z = np.asarray([p.log_z for p in self.items if p.log_z is not None])
        if len(log_z):
            figures["log Z-hat"] = (
                f"{np.median(log_z):.4g} nats (median; {log_z.min():.4g} to {log_z.max():.4g})"
            )
        if errors := [p.log_z_se for p in self.items if p.log_z_se is not None]:
            figures["error of log Z-hat"] = (
                f"{np.median(errors):.2g} nats (median of {len(errors)}; Monte-Carlo)"
            )
        for line in resampling(records):
            figures["resampled"] = line.removeprefix("resampled ")
        if until := until_in_words(records):
            figures["until"] = until
        if empty := sum(p.chosen is None for p in self.items):
            figures["nothing chosen"] = f"for {empty} of {n} prompts"
        for i, p in enumerate(self.items[:SHOWN]):
            figures[f"[{i}].best"] = "None" if p.best is None else _line(p.best)
        if n > SHOWN:
            figures["…"] = f"{n - SHOWN} more"
        settings = sampler(records[0]["sampler"]).removeprefix("sampler: ")
        return Summary(f"{n} prompt{'' if n == 1 else 's'}: {settings}", figures)

    def __str__(self) -> str:
        return str(self.summary())

    def __repr__(self) -> str:
        return f"Samples({len(self.items)} prompts)"

    def _repr_html_(self) -> str:
        return self.summary().html()


def _line(text: str) -> str:
    """Return ``text`` on one line, cut at a readable length."""
    flat = " ⏎ ".join(line.strip() for line in text.strip().splitlines())
    return flat if len(flat) <= LONGEST_SHOWN else f"{flat[: LONGEST_SHOWN - 1]}…"


class SamplerOptions(TypedDict, total=False):
    """Settings of the sampler that have a default in every algorithm, as in `rmtools.sampling.settings.SamplerSettings`."""

    pool_size: int | None
    resampling: str | None
    ess_threshold: float | None
    mh_steps: int | None
    sweeps: int | None
    output: str | None
    islands: int | None
    until: str | None
    token_budget: int | None
    max_tokens: int | None
    max_seconds: float | None


def sample(
    model: str | Path | Scorer,
    prompts: Sequence[str | Prompt | dict[str, Any]],
    *,
    n_particles: int | None = None,
    algorithm: str | None = None,
    seed: int = 0,
    policy: str | Path | StepPolicy | None = None,
    task: str | Task | None = None,
    terminal: Terminal = "model",
    trace: bool = False,
    observe: Observe[Any] | None = None,
    device: "str | torch.device | None" = None,
    progress: Progress | None = None,
    prompt_format: str = "auto",
    system: str | None = None,
    few_shot: str | Path | Sequence[Any] | None = None,
    **options: Unpack[SamplerOptions],
) -> Samples:
    r"""Sample solutions of prompts, guided by a value model: the records of ``rmtools sample`` for the same arguments.

    Parameters
    ----------
    model : path, hub name or Scorer
        A checkpoint (a folder, ``org/name`` or ``org/name@revision``), or anything that scores prefixes.
    prompts : sequence of str, Prompt or dict
        Texts, or items of `load_prompts`.
    n_particles : int, optional
        N: particles per prompt. Default: 16, or the algorithm's.
    algorithm : str, optional
        smc (the default), sp-gsmc, guided, mh, gibbs, importance, best-of-n, majority, weighted-majority or beam: names for
        settings of one sampler, which other arguments change as far as the name allows.
    seed : int
        Seed of every draw. Prompts are drawn in blocks, so a solution depends on the list it is in.
    policy : path, hub name or StepPolicy, optional
        Default: the policy the checkpoint was trained for; a Scorer remembers none.
    task : str or Task, optional
        Verifies the solutions and reads their answers. Default: the checkpoint's; without one there are no rewards.
    terminal : {"model", "verifier"}
        What a finished solution is worth: the model's own last value, or the verifier's potential.
    trace : bool
        Keep every candidate, for `SampledPrompt.plot`.
    observe : callable, optional
        Called with every `Step` of the sampler; prompts that run together are its groups.
    device : str or torch.device, optional
        Where models are loaded. Default: CUDA if available.
    progress : callable, optional
        ``progress(label, total)`` returns a context manager that yields a tick.
    prompt_format, system, few_shot
        How questions become prompts, as in `collect_rollouts`. auto: the checkpoint's format, another is refused.
    **options
        Further settings of the sampler (`SamplerOptions`); by default the algorithm's. ``output`` names the solution that
        ``best`` is: draw, argmax, majority or weighted-majority. ``until="share=.05"`` (or logz=.1, cv=.25) adds islands of N
        particles to each prompt, from 8 on, until the figure has this standard error or ``token_budget`` is spent.

    Raises
    ------
    UserError
        If a model or setting is wrong, or a prompt does not fit the task or the models.

    Examples
    --------
    >>> import rmtools as rm
    >>> prompts = rm.load_prompts("prompts.jsonl")
    >>> samples = rm.sample("prm", prompts[:2], n_particles=8, seed=0)
    >>> samples[0].best.count("\n"), round(float(samples[0].weights.sum()), 6), samples[0].ess.shape
    (3, 1.0, (3,))
    """
    _check_options(options)
    settings = settings_for(algorithm, n_particles=n_particles, terminal=terminal, **options)
    check_seed(seed)
    check_bool("trace", trace)
    check_callable("observe", observe)
    check_callable("progress", progress)
    asked = prompt_format, system, few_shot
    value, source, verifier = _models(model, policy, task, device_of(device), (prompts, asked))
    texts, verifier = _entered(prompts, verifier, value, source.steps.tokenizer, asked)
    check_prompts(texts, verifier, source)
    hooks = Hooks(observe, trace, progress)
    return Samples(tuple(_draw((value, source, verifier), texts, settings, seed, hooks)))


Asked = tuple[str, str | None, Any]
"""The arguments prompt_format, system and few_shot."""


def _check_early(
    prompts: Sequence[Any],
    asked: Asked,
    task: Task | None,
    of: Scorer | CheckpointSettings,
    steps: StepTokenizer,
    context: int | None,
) -> None:
    """Raise ``UserError`` if the prompts do not fit task, format and tokenizer: before weights are read."""
    texts, task = _entered(prompts, task, of, steps.tokenizer, asked)
    check_before_loading(texts, task, steps, context)


def _entered(
    prompts: Sequence[Any],
    task: Task | None,
    of: Scorer | CheckpointSettings,
    tokenizer: Any,
    asked: Asked,
) -> tuple[list[str], Task | None]:
    """Return prompts in the format ``of`` a checkpoint, and the task that judges their solutions."""
    recorded = getattr(of, "prompt_format", None)
    delimiter = "\n" if task is None else task.delimiter
    form, given = asked_format(*asked, delimiter), given_prompts(prompts, delimiter)
    texts, task, rendered = enter_prompts(given, task, form, tokenizer, recorded, auto="raw")
    read_questions(of, rendered, tokenizer)
    return texts, task


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` for an argument that `sample` does not have."""
    if unknown := sorted(options.keys() - SamplerOptions.__annotations__):
        known = [*inspect.signature(sample).parameters, *SamplerOptions.__annotations__]
        nearest = "".join(f"; the nearest is {near!r}" for near in get_close_matches(unknown[0], known, 1))
        raise TypeError(
            f"sample() has no argument {unknown[0]!r}{nearest}; "
            f"its options: {', '.join(SamplerOptions.__annotations__)}"
        )


@dataclass(frozen=True)
class Hooks:
    """What watches a run: a callback of every step, whether traces are kept, a progress bar."""

    observe: Observe[Any] | None
    trace: bool
    progress: Progress | None


def _draw(
    models: tuple[Scorer, StepPolicy, Task | None],
    prompts: Sequence[str],
    settings: SamplerSettings,
    seed: int,
    hooks: Hooks,
) -> list[SampledPrompt]:
    """Draw the blocks of ``rmtools sample``, each from its own generator."""
    value, policy, task = models
    size, found = usual_block(settings, Source(policy, value), prompts), []
    traces: list[Trace] = []
    bar = hooks.progress or (lambda label, total: nullcontext(lambda n: None))
    with bar(f"sampling {len(prompts)} prompts", len(prompts)) as tick:
        for index, at in enumerate(range(0, len(prompts), size)):
            for record in sample_prompts(
                policy,
                value,
                prompts[at : at + size],
                settings,
                block_generator("sample", seed, index),
                reward=None if task is None else task.reward,
                answer=task.answer if isinstance(task, Answering) else None,
                observe=hooks.observe,
                on_traces=traces.extend if hooks.trace else None,
            ):
                found.append(SampledPrompt(record, tuple(traces)))
                traces.clear()
                tick(1)
    return found


def _models(
    model: str | Path | Scorer,
    policy: str | Path | StepPolicy | None,
    task: str | Task | None,
    device: "Where | None",
    entering: tuple[Sequence[Any], Asked],
) -> tuple[Scorer, StepPolicy, Task | None]:
    """Return value model, policy and task, loaded if they are named; an adapter on the policy's weights shares them.

    The prompts, and the format that is asked for, are checked before weights are read.
    """
    if isinstance(model, str | Path) and is_published(model):
        model = load_value_model(model, device=device)[0]
    known: Any = model
    if isinstance(model, str | Path):
        model = find_model(model).pinned
        known = loadable_settings(model)
        if policy is None:
            require_recorded(model, "policy", known.policy)
        steps, law, policy = known.steps, known.law, policy or known.policy
        if isinstance(task, str) or (task is None and known.task):
            task = task_of(model, known, task, None)
    else:
        require_scorer(model, SAMPLED)
        steps, law = model.steps.settings, SamplingLaw()
        if isinstance(task, str):
            task = load_task(task, steps.max_steps, steps.delimiter)
    if policy is None:
        raise UserError(
            "a Scorer does not remember its policy", "pass `policy`: a folder, a hub name or a StepPolicy"
        )
    if isinstance(policy, str | Path):
        policy = load_policy(policy, steps, law, device, check=partial(_check_early, *entering, task, known))
    elif not hasattr(policy, "decode_step"):
        raise UserError(
            f"`policy` must be a folder, a hub name or a StepPolicy, got {type(policy).__name__}",
            "rmtools.load_policy returns one",
        )
    if isinstance(model, str | Path):
        beside = policy if isinstance(policy, Policy) else None
        return load_value_model(model, device=device, beside=beside)[0], policy, task
    return model, policy, task
