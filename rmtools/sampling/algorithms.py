"""Every algorithm of docs/equations.md section 4 on a batch of prompts: one run, a chain of runs, particle Gibbs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmtools.errors import UserError
from rmtools.particles.particle_gibbs import first_paths, particle_gibbs
from rmtools.particles.smc import smc
from rmtools.sampling.budget import Meter, next_runs
from rmtools.sampling.counted import Counted, JoinableCounted
from rmtools.sampling.runs import Drawn, Run, Spent, pooled_all, runs_of
from rmtools.sampling.settings import SamplerSettings
from rmtools.sampling.source import Source

PARTICLES_PER_BATCH = 4096


def draw_batch(
    source: Source, prompts: Sequence[str], settings: SamplerSettings, rng: np.random.Generator
) -> list[Drawn]:
    """Run the sampler on ``prompts``, all in one batch.

    One after the other where each has a time of its own, and chains of Gibbs where each has any budget.

    Raises
    ------
    UserError
        See `SamplerSettings` and `LMParticles.start`; also where particle Gibbs is asked of particles that cannot be
        joined.
    """
    if settings.budgeted:
        one_by_one = settings.sweeps > 0 or settings.max_seconds is not None
        batches = [[p] for p in prompts] if one_by_one else [list(prompts)]
        draw = gibbs if settings.sweeps else within_budget
        return [d for batch in batches for d in draw(source, batch, settings, rng)]
    if settings.sweeps:
        return gibbs(source, prompts, settings, rng)
    root = source.root(prompts, settings.terminal)
    runs = [run_once(source, root, prompts, settings, rng) for _ in range(1 + settings.mh_steps)]
    return pooled_all(list(zip(*runs, strict=True)), rng, settings.chain)


def run_once(
    source: Source, root: Any, prompts: Sequence[str], settings: SamplerSettings, rng: np.random.Generator
) -> list[Run]:
    """Return one run of the sampler from ``root``, by prompt."""
    result = smc(
        root, settings.n_particles, settings.pool_size, settings.resampling, settings.ess_threshold, rng
    )
    return runs_of(source.told(prompts, result))


def within_budget(
    source: Source, prompts: Sequence[str], settings: SamplerSettings, rng: np.random.Generator
) -> list[Drawn]:
    """Return runs of each prompt until its budget is spent, the first one whatever it takes.

    Runs go in batches of replicates of all prompts, which grow while there is budget for twice as many.
    """
    most = max(1, PARTICLES_PER_BATCH // (settings.n_particles * settings.pool_size))
    meters = [Meter(settings) for _ in prompts]
    runs: list[list[Run]] = [[] for _ in prompts]
    wanted = [1] * len(prompts)
    while any(wanted):
        queue = [g for g, n in enumerate(wanted) for _ in range(n)]
        new: list[list[Run]] = [[] for _ in prompts]
        for at in range(0, len(queue), most):
            own = queue[at : at + most]
            batch = [prompts[g] for g in own]
            found = run_once(source, source.root(batch, settings.terminal), batch, settings, rng)
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


def gibbs(
    source: Source, prompts: Sequence[str], settings: SamplerSettings, rng: np.random.Generator
) -> list[Drawn]:
    """Return the draws of particle Gibbs, ``sweeps`` of them a prompt or as many as the budget allows.

    A chain starts from a draw of an ordinary run. A prompt whose first run has no positive weight is left out: it has
    nothing to condition on.
    """
    found: dict[int, Drawn] = {}
    left, tokens = list(range(len(prompts))), np.zeros(len(prompts))
    while left:
        meters = [Meter(settings) for _ in left]
        batch = [prompts[i] for i in left]
        root: Any = source.root(batch, settings.terminal)
        require_join(root)
        path, alive = first_paths(root, settings.n_particles, settings.pool_size, rng)
        tokens[left] += path[-1].tokens
        for meter, spent in zip(meters, tokens[left], strict=True):
            meter.spend([spent])
        if alive.all():
            chains = sweep(root, path, settings, meters, rng)
            found |= dict(zip(left, chains, strict=True))
            break
        found |= {left[i]: nothing(meters[i], settings) for i in np.flatnonzero(~alive)}
        left = [left[i] for i in np.flatnonzero(alive)]
    return [found[i] for i in range(len(prompts))]


def sweep(
    root: Any,
    path: tuple[Any, ...],
    settings: SamplerSettings,
    meters: Sequence[Meter],
    rng: np.random.Generator,
) -> list[Drawn]:
    """Return the draws of every sweep, by prompt; the last one is the state of the chain."""
    groups = root.shape[0]
    steps: list[list[list[str]]] = [[] for _ in range(groups)]
    values: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    while all(m.affordable() for m in meters) if settings.budgeted else len(values) < settings.sweeps:
        result = particle_gibbs(
            root, settings.n_particles, 1, settings.pool_size, settings.resampling, rng, path
        )
        path, draw = result.path, result.draws[0]
        for own, text in zip(steps, draw.steps(), strict=True):
            own.append(text[0])
        values.append(draw.log_value()[:, 0])
        kept.append(result.kept[0])
        for meter, spent in zip(meters, draw.tokens, strict=True):
            meter.spend([spent])
    if not values:
        # The budget went into the first run: its draw is the state of a chain without sweeps.
        for own, text in zip(steps, path[-1].steps(), strict=True):
            own.append(text[0])
        values.append(path[-1].log_value()[:, 0])
    n = len(values)
    return [
        Drawn(
            steps=steps[g],
            log_weight=np.full(n, -np.log(n)),
            log_value=np.asarray([v[g] for v in values]),
            log_z=None,
            draw=n - 1,
            runs=(),
            tokens=meters[g].tokens,
            kept=[bool(k[g]) for k in kept],
            spent=spent_of(meters[g], settings),
        )
        for g in range(groups)
    ]


def nothing(meter: Meter, settings: SamplerSettings) -> Drawn:
    """Return what is there of a prompt whose first run has no positive weight."""
    none = np.zeros(0)
    return Drawn([], none, none, None, None, (), meter.tokens, kept=[], spent=spent_of(meter, settings))


def spent_of(meter: Meter, settings: SamplerSettings) -> Spent | None:
    """Return what was spent where there is a budget."""
    return meter.spent() if settings.budgeted else None


def require_join(root: Counted) -> None:
    """Raise ``UserError`` where particles cannot be put side by side, as conditional runs must."""
    if not isinstance(root, JoinableCounted):
        raise UserError(
            f"particle Gibbs puts a reference beside the particles, and {type(root.inner).__name__} has no `join`",
            "use another algorithm with this engine: mh is a chain with the same target",
        )
