"""What a collection of rollouts consists of: every argument that its rows depend on, and which prompts a shard holds.

The plan is written before the first shard. A later start compares: with the same plan it goes on, with another it
is refused, so that one folder never holds rows of two kinds.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmtools.data.collect import Branching
from rmtools.data.rollouts import SCHEMA_VERSION, RolloutMetadata
from rmtools.data.shards import PLAN_FILE, check_format, shard_name
from rmtools.errors import UserError
from rmtools.files import read_json
from rmtools.lm.steps import StepSettings


@dataclass(frozen=True)
class Plan:
    """Everything the rows depend on.

    Attributes
    ----------
    verb : str
        The command: the same seed draws other rollouts for an audit than for training.
    policy, policy_fingerprint, device : str
        Name, hash of the weights ("" for a hub name), kind of device: random numbers differ between kinds.
    task, horizon, steps, temperature, branching, seed
        As in the metadata.
    task_sha256 : str
        Hash of the code of a task of the user's own, else "": edited code gives other rewards.
    prompts, prompts_sha256, removed_prompts : int, str, int
        How many, hash of all of them and of their right answers, how many were drawn without a solution and left out.
    batch_size, shard_size : int
        Prompts decoded together, and prompts of a shard.
    format : {"parquet", "jsonl"}
    """

    verb: str
    policy: str
    policy_fingerprint: str
    device: str
    task: str
    task_sha256: str
    horizon: int
    steps: StepSettings
    temperature: float
    branching: Branching
    seed: int
    prompts: int
    prompts_sha256: str
    removed_prompts: int
    batch_size: int
    shard_size: int
    format: str

    def __post_init__(self) -> None:
        check_format(self.format)
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise UserError(
                    f"--{option} must be at least 1, got {getattr(self, name)}", "pass a positive count"
                )

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.prompts // self.shard_size)

    def block(self, shard: int) -> slice:
        """Return which prompts shard ``shard`` holds: a consecutive block."""
        return slice(shard * self.shard_size, min((shard + 1) * self.shard_size, self.prompts))

    def name(self, shard: int) -> str:
        """Return the file name of a shard."""
        return shard_name(shard, self.shards, self.format)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as it is saved."""
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "branching": self.branching.to_dict(),
        }

    def metadata(self, rows: int, tokens: int, truncated: int) -> RolloutMetadata:
        """Return the metadata of the finished rollouts."""
        return RolloutMetadata(
            policy=self.policy,
            policy_fingerprint=self.policy_fingerprint,
            task=self.task,
            horizon=self.horizon,
            steps=self.steps,
            temperature=self.temperature,
            seed=self.seed,
            removed_prompts=self.removed_prompts,
            generated_tokens=tokens,
            truncated_steps=truncated,
            branching=self.branching.to_dict(),
            rows=rows,
            shards=self.shards,
        )


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Return the plan that ``folder`` was begun with, or None; raises ``UserError`` where it cannot be read."""
    path = folder / PLAN_FILE
    if not path.exists():
        return None
    found = read_json(path, "the plan of the work begun there")
    if not isinstance(found, dict) or "prompts_sha256" not in found:
        raise UserError(
            f"{path} is no plan of rollouts or samples",
            "choose another folder with --out; if this one is yours to lose, delete it",
        )
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return what differs between two saved plans, as "temperature (1.0 there, 0.7 now)".

    The name of a policy or a model does not count where its weights are known: the same folder has many names.
    """
    one, two = dict(_flat(old)), dict(_flat(new))
    for name in ("policy", "model"):
        weights = one.get(f"{name}_fingerprint")
        if weights and weights == two.get(f"{name}_fingerprint"):
            one.pop(name, None), two.pop(name, None)
    return [
        f"{key} ({_short(one.get(key))} there, {_short(two.get(key))} now)"
        for key in dict.fromkeys([*two, *one])
        if one.get(key) != two.get(key)
    ]


def _flat(values: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:16] + "…"


def hash_of(prompts: Sequence[str], references: Sequence[str | None]) -> str:
    """Return a hash of prompts, their order and their right answers: other answers are other rewards."""
    return hashlib.sha256(json.dumps([list(prompts), list(references)]).encode()).hexdigest()[:16]


def shard_generator(verb: str, seed: int, shard: int) -> np.random.Generator:
    """Return the generator of a shard: its rows are the same whichever process draws them, and whenever.

    The shard is a spawn key and not one more word of entropy, which numpy fills up with zeros: shard 0 would
    repeat the generator of the prompts.
    """
    import zlib

    words = [seed, zlib.crc32(verb.encode())]
    return np.random.default_rng(np.random.SeedSequence(words, spawn_key=(shard,)))
