"""The dataset on disk: round trip, and every way a row or the folder can be wrong."""

import json
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmtools.data.rollouts import (
    META_FILE,
    SCHEMA_VERSION,
    Child,
    Rollout,
    RolloutMetadata,
    read_rollouts,
    write_rollouts,
)
from rmtools.data.shards import FORMATS, schema, shard_name
from rmtools.errors import UserError
from rmtools.lm.steps import StepSettings

META = RolloutMetadata(
    "policy",
    "abc",
    "crossing",
    2,
    StepSettings("\n", 2, 9),
    0.7,
    3,
    4,
    5,
    6,
    branching={"trajectories": 2, "children": 3, "completions": 2, "depths": "all"},
)
ROWS = [
    Rollout(
        "p0",
        "r2 . \n",
        ["u r3 \n", "ümlaut \u2028 ✓ \n"],
        1.0,
        [[Child("d r1 \n", False, None)], [Child("s x \n", True, 0.25), Child("<eos>", True, 0.0)]],
        [[0.0, 1.0], [0.75]],
        [0.75, 1.0],
        "42",
    ),
    Rollout("p0", "r2 . \n", ["u r3 \n"], 0.75),
    Rollout("p1", "r1 . \n", ["u r2 \n", "s r2 \n"], 0.0, [[], []], [[], []]),
    Rollout("p2", "r1 . \n", ["u r2 \n", "s r2 \n", "a\r\n"], None, labels=[1.0, None, 0.5]),
]


def write_raw(folder, rows, meta=None, form="parquet"):
    """Write one shard of rows as they are, past the library's types; return its path."""
    path = folder / "data" / shard_name(0, 1, form)
    path.parent.mkdir(exist_ok=True)
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema=schema()), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    values = {"schema_version": SCHEMA_VERSION, **asdict(replace(META, rows=len(rows), shards=1))}
    (folder / META_FILE).write_text(json.dumps(values if meta is None else meta))
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows_per_shard", [1, 3, 4, 100])
def test_round_trip(tmp_path, form, rows_per_shard):
    write_rollouts(tmp_path / "r", iter(ROWS), META, rows_per_shard, form)
    rows, metadata = read_rollouts(tmp_path / "r")
    shards = -(-len(ROWS) // rows_per_shard)
    assert rows == ROWS
    assert metadata == replace(META, rows=4, shards=shards)
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["data", META_FILE]
    names = sorted(p.name for p in (tmp_path / "r" / "data").iterdir())
    assert names == [shard_name(i, shards, form) for i in range(shards)]


def test_converted_data_know_no_policy(tmp_path):
    converted = replace(
        META, policy="", policy_fingerprint="", temperature=None, source="prm800k", branching={}
    )
    write_rollouts(tmp_path, ROWS, converted)
    assert read_rollouts(tmp_path)[1] == replace(converted, rows=4, shards=1)


@pytest.mark.parametrize("form", FORMATS)
def test_soft_rewards_labels_and_completions_are_not_cast(tmp_path, form):
    write_rollouts(tmp_path, ROWS, META, form=form)
    rows, _ = read_rollouts(tmp_path)
    assert rows[1].reward == 0.75
    assert rows[0].labels == [0.75, 1.0]
    assert rows[0].completions[1] == [0.75]
    assert rows[0].children[1][0].reward == 0.25
    assert rows[3].reward is None
    assert rows[3].labels == [1.0, None, 0.5]


def test_writing_again_replaces(tmp_path):
    write_rollouts(tmp_path, ROWS, META, rows_per_shard=1)
    write_rollouts(tmp_path, ROWS[:1], replace(META, seed=9), form="jsonl")
    rows, metadata = read_rollouts(tmp_path)
    assert (len(rows), metadata.seed) == (1, 9)
    assert [p.name for p in (tmp_path / "data").iterdir()] == [shard_name(0, 1, "jsonl")]


def test_a_failure_while_writing_keeps_the_old(tmp_path):
    """The rows come from an iterable, which may fail; also nothing to write, and a format there is none of."""
    write_rollouts(tmp_path, ROWS, META)

    def broken():
        yield from ROWS[:3]
        raise UserError("line 4 of the source is broken")

    for rows, form, words in (
        (broken(), "parquet", "line 4"),
        ([], "jsonl", "no rollouts"),
        (ROWS, "csv", "csv"),
    ):
        with pytest.raises(UserError, match=words):
            write_rollouts(tmp_path, rows, META, rows_per_shard=1, form=form)
        assert read_rollouts(tmp_path)[0] == ROWS
        assert sorted(p.name for p in tmp_path.iterdir()) == ["data", META_FILE]


def test_rollouts_with_a_plan_are_not_written_over(tmp_path):
    write_rollouts(tmp_path, ROWS, META)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="`rmtools rollout`"):
        write_rollouts(tmp_path, ROWS[:1], META)
    assert read_rollouts(tmp_path)[0] == ROWS


