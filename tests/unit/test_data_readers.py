"""Public formats in their published layouts: what becomes of a row, and every way a row can be wrong."""

import json
from dataclasses import fields

import pytest

from rmtools.data.readers import READERS, Tally, detect, parse_map, read_public
from rmtools.data.readers.row import Field, Options
from rmtools.data.readers.stepwise import split_question
from rmtools.errors import UserError

TRL = {"prompt": "1 + 1?", "completions": ["One and one.", "Two."], "labels": [True, 0.75]}
SHEPHERD = {
    "input": "Ann has 2 eggs. How many? Step 1: She has 2. <<1+1=2>>2 ки\nStep 2: The answer is: 2 ки",
    "label": "Ann has 2 eggs. How many? Step 1: She has 2. <<1+1=2>>2 +\nStep 2: The answer is: 2 -",
    "task": "GSM8K",
}
LABELLED = {"question": "How many?", "answer": "It is 2.\n#### 2", "steps": ["a", "b"], "labels": [1, 0]}
JUDGED = {"prompt": "How many?", "steps": "a\nb", "reward": 0.5, "reference": 2}
VERSA = {"question": "How many?", "answer": "B", "chain_of_thoughts": ["a", "b"], "labels": [1, 0]}
OPENRLHF = {"input": "How many? Step 1: Two. ки\nStep 2: Three. ки", "value": ["+", "-"]}
APS = {"question": "How many?", "process": "Step 1: Two. ки\nStep 2: Three. ки", "label": ["+", "-"]}
BEST_OF_N = {"prompt": "How many?", "answers": ["a\n\nb", "c"], "label": [1, 0]}
ER_PRM = {"text": "How many? Step 1: Two. ки\nStep 2: Three. ки\n", "value": [1.0, 0.375]}
RLHFLOW = {
    "conversations": [
        {"role": "user", "content": "How many? Step 1: Two."},
        {"role": "assistant", "content": "+"},
        {"role": "user", "content": "Step 2: Three."},
        {"role": "assistant", "content": "-"},
    ]
}
BENCH = {
    "id": "gsm8k-0",
    "generator": "G",
    "problem": "How many?",
    "steps": ["a", "b\n\nc", "d"],
    "final_answer_correct": False,
    "label": 1,
}
PRMBENCH = {
    "original_question": "Old?",
    "modified_question": "New?",
    "original_process": ["x", "y"],
    "modified_process": ["a", "b", "c"],
    "modified_steps": [2],
    "error_steps": [2, 3],
    "classification": "confidence",
}
ROLLOUTS = {
    "prompt": "How many?",
    "reference": 2,
    "completions": ["a\n\nb\n\n", "c"],
    "correctness": [True, 0.25],
    "steps": [None, ["c1", "c2"]],
}
GSM8K = {"question": "How many?", "answer": "Half of 4 is <<4/2=2>>2.\n#### 1,002"}
SOLUTIONS = {
    "question": "How many?",
    "ground_truth": "It is 2.\nA: 2",
    "6b": {"is_correct": False, "solution": "It is 3.\nA: 3"},
    "175b": {"is_correct": True, "solution": "It is 2.\nA: 2"},
}
TREE = {
    "text": "How many?",
    "mc_value": 0.5,
    "children": [
        {
            "text": "a",
            "mc_value": 0.75,
            "children": [
                {"text": "b", "mc_value": 1.0, "children": []},
                {"text": "c", "mc_value": None, "children": []},
                {"text": "d", "mc_value": 0, "children": []},
            ],
        },
        {"text": "e", "mc_value": 0.125, "children": []},
    ],
}
PRM800K = {"question": {"problem": "p"}, "label": {"steps": []}}
VGS = {"problem": "How many?", "roll_in_ids": [[1]], "roll_outs_ids": [[2]], "labels": [1]}
ROWS = {
    "trl": TRL,
    "math-shepherd": SHEPHERD,
    "steps": LABELLED,
    "judged-steps": JUDGED,
    "versaprm": VERSA,
    "openrlhf": OPENRLHF,
    "math-aps": APS,
    "best-of-n": BEST_OF_N,
    "er-prm": ER_PRM,
    "rlhflow": RLHFLOW,
    "processbench": BENCH,
    "prmbench": PRMBENCH,
    "rollouts": ROLLOUTS,
    "gsm8k": GSM8K,
    "gsm8k-solutions": SOLUTIONS,
    "omegaprm": TREE,
    "prm800k": PRM800K,
    "vgs": VGS,
}


