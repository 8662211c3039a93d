"""Running the sampler over prompts and writing down what it did: samples, weights, log Z, ESS, ancestors.

The parts are in rmtools.sampling: settings and named algorithms, runs, outputs, records.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rmtools.errors import UserError
from rmtools.lm.particles import LMParticles, Reward
from rmtools.lm.protocol import StepPolicy
from rmtools.lm.value import Scorer
from rmtools.sampling.algorithms import PARTICLES_PER_BATCH, draw_batch
from rmtools.sampling.presets import PRESETS
from rmtools.sampling.records import SCHEMA_VERSION, record, sample_record
from rmtools.sampling.settings import SamplerSettings, settings_for
from rmtools.sampling.source import Answer, Source, Start, Watch

__all__ = [
    "PARTICLES_PER_BATCH",
    "PRESETS",
    "SCHEMA_VERSION",
    "SamplerSettings",
    "Source",
    "prompts_per_batch",
    "sample_prompts",
    "sample_record",
    "settings_for",
]


def sample_prompts(
    policy: StepPolicy,
    value: Scorer,
    prompts: Sequence[str],
    settings: SamplerSettings,
    rng: np.random.Generator,
    reward: Reward | None = None,
    progress: Callable[[int], object] | None = None,
    answer: Answer | None = None,
    start: Start = LMParticles.start,
    watch: Watch | None = None,
) -> Iterator[dict[str, Any]]:
    """Run the sampler on every prompt; yield one JSON-ready record a prompt, in order.

    Parameters
    ----------
    policy, value
    prompts : sequence of str
    settings : SamplerSettings
        `settings_for("beam")` and its like give those of a named algorithm.
    rng : np.random.Generator
        Source of every draw.
    reward : callable, optional
        The verifier; scores the samples, and weighs them with terminal "verifier".
    progress : callable, optional
        Told how many prompts are newly done.
    answer : callable, optional
        (prompt, steps) to the answer a solution comes to, None where to none; the majorities need it.
    start : callable
        Makes the particles; `LMParticles.start` by default.
    watch : callable, optional
        Told the prompts and the `SMCResult` of every run.

    Yields
    ------
    dict
        ``samples`` with weights and values, ``log_z``, the indices ``draw``, ``argmax`` and, with ``answer``, ``majority`` and
        ``weighted_majority``, ``chosen`` (the one that ``settings.output`` names), and the history: docs/formats.md.

    Raises
    ------
    UserError
        If a majority is asked for without ``answer``; and see `draw_batch`.
    """
    if settings.output.endswith("majority") and answer is None:
        raise UserError(
            f"output {settings.output} counts answers, and nothing says which answer a solution comes to",
            "pass `answer`, or choose draw or argmax",
        )
    source = Source(policy, value, reward, answer, start, watch)
    size = prompts_per_batch(settings)
    for at in range(0, len(prompts), size):
        batch = prompts[at : at + size]
        for prompt, drawn in zip(batch, draw_batch(source, batch, settings, rng), strict=True):
            yield record(source, prompt, drawn, settings)
        if progress is not None:
            progress(len(batch))


def prompts_per_batch(settings: SamplerSettings) -> int:
    """Return how many prompts run together: one where each has a time of its own."""
    if settings.max_seconds is not None:
        return 1
    return max(1, PARTICLES_PER_BATCH // (settings.n_particles * settings.pool_size))
