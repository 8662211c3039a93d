"""From rollouts to batches: what is encoded, counted, cut and left out."""

import itertools
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from rmtools.data.rollouts import Child, Rollout
from rmtools.errors import UserError
from rmtools.particles.tilt import Tilt
from rmtools.training.batching import ORDERS, Collator, RowOrder, ragged
from rmtools.training.examples import example, prepare, within
from rmtools.training.objective import Objective

FLOOR = 0.05

ROWS = [
    Rollout(
        "a",
        "r2 . \n",
        ["u r3 \n", "s x \n"],
        0.75,
        [[Child("d r1 \n", False, None)], [Child("s r3 \n", True, 0.25)]],
        [[0.5, 1.0], [0.0]],
    ),
    Rollout("b", "r1 . \n", ["u \n"], 0.0),
]


def test_examples_keep_soft_rewards(step_tokenizer):
    """0.75 is not cast to 0: potentials of trajectory, ended child and completions."""
    tilt = Tilt(FLOOR)
    one = example(ROWS[0], step_tokenizer, tilt)
    assert math.exp(one.log_potential) == pytest.approx(FLOOR + (1 - FLOOR) * 0.75)
    assert np.isnan(one.child_log_potential[0]).all()
    np.testing.assert_allclose(np.exp(one.child_log_potential[1]), FLOOR + (1 - FLOOR) * 0.25)
    np.testing.assert_allclose(
        np.exp(one.completion_log_potential[0]), [FLOOR + (1 - FLOOR) * r for r in (0.5, 1.0)]
    )


def test_a_batch_by_hand(step_tokenizer):
    tilt = Tilt(FLOOR)
    batch = Collator(step_tokenizer.pad_id)([example(r, step_tokenizer, tilt) for r in ROWS])
    assert batch["reads"].tolist() == [[2, 5, 8], [14, 16, 0]]  # the second row begins at 12
    assert batch["length"].tolist() == [2, 1]
    assert batch["child_reads"].tolist() == [[[11], [-1]], [[-1], [-1]]]  # one child goes on, one ended
    assert batch["child_log_count"].exp().tolist() == [[[1], [1]], [[0], [0]]]
    assert batch["complete"].tolist() == [True, True]
    assert torch.isnan(batch["child_log_potential"]).tolist() == [[[True], [False]], [[True], [True]]]
    assert batch["completion_log_potential"].shape == (2, 3, 2)
    assert (batch["completion_log_potential"] == -math.inf).tolist() == [
        [[False, False], [False, True], [True, True]],
        [[True, True]] * 3,
    ]
    assert batch["model"]["input_ids"].shape == (2, 12)
    ids = batch["model"]["input_ids"].flatten()[batch["reads"]]
    (newline,) = step_tokenizer.step_ids("\n")
    assert ids[0].tolist() == [newline] * 3
    assert ids[1, :2].tolist() == [newline] * 2


def test_ragged_without_branches():
    assert ragged([[], []], 3, -1).shape == (2, 3, 0)


def test_without_children_the_forward_pass_is_the_trajectory_alone(step_tokenizer):
    """And only then is no 4-d mask needed."""
    examples = [example(r, step_tokenizer, Tilt(FLOOR)) for r in ROWS]
    batch = Collator(step_tokenizer.pad_id, "none")(examples)
    assert batch["model"]["input_ids"].shape == (2, 9)
    assert "attention_mask" not in batch["model"]
    assert batch["child_reads"].shape == (2, 2, 0)
    assert batch["completion_log_potential"].shape == (2, 3, 2)


def test_equal_children_are_encoded_once_and_counted(step_tokenizer):
    """Of seven alternatives three are the same, one ended, two equal the own step: one is encoded."""
    down, own = Child("d r1 \n", False, None), Child("u r3 \n", False, None)
    row = Rollout(
        "a", "r2 . \n", ["u r3 \n"], 1.0, [[down, own, down, Child("s x \n", True, 0.0), own, down]]
    )
    found = example(row, step_tokenizer, Tilt(FLOOR))
    assert len(found.tree.ids) == 9
    assert found.child_reads[0].tolist() == [8, 5, -1]
    np.testing.assert_allclose(np.exp(found.child_log_count[0]), [3, 2, 1])


LONG = Rollout(
    "long",
    "r2 . \n",
    ["u r3 \n", "s r3 \n", "d r2 \n"],
    1.0,
    labels=[None, None, 0.75],
    completions=[[0.0]] * 3,
)


@pytest.mark.parametrize(("limit", "kept"), [(12, 3), (11, 2), (9, 2), (6, 1), (5, 0)])
def test_a_long_row_loses_its_last_steps_whole(step_tokenizer, limit, kept, caplog):
    with caplog.at_level(logging.WARNING):
        found = prepare([LONG], step_tokenizer, Tilt(FLOOR), "mc", limit)
    (one,) = found.examples
    assert (one.length, one.complete) == (kept, kept == 3)
    assert len(one.completion_log_potential) == min(kept + 1, 3)
    assert found.shortened == (kept < 3)
    assert ("1 of 1 rows lost their last steps" in caplog.text) == (kept < 3)


