"""What `rmtools audit` says of the trained models, from rollouts with sampled children, as a user has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import rmtools as rm
from rmtools.data.tasks.crossing import Crossing
from rmtools.lm.policy import Policy
from rmtools.lm.protocol import Scorer
from rmtools.stats.bootstrap import Interval
from rmtools.verify.scaling.profile import DELTA_CV

TRAJECTORIES, CHILDREN, COMPLETIONS = 8, 4, 4


@dataclass(frozen=True)
class Audited:
    """A model's audit at one horizon; 95% intervals over prompts, b in nats.

    Attributes
    ----------
    rms : Interval
        Root mean square of b over the policy's prefixes, sampling noise taken off; `Consistency.rms_policy` estimated.
    path_rms : Interval or None
        Root mean square of the sums of b along solutions.
    n_for_cv : Interval or None
        Particles for the CV with resampling at every step; None if the rollouts do not resolve them.
    auc_within : Interval or None
        AUC over pairs of prefixes of one prompt and depth.
    """

    model: str
    horizon: int
    rms: Interval
    path_rms: Interval | None
    n_for_cv: Interval | None
    auc_within: Interval | None


def audit_trained(
    policy: Policy, task: Crossing, prompts: Sequence[str], scorers: Mapping[str, Scorer], seed: int
) -> list[Audited]:
    """Roll out the policy on ``prompts`` and audit ``scorers``, by name, on the same rollouts."""
    rollouts = rm.collect_rollouts(
        policy,
        list(prompts),
        task=task,
        trajectories=TRAJECTORIES,
        children=CHILDREN,
        completions=COMPLETIONS,
        seed=seed,
    )
    first, *others = scorers.values()
    report = rm.audit(rollouts, first, compare=others, controls=False, delta_cv=DELTA_CV, seed=seed)
    found = []
    for name, audited in zip(scorers, report.models, strict=True):
        error = audited.error.best
        if error is None:
            raise AssertionError("rollouts with children have a Bellman error")
        paths = audited.error.paths
        found.append(
            Audited(
                name,
                task.horizon,
                error.corrected.rms,
                None if paths is None else paths.rms_corrected,
                audited.cost.n_for_cv,
                audited.calibration.auc_within,
            )
        )
    return found
