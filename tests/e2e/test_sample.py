"""``rmtools sample``: every algorithm, the output that was chosen, N from an audit, budgets, and what is refused."""

import json

import numpy as np
import pytest
import torch
from checks import check_error, check_late, without_seconds

import rmtools as rm
from rmtools.auditing import audit
from rmtools.auditing.page import write_report
from rmtools.data.collect import Branching, Collector
from rmtools.data.rollouts import RolloutMetadata
from rmtools.lm.checkpoint import fingerprint
from rmtools.lm.value import ValueModel
from rmtools.sampling.trace import read_trace


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def sample(run, value_folder, prompts_file, tmp_path):
    """``sample("--algorithm", "beam")``: the result, and the file."""
    out = tmp_path / "s.jsonl"

    def call(*more):
        return run("sample", "--model", value_folder, "--prompts", prompts_file, "--out", out, *more), out

    return call


@pytest.mark.parametrize(
    ("algorithm", "more", "n"),
    [
        ("smc", (), 16),
        ("sp-gsmc", ("--pool-size", 3), 1),
        ("guided", ("--resampling", "residual"), 4),
        ("mh", ("--mh-steps", 3), 4),
        ("importance", ("-n", 5), 5),
        ("best-of-n", ("-n", 5), 5),
        ("majority", (), 16),
        ("weighted-majority", (), 16),
        ("beam", (), 4),
    ],
)
def test_every_algorithm(sample, tmp_path, algorithm, more, n):
    result, out = sample("--algorithm", algorithm, *more)
    assert result.code == 0, result.err
    for record in read(out):
        assert record["sampler"]["algorithm"] == algorithm
        assert len(record["samples"]) == n
        assert record["provenance"]["run"]
    assert f"sampler: {algorithm}, N = " in result.out
    lines = result.out.splitlines()
    (chosen,) = (x.strip() for x in lines if x.endswith("(put out)"))
    assert chosen.startswith(read(out)[0]["output"].replace("-", " "))
    shown = ["all samples", "draw", "argmax", "majority", "weighted majority"]
    found = [name for name in shown if any(x.strip().startswith(name) and "[" in x for x in lines)]
    assert found == [s for s in shown if (algorithm, s) != ("beam", "draw")]
    assert "steps were cut at max_step_tokens" in result.out
    # Nothing but the file is left.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompts.jsonl", "s.jsonl"]


def test_islands(sample):
    result, out = sample("-n", 12, "--islands", 4)
    assert result.code == 0, result.err
    assert "islands: 4 x 3 particles, effective number " in result.out
    assert max(len(line) for line in result.out.splitlines() if str(out) not in line) <= 80
    for record in read(out):
        assert (
            record["sampler"]["islands"] == record["islands"]["count"] == len(record["islands"]["log_z"]) == 4
        )
        assert record["cost"]["seconds"] > 0
    for more, said in (
        (("-n", 13, "--islands", 4), "--islands 4 do not divide --n-particles 13: "),
        (("--algorithm", "gibbs", "--islands", 4), "--islands 4 do not go with particle Gibbs"),
        (("--algorithm", "beam", "--islands", 4), "--islands 4 do not go with --resampling top_k"),
        (("--accuracy", "cv=.1", "--islands", 4), "--accuracy contradicts --islands 4"),
        (("--islands", 0), "--islands must be an integer of at least 1, got 0"),
    ):
        check_error(sample(*more)[0], said)
    check_error(sample("-n", 13, "--islands", 4)[0], "fix: --n-particles 12")


def without_run(path):
    return [{**r, "provenance": None, "cost": None} for r in read(path)]


