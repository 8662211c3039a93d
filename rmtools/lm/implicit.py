"""The implicit value: the ratio of two language models, whose Bellman error is zero by construction.

V(s) = pi_a(solution so far | prompt) / pi(solution so far | prompt). Under pi it is a martingale for any pi_a: a next step
multiplies it by the ratio of the step's probabilities, which has mean one over everything pi can write, malformed steps
included. Hence rho = 1 at every prefix, and a sampler guided by it targets pi_a, not the reward (docs/equations.md, section
7): a Bellman error of zero says that the sampler is cheap, not that it is right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.architectures import require_scorable
from rmtools.lm.kv.cache import PrefixCache
from rmtools.lm.packing import Row, row_inputs
from rmtools.lm.policy import Policy, load_policy
from rmtools.lm.precision import SPREAD, Dtype, Where, is_spread
from rmtools.lm.protocol import TreeValues, ValueState
from rmtools.lm.steps import EncodedTree
from rmtools.lm.tree_scoring import batches_by_length
from rmtools.lm.value import TOKENS_PER_BATCH
from rmtools.particles.tilt import Tilt

# A gigabyte in fp32: with a large vocabulary logits take more memory than weights.
LOGITS_PER_BATCH = 1 << 28


@dataclass(frozen=True)
class RatioState:
    """The :class:`ValueState` of an :class:`ImplicitValue`: B prefixes as both models have read them, but for the last token.

    ``pending`` (B,) is that token, fed with the next step; ``log_value`` (B,) is in nats.
    """

    target: PrefixCache
    policy: PrefixCache
    pending: Tensor
    log_value: Tensor

    def select(self, rows: Tensor) -> "RatioState":
        """Return the prefixes ``rows`` (B',)."""
        return RatioState(
            self.target.select(rows), self.policy.select(rows), self.pending[rows], self.log_value[rows]
        )

    def copied(self) -> "RatioState":
        """Return these prefixes with caches of their own: `PrefixCache.copied`."""
        return replace(self, target=self.target.copied(), policy=self.policy.copied())

    def sole_use(self, sole: bool) -> "RatioState":
        """Return these prefixes with caches in sole use, or not: `PrefixCache.sole`."""
        return replace(self, target=self.target.sole_use(sole), policy=self.policy.sole_use(sole))

    def join(self, other: "RatioState") -> "RatioState":
        """Return these prefixes followed by those of ``other``."""
        return RatioState(
            self.target.join(other.target),
            self.policy.join(other.policy),
            torch.cat([self.pending, other.pending]),
            torch.cat([self.log_value, other.log_value]),
        )


class ImplicitValue:
    """The scorer V = pi_a / pi over the solution's tokens; 1 at the root, its own value at the end.

    It is a ratio, not a probability (``is_probability`` is False): it has no p, no calibration and no bound. Audit it with
    terminal ``model``.

    Parameters
    ----------
    target : Policy
        pi_a, at its own temperature. Its law is restricted to the policy's vocabulary if it has more embeddings.
    policy : Policy
        pi, at its sampling temperature, on the same device.
    tilt : Tilt
        Potential of a reward with terminal ``verifier``. Not used here.
    name : str
        For provenance.

    Raises
    ------
    UserError
        If the two have different tokenizers.
    """

    is_probability = False

    def __init__(self, target: Policy, policy: Policy, tilt: Tilt, name: str = "") -> None:
        require_same_ids(target, policy)
        self.target = target
        self.policy = policy
        self.steps = policy.steps
        self.tilt = tilt
        self.name = name or f"{target.name} over {policy.name}"

    @torch.inference_mode()
    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree, one forward pass of each model, batched by length.

        Raises ``UserError`` if a model gives NaN to a token, or the policy gives it probability zero; step and tree are named.
        """
        for model in (self.target.model, self.policy.model):
            require_scorable(model.config, trees)
        vocabulary = max(p.model.config.vocab_size for p in (self.target, self.policy))
        budget = max(1, min(TOKENS_PER_BATCH, LOGITS_PER_BATCH // vocabulary))
        found: dict[int, TreeValues] = {}
        for batch in batches_by_length(trees, budget):
            chosen = [trees[i] for i in batch]
            laws = [self._tree_log_probabilities(p, chosen) for p in (self.target, self.policy)]
            for i, tree, above, below in zip(batch, chosen, *laws, strict=True):
                _require_law(self.target, above, np.isnan(above), tree, i)
                _require_law(self.policy, below, ~np.isfinite(below), tree, i)
                found[i] = _accumulated(above - below, tree)
            if progress is not None:
                progress(len(batch))
        return [found[i] for i in range(len(trees))]

    def _tree_log_probabilities(self, law: Policy, trees: Sequence[EncodedTree]) -> list[np.ndarray]:
        """Return (L,) nats of each tree's tokens given those before them; 0 for those of the prompt."""
        model = law.model
        rows = [Row.of([tree]) for tree in trees]
        logits = model(**row_inputs(rows, self.steps.pad_id, model.dtype, law.device), use_cache=False).logits
        out = []
        for at, row, tree in zip(logits, rows, trees, strict=True):
            start = int(tree.reads[0]) + 1
            before = torch.from_numpy(row.places[0][predecessors(tree)[start:]]).to(law.device)
            ids = torch.from_numpy(tree.ids[start:]).long().to(law.device)
            found = self._log_probabilities(law, at[before], ids)
            out.append(np.concatenate([np.zeros(start), found.double().cpu().numpy()]))
        return out

    def _log_probabilities(self, law: Policy, logits: Tensor, tokens: Tensor) -> Tensor:
        """Return log p (...) nats of ``tokens`` (...) under ``logits`` (..., V), in fp32.

        Normalised over the policy's vocabulary, so that the ratio keeps mean one; a token that pi_a lacks has
        probability zero.
        """
        vocabulary = logits[..., : self.policy.model.config.vocab_size]
        table = law.law.log_probabilities(vocabulary.float())
        known = tokens < table.shape[-1]
        at = table.gather(-1, torch.where(known, tokens, 0)[..., None])[..., 0]
        return torch.where(known, at, -torch.inf)

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Read ``prompts`` (token ids); return log values at the root, (B,) zeros, and the state."""
        device = self.policy.device
        rows = [list(p) for p in prompts]
        target, policy = (law.start(rows).cache for law in (self.target, self.policy))
        pending = torch.tensor([p[-1] for p in prompts], device=device)
        log_value = torch.zeros(len(prompts), dtype=torch.float64, device=device)
        return log_value, RatioState(target, policy, pending, log_value)

    @torch.inference_mode()
    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Read the new step ``tokens`` (B, L; -1 = no token); return log values (B,) nats there and the state.

        A row without a new token gets NaN: its value is unchanged. Errors as in `score`.
        """
        assert isinstance(state, RatioState)
        new = tokens >= 0
        if not bool(new.any()):
            return torch.full_like(state.log_value, torch.nan), state
        # Every token is predicted by the one before it: the pending one, then the step's own but its last.
        fed = torch.cat([state.pending[:, None], tokens[:, :-1]], dim=1)
        above, target = self._read(self.target, state.target, fed, tokens, new)
        below, policy = self._read(self.policy, state.policy, fed, tokens, new)
        gain = torch.where(new, above.double() - below.double(), 0.0).sum(1)
        log_value = state.log_value + gain
        broken = torch.isnan(log_value) | (log_value == torch.inf)
        if bool(broken.any()):
            row = int(broken.nonzero()[0, 0])
            raise UserError(
                f"the ratio {self.name} is not a number at prefix {row} of {len(tokens)} "
                f"({int(state.policy.length[row]) + 1} tokens before the step): NaN logits, or a policy that cannot write it",
                "check the precision and the weights of both models, and that the policy is the one that is sampled",
            )
        last = (new.sum(1) - 1).clamp(min=0)
        pending = torch.where(new.any(1), tokens.gather(1, last[:, None])[:, 0], state.pending)
        shown = torch.where(new.any(1), log_value, torch.nan)
        return shown, RatioState(target, policy, pending, log_value)

    def _read(
        self, law: Policy, cache: PrefixCache, fed: Tensor, tokens: Tensor, new: Tensor
    ) -> tuple[Tensor, PrefixCache]:
        """Feed ``fed`` where there is a ``new`` token; return the log-probabilities (B, L) of ``tokens``, and the cache."""
        # An embedding that a model lacks cannot be looked up; the value is zero from that token on.
        ids = torch.where(new, fed, self.steps.pad_id).clamp(max=law.model.config.vocab_size - 1)
        logits, cache = cache.forward(law.model, ids, None if bool(new.all()) else new)
        return self._log_probabilities(law, logits, torch.where(new, tokens, 0)), cache


def load_implicit(
    path: str | Path,
    policy: Policy,
    tilt: Tilt,
    temperature: float = 1.0,
    name: str = "",
    dtype: Dtype = "auto",
) -> ImplicitValue:
    """Load the language model pi_a, with its own ``temperature`` and ``dtype``, and return its ratio to ``policy``.

    Raises ``UserError`` if there is no language model at ``path``, or its tokenizer is not the policy's.
    """
    where: Where = SPREAD if is_spread(policy.model) else policy.device
    target = load_policy(path, policy.steps.settings, temperature, where, dtype)
    return ImplicitValue(target, policy, tilt, name)


def require_same_ids(target: Policy, policy: Policy) -> None:
    """Raise ``UserError`` unless both models have the same token ids: else the ratio would compare different texts."""
    ours, theirs = policy.steps.tokenizer.get_vocab(), target.steps.tokenizer.get_vocab()
    if ours != theirs:
        differ = sum(theirs.get(token) != i for token, i in ours.items())
        raise UserError(
            f"{target.name} and the policy {policy.name} have different tokenizers ({len(theirs)} and {len(ours)} tokens, "
            f"{differ} with another id): their probabilities are of different events",
            "take a model of the policy's own family, such as a fine-tuned copy of it",
        )


def predecessors(tree: EncodedTree) -> np.ndarray:
    """Return (L,) the index of the token before each: a child's first one follows the trunk at its fork; -1 at the start."""
    before = np.arange(-1, len(tree.ids) - 1)
    first = np.flatnonzero(np.diff(tree.segment, prepend=0))
    before[first] = tree.fork[first] - 1
    return before


def _accumulated(gain: np.ndarray, tree: EncodedTree) -> TreeValues:
    """Sum the tokens' log ratios (L,) along the trajectory and from each fork on."""
    trunk = np.cumsum(np.where(tree.segment == 0, gain, 0.0))
    branch = np.bincount(tree.segment, gain)
    return TreeValues(
        trunk[tree.reads],
        [trunk[tree.fork[at] - 1] + branch[tree.segment[at]] for at in tree.child_reads],
    )


def _require_law(
    law: Policy, log_probability: np.ndarray, bad: np.ndarray, tree: EncodedTree, index: int
) -> None:
    """Raise ``UserError`` if a token is ``bad`` (L,), naming the step it belongs to."""
    if not bad.any():
        return
    at = int(np.argmax(bad))
    behind = tree.fork[at] - 1 if tree.segment[at] else at - 1
    step = int(np.searchsorted(tree.reads, behind, side="right"))
    branch = "an alternative to " if tree.segment[at] else ""
    given = "NaN" if np.isnan(log_probability[at]) else "probability zero"
    raise UserError(
        f"the model {law.name} gives {given} to a token of {branch}step {step} of trajectory {index}",
        "check its precision and weights, and that these rollouts are the policy's",
    )
