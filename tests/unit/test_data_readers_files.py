"""Files of rows: JSON, JSONL, parquet and saved data sets give the same rows; what cannot be read is named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmtools.data.readers import Tally, read_public
from rmtools.data.readers.files import BATCH, read_rows
from rmtools.errors import UserError

ROWS = [
    {"prompt": f"{i} + 1?", "completions": ["One.", f"It is {i + 1}."], "labels": [0.75, i % 2 == 0]}
    for i in range(3)
]
FLOATS = [{**r, "labels": [float(x) for x in r["labels"]]} for r in ROWS]


def save(folder, kind):
    path = folder / "rows"
    if kind == "dataset":
        from datasets import Dataset

        Dataset.from_list(FLOATS).save_to_disk(path)
    elif kind == "split dataset":
        from datasets import Dataset, DatasetDict

        parts = {"test": Dataset.from_list(FLOATS[2:]), "a": Dataset.from_list(FLOATS[:2])}
        DatasetDict(parts).save_to_disk(path)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(FLOATS), path := path.with_suffix(".parquet"))
    elif kind == "folder":
        path.mkdir()
        (path / "README.md").write_text("# rows")
        (path / "b.json").write_text(json.dumps(ROWS[1:]))
        (path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    else:
        path = path.with_suffix(".jsonl" if kind == "jsonl" else ".json")
        path.write_text(
            json.dumps(ROWS, indent=1) if kind == "array" else "\n\n".join(map(json.dumps, ROWS)) + "\n"
        )
    return path


@pytest.mark.parametrize(
    "kind", ["jsonl", "array", "lines in .json", "parquet", "folder", "dataset", "split dataset"]
)
def test_every_kind_of_file_gives_the_same(tmp_path, kind):
    tally = Tally()
    found = list(read_public(save(tmp_path, kind), tally=tally))
    assert [r.prompt for r in found] == ["0 + 1?\n", "1 + 1?\n", "2 + 1?\n"]
    assert [r.labels for r in found] == [[0.75, 1.0], [0.75, 0.0], [0.75, 1.0]]
    assert (tally.format, tally.rows) == ("trl", 3)


def test_one_object_is_one_row(tmp_path):
    file = tmp_path / "tree.json"
    file.write_text(json.dumps({"text": "Q?", "mc_value": None, "children": []}, indent=1))
    assert len(list(read_rows(file))) == 1


def test_limit_counts_rows_and_reads_no_further(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1]) + "\nnot json\n")
    assert len(list(read_public(file, limit=2))) == 2
    with pytest.raises(UserError, match=r"line 3 is not valid JSON"):
        list(read_public(file))


def test_rows_are_read_as_they_are_taken(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([json.dumps(ROWS[0])] * 9) + "\nnot json\n")
    rows = read_public(file)
    assert [next(rows).labels for _ in range(9)] == [[0.75, 1.0]] * 9
    with pytest.raises(UserError, match="line 10"):
        next(rows)


def test_parquet_rows_are_numbered_across_batches(tmp_path):
    file = tmp_path / "rows.parquet"
    rows = [FLOATS[0]] * (BATCH + 3) + [{**FLOATS[0], "labels": [2.0, 0.0]}]
    pq.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(UserError, match=rf"rows.parquet, row {BATCH + 3}, field labels\[0\]: must be in"):
        list(read_public(file))


def test_the_line_is_named_where_blank_lines_stand_between(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[0]) + "\r\n\r\n" + json.dumps({**ROWS[0], "prompt": ""}))
    with pytest.raises(UserError, match=r"rows.jsonl, line 3, field prompt"):
        list(read_public(file))


def test_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[0]), encoding="utf-8-sig")
    assert len(list(read_public(file))) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"prompt": "a"\n', r"a.jsonl, line 1 is not valid JSON"),
        ("a.json", b'[{"prompt": "a"},\n oops]', "a.json cannot be read: line 2 is not valid JSON"),
        ("a.jsonl", b"[" * 10**5, r"line 1 is not valid JSON"),
        ("a.json", b"[" * 10**5, "a.json cannot be read: it is nested too deep"),
        ("a.jsonl", b'{"prompt": "\\ud83d"}', r"line 1 is not valid JSON: .*half a surrogate"),
        ("a.json", b'[{"prompt": "\\ud83d"}]', "a.json cannot be read: .*half a surrogate"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", r"line 1 is not valid JSON: .*digits"),
        ("a.jsonl", b"\xff\xfe\x00", "a.jsonl cannot be read"),
        ("a.parquet", b"PAR1 no", "a.parquet cannot be read"),
        ("a.arrow", b"no stream", "a.arrow cannot be read"),
        ("a.csv", b"prompt\n", r"a.csv is none of .jsonl, .json, .parquet"),
        ("a.jsonl", b"\n", "not known: no rows at all"),
        ("a.json", b"[]", "not known: no rows at all"),
        ("a.json", b"3", "rows that are not objects"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        list(read_public(file))


def test_missing_places(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_public(tmp_path / "nowhere.json")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="no file of rows"):
        read_public(tmp_path)