def options_of(how):
    """Take the options of a format out of ``how``."""
    return Options(**{f.name: how.pop(f.name) for f in fields(Options) if f.name in how})


@pytest.fixture
def read(tmp_path):
    """``read("trl", row, …)``: the rollouts of rows in a file."""

    def start(name, *rows, **how):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        return list(read_public(file, name, options_of(how), **how))

    return start


def test_trl_keeps_soft_labels_and_null(read):
    row = {"prompt": "1 + 1?\n", "completions": ["a", "b\n", "c\nd\n\n"], "labels": [0.75, None, 1]}
    (found,) = read("trl", row)
    assert found.prompt == "1 + 1?\n"
    assert found.steps == ["a\n", "b\n", "c\nd\n\n"]
    assert found.labels == [0.75, None, 1.0]
    assert found.reward is None
    assert found.children == found.completions == []


def test_newlines_that_open_a_step_close_the_piece_before(read):
    row = {"prompt": "Q?", "completions": ["\na", "b", "\n\n# Answer\n\n2"], "labels": [1, 1, 0]}
    (found,) = read("trl", row)
    assert (found.prompt, found.steps) == ("Q?\n", ["a\n", "b\n\n", "# Answer\n\n2\n"])


def test_hard_labels_are_floats(read):
    (found,) = read("trl", TRL)
    assert found.prompt == "1 + 1?\n"
    assert found.labels == [1.0, 0.75]
    assert all(isinstance(x, float) for x in found.labels)


def test_math_shepherd(read):
    (found,) = read("math-shepherd", SHEPHERD)
    assert found.prompt == "Ann has 2 eggs. How many?\n"
    assert found.steps == ["Step 1: She has 2. <<1+1=2>>2\n", "Step 2: The answer is: 2\n"]
    assert found.labels == [1.0, 0.0]


def test_a_step_behind_the_last_tag_has_no_label(read):
    row = {k: f"{SHEPHERD[k]}\nStep 3: cut o" for k in ("input", "label")}
    (found,) = read("math-shepherd", row)
    assert found.steps[2] == "Step 3: cut o\n"
    assert found.labels == [1.0, 0.0, None]


def test_er_prm(read):
    (found,) = read("er-prm", ER_PRM)
    assert found.prompt == "How many?\n"
    assert found.steps == ["Step 1: Two.\n", "Step 2: Three.\n"]
    assert found.labels == [1.0, 0.375]


def test_rlhflow(read):
    (found,) = read("rlhflow", RLHFLOW)
    assert (found.prompt, found.steps) == ("How many?\n", ["Step 1: Two.\n", "Step 2: Three.\n"])
    assert found.labels == [1.0, 0.0]


def test_where_the_first_step_begins_can_be_said(read):
    row = {
        "conversations": [{"role": "user", "content": "How many? Let us see."}, RLHFLOW["conversations"][1]]
    }
    (found,) = read("rlhflow", row, first_step=r"(?<=\? )")
    assert (found.prompt, found.steps) == ("How many?\n", ["Let us see.\n"])
    with pytest.raises(UserError, match=r"line 1, .*conversations\[0\].content: does not show .*'Step 1:'"):
        read("rlhflow", row)


def test_question_with_steps_of_its_own(read):
    """The steps begin at the last mark before the first tag."""
    assert split_question(Field(None), "Is Step 1: right? Step 1: b", Options()) == (
        "Is Step 1: right?",
        "Step 1: b",
    )
    row = {k: "Is 'Step 1: 2 + 2 = 5' right? " + SHEPHERD[k] for k in ("input", "label")}
    (found,) = read("math-shepherd", row)
    assert found.prompt == "Is 'Step 1: 2 + 2 = 5' right? Ann has 2 eggs. How many?\n"
    assert found.steps[0] == "Step 1: She has 2. <<1+1=2>>2\n"


