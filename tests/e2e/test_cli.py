"""The command line: what a user can get wrong is one line and exit code 2; what is written is whole."""

import errno
import json
import os
import resource
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rmtools.cli import main
from rmtools.data.rollouts import read_rollouts
from rmtools.data.tasks import Crossing

ROOT = Path(__file__).parents[2]
BARS = ("Loading weights", "Writing model shards", "━")


class Result:
    def __init__(self, code, out, err):
        self.code, self.out = code, out
        self.err = err
        self.lines = [
            x for x in err.replace("\r", "\n").splitlines() if x.strip() and not any(b in x for b in BARS)
        ]


@pytest.fixture
def run(monkeypatch, capsys):
    """``run("sample", "--model", folder)``: the command in this process."""

    def start(script):
        if script is None:
            main.run()
        runpy.run_path(str(script), run_name="__main__")
        raise SystemExit(0)

    def call(*arguments, script=None):
        monkeypatch.setattr(sys, "argv", [str(script or "rmtools"), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            start(script)
        return Result(end.value.code or 0, *capsys.readouterr())

    return call


def check_error(result, *words):
    """One line on standard error that says fact and fix, exit code 2, no traceback."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert len(result.lines) == 1, result.err
    assert result.lines[0].startswith("rmtools: error: ")
    assert "fix: " in result.lines[0]
    for word in words:
        assert str(word) in result.lines[0]


@pytest.fixture
def prompts_file(tmp_path, prompts):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts[:3]))
    return path


@pytest.fixture
def checkpoint(value_folder, tmp_path):
    """A copy to break; beside the policy, so that its relative name still holds."""
    folder = value_folder.parent / f"copy-{tmp_path.name}"
    shutil.copytree(value_folder, folder)
    yield folder
    shutil.rmtree(folder)


# Start-up, as separate processes


def python(*arguments, n=1):
    """Run python ``n`` times; return the last completed process and the shortest wall time in seconds."""
    seconds = []
    for _ in range(n):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
        )
        seconds.append(time.perf_counter() - start)
    return done, min(seconds)


def test_core_is_light():
    """`import rmtools.core` loads no torch; under .5 s, of which starting python is not the library's."""
    code = (
        "import sys, time; t = time.perf_counter(); import rmtools.core; print(time.perf_counter() - t); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    runs = [python("-c", code)[0] for _ in range(3)]
    assert all(r.returncode == 0 for r in runs)
    assert min(float(r.stdout) for r in runs) < 0.5


def test_help_is_quick():
    done, seconds = python("-m", "rmtools.cli.main", "--help", n=3)
    assert done.returncode == 0
    for verb in ("prompts", "rollout", "audit", "sample", "verify", "report"):
        assert verb in done.stdout
    assert seconds < 1.0


def test_errors_of_a_real_process(tmp_path, prompts_file):
    """The line, the code and silence on standard output, seen from outside."""
    done, _ = python(
        "-m", "rmtools.cli.main", "sample", "--model", str(tmp_path / "none"), "--prompts", str(prompts_file)
    )
    assert done.stdout == ""
    check_error(Result(done.returncode, done.stdout, done.stderr), "there is no checkpoint at", "none")


@pytest.mark.parametrize(
    "verb", [[], ["prompts"], ["rollout"], ["audit"], ["sample"], ["verify"], ["verify", "lm"], ["report"]]
)
def test_every_verb_has_help(run, verb):
    result = run(*verb, "--help")
    assert result.code == 0
    assert "Usage" in result.out


def test_no_verb_is_help_and_version(run):
    from rmtools import __version__

    assert "Usage" in run().out
    result = run("--version")
    assert (result.code, result.out.strip()) == (0, __version__)


# A run of the verbs


def test_prompts_rollout_sample(run, tmp_path, policy_folder, value_folder, task):
    result = run("prompts", "-n", 4, "--horizon", 3, "--out", tmp_path / "p.jsonl", "--seed", 3)
    assert result.code == 0
    assert "4 prompts" in result.out
    rows = [json.loads(x) for x in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert all(task.solvable(r["prompt"]) for r in rows)

    options = (
        "--policy",
        policy_folder,
        "--prompts",
        tmp_path / "p.jsonl",
        "--horizon",
        3,
        "--trajectories",
        3,
        "--children",
        2,
        "--completions",
        2,
        "--temperature",
        1.2,
        "--max-step-tokens",
        6,
        "--seed",
        4,
    )
    for name in ("one", "two"):
        assert run("rollout", *options, "--out", tmp_path / name).code == 0
    found, metadata = read_rollouts(tmp_path / "one")
    assert found == read_rollouts(tmp_path / "two")[0]
    assert [r.prompt for r in found] == [r["prompt"] for r in rows for _ in range(3)]
    assert (metadata.horizon, metadata.temperature, metadata.seed) == (3, 1.2, 4)
    assert metadata.generated_tokens > 0
    assert metadata.policy_fingerprint

    for name in ("a", "b"):
        result = run(
            "sample",
            "--model",
            value_folder,
            "--prompts",
            tmp_path / "p.jsonl",
            "-n",
            5,
            "--out",
            tmp_path / f"{name}.jsonl",
            "--terminal",
            "verifier",
        )
        assert result.code == 0, result.err
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    records = [json.loads(x) for x in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in records] == [r["prompt"] for r in rows]
    assert all(len(r["samples"]) == 5 for r in records)


def test_verify_on_a_tiny_model(run, tmp_path, value_folder, prompts_file):
    result = run(
        "verify",
        "lm",
        "--model",
        value_folder,
        "--prompts",
        prompts_file,
        "--n-prompts",
        1,
        "--runs",
        50,
        "--out",
        tmp_path / "v",
    )
    assert result.code == 0, result.err
    assert "pooled: predicted" in result.out
    assert json.loads((tmp_path / "v" / "verify.json").read_text())["prompts"][0]["runs"] == 50


def test_audit_of_a_tiny_model(run, tmp_path, value_folder, prompts_file):
    """One command writes the three files; the model stands beside its two controls."""
    options = ("--trajectories", 6, "--children", 4, "--completions", 3, "--out", tmp_path / "audit")
    result = run("audit", "--model", value_folder, "--prompts", prompts_file, *options)
    assert result.code == 0, result.err
    names = {p.name for p in (tmp_path / "audit").iterdir()}
    assert {"audit.json", "audit.md", "audit.html", "rollouts"} <= names
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert [m["role"] for m in found["models"]] == ["model", "constant", "untrained"]
    assert found["provenance"]["terminal"] == "verifier"
    assert not [n for n in names if n.startswith(".")]


def test_a_report_of_nothing(run, tmp_path):
    check_error(run("report", tmp_path / "missing"), "missing")
    assert list(tmp_path.iterdir()) == []


# Bad input


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--colour", "red"],
        ["nonsense"],
        ["--nonsense"],
        ["rollout"],
        ["verify", "nonsense"],
        ["sample", "--model", "x", "--prompts", "y", "-n", "many"],
        ["prompts", "-n", "3"],
        ["rollout", "--policy", "p", "--out", "o", "--horizon", "0"],
    ],
)
def test_wrong_usage(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    check_error(run(*arguments), "--help")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_empty_checkpoints(run, tmp_path, prompts_file):
    (tmp_path / "empty").mkdir()
    for name, word in (("missing", "no such folder"), ("empty", "is empty")):
        for verb in (["sample", "--prompts", prompts_file], ["verify", "lm"], ["audit"]):
            check_error(run(*verb, "--model", tmp_path / name), word, name)
    assert list((tmp_path / "empty").iterdir()) == []


def sample(run, checkpoint, prompts_file, *more):
    out = prompts_file.parent / "out.jsonl"
    result = run("sample", "--model", checkpoint, "--prompts", prompts_file, "--out", out, *more)
    assert not out.exists()
    return result


def test_a_checkpoint_without_its_head(run, checkpoint, prompts_file):
    from safetensors.torch import load_file, save_file

    file = checkpoint / "adapter_model.safetensors"
    tensors = {n: t for n, t in load_file(file).items() if ".score." not in n}
    save_file(tensors, file)
    check_error(sample(run, checkpoint, prompts_file), "without its head", "modules_to_save")
    file.write_bytes(b"not weights")
    check_error(sample(run, checkpoint, prompts_file), "cannot be read")
    file.unlink()
    check_error(sample(run, checkpoint, prompts_file), "has no weights")


@pytest.mark.parametrize(
    "key", ["floor", "steps", "policy", "temperature", "seed", "task", "horizon", "base_rate"]
)
def test_a_checkpoint_without_a_setting(run, checkpoint, prompts_file, key):
    path = checkpoint / "rmtools.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))
    check_error(sample(run, checkpoint, prompts_file), f"lacks {key}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, ["has no rmtools.json"]),
        ("{", ["not valid JSON"]),
        ("[]", ["schema version"]),
        ({"schema_version": 9}, ["schema version 9"]),
        ({"steps": {"delimiter": "\n"}}, ["step settings are incomplete"]),
        ({"floor": 0.0}, ["floor"]),
        ({"floor": "low"}, ["floor"]),
        ({"colour": "red"}, ["unknown keys: colour"]),
        ({"temperature": 0}, ["temperature"]),
        ({"policy": "nowhere/at/all"}, ["nowhere/at/all"]),
    ],
)
def test_a_checkpoint_with_wrong_settings(run, checkpoint, prompts_file, change, words):
    path = checkpoint / "rmtools.json"
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    check_error(sample(run, checkpoint, prompts_file), *words)


def test_a_policy_whose_tokenizer_splits_the_delimiter(run, tmp_path, policy_folder):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "policy"
    shutil.copytree(policy_folder, folder)
    words = ["<eos>", *(chr(c) for c in range(32, 127)), "\n", ".\n"]
    bpe = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [(".", "\n")]))
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>", pad_token="<eos>").save_pretrained(
        folder
    )
    check_error(
        run("rollout", "--policy", folder, "--out", tmp_path / "o", "--horizon", 3), "splits the delimiter"
    )
    assert not (tmp_path / "o").exists()


