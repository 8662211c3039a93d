"""Prompt formats: what is rendered, what is refused, and one format from rollouts to samples."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from assets import NAMES, real_tokenizer

import rmtools as rm
from rmtools.data.prompts import Prompt, asked_format, enter_prompts, read_prompt
from rmtools.data.tasks import Crossing, rendered_task
from rmtools.errors import UserError
from rmtools.lm.checkpoint import CheckpointSettings
from rmtools.lm.prompt_format import RAW, AskedFormat, PromptFormat, PromptRenderer
from rmtools.lm.steps import StepTokenizer

DATED = "{{ strftime_now('%d %b %Y') }}"
SOLVED = [{"prompt": "r1 . \nc13 . \n", "solution": "u r3 \nd r3 \n"}]


@pytest.fixture(scope="module")
def chat_rollouts(chat_folder, task, tmp_path_factory):
    """The folder of rollouts with a system turn, and the rollouts."""
    out = tmp_path_factory.mktemp("rollouts") / "r"
    found = rm.collect_rollouts(
        str(chat_folder), 4, task=task, trajectories=2, children=2, max_step_tokens=4, system="u .", out=out
    )
    return out, found


@pytest.fixture(scope="module")
def chat_checkpoint(chat_folder, chat_rollouts, tmp_path_factory):
    """A checkpoint trained on them."""
    out = tmp_path_factory.mktemp("prm") / "prm"
    config = rm.PRMConfig(output_dir=str(out), max_steps=1, logging_strategy="no", disable_tqdm=True)
    trainer = rm.PRMTrainer(str(chat_folder), config, str(chat_rollouts[0]))
    trainer.train()
    trainer.save_model()
    return out


def test_raw_prompts_stand_as_they_are():
    assert PromptRenderer(RAW, None).render("1 + 1?\n") == "1 + 1?\n"
    shown = PromptFormat(few_shot=(("a?\n", "A\nB\n\n"), ("b?\n", "C")))
    assert PromptRenderer(shown, None).render("c?\n") == "a?\nA\nB\n\nb?\nC\n\nc?\n"
    assert PromptRenderer(RAW, None).render("q\n", (("user", "q"),)) == "q\n"


def test_chat_prompts(chat_tokenizer):
    form = AskedFormat("chat", "u .", (("r1 . \n", "d r3 \n"),)).resolve(chat_tokenizer)
    renderer = PromptRenderer(form, chat_tokenizer)
    shown = "<|user|>r1 . \n<|assistant|>d r3 \n"
    assert renderer.render("r2 . \n") == f"<bos><|system|>u . \n{shown}<|user|>r2 . \n<|assistant|>"
    alone = PromptRenderer(replace(form, system="", few_shot=()), chat_tokenizer)
    turns = (("user", "a"), ("assistant", "b"), ("user", "c"))
    assert alone.render("c\n", turns) == "<bos><|user|>a \n<|assistant|>b \n<|user|>c \n<|assistant|>"
    own = (("system", "s"), ("user", "c"))
    assert alone.render("c\n", own) == "<bos><|system|>s \n<|user|>c \n<|assistant|>"


def test_a_template_that_writes_the_date_gives_the_same_text_every_day(chat_tokenizer, monkeypatch):
    monkeypatch.setattr(chat_tokenizer, "chat_template", DATED + chat_tokenizer.chat_template)
    form = AskedFormat("chat").resolve(chat_tokenizer)
    assert PromptRenderer(form, chat_tokenizer).render("r1 .").startswith("26 Jul 2024<bos>")


def test_auto(chat_tokenizer, tokenizer):
    chat = AskedFormat("chat").resolve(chat_tokenizer)
    assert (chat.kind, len(chat.template)) == ("chat", 12)
    assert AskedFormat().resolve(chat_tokenizer) == chat
    assert AskedFormat().resolve(chat_tokenizer, auto="raw") == RAW
    assert AskedFormat().resolve(chat_tokenizer, auto="raw", turns=True) == chat
    assert AskedFormat().resolve(tokenizer) == AskedFormat("raw").resolve(chat_tokenizer) == RAW


def test_what_no_tokenizer_can_render(chat_tokenizer, tokenizer):
    for asked, turns in (
        (AskedFormat("chat"), False),
        (AskedFormat(), True),
        (AskedFormat(system="s"), False),
    ):
        with pytest.raises(UserError, match="no chat template") as caught:
            asked.resolve(tokenizer, turns=turns)
        assert "`prompt_format` raw" in caught.value.fix
    with pytest.raises(UserError, match="`system` is a turn of a chat"):
        AskedFormat("raw", system="s").resolve(chat_tokenizer)
    with pytest.raises(UserError, match="choose one of: auto, raw, chat"):
        asked_format("chatml")


@pytest.mark.parametrize(
    ("template", "turns", "why"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
            1,
            "no system",
        ),
        (
            "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}",
            1,
            "drops",
        ),
    ],
)
def test_a_template_that_takes_no_system_turn(chat_tokenizer, monkeypatch, template, turns, why):
    monkeypatch.setattr(chat_tokenizer, "chat_template", template + "{{ messages[-1].content }}")
    form = AskedFormat("chat", system="be brief").resolve(chat_tokenizer)
    with pytest.raises(UserError, match=why) as caught:
        PromptRenderer(form, chat_tokenizer).render("q")
    assert "leave `system` out" in caught.value.fix


def test_a_rendered_prompt_is_not_rendered_again(chat_tokenizer):
    form = AskedFormat("chat", system="u .").resolve(chat_tokenizer)
    renderer = PromptRenderer(form, chat_tokenizer)
    with pytest.raises(UserError, match=r"prompt 3 holds <\|user\|>, .* rendered already"):
        renderer.render("<|user|>q", where="prompt 3")
    with pytest.raises(UserError, match="prompt 3 has a system turn of its own"):
        renderer.render("q", (("system", "s"), ("user", "q")), "prompt 3")
    with pytest.raises(UserError, match="only a single user turn has a raw form"):
        PromptRenderer(RAW, None).render("q", (("system", "s"), ("user", "q")))


def message(role, content):
    return {"role": role, "content": content}


def test_messages_in_a_file():
    user = message("user", " 6 * 7? ")
    asked = Prompt("6 * 7?\n", "42", (("user", " 6 * 7? "),))
    assert read_prompt({"messages": [user], "answer": 42}, "f") == asked
    assert read_prompt({"prompt": [user], "answer": "#### 42"}, "f") == asked
    parts = message("user", [{"type": "text", "text": "6 * "}, {"type": "text", "text": "7?"}])
    assert read_prompt({"messages": [parts]}, "f").text == "6 * 7?\n"
    several = [message("system", "s"), user, message("assistant", "42"), message("user", "And 6 * 8?")]
    found = read_prompt({"messages": several}, "f", "\n\n")
    assert (found.text, [role for role, _ in found.turns]) == (
        "And 6 * 8?\n\n",
        ["system", "user", "assistant", "user"],
    )


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "has no message"),
        ("hello", "has no message"),
        (["hello"], "message 0 has the role None"),
        ([message("tool", "x")], "message 0 has the role 'tool'"),
        ([message("user", "")], 'message 0 has no text "content"'),
        ([message("user", None)], 'message 0 has no text "content"'),
        ([message("user", [{"type": "image", "url": "x"}])], 'message 0 has no text "content"'),
        ([{"role": "user"}], 'message 0 has no text "content"'),
        ([message("user", "x"), message("system", "s"), message("user", "y")], "message 1 is a system turn"),
        ([message("user", "x"), message("assistant", "y")], "last message is the assistant's"),
        ([message("system", "x")], "last message is the system's"),
    ],
)
def test_wrong_messages(messages, why):
    with pytest.raises(UserError, match=f"p.jsonl, line 3, field messages.*{why}"):
        read_prompt({"messages": messages}, "p.jsonl, line 3")


def test_few_shot_files(tmp_path):
    path = tmp_path / "shots.jsonl"
    rows = [
        {"prompt": "a", "answer": "b"},
        {"question": " c? ", "answer": "d\n#### 1"},
        {"problem": "e?", "solution": "f", "answer": "1"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = (("a", "b"), ("c?|", "d\n#### 1"), ("e?|", "f"))
    assert asked_format(few_shot=path, delimiter="|").few_shot == expected
    assert asked_format(few_shot=rows, delimiter="|").few_shot == expected
    assert asked_format(few_shot=[("a", "b")]).few_shot == (("a", "b"),)
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a", "answer": 3}\n')
    with pytest.raises(UserError, match=r"shots.jsonl, line 2 is no example"):
        asked_format(few_shot=path)
    for wrong in ([{"prompt": "a"}], [{"solution": "a"}], [{"prompt": " ", "solution": "a"}], ["a"], []):
        with pytest.raises(UserError, match="example"):
            asked_format(few_shot=wrong)
    with pytest.raises(UserError, match="cannot be read"):
        asked_format(few_shot=tmp_path / "missing.jsonl")


def test_a_task_reads_the_question(chat_tokenizer, task, prompts):
    texts, judge, form = enter_prompts([Prompt(p) for p in prompts], task, AskedFormat(), chat_tokenizer)
    assert form.kind == "chat"
    assert all(text != p for text, p in zip(texts, prompts, strict=True))
    right = task.demonstration(prompts[0], 1.0, np.random.default_rng(0))
    for p, text in zip(prompts, texts, strict=True):
        judge.check_prompt(text)
        assert judge.reward(text, right) == task.reward(p, right)
        assert judge.step_choices(text, []) == task.step_choices(p, [])
        assert judge.answer(text, right) == task.answer(p, right)
    assert (judge.name, judge.horizon, judge.delimiter) == (task.name, task.horizon, task.delimiter)
    assert rendered_task(task, {p: p for p in prompts}) is task


def test_a_task_without_answers_has_none_behind_rendered_prompts(task):
    from rmtools.data.tasks import Answering

    class Bare:
        name, horizon, delimiter = "bare", 3, "\n"

    assert not isinstance(rendered_task(Bare(), {"a": "b"}), Answering)
    assert isinstance(rendered_task(task, {"a": "b"}), Answering)


def test_answers_by_question(chat_tokenizer):
    from rmtools.data.tasks import AnswerTask

    given = [Prompt("r1 .\n", "42"), Prompt("r2 .\n")]
    texts, judge, _ = enter_prompts(given, AnswerTask(), AskedFormat(), chat_tokenizer)
    assert [judge.reference(text) for text in texts] == ["42", None]
    assert judge.reward(texts[0], ["#### 42"]) == 1


def test_rollouts_hold_text_question_and_format(chat_rollouts, chat_folder, chat_tokenizer, task):
    folder, found = chat_rollouts
    form = AskedFormat("chat", "u .").resolve(chat_tokenizer)
    assert found.metadata.prompt_format == form
    assert found[:] == rm.load_rollouts(folder)[:]
    assert str(form) in str(found)
    renderer = PromptRenderer(form, chat_tokenizer)
    for row in found:
        task.check_prompt(row.question)
        assert row.prompt == renderer.render(row.question)
        assert row.reward == task.reward(row.question, row.steps)
    given = sorted({r.question for r in found})
    messages = [{"messages": [message("user", q)]} for q in given]
    for prompts in (given, messages):
        again = rm.collect_rollouts(
            str(chat_folder), prompts, task=task, trajectories=2, max_step_tokens=4, system="u ."
        )
        assert [r.prompt for r in again[::2]] == [renderer.render(q) for q in given]


def test_raw_rollouts_of_a_policy_with_a_template(chat_folder, task, caplog):
    raw = rm.collect_rollouts(str(chat_folder), 2, task=task, trajectories=1, prompt_format="raw")
    assert not caplog.records
    assert (raw.metadata.prompt_format, {r.question for r in raw}) == (RAW, {None})
    rm.collect_rollouts(str(chat_folder), 2, task=task, trajectories=1)
    assert [r.getMessage().count("chat template") for r in caplog.records] == [1]


def test_samples_take_the_checkpoints_format(chat_checkpoint, chat_rollouts, task):
    recorded = chat_rollouts[1].metadata.prompt_format
    assert CheckpointSettings.load(chat_checkpoint).prompt_format == recorded
    assert f"format is {recorded}." in (chat_checkpoint / "README.md").read_text()
    question = chat_rollouts[1][0].question
    given = {"n_particles": 2, "task": task}
    sampled = rm.sample(str(chat_checkpoint), [question], **given)
    assert sampled[0].prompt == chat_rollouts[1][0].prompt
    same = rm.sample(str(chat_checkpoint), [question], prompt_format="chat", system="u .", **given)
    assert same[0].prompt == sampled[0].prompt
    for other in ({"prompt_format": "raw"}, {"system": "s"}, {"few_shot": SOLVED}):
        with pytest.raises(UserError) as caught:
            rm.sample(str(chat_checkpoint), [question], **other, **given)
        assert str(recorded) in caught.value.fact
        assert "leave `prompt_format`, `system` and `few_shot` out" in caught.value.fix
    value, settings = rm.load_value_model(str(chat_checkpoint))
    assert rm.sample(value, [question], policy=settings.policy, **given)[0].prompt == sampled[0].prompt


def test_a_policy_with_another_template(chat_checkpoint, chat_rollouts, chat_folder):
    value, settings = rm.load_value_model(str(chat_checkpoint))
    policy = rm.load_policy(chat_folder, settings.steps)
    policy.steps.tokenizer.chat_template += "{# new #}"
    with pytest.raises(UserError, match=r"format is chat with .*, the checkpoint's is chat with") as caught:
        rm.sample(value, ["r1 . \nc13 . \nc13 . \nc02 . \n"], policy=policy, n_particles=2)
    assert "chat template is another" in caught.value.fix


def test_raw_checkpoints(value_folder, prompts):
    """Also those that were written before formats were recorded."""
    messages = [{"messages": [message("user", prompts[0])]}]
    with pytest.raises(UserError, match="chat messages, and the checkpoint was trained on raw prompts"):
        rm.sample(str(value_folder), messages, n_particles=2)
    with pytest.raises(UserError, match="no chat template"):
        rm.sample(str(value_folder), prompts[:1], n_particles=2, prompt_format="chat")
    settings = json.loads((value_folder / "rmtools.json").read_text())
    assert settings["prompt_format"] == {"kind": "raw", "system": "", "few_shot": [], "template": ""}


def test_an_audit_compares_formats(chat_checkpoint, chat_rollouts, chat_folder, task, monkeypatch):
    folder, found = chat_rollouts
    policy = rm.load_policy(chat_folder, found.metadata.steps)
    monkeypatch.setattr("rmtools.auditing.enumerated.MIN_PROBABILITY", 1e-12)  # it was never trained
    report = rm.audit(folder, str(chat_checkpoint), policy=policy, task=task, terminal="verifier")
    assert report.provenance["prompt_format"] == str(found.metadata.prompt_format)
    assert report.uncovered is not None  # the task lists its steps after rendered prompts, too
    raw = replace(found, metadata=replace(found.metadata, prompt_format=RAW))
    with pytest.raises(UserError, match="the rollouts' format is raw, the checkpoint's is chat with system"):
        rm.audit(raw, str(chat_checkpoint))
    unknown = [replace(r, prompt=r.question, question=None) for r in found]
    notes = rm.audit((unknown, rm.load_rollouts(unknown).metadata), str(chat_checkpoint)).warnings
    assert any("do not say in which format" in note for note in notes)


def trainer(chat_folder, tmp_path, rows, held_out=None, **arguments):
    config = rm.PRMConfig(output_dir=str(tmp_path / "prm"), max_steps=1, disable_tqdm=True, **arguments)
    return rm.PRMTrainer(str(chat_folder), config, rows, held_out)


def test_labelled_rows_are_raw_unless_chat_is_asked_for(chat_folder, chat_tokenizer, tmp_path, prompts):
    rows = [{"prompt": p, "completions": ["u r3 \n"], "labels": [i % 2]} for i, p in enumerate(prompts)]
    plain = trainer(chat_folder, tmp_path, rows)
    assert plain.settings.prompt_format == RAW
    shots = tmp_path / "shots.jsonl"
    shots.write_text(json.dumps(SOLVED[0]))
    asked = {"prompt_format": "chat", "system": "u .", "few_shot": str(shots)}
    chat = trainer(chat_folder, tmp_path, rows[:6], rows[6:], **asked)
    form = AskedFormat("chat", "u .", ((SOLVED[0]["prompt"], SOLVED[0]["solution"]),)).resolve(chat_tokenizer)
    assert chat.settings.prompt_format == form
    text = PromptRenderer(form, chat_tokenizer).render(prompts[0])
    first = chat.prepared.examples[0].tree
    assert first.ids[: first.reads[0] + 1].tolist() == chat.steps.prompt_ids(text)
    assert [(r.prompt, r.question) for r in chat.eval_rollouts] == [
        (PromptRenderer(form, chat_tokenizer).render(p), p) for p in prompts[6:]
    ]


def read(*args, **kwargs):
    raise AssertionError("weights are read")


def test_prompts_are_refused_before_any_weights_are_read(
    chat_folder, chat_checkpoint, task, prompts, monkeypatch
):
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", read)
    monkeypatch.setattr("rmtools.sampling.samples.load_value_model", read)
    given = {"task": task, "max_step_tokens": 4}
    for asked, wanted in (
        ({"prompt_format": "raw", "system": "s"}, "`prompt_format` is raw"),
        ({"system": "<bos>"}, "the system turn of .* holds <bos>"),
    ):
        with pytest.raises(UserError, match=wanted):
            rm.collect_rollouts(str(chat_folder), prompts, **asked, **given)
    long = "".join(["r1 . \n", "c13 . \n" * 2000])
    with pytest.raises(UserError, match="no room is left for a step"):
        rm.sample(str(chat_checkpoint), [long], n_particles=2)
    with pytest.raises(UserError, match="format is raw"):
        rm.sample(str(chat_checkpoint), prompts[:1], n_particles=2, prompt_format="raw")
    with pytest.raises(AssertionError, match="weights are read"):
        rm.sample(str(chat_checkpoint), prompts[:1], n_particles=2)


def test_rollouts_of_another_format_are_refused_before_any_weights_are_read(
    chat_folder, chat_rollouts, chat_checkpoint, tmp_path, monkeypatch
):
    for name in ("auditing.load_models.load_value_model", "training.trainer.build_model"):
        monkeypatch.setattr(f"rmtools.{name}", read)
    found = chat_rollouts[1]
    raw = replace(found, metadata=replace(found.metadata, prompt_format=RAW))
    with pytest.raises(UserError, match="the rollouts' format is raw"):
        rm.audit(raw, str(chat_checkpoint))
    with pytest.raises(UserError, match="rendered already, in the format chat"):
        trainer(chat_folder, tmp_path, found, system="s")


def test_training_refuses_two_formats(chat_folder, tmp_path, chat_rollouts, prompts):
    found = chat_rollouts[1]
    trainer(chat_folder, tmp_path, found, prompt_format="chat", system="u .")  # theirs
    for other in ({"prompt_format": "raw"}, {"system": "s"}):
        with pytest.raises(UserError, match="rendered already, in the format chat with system"):
            trainer(chat_folder, tmp_path, found, **other)
    half = sorted({r.prompt for r in found})[:2]
    train = replace(found, rows=[r for r in found if r.prompt in half])
    held_out = replace(found, rows=[r for r in found if r.prompt not in half])
    trainer(chat_folder, tmp_path, train, held_out)
    raw = replace(held_out, metadata=replace(held_out.metadata, prompt_format=RAW))
    with pytest.raises(UserError, match="the held-out rollouts' format is raw"):
        trainer(chat_folder, tmp_path, train, raw)


def test_a_mismatch_names_both_formats(chat_tokenizer):
    one = AskedFormat("chat", "a" * 100, (("q", "s"),)).resolve(chat_tokenizer)
    other = replace(one, few_shot=(("q", "t"),))
    assert str(one).startswith("chat with system 'aaa")
    assert len(str(one)) < 160
    assert str(one) != str(other)
    assert (str(RAW), one.kind) == ("raw", "chat")


def test_the_task_crossing_reads_what_a_user_says():
    """The white space that a chat loses is put back for the task."""
    question = Crossing(2).prompts(1, np.random.default_rng(0))[0][0]
    found = read_prompt({"messages": [message("user", question)]}, "f")
    assert found.text == question.strip() + "\n"


def test_rows_whose_prompts_are_messages(chat_folder, chat_tokenizer, chat_checkpoint, tmp_path, prompts):
    """The layout of trl's conversational data sets."""
    said = [message("user", "r1 ."), message("assistant", "u ."), message("user", prompts[0])]
    rows = [
        {"prompt": said, "completions": ["u r3 \n"], "labels": [True]},
        {"prompt": [message("user", prompts[1])], "completions": ["u r3 \n"], "labels": [False]},
    ]
    chat = trainer(chat_folder, tmp_path, rows)
    renderer = PromptRenderer(AskedFormat("chat").resolve(chat_tokenizer), chat_tokenizer)
    turns = tuple((m["role"], m["content"]) for m in said)
    texts = [renderer.render("", turns), renderer.render(prompts[1])]
    assert chat.settings.prompt_format == renderer.form
    trees = [e.tree for e in chat.prepared.examples]
    assert [t.ids[: t.reads[0] + 1].tolist() for t in trees] == [chat.steps.prompt_ids(t) for t in texts]
    raw = trainer(chat_folder, tmp_path, rows[1:], prompt_format="raw")
    text = prompts[1].strip() + "\n"
    assert raw.prepared.examples[0].tree.ids[
        : len(raw.steps.prompt_ids(text))
    ].tolist() == raw.steps.prompt_ids(text)
    with pytest.raises(UserError, match="only a single user turn"):
        trainer(chat_folder, tmp_path, rows, prompt_format="raw")
    with pytest.raises(UserError, match="row 1, field prompt: another conversation ends with the same"):
        rm.load_rollouts([rows[0], {**rows[1], "prompt": said[2:]}])
    with pytest.raises(UserError, match="row 0, field prompt: the last message is the assistant's"):
        rm.load_rollouts([{**rows[0], "prompt": said[:2]}])
    with pytest.raises(UserError, match="an audit reads texts"):
        rm.audit([{"prompt": said, "steps": ["u r3 \n"], "reward": 1.0}], str(chat_checkpoint))


