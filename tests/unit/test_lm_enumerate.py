"""Enumeration: probabilities of listed steps, the table made of them, and exact ratios at prefixes of rollouts."""

import itertools

import numpy as np
import pytest
import torch

from rmtools.core import solve
from rmtools.errors import UserError
from rmtools.lm.enumerate import exact_ratios, expand, follow, tabulate
from rmtools.lm.generate import generate_once
from rmtools.lm.particles import LMParticles
from rmtools.lm.policy import Policy
from rmtools.lm.steps import StepSettings, StepTokenizer
from rmtools.lm.value import ConstantValue, ValueModel
from rmtools.particles.tilt import Tilt


@torch.inference_mode()
def teacher_forced(policy, sequences, n_given):
    """Log-probability of what follows the first ``n_given`` ids in sequences of one length."""
    ids = torch.tensor(sequences)
    table = torch.log_softmax(policy.model(input_ids=ids).logits.double() / policy.temperature, -1)
    each = table[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    return each[:, n_given - 1 :].sum(1).numpy()


@pytest.fixture(scope="module")
def choices(task):
    return task.step_choices("", [])


@pytest.fixture(scope="module")
def short(policy, value):
    """The same models with two steps: small enough for brute force."""
    steps = StepTokenizer(policy.steps.tokenizer, StepSettings("\n", 2, 6))
    return Policy(policy.model, steps, 0.8), ValueModel(value.model, steps, value.tilt, "two steps")


def test_probabilities_are_the_teacher_forced_ones(policy, prompts, choices):
    ids = [policy.steps.prompt_ids(p) for p in ("r2 . \n", prompts[0])]
    tokens = [policy.steps.step_ids(c) for c in choices]
    grown = expand(policy, policy.start(ids), tokens)
    assert grown.parent.tolist() == [0] * 18 + [1] * 18
    for i in range(2):
        at = grown.parent == i
        assert sorted(grown.choice[at].tolist()) == list(range(18))
        expected = teacher_forced(
            policy, [ids[i] + tokens[c] for c in grown.choice[at].tolist()], len(ids[i])
        )
        np.testing.assert_allclose(grown.log_probability[at], expected, atol=1e-5)
        assert 0.5 < float(grown.log_probability[at].exp().sum()) < 1
    assert [tokens[c] for c in grown.choice.tolist()] == grown.tokens.tolist()


def test_expansion_goes_on(policy, prompts, choices):
    """The state it returns is that of the children: a second expansion has the law of two steps."""
    tokens = [policy.steps.step_ids(c) for c in choices]
    ids = policy.steps.prompt_ids(prompts[0])
    first = expand(policy, policy.start([ids]), tokens, 0.05)
    assert 1 < len(first.choice) < 18
    assert first.state.cache.length.tolist() == [len(ids) + 2] * len(first.choice)
    second = expand(policy, first.state, tokens)
    begun = [tokens[c] for c in first.choice.tolist()]
    expected = teacher_forced(
        policy,
        [
            ids + begun[p] + tokens[c]
            for p, c in zip(second.parent.tolist(), second.choice.tolist(), strict=True)
        ],
        len(ids) + 3,
    )
    np.testing.assert_allclose(second.log_probability, expected, atol=1e-5)


def test_steps_below_the_threshold_are_left_out_not_spread(policy, prompts, choices):
    tokens = [policy.steps.step_ids(c) for c in choices]
    state = policy.start([policy.steps.prompt_ids(prompts[0])])
    full, cut = expand(policy, state, tokens), expand(policy, state, tokens, 0.02)
    kept = full.log_probability >= np.log(0.02)
    assert cut.choice.tolist() == full.choice[kept].tolist()
    np.testing.assert_allclose(cut.log_probability, full.log_probability[kept], atol=1e-6)


def test_steps_of_different_length_are_refused(policy, prompts):
    state = policy.start([policy.steps.prompt_ids(prompts[0])])
    with pytest.raises(UserError, match="different length"):
        expand(policy, state, [[1, 2], [3]])


def test_following_a_step_is_decoding_it(policy, prompts, choices):
    """Ragged given steps: the states agree with a fresh start on the longer prompt."""
    ids = [policy.steps.prompt_ids(p) for p in (prompts[0], "r1 . \n")]
    given = torch.tensor([policy.steps.step_ids("u r2 \n"), [5, 24, -1]])
    moved = follow(policy, policy.start(ids), given)
    assert moved.n_steps.tolist() == [1, 1]
    assert not bool(moved.ended.any())
    fresh = policy.start([ids[0] + given[0].tolist(), ids[1] + [5, 24]])
    assert moved.pending.tolist() == fresh.pending.tolist()
    assert moved.cache.length.tolist() == fresh.cache.length.tolist()
    tokens = [policy.steps.step_ids(c) for c in choices]
    np.testing.assert_allclose(
        expand(policy, moved, tokens).log_probability,
        expand(policy, fresh, tokens).log_probability,
        atol=1e-5,
    )
    ended = follow(policy, policy.start(ids), torch.tensor([[5, policy.steps.eos_id, -1], [5, 24, -1]]))
    assert ended.ended.tolist() == [True, False]


def test_a_row_without_a_step_stays(policy, prompts):
    ids = [policy.steps.prompt_ids(p) for p in prompts[:2]]
    state = policy.start(ids)
    moved = follow(policy, state, torch.tensor([[-1, -1, -1], policy.steps.step_ids("u r2 \n")]))
    assert moved.n_steps.tolist() == [0, 1]
    assert moved.pending[0] == state.pending[0]
    assert moved.cache.length[0] == state.cache.length[0]


def test_table_against_brute_force(short, prompts, task, choices):
    """All 324 two-step solutions by teacher forcing: probabilities, V*, Z and the mass outside."""
    policy, value = short
    prompt = prompts[0].removesuffix(prompts[0].splitlines(keepends=True)[-1])
    two = type(task)(2)
    table = tabulate(policy, value, prompt, choices, two.reward, 0.0)
    ids = policy.steps.prompt_ids(prompt)
    paths = [list(p) for p in itertools.product(choices, repeat=2)]
    log_p = teacher_forced(
        policy, [ids + [i for s in p for i in policy.steps.step_ids(s)] for p in paths], len(ids)
    )
    p = np.exp(log_p)
    assert sorted(table.paths) == sorted(paths)
    assert table.uncovered == pytest.approx(1 - p.sum(), abs=1e-6)

    first = p.reshape(18, 18).sum(1)  # of a first step and any listed second one
    one_step = np.exp(teacher_forced(policy, [ids + policy.steps.step_ids(c) for c in choices], len(ids)))
    rule = one_step / one_step.sum()
    second = p.reshape(18, 18) / first[:, None]
    phi = np.exp(value.tilt.log_potential(np.asarray([two.reward(prompt, s) for s in paths]))).reshape(18, 18)
    true_value = (second * phi).sum(1)
    exact = solve(table.model)
    assert np.exp(exact.log_z) == pytest.approx(float(rule @ true_value), rel=1e-5)
    order = list(dict.fromkeys(s[0] for s in table.paths))  # of the table's first layer
    at = [choices.index(c) for c in order]
    np.testing.assert_allclose(np.exp(exact.true_log_value[1]), true_value[at], rtol=1e-5)
    reach = dict(zip(map(tuple, table.paths), table.model.reach(2), strict=True))
    np.testing.assert_allclose([reach[tuple(s)] for s in paths], (rule[:, None] * second).ravel(), rtol=1e-4)

    scored = value.score([value.steps.encode(prompt, [c]) for c in choices])
    np.testing.assert_allclose(table.model.log_value[0], scored[0].log_value[:1], atol=1e-5)
    np.testing.assert_allclose(table.model.log_value[1], [scored[i].log_value[1] for i in at], atol=1e-5)
    rewards = np.asarray([two.reward(prompt, s) for s in table.paths])
    np.testing.assert_allclose(table.model.log_value[2], value.tilt.log_potential(rewards), atol=1e-12)


def test_a_policy_off_its_format_is_said(short, prompts, task):
    policy, value = short
    with pytest.raises(UserError, match="min_probability"):
        tabulate(policy, value, prompts[0], ["s x \n"], task.reward, 0.9)


def ratios(policy, scorers, solutions, task, **settings):
    choices = task.step_choices("", [])
    return exact_ratios(policy, scorers, solutions, choices, task.reward, 0.0, **settings)


def test_exact_ratios_are_the_bellman_errors_of_the_table(policy, value, prompts, task, choices):
    """At the same prefixes, for a model and a constant, with every listed step kept."""
    draws = np.random.default_rng(0)
    for prompt in prompts[:2]:
        constant = ConstantValue(0.3, value.steps, value.tilt)
        table = tabulate(policy, value, prompt, choices, task.reward, 0.0)
        flat = tabulate(policy, constant, prompt, choices, task.reward, 0.0)
        chosen = draws.choice(len(table.paths), 6, replace=False).tolist()
        chosen.append(chosen[0])  # a repeated trajectory is enumerated once
        rows = [(prompt, table.paths[i]) for i in chosen]
        told = []
        found = ratios(policy, [value, constant], rows, task, batch=4, progress=told.append)
        assert sum(told) == len(rows)
        # The table's layers are in the order of expansion; every prefix has 18 children.
        for k, model in enumerate((table.model, flat.model)):
            errors = solve(model).log_bellman_error
            for i, got in zip(chosen, found.log_error[k], strict=True):
                expected = [errors[t][i // 18 ** (3 - t)] for t in range(3)]
                np.testing.assert_allclose(got, expected, atol=2e-5)
        covered = 1 - found.uncovered.reshape(len(rows), 3)
        assert np.allclose(covered[:, 0], covered[0, 0])
        tokens = [policy.steps.step_ids(c) for c in choices]
        root = expand(policy, policy.start([policy.steps.prompt_ids(prompt)]), tokens)
        assert covered[0, 0] == pytest.approx(float(root.log_probability.exp().sum()), abs=1e-6)


def test_exact_ratios_of_ragged_malformed_trajectories(policy, value, prompts, task):
    """Trajectories that ended early or left the format: enumerated where the listed steps cover half of the law."""
    steps = [["u u r2 \n", "s x \n", "s x \n"], ["u r2 \n"], ["s r1 \n", "\n"]]
    rows = list(zip(prompts, steps, strict=False))
    found = ratios(policy, [value], rows, task)
    assert [len(e) for e in found.log_error[0]] == [3, 1, 2]
    assert found.uncovered.shape == (6,)
    outside = iter(found.uncovered)
    checked = 0
    for (prompt, given), errors in zip(rows, found.log_error[0], strict=True):
        for t in range(len(given)):
            if next(outside) > 0.5:
                assert np.isnan(errors[t])
                continue
            checked += 1
            assert errors[t] == pytest.approx(by_hand(policy, value, prompt, given[:t], task), abs=2e-5)
    assert checked >= 3


def by_hand(policy, value, prompt, steps, task):
    """b at one prefix: 18 children scored one by one."""
    ids = policy.steps.prompt_ids(prompt) + [i for s in steps for i in policy.steps.step_ids(s)]
    choices = task.step_choices(prompt, steps)
    p = np.exp(teacher_forced(policy, [ids + policy.steps.step_ids(c) for c in choices], len(ids)))
    scored = value.score([value.steps.encode(prompt, [*steps, c]) for c in choices])
    child = np.asarray([s.log_value[-1] for s in scored])
    if len(steps) + 1 == task.horizon:
        child = value.tilt.log_potential(np.asarray([task.reward(prompt, [*steps, c]) for c in choices]))
    return np.log((p / p.sum()) @ np.exp(child)) - scored[0].log_value[-2]


def test_one_shot_generation_cuts_steps(policy, prompts, task):
    steps, closed = generate_once(policy, prompts, 24, np.random.default_rng(0))
    again, _ = generate_once(policy, prompts, 24, np.random.default_rng(0))
    assert steps == again
    assert len(steps) == len(closed) == len(prompts)
    assert all("<eos>" not in s for row in steps for s in row)
    assert sum(task.well_formed(s) for s in steps) > len(prompts) / 2
    short, closed = generate_once(policy, prompts[:1], 4, np.random.default_rng(0))
    assert not closed[0]
    assert len(short[0]) <= 2


def test_enumeration_and_particles_agree_on_the_values(policy, prompts, value, task, choices):
    """A drawn well-formed step has in the table the value that the particles gave it."""
    table = tabulate(policy, value, prompts[0], choices, task.reward, 0.0)
    particles = LMParticles.start(policy, value, prompts[:1]).extend(30, np.random.default_rng(0))
    first = {s: i for i, s in enumerate(dict.fromkeys(p[0] for p in table.paths))}
    for (step,), v in zip(particles.steps()[0], particles.log_value()[0], strict=True):
        if step in first:
            assert table.model.log_value[1][first[step]] == pytest.approx(v, abs=1e-5)
    assert Tilt(value.tilt.floor) == value.tilt
