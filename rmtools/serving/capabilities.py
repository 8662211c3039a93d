"""What a completions server can do, found by asking it: nothing is guessed from its name.

The questions are short requests that cannot hurt: the bare protocol first, then one thing more at a time, and never a seed
unless the user asks for seeds. After one that fails the server is asked again what it answered before: an engine that a
request has stopped is reported at once, and never waited for.

The law of a step needs these to be known:

- Truncations of the law (top-k, min-p, penalties), which some servers apply by default, are off.
- Draws for equal prompts are independent: some servers repeat one draw ``n`` times, some answer equal requests alike.
- A step that the delimiter ended can be told from one that the end of the sequence ended, though both finish with
  "stop". Where it cannot, no stop string is asked for, and the completion is cut at its first delimiter here: the same
  law, at the price of the tokens behind the cut.
- The prompt is read as the tokenizer here reads it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from rmtools.codec import to_json
from rmtools.errors import UserError
from rmtools.serving.endpoint import COMPLETIONS, Endpoint
from rmtools.serving.errors import CONTEXT, RefusedError
from rmtools.serving.responses import Answer, read_token_ids

# Every server is asked to leave the model's own law alone, in each one's words; -1 and 0 switch a truncation off.
LAW: dict[str, Any] = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
UNTRUNCATED: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
KEEP_STOP: dict[str, Any] = {"include_stop_str_in_output": True, "no_stop_trim": True}
# llama.cpp's own endpoint, beside /v1.
NATIVE = "../completion"
SEED_SPAN = 2**31 - 1
PROBE_PROMPT = "1 + 1 = 2"
# Digits, an apostrophe, an accent and a line break: vocabularies differ in how they cut them.
SENTENCE = "12345 apples, don't stop: naïve x\nnext"
# Draws of a prompt in one request, and requests of one draw each where a server gives one.
PROBE_CHOICES, PROBE_SINGLES = 16, 8
PROBE_TOKENS = 16
# So hot that a server which draws cannot draw the same text every time.
PROBE_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Capabilities:
    """What a server was seen to do."""

    extras: dict[str, Any] = field(default_factory=dict)
    """Fields beyond the protocol that it takes."""
    filters: Literal["", "refused", "ignored", "applied"] = ""
    """Whether it takes top_k, and whether that has an effect."""
    stops: Literal["", "text", "field", "native"] = ""
    """How it shows that a stop string ended a completion: the text keeps it, a field names it, llama.cpp's own endpoint does."""
    choices: int = 1
    """How many independent draws of one prompt a request may ask for."""
    batches: bool = False
    """Whether a request may hold several prompts, their draws independent."""
    seeds: bool = False
    """Whether requests have a seed: they were asked for, and the server takes them."""
    logprobs: bool = False
    """Whether it gives the log-probabilities of the chosen tokens."""
    counts: Literal["", "none", "wrong", "right"] = ""
    """Whether it counts the tokens it generates."""
    tokenizer: Literal["", "same"] = ""
    """Whether it was seen to read a sentence as the tokenizer here does."""

    @property
    def path(self) -> str:
        """Where completions are asked for."""
        return NATIVE if self.stops == "native" else COMPLETIONS

    def both(self, other: "Capabilities") -> "Capabilities":
        """Return what this server and another one can do, for requests that either may get."""
        alike = self.extras == other.extras and self.stops == other.stops
        return Capabilities(
            extras=self.extras if alike else {},
            filters=self.filters if self.filters == other.filters else "",
            stops=self.stops if alike else "",
            choices=min(self.choices, other.choices),
            batches=self.batches and other.batches,
            seeds=self.seeds and other.seeds,
            logprobs=self.logprobs and other.logprobs,
            counts=self.counts if self.counts == other.counts else "wrong",
            tokenizer=self.tokenizer if self.tokenizer == other.tokenizer else "",
        )

    def lines(self) -> list[str]:
        """Return what was found, a line for each question."""
        several = f"up to {self.choices} in one request" if self.choices > 1 else "one in a request"
        return [
            f"draws of a prompt: {several}, independent; seeds are {'' if self.seeds else 'not '}sent",
            f"end of a step: {STOPS_SAID[self.stops]}",
            f"filters (top_k, min_p, penalties): {FILTERS_SAID[self.filters]}",
            f"log-probabilities of chosen tokens: {'given' if self.logprobs else 'not given'}; "
            f"tokens: {COUNTS_SAID[self.counts]}; "
            f"tokenizer: {'reads a sentence as the one here' if self.tokenizer else 'not told'}",
        ]

    def record(self) -> dict[str, Any]:
        """Return what was found, for a run's metadata."""
        found: dict[str, Any] = to_json(self)
        return found