def test_a_cut_row_has_no_target_at_its_last_prefix_but_the_outcome(step_tokenizer):
    """Bootstrapped targets go on from the value of what was cut: the last prefix kept has none."""
    cut = prepare([LONG], step_tokenizer, Tilt(FLOOR), "mc", 9).examples
    for target, known in (
        ("td", [1, 1, 0]),
        ("n_step", [1, 1, 0]),
        ("td_lambda", [1, 1, 0]),
        ("mc", [1, 1, 1]),
    ):
        objective = Objective(target, "mse", FLOOR, n_step=2)
        batch = Collator(0)(cut)
        copy = fake_values(batch)
        log_target, has = objective.targets(batch, copy)
        assert has[0].tolist() == list(map(bool, known))
        assert objective.count(cut[0]) == sum(known)
        assert bool(torch.isfinite(log_target[has]).all())
        if target == "n_step":  # two steps on from the root is the last prefix kept; one step before it, too
            np.testing.assert_allclose(log_target[0, :2], copy.prefix[0, 2])


@pytest.mark.parametrize("target", ["td", "td_lambda", "n_step"])
def test_a_cut_row_has_the_same_targets_beside_a_longer_one(step_tokenizer, target):
    """What it ends in is the value of its own last prefix, not of the padding behind it."""
    cut = prepare([LONG], step_tokenizer, Tilt(FLOOR), "mc", 9).examples
    whole = example(LONG, step_tokenizer, Tilt(FLOOR))
    objective = Objective(target, "mse", FLOOR, n_step=2)
    found = []
    for rows in (cut, [*cut, whole]):
        batch = Collator(0)(rows)
        values = fake_values(batch)
        width = batch["reads"].shape[1]
        prefix = torch.tensor([-2.0, -1.5, -1.0, -0.1])[:width].expand(len(rows), width)
        found.append(objective.targets(batch, replace(values, prefix=prefix))[0][0, :2])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("target", ["td", "td_lambda", "n_step"])
def test_rows_without_any_outcome_left_are_refused(step_tokenizer, target, caplog):
    """Cut after two of three steps; an alternative that ends the solution is an outcome, one that goes on is none."""
    tilt = Tilt(FLOOR)
    with pytest.raises(UserError, match="max_length 9") as error:
        prepare([LONG], step_tokenizer, tilt, target, 9)
    assert "target mc" in error.value.fix
    prepare([LONG], step_tokenizer, tilt, "mc", 9)
    for ended, reward in ((True, 1.0), (False, None)):
        child = replace(LONG, children=[[Child(LONG.steps[0], ended, reward)], [], []], completions=[])
        if ended:
            prepare([child], step_tokenizer, tilt, target, 9)
            assert "and with them the outcome" in caplog.text
        else:
            with pytest.raises(UserError, match="outcome"):
                prepare([child], step_tokenizer, tilt, target, 9)


def test_tokens_that_the_tokenizer_does_not_know(step_tokenizer, caplog):
    """One of the first row's 12 tokens; two thirds of the second's."""
    some = replace(LONG, steps=[*LONG.steps[:2], "d what \n"])
    prepare([some], step_tokenizer, Tilt(FLOOR), "mc", None)
    assert "does not know 1 of the 12 tokens" in caplog.text
    with pytest.raises(UserError, match="4 of the 6 tokens"):
        prepare(
            [Rollout("b", "what else \n", ["who knows \n"], 1.0)], step_tokenizer, Tilt(FLOOR), "mc", None
        )


def fake_values(batch):
    from rmtools.training.objective import Values

    shape = batch["reads"].shape
    prefix = torch.linspace(-2.0, -1.0, shape[1]).expand(shape)
    return Values(prefix, torch.zeros(batch["child_reads"].shape))


def test_a_truncation_that_leaves_no_label_is_named_and_counted(step_tokenizer, caplog):
    """A peer's loss is NaN here."""
    other = replace(LONG, prompt_id="other", labels=[1.0, None, 0.5])
    with caplog.at_level(logging.WARNING):
        found = prepare([LONG, other], step_tokenizer, Tilt(FLOOR), "labels", 9)
    assert len(found.examples) == 1
    assert found.dropped == ["row 0 (prompt long, 'r2 . \\n'): no labelled step is left within max_length"]
    assert "1 left out, first row 0 (prompt long," in caplog.text
    with pytest.raises(UserError, match=r"row 0 \(prompt long,"):
        prepare([LONG], step_tokenizer, Tilt(FLOOR), "labels", 9)
    with pytest.raises(UserError, match=r"prompt.*max_length"):
        prepare([LONG], step_tokenizer, Tilt(FLOOR), "mc", 2)
    with pytest.raises(UserError, match="step fits"):
        prepare([LONG], step_tokenizer, Tilt(FLOOR), "td", 4)


