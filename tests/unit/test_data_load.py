"""Rollouts from folders, files, data sets and rows in memory: the same rows, with the metadata that is known."""

import json
from dataclasses import asdict

import datasets
import pytest

from rmtools.data.load import load_rollouts
from rmtools.data.readers import Options
from rmtools.data.rollouts import Child, Rollout, RolloutMetadata, Rollouts, write_rollouts
from rmtools.errors import UserError
from rmtools.lm.hub import SECONDS
from rmtools.lm.steps import StepSettings

TRL = [
    {"prompt": "r2 . \nc01 . \n", "completions": ["u r3 ", "s r3 "], "labels": [True, 0.75]},
    {"prompt": "r1 . \nc24 . \n", "completions": ["s r1 "], "labels": [False]},
]
OURS = [
    Rollout("a", "1 + 1?\n", ["2\n", "so 2"], 1.0, [[Child("3\n", False, None)], []], [[0.5], []]),
    Rollout("b", "1 + 2?\n", ["4\n"], 0.0),
]
METADATA = RolloutMetadata("some/policy", "abc", "arithmetic", 5, StepSettings("\n", 5, 7), 0.7, 3)


def test_rows_of_trl_are_the_same_from_everywhere(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in TRL))
    found = load_rollouts(path)
    assert [r.labels for r in found] == [[1.0, 0.75], [0.0]]
    assert [r.steps for r in found] == [["u r3 \n", "s r3 \n"], ["s r1 \n"]]
    assert (found.metadata.policy, found.metadata.horizon, found.metadata.temperature) == ("", 2, None)
    assert (found.metadata.steps, found.source) == (StepSettings("\n", 2), str(path))
    booleans = [{**TRL[0], "labels": [True, False]}, TRL[1]]  # a column has one type
    for rows in (TRL, tuple(TRL), iter(TRL)):
        assert load_rollouts(rows).rows == found.rows
    assert load_rollouts(datasets.Dataset.from_list(booleans)).rows == load_rollouts(booleans).rows
    assert load_rollouts(TRL, "trl").rows == found.rows


def test_rows_of_our_schema_are_the_same_from_everywhere(tmp_path):
    write_rollouts(tmp_path / "r", OURS, METADATA)
    folder = load_rollouts(tmp_path / "r")
    assert (folder.rows, folder.metadata.task, folder.source) == (OURS, "arithmetic", str(tmp_path / "r"))
    rows = [asdict(r) for r in OURS]
    assert load_rollouts(rows).rows == OURS
    assert load_rollouts(datasets.Dataset.from_list(rows)).rows == OURS
    assert load_rollouts(OURS).rows == OURS
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert load_rollouts(path).rows == OURS
    assert load_rollouts(folder) is folder


def test_a_sequence_with_its_metadata():
    found = Rollouts(OURS, METADATA, "here")
    assert (len(found), found[1], list(found)) == (2, OURS[1], OURS)
    assert found[:1] == Rollouts(OURS[:1], METADATA, "here")
    assert len(repr(found)) < 100


