"""Collecting branching rollouts: trajectories of a policy, alternatives to their steps, extra completions.

A prefix is decoded once: trajectories of one prompt fork the prompt's cache, children and completions fork the
trajectory's. What does not branch any more is decoded to its end without waiting for the others at every step.

Branches may be drawn at some depths only. These are drawn for each trajectory before its first step, among all depths
that a solution may have, so they do not depend on the trajectory, not even on its length, and a branched prefix is a
fair draw from the prefixes of its depth. (Choosing among the depths of the finished trajectory would favour the prefixes
of short ones, whose own next steps would no longer be exchangeable with the alternatives.) A trajectory that ends early
has fewer branched depths.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rmtools.data.rollouts import Child, Rollout
from rmtools.data.tasks import Verifier
from rmtools.errors import UserError
from rmtools.lm.memory import USUAL_TOKENS, in_halves, prompts_that_fit
from rmtools.lm.policy import distinct
from rmtools.lm.protocol import StepPolicy
from rmtools.lm.steps import StepSettings

# Prompts decoded together by a policy behind a server: what waits for the slowest one of them is soon a small share.
WITHOUT_MODEL = 64


@dataclass(frozen=True)
class Branching:
    """Number of branches of a rollout.

    Parameters
    ----------
    trajectories : int
        Independent trajectories per prompt.
    children : int
        K: next steps at each prefix, including the trajectory's own (1 = no alternatives).
    completions : int
        R: continuations from each prefix, including the trajectory's own (1 = no extra ones).
    depths : int or "all"
        Number of depths of a trajectory at which children and completions are drawn.
    """

    trajectories: int = 8
    children: int = 1
    completions: int = 1
    depths: int | Literal["all"] = "all"

    def __post_init__(self) -> None:
        if self.depths != "all" and self.depths < 1:
            raise UserError(f"depths must be all or at least 1, got {self.depths}", "depths=4, say")
        for name in ("trajectories", "children", "completions"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name} must be at least 1, got {getattr(self, name)}",
                    "children and completions count the trajectory's own",
                )

    @property
    def width(self) -> int:
        """Largest number of sequences of a prompt that are decoded at the same time."""
        return self.trajectories * max(1, self.children - 1, self.completions - 1)

    def tokens(self, steps: StepSettings) -> int:
        """Return about how many tokens the branches of a prompt have, if a solution has `USUAL_TOKENS`."""
        new = min(steps.max_steps * steps.max_step_tokens, USUAL_TOKENS)
        depths = steps.max_steps if self.depths == "all" else min(self.depths, steps.max_steps)
        # The other next steps of every depth are a solution; what follows a prefix is half of one.
        others = (self.children - 1) * depths / steps.max_steps + (self.completions - 1) * depths / 2
        return int(self.trajectories * new * (1 + others))

    def draw_depths(self, n: int, max_steps: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the branched depths of ``n`` trajectories: (n, max_steps) bool, ``depths`` of them true in each row."""
        if self.depths == "all" or self.depths >= max_steps:
            return np.ones((n, max_steps), dtype=bool)
        return rng.random((n, max_steps)).argsort(axis=1) < self.depths


@dataclass
class Tally:
    """Tokens and steps drawn, and steps cut at the length limit or at the end of the context."""

    tokens: int = 0
    steps: int = 0
    truncated: int = 0


