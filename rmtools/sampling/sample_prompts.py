"""Run the sampler over prompts and record what it did: samples, weights, log Z, ESS, ancestors, traces.

>>> settings_for("beam").resampling
'top_k'
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rmtools.errors import UserError
from rmtools.lm.memory import in_halves
from rmtools.lm.pace import prompts_in_time
from rmtools.lm.particles import LMParticles, Reward
from rmtools.lm.protocol import Scorer, StepPolicy
from rmtools.particles.arguments import check_callable
from rmtools.particles.protocol import Observe
from rmtools.particles.until import FIRST
from rmtools.sampling.algorithms import draw_batch
from rmtools.sampling.records import SCHEMA_VERSION, record, traces
from rmtools.sampling.settings import PRESETS, SamplerSettings, settings_for
from rmtools.sampling.source import PARTICLES_PER_BATCH, Answer, Source, Start, Watch
from rmtools.sampling.trace import Trace

# With a budget a prompt takes many runs.
MOST_IN_BLOCK, MOST_WITH_BUDGET = 64, 16

__all__ = [
    "PARTICLES_PER_BATCH",
    "PRESETS",
    "SCHEMA_VERSION",
    "SamplerSettings",
    "Source",
    "check_traceable",
    "prompts_per_batch",
    "sample_prompts",
    "settings_for",
    "usual_block",
]


def sample_prompts(
    policy: StepPolicy,
    value: Scorer,
    prompts: Sequence[str],
    settings: SamplerSettings,
    rng: np.random.Generator,
    reward: Reward | None = None,
    answer: Answer | None = None,
    start: Start = LMParticles.start,
    watch: Watch | None = None,
    observe: Observe[Any] | None = None,
    on_traces: Callable[[list[Trace]], object] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run the sampler on every prompt; yield one JSON-ready record per prompt, in order.

    Parameters
    ----------
    policy, value
    prompts : sequence of str
    settings : SamplerSettings
        `settings_for` returns those of a named algorithm.
    rng : np.random.Generator
        Source of every draw.
    reward : callable, optional
        The verifier; scores the samples, and weighs them with terminal "verifier".
    answer : callable, optional
        (prompt, steps) to the solution's answer, None if it has none; required by the majorities.
    start : callable
        Makes the particles; `LMParticles.start` by default.
    watch : callable, optional
        Called with the prompts and the `SMCResult` of every run.
    observe : callable, optional
        Called with every `Step` of every run, as `smc` does; its groups are the prompts that run together.
    on_traces : callable, optional
        Called with the traces of a prompt's runs, in order, before its record is yielded.

    Yields
    ------
    dict
        ``samples`` with weights and values, ``log_z``, the indices ``draw``, ``argmax`` and, with ``answer``, ``majority`` and
        ``weighted_majority``, ``chosen`` (the one that ``settings.output`` names), and the history: docs/formats.md.

    Raises
    ------
    UserError
        If a majority has no ``answer``, or particle Gibbs is to be traced; and see `draw_batch`.
    """
    check_callable("observe", observe)
    if settings.output.endswith("majority") and answer is None:
        raise UserError(
            f"`output` {settings.output} counts answers, and nothing says what the answer of a solution is",
            "choose draw or argmax, or a task that reads answers (from Python: pass the argument answer)",
        )
    if settings.until is not None and settings.until.figure == "share" and answer is None:
        raise UserError(
            f"`until` {settings.until} needs the leading answer, and nothing says what the answer of a solution is",
            "pass `until` cv=.25, or a task that reads answers (from Python: pass the argument answer)",
        )
    if on_traces is not None:
        check_traceable(settings)
    source = Source(policy, value, reward, answer, start, watch, observe, on_traces is not None)
    size = min(prompts_per_batch(settings), source.prompts_per_batch(settings, prompts)) if prompts else 1
    for at in range(0, len(prompts), size):
        batch, began = prompts[at : at + size], time.monotonic()
        found_runs = in_halves(
            lambda own: draw_batch(source, own, settings, rng),
            batch,
            "prompt",
            "fewer particles, or shorter steps",
        )
        seconds = (time.monotonic() - began) / len(batch)
        for prompt, drawn in zip(batch, found_runs, strict=True):
            found = record(source, prompt, drawn, settings, seconds)
            if on_traces is not None:
                on_traces(traces(drawn, found["samples"]))
            yield found


def check_traceable(settings: SamplerSettings) -> None:
    """Raise ``UserError`` for particle Gibbs, whose runs cannot be traced."""
    if settings.sweeps:
        raise UserError("particle Gibbs has no trace: its runs are conditional", "trace smc, or no algorithm")


def prompts_per_batch(settings: SamplerSettings) -> int:
    """Return how many prompts run together: one with a budget of time."""
    if settings.max_seconds is not None:
        return 1
    return max(1, PARTICLES_PER_BATCH // (settings.n_particles * settings.pool_size))


def usual_block(settings: SamplerSettings, source: Source | None = None, prompts: Sequence[str] = ()) -> int:
    """Return the default number of prompts of a block: at most those of a batch, and what an interruption may lose.

    With a ``source`` that is what a slow machine does in five minutes, `rmtools.lm.pace`.
    """
    repeated = settings.budgeted or settings.until is not None
    most = min(MOST_WITH_BUDGET if repeated else MOST_IN_BLOCK, prompts_per_batch(settings))
    if source is None or not prompts:
        return most
    run = source.usual_tokens * settings.n_particles * settings.pool_size
    tokens = max(run * (1 + settings.mh_steps + settings.sweeps), settings.max_tokens or 0)
    if settings.until is not None:
        tokens = run * 2 * FIRST  # what most prompts take; a hard one takes its budget
    batch = source.prompts_per_batch(settings, prompts)
    return min(most, prompts_in_time([source.policy, source.value], tokens, batch, source.policy.device))
