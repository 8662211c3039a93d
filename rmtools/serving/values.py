r"""A value model behind a server: prefixes go out as token ids, the two labels' log-probabilities at their last token come back.

A `Way` is one server's endpoint for that. vLLM's ``/classify`` and ``/v1/completions`` with the label tokens, and SGLang's
``/v1/score``, use the server's prefix cache: a prefix that grows by a step costs that step. vLLM's ``/pooling`` gives a row for
every token at once, and reads each request from its beginning: right for whole rollouts, wrong while sampling.

The checkpoint or published model in this process says how texts become ids and what its numbers mean; its weights stay on the
server.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.formats.heads import two_logits
from rmtools.lm.formats.published import StepProbabilities
from rmtools.lm.protocol import TreeValues, ValueState
from rmtools.lm.steps import EncodedTree, StepTokenizer
from rmtools.lm.value import ValueModel
from rmtools.particles.tilt import Tilt
from rmtools.serving.endpoint import Endpoint
from rmtools.serving.threads import run_all

Ids = tuple[int, ...]
# Trees whose prefixes are asked for together: progress shows in steps of it.
TREES = 32
# Of a request: enough to keep a server busy, few enough to be sent again.
SEQUENCES = 16
TINY = 1e-38
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Labels:
    """Token ids of the good and the bad label of a model that is read from its next-token law; None of a classifier."""

    good: int
    bad: int


@dataclass(frozen=True)
class Way:
    """One endpoint: where it is, what it is asked, and how its rows are read.

    Attributes
    ----------
    name, path : str
        ``path`` is appended to the address without ``/v1``.
    classifier : bool
        Whether it reads a head of two labels; else it reads label tokens.
    cached : bool
        Whether the server's prefix cache serves it.
    every_token : bool
        Whether a row per token comes back.
    most : int
        Sequences in a request.
    body : callable
        ``body(sequences, labels)``: the request without ``model``.
    rows : callable
        ``rows(answer, labels)``: for each sequence numbers (L, k), or (1, k) of the last token: logits of the k labels; of label
        tokens the log-probabilities of bad and good, and 0, the log sum over all tokens.
    """

    name: str
    path: str
    classifier: bool
    cached: bool
    every_token: bool
    most: int
    body: Callable[[Sequence[Ids], Labels | None], dict[str, Any]]
    rows: Callable[[Any, Labels | None], list[np.ndarray]]


def _indexed(answer: Any, name: str) -> list[dict[str, Any]]:
    """Return the rows of ``answer[name]`` in the order of their ``index``; raise ``UserError`` if one is missing."""
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UserError(f"it answers without {name}", "")
    order = [row.get("index", k) for k, row in enumerate(found)]
    if sorted(order, key=str) != sorted(range(len(found)), key=str):
        raise UserError(f"its rows have the indices {order[:8]}", "")
    return [found[order.index(k)] for k in range(len(found))]


def _numbers(values: Any) -> np.ndarray:
    """Return a table of numbers (L, k); raise ``UserError`` if it is none, or one is not finite."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError("it answers with something else than numbers", "") from None
    if found.ndim != 2 or not found.size:
        raise UserError("its values are no table of a number for each label", "")
    if not np.isfinite(found).all():
        raise UserError("its values are not finite", "")
    return found


def _classify_body(sequences: Sequence[Ids], labels: Labels | None) -> dict[str, Any]:
    return {"input": [list(s) for s in sequences], "use_activation": False, "add_special_tokens": False}


def _classify_rows(answer: Any, labels: Labels | None) -> list[np.ndarray]:
    return [_numbers([row.get("probs")]) for row in _indexed(answer, "data")]


def _pooling_body(sequences: Sequence[Ids], labels: Labels | None) -> dict[str, Any]:
    how = {"task": "token_classify", "encoding_format": "float"}
    return _classify_body(sequences, labels) | how


def _pooling_rows(answer: Any, labels: Labels | None) -> list[np.ndarray]:
    return [_numbers(row.get("data")) for row in _indexed(answer, "data")]


def _completions_body(sequences: Sequence[Ids], labels: Labels | None) -> dict[str, Any]:
    assert labels is not None
    return {
        "prompt": [list(s) for s in sequences],
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 1,
        "logprob_token_ids": [labels.good, labels.bad],
        "return_tokens_as_token_ids": True,
    }


def _completions_rows(answer: Any, labels: Labels | None) -> list[np.ndarray]:
    """Return log-probabilities (1, 3) of bad, good and of all tokens (0)."""
    assert labels is not None
    found = []
    for row in _indexed(answer, "choices"):
        top = (row.get("logprobs") or {}).get("top_logprobs") or [{}]
        at = {str(k): v for k, v in top[0].items()}
        pair = [at.get(f"token_id:{i}") for i in (labels.bad, labels.good)]
        if None in pair:
            raise UserError("it gives no log-probability of the label tokens", "")
        found.append(_numbers([[*pair, 0.0]]))
    return found