def test_trace(sample, run, tmp_path):
    """The same samples, and beside them how they came about: drawn by `rmtools plot trace`."""
    _, out = sample("-n", 4)
    plain = without_run(out)
    trace = tmp_path / "t.jsonl"
    refused, _ = sample("-n", 4, "--trace", trace)
    check_late(refused, "is there already", "--out", "--overwrite")
    assert without_run(out) == plain
    result, out = sample("-n", 4, "--trace", trace, "--overwrite")
    assert result.code == 0, result.err
    assert without_run(out) == plain
    assert f"trace: {trace}" in result.out
    traces = read_trace(trace)
    assert [t.prompt for t in traces] == [r["prompt"] for r in plain]
    for i, (t, record) in enumerate(zip(traces, plain, strict=True)):
        assert t.solutions() == [s["steps"] for s in record["samples"]]
        assert t.provenance == {"run": read(out)[i]["provenance"]["run"], "record": i}
    before = trace.read_bytes()
    assert "finished already" in sample("-n", 4, "--trace", trace)[0].out
    trace.unlink()
    assert "finished already" not in sample("-n", 4, "--trace", trace)[0].out
    assert trace.read_bytes() == before
    drawn = run("plot", "trace", trace, "--prompt", 1, "--out", tmp_path / "t.svg")
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "t.svg").stat().st_size > 1000
    assert not list(tmp_path.glob(".*"))


def test_a_trace_is_told_from_anothers(sample, tmp_path):
    """A finished run does not take another's trace, an empty file or the samples themselves for its own."""
    mine, other = tmp_path / "mine.jsonl", tmp_path / "other.jsonl"
    assert sample("-n", 4, "--seed", 8, "--trace", other)[0].code == 0
    _, out = sample("-n", 4, "--trace", mine, "--overwrite")
    theirs = other.read_bytes()
    check_late(sample("-n", 4, "--trace", other)[0], f"{other} is there already", "--trace", "--overwrite")
    assert other.read_bytes() == theirs
    mine.write_text("")
    check_late(sample("-n", 4, "--trace", mine)[0], f"{mine} is there already")
    (tmp_path / "hard").hardlink_to(out)
    check_error(sample("-n", 4, "--trace", tmp_path / "hard")[0], "the output itself")


@pytest.mark.parametrize(
    "harm",
    [
        lambda lines: [lines[0], lines[1][:40] + b"\n", lines[2]],
        lambda lines: [lines[0], b"{}\n", lines[2]],
        lambda lines: [lines[0], b"\xff" + lines[1], lines[2]],
        lambda lines: [lines[0], lines[0], lines[2]],
        lambda lines: [lines[0], b"[" * 100_000 + b"\n", lines[2]],
    ],
)
def test_a_finished_file_that_was_changed(sample, harm):
    """Named by its line, and drawn again where that is asked for."""
    _, out = sample("-n", 3)
    before, whole = out.read_bytes(), without_seconds(out)
    out.write_bytes(b"".join(harm(before.splitlines(keepends=True))))
    check_late(sample("-n", 3)[0], f"{out}, line 2 was changed", "--overwrite")
    assert sample("-n", 3, "--overwrite")[0].code == 0
    assert without_seconds(out) == whole


def test_links_are_written_through(run, value_folder, prompts_file, tmp_path):
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(real)
    options = ("sample", "--model", value_folder, "--prompts", prompts_file, "-n", 2, "--out")
    assert run(*options, link).code == 0
    assert link.is_symlink()
    assert len(read(real)) == 3
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    check_error(run(*options, loop), "loop")
    check_error(run(*options, tmp_path / ("a" * 300)), "too long")


def test_what_is_there_is_not_replaced(sample, run, tmp_path):
    """Neither a stranger's file, nor a trace that is not this run's, nor the prompts, whatever is passed."""
    _, out = sample("-n", 3)
    for path, options in ((out, ()), (tmp_path / "t.jsonl", ("--trace", tmp_path / "t.jsonl"))):
        out.unlink()
        path.write_text("mine\n")
        check_late(sample("-n", 3, *options)[0], f"{path} is there already", "--overwrite")
        assert path.read_text() == "mine\n"
        assert sample("-n", 3, *options, "--overwrite")[0].code == 0
        assert path.read_text() != "mine\n"
    prompts = next(tmp_path.glob("*prompts*"))
    before = prompts.read_bytes()
    for option in ("--out", "--trace"):
        check_error(sample(option, prompts, "--overwrite")[0], option, "the file of prompts itself")
    assert prompts.read_bytes() == before


