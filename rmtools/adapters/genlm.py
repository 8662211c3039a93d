r"""genlm-control: our value model and policy as potentials, and its potentials as our scorers.

A potential gives log weights to token sequences, to beginnings (``prefix``) and to whole ones (``complete``).
:class:`ValuePotential` is log V: of a beginning the value at its last finished step, of a whole sequence the value at its
end. So genlm's sampler with the policy as proposal and this as critic draws from policy * V(s_T), and its
``log_ml`` estimates log E_policy[V(s_T)], or log Z with the verifier's potential at the end. :class:`PolicyPotential`
is log policy. :class:`GenlmScorer` is the way back: any potential of genlm guides our sampler.

A step ends where our own sampler ends it: at the delimiter, after ``max_step_tokens``, at the end of the sequence; after
``max_steps`` the prefix has ended and keeps its value. Pass ``terminate_when=potential.ended`` to genlm's sampler, so that
its sequences end there too.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rmtools.adapters.cutting import Cut, Steps, cut_bytes, cut_tokens
from rmtools.adapters.genlm_scorer import GenlmScorer
from rmtools.adapters.reading import not_installed, tree_of_ids
from rmtools.errors import UserError
from rmtools.lm.particles import Reward, Terminal, check_terminal
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepTokenizer
from rmtools.lm.tree_scoring import padded
from rmtools.lm.value import Scorer

try:
    from genlm.backend.tokenization import Token, decode_vocab
    from genlm.control import Potential
except ImportError as error:
    raise not_installed("genlm-control", "genlm", error) from error

__all__ = ["GenlmScorer", "PolicyPotential", "ValuePotential", "token_vocabulary"]

CACHED = 100_000


def token_vocabulary(steps: StepTokenizer) -> list[Token]:
    """Return genlm's tokens of a tokenizer, in the order of their ids, without the end of the sequence.

    Their bytes are genlm's own where it knows the kind of tokenizer (as in ``PromptedLLM``), else the decoded text.
    """
    tokenizer = steps.tokenizer
    try:
        tokens, _ = decode_vocab(tokenizer)
    except ValueError:
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], skip_special_tokens=False)
        tokens = [Token(i, text.encode()) for i, text in enumerate(texts)]
    return [t for t in tokens if t.token_id != steps.eos_id]


class ValuePotential(Potential):
    """A value as a potential: log V at the last finished step of a beginning, at the end of a whole sequence.

    Parameters
    ----------
    value : Scorer
        A trained :class:`~rmtools.lm.value.ValueModel`, or any other scorer.
    prompt : str
    vocabulary : list of Token, optional
        The language model's (``llm.vocab``); its ids must be those of the value model's tokenizer. Default:
        :func:`token_vocabulary`.
    over : {"tokens", "bytes"}
        "bytes": sequences of bytes (integers below 256), cut into steps by the delimiter's text and tokenised step
        by step; ``coerce(llm, f=b"".join)`` makes of it a potential over the tokens of any language model.
        ``max_step_tokens`` then does not close a step: bytes are not counted in tokens.
    terminal : {"model", "verifier"}
    reward : callable, optional
        ``reward(prompt, steps)`` in [0, 1], for terminal "verifier": the potential of a sequence that has ended.

    Raises
    ------
    UserError
        For an unknown ``over`` or terminal, a verifier without ``reward``, a vocabulary of other ids.
    """

    def __init__(
        self,
        value: Scorer,
        prompt: str,
        vocabulary: list[Any] | None = None,
        *,
        over: Literal["tokens", "bytes"] = "tokens",
        terminal: Terminal = "model",
        reward: Reward | None = None,
    ) -> None:
        check_terminal(terminal, reward)
        if over not in ("tokens", "bytes"):
            raise UserError(f"unknown over {over!r}", "choose tokens or bytes")
        if over == "bytes" and vocabulary is not None:
            raise UserError("bytes have no vocabulary to choose", "leave `vocabulary` out, or over='tokens'")
        self.value = value
        self.prompt = prompt
        self.over = over
        self.reward = reward if terminal == "verifier" else None
        value.steps.require_known(prompt)
        self._prompt_ids = value.steps.prompt_ids(prompt)
        self._known: dict[tuple[Steps, bool], float] = {}
        if over == "bytes":
            super().__init__(list(range(256)))
        else:
            super().__init__(checked_tokens(vocabulary or token_vocabulary(value.steps), value.steps))

    def ended(self, context: Sequence[Any]) -> bool:
        """Return whether a beginning has all its ``max_steps`` steps: genlm's ``terminate_when``."""
        return self._cut(context).full

    async def prefix(self, context: Sequence[Any]) -> float:
        """Return log V at the last finished step, nats."""
        return float((await self.batch_prefix([context]))[0])

    async def complete(self, context: Sequence[Any]) -> float:
        """Return log V, or the verifier's log potential, of the sequence followed by its end, nats."""
        return float((await self.batch_complete([context]))[0])

    async def batch_prefix(self, contexts: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return ``prefix`` of each, (B,) nats; one pass of the model over those not seen before."""
        cut = [self._cut(c) for c in required(contexts)]
        return self._log_values([(c.steps, c.full) for c in cut])

    async def batch_complete(self, contexts: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return ``complete`` of each, (B,) nats."""
        cut = [self._cut(c) for c in required(contexts)]
        return self._log_values([(c.steps if c.full else (*c.steps, c.closed), True) for c in cut])

    async def _logw_next_dense(self, context: Sequence[Any]) -> Any:
        """Return next-token log weights: only tokens that finish a step, and the end, change the value."""
        if self.over == "bytes":
            return await super()._logw_next_dense(context)
        cut, weights = self._cut(context), self.alloc_logws(0.0)
        if not cut.full:
            before = await self.prefix(context)
            last = len(cut.rest) + 1 >= self.value.steps.settings.max_step_tokens
            at = np.arange(len(self.vocab)) if last else self._may_close
            if len(at):
                weights[at] = await self.batch_prefix([[*context, self.vocab[i]] for i in at]) - before
            weights[-1] = await self.complete(context) - before
        return self.make_lazy_weights(weights)

    @cached_property
    def _may_close(self) -> np.ndarray:
        ends, may = self.value.steps.closing
        ids = np.asarray([t.token_id for t in self.vocab])
        known = ids < len(ends)
        return np.flatnonzero(known & (ends | may)[np.where(known, ids, 0)])

    def _cut(self, context: Sequence[Any]) -> Cut:
        if self.over == "bytes":
            return cut_bytes(self.value.steps, bytes(context))
        return cut_tokens(self.value.steps, [t.token_id for t in context])

    def _log_values(self, asked: list[tuple[Steps, bool]]) -> np.ndarray:
        new = [key for key in dict.fromkeys(asked) if key not in self._known]
        if len(self._known) + len(new) > CACHED:
            self._known.clear()
            new = list(dict.fromkeys(asked))
        judged = [key for key in new if key[1] and self.reward is not None]
        scored = [key for key in new if not (key[1] and self.reward is not None)]
        if judged:
            r = np.asarray([self._rewarded(key[0]) for key in judged], dtype=float)
            self._known.update(zip(judged, self.value.tilt.log_potential(r).tolist(), strict=True))
        if scored:
            trees = [tree_of_ids(self._prompt_ids, key[0]) for key in scored]
            found = [float(v.log_value[-1]) for v in self.value.score(trees)]
            self._known.update(zip(scored, found, strict=True))
        return np.asarray([self._known[key] for key in asked])

    def _rewarded(self, steps: Steps) -> float:
        assert self.reward is not None
        return self.reward(self.prompt, [self.value.steps.step_text(s) for s in steps])

    def __repr__(self) -> str:
        return f"ValuePotential({self.value.name!r}, prompt={self.prompt!r}, over={self.over!r})"


class PolicyPotential(Potential):
    """The policy as a potential: log policy of a beginning, times that of the end for a whole sequence.

    With a tokenizer whose bytes genlm knows, ``PromptedLLM(AsyncTransformer(policy.model, tokenizer))`` is the same law
    with a cache of keys and values; this one reads sequences anew, takes any tokenizer, and the policy's temperature.

    Parameters
    ----------
    policy : Policy
    prompt : str
    vocabulary : list of Token, optional
        Default: :func:`token_vocabulary`.

    Raises
    ------
    UserError
        When used: if a sequence is longer than the model's context.
    """

    def __init__(self, policy: Policy, prompt: str, vocabulary: list[Any] | None = None) -> None:
        super().__init__(checked_tokens(vocabulary or token_vocabulary(policy.steps), policy.steps))
        self.policy = policy
        self._prompt_ids = policy.steps.prompt_ids(prompt)
        self._ids = [*(t.token_id for t in self.vocab), policy.steps.eos_id]

    async def prefix(self, context: Sequence[Any]) -> float:
        """Return the log probability of the tokens, nats."""
        return float((await self.batch_prefix([context]))[0])

    async def complete(self, context: Sequence[Any]) -> float:
        """Return the log probability of the tokens and the end of the sequence, nats."""
        return float((await self.batch_complete([context]))[0])

    async def batch_prefix(self, contexts: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return ``prefix`` of each, (B,) nats, in one forward pass."""
        return self._log_probabilities([[t.token_id for t in c] for c in required(contexts)])

    async def batch_complete(self, contexts: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return ``complete`` of each, (B,) nats, in one forward pass."""
        end = self.policy.steps.eos_id
        return self._log_probabilities([[*(t.token_id for t in c), end] for c in required(contexts)])

    async def _logw_next_dense(self, context: Sequence[Any]) -> Any:
        return self.make_lazy_weights((await self.batch_logw_next([context])).weights[0])

    async def batch_logw_next(self, contexts: Sequence[Sequence[Any]]) -> Any:
        """Return the log probabilities of every next token and the end, (B, V + 1) nats."""
        ids = [tuple(t.token_id for t in c) for c in required(contexts)]
        new = list(dict.fromkeys(ids))  # particles share beginnings
        after = self._next(new, [[len(i)] for i in new])
        row = {i: each[0, self._ids].cpu() for i, each in zip(new, after, strict=True)}
        return self.make_lazy_weights(torch.stack([row[i] for i in ids]).numpy())

    def _log_probabilities(self, rows: list[list[int]]) -> np.ndarray:
        after = self._next([r[:-1] for r in rows], [list(range(len(r))) for r in rows])
        return np.asarray(
            [float(each[range(len(r)), r].sum()) if r else 0.0 for each, r in zip(after, rows, strict=True)]
        )

    @torch.inference_mode()
    def _next(self, rows: Sequence[Sequence[int]], at: list[list[int]]) -> Iterator[Tensor]:
        """Yield the log probabilities behind ``at[b]`` tokens of row b, (len(at[b]), V), a row at a time."""
        ids = [[*self._prompt_ids, *r] for r in rows]
        self.policy.check_length(ids)
        # Pads stand behind all that is read: a causal mask keeps them out.
        inputs = padded([np.asarray(i) for i in ids], self.policy.steps.pad_id, self.policy.device)
        logits = self.policy.model(input_ids=inputs).logits
        for row, places in zip(logits, at, strict=True):
            chosen = row[
                torch.tensor(places, dtype=torch.long, device=row.device) + len(self._prompt_ids) - 1
            ]
            if bool(torch.isnan(chosen).any()):
                raise ValueError("the policy returned NaN logits: its weights or its precision are broken")
            yield torch.log_softmax(chosen.double() / self.policy.temperature, -1)

    def __repr__(self) -> str:
        return f"PolicyPotential({self.policy.name!r})"


def checked_tokens(vocabulary: list[Any], steps: StepTokenizer) -> list[Any]:
    """Return ``vocabulary``, or raise ``UserError`` where it is not of the tokenizer's ids."""
    if not all(isinstance(t, Token) for t in vocabulary):
        raise UserError(
            "the vocabulary is not of genlm's tokens, which carry ids",
            "pass llm.vocab of a PromptedLLM, or use over='bytes' and coerce it",
        )
    if any(t.token_id == steps.eos_id for t in vocabulary):
        raise UserError(
            f"the vocabulary holds the end of the sequence, {steps.tokenizer.eos_token!r}: genlm has a sign of its own for it",
            "leave it out, as PromptedLLM does",
        )
    return vocabulary


def required(contexts: Sequence[Any]) -> Sequence[Any]:
    """Return ``contexts``; as genlm's own potentials, refuse none at all."""
    if not len(contexts):
        raise ValueError("Contexts must be non-empty.")
    return contexts
