"""A value model behind a policy with another tokenizer: what the policy emits is read again as text.

The prompt and every step are tokenised apart by the value model's own tokenizer, which is how it reads them
anyway (docs/formats.md): nothing is lost by going through the text, so long as a token ends where the delimiter
ends in both tokenizers. That is checked, and refused otherwise.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.value import Scorer, TreeValues, ValueState


class Named(Protocol):
    """A policy, as far as its tokens are concerned."""

    steps: StepTokenizer
    name: str


def prompt_text(steps: StepTokenizer, ids: Sequence[int]) -> str:
    """Return the text whose ``steps.prompt_ids`` are ``ids``: without what the tokenizer puts in front of a text.

    Raises
    ------
    UserError
        Where there is none: the tokenizer does not know a piece of it, or does not give back what it was given.
    """
    found = list(ids)
    unknown = steps.tokenizer.unk_token_id
    added = len(steps.tokenizer("")["input_ids"])
    for start in range(added, -1, -1):
        rest = found[start:]
        text = str(
            steps.tokenizer.decode(rest, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
        if text and unknown not in rest and steps.prompt_ids(text) == found:
            return text
    raise UserError(
        f"the text of a prompt cannot be told from its tokens (it begins {steps.tokenizer.decode(found)[:60]!r}): "
        "the tokenizer does not know all of it, or changes it",
        "use the tokenizer of the model that is served, or prompts of its task",
    )


class Retokenised:
    """A :class:`rmtools.lm.value.Scorer` that takes the policy's tokens and reads their text.

    Parameters
    ----------
    value : Scorer
    steps : StepTokenizer
        The policy's: what ``start``, ``advance`` and ``score`` are given the tokens of.
    """

    def __init__(self, value: Scorer, steps: StepTokenizer) -> None:
        self.value = value
        self.steps = steps
        self.tilt = value.tilt
        self.name = value.name
        self.is_probability = value.is_probability
        self._known: dict[tuple[int, ...], list[int]] = {}

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats of prompts given as the policy's token ids, and the state.

        Raises
        ------
        UserError
            Where the value model's tokenizer does not know a piece of a prompt.
        """
        return self.value.start([self._prompt_ids(p) for p in prompts])

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats after a new step ``tokens`` (B, L; the policy's, -1 = none), and the state."""
        rows = [self._step_ids(tuple(i for i in row if i >= 0)) for row in tokens.tolist()]
        own = torch.full((len(rows), max(1, *map(len, rows))), -1, dtype=torch.long)
        for i, ids in enumerate(rows):
            own[i, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        return self.value.advance(state, own.to(tokens.device))

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree, encoded by the policy's ``steps``."""
        return self.value.score([self._tree(t) for t in trees], progress)

    def _tree(self, tree: EncodedTree) -> EncodedTree:
        ids, segment = tree.ids.tolist(), tree.segment
        reads = [int(r) + 1 for r in tree.reads]
        steps = [self._text(ids[a:b]) for a, b in itertools.pairwise(reads)]
        children = [
            [self._text(tree.ids[np.flatnonzero(segment == segment[last])].tolist()) for last in at]
            for at in tree.child_reads
        ]
        return self.value.steps.encode(self._prompt(ids[: reads[0]]), steps, children)

    def _prompt(self, ids: Sequence[int]) -> str:
        text = prompt_text(self.steps, ids)
        self.value.steps.require_known(text)
        return text

    def _prompt_ids(self, ids: Sequence[int]) -> list[int]:
        return self.value.steps.prompt_ids(self._prompt(ids))

    def _text(self, ids: Sequence[int]) -> str:
        """Return a step's text for the value model: the end of the sequence is written in its own words."""
        if ids and ids[-1] == self.steps.eos_id:
            return self.steps.step_text(ids[:-1]) + str(self.value.steps.tokenizer.eos_token)
        return self.steps.step_text(ids)

    def _step_ids(self, ids: tuple[int, ...]) -> list[int]:
        if not ids:
            return []
        found = self._known.get(ids)
        if found is None:
            found = self.value.steps.step_ids(self._text(ids))
            if len(self._known) < 100_000:
                self._known[ids] = found
        return found


def shared_tokens(policy: Named, value: Scorer) -> Scorer:
    """Return a value model that reads the tokens ``policy`` emits: itself, or one that reads their text again.

    Raises
    ------
    UserError
        Where they disagree on what a step is, or the delimiter is no boundary between tokens in one of them.
    """
    same = policy.steps.vocabulary == value.steps.vocabulary
    mine, its = policy.steps.settings, value.steps.settings
    if mine == its and same:
        return value
    if same or (mine.delimiter, mine.max_steps) != (its.delimiter, its.max_steps):
        raise UserError(
            f"policy and value model have different step settings: {mine} and {its}",
            "load the policy with the checkpoint's step settings",
        )
    for steps in (policy.steps, value.steps):
        try:
            # Anew: a tokenizer may have been changed since its steps were made.
            fresh = StepTokenizer(steps.tokenizer, mine)
        except UserError as error:
            raise UserError(
                f"policy {policy.name} and value model {value.name} have different tokenizers, and steps cannot be "
                f"read again as text: {error.fact}",
                "use the policy that the checkpoint was trained for, or train the value model with another delimiter",
            ) from error
    eos = fresh.tokenizer.eos_token
    if not isinstance(eos, str) or fresh.step_ids(eos) != [fresh.eos_id]:
        raise UserError(
            f"the tokenizer of the value model {value.name} has no end-of-sequence token that can be written as text: "
            "the end of a solution cannot be read again",
            "use the policy that the checkpoint was trained for",
        )
    return Retokenised(value, policy.steps)
