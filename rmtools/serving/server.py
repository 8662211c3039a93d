"""A policy behind OpenAI-compatible completions endpoints: vLLM, SGLang, llama.cpp and others.

The server receives text (the prompt and the steps so far) and returns the text of one step, or of the rest of a solution,
which is tokenised here as a value model reads it. So the policy is the law of the *text* of a step given the text before it,
at ``temperature`` and without truncation, until the step ends (`rmtools.lm.step_ends`), the end of the sequence, a stop text,
or ``max_step_tokens``. What a token holds behind the first delimiter is not part of it: servers cut there.

Equal prefixes are sent once, for as many independent draws as particles are at them. Requests have no seed unless
``ServerSettings.seeds`` asks for it; then each request of one prefix has its own from the given generator.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from rmtools.lm.sampling_law import SamplingLaw
from rmtools.lm.steps import StepTokenizer
from rmtools.serving.capabilities import SEED_SPAN, Capabilities, RequestTemplate, counts_are_right, probe
from rmtools.serving.endpoint import Endpoint, ServerSettings
from rmtools.serving.errors import RefusedError
from rmtools.serving.responses import Answer, Choice, ModelCard, choose_model
from rmtools.serving.state import (
    OVER,
    End,
    ServerState,
    StepText,
    UnusableStepError,
    has_special_delimiter,
    read_step,
    read_text,
    solution_steps,
    step_ids,
)

# Characters; words of a vocabulary are shorter. Only to notice a server that does not count its tokens.
LONGEST_TOKEN = 256
# Tokens of a solution in one request: what a policy that does not end writes behind its last step is paid for.
SOLUTION_TOKENS = 1024

Key = tuple[int, str]
"""A prefix, and the text that its draw has already: of a step after a blank line, or of a solution in several requests."""


@dataclass(frozen=True)
class _Request:
    """``n`` completions of each of some distinct prefixes; ``places`` are those of the draws among all of their prefix."""

    keys: tuple[Key, ...]
    places: tuple[tuple[int, ...], ...]
    n: int
    max_tokens: int


@dataclass(frozen=True)
class _Kind:
    """What is drawn, a step or the rest of a solution.

    ``tokens`` says how many it may have, by row of the state; ``stop`` is as in `RequestTemplate.sent`.
    """

    tokens: Callable[[int], int]
    most_at_once: int
    stop: tuple[str, ...]
    read: Callable[[Choice, Key], StepText]
    unfinished: Callable[[StepText, int], bool]


class ServerPolicy:
    """The policy behind one or several servers; made by :func:`connect`.

    ``steps`` tokenises the texts of steps, ``context`` is how many tokens the model takes, where the server says, and states
    live on ``device`` (default: the CPU).

    Attributes
    ----------
    draws, truncated_steps : int
        Steps drawn so far, and how many of them the length limit cut.
    requests, generated_tokens : int
        Answers used so far, and their tokens: by the server's count, or counted here from the text where it is wrong.
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
        self.found = template.can

    @property
    def law(self) -> SamplingLaw:
        """The sampling law: nothing is truncated."""
        return SamplingLaw(self.temperature)

    def __repr__(self) -> str:
        return f"ServerPolicy({self.name!r})"

    def record(self) -> dict[str, Any]:
        """Return the servers, the model and what was found out about them, for a run's metadata."""
        return {"urls": self.endpoint.urls, "model": self.template.model, **self.found.record()}

    def report(self) -> str:
        """Return what was found out, in a few lines."""
        context = "not told" if self.context is None else f"{self.context} tokens"
        return "\n  ".join([f"{self.name}, context {context}:", *self.found.lines()])

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
        none, begins = torch.zeros_like(length), self._tensor([len(text) for text in texts])
        return ServerState(texts, length, last, none, none.bool(), begins)

    def decode_step(
        self, state: ServerState, node: Tensor, generator: torch.Generator
    ) -> Decoded[ServerState]:
        """Draw one step for each particle; raise ``UserError`` if the server does not give them, or one cannot be read."""
        at, ended = node.tolist(), state.ended.tolist()
        wanted = Counter(u for u in at if not ended[u])
        drawn = {
            u: iter(found) for u, found in self._draw(state, wanted, self._a_step(state), generator).items()
        }
        steps = [None if ended[u] else next(drawn[u]) for u in at]
        self._count([s for s in steps if s is not None])
        return self._merged(state, at, steps)

    def decode_solutions(
        self, state: ServerState, node: Tensor, generator: torch.Generator
    ) -> list[list[list[int]]]:
        """Draw all further steps for each of B particles, as token ids; one request for all draws of a prefix.

        The law is that of `decode_step` again and again, but for what the tokenizer makes of a text at the end of a step.
        """
        at, ended = node.tolist(), state.ended.tolist()
        wanted = Counter(u for u in at if not ended[u])
        found = self._draw(state, wanted, self._a_solution(state), generator)
        drawn = {u: iter(texts) for u, texts in found.items()}
        solutions: list[list[list[int]]] = []
        for u in at:
            steps = [] if ended[u] else solution_steps(self.steps, next(drawn[u]), self._left(state, u))
            self._count(steps)
            solutions.append([step_ids(self.steps, s) for s in steps])
        return solutions

    def _count(self, steps: Sequence[StepText]) -> None:
        self.draws += len(steps)
        if self.steps.settings.end != "tokens":
            self.truncated_steps += sum(s.end is End.LENGTH for s in steps)

    def _left(self, state: ServerState, row: int) -> int:
        """Return how many steps a prefix may still have."""
        return self.steps.settings.max_steps - int(state.n_steps[row])

    def _a_step(self, state: ServerState) -> _Kind:
        limit, sent = self.steps.settings.max_step_tokens, self.template.sent()
        return _Kind(
            tokens=lambda row: limit,
            most_at_once=limit,
            stop=self.template.stops,
            read=lambda choice, key: read_step(choice, self.steps, sent, key[1], state.solution(key[0])),
            unfinished=lambda step, row: step.end is End.NONE,
        )

    def _a_solution(self, state: ServerState) -> _Kind:
        settings = self.steps.settings
        sent = self.template.sent(settings.stop)

        def unfinished(found: StepText, row: int) -> bool:
            left = self._left(state, row)
            return found.end is End.LENGTH and len(solution_steps(self.steps, found, left + 1)) <= left

        return _Kind(
            tokens=lambda row: self._left(state, row) * settings.max_step_tokens,
            most_at_once=max(SOLUTION_TOKENS, settings.max_step_tokens),
            stop=settings.stop,
            read=lambda choice, key: read_text(choice, self.steps, sent, key[1], state.solution(key[0])),
            unfinished=unfinished,
        )

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
        over = self._tensor([s is not None and s.end in OVER for _, s in row]).bool()
        if self.context is not None:
            over = over | (length >= self.context)
        settings = self.steps.settings
        n_steps, ended = count_step(settings, state.n_steps[parent], state.ended[parent], over)
        pending = [f[-1] if f else int(state.pending[u]) for f, (u, _) in zip(ids, row, strict=True)]
        texts = tuple(state.texts[u] + (s.text if s is not None else "") for u, s in row)
        after = ServerState(texts, length, self._tensor(pending), n_steps, ended, state.begins[parent])
        return Decoded(tokens, after, parent, self._tensor(node))

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _draw(
        self, state: ServerState, wanted: dict[int, int], kind: _Kind, generator: torch.Generator
    ) -> dict[int, list[StepText]]:
        """Return ``wanted[u]`` draws of each prefix u: asked again until there are enough, none used twice.

        A draw keeps its place whenever it is finished: those that took one request are not like those that took several.
        """
        drawn: dict[int, dict[int, StepText]] = {u: {} for u in wanted}
        missing: dict[Key, list[int]] = {(u, ""): list(range(n)) for u, n in wanted.items()}
        while missing:
            requests = list(self._requests(state, missing, kind))
            answers = self._answers(state, requests, kind, generator)
            left: dict[Key, list[int]] = {}
            for request, answer in zip(requests, answers, strict=True):
                told_apart = self._checked(request, answer)
                choices = iter(self._in_order(answer, generator) if told_apart else ())
                self._note_use(request, answer, told_apart)
                for key, places in zip(request.keys, request.places, strict=True):
                    for place in places:
                        choice = next(choices, None)
                        if choice is None:
                            left.setdefault(key, []).append(place)
                            continue
                        found = self._read(kind, choice, key)
                        longer = key[0], found.text
                        if kind.unfinished(found, key[0]) and self._room(state, longer, kind) > 0:
                            left.setdefault(longer, []).append(place)
                        else:
                            end = End.LENGTH if found.end is End.NONE else found.end
                            drawn[key[0]][place] = StepText(found.text, end)
            missing = left
        return {u: [found[i] for i in range(len(found))] for u, found in drawn.items()}

    def _answers(
        self, state: ServerState, requests: list[_Request], kind: _Kind, generator: torch.Generator
    ) -> list[Answer]:
        numbers = distinct_seeds(len(requests), generator)
        bodies = [
            self.template.body(
                [state.texts[u] + begun for u, begun in r.keys],
                r.n,
                r.max_tokens,
                seed if len(r.keys) == 1 else None,
                kind.stop,
            )
            for r, seed in zip(requests, numbers, strict=True)
        ]
        ids = [f"rmtools-{seed:x}-{next(self._numbers)}" for seed in numbers]
        return self.endpoint.ask_all(bodies, ids, path=self.template.can.path)

    def _in_order(self, answer: Answer, generator: torch.Generator) -> list[Choice]:
        """Return the completions in the order of their indices; without indices in a drawn one, as short ones may come first."""
        if answer.indexed or len(answer.choices) == 1:
            return answer.choices
        order = torch.randperm(len(answer.choices), generator=generator, device=generator.device)
        return [answer.choices[i] for i in order.tolist()]

    def _note_use(self, request: _Request, answer: Answer, used: bool) -> None:
        if used:
            self.requests += 1
            self.generated_tokens += self._tokens(request, answer)

    def _room(self, state: ServerState, key: Key, kind: _Kind) -> int:
        """Return how many tokens the draw of a prefix may still have."""
        row, begun = key
        used = len(self.steps.step_ids(begun)) if begun else 0
        room = kind.tokens(row) - used
        return room if self.context is None else min(room, self.context - int(state.length[row]) - used)

    def _requests(self, state: ServerState, missing: dict[Key, list[int]], kind: _Kind) -> Iterator[_Request]:
        """Yield requests for the ``missing`` draws; prefixes with equal numbers of draws and room may share one."""
        most = self.template.can.choices
        together: dict[tuple[int, int], list[tuple[Key, tuple[int, ...]]]] = {}
        for key, places in missing.items():
            # A prompt that fills the context is refused by the server in its own words.
            room = min(kind.most_at_once, self._room(state, key, kind))
            for k in range(0, len(places), most):
                part = tuple(places[k : k + most])
                together.setdefault((len(part), room), []).append((key, part))
        size = self.endpoint.settings.prompts_per_request if self.template.can.batches else 1
        for (n, room), found in together.items():
            for k in range(0, len(found), size):
                keys, parts = zip(*found[k : k + size], strict=True)
                yield _Request(keys, parts, n, room)

    def _checked(self, request: _Request, answer: Answer) -> bool:
        """Return whether the draws of an answer can be told apart by prompt; note what the server cannot do.

        Raises ``UserError`` if it does not keep to the request.
        """
        found, asked = len(answer.choices), request.n * len(request.keys)
        server, fix = f"the server at {self.endpoint.url}", "look at its log, or use another server"
        if len(request.keys) > 1 and (found != asked or not answer.indexed):
            message = "the server does not answer several prompts at once: one per request"
            self._note("batches", message, batches=False)
            return False
        if found > asked:
            raise UserError(f"{server} gave {found} completions where {asked} were asked for", fix)
        longest = max((len(c.text) for c in answer.choices), default=0)
        too_many = answer.tokens > request.max_tokens * found
        # Where a count cannot be right, the text says whether the completions are too long. A vocabulary may spell a text
        # with more tokens than the server's model did.
        if longest > LONGEST_TOKEN * request.max_tokens or (
            too_many and self._tokens_here(answer) > 2 * request.max_tokens * found
        ):
            raise UserError(
                f"{server} gave more than the {request.max_tokens} tokens per step that were asked for ({answer.tokens} "
                f"tokens in {found} completions, the longest of {longest} characters): it ignores max_tokens",
                fix,
            )
        if found < asked:
            message = f"the server gives {found} completions where {asked} are asked for: asking again"
            self._note("choices", message, choices=min(found, self.template.can.choices))
        return True

    def _tokens(self, request: _Request, answer: Answer) -> int:
        """Return the number of tokens of an answer: the server's count, unless it is wrong or missing."""
        if self.template.can.counts in ("none", "wrong"):
            return self._tokens_here(answer)
        if not counts_are_right(answer, request.max_tokens):
            self._note(
                "counts",
                "the server miscounts its tokens: they are counted here, from the text",
                counts="wrong",
            )
            return self._tokens_here(answer)
        return answer.tokens

    def _tokens_here(self, answer: Answer) -> int:
        """Return the number of tokens of an answer by the tokenizer here; the one that ended a completion counts too."""
        each = (len(self.steps.step_ids(c.text)) if c.text else 0 for c in answer.choices)
        return sum(each) + sum(c.finish_reason != "length" for c in answer.choices)

    def _note(self, kind: str, message: str, **less: Any) -> None:
        """Lower the capabilities of a server that can do less than it seemed, and say so."""
        self.template = replace(self.template, can=replace(self.template.can, **less))
        self.endpoint.warn(kind, message)

    def _read(self, kind: _Kind, choice: Choice, key: Key) -> StepText:
        try:
            return kind.read(choice, key)
        except UnusableStepError as error:
            raise UserError(
                f"the server at {self.endpoint.url} returned {error}: it is not a draw from the policy",
                "look at the server's log and its filters; a larger max_step_tokens gives a step room for its text",
            ) from None


