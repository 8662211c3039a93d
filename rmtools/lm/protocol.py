"""The policy and the value model as the sampler, the collector and the audit see them.

A :class:`StepPolicy` draws steps: a model in this process (:class:`rmtools.lm.policy.Policy`) or one behind a server
(:class:`rmtools.serving.server.ServerPolicy`). A :class:`Scorer` values prefixes: a trained model
(:class:`rmtools.lm.value.ValueModel`) or anything else with these three methods.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.particles.tilt import Tilt

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
    """One decoded step of B particles: ``state`` holds the U' distinct prefixes after it.

    Attributes
    ----------
    tokens : Tensor
        (U', L) the step's token ids at each distinct prefix, -1 behind its end or if it had ended.
    parent, node : Tensor
        (U',) the distinct prefix before the step; (B,) the distinct prefix of each particle after it.
    """

    tokens: Tensor
    state: State
    parent: Tensor
    node: Tensor


class StepPolicy(Protocol):
    r"""A law over next steps, drawn for many prefixes at once.

    Examples
    --------
    `rmtools.load_policy` returns one; `rmtools.testing` checks one of your own.

    >>> import rmtools as rm
    >>> policy: rm.StepPolicy = rm.load_policy("policy", rm.StepSettings("\n", 3))
    >>> [hasattr(policy, name) for name in ("steps", "temperature", "name", "device", "start", "decode_step")]
    [True, True, True, True, True, True]
    """

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


@dataclass(frozen=True)
class TreeValues:
    """Log values of one trajectory, nats.

    ``log_value`` (T + 1,) at the prompt and after each step, the model's own also at the end; ``children``: T arrays, at the
    alternative next steps of each depth.
    """

    log_value: np.ndarray
    children: list[np.ndarray]


class ValueState(Protocol):
    """A batch of prefixes that a value model has read; of a ``ValueModel``, its ``PrefixCache``."""

    def select(self, rows: Tensor) -> "ValueState":
        """Return the prefixes ``rows`` (B',)."""
        ...

    def join(self, other: Any) -> "ValueState":
        """Return these prefixes followed by those of ``other``, a state of the same model."""
        ...


class Scorer(Protocol):
    """Anything that values prefixes: a trained model, or a control without weights.

    If ``is_probability`` is False the value is not a tilted probability: it has no p and no calibration. Fifteen lines of one's
    own: docs/contracts.md.

    Attributes
    ----------
    steps : StepTokenizer
        Of the policy, or with a vocabulary of its own: texts are then tokenised again.
    tilt : Tilt
        Its floor; log values of probabilities lie in [log floor, 0].
    name : str
        For messages and provenance.
    is_probability : bool

    Examples
    --------
    Anything with these attributes can be audited and sampled with; `rmtools.testing` checks one of your own.

    >>> import rmtools as rm
    >>> from rmtools.lm.value import ConstantValue
    >>> value, _ = rm.load_value_model("prm")
    >>> constant: rm.Scorer = ConstantValue(0.5, value.steps, rm.Tilt(0.01))
    >>> rm.sample(constant, rm.load_prompts("prompts.jsonl")[:1], policy="policy", n_particles=4)[0].weights.round(6).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """

    steps: StepTokenizer
    tilt: Tilt
    name: str
    is_probability: bool

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree; ``progress`` is called with the number of trees done."""
        ...

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats of prompts given as token ids, and the state."""
        ...

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats after a new step ``tokens`` (B, L; -1 = no token), and the state."""
        ...