@pytest.mark.parametrize(
    ("values", "labels"), [(["+", "-"], [1.0, 0.0]), ([0.9, 0.1], [0.9, 0.1]), ([True, False], [1.0, 0.0])]
)
@pytest.mark.parametrize(("name", "text"), [("openrlhf", "input"), ("er-prm", "text")])
def test_rows_of_openrlhf(read, name, text, values, labels):
    (found,) = read(None, {text: OPENRLHF["input"], "value": values})
    assert (found.prompt, found.steps) == ("How many?\n", ["Step 1: Two.\n", "Step 2: Three.\n"])
    assert found.labels == labels
    assert read("math-shepherd", {"input": OPENRLHF["input"], "label": values})[0].labels == labels


def test_math_aps_and_openr(read):
    """A single label belongs to the last step; otherwise each tag has one."""
    (found,) = read(None, APS)
    assert (found.prompt, found.steps) == ("How many?\n", ["Step 1: Two.\n", "Step 2: Three.\n"])
    assert found.labels == [1.0, 0.0]
    assert read(None, {**APS, "label": ["+"]})[0].labels == [None, 1.0]
    openr = {"question": APS["question"], "process": APS["process"], "labels": [1, 0]}
    assert read(None, openr)[0] == found
    later = {**openr, "process": "Two.\n\n\n\n\nThree.\n\n\n\n\n"}
    assert read(None, later)[0].steps == ["Two.\n", "Three.\n"]
    with pytest.raises(UserError, match="label: has 3 labels for 2 steps"):
        read(None, {**APS, "label": ["+", "+", "-"]})


def test_omegaprm_as_its_code_writes_it(read):
    row = {"question": "How many?", "final_answer": "2", "reasoning_steps": TREE}
    found = read(None, row)
    assert [(r.steps, r.labels) for r in found] == [(r.steps, r.labels) for r in read("omegaprm", TREE)]
    assert {r.reference for r in found} == {"2"}


def transposed(turns):
    return {name: [turn[name] for turn in turns] for name in turns[0]}


@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_conversations_in_every_spelling(read, column):
    turns = RLHFLOW["conversations"]
    spoken = [
        {"from": {"user": "human", "assistant": "gpt"}[t["role"]], "value": t["content"]} for t in turns
    ]
    for said in (turns, spoken, transposed(turns), transposed(spoken)):
        assert read(None, {column: said}) == read("rlhflow", RLHFLOW)


def test_the_most_specific_format_wins_and_ignored_columns_are_named(read):
    for row, name, ignored in (
        (LABELLED, "steps", ["answer"]),
        ({**VERSA, "cot_response": "..."}, "versaprm", ["answer", "cot_response"]),
        ({**SHEPHERD, "id": 3}, "math-shepherd", ["task", "id"]),
        (BENCH, "processbench", ["id", "generator"]),
        ({**TRL, "correctness": [1, 1]}, "trl", ["correctness"]),
        (TRL, "trl", []),
    ):
        tally = Tally()
        found = read(None, row, tally=tally)
        assert (tally.format, tally.ignored) == (name, ignored)
        if "labels" in row:
            assert found[0].labels == [1.0, row["labels"][1]]
    assert read(None, JUDGED)[0].steps == ["a\n", "b\n"]
    assert (read(None, JUDGED)[0].reward, read(None, JUDGED)[0].reference) == (0.5, "2")


def test_best_of_n(read):
    first, second = read(None, BEST_OF_N)
    assert (first.steps, first.reward) == (["a\n\n", "b\n"], 1.0)
    assert (second.steps, second.reward) == (["c\n"], 0.0)


MARKED = {"meta": {"q": "How many?"}, "parts": [{"text": "a", "good": 1}, {"text": "b", "good": 0}], "id": 3}