def test_a_policy_that_is_none(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing/policy"):
        check_error(
            run("rollout", "--policy", tmp_path / name, "--out", tmp_path / "o"),
            "no model can be loaded",
            name,
        )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "r2 . \\nc13 . \\n"}\n{"prompt": \n', ["line 2", "not valid JSON"]),
        ("", ["is empty"]),
        ('{"text": "a"}\n', ["line 1", "prompt"]),
        (None, ["cannot be read"]),
        (json.dumps({"prompt": "r2 . \n" + "c13 . \n" * 40}) + "\n", ["123 tokens", "takes 64"]),
        ('{"prompt": "what is 2+2?"}\n', ["crossing"]),
        ('{"prompt": "r2 . \\nc13 . \\n"}\n', ["has 1 columns", "--horizon 1"]),
    ],
)
def test_wrong_prompts_files(run, tmp_path, value_folder, policy_folder, text, words):
    path = tmp_path / "p.jsonl"
    if text is not None:
        path.write_text(text)
    check_error(sample(run, value_folder, path), *words)
    result = run(
        "rollout", "--policy", policy_folder, "--prompts", path, "--horizon", 3, "--out", tmp_path / "o"
    )
    check_error(result, *words)
    assert not list((tmp_path / "o").glob("*"))


def test_counts_below_one(run, tmp_path, value_folder, policy_folder, prompts_file):
    check_error(sample(run, value_folder, prompts_file, "-n", 0), "must be at least 1, got 0")
    check_error(sample(run, value_folder, prompts_file, "--pool-size", -1), "must be at least 1, got -1")
    check_error(run("prompts", "-n", 0, "--out", tmp_path / "x.jsonl"), "must be at least 1, got 0")
    for option in ("trajectories", "children", "completions", "max-step-tokens"):
        result = run("rollout", "--policy", policy_folder, "--out", tmp_path / "o", f"--{option}", 0)
        check_error(result, option.replace("-", "_"), "at least 1")
    check_error(
        run("rollout", "--policy", policy_folder, "--out", tmp_path / "o", "--prompts", 0), "at least 1"
    )
    check_error(run("verify", "lm", "--model", value_folder, "--runs", 0, "--out", tmp_path / "o"), "--runs")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resampling", "lottery"], ["unknown resampling 'lottery'", "systematic"]),
        (["--ess-threshold", 32], ["[0, 1]"]),
        (["--terminal", "judge"], ["verifier, model"]),
        (["--task", "chess"], ["the tasks are: crossing"]),
    ],
)
def test_wrong_choices_of_the_sampler(run, value_folder, prompts_file, options, words):
    check_error(sample(run, value_folder, prompts_file, *options), *words)


