"""Where training rows come from: folders of rollouts, public files unchanged, and the part that is held out."""

import json

import pytest

from rmtools.data.rollouts import Rollout, RolloutMetadata
from rmtools.errors import UserError
from rmtools.training.rows import hold_out, load_rows, metadata_without_policy, require_base

TRL = [
    {"prompt": "r2 . \nc01 . \n", "completions": ["u r3 ", "s r3 "], "labels": [True, 0.75]},
    {"prompt": "r1 . \nc24 . \n", "completions": ["s r1 "], "labels": [False]},
]


def test_rows_of_trl_are_read_unchanged(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in TRL))
    rows, metadata = load_rows(str(path))
    assert [r.labels for r in rows] == [[1.0, 0.75], [0.0]]
    assert [r.steps for r in rows] == [["u r3 \n", "s r3 \n"], ["s r1 \n"]]
    assert (metadata.policy, metadata.horizon, metadata.temperature) == ("", 2, None)
    with pytest.raises(UserError, match="no model is named"):
        require_base(None, metadata)
    assert require_base("some/model", metadata) == "some/model"


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_no_rows(name):
    with pytest.raises(UserError, match="there are no rollouts"):
        load_rows(name)


def rows_of(n):
    return [Rollout(str(i), f"prompt {i}\n", ["a\n"], 1.0) for i in range(n) for _ in range(3)]


def test_the_held_out_part_is_of_whole_prompts_and_does_not_depend_on_the_others():
    kept, held_out = hold_out(rows_of(400), 0.2)
    assert 60 < len(held_out) / 3 < 100
    assert not {r.prompt for r in kept} & {r.prompt for r in held_out}
    assert len(kept) + len(held_out) == 1200
    fewer = hold_out(rows_of(200), 0.2)[1]
    assert fewer == [r for r in held_out if int(r.prompt_id) < 200]
    assert hold_out(rows_of(5), 0.0) == (rows_of(5), [])


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_wrong_shares(share):
    with pytest.raises(UserError, match="eval_share"):
        hold_out(rows_of(5), share)


def test_a_share_that_leaves_nothing():
    with pytest.raises(UserError, match="leaves none on one side"):
        hold_out(rows_of(1), 0.01)


def test_metadata_of_rows_without_a_policy():
    found = metadata_without_policy(rows_of(2))
    assert isinstance(found, RolloutMetadata)
    assert found.steps.max_steps == 1