def test_rows_of_our_schema_without_ids_get_those_of_their_prompts():
    row = {"prompt": "1 + 1?\n", "steps": ["2\n"], "reward": 1.0, "schema_version": 2}
    one, two = load_rollouts([row, {**row, "steps": ["3\n"], "reward": 0.0}])
    assert one.prompt_id == two.prompt_id != ""


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["is empty"]),
        ([{"prompt": "p", "completions": ["a"]}], ["fields completions, prompt", "lack labels"]),
        ([{"question": "p", "score": 1}], ["fields question, score"]),
        ([{"prompt": "p", "steps": ["a"], "reward": 2}], ["row 0, field reward"]),
        ([{"prompt": "p", "steps": ["a"], "value": 1}], ["fields prompt, steps, value", "lack labels"]),
        ([{"prompt": "p", "steps": ["a"], "reward": 1, "schema_version": 1}], ["version 1", "reads 2"]),
        ([TRL[0], {"prompt": "p", "labels": [1]}], ["row 1, field completions: is missing"]),
        ([{**TRL[0], "labels": [None, None]}], ["no rollouts", "without outcome or label"]),
        (["p"], ["got str"]),
        ([OURS[0], TRL[0]], ["got Rollout"]),
        ({"train": [], "test": []}, ["splits: train, test"]),
        ("", ["no rollouts"]),
        (None, ["None"]),
        (5, ["5"]),
        ("nowhere", ["no rollouts at nowhere"]),
        ("nowhere.jsonl", ["no rollouts at nowhere.jsonl"]),
    ],
)
def test_what_cannot_be_loaded(rows, words):
    with pytest.raises(UserError) as error:
        load_rollouts(rows)
    assert all(word in error.value.fact for word in words), error.value


def test_a_public_format_named_for_a_folder_of_rollouts(tmp_path):
    write_rollouts(tmp_path / "r", OURS, METADATA)
    with pytest.raises(UserError, match="data_format"):
        load_rollouts(tmp_path / "r", "trl")
    with pytest.raises(UserError, match="math-shepherd"):
        load_rollouts(tmp_path / "r", "shepherd")


# Data sets of the hub: `datasets.load_dataset` is a stand-in


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("some/rows", ("some/rows", None, "train")),
        ("some/rows:test", ("some/rows", None, "test")),
        ("some/rows/main:test", ("some/rows", "main", "test")),
    ],
)
def test_data_sets_of_the_hub(monkeypatch, tmp_path, named, asked):
    seen = []

    def load_dataset(name, config=None, split=None):
        seen.append((name, config, split))
        return datasets.Dataset.from_list([TRL[1]])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load_rollouts(named)
    assert seen == [asked]
    assert (found[0].labels, found.source) == ([0.0], named)


def test_a_data_set_that_the_hub_does_not_give_comes_from_the_cache(monkeypatch):
    """The hub is asked once, with a limit; then `datasets` may not try it again and again."""
    limits, offline = [], []

    def dataset_info(self, name, revision=None, timeout=None):
        limits.append(timeout)
        raise ConnectionError("no route")

    def load_dataset(name, config=None, split=None):
        offline.append(datasets.config.HF_HUB_OFFLINE)
        if name == "some/cached":
            return datasets.Dataset.from_list([TRL[1]])
        raise {"some/split": ValueError, "some/rows": ConnectionError}[name]("as it says")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    assert load_rollouts("some/cached")[0].labels == [0.0]
    for name, words in (("some/rows", "no folder some/rows.*no route"), ("some/split:x", "as it says")):
        with pytest.raises(UserError, match=words) as error:
            load_rollouts(name)
        assert "owner/name" in error.value.fix
    assert offline == [True] * 3
    assert limits == [SECONDS] * 3
    assert not datasets.config.HF_HUB_OFFLINE


TRL_ROW = {"prompt": "1 + 1?", "completions": ["It is 2."], "labels": [1.0]}


def test_bad_rows_can_be_left_out(caplog):
    rows = [TRL_ROW, TRL_ROW | {"labels": ["yes"]}]
    with pytest.raises(UserError, match="skip_bad"):
        load_rollouts(rows)
    assert len(load_rollouts(rows, skip_bad=True)) == 1
    assert "left out 1" in caplog.text


def test_a_version_in_a_row_of_a_public_format_is_refused():
    with pytest.raises(UserError, match="schema_version"):
        load_rollouts([TRL_ROW | {"schema_version": 9}])


BAD_ROWS = {
    "no object": 5,
    "a missing field": {"steps": ["a\n"], "reward": 1.0},
    "an unknown field": {**asdict(OURS[1]), "value": 1.0},
    "a wrong number": {**asdict(OURS[1]), "reward": 2.0},
    "a wrong list": {**asdict(OURS[0]), "children": [[]]},
}


