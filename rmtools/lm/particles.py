"""Particles over a policy and a value model: the sampler's view of a language model.

Groups are prompts (or replicates of one), all in one batch. The caches of policy and value model are kept across
steps, forked by ``extend`` and reindexed by ``select``; the value model reads only new tokens. With
``terminal="verifier"`` the value of an ended prefix is the potential of its reward, with ``"model"`` the model's own last
value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.implicit import ImplicitValue
from rmtools.lm.policy import Policy, distinct
from rmtools.lm.protocol import Scorer, StepPolicy, StepState, ValueState
from rmtools.lm.retokenise import Retokenised, shared_tokens
from rmtools.lm.scorer_checks import checked_values, values_and_state
from rmtools.lm.value import ValueModel

Terminal = Literal["verifier", "model"]
Reward = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class Setup:
    """What the particles of one run share."""

    policy: StepPolicy
    value: Scorer
    prompts: tuple[str, ...]
    groups: int
    terminal: Terminal
    reward: Reward | None


@dataclass(frozen=True)
class LMParticles:
    """A batch of prefixes of G prompts, n per prompt; see ``rmtools.particles.protocol.Particles``.

    Made by :meth:`start`. Immutable: ``extend`` and ``select`` return new objects that share tensors. Equal
    prefixes are stored once: ``node`` gives the distinct prefix (of U) that each particle is at. Ended prefixes need no
    cache: ``state`` and ``scored`` hold the others alone.

    Attributes
    ----------
    setup : Setup
    node : Tensor
        (G * n,) rows of the fields with U rows.
    slot : Tensor
        (U,) row in ``state`` and ``scored``, -1 if the prefix has ended.
    state : StepState
        Of the distinct prefixes that have not ended.
    scored : ValueState
        What the value model has read of them.
    values : np.ndarray
        (U,) log values, nats.
    prompt : np.ndarray
        (U,) index into the distinct prompts.
    blocks : tuple of Tensor
        For each step, (U, L_t) token ids, -1 behind its end.
    decoded : np.ndarray
        (G,) int: tokens drawn so far by all particles, also those dropped since.
    cut : int
        Steps drawn so far that were closed at the length limit, all groups together, counted likewise.
    """

    setup: Setup
    node: Tensor
    slot: Tensor
    state: StepState
    scored: ValueState
    values: np.ndarray
    prompt: np.ndarray
    decoded: np.ndarray
    blocks: tuple[Tensor, ...] = ()
    cut: int = 0

    @classmethod
    def start(
        cls,
        policy: StepPolicy,
        value: Scorer,
        prompts: Sequence[str],
        *,
        terminal: Terminal = "model",
        reward: Reward | None = None,
    ) -> Self:
        """Return the root: one prefix, the prompt, for each of G prompts (equal ones are independent replicates).

        Raises
        ------
        UserError
            If ``terminal`` is "verifier" without ``reward``, a prompt is too long, the value model can read neither
            the tokens of the policy nor their text, or its values are no log values (shape, NaN, +inf, or a probability
            above 1: the prefix is named); the last also from ``extend``.
        """
        check_terminal(terminal, reward)
        value = shared_tokens(policy, value)
        distinct_prompts = tuple(dict.fromkeys(prompts))
        ids = [policy.steps.prompt_ids(p) for p in distinct_prompts]
        state = policy.start(ids)
        given, scored = values_and_state(value, "start", value.start(ids))
        values = checked_values(value, given, len(ids), lambda i: distinct_prompts[i])
        row = {p: i for i, p in enumerate(distinct_prompts)}
        node = torch.tensor([row[p] for p in prompts], device=policy.device)
        setup = Setup(policy, value, distinct_prompts, len(prompts), terminal, reward)
        slot = torch.arange(len(ids), device=policy.device)
        none = np.zeros(len(prompts), dtype=int)
        return cls(setup, node, slot, state, scored, values, np.arange(len(ids)), none)

    @property
    def shape(self) -> tuple[int, int]:
        """(G, n)."""
        return self.setup.groups, len(self.node) // self.setup.groups

    @property
    def ended(self) -> np.ndarray:
        """(G, n) bool."""
        return (self.slot < 0)[self.node].cpu().numpy().reshape(self.shape)

    def log_value(self) -> np.ndarray:
        """Return log V of every prefix, (G, n) nats."""
        return self.values[self.node.cpu().numpy()].reshape(self.shape)

    def extend(self, pool_size: int, rng: np.random.Generator) -> Self:
        """Draw ``pool_size`` next steps of every prefix; child i * M + m continues prefix i."""
        generator = torch.Generator(self.setup.policy.device).manual_seed(int(rng.integers(2**63)))
        node = self.node.repeat_interleave(pool_size)
        at = self.slot[node]
        live = (at >= 0).nonzero()[:, 0]
        if not len(live):
            return replace(self, node=node, blocks=(*self.blocks, torch.full_like(self.slot[:, None], -1)))
        step = self.setup.policy.decode_step(self.state, at[live], generator)
        kept, new_node = self._kept(node, live, step.node)
        parent = torch.cat([kept, _live_rows(self.slot)[step.parent]])
        own = parent.cpu().numpy()
        drawn = torch.nn.functional.pad(step.tokens, (0, 0, len(kept), 0), value=-1)
        lengths = (step.tokens >= 0).sum(1)
        slot = torch.full_like(parent, -1)
        slot[len(kept) :] = torch.arange(len(step.parent), device=slot.device)
        child = replace(
            self,
            node=new_node,
            slot=slot,
            state=step.state,
            scored=self.scored.select(step.parent),
            values=self.values[own],
            prompt=self.prompt[own],
            blocks=(*(ids[parent] for ids in self.blocks), drawn),
            decoded=self.decoded + self._by_group(lengths[step.node], live, pool_size),
            cut=self.cut + int(self._cut(step.tokens, lengths, own[len(kept) :])[step.node].sum()),
        )
        return child._scored()

    def _by_group(self, lengths: Tensor, live: Tensor, pool_size: int) -> np.ndarray:
        """Sum ``lengths``, of the candidates ``live``, by group, (G,)."""
        each = torch.zeros(len(self.node) * pool_size, dtype=lengths.dtype, device=lengths.device)
        total: np.ndarray = (
            each.index_copy(0, live, lengths).reshape(self.setup.groups, -1).sum(1).cpu().numpy()
        )
        return total

    def _kept(self, node: Tensor, live: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ended prefixes still in use (K,), and each particle's row if those come before the new ones."""
        if len(live) == len(node):
            return node[:0], after
        rest = torch.ones_like(node, dtype=torch.bool).index_fill_(0, live, False)
        kept, place = distinct(node[rest])
        new = torch.empty_like(node)
        new[rest], new[live] = place, after + len(kept)
        return kept, new

    def _cut(self, tokens: Tensor, lengths: Tensor, parent: np.ndarray) -> Tensor:
        """Return (U',) which new steps of the prefixes ``parent`` were closed at the length limit, by no end of their own."""
        steps, out = self.setup.policy.steps, torch.zeros_like(lengths, dtype=torch.bool)
        longest = (lengths >= steps.settings.max_step_tokens).nonzero()[:, 0]
        if not len(longest) or steps.settings.end == "tokens":
            return out
        rows = torch.as_tensor(parent, device=out.device)[longest]
        blocks = self.blocks if steps.settings.stop else ()
        before = [[i for ids in blocks for i in ids[row].tolist() if i >= 0] for row in rows.tolist()]
        found = [
            not steps.closes(ids) and not steps.ends(ids, old)
            for ids, old in zip(tokens[longest].tolist(), before, strict=True)
        ]
        return out.index_copy(0, longest, torch.tensor(found, dtype=torch.bool, device=out.device))

    def select(self, index: np.ndarray) -> Self:
        """Return prefixes ``index`` (G, k) of each group; the caches follow."""
        groups, n = self.shape
        rows = torch.as_tensor(
            (np.arange(groups)[:, None] * n + np.asarray(index)).ravel(), device=self.node.device
        )
        used, node = distinct(self.node[rows])
        if len(used) == len(self.values):
            return replace(self, node=node)
        at = used.cpu().numpy()
        return replace(
            self,
            node=node,
            values=self.values[at],
            prompt=self.prompt[at],
            blocks=tuple(ids[used] for ids in self.blocks),
            **self._caches(self.slot[used]),
        )

    def _caches(self, slot: Tensor) -> dict[str, Any]:
        """Return slot, state and scored of the prefixes that were at ``slot`` (-1: ended); drop all other caches."""
        has = slot >= 0
        live = slot[has]
        new = torch.full_like(slot, -1)
        new[has] = torch.arange(len(live), device=slot.device)
        return {"slot": new, "state": self.state.select(live), "scored": self.scored.select(live)}

    def copied(self) -> Self:
        """Return these prefixes with caches that `extend` and `select` take over, so do their results': each is used once.

        A policy and a scorer of a user's own, which may read a state twice, keep theirs.
        """
        return self._with_caches(lambda caches: caches.copied())

    def kept(self) -> Self:
        """Return these prefixes with the caches they have, which stay usable from now on."""
        return self._with_caches(lambda caches: caches.sole_use(False))

    def _with_caches(self, change: Callable[[Any], Any]) -> Self:
        value = self.setup.value
        reads_once = type(value.value if isinstance(value, Retokenised) else value) in (
            ValueModel,
            ImplicitValue,
        )
        return replace(
            self,
            state=change(self.state) if type(self.setup.policy) is Policy else self.state,
            scored=change(self.scored) if reads_once else self.scored,
        )

    def join(self, other: Self) -> Self:
        """Return these prefixes followed, in each group, by those of ``other``, (G, k), of the same depth or ended.

        ``decoded`` and ``cut`` are this one's: the tokens of ``other`` were counted when they were drawn.
        """
        (groups, n), (_, k) = self.shape, other.shape
        mine, theirs = self.node.reshape(groups, n), other.node.reshape(groups, k) + len(self.values)
        depth = max(len(self.blocks), len(other.blocks))
        return replace(
            self,
            node=torch.cat([mine, theirs], dim=1).ravel(),
            slot=torch.cat(
                [self.slot, torch.where(other.slot >= 0, other.slot + int((self.slot >= 0).sum()), -1)]
            ),
            state=self.state.join(other.state),
            scored=self.scored.join(other.scored),
            values=np.concatenate([self.values, other.values]),
            prompt=np.concatenate([self.prompt, other.prompt]),
            blocks=tuple(_stacked(self, other, t) for t in range(depth)),
        )

    def steps(self) -> list[list[list[str]]]:
        """Return the text of every prefix's steps: G lists of n lists of steps."""
        texts = step_texts(self.setup.policy, self.blocks, np.arange(len(self.values)))
        n = self.shape[1]
        at = [texts[i] for i in self.node.tolist()]
        return [at[g * n : (g + 1) * n] for g in range(self.shape[0])]

    def _scored(self) -> Self:
        """Value the step just decoded at all prefixes that had not ended; drop the caches of those that now have."""
        if self.setup.terminal == "verifier":
            over = _live_rows(self.slot)[self.state.ended].cpu().numpy()
            values = self.values.copy()
            if len(over):
                setup = self.setup
                assert setup.reward is not None
                texts = [setup.policy.steps.written(s) for s in step_texts(setup.policy, self.blocks, over)]
                r = [setup.reward(setup.prompts[self.prompt[i]], s) for i, s in zip(over, texts, strict=True)]
                values[over] = setup.value.tilt.log_potential(np.asarray(r, dtype=float))
            return replace(self, values=values)._without_ended()._read()
        return self._read()._without_ended()

    def _read(self) -> Self:
        """Let the value model read the last step of every live prefix."""
        live = _live_rows(self.slot)
        if not len(live):
            return self
        setup, rows = self.setup, live.cpu().numpy()
        read = setup.value.advance(self.scored, self.blocks[-1][live])
        new, scored = values_and_state(setup.value, "advance", read)

        def text(i: int) -> str:
            steps = step_texts(setup.policy, self.blocks, rows[[i]])[0]
            return setup.prompts[self.prompt[rows[i]]] + "".join(steps)

        values = self.values.copy()
        values[rows] = checked_values(setup.value, new, len(rows), text)
        return replace(self, scored=scored, values=values)

    def _without_ended(self) -> Self:
        """Drop the caches of the prefixes that have ended."""
        if not bool(self.state.ended.any()):
            return self
        slot = self.slot.clone()
        slot[_live_rows(self.slot)[self.state.ended]] = -1
        return replace(self, **self._caches(slot))


