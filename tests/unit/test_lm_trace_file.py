"""A trace on disk: what is written is read, and what is broken is named."""

import copy
import json
from pathlib import Path

import pytest
from traced_words import run, words

from rmtools.errors import UserError
from rmtools.sampling.trace_file import read_trace, read_traced_prompt


@pytest.fixture
def records():
    root, prompts = words()
    return run(root, prompts, (6, 2, "systematic", 0.9))[1]


def write(path, records, end="\n"):
    path.write_text("\n".join(json.dumps(r) for r in records) + end)
    return path


def test_what_is_written_is_read(tmp_path, records):
    file = write(tmp_path / "t.jsonl", records)
    assert read_trace(file) == records
    assert [read_traced_prompt(file, i) for i in range(3)] == records
    file.write_text("\n".join(json.dumps(r) for r in records))
    assert read_trace(file) == records


def test_every_field_is_documented(records):
    section = (
        (Path(__file__).parents[2] / "docs" / "formats.md")
        .read_text()
        .split("\n## Trace\n")[1]
        .split("\n## ")[0]
    )
    step = records[0]["steps"][0]
    for name in (*records[0], *records[0]["root"], *step, *step["nodes"][0]):
        assert f"`{name}`" in section


def check_refused(tmp_path, records, edit, *words):
    broken = copy.deepcopy(records)
    edit(broken[1])
    file = write(tmp_path / "t.jsonl", broken)
    with pytest.raises(UserError) as error:
        read_trace(file)
    for word in (f"{file}, line 2: ", *words):
        assert word in str(error.value)
    assert "fix: " in str(error.value)


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda r: r.update(schema_version=2), "schema version 2, this rmtools reads 1"),
        (lambda r: r.pop("kind"), "no trace"),
        (lambda r: r.update(n_particles=0), '"n_particles" must be a count'),
        (lambda r: r.update(pool_size=True), '"pool_size" must be a count'),
        (lambda r: r.update(prompt=3), '"prompt" must be a text'),
        (lambda r: r.update(sampler=None), '"sampler" must be an object'),
        (lambda r: r.update(root={"id": 0, "log_value": "0"}), '"root" must'),
        (lambda r: r.update(steps={}), '"steps" must be a list'),
        (lambda r: r.update(log_weights=[0.0]), '"log_weights" must be a list of 6'),
        (lambda r: r.update(run=-1), '"run" must be a count'),
        (lambda r: r.pop("draw"), 'there is no "draw"'),
        (lambda r: r.update(rewards=[None] * 6), '"rewards" must be 6 numbers'),
        (lambda r: r.update(log_z=10**400), '"log_z" must be a number'),
        (lambda r: r.update(rewards=[0.0]), '"rewards" must be 6 numbers'),
        (lambda r: r.update(log_z="x"), '"log_z" must be a number'),
        (lambda r: r.update(draw=6), '"draw" must be one of 0 to 5'),
        (lambda r: r.update(argmax=6), '"argmax" must be one of 0 to 5'),
        (lambda r: r["steps"].__setitem__(0, []), 'step 1: "nodes" must be a list'),
        (lambda r: r["steps"][0]["nodes"].append(7), "step 1: a node has no id"),
        (lambda r: r["steps"][0]["nodes"][0].pop("text"), "step 1: node 1 has no text"),
        (lambda r: r["steps"][0]["nodes"][0].pop("log_value"), "node 1 has no log value"),
        (lambda r: r["steps"][0]["nodes"][0].update(ended=0), 'node 1: "ended"'),
        (lambda r: r["steps"][0]["nodes"][0].update(copies=-1), "node 1 has no copies"),
        (lambda r: r["steps"][0]["nodes"][0].update(parent=9), "node 1 continues no particle"),
        (lambda r: r["steps"][0]["nodes"].append(r["steps"][0]["nodes"][0]), "two nodes have one id"),
        (lambda r: r["steps"][0]["candidates"].pop(), '"candidates" must be a list of 12'),
        (lambda r: r["steps"][0]["particles"].__setitem__(0, 99), '"particles" must be'),
        (lambda r: r["steps"][0]["ancestors"].__setitem__(0, 6), '"ancestors" must be'),
        (lambda r: r["steps"][0]["log_increments"].__setitem__(0, "a"), '"log_increments" must be'),
        (lambda r: r["steps"][0].update(particles=[1] * 6), '"copies" do not count'),
        (lambda r: r["steps"][0].update(ess=None), '"ess" must be a number'),
        (lambda r: r["steps"][0].pop("ess"), '"ess" must be a number'),
        (lambda r: r["root"].pop("log_value"), '"root" must have id 0 and a log value'),
        (lambda r: r["steps"][0].update(resampled=1), '"resampled" must be'),
        (lambda r: r["steps"][0].update(unique_ancestors=None), '"unique_ancestors" must be'),
    ],
)
def test_a_broken_record_is_named(tmp_path, records, edit, word):
    check_refused(tmp_path, records, edit, word)


def test_broken_files_are_named(tmp_path, records):
    file = write(tmp_path / "t.jsonl", records, end="\n" + json.dumps(records[0])[:-40])
    with pytest.raises(UserError, match=r"t.jsonl, line 4: the line is cut off"):
        read_trace(file)
    assert read_traced_prompt(file, 0) == records[0]
    with pytest.raises(UserError, match=r"there is no prompt 9 in .*: it has 4; fix: choose one of 0 to 3"):
        read_traced_prompt(file, 9)
    for text, what in (
        ("", "is empty"),
        ("{,}\n", "line 1: not valid JSON"),
        ("[]\n", "line 1: no trace"),
        ('{"kind": "trace", "x": NaN}\n', "NaN is no JSON number"),
        ("[" * 100_000 + "\n", "line 1: not valid JSON"),
        ("9" * 5000 + "\n", "line 1: not valid JSON"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=what):
            read_trace(file)
    file.write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_traced_prompt(file, 0)
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="is no UTF-8 text"):
        read_trace(file)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none")
