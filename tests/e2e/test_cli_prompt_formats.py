"""One prompt format from rollouts through training, audit and samples, by the command line."""

import json

import pytest
from checks import check_error

import rmtools as rm
from rmtools.data.rollouts import read_rollouts
from rmtools.lm.checkpoint import CheckpointSettings
from rmtools.lm.prompt_format import RAW

TRAIN = (
    "--max_steps",
    1,
    "--lora_r",
    4,
    "--use_cpu",
    "true",
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
)


@pytest.fixture
def shots(tmp_path):
    path = tmp_path / "shots.jsonl"
    path.write_text(json.dumps({"prompt": "r1 . \nc13 . \n", "solution": "u r3 \n"}))
    return path


JUDGE = """
def reward(prompt, steps, reference):
    assert prompt.startswith("r") and "<|" not in prompt and prompt.endswith("\\n"), prompt
    return float(len("".join(steps)) % 2)
"""


@pytest.fixture
def questions(tmp_path, prompts):
    """A file of questions, and a task that fails if it is asked about anything else."""
    (tmp_path / "judge.py").write_text(JUDGE)
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts[:4]))
    return path


@pytest.fixture
def drawn(run, chat_folder, tmp_path, questions):
    """``drawn(name, options)``: rollouts in a folder; the result of the command."""

    def draw(name, *options):
        sizes = (
            "--horizon",
            3,
            "--prompts",
            questions,
            "--trajectories",
            2,
            "--children",
            2,
            "--max-step-tokens",
            4,
        )
        task = ("--task", f"{tmp_path / 'judge.py'}:reward")
        return run("rollout", "--policy", chat_folder, *task, *sizes, *options, "--out", tmp_path / name)

    return draw


def test_one_format_through_the_chain(run, drawn, tmp_path, shots, questions):
    options = ("--system", "u .", "--few-shot", shots)
    result = drawn("chat", *options)
    assert (result.code, result.err.count("rendered by the chat template")) == (0, 1)
    assert "--prompt-format raw" in result.err
    assert "finished already" in drawn("chat", *options).out
    check_error(drawn("chat", "--prompt-format", "raw"), "kind", "chat", "raw", "--overwrite")
    rows, metadata = read_rollouts(tmp_path / "chat")
    form = metadata.prompt_format
    assert (form.kind, form.system, len(form.few_shot)) == ("chat", "u .", 1)

    prm = tmp_path / "prm"
    assert run("train", "--train_rollouts", tmp_path / "chat", "--output_dir", prm, *TRAIN).code == 0
    assert CheckpointSettings.load(prm).prompt_format == form

    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": rows[0].question}]}) + "\n")
    sample = ("sample", "--model", prm, "-n", 2, "--prompts", file)
    assert run(*sample, "--out", tmp_path / "s.jsonl").code == 0
    record = json.loads((tmp_path / "s.jsonl").read_text())
    assert record["prompt"] == rows[0].prompt
    assert all(s["reward"] in (0, 1) for s in record["samples"])
    for other in (("--prompt-format", "raw"), ("--system", "s"), ("--few-shot", file)):
        if other[0] != "--few-shot":
            check_error(run(*sample, *other), str(form).split(" (")[0], "leave --prompt-format, --system and")
    check_error(run(*sample, "--few-shot", file), "line 1 is no example")

    sizes = ("--trajectories", 4, "--children", 3, "--completions", 3)
    audit = ("audit", "--model", prm, "--prompts", questions, *sizes)
    result = run(*audit, "--out", tmp_path / "audit")
    assert result.code == 0, result.lines
    assert read_rollouts(tmp_path / "audit" / "rollouts")[1].prompt_format == form
    assert not drawn("raw", "--prompt-format", "raw").err.count("chat template")
    audit = ("audit", "--model", prm, "--out", tmp_path / "other", "--rollouts")
    check_error(run(*audit, tmp_path / "raw"), "format is raw, the checkpoint's is chat", "--prompt-format")
    check_error(run(*audit, tmp_path / "chat", "--system", "s"), "rendered already", "leave --prompt-format")
    unknown = tmp_path / "rows.jsonl"
    unknown.write_text(
        "".join(json.dumps({"prompt": r.question, "steps": r.steps, "reward": r.reward}) + "\n" for r in rows)
    )
    assert "do not say in which format" in run(*audit, unknown).out
    assert "do not say in which format" not in run(*audit, unknown, "--prompt-format", "chat").out


def test_labelled_rows_on_the_command_line(run, chat_folder, tmp_path, prompts):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": p, "completions": ["u r3 \n"], "labels": [i % 2]} for i, p in enumerate(prompts)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    train = ("train", "--train_rollouts", file, "--model_name_or_path", chat_folder, *TRAIN)
    for name, options in (("raw", ()), ("chat", ("--prompt-format", "chat", "--system", "u ."))):
        assert run(*train, *options, "--output_dir", tmp_path / name).code == 0
    assert rm.load_value_model(str(tmp_path / "raw"))[0].prompt_format == RAW
    assert rm.load_value_model(str(tmp_path / "chat"))[0].prompt_format.system == "u ."
    check_error(run(*train, "--prompt_format", "jinja", "--output_dir", tmp_path / "x"), "auto, raw, chat")


def test_a_policy_without_template(run, policy_folder, prompts_file, tmp_path):
    rollout = ("rollout", "--policy", policy_folder, "--prompts", prompts_file, "--horizon", 3)
    for option in (("--prompt-format", "chat"), ("--system", "s")):
        check_error(
            run(*rollout, *option, "--out", tmp_path / "r"), "no chat template", "--prompt-format raw"
        )
    assert not (tmp_path / "r").exists()
