"""A trace on disk: what is written is read, and what is broken is named."""

import copy
import json
from pathlib import Path

import pytest
from traced_words import run, words

from rmtools.errors import UserError
from rmtools.sampling.trace import read_trace, read_traced_prompt, trace_line


@pytest.fixture
def traces():
    root, prompts = words()
    return run(root, prompts, (6, 2, "systematic", 0.9))[1]


@pytest.fixture
def lines(traces):
    return [trace_line(t) for t in traces]


def write(path, lines, end="\n"):
    path.write_text("\n".join(json.dumps(r) for r in lines) + end)
    return path


def test_what_is_written_is_read(tmp_path, traces, lines):
    file = write(tmp_path / "t.jsonl", lines)
    assert read_trace(file) == traces
    assert [read_traced_prompt(file, i) for i in range(3)] == traces
    write(file, lines, end="")
    assert read_trace(file) == traces


def test_every_field_is_documented(lines):
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    section = page.split("\n## Trace\n")[1].split("\n## ")[0]
    for name in (*lines[0], *lines[0]["nodes"][0], *lines[0]["steps"][0]):
        assert f"`{name}`" in section


def steps(edit):
    return lambda r: edit(r["steps"][0])


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda r: r.update(schema_version=1), "schema version 1, this release reads 2"),
        (lambda r: r.pop("kind"), "not a trace"),
        (lambda r: r.update(n_particles=0), "n_particles and pool_size must be at least 1"),
        (lambda r: r.update(pool_size=True), "pool_size must be an integer"),
        (lambda r: r.update(prompt=3), "prompt must be text"),
        (lambda r: r.update(sampler=None), "sampler must be a mapping"),
        (lambda r: r["nodes"][0].update(log_value="0"), "nodes[0].log_value must be"),
        (lambda r: r["nodes"][1].pop("log_value"), "nodes[1] lacks log_value"),
        (lambda r: r["nodes"][1].update(ended=0), "nodes[1].ended must be true or false"),
        (lambda r: r["nodes"][1].update(parent=9), "a node has no parent"),
        (lambda r: r["nodes"].pop(), "does not continue its particle"),
        (lambda r: r.update(nodes=[], steps=[]), "a node has no parent"),
        (lambda r: r.update(steps={}), "steps must be a list"),
        (lambda r: r.update(log_weights=[0.0]), "log_weights and rewards must have 6"),
        (lambda r: r.update(rewards=[0.0]), "log_weights and rewards must have 6"),
        (lambda r: r.update(rewards=[None] * 6), "ess and rewards must be numbers"),
        (steps(lambda s: s.update(ess=None)), "ess and rewards must be numbers"),
        (lambda r: r.pop("draw"), "lacks draw"),
        (lambda r: r.update(draw=6), "draw must be one of 0 to 5"),
        (lambda r: r.update(log_z=10**400), "log_z must be"),
        (lambda r: r.update(log_z="x"), "log_z must be"),
        (lambda r: r["steps"].__setitem__(0, []), "steps[0] must be a mapping"),
        (steps(lambda s: s["candidates"].pop()), "step 1 must have 12 candidates"),
        (steps(lambda s: s["candidates"].__setitem__(0, 99)), "candidate 99 does not continue"),
        (steps(lambda s: s["candidates"].__setitem__(0, -1)), "candidate -1 does not continue"),
        (steps(lambda s: s["particles"].__setitem__(0, 99)), "not one of the candidates"),
        (steps(lambda s: s["ancestors"].__setitem__(0, 6)), "not one of the particles"),
        (steps(lambda s: s["log_increments"].__setitem__(0, "a")), "log_increments[0] must be"),
        (steps(lambda s: s.pop("ess")), "steps[0] lacks ess"),
        (steps(lambda s: s.update(resampled=1)), "resampled must be"),
    ],
)
def test_a_broken_trace_is_named(tmp_path, lines, edit, word):
    broken = copy.deepcopy(lines)
    edit(broken[1])
    file = write(tmp_path / "t.jsonl", broken)
    with pytest.raises(UserError) as error:
        read_trace(file)
    for part in (f"{file}, line 2: ", word, "fix: trace the samples again"):
        assert part in str(error.value)


def test_broken_files_are_named(tmp_path, traces, lines):
    file = write(tmp_path / "t.jsonl", lines, end="\n" + json.dumps(lines[0])[:-40])
    with pytest.raises(UserError, match=r"t.jsonl, line 4"):
        read_trace(file)
    assert read_traced_prompt(file, 0) == traces[0]
    with pytest.raises(UserError, match=r"prompt 9.*0 to 3"):
        read_traced_prompt(file, 9)
    for text, what in (
        ("", "is empty"),
        ("{,}\n", "line 1: not valid JSON"),
        ("[]\n", "line 1: this is not a trace"),
        (json.dumps(lines[0] | {"log_z": float("nan")}) + "\n", "log_z must be"),
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
    with pytest.raises(UserError, match="UTF-8"):
        read_trace(file)
    with pytest.raises(UserError, match="No such file"):
        read_trace(tmp_path / "none")