def _score_body(sequences: Sequence[Ids], labels: Labels | None) -> dict[str, Any]:
    assert labels is not None
    (ids,) = sequences
    own = {"label_token_ids": [labels.good, labels.bad], "apply_softmax": True}
    return {"query": list(ids[:-1]), "items": [[ids[-1]]], **own}


def _score_rows(answer: Any, labels: Labels | None) -> list[np.ndarray]:
    found = _numbers(answer.get("scores") if isinstance(answer, dict) else None)
    if found.shape != (1, 2) or (found < 0).any() or found.sum() <= 0:
        raise UserError(f"its scores are no probabilities of two labels: {found.tolist()}", "")
    with np.errstate(divide="ignore"):
        return [np.log(found[:, ::-1])]


WAYS = {
    way.name: way
    for way in (
        Way("classify", "/classify", True, True, False, SEQUENCES, _classify_body, _classify_rows),
        Way("pooling", "/pooling", True, False, True, SEQUENCES, _pooling_body, _pooling_rows),
        Way(
            "completions",
            "/v1/completions",
            False,
            True,
            False,
            SEQUENCES,
            _completions_body,
            _completions_rows,
        ),
        Way("score", "/v1/score", False, True, False, 1, _score_body, _score_rows),
    )
}
"""By name, the preferred ones first."""


class ValueServer:
    """The logits of a served reward model; made by `connect_values`.

    Attributes
    ----------
    name : str
        Model and address, for messages.
    last, whole : Way
        How one prefix is read, and how all of a rollout.
    requests, sequences : int
        Answered so far.
    """

    def __init__(self, endpoint: Endpoint, model: str, labels: Labels | None, last: Way, whole: Way) -> None:
        self.endpoint = endpoint
        self.model = model
        self.labels = labels
        self.last = last
        self.whole = whole
        self.name = f"{model} at {endpoint.url}"
        self.probabilities = False
        self.requests = self.sequences = 0

    @property
    def described(self) -> str:
        """Model, address and the endpoints that are asked, for the terminal and for reports."""
        ways = dict.fromkeys([f"{self.last.path} for steps", f"{self.whole.path} for whole rollouts"])
        told = ", whose numbers are probabilities" if self.probabilities else ""
        return f"{self.name}: {', '.join(ways)}{told}"

    def at_last(self, sequences: Sequence[Ids]) -> dict[Ids, np.ndarray]:
        """Return the numbers (k,) of each distinct sequence of token ids at its last token."""
        return {ids: rows[-1] for ids, rows in self._asked(self.last, sequences).items()}

    def at_all(self, sequences: Sequence[Ids]) -> dict[Ids, np.ndarray]:
        """Return the numbers (L, k) of each distinct sequence at all of its tokens; ``whole`` must give a row per token."""
        found = self._asked(self.whole, sequences)
        for ids, rows in found.items():
            if len(rows) != len(ids):
                raise UserError(
                    f"the value server {self.name} gives {len(rows)} rows for {len(ids)} tokens: it reads steps by a tag of its "
                    "own configuration",
                    "serve it without one, or with /classify (the task classify), which is read at every step's end",
                )
        return found

    def _asked(self, way: Way, sequences: Sequence[Ids]) -> dict[Ids, np.ndarray]:
        distinct = list(dict.fromkeys(sequences))
        parts = [distinct[k : k + way.most] for k in range(0, len(distinct), way.most)]
        jobs = [partial(self._part, way, part) for part in parts]
        found = run_all(jobs, self.endpoint.settings.concurrency)
        self.requests += len(parts)
        self.sequences += len(distinct)
        return {
            ids: rows
            for part, of in zip(parts, found, strict=True)
            for ids, rows in zip(part, of, strict=True)
        }

    def _part(self, way: Way, part: Sequence[Ids], stop: threading.Event) -> list[np.ndarray]:
        return self.ask(way, part, stop=stop)

    def ask(
        self,
        way: Way,
        part: Sequence[Ids],
        stop: threading.Event | None = None,
        first: bool = False,
        **more: Any,
    ) -> list[np.ndarray]:
        """Send one request of at most ``way.most`` sequences; return the rows of each."""

        def read(answer: Any) -> list[np.ndarray]:
            rows = way.rows(answer, self.labels)
            if len(rows) != len(part):
                raise UserError(f"it answers {len(rows)} of {len(part)} sequences", "")
            return rows

        body = {"model": self.model, **way.body(part, self.labels), **more}
        return self.endpoint.post(way.path, body, f"rmtools-value-{next(NUMBERS)}", read, stop, first=first)

    def logits(self, rows: np.ndarray) -> Tensor:
        """Return numbers (..., k) of the server as logits (..., 2) of bad and good; the third is the law's log sum (0)."""
        found = torch.from_numpy(np.log(np.maximum(rows, TINY)) if self.probabilities else rows)
        return found if self.labels is not None else two_logits(found)


