"""The plan of a file of samples: everything its records depend on, and which prompts a block holds."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from rmtools.codec import to_json
from rmtools.errors import UserError
from rmtools.jobs.job import Blocks
from rmtools.lm.steps import StepSettings
from rmtools.sampling.sample_prompts import SamplerSettings, prompts_per_batch

# With a budget a prompt takes many runs.
MOST_IN_BLOCK, MOST_WITH_BUDGET = 64, 16


@dataclass(frozen=True)
class SamplePlan:
    """Everything the records depend on.

    Attributes
    ----------
    model, model_fingerprint, policy, policy_fingerprint, device : str
        Names, hashes of the weights, kind of device: random numbers differ between kinds.
    temperature, floor : float
        Of the policy and of the tilt.
    task, task_sha256 : str
        Name, hash of the code of a task of the user's own.
    horizon : int
    steps : StepSettings
    sampler : SamplerSettings
    accuracy : dict or None
        Where N comes from.
    seed : int
    prompts, prompts_sha256 : int, str
        How many, hash of them and of their right answers.
    block_size : int
        Prompts that are drawn together and from one generator.
    traced : bool
        Whether the blocks hold traces too.
    rmtools : str
        Version.
    """

    model: str
    model_fingerprint: str
    policy: str
    policy_fingerprint: str
    device: str
    temperature: float
    floor: float
    task: str
    task_sha256: str
    horizon: int
    steps: StepSettings
    sampler: SamplerSettings
    accuracy: dict[str, Any] | None
    seed: int
    prompts: int
    prompts_sha256: str
    block_size: int
    traced: bool = False
    rmtools: str = field(default="")

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise UserError(
                f"--block-size must be at least 1, got {self.block_size}", "pass a positive count"
            )

    @property
    def blocks(self) -> Blocks:
        """The prompts of each block."""
        return Blocks(self.prompts, self.block_size, lambda i, count: f"block-{i:05d}.jsonl")

    @property
    def run(self) -> str:
        """A short hash of the plan."""
        return hashlib.sha256(json.dumps(to_json(self), sort_keys=True).encode()).hexdigest()[:16]

    def provenance(self) -> dict[str, Any]:
        """Return what every record says of where it comes from."""
        names = ("model", "model_fingerprint", "policy", "policy_fingerprint", "task", "seed", "block_size")
        return {name: getattr(self, name) for name in names} | {"accuracy": self.accuracy, "run": self.run}


def usual_block(settings: SamplerSettings) -> int:
    """Return the default number of prompts of a block: what one batch holds, and not more than may well be lost."""
    return min(MOST_WITH_BUDGET if settings.budgeted else MOST_IN_BLOCK, prompts_per_batch(settings))