def test_output_folders_that_hold_something_else(run, tmp_path, value_folder, policy_folder, prompts_file):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("a file")
    for out, word in ((other, "holds something else"), (file, "is a file")):
        check_error(
            run(
                "rollout", "--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3, "--out", out
            ),
            word,
        )
        check_error(
            run("verify", "lm", "--model", value_folder, "--prompts", prompts_file, "--out", out), word
        )
    check_error(
        run("sample", "--model", value_folder, "--prompts", prompts_file, "--out", other), "is a folder"
    )
    assert [p.name for p in other.iterdir()] == ["chapter.tex"]
    assert file.read_text() == "a file"


# A full disk


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["write_text", "replace"])
def test_disk_full_while_sampling(run, tmp_path, value_folder, prompts_file, monkeypatch, broken):
    out = tmp_path / "samples.jsonl"
    out.write_text("old")
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr(Path, broken, full)
    result = run("sample", "--model", value_folder, "--prompts", prompts_file, "-n", 2, "--out", out)
    monkeypatch.undo()
    check_error(result, "No space left on device", "unchanged")
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_disk_full_while_writing_rollouts(run, tmp_path, policy_folder, prompts_file, monkeypatch):
    """Whether rows or metadata no longer fit: the old pair stays, and stays a pair."""
    options = (
        "rollout",
        "--policy",
        policy_folder,
        "--prompts",
        prompts_file,
        "--horizon",
        3,
        "--out",
        tmp_path / "r",
    )
    assert run(*options, "--trajectories", 2).code == 0
    old, names = read_rollouts(tmp_path / "r"), sorted(p.name for p in (tmp_path / "r").iterdir())
    import pyarrow.parquet

    for target, name in ((Path, "write_text"), (pyarrow.parquet, "write_table"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            result = run(*options, "--trajectories", 3)
        check_error(result, "No space left on device")
        assert read_rollouts(tmp_path / "r") == old
        assert sorted(p.name for p in (tmp_path / "r").iterdir()) == names


def test_a_folder_is_put_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    from rmtools.errors import UserError
    from rmtools.files import replacing

    (tmp_path / "prm").mkdir()
    (tmp_path / "prm" / "a").write_text("old")
    replace = Path.replace

    def second_fails(self, target):
        if Path(target) == tmp_path / "prm" and self.name != "old":
            full()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(UserError, match="No space left"), replacing(tmp_path / "prm") as temporary:
        temporary.mkdir()
    assert (tmp_path / "prm" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["prm"]


# Training


@pytest.fixture
def training(run, tmp_path, policy_folder, prompts_file):
    """Rollouts, and a YAML file that trains on them: ``training(key=value)`` returns its path."""
    options = (
        "--policy",
        policy_folder,
        "--prompts",
        prompts_file,
        "--horizon",
        3,
        "--trajectories",
        3,
        "--children",
        3,
    )
    assert run("rollout", *options, "--out", tmp_path / "rollouts").code == 0
    others = ["2" if o is prompts_file else o for o in options]
    assert run("rollout", *others, "--seed", 9, "--out", tmp_path / "heldout").code == 0

    def write(**changes):
        values = {
            "train_rollouts": str(tmp_path / "rollouts"),
            "eval_rollouts": str(tmp_path / "heldout"),
            "output_dir": str(tmp_path / "prm"),
            "use_peft": True,
            "lora_r": 4,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "logging_steps": 1,
            **changes,
        }
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
        return path

    return write


RECIPE = ROOT / "recipes" / "train_prm.py"


def test_training_then_sampling(run, training, tmp_path, prompts_file):
    result = run("--config", training(), script=RECIPE)
    assert result.code == 0, result.err
    result = run(
        "sample",
        "--model",
        tmp_path / "prm",
        "--prompts",
        prompts_file,
        "-n",
        2,
        "--out",
        tmp_path / "s.jsonl",
    )
    assert result.code == 0, result.err
    log = json.loads((tmp_path / "prm" / "training_log.json").read_text())
    assert np.isfinite([row["loss"] for row in log if "loss" in row]).all()
    assert any("eval_rms_log_bellman" in row for row in log)
    names = sorted(p.name for p in (tmp_path / "prm").iterdir())
    assert run("--config", training(), script=RECIPE).code == 0  # again, over its own result
    assert sorted(p.name for p in (tmp_path / "prm").iterdir()) == names
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"colour": "red"}, [], ["colour"]),
        ({}, ["--colour", "red"], ["colour"]),
        ({"target": "gae"}, [], ["mc, td, td_lambda"]),
        ({"divergence": "kl"}, [], ["itakura_saito"]),
        ({"floor": 0}, [], ["floor"]),
        ({}, ["--max_steps", "many"], ["max_steps"]),
        ({"train_rollouts": "nowhere"}, [], ["there are no rollouts at nowhere"]),
        ({"eval_rollouts": "nowhere"}, [], ["there are no rollouts at nowhere"]),
        ({"train_rollouts": None}, [], ["there are no rollouts"]),
        ({"eval_rollouts": None}, [], ["eval"]),
        ({"model_name_or_path": "nowhere/at/all"}, [], ["nowhere/at/all"]),
    ],
)
def test_wrong_training_arguments(run, training, tmp_path, changes, flags, words):
    check_error(run("--config", training(**changes), *flags, script=RECIPE), *words)
    assert not list((tmp_path / "prm").glob("*"))


