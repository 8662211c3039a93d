"""What a completions endpoint answers. Only the fields read here are looked at; a missing one is never guessed.

Servers differ in how they tell what ended a completion. vLLM adds ``stop_reason`` to a choice, SGLang ``matched_stop``.
llama.cpp says "stop" for a stop string and for the end of the sequence alike in ``/v1/completions``; its own ``/completion``
has ``stop_type`` and ``stopping_word``. It answers a list of prompts, and there several draws, with a list of answers, and
counts the tokens of one draw of several.
"""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from rmtools.codec import from_json
from rmtools.errors import UserError

T = TypeVar("T")

# How llama.cpp's own endpoint says what ended a completion, in the words of the others.
STOP_TYPES = {"word": "stop", "eos": "stop", "limit": "length"}


@dataclass(frozen=True)
class Choice:
    """One completion: ``finish_reason`` says why it ended, the next three which stop string or token ended it."""

    text: str
    finish_reason: Any = None
    stop_reason: Any = None
    matched_stop: Any = None
    stopping_word: Any = None
    index: Any = None
    logprobs: Any = None

    @property
    def matched(self) -> Any:
        """The stop string or token that ended it; None where the server does not say."""
        told = (self.stop_reason, self.matched_stop, self.stopping_word)
        return next((m for m in told if m is not None), None)

    @property
    def has_logprobs(self) -> bool:
        """Whether it has the log-probability of at least one chosen token."""
        found = self.logprobs if isinstance(self.logprobs, dict) else {}
        each = [x.get("logprob") for x in found.get("content") or [] if isinstance(x, dict)]
        return any(isinstance(x, int | float) for x in [*(found.get("token_logprobs") or []), *each])


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes
    ----------
    choices : list of Choice
        In order of their index.
    indexed : bool
        Whether the indices were 0, 1, ... without gap or repetition: only then do they tell prompts apart.
    tokens, prompt_tokens : int
        Generated tokens, and tokens of the prompt, by the server's count; 0 if it does not count.
    """

    choices: list[Choice]
    indexed: bool
    tokens: int
    prompt_tokens: int = 0


@dataclass(frozen=True)
class ModelCard:
    """A model of a server."""

    id: str
    max_model_len: Any = None

    @property
    def context(self) -> int | None:
        """How many tokens it takes, where the server says."""
        return self.max_model_len if isinstance(self.max_model_len, int) and self.max_model_len > 0 else None


def read_answer(body: Any) -> Answer:
    """Read the body of an answer; raise ``UserError`` if it is none."""
    parts = body if isinstance(body, list) else [body]
    for part in parts:
        if isinstance(part, dict) and part.get("error"):
            raise UserError(f"it answers with an error: {part['error']}", "")
    choices = [c for part in parts for c in _choices(part)]
    if not choices:
        raise UserError("it answers without choices", "")
    indexed = sorted(c.index for c in choices if isinstance(c.index, int)) == list(range(len(choices)))
    if indexed:
        choices.sort(key=lambda c: c.index)
    own = sum(_count(part, "tokens_predicted") for part in parts)
    usages = [part["usage"] for part in parts if isinstance(part.get("usage"), dict)]
    tokens = own + sum(_count(u, "completion_tokens") for u in usages)
    return Answer(choices, indexed, tokens, max((_count(u, "prompt_tokens") for u in usages), default=0))


def read_token_ids(body: Any) -> list[int]:
    """Read the answer of a ``/tokenize`` endpoint; raise ``UserError`` if it is none."""
    found = body.get("tokens") if isinstance(body, dict) else None
    if not isinstance(found, list) or not all(isinstance(i, int) for i in found):
        raise UserError("it answers without tokens", "")
    return found


def _count(values: dict[str, Any], name: str) -> int:
    found = values.get(name)
    return max(0, found) if isinstance(found, int) else 0


def _choices(part: Any) -> list[Choice]:
    """Read the completions of one answer: a list of them, or one as llama.cpp's own endpoint writes it."""
    if isinstance(part, dict) and isinstance(part.get("content"), str) and "stop_type" in part:
        kind = part["stop_type"]
        word = part.get("stopping_word") if kind == "word" else None
        return [
            Choice(part["content"], STOP_TYPES.get(kind, kind), stopping_word=word, index=part.get("index"))
        ]
    return _read_all(Choice, part, "choices")


def read_models(body: Any) -> list[ModelCard]:
    """Read the body of a list of models; raise ``UserError`` if it is none."""
    return _read_all(ModelCard, body, "data")


def choose_model(cards: list[ModelCard], name: str | None, url: str) -> ModelCard:
    """Return the model called ``name``, or the only one; raise ``UserError`` with the list if there is no such one."""
    if not cards:
        raise UserError(f"the server at {url} has no model", "start it with one")
    for card in cards:
        if card.id == name or (name is None and len(cards) == 1):
            return card
    fact = f"{len(cards)} models" if name is None else f"no model {name!r}"
    more = f" and {len(cards) - 10} more" if len(cards) > 10 else ""
    names = ", ".join(c.id for c in cards[:10]) + more
    raise UserError(f"the server at {url} has {fact}", f"name one of its models: {names}")


def _read_all(cls: type[T], body: Any, name: str) -> list[T]:
    """Read the list ``name`` of ``body``: the fields of ``cls`` from objects that may have more."""
    found = body.get(name) if isinstance(body, dict) else None
    if not isinstance(found, list):
        raise UserError(f"it answers without {name}", "")
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    known = [{n: x[n] for n in names if n in x} if isinstance(x, dict) else x for x in found]
    return [from_json(cls, x, f"it answers with unusable {name}") for x in known]
