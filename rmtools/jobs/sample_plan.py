"""The plan of a file of samples: everything its records depend on, and which prompts a block holds."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rmtools.errors import UserError
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
    def shards(self) -> int:
        """How many blocks there are."""
        return -(-self.prompts // self.block_size)

    def block(self, shard: int) -> slice:
        """Return which prompts are in a block."""
        return slice(shard * self.block_size, min((shard + 1) * self.block_size, self.prompts))

    def name(self, shard: int) -> str:
        """Return the file name of a block."""
        return f"block-{shard:05d}.jsonl"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as it is saved."""
        return asdict(self)

    @property
    def run(self) -> str:
        """A short hash of the plan."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def provenance(self) -> dict[str, Any]:
        """Return what every record says of where it comes from."""
        names = ("model", "model_fingerprint", "policy", "policy_fingerprint", "task", "seed", "block_size")
        return {name: getattr(self, name) for name in names} | {"accuracy": self.accuracy, "run": self.run}


def usual_block(settings: SamplerSettings) -> int:
    """Return the default number of prompts of a block: what one batch holds, and not more than may well be lost."""
    return min(MOST_WITH_BUDGET if settings.budgeted else MOST_IN_BLOCK, prompts_per_batch(settings))
