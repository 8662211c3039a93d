r"""its_hub: our value model as its process reward model, and its process reward models as our scorers.

Inside its_hub a reward model is asked for one number a particle, given the whole answer so far as one text.
:class:`ItsHubReward` cuts that text into the checkpoint's steps and reads the value at the last one, all particles in
one batch. :class:`ItsHubScorer` goes the other way: it hands the joined text to any process reward model of its_hub
and tilts what comes back.

Its particle filter weighs by the odds p / (1 - p) of each score and draws the answer by the last odds once more: it
samples from policy * product of odds * last odds, not from policy * V. With ``scores="ratio"`` the odds are V(s_t) /
V(s_{t-1}), whose product telescopes: the answers it returns, drawn *uniformly*, then follow policy * V. (Its own
selection, by the last weight again or by its largest, does not: draw from ``result.responses``.) This holds where all
answers end at the same step: one that has stopped is weighed by its last odds again at every step of the others.
"""

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rmtools.adapters.reading import answer_text, not_installed, outside_loop, prompt_text, tree_parts
from rmtools.errors import UserError
from rmtools.lm.steps import EncodedTree, StepTokenizer, split_steps
from rmtools.lm.value import Scorer, TreeValues, ValueState
from rmtools.particles.tilt import Tilt

try:
    from its_hub.api import AbstractProcessRewardModel, ChatMessage, ChatMessages
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
        Whether answers carry the delimiter of their last step, as ``StepGeneration(include_stop_str_in_output=True)``
        makes them. Its default takes it off, and it is put back here: the value is read there.
    template : callable, optional
        Makes the prompt that the model was trained on from a list of ``ChatMessage``. Without, a single message is
        the prompt itself and several are refused.

    Raises
    ------
    UserError
        If ``scores`` is unknown, or "probability" is asked of a value that is none.

    Notes
    -----
    Inside its algorithms a list of messages arrives as their text, "user: ...": pass the prompt as a string there. its_hub
    runs one step more than ``StepGeneration(max_steps=...)`` says: give it the checkpoint's max_steps less 1.
    The end-of-sequence token is not part of its answers, so an answer that has ended is read at its last delimiter.
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
        steps = split_steps(answer, settings.delimiter)
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
            return str(messages.to_prompt())
        chat = [ChatMessage.from_dict(m) if isinstance(m, dict) else m for m in messages.to_chat_messages()]
        if self.template is not None:
            return self.template(chat)
        if len(chat) != 1:
            raise UserError(
                f"a conversation of {len(chat)} messages is no prompt of the value model",
                "pass template=, which makes the prompt it was trained on from the messages",
            )
        return str(chat[0].extract_text_content())


@dataclass(frozen=True)
class AnswerState:
    """The :class:`~rmtools.lm.value.ValueState` of an :class:`ItsHubScorer`: B prompts, and the answers so far.

    Attributes
    ----------
    prompts, answers : tuple of str
        (B,) each; an answer is its steps joined, delimiters included.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...]

    def select(self, rows: Tensor) -> "AnswerState":
        """Return the prefixes ``rows`` (B',)."""
        at = rows.tolist()
        return AnswerState(tuple(self.prompts[i] for i in at), tuple(self.answers[i] for i in at))

    def join(self, other: ValueState) -> "AnswerState":
        """Return these prefixes and, behind them, those of ``other``."""
        assert isinstance(other, AnswerState)
        return AnswerState(self.prompts + other.prompts, self.answers + other.answers)


class ItsHubScorer:
    """Any process reward model of its_hub as a scorer: V = f + (1 - f) p, p what it says of the joined answer.

    Parameters
    ----------
    reward : its_hub.api.AbstractProcessRewardModel
        Asked once per distinct prompt and step, all its answers together; nothing is cached between steps.
    steps : StepTokenizer
        The policy's.
    tilt : Tilt
    name : str
        For provenance; the class of ``reward`` where it is empty.
    include_delimiter : bool
        Whether the answers it sees end with the delimiter of their last step. Inside its_hub they do not, unless
        ``StepGeneration(include_stop_str_in_output=True)``.
    root : float, optional
        p of the prompt alone, for models that cannot read an empty answer; None asks for it. The sampler's law and
        its estimate of Z do not depend on it, an audit does.
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
        prompts: list[str] = []
        answers: list[str] = []
        shapes: list[tuple[int, list[int]]] = []
        for tree in trees:
            prompt, own, children = self._answers(tree)
            shapes.append((len(own), [len(c) for c in children]))
            answers += [*own, *(a for c in children for a in c)]
            prompts += [prompt] * (len(answers) - len(prompts))
        values, found, at = self._log_values(prompts, answers), [], 0
        for n, counts in shapes:
            cuts = np.cumsum([at + n, *counts])
            found.append(TreeValues(values[at : at + n], [values[a:b] for a, b in itertools.pairwise(cuts)]))
            at = int(cuts[-1])
        if progress is not None:
            progress(len(trees))
        return found

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return log values (B,) nats of prompts given as token ids, and the state."""
        texts = tuple(prompt_text(self.steps, p) for p in prompts)
        state = AnswerState(texts, ("",) * len(texts))
        return torch.from_numpy(self._log_values(state.prompts, state.answers)), state

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return log values (B,) nats after a new step ``tokens`` (B, L; -1 = none), NaN where there is none."""
        assert isinstance(state, AnswerState)
        new = [[i for i in row if i >= 0] for row in tokens.tolist()]
        answers = tuple(a + answer_text(self.steps, ids) for a, ids in zip(state.answers, new, strict=True))
        at = [i for i, ids in enumerate(new) if ids]
        values = np.full(len(new), np.nan)
        values[at] = self._log_values([state.prompts[i] for i in at], [answers[i] for i in at])
        return torch.from_numpy(values), AnswerState(state.prompts, answers)

    def _answers(self, tree: EncodedTree) -> tuple[str, list[str], list[list[str]]]:
        ids, steps, children = tree_parts(tree)
        own = [""]
        for step in steps:
            own.append(own[-1] + answer_text(self.steps, step))
        forked = [[own[t] + answer_text(self.steps, c) for c in kids] for t, kids in enumerate(children)]
        return prompt_text(self.steps, ids), own, forked

    def _log_values(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        p = np.full(len(prompts), np.nan)
        groups: dict[str, list[int]] = {}
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            if answer or self.root is None:
                groups.setdefault(prompt, []).append(i)
            else:
                p[i] = self.root
        for prompt, at in groups.items():
            p[at] = self._ask(prompt, [self._shown(answers[i]) for i in at])
        return self.tilt.log_potential(p)

    def _shown(self, answer: str) -> str:
        return answer if self.include_delimiter else answer.removesuffix(self.steps.settings.delimiter)

    def _ask(self, prompt: str, answers: list[str]) -> np.ndarray:
        # Some reward models start an event loop of their own in score().
        p = np.asarray(outside_loop(lambda: self.reward.score(prompt, answers)), dtype=np.float64)
        if p.shape != (len(answers),) or not ((p >= 0) & (p <= 1)).all():
            raise UserError(
                f"{self.name} gave {p.shape if p.shape != (len(answers),) else p.tolist()} for {len(answers)} answers",
                "a score is one probability in [0, 1] an answer, in their order",
            )
        return p
