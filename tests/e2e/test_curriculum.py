"""The recipe that writes demonstrations from easy to hard."""

import shutil
from pathlib import Path

import pytest
from checks import check_error

from rmtools.data.rollouts import read_rollouts
from rmtools.data.tasks import Arithmetic

SCRIPT = Path(__file__).parents[2] / "recipes" / "curriculum.py"


def test_rows_come_in_the_order_of_the_stages(run, tmp_path, policy_folder):
    out = tmp_path / "rollouts"
    options = ("--policy", policy_folder, "--horizon", 3, "--batch", 4, "--out", out)
    result = run(*options, "--stages", "2:2-2:.5,1:1-2:.7,3:0-0:.9", script=SCRIPT)
    assert result.code == 0, result.err
    rows, metadata = read_rollouts(out)
    lengths = [len(r.steps) for r in rows]
    assert lengths[:8] == [1] * 8
    assert set(lengths[8:12]) <= {1, 2}
    assert lengths[12:] == [3] * 12
    assert (metadata.task, metadata.horizon) == ("crossing-silent", 3)


def test_a_stage_labels_each_step_by_itself(run, tmp_path, policy_folder):
    out = tmp_path / "rollouts"
    options = ("--policy", policy_folder, "--horizon", 4, "--batch", 8, "--out", out)
    stages = ("--task", "arithmetic-silent", "--stages", "4:0-0:.5:steps,1:2-2:.5,1:0-0:.7:prefixes")
    result = run(*options, *stages, script=SCRIPT)
    assert result.code == 0, result.err
    rows, _ = read_rollouts(out)
    task = Arithmetic(4, silent=True)
    for row in rows[:32]:
        right = zip(row.steps, task.reference(row.prompt).splitlines(keepends=True), strict=True)
        assert row.labels == [float(step == due) for step, due in right]
    assert any(0.0 in r.labels[:-1] and r.labels[-1] == 1.0 for r in rows[:32])
    assert all(r.labels == [r.outcome] * 2 for r in rows[32:40])
    assert 0 < sum(r.outcome for r in rows[32:40]) < 8
    assert all(r.labels == task.step_labels(r.prompt, r.steps) for r in rows[40:])
    assert any(r.labels[0] > r.labels[-1] for r in rows[40:])


def test_labels_by_itself_need_a_task_of_independent_steps(run, tmp_path, policy_folder):
    options = ("--policy", policy_folder, "--horizon", 3, "--out", tmp_path / "r")
    check_error(run(*options, "--stages", "5:0-0:.5:steps", script=SCRIPT), "arithmetic-silent")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "stages",
    [
        "",
        "5",
        "5:1-1:.5:steps",
        "5:1-1:.5:prefixes",
        "5:0-0:.5:labels",
        "5:0:.5",
        "0:0-0:.5",
        "9" * 5000 + ":0-0:.5",
        "5:0-3:.5",
        "5:2-1:.5",
        "5:0-0:1.5",
    ],
)
def test_wrong_stages(run, tmp_path, policy_folder, stages):
    options = ("--policy", policy_folder, "--horizon", 3, "--out", tmp_path / "r", "--stages", stages)
    check_error(run(*options, script=SCRIPT), "the stage")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (("--seed", -1), "seed"),
        (("--batch", 0), "batch"),
        (("--batch", 10**13), "rows"),
        (("--policy", "nowhere"), "nowhere"),
    ],
)
def test_wrong_options_write_nothing(run, tmp_path, policy_folder, options, fact):
    given = ("--policy", policy_folder, "--horizon", 3, "--stages", "1:0-0:.5", "--out", tmp_path / "r")
    check_error(run(*given, *options, script=SCRIPT), fact)
    assert not (tmp_path / "r").exists()


def test_a_policy_without_weights_is_refused(run, tmp_path, policy_folder):
    shutil.copytree(policy_folder, tmp_path / "policy")
    (tmp_path / "policy" / "model.safetensors").unlink()
    options = (
        "--policy",
        tmp_path / "policy",
        "--horizon",
        3,
        "--stages",
        "1:0-0:.5",
        "--out",
        tmp_path / "r",
    )
    check_error(run(*options, script=SCRIPT), "policy")
    assert not (tmp_path / "r").exists()