STOPS_SAID = {
    "": "not told; completions run to the length limit and are cut here, which costs more tokens",
    "text": "the delimiter is sent as a stop string and kept in the text",
    "field": "the delimiter is sent as a stop string, and a field names it",
    "native": "told by llama.cpp's own /completion (stop_type), not by /v1/completions",
}
FILTERS_SAID = {
    "": "not known",
    "refused": "refused, so those that it applies by default are part of the policy",
    "ignored": "taken without effect, so those that it applies by default are part of the policy",
    "applied": "taken, and switched off",
}
COUNTS_SAID = {
    "": "counted by the server",
    "right": "counted by the server",
    "wrong": "miscounted by the server, counted again from the text here",
    "none": "not counted by the server, counted from the text here",
}


@dataclass(frozen=True)
class RequestTemplate:
    """How requests to one model are written; ``special``: with special tokens in the text, if the delimiter is one.

    ``stops`` are the texts that end a step: the delimiter, unless steps end otherwise, and those that end a solution.
    """

    model: str
    temperature: float
    stops: tuple[str, ...]
    special: bool
    can: Capabilities = field(default_factory=Capabilities)

    def sent(self, stop: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the stop strings of a request, those of a step by default: none to a server that does not tell."""
        return tuple(self.stops if stop is None else stop) if self.can.stops else ()

    def body(
        self,
        prompts: Sequence[str],
        n: int,
        max_tokens: int,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Return the body of a request for ``n`` completions of each prompt; ``stop`` as in `sent`."""
        native = self.can.stops == "native"
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompts[0] if len(prompts) == 1 else list(prompts),
            "n_predict" if native else "max_tokens": max_tokens,
            "temperature": self.temperature,
            "n": n,
            **LAW,
            **self.can.extras,
        }
        if native:
            body["cache_prompt"] = True
        if seed is not None and self.can.seeds:
            body["seed"] = seed
        if sent := self.sent(stop):
            body["stop"] = list(sent)
            if self.can.extras and not native:
                body |= KEEP_STOP
        return body


def probe(
    endpoint: Endpoint,
    template: RequestTemplate,
    rng: np.random.Generator,
    *,
    batches: bool,
    tokens_of: Callable[[str], list[int]] | None = None,
) -> Capabilities:
    """Find out what the server can do with a few short requests, whose answers are used for nothing else.

    ``rng`` draws the names of the requests (and their seeds, if seeds are asked for), ``batches`` says whether to try several
    prompts in a request, ``tokens_of`` reads a text as the tokenizer here does.

    Raises
    ------
    UserError
        If the server's draws are all the same (it is greedy, has a fixed seed, or answers from a cache), it reads text with
        another tokenizer, or it does not answer any more.
    """
    prober = _Prober(endpoint, template, rng, tokens_of)
    can = prober.bare()
    for question in (
        prober.extras,
        prober.seeds,
        prober.choices,
        prober.filters,
        prober.stops,
        prober.logprobs,
    ):
        can = question(can)
    return prober.batches(can) if batches else can