def test_traces_that_cannot_be(sample, tmp_path):
    result, out = sample("--algorithm", "gibbs", "-n", 3, "--trace", tmp_path / "t.jsonl")
    check_error(result, "--trace cannot follow gibbs")
    result, out = sample("--trace", out)
    check_error(result, "the output itself")
    result, _ = sample("--trace", tmp_path)
    check_error(result, "is a folder")
    result, _ = sample("--trace", tmp_path / "prompts.jsonl" / "t.jsonl")
    check_error(result, "cannot write", "its folder is a file")
    assert not out.exists()


def test_a_policy_behind_a_server(sample, server):
    result, out = sample("-n", 4, "--server", server.url("vllm"), "--terminal", "verifier")
    assert result.code == 0, result.err
    assert "requests, " in result.out
    for record in read(out):
        assert len(record["samples"]) == 4
        assert all(len(s["steps"]) <= 3 for s in record["samples"])
    assert server.url("vllm") in read(out)[0]["provenance"]["policy"]
    assert read(out)[0]["provenance"]["server"]["choices"] == 16


def test_a_server_that_is_not_there(sample, policy_folder):
    result, out = sample("--server", "http://127.0.0.1:9/v1")
    check_error(result, "127.0.0.1:9")
    result, _ = sample("--server", "http://127.0.0.1:9/v1", "--policy", policy_folder)
    check_error(result, "both name a policy")
    assert not out.exists()


@pytest.mark.parametrize("option", [("--server-model", "x"), ("--concurrency", 8), ("--server-batch", 4)])
def test_options_of_a_server_need_one(sample, option):
    check_error(sample(*option)[0], f"{option[0]} needs --server", "--server URL")


@pytest.mark.parametrize("option", ["--concurrency", "--server-batch"])
def test_counts_of_a_server_are_positive(sample, option):
    result, out = sample("--server", "http://127.0.0.1:9/v1", option, 0)
    check_error(result, option, "must be at least 1")
    assert not out.exists()


def test_gibbs(sample):
    result, out = sample("--algorithm", "gibbs", "-n", 3, "--sweeps", 2)
    assert result.code == 0, result.err
    for record in read(out):
        assert len(record["samples"]) == len(record["chain"]["kept"]) == 2
        assert record["draw"] == record["chosen"] == 1
        assert (record["log_z"], record["ess"], record["runs"]) == (None, None, [])


def test_the_output_can_be_chosen_and_the_samples_stay_the_same(sample):
    found = {}
    for output in ("draw", "argmax", "majority", "weighted-majority"):
        result, out = sample("-n", 6, "--output", output, "--overwrite")
        assert result.code == 0, result.err
        assert "finished already" not in result.out
        found[output] = read(out)
    for output, records in found.items():
        for record, drawn in zip(records, found["draw"], strict=True):
            assert record["samples"] == drawn["samples"]
            assert record["chosen"] == drawn[output.replace("-", "_")]


def test_the_same_command_again_is_finished_already(sample):
    first, out = sample("-n", 3, "--seed", 2)
    before = out.read_bytes()
    again, _ = sample("-n", 3, "--seed", 2)
    assert again.code == 0
    precision, _, report = first.out.partition("\n")
    assert again.out == f"{precision}\nfinished already; {report}"
    assert out.read_bytes() == before
    for change in (("--seed", 3), ("-n", 4), ("--block-size", 2)):
        other, _ = sample("-n", 3, "--seed", 2, *change, "--overwrite")
        assert "finished already" not in other.out
    # A file that lost a line is made again.
    sample("-n", 3, "--seed", 2, "--overwrite")
    whole = without_seconds(out)
    out.write_bytes(b"".join(before.splitlines(keepends=True)[:-1]))
    sample("-n", 3, "--seed", 2)
    assert without_seconds(out) == whole


@pytest.fixture(scope="module")
def audited(tmp_path_factory, policy, policy_folder, value_folder, task, settings):
    """An audit that resolves how many particles a total variation takes."""
    rng = np.random.default_rng(2)
    rows = Collector(policy, task, Branching(64, 1, 4), rng).collect(task.prompts(12, rng)[0])
    metadata = RolloutMetadata(
        str(policy_folder), fingerprint(policy_folder), "crossing", 3, settings, 1.0, 0
    )
    out = tmp_path_factory.mktemp("audit")
    write_report(audit((rows, metadata), value_folder, controls=False), out)
    return out