@dataclass(frozen=True)
class SentState:
    """The ``ValueState`` of a served model: the token ids of each prefix; the server's cache knows them again."""

    prefixes: tuple[Ids, ...]

    def select(self, rows: Tensor) -> "SentState":
        """Return the prefixes ``rows`` (B',)."""
        return SentState(tuple(self.prefixes[i] for i in rows.tolist()))

    def join(self, other: "SentState") -> "SentState":
        """Return these prefixes followed by those of ``other``."""
        return SentState(self.prefixes + other.prefixes)


class Served(ValueModel):
    """A value model whose logits come from a server; mixed in before the class that reads them."""

    server: ValueServer

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return torch.device("cpu")

    def score(
        self, trees: Sequence[EncodedTree], progress: Callable[[int], object] | None = None
    ) -> list[TreeValues]:
        """Score every prefix and child of every tree, some trees at a time."""
        found: list[TreeValues] = []
        for k in range(0, len(trees), TREES):
            some = trees[k : k + TREES]
            found += self._scored(some, k)
            if progress is not None:
                progress(len(some))
        return found

    def _scored(self, trees: Sequence[EncodedTree], first: int) -> list[TreeValues]:
        """Return the values of trees: where the server gives rows of all tokens, one sequence for each trajectory."""
        read = [_sequences(tree) for tree in trees]
        trunks = [tuple(tree.trunk().ids.tolist()) for tree in trees]
        whole = self.server.at_all(trunks) if self.server.whole.every_token else {}
        alone = self.server.at_last(
            [ids for own, others in read for ids in (others if whole else (*own, *others))]
        )
        found = []
        for i, (tree, trunk, (own, others)) in enumerate(zip(trees, trunks, read, strict=True)):
            rows = whole[trunk][tree.reads] if whole else np.stack([alone[ids] for ids in own])
            logits = self.server.logits(np.concatenate([rows, *(alone[ids][None] for ids in others)]))
            values = self._log_values(logits[None])[0]
            at = np.zeros((len(tree.ids), *values.shape[1:]))
            at[np.concatenate([tree.reads, *tree.child_reads]).astype(int)] = values
            found.append(self._tree_values(at, tree, first + i))
        return found

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats of ``prompts`` (token ids), and the state."""
        state = SentState(tuple(tuple(p) for p in prompts))
        return self._values(state.prefixes, [True] * len(prompts)), state

    def advance(self, state: ValueState, tokens: Tensor) -> tuple[Tensor, ValueState]:
        """Return the log values (B,) nats after a new step ``tokens`` (B, L; -1 = no token), NaN without one, and the state."""
        assert isinstance(state, SentState)
        new = [tuple(i for i in row if i >= 0) for row in tokens.tolist()]
        prefixes = tuple(p + ids for p, ids in zip(state.prefixes, new, strict=True))
        return self._values(prefixes, [bool(ids) for ids in new]), SentState(prefixes)

    def _values(self, prefixes: Sequence[Ids], wanted: Sequence[bool]) -> Tensor:
        known = self.server.at_last([p for p, asked in zip(prefixes, wanted, strict=True) if asked])
        width = next((len(row) for row in known.values()), 2)
        rows = (
            np.stack([known.get(p, np.zeros(width)) for p in prefixes]) if prefixes else np.zeros((0, width))
        )
        return torch.where(
            torch.tensor(wanted, dtype=torch.bool), self._read(self.server.logits(rows)).double(), torch.nan
        )


class ServedValueModel(Served, ValueModel):
    """A checkpoint of rmtools whose weights are on a server."""

    def __init__(self, server: ValueServer, steps: StepTokenizer, tilt: Tilt) -> None:
        self.server = server
        self.steps = steps
        self.tilt = tilt
        self.name = server.name


class ServedSteps(Served, StepProbabilities):
    """The step probabilities of a published reward model whose weights are on a server."""

    def __init__(self, server: ValueServer, steps: StepTokenizer, branches_only: bool = False) -> None:
        self.server = server
        self.steps = steps
        self.tilt = Tilt(0.5)  # not used: the published model's own reading has the floor
        self.name = server.name
        self.branches_only = branches_only
        self.masses = []
        self.last_masses = None


def _sequences(tree: EncodedTree) -> tuple[list[Ids], list[Ids]]:
    """Return the token ids of every prefix where a tree is read, and of every child."""
    prompt, steps, children = tree.parts()
    own = [tuple(prompt)]
    for step in steps:
        own.append(own[-1] + tuple(step))
    return own, [own[t] + tuple(c) for t, at in enumerate(children) for c in at]
