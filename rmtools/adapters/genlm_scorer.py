"""Any potential of genlm-control as a scorer of rmtools; public through ``rmtools.adapters.genlm``."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.adapters.cutting import Steps
from rmtools.adapters.reading import answer_text, not_installed, outside_loop, prompt_text, tree_parts
from rmtools.errors import UserError
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.value import TreeValues, ValueState
from rmtools.particles.tilt import Tilt

try:
    from genlm.backend.tokenization import Token
    from genlm.control import Potential
    from genlm.control.typing import Atomic
except ImportError as error:
    raise not_installed("genlm-control", "genlm", error) from error


@dataclass(frozen=True)
class ContextState:
    """The :class:`~rmtools.lm.value.ValueState` of a :class:`GenlmScorer`: B prompts, and the steps so far.

    Attributes
    ----------
    prompts : tuple of str
    steps : tuple of tuple of tuple of int
        (B,) token ids of each step.
    """

    prompts: tuple[str, ...]
    steps: tuple[Steps, ...]

    def select(self, rows: Tensor) -> "ContextState":
        """Return the prefixes ``rows`` (B',)."""
        at = rows.tolist()
        return ContextState(tuple(self.prompts[i] for i in at), tuple(self.steps[i] for i in at))

    def join(self, other: ValueState) -> "ContextState":
        """Return these prefixes and, behind them, those of ``other``."""
        assert isinstance(other, ContextState)
        return ContextState(self.prompts + other.prompts, self.steps + other.steps)


class GenlmScorer:
    """Any potential of genlm as a scorer: log V is ``prefix`` of an unfinished solution, ``complete`` of one that ended.

    It is a weight, not a probability (``is_probability`` is False). Weights of zero (a grammar that is broken) are
    values of zero: the sampler drops such particles.

    Parameters
    ----------
    potential : Potential, or callable
        One for all prompts, or ``potential(prompt)`` that makes a prompt's own; kept for each distinct prompt.
    steps : StepTokenizer
        The policy's.
    tilt : Tilt
        What a reward is worth with terminal "verifier". Not read here.
    name : str
        For provenance.
    context : callable, optional
        ``context(text, token_ids)`` makes the potential's sequence. Default, by the type of its tokens: genlm's tokens
        of the same ids, or the text as bytes (integers) or as characters.

    Raises
    ------
    UserError
        When used: if the tokens are of another type, or a weight is NaN or +inf, or zero at the prompt.
    """

    is_probability = False

    def __init__(
        self,
        potential: Potential | Callable[[str], Potential],
        steps: StepTokenizer,
        tilt: Tilt,
        *,
        name: str = "",
        context: Callable[[str, list[int]], Sequence[Any]] | None = None,
    ) -> None:
        self.steps = steps
        self.tilt = tilt
        self.name = name or (repr(potential) if isinstance(potential, Potential) else "genlm potential")
        self._potential = potential
        self._context = context
        self._made: dict[str, Potential] = {}
        self._tokens: dict[int, dict[int, Any]] = {}

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree, two calls per distinct prompt."""
        prompts: list[str] = []
        asked: list[Steps] = []
        shapes: list[list[int]] = []
        for tree in trees:
            ids, steps, children = tree_parts(tree)
            trunk = [tuple(map(tuple, steps[:t])) for t in range(len(steps) + 1)]
            forked = [(*trunk[t], tuple(c)) for t, kids in enumerate(children) for c in kids]
            shapes.append([len(trunk), *(len(kids) for kids in children)])
            asked += [*trunk, *forked]
            prompts += [prompt_text(self.steps, ids)] * (len(trunk) + len(forked))
        values, found, at = self._log_values(prompts, asked), [], 0
        for counts in shapes:
            parts = np.split(values[at : at + sum(counts)], np.cumsum(counts)[:-1])
            found.append(TreeValues(parts[0], parts[1:]))
            at += sum(counts)
        if progress is not None:
            progress(len(trees))
        return found

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return log values (B,) nats of prompts given as token ids, and the state."""
        state = ContextState(tuple(prompt_text(self.steps, p) for p in prompts), ((),) * len(prompts))
        values = self._log_values(state.prompts, state.steps)
        if (values == -np.inf).any():
            raise UserError(
                f"{self.name} gives weight zero to the empty sequence: nothing can be drawn",
                "a potential must allow the beginning",
            )
        return torch.from_numpy(values), state

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return log values (B,) nats after a new step ``tokens`` (B, L; -1 = none), NaN where there is none."""
        assert isinstance(state, ContextState)
        new = [tuple(i for i in row if i >= 0) for row in tokens.tolist()]
        steps = tuple((*s, ids) if ids else s for s, ids in zip(state.steps, new, strict=True))
        at = [i for i, ids in enumerate(new) if ids]
        values = np.full(len(new), np.nan)
        values[at] = self._log_values([state.prompts[i] for i in at], [steps[i] for i in at])
        return torch.from_numpy(values), ContextState(state.prompts, steps)

    def _log_values(self, prompts: Sequence[str], asked: Sequence[Steps]) -> np.ndarray:
        values = np.full(len(asked), np.nan)
        groups: dict[tuple[str, bool], list[int]] = {}
        for i, (prompt, steps) in enumerate(zip(prompts, asked, strict=True)):
            groups.setdefault((prompt, self._has_ended(steps)), []).append(i)
        for (prompt, ended), at in groups.items():
            values[at] = self._ask(self._of(prompt), [asked[i] for i in at], ended)
        return values

    def _has_ended(self, steps: Steps) -> bool:
        return len(steps) >= self.steps.settings.max_steps or bool(
            steps and steps[-1][-1] == self.steps.eos_id
        )

    def _of(self, prompt: str) -> Potential:
        if isinstance(self._potential, Potential):
            return self._potential
        if prompt not in self._made:
            self._made[prompt] = self._potential(prompt)
        return self._made[prompt]

    def _ask(self, potential: Potential, asked: list[Steps], ended: bool) -> np.ndarray:
        contexts = [self._sequence(potential, steps) for steps in asked]
        call = potential.batch_complete if ended else potential.batch_prefix
        found = outside_loop(lambda: asyncio.run(call(contexts)))
        weights = np.asarray(found, dtype=np.float64)
        if weights.shape != (len(asked),) or not (weights < np.inf).all():
            raise UserError(
                f"{self.name} gave weights that are no log weights: {weights.tolist()[:3]}",
                "a potential gives one number below +inf a sequence, and no NaN",
            )
        return weights

    def _sequence(self, potential: Potential, steps: Steps) -> Sequence[Any]:
        ids = [i for s in steps for i in s]
        ids = ids[:-1] if ids and ids[-1] == self.steps.eos_id else ids
        text = "".join(answer_text(self.steps, s) for s in steps)
        if self._context is not None:
            return self._context(text, ids)
        kind = potential.token_type
        if kind == Atomic(Token):
            known = self._known_tokens(potential)
            missing = [i for i in ids if i not in known]
            if missing:
                raise UserError(
                    f"{self.name} does not know token {missing[0]} of the policy",
                    "use a potential over the policy's vocabulary, or one over bytes",
                )
            return [known[i] for i in ids]
        if kind == Atomic(int):
            return list(text.encode())
        if kind == Atomic(str) and all(len(c) == 1 for c in potential.vocab):
            return list(text)
        raise UserError(
            f"{self.name} reads {kind}, which the adapter does not write",
            "pass context=, which makes its sequence from the text and the token ids",
        )

    def _known_tokens(self, potential: Potential) -> dict[int, Any]:
        if id(potential) not in self._tokens:
            self._tokens[id(potential)] = {t.token_id: t for t in potential.vocab}
        return self._tokens[id(potential)]
