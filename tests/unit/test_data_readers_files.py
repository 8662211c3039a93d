"""Files of rows: JSON, JSONL, parquet and saved data sets give the same rows; what cannot be read is named."""

import gzip
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmtools.data.readers import Tally, read_public
from rmtools.data.readers.file_rows import BATCH
from rmtools.data.readers.files import read_rows
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

        parts = {"test": Dataset.from_list(FLOATS[2:]), "a": Dataset.from_list(FLOATS)}
        DatasetDict(parts).save_to_disk(path)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(FLOATS), path := path.with_suffix(".parquet"))
    elif kind == "folder":
        path.mkdir()
        (path / "README.md").write_text("# rows")
        (path / "b.json").write_text(json.dumps(ROWS[1:]))
        (path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    elif kind in ("to_json", "to_csv"):
        from datasets import Dataset

        path = path.with_suffix(f".{kind[3:]}")
        getattr(Dataset.from_list(FLOATS), kind)(path)
    elif kind == "stream":
        with pa.OSFile(str(path := path.with_suffix(".arrow")), "wb") as sink:
            table = pa.Table.from_pylist(FLOATS)
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
    elif kind in ("arrow", "feather"):
        import pandas

        pandas.DataFrame(FLOATS).to_feather(path := path.with_suffix(f".{kind}"))
    elif kind.startswith(("csv", "tsv")):
        import pandas

        path = path.with_suffix(f".{kind}")
        pandas.DataFrame(FLOATS).to_csv(path, sep="\t" if kind[0] == "t" else ",", index=False)
    elif kind.startswith("jsonl."):
        import pandas

        pandas.DataFrame(FLOATS).to_json(path := path.with_suffix(f".{kind}"), orient="records", lines=True)
    elif kind in ("split", "records", "index", "columns", "table"):
        import pandas

        pandas.DataFrame(FLOATS).to_json(path := path.with_suffix(".json"), orient=kind)
    else:
        path = path.with_suffix(".jsonl" if kind == "jsonl" else ".json")
        path.write_text(
            json.dumps(ROWS, indent=1) if kind == "array" else "\n\n".join(map(json.dumps, ROWS)) + "\n"
        )
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "jsonl",
            "array",
            "lines in .json",
            "parquet",
            "folder",
            "dataset",
            "split dataset",
            "csv",
            "tsv.gz",
        ),
        *(
            "feather",
            "arrow",
            "stream",
            "jsonl.gz",
            "jsonl.bz2",
            "jsonl.xz",
            "jsonl.zip",
            "to_json",
            "to_csv",
        ),
        *("split", "records", "index", "columns", "table"),
    ],
)
def test_every_kind_of_file_gives_the_same(tmp_path, kind):
    tally = Tally()
    found = list(read_public(save(tmp_path, kind), split="a" * (kind == "split dataset"), tally=tally))
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
        ("a.jsonl", b"\xff\xfe\x00", "a.jsonl, line 1 is not valid JSON: it is no text in UTF-8"),
        ("a.json", b"[\n\xff]", "a.json cannot be read: it is no text in UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99)[:-20], "a.jsonl.gz cannot be read: .*end"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz cannot be read: .*gzip"),
        ("a.jsonl.xz", b"no xz", "a.jsonl.xz cannot be read"),
        ("a.jsonl.zip", b"no zip", "a.jsonl.zip cannot be read: .*zip"),
        ("a.arrow", b"ARROW1 no file", "a.arrow cannot be read"),
        ("a.pkl", b"", "a.pkl is no file of rows that is known"),
        ("a.csv", b"", "a.csv cannot be read"),
        ("a.parquet", b"PAR1 no", "a.parquet cannot be read"),
        ("a.arrow", b"no stream", "a.arrow cannot be read"),
        ("a.csv", b"prompt\n", "not known: no rows at all"),
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


