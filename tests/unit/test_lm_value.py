"""One value, three ways to read it: packed tree, step by step, and each branch as a trajectory of its own."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rmtools.errors import UserError
from rmtools.lm.checkpoint import load_value_model
from rmtools.lm.policy import Policy
from rmtools.lm.value import ConstantValue, ValueModel, log_value_from_logits
from rmtools.particles.tilt import Tilt

RAGGED = [
    ("r2 . \nc13 . \nc02 . \n", ["u r3 \n", "s r3 \n", "d x \n"], [["d r1 \n", "s x \n"], [], ["u r4 \n"]]),
    ("r0 . \n", ["u \n"], [["s x x x \n", "\n"]]),
    ("r4 . \nc01 . \nc02 . \nc34 . \n", ["d r3 \n", "s r3 . . \n"], [[], ["d r2 \n"]]),
    ("r1 . \nc24 . \n", ["u r2 \n", "u r3 \n", "\n", "s \n"], []),
]


@pytest.fixture(scope="module")
def scored(value):
    return value.score([value.steps.encode(*row) for row in RAGGED])


@torch.inference_mode()
def alone(value, prompt, steps):
    """The value after ``steps``: one sequence without padding, mask or cache."""
    ids = value.steps.prompt_ids(prompt) + [i for s in steps for i in value.steps.step_ids(s)]
    logits = value.model(input_ids=torch.tensor([ids])).logits[0, -1]
    return float(log_value_from_logits(logits, value.tilt.floor))


def test_values_differ(scored):
    """The model under test is not a constant, or the tests below would say nothing."""
    assert np.concatenate([v.log_value for v in scored]).std() > 0.1


def test_tree_equals_each_prefix_and_child_alone(value, scored):
    for (prompt, steps, children), found in zip(RAGGED, scored, strict=True):
        expected = [alone(value, prompt, steps[:t]) for t in range(len(steps) + 1)]
        np.testing.assert_allclose(found.log_value, expected, atol=1e-5)
        for t in range(len(steps)):
            branch = children[t] if t < len(children) else []
            expected = [alone(value, prompt, [*steps[:t], c]) for c in branch]
            np.testing.assert_allclose(found.children[t], expected, atol=1e-5)


def test_small_batches_and_progress(value, scored, monkeypatch):
    monkeypatch.setattr("rmtools.lm.value.TOKENS_PER_BATCH", 30)
    told = []
    again = value.score([value.steps.encode(*row) for row in RAGGED], progress=told.append)
    assert sum(told) == len(RAGGED)
    assert len(told) > 1
    for a, b in zip(again, scored, strict=True):
        np.testing.assert_allclose(a.log_value, b.log_value, atol=1e-5)


def test_the_root_has_a_value(value, scored, prompts):
    root, _ = value.start([value.steps.prompt_ids(p) for p in prompts])
    assert root.shape == (len(prompts),)
    assert bool(((root >= math.log(value.tilt.floor)) & (root < 0)).all())
    assert all(len(v.log_value) == len(row[1]) + 1 for v, row in zip(scored, RAGGED, strict=True))


def test_log_value_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)], [40.0, -40.0], [-200.0, 200.0]])
    expected = [math.log(0.1 + 0.9 * 0.5), math.log(0.1 + 0.9 * 0.75), math.log(0.1), 0.0]
    np.testing.assert_allclose(log_value_from_logits(logits, 0.1), expected, atol=1e-6)
    half = log_value_from_logits(logits[:2].bfloat16(), 0.1)
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half, expected[:2], atol=5e-3)


def test_log_value_without_floor_is_log_p_however_small():
    """log-sigmoid, never log(p + 1e-10): a probability of e^-200 is kept."""
    logits = torch.tensor([[100.0, -100.0]])
    assert float(log_value_from_logits(logits, 1e-30)) == pytest.approx(math.log(1e-30), abs=1e-3)
    logits.requires_grad_()
    log_value_from_logits(logits, 0.01).sum().backward()
    assert bool(torch.isfinite(logits.grad).all())


def test_log_value_agrees_with_the_tilt():
    logits = torch.linspace(-5, 5, 11)[:, None] * torch.tensor([0.0, 1.0])
    p = torch.softmax(logits.double(), -1)[:, 1].numpy()
    np.testing.assert_allclose(log_value_from_logits(logits, 0.02), Tilt(0.02).log_potential(p), atol=1e-6)


def test_nan_weights_raise_and_name_the_tree(value_folder):
    broken, _ = load_value_model(value_folder)
    with torch.no_grad():
        broken.model.score.weight.fill_(torch.nan)
    trees = [broken.steps.encode(*row) for row in RAGGED]
    with pytest.raises(ValueError, match=r"NaN at step 0 of trajectory \d"):
        broken.score(trees)
    with pytest.raises(ValueError, match=r"value model .*prm returned NaN"):
        broken.start([broken.steps.prompt_ids("r2 . \n")])


def test_nan_at_one_child_names_its_trajectory(value):
    trees = [value.steps.encode(*row) for row in RAGGED]

    class Spoiled:
        device, dtype, config = value.model.device, value.model.dtype, value.model.config
        forward = value.model.forward  # its signature is looked at

        def eval(self):
            return self

        def __call__(self, **inputs):
            logits = value.model(**inputs).logits.clone()
            logits[inputs["input_ids"] == value.steps.tokenizer.convert_tokens_to_ids("r4 ")] = torch.nan
            logits[:, 1:] += 0 * logits[:, :-1]  # spreads by one position, to the step's newline
            return SimpleNamespace(logits=logits)

    with pytest.raises(ValueError, match="NaN at step 2 of trajectory 0"):
        ValueModel(Spoiled(), value.steps, value.tilt).score(trees[:1])


def test_constant_value(value):
    constant = ConstantValue(0.25, value.steps, Tilt(0.1))
    expected = math.log(0.1 + 0.9 * 0.25)
    told = []
    scored = constant.score([value.steps.encode(*row) for row in RAGGED], progress=told.append)
    assert sum(told) == len(RAGGED)
    for (_, steps, children), found in zip(RAGGED, scored, strict=True):
        assert found.log_value.shape == (len(steps) + 1,)
        np.testing.assert_allclose(found.log_value, expected)
        assert [len(c) for c in found.children] == [len(c) for c in children] + [0] * (
            len(steps) - len(children)
        )
    values, state = constant.start([[1], [2], [3]])
    np.testing.assert_allclose(values, expected)
    values, state = constant.advance(state.select(torch.tensor([0, 0, 1, 2])), torch.ones(4, 2))
    assert values.tolist() == pytest.approx([expected] * 4)


def test_an_end_token_is_part_of_the_step_and_is_read(value):
    """One pass over the text and reading the emitted ids give the value at the same token."""
    prompt, steps = "r2 . \nc13 . \n", ["s r2 \n", "u <eos>"]
    ids = value.steps.step_ids(steps[1])
    assert ids[-1] == value.steps.eos_id
    assert value.steps.step_text(ids) == steps[1]
    assert value.steps.step_text([value.steps.eos_id]) == "<eos>"
    tree = value.steps.encode(prompt, steps)
    assert tree.ids[tree.reads[-1]] == value.steps.eos_id
    _, state = value.start([value.steps.prompt_ids(prompt)])
    for step in steps:
        log_value, state = value.advance(state, torch.tensor([value.steps.step_ids(step)]))
    assert abs(float(log_value[0]) - value.score([tree])[0].log_value[-1]) < 1e-5


def test_an_adapter_on_the_policy_shares_its_weights(value_folder, policy, value, scored):
    """Base weights are in memory once, and the values are those of the merged model."""
    shared, _ = load_value_model(value_folder, beside=policy)
    own = {p.data_ptr() for p in policy.model.base_model.parameters()}
    theirs = [p for p in shared.model.parameters() if p.data_ptr() not in own]
    adapter = sum(p.numel() for n, p in shared.model.named_parameters() if "lora_" in n or "score" in n)
    assert sum(p.numel() for p in theirs) == adapter
    assert sum(p.data_ptr() in own for p in shared.model.parameters()) == len(own)
    for ours, merged in zip(shared.score([value.steps.encode(*row) for row in RAGGED]), scored, strict=True):
        np.testing.assert_allclose(ours.log_value, merged.log_value, atol=1e-5)


def test_another_base_is_not_shared(value_folder, policy, tmp_path):
    other = Policy(policy.model, policy.steps, 1.0, str(tmp_path))
    apart, _ = load_value_model(value_folder, beside=other)
    own = {p.data_ptr() for p in policy.model.parameters()}
    assert not any(p.data_ptr() in own for p in apart.model.parameters())


def test_an_adapter_with_biases_of_its_own_does_not_share(value_folder, policy):
    """They are loaded over the base's: shared, they would be the policy's too."""
    folder = shutil.copytree(value_folder, value_folder.parent / "biased")  # its base lies beside it
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bias": "all"}))
    apart, _ = load_value_model(folder, beside=policy)
    own = {p.data_ptr() for p in policy.model.parameters()}
    assert not any(p.data_ptr() in own for p in apart.model.parameters())


@pytest.mark.parametrize("untrained", [False, True])
def test_an_adapter_moved_away_from_its_base_says_what_is_missing(
    value_folder, tmp_path, untrained, monkeypatch
):
    """`rmtools.json` names the base relative to the checkpoint; no such path leads anywhere from the working directory."""
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "deep" / "er" / "prm"
    shutil.copytree(value_folder, moved)
    with pytest.raises(UserError) as error:
        load_value_model(moved, untrained=untrained)
    base = json.loads((moved / "rmtools.json").read_text())["base"]
    assert all(word in error.value.fact for word in (str(moved), base, "base of the checkpoint"))
    assert "put it back" in error.value.fix