def test_wrong_training_files(run, training, tmp_path):
    check_error(run("--config", tmp_path / "missing.yaml", script=RECIPE), "missing.yaml")
    path = training()
    path.write_text("max_steps: [")
    check_error(run("--config", path, script=RECIPE), "training arguments are wrong")


def test_training_into_a_folder_of_something_else(run, training, tmp_path):
    (tmp_path / "prm").mkdir()
    (tmp_path / "prm" / "notes.txt").write_text("mine")
    check_error(run("--config", training(), script=RECIPE), "holds something else")
    assert [p.name for p in (tmp_path / "prm").iterdir()] == ["notes.txt"]


def test_disk_full_while_saving_a_checkpoint(run, training, tmp_path):
    """Files may not grow beyond 8 KB: the weights cannot be written, nothing of the checkpoint is left."""
    config, (soft, hard) = training(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        result = run("--config", config, script=RECIPE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_error(result, "cannot write", "unchanged")
    assert not list((tmp_path / "prm").glob("*"))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_held_out_rollouts_that_share_prompts_are_refused(run, training, tmp_path):
    config = training(eval_rollouts=str(tmp_path / "rollouts"))
    check_error(run("--config", config, script=RECIPE), "held-out", "3 prompts")


def test_another_horizon_than_the_checkpoints_is_refused(run, checkpoint, prompts_file, tmp_path):
    options = (
        "--model",
        checkpoint,
        "--horizon",
        2,
        "--prompts",
        prompts_file,
        "--out",
        tmp_path / "s.jsonl",
    )
    check_error(run("sample", *options), "2 steps", "--horizon")
    assert not (tmp_path / "s.jsonl").exists()


def test_a_retrained_policy_under_an_adapter_is_refused(run, checkpoint, prompts_file, tmp_path):
    settings = json.loads((checkpoint / "rmtools.json").read_text())
    settings["policy_fingerprint"] = "0" * 16
    (checkpoint / "rmtools.json").write_text(json.dumps(settings))
    options = ("--model", checkpoint, "--prompts", prompts_file, "--out", tmp_path / "s.jsonl")
    check_error(run("sample", *options), "weights differ", "policy")


def test_verbs_draw_different_prompts_at_the_same_seed():
    from rmtools.cli.options import generator

    task = Crossing(8)
    drawn = [
        set(task.prompts(20, generator(verb, 0))[0]) for verb in ("rollout", "audit", "prompts", "verify")
    ]
    assert len(set().union(*drawn)) == 80
