"""``rmtools plot``: a trace of the tiny models drawn, and every refusal."""

import json

import numpy as np
import pytest
from checks import check_error

from rmtools.sampling.sample_prompts import SamplerSettings, sample_prompts
from rmtools.sampling.trace import trace_line


@pytest.fixture
def trace(tmp_path, policy, value, prompts, task):
    traces = []
    settings = SamplerSettings(8, 2, "systematic", 0.9, "verifier")
    rng = np.random.default_rng(0)
    list(sample_prompts(policy, value, prompts[:2], settings, rng, task.reward, on_traces=traces.extend))
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(trace_line(t), allow_nan=False) + "\n" for t in traces))
    return file


def test_a_trace_is_drawn(run, trace):
    result = run("plot", "trace", trace)
    assert result.code == 0, result.err
    picture = trace.with_suffix(".svg")
    assert str(picture) in result.out
    assert "8 particles, 3 steps" in result.out
    first = picture.read_bytes()
    assert first.startswith(b"<svg")
    assert run("plot", "trace", trace, "--prompt", 1).code == 0
    assert picture.read_bytes() != first
    for suffix, head in ((".PNG", b"\x89PNG"), (".pdf", b"%PDF")):
        out = trace.parent / f"picture{suffix}"
        assert run("plot", "trace", trace, "--out", out).code == 0
        assert out.read_bytes().startswith(head)
    assert len(list(trace.parent.iterdir())) == 4


def test_help(run):
    assert "trace" in run("plot").out
    assert "--prompt" in run("plot", "trace", "--help").out


def test_refusals(run, trace, tmp_path):
    for _ in range(2):  # without and with a picture of that name
        check_error(run("plot", "trace", tmp_path / "none.jsonl"), "none.jsonl", "cannot be read")
        (tmp_path / "none.svg").touch()
    check_error(run("plot", "trace", trace, "--prompt", 2), "there is no prompt 2", "it has 2", "0 to 1")
    check_error(run("plot", "trace", trace, "--prompt", -1), "--prompt must be at least 0")
    check_error(run("plot", "trace", trace, "--out", tmp_path / "a.jpeg"), "a.jpeg", ".svg, .png, .pdf")
    check_error(run("plot", "trace", trace, "--out", tmp_path / "no" / "a.svg"), "no folder", tmp_path / "no")
    (tmp_path / "folder.svg").mkdir()
    check_error(run("plot", "trace", trace, "--out", tmp_path / "folder.svg"), "is a folder")
    check_error(run("plot", "trace"), "Missing argument")
    check_error(run("plot", "trace", tmp_path), "is a folder")
    check_error(run("plot", "trace", "."), "is a folder")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["folder.svg", "none.svg", "trace.jsonl"]


def test_a_broken_trace_leaves_the_old_picture(run, trace):
    picture = trace.with_suffix(".svg")
    picture.write_text("old")
    trace.write_text(trace.read_text()[:-30])
    check_error(run("plot", "trace", trace, "--prompt", 1), "trace.jsonl, line 2: the line is cut off")
    trace.write_text('{"schema_version": 2, "sampler": {}}\n')
    check_error(run("plot", "trace", trace), "trace.jsonl, line 1: this is not a trace")
    assert picture.read_text() == "old"


def test_a_trace_is_not_replaced_by_its_picture(run, trace):
    text = trace.read_text()
    odd = trace.rename(trace.with_suffix(".svg"))
    check_error(run("plot", "trace", odd), "would replace the trace")
    assert odd.read_text() == text