TEMPLATES = [name for name in NAMES if name != "gpt2"]
QUESTIONS = [
    "6 * 7?",
    "  a {b} <c> & \\boxed{2}\n\n\t漢字 🙂  ",
    "a\n\n<think>\nb\n</think>\n\nc",
    "{{ messages }}",
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_real_templates_render_what_transformers_renders(name):
    """Also the ids: nothing is added to a text that its template has begun, and nothing put behind it."""
    tokenizer = real_tokenizer(name)
    shots = (("1 + 1?\n", "It is 2.\n#### 2\n"),)
    systems = ("", "Reason step by step.") if name != "mistral" else ("",)
    steps = StepTokenizer(tokenizer, rm.StepSettings("\n", 8))
    for system, few_shot, question in itertools.product(systems, ((), shots), QUESTIONS):
        renderer = PromptRenderer(AskedFormat("chat", system, few_shot).resolve(tokenizer), tokenizer)
        text = renderer.render(question)
        turns = [message("system", system)] if system else []
        for q, s in few_shot:
            turns += [message("user", q.strip()), message("assistant", s.strip())]
        turns.append(message("user", question.strip()))
        told = {"add_generation_prompt": True, "return_dict": False}
        assert text == tokenizer.apply_chat_template(turns, tokenize=False, **told)
        assert steps.prompt_ids(text) == tokenizer.apply_chat_template(turns, tokenize=True, **told)


def test_mistral_takes_no_system_turn():
    tokenizer = real_tokenizer("mistral")
    form = AskedFormat("chat", "be brief").resolve(tokenizer)
    with pytest.raises(UserError, match="refuses a system turn"):
        PromptRenderer(form, tokenizer).render("q")


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_real_template_has_written_is_not_rendered_again(name):
    tokenizer = real_tokenizer(name)
    renderer = PromptRenderer(AskedFormat("chat").resolve(tokenizer), tokenizer)
    with pytest.raises(UserError, match="rendered already"):
        renderer.render(renderer.render("6 * 7?"))


def with_ends(tokenizer, before, behind):
    """Return a copy of a tokenizer that puts special tokens around every text."""
    import copy

    from tokenizers.processors import TemplateProcessing

    found = copy.deepcopy(tokenizer)
    names = [*before, *behind]
    found.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$A", *behind],
        special_tokens=[(name, found.convert_tokens_to_ids(name)) for name in dict.fromkeys(names)],
    )
    return found


@pytest.mark.parametrize("before", [["<bos>"], []])
@pytest.mark.parametrize("behind", [["<eos>"], []])
def test_special_tokens_stand_once_in_front_and_never_behind(chat_tokenizer, before, behind):
    tokenizer = with_ends(chat_tokenizer, before, behind)
    steps = StepTokenizer(tokenizer, rm.StepSettings("\n", 3))
    bos, eos, user = tokenizer.convert_tokens_to_ids(["<bos>", "<eos>", "<|user|>"])
    text = PromptRenderer(AskedFormat("chat").resolve(tokenizer), tokenizer).render("r1 . \nc13 . \n")
    ids = steps.prompt_ids(text)
    assert (ids.count(bos), ids[:2], eos in ids) == (1, [bos, user], False)
    raw = steps.prompt_ids("r1 . \nc13 . \n")
    assert (raw[0] == bos, raw.count(bos), eos in raw) == (bool(before), len(before), False)
    assert tokenizer.decode(ids) == text