class Collector:
    """Collect rollouts of one policy on one task.

    ``rng`` draws the depths, and seeds the policy's torch generator, one draw each time steps or solutions are decoded.
    """

    def __init__(
        self, policy: StepPolicy, task: Verifier, branching: Branching, rng: np.random.Generator
    ) -> None:
        self.policy = policy
        self.task = task
        self.branching = branching
        self.rng = rng
        self.tally = Tally()

    def collect(
        self,
        prompts: Sequence[str],
        prompts_per_batch: int = 32,
        progress: Callable[[int], object] | None = None,
    ) -> list[Rollout]:
        """Return the rollouts of ``prompts``, in order; ``progress(n)`` reports n more finished prompts.

        Raises
        ------
        UserError
            If the device has too little memory for a prompt. Prompts of a batch too large are decoded in halves.
        """
        rows: list[Rollout] = []
        for start in range(0, len(prompts), prompts_per_batch):
            batch = prompts[start : start + prompts_per_batch]
            rows += in_halves(
                self._batch, batch, "prompt", "fewer trajectories, children or completions, or shorter steps"
            )
            if progress is not None:
                progress(len(batch))
        return rows

    def _batch(self, prompts: Sequence[str]) -> list[Rollout]:
        before = replace(self.tally)
        try:
            return self._rows(prompts)
        except BaseException:
            # What was drawn is lost, and must not be counted.
            self.tally = before
            raise

    def _rows(self, prompts: Sequence[str]) -> list[Rollout]:
        owner = np.repeat(np.arange(len(prompts)), self.branching.trajectories)
        state = self.policy.start([self.policy.steps.prompt_ids(p) for p in prompts])
        grown = _Growing(
            state,
            torch.as_tensor(owner, device=self.policy.device),
            [prompts[i] for i in owner.tolist()],
            [[] for _ in owner],
            [[] for _ in owner],
        )
        children: list[list[list[Child]]] = [[] for _ in owner]
        completions: list[list[list[float]]] = [[] for _ in owner]
        chosen = self.branching.draw_depths(len(owner), self.policy.steps.settings.max_steps, self.rng)
        depth = 0
        branches = self.branching.children > 1 or self.branching.completions > 1
        while branches and not grown.ended.all():
            live = np.flatnonzero(~grown.ended)
            at = live[chosen[live, depth]]
            if self.branching.children > 1:
                _place(self._children(grown, at), at, live, children)
            if self.branching.completions > 1:
                _place(self._completions(grown, at), at, live, completions)
            grown = self._step(grown)
            depth += 1
        if not branches:
            grown = self._finish(grown)
        return [
            Rollout(prompt_id(p), p, s, self._reward(p, s), c, r, reference=self.task.reference(p), ids=i)
            for p, s, c, r, i in zip(
                grown.prompts, grown.steps, children, completions, grown.ids, strict=True
            )
        ]

    def _children(self, grown: "_Growing", at: np.ndarray) -> list[list[Child]]:
        if not len(at):
            return []
        extra = self.branching.children - 1
        after = self._step(grown.select(np.repeat(at, extra)))
        found = [
            Child(s[-1], bool(e), self._reward(p, s) if e else None, tuple(i[-1]))
            for p, s, e, i in zip(after.prompts, after.steps, after.ended, after.ids, strict=True)
        ]
        return [found[k : k + extra] for k in range(0, len(found), extra)]

    def _completions(self, grown: "_Growing", at: np.ndarray) -> list[list[float]]:
        if not len(at):
            return []
        extra = self.branching.completions - 1
        branch = self._finish(grown.select(np.repeat(at, extra)))
        found = [self._reward(p, s) for p, s in zip(branch.prompts, branch.steps, strict=True)]
        return [found[k : k + extra] for k in range(0, len(found), extra)]

    def _reward(self, prompt: str, steps: Sequence[str]) -> float:
        return self.task.reward(prompt, self.policy.steps.written(steps))

    def _step(self, grown: "_Growing") -> "_Growing":
        """Decode one step of every trajectory that has not ended."""
        new = self.policy.decode_step(grown.state, grown.node, self._generator())
        tokens = [[i for i in row if i >= 0] for row in new.tokens.tolist()]
        drawn = [
            [] if ended else [tokens[i]] for ended, i in zip(grown.ended, new.node.tolist(), strict=True)
        ]
        return self._longer(replace(grown, state=new.state, node=new.node), drawn)

    def _finish(self, grown: "_Growing") -> "_Growing":
        """Decode every trajectory to its end, step by step if the policy knows no other way."""
        decode = getattr(self.policy, "decode_solutions", None)
        if decode is not None:
            return self._longer(grown, decode(grown.state, grown.node, self._generator()))
        while not grown.ended.all():
            grown = self._step(grown)
        return grown

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.policy.device).manual_seed(int(self.rng.integers(2**63)))

    def _longer(self, grown: "_Growing", drawn: Sequence[Sequence[list[int]]]) -> "_Growing":
        """Return the trajectories with the token ids of the steps that each has ``drawn``, and count them."""
        read = {ids: self._text(ids) for ids in {tuple(ids) for steps in drawn for ids in steps}}
        tokenizer = self.policy.steps
        steps, known = [], []
        for old, ids, new in zip(grown.steps, grown.ids, drawn, strict=True):
            found = [read[tuple(step)] for step in new]
            steps.append([*old, *(text for text, _ in found)])
            known.append([*ids, *new])
            self.tally.tokens += sum(len(step) for step in new)
            self.tally.steps += len(new)
            for t, (_, whole) in enumerate(found, len(ids)):
                if not whole:
                    before = itertools.chain.from_iterable(known[-1][:t])
                    self.tally.truncated += not tokenizer.ends(known[-1][t], [*before])
        return replace(grown, steps=steps, ids=known)

    def _text(self, ids: Sequence[int]) -> tuple[str, bool]:
        """Return the text of a step, and whether it is complete by itself: one that is not was cut, or ends the solution."""
        settings, text = self.policy.steps.settings, self.policy.steps.step_text(ids)
        if settings.end == "tokens":
            return text, len(ids) >= settings.max_step_tokens
        return text, settings.rule.held_by(text)