def connect(
    url: str | Sequence[str],
    steps: StepTokenizer,
    rng: np.random.Generator,
    settings: ServerSettings | None = None,
    device: torch.device | None = None,
) -> ServerPolicy:
    """Connect to a completions server, or several that serve the same model, find out what they can do; return their policy.

    Parameters
    ----------
    url : str or sequence of str
        The servers' base URLs, with or without ``/v1``. An API key is read from ``OPENAI_API_KEY``.
    steps : StepTokenizer
        Of the model that is served, which may also be the value model's.
    rng : np.random.Generator
        Draws the names of the probing requests and the jitter of delays; no step depends on it.
    settings : ServerSettings, optional
    device : torch.device, optional
        The value model's. Default: the CPU.

    Raises
    ------
    UserError
        If there is no such server or model, its completions are not independent draws, or it has another tokenizer.
    """
    settings = settings or ServerSettings()
    urls = [url] if isinstance(url, str) else list(url)
    endpoint = Endpoint(urls, rng, settings)
    found = [_found(u, steps, rng, settings) for u in urls]
    models = sorted({template.model for template, _ in found})
    if len(models) > 1:
        raise UserError(
            f"the servers have different models: {', '.join(models)}",
            "name servers of one model, or it with `server_model`",
        )
    template, can = found[0][0], found[0][0].can
    for other, _ in found[1:]:
        can = can.both(other.can)
    contexts = [context for _, context in found if context is not None]
    context = min(contexts, default=None)
    return ServerPolicy(endpoint, replace(template, can=can), steps, context, device)


