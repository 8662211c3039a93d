"""The recipe that trains a policy: which tasks it takes, and what its gate asks."""

import json
from pathlib import Path

import pytest
from checks import check_error

from rmtools.lm.policy import load_policy
from rmtools.lm.steps import StepSettings

RECIPE = Path(__file__).parents[2] / "recipes" / "train_policy.py"
TINY = ("--horizon", 3, "--iterations", 2, "--batch", 4, "--hidden", 16, "--gate-samples", 8)


@pytest.mark.parametrize("task", ["crossing", "arithmetic-silent"])
def test_an_untrained_policy_does_not_pass(run, tmp_path, task):
    result = run("--task", task, "--out", tmp_path / "policy", *TINY, script=RECIPE)
    assert result.code == 1, result.err
    assert f"gate NOT passed (task {task}: well-formed >= .98" in result.out
    assert ("success in [.03, .10]" in result.out) == (task == "crossing")
    gate = json.loads((tmp_path / "policy" / "gate.json").read_text())
    assert set(gate) == {"well_formed", "right_row", "samples", "success"}
    load_policy(tmp_path / "policy", StepSettings("\n", 3))


def test_tasks_without_demonstrations(run, tmp_path):
    result = run("--task", "gsm8k", "--out", tmp_path / "policy", script=RECIPE)
    check_error(result, "'gsm8k' is no task with an exact check", "crossing-silent")
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (("--seed", -1), "seed"),
        (("--seed", 2**32), "seed"),
        (("--learning-rate", "nan"), "learning_rate"),
        (("--learning-rate", -1), "learning_rate"),
        (("--initializer-range", -1), "initializer_range"),
        (("--rope-theta", 0), "rope_theta"),
        (("--iterations", 0), "iterations"),
        (("--care", 1.5), "care"),
        (("--early-care", -0.1), "early_care"),
        (("--gate-samples", -1), "gate_samples"),
        (("--hidden", 20), "no multiple of 8"),
    ],
)
def test_wrong_options_write_nothing(run, tmp_path, options, fact):
    check_error(run("--out", tmp_path / "policy", *TINY, *options, script=RECIPE), fact)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_only_the_quick_start_has_limits_beyond_the_format():
    import runpy

    passes = runpy.run_path(str(RECIPE))["passes"]
    good = {"well_formed": 0.99, "right_row": 0.995, "success": 0.05}
    for task in ("crossing", "crossing-silent", "arithmetic", "arithmetic-silent"):
        assert passes(good, task)
        assert not passes({**good, "well_formed": 0.97}, task)
        for worse in ({"right_row": 0.98}, {"success": 0.2}, {"success": 0.0}):
            assert passes({**good, **worse}, task) == (task != "crossing")