def test_fields_under_other_names(read):
    tally = Tally()
    how = {"prompt": "meta.q", "steps": "parts.text", "labels": "parts.good"}
    (found,) = read(None, MARKED, map=tuple(how.items()), tally=tally)
    assert (found.prompt, found.steps, found.labels) == ("How many?\n", ["a\n", "b\n"], [1.0, 0.0])
    assert (tally.format, tally.ignored) == ("steps", ["id"])
    row = {"q": "1 + 1?", "solution_steps": ["One.", "Two."], "marks": ["+", "-"]}
    (found,) = read("trl", row, map=parse_map("prompt=q,completions=solution_steps,labels=marks"))
    assert (found.steps, found.labels) == (["One.\n", "Two.\n"], [1.0, 0.0])
    (found,) = read(None, {**row, "a.b": "4?"}, map=parse_map("prompt=a.b,steps=solution_steps,labels=marks"))
    assert found.prompt == "4?\n"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "prompt=question,steps=s,labels=l",
            "prompt from question, which no row has.*there is meta.q, parts.text",
        ),
        ("promt=meta.q", "unknown field promt.*the fields are .*prompt"),
        ("prompt", "says nothing of 'prompt'"),
        ("prompt=a,prompt=b", "names prompt twice"),
    ],
)
def test_a_map_that_leads_nowhere(read, given, words):
    with pytest.raises(UserError, match=words):
        read(None, MARKED, map=parse_map(given))


def test_a_mapped_field_that_one_row_lacks(read):
    other = {k: v for k, v in MARKED.items() if k != "meta"}
    with pytest.raises(UserError, match=r"line 2, field meta.q: is missing; there is parts, id"):
        read(None, MARKED, other, map=parse_map("prompt=meta.q,steps=parts.text,labels=parts.good"))


INNER = {"prompt": "Q?", "completions": ["Line a\nLine b", "Line c\n\nLine d"], "labels": [1, 0]}


def test_steps_that_hold_the_delimiter(read):
    """They are kept and counted, or split where sampling would end them, with the label at the last piece."""
    tally = Tally()
    (found,) = read("trl", INNER, TRL, tally=tally)[:1]
    assert found.steps == ["Line a\nLine b\n", "Line c\n\nLine d\n"]
    assert list(tally.noted.values()) == [2]
    (found,) = read("trl", INNER, inner_delimiter="split")
    assert found.steps == ["Line a\n", "Line b\n", "Line c\n\n", "Line d\n"]
    assert found.labels == [None, 1.0, None, 0.0]
    with pytest.raises(UserError, match=r"line 2, field steps: step 1 holds the delimiter"):
        read("trl", TRL, INNER, inner_delimiter="refuse")
    assert read("trl", INNER, delimiter="|", inner_delimiter="refuse")[0].labels == [1.0, 0.0]


def test_several_bad_rows_are_shown_with_a_count_of_each_kind(read):
    bad = [{**TRL, "labels": [1]}, {**TRL, "labels": [0]}, {**TRL, "prompt": ""}, None, {**TRL, "labels": []}]
    with pytest.raises(UserError) as error:
        read("trl", TRL, *bad)
    for words in ("line 2, field labels", "line 3, field labels", "line 4, field prompt", "5 of the 6 rows",
                  "3 field labels", "1 field prompt", "1 is no object"):  # fmt: skip
        assert words in error.value.fact
    tally = Tally()
    assert len(read(None, TRL, *bad, skip_bad=True, tally=tally)) == 1
    assert sum(tally.dropped.values()) == 5
    with pytest.raises(UserError, match="20 of the 20 rows read are bad"):
        read("trl", *[bad[0]] * 99)


def test_labels_that_say_nothing_are_noted(read):
    tally = Tally()
    read("trl", {**TRL, "labels": [1, 1]}, {**TRL, "labels": [None, None]}, tally=tally)
    assert tally.dropped == {"trajectory without outcome or label": 1}
    assert "every label is 1: they tell no step from another" in tally.notes()