def test_n_from_the_audit(sample, audited):
    result, out = sample("--accuracy", "tv=.1", "--audit", audited, "--terminal", "verifier")
    assert result.code == 0, result.err
    record = read(out)[0]
    spread = json.loads((audited / "audit.json").read_text())["models"][0]["cost"]["influence"]["sd"][
        "estimate"
    ]
    n = int(np.ceil(spread / 0.2))
    assert n > 1
    assert len(record["samples"]) == record["sampler"]["n_particles"] == n
    assert (record["sampler"]["resampling"], record["sampler"]["ess_threshold"]) == ("multinomial", 1.0)
    assert record["provenance"]["accuracy"]["asked"] == "tv=0.1"
    assert result.out.splitlines()[1].startswith(f"N = {n} for tv=0.1 (total variation")
    assert str(audited) in result.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-n", 4], ["--accuracy contradicts --n-particles 4"]),
        (["--pool-size", 2], ["--pool-size 2", "predicts --pool-size 1"]),
        (["--resampling", "systematic"], ["predicts --resampling multinomial"]),
        (["--ess-threshold", 0.5], ["--ess-threshold 0.5"]),
        (["--mh-steps", 2], ["--mh-steps 2"]),
        (["--algorithm", "beam"], ["--algorithm beam"]),
        (["--terminal", "model"], ["another terminal", "--terminal verifier"]),
        (["--policy", "OTHER"], ["another policy"]),
    ],
)
def test_what_contradicts_an_accuracy(sample, audited, policy_folder, tmp_path, options, words):
    import shutil

    if "OTHER" in options:
        from safetensors.torch import load_file, save_file

        other = tmp_path / "other"
        shutil.copytree(policy_folder, other)
        tensors = load_file(other / "model.safetensors")
        save_file({k: v * 1.001 for k, v in tensors.items()}, other / "model.safetensors", {"format": "pt"})
        options = ["--policy", other]
    result, out = sample("--accuracy", "tv=.1", "--audit", audited, "--terminal", "verifier", *options)
    check_error(result, *words)
    assert not out.exists()


def test_an_audit_is_looked_for_in_the_checkpoint(sample, value_folder):
    check_error(sample("--accuracy", "cv=.1")[0], f"none at {value_folder / 'audit' / 'audit.json'}")
    check_error(sample("--accuracy", "accurate")[0], "--accuracy tv=.05")
    check_error(sample("--audit", value_folder)[0], "--audit is read for --accuracy only")


def test_until_an_error_is_small_enough(sample, value_folder, prompts_file):
    """The records of `rm.sample`; finished files stay; what contradicts or cannot be known is refused."""
    result, out = sample("-n", 4, "--until", "cv=.05", "--token-budget", 600)
    assert result.code == 0, result.err
    assert "until Z-hat (relative) is known to ± 0.05" in result.out
    assert "(--token-budget)" in result.out
    assert "token_budget" not in result.out
    records = read(out)
    prompts = [json.loads(line)["prompt"] for line in prompts_file.read_text().splitlines()]
    same = rm.sample(value_folder, prompts, n_particles=4, until="cv=.05", token_budget=600)
    for record, prompt in zip(records, same, strict=True):
        del record["provenance"]
        record["cost"]["seconds"] = prompt.record["cost"]["seconds"]
        assert record == prompt.record
    assert sample("-n", 4, "--until", "cv=.05", "--max-tokens", 600)[0].out.count("finished already") == 1
    check_error(sample("--until", "share")[0], "--until is 'share'", "--until share=.05")
    check_error(sample("--until", "cv=.1", "--islands", 4)[0], "--until cv=.1 contradicts --islands 4")
    check_error(sample("--until", "cv=.1", "--max-seconds", 4)[0], "pass --token-budget")
    check_error(sample("--until", "cv=.1", "--accuracy", "tv=.05")[0], "--accuracy contradicts --until cv=.1")
    other = out.parent / "other.jsonl"
    refused = sample("--until", "share=.05", "--task", "none", "--out", other)[0]
    check_late(refused, "--until share=0.05 needs the leading answer", "--until cv=.25")
    assert not list(out.parent.glob("*other*"))


