"""A policy behind an OpenAI-compatible completions endpoint: vLLM, SGLang, llama.cpp and the like.

The server is sent text (the prompt and the steps so far) and returns the text of one step, which is tokenised here
as a value model reads it. So the policy is the law of the *text* of a step given the text before it, at
``temperature`` and without any truncation, until the delimiter, the end of the sequence, or ``max_step_tokens``. What
a token holds behind the first delimiter is no part of it: servers cut there.

Equal prefixes are asked for once, for as many independent draws as there are particles at them; each request has a
seed of its own from the generator given. With ``prompts_per_request`` above 1, several prefixes share a request,
and since one seed would tie their draws to each other it has none: fewer requests, no reproducible run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count as counter

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.retokenise import prompt_text
from rmtools.lm.steps import StepTokenizer
from rmtools.serving.capabilities import Asking, probe
from rmtools.serving.completions import Endpoint
from rmtools.serving.errors import NotFoundError
from rmtools.serving.responses import Answer, Choice, ModelCard, choose_model
from rmtools.serving.state import (
    Drawn,
    End,
    Request,
    ServerState,
    ServerStep,
    UnusableStepError,
    distinct_seeds,
    drawn_ids,
    read_step,
    special_pieces,
)

# Characters; words of a vocabulary are shorter. Only to notice a server that does not count its tokens.
LONGEST_TOKEN = 256


class ServerPolicy:
    """The policy behind a server; made by :func:`connect`.

    Parameters
    ----------
    endpoint : Endpoint
    asking : Asking
        The model's name, the temperature, and what the server can do.
    steps : StepTokenizer
        Of the value model's checkpoint, or of a tokenizer folder: what step texts are tokenised with.
    context : int or None
        How many tokens the model takes, where the server says.
    prompts_per_request : int
        Distinct prefixes in a request, at most.
    device : torch.device, optional
        Where states live: the value model's device. Default: the CPU.

    Attributes
    ----------
    draws, truncated_steps : int
        Steps drawn so far, and those of them that the length limit cut.
    requests, generated_tokens : int
        Answers used so far, and the tokens in them by the server's count (0 where it does not count).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        asking: Asking,
        steps: StepTokenizer,
        context: int | None = None,
        prompts_per_request: int = 1,
        device: torch.device | None = None,
    ) -> None:
        check_temperature(asking.temperature)
        if prompts_per_request < 1:
            raise UserError(f"prompts_per_request must be at least 1, got {prompts_per_request}", "8, say")
        self.endpoint = endpoint
        self.asking = asking
        self.steps = steps
        self.context = context
        self.temperature = asking.temperature
        self.name = f"{asking.model} at {endpoint.url}"
        self.prompts_per_request = prompts_per_request
        self.device = device or torch.device("cpu")
        self.draws = self.truncated_steps = self.requests = self.generated_tokens = 0
        self._numbers = counter()

    def __repr__(self) -> str:
        return f"ServerPolicy({self.name!r})"

    def close(self) -> None:
        """Close the connections to the server."""
        self.endpoint.close()

    def check_length(self, prompts: list[list[int]]) -> None:
        """Raise ``UserError`` where a prompt (token ids) leaves no room for a single token."""
        for i, ids in enumerate(prompts):
            if self.context is not None and len(ids) >= self.context:
                raise UserError(
                    f"prompt {i} has {len(ids)} tokens, the model takes {self.context}: "
                    "no room is left for a step",
                    "shorten the prompt or serve the model with more context",
                )

    def start(self, prompts: list[list[int]]) -> ServerState:
        """Return the state of ``prompts`` (token ids).

        Raises
        ------
        UserError
            Where a prompt leaves no room for a step, or its text cannot be told from its tokens.
        """
        self.check_length(prompts)
        n = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
        return ServerState(
            tuple(prompt_text(self.steps, ids) for ids in prompts),
            self._tensor([len(ids) for ids in prompts]),
            self._tensor([ids[-1] for ids in prompts]),
            n,
            n.bool(),
        )

    def decode_step(self, state: ServerState, node: Tensor, generator: torch.Generator) -> ServerStep:
        """Draw one step for each of B particles, independently; a prefix that has ended gets none.

        Parameters
        ----------
        state : ServerState
            U distinct prefixes.
        node : Tensor
            (B,) the prefix each particle is at.
        generator : torch.Generator
            On the policy's device; draws the seeds of the requests.

        Raises
        ------
        UserError
            Where the server does not give the steps (see :class:`rmtools.serving.completions.Endpoint`), or one that cannot
            be read.
        """
        at, ended = node.tolist(), state.ended.tolist()
        wanted: dict[int, int] = {}
        for u in at:
            if not ended[u]:
                wanted[u] = wanted.get(u, 0) + 1
        drawn = {u: iter(found) for u, found in self._draw(state, wanted, generator).items()}
        steps = [None if ended[u] else next(drawn[u]) for u in at]
        live = [s for s in steps if s is not None]
        self.draws += len(live)
        self.truncated_steps += sum(s.end is End.LENGTH for s in live)
        return self._merged(state, at, steps)

    def _merged(self, state: ServerState, at: list[int], steps: list[Drawn | None]) -> ServerStep:
        """Return the step with equal continuations of a prefix held once."""
        row: dict[tuple[int, Drawn | None], int] = {}
        node = [row.setdefault(key, len(row)) for key in zip(at, steps, strict=True)]
        ids = [drawn_ids(self.steps, step) for _, step in row]
        parent = self._tensor([u for u, _ in row])
        width = max([1, *map(len, ids)])
        tokens = self._tensor([found + [-1] * (width - len(found)) for found in ids])
        was_ended = state.ended[parent]
        n_steps = state.n_steps[parent] + (~was_ended).long()
        length = state.length[parent] + (tokens >= 0).sum(1)
        ended = was_ended | self._tensor([s is not None and s.end is End.EOS for _, s in row]).bool()
        ended = ended | (n_steps >= self.steps.settings.max_steps)
        if self.context is not None:
            ended = ended | (length >= self.context)
        pending = [f[-1] if f else int(state.pending[u]) for f, (u, _) in zip(ids, row, strict=True)]
        texts = tuple(state.texts[u] + (s.text if s is not None else "") for u, s in row)
        after = ServerState(texts, length, self._tensor(pending), n_steps, ended)
        return ServerStep(tokens, after, parent, self._tensor(node))

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _draw(
        self, state: ServerState, wanted: dict[int, int], generator: torch.Generator
    ) -> dict[int, list[Drawn]]:
        """Return ``wanted[u]`` draws of each prefix u: asked for again until there are as many, none of them twice."""
        drawn: dict[int, list[Drawn]] = {u: [] for u in wanted}
        while missing := {u: n - len(drawn[u]) for u, n in wanted.items() if n > len(drawn[u])}:
            requests = list(self._requests(state, missing))
            seeds = distinct_seeds(len(requests), generator)
            bodies = [
                self.asking.body(
                    [state.texts[u] for u in r.rows], r.n, r.max_tokens, None if len(r.rows) > 1 else seed
                )
                for r, seed in zip(requests, seeds, strict=True)
            ]
            ids = [f"rmtools-{seed:x}-{next(self._numbers)}" for seed in seeds]
            for request, answer in zip(requests, self.endpoint.ask_all(bodies, ids), strict=True):
                self._take(request, answer, drawn)
        return drawn

    def _requests(self, state: ServerState, missing: dict[int, int]) -> Iterator[Request]:
        """Yield requests for the ``missing`` draws: prefixes with equally many, and equal room, share one where they may."""
        most, limit = self.asking.can.choices, self.steps.settings.max_step_tokens
        together: dict[tuple[int, int], list[int]] = {}
        for u, n in missing.items():
            room = limit if self.context is None else min(limit, self.context - int(state.length[u]))
            for part in [most] * (n // most) + ([n % most] if n % most else []):
                together.setdefault((part, room), []).append(u)
        size = self.prompts_per_request if self.asking.can.batches else 1
        for (n, room), rows in together.items():
            for k in range(0, len(rows), size):
                yield Request(tuple(rows[k : k + size]), n, room)

    def _take(self, request: Request, answer: Answer, drawn: dict[int, list[Drawn]]) -> None:
        """Add the draws of an answer; one that cannot be told apart by prompts is left, whatever it says."""
        found, asked = len(answer.choices), request.n * len(request.rows)
        if len(request.rows) > 1 and (found != asked or not answer.indexed):
            self.asking = replace(self.asking, can=replace(self.asking.can, batches=False))
            self.endpoint.tell("batches", "the server does not answer several prompts at once: one a request")
            return
        if found > asked:
            raise UserError(
                f"the server at {self.endpoint.url} gave {found} completions where {asked} were asked for",
                "look at its log, or use another server",
            )
        longest = max((len(c.text) for c in answer.choices), default=0)
        if answer.tokens > request.max_tokens * found or longest > LONGEST_TOKEN * request.max_tokens:
            raise UserError(
                f"the server at {self.endpoint.url} gave more than the {request.max_tokens} tokens a step that were asked "
                f"for ({answer.tokens} tokens in {found} completions, the longest of {longest} characters): it does not "
                "keep to max_tokens",
                "look at its log, or use another server",
            )
        if found < asked:
            self.asking = replace(
                self.asking, can=replace(self.asking.can, choices=min(found, self.asking.can.choices))
            )
            self.endpoint.tell(
                "choices", f"the server gives {found} completions where {asked} are asked for: asked again"
            )
        self.requests += 1
        self.generated_tokens += answer.tokens
        for i, choice in enumerate(answer.choices):
            drawn[request.rows[i // request.n if len(request.rows) > 1 else 0]].append(self._read(choice))

    def _read(self, choice: Choice) -> Drawn:
        try:
            return read_step(choice, self.steps, self.asking.can.stops)
        except UnusableStepError as error:
            raise UserError(
                f"the server at {self.endpoint.url} returned {error}: it is no draw from the policy",
                "look at the server's log and its filters; a larger max_step_tokens gives a step room for its text",
            ) from None


def connect(
    url: str,
    steps: StepTokenizer,
    rng: np.random.Generator,
    *,
    model: str | None = None,
    temperature: float = 1.0,
    concurrency: int = 16,
    prompts_per_request: int = 1,
    timeout: float = 600.0,
    patience: float = 300.0,
    device: torch.device | None = None,
) -> ServerPolicy:
    """Connect to a completions server, see what it can do, and return its policy.

    Parameters
    ----------
    url : str
        The server's base URL, with or without ``/v1``. An API key is read from ``OPENAI_API_KEY``.
    steps : StepTokenizer
        Tokenizer and step settings of the value model.
    rng : np.random.Generator
        Draws the seeds of the probing requests and the jitter of waiting times; no step depends on it.
    model : str, optional
        Needed where the server has several.
    temperature : float
        Of the softmax.
    concurrency : int
        Requests in flight at most.
    prompts_per_request : int
        Distinct prefixes in a request; above 1 runs cannot be reproduced by their seed.
    timeout, patience : float
        Seconds that a request may take, and for which a failing one is tried again.
    device : torch.device, optional
        The value model's, where that is not the CPU.

    Raises
    ------
    UserError
        Where there is no such server or model, or its completions are no independent draws.
    """
    check_temperature(temperature)
    endpoint = Endpoint(url, rng, concurrency=concurrency, timeout=timeout, patience=patience)
    card = served_model(endpoint, model or None)
    asking = Asking(card.name, temperature, steps.settings.delimiter, special_pieces(steps))
    can = probe(endpoint, asking, rng, batches=prompts_per_request > 1)
    return ServerPolicy(endpoint, replace(asking, can=can), steps, card.context, prompts_per_request, device)


def check_temperature(temperature: float) -> None:
    """Raise ``UserError`` unless ``temperature`` is positive."""
    if not temperature > 0:
        raise UserError(
            f"temperature must be positive, got {temperature}: the sampler needs a policy with a law",
            "1 samples from the model's own law",
        )


def served_model(endpoint: Endpoint, name: str | None) -> ModelCard:
    """Return the model to ask for; a server that lists none is taken at its word where a name is given."""
    try:
        cards: Sequence[ModelCard] = endpoint.models()
    except NotFoundError:
        if name is None:
            raise
        return ModelCard(name, None)
    return choose_model(list(cards), name, endpoint.url)
