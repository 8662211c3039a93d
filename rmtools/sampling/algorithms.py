"""Every algorithm of docs/equations.md section 4 on a batch of prompts: one run, a chain of runs, particle Gibbs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rmtools.codec import to_json
from rmtools.errors import UserError
from rmtools.particles.particle_gibbs import first_paths, particle_gibbs
from rmtools.particles.smc import smc
from rmtools.particles.until import Drawn, Until, add_islands, shares_by_label
from rmtools.sampling.budget import Meter, next_runs
from rmtools.sampling.runs import PromptSamples, Run, RunObserver, pooled_all, runs_of
from rmtools.sampling.settings import SamplerSettings
from rmtools.sampling.source import Source
from rmtools.sampling.trace import Tracer, trees_at


def draw_batch(
    source: Source, prompts: Sequence[str], settings: SamplerSettings, rng: np.random.Generator
) -> list[PromptSamples]:
    """Run the sampler on ``prompts``, all in one batch.

    With a budget of time prompts run one after the other, and so do chains of Gibbs with any budget.

    Raises
    ------
    UserError
        See `LMParticles.start`; also if particle Gibbs gets particles that cannot be joined.
    """
    if settings.until is not None:
        return until_known(source, prompts, settings, settings.until, rng)
    if settings.budgeted:
        one_by_one = settings.sweeps > 0 or settings.max_seconds is not None
        batches = [[p] for p in prompts] if one_by_one else [list(prompts)]
        draw = gibbs if settings.sweeps else within_budget
        return [d for batch in batches for d in draw(source, batch, settings, rng)]
    if settings.sweeps:
        return gibbs(source, prompts, settings, rng)
    runs = runs_from_root(source, prompts, settings, rng, 1 + settings.mh_steps)
    return pooled_all(list(zip(*runs, strict=True)), rng, settings.chain)


def runs_from_root(
    source: Source,
    prompts: Sequence[str],
    settings: SamplerSettings,
    rng: np.random.Generator,
    count: int = 1,
) -> list[list[Run]]:
    """Return ``count`` runs of the sampler from one root, each by prompt."""
    root = source.root(prompts, settings.terminal)
    trees = trees_at(root, prompts) if source.traced else None
    n, m, scheme, threshold = (
        settings.n_particles,
        settings.pool_size,
        settings.resampling,
        settings.ess_threshold,
    )
    found = []
    for _ in range(count):
        seen = RunObserver(source, prompts, None if trees is None else Tracer(trees))
        result = smc(root, n, m, scheme, threshold, rng, observe=seen, islands=settings.islands)
        if source.watch is not None:
            source.watch(prompts, result)
        found.append(runs_of(result, seen, to_json(settings)))
    return found


def within_budget(
    source: Source, prompts: Sequence[str], settings: SamplerSettings, rng: np.random.Generator
) -> list[PromptSamples]:
    """Return runs of each prompt until its budget is spent; the first run is always made.

    Runs go in batches of replicates of all prompts, which grow while there is budget for twice as many.
    """
    most = source.prompts_per_batch(settings, prompts)
    meters = [Meter(settings) for _ in prompts]
    runs: list[list[Run]] = [[] for _ in prompts]
    wanted = [1] * len(prompts)
    while any(wanted):
        queue = [g for g, n in enumerate(wanted) for _ in range(n)]
        new: list[list[Run]] = [[] for _ in prompts]
        for at in range(0, len(queue), most):
            own = queue[at : at + most]
            batch = [prompts[g] for g in own]
            (found,) = runs_from_root(source, batch, settings, rng)
            for g, run in zip(own, found, strict=True):
                new[g].append(run)
        for g, fresh in enumerate(new):
            if fresh:
                meters[g].spend([r.tokens for r in fresh])
                runs[g] += fresh
                wanted[g] = next_runs(meters[g].affordable(), len(fresh), most)
    return [
        pooled_all([own], rng, settings.chain, meter.spent())[0]
        for own, meter in zip(runs, meters, strict=True)
    ]


def until_known(
    source: Source, prompts: Sequence[str], settings: SamplerSettings, until: Until, rng: np.random.Generator
) -> list[PromptSamples]:
    """Return islands of each prompt until its figure is known or its budget is spent; every island is a run.

    Prompts that are not known yet run together, in batches of replicates.
    """
    most = source.prompts_per_batch(settings, prompts)
    runs: list[list[Run]] = [[] for _ in prompts]
    numbers: list[dict[str | None, int]] = [{None: 0} for _ in prompts]  # of the answers

    def draw(queue: np.ndarray) -> Drawn:
        new: list[Run] = []
        for at in range(0, len(queue), most):
            batch = [prompts[g] for g in queue[at : at + most]]
            new += runs_from_root(source, batch, settings, rng)[0]
        label = np.zeros((len(new), settings.n_particles), dtype=np.intp)
        for row, g, run in zip(label, queue, new, strict=True):
            runs[g].append(run)
            if source.answer is not None and until.figure == "share":
                texts = [source.answer(prompts[g], source.policy.steps.written(s)) for s in run.steps]
                row[:] = [numbers[g].setdefault(text, len(numbers[g])) for text in texts]
        weight = np.exp([run.log_weight for run in new])
        log_z = np.array([run.log_z for run in new], dtype=float)
        return Drawn(log_z, shares_by_label(label, weight), np.array([run.tokens for run in new]))

    stops = add_islands(len(prompts), draw, until, settings.n_particles, settings.max_tokens)
    return [
        replace(pooled_all([own], rng, settings.chain)[0], stop=stop)
        for own, stop in zip(runs, stops, strict=True)
    ]


def gibbs(
    source: Source, prompts: Sequence[str], settings: SamplerSettings, rng: np.random.Generator
) -> list[PromptSamples]:
    """Return the draws of particle Gibbs, ``sweeps`` of them per prompt or as many as the budget allows.

    A chain starts from a draw of an ordinary run. A prompt whose first run has no positive weight is left out: it has
    nothing to condition on.
    """
    found: dict[int, PromptSamples] = {}
    left, tokens, read = list(range(len(prompts))), np.zeros(len(prompts)), np.zeros(len(prompts))
    while left:
        meters = [Meter(settings) for _ in left]
        batch = [prompts[i] for i in left]
        root: Any = source.root(batch, settings.terminal)
        require_join(root)
        seen = RunObserver(source, batch)
        path, alive = first_paths(root, settings.n_particles, settings.pool_size, rng, seen)
        tokens[left] += seen.tokens
        read[left] += seen.value_tokens
        for meter, spent in zip(meters, tokens[left], strict=True):
            meter.spend([spent])
        if alive.all():
            chains = sweep(source, batch, root, path, settings, meters, rng)
            found |= {i: with_read(own, read[i]) for i, own in zip(left, chains, strict=True)}
            break
        found |= {left[i]: with_read(empty_samples(meters[i]), read[left[i]]) for i in np.flatnonzero(~alive)}
        left = [left[i] for i in np.flatnonzero(alive)]
    return [found[i] for i in range(len(prompts))]


def with_read(drawn: PromptSamples, first: float) -> PromptSamples:
    """Return ``drawn`` with the value model's tokens of the first runs added."""
    total = first + (drawn.value_tokens or 0.0)
    return replace(drawn, value_tokens=None if np.isnan(total) else total)


