"""What the command line takes: prompts by hand, devices, choices, and results that are replaced on request only."""

import errno
import io
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from checks import check_error, without_seconds

import rmtools as rm
from rmtools.cli import convert, main, sample
from rmtools.cli.device import device_for
from rmtools.data.readers import READERS
from rmtools.data.tasks import load_task
from rmtools.errors import UserError
from rmtools.lm.checkpoint import CheckpointSettings
from rmtools.particles.resampling import RESAMPLING
from rmtools.sampling.settings import OUTPUTS, PRESETS


def chosen_texts(path):
    return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]


# Prompts


def test_prompts_by_hand_are_those_of_a_file(run, tmp_path, value_folder, prompts_file, prompts, monkeypatch):
    options = ("sample", "--model", value_folder, "-n", 2, "--seed", 3)
    assert run(*options, "--prompts", prompts_file, "--out", tmp_path / "file.jsonl").code == 0
    typed = [word for p in prompts[:3] for word in ("--prompt", p.removesuffix("\n").replace("\n", "\\n"))]
    result = run(*options, *typed, "--out", tmp_path / "typed.jsonl")
    assert result.code == 0, result.err
    assert prompts[0].splitlines()[0] in result.out
    monkeypatch.setattr("sys.stdin", io.StringIO("\n" + prompts_file.read_text()))
    assert run(*options, "--prompts", "-", "--out", tmp_path / "stdin.jsonl").code == 0
    texts = [without_seconds(tmp_path / f"{name}.jsonl") for name in ("file", "typed", "stdin")]
    assert texts[0] == texts[1] == texts[2]


def test_plain_lines_are_prompts(run, tmp_path, value_folder, monkeypatch):
    from rmtools.data.prompts import Prompt, read_stream

    task = load_task("answers", 3)
    found, plain = read_stream(["6 * 7?\n", "\n", "1 + 1?"], task.delimiter)
    assert ([p.text for p in found], plain) == (["6 * 7?\n", "1 + 1?\n"], True)
    row = json.dumps({"question": "6 * 7?", "answer": "42"})
    assert read_stream(["\n", row], task.delimiter) == ([Prompt("6 * 7?\n", "42")], False)
    with pytest.raises(UserError, match="standard input, line 2 is not valid JSON"):
        read_stream([row + "\n", "{\n"], task.delimiter)


def test_a_typed_prompt_without_a_file_is_only_printed(run, tmp_path, value_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in (r"r2 . \nc13 . \nc13 . \nc02 . ", r"r1 . \nc13 . \nc13 . \nc02 . "):
        result = run("sample", "--model", value_folder, "--prompt", text, "-n", 2)
        assert result.code == 0, result.err
        assert text[:2] in result.out
        assert "samples.jsonl" not in result.out
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_task_samples_without_one(run, tmp_path, value_folder):
    lone = copied(value_folder, tmp_path / "lone", task="")
    prompt, out = r"r2 . \nc13 . \nc13 . \nc02 . ", tmp_path / "s.jsonl"
    assert run("sample", "--model", lone, "--prompt", prompt, "-n", 2, "--out", out).code == 0
    none = tmp_path / "none.jsonl"
    options = ("sample", "--model", value_folder, "--task", "none", "--prompt", prompt, "-n", 2)
    assert run(*options, "--out", none).code == 0
    record, same = json.loads(out.read_text()), json.loads(none.read_text())
    python = rm.sample(lone, [prompt.replace(r"\n", "\n") + "\n"], n_particles=2)[0].record
    for key in ("samples", "log_z", "chosen"):
        assert record[key] == same[key] == python[key]
    assert not any("reward" in s for s in record["samples"])
    check_error(run(*options, "--terminal", "verifier"), "--terminal verifier", "--task")


@pytest.mark.parametrize("role", ["policy", "base"])
def test_a_checkpoint_without_its_models(run, tmp_path, value_folder, prompts_file, role):
    lone = copied(value_folder, tmp_path / "lone", **{role: "../gone"})
    words = ["rmtools.json", "../gone", role]
    check_error(run("sample", "--model", lone, "--prompts", prompts_file, "--out", tmp_path / "s"), *words)
    with pytest.raises(UserError, match=role):
        rm.sample(lone, rm.load_prompts(prompts_file))
    if role == "base":
        with pytest.raises(UserError, match="base"):
            rm.audit("nowhere", lone)


def copied(checkpoint, folder, **changes):
    """Copy a checkpoint with other settings; its models are found from there."""
    shutil.copytree(checkpoint, folder)
    known = CheckpointSettings.load(checkpoint)
    settings = replace(known, policy=str(Path(known.policy).resolve()), base=str(Path(known.base).resolve()))
    settings.save(folder)
    file = folder / "rmtools.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_a_typed_prompt_needs_no_right_answer(run, tmp_path, value_folder):
    out = tmp_path / "s.jsonl"
    options = ("sample", "--model", value_folder, "--task", "answers", "--prompt", r"r2 . \nc13 . ")
    result = run(*options, "-n", 2, "--out", out)
    assert result.code == 0, result.err
    record = json.loads(out.read_text())
    assert record["prompt"] == "r2 . \nc13 . \n"
    assert not any("reward" in s for s in record["samples"])
    check_error(run(*options, "--terminal", "verifier", "--out", tmp_path / "t.jsonl"), "no reference answer")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["there are no prompts", "--prompt TEXT"]),
        (("--prompts", "p.jsonl", "--prompt", "a"), ["--prompts and --prompt both name prompts"]),
        (("--prompt", "  "), ["a prompt is blank"]),
        (("--prompts", "-"), ["standard input has no prompt"]),
    ],
)
def test_wrong_prompts(run, tmp_path, value_folder, monkeypatch, options, words):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    check_error(run("sample", "--model", value_folder, *options, "--out", tmp_path / "o.jsonl"), *words)
    assert not list(tmp_path.iterdir())