@pytest.mark.parametrize("form", FORMATS)
def test_datasets_loads_the_folder(tmp_path, form):
    from datasets import load_dataset

    write_rollouts(tmp_path / "r", ROWS, META, 2, form)
    found = load_dataset(str(tmp_path / "r"), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    assert found["train"]["steps"][:] == [r.steps for r in ROWS]
    assert found["train"]["reference"][:] == ["42", None, None, None]
    assert set(found["train"].column_names) == set(schema().names)


GOOD = {
    "prompt_id": "p",
    "prompt": "q\n",
    "steps": ["a\n", "b\n"],
    "reward": 1.0,
    "children": [],
    "completions": [],
    "labels": None,
    "reference": None,
}
CHILD = {"text": "c\n", "ended": False, "reward": None}
NAN = float("nan")


@pytest.mark.parametrize("form", FORMATS)
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
        ({"reward": None, "labels": [None, None]}, "reward"),
        ({"reward": 1.5}, "reward"),
        ({"reward": -0.1}, "reward"),
        ({"reward": NAN}, "reward"),
        ({"children": [[CHILD]]}, "children"),
        ({"children": [[CHILD], None]}, "children"),
        ({"children": [[{**CHILD, "ended": True}], []]}, "children"),
        ({"children": [[{**CHILD, "ended": None}], []]}, "children"),
        ({"children": [[{**CHILD, "text": None}], []]}, "children"),
        ({"children": [[{**CHILD, "text": ""}], []]}, "children"),
        ({"children": [[None], []]}, "children"),
        ({"children": [[{**CHILD, "ended": True, "reward": 2.0}], []]}, "children"),
        ({"children": [[{**CHILD, "ended": True, "reward": NAN}], []]}, "children"),
        ({"completions": [[0.0]]}, "completions"),
        ({"completions": [[0.0], [1.5]]}, "completions"),
        ({"completions": [[0.0], [NAN]]}, "completions"),
        ({"completions": [[0.0], [None]]}, "completions"),
        ({"completions": [[0.0], None]}, "completions"),
        ({"completions": [[0.0], [0.0], [0.0]]}, "completions"),
        ({"labels": [1.0]}, "labels"),
        ({"labels": []}, "labels"),
        ({"labels": [1.0, 2.0]}, "labels"),
        ({"labels": [1.0, -0.5]}, "labels"),
        ({"labels": [1.0, NAN]}, "labels"),
    ],
)
def test_every_wrong_field_names_file_row_and_field(tmp_path, change, name, form):
    path = write_raw(tmp_path, [GOOD, {**GOOD, **change}], form=form)
    with pytest.raises(
        UserError, match=rf"{path}, {'row 1' if form == 'parquet' else 'line 2'}, field {name}\b"
    ):
        read_rollouts(tmp_path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"prompt": 5}, "prompt"),
        ({"steps": "abc"}, "steps"),
        ({"steps": ["a\n", 5]}, "steps"),
        ({"reward": "1"}, "reward"),
        ({"reward": True}, "reward"),
        ({"reward": [1.0]}, "reward"),
        ({"children": "ab"}, "children"),
        ({"children": 5}, "children"),
        ({"children": {"a": 1, "b": 2}}, "children"),
        ({"children": [["c"], []]}, "children"),
        ({"children": [[{**CHILD, "colour": "red"}], []]}, "children"),
        ({"children": [[{**CHILD, "ended": 1}], []]}, "children"),
        ({"completions": [["1"], []]}, "completions"),
        ({"labels": "ab"}, "labels"),
        ({"labels": ["+", "-"]}, "labels"),
        ({"reference": 42}, "reference"),
    ],
)
def test_what_only_json_can_get_wrong(tmp_path, change, name):
    path = write_raw(tmp_path, [GOOD, GOOD, {**GOOD, **change}], form="jsonl")
    with pytest.raises(UserError, match=rf"{path}, line 3, field {name}\b"):
        read_rollouts(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is not valid JSON"),
        ("[" * 100_000, "line 2 is not valid JSON"),
        ('{"prompt": "\\ud83d"}', "line 2 is not valid JSON: .*half a surrogate"),
        ('{"reward": ' + "1" * 5000 + "}", "line 2 is not valid JSON: .*digits"),
        ("5", "line 2 is not an object"),
        (json.dumps({**GOOD, "lables": [1.0, 1.0]}), "line 2 has unknown fields lables"),
    ],
)
def test_lines_that_are_no_rows(tmp_path, line, words):
    path = write_raw(tmp_path, [GOOD, GOOD, GOOD], form="jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    with pytest.raises(UserError, match=f"{path}, {words}"):
        read_rollouts(tmp_path)


def test_a_missing_row_is_noticed(tmp_path):
    path = write_raw(tmp_path, [GOOD, GOOD, GOOD], form="jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", lines[2]]) + "\n")
    with pytest.raises(UserError, match=r"3 rows\b.*\b2\b"):
        read_rollouts(tmp_path)


