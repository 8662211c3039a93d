"""What a completions endpoint answers, read strictly: a field that is missing is never guessed.

Servers differ in how they tell what ended a completion. vLLM adds ``stop_reason`` to a choice, SGLang
``matched_stop``, both only as their own extension; llama.cpp says "stop" for a stop string and for the end of the
sequence alike, and answers a list of prompts by a list of answers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rmtools.errors import UserError


@dataclass(frozen=True)
class Choice:
    """One completion.

    Attributes
    ----------
    text : str
    finish : str
        Why it ended, in the server's word: "stop" or "length" mostly.
    matched : object
        The stop string or token that ended it, where the server says.
    """

    text: str
    finish: str
    matched: object = None


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes
    ----------
    choices : list of Choice
        By their index, whatever order they came in.
    indexed : bool
        Whether the indices were 0, 1, ... without gap or repetition: only then do they tell prompts apart.
    tokens : int
        Generated tokens, by the server's count; 0 where it does not count.
    """

    choices: list[Choice]
    indexed: bool
    tokens: int


@dataclass(frozen=True)
class ModelCard:
    """A model that a server has: its name, and how many tokens it takes where the server says."""

    name: str
    context: int | None


def read_answer(body: Any, wrong: Callable[[str], Exception]) -> Answer:
    """Read the body of an answer; raises what ``wrong`` makes of the reason where it is none."""
    parts = body if isinstance(body, list) else [body]
    raw: list[dict[str, Any]] = []
    tokens = 0
    for part in parts:
        if isinstance(part, dict) and part.get("error"):
            raise wrong(f"it answers with an error: {part['error']}")
        if not isinstance(part, dict) or not isinstance(part.get("choices"), list):
            raise wrong("it answers without choices")
        raw += part["choices"]
        usage = part.get("usage")
        counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
        tokens += max(0, counted) if isinstance(counted, int) else 0
    if not raw or not all(isinstance(c, dict) and isinstance(c.get("text"), str) for c in raw):
        raise wrong("it answers choices without text")
    index = [c.get("index") for c in raw]
    indexed = sorted(i for i in index if isinstance(i, int)) == list(range(len(raw)))
    if indexed:
        raw = sorted(raw, key=lambda c: c["index"])
    return Answer([read_choice(c) for c in raw], indexed, tokens)


def read_choice(raw: dict[str, Any]) -> Choice:
    """Read one choice."""
    told = raw.get("stop_reason")
    return Choice(
        raw["text"], str(raw.get("finish_reason")), raw.get("matched_stop") if told is None else told
    )


def read_models(body: Any, wrong: Callable[[str], Exception]) -> list[ModelCard]:
    """Read the body of a list of models."""
    cards = body.get("data") if isinstance(body, dict) else None
    if not isinstance(cards, list) or not all(isinstance(c, dict) and c.get("id") for c in cards):
        raise wrong("it has no list of models")
    return [ModelCard(str(c["id"]), _positive(c.get("max_model_len"))) for c in cards]


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def choose_model(cards: list[ModelCard], name: str | None, url: str) -> ModelCard:
    """Return the model called ``name``, or the only one there is.

    Raises
    ------
    UserError
        Where it is not there, or there are several to choose from; they are listed.
    """
    names = ", ".join(c.name for c in cards[:10]) + (
        f" and {len(cards) - 10} more" if len(cards) > 10 else ""
    )
    if not cards:
        raise UserError(f"the server at {url} has no model", "start it with one")
    if name is None and len(cards) > 1:
        raise UserError(
            f"the server at {url} has {len(cards)} models", f"name one with --server-model: {names}"
        )
    for card in cards:
        if name in (None, card.name):
            return card
    raise UserError(
        f"the server at {url} has no model {name!r}", f"name one that it has with --server-model: {names}"
    )
