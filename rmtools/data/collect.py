"""Collecting branching rollouts: trajectories of a policy, alternatives to their steps, extra completions.

A prefix is decoded once: trajectories of one prompt fork the prompt's cache, children and completions fork the
trajectory's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rmtools.data.rollouts import Child, Rollout
from rmtools.data.tasks import Task
from rmtools.errors import UserError
from rmtools.lm.policy import Policy, PolicyState, distinct


@dataclass(frozen=True)
class Branching:
    """How many branches a rollout has.

    Parameters
    ----------
    trajectories : int
        Independent trajectories a prompt.
    children : int
        K: next steps at each prefix, the trajectory's own included (1 = no alternatives).
    completions : int
        R: continuations from each prefix, the trajectory's own included (1 = no extra ones).
    """

    trajectories: int = 8
    children: int = 1
    completions: int = 1

    def __post_init__(self) -> None:
        for name in ("trajectories", "children", "completions"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name} must be at least 1, got {getattr(self, name)}",
                    "children and completions count the trajectory's own",
                )


@dataclass
class Tally:
    """Tokens generated and steps cut at the length limit, for the metadata."""

    tokens: int = 0
    truncated: int = 0


class Collector:
    """Collects rollouts of one policy on one task.

    Parameters
    ----------
    policy : Policy
    task : Task
    branching : Branching
    rng : np.random.Generator
        Seeds the policy's torch generator, one draw a decoded step.
    """

    def __init__(self, policy: Policy, task: Task, branching: Branching, rng: np.random.Generator) -> None:
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
        """Return the rollouts of ``prompts``, in order; ``progress`` is told how many prompts are done."""
        rows: list[Rollout] = []
        for start in range(0, len(prompts), prompts_per_batch):
            batch = prompts[start : start + prompts_per_batch]
            rows += self._batch(batch)
            if progress is not None:
                progress(len(batch))
        return rows

    def _batch(self, prompts: Sequence[str]) -> list[Rollout]:
        for prompt in prompts:
            self.policy.steps.check(prompt, [])
        owner = np.repeat(np.arange(len(prompts)), self.branching.trajectories)
        state = self.policy.start([self.policy.steps.prompt_ids(p) for p in prompts])
        grown = Growing(
            state,
            torch.as_tensor(owner, device=self.policy.device),
            [prompts[i] for i in owner.tolist()],
            [[] for _ in owner],
        )
        children: list[list[list[Child]]] = [[] for _ in owner]
        completions: list[list[list[float]]] = [[] for _ in owner]
        while not grown.ended.all():
            live = np.flatnonzero(~grown.ended)
            if self.branching.children > 1:
                for i, found in zip(live, self._children(grown, live), strict=True):
                    children[i].append(found)
            if self.branching.completions > 1:
                for i, scores in zip(live, self._completions(grown, live), strict=True):
                    completions[i].append(scores)
            grown = self._step(grown)
        return [
            Rollout(prompt_id(p), p, s, self.task.reward(p, s), c, r)
            for p, s, c, r in zip(grown.prompts, grown.steps, children, completions, strict=True)
        ]

    def _children(self, grown: "Growing", live: np.ndarray) -> list[list[Child]]:
        extra = self.branching.children - 1
        after = self._step(grown.select(np.repeat(live, extra)))
        found = [
            Child(s[-1], bool(e), self.task.reward(p, s) if e else None)
            for p, s, e in zip(after.prompts, after.steps, after.ended, strict=True)
        ]
        return [found[k : k + extra] for k in range(0, len(found), extra)]

    def _completions(self, grown: "Growing", live: np.ndarray) -> list[list[float]]:
        extra = self.branching.completions - 1
        branch = grown.select(np.repeat(live, extra))
        while not branch.ended.all():
            branch = self._step(branch)
        found = [self.task.reward(p, s) for p, s in zip(branch.prompts, branch.steps, strict=True)]
        return [found[k : k + extra] for k in range(0, len(found), extra)]

    def _step(self, grown: "Growing") -> "Growing":
        """Decode one step of every trajectory that has not ended."""
        generator = torch.Generator(self.policy.device).manual_seed(int(self.rng.integers(2**63)))
        new = self.policy.decode_step(grown.state, grown.node, generator)
        texts = [self.policy.steps.step_text([i for i in row if i >= 0]) for row in new.tokens.tolist()]
        lengths = (new.tokens >= 0).sum(1).tolist()
        cut = [
            last != self.policy.steps.eos_id and not text.endswith(self.policy.steps.settings.delimiter)
            for last, text in zip(new.state.pending.tolist(), texts, strict=True)
        ]
        steps: list[list[str]] = []
        for old, ended, i in zip(grown.steps, grown.ended, new.node.tolist(), strict=True):
            steps.append(old if ended else [*old, texts[i]])
            self.tally.tokens += 0 if ended else lengths[i]
            self.tally.truncated += not ended and cut[i]
        return Growing(new.state, new.node, grown.prompts, steps)


@dataclass(frozen=True)
class Growing:
    """Trajectories in the making: the distinct prefixes, which one each is at, and their texts."""

    state: PolicyState
    node: Tensor
    prompts: list[str]
    steps: list[list[str]]

    @property
    def ended(self) -> np.ndarray:
        """(B,) bool."""
        return self.state.ended[self.node].cpu().numpy()

    def select(self, rows: np.ndarray) -> "Growing":
        """Return trajectories ``rows``; a repeated one is forked."""
        used, node = distinct(self.node[torch.as_tensor(rows, device=self.node.device)])
        return Growing(
            self.state.select(used), node, [self.prompts[i] for i in rows], [self.steps[i] for i in rows]
        )


def prompt_id(prompt: str) -> str:
    """Return the stable id of a prompt: a short hash of its text."""
    import hashlib

    return hashlib.sha256(prompt.encode()).hexdigest()[:12]
