"""The policy as the sampler and the collector see it.

Implemented by a model in this process (:class:`rmtools.lm.policy.Policy`) and one behind a server
(:class:`rmtools.serving.server.ServerPolicy`).
"""

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from rmtools.lm.steps import StepTokenizer

State = TypeVar("State", covariant=True)


class StepState(Protocol):
    """A batch of B distinct prefixes in the middle of generation."""

    @property
    def pending(self) -> Tensor:
        """(B,) last token id of each prefix."""
        ...

    @property
    def ended(self) -> Tensor:
        """(B,) bool."""
        ...

    def select(self, rows: Tensor) -> "StepState":
        """Return the prefixes ``rows`` (B',)."""
        ...

    def join(self, other: Any) -> "StepState":
        """Return these prefixes followed by those of ``other``, a state of the same policy."""
        ...


@dataclass(frozen=True)
class Decoded(Generic[State]):
    """One decoded step of B particles.

    Attributes
    ----------
    tokens : Tensor
        (U', L) the step's token ids at each distinct prefix, -1 behind its end or if it had ended.
    state : StepState
        The U' distinct prefixes after the step.
    parent : Tensor
        (U',) the distinct prefix before the step.
    node : Tensor
        (B,) the distinct prefix of each particle after the step.
    """

    tokens: Tensor
    state: State
    parent: Tensor
    node: Tensor


class StepPolicy(Protocol):
    """A law over next steps, drawn for many prefixes at once."""

    steps: StepTokenizer
    temperature: float
    name: str

    @property
    def device(self) -> torch.device:
        """The device of states, and of the generator of ``decode_step``."""
        ...

    def check_length(self, prompts: list[list[int]]) -> None:
        """Raise ``UserError`` if a prompt (token ids) leaves no room for a single token."""
        ...

    def start(self, prompts: list[list[int]]) -> StepState:
        """Return the state of ``prompts`` (token ids)."""
        ...

    def decode_step(self, state: Any, node: Tensor, generator: torch.Generator) -> Decoded[Any]:
        """Draw one step for each of B particles independently; particle b is at prefix ``node[b]`` of ``state``."""
        ...
