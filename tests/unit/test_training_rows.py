"""The part of the rows that is held out, and the model that is trained on the rest."""

from dataclasses import replace

import pytest
from trl import ModelConfig

from rmtools.cli.train import arguments
from rmtools.data.rollouts import Rollout, RolloutMetadata
from rmtools.errors import UserError
from rmtools.training.config import PRMConfig
from rmtools.training.run import hold_out, require_base


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
    with pytest.raises(UserError, match="none on one side"):
        hold_out(rows_of(1), 0.01)


METADATA = RolloutMetadata.unknown(rows_of(1))


def base(metadata=METADATA, **named):
    return require_base(ModelConfig(**named), metadata)


def test_a_model_is_named_by_the_rollouts_or_the_user():
    with pytest.raises(UserError, match="no model"):
        base()
    assert base(model_name_or_path="some/model") == "some/model"
    assert base(replace(METADATA, policy="its/policy")) == "its/policy"


@pytest.mark.parametrize("by_rollouts", [False, True])
def test_a_revision_is_named_once(by_rollouts, tmp_path):
    def named(model, revision):
        if by_rollouts:
            return base(replace(METADATA, policy=model), model_revision=revision)
        return base(model_name_or_path=model, model_revision=revision)

    assert (
        named("some/model", "v2")
        == named("some/model@v2", "v2")
        == named("some/model@v2", None)
        == "some/model@v2"
    )
    for model, words in (("some/model@v1", "some/model@v1.*v2"), (str(tmp_path), "is a folder")):
        with pytest.raises(UserError, match=words) as error:
            named(model, "v2")
        assert "model_revision" in error.value.fix


@pytest.mark.parametrize(
    ("successes", "rows", "expected"),
    [(8, 16, 0.01), (2, 20, 0.01), (1, 20, 0.005), (0, 40, 0.0025), (3, 64, 0.0047)],
)
def test_the_automatic_floor_is_a_tenth_of_the_success_rate(tmp_path, successes, rows, expected):
    given = [Rollout(str(i), f"p{i}", ["a\n"], float(i < successes)) for i in range(rows)]
    for auto in (None, "auto"):
        made = PRMConfig(str(tmp_path / "out"), use_cpu=True, floor=auto)
        made.resolve_floor(given)
        assert made.floor == expected
        assert made.success_rate == successes / rows


def test_a_floor_that_is_given_is_kept_and_warns_near_the_success_rate(tmp_path, caplog):
    rows = [Rollout(str(i), f"p{i}", ["a\n"], float(i < 2)) for i in range(20)]
    for floor, warned in ((0.03, False), (0.04, True)):
        caplog.clear()
        made = PRMConfig(str(tmp_path / "out"), use_cpu=True, floor=floor)
        made.resolve_floor(rows)
        made.resolve_floor(rows)
        assert made.floor == floor
        assert len(caplog.messages) == warned


def test_the_floor_of_rows_with_labels_is_that_of_their_mean(tmp_path):
    made = PRMConfig(str(tmp_path / "out"), use_cpu=True)
    made.resolve_floor([Rollout("a", "p", ["a\n", "b\n"], None, labels=[0.1, None])] * 50)
    assert made.floor == 0.01
    made = PRMConfig(str(tmp_path / "out"), use_cpu=True)
    made.resolve_floor([Rollout("a", "p", ["a\n"], None, labels=[0.02])] * 500)
    assert made.floor == 0.002
    assert PRMConfig(str(tmp_path / "out"), use_cpu=True).floor is None


@pytest.mark.parametrize(
    ("given", "floor"), [(["--floor", "auto"], None), (["--floor", "0.02"], 0.02), ([], None)]
)
def test_the_floor_as_a_flag(tmp_path, given, floor):
    _, found, _ = arguments(["--output_dir", str(tmp_path), "--use_cpu", "true", *given])
    assert found.floor == floor
    with pytest.raises(UserError, match="floor"):
        arguments(["--output_dir", str(tmp_path), "--floor", "low"])


@pytest.mark.parametrize(("text", "floor"), [("auto", None), ("0.02", 0.02)])
def test_the_floor_in_a_configuration(tmp_path, text, floor):
    file = tmp_path / "train.yaml"
    file.write_text(f"output_dir: {tmp_path / 'out'}\nuse_cpu: true\nfloor: {text}\n")
    assert arguments(["--config", str(file)])[1].floor == floor
