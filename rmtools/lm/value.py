"""Value models: a two-label token classifier read at the end of the prompt and of every step.

p = softmax(logits)[1] estimates P(solution will be correct given the prefix), in fp32 and log-sigmoid form; the
tilt turns it into a positive value (docs/equations.md, section 2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.architectures import longest_shared_row, require_scorable
from rmtools.lm.kv.batch import attention
from rmtools.lm.kv.cache import PrefixCache, begun
from rmtools.lm.memory import tokens_that_fit
from rmtools.lm.packing import Row, pairs_per_token, row_inputs, share_rows
from rmtools.lm.precision import input_device
from rmtools.lm.prompt_format import PromptFormat
from rmtools.lm.protocol import TreeValues, ValueState
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.tree_scoring import batches_by_length, padded, tree_logits
from rmtools.particles.tilt import Tilt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TOKENS_PER_BATCH = 16_384


def log_value_from_logits(logits: Tensor, floor: float) -> Tensor:
    """Return log V = logaddexp(log f, log1p(-f) + log p) of two-label logits (..., 2), in fp32 nats."""
    log_p = torch.log_softmax(logits.float(), dim=-1)[..., 1]
    f = torch.tensor(floor, dtype=torch.float32, device=log_p.device)
    return torch.logaddexp(f.log().expand_as(log_p), torch.log1p(-f) + log_p)


@dataclass(frozen=True)
class RowState:
    """The ``ValueState`` of a control: one row per prefix."""

    rows: Tensor

    def select(self, rows: Tensor) -> "RowState":
        """Return the prefixes ``rows`` (B',)."""
        return RowState(self.rows[rows.to(self.rows.device)])

    def join(self, other: "RowState") -> "RowState":
        """Return these prefixes followed by those of ``other``."""
        return RowState(torch.cat([self.rows, other.rows]))


class ConstantValue:
    """The control without information: every prefix has the value f + (1 - f) p, p the base rate ``probability``."""

    is_probability = True

    def __init__(self, probability: float, steps: StepTokenizer, tilt: Tilt) -> None:
        self.steps = steps
        self.tilt = tilt
        self.name = f"constant {probability:.4g}"
        self.log_value = float(tilt.log_potential(np.asarray(probability)))

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Return the constant at every prefix and child."""
        if progress is not None:
            progress(len(trees))
        return [
            TreeValues(
                np.full(len(t.reads), self.log_value),
                [np.full(len(at), self.log_value) for at in t.child_reads],
            )
            for t in trees
        ]

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return the constant for each prompt."""
        return self.advance(RowState(torch.zeros(len(prompts))), torch.zeros(len(prompts), 1))

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return the constant for each prefix."""
        return torch.full((len(tokens),), self.log_value, dtype=torch.float64), state


class ValueModel:
    """A reward model over prefixes: scores whole trajectories in one pass, or new steps incrementally.

    ``model`` returns logits (B, L, 2); ``name`` is for provenance. ``prompt_format`` is that of the prompts it was trained
    on, ``solution_tokens`` what nearly all solutions had at most; None if they are not known.
    """

    is_probability = True
    prompt_format: PromptFormat | None = None
    solution_tokens: int | None = None

    def __init__(self, model: "PreTrainedModel", steps: StepTokenizer, tilt: Tilt, name: str = "") -> None:
        self.model = model.eval()
        self.steps = steps
        self.tilt = tilt
        self.name = name

    @property
    def device(self) -> torch.device:
        """The device of the model's inputs: of several that hold its weights, that of the embeddings."""
        return input_device(self.model)

    @torch.inference_mode()
    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree; trees that begin alike share their tokens (`rmtools.lm.packing`).

        Raises ``NaNValueError``, which names the tree, if the model returns NaN.
        """
        require_scorable(self.model.config, trees)
        budget = tokens_that_fit(self.model, TOKENS_PER_BATCH)
        longest = min(longest_shared_row(self.model), budget)
        pairs = pairs_per_token(self.model.config)
        rows = share_rows(trees, pairs, longest, padded=False) if longest and trees else []
        shared = [row for row in rows if len(row) > 1]
        found: dict[int, TreeValues] = {}

        def keep(row: Sequence[int], values: Sequence[np.ndarray]) -> None:
            for i, of_tree in zip(row, values, strict=True):
                found[i] = self._tree_values(of_tree, trees[i], i)
            if progress is not None:
                progress(len(row))

        for row in shared:
            packed = Row.of([trees[i] for i in row])
            inputs = row_inputs([packed], self.steps.pad_id, self.model.dtype, self.device)
            with attention(self.device):
                (values,) = self._log_values(self.model(**inputs, use_cache=False).logits)
            keep(row, [values[places] for places in packed.places])
        alone = sorted({*range(len(trees))} - found.keys())
        for batch in batches_by_length([trees[i] for i in alone], budget):
            chosen = [alone[k] for k in batch]
            keep(chosen, [*self._log_values(self._logits([trees[i] for i in chosen]))])
        return [found[i] for i in range(len(trees))]

    def _logits(self, trees: Sequence[EncodedTree]) -> Tensor:
        if any(t.segment[-1] for t in trees):
            return tree_logits(self.model, trees, self.steps.pad_id)
        with attention(self.device):
            ids = padded([t.ids for t in trees], self.steps.pad_id, self.device)
            return self.model(input_ids=ids, use_cache=False).logits

    def _log_values(self, logits: Tensor) -> np.ndarray:
        """Return the log values (B, L) nats of logits (B, L, 2)."""
        values = self._read(logits).cpu().numpy().astype(np.float64)
        # fp32 rounds log f: clip to the exact bounds.
        return np.clip(values, math.log(self.tilt.floor), 0.0)

    def _read(self, logits: Tensor) -> Tensor:
        """Return the log values (...) nats of logits (..., 2), in fp32."""
        return log_value_from_logits(logits, self.tilt.floor)

    def _tree_values(self, values: np.ndarray, tree: EncodedTree, index: int) -> TreeValues:
        """Return the values of a tree, the ``index``-th, from those at all of its tokens."""
        return tree_values(values, tree, index)

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Read ``prompts`` (token ids); return log values at the root (B,) nats and the state."""
        cache, common = begun(self.model, prompts, self.device)
        values, state = self.advance(cache, padded([p[common:] for p in prompts], -1, self.device))
        assert isinstance(state, PrefixCache)
        return values, state.as_beginnings(self.model)

    @torch.inference_mode()
    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Read the new step ``tokens`` (B, L; -1 = no token); return log values (B,) nats there and the state.

        A row without a new token gets NaN: its value is unchanged.
        """
        present = tokens >= 0
        assert isinstance(state, PrefixCache)
        if not bool(present.any()):
            return torch.full((len(tokens),), torch.nan, device=tokens.device), state
        ids = torch.where(present, tokens, self.steps.pad_id)
        given = None if bool(present.all()) else present
        logits, cache = state.forward(self.model, ids, given)
        last = (present * torch.arange(1, tokens.shape[1] + 1, device=tokens.device)).argmax(1)
        at = logits[torch.arange(len(tokens), device=tokens.device), last]
        if bool(torch.isnan(at).any()):
            raise UserError(f"the value model {self.name} returned NaN", BROKEN)
        value = self._read(at)
        if bool(present.any(1).all()):
            # Every batch is a new one.
            cache = cache.sole_use(True)
        return torch.where(present.any(1), value, torch.nan), cache.packed().sole_use(state.sole)


BROKEN = "look for weights that are not finite, or for a precision the model was not trained in"


class NaNValueError(UserError):
    """A NaN value after ``step`` steps of ``trajectory``, or at one of its next steps."""

    def __init__(self, trajectory: int, step: int) -> None:
        super().__init__(f"the value model returned NaN at step {step} of trajectory {trajectory}", BROKEN)
        self.trajectory = trajectory
        self.step = step


def tree_values(values: np.ndarray, tree: EncodedTree, index: int) -> TreeValues:
    """Return the values where a tree is read, of those (L,) nats at its tokens; raise ``NaNValueError`` for NaN."""
    result = TreeValues(values[tree.reads], [values[at] for at in tree.child_reads])
    for t, v in enumerate(result.log_value):
        if np.isnan(v) or (t < len(result.children) and np.isnan(result.children[t]).any()):
            raise NaNValueError(index, t)
    return result
