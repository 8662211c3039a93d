"""The contract of scorers (rmtools.testing): every implementation keeps it, and every law is broken by one made for it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rmtools.adapters.genlm import GenlmScorer, ValuePotential
from rmtools.adapters.its_hub import ItsHubReward, ItsHubScorer
from rmtools.auditing.controls import position_only
from rmtools.data.rollouts import Child, Rollout, RolloutMetadata, write_rollouts
from rmtools.lm.implicit import ImplicitValue
from rmtools.lm.policy import Policy
from rmtools.lm.protocol import TreeValues
from rmtools.lm.retokenise import Retokenised
from rmtools.lm.steps import StepTokenizer
from rmtools.lm.tokenizers import word_tokenizer
from rmtools.lm.value import ConstantValue, ValueModel
from rmtools.testing import check_scorer
from rmtools.training.metrics import ShardedScorer


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def rows(prompts):
    """Trajectories of one to three steps, with and without alternatives, and one that the end of the sequence closes."""

    def row(prompt, steps, *children):
        at = [[Child(text, False, None) for text in texts] for texts in children]
        return Rollout(prompt, prompt, steps, 1.0, children=at)

    return [
        row(prompts[0], ["u r3 \n", "s r2 \n", "d x \n"], ["u x \n", "s r2 \n"], [], ["s r1 \n"]),
        row(prompts[1], ["s r2 \n"], ["d x \n"]),
        row(prompts[0], ["u r3 \n", "d r1 \n"]),
        row(prompts[2], ["d r1 \n", "s <eos>"], [], ["u x \n"]),
    ]


@pytest.fixture(scope="module")
def foreign(value, task):
    """A value model whose tokenizer has the words in another order."""
    tokenizer = word_tokenizer(task.vocabulary()[::-1])
    return ValueModel(value.model, StepTokenizer(tokenizer, value.steps.settings), value.tilt, "foreign")


SCORERS = {
    "trained": lambda value, policy, foreign: value,
    "constant": lambda value, policy, foreign: ConstantValue(0.3, value.steps, value.tilt),
    "ratio": lambda value, policy, foreign: ImplicitValue(
        Policy(policy.model, policy.steps, 1.4, "hot"), policy, value.tilt
    ),
    "another tokenizer": lambda value, policy, foreign: Retokenised(foreign, value.steps),
    "its_hub": lambda value, policy, foreign: ItsHubScorer(
        ItsHubReward(value, include_delimiter=True), value.steps, value.tilt, include_delimiter=True
    ),
    "genlm": lambda value, policy, foreign: GenlmScorer(
        lambda prompt: ValuePotential(value, prompt), value.steps, value.tilt
    ),
    "one process of several": lambda value, policy, foreign: ShardedScorer(value, 0, 1, list),
}


@pytest.mark.parametrize("kind", SCORERS)
def test_scorers_keep_the_contract(kind, value, policy, foreign, rows):
    check_scorer(SCORERS[kind](value, policy, foreign), rows, tolerance=2e-5)


def test_the_control_by_position_keeps_the_contract(value, rows):
    check_scorer(position_only(rows, value.steps, value.tilt, rng()), rows)


class Around:
    """A value model; a subclass breaks one law."""

    def __init__(self, value):
        self.value = value
        self.steps, self.tilt, self.name, self.is_probability = value.steps, value.tilt, "broken", True

    def score(self, trees, progress=None):
        return self.value.score(trees, progress)

    def start(self, prompts):
        return self.value.start(prompts)

    def advance(self, state, tokens):
        return self.value.advance(state, tokens)


class AnotherStart(Around):
    def start(self, prompts):
        values, state = self.value.start(prompts)
        return values - 0.1, state


class AnotherAdvance(Around):
    def advance(self, state, tokens):
        values, state = self.value.advance(state, tokens)
        return values * 0.9, state


class Reversed(Around):
    def score(self, trees, progress=None):
        return self.value.score(trees, progress)[::-1]


class Unscaled(Around):
    def score(self, trees, progress=None):
        return [TreeValues(v.log_value + 1, v.children) for v in super().score(trees, progress)]


class ByBatch(Around):
    """A value depends on what is scored with it."""

    def score(self, trees, progress=None):
        shift = 0.01 * any(t.segment[-1] for t in trees)
        return [TreeValues(v.log_value - shift, v.children) for v in super().score(trees, progress)]


class ByCount(Around):
    """A value depends on how many are scored with it."""

    def score(self, trees, progress=None):
        scale = 0.99 ** len(trees)
        return [TreeValues(v.log_value * scale, v.children) for v in super().score(trees, progress)]


class TooLow(Around):
    def score(self, trees, progress=None):
        return [TreeValues(v.log_value - 9, v.children) for v in super().score(trees, progress)]


class ChildrenOfOthers(Around):
    def score(self, trees, progress=None):
        return [
            TreeValues(v.log_value, [c - 0.01 for c in v.children]) for v in super().score(trees, progress)
        ]


class Silent(Around):
    def score(self, trees, progress=None):
        return self.value.score(trees)


class NoNumber(Around):
    def score(self, trees, progress=None):
        found = super().score(trees, progress)
        found[1].log_value[0] = np.nan
        return found


class Fills(Around):
    """A row without a token gets a new value."""

    def advance(self, state, tokens):
        values, state = self.value.advance(state, tokens)
        return torch.nan_to_num(values, nan=-1.0), state


class Held:
    """A state of a value model that a subclass selects or joins wrongly, or that remembers being advanced."""

    def __init__(self, inner, uses=0):
        self.inner, self.uses = inner, uses

    def select(self, rows):
        return type(self)(self.inner.select(rows))

    def join(self, other):
        return type(self)(self.inner.join(other.inner))


class Stays(Held):
    def select(self, rows):
        return type(self)(self.inner.select(torch.arange(len(rows)) % len(self.inner)))


class Swaps(Held):
    def join(self, other):
        return type(self)(other.inner.join(self.inner))


class Holding(Around):
    def __init__(self, value, kind):
        super().__init__(value)
        self.kind = kind

    def start(self, prompts):
        values, state = self.value.start(prompts)
        return values, self.kind(state)

    def advance(self, state, tokens):
        values, after = self.value.advance(state.inner, tokens)
        return values, self.kind(after)


class Mutates(Holding):
    def advance(self, state, tokens):
        values, after = super().advance(state, tokens)
        state.inner = after.inner
        return values, after


@pytest.mark.parametrize(
    ("make", "law"),
    [
        (AnotherStart, "start at the prompt"),
        (AnotherAdvance, "start and then advance"),
        (Reversed, "shapes|prefix alone|start at"),
        (Unscaled, r"\[floor, 1\]"),
        (TooLow, r"\[floor, 1\]"),
        (ByBatch, "prefix alone"),
        (ChildrenOfOthers, "a trajectory that takes it"),
        (Silent, "progress"),
        (NoNumber, "numbers below inf"),
        (Fills, "without a token"),
        (lambda value: Holding(value, Stays), r"select\(rows\) gives|select\(a\)"),
        (lambda value: Holding(value, Swaps), "is select"),
        (lambda value: Mutates(value, Held), "advance changed the state"),
    ],
)
def test_broken_scorers_are_caught(make, law, value, rows):
    check_scorer(Holding(value, Held), rows)
    with pytest.raises(AssertionError, match=law):
        check_scorer(make(value), rows)


def test_a_value_that_depends_on_how_many_are_scored_is_caught(value, rows):
    with pytest.raises(AssertionError, match="prefix alone"):
        check_scorer(ByCount(value), [replace(r, children=[[] for _ in r.steps]) for r in rows])


class Half(Around):
    """Values in half precision, at the floor."""

    def score(self, trees, progress=None):
        low = self.tilt.log_potential(np.zeros(1)).astype(np.float16)[0] - np.float16(2e-3)
        found = super().score(trees, progress)
        return [
            TreeValues(v.log_value * 0 + low, [np.asarray(c) * 0 + low for c in v.children]) for v in found
        ]

    def start(self, prompts):
        values, state = super().start(prompts)
        return values * 0 + float(self.tilt.log_potential(np.zeros(1))[0]), state

    def advance(self, state, tokens):
        values, state = super().advance(state, tokens)
        return values * 0 + float(self.tilt.log_potential(np.zeros(1))[0]), state


def test_half_precision_may_leave_the_range_by_the_tolerance(value, rows):
    check_scorer(Half(value), rows, tolerance=5e-3)
    with pytest.raises(AssertionError, match="floor"):
        check_scorer(Half(value), rows, tolerance=1e-5)


def test_the_scorer_of_the_documentation_runs(
    policy_folder, settings, rollouts, tmp_path, monkeypatch, capsys
):
    """Every Python block of docs/contracts.md, in a folder that looks like the quick start's."""
    page = Path(__file__).parents[2] / "docs" / "contracts.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "runs" / "quickstart" / "rollouts" / "audit"
    write_rollouts(folder, rollouts, RolloutMetadata(str(policy_folder), "", "crossing", 3, settings, 1.0, 5))
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(block, names)
    said, best = capsys.readouterr().out, names["samples"][0].best
    assert "RMS b" in said
    assert best
    assert said.endswith(f"{best}\n")
