"""Steps as a server returns them: the state of prefixes that are text, and what a completion says about its end."""

import unicodedata
from collections.abc import Sequence
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
    STOP = "stop text"
    """A text that ends the solution."""
    NONE = "nothing"
    """The server stopped at a blank line, which is no step: the text goes on."""


# A solution has ended with these.
OVER = (End.EOS, End.STOP)


@dataclass(frozen=True)
class ServerState:
    """A batch of B distinct prefixes, as text: prompt and steps so far.

    Attributes
    ----------
    length, pending, n_steps, ended, begins : Tensor
        (B,) number of tokens by the tokenizer here, last token id, steps so far, whether it has ended, and where in the text
        the solution begins.
    """

    texts: tuple[str, ...]
    length: Tensor
    pending: Tensor
    n_steps: Tensor
    ended: Tensor
    begins: Tensor

    def select(self, rows: Tensor) -> "ServerState":
        """Return the prefixes ``rows`` (B',)."""
        texts = tuple(self.texts[i] for i in rows.tolist())
        return ServerState(texts, *(getattr(self, n)[rows] for n in COLUMNS))

    def join(self, other: "ServerState") -> "ServerState":
        """Return these prefixes followed by those of ``other``."""
        joined = (torch.cat([getattr(self, n), getattr(other, n)]) for n in COLUMNS)
        return ServerState(self.texts + other.texts, *joined)

    def solution(self, row: int) -> str:
        """Return the text of the steps of a prefix."""
        return self.texts[row][int(self.begins[row]) :]


COLUMNS = ("length", "pending", "n_steps", "ended", "begins")


@dataclass(frozen=True)
class StepText:
    """The text of one step, without the end-of-sequence token, and what ended it."""

    text: str
    end: End


class UnusableStepError(Exception):
    """A completion that is no step, and why."""


def read_step(
    choice: Choice, steps: StepTokenizer, sent: Sequence[str], begun: str = "", solution: str = ""
) -> StepText:
    """Return the step of a completion, and what ended it.

    ``sent`` are the stop strings of the request, to a server that shows where one ended a completion; ``begun`` is what the
    step had before, ``solution`` the steps before it. Raises ``UnusableStepError`` if neither delimiter, end of sequence nor
    length ended it, or it is empty.
    """
    found = read_text(choice, steps, sent, begun, solution)
    at = steps.settings.rule.first(found.text)
    # What stands behind the first delimiter is no part of the step.
    if at >= 0 and (at < len(found.text) or found.end is not End.STOP):
        return StepText(found.text[:at], End.DELIMITER)
    if found.end is End.LENGTH and not found.text:
        raise UnusableStepError("an empty step that nothing ended")
    return found


def read_text(
    choice: Choice, steps: StepTokenizer, sent: Sequence[str], begun: str = "", solution: str = ""
) -> StepText:
    """Return the whole text of a completion behind ``begun``, up to a text that ends the solution, and what ended it."""
    text, finish, settings = begun + choice.text, choice.finish_reason, steps.settings
    named = choice.matched if choice.matched in sent else ""
    # Anthropic's word for a stop string; the delimiter is the only one that such servers are sent.
    if finish == "stop_sequence" and len(sent) == 1:
        named = sent[0]
    if named and not choice.text.endswith(named):
        text += named
    cut = settings.stops.first(solution + text) - len(solution)
    if settings.stop and cut > 0:
        return StepText(text[:cut], End.STOP)
    eos = steps.tokenizer.eos_token
    if isinstance(eos, str) and text.endswith(eos):
        return StepText(text.removesuffix(eos), End.EOS)
    if finish == "length":
        return StepText(text, End.LENGTH)
    if finish not in ("stop", "eos_token", "stop_sequence"):
        raise UnusableStepError(f"a step that ended by {finish!r}")
    delimiter = settings.delimiter
    stopped = delimiter in sent and (named == delimiter or choice.text.endswith(delimiter))
    return StepText(text, End.NONE if stopped else End.EOS)


def solution_steps(steps: StepTokenizer, found: StepText, most: int) -> list[StepText]:
    """Cut the text of (the rest of) a solution into at most ``most`` steps, as they would end if drawn one by one."""
    settings, text = steps.settings, found.text
    out: list[StepText] = []
    at = 0
    while at < len(text) and len(out) < most:
        stop = settings.rule.first(text, at)
        piece = text[at : stop if stop >= 0 else len(text)]
        last = at + len(piece) == len(text)
        end = found.end if last and (stop < 0 or found.end is End.STOP) else End.DELIMITER
        ids = steps.step_ids(piece)
        if len(ids) > settings.max_step_tokens:
            short = steps.step_text(ids[: settings.max_step_tokens])
            # A cut within a character has no text of its own.
            if short and piece.startswith(short):
                piece, end = short, End.LENGTH
        out.append(StepText(piece, end))
        at += len(piece)
    if found.end is End.EOS and len(out) < most and (not out or out[-1].end is not End.EOS):
        out.append(StepText("", End.EOS))
    return out


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
            "name the tokenizer of the model that is served with `tokenizer`",
        )
    return [*ids, steps.eos_id] if step.end is End.EOS else ids


def has_special_delimiter(steps: StepTokenizer) -> bool:
    """Return whether special tokens make the delimiter: servers leave them out of the text unless asked."""
    if steps.settings.end != "delimiter":
        return False
    special = set(steps.tokenizer.all_special_ids)
    return any(i in special for i in steps.step_ids(steps.settings.delimiter))