def sweep(
    source: Source,
    prompts: Sequence[str],
    root: Any,
    path: tuple[Any, ...],
    settings: SamplerSettings,
    meters: Sequence[Meter],
    rng: np.random.Generator,
) -> list[PromptSamples]:
    """Return the draws of every sweep, by prompt; the last one is the state of the chain."""
    draws: list[Any] = []
    kept: list[np.ndarray] = []
    read = np.zeros(len(prompts))
    while all(m.affordable() for m in meters) if settings.budgeted else len(draws) < settings.sweeps:
        seen = RunObserver(source, prompts)
        result = particle_gibbs(
            root, settings.n_particles, 1, settings.pool_size, settings.resampling, rng, path, observe=seen
        )
        path, draw = result.path, result.draws[0]
        draws.append((draw.steps(), draw.log_value()[:, 0]))
        kept.append(result.kept[0])
        read += seen.value_tokens
        for meter, spent in zip(meters, seen.tokens, strict=True):
            meter.spend([spent])
    # A budget that went into the first run leaves its draw, the state of a chain without sweeps.
    draws = draws or [(path[-1].steps(), path[-1].log_value()[:, 0])]
    n = len(draws)
    return [
        PromptSamples(
            steps=[steps[g][0] for steps, _ in draws],
            log_weight=np.full(n, -np.log(n)),
            log_value=np.asarray([values[g] for _, values in draws]),
            log_z=None,
            draw=n - 1,
            runs=(),
            tokens=meter.tokens,
            kept=[bool(k[g]) for k in kept],
            spent=meter.spent(),
            value_tokens=float(read[g]),
        )
        for g, meter in enumerate(meters)
    ]


def empty_samples(meter: Meter) -> PromptSamples:
    """Return the samples of a prompt whose first run has no positive weight."""
    none = np.zeros(0)
    return PromptSamples([], none, none, None, None, (), meter.tokens, kept=[], spent=meter.spent())


def require_join(root: Any) -> None:
    """Raise ``UserError`` unless particles can be put side by side, as conditional runs must."""
    if not hasattr(root, "join"):
        raise UserError(
            f"particle Gibbs puts a reference beside the particles, and {type(root).__name__} has no `join`",
            "use another algorithm with this engine: mh is a chain with the same target",
        )
