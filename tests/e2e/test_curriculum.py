"""The recipe that writes demonstrations from easy to hard."""

from pathlib import Path

import pytest
from checks import check_error

from rmtools.data.rollouts import read_rollouts

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


@pytest.mark.parametrize("stages", ["", "5", "5:0:.5", "5:0-3:.5", "5:2-1:.5", "5:0-0:1.5"])
def test_wrong_stages(run, tmp_path, policy_folder, stages):
    options = ("--policy", policy_folder, "--horizon", 3, "--out", tmp_path / "r", "--stages", stages)
    check_error(run(*options, script=SCRIPT), "the stage")
    assert not (tmp_path / "r").exists()
