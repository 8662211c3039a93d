"""``rmtools convert``: a public file becomes a rollout folder that everything else reads; or nothing is written."""

import json

import pytest
from checks import check_error

from rmtools.data.rollouts import META_FILE, read_rollouts

GSM8K = {"question": "How many?", "answer": "Half of 4 is <<4/2=2>>2.\n#### 2"}
TRL = [
    {"prompt": "1 + 1?", "completions": ["One\nand one.", "Two."], "labels": [True, 0.75]},
    {"prompt": "2 + 2?\n", "completions": ["Five.\n"], "labels": [0]},
    {"prompt": "3 + 3?", "completions": ["Six.", "Done."], "labels": [None, 0.5]},
]


@pytest.fixture
def lines(tmp_path):
    def write(*rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return file

    return write


def test_trl_rows_come_back_as_they_were(run, lines, tmp_path):
    done = run("convert", lines(*TRL), tmp_path / "out")
    assert done.code == 0, done.err
    rows, metadata = read_rollouts(tmp_path / "out")
    assert [r.steps for r in rows] == [["One\nand one.\n", "Two.\n"], ["Five.\n"], ["Six.\n", "Done.\n"]]
    assert [r.prompt for r in rows] == ["1 + 1?\n", "2 + 2?\n", "3 + 3?\n"]
    assert [r.labels for r in rows] == [[1.0, 0.75], [0.0], [None, 0.5]]
    assert [r.reward for r in rows] == [None] * 3
    assert (metadata.horizon, metadata.steps.delimiter) == (2, "\n")
    assert "labelled steps  4, mean label 0.5625" in done.out


def test_outcomes_come_back(run, lines, tmp_path):
    done = run("convert", "--from", "gsm8k", lines(GSM8K, GSM8K, GSM8K), tmp_path / "out", "--limit", "2")
    assert done.code == 0, done.err
    rows, metadata = read_rollouts(tmp_path / "out")
    assert [(r.steps, r.reward) for r in rows] == [(["Half of 4 is <<4/2=2>>2.\n", "#### 2\n"], 1.0)] * 2
    assert (metadata.source, metadata.horizon, metadata.policy) == ("gsm8k", 2, "")
    table = [line.split(maxsplit=1) for line in done.out.splitlines()]
    assert ["rows", "2"] in table
    assert ["trajectories", "2"] in table
    assert "steps           4, at most 2 a trajectory" in done.out
    assert "labelled steps  0\noutcomes        2, mean reward 1.0000\ndropped         0\n" in done.out


def test_segmentation_and_delimiter_of_the_shell(run, lines, tmp_path):
    row = {"prompt": "How many?", "completions": ["a\n\nb. c"], "correctness": [0.5]}
    for how, steps in (
        ([], ["a\n\n", "b. c\n"]),
        (["--segment", r"regex:\.\s"], ["a\n\nb. \n", "c\n"]),
        (["--segment", "newline", "--delimiter", r"\n\n"], ["a\n\n", "b. c\n\n"]),
        (["--segment", r"\n\nb"], ["a\n\nb\n", ". c\n"]),
    ):
        done = run("convert", lines(row), tmp_path / "out", "--overwrite", *how)
        assert done.code == 0, done.err
        assert read_rollouts(tmp_path / "out")[0][0].steps == steps


def test_what_is_dropped_is_said(run, lines, tmp_path):
    row = {"prompt": "How many?", "completions": ["a", "b"], "correctness": [True, None]}
    bad = {**row, "correctness": [2, 0]}
    done = run("convert", lines(row, bad, bad), tmp_path / "out", "--skip-bad")
    assert done.code == 0, done.err
    assert "dropped         2: row breaks the format: field correctness[]\n" in done.out
    assert "dropped         1: trajectory without outcome or label\n" in done.out
    assert len(read_rollouts(tmp_path / "out")[0]) == 1


def test_rows_as_they_are_found(run, lines, tmp_path):
    """Other names, several files and splits, lines that are no JSON: all of it is named in the summary."""
    row = {"q": "How many?", "parts": [{"t": "One.", "ok": "+"}, {"t": "Two\nor so.", "ok": "-"}], "id": 7}
    lines(row)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train.jsonl").write_text((tmp_path / "rows.jsonl").read_text() + "null\n{\n")
    (tmp_path / "d/test.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    named = ("--map", "prompt=q,steps=parts.t,labels=parts.ok")
    check_error(run("convert", tmp_path / "d", tmp_path / "out", *named), "several splits", "--split")
    done = run("convert", tmp_path / "d", tmp_path / "out", *named, "--split", "train", "--skip-bad")
    assert done.code == 0, done.err
    for words in (
        f"file            {tmp_path / 'd/train.jsonl'}: 3 rows\n",
        "dropped         1: row breaks the format: is no object\n",
        "dropped         1: row breaks the format: is not valid JSON\n",
        "train.jsonl, line 2 is no object: None\n",
        "note            ignored columns: id\n",
        "1: steps hold the delimiter '\\n' before their end, where sampling would end them\n",
    ):
        assert words in done.out
    ((found,), metadata) = read_rollouts(tmp_path / "out")
    assert (found.steps, found.labels, metadata.source) == (["One.\n", "Two\nor so.\n"], [1.0, 0.0], "steps")


def test_a_bad_last_row_leaves_nothing(run, lines, tmp_path):
    file = lines(GSM8K, GSM8K, {**GSM8K, "answer": "no answer"})
    before = sorted(tmp_path.iterdir())
    check_error(run("convert", file, tmp_path / "out"), "rows.jsonl, line 3, field answer", "--skip-bad")
    assert sorted(tmp_path.iterdir()) == before


def test_earlier_rollouts_are_kept_where_the_new_are_bad(run, lines, tmp_path):
    assert run("convert", lines(GSM8K), tmp_path / "out").code == 0
    bad = ("convert", lines({**GSM8K, "answer": ""}), tmp_path / "out", "--from", "gsm8k")
    check_error(run(*bad, "--overwrite"), "is empty")
    check_error(run(*bad), "holds rollouts already", "--overwrite")
    assert len(read_rollouts(tmp_path / "out")[0]) == 1


@pytest.mark.parametrize(
    ("rows", "arguments", "words"),
    [
        (
            [{"colour": "red"}],
            [],
            ["not known: rows with the fields colour", "trl (prompt, completions, labels)"],
        ),
        (
            [{**TRL[0], "question": "a", "chain_of_thoughts": ["b", "c"]}],
            [],
            ["2 formats: trl, versaprm", "format: trl"],
        ),
        (
            [GSM8K],
            ["--map", "prompt=q"],
            ["wants prompt from q, which no row has", "there is question, answer"],
        ),
        ([GSM8K], ["--split", "test"], ["is one file: it has no split test"]),
        (
            [TRL[0], 3, {**TRL[0], "labels": []}],
            [],
            ["line 2 is no object: 3", "2 of the 3 rows", "--skip-bad"],
        ),
        ([GSM8K], ["--from", "xml"], ["--from has no choice 'xml'", "math-shepherd"]),
        ([GSM8K], ["--neutral", "maybe"], ["positive", "negative", "skip"]),
        ([GSM8K], ["--segment", "regex:("], ["not a regular expression"]),
        ([GSM8K], ["--first-step", "("], ["not a regular expression"]),
        ([GSM8K], ["--delimiter", ""], ["delimiter is empty"]),
        ([GSM8K], ["--limit", "0"], ["--help"]),
        (
            [{"prompt": "a", "completions": [], "correctness": []}],
            [],
            ["gives no trajectory: nothing was written"],
        ),
    ],
)
def test_wrong_usage_and_bad_input(run, lines, tmp_path, rows, arguments, words):
    file = lines(*rows)
    check_error(run("convert", file, tmp_path / "out", *arguments), *words)
    assert list(tmp_path.iterdir()) == [file]


def test_wrong_places(run, lines, tmp_path):
    check_error(run("convert", tmp_path / "nowhere", tmp_path / "out"), "there is no file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    check_error(run("convert", lines(GSM8K), tmp_path / "full"), "holds something else", META_FILE)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_help(run):
    done = run("convert", "--help")
    assert done.code == 0
    for word in ("--from", "--neutral", "--segment", "--limit", "--skip-bad"):
        assert word in done.out
