"""Decoding token by token: one step of every prefix, or all steps to the ends of the solutions.

Particles at equal beginnings share a row of the batch, and part when they draw different tokens. Whole solutions wait for
no one at the end of a step, and rows that have ended leave the batch.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rmtools.lm.kv.cache import PrefixCache
from rmtools.lm.protocol import Decoded
from rmtools.lm.sampling_law import SamplingLaw, search_words
from rmtools.lm.steps import StepSettings, StepTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# More than any vocabulary: a (prefix, token) pair is one integer.
TOKEN_SPAN = 1 << 24
# Share of rows that have ended at which the others are copied into a batch of their own: a copy costs some passes over a row.
MOST_ENDED = 1 / 8


@dataclass(frozen=True)
class PolicyState:
    """A batch of B prefixes in the middle of generation.

    Attributes
    ----------
    cache : PrefixCache
        All tokens but those pending.
    pending, n_steps, ended : Tensor
        (B,) last token of each prefix, fed at the start of the next step; steps so far; whether it has ended.
    tail : Tensor
        (B, k) last tokens of each solution, without its prompt, -1 before the first: as many as a stop text may have, at
        least one.
    """

    cache: PrefixCache
    pending: Tensor
    n_steps: Tensor
    ended: Tensor
    tail: Tensor

    def select(self, rows: Tensor) -> "PolicyState":
        """Return the prefixes ``rows`` (B',)."""
        return PolicyState(
            self.cache.select(rows), self.pending[rows], self.n_steps[rows], self.ended[rows], self.tail[rows]
        )

    def copied(self) -> "PolicyState":
        """Return these prefixes with a cache of their own: `PrefixCache.copied`."""
        return replace(self, cache=self.cache.copied())

    def sole_use(self, sole: bool) -> "PolicyState":
        """Return these prefixes with a cache in sole use, or not: `PrefixCache.sole`."""
        return replace(self, cache=self.cache.sole_use(sole))

    def join(self, other: "PolicyState") -> "PolicyState":
        """Return these prefixes followed by those of ``other``."""
        return PolicyState(
            self.cache.join(other.cache),
            torch.cat([self.pending, other.pending]),
            torch.cat([self.n_steps, other.n_steps]),
            torch.cat([self.ended, other.ended]),
            torch.cat([self.tail, other.tail]),
        )


@dataclass(frozen=True)
class Tables:
    """`StepTokenizer`'s tables as wide as the embeddings, then False: what a missing token, -1, reads.

    ``parted`` says whether a match may lie in several tokens at all; ``stops`` are those of the stop texts.
    """

    ends: Tensor
    closes: Tensor
    closes_begun: Tensor
    begins: Tensor
    opens: Tensor
    completes: Tensor
    stops: Tensor
    parted: bool

    @classmethod
    def of(cls, steps: StepTokenizer, width: int, device: torch.device) -> "Tables":
        """Return the tables of ``steps`` for ``width`` embeddings."""
        known = steps.token_ends
        rows = [known.closes, known.closes_begun, known.begins, known.opens, known.completes]
        wide = np.zeros((len(rows) + 3, width + 1), dtype=bool)
        size = len(known.closes)
        wide[:, :size] = np.stack([*rows, *(steps.token_stops if steps.settings.stop else wide[:3, :size])])
        wide[2, size:-1] = True
        ends = np.zeros(width + 1, dtype=bool)
        ends[list(steps.end_ids)] = True
        at = torch.from_numpy(wide).to(device)
        parted = bool(known.opens.any() and known.completes.any())
        return cls(torch.from_numpy(ends).to(device), at[0], at[1], at[2], at[3], at[4], at[5:], parted)


@dataclass(frozen=True)
class Source:
    """What tokens are drawn from, and what they are read with; ``context`` is the most tokens the model takes."""

    model: "PreTrainedModel"
    law: SamplingLaw
    steps: StepTokenizer
    tables: Tables
    context: int | None


@dataclass
class _Column:
    """The tokens of one position, (U,), -1 for none; which of them close a step; the row each continues (None: the same)."""

    token: Tensor
    closed: Tensor
    origin: Tensor | None = None


class Decoding:
    """What B particles draw from ``node`` (B,), their prefixes in ``state``: U distinct beginnings, longer by a token a pass.

    ``whole``: to the ends of the solutions, else to the end of a step.
    """

    def __init__(self, source: Source, state: PolicyState, node: Tensor, whole: bool) -> None:
        self.source, self.node, self.whole = source, node, whole
        self.cache, self.pending, self.n_steps = state.cache, state.pending, state.n_steps
        self.parent = torch.arange(len(state.pending), device=node.device)
        # Over for this decoding; the solution has ended; the current step has text that is not blank.
        self.done, self.ended = state.ended, state.ended
        self.begun = torch.zeros_like(state.ended)
        self.sole = state.cache.sole
        # A stop text may begin in the steps before, but not in the prompt.
        self.columns = [_Column(before, torch.ones_like(state.ended)) for before in state.tail.T]
        self.n_before = len(self.columns)
        self.first = torch.full_like(
            state.n_steps, self.n_before
        )  # the column of the current step's first token
        # Whole solutions: the particles that are left, and those that have ended, with their last column and row in it.
        self.particles = torch.arange(len(node), device=node.device)
        self.over: list[tuple[Tensor, int, Tensor]] = []
        self.rows: Tensor | None = None

    @torch.inference_mode()
    def run(self, generator: torch.Generator) -> None:
        """Draw tokens until every particle's step, or solution, is complete.

        Raises
        ------
        ValueError
            If the model returns NaN.
        """
        # Ask the device once per token: every answer waits for all the work before it.
        n_done = int(self.done.sum())
        while n_done < len(self.done):
            if self.whole and n_done > MOST_ENDED * len(self.done):
                self._leave()
                n_done = 0
            n_done = self._token(n_done, generator)
        if self.whole:
            self.over.append((self.particles, len(self.columns) - 1, self._unmapped(self.node)))

    def _token(self, n_done: int, generator: torch.Generator) -> int:
        """Draw a token for every particle that is not done; return how many beginnings are done."""
        source = self.source
        present = ~self.done[:, None] if n_done else None
        logits, self.cache = self.cache.forward(source.model, self.pending[:, None], present)
        if present is None:
            # Every batch is a new one.
            self.cache = self.cache.sole_use(True)
        p = source.law.probabilities(logits[:, -1].float())
        if n_done:
            live = (~self.done[self.node]).nonzero()[:, 0]
            drawn = torch.full_like(self.node, -1)
            drawn[live] = search_words(p, self.node[live], generator)
        else:
            drawn = search_words(p, self.node, generator)
        token = self._part(drawn)
        settings, tables = source.steps.settings, source.tables
        before, self.pending = self.pending, torch.where(token >= 0, token, self.pending)
        over = tables.ends[token]
        if settings.stop:
            over = over | self._stopped(token)
        over = over | self._out_of_context()
        limit = len(self.columns) - self.first >= settings.max_step_tokens
        closed = (over | limit | self._closes(token, before)) & ~self.done
        self.columns[-1].closed = closed
        self.begun = self.begun | tables.begins[token]
        self.n_steps, self.ended = count_step(settings, self.n_steps, self.ended, over, closed)
        if self.whole:
            self.done, self.begun = self.ended, self.begun & ~closed
            self.first = torch.where(closed, len(self.columns), self.first)
        else:
            self.done = self.done | closed
        # One NaN or infinite logit makes its whole row of p NaN: the first column tells.
        n_done, broken = torch.stack([self.done.sum(), torch.isnan(p[:, 0]).sum()]).tolist()
        if broken:
            raise ValueError("the policy returned NaN logits: its weights or its precision are broken")
        return int(n_done)

    def _part(self, token: Tensor) -> Tensor:
        """Append each particle's ``token`` (B,): beginnings part; return the new ones' tokens (U',)."""
        if len(self.parent) == len(self.node):
            at, origin = torch.empty_like(token).index_copy_(0, self.node, token), None
        else:
            key, self.node = torch.unique(self.node * TOKEN_SPAN + (token + 1), return_inverse=True)
            origin, at = key // TOKEN_SPAN, key % TOKEN_SPAN - 1
            self._select(origin)
        mapped = origin if self.rows is None else self.rows if origin is None else self.rows[origin]
        self.rows = None
        self.columns.append(_Column(at, torch.zeros_like(self.done), mapped))
        return at

    def _select(self, rows: Tensor) -> None:
        self.cache = self.cache.select(rows)
        self.pending, self.n_steps, self.parent = self.pending[rows], self.n_steps[rows], self.parent[rows]
        self.done, self.ended = self.done[rows], self.ended[rows]
        self.begun, self.first = self.begun[rows], self.first[rows]

    def _leave(self) -> None:
        """Let the solutions that have ended leave the batch."""
        gone = self.done[self.node]
        self.over.append((self.particles[gone], len(self.columns) - 1, self._unmapped(self.node[gone])))
        live = (~self.done).nonzero()[:, 0]
        place = torch.empty_like(self.parent).index_copy_(
            0, live, torch.arange(len(live), device=live.device)
        )
        self.particles, self.node = self.particles[~gone], place[self.node[~gone]]
        self.rows = self._unmapped(live)
        self._select(live)
        self.cache = self.cache.packed()

    def _unmapped(self, at: Tensor) -> Tensor:
        """Return the rows of the last column that ``at`` are."""
        return at if self.rows is None else self.rows[at]

    def _closes(self, token: Tensor, before: Tensor) -> Tensor:
        """Return which steps are complete with their last token; for most it decides alone."""
        tables = self.source.tables
        closed = tables.closes[token] | (tables.closes_begun[token] & self.begun)
        if not tables.parted:
            return closed
        unsure = (tables.completes[token] & tables.opens[before] & ~closed).nonzero()[:, 0]
        held_by = self.source.steps.settings.rule.held_by
        found = [held_by(self.source.steps.step_text(ids)) for ids in self._begun(unsure)]
        return closed.index_copy(0, unsure, torch.tensor(found, dtype=torch.bool, device=closed.device))

    def _stopped(self, token: Tensor) -> Tensor:
        """Return which solutions hold a stop text with their last token, wherever it has begun."""
        holds, opens, completes = self.source.tables.stops
        column = self.columns[-1]
        before = self.columns[-2].token
        before = before if column.origin is None else before[column.origin]
        found = holds[token]
        unsure = (completes[token] & opens[before] & ~found).nonzero()[:, 0]
        if not len(unsure):
            return found
        ids, _ = self._back(unsure, len(self.columns) - 1 - self.n_before)
        rows = [[i for i in row if i >= 0] for row in ids.tolist()]
        read = [self.source.steps.stopped(row[-1:], row[:-1]) for row in rows]
        return found.index_copy(0, unsure, torch.tensor(read, dtype=torch.bool, device=found.device))

    def _begun(self, rows: Tensor) -> list[list[int]]:
        """Return the token ids of the current steps of some rows."""
        if not len(rows):
            return []
        first = self.first[rows].tolist()
        ids, _ = self._back(rows, min(first))
        return [row[begin - min(first) :] for row, begin in zip(ids.tolist(), first, strict=True)]

    def _back(self, rows: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Return the tokens that lead to ``rows`` of the last column from column ``first`` on, and which close a step."""
        return _traced(
            self.columns[first:],
            [(torch.arange(len(rows), device=rows.device), len(self.columns) - 1 - first, rows)],
        )

    def step(self) -> Decoded[PolicyState]:
        """Return the step that was decoded."""
        rows = torch.arange(len(self.parent), device=self.node.device)
        drawn = len(self.columns) > self.n_before
        if self.n_before == 1:
            tail = torch.where(self.n_steps > 0, self.pending, -1)[:, None]
            tokens = self._back(rows, 1)[0] if drawn else torch.full_like(tail, -1)
        else:
            before, tokens = self._back(rows, 0)[0].tensor_split([self.n_before], dim=1)
            tokens = tokens if drawn else torch.full_like(before[:, :1], -1)
            tail = appended(before, tokens)
        cache = self.cache.packed().sole_use(self.sole)
        after = PolicyState(cache, self.pending, self.n_steps, self.ended, tail)
        return Decoded(tokens, after, self.parent, self.node)

    def solutions(self) -> list[list[list[int]]]:
        """Return the token ids of the steps that each particle drew, (B,) lists; none if its prefix had ended."""
        ids, closed = (found.cpu().numpy()[:, self.n_before :] for found in _traced(self.columns, self.over))
        return [
            [part[part >= 0].tolist() for part in np.split(row, np.flatnonzero(ends) + 1)[:-1]]
            for row, ends in zip(ids, closed, strict=True)
        ]

    def _out_of_context(self) -> Tensor:
        if self.source.context is None:
            return torch.zeros_like(self.done)
        return self.cache.length + 1 >= self.source.context


def appended(tail: Tensor, tokens: Tensor) -> Tensor:
    """Return the last tokens (B, k) of solutions that ended with ``tail`` (B, k) after ``tokens`` (B, L; -1 = no token)."""
    ids = torch.cat([tail, tokens], dim=1)
    order = (ids >= 0).byte().argsort(dim=1, stable=True)
    return ids.gather(1, order)[:, -tail.shape[1] :]


def _traced(columns: list[_Column], ends: list[tuple[Tensor, int, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return tokens (B, L), -1 behind each end, and which close a step, from the last column and row of each of B."""
    count = sum(len(who) for who, _, _ in ends)
    device = columns[0].token.device
    row = torch.zeros(count, dtype=torch.long, device=device)
    last = torch.full_like(row, -1)
    for who, column, at in ends:
        row[who], last[who] = at, column
    tokens = torch.full((count, len(columns)), -1, dtype=torch.long, device=device)
    closed = torch.zeros((count, len(columns)), dtype=torch.bool, device=device)
    for i in range(len(columns) - 1, -1, -1):
        here = (last >= i).nonzero()[:, 0]
        at = row[here]
        tokens[here, i], closed[here, i] = columns[i].token[at], columns[i].closed[at]
        origin = columns[i].origin
        if origin is not None:
            row[here] = origin[at]
    return tokens, closed


def count_step(
    settings: StepSettings, n_steps: Tensor, was_ended: Tensor, over: Tensor, closed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return how many steps prefixes (B,) have after one more, and which have ended: also those that are ``over`` now.

    ``closed``: which of them have completed the step; None: all.
    """
    more = ~was_ended if closed is None else closed & ~was_ended
    n_steps = n_steps + more.long()
    return n_steps, was_ended | over | (n_steps >= settings.max_steps)
