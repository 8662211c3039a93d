"""The contract of `StepPolicy`: what a decoded step is, and what its states and tokens say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmtools.lm.protocol import Decoded, StepPolicy, StepState
from rmtools.testing.laws import require


def check_policy(
    policy: StepPolicy, prompts: Sequence[str], *, particles: int = 4, seed: int = 0, seeded: bool = True
) -> None:
    """Check the contract of :class:`rmtools.lm.protocol.StepPolicy`, from ``prompts`` to the end of every solution.

    A step ends where the step settings say, and only there; equal prefixes are held once; an ended prefix is absorbing and gets
    no token; ``decode_step`` leaves its state as it was. If ``seeded``, the same seed draws the same, also from a state reindexed
    by ``select`` and ``join``; a state started anew at the prefixes draws the same first 4 tokens, 9 times in 10 (rounding).
    The law itself is checked by :func:`check_law` on particles over the policy.

    Parameters
    ----------
    policy : StepPolicy
    prompts : sequence of str
    particles : int
        Solutions of each prompt.
    seed : int
    seeded : bool
        Whether draws depend on the generator alone. Not so behind some servers.

    Raises
    ------
    AssertionError
        Names the law, and the step.
    """
    require(policy.temperature > 0, f"temperature is positive, got {policy.temperature}")
    require(isinstance(policy.name, str), f"name is text, got {policy.name!r}")
    ids = [policy.steps.prompt_ids(p) for p in prompts]
    policy.check_length(ids)
    state: StepState = policy.start(ids)
    require(state.pending.tolist() == [i[-1] for i in ids], "start: pending is the last token of each prompt")
    require(not state.ended.any(), "start: no prompt has ended")
    node = torch.arange(len(ids), device=policy.device).repeat_interleave(particles)
    read = [list(i) for i in ids]
    written: list[list[int]] = [[] for _ in ids]
    for t in range(policy.steps.settings.max_steps + 1):
        before = state.pending.tolist(), state.ended.tolist()
        step = policy.decode_step(state, node, torch.Generator(policy.device).manual_seed(seed + t))
        after = state.pending.tolist(), state.ended.tolist()
        require(after == before, f"decode_step changed its state at step {t}")
        _check_decoded(policy, state, node, step, written, t)
        if seeded:
            again = policy.decode_step(state, node, torch.Generator(policy.device).manual_seed(seed + t))
            law = f"two steps by generators of one seed differ at step {t}"
            require(_texts(policy, again) == _texts(policy, step), law)
        if bool(state.ended.all()):
            return
        state, node = _reindexed(step.state, step.node, t)
        rows = list(zip(step.parent.tolist(), step.tokens.tolist(), strict=True))
        read, written = (
            [[*old[u], *(i for i in r if i >= 0)] for u, r in rows][::-1] for old in (read, written)
        )
        if seeded:
            _check_reading(policy, step.state, state, read, seed + t)
    raise AssertionError(
        f"max_steps is {policy.steps.settings.max_steps}, and some prefixes have not ended by then"
    )


def _texts(policy: StepPolicy, step: Decoded[Any]) -> list[str]:
    """Return the text of the step at every particle."""
    return [
        policy.steps.step_text([i for i in step.tokens[u].tolist() if i >= 0]) for u in step.node.tolist()
    ]


def _check_decoded(
    policy: StepPolicy, state: StepState, node: Tensor, step: Decoded[Any], written: list[list[int]], t: int
) -> None:
    """Check the shapes of a decoded step, and each of its distinct continuations of what is ``written``."""
    rows, parent = step.tokens.tolist(), step.parent.tolist()
    require(step.node.shape == node.shape, f"node has one entry per particle, step {t}")
    require(step.parent[step.node].equal(node), f"parent[node] is where each particle was before step {t}")
    held = {(u, *row) for u, row in zip(parent, rows, strict=True)}
    require(len(held) == len(rows), f"a prefix is held twice, step {t}")
    used = set(step.node.tolist())
    require(used == set(range(len(rows))), f"every prefix held is some particle's, step {t}")
    settings, steps = policy.steps.settings, policy.steps
    for u, (row, before) in enumerate(zip(rows, parent, strict=True)):
        ids, where = [i for i in row if i >= 0], f"step {t}, prefix {u}"
        ended = bool(step.state.ended[u])
        require(row[: len(ids)] == ids, f"-1 stands only behind the end of a step: {row}, {where}")
        if state.ended[before]:
            require(ended and not ids, f"an ended prefix is absorbing and gets no token: {ids}, {where}")
            same = step.state.pending[u] == state.pending[before]
            require(same, f"an ended prefix keeps its pending token: {where}")
            continue
        require(ids, f"a step has at least one token: {where}")
        require(step.state.pending[u] == ids[-1], f"pending is the last token: {where}")
        old = written[before]
        early = [k for k in range(1, len(ids)) if steps.ends(ids[:k], old) or steps.closes(ids[:k])]
        require(not early, f"a step ends with its first delimiter or end of sequence: {ids}, {where}")
        over = steps.ends(ids, old) or steps.closes(ids) or len(ids) >= settings.max_step_tokens
        require(
            over or ended,
            f"a step ends with the delimiter, the end of the sequence or max_step_tokens: {ids}, {where}",
        )
        require(
            ended or (not steps.ends(ids, old) and t + 1 < settings.max_steps),
            f"the end of the sequence, a stop text and max_steps end a prefix: {where}",
        )


def _reindexed(state: StepState, node: Tensor, t: int) -> tuple[StepState, Tensor]:
    """Return the same prefixes in another order, through ``select`` and ``join``, and where each particle is now."""
    order = torch.arange(len(state.pending), device=node.device).flip(0)
    half = len(order) // 2
    new = state.select(order[:half]).join(state.select(order[half:])) if half else state.select(order)
    for name in ("pending", "ended"):
        same = getattr(new, name).equal(getattr(state, name)[order])
        require(same, f"select(a).join(select(b)) is select([a, b]): {name} differs after step {t}")
    return new, len(order) - 1 - node


def _check_reading(
    policy: StepPolicy, old: StepState, new: StepState, read: list[list[int]], seed: int
) -> None:
    """Check that ``new``, which is ``old`` in reverse, holds the prefixes ``read`` (token ids)."""

    def draw(state: StepState, node: Tensor) -> Decoded[Any]:
        return policy.decode_step(state, node, torch.Generator(policy.device).manual_seed(seed))

    node = torch.arange(len(read), device=policy.device).repeat_interleave(16)
    same = _texts(policy, draw(old, len(read) - 1 - node)) == _texts(policy, draw(new, node))
    require(same, "select and join reindex all of a state: other steps follow the same prefixes")
    live = (~new.ended).nonzero()[:, 0]
    if len(live):
        node = torch.arange(len(live), device=policy.device).repeat_interleave(16)
        fresh = policy.start([read[u] for u in live.tolist()])
        one, two = draw(new.select(live), node), draw(fresh, node)
        begun = ([step.tokens[u, :4].tolist() for u in step.node.tolist()] for step in (one, two))
        alike = np.mean([a[: len(b)] == b[: len(a)] for a, b in zip(*begun, strict=True)])
        require(alike >= 0.9, f"a state has read its prefixes: {alike:.0%} of steps are a new state's")
