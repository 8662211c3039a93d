"""Steps as a server returns them: the state of prefixes that are text, and what a completion says about its end."""

import unicodedata
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.steps import StepTokenizer
from rmtools.serving.capabilities import SEED_SPAN
from rmtools.serving.responses import Choice


class End(Enum):
    """What ended a step."""

    DELIMITER = "delimiter"
    EOS = "end of sequence"
    LENGTH = "length limit"


@dataclass(frozen=True)
class ServerState:
    """A batch of B distinct prefixes, as text.

    Attributes
    ----------
    texts : tuple of str
        Prompt and steps so far.
    length : Tensor
        (B,) tokens of each, by the tokenizer here.
    pending : Tensor
        (B,) last token id.
    n_steps : Tensor
        (B,) steps so far.
    ended : Tensor
        (B,) bool.
    """

    texts: tuple[str, ...]
    length: Tensor
    pending: Tensor
    n_steps: Tensor
    ended: Tensor

    def select(self, rows: Tensor) -> "ServerState":
        """Return the prefixes ``rows`` (B',)."""
        texts = tuple(self.texts[i] for i in rows.tolist())
        return ServerState(texts, self.length[rows], self.pending[rows], self.n_steps[rows], self.ended[rows])

    def join(self, other: "ServerState") -> "ServerState":
        """Return these prefixes and, behind them, those of ``other``."""
        names = ("length", "pending", "n_steps", "ended")
        return ServerState(
            self.texts + other.texts, *(torch.cat([getattr(self, n), getattr(other, n)]) for n in names)
        )


@dataclass(frozen=True)
class ServerStep:
    """One step of B particles, drawn: the fields of :class:`rmtools.lm.policy.Decoded`."""

    tokens: Tensor
    state: ServerState
    parent: Tensor
    node: Tensor


@dataclass(frozen=True)
class Request:
    """Completions to be asked for at once: ``n`` of each of some distinct prefixes."""

    rows: tuple[int, ...]
    n: int
    max_tokens: int


@dataclass(frozen=True)
class Drawn:
    """The text of one step, an end-of-sequence token left out, and what ended it."""

    text: str
    end: End


class UnusableStepError(Exception):
    """What came from the server is no step, and why."""


def read_step(choice: Choice, steps: StepTokenizer, stops: bool) -> Drawn:
    """Return the step that a completion holds, and what ended it.

    Parameters
    ----------
    choice : Choice
    steps : StepTokenizer
    stops : bool
        Whether the delimiter was asked for as a stop string, of a server that shows where one ended a completion.

    Raises
    ------
    UnusableStepError
        Where it was ended by neither delimiter, end of sequence nor length, or is empty.
    """
    delimiter, text = steps.settings.delimiter, choice.text
    at = text.find(delimiter)
    if at >= 0:
        return Drawn(text[: at + len(delimiter)], End.DELIMITER)
    eos = steps.tokenizer.eos_token
    if isinstance(eos, str) and text.endswith(eos):
        return Drawn(text.removesuffix(eos), End.EOS)
    if choice.finish == "length" and text:
        return Drawn(text, End.LENGTH)
    if choice.finish == "length":
        raise UnusableStepError("an empty step that nothing ended")
    if choice.finish not in ("stop", "eos_token", "stop_sequence"):
        raise UnusableStepError(f"a step that ended by {choice.finish!r}")
    if stops and (choice.matched == delimiter or choice.finish == "stop_sequence"):
        return Drawn(text + delimiter, End.DELIMITER)
    return Drawn(text, End.EOS)


def drawn_ids(steps: StepTokenizer, step: Drawn | None) -> list[int]:
    """Return the token ids of a step: of its text, and of the end of the sequence where that ended it.

    Raises
    ------
    UserError
        Where the tokenizer does not give the text back: what is scored would not be what was drawn.
    """
    if step is None:
        return []
    ids = steps.step_ids(step.text) if step.text else []
    # Some tokenizers put Unicode into its composed form, which no reader can tell from the other.
    if composed(steps.step_text(ids)) != composed(step.text):
        raise UserError(
            f"the tokenizer here cannot read what the server wrote: {step.text[:60]!r}",
            "use the tokenizer of the model that is served",
        )
    return [*ids, steps.eos_id] if step.end is End.EOS else ids


def composed(text: str) -> str:
    """Return ``text`` in Unicode's composed form."""
    return unicodedata.normalize("NFC", text)


def distinct_seeds(n: int, generator: torch.Generator) -> list[int]:
    """Draw ``n`` different seeds: requests with equal ones could be answered alike."""
    seeds: dict[int, None] = {}
    while len(seeds) < n:
        more = torch.randint(SEED_SPAN, (n - len(seeds),), generator=generator, device=generator.device)
        seeds |= dict.fromkeys(more.tolist())
    return list(seeds)


def special_pieces(steps: StepTokenizer) -> bool:
    """Return whether the delimiter is made of special tokens, which servers leave out of the text unless told."""
    special = set(steps.tokenizer.all_special_ids)
    return any(i in special for i in steps.step_ids(steps.settings.delimiter))
