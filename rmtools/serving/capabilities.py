"""What a completions server can do, found by asking it: nothing of it is guessed from its name.

The law of a step needs three things that servers differ in. That truncations of the law (top-k, min-p, penalties),
which some servers apply by default, are off. That the draws for equal prompts are independent: some servers repeat
one draw ``n`` times, or answer equal requests alike whatever their seed. And that a step which the delimiter ended
can be told from one that the end of the sequence ended, though both finish with "stop". Where the last cannot be
seen, no stop string is asked for, and the completion is cut at its first delimiter here: the same law, at the price
of the tokens behind the cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rmtools.errors import UserError
from rmtools.serving.completions import Endpoint
from rmtools.serving.errors import NotFoundError, RefusedError
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


# Some servers fail where they should refuse.
REFUSALS = (RefusedError, NotFoundError)


@dataclass(frozen=True)
class Capabilities:
    """What a server was seen to do.

    Attributes
    ----------
    extras : dict
        Fields beyond the protocol that it takes.
    stops : bool
        Whether it can be seen that a stop string ended a completion.
    choices : int
        How many independent draws of one prompt a request may ask for.
    batches : bool
        Whether a request may hold several prompts, their draws independent.
    """

    extras: dict[str, Any] = field(default_factory=dict)
    stops: bool = False
    choices: int = 1
    batches: bool = False


@dataclass(frozen=True)
class Asking:
    """How requests to one model are written.

    Parameters
    ----------
    model : str
    temperature : float
    delimiter : str
    special : bool
        Whether special tokens are to be part of the text: needed where the delimiter is one.
    can : Capabilities
    """

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


def was_stopped(answer: Answer, stop: str) -> bool:
    """Return whether some completion shows that ``stop`` ended it: by its last characters, or because it is named."""
    return any(
        c.text.endswith(stop) or c.matched == stop or c.finish == "stop_sequence" for c in answer.choices
    )


def probe(endpoint: Endpoint, asking: Asking, rng: np.random.Generator, *, batches: bool) -> Capabilities:
    """Find out what the server can do with a few short requests, whose answers are used for nothing else.

    Parameters
    ----------
    endpoint : Endpoint
    asking : Asking
        Its ``can`` is not read.
    rng : np.random.Generator
        Draws the seeds of the requests.
    batches : bool
        Whether to look if requests may hold several prompts.

    Raises
    ------
    UserError
        Where its draws are no draws: all the same, whatever the seed.
    """
    prober = Prober(endpoint, asking, rng)
    can = prober.fields()
    can = prober.draws(can)
    can = prober.stops(can)
    return prober.batches(can) if batches else can


@dataclass
class Prober:
    """The questions, one method each."""

    endpoint: Endpoint
    asking: Asking
    rng: np.random.Generator

    def seeds(self, n: int) -> list[int]:
        """Return ``n`` different seeds."""
        return [int(s) for s in self.rng.choice(SEED_SPAN, size=n, replace=False)]

    def ask(
        self,
        can: Capabilities,
        n: int,
        *,
        seeds: Sequence[int | None],
        prompts: Sequence[str] = (PROBE_PROMPT,),
        stop: str | None = None,
        hot: bool = True,
    ) -> list[Answer]:
        """Return the answers to one request a seed."""
        bodies = [self.body(can, n, s, prompts, stop, hot) for s in seeds]
        ids = [f"rmtools-probe-{k}" for k in self.seeds(len(bodies))]
        return self.endpoint.ask_all(bodies, ids, first=True)

    def ask_in_vain(
        self,
        can: Capabilities,
        n: int,
        *,
        seeds: Sequence[int | None],
        prompts: Sequence[str] = (PROBE_PROMPT,),
        stop: str | None = None,
        hot: bool = True,
    ) -> list[Answer]:
        """Return the answers as :meth:`ask` does, or none where the server refuses, or fails at, such requests."""
        try:
            return self.ask(can, n, seeds=seeds, prompts=prompts, stop=stop, hot=hot)
        except REFUSALS:
            return []

    def body(
        self, can: Capabilities, n: int, seed: int | None, prompts: Sequence[str], stop: str | None, hot: bool
    ) -> dict[str, Any]:
        """Return a request; a ``hot`` one goes on where the text would end, so that there is text to compare."""
        temperature = PROBE_TEMPERATURE if hot else self.asking.temperature
        asking = replace(self.asking, can=can, temperature=temperature)
        goes_on = {"ignore_eos": True} if hot and can.extras else {}
        return asking.body(prompts, n, PROBE_TOKENS, seed, stop) | goes_on

    def fields(self) -> Capabilities:
        """See which fields beyond the protocol the server takes."""
        extras = UNTRUNCATED | {"skip_special_tokens": not self.asking.special}
        if self.asking.special:
            extras["spaces_between_special_tokens"] = False
        for can in (Capabilities(extras, stops=True), Capabilities(extras)):
            if self.ask_in_vain(can, 1, seeds=self.seeds(1)):
                return Capabilities(extras)
        # With the bare protocol a server that refuses again says why itself.
        self.ask(Capabilities(), 1, seeds=self.seeds(1))
        self.endpoint.tell(
            "extras",
            "the server takes no top_k, min_p and repetition_penalty: truncations it applies by default cannot be "
            "switched off, and would be part of the policy",
        )
        return Capabilities()

    def draws(self, can: Capabilities) -> Capabilities:
        """See how many independent draws one request may ask for."""
        answers = self.ask_in_vain(can, PROBE_CHOICES, seeds=self.seeds(2))
        counts = {len(a.choices) for a in answers}
        if counts == {PROBE_CHOICES} and all(len({c.text for c in a.choices}) > 1 for a in answers):
            one, two = (sorted(c.text for c in a.choices) for a in answers)
            if one != two:
                return replace(can, choices=PROBE_CHOICES)
        else:
            answers = self.ask(can, 1, seeds=self.seeds(PROBE_SINGLES))
            texts = {a.choices[0].text for a in answers}
            if len(texts) > 1 or texts == {""}:
                self.endpoint.tell(
                    "choices",
                    "the server does not give several independent completions of a prompt for one request: every draw "
                    "is a request of its own",
                )
                return can
        raise UserError(
            f"the server at {self.endpoint.url} answers a prompt alike whatever the seed, at temperature "
            f"{PROBE_TEMPERATURE:g}: its completions are no independent draws",
            "start it without a fixed seed, without forced greedy decoding, and without a cache of answers in front",
        )

    def stops(self, can: Capabilities) -> Capabilities:
        """See whether a completion shows that a stop string ended it."""
        stopping = replace(can, stops=True)
        for stop, hot in ((self.asking.delimiter, False), (" ", True)):
            requests = 1 if can.choices > 1 else PROBE_SINGLES
            answers = self.ask_in_vain(stopping, can.choices, seeds=self.seeds(requests), stop=stop, hot=hot)
            if any(was_stopped(a, stop) for a in answers):
                return stopping
        self.endpoint.tell(
            "stops",
            "the server does not show whether the delimiter or the end of the text ended a step: completions go on to "
            "the length limit and are cut at the delimiter here, which costs more tokens",
        )
        return can

    def batches(self, can: Capabilities) -> Capabilities:
        """See whether one request may hold several prompts, their draws independent."""
        n = can.choices
        answers = self.ask_in_vain(can, n, seeds=[None, None], prompts=(PROBE_PROMPT,) * 2)
        whole = bool(answers) and all(a.indexed and len(a.choices) == 2 * n for a in answers)
        if whole:
            parts = [tuple(c.text for c in a.choices[k : k + n]) for a in answers for k in (0, n)]
            if len({tuple(sorted(p)) for p in parts}) == len(parts) and (
                n == 1 or all(len(set(p)) > 1 for p in parts)
            ):
                return replace(can, batches=True)
        self.endpoint.tell(
            "batches",
            "the server does not give independent completions of several prompts for one request: every prompt is a "
            "request of its own",
        )
        return can
