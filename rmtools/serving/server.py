"""A policy behind an OpenAI-compatible completions endpoint: vLLM, SGLang, llama.cpp and others.

The server receives text (the prompt and the steps so far) and returns the text of one step, which is tokenised here
as a value model reads it. So the policy is the law of the *text* of a step given the text before it, at
``temperature`` and without truncation, until the delimiter, the end of the sequence, or ``max_step_tokens``. What a
token holds behind the first delimiter is not part of it: servers cut there.

Equal prefixes are sent once, for as many independent draws as particles are at them. Each request has its own seed from
the given generator. With ``prompts_per_request`` above 1 several prefixes share a request; one seed would tie
their draws to each other, so it has none: fewer requests, no reproducible run.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.decoding import count_step
from rmtools.lm.policy import require_room
from rmtools.lm.protocol import Decoded
from rmtools.lm.retokenise import prompt_text
from rmtools.lm.steps import StepTokenizer
from rmtools.serving.capabilities import SEED_SPAN, RequestTemplate, probe
from rmtools.serving.endpoint import Endpoint, ServerSettings
from rmtools.serving.errors import RefusedError
from rmtools.serving.responses import Answer, Choice, ModelCard, choose_model
from rmtools.serving.state import (
    End,
    ServerState,
    StepText,
    UnusableStepError,
    has_special_delimiter,
    read_step,
    step_ids,
)

# Characters; words of a vocabulary are shorter. Only to notice a server that does not count its tokens.
LONGEST_TOKEN = 256


@dataclass(frozen=True)
class _Request:
    """``n`` completions of each of some distinct prefixes."""

    rows: tuple[int, ...]
    n: int
    max_tokens: int


class ServerPolicy:
    """The policy behind a server; made by :func:`connect`.

    ``steps`` tokenises the texts of steps, ``context`` is how many tokens the model takes, where the server says, and states
    live on ``device`` (default: the CPU).

    Attributes
    ----------
    draws, truncated_steps : int
        Steps drawn so far, and how many of them the length limit cut.
    requests, generated_tokens : int
        Answers used so far, and their tokens by the server's count (0 if it does not count).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        template: RequestTemplate,
        steps: StepTokenizer,
        context: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.endpoint, self.template, self.steps, self.context = endpoint, template, steps, context
        self.temperature = template.temperature
        self.name = f"{template.model} at {endpoint.url}"
        self.device = device or torch.device("cpu")
        self.draws = self.truncated_steps = self.requests = self.generated_tokens = 0
        self._numbers = count()

    def __repr__(self) -> str:
        return f"ServerPolicy({self.name!r})"

    def close(self) -> None:
        """Close the connections to the server."""
        self.endpoint.close()

    def check_length(self, prompts: list[list[int]]) -> None:
        """Raise ``UserError`` if a prompt (token ids) leaves no room for a single token."""
        require_room(prompts, self.context)

    def start(self, prompts: list[list[int]]) -> ServerState:
        """Return the state of ``prompts`` (token ids); raise ``UserError`` if one is too long, or no text has its tokens."""
        self.check_length(prompts)
        texts = tuple(prompt_text(self.steps, ids) for ids in prompts)
        length, last = self._tensor([len(ids) for ids in prompts]), self._tensor([ids[-1] for ids in prompts])
        return ServerState(texts, length, last, torch.zeros_like(length), torch.zeros_like(length).bool())

    def decode_step(
        self, state: ServerState, node: Tensor, generator: torch.Generator
    ) -> Decoded[ServerState]:
        """Draw one step for each particle; raise ``UserError`` if the server does not give them, or one cannot be read."""
        at, ended = node.tolist(), state.ended.tolist()
        wanted = Counter(u for u in at if not ended[u])
        drawn = {u: iter(found) for u, found in self._draw(state, wanted, generator).items()}
        steps = [None if ended[u] else next(drawn[u]) for u in at]
        self.draws += wanted.total()
        self.truncated_steps += sum(s is not None and s.end is End.LENGTH for s in steps)
        return self._merged(state, at, steps)

    def _merged(
        self, state: ServerState, at: list[int], steps: list[StepText | None]
    ) -> Decoded[ServerState]:
        """Return the step with equal continuations of a prefix held once."""
        row: dict[tuple[int, StepText | None], int] = {}
        node = [row.setdefault(key, len(row)) for key in zip(at, steps, strict=True)]
        ids = [step_ids(self.steps, step) for _, step in row]
        parent = self._tensor([u for u, _ in row])
        width = max([1, *map(len, ids)])
        tokens = self._tensor([found + [-1] * (width - len(found)) for found in ids])
        length = state.length[parent] + (tokens >= 0).sum(1)
        over = self._tensor([s is not None and s.end is End.EOS for _, s in row]).bool()
        if self.context is not None:
            over = over | (length >= self.context)
        settings = self.steps.settings
        n_steps, ended = count_step(settings, state.n_steps[parent], state.ended[parent], over)
        pending = [f[-1] if f else int(state.pending[u]) for f, (u, _) in zip(ids, row, strict=True)]
        texts = tuple(state.texts[u] + (s.text if s is not None else "") for u, s in row)
        after = ServerState(texts, length, self._tensor(pending), n_steps, ended)
        return Decoded(tokens, after, parent, self._tensor(node))

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _draw(
        self, state: ServerState, wanted: dict[int, int], generator: torch.Generator
    ) -> dict[int, list[StepText]]:
        """Return ``wanted[u]`` draws of each prefix u: asked again until there are enough, none used twice."""
        drawn: dict[int, list[StepText]] = {u: [] for u in wanted}
        while missing := {u: n - len(drawn[u]) for u, n in wanted.items() if n > len(drawn[u])}:
            requests = list(self._requests(state, missing))
            seeds = distinct_seeds(len(requests), generator)
            bodies = [
                self.template.body(
                    [state.texts[u] for u in r.rows], r.n, r.max_tokens, None if len(r.rows) > 1 else seed
                )
                for r, seed in zip(requests, seeds, strict=True)
            ]
            ids = [f"rmtools-{seed:x}-{next(self._numbers)}" for seed in seeds]
            for request, answer in zip(requests, self.endpoint.ask_all(bodies, ids), strict=True):
                if self._checked(request, answer):
                    self.requests += 1
                    self.generated_tokens += answer.tokens
                    for i, choice in enumerate(answer.choices):
                        drawn[request.rows[i // request.n]].append(self._read(choice))
        return drawn

    def _requests(self, state: ServerState, missing: dict[int, int]) -> Iterator[_Request]:
        """Yield requests for the ``missing`` draws; prefixes with equal numbers of draws and room may share one."""
        most, limit = self.template.can.choices, self.steps.settings.max_step_tokens
        together: dict[tuple[int, int], list[int]] = {}
        for u, n in missing.items():
            room = limit if self.context is None else min(limit, self.context - int(state.length[u]))
            for part in [most] * (n // most) + ([n % most] if n % most else []):
                together.setdefault((part, room), []).append(u)
        size = self.endpoint.settings.prompts_per_request if self.template.can.batches else 1
        for (n, room), rows in together.items():
            for k in range(0, len(rows), size):
                yield _Request(tuple(rows[k : k + size]), n, room)

    def _checked(self, request: _Request, answer: Answer) -> bool:
        """Return whether the draws of an answer can be told apart by prompt; note what the server cannot do.

        Raises ``UserError`` if it does not keep to the request.
        """
        found, asked = len(answer.choices), request.n * len(request.rows)
        server, fix = f"the server at {self.endpoint.url}", "look at its log, or use another server"
        if len(request.rows) > 1 and (found != asked or not answer.indexed):
            message = "the server does not answer several prompts at once: one per request"
            self._note("batches", message, batches=False)
            return False
        if found > asked:
            raise UserError(f"{server} gave {found} completions where {asked} were asked for", fix)
        longest = max((len(c.text) for c in answer.choices), default=0)
        if answer.tokens > request.max_tokens * found or longest > LONGEST_TOKEN * request.max_tokens:
            raise UserError(
                f"{server} gave more than the {request.max_tokens} tokens per step that were asked for ({answer.tokens} "
                f"tokens in {found} completions, the longest of {longest} characters): it ignores max_tokens",
                fix,
            )
        if found < asked:
            message = f"the server gives {found} completions where {asked} are asked for: asking again"
            self._note("choices", message, choices=min(found, self.template.can.choices))
        return True

    def _note(self, kind: str, message: str, **less: Any) -> None:
        """Lower the capabilities of a server that can do less than it seemed, and say so."""
        self.template = replace(self.template, can=replace(self.template.can, **less))
        self.endpoint.warn(kind, message)

    def _read(self, choice: Choice) -> StepText:
        try:
            return read_step(choice, self.steps, self.template.can.stops)
        except UnusableStepError as error:
            raise UserError(
                f"the server at {self.endpoint.url} returned {error}: it is not a draw from the policy",
                "look at the server's log and its filters; a larger max_step_tokens gives a step room for its text",
            ) from None


def connect(
    url: str,
    steps: StepTokenizer,
    rng: np.random.Generator,
    settings: ServerSettings | None = None,
    device: torch.device | None = None,
) -> ServerPolicy:
    """Connect to a completions server, find out what it can do, and return its policy.

    Parameters
    ----------
    url : str
        The server's base URL, with or without ``/v1``. An API key is read from ``OPENAI_API_KEY``.
    steps : StepTokenizer
        Of the value model.
    rng : np.random.Generator
        Draws the seeds of the probing requests and the jitter of delays; no step depends on it.
    settings : ServerSettings, optional
    device : torch.device, optional
        The value model's. Default: the CPU.

    Raises
    ------
    UserError
        If there is no such server or model, or its completions are not independent draws.
    """
    settings = settings or ServerSettings()
    endpoint = Endpoint(url, rng, settings)
    card = served_model(endpoint, settings.model)
    delimiter, special = steps.settings.delimiter, has_special_delimiter(steps)
    template = RequestTemplate(card.id, settings.temperature, delimiter, special)
    can = probe(endpoint, template, rng, batches=settings.prompts_per_request > 1)
    return ServerPolicy(endpoint, replace(template, can=can), steps, card.context, device)


def served_model(endpoint: Endpoint, name: str | None) -> ModelCard:
    """Return the model to ask for; a given name is trusted if the server lists no models."""
    try:
        return choose_model(endpoint.models(), name or None, endpoint.url)
    except RefusedError:
        if not name:
            raise
        return ModelCard(name)


def distinct_seeds(n: int, generator: torch.Generator) -> list[int]:
    """Draw ``n`` different seeds: requests with equal ones could be answered alike."""
    seeds: dict[int, None] = {}
    while len(seeds) < n:
        more = torch.randint(SEED_SPAN, (n - len(seeds),), generator=generator, device=generator.device)
        seeds |= dict.fromkeys(more.tolist())
    return list(seeds)