def _found(
    url: str, steps: StepTokenizer, rng: np.random.Generator, settings: ServerSettings
) -> tuple[RequestTemplate, int | None]:
    """Return how requests to one server are written, with what it can do, and its context."""
    endpoint = Endpoint(url, rng, settings)
    card = served_model(endpoint, settings.model)
    ends = steps.settings
    stops = (ends.delimiter, *ends.stop) if ends.end == "delimiter" else ends.stop
    template = RequestTemplate(card.id, settings.temperature, stops, has_special_delimiter(steps))
    batches = settings.prompts_per_request > 1
    can: Capabilities = probe(endpoint, template, rng, batches=batches, tokens_of=steps.prompt_ids)
    endpoint.close()
    return replace(template, can=can), card.context


def listed_model(url: str) -> str:
    """Return the name of the only model of a server; raise ``UserError`` if it has several, or does not list them."""
    endpoint = Endpoint(url, np.random.default_rng(0), ServerSettings())
    try:
        return served_model(endpoint, None).id
    finally:
        endpoint.close()


def served_model(endpoint: Endpoint, name: str | None) -> ModelCard:
    """Return the model to ask for; a given name is trusted if the server lists no models."""
    try:
        return choose_model(endpoint.models(), name or None, endpoint.url)
    except RefusedError:
        if not name:
            raise
        return ModelCard(name)


def distinct_seeds(n: int, generator: torch.Generator) -> list[int]:
    """Draw ``n`` different numbers for requests, which are part of their names, and their seeds where seeds are sent."""
    seeds: dict[int, None] = {}
    while len(seeds) < n:
        more = torch.randint(SEED_SPAN, (n - len(seeds),), generator=generator, device=generator.device)
        seeds |= dict.fromkeys(more.tolist())
    return list(seeds)
