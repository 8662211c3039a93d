"""The pilot of an audit: the sampler as it is configured, in islands on the audit's prompts (`rmtools.stats.pilot`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rmtools.auditing.rows import tokens_of
from rmtools.data.prompts import task_of_rows
from rmtools.errors import UserError
from rmtools.lm.memory import in_halves
from rmtools.lm.pace import SLOW_CORE
from rmtools.lm.policy import load_policy
from rmtools.sampling.settings import SamplerSettings, settings_for
from rmtools.sampling.source import Source
from rmtools.stats.pilot import (
    ENOUGH,
    RUNS,
    Pilot,
    PilotSampler,
    Progress,
    check_scheme,
    independent_cost,
    island_estimates,
    pilot_estimator,
)

if TYPE_CHECKING:
    from rmtools.data.rollouts import Rollout
    from rmtools.data.tasks import Task
    from rmtools.lm.checkpoint import CheckpointSettings
    from rmtools.lm.policy import Policy
    from rmtools.lm.precision import Placement
    from rmtools.lm.protocol import Scorer, StepPolicy

AT_FIRST, MOST_PROMPTS = (
    256,
    1024,
)  # of many prompts, so many at even distances; more of them if a few carry the sum
HOUR = 3600


def pilot_settings(asked: "bool | SamplerSettings") -> SamplerSettings | None:
    """Return the sampler to pilot, that of `rmtools.sample` for True; None without a pilot.

    Raises
    ------
    UserError
        For anything else, and for samplers that are no independent runs of particles that estimate Z.
    """
    if isinstance(asked, bool | np.bool_):
        return settings_for(None) if asked else None
    if not isinstance(asked, SamplerSettings):
        raise UserError(
            f"`pilot` must be True, False or SamplerSettings, got {type(asked).__name__}", "pilot=True"
        )
    if asked.sweeps or asked.chain or asked.budgeted:
        raise UserError(
            f"a pilot runs islands of particles, and `pilot` is {asked.algorithm} with chains or a budget",
            "settings_for('smc', n_particles=16), say",
        )
    check_scheme(asked.resampling)
    return asked


@dataclass(frozen=True)
class PilotRun:
    """A pilot that can be run: the models, the prompts, at most `MOST_PROMPTS`, and how many were left out as too long.

    `AT_FIRST` of the prompts, the first ones, are enough unless a few carry the variance. No prompt is drawn anew from the task:
    the particles are counted for the audit's prompts, and where all are used already more islands are what helps.
    """

    source: Source
    settings: SamplerSettings
    prompts: tuple[str, ...]
    left_out: int

    @classmethod
    def prepare(
        cls,
        settings: SamplerSettings,
        scorer: "Scorer",
        rows: "Sequence[Rollout]",
        policy: "Policy | None",
        task: "Task | None",
        known: "CheckpointSettings | None",
        placement: "Placement",
    ) -> Self:
        """Return the pilot on the prompts of ``rows``; without ``policy`` with the one that the checkpoint names.

        Raises
        ------
        UserError
            If there is no policy, the scorer does not read prefixes, or terminal "verifier" has no task.
        """
        if not hasattr(scorer, "start"):
            raise UserError(
                f"a pilot scores prefixes while they grow, and {scorer.name} only scores whole trajectories",
                "leave the pilot out",
            )
        if settings.terminal == "verifier" and task is None:
            raise UserError(
                "a pilot with `terminal` verifier needs a task, and none is named", "name it with `task`"
            )
        if policy is None:
            if known is None or not known.policy:
                raise UserError("a pilot runs the policy, and none is named", "name it with `policy`")
            policy = load_policy(known.policy, known.steps, known.law, placement.device, placement.dtype)
        prompts = list(dict.fromkeys(r.prompt for r in rows))
        fit = [p for p in prompts if _fits(policy, p)]
        first = evenly(len(fit), AT_FIRST)
        rest = np.setdiff1d(np.arange(len(fit)), first)
        chosen = [*first, *rest[evenly(len(rest), MOST_PROMPTS - len(first))]]
        source = Source(policy, scorer, None if task is None else task_of_rows(task, rows).reward)
        return cls(source, settings, tuple(fit[i] for i in chosen), len(prompts) - len(fit))

    def __call__(
        self,
        delta_cv: float,
        rng: np.random.Generator,
        progress: Progress | None = None,
        independent: Mapping[str, np.ndarray] | None = None,
    ) -> Pilot:
        """Run islands of N / K particles on every prompt, in batches that fit into memory.

        ``independent`` are the final log values, nats, of independent solutions of each prompt: what best-of-N is compared by.

        Raises
        ------
        UserError
            If no prompt fits, memory is too small for one island, or the scorer gives wrong values.
        """
        if not self.prompts:
            raise UserError("no prompt leaves room for a step in the policy's context", "shorten the prompts")
        s = self.settings
        one = replace(s, n_particles=s.n_particles // (s.islands or 1), islands=1)
        sampler = PilotSampler(one.n_particles, s.pool_size, s.resampling, s.ess_threshold, s.terminal)
        log_z, tokens, seconds = island_estimates(
            lambda index: self.source.root([self.prompts[i] for i in index], s.terminal),
            len(self.prompts),
            sampler,
            rng,
            at_first=AT_FIRST,
            at_once=self.source.prompts_per_batch(one, self.prompts),
            progress=progress,
            halves=lambda work, items: in_halves(work, items, "island", "fewer particles, or shorter steps"),
        )
        found = pilot_estimator(log_z, sampler, delta_cv, tokens, seconds).bootstrap(rng)
        found = replace(found, left_out=self.left_out)
        if independent is None:
            return found
        solutions = [independent[prompt] for prompt in self.prompts[: len(log_z)]]
        cost = independent_cost(log_z, sampler.n_particles, solutions)
        if cost is None:
            return found
        one_solution, times = cost.bootstrap(rng)
        return replace(found, one_solution=one_solution, best_of_n=times)


def takes_hours(policy: "StepPolicy", rows: "Sequence[Rollout]", settings: SamplerSettings) -> bool:
    """Return whether a slow processor would take more than an hour, with a value model of the policy's size."""
    if not hasattr(policy, "model"):  # behind a server, whose pace is not known
        return False
    islands = max(RUNS * min(len({r.prompt for r in rows}), AT_FIRST), ENOUGH)
    n = settings.n_particles * settings.pool_size // (settings.islands or 1)
    model: Any = policy.model
    weights = 2 * sum(p.numel() for p in model.parameters())
    work = islands * n * tokens_of(rows, policy) * weights
    return policy.device.type == "cpu" and work > HOUR * SLOW_CORE


def evenly(count: int, most: int) -> np.ndarray:
    """Return the indices of ``most`` of ``count`` at even distances, in order; all if there are no more."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))


def _fits(policy: Any, prompt: str) -> bool:
    try:
        policy.check_length([policy.steps.prompt_ids(prompt)])
    except UserError:
        return False
    return True