def test_standard_input_is_of_one_process(run, tmp_path, value_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_error(
        run("sample", "--model", value_folder, "--prompts", "-", "--out", tmp_path / "o"), "several processes"
    )


# Results


def test_prompts_are_replaced_on_request_only(run, tmp_path):
    out = tmp_path / "p.jsonl"
    options = ("prompts", "-n", 3, "--horizon", 2, "--out", out)
    assert run(*options).code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert run(*options).code == 0  # the same file again
    check_error(run(*options, "--seed", 1), "is there already", "--overwrite")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    out.unlink()
    check_error(run(*options, "--seed", 1), "p.meta.json is there already")
    assert run(*options, "--seed", 1, "--overwrite").code == 0
    assert out.read_bytes() != before["p.jsonl"]
    check_error(run(*options[:-1], tmp_path), "is a folder")


@pytest.mark.parametrize("verb", ["prompts", "convert", "export"])
def test_a_full_disk_leaves_nothing(run, tmp_path, value_folder, monkeypatch, verb):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "1 + 1?", "completions": ["2."], "labels": [1]}) + "\n")
    out = tmp_path / "new" / "out"
    commands = {
        "prompts": ("-n", 2, "--horizon", 2, "--out", out),
        "convert": (rows, out),
        "export": ("--model", value_folder, "--merge", "--out", out),
    }

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    result = run(verb, *commands[verb])
    assert (result.code, "Traceback" in result.err) == (2, False)
    assert "No space left on device" in result.lines[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_refusal_leaves_nothing(run, tmp_path, value_folder):
    """Nothing is created before the prompts are read and fit the task."""
    missing = ("verify", "lm", "--model", value_folder, "--prompts", tmp_path / "none.jsonl")
    check_error(run(*missing, "--out", tmp_path / "a" / "verify"), "none.jsonl")
    check_error(run("convert", tmp_path / "none.jsonl", tmp_path / "b" / "out"), "none.jsonl")
    assert not list(tmp_path.iterdir())


# Options


def test_choices_are_those_of_the_library():
    assert set(get_args(sample.AlgorithmName)) == set(PRESETS)
    assert set(get_args(sample.OutputName)) == set(OUTPUTS)
    assert set(get_args(sample.ResamplingName)) == set(RESAMPLING)
    assert set(get_args(convert.FormatName)) == set(READERS)


@pytest.mark.parametrize("verb", ["rollout", "audit", "sample", "convert", "prompts", "export", "env"])
def test_short_help_with_panels(run, verb):
    result = run(verb, "-h")
    assert result.code == 0
    assert "Usage" in result.out
    if verb != "env":
        assert "─ Output ─" in result.out
    assert ("--device" in result.out) == (verb in ("rollout", "audit", "sample"))


def test_every_option_has_a_panel_and_every_number_a_reason(run):
    """An option without a help text would be refused without a reason."""

    def commands(command):
        yield command
        for part in getattr(command, "commands", {}).values():
            yield from commands(part)

    group = main.typer.main.get_command(main.app)
    for command in commands(group):
        for option in command.params:
            if option.name in ("help", "version") or "completion" in option.name:
                continue
            assert option.help, (command.name, option.name)
            if option.opts[0].startswith("-"):
                assert option.rich_help_panel, (command.name, option.name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("verify", "exact", "--seed", 2**32),
            ["--seed must be at most 4294967295", "Seed of every random draw"],
        ),
        (
            ("rollout", "--horizon", "many"),
            ["--horizon must be a whole number, got many", "Steps of a solution"],
        ),
        (("audit", "--delta-cv", "x"), ["--delta-cv must be a number, got x"]),
        (("sample", "--algorithm", "magic"), ["--algorithm has no choice 'magic'", "smc, sp-gsmc"]),
    ],
)
def test_a_refusal_says_fact_reason_and_fix(run, arguments, words):
    check_error(run(*arguments), *words)


