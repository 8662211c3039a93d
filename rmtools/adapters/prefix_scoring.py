"""What the scorers of other packages share: prefixes as prompt texts and steps, from and to a sampler's token ids.

A scorer gives ``log_values(prompts, steps)``, the log value (nats) of each prefix; the functions here make of it the ``score``,
``start`` and ``advance`` of a :class:`rmtools.lm.protocol.Scorer` (an example: docs/contracts.md). They raise
``UserError`` unless ``log_values`` gives one number per prefix.
"""

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.protocol import TreeValues, ValueState
from rmtools.lm.retokenise import prompt_text
from rmtools.lm.scorer_checks import require_shape
from rmtools.lm.steps import EncodedTree, StepTokenizer

Steps = tuple[tuple[int, ...], ...]
LogValues = Callable[[Sequence[str], Sequence[Steps]], np.ndarray]


@dataclass(frozen=True)
class PrefixState:
    """The :class:`~rmtools.lm.protocol.ValueState` of these scorers: B prompts, and the steps so far.

    Attributes
    ----------
    prompts : tuple of str
    steps : tuple of tuple of tuple of int
        (B,) token ids of each step.
    """

    prompts: tuple[str, ...]
    steps: tuple[Steps, ...]

    def select(self, rows: Tensor) -> "PrefixState":
        """Return the prefixes ``rows`` (B',)."""
        at = rows.tolist()
        return PrefixState(tuple(self.prompts[i] for i in at), tuple(self.steps[i] for i in at))

    def join(self, other: "PrefixState") -> "PrefixState":
        """Return these prefixes followed by those of ``other``."""
        return PrefixState(self.prompts + other.prompts, self.steps + other.steps)


def score_trees(
    trees: Sequence[EncodedTree],
    tokenizer: StepTokenizer,
    log_values: LogValues,
    progress: Callable[[int], object] | None = None,
) -> list[TreeValues]:
    """Return the values at every prefix and child of every tree, all in one call of ``log_values``."""
    prompts: list[str] = []
    prefixes: list[Steps] = []
    shapes: list[list[int]] = []
    for tree in trees:
        prompt, steps, children = tree.parts()
        trunk = [tuple(map(tuple, steps[:t])) for t in range(len(steps) + 1)]
        forked = [(*trunk[t], tuple(c)) for t, kids in enumerate(children) for c in kids]
        shapes.append([len(trunk), *(len(kids) for kids in children)])
        prefixes += [*trunk, *forked]
        prompts += [prompt_text(tokenizer, prompt)] * (len(trunk) + len(forked))
    values, found, at = _called(log_values, prompts, prefixes), [], 0
    for counts in shapes:
        parts = np.split(values[at : at + sum(counts)], np.cumsum(counts)[:-1])
        found.append(TreeValues(parts[0], parts[1:]))
        at += sum(counts)
    if progress is not None:
        progress(len(trees))
    return found


def start_prefixes(
    prompts: Sequence[Sequence[int]], tokenizer: StepTokenizer, log_values: LogValues
) -> tuple[Tensor, PrefixState]:
    """Return log values (B,) nats of prompts given as token ids, and the state."""
    state = PrefixState(tuple(prompt_text(tokenizer, p) for p in prompts), ((),) * len(prompts))
    return torch.from_numpy(_called(log_values, state.prompts, state.steps)), state


def advance_prefixes(state: ValueState, tokens: Tensor, log_values: LogValues) -> tuple[Tensor, PrefixState]:
    """Return log values (B,) nats after a new step ``tokens`` (B, L; -1 = no token), NaN without one, and the state."""
    assert isinstance(state, PrefixState)
    new = [tuple(i for i in row if i >= 0) for row in tokens.tolist()]
    steps = tuple((*s, ids) if ids else s for s, ids in zip(state.steps, new, strict=True))
    at = [i for i, ids in enumerate(new) if ids]
    values = np.full(len(new), np.nan)
    values[at] = _called(log_values, [state.prompts[i] for i in at], [steps[i] for i in at])
    return torch.from_numpy(values), PrefixState(state.prompts, steps)


def _called(log_values: LogValues, prompts: Sequence[str], steps: Sequence[Steps]) -> np.ndarray:
    found = np.asarray(log_values(prompts, steps))
    name = getattr(log_values, "__qualname__", type(log_values).__name__)
    require_shape(name, found, (len(prompts),), f"{len(prompts)} prefixes")
    return found


def answer_text(tokenizer: StepTokenizer, steps: Steps) -> str:
    """Return the text of a prefix's steps without an end token, which other packages leave out."""
    plain = (s[:-1] if s and s[-1] in tokenizer.end_ids else s for s in steps)
    return "".join(tokenizer.step_text(s) for s in plain)


def outside_loop(function: Callable[[], Any]) -> Any:
    """Call ``function`` where no event loop runs, so that it may start one: in a thread if one runs here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    # Settings of the other package may live in context variables: a new thread would not see them.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, function).result()


def not_installed(package: str, extra: str, error: ImportError) -> UserError:
    """Return the error for an optional package that is missing."""
    return UserError(
        f"the adapter needs {package}, which cannot be imported ({error})",
        f"pip install 'rmtools[{extra}]'",
    )