@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS.keys())
@pytest.mark.parametrize("source", ["folder", "file", "rows"])
def test_bad_rows_of_our_schema_can_be_left_out(source, bad, tmp_path, caplog):
    rows = [*(asdict(r) for r in OURS), bad, bad]
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    given = tmp_path / "r" if source == "folder" else tmp_path / "rows.jsonl"
    if source == "folder":
        write_rollouts(given, [*OURS, *OURS], METADATA, form="jsonl")
        next(given.glob("data/*")).write_text(lines)
    else:
        given.write_text(lines)
    if source == "rows":
        given = [row for row in rows if isinstance(row, dict)]
    dropped = len(rows) - len(OURS) if source != "rows" or isinstance(bad, dict) else 0
    if dropped:
        with pytest.raises(UserError):
            load_rollouts(given)
    found = load_rollouts(given, skip_bad=True)
    assert found.rows == OURS
    assert (f"left out {dropped} rows" in caplog.text) == bool(dropped)


def test_rows_that_are_all_bad_are_an_error_in_any_case():
    for skip_bad in (False, True):
        with pytest.raises(UserError, match="row 0, field reward"):
            load_rollouts([{"prompt": "p", "steps": ["a"], "reward": 2}] * 3, skip_bad=skip_bad)


def test_a_published_file_with_odd_rows_loads_with_one_argument(tmp_path, caplog):
    file = tmp_path / "rows.jsonl"
    odd = ["null", "{", json.dumps({**TRL_ROW, "labels": [1, 1]}), json.dumps({"prompt": "p"})]
    file.write_text("\n".join([*odd, *[json.dumps({**TRL_ROW, "id": i}) for i in range(6)]]))
    assert len(load_rollouts(file, skip_bad=True)) == 6
    for words in ("1: row breaks the format: is no object", "1: row breaks the format: is not valid JSON",
                  "1: row breaks the format: field labels", "1: row breaks the format: field completions",
                  "line 3, field labels: has 2 labels for 1 steps", "ignored columns: id", "every label is 1"):  # fmt: skip
        assert words in caplog.text


def test_splits_and_options_of_public_rows(tmp_path):
    saved = {
        name: datasets.Dataset.from_list([{**TRL[i], "labels": [True] * (2 - i)}])
        for i, name in enumerate(("train", "test"))
    }
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match="several splits"):
        load_rollouts(tmp_path / "d")
    assert len(load_rollouts(tmp_path / "d", split="test")[0].steps) == 1
    rows = [{"q": "1 + 1?", "parts": ["One.", "Two."], "marks": ["+", "-"]}]
    options = Options(map=(("prompt", "q"), ("steps", "parts"), ("labels", "marks")), delimiter="|")
    found = load_rollouts(rows, options=options)
    assert (found[0].steps, found[0].labels) == (["One.|", "Two.|"], [1.0, 0.0])
    assert found.metadata.steps.delimiter == "|"


def test_a_pandas_table_with_arrays(tmp_path):
    import pandas

    table = pandas.DataFrame([{**row, "labels": [float(x) for x in row["labels"]]} for row in TRL])
    table.to_parquet(tmp_path / "rows.parquet")
    assert load_rollouts(pandas.read_parquet(tmp_path / "rows.parquet")).rows == load_rollouts(TRL).rows


def test_a_folder_of_the_hub_has_its_rows_under_data(tmp_path):
    """A repository of the hub keeps its files in ``data/``, as rollouts of rmtools do."""
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list([TRL[1]]).to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    assert load_rollouts(tmp_path)[0].labels == [0.0]
    write_rollouts(tmp_path / "r", OURS, METADATA)
    (tmp_path / "r/metadata.json").unlink()
    with pytest.raises(UserError, match=r"no metadata.json"):
        load_rollouts(tmp_path / "r")