@pytest.mark.parametrize("seed", [-1, 2**32, 5_000_000_000])
@pytest.mark.parametrize(
    "command",
    [
        ("rollout", "--policy", "p", "--out", "o"),
        ("sample", "--model", "m", "--prompt", "x"),
        ("audit", "--model", "m"),
        ("prompts", "--out", "o"),
        ("verify", "lm", "--model", "m"),
        ("verify", "exact"),
        ("train", "--train_rollouts", "r", "--output_dir", "o"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_every_command_refuses_a_seed_out_of_range_at_once(run, tmp_path, monkeypatch, command, seed):
    monkeypatch.chdir(tmp_path)
    check_error(run(*command, "--seed", seed), "seed", seed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "completed"), [("rmtools sa", "sample"), ("rmtools sample --algorithm gi", "gibbs")]
)
def test_completion(monkeypatch, capsys, words, completed):
    """What the shell's script, installed by --install-completion, asks for."""
    monkeypatch.setenv("_RMTOOLS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        main.app(prog_name="rmtools")
    assert capsys.readouterr().out.split() == [completed]


def test_devices(run, tmp_path, monkeypatch, policy_folder):
    import torch

    assert device_for("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for("auto").type == "cpu"
    with pytest.raises(UserError, match="torch finds no CUDA GPU"):
        device_for("cuda")
    out = tmp_path / "o"
    refused = run("rollout", "--policy", policy_folder, "--device", "cuda", "--out", out)
    check_error(refused, "torch finds no CUDA GPU")
    assert not out.exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert str(device_for("auto")) == str(device_for("cuda")) == "cuda:1"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert device_for("auto").type == "cpu"


@pytest.mark.parametrize("verb", ["rollout", "audit", "sample", "verify lm"])
def test_a_device_without_float64_is_refused_before_anything_is_looked_for(run, tmp_path, verb):
    """No model, rollouts or prompts of these names exist: they would be refused next."""
    model = "--policy" if verb == "rollout" else "--model"
    prompts = ("--prompts", "none.jsonl") if verb == "sample" else ()
    out = tmp_path / "o"
    refused = run(*verb.split(), model, tmp_path / "none", *prompts, "--device", "mps", "--out", out)
    check_error(refused, "--device mps", "float64")
    assert not out.exists()


def test_env_names_no_folder(run, tmp_path, monkeypatch):
    from pathlib import Path

    from rmtools import __version__

    result = run("env")
    assert result.code == 0
    for word in (
        __version__,
        "torch",
        "transformers",
        "peft",
        "trl",
        "accelerate",
        "datasets",
        "CUDA",
        "OMP_NUM",
    ):
        assert word in result.out
    assert str(Path.home()) not in result.out
