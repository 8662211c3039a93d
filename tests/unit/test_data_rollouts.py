"""The dataset on disk: round trip, and every way a row or the folder can be wrong."""

import json
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmtools.data.rollouts import (
    META_FILE,
    ROWS_FILE,
    Child,
    Rollout,
    RolloutMetadata,
    read_rollouts,
    schema,
    write_rollouts,
)
from rmtools.errors import UserError
from rmtools.lm.steps import StepSettings

META = RolloutMetadata("policy", "abc", "crossing", 2, StepSettings("\n", 2, 9), 0.7, 3, 4, 5, 6)
ROWS = [
    Rollout(
        "p0",
        "r2 . \n",
        ["u r3 \n", "ümlaut ✓ \n"],
        1.0,
        [[Child("d r1 \n", False, None)], [Child("s x \n", True, 0.25), Child("<eos>", True, 0.0)]],
        [[0.0, 1.0], [0.75]],
        [0.75, 1.0],
    ),
    Rollout("p0", "r2 . \n", ["u r3 \n"], 0.75),
    Rollout("p1", "r1 . \n", ["u r2 \n", "s r2 \n"], 0.0, [[], []], [[], []]),
]


def write_raw(folder, rows, meta=None):
    """Write rows as they are, past the library's types."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), folder / ROWS_FILE)
    (folder / META_FILE).write_text(
        json.dumps({"schema_version": 1, **asdict(META)} if meta is None else meta)
    )


def test_round_trip(tmp_path):
    write_rollouts(tmp_path / "r", ROWS, META)
    rows, metadata = read_rollouts(tmp_path / "r")
    assert rows == ROWS
    assert metadata == META
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [META_FILE, ROWS_FILE]


def test_soft_rewards_labels_and_completions_are_not_cast(tmp_path):
    write_rollouts(tmp_path, ROWS, META)
    rows, _ = read_rollouts(tmp_path)
    assert rows[1].reward == 0.75
    assert rows[0].labels == [0.75, 1.0]
    assert rows[0].completions[1] == [0.75]
    assert rows[0].children[1][0].reward == 0.25


def test_writing_again_replaces(tmp_path):
    write_rollouts(tmp_path, ROWS, META)
    write_rollouts(tmp_path, ROWS[:1], replace(META, seed=9))
    rows, metadata = read_rollouts(tmp_path)
    assert (len(rows), metadata.seed) == (1, 9)


def test_datasets_reads_the_file(tmp_path):
    from datasets import Dataset

    write_rollouts(tmp_path, ROWS, META)
    table = Dataset.from_parquet(str(tmp_path / ROWS_FILE), cache_dir=str(tmp_path / "cache"))
    assert table[0]["steps"] == ROWS[0].steps


GOOD = {
    "prompt_id": "p",
    "prompt": "q\n",
    "steps": ["a\n", "b\n"],
    "reward": 1.0,
    "children": [],
    "completions": [],
    "labels": None,
}
CHILD = {"text": "c\n", "ended": False, "reward": None}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt_id": None}, "prompt_id"),
        ({"steps": []}, "steps"),
        ({"steps": None}, "steps"),
        ({"steps": ["a\n", None]}, "steps"),
        ({"steps": ["a\n", ""]}, "steps"),
        ({"reward": None}, "reward"),
        ({"reward": 1.5}, "reward"),
        ({"reward": -0.1}, "reward"),
        ({"reward": float("nan")}, "reward"),
        ({"children": [[CHILD]]}, "children"),
        ({"children": [[CHILD], None]}, "children"),
        ({"children": [[{**CHILD, "ended": True}], []]}, "children"),
        ({"children": [[{**CHILD, "text": None}], []]}, "children"),
        ({"children": [[{**CHILD, "text": ""}], []]}, "children"),
        ({"children": [[None], []]}, "children"),
        ({"children": [[{**CHILD, "ended": True, "reward": 2.0}], []]}, "children"),
        ({"children": [[{**CHILD, "ended": True, "reward": float("nan")}], []]}, "children"),
        ({"completions": [[0.0]]}, "completions"),
        ({"completions": [[0.0], [1.5]]}, "completions"),
        ({"completions": [[0.0], [float("nan")]]}, "completions"),
        ({"completions": [[0.0], [None]]}, "completions"),
        ({"completions": [[0.0], None]}, "completions"),
        ({"labels": [1.0]}, "labels"),
        ({"labels": [1.0, 2.0]}, "labels"),
        ({"labels": [1.0, None]}, "labels"),
    ],
)
def test_every_wrong_field_names_row_and_field(tmp_path, change, name):
    write_raw(tmp_path, [GOOD, {**GOOD, **change}])
    with pytest.raises(UserError, match=rf"row 1, field {name}\b"):
        read_rollouts(tmp_path)


def test_the_good_row_is_good(tmp_path):
    write_raw(tmp_path, [GOOD, {**GOOD, "children": None, "completions": None}])
    rows, _ = read_rollouts(tmp_path)
    assert rows[0] == rows[1] == Rollout("p", "q\n", ["a\n", "b\n"], 1.0)


def test_no_rows(tmp_path):
    write_raw(tmp_path, [])
    with pytest.raises(UserError, match="are empty"):
        read_rollouts(tmp_path)


def test_no_folder_or_no_metadata(tmp_path):
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="there are no rollouts"):
            read_rollouts(folder)


@pytest.mark.parametrize("version", [0, 2, None])
def test_another_schema_version_is_refused(tmp_path, version):
    write_raw(tmp_path, [GOOD], {**asdict(META), "schema_version": version})
    with pytest.raises(UserError, match=f"schema version {version!r}, this release reads 1"):
        read_rollouts(tmp_path)


@pytest.mark.parametrize("meta", [{"policy": None}, {"colour": "red"}])
def test_missing_and_unknown_metadata(tmp_path, meta):
    values = {"schema_version": 1, **asdict(META), **meta}
    if meta == {"policy": None}:
        del values["policy"]
    write_raw(tmp_path, [GOOD], values)
    with pytest.raises(UserError, match="missing or unknown fields"):
        read_rollouts(tmp_path)


def test_metadata_that_is_no_object(tmp_path):
    write_raw(tmp_path, [GOOD])
    (tmp_path / META_FILE).write_text("[1]")
    with pytest.raises(UserError, match="schema version"):
        read_rollouts(tmp_path)
    (tmp_path / META_FILE).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_rollouts(tmp_path)


def test_a_broken_or_missing_table(tmp_path):
    write_raw(tmp_path, [GOOD])
    whole = (tmp_path / ROWS_FILE).read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2]):
        (tmp_path / ROWS_FILE).write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            read_rollouts(tmp_path)
    (tmp_path / ROWS_FILE).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_rollouts(tmp_path)


def test_missing_columns_are_named(tmp_path):
    write_raw(tmp_path, [GOOD])
    table = pq.read_table(tmp_path / ROWS_FILE)
    pq.write_table(table.drop_columns(["reward", "labels"]), tmp_path / ROWS_FILE)
    with pytest.raises(UserError, match="lacks the columns reward, labels"):
        read_rollouts(tmp_path)
