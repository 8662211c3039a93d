"""How much a run measures: `QUICK` in minutes, `FULL` in hours."""

from dataclasses import dataclass, replace

from rmtools.verify.scaling.policy import PolicySize

MODELS = ("constant", "untrained", "mc-early", "mc-late", "default-early", "default-late", "planted", "exact")
TRAINED = ("mc-early", "mc-late", "default-early", "default-late")
BELLMAN = "default-late"
STORY = ("constant", "planted", "mc-late", "default-late", "exact")
EPSILON = 0.2  # of the planted bias
DELTA_CV = 0.25
SHARE_OF_TARGET = 0.9


@dataclass(frozen=True)
class Profile:
    """Sizes of a run.

    Attributes
    ----------
    horizons : tuple of int
        Increasing.
    enumerated : int
        The longest horizon whose tables have a state for every prefix; beyond it prefixes are merged.
    prompts : int
        Per horizon.
    rollout_prompts, trajectories : int
        For training, per horizon and share of given steps.
    updates, early : int
        Optimiser steps of a reward model, and of its early checkpoint.
    curve : tuple of int
        Optimiser steps of further checkpoints of the default, for the training curve.
    most_tokens : float
        Budget of a point, `rmtools.verify.scaling.points.Setting`.
    most_on_tables : int
    baseline_tokens : float
        Tokens of a trial of another method, `rmtools.verify.scaling.baselines`; 0: none.
    families : bool
        Whether exact families stand beside, `rmtools.verify.scaling.exact_families`.
    silent : bool
        Whether a failure reads like any other step.
    also : Profile or None
        A further run in a folder of its own, named as it is.
    """

    name: str
    horizons: tuple[int, ...]
    enumerated: int
    prompts: int
    policy: PolicySize
    rollout_prompts: int
    trajectories: int
    updates: int
    early: int
    curve: tuple[int, ...]
    most_tokens: float
    most_on_tables: int
    baseline_tokens: float = 0.0
    families: bool = False
    silent: bool = False
    seed: int = 0
    also: "Profile | None" = None


QUICK = Profile(
    name="quick",
    horizons=(2, 4, 8),
    enumerated=4,
    prompts=64,
    policy=PolicySize(updates=1500, tokens=2500),
    rollout_prompts=64,
    trajectories=8,
    updates=300,
    early=40,
    curve=(20, 80, 150),
    most_tokens=4e5,
    most_on_tables=1 << 13,
    baseline_tokens=2e5,
)
SILENT = replace(
    QUICK,
    name="silent",
    policy=PolicySize(updates=2000, tokens=2500),
    enumerated=8,
    updates=600,
    curve=(),
    most_tokens=1e6,
    most_on_tables=1 << 15,
    baseline_tokens=0.0,
    silent=True,
)
FULL = Profile(
    name="full",
    horizons=(2, 4, 8, 16, 32),
    enumerated=8,
    prompts=64,
    policy=PolicySize(updates=3000),
    rollout_prompts=192,
    trajectories=8,
    updates=2000,
    early=100,
    curve=(25, 50, 200, 400, 800, 1400),
    most_tokens=2e6,
    most_on_tables=1 << 17,
    baseline_tokens=1e6,
    families=True,
    also=SILENT,
)