@dataclass
class _Prober:
    """The questions, one method each."""

    endpoint: Endpoint
    template: RequestTemplate
    rng: np.random.Generator
    tokens_of: Callable[[str], list[int]] | None

    def numbers(self, n: int) -> list[int]:
        return [int(s) for s in self.rng.choice(SEED_SPAN, size=n, replace=False)]

    def ask(
        self,
        what: str,
        can: Capabilities,
        requests: int = 1,
        prompts: Sequence[str] = (PROBE_PROMPT,),
        stop: str | None = None,
        hot: bool = True,
        **more: Any,
    ) -> list[Answer]:
        """Return the answers to equal requests with ``what`` and the fields of ``more``.

        A hot one does not stop where the text would end. If the server has stopped answering, ``UserError`` says so.
        """
        temperature = PROBE_TEMPERATURE if hot else self.template.temperature
        template = replace(self.template, can=can, temperature=temperature)
        onward = {"ignore_eos": True} if hot and can.extras else {}
        ids = self.numbers(requests)
        stops = () if stop is None else (stop,)
        bodies = [
            template.body(prompts, can.choices, PROBE_TOKENS, seed if len(prompts) == 1 else None, stops)
            | onward
            | more
            for seed in ids
        ]
        names = [f"rmtools-probe-{k}" for k in ids]
        try:
            return self.endpoint.ask_all(bodies, names, first=True, path=can.path)
        except UserError as error:
            if self.endpoint.answered and not CONTEXT.search(error.fact):
                self.require_alive(what, error)
            raise

    def require_alive(self, what: str, error: UserError) -> None:
        """Raise ``UserError`` unless the server still answers what it answered before."""
        template = replace(self.template, can=Capabilities(), temperature=PROBE_TEMPERATURE)
        name = f"rmtools-probe-{self.numbers(1)[0]}"
        try:
            self.endpoint.ask(template.body((SENTENCE,), 1, PROBE_TOKENS), name, first=True)
        except UserError:
            raise UserError(
                f"the server at {self.endpoint.url} answered, and does not any more after a request with {what} "
                f"({error.fact}): its engine has stopped",
                f"start it again and look at its log; {STOPPED_BY.get(what, 'report the request to its makers')}",
            ) from None

    def try_to_ask(self, what: str, can: Capabilities, *request: Any, **more: Any) -> list[Answer]:
        """Return the answers, or none if the server refuses such requests. Some servers fail instead."""
        try:
            return self.ask(what, can, *request, **more)
        except RefusedError:
            return []

    def bare(self) -> Capabilities:
        """Ask by the bare protocol, and compare how the server reads the sentence with the tokenizer here."""
        [answer] = self.ask("nothing but the protocol", Capabilities(), prompts=(SENTENCE,))
        counts = self.counted([answer])
        if self.tokens_of is None or not answer.prompt_tokens:
            return Capabilities(counts=counts)
        own, theirs = self.tokens_of(SENTENCE), answer.prompt_tokens
        # Whether a server puts special tokens in front differs.
        if abs(len(own) - theirs) <= 1 or self.reads_alike(own):
            return Capabilities(counts=counts, tokenizer="same")
        raise UserError(
            f"the server at {self.endpoint.url} reads a sentence as {theirs} tokens, the tokenizer here as {len(own)}: it "
            "serves a model with another tokenizer",
            "name the tokenizer of the model that is served with `tokenizer`",
        )

    def reads_alike(self, own: list[int]) -> bool:
        """Return whether the server's /tokenize, if it has one, gives the ids of the tokenizer here."""
        body = {
            "model": self.template.model,
            "prompt": SENTENCE,
            "content": SENTENCE,
            "add_special_tokens": False,
        }
        try:
            theirs = self.endpoint.post("/tokenize", body, "rmtools-tokenize", read_token_ids, first=True)
        except UserError:
            return False
        return theirs == own[len(own) - len(theirs) :] and bool(theirs)

    def counted(self, answers: Sequence[Answer]) -> Literal["none", "wrong", "right"]:
        """Return whether the server counts its tokens: those cut at the limit have as many as were asked for."""
        if not any(a.tokens for a in answers):
            return "none"
        return "right" if all(counts_are_right(a, PROBE_TOKENS) for a in answers) else "wrong"

    def extras(self, can: Capabilities) -> Capabilities:
        """See which fields beyond the protocol the server takes."""
        extras = UNTRUNCATED | {"skip_special_tokens": not self.template.special}
        if self.template.special:
            extras["spaces_between_special_tokens"] = False
        taken = replace(can, extras=extras)
        if self.try_to_ask("top_k, min_p and penalties", taken):
            return taken
        self.endpoint.warn(
            "extras",
            "the server takes no top_k, min_p and repetition_penalty: truncations that it applies by default cannot "
            "be switched off, and would be part of the policy",
        )
        return replace(can, filters="refused")

    def seeds(self, can: Capabilities) -> Capabilities:
        """See whether the server takes a seed, if the user asks for seeds."""
        if not self.endpoint.settings.seeds:
            return can
        seeded = replace(can, seeds=True)
        if self.try_to_ask("a seed", seeded):
            return seeded
        raise UserError(
            f"the server at {self.endpoint.url} refuses requests with a seed", "leave `server_seed` out"
        )

    def choices(self, can: Capabilities) -> Capabilities:
        """See how many independent draws one request may ask for: fewer and fewer."""
        n = PROBE_CHOICES
        while n > 1:
            several = replace(can, choices=n)
            answers = self.try_to_ask(f"n = {n}", several, 2)
            found = min((len(a.choices) for a in answers), default=0)
            if answers and found < n:
                n = found
                continue
            if not answers:
                n //= 2
                continue
            several = replace(several, counts=worse(can.counts, self.counted(answers)))
            if all(len({c.text for c in a.choices}) > 1 for a in answers):
                one, two = (sorted(c.text for c in a.choices) for a in answers)
                if one == two:
                    raise self.alike(can)
                return several
            break
        return self.singles(can)

    def singles(self, can: Capabilities) -> Capabilities:
        """See whether requests of one draw each are independent."""
        texts = {a.choices[0].text for a in self.ask("n = 1", can, PROBE_SINGLES)}
        if len(texts) == 1 and texts != {""}:
            raise self.alike(can)
        self.endpoint.warn(
            "choices",
            "the server does not give several independent completions of a prompt for one request: every "
            "draw is a request of its own",
        )
        return can

    def alike(self, can: Capabilities) -> UserError:
        """Return the error for a server that answers equal requests alike: requests that differ tell why."""
        server = f"the server at {self.endpoint.url}"
        [one] = self.ask("n = 1", can)
        [two] = self.ask("n = 1", can, max_tokens=PROBE_TOKENS - 1)
        if one.choices[0].text.startswith(two.choices[0].text) and two.choices[0].text:
            return UserError(
                f"{server} answers a prompt alike every time, at temperature {PROBE_TEMPERATURE:g}: it is greedy, or has a "
                "fixed seed, and its completions are not independent draws",
                "start it without forced greedy decoding (transformers: do_sample in generation_config.json) and without a "
                "fixed seed; if it draws by the seed of a request alone, `server_seed` sends one",
            )
        return UserError(
            f"{server} answers equal requests alike, and others otherwise: it answers from a cache, and its completions are not "
            "independent draws",
            "switch off the cache of answers in front of it (a cache of prefixes does no harm)",
        )

    def filters(self, can: Capabilities) -> Capabilities:
        """See whether top_k has an effect: with 1 every draw is the same."""
        if not can.extras:
            return can
        answers = self.try_to_ask("top_k", can, 1 if can.choices > 1 else 3, top_k=1)
        texts = {c.text for a in answers for c in a.choices}
        if len(texts) == 1:
            return replace(can, filters="applied")
        self.endpoint.warn(
            "filters",
            "the server takes top_k, and it has no effect: truncations that it applies by default are part of the policy",
        )
        return replace(can, filters="ignored")

    def stops(self, can: Capabilities) -> Capabilities:
        """See whether a completion shows that a stop string ended it, at the usual endpoint or at llama.cpp's own."""
        if not self.template.stops:
            return can
        for how in ("field", "native"):
            stopping = replace(can, stops=how)
            # Another path with the same fields, which no other server has.
            if how == "native" and not self.try_to_ask("/completion", replace(stopping, choices=1)):
                break
            for stop, hot in ((self.template.stops[0], False), (" ", True)):
                requests = 1 if can.choices > 1 else PROBE_SINGLES
                answers = self.try_to_ask("a stop string", stopping, requests, stop=stop, hot=hot)
                ends = [c for a in answers for c in a.choices]
                if how == "native" and len(ends) != requests * can.choices:
                    break
                if how == "field" and any(
                    c.text.endswith(stop) and c.finish_reason != "length" for c in ends
                ):
                    return replace(stopping, stops="text")
                if any(stop == c.matched or c.finish_reason == "stop_sequence" for c in ends):
                    return self.recounted(stopping, answers)
        self.endpoint.warn(
            "stops",
            "the server does not show whether the delimiter or the end of the text ended a step: completions run to "
            "the length limit and are cut at the delimiter here, which costs more tokens",
        )
        return can

    def recounted(self, can: Capabilities, answers: Sequence[Answer]) -> Capabilities:
        """Return ``can`` with what the answers of llama.cpp's own endpoint, which counts each draw, say of its counts."""
        if can.stops != "native":
            return can
        return replace(can, counts="right" if all(a.tokens for a in answers) else "none")

    def logprobs(self, can: Capabilities) -> Capabilities:
        """See whether the server gives the log-probabilities of the chosen tokens."""
        usual = replace(can, stops="", choices=1)
        answers = self.try_to_ask("logprobs", usual, logprobs=1)
        return replace(can, logprobs=any(c.has_logprobs for a in answers for c in a.choices))

    def batches(self, can: Capabilities) -> Capabilities:
        """See whether one request may hold several prompts, their draws independent."""
        n = can.choices
        answers = self.try_to_ask("several prompts", can, 2, (PROBE_PROMPT,) * 2)
        if answers and all(a.indexed and len(a.choices) == 2 * n for a in answers):
            parts = [[c.text for c in a.choices[k : k + n]] for a in answers for k in (0, n)]
            different = len({tuple(sorted(p)) for p in parts}) == len(parts)
            if different and (n == 1 or all(len(set(p)) > 1 for p in parts)):
                return replace(can, batches=True)
        self.endpoint.warn(
            "batches",
            "the server does not give independent completions of several prompts for one request: every prompt is a "
            "request of its own",
        )
        return can


STOPPED_BY = {
    "a seed": "leave `server_seed` out: no run needs seeds to be right",
    "top_k, min_p and penalties": "another build of the server may take these fields, which every sampler has",
}


def worse(
    one: Literal["", "none", "wrong", "right"], other: Literal["", "none", "wrong", "right"]
) -> Literal["", "none", "wrong", "right"]:
    """Return the worse of two findings about a server's counts."""
    for found in ("wrong", "none"):
        if found in (one, other):
            return found
    return "right"


def counts_are_right(answer: Answer, max_tokens: int) -> bool:
    """Return whether the count of an answer can be: completions cut at the limit have exactly as many tokens."""
    cut = sum(c.finish_reason == "length" for c in answer.choices)
    return cut * max_tokens <= answer.tokens <= len(answer.choices) * max_tokens
