r"""its_hub: our value model as its process reward model, and its process reward models as our scorers.

Inside its_hub a reward model returns one number per particle, given the whole answer so far as one text.
:class:`ItsHubReward` cuts that text into the checkpoint's steps and reads the value at the last one, all particles in
one batch. :class:`ItsHubScorer` is the reverse: it gives the joined text to any process reward model of its_hub and tilts
the score. :class:`ItsHubPolicy` is a policy in this process as its language model.

The particle filter of its_hub weighs by the odds p / (1 - p) of each score and draws the answer by the last odds once more: it
samples from policy * product of odds * last odds, not from policy * V. With ``scores="ratio"`` the odds are V(s_t) /
V(s_{t-1}), whose product telescopes: answers drawn *uniformly* from ``result.responses`` then follow policy * V (its own
selection, by the last weight again or the largest, does not). This holds if all answers end at the same step: one that has
stopped is weighed by its last odds again at every step of the others.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

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
from rmtools.lm.policy import Policy
from rmtools.lm.prompt_format import RAW, PromptRenderer
from rmtools.lm.protocol import Scorer, TreeValues, ValueState
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.particles.tilt import Tilt

try:
    from its_hub.api import AbstractLanguageModel, AbstractProcessRewardModel, ChatMessage, ChatMessages
except ImportError as error:
    raise not_installed("its_hub", "its-hub", error) from error

Scores = Literal["probability", "ratio"]


class ItsHubReward(AbstractProcessRewardModel):
    r"""Our value model as a process reward model of its_hub.

    Parameters
    ----------
    value : Scorer
        A trained :class:`~rmtools.lm.value.ValueModel`, or any other scorer. Its step settings cut the answers.
    scores : {"probability", "ratio"}
        "probability": p(success given the prefix), without the tilt. "ratio": V(s_t) / (V(s_t) + V(s_{t-1})), whose
        odds are the incremental weight of policy * V (see above).
    include_delimiter : bool
        Whether answers end with the delimiter of their last step, as with
        ``StepGeneration(include_stop_str_in_output=True)``. If not (its default), it is put back: the value is read there.
    template : callable, optional
        Returns the prompt that the model was trained on, given a list of ``ChatMessage``. Without it, a checkpoint that was
        trained on chats renders messages (and texts that are not rendered yet) as these; for others a single message is the
        prompt itself and several are refused.

    Raises
    ------
    UserError
        If ``scores`` is unknown, or "probability" is requested from a value that is not a probability.

    Notes
    -----
    The algorithms of its_hub turn a list of messages into text, "user: ...": pass them the prompt as a string. They run one
    step more than ``StepGeneration(max_steps=...)`` says: pass the checkpoint's max_steps less 1. Their answers lack the
    end-of-sequence token, so an answer that has ended is read at its last delimiter.
    """

    def __init__(
        self,
        value: Scorer,
        *,
        scores: Scores = "probability",
        include_delimiter: bool = False,
        template: Callable[[list[ChatMessage]], str] | None = None,
    ) -> None:
        if scores not in ("probability", "ratio"):
            raise UserError(f"unknown scores {scores!r}", "choose probability or ratio")
        if scores == "probability" and not value.is_probability:
            raise UserError(
                f"{value.name} is no probability: it has no p to give", "use scores='ratio', which needs none"
            )
        self.value = value
        self.scores = scores
        self.include_delimiter = include_delimiter
        self.template = template
        form = getattr(value, "prompt_format", None) or RAW
        self._renderer = PromptRenderer(form, value.steps.tokenizer if form.kind == "chat" else None)
        # its_hub may have several questions in flight; tokenizer and model serve one at a time.
        self._busy = threading.Lock()

    def score(self, prompt_or_messages: Any, steps: str | list[str]) -> Any:
        """Return the score of each answer so far, in their order; of a bare string the one number.

        Parameters
        ----------
        prompt_or_messages : str, ChatMessages, list of ChatMessage or dict, or a list of such conversations
            One prompt for all answers, or one for each.
        steps : list of str, or str
            The whole answer of each particle, its steps joined. An empty one is valued at the prompt.

        Returns
        -------
        list of float, or float
            In [0, 1].

        Raises
        ------
        UserError
            If prompts and answers differ in number, an answer has more steps than the checkpoint's horizon, or the
            model returns NaN.
        """
        answers = [steps] if isinstance(steps, str) else list(steps)
        prompts = self._prompts(prompt_or_messages, len(answers))
        with self._busy:
            encoder = self.value.steps
            for prompt in dict.fromkeys(prompts):
                encoder.require_known(prompt)
            trees = [encoder.encode(p, self._cut(a)) for p, a in zip(prompts, answers, strict=True)]
            log_values = [v.log_value for v in self.value.score(trees)] if trees else []
        found = [self._number(v) for v in log_values]
        return found[0] if isinstance(steps, str) else found

    async def ascore(self, prompt_or_messages: Any, steps: str | list[str]) -> Any:
        """Return what :meth:`score` does, without holding up the event loop."""
        return await asyncio.to_thread(self.score, prompt_or_messages, steps)

    def _cut(self, answer: str) -> list[str]:
        settings = self.value.steps.settings
        steps = settings.rule.split(answer)
        if len(steps) > settings.max_steps:
            raise UserError(
                f"an answer has {len(steps)} steps, the value model's horizon is {settings.max_steps}",
                f"StepGeneration(max_steps=m) runs m + 1 steps: pass max_steps={settings.max_steps - 1}, and step_token="
                f"{settings.delimiter!r}",
            )
        if steps and not self.include_delimiter and not steps[-1].endswith(settings.delimiter):
            steps[-1] += settings.delimiter
        return steps

    def _number(self, log_value: np.ndarray) -> float:
        if self.scores == "probability":
            return float(np.exp(self.value.tilt.log_probability(log_value[-1])))
        before = log_value[-2] if len(log_value) > 1 else log_value[-1]
        return float(np.exp(-np.logaddexp(0.0, before - log_value[-1])))

    def _prompts(self, given: Any, count: int) -> list[str]:
        if isinstance(given, list) and given and isinstance(given[0], list | str | ChatMessages):
            if len(given) != count:
                raise UserError(
                    f"{len(given)} conversations stand beside {count} answers",
                    "pass one conversation for all, or one for each",
                )
            return [self._prompt(g) for g in given]
        return [self._prompt(given)] * count

    def _prompt(self, given: Any) -> str:
        messages = ChatMessages.from_prompt_or_messages(given)
        if messages.is_string:
            text = str(messages.to_prompt())
            return text if self._renderer.written(text) else self._renderer.render(text)
        chat = [ChatMessage.from_dict(m) if isinstance(m, dict) else m for m in messages.to_chat_messages()]
        if self.template is not None:
            return self.template(chat)
        if self._renderer.form.kind == "chat":
            return self._renderer.render("", [(m.role, m.extract_text_content()) for m in chat])
        if len(chat) != 1:
            raise UserError(
                f"a conversation of {len(chat)} messages is no prompt of the value model",
                "pass template=, which makes the prompt it was trained on from the messages",
            )
        return self._renderer.render(str(chat[0].extract_text_content()))


class ItsHubPolicy(AbstractLanguageModel):
    """Our policy as its_hub's language model: the next step of each conversation, its delimiter taken off.

    Parameters
    ----------
    policy : Policy
        Its own law is sampled: a temperature that its_hub passes is not applied.
    rng : np.random.Generator

    Attributes
    ----------
    tokens : int
        Read so far: its_hub keeps no cache, so every step reads its whole conversation again.
    """

    def __init__(self, policy: Policy, rng: np.random.Generator) -> None:
        self.policy = policy
        self.generator = torch.Generator(policy.device).manual_seed(int(rng.integers(1 << 62)))
        self.tokens = 0

    async def agenerate(self, messages_or_messages_lst: Any, stop: Any = None, **kwargs: Any) -> Any:
        """Return a message for each conversation, or the one message of a single conversation."""
        steps = self.policy.steps
        if stop != steps.settings.delimiter:
            raise UserError(
                f"its_hub stops at {stop!r}, the policy's steps end with {steps.settings.delimiter!r}",
                f"pass StepGeneration(step_token={steps.settings.delimiter!r})",
            )
        single = bool(messages_or_messages_lst) and isinstance(messages_or_messages_lst[0], ChatMessage)
        conversations = [messages_or_messages_lst] if single else messages_or_messages_lst
        ids = [steps.prompt_ids("".join(m.content for m in chat)) for chat in conversations]
        node = torch.arange(len(ids), device=self.policy.device)
        drawn = self.policy.decode_step(self.policy.start(ids), node, self.generator)
        found = []
        for read, row in zip(ids, drawn.tokens.tolist(), strict=True):
            new = [i for i in row if i >= 0]
            self.tokens += len(read) + len(new)
            text = steps.step_text(new).removesuffix(steps.settings.delimiter)
            found.append({"role": "assistant", "content": text})
        return found[0] if single else found


class ItsHubScorer:
    """Any process reward model of its_hub as a scorer: V = f + (1 - f) p, where p is its score of the joined answer.

    Parameters
    ----------
    reward : its_hub.api.AbstractProcessRewardModel
        Called once per distinct prompt and step with all answers; nothing is cached between steps.
    steps : StepTokenizer
        The policy's.
    tilt : Tilt
    name : str
        For provenance; default: the class of ``reward``.
    include_delimiter : bool
        Whether the answers it sees end with the delimiter of their last step. Inside its_hub they do not, unless
        ``StepGeneration(include_stop_str_in_output=True)``.
    root : float, optional
        p of the prompt alone, for models that cannot read an empty answer; None asks the model. An audit depends on it; the
        sampler's law and its estimate of Z do not.
    """

    is_probability = True

    def __init__(
        self,
        reward: AbstractProcessRewardModel,
        steps: StepTokenizer,
        tilt: Tilt,
        *,
        name: str = "",
        include_delimiter: bool = False,
        root: float | None = None,
    ) -> None:
        if root is not None and not 0 <= root <= 1:
            raise UserError(f"root must be a probability, got {root}", "0.5, say; None asks the model")
        self.reward = reward
        self.steps = steps
        self.tilt = tilt
        self.name = name or type(reward).__name__
        self.include_delimiter = include_delimiter
        self.root = root

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree, one call per distinct prompt.

        Raises
        ------
        UserError
            If a score is missing, NaN or outside [0, 1].
        """
        return score_trees(trees, self.steps, self._log_values, progress)

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return log values (B,) nats of prompts given as token ids, and the state."""
        return start_prefixes(prompts, self.steps, self._log_values)

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return log values (B,) nats after a new step ``tokens`` (B, L; -1 = no token), NaN without one, and the state."""
        return advance_prefixes(state, tokens, self._log_values)

    def _log_values(self, prompts: Sequence[str], prefixes: Sequence[Steps]) -> np.ndarray:
        p = np.full(len(prompts), np.nan)
        groups: dict[str, list[tuple[int, str]]] = {}
        for i, (prompt, steps) in enumerate(zip(prompts, prefixes, strict=True)):
            answer = answer_text(self.steps, steps)
            if answer or self.root is None:
                shown = (
                    answer if self.include_delimiter else answer.removesuffix(self.steps.settings.delimiter)
                )
                groups.setdefault(prompt, []).append((i, shown))
            else:
                p[i] = self.root
        for prompt, group in groups.items():
            p[[i for i, _ in group]] = self._ask(prompt, [answer for _, answer in group])
        return self.tilt.log_potential(p)

    def _ask(self, prompt: str, answers: list[str]) -> np.ndarray:
        # Some reward models start an event loop of their own in score().
        p = np.asarray(outside_loop(lambda: self.reward.score(prompt, answers)), dtype=np.float64)
        if p.shape != (len(answers),) or not ((p >= 0) & (p <= 1)).all():
            raise UserError(
                f"{self.name} gave {p.shape if p.shape != (len(answers),) else p.tolist()} for {len(answers)} answers",
                "a score is one probability in [0, 1] an answer, in their order",
            )
        return p
