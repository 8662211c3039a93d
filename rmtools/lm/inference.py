"""Running the sampler over prompts and writing down what it did: samples, weights, log Z, ESS, ancestors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rmtools.core.smc import smc
from rmtools.errors import UserError
from rmtools.lm.particles import LMParticles, Reward, Terminal, check_terminal_name
from rmtools.lm.policy import Policy
from rmtools.lm.value import Scorer

PARTICLES_PER_BATCH = 4096
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SamplerSettings:
    """The sampler of docs/equations.md, section 4, as a user sets it.

    Parameters
    ----------
    n_particles, pool_size : int
        N and M.
    resampling : str
        Scheme, or ``none`` (importance sampling, best-of-N).
    ess_threshold : float
        Resample when ESS <= threshold * N; 1 always, 0 never.
    terminal : {"model", "verifier"}
    """

    n_particles: int
    pool_size: int = 1
    resampling: str = "systematic"
    ess_threshold: float = 0.5
    terminal: Terminal = "model"

    def __post_init__(self) -> None:
        for name in ("n_particles", "pool_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}", "pass -n 16, say")
        if not 0 <= self.ess_threshold <= 1:
            raise UserError(
                f"ess_threshold must be in [0, 1], got {self.ess_threshold}: it is a fraction of n_particles",
                "0.5 resamples when half of the effective particles are lost",
            )
        check_terminal_name(self.terminal)


def sample_prompts(
    policy: Policy,
    value: Scorer,
    prompts: Sequence[str],
    settings: SamplerSettings,
    rng: np.random.Generator,
    reward: Reward | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run the sampler on every prompt; yield one JSON-ready record a prompt, in order.

    A record has ``schema_version``, the ``sampler``'s settings, ``prompt``, ``terminal``, ``log_z`` (null for top_k) and
    what it estimates, ``samples`` (steps, log_weight, log_value, and reward where there is a verifier), ``ess`` and
    ``ancestors`` by step, ``generated_tokens``, and the indices ``draw`` (one weighted draw) and ``argmax`` (largest
    final value).
    """
    size = max(1, PARTICLES_PER_BATCH // (settings.n_particles * settings.pool_size))
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        yield from run_batch(policy, value, batch, settings, rng, reward)
        if progress is not None:
            progress(len(batch))


def run_batch(
    policy: Policy,
    value: Scorer,
    prompts: Sequence[str],
    settings: SamplerSettings,
    rng: np.random.Generator,
    reward: Reward | None,
) -> list[dict[str, Any]]:
    """Run the sampler once on ``prompts``, all in one batch."""
    root = LMParticles.start(policy, value, prompts, terminal=settings.terminal, reward=reward)
    result = smc(
        root, settings.n_particles, settings.pool_size, settings.resampling, settings.ess_threshold, rng
    )
    particles, chosen = result.particles, result.draw(rng)
    final, texts = particles.log_value(), particles.steps()
    tokens = particles.decoded / len(prompts)
    records = []
    for g, prompt in enumerate(prompts):
        samples = [
            sample_record(prompt, texts[g][i], result.log_weights[g, i], final[g, i], reward)
            for i in range(settings.n_particles)
        ]
        records.append(
            {
                "schema_version": SCHEMA_VERSION,
                "sampler": asdict(settings),
                "prompt": prompt,
                "terminal": settings.terminal,
                "estimates": ESTIMATES[settings.terminal],
                "log_z": None if result.log_z is None else finite(result.log_z[g]),
                "draw": int(chosen[g]),
                "argmax": int(final[g].argmax()),
                "samples": samples,
                "ess": [float(e) for e in result.ess[:, g]],
                "ancestors": result.ancestors[:, g].tolist(),
                "generated_tokens": tokens,
            }
        )
    return records


ESTIMATES = {
    "model": "log E_policy[V(s_T)], the model's own last value",
    "verifier": "log Z = log E_policy[potential]",
}


def sample_record(
    prompt: str, steps: list[str], log_weight: float, log_value: float, reward: Reward | None
) -> dict[str, Any]:
    """Return one sample as JSON values; a weight of zero is null."""
    row: dict[str, Any] = {"steps": steps, "log_weight": finite(log_weight), "log_value": finite(log_value)}
    if reward is not None:
        row["reward"] = float(reward(prompt, steps))
    return row


def finite(x: float) -> float | None:
    """Return ``x``, or None for -inf (JSON has no infinities); NaN raises."""
    if np.isnan(x):
        raise ValueError("a weight is NaN")
    return float(x) if np.isfinite(x) else None