@pytest.mark.parametrize(
    ("label", "right", "labels"),
    [
        (-1, True, [1.0, 1.0, 1.0]),
        (0, False, [0.0, None, None]),
        (1, True, [1.0, 0.0, None]),
        (2, False, [1.0, 1.0, 0.0]),
    ],
)
def test_processbench(read, label, right, labels):
    (found,) = read("processbench", {**BENCH, "label": label, "final_answer_correct": right})
    assert found.labels == labels
    assert found.reward == float(right)
    assert found.steps == ["a\n", "b\n\nc\n", "d\n"]


def test_prmbench_counts_from_one(read):
    (found,) = read("prmbench", PRMBENCH)
    assert (found.prompt, found.labels) == ("New?\n", [1.0, 0.0, 0.0])
    assert read("prmbench", {**PRMBENCH, "error_steps": []})[0].labels == [1.0, 1.0, 1.0]


def test_rollouts(read):
    first, second = read("rollouts", ROLLOUTS)
    assert (first.steps, first.reward, first.labels) == (["a\n\n", "b\n\n"], 1.0, None)
    assert (second.steps, second.reward, second.reference) == (["c1\n", "c2\n"], 0.25, "2")
    assert first.prompt_id == second.prompt_id
    row = {k: v for k, v in ROLLOUTS.items() if k not in ("steps", "reference")}
    first, second = read("rollouts", row, segment="newline")
    assert (first.steps, second.steps, first.reference) == (["a\n\n", "b\n\n"], ["c\n"], None)
    row = {"prompt": "?", "steps": [["a"]], "correctness": [0]}
    assert read("rollouts", row)[0].steps == ["a\n"]


def test_gsm8k(read):
    (found,) = read("gsm8k", GSM8K)
    assert found.steps == ["Half of 4 is <<4/2=2>>2.\n", "#### 1,002\n"]
    assert (found.reward, found.reference, found.labels) == (1.0, "1,002", None)


def test_gsm8k_solutions(read):
    wrong, right = read("gsm8k-solutions", SOLUTIONS)
    assert (wrong.steps, wrong.reward, wrong.reference) == (["It is 3.\n", "A: 3\n"], 0.0, "2")
    assert (right.steps, right.reward) == (["It is 2.\n", "A: 2\n"], 1.0)
    assert wrong.prompt_id == right.prompt_id


def test_omegaprm_labels_each_node_once(read):
    tally = Tally()
    found = read("omegaprm", TREE, tally=tally)
    assert [(r.steps, r.labels) for r in found] == [
        (["a\n", "b\n"], [0.75, 1.0]),
        (["a\n", "d\n"], [None, 0.0]),
        (["e\n"], [0.125]),
    ]
    assert {r.prompt for r in found} == {"How many?\n"}
    assert tally.dropped == {
        "value of a prompt alone (a rollout labels steps)": 1,
        "trajectory without outcome or label": 1,
    }


def test_another_delimiter(read):
    (found,) = read("trl", TRL, delimiter=" ки")
    assert (found.prompt, found.steps) == ("1 + 1? ки", ["One and one. ки", "Two. ки"])


@pytest.mark.parametrize("name", READERS)
def test_detection(name):
    assert detect([ROWS[name], ROWS[name]]) == name


def test_detection_refuses_to_guess():
    with pytest.raises(UserError, match="3 formats: trl, versaprm, gsm8k"):
        detect([{**TRL, **VERSA, "question": "Q?"}])
    with pytest.raises(UserError, match=r"colour.*trl \(prompt, completions, labels\)"):
        detect([{"colour": "red"}])
    for rows, word in (([TRL, GSM8K], "2 formats: trl, gsm8k"), ([], "no rows"), ([3], "not objects")):
        with pytest.raises(UserError, match=word):
            detect(rows)


def turns(*said):
    return {
        "conversations": [{"role": ("user", "assistant")[t % 2], "content": x} for t, x in enumerate(said)]
    }


def child(**values):
    return {**TREE, "children": [{"text": "a", "mc_value": 0.5, "children": [], **values}]}


