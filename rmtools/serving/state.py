"""Steps as a server returns them: the state of prefixes that are text, and what a completion says about its end."""

import unicodedata
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.steps import StepTokenizer
from rmtools.serving.responses import Choice


class End(Enum):
    """What ended a step."""

    DELIMITER = "delimiter"
    EOS = "end of sequence"
    LENGTH = "length limit"


@dataclass(frozen=True)
class ServerState:
    """A batch of B distinct prefixes, as text: prompt and steps so far.

    Attributes
    ----------
    length, pending, n_steps, ended : Tensor
        (B,) number of tokens by the tokenizer here, last token id, steps so far, and whether it has ended.
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
        """Return these prefixes followed by those of ``other``."""
        names = ("length", "pending", "n_steps", "ended")
        joined = (torch.cat([getattr(self, n), getattr(other, n)]) for n in names)
        return ServerState(self.texts + other.texts, *joined)


@dataclass(frozen=True)
class StepText:
    """The text of one step, without the end-of-sequence token, and what ended it."""

    text: str
    end: End


class UnusableStepError(Exception):
    """A completion that is no step, and why."""


def read_step(choice: Choice, steps: StepTokenizer, stops: bool) -> StepText:
    """Return the step of a completion, and what ended it.

    ``stops`` says whether the delimiter was sent as a stop string, to a server that shows where one ended a completion.
    Raises ``UnusableStepError`` if neither delimiter, end of sequence nor length ended it, or it is empty.
    """
    delimiter, text, finish = steps.settings.delimiter, choice.text, choice.finish_reason
    at = text.find(delimiter)
    if at >= 0:
        return StepText(text[: at + len(delimiter)], End.DELIMITER)
    eos = steps.tokenizer.eos_token
    if isinstance(eos, str) and text.endswith(eos):
        return StepText(text.removesuffix(eos), End.EOS)
    if finish == "length" and text:
        return StepText(text, End.LENGTH)
    if finish == "length":
        raise UnusableStepError("an empty step that nothing ended")
    if finish not in ("stop", "eos_token", "stop_sequence"):
        raise UnusableStepError(f"a step that ended by {finish!r}")
    if stops and (choice.matched == delimiter or finish == "stop_sequence"):
        return StepText(text + delimiter, End.DELIMITER)
    return StepText(text, End.EOS)


def step_ids(steps: StepTokenizer, step: StepText | None) -> list[int]:
    """Return the token ids of a step, with the end-of-sequence token if that ended it; none for no step.

    Raises ``UserError`` if the tokenizer does not give the text back: what is scored would not be what was drawn.
    """
    if step is None:
        return []
    ids = steps.step_ids(step.text) if step.text else []
    # Some tokenizers compose Unicode, and no reader can tell the two forms apart.
    read, written = (unicodedata.normalize("NFC", text) for text in (steps.step_text(ids), step.text))
    if read != written:
        raise UserError(
            f"the tokenizer here cannot read what the server wrote: {step.text[:60]!r}",
            "use the tokenizer of the model that is served",
        )
    return [*ids, steps.eos_id] if step.end is End.EOS else ids


def has_special_delimiter(steps: StepTokenizer) -> bool:
    """Return whether special tokens make the delimiter: servers leave them out of the text unless asked."""
    special = set(steps.tokenizer.all_special_ids)
    return any(i in special for i in steps.step_ids(steps.settings.delimiter))
