"""Held-out metrics against their formulas on values that are known, and the constant beside them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from test_training_trainer import trainer_for

from rmtools.data.rollouts import Child, Rollout
from rmtools.lm.protocol import TreeValues
from rmtools.particles.tilt import Tilt
from rmtools.stats.prefix_errors import prefix_errors
from rmtools.training.metrics import ShardedScorer, held_out_metrics

FLOOR = 0.05
ROWS = [
    Rollout(
        "a",
        "r2 . \n",
        ["u r3 \n", "s r3 \n"],
        1.0,
        [[Child("d r1 \n", False, None)] * 2, [Child("s x \n", True, 0.0), Child("u r4 \n", True, 1.0)]],
        labels=[0.9, 0.2],
    ),
    Rollout("b", "r1 . \n", ["u x \n"], 0.0, [[Child("s r1 \n", True, 1.0)]], labels=[0.4]),
]


class Fixed:
    """A scorer with given probabilities at prefixes and children."""

    name = "fixed"

    def __init__(self, steps, values):
        self.steps, self.tilt, self.values = steps, Tilt(FLOOR), values

    def score(self, trees, progress=None):
        return [
            TreeValues(
                self.tilt.log_potential(np.asarray(p)),
                [
                    self.tilt.log_potential(np.asarray(c[: len(at)]))
                    for c, at in zip(cs, t.child_reads, strict=True)
                ],
            )
            for (p, cs), t in zip(self.values, trees, strict=True)
        ]


VALUES = [([0.3, 0.6, 0.7], [[0.2, 0.2], [0.5, 0.5]]), ([0.4, 0.1], [[0.5]])]


def phi(p):
    return FLOOR + (1 - FLOOR) * p


def test_the_bellman_metrics_are_the_audits_estimators(step_tokenizer):
    """Own step .6 and twice .2 at the first prefix; outcomes 1, 0, 1 at the second; 0, 1 at the third."""
    found = held_out_metrics(ROWS, Fixed(step_tokenizer, VALUES))
    prefixes = [phi(0.3), phi(0.6), phi(0.4)]
    children = [[phi(0.6), phi(0.2), phi(0.2)], [phi(1), phi(0), phi(1)], [phi(0), phi(1)]]
    errors = [prefix_errors(np.log([v]), np.log([c])) for v, c in zip(prefixes, children, strict=True)]
    square = [float(e.log_error_square[0]) for e in errors]
    mean = np.mean(square)
    assert found["mean_square_log_bellman"] == pytest.approx(mean)
    assert found["rms_log_bellman"] == pytest.approx(math.sqrt(max(mean, 0)))
    assert found["t_rms_log_bellman"] == pytest.approx(2 * math.sqrt(max(mean, 0)))
    assert found["mean_log_bellman"] == pytest.approx(np.mean([e.log_error[0] for e in errors]))
    assert found["mean_square_bellman"] == pytest.approx(np.mean([e.squared_error[0] for e in errors]))
    assert found["rms_log_bellman_at_0"] == pytest.approx(math.sqrt(max(np.mean([square[0], square[2]]), 0)))
    assert found["rms_log_bellman_at_1"] == pytest.approx(math.sqrt(max(square[1], 0)))
    plain = np.mean([e.log_error[0] ** 2 for e in errors])
    assert found["mean_square_log_bellman"] < plain - 0.01  # the noise is taken off


def test_the_roots_of_errors_that_are_no_noise(step_tokenizer):
    """Every next step has the same value, so nothing is taken off: log rho is known at each prefix; T is 2."""
    same = [([0.9, 0.1, 0.7], [[0.1, 0.1], [0.5, 0.5]]), ([0.8, 0.1], [[0.5]])]
    rows = [replace(ROWS[0], reward=1.0, children=[ROWS[0].children[0], [Child("u r4 \n", True, 1.0)]])]
    found = held_out_metrics(rows, Fixed(step_tokenizer, same[:1]))
    errors = [math.log(phi(0.1) / phi(0.9)), math.log(phi(1) / phi(0.1))]
    rms = math.sqrt(np.mean(np.square(errors)))
    assert found["rms_log_bellman"] == pytest.approx(rms)
    assert found["t_rms_log_bellman"] == pytest.approx(2 * rms)
    for t in (0, 1):
        assert found[f"rms_log_bellman_at_{t}"] == pytest.approx(abs(errors[t]))


def test_the_calibration_metrics_by_hand(step_tokenizer):
    found = held_out_metrics(ROWS, Fixed(step_tokenizer, VALUES))
    p, y = np.array([0.3, 0.6, 0.7, 0.4, 0.1]), np.array([1, 1, 1, 0, 0])
    assert found["brier"] == pytest.approx(np.mean((p - y) ** 2))
    assert found["auc"] == pytest.approx(5 / 6)
    assert found["last_auc"] == 1.0
    assert found["label_brier"] == pytest.approx(np.mean([0.3**2, 0.5**2, 0.3**2]))


def test_rows_with_labels_alone(step_tokenizer):
    rows = [Rollout(r.prompt_id, r.prompt, r.steps, None, labels=r.labels) for r in ROWS]
    found = held_out_metrics(rows, Fixed(step_tokenizer, VALUES))
    assert set(found) == {"label_brier", "label_auc"}


def test_shared_out_scores_are_all_scores(value, step_tokenizer):
    """Three processes that gather in any order, one of them without a tree."""
    trees = [step_tokenizer.encode(r.prompt, r.steps) for r in ROWS]
    parts = []
    for rank in range(3):
        ShardedScorer(value, rank, 3, lambda mine: parts.append(mine) or [(i, None) for i in range(2)]).score(
            trees
        )
    assert sorted(len(p) for p in parts) == [0, 1, 1]
    joined = [x for p in parts[::-1] for x in p]
    found = ShardedScorer(value, 0, 3, lambda mine: joined).score(trees)
    for a, b in zip(found, value.score(trees), strict=True):
        np.testing.assert_allclose(a.log_value, b.log_value, atol=1e-6)


def test_the_constant_is_the_mean_of_what_it_is_compared_on(policy_folder, step_tokenizer, tmp_path):
    """Rewards near 0 and labels near 1 in the same rows: each metric has the constant of its own kind."""
    train = [Rollout("t", "r0 . \n", ["s r0 \n"], float(i == 0), labels=[0.9]) for i in range(4)]
    trainer = trainer_for(policy_folder, step_tokenizer, train, tmp_path, ROWS, target="mc", floor=FLOOR)
    found = trainer.evaluate()
    y = np.array([1, 1, 1, 0, 0])
    assert found["eval_constant_brier"] == pytest.approx(np.mean((0.25 - y) ** 2), abs=1e-6)
    labels = np.array([0.9, 0.2, 0.4])
    assert found["eval_constant_label_brier"] == pytest.approx(np.mean((0.9 - labels) ** 2), abs=1e-6)
