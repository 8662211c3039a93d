"""Particles over a policy and a value model: what the sampler of rmtools.core runs on a language model.

Groups are prompts (or replicates of one), all in one batch. The caches of policy and value model are kept across
steps, forked by ``extend`` and reindexed by ``select``; the value model reads only new tokens. With
``terminal="verifier"`` an ended prefix is worth the potential of its reward, with ``"model"`` the model's own
last value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from rmtools.errors import UserError
from rmtools.lm.policy import distinct
from rmtools.lm.protocol import StepPolicy, StepState
from rmtools.lm.retokenise import shared_tokens
from rmtools.lm.value import Scorer, ValueState

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
    """A batch of prefixes of G prompts, n per prompt; see ``rmtools.core.particles.Particles``.

    Made by :meth:`start`. Immutable: ``extend`` and ``select`` return new objects that share tensors. Equal
    prefixes are held once: ``node`` says which of the U distinct ones each particle is at.

    Attributes
    ----------
    setup : Setup
    node : Tensor
        (G * n,) rows of the fields below.
    state : StepState
        Of the U distinct prefixes.
    scored : ValueState
        What the value model has read of them.
    values : np.ndarray
        (U,) log values, nats.
    prompt : np.ndarray
        (U,) index into the distinct prompts.
    blocks : tuple of Tensor
        One (U, L_t) token block a step, -1 where there is none.
    decoded : int
        Tokens drawn so far, all particles together (those of dropped particles too).
    """

    setup: Setup
    node: Tensor
    state: StepState
    scored: ValueState
    values: np.ndarray
    prompt: np.ndarray
    blocks: tuple[Tensor, ...] = ()
    decoded: int = 0

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
            If ``terminal`` is "verifier" without ``reward``, a prompt is too long, or the value model
            can read neither the tokens of the policy nor their text.
        """
        check_terminal(terminal, reward)
        value = shared_tokens(policy, value)
        distinct_prompts = tuple(dict.fromkeys(prompts))
        for prompt in distinct_prompts:
            policy.steps.check(prompt, [])
        ids = [policy.steps.prompt_ids(p) for p in distinct_prompts]
        state = policy.start(ids)
        values, scored = value.start(ids)
        row = {p: i for i, p in enumerate(distinct_prompts)}
        node = torch.tensor([row[p] for p in prompts], device=policy.device)
        setup = Setup(policy, value, distinct_prompts, len(prompts), terminal, reward)
        return cls(setup, node, state, scored, to_numpy(values), np.arange(len(distinct_prompts)))

    @property
    def shape(self) -> tuple[int, int]:
        """(G, n)."""
        return self.setup.groups, len(self.node) // self.setup.groups

    @property
    def ended(self) -> np.ndarray:
        """(G, n) bool."""
        return self.state.ended[self.node].cpu().numpy().reshape(self.shape)

    def log_value(self) -> np.ndarray:
        """Return log V of every prefix, (G, n) nats."""
        return self.values[self.node.cpu().numpy()].reshape(self.shape)

    def extend(self, pool_size: int, rng: np.random.Generator) -> Self:
        """Draw ``pool_size`` next steps of every prefix; child i * M + m continues prefix i."""
        generator = torch.Generator(self.setup.policy.device).manual_seed(int(rng.integers(2**63)))
        node = self.node.repeat_interleave(pool_size)
        step = self.setup.policy.decode_step(self.state, node, generator)
        at = step.parent.cpu().numpy()
        child = replace(
            self,
            node=step.node,
            state=step.state,
            scored=self.scored.select(step.parent),
            values=self.values[at],
            prompt=self.prompt[at],
            blocks=(*(b[step.parent] for b in self.blocks), step.tokens),
            decoded=self.decoded + int((step.tokens[step.node] >= 0).sum()),
        )
        return child._scored(self.state.ended[step.parent])

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
            state=self.state.select(used),
            scored=self.scored.select(used),
            values=self.values[at],
            prompt=self.prompt[at],
            blocks=tuple(b[used] for b in self.blocks),
        )

    def steps(self) -> list[list[list[str]]]:
        """Return the text of every prefix's steps: G lists of n lists of steps."""
        texts = step_texts(self.setup.policy, self.blocks, np.arange(len(self.values)))
        n = self.shape[1]
        at = [texts[i] for i in self.node.tolist()]
        return [at[g * n : (g + 1) * n] for g in range(self.shape[0])]

    def _scored(self, were_ended: Tensor) -> Self:
        """Score the step just decoded; an ended prefix keeps its value."""
        values, scored = self.values.copy(), self.scored
        by_verifier = self.setup.terminal == "verifier"
        needed = ~self.state.ended if by_verifier else ~were_ended
        if bool(needed.any()):
            new, scored = self.setup.value.advance(scored, torch.where(needed[:, None], self.blocks[-1], -1))
            at = needed.cpu().numpy()
            values[at] = to_numpy(new)[at]
        new_end = (self.state.ended & ~were_ended).cpu().numpy()
        if by_verifier and new_end.any():
            values[new_end] = self._potentials(np.flatnonzero(new_end))
        return replace(self, scored=scored, values=values)

    def _potentials(self, rows: np.ndarray) -> np.ndarray:
        """Return the log potentials (nats) of the distinct prefixes ``rows``, each judged once."""
        setup = self.setup
        if setup.reward is None:
            raise ValueError("no verifier")
        texts = step_texts(setup.policy, self.blocks, rows)
        r = [setup.reward(setup.prompts[self.prompt[i]], s) for i, s in zip(rows, texts, strict=True)]
        return setup.value.tilt.log_potential(np.asarray(r, dtype=float))


def step_texts(policy: StepPolicy, blocks: Sequence[Tensor], rows: np.ndarray) -> list[list[str]]:
    """Return the steps of prefixes ``rows`` as text; each distinct step is decoded once."""
    texts: list[list[str]] = [[] for _ in rows]
    known: dict[tuple[int, ...], str] = {}
    for block in blocks:
        for steps, row in zip(texts, block.cpu().numpy()[rows].tolist(), strict=True):
            key = tuple(i for i in row if i >= 0)
            if not key:
                continue
            if key not in known:
                known[key] = policy.steps.step_text(key)
            steps.append(known[key])
    return texts


def check_terminal(terminal: str, reward: Reward | None) -> None:
    """Raise ``UserError`` on an unknown terminal, or one that needs a verifier where there is none."""
    check_terminal_name(terminal)
    if terminal == "verifier" and reward is None:
        raise UserError(
            "terminal 'verifier' needs a verifier: there is no reward to read at the end",
            "name a task, or use terminal 'model'",
        )


def check_terminal_name(terminal: str) -> None:
    """Raise ``UserError`` on an unknown terminal."""
    if terminal not in ("verifier", "model"):
        raise UserError(f"unknown terminal {terminal!r}", "the terminals are: verifier, model")


def to_numpy(values: Tensor) -> np.ndarray:
    """Return values as float64 on the host: the sampler's arithmetic is done there."""
    return values.double().cpu().numpy()