BAD = [
    ("trl", {**TRL, "labels": [True]}, "labels: has 1 labels for 2 steps"),
    ("trl", {**TRL, "labels": [1.5, 0]}, r"labels\[0\]: must be in \[0, 1\], got 1.5"),
    ("trl", {**TRL, "labels": [-100, 0]}, r"labels\[0\]: must be in \[0, 1\], got -100"),
    ("trl", {**TRL, "labels": [1, float("nan")]}, r"labels\[1\]: .*got nan"),
    ("trl", {**TRL, "labels": [1, "0"]}, r"labels\[1\]: .*got '0'"),
    ("trl", {**TRL, "labels": None}, "labels: must be a list, got None"),
    ("trl", {**TRL, "completions": ["a", " \n"]}, r"completions\[1\]: is empty"),
    ("trl", {**TRL, "completions": ["a", 3]}, r"completions\[1\]: must be a text, got 3"),
    ("trl", {**TRL, "completions": []}, "completions: there is no step"),
    ("trl", {**TRL, "completions": "ab"}, "completions: must be a list, got 'ab'"),
    (
        "trl",
        {**TRL, "prompt": [{"role": "user", "content": "x" * 99}]},
        r"prompt: must be a text, got .*\.\.\.",
    ),
    ("trl", {**TRL, "prompt": ""}, "prompt: is empty"),
    ("trl", {"prompt": "a", "labels": [1]}, "completions: is missing"),
    ("trl", {**TRL, "labels": {"a": 1}}, "labels: must be a list"),
    ("math-shepherd", {**SHEPHERD, "label": SHEPHERD["label"][:-2]}, "label: differs from input after tag 1"),
    (
        "math-shepherd",
        {**SHEPHERD, "label": SHEPHERD["label"] + " +"},
        "label: goes on after the last of input's 2",
    ),
    (
        "math-shepherd",
        {**SHEPHERD, "label": SHEPHERD["label"].replace("-", "ки")},
        "label: has no .* tag 2 of 2",
    ),
    (
        "math-shepherd",
        {**SHEPHERD, "label": "x" + SHEPHERD["label"]},
        "label: differs from input before tag 1",
    ),
    ("math-shepherd", {"input": "Q? Step 1: a", "label": "Q? Step 1: a"}, "input: has no step tag ки"),
    (
        "math-shepherd",
        {"input": "Q? a ки", "label": "Q? a +"},
        "input: does not show where the first step begins",
    ),
    ("math-shepherd", {"input": "Q? Step 1: a ки ки", "label": "Q? Step 1: a + +"}, "input: step 2 is empty"),
    ("math-shepherd", {"input": "Step 1: a ки", "label": "Step 1: a +"}, "after a question"),
    ("er-prm", {**ER_PRM, "value": [1.0]}, "value: has 1 labels for 2 steps"),
    ("er-prm", {**ER_PRM, "value": [1.0, 0.5, 0.5]}, "value: has 3 labels for 2 steps"),
    ("er-prm", {**ER_PRM, "value": [1.0, -0.1]}, r"value\[1\]: must be in"),
    ("rlhflow", turns("Q? Step 1: a"), "conversations: has 1 turns"),
    ("rlhflow", turns("Q? Step 1: a", "good"), r"conversations\[1\].content: must be \+ or -, got 'good'"),
    ("rlhflow", turns("Q? Step 1: a", "+", "", "+"), r"conversations\[2\].content: is empty"),
    ("rlhflow", {"conversations": turns("a", "+", "b")["conversations"][1:]}, r"\[0\].role: must be user"),
    ("rlhflow", {"conversations": [{"from": "x", "value": "a"}, {}]}, "from: must be user, got 'x'"),
    ("processbench", {**BENCH, "label": 3}, "label: must be an integer from -1 to 2, got 3"),
    ("processbench", {**BENCH, "label": True}, "label: must be an integer from -1 to 2, got True"),
    ("processbench", {**BENCH, "final_answer_correct": None}, "final_answer_correct: must be true or false"),
    (
        "prmbench",
        {**PRMBENCH, "error_steps": [0]},
        r"error_steps\[0\]: must be an integer from 1 to 3, got 0",
    ),
    (
        "prmbench",
        {**PRMBENCH, "error_steps": [4]},
        r"error_steps\[0\]: must be an integer from 1 to 3, got 4",
    ),
    ("rollouts", {**ROLLOUTS, "correctness": [1]}, "steps: has 2 items for 1 of correctness"),
    ("rollouts", {**ROLLOUTS, "completions": ["a"]}, "completions: has 1 items for 2 of correctness"),
    ("rollouts", {**ROLLOUTS, "correctness": [2, 0]}, r"correctness\[0\]: must be in"),
    ("rollouts", {**ROLLOUTS, "steps": [["a", ""], None]}, r"steps\[0\]\[1\]: is empty"),
    ("rollouts", {**ROLLOUTS, "completions": None}, r"steps\[0\]: is null"),
    ("rollouts", {"prompt": "a", "correctness": [1]}, "completions: is missing, and so is steps"),
    ("gsm8k", {**GSM8K, "answer": "72"}, "answer: has no final answer behind ####"),
    ("gsm8k", {**GSM8K, "answer": "a\n####"}, "answer: has no final answer behind ####"),
    (
        "gsm8k-solutions",
        {**SOLUTIONS, "6b": {"is_correct": 1, "solution": "a"}},
        "6b.is_correct: must be true or",
    ),
    ("gsm8k-solutions", {**SOLUTIONS, "6b": {"is_correct": True, "solution": ""}}, "6b.solution: is empty"),
    ("gsm8k-solutions", {"question": "a", "ground_truth": "A: 2"}, "is_correct: is in no field"),
    ("gsm8k-solutions", {**SOLUTIONS, "ground_truth": "2"}, "ground_truth: has no final answer behind A:"),
    ("omegaprm", child(mc_value=2), r"children\[0\].mc_value: must be in \[0, 1\], got 2"),
    ("omegaprm", child(text=""), r"children\[0\].text: is empty"),
    ("omegaprm", child(children=None), r"children\[0\].children: must be a list"),
    ("omegaprm", {**TREE, "mc_value": "high"}, "mc_value: must be in"),
]