def test_cells_of_a_csv_that_hold_lists(tmp_path):
    """As JSON, as Python shows a list, and as numpy shows an array: without commas, where Python would join two texts."""
    cells = ['["a","b"]', "['a', \"it's\"]", "['a' \"it's\"\n 'c']", "[ True  False]", "[1.   0.25]", "[None, 1]", "[nan 0.5]",
             "[see above]", "text", ""]  # fmt: skip
    values = [["a", "b"], ["a", "it's"], ["a", "it's", "c"], [True, False], [1.0, 0.25], [None, 1], [None, 0.5],
              "[see above]", "text", None]  # fmt: skip
    import pandas

    file = tmp_path / "rows.csv"
    pandas.DataFrame({"i": range(len(cells)), "cell": cells}).to_csv(file, index=False)
    assert [row["cell"] for _, row in read_rows(file)] == values


def test_splits_of_a_folder_are_never_merged(tmp_path):
    for name in (
        "phase1_train.jsonl",
        "phase2_train.jsonl.gz",
        "phase1_test.jsonl",
        "data/validation-00000-of-00001.jsonl",
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        line = json.dumps(ROWS[0]).encode()
        file.write_bytes(gzip.compress(line) if name.endswith("gz") else line)
    with pytest.raises(UserError, match=r"several splits, .*test \(1 files\), train \(2 files\), validation"):
        read_public(tmp_path)
    with pytest.raises(UserError, match="no split dev; there is test"):
        read_public(tmp_path, split="dev")
    tally = Tally()
    assert len(list(read_public(tmp_path, split="train", tally=tally))) == 2
    assert tally.files == {str(tmp_path / f"phase{i}_train.jsonl{'.gz' * (i == 2)}"): 1 for i in (1, 2)}
    with pytest.raises(UserError, match="is one file"):
        read_public(tmp_path / "phase1_test.jsonl", split="test")


def test_caches_beside_a_saved_data_set_are_no_rows(tmp_path):
    from datasets import Dataset, load_from_disk

    Dataset.from_list(FLOATS).save_to_disk(tmp_path / "d")
    load_from_disk(tmp_path / "d").map(
        lambda row: {"more": 1}, cache_file_name=str(tmp_path / "d/cache-1.arrow")
    )
    assert len(list(read_rows(tmp_path / "d"))) == len(FLOATS)


def test_two_formats_in_one_folder(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "Q?", "answer": "a\n#### 1"}))
    with pytest.raises(UserError, match=r"2 formats: .*a.jsonl is trl, .*b.jsonl is gsm8k"):
        read_public(tmp_path)


def test_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "out.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.jsonl").symlink_to(tmp_path / "out.jsonl")
    with pytest.raises(UserError, match=r"a.jsonl is a link out of the folder, to .*out.jsonl"):
        read_public(tmp_path / "d")
    snapshot = tmp_path / "hub/snapshots/abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub/blob").write_text(json.dumps(ROWS[0]))
    (snapshot / "a.jsonl").symlink_to(tmp_path / "hub/blob")
    assert len(list(read_public(snapshot))) == 1


def test_what_a_compressed_file_unpacks_to_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("rmtools.data.readers.file_rows.AT_LEAST", 1 << 16)
    for name in ("a.jsonl.gz", "a.jsonl.zip", "a.json.zip"):
        file = tmp_path / name
        if name.endswith("gz"):
            file.write_bytes(gzip.compress(b" " * (1 << 22)))
        else:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("a.jsonl", b" " * (1 << 22))
        with pytest.raises(UserError, match=r"unpacks to more than .* 100 times its size"):
            list(read_rows(file))


def test_more_columns_than_rows_of_steps_have(tmp_path):
    pq.write_table(pa.table({f"c{i}": [1] for i in range(1001)}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet has 1,001 columns \(c0, c1, c2"):
        list(read_rows(tmp_path / "a.parquet"))


def test_bad_lines_do_not_hide_the_format(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(["null", "{", "[1]", *map(json.dumps, ROWS), "\xff"]), encoding="latin-1")
    with pytest.raises(UserError, match=r"line 1 is no object: None; .*line 2 is not valid JSON"):
        list(read_public(file))
    tally = Tally()
    assert len(list(read_public(file, skip_bad=True, tally=tally))) == len(ROWS)
    assert tally.dropped == {
        "row breaks the format: is no object": 2,
        "row breaks the format: is not valid JSON": 2,
    }