def _live_rows(slot: Tensor) -> Tensor:
    """Return the live prefixes in the order of their slots."""
    rows = (slot >= 0).nonzero()[:, 0]
    return rows[torch.argsort(slot[rows])]


def _stacked(one: LMParticles, other: LMParticles, step: int) -> Tensor:
    """Return the tokens of one step of the prefixes of both, -1 behind its end."""
    parts = [
        p.blocks[step] if step < len(p.blocks) else torch.full((len(p.values), 1), -1, device=p.node.device)
        for p in (one, other)
    ]
    width = max(part.shape[1] for part in parts)
    pad = torch.nn.functional.pad
    return torch.cat([pad(part, (0, width - part.shape[1]), value=-1) for part in parts])


def step_texts(policy: StepPolicy, tokens: Sequence[Tensor], rows: np.ndarray) -> list[list[str]]:
    """Return the steps of prefixes ``rows`` as text, from `LMParticles.blocks`; each distinct step is decoded once."""
    texts: list[list[str]] = [[] for _ in rows]
    known: dict[tuple[int, ...], str] = {}
    for ids in tokens:
        for steps, row in zip(texts, ids.cpu().numpy()[rows].tolist(), strict=True):
            key = tuple(i for i in row if i >= 0)
            if not key:
                continue
            if key not in known:
                known[key] = policy.steps.step_text(key)
            steps.append(known[key])
    return texts


def check_terminal(terminal: str, reward: Reward | None) -> None:
    """Raise ``UserError`` for an unknown terminal, or for "verifier" without ``reward``."""
    check_terminal_name(terminal)
    if terminal == "verifier" and reward is None:
        raise UserError(
            "terminal 'verifier' needs a verifier: there is no reward to read at the end",
            "name a task, or use terminal 'model'",
        )


def check_terminal_name(terminal: str) -> None:
    """Raise ``UserError`` for an unknown terminal."""
    if terminal not in ("verifier", "model"):
        raise UserError(f"unknown terminal {terminal!r}", "the terminals are: verifier, model")


def to_numpy(values: Tensor) -> np.ndarray:
    """Return values as float64 on the host, where the sampler computes."""
    return values.double().cpu().numpy()
