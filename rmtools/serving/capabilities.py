"""What a completions server can do, found by asking it: nothing is guessed from its name.

The law of a step needs three things that servers differ in:

- Truncations of the law (top-k, min-p, penalties), which some servers apply by default, are off.
- Draws for equal prompts are independent: some servers repeat one draw ``n`` times, or answer equal requests alike
  whatever their seed.
- A step that the delimiter ended can be told from one that the end of the sequence ended, though both finish with
  "stop". Where it cannot, no stop string is asked for, and the completion is cut at its first delimiter here: the same
  law, at the price of the tokens behind the cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rmtools.errors import UserError
from rmtools.serving.endpoint import Endpoint
from rmtools.serving.errors import RefusedError
from rmtools.serving.responses import Answer

# Every server is asked to leave the model's own law alone, in each one's words; -1 and 0 switch a truncation off.
LAW: dict[str, Any] = {"top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
UNTRUNCATED: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
KEEP_STOP: dict[str, Any] = {"include_stop_str_in_output": True, "no_stop_trim": True}
SEED_SPAN = 2**31 - 1
PROBE_PROMPT = "1 + 1 = 2"
# Draws of a prompt in one request, where the server gives several, and requests of one draw each where it does not.
PROBE_CHOICES, PROBE_SINGLES = 16, 8
PROBE_TOKENS = 16
# So hot that a server which draws cannot draw the same text every time.
PROBE_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Capabilities:
    """What a server was seen to do."""

    extras: dict[str, Any] = field(default_factory=dict)
    """Fields beyond the protocol that it takes."""
    stops: bool = False
    """Whether it shows that a stop string ended a completion."""
    choices: int = 1
    """How many independent draws of one prompt a request may ask for."""
    batches: bool = False
    """Whether a request may hold several prompts, their draws independent."""


@dataclass(frozen=True)
class RequestTemplate:
    """How requests to one model are written; ``special``: with special tokens in the text, if the delimiter is one."""

    model: str
    temperature: float
    delimiter: str
    special: bool
    can: Capabilities = field(default_factory=Capabilities)

    def body(
        self, prompts: Sequence[str], n: int, max_tokens: int, seed: int | None, stop: str | None = None
    ) -> dict[str, Any]:
        """Return the body of a request for ``n`` completions of each prompt; ``stop`` defaults to the delimiter."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompts[0] if len(prompts) == 1 else list(prompts),
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "n": n,
            **LAW,
            **self.can.extras,
        }
        if seed is not None:
            body["seed"] = seed
        if self.can.stops:
            body["stop"] = [stop or self.delimiter]
            if self.can.extras:
                body |= KEEP_STOP
        return body


def probe(
    endpoint: Endpoint, template: RequestTemplate, rng: np.random.Generator, *, batches: bool
) -> Capabilities:
    """Find out what the server can do with a few short requests, whose answers are used for nothing else.

    ``rng`` draws their seeds, ``batches`` says whether to try several prompts in a request. Raises ``UserError`` if the
    server's draws are all the same, whatever the seed.
    """
    prober = _Prober(endpoint, template, rng)
    can = prober.stops(prober.choices(prober.extras()))
    return prober.batches(can) if batches else can


@dataclass
class _Prober:
    """The questions, one method each."""

    endpoint: Endpoint
    template: RequestTemplate
    rng: np.random.Generator

    def seeds(self, n: int) -> list[int]:
        return [int(s) for s in self.rng.choice(SEED_SPAN, size=n, replace=False)]

    def ask(
        self,
        can: Capabilities,
        seeds: Sequence[int | None],
        prompts: int = 1,
        stop: str | None = None,
        hot: bool = True,
    ) -> list[Answer]:
        """Return the answers to one request per seed; a hot one does not stop where the text would end."""
        temperature = PROBE_TEMPERATURE if hot else self.template.temperature
        template = replace(self.template, can=can, temperature=temperature)
        onward = {"ignore_eos": True} if hot and can.extras else {}
        texts = (PROBE_PROMPT,) * prompts
        bodies = [template.body(texts, can.choices, PROBE_TOKENS, seed, stop) | onward for seed in seeds]
        ids = [f"rmtools-probe-{k}" for k in self.seeds(len(bodies))]
        return self.endpoint.ask_all(bodies, ids, first=True)

    def try_to_ask(self, *request: Any, **more: Any) -> list[Answer]:
        """Return the answers, or none if the server refuses such requests. Some servers fail instead."""
        try:
            return self.ask(*request, **more)
        except RefusedError:
            return []

    def extras(self) -> Capabilities:
        """See which fields beyond the protocol the server takes."""
        extras = UNTRUNCATED | {"skip_special_tokens": not self.template.special}
        if self.template.special:
            extras["spaces_between_special_tokens"] = False
        for can in (Capabilities(extras, stops=True), Capabilities(extras)):
            if self.try_to_ask(can, self.seeds(1)):
                return Capabilities(extras)
        # A server that refuses the bare protocol, too, says why itself.
        self.ask(Capabilities(), self.seeds(1))
        self.endpoint.warn(
            "extras",
            "the server takes no top_k, min_p and repetition_penalty: truncations that it applies by default cannot "
            "be switched off, and would be part of the policy",
        )
        return Capabilities()

    def choices(self, can: Capabilities) -> Capabilities:
        """See how many independent draws one request may ask for."""
        several = replace(can, choices=PROBE_CHOICES)
        answers = self.try_to_ask(several, self.seeds(2))
        counts = {len(a.choices) for a in answers}
        if counts == {PROBE_CHOICES} and all(len({c.text for c in a.choices}) > 1 for a in answers):
            one, two = (sorted(c.text for c in a.choices) for a in answers)
            if one != two:
                return several
        else:
            answers = self.ask(can, self.seeds(PROBE_SINGLES))
            texts = {a.choices[0].text for a in answers}
            if len(texts) > 1 or texts == {""}:
                self.endpoint.warn(
                    "choices",
                    "the server does not give several independent completions of a prompt for one request: every "
                    "draw is a request of its own",
                )
                return can
        raise UserError(
            f"the server at {self.endpoint.url} answers a prompt alike whatever the seed, at temperature "
            f"{PROBE_TEMPERATURE:g}: its completions are not independent draws",
            "start it without a fixed seed, without forced greedy decoding, and without a cache of answers in front",
        )

    def stops(self, can: Capabilities) -> Capabilities:
        """See whether a completion shows that a stop string ended it."""
        stopping = replace(can, stops=True)
        for stop, hot in ((self.template.delimiter, False), (" ", True)):
            seeds = self.seeds(1 if can.choices > 1 else PROBE_SINGLES)
            answers = self.try_to_ask(stopping, seeds, stop=stop, hot=hot)
            ends = [c for a in answers for c in a.choices]
            if any(
                c.text.endswith(stop) or stop == c.matched or c.finish_reason == "stop_sequence" for c in ends
            ):
                return stopping
        self.endpoint.warn(
            "stops",
            "the server does not show whether the delimiter or the end of the text ended a step: completions run to "
            "the length limit and are cut at the delimiter here, which costs more tokens",
        )
        return can

    def batches(self, can: Capabilities) -> Capabilities:
        """See whether one request may hold several prompts, their draws independent."""
        n = can.choices
        answers = self.try_to_ask(can, [None, None], prompts=2)
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