@pytest.mark.parametrize(
    ("row", "target", "words"),
    [
        (
            replace(LONG, reward=None),
            "td",
            r"row 0 \(prompt long, .*\), field reward: is null, target td needs",
        ),
        (replace(LONG, reward=None), "mc", "field reward: is null, target mc needs"),
        (replace(LONG, labels=None), "labels", r"row 0 \(prompt long, .*\), field labels: is null"),
    ],
)
def test_rows_without_what_the_target_needs(step_tokenizer, row, target, words):
    with pytest.raises(UserError, match=words):
        prepare([row], step_tokenizer, Tilt(FLOOR), target, None)


def test_labels_stay_soft_and_missing_ones_are_no_target(step_tokenizer):
    (one,) = prepare([LONG], step_tokenizer, Tilt(FLOOR), "labels", None).examples
    objective = Objective("labels", "bce", FLOOR)
    log_target, known = objective.targets(Collator(0)([one]))
    assert known[0].tolist() == [False, False, False, True]
    assert objective.count(one) == 1
    assert float(log_target[0, 3].exp()) == pytest.approx(FLOOR + (1 - FLOOR) * 0.75)
    labelled = replace(LONG, labels=[0.25, None, 1.0])
    (one,) = prepare([labelled], step_tokenizer, Tilt(FLOOR), "labels", None).examples
    log_target, known = objective.targets(Collator(0)([one]))
    assert known[0].tolist() == [True, True, False, True]
    assert objective.count(one) == 3
    np.testing.assert_allclose(log_target[0, :2].exp(), FLOOR + (1 - FLOOR) * 0.25, rtol=1e-6)


# The order of the rows


def lengths(n):
    return np.random.default_rng(0).integers(10, 400, n)


def order_of(size, strategy="group_by_length", multiple=1, seed=5):
    return RowOrder(size, np.arange(len(size)) % 90, strategy, 8, multiple, seed)


@pytest.mark.parametrize("strategy", ORDERS)
def test_every_row_once_an_epoch_whatever_the_length(strategy):
    sampler = order_of(lengths(1003), strategy)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(1003))
    assert len(sampler) == 1003


@pytest.mark.parametrize("strategy", ORDERS)
@pytest.mark.parametrize(("n", "fillers"), [(1003, 5), (1008, 0)])
def test_fillers_make_the_last_forward_pass_whole_and_stand_last(strategy, n, fillers):
    sampler = order_of(lengths(n), strategy, multiple=16 if fillers else 8)
    found = list(sampler)
    assert len(sampler) == len(found) == n + fillers
    assert sorted(found[:n]) == list(range(n))
    assert found[n:] == [n] * fillers


@pytest.mark.parametrize("strategy", ["group_by_prompt", "group_by_length", "random"])
def test_the_order_is_that_of_seed_and_epoch(strategy):
    a, b = (order_of(lengths(500), strategy) for _ in range(2))
    assert list(a) == list(b)
    assert list(a) == list(a)
    b.set_epoch(1)
    assert list(a) != list(b)
    assert list(a) != list(order_of(lengths(500), strategy, seed=6))


def test_batches_are_level_and_their_order_is_not():
    """Padding: with lengths of 10 to 400 random batches of 8 are 45% pads, these a few percent."""
    size = lengths(2000)

    def padding(order):
        batches = size[np.asarray(order)].reshape(-1, 8)
        return 1 - batches.sum() / (8 * batches.max(1).sum())

    order = list(order_of(size, seed=0))
    assert padding(np.random.default_rng(0).permutation(2000)) > 0.35
    assert padding(order) < 0.05
    longest = size[np.asarray(order)].reshape(-1, 8).max(1)
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.2


def test_by_prompt_the_rows_of_each_come_together():
    sampler = order_of(lengths(1003), "group_by_prompt")
    prompts = np.asarray(list(sampler)) % 90
    turns = [prompt for prompt, _ in itertools.groupby(prompts)]
    assert sorted(turns) == list(range(90)) != turns
    sampler.set_epoch(1)
    assert [p for p, _ in itertools.groupby(np.asarray(list(sampler)) % 90)] != turns


def test_held_out_rows_are_whole_or_left_out(step_tokenizer, caplog):
    """Tokens of the two rows: 9 and 5."""
    assert within(ROWS, step_tokenizer, None) == within(ROWS, step_tokenizer, 9) == ROWS
    with caplog.at_level(logging.WARNING):
        assert within(ROWS, step_tokenizer, 8) == ROWS[1:]
    assert "1 of 2 held-out rows left out" in caplog.text
    with pytest.raises(UserError, match=r"2 held-out.*4 tokens"):
        within(ROWS, step_tokenizer, 4)
    assert within([], step_tokenizer, 4) == []