@pytest.mark.parametrize(("name", "row", "words"), BAD)
def test_bad_rows_name_file_row_and_field(read, name, row, words):
    with pytest.raises(UserError, match=rf"rows.jsonl, line 2, field .*{words}"):
        read(name, ROWS[name], row)


@pytest.mark.parametrize(("name", "row", "words"), BAD)
def test_bad_rows_can_be_counted_instead(read, name, row, words):
    tally = Tally()
    found = read(name, ROWS[name], row, ROWS[name], skip_bad=True, tally=tally)
    assert len(found) == 2 * len(read(name, ROWS[name]))
    assert tally.rows == 3
    (reason,) = [r for r in tally.dropped if "breaks the format" in r]
    assert tally.dropped[reason] == 1


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("trl", {**TRL, "labels": [None, None]}, "trajectory without outcome or label"),
        ("rollouts", {**ROLLOUTS, "correctness": [None, True]}, "trajectory without outcome or label"),
        ("rollouts", {"prompt": "a", "completions": [], "correctness": []}, "prompt without any solution"),
        ("omegaprm", {"text": "a", "mc_value": None, "children": []}, "tree without any step"),
    ],
)
def test_what_has_no_place_is_counted(read, name, row, reason):
    tally = Tally()
    read(name, row, tally=tally)
    assert tally.dropped == {reason: 1}


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"name": "xml"}, "there is no format 'xml'; fix: choose one of trl, steps"),
        ({"neutral": "maybe"}, "no 'maybe' for neutral ratings; fix: choose one of positive, negative, skip"),
        ({"segment": "regex:("}, "not a regular expression"),
        ({"first_step": "("}, "not a regular expression"),
        ({"delimiter": ""}, "delimiter is empty"),
    ],
)
def test_options_are_checked_before_anything_is_read(tmp_path, how, word):
    with pytest.raises(UserError, match=word):
        read_public(tmp_path / "missing.jsonl", options=options_of(how), **how)
