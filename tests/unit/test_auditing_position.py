"""The control that sees the position alone: by hand, incrementally, and cross-fitted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rmtools.auditing.controls import position_only
from rmtools.auditing.model_audit import AuditOptions, Subject, audit_model
from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import Rollout
from rmtools.data.scoring import score_rollouts
from rmtools.errors import UserError
from rmtools.lm.particles import LMParticles
from rmtools.particles.tilt import Tilt

TILT = Tilt(0.2)


def row(prompt, length, reward, completions=()):
    return Rollout(prompt, prompt, ["u \n"] * length, reward, completions=list(completions))


# Two prompts a half; lengths 1 to 3 in one, 1 and 2 in the other.
FIRST = [row("r0 . \n", 3, 1.0), row("r0 . \n", 1, 0.0)]
SECOND = [row("r1 . \n", 2, 0.5), row("r1 . \n", 2, 0.0), row("r1 . \n", 1, 1.0)]
# Mean rewards of those that are unfinished at depth 0, 1, 2.
BY_DEPTH = {"r0 . \n": [0.5, 1.0, 1.0], "r1 . \n": [0.5, 0.25]}


def test_position_by_hand(step_tokenizer):
    value = position_only([*FIRST, *SECOND], step_tokenizer, TILT, np.random.default_rng(0))
    steps = ["u \n", "s \n", "u \n"]
    children = [["d \n", "s r1 \n"], [], ["u \n"]]
    told = []
    trees = [step_tokenizer.encode(p, steps, children) for p in ("r0 . \n", "r1 . \n", "r2 . \n")]
    scored = value.score(trees, told.append)
    assert sum(told) == 3
    # Each half has the other's table; depth 2 is beyond the second's, depth 3 beyond both.
    everyone = [0.5, 0.5, 1.0, 1.0]
    expected = [[0.5, 0.25, 0.25, 0.25], [0.5, 1.0, 1.0, 1.0], everyone]
    for found, reward in zip(scored, expected, strict=True):
        np.testing.assert_allclose(found.log_value, TILT.log_potential(reward), rtol=1e-12)
        for t, (at, texts) in enumerate(zip(found.children, children, strict=True)):
            np.testing.assert_allclose(at, [TILT.log_potential(reward[t + 1])] * len(texts), rtol=1e-12)


def test_position_incrementally(step_tokenizer):
    value = position_only([*FIRST, *SECOND], step_tokenizer, TILT, np.random.default_rng(0))
    prompts = ["r0 . \n", "r1 . \n", "r2 . \n"]
    scored = value.score([step_tokenizer.encode(p, ["u \n"] * 4) for p in prompts])
    log_value, state = value.start([step_tokenizer.prompt_ids(p) for p in prompts])
    assert log_value.tolist() == [v.log_value[0] for v in scored]
    rows = torch.tensor([2, 0, 0, 1])
    state = state.select(rows)
    for t in range(1, 5):
        log_value, state = value.advance(state, torch.ones(4, 2, dtype=torch.long))
        assert log_value.tolist() == [scored[i].log_value[t] for i in rows]
    still, _ = value.advance(value.start([step_tokenizer.prompt_ids("r1 . \n")])[1], torch.tensor([[-1, -1]]))
    assert still.tolist() == [scored[1].log_value[0]]


def test_position_says_what_it_was_fitted_on(step_tokenizer):
    rows = [*FIRST, *SECOND]
    value = position_only(rows, step_tokenizer, TILT, np.random.default_rng(0))
    assert value.name == "position only"
    assert "5 trajectories of 2 prompts" in value.fitted_on
    with pytest.raises(UserError, match="1 prompt"):
        position_only(FIRST, step_tokenizer, TILT, np.random.default_rng(0))
    labelled = replace(FIRST[0], reward=None, labels=[1.0, 1.0, 1.0])
    with pytest.raises(UserError, match="field reward"):
        position_only([labelled, *SECOND], step_tokenizer, TILT, np.random.default_rng(0))


def test_position_does_not_see_its_own_prompts(step_tokenizer):
    """Outcomes of one prompt change the values of the other half's prompts only."""
    prompts = [f"r{i} . \n" for i in range(6)]
    rows = [row(p, 2, 0.0) for p in prompts]
    trees = [step_tokenizer.encode(p, ["u \n"]) for p in prompts]

    def values(rows):
        fitted = position_only(rows, step_tokenizer, TILT, np.random.default_rng(4))
        return np.asarray([v.log_value[0] for v in fitted.score(trees)])

    before = values(rows)
    for i in range(6):
        changed = values([replace(r, reward=1.0) if k == i else r for k, r in enumerate(rows)]) != before
        assert changed.sum() == 3
        assert not changed[i]


def test_position_is_audited_like_a_model(policy, task, prompts):
    rows = Collector(policy, task, Branching(4, 6, 3), np.random.default_rng(1)).collect(prompts)
    value = position_only(rows, policy.steps, TILT, np.random.default_rng(2))
    scored = score_rollouts(rows, value)
    found = audit_model(
        Subject("position", value.name, TILT), rows, scored, AuditOptions(), np.random.default_rng(3)
    )
    assert found.error.sampled.counts.n_resolved == len(scored.prefix_depth)
    assert found.cost.sigma2 is not None
    # What was drawn does not matter, only that it is one step.
    particles = LMParticles.start(policy, value, prompts).extend(3, np.random.default_rng(0))
    assert (np.ptp(particles.log_value(), axis=1) == 0).all()