def test_the_good_row_is_good(tmp_path):
    expected = Rollout("p", "q\n", ["a\n", "b\n"], 1.0)
    write_raw(tmp_path, [GOOD, {**GOOD, "children": None, "completions": None}])
    assert read_rollouts(tmp_path)[0] == [expected, expected]
    (tmp_path / "data" / shard_name(0, 1, "parquet")).unlink()
    short = {k: v for k, v in GOOD.items() if v}
    write_raw(tmp_path, [GOOD, {**short, "reward": 1}], form="jsonl")
    assert read_rollouts(tmp_path)[0] == [expected, expected]


@pytest.mark.parametrize("form", FORMATS)
def test_no_rows(tmp_path, form):
    write_raw(tmp_path, [], form=form)
    with pytest.raises(UserError, match="empty"):
        read_rollouts(tmp_path)


def test_no_folder_or_no_metadata(tmp_path):
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match="no rollouts"):
            read_rollouts(folder)


@pytest.mark.parametrize("version", [0, 1, 3, None])
def test_another_schema_version_is_refused(tmp_path, version):
    write_raw(tmp_path, [GOOD], {**asdict(META), "schema_version": version})
    stated = "no schema version" if version is None else f"schema version {version}"
    with pytest.raises(UserError, match=f"{stated}.*2"):
        read_rollouts(tmp_path)


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"policy": None}, "it lacks policy"),
        ({"colour": "red"}, "it has unknown fields: colour"),
        ({"horizon": 0}, "horizon must be steps.max_steps, 2, got 0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_missing_unknown_and_wrong_metadata(tmp_path, meta, words):
    values = {"schema_version": SCHEMA_VERSION, **asdict(META), **meta}
    if meta == {"policy": None}:
        del values["policy"]
    write_raw(tmp_path, [GOOD], values)
    with pytest.raises(UserError, match=f"metadata.json: {words}"):
        read_rollouts(tmp_path)


def test_metadata_that_is_no_object(tmp_path):
    write_raw(tmp_path, [GOOD])
    (tmp_path / META_FILE).write_text("[1]")
    with pytest.raises(UserError, match=r"metadata.json"):
        read_rollouts(tmp_path)
    (tmp_path / META_FILE).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_rollouts(tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_missing_shard_is_named(tmp_path, form):
    write_rollouts(tmp_path, ROWS, META, 1, form)
    for missing in (2, 3, 0):
        path = tmp_path / "data" / shard_name(missing, 4, form)
        kept = path.rename(tmp_path / "kept")
        with pytest.raises(UserError, match=f"{path} is missing"):
            read_rollouts(tmp_path)
        kept.rename(path)
    assert read_rollouts(tmp_path)[0] == ROWS
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no rollouts in"):
        read_rollouts(tmp_path)


def test_mixed_shards_are_refused(tmp_path):
    write_rollouts(tmp_path, ROWS, META, 2)
    other = tmp_path / "data" / shard_name(0, 1, "jsonl")
    other.write_text(json.dumps(GOOD))
    with pytest.raises(UserError, match="more than one"):
        read_rollouts(tmp_path)
    other.unlink()
    values = json.loads((tmp_path / META_FILE).read_text())
    (tmp_path / META_FILE).write_text(json.dumps({**values, "rows": 5}))
    with pytest.raises(UserError, match=r"5 rows in 2 shards.*4 in 2"):
        read_rollouts(tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_broken_shard_is_named(tmp_path, form):
    write_rollouts(tmp_path, ROWS, META, 2, form)
    path = tmp_path / "data" / shard_name(1, 2, form)
    whole = path.read_bytes()
    contents = [b"\xff\xfe\x00", whole[: len(whole) // 2]] + [b"", b"PAR1"] * (form == "parquet")
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError, match=str(path)):
            read_rollouts(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=str(path)):
        read_rollouts(tmp_path)


def test_flipped_bytes_are_an_error_or_change_nothing(tmp_path):
    """Whatever byte of a parquet shard is lost, there is no traceback: the file is named."""
    write_rollouts(tmp_path, ROWS, META)
    path = tmp_path / "data" / shard_name(0, 1, "parquet")
    whole = path.read_bytes()
    said = []
    for at in range(0, len(whole), 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_rollouts(tmp_path)
        except UserError as error:
            said.append(str(error))
    assert said
    assert all(str(path) in text or META_FILE in text for text in said)


def test_missing_and_unknown_columns_are_named(tmp_path):
    path = write_raw(tmp_path, [GOOD])
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["reward", "labels"]), path)
    with pytest.raises(UserError, match="lacks the columns reward, labels"):
        read_rollouts(tmp_path)
    pq.write_table(table.append_column("colour", [["red"]]), path)
    with pytest.raises(UserError, match="unknown columns colour"):
        read_rollouts(tmp_path)
