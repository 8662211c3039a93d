"""Published PRMs: recognised from their files, and valued as bare transformers do, whole, step by step, and in ragged batches."""

import numpy as np
import pytest
import torch
from published import bare, save, tokenizer_of

from rmtools.lm.checkpoint import load_value_model
from rmtools.lm.formats import load as loading
from rmtools.lm.steps import StepSettings
from rmtools.particles.tilt import Tilt

FLOOR = 0.01
SETTINGS = StepSettings("\n\n", 8)
RAGGED = [
    ("What is 3 + 4 · 5?", ["First, 4 · 5 = 20.", "So 3 + 20 = 23.\nThat is $x = 23$.", "#### 23"]),
    ("Ann has 7 apples.", ["She eats (1)", "\\[ 7 - 1 = 6 \\]"]),
    ("Compute 2^{10}, please, and show all of the steps that you need.", ["It is 1024"]),
]
READ_AT_STEPS = ["trl", "qwen-prm", "math-shepherd", "rlhflow", "skywork", "openrlhf", "versaprm"]
CHILDREN = ["Another way.", "No"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a format's model, written once."""
    made = {}

    def of(key):
        if key not in made:
            made[key] = save(key, tmp_path_factory.mktemp(key) / "model")
        return made[key]

    return of


@pytest.fixture
def load(folder, monkeypatch):
    """Load a format's model, its tokenizer from memory: reading one from a file takes seconds."""

    def of(key, name=None, **more):
        monkeypatch.setattr(loading, "load_tokenizer", lambda path: tokenizer_of(key))
        return load_value_model(name or folder(key), steps=SETTINGS, **more)[0]

    return of


def delimited(steps):
    return [s + "\n\n" for s in steps]


def encoded(value, question, steps, children=()):
    return value.steps.encode(question, delimited(steps), [delimited(c) for c in children])


@pytest.mark.parametrize("key", READ_AT_STEPS)
def test_values_are_those_of_bare_transformers(load, key):
    """Whole, with children, step by step in a batch of uneven questions and steps: to 1e-5 of one plain pass each."""
    value = load(key, prm_format=key, root_value=0.25)
    expected = [bare(key, q, steps) for q, steps in RAGGED]
    assert [len(e) for e in expected] == [3, 2, 1]
    assert np.std(np.log([p for e in expected for p in e])) > 0.05  # the values differ

    def log_value(p):
        return Tilt(FLOOR).log_potential(np.asarray(p))

    trees = [encoded(value, q, steps, [CHILDREN] * len(steps)) for q, steps in RAGGED]
    for found, own, (q, steps) in zip(value.score(trees), expected, RAGGED, strict=True):
        np.testing.assert_allclose(found.log_value, log_value([0.25, *own]), atol=1e-5)
        t = len(steps) - 1
        others = [bare(key, q, [*steps[:t], c])[-1] for c in CHILDREN]
        np.testing.assert_allclose(found.children[t], log_value(others), atol=1e-5)

    state = value.start([value.steps.prompt_ids(q) for q, _ in RAGGED])
    np.testing.assert_allclose(state[0], log_value([0.25] * 3), atol=1e-6)
    state, rows = state[1], [0, 1, 2, 1]
    state = state.select(torch.tensor(rows))
    for t in range(3):
        at = [RAGGED[i][1] for i in rows]
        ids = [value.steps.step_ids(s[t] + "\n\n") if t < len(s) else [] for s in at]
        width = max(map(len, ids))
        tokens = torch.tensor([i + [-1] * (width - len(i)) for i in ids])
        found, state = value.advance(state, tokens)
        for v, i in zip(found.tolist(), rows, strict=True):
            if t < len(expected[i]):
                assert v == pytest.approx(float(log_value(expected[i][t])), abs=1e-5)
            else:
                assert np.isnan(v)


@pytest.mark.parametrize("key", ["trl", "qwen-prm", "skywork", "vgs"])
def test_formats_with_a_head_are_recognised_from_the_files(load, key):
    value = load(key)
    assert value.convention.key == key
    assert ("architecture" if key == "trl" else "tensors") in value.told_by
