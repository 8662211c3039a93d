r"""genlm-control: our value model and policy as potentials, and its potentials as our scorers.

A potential gives log weights to beginnings of token sequences (``prefix``) and to whole ones (``complete``).
:class:`ValuePotential` is log V: for a beginning the value at its last finished step, for a whole sequence the value at its
end. genlm's sampler with the policy as proposal and this as critic draws from policy * V(s_T), and its ``log_ml`` estimates
log E_policy[V(s_T)], or log Z with the verifier's potential at the end. :class:`PolicyPotential` is log policy.
:class:`GenlmScorer` lets any potential of genlm guide our sampler.

A step ends where our own sampler ends it: at the delimiter, after ``max_step_tokens``, at the end of the sequence or with a stop
text; after that and after ``max_steps`` the prefix has ended and keeps its value. Pass ``terminate_when=potential.ended`` to
genlm's sampler to end its sequences there too.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rmtools.adapters.cutting import Cut, cut_bytes, cut_tokens
from rmtools.adapters.prefix_scoring import (
    Steps,
    advance_prefixes,
    answer_text,
    not_installed,
    outside_loop,
    score_trees,
    start_prefixes,
)
from rmtools.errors import UserError
from rmtools.lm.particles import Reward, Terminal, check_terminal
from rmtools.lm.policy import Policy
from rmtools.lm.protocol import Scorer, TreeValues, ValueState
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.tree_scoring import padded
from rmtools.particles.tilt import Tilt

try:
    from genlm.backend.tokenization import Token, decode_vocab
    from genlm.control import Potential
    from genlm.control.typing import Atomic
except ImportError as error:
    raise not_installed("genlm-control", "genlm", error) from error

__all__ = ["GenlmScorer", "PolicyPotential", "ValuePotential", "token_vocabulary"]

CACHED = 100_000


def token_vocabulary(steps: StepTokenizer) -> list[Token]:
    """Return genlm's tokens of a tokenizer, in the order of their ids, without the end of the sequence.

    Their bytes are genlm's own if it knows the kind of tokenizer (as in ``PromptedLLM``), else the decoded text.
    """
    tokenizer = steps.tokenizer
    try:
        tokens, _ = decode_vocab(tokenizer)
    except ValueError:
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], skip_special_tokens=False)
        tokens = [Token(i, text.encode()) for i, text in enumerate(texts)]
    return [t for t in tokens if t.token_id != steps.eos_id]


class _BatchPotential(Potential):
    """A potential whose ``prefix`` and ``complete`` are batches of one."""

    async def prefix(self, context: Sequence[Any]) -> float:
        """Return ``batch_prefix`` of one context, nats."""
        return float((await self.batch_prefix([context]))[0])

    async def complete(self, context: Sequence[Any]) -> float:
        """Return ``batch_complete`` of one context, nats."""
        return float((await self.batch_complete([context]))[0])


class ValuePotential(_BatchPotential):
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
        "bytes": sequences of bytes (integers below 256), cut into steps at the delimiter's text and tokenised step by
        step; ``coerce(llm, f=b"".join)`` turns it into a potential over the tokens of any language model.
        ``max_step_tokens`` then does not close a step.
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
            super().__init__(_checked_tokens(vocabulary or token_vocabulary(value.steps), value.steps))

    def ended(self, context: Sequence[Any]) -> bool:
        """Return whether a beginning has all its ``max_steps`` steps, or a stop text: genlm's ``terminate_when``."""
        return self._cut(context).full

    async def batch_prefix(self, contexts: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return log V at the last finished step of each, (B,) nats; one pass of the model over those not seen before."""
        cut = [self._cut(c) for c in _required(contexts)]
        return self._log_values([(c.steps, c.full) for c in cut])

    async def batch_complete(self, contexts: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return log V, or the verifier's log potential, of each sequence followed by its end, (B,) nats."""
        cut = [self._cut(c) for c in _required(contexts)]
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
        ends = self.value.steps.token_ends
        holds, _, completes = self.value.steps.token_stops
        may = ends.closes | ends.closes_begun | ends.completes | holds | completes
        may[[i for i in self.value.steps.end_ids if i < len(may)]] = True
        ids = np.asarray([t.token_id for t in self.vocab])
        known = ids < len(may)
        return np.flatnonzero(known & may[np.where(known, ids, 0)])

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
            trees = [EncodedTree.of(self._prompt_ids, key[0]) for key in scored]
            found = [float(v.log_value[-1]) for v in self.value.score(trees)]
            self._known.update(zip(scored, found, strict=True))
        return np.asarray([self._known[key] for key in asked])

    def _rewarded(self, steps: Steps) -> float:
        assert self.reward is not None
        read = self.value.steps
        return self.reward(self.prompt, read.written([read.step_text(s) for s in steps]))

    def __repr__(self) -> str:
        return f"ValuePotential({self.value.name!r}, prompt={self.prompt!r}, over={self.over!r})"


class PolicyPotential(_BatchPotential):
    """The policy as a potential: log policy of a beginning, plus that of the end for a whole sequence.

    With a tokenizer whose bytes genlm knows, ``PromptedLLM(AsyncTransformer(policy.model, tokenizer))`` is the same law
    with a key-value cache; this one has none, takes any tokenizer, and uses the policy's temperature.

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
        super().__init__(_checked_tokens(vocabulary or token_vocabulary(policy.steps), policy.steps))
        self.policy = policy
        self._prompt_ids = policy.steps.prompt_ids(prompt)
        self._ids = [*(t.token_id for t in self.vocab), policy.steps.eos_id]

    async def batch_prefix(self, contexts: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return the log probability of the tokens of each, (B,) nats, in one forward pass."""
        return self._log_probabilities([[t.token_id for t in c] for c in _required(contexts)])

    async def batch_complete(self, contexts: Sequence[Sequence[Any]]) -> np.ndarray:
        """Return the log probability of the tokens and the end of each sequence, (B,) nats, in one forward pass."""
        end = self.policy.steps.eos_id
        return self._log_probabilities([[*(t.token_id for t in c), end] for c in _required(contexts)])

    async def _logw_next_dense(self, context: Sequence[Any]) -> Any:
        return self.make_lazy_weights((await self.batch_logw_next([context])).weights[0])

    async def batch_logw_next(self, contexts: Sequence[Sequence[Any]]) -> Any:
        """Return the log probabilities of every next token and the end, (B, V + 1) nats."""
        ids = [tuple(t.token_id for t in c) for c in _required(contexts)]
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
            yield self.policy.law.log_probabilities(chosen.double())

    def __repr__(self) -> str:
        return f"PolicyPotential({self.policy.name!r})"


class GenlmScorer:
    """Any potential of genlm as a scorer: log V is ``prefix`` of an unfinished solution, ``complete`` of one that ended.

    It is a weight, not a probability (``is_probability`` is False). The sampler drops particles of weight zero (a broken
    grammar).

    Parameters
    ----------
    potential : Potential, or callable
        One for all prompts, or ``potential(prompt)``, called once per distinct prompt.
    steps : StepTokenizer
        The policy's.
    tilt : Tilt
        What a reward is worth with terminal "verifier". Not read here.
    name : str
        For provenance.
    context : callable, optional
        ``context(text, token_ids)`` returns the potential's sequence. Default, by the type of its tokens: genlm's tokens
        with the same ids, or the text as bytes (integers) or as characters.

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
        return score_trees(trees, self.steps, self._log_values, progress)

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return log values (B,) nats of prompts given as token ids, and the state."""
        values, state = start_prefixes(prompts, self.steps, self._log_values)
        if bool((values == -torch.inf).any()):
            raise UserError(
                f"{self.name} gives weight zero to the empty sequence: nothing can be drawn",
                "a potential must allow the beginning",
            )
        return values, state

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return log values (B,) nats after a new step ``tokens`` (B, L; -1 = no token), NaN without one, and the state."""
        return advance_prefixes(state, tokens, self._log_values)

    def _log_values(self, prompts: Sequence[str], asked: Sequence[Steps]) -> np.ndarray:
        values = np.full(len(asked), np.nan)
        groups: dict[tuple[str, bool], list[int]] = {}
        for i, (prompt, steps) in enumerate(zip(prompts, asked, strict=True)):
            groups.setdefault((prompt, self._has_ended(steps)), []).append(i)
        for (prompt, ended), at in groups.items():
            values[at] = self._ask(self._of(prompt), [asked[i] for i in at], ended)
        return values

    def _has_ended(self, steps: Steps) -> bool:
        before = [i for s in steps[:-1] for i in s]
        return len(steps) >= self.steps.settings.max_steps or bool(
            steps and self.steps.ends(steps[-1], before)
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
        ids = ids[:-1] if ids and ids[-1] in self.steps.end_ids else ids
        text = answer_text(self.steps, steps)
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


def _checked_tokens(vocabulary: list[Any], steps: StepTokenizer) -> list[Any]:
    """Return ``vocabulary``; raise ``UserError`` unless it is genlm tokens without the end of the sequence."""
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


def _required(contexts: Sequence[Any]) -> Sequence[Any]:
    """Return ``contexts``; refuse an empty batch, as genlm's own potentials do."""
    if not len(contexts):
        raise ValueError("Contexts must be non-empty.")
    return contexts