@dataclass(frozen=True)
class _Growing:
    """Unfinished trajectories: the distinct prefixes, the prefix of each trajectory, the texts and ids of their steps."""

    state: Any
    node: Tensor
    prompts: list[str]
    steps: list[list[str]]
    ids: list[list[list[int]]]

    @property
    def ended(self) -> np.ndarray:
        """(B,) bool."""
        return self.state.ended[self.node].cpu().numpy()

    def select(self, rows: np.ndarray) -> "_Growing":
        """Return trajectories ``rows``; a repeated one is forked."""
        used, node = distinct(self.node[torch.as_tensor(rows, device=self.node.device)])
        return _Growing(
            self.state.select(used),
            node,
            [self.prompts[i] for i in rows],
            [self.steps[i] for i in rows],
            [self.ids[i] for i in rows],
        )


def _place(found: Sequence[list[Any]], at: np.ndarray, live: np.ndarray, into: list[list[list[Any]]]) -> None:
    """Append what was ``found`` at trajectories ``at`` to their lists, and an empty list to the other live ones."""
    drawn = dict(zip(at.tolist(), found, strict=True))
    for i in live.tolist():
        into[i].append(drawn.get(i, []))


def prompts_per_batch(policy: StepPolicy, branching: Branching, prompts: Sequence[str]) -> int:
    """Return the number of prompts to decode together: as many as `rmtools.lm.memory` finds room for, on a CPU at most 32.

    `WITHOUT_MODEL` where the model is not in this process.

    On a GPU every solution is taken to be as long as the settings allow, on a CPU no longer than `USUAL_TOKENS`. The same on
    every start on the same machine.
    """
    if not hasattr(policy, "model"):
        return WITHOUT_MODEL
    gpu, settings = policy.device.type == "cuda", policy.steps.settings
    longest = max(len(policy.steps.prompt_ids(p)) for p in prompts)
    context = getattr(policy, "context", None)
    new = settings.max_steps * settings.max_step_tokens
    if context is not None:
        new = min(new, context - longest)
    width = branching.trajectories + branching.width if gpu else branching.width
    most = prompts_that_fit([policy], longest, new if gpu else min(new, USUAL_TOKENS), width, policy.device)
    return most if gpu else min(32, most)


def prompt_id(prompt: str) -> str:
    """Return the stable id of a prompt: a short hash of its text."""
    import hashlib

    return hashlib.sha256(prompt.encode()).hexdigest()[:12]