def test_a_budget(sample):
    result, out = sample("-n", 4, "--max-tokens", 200)
    assert result.code == 0, result.err
    for record in read(out):
        budget = record["budget"]
        assert 100 < budget["tokens"] <= 200
        assert len(record["samples"]) == 4 * budget["runs"] == 4 * len(record["runs"])
    assert "budget: " in result.out
    assert "exceeded" not in result.out
    result, out = sample("-n", 4, "--max-tokens", 8, "--overwrite")
    assert result.code == 0, result.err
    assert "the budget was exceeded at 3 of 3 prompts" in result.out
    assert "at 3 of them a single run takes more" in result.out
    assert all(r["budget"]["exceeded"] and r["budget"]["runs"] == 1 for r in read(out))
    check_error(sample("-n", 4, "--max-tokens", 3)[0], "too few for one run")
    result, out = sample("--algorithm", "mh", "--max-seconds", 0.2, "--overwrite")
    assert result.code == 0, result.err
    for record in read(out):
        assert len(record["chain"]["accepted"]) == record["budget"]["runs"] - 1
        assert record["budget"]["exceeded"] == (record["budget"]["seconds"] > 0.2)


def test_prompts_without_any_weight(sample, monkeypatch):
    """Exit code 0, and it is said."""
    begin, advance = ValueModel.start, ValueModel.advance

    def worthless(self, state, tokens):
        values, after = advance(self, state, tokens)
        return values - np.inf, after

    def worth_something(self, prompts):
        values, after = begin(self, prompts)
        return torch.zeros_like(values), after

    monkeypatch.setattr(ValueModel, "advance", worthless)
    monkeypatch.setattr(ValueModel, "start", worth_something)
    monkeypatch.setattr(ValueModel, "is_probability", False)  # a probability is never below the floor
    result, out = sample("-n", 4)
    assert result.code == 0, result.err
    assert "3 of 3 prompts have no sample of positive weight" in result.out
    for record in read(out):
        assert {record[k] for k in ("log_z", "draw", "argmax", "majority", "chosen", "answer")} == {None}
        assert {s["log_weight"] for s in record["samples"]} == {None}
        assert record["generated_tokens"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--algorithm", "sp-gsmc", "-n", 16], ["sp-gsmc", "--n-particles 16"]),
        (["--algorithm", "beam", "--output", "draw"], ["no law"]),
        (["--algorithm", "nuts"], ["--algorithm has no choice", "smc, sp-gsmc"]),
        (["--output", "mode"], ["--output has no choice", "draw, argmax"]),
        (["--block-size", 0], ["--block-size", "must be at least 1"]),
        (["--seed", -1], ["--seed"]),
        (["--seed", 5_000_000_000], ["--seed"]),
        (["-n", 0], ["at least 1, got 0"]),
    ],
)
def test_refused_before_anything_is_drawn(sample, tmp_path, options, words):
    check_error(sample(*options)[0], *words)
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_places_that_cannot_be_written(run, value_folder, prompts_file, tmp_path):
    (tmp_path / "file").write_text("a file")
    options = ("--model", value_folder, "--prompts", prompts_file, "-n", 2, "--out")
    check_error(run("sample", *options, tmp_path / "file" / "s.jsonl"), "cannot write")
    for name, word in (
        ("thesis.tex", "holds something else"),
        ("data/thesis.tex", "holds something else"),
        ("metadata.json", "holds something else"),
        ("plan.json", "not valid JSON"),
    ):
        own = tmp_path / name.replace("/", "-") / ".s.jsonl.parts" / name
        own.parent.mkdir(parents=True)
        own.write_text("years of work")
        check_error(run("sample", *options, tmp_path / name.replace("/", "-") / "s.jsonl"), word)
        assert own.read_text() == "years of work"
    result = run("sample", *options, tmp_path / "new" / "folder" / "s.jsonl")
    assert result.code == 0, result.err
